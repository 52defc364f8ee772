//! Disks that are full, or may not be written: the replica stops with a clear last line, the cluster goes on, and the
//! replica returns once its disk is mended.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use support::accounts::Accounts;
use support::{Cluster, PATIENCE, chronon, stderr};

/// A filesystem in memory of a given size, mounted over a directory until this is dropped.
struct Mount(PathBuf);

impl Mount {
    /// None where this user may not mount.
    fn new(path: &Path, bytes: u64) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "chronon"]).arg(path).status();
        mounted.is_ok_and(|status| status.success()).then(|| Mount(path.to_owned()))
    }

    fn remount(&self, options: &str) {
        let remounted =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(remounted.unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Copies a directory, leaving out what is zero: those places take room when they are written.
fn copy_sparse(from: &Path, to: &Path) -> u64 {
    let mut taken = 0;
    for found in fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        let bytes = fs::read(found.path()).unwrap();
        let file = fs::File::create(to.join(found.file_name())).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (index, block) in bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, (index * 4096) as u64).unwrap();
                taken += 4096;
            }
        }
    }
    taken
}

/// A stopped replica whose directory lies on a filesystem of its own. None where this user may not mount.
fn moved(cluster: &Cluster, replica: usize, room: u64) -> Option<Mount> {
    let data = cluster.data(replica);
    let plain = data.with_file_name("plain");
    fs::rename(&data, &plain).unwrap();
    let Some(mount) = Mount::new(&data, 64 << 20) else {
        fs::remove_dir(&data).unwrap();
        fs::rename(plain, data).unwrap();
        return None;
    };
    let taken = copy_sparse(&plain, &data);
    fs::remove_dir_all(plain).unwrap();
    mount.remount(&format!("size={}", taken + room));
    Some(mount)
}

async fn ends(cluster: &mut Cluster, replica: usize) -> (i32, String) {
    let began = Instant::now();
    loop {
        if let Some(code) = cluster.ended(replica) {
            return (code, cluster.printed(replica).lines().last().unwrap_or_default().to_owned());
        }
        assert!(began.elapsed() < PATIENCE, "{}", cluster.printed(replica));
        // sleeps: between two looks at another process.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn follows(cluster: &Cluster, replica: usize) {
    let primary = cluster.primary(None).await;
    let goal = cluster.status(primary).await.unwrap()["commit"].as_u64().unwrap();
    let began = Instant::now();
    while cluster.status(replica).await.unwrap_or_default()["applied"].as_u64().is_none_or(|at| at < goal) {
        assert!(began.elapsed() < PATIENCE, "{}", cluster.printed(replica));
        // sleeps: between two looks at another process.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_replica_whose_disk_is_full_stops_and_returns_when_there_is_room() {
    let mut cluster = Cluster::started("full-disk", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(20).await;
    for backup_first in [1, 0] {
        let victim = (cluster.primary(None).await + backup_first) % 3;
        assert!(cluster.terminate(victim));
        let Some(mount) = moved(&cluster, victim, 256 << 10) else {
            eprintln!("this user may not mount: there is no full disk to try");
            return;
        };
        cluster.start(victim);
        // Its log grows until the filesystem takes no more; the others go on.
        let mut end = None;
        for _ in 0..400 {
            accounts.open(8).await;
            end = cluster.ended(victim);
            if end.is_some() {
                break;
            }
        }
        let last = cluster.printed(victim).lines().last().unwrap_or_default().to_owned();
        assert_eq!(end, Some(1), "{}", cluster.printed(victim));
        assert!(last.contains("the disk failed") && last.contains("No space left on device"), "{last}");
        assert!(last.contains(cluster.data(victim).to_str().unwrap()), "{last}");
        accounts.open(20).await;

        mount.remount(&format!("size={}", 64 << 20));
        cluster.start(victim);
        follows(&cluster, victim).await;
        accounts.assert_all_there().await;

        // Back to a plain directory, for the next.
        assert!(cluster.terminate(victim));
        let (data, plain) = (cluster.data(victim), cluster.data(victim).with_file_name("plain"));
        fs::create_dir(&plain).unwrap();
        copy_sparse(&data, &plain);
        drop(mount);
        fs::remove_dir(&data).unwrap();
        fs::rename(plain, data).unwrap();
        cluster.start(victim);
        follows(&cluster, victim).await;
    }
    accounts.assert_all_there().await;
}

#[tokio::test]
async fn a_replica_on_a_read_only_filesystem_is_told_so_and_can_be_inspected() {
    let mut cluster = Cluster::started("read-only", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(20).await;
    assert!(cluster.terminate(2));
    let Some(mount) = moved(&cluster, 2, 16 << 20) else {
        eprintln!("this user may not mount: there is no read-only filesystem to try");
        return;
    };
    mount.remount("ro");
    cluster.start(2);
    let (code, last) = ends(&mut cluster, 2).await;
    assert_eq!(code, 1);
    assert!(last.contains("Read-only file system"), "{last}");
    assert!(last.contains(cluster.data(2).to_str().unwrap()), "{last}");
    let inspected = chronon(&["inspect", "--data", cluster.data(2).to_str().unwrap()]);
    assert_eq!(inspected.status.code(), Some(0), "{}", stderr(&inspected));
    accounts.open(20).await;
    mount.remount("rw");
    cluster.start(2);
    follows(&cluster, 2).await;
    accounts.assert_all_there().await;
    assert!(cluster.terminate(2));
}
