//! Wall clocks that differ: what no longer leaves then, who no longer leads, and what is told of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use chronon_server::CallError;
use tokio::sync::watch;

use crate::cluster::{Cluster, Setup};
use crate::common::{eventually, within};
use crate::machine::Command;

const HOUR: u64 = 3_600;

/// Waits until every replica says this of the clocks, and asserts that the metrics say the same.
async fn until_told(cluster: &Cluster, told: &[&str]) {
    eventually(&format!("the clocks are told as {told:?}"), async || {
        let shown = cluster.get(0, "/v1/cluster").await;
        let replicas = shown["replicas"].as_array().unwrap();
        replicas.iter().map(|replica| &replica["clocks"]).eq(told)
    })
    .await;
    for (replica, told) in (0..).zip(told) {
        let gauges =
            (cluster.gauge(replica, "clock_off").await, cluster.gauge(replica, "clocks_disagree").await);
        let expected = (u64::from(*told == "own_is_off"), u64::from(*told == "disagree"));
        assert_eq!(gauges, expected, "replica {replica}: {told}");
    }
}

/// The sink may have forgotten the key: log time goes on at the pace of one clock, and says nothing of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_unknown_end_is_not_repeated_while_no_quorum_of_clocks_agrees() {
    let calls = Arc::new(AtomicU32::new(0));
    let (ends, may_end) = watch::channel(false);
    let count = Arc::clone(&calls);
    let serve: crate::cluster::Serve = Arc::new(move |_, call| {
        let (first, mut may_end) = (count.fetch_add(1, Ordering::Relaxed) == 0, may_end.clone());
        Box::pin(async move {
            within("the test lets the call end", may_end.wait_for(|may| *may)).await.unwrap();
            let done = format!("did {}", call.effect);
            if first { Err(CallError::Unknown("no answer came".to_owned())) } else { Ok(done) }
        })
    });
    let cluster = Cluster::start(Setup { serve, ..Setup::new(3) }).await;
    until_told(&cluster, &["agree"; 3]).await;
    let primary = cluster.primary().await;
    within("submit", cluster.client(primary).submit(&Command::Send(7))).await.unwrap();
    eventually("the sink is called", async || calls.load(Ordering::Relaxed) == 1).await;

    // Not the primary's own: it would hand over before the others' are known to differ too.
    for (replica, fast) in (0..3).filter(|replica| *replica != primary).zip([HOUR, 2 * HOUR]) {
        cluster.set_clock(replica, fast);
    }
    until_told(&cluster, &["disagree"; 3]).await;
    ends.send_replace(true);
    eventually("the repeat comes to the gate again and again", async || {
        5 <= cluster.count("attempts_abandoned").await || 1 < calls.load(Ordering::Relaxed)
    })
    .await;
    assert_eq!(calls.load(Ordering::Relaxed), 1, "and does not pass");
    assert!(cluster.books().await.heard.is_empty());

    for replica in 0..3 {
        cluster.set_clock(replica, 0);
    }
    until_told(&cluster, &["agree"; 3]).await;
    eventually("it is repeated once they agree", async || !cluster.books().await.heard.is_empty()).await;
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_clock_is_off_says_so_and_hands_over() {
    let cluster = Cluster::start(Setup::new(3)).await;
    until_told(&cluster, &["agree"; 3]).await;
    let (off, view) = cluster.primary_after(None).await;
    cluster.set_clock(off, HOUR);
    let told: Vec<&str> = (0..3).map(|replica| if replica == off { "own_is_off" } else { "agree" }).collect();
    until_told(&cluster, &told).await;
    let (leads, _) = cluster.primary_after(Some(view)).await;
    assert_ne!(leads, off);
    cluster.set_clock(off, 0);
    until_told(&cluster, &["agree"; 3]).await;
}
