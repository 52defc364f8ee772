//! Disks that have an end: what a replica no longer needs never keeps it from its next checkpoint.

use std::time::Duration;

use chronon_server::StopReason;

use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::machine::Command;

/// Commands of a request, each under a key of its own. The keys are most of the state.
const COMMANDS: usize = 500;

/// A single replica with the smallest log and a state of some MiB.
async fn grown(backup_patience: Duration) -> (Cluster, Keys) {
    let cluster = Cluster::start(Setup { log_bytes: 16 << 20, backup_patience, ..Setup::new(1) }).await;
    let mut keys = Keys { drawn: chronon_vsr::Prng::new(1), number: 1 << 40 };
    for _ in 0..30 {
        keys.submit(&cluster).await;
    }
    for _ in 0..2 {
        keys.until_checkpoint(&cluster).await;
    }
    (cluster, keys)
}

struct Keys {
    drawn: chronon_vsr::Prng,
    number: u64,
}

impl Keys {
    /// Submits commands until each is acknowledged.
    async fn submit(&mut self, cluster: &Cluster) {
        let commands: Vec<serde_json::Value> = (0..COMMANDS)
            .map(|_| {
                self.number += 1;
                let key: String = (0..15).map(|_| format!("{:016x}", self.drawn.next_u64())).collect();
                serde_json::json!({ "command": Command::Transfer(self.number), "key": key })
            })
            .collect();
        let body = serde_json::to_string(&commands).unwrap();
        // While a checkpoint is being written the log may be full.
        eventually("all commands are acknowledged", async || {
            let answer = cluster.send(0, "/v1/commands", &body).await;
            answer.matches("\"reply\":").count() == COMMANDS
        })
        .await;
    }

    /// Goes on until the next checkpoint is in the superblock.
    async fn until_checkpoint(&mut self, cluster: &Cluster) {
        let before = cluster.status(0).await.checkpoint;
        for _ in 0..100 {
            self.submit(cluster).await;
            if before < cluster.status(0).await.checkpoint {
                return;
            }
        }
        panic!("no checkpoint after {before}");
    }
}

/// What is set aside besides, and what the state grows by until the next checkpoint but one.
const GROWTH: u64 = 16 << 20;

/// Two states, and that.
async fn room_for_two(cluster: &Cluster) -> u64 {
    let answer = cluster.send(0, "/v1/backups", "").await;
    let (_, manifest) = answer.split_once("\r\n\r\n").unwrap();
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap();
    let sizes = manifest["chunks"].as_array().unwrap().iter().map(|chunk| chunk[1].as_u64().unwrap());
    2 * sizes.sum::<u64>() + GROWTH
}

/// Not even a third one finds room: the checkpoint before, and what lies in one file with what is needed, have to go.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_room_for_two_states_is_enough_for_any_number_of_checkpoints() {
    let (mut cluster, mut keys) = grown(Duration::ZERO).await;
    for _ in 0..3 {
        for _ in 0..3 {
            cluster.bound(0, u64::MAX);
            let room = room_for_two(&cluster).await;
            cluster.bound(0, room);
            keys.until_checkpoint(&cluster).await;
        }
        cluster.cut_power(&[0]);
        cluster.start_one(0).await;
        eventually("it serves again", async || cluster.status(0).await.serving).await;
    }
    eventually("there is room for the next one", async || cluster.gauge(0, "disk_short").await == 0).await;
}

/// The largest file of checkpoints: so much may be there of what nothing needs before it can go.
const FILE: u64 = 64 << 20;

/// Every file of which a part may go has to go as a whole, for which what is needed of it moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_makes_no_holes_is_enough_with_room_for_three_states_and_a_file() {
    let (cluster, mut keys) = grown(Duration::ZERO).await;
    let disk = cluster.disk(0);
    let before = room_for_two(&cluster).await;
    keys.until_checkpoint(&cluster).await;
    let mut room_for_two = room_for_two(&cluster).await;
    let growth = room_for_two - before;
    disk.lacks_holes(true);
    // The disk is never larger in between: then something could take room that is gone again.
    for _ in 0..6 {
        room_for_two += growth;
        let room_for_three = room_for_two + (room_for_two - GROWTH) / 2;
        disk.bound(Some(room_for_three + FILE), Default::default());
        keys.until_checkpoint(&cluster).await;
    }
    eventually("there is room for the next one", async || cluster.gauge(0, "disk_short").await == 0).await;
}

/// A backup that would take it is refused, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn no_backup_takes_the_room_of_the_next_checkpoint() {
    let (mut cluster, mut keys) = grown(Setup::new(1).backup_patience).await;
    let room = room_for_two(&cluster).await;
    cluster.bound(0, room);
    for _ in 0..8 {
        keys.submit(&cluster).await;
        let answer = cluster.send(0, "/v1/backups", "").await;
        assert!(answer.starts_with("HTTP/1.1 200") || answer.contains("disk_full"), "{answer}");
    }
    keys.until_checkpoint(&cluster).await;
    eventually("there is room for the next one", async || cluster.gauge(0, "disk_short").await == 0).await;
}

/// It would find room in what was set aside; but then there would not be as much again.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_leaves_no_room_for_the_next_checkpoint_is_refused() {
    let (mut cluster, mut keys) = grown(Setup::new(1).backup_patience).await;
    // Everything goes but the newest checkpoint.
    cluster.disk(0).fill(true);
    eventually("there is no room", async || cluster.gauge(0, "disk_short").await == 1).await;
    let state = cluster.disk(0).taken();
    cluster.bound(0, 2 * state + (5 << 20));
    cluster.disk(0).fill(false);
    eventually("there is room", async || cluster.gauge(0, "disk_short").await == 0).await;
    keys.submit(&cluster).await;
    let answer = cluster.send(0, "/v1/backups", "").await;
    assert!(answer.contains("disk_full"), "{answer}");
    assert_eq!(cluster.gauge(0, "disk_short").await, 0);
    keys.submit(&cluster).await;
}

/// Nothing is written meanwhile, and no checkpoint is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_nobody_carries_away_goes_when_its_time_is_over() {
    let (cluster, mut keys) = grown(Duration::from_millis(300)).await;
    let checkpoint = cluster.status(0).await.checkpoint;
    let live = cluster.gauge(0, "vault_live_bytes").await;
    keys.submit(&cluster).await;
    cluster.post(0, "/v1/backups").await;
    let with_backup = cluster.gauge(0, "vault_live_bytes").await;
    assert!(live < with_backup, "{live}, {with_backup}");
    eventually("its room is free", async || cluster.gauge(0, "vault_live_bytes").await <= live).await;
    assert_eq!(cluster.status(0).await.checkpoint, checkpoint);
}

/// Somebody may get it back from the device.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_is_no_reason_to_let_go_of_what_is_damaged() {
    let (mut cluster, _) = grown(Duration::ZERO).await;
    cluster.cut_power(&[0]);
    crate::checkpoints::rot_chunks(&cluster, 0);
    cluster.full_from_the_start(0);
    cluster.start_one(0).await;
    let disk = cluster.disk(0);
    let before = disk.taken();
    let reason = cluster.stopped(0).await;
    assert!(matches!(reason, StopReason::CheckpointDamaged { .. }), "{reason}");
    assert_eq!(disk.taken(), before);
}
