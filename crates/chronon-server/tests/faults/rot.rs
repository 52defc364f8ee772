//! Disks that rot under a running replica.

use chronon_storage::File;

use crate::checkpoints::rot_chunks;
use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::load::Load;

/// A whole log is read in a few seconds.
const HASTE: u64 = 16 << 20;

/// Bytes of one of the four copies of the superblock.
const COPY: u64 = 16 << 10;

/// Nobody restarts, and nobody has asked for what has rotted.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_finds_rot_in_its_log_and_mends_it() {
    let mut cluster = Cluster::start(Setup { scrub_bytes_per_second: HASTE, ..Setup::new(3) }).await;
    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    // In the first blocks of the ring, far behind where it is written now.
    cluster.flip(1, File::Wal, [700, 9000]);
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
    cluster.flip(1, File::Wal, [700, 9000]);
    cluster.start_one(1).await;
    eventually("both are told", async || cluster.counter(1, "wal_groups_damaged").await == 2).await;
    let told = load.stop().await;
    eventually("the replica follows", async || {
        cluster.status(1).await.applied == cluster.status(cluster.primary().await).await.commit
    })
    .await;
    told.assert_kept(&cluster.books().await);
}

/// Two good copies are enough to start, and the start writes all of them anew.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_copies_of_the_superblock_that_a_start_finds_are_counted_told_and_mended() {
    let mut cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    load.more(100).await;
    cluster.cut_power(&[1]);
    cluster.flip(1, File::Superblock, [700, 2 * COPY + 900]);
    cluster.start_one(1).await;
    eventually("both are told", async || cluster.counter(1, "superblock_copies_damaged").await == 2).await;
    let status = cluster.get(0, "/v1/cluster").await;
    let told = &status["replicas"][1]["disk"]["damaged"]["superblock_copies"];
    assert_eq!(told, 2, "{status}");

    // The next start finds four good ones, and so would one that then finds two others damaged.
    for damage in [vec![], vec![COPY + 700, 3 * COPY + 900]] {
        let count = damage.len() as u64;
        cluster.cut_power(&[1]);
        cluster.flip(1, File::Superblock, damage);
        cluster.start_one(1).await;
        eventually("it follows", async || {
            cluster.status(1).await.applied == cluster.status(cluster.primary().await).await.commit
        })
        .await;
        assert_eq!(cluster.counter(1, "superblock_copies_damaged").await, count);
    }
    let told = load.stop().await;
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
    cluster.flip(1, File::Superblock, [COPY + 700]);
    rot_chunks(&cluster, 1);
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
