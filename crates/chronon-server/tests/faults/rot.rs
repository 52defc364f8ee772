//! Disks that rot under a running replica.

use std::os::unix::fs::FileExt;

use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::load::Load;

/// Nobody restarts, and nobody has asked for what has rotted.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_finds_rot_in_its_log_and_mends_it() {
    let mut cluster = Cluster::start(Setup::new(3)).await;
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
