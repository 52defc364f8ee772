//! Logs that take more than they hold: checkpoints, restarts from them, and replicas that were away for long.

use std::collections::BTreeSet;

use chronon_server::StopReason;
use serde_json::Value;

use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::links::Mode;
use crate::load::Load;

/// About so many heavy commands fill the small log once.
const FILLS: usize = 150;

/// A cluster with the smallest log.
fn small(replicas: u8) -> Setup {
    Setup { log_bytes: 16 << 20, ..Setup::new(replicas) }
}

/// Takes several times what the log holds, while replicas lose power one after another, and at last all at once.
async fn takes_many_times_its_log(replicas: u8) {
    let mut cluster = Cluster::start(small(replicas)).await;
    let load = Load::heavy(&cluster, 0);
    for round in 0..4 {
        load.more(FILLS).await;
        let replica = round % replicas;
        cluster.cut_power(&[replica]);
        cluster.start_one(replica).await;
    }
    load.more(FILLS).await;
    cluster.cut_power(&cluster.replicas().collect::<Vec<_>>());
    for replica in cluster.replicas() {
        cluster.start_one(replica).await;
    }
    load.more(FILLS).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
    for replica in cluster.replicas() {
        let status = cluster.status(replica).await;
        assert!(0 < status.checkpoint && 1 < status.log_start, "{status:?}");
        // It began from a checkpoint, and executed only what came after that.
        assert_eq!(cluster.counter(replica, "checkpoints_restored").await, 1);
        let executed = cluster.measured(replica, "apply").await;
        assert!(executed < status.applied / 2, "executed {executed} of {}", status.applied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_take_many_times_what_their_log_holds_through_power_cuts() {
    takes_many_times_its_log(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_takes_many_times_what_its_log_holds_through_power_cuts() {
    takes_many_times_its_log(1).await;
}

/// Stops a replica under load until what it missed is in nobody's log any more, and starts it again.
async fn left_behind(cluster: &mut Cluster, load: &Load) -> (u8, u64) {
    load.more(FILLS).await;
    let away = (cluster.primary().await + 1) % 3;
    let left_at = cluster.status(away).await.op;
    cluster.cut_power(&[away]);
    eventually("the logs of the others have moved on", async || {
        let mut moved_on = true;
        for other in cluster.replicas().filter(|other| *other != away) {
            moved_on &= left_at < cluster.status(other).await.log_start;
        }
        moved_on
    })
    .await;
    (away, left_at)
}

async fn caught_up(cluster: &Cluster, away: u8, left_at: u64) {
    eventually("it has caught up with the others", async || {
        let primary = cluster.status(cluster.primary().await).await;
        let own = cluster.status(away).await;
        primary.checkpoint <= own.checkpoint && left_at < own.applied
    })
    .await;
    assert!(0 < cluster.counter(away, "chunks_fetched").await);
    assert!(0 < cluster.count("chunks_served").await);
}

/// The others don't stop for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_long_is_brought_back_under_load() {
    let mut cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    let (away, left_at) = left_behind(&mut cluster, &load).await;
    cluster.start_one(away).await;
    caught_up(&cluster, away, left_at).await;
    load.more(FILLS).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// What `GET /v1/cluster` has about a replica, asked of another or of itself.
async fn shown_by(cluster: &Cluster, asked: u8, replica: u8) -> Value {
    cluster.get(asked, "/v1/cluster").await["replicas"][usize::from(replica)].clone()
}

/// Waits until nobody but the replica that is away has anything to execute or to write: what it is given then is the state
/// that they keep.
async fn settled(cluster: &Cluster, away: u8) {
    eventually("the others have written their checkpoints", async || {
        let mut states = BTreeSet::new();
        let mut written = true;
        for other in cluster.replicas().filter(|other| *other != away) {
            let status = cluster.status(other).await;
            written &= status.applied == status.op && status.commit == status.op;
            written &= cluster.measured(other, "freeze").await
                == cluster.counter(other, "checkpoints_written").await;
            states.insert((status.op, status.checkpoint));
        }
        written && states.len() == 1
    })
    .await;
}

/// Waits until a replica says of the state that it fetches that so many chunks have come and others are still to come, to
/// whoever asks it and in its metrics; and returns of how many.
async fn says_how_far_it_is(cluster: &Cluster, away: u8, goal: u64) -> u64 {
    let primary = cluster.primary().await;
    let state = cluster.status(primary).await.checkpoint;
    let mut lacked = 0;
    for asked in [away, primary] {
        eventually("it says how many chunks have come", async || {
            let sync = shown_by(cluster, asked, away).await["sync"].clone();
            let number = |name: &str| sync[name].as_u64().unwrap_or(0);
            let fetched = number("fetched");
            lacked = number("chunks");
            assert!(fetched < lacked || lacked == 0, "{sync}");
            goal <= fetched && 0 < lacked && number("op") == state
        })
        .await;
    }
    let shown = shown_by(cluster, primary, away).await;
    assert_eq!((&shown["fetching_state"], &shown["state_transfers"]), (&true.into(), &1.into()), "{shown}");
    for (name, value) in [("sync_op", state), ("sync_chunks", lacked), ("fetching_state", 1)] {
        assert_eq!(cluster.gauge(away, name).await, value, "{name}");
    }
    let fetched = cluster.gauge(away, "sync_chunks_fetched").await;
    assert!(goal <= fetched && fetched < lacked, "{fetched} of {lacked}");
    lacked
}

/// No new op shows it the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_long_is_brought_back_to_an_idle_cluster() {
    let mut cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    let (away, left_at) = left_behind(&mut cluster, &load).await;
    let told = load.stop().await;
    settled(&cluster, away).await;
    // It can't be done with it before its peers have sent all of it.
    cluster.links.set_all_to(away, Mode::LoseChunks);
    cluster.start_one(away).await;
    // Nor before its disk has said so.
    cluster.disk(away).pull();
    let is_told = async || cluster.ready(away).await.contains("fetches a state");
    eventually("it is not ready, and says why", is_told).await;
    cluster.disk(away).release();
    let lacked = says_how_far_it_is(&cluster, away, 0).await;
    cluster.links.set_all_to(away, Mode::PassOneChunk);
    assert_eq!(says_how_far_it_is(&cluster, away, 1).await, lacked);
    cluster.links.set_all_to(away, Mode::Pass);
    eventually("it is ready", async || cluster.ready(away).await.ends_with("ok\n")).await;
    caught_up(&cluster, away, left_at).await;
    let shown = shown_by(&cluster, away, away).await;
    assert_eq!((&shown["sync"], &shown["state_transfers"]), (&Value::Null, &1.into()), "{shown}");
    assert_eq!(cluster.counter(away, "state_transfers").await, 1);
    assert_eq!(cluster.gauge(away, "sync_chunks").await, 0);
    let primary = cluster.primary().await;
    let shown = shown_by(&cluster, away, primary).await;
    assert_eq!((&shown["sync"], &shown["state_transfers"]), (&Value::Null, &0.into()), "{shown}");
    told.assert_kept(&cluster.books().await);
}

/// Its own disk gives chunks back more slowly than any patience lasts. It loses no view and fetches nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_takes_longer_than_every_time_out_to_install_is_installed_in_the_end() {
    let mut cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    let (away, left_at) = left_behind(&mut cluster, &load).await;
    let told = load.stop().await;
    let view = cluster.status(cluster.primary().await).await.view;
    cluster.start_one(away).await;
    eventually("it fetches", async || 0 < cluster.counter(away, "chunks_fetched").await).await;
    cluster.disk(away).hold_reads(true);
    let slow = Load::steady(&cluster, cluster.primary().await);
    slow.go_on(std::time::Duration::from_secs(5)).await;
    cluster.disk(away).hold_reads(false);
    caught_up(&cluster, away, left_at).await;
    let later = slow.stop().await;
    let books = cluster.books().await;
    told.assert_kept(&books);
    later.assert_kept(&books);
    assert_eq!(cluster.status(cluster.primary().await).await.view, view);
    let fetched = cluster.counter(away, "chunks_fetched").await;
    assert!(fetched < 64, "{fetched} chunks were fetched");
}

/// Sessions and keys are part of a checkpoint: the op that a repeat asks for is in no log any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_a_checkpoint_and_a_restart_of_all_replicas_gets_the_same_answer() {
    let mut cluster = Cluster::start(small(3)).await;
    let command = r#"{"send":18446744073709551615}"#;
    let first = cluster.submit_under_key(0, "key", command).await;
    let op = first["op"].as_u64().unwrap();
    let load = Load::heavy(&cluster, 0);
    eventually("every log has let go of it", async || {
        for replica in cluster.replicas() {
            if cluster.status(replica).await.log_start <= op {
                return false;
            }
        }
        true
    })
    .await;
    load.stop().await;
    assert_eq!(cluster.submit_under_key(1, "key", command).await, first);
    cluster.cut_power(&[0, 1, 2]);
    for replica in cluster.replicas() {
        cluster.start_one(replica).await;
    }
    for replica in cluster.replicas() {
        eventually("it is answered again", async || {
            cluster.submit_under_key(replica, "key", command).await == first
        })
        .await;
    }
    cluster.books().await;
}

/// Until the next checkpoint can be written the log takes what it has room for, then says so; nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_checkpoints_holds_its_replica_back_and_stops_nothing() {
    let cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    load.more(FILLS).await;
    let full = (cluster.primary().await + 1) % 3;
    cluster.disk(full).fill(true);
    let stuck = cluster.status(full).await.checkpoint;
    load.more(3 * FILLS).await;
    assert!(0 < cluster.counter(full, "checkpoint_disk_errors").await);
    let behind = cluster.status(full).await;
    assert!(behind.checkpoint <= stuck + FILLS as u64, "{behind:?}, was {stuck}");
    cluster.disk(full).fill(false);
    eventually("it writes checkpoints again", async || {
        behind.checkpoint < cluster.status(full).await.checkpoint
    })
    .await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// The others have room: one of them leads on, and no command fails for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_disk_is_full_hands_over_to_one_with_room() {
    let cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    load.more(FILLS).await;
    let (full, view) = cluster.primary_after(None).await;
    cluster.disk(full).fill(true);
    let (next, _) = cluster.primary_after(Some(view)).await;
    assert_ne!(next, full);
    load.more(3 * FILLS).await;
    assert_eq!(cluster.gauge(full, "disk_short").await, 1);
    assert_eq!(cluster.counter(full, "abdications").await, 1);
    cluster.disk(full).fill(false);
    eventually("it has room, and follows", async || {
        let (own, other) = (cluster.status(full).await, cluster.status(next).await);
        cluster.gauge(full, "disk_short").await == 0 && other.checkpoint <= own.checkpoint
    })
    .await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// While the only replica's disk has no room for the next checkpoint it takes nothing new, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_without_room_for_its_next_checkpoint_says_that_its_disk_is_full() {
    let mut cluster = Cluster::start(small(1)).await;
    let load = Load::heavy(&cluster, 0);
    load.more(FILLS).await;
    cluster.disk(0).fill(true);
    eventually("it is told", async || cluster.gauge(0, "disk_short").await == 1).await;
    let status = cluster.get(0, "/v1/cluster").await;
    assert_eq!(status["replicas"][0]["disk"]["short"], true, "{status}");
    // What was taken before it was told waits for room until its time is up.
    eventually("what comes now is refused for it", async || {
        let refused =
            cluster.client(0).submit(&crate::machine::Command::Transfer(u64::MAX)).await.unwrap_err();
        refused.to_string().contains("the disk is full")
    })
    .await;
    cluster.disk(0).fill(false);
    eventually("there is room again", async || cluster.gauge(0, "disk_short").await == 0).await;
    let acknowledged = load.told().acknowledged.len();
    load.more(FILLS).await;
    let told = load.stop().await;
    assert!(acknowledged < told.acknowledged.len());
    assert!(told.lost(&cluster.books().await).is_empty());
    cluster.cut_power(&[0]);
}

/// Flips a byte of every block of a replica's chunks.
pub(crate) fn rot_chunks(cluster: &Cluster, replica: u8) {
    let packs = cluster.packs(replica);
    assert!(!packs.is_empty());
    for (pack, size) in packs {
        cluster.flip(replica, pack, (2_000..size).step_by(4_096));
    }
}

/// Puts a directory in the place of each file of a replica's chunks.
fn hide_chunks(cluster: &Cluster, replica: u8) {
    for found in std::fs::read_dir(cluster.path(replica)).unwrap().map(Result::unwrap) {
        let name = found.file_name().into_string().unwrap();
        if name.starts_with("pack-") {
            std::fs::rename(found.path(), cluster.path(replica).join(format!("hidden-{name}"))).unwrap();
            std::fs::create_dir(found.path()).unwrap();
        }
    }
}

/// The chunks of a replica's checkpoint are damaged while it does not run: it fetches them from its peers.
async fn are_fetched_after(damage: fn(&Cluster, u8)) {
    let mut cluster = Cluster::start(small(3)).await;
    let load = Load::heavy(&cluster, 0);
    load.more(FILLS).await;
    let replica = (cluster.primary().await + 1) % 3;
    eventually("it has a checkpoint", async || 0 < cluster.status(replica).await.checkpoint).await;
    cluster.cut_power(&[replica]);
    damage(&cluster, replica);
    cluster.start_one(replica).await;
    eventually("it goes on from a checkpoint", async || {
        0 < cluster.counter(replica, "checkpoints_restored").await
    })
    .await;
    assert!(0 < cluster.counter(replica, "chunks_fetched").await);
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// The chunks of the only replica's checkpoint are damaged while it does not run: why it does not start.
async fn refuses_after(damage: fn(&Cluster, u8)) -> (Cluster, StopReason) {
    let mut cluster = Cluster::start(small(1)).await;
    let load = Load::heavy(&cluster, 0);
    load.more(FILLS).await;
    eventually("it has a checkpoint", async || 0 < cluster.status(0).await.checkpoint).await;
    load.stop().await;
    cluster.cut_power(&[0]);
    damage(&cluster, 0);
    cluster.start_one(0).await;
    let reason = cluster.stopped(0).await;
    assert!(matches!(reason, StopReason::CheckpointDamaged { .. }), "{reason}");
    (cluster, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_has_rotted_is_fetched_from_the_peers_at_the_start() {
    are_fetched_after(rot_chunks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_checkpoints_that_cant_be_opened_are_as_good_as_rotten() {
    are_fetched_after(hide_chunks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_whose_checkpoint_cant_be_opened_refuses_to_start_and_changes_nothing() {
    let (cluster, _) = refuses_after(hide_chunks).await;
    let mut still_there = 0;
    for found in std::fs::read_dir(cluster.path(0)).unwrap().map(Result::unwrap) {
        let name = found.file_name().into_string().unwrap();
        if let Some(pack) = name.strip_prefix("hidden-") {
            still_there += usize::from(cluster.path(0).join(pack).is_dir());
        }
    }
    assert!(0 < still_there);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_whose_checkpoint_has_rotted_refuses_to_start_and_names_the_place() {
    let (_cluster, reason) = refuses_after(rot_chunks).await;
    assert!(reason.to_string().contains("pack-"), "{reason}");
}
