//! Clusters of every size.

use crate::cluster::{Cluster, Setup};
use crate::common::within;
use crate::load::Load;
use crate::machine::Command;

#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_every_size_serve_and_agree() {
    for replicas in [1, 2, 4, 5] {
        let cluster = Cluster::start(Setup::new(replicas)).await;
        let load = Load::steady(&cluster, replicas - 1);
        load.more(100).await;
        let sent = within("submit", cluster.client(0).submit(&Command::Send(u64::MAX))).await.unwrap();
        assert_eq!(sent.effects.len(), 1);
        let told = load.stop().await;
        told.assert_kept(&cluster.books().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_five_replicas_may_go_and_come_back() {
    let mut cluster = Cluster::start(Setup::new(5)).await;
    let load = Load::steady(&cluster, 0);
    load.more(50).await;
    let primary = cluster.primary().await;
    let dark = [primary, (primary + 1) % 5];
    cluster.cut_power(&dark);
    load.more(50).await;
    for replica in dark {
        cluster.start_one(replica).await;
    }
    load.more(50).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}
