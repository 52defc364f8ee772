//! Data directories and clusters that are not the ones meant.

use std::path::Path;

use crate::cluster::{Cluster, Setup};
use crate::common::{eventually, within};
use crate::load::Load;
use crate::machine::Ledger;
use chronon_server::{Founding, Node, RunningNode, ServerConfig, StartError, StopReason};
use chronon_storage::{FormatError, OpenError};
use chronon_vsr::{PeerRefusal, ReplicaId};

async fn open(path: &Path, config: ServerConfig) -> Result<RunningNode<Ledger>, StartError> {
    within("start", Node::<Ledger>::open(path).config(config).start()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_made_or_written_is_named() {
    let founding = Founding::draw(1).unwrap().log_size(16 << 20);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    // Not even the superuser may write in the second.
    for path in [file.join("data"), "/proc/data".into()] {
        match Node::<Ledger>::format(&path, &founding, ReplicaId::new(0)) {
            Err(FormatError::Disk { doing, .. }) => {
                assert!(doing.contains(path.to_str().unwrap()), "{doing}");
            }
            other => panic!("{other:?}"),
        }
        let error = open(&path, ServerConfig::default()).await.unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_a_running_ones_directory_is_refused_and_harms_nothing() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(20).await;
    for replica in cluster.replicas() {
        match open(&cluster.path(replica), ServerConfig::default()).await {
            Err(StartError::Data(OpenError::Locked { path })) => assert_eq!(path, cluster.path(replica)),
            other => panic!("{other:?}"),
        }
    }
    load.more(20).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_another_cluster_under_a_members_address_is_not_listened_to() {
    let mut cluster = Cluster::start(Setup::new(3)).await;
    cluster.cut_power(&[2]);
    // The same number, the same addresses; another cluster.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let founding = Founding::draw(3).unwrap().log_size(16 << 20);
    Node::<Ledger>::format(&path, &founding, ReplicaId::new(2)).unwrap();
    let config = cluster.config_of_stranger(2, founding.cluster);
    let mut stranger = None;
    eventually("the ports are free", async || {
        stranger = open(&path, config.clone()).await.ok();
        stranger.is_some()
    })
    .await;

    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    let status: serde_json::Value =
        serde_json::from_str(&stranger.as_ref().unwrap().status().await.unwrap()).unwrap();
    assert_eq!(status["commit"], 0, "it took nothing over: {status}");
    assert!(
        0 < cluster.counter(0, "peer_connections_bad").await
            + cluster.counter(1, "peer_connections_bad").await
    );

    within("shutdown", stranger.take().unwrap().shutdown()).await;
    cluster.start_one(2).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// A program that embeds a replica has its founding at hand. The first start of the new directory counts one, as the only
/// start of the old one did.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_made_anew_under_a_known_identity_is_refused_and_its_replica_stops() {
    let mut cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(40).await;
    let victim = (cluster.primary().await + 1) % 3;
    cluster.cut_power(&[victim]);
    let kept = cluster.make_anew(victim);
    cluster.start_one(victim).await;
    match cluster.stopped(victim).await {
        StopReason::Refused { by, why: PeerRefusal::TwoStarts } => assert_ne!(by, ReplicaId::new(victim)),
        other => panic!("{other}"),
    }
    load.more(40).await;

    // The old one is welcome, and nobody had to be restarted for it.
    std::fs::remove_dir_all(cluster.path(victim)).unwrap();
    std::fs::rename(kept, cluster.path(victim)).unwrap();
    cluster.start_one(victim).await;
    load.more(40).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// It was killed: nobody said goodbye, and no peer knows how far its log went. What it noted of that while it ran does.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_refuses_a_log_that_was_zeroed_after_its_power_went() {
    let mut cluster = Cluster::start(Setup::new(1)).await;
    let superblock = cluster.path(0).join("superblock");
    let before = std::fs::read(&superblock).unwrap();
    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    load.stop().await;
    eventually("how far the log goes is noted", async || std::fs::read(&superblock).unwrap() != before).await;
    cluster.cut_power(&[0]);
    let wal = cluster.path(0).join("wal");
    let size = std::fs::metadata(&wal).unwrap().len();
    std::fs::write(&wal, vec![0; size as usize]).unwrap();
    let refused = cluster.try_to_start(0).await.unwrap_err();
    assert!(matches!(refused, StartError::Data(OpenError::OnlyCopyDamaged { .. })), "{refused}");
}
