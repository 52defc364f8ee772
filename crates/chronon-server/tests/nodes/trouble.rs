//! Slow disks, slow machines, failing disks, panicking threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronon_server::{DiskKind, ServerConfig, StopReason};

use crate::cluster::{Cluster, Command, eventually, within};

fn on_a_test_disk(config: ServerConfig) -> ServerConfig {
    ServerConfig { disk: DiskKind::Unflushed, ..config }
}

/// The view that each running replica is in.
async fn views(cluster: &Cluster) -> Vec<u64> {
    let mut views = Vec::new();
    for node in cluster.nodes.iter().flatten() {
        let status: serde_json::Value = serde_json::from_str(&node.status().await.unwrap()).unwrap();
        views.push(status["view"].as_u64().unwrap());
    }
    views
}

/// Writes an order to stall into a replica's data directory, and submits until that long is over. Returns how many
/// commands were acknowledged.
async fn submit_through_a_stall(cluster: &Cluster, replica: u8, order: &str, stall: Duration) -> u64 {
    let client = cluster.node(0).client();
    let order = cluster.path(replica).join(order);
    std::fs::write(&order, stall.as_millis().to_string()).unwrap();
    let mut acknowledged = 0;
    let mut began = None;
    while began.is_none_or(|began: Instant| began.elapsed() < stall + Duration::from_millis(300)) {
        within("submit", client.submit(&Command::Add(1))).await.unwrap();
        acknowledged += 1;
        // sleeps: at the pace of a client that thinks, since the log of a test is small.
        tokio::time::sleep(Duration::from_millis(5)).await;
        if began.is_none() && !order.exists() {
            began = Some(Instant::now());
        }
    }
    assert_eq!(within("query", client.query(&())).await.unwrap().answer.sum, acknowledged);
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backups_disk_that_stalls_for_two_seconds_is_nobodys_business() {
    let cluster = Cluster::start_with(3, on_a_test_disk).await;
    let before = views(&cluster).await;
    let backup = (cluster.primary().await + 1) % 3;
    let stall = Duration::from_secs(2);
    let acknowledged = submit_through_a_stall(&cluster, backup, "stall-disk", stall).await;
    assert_eq!(views(&cluster).await, before);
    assert!(20 < acknowledged, "only {acknowledged} commands went through");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_second_of_the_primarys_disk_costs_no_view_change() {
    let cluster = Cluster::start_with(3, on_a_test_disk).await;
    let before = views(&cluster).await;
    let primary = cluster.primary().await;
    submit_through_a_stall(&cluster, primary, "stall-disk", Duration::from_millis(500)).await;
    assert_eq!(views(&cluster).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_apply_costs_no_view_change() {
    let cluster = Cluster::start_with(3, on_a_test_disk).await;
    let before = views(&cluster).await;
    let primary = cluster.primary().await;
    submit_through_a_stall(&cluster, primary, "stall-apply", Duration::from_secs(2)).await;
    assert_eq!(views(&cluster).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_stops_the_replica_and_the_others_go_on() {
    let mut cluster = Cluster::start_with(3, on_a_test_disk).await;
    let victim = cluster.primary().await;
    let client = cluster.node(victim).client();
    // No number of milliseconds: the hook fails, and with it the flush.
    std::fs::write(cluster.path(victim).join("stall-disk"), "for ever").unwrap();
    within("submit", client.submit(&Command::Add(1))).await.unwrap();
    match within("stop", cluster.node(victim).stopped()).await {
        StopReason::Disk { doing, error } => {
            assert!(doing.contains(&cluster.path(victim).display().to_string()), "{doing}");
            assert!(error.contains("invalid digit"), "{error}");
        }
        other => panic!("{other}"),
    }
    within("submit", client.submit(&Command::Add(1))).await.unwrap();
    cluster.stop_one(victim).await;
    within("start", cluster.start_one(victim)).await.unwrap();
    eventually("the replica is back", async || cluster.node(victim).client().query(&()).await.is_ok()).await;
    assert_eq!(cluster.node(victim).client().query(&()).await.unwrap().answer.sum, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_thread_stops_the_replica_and_says_so() {
    let panics = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&panics);
    let cluster = Cluster::start_with(1, move |config| {
        let hook = Arc::clone(&hook);
        let before_commit = move || assert!(!hook.load(Ordering::Relaxed), "a bug that the test stands for");
        ServerConfig { before_commit: Some(Arc::new(before_commit)), ..config }
    })
    .await;
    panics.store(true, Ordering::Relaxed);
    let client = cluster.node(0).client();
    let submitted = tokio::spawn(async move { client.submit(&Command::Add(1)).await });
    match within("stop", cluster.node(0).stopped()).await {
        StopReason::Panicked { thread, message } => {
            assert_eq!(thread, "back");
            assert!(message.contains("a bug that the test stands for"), "{message}");
        }
        other => panic!("{other}"),
    }
    submitted.abort();
}
