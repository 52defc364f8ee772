//! Disks and machines that stand still for a while, and clusters that do nothing.

use std::time::Duration;

use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::load::Load;

/// What must not have changed.
#[derive(Debug, PartialEq, Eq)]
struct Calm {
    primary: (u8, u64),
    view_changes: u64,
    abdications: u64,
}

async fn calm(cluster: &Cluster) -> Calm {
    Calm {
        primary: cluster.primary_after(None).await,
        view_changes: cluster.count("view_changes").await,
        abdications: cluster.count("abdications").await,
    }
}

/// Stalls the disk of one replica under load for this long: the primary's, or another's.
async fn stall_without_a_view_change(long: Duration, which: impl FnOnce(u8) -> u8) {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(50).await;
    let before = calm(&cluster).await;
    let replica = which(before.primary.0);

    cluster.disk(replica).pull();
    eventually("a flush is held", async || cluster.disk(replica).holds()).await;
    load.more(20).await;
    load.go_on(long).await;
    load.more(20).await;
    assert!(cluster.disk(replica).holds(), "the stall lasted");
    cluster.disk(replica).release();

    load.more(50).await;
    assert_eq!(calm(&cluster).await, before);
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_seconds_of_a_backups_stalled_disk_cost_no_view_and_no_command() {
    stall_without_a_view_change(Duration::from_secs(2), |primary| (primary + 1) % 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_second_of_the_primarys_stalled_disk_costs_no_view_and_no_command() {
    stall_without_a_view_change(Duration::from_millis(500), |primary| primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_disk_stalls_for_long_abdicates_once_and_no_command_fails() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(50).await;
    let before = calm(&cluster).await;
    // A view is not given up for a slow disk in its first ten seconds.
    load.go_on(Duration::from_millis(10_500)).await;
    assert_eq!(calm(&cluster).await, before);

    let (stalled, view) = before.primary;
    cluster.disk(stalled).pull();
    let (next, next_view) = cluster.primary_after(Some(view)).await;
    assert_ne!(next, stalled);
    assert_eq!(next_view, view + 1, "one view change");
    load.more(50).await;
    load.go_on(Duration::from_secs(1)).await;
    // Its disk has not said yet that it follows, but it hears whom to ask.
    let done = cluster.submit_under_key(stalled, "from the stalled", r#"{"transfer":1000000000}"#).await;
    assert!(done["op"].is_u64(), "{done}");
    assert!(cluster.disk(stalled).holds());
    cluster.disk(stalled).release();
    let caught_up = async || {
        let (old, new) = (cluster.status(stalled).await, cluster.status(next).await);
        old.view == next_view && old.role == "backup" && new.commit <= old.applied + 1_000
    };
    eventually("the stalled replica follows", caught_up).await;
    load.go_on(Duration::from_secs(1)).await;

    assert_eq!(cluster.primary_after(None).await, (next, next_view), "and no other");
    assert_eq!(cluster.count("abdications").await, before.abdications + 1);
    assert_eq!(cluster.count("view_changes").await, before.view_changes + 3, "each replica took part once");
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_takes_two_seconds_costs_no_view_and_no_command() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(50).await;
    let before = calm(&cluster).await;

    for replica in cluster.replicas() {
        cluster.apply(replica).pull();
    }
    for replica in cluster.replicas() {
        eventually("an op is held", async || cluster.apply(replica).holds()).await;
    }
    let sent = cluster.count("peer_messages_sent").await;
    load.go_on(Duration::from_secs(2)).await;
    // Two seconds are more than sixty heartbeats.
    assert!(sent + 60 < cluster.count("peer_messages_sent").await, "heartbeats go on");
    for replica in cluster.replicas() {
        assert!(cluster.apply(replica).holds(), "it lasted");
        cluster.apply(replica).release();
    }

    load.more(50).await;
    assert_eq!(calm(&cluster).await, before);
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_work_writes_nothing_and_keeps_its_view() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(50).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);

    // What is written last is evidence of what was written before it; then nothing.
    let mut jobs = cluster.count("wal_jobs").await;
    eventually("the disks are at rest", async || {
        // sleeps: between two looks.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = std::mem::replace(&mut jobs, cluster.count("wal_jobs").await);
        before == jobs
    })
    .await;
    let before = (calm(&cluster).await, cluster.status(0).await.op);
    // sleeps: what is shown is that nothing happens meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((calm(&cluster).await, cluster.status(0).await.op), before);
    assert_eq!(cluster.count("wal_jobs").await, jobs);
}
