//! Disks that are full, may not be written, or stand still: the replica stops or waits and says so clearly, the cluster goes
//! on, and the replica returns once its disk is mended.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
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

/// Moves the directory of a stopped replica to a filesystem that is mounted in its place, and says how much of it is
/// taken. None where nothing can be mounted.
fn moved_to<M>(
    cluster: &Cluster,
    replica: usize,
    mount: impl FnOnce(&Path) -> Option<M>,
) -> Option<(M, u64)> {
    let data = cluster.data(replica);
    let plain = data.with_file_name("plain");
    fs::rename(&data, &plain).unwrap();
    let Some(mounted) = mount(&data) else {
        fs::remove_dir(&data).unwrap();
        fs::rename(plain, data).unwrap();
        return None;
    };
    let taken = copy_sparse(&plain, &data);
    fs::remove_dir_all(plain).unwrap();
    Some((mounted, taken))
}

/// A stopped replica whose directory lies on a filesystem of its own with so much room left. None where this user may not
/// mount.
fn moved(cluster: &Cluster, replica: usize, room: u64) -> Option<Mount> {
    let (mount, taken) = moved_to(cluster, replica, |data| Mount::new(data, 64 << 20))?;
    mount.remount(&format!("size={}", taken + room));
    Some(mount)
}

/// A filesystem in a file of its own, mounted over a directory until this is dropped, that can be made to stand still.
struct Freezer {
    path: PathBuf,
    /// Thaws the filesystem if this process dies before it does.
    watchdog: Option<Child>,
}

/// However a test ends, its filesystem stands still for no longer than this.
const FROZEN_MAX: Duration = Duration::from_secs(120);

impl Freezer {
    /// None where this user may not mount, or the tools are missing; says so. On a machine that could do it a failure is
    /// a failure.
    fn new(path: &Path) -> Option<Freezer> {
        fs::create_dir_all(path).unwrap();
        let able = fs::read_to_string("/proc/self/status").unwrap_or_default().lines().any(|line| {
            let bits =
                line.strip_prefix("CapEff:").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
            bits.is_some_and(|bits| bits & (1 << 21) != 0) // CAP_SYS_ADMIN
        });
        let tools = ["mkfs.ext4", "mount", "umount", "fsfreeze"];
        let missing = tools.iter().find(|tool| Command::new(tool).arg("-V").output().is_err());
        if !able || missing.is_some() || !Path::new("/dev/loop-control").exists() {
            eprintln!(
                "no disk can be frozen here: privilege {able}, missing {missing:?}, or no loop devices"
            );
            return None;
        }
        let image = path.with_file_name("image");
        fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let ran = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let mounted = ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(path));
        // Whatever becomes of the mount, the file needs no name any more.
        fs::remove_file(&image).unwrap();
        if !mounted {
            assert!(std::env::var_os("CI").is_none(), "this machine has all that it takes to mount an image");
            eprintln!("an image can't be mounted here: there is no disk to freeze");
            return None;
        }
        let _ = fs::remove_dir(path.join("lost+found"));
        Some(Freezer { path: path.to_owned(), watchdog: None })
    }

    /// From here on nothing is written to it, and whoever tries waits.
    fn freeze(&mut self) {
        let thaw = format!("sleep {}; exec fsfreeze -u \"$0\"", FROZEN_MAX.as_secs());
        // In a group of its own: what kills the test's group must not take it along.
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", &thaw]).arg(&self.path).process_group(0);
        watchdog.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.watchdog = Some(watchdog.spawn().unwrap());
        assert!(Command::new("fsfreeze").arg("-f").arg(&self.path).status().unwrap().success());
    }

    fn thaw(&mut self) {
        let Some(mut watchdog) = self.watchdog.take() else { return };
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.path).status();
        assert!(thawed.is_ok_and(|status| status.success()) || std::thread::panicking());
        let group = Pid::from_raw(i32::try_from(watchdog.id()).unwrap()).unwrap();
        kill_process_group(group, Signal::KILL).unwrap();
        let _ = watchdog.wait();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // Before anybody waits for a process that waits for the disk.
        self.thaw();
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

async fn ends(cluster: &mut Cluster, replica: usize) -> (i32, String) {
    let began = Instant::now();
    loop {
        if let Some(code) = cluster.ended(replica) {
            return (code, cluster.printed(replica).lines().last().unwrap_or_default().to_owned());
        }
        assert!(began.elapsed() < PATIENCE, "{}", cluster.printed(replica));
        // sleeps: between two looks at another process.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn follows(cluster: &Cluster, replica: usize) {
    let primary = cluster.primary(None).await;
    let goal = cluster.status(primary).await.unwrap()["commit"].as_u64().unwrap();
    let began = Instant::now();
    while cluster.status(replica).await.unwrap_or_default()["applied"].as_u64().is_none_or(|at| at < goal) {
        assert!(began.elapsed() < PATIENCE, "{}", cluster.printed(replica));
        // sleeps: between two looks at another process.
        tokio::time::sleep(Duration::from_millis(10)).await;
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

/// Waits until this holds of what a replica says of itself.
async fn until(cluster: &Cluster, replica: usize, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    let began = Instant::now();
    while !holds(&cluster.status(replica).await.unwrap_or_default()) {
        assert!(began.elapsed() < PATIENCE, "never {what}\n{}", cluster.printed(replica));
        // sleeps: between two looks at another process.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Three replicas, of which one has its directory on a disk that can be frozen: the primary, or another.
async fn on_a_freezer(name: &str, which: usize) -> Option<(Cluster, Accounts, usize, Freezer)> {
    let mut cluster = Cluster::started(name, 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(20).await;
    let victim = (cluster.primary(None).await + which) % 3;
    assert!(cluster.terminate(victim));
    let (freezer, _) = moved_to(&cluster, victim, Freezer::new)?;
    cluster.start(victim);
    follows(&cluster, victim).await;
    accounts.open(20).await;
    Some((cluster, accounts, victim, freezer))
}

#[tokio::test]
async fn a_backup_whose_disk_stands_still_is_not_waited_for_and_follows_once_it_moves_again() {
    let Some((mut cluster, mut accounts, victim, mut freezer)) = on_a_freezer("frozen-backup", 1).await
    else {
        return;
    };
    let primary = cluster.primary(None).await;
    assert_ne!(primary, victim);
    let before = cluster.status(primary).await.unwrap()["view"].clone();
    freezer.freeze();
    accounts.open(40).await;
    until(&cluster, victim, "says that its disk is stalled", |status| {
        2_000 < status["disk"]["age_ms"].as_u64().unwrap_or(0)
    })
    .await;
    accounts.open(200).await;
    assert_eq!(cluster.ended(victim), None);
    assert_eq!(cluster.status(victim).await.unwrap()["role"], "backup", "it is there all the while");
    freezer.thaw();
    follows(&cluster, victim).await;
    until(&cluster, victim, "says that its disk is well", |status| status["disk"]["age_ms"] == 0).await;
    assert_eq!(cluster.status(primary).await.unwrap()["view"], before, "no view was changed for it");
    assert_eq!(cluster.ended(victim), None);
    accounts.open(20).await;
    accounts.assert_all_there().await;
    assert!(cluster.terminate(victim));
}

#[tokio::test]
async fn a_primary_whose_disk_stands_still_gives_way_says_so_and_follows_once_it_moves_again() {
    let Some((mut cluster, mut accounts, victim, mut freezer)) = on_a_freezer("frozen-primary", 1).await
    else {
        return;
    };
    // It becomes the primary: whoever else leads goes.
    while cluster.primary(None).await != victim {
        let primary = cluster.primary(None).await;
        assert!(cluster.terminate(primary));
        cluster.primary(Some(primary)).await;
        cluster.start(primary);
        follows(&cluster, primary).await;
    }
    // A view is not given up for a slow disk in its first ten seconds.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(10_500) {
        accounts.open(8).await;
        // sleeps: a view must be so old before it is given up for a slow disk.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.primary(None).await, victim);
    freezer.freeze();
    let begun = Instant::now();
    accounts.open(8).await;
    let next = cluster.primary(Some(victim)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    accounts.open(100).await;
    let printed = cluster.printed(victim);
    assert!(printed.contains("gave the primacy up") && printed.contains("DiskStalled"), "{printed}");
    assert_eq!(cluster.ended(victim), None);
    freezer.thaw();
    follows(&cluster, victim).await;
    until(&cluster, victim, "follows as a backup", |status| {
        status["role"] == "backup" && status["primary"] == next
    })
    .await;
    assert_eq!(cluster.ended(victim), None);
    accounts.open(20).await;
    accounts.assert_all_there().await;
    assert!(cluster.terminate(victim));
}
