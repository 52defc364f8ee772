//! Disks that are full, may not be written, or stand still: the replica stops or waits and says so clearly, the cluster goes
//! on, and the replica returns once its disk is mended.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use support::accounts::Accounts;
use support::{Cluster, Directory, PATIENCE, chronon, stderr};

fn ran(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

/// Whether this machine can do what a test of disks needs; says what is missing. Where it can, a failure is a failure.
fn may_mount(tools: &[&str]) -> bool {
    let able = fs::read_to_string("/proc/self/status").unwrap_or_default().lines().any(|line| {
        let bits = line.strip_prefix("CapEff:").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        bits.is_some_and(|bits| bits & (1 << 21) != 0) // CAP_SYS_ADMIN
    });
    let tools = ["mount", "umount"].iter().chain(tools);
    let missing: Vec<_> = tools.filter(|tool| Command::new(tool).arg("-V").output().is_err()).collect();
    if !able || !missing.is_empty() {
        eprintln!("skipped: no filesystem can be mounted here: privilege {able}, missing tools {missing:?}");
    }
    able && missing.is_empty()
}

fn has_loop_devices() -> bool {
    let has = Path::new("/dev/loop-control").exists();
    if !has {
        eprintln!("skipped: no image can be mounted here, there are no loop devices");
    }
    has
}

/// Makes a filesystem in a file and mounts it.
fn mount_image(image: &Path, bytes: u64, path: &Path) {
    fs::File::create(image).unwrap().set_len(bytes).unwrap();
    let now = "lazy_itable_init=0,lazy_journal_init=0";
    assert!(ran(Command::new("mkfs.ext4").args(["-q", "-F", "-E", now]).arg(image)));
    mount_made_image(image, path);
}

fn mount_made_image(image: &Path, path: &Path) {
    assert!(ran(Command::new("mount").args(["-o", "loop"]).arg(image).arg(path)));
    // Its own, and made again by every check.
    let _ = fs::remove_dir_all(path.join("lost+found"));
}

/// A filesystem in memory of a given size, mounted over a directory until this is dropped.
struct Mount(PathBuf);

impl Mount {
    /// None where this user may not mount; says so.
    fn new(path: &Path, bytes: u64) -> Option<Mount> {
        if !may_mount(&[]) {
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let options = format!("size={bytes}");
        assert!(ran(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "chronon"]).arg(path)));
        Some(Mount(path.to_owned()))
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

/// A filesystem in a sparse file for which the disk below has too little room: it looks half empty, and what is written to
/// it fails all the same.
struct Sparse {
    path: PathBuf,
    image: PathBuf,
    below: Mount,
}

impl Sparse {
    /// None where this user may not mount, or the tools are missing; says so.
    fn new(path: &Path) -> Option<Sparse> {
        if !may_mount(&["mkfs.ext4", "e2fsck", "sync"]) || !has_loop_devices() {
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let below = Mount::new(&path.with_file_name("below"), 256 << 20)?;
        let image = below.0.join("image");
        mount_image(&image, 512 << 20, path);
        Some(Sparse { path: path.to_owned(), image, below })
    }

    /// From here on the disk below takes no more than this.
    fn leave(&self, room: u64) {
        assert!(ran(Command::new("sync").arg("-f").arg(&self.path)));
        let taken = fs::metadata(&self.image).unwrap().blocks() * 512;
        self.below.remount(&format!("size={}", taken + room));
    }

    /// There is room below, and the filesystem is checked.
    fn mend(&self) {
        assert!(ran(Command::new("umount").arg(&self.path)));
        self.below.remount(&format!("size={}", 256 << 20));
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output().unwrap();
        // 1: it was damaged, and is mended.
        assert!(checked.status.code().is_some_and(|code| code <= 1), "{}", stderr(&checked));
        mount_made_image(&self.image, &self.path);
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        assert!(ran(Command::new("umount").arg("-l").arg(&self.path)) || std::thread::panicking());
    }
}

/// However a test ends, its filesystem stands still for no longer than this.
const FROZEN_MAX: Duration = Duration::from_secs(120);

impl Freezer {
    /// None where this user may not mount, or the tools are missing; says so.
    fn new(path: &Path) -> Option<Freezer> {
        if !may_mount(&["mkfs.ext4", "fsfreeze"]) || !has_loop_devices() {
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let image = path.with_file_name("image");
        mount_image(&image, 128 << 20, path);
        // Whatever becomes of the mount, the file needs no name any more.
        fs::remove_file(&image).unwrap();
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

/// A replica without room for its first checkpoint would refuse every command.
#[test]
fn a_disk_with_room_for_the_log_alone_is_too_small_for_a_cluster() {
    let directory = Directory::new("small-disk");
    let path = directory.0.join("disk");
    let Some(mount) = Mount::new(&path, 28 << 20) else { return };
    let to = path.join("cluster");
    let make = || chronon(&["init", "--replicas", "1", "--log-mib", "16", "--dir", to.to_str().unwrap()]);
    let refused = make();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("has 28 MiB free") && !to.exists(), "{}", stderr(&refused));
    mount.remount(&format!("size={}", 30 << 20));
    let made = make();
    assert!(made.status.success(), "{}", stderr(&made));
}

/// Each start sets room aside in a file of its own.
#[tokio::test]
async fn a_start_before_the_first_checkpoint_removes_what_the_one_before_has_set_aside() {
    let mut cluster = Cluster::started("set-aside", 1);
    let files = |cluster: &Cluster| -> BTreeSet<OsString> {
        let found = fs::read_dir(cluster.data(0)).unwrap().map(|found| found.unwrap().file_name());
        found.filter(|name| name.to_str().unwrap().starts_with("pack-")).collect()
    };
    let mut before = BTreeSet::new();
    for _ in 0..3 {
        let began = Instant::now();
        loop {
            let now = files(&cluster);
            if !now.is_empty() && now.is_disjoint(&before) {
                before = now;
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{before:?} {now:?}");
            // sleeps: between two looks at a directory.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(cluster.terminate(0));
        cluster.start(0);
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
        let Some(mount) = moved(&cluster, victim, 256 << 10) else { return };
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
        plain_again(&cluster, victim, mount);
        cluster.start(victim);
        follows(&cluster, victim).await;
    }
    accounts.assert_all_there().await;
}

#[tokio::test]
async fn a_replica_whose_half_empty_disk_fails_to_write_stops_and_returns_once_it_is_mended() {
    let mut cluster = Cluster::started("failing-disk", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(20).await;
    for backup_first in [1, 0] {
        let victim = (cluster.primary(None).await + backup_first) % 3;
        assert!(cluster.terminate(victim));
        let Some((disk, _)) = moved_to(&cluster, victim, Sparse::new) else { return };
        disk.leave(512 << 10);
        cluster.start(victim);
        let mut end = None;
        for _ in 0..1_000 {
            accounts.open(8).await;
            end = cluster.ended(victim);
            if end.is_some() {
                break;
            }
        }
        let last = cluster.printed(victim).lines().last().unwrap_or_default().to_owned();
        assert_eq!(end, Some(1), "{}", cluster.printed(victim));
        // Which of the two it is depends on the part of the kernel that hears of it first.
        let named = ["Input/output error", "No space left on device"].iter().any(|why| last.contains(why));
        assert!(last.contains("the disk failed") && named, "{last}");
        assert!(last.contains(cluster.data(victim).to_str().unwrap()), "{last}");
        accounts.open(20).await;

        disk.mend();
        cluster.start(victim);
        follows(&cluster, victim).await;
        accounts.assert_all_there().await;

        // Back to a plain directory, for the next.
        assert!(cluster.terminate(victim));
        plain_again(&cluster, victim, disk);
        cluster.start(victim);
        follows(&cluster, victim).await;
    }
    accounts.assert_all_there().await;
}

/// Moves the directory of a stopped replica from a filesystem of its own to where all are.
fn plain_again<M>(cluster: &Cluster, replica: usize, mount: M) {
    let (data, plain) = (cluster.data(replica), cluster.data(replica).with_file_name("plain"));
    fs::create_dir(&plain).unwrap();
    copy_sparse(&data, &plain);
    drop(mount);
    fs::remove_dir(&data).unwrap();
    fs::rename(plain, data).unwrap();
}

#[tokio::test]
async fn a_replica_on_a_read_only_filesystem_is_told_so_and_can_be_inspected() {
    let mut cluster = Cluster::started("read-only", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(20).await;
    assert!(cluster.terminate(2));
    let Some(mount) = moved(&cluster, 2, 16 << 20) else { return };
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
