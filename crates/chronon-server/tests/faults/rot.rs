//! Disks that rot under a running replica.

use std::os::unix::fs::FileExt;

use crate::checkpoints::rot_chunks;
use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::load::Load;

/// A whole log is read in a few seconds.
const HASTE: u64 = 16 << 20;

/// Nobody restarts, and nobody has asked for what has rotted.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_finds_rot_in_its_log_and_mends_it() {
    let mut cluster = Cluster::start(Setup { scrub_bytes_per_second: HASTE, ..Setup::new(3) }).await;
    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    let wal = std::fs::OpenOptions::new().read(true).write(true).open(cluster.path(1).join("wal")).unwrap();
    // In the first blocks of the ring, far behind where it is written now.
    for position in [700, 9000] {
        let mut byte = [0];
        wal.read_exact_at(&mut byte, position).unwrap();
        wal.write_all_at(&[byte[0] ^ 0x20], position).unwrap();
    }
    wal.sync_all().unwrap();
    eventually("the scrub finds both", async || cluster.counter(1, "wal_groups_damaged").await == 2).await;
    load.more(100).await;
    let told = load.stop().await;

    // What was written again is read at the next start: nothing is missing, and nobody has to repair it.
    cluster.cut_power(&[1]);
    cluster.start_one(1).await;
    eventually("the replica follows", async || {
        cluster.status(1).await.applied == cluster.status(cluster.primary().await).await.commit
    })
    .await;
    told.assert_kept(&cluster.books().await);
    assert_eq!(cluster.counter(0, "wal_groups_damaged").await, 0);
}

/// What rotted while it did not run is asked of its peers, and told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn rot_that_a_start_finds_in_the_log_is_counted_and_mended() {
    let mut cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    cluster.cut_power(&[1]);
    let wal = std::fs::OpenOptions::new().read(true).write(true).open(cluster.path(1).join("wal")).unwrap();
    for position in [700, 9000] {
        let mut byte = [0];
        wal.read_exact_at(&mut byte, position).unwrap();
        wal.write_all_at(&[byte[0] ^ 0x20], position).unwrap();
    }
    cluster.start_one(1).await;
    eventually("both are told", async || cluster.counter(1, "wal_groups_damaged").await == 2).await;
    let told = load.stop().await;
    eventually("the replica follows", async || {
        cluster.status(1).await.applied == cluster.status(cluster.primary().await).await.commit
    })
    .await;
    told.assert_kept(&cluster.books().await);
}

/// It has nobody to ask, and what it needs in memory: once as it wrote it, once as it began with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_writes_what_has_rotted_of_its_checkpoint_anew_from_memory() {
    let mut cluster =
        Cluster::start(Setup { log_bytes: 16 << 20, scrub_bytes_per_second: HASTE, ..Setup::new(1) }).await;
    let load = Load::heavy(&cluster, 0);
    eventually("a checkpoint", async || 0 < cluster.status(0).await.checkpoint).await;
    let told = load.stop().await;
    for life in 0..2 {
        rot_chunks(&cluster, 0);
        eventually("the scrub finds chunks", async || 0 < cluster.counter(0, "chunks_damaged").await).await;
        eventually("they are written anew", async || {
            cluster.counter(0, "chunks_damaged").await <= cluster.counter(0, "chunks_repaired").await
        })
        .await;
        let read = cluster.counter(0, "vault_scrub_rounds").await;
        eventually("it is read from end to end", async || {
            read + 1 < cluster.counter(0, "vault_scrub_rounds").await
        })
        .await;
        let damaged = &cluster.get(0, "/v1/cluster").await["replicas"][0]["disk"]["damaged"];
        assert!(damaged["chunks"].as_u64() <= damaged["chunks_mended"].as_u64(), "{damaged}");
        assert!(0 < damaged["chunks"].as_u64().unwrap(), "{damaged}");
        // All of it is read at the next start.
        cluster.cut_power(&[0]);
        cluster.start_one(0).await;
        eventually("it begins from its checkpoint", async || {
            cluster.counter(0, "checkpoints_restored").await == 1
        })
        .await;
        assert_eq!(cluster.counter(0, "chunks_damaged").await, 0, "life {life}");
        told.assert_kept(&cluster.books().await);
    }
}

/// One copy of the superblock and parts of a checkpoint rot while all is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_finds_rot_in_its_superblock_and_its_checkpoint_and_mends_both() {
    let mut cluster =
        Cluster::start(Setup { log_bytes: 16 << 20, scrub_bytes_per_second: HASTE, ..Setup::new(3) }).await;
    let load = Load::heavy(&cluster, 0);
    eventually("a checkpoint", async || 0 < cluster.status(1).await.checkpoint).await;
    load.stop().await;
    let flip = |name: &str, position: u64| {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(cluster.path(1).join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, position).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], position).unwrap();
        file.sync_all().unwrap();
    };
    flip("superblock", 16 * 1024 + 700);
    for found in std::fs::read_dir(cluster.path(1)).unwrap() {
        let found = found.unwrap();
        let (name, size) = (found.file_name().into_string().unwrap(), found.metadata().unwrap().len());
        if name.starts_with("pack-") {
            (2_000..size).step_by(4_096).for_each(|position| flip(&name, position));
        }
    }
    eventually("the scrub finds the copy", async || {
        cluster.counter(1, "superblock_copies_damaged").await == 1
    })
    .await;
    eventually("the scrub finds chunks", async || 0 < cluster.counter(1, "chunks_damaged").await).await;
    eventually("peers send them", async || {
        cluster.counter(1, "chunks_damaged").await <= cluster.counter(1, "chunks_repaired").await
    })
    .await;
    // Looked at again and again, they are whole.
    let rounds = cluster.counter(1, "wal_scrub_rounds").await;
    eventually("further looks", async || rounds + 1 < cluster.counter(1, "wal_scrub_rounds").await).await;
    assert_eq!(cluster.counter(1, "superblock_copies_damaged").await, 1);
    eventually("peers have sent all that was damaged", async || {
        cluster.counter(1, "chunks_damaged").await <= cluster.counter(1, "chunks_repaired").await
    })
    .await;

    // Both are read at the next start.
    cluster.cut_power(&[1]);
    cluster.start_one(1).await;
    eventually("it begins from its checkpoint", async || {
        cluster.counter(1, "checkpoints_restored").await == 1
    })
    .await;
    assert_eq!(cluster.counter(1, "chunks_fetched").await, 0);
    cluster.books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_checkpoint_is_kept_no_round_of_scrubbing_is_counted() {
    let setup = Setup { log_bytes: 16 << 20, scrub_bytes_per_second: HASTE, ..Setup::new(1) };
    let cluster = Cluster::start(setup).await;
    let started = cluster.counter(0, "wal_scrub_rounds").await;
    eventually("two rounds through the log", async || {
        started + 1 < cluster.counter(0, "wal_scrub_rounds").await
    })
    .await;
    assert_eq!(cluster.counter(0, "vault_scrub_rounds").await, 0);
    let load = Load::heavy(&cluster, 0);
    eventually("a round through a checkpoint", async || 0 < cluster.counter(0, "vault_scrub_rounds").await)
        .await;
    load.stop().await;
}
