//! What can't be opened or made, and what is said about it.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use std::path::PathBuf;

use chronon_storage::{
    DataDirectory, Disk, Expect, File, FormatError, Identity, MemoryDisk, OpenError, ReadOnlyDirectory,
    format, open, wal_size,
};
use chronon_vsr::{Checksum, ClusterId, Mutations, ReplicaId, Ring};
use support::*;

fn open_error(disk: &mut dyn Disk, expect: Expect) -> OpenError {
    open(disk, expect, Mutations::NONE).map(|_| ()).unwrap_err()
}

fn any(disk: &mut dyn Disk) -> OpenError {
    open_error(disk, Expect::default())
}

/// A fresh path, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("chronon-storage-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn data_of_another_cluster_or_replica_is_refused() {
    let mut disk = formatted(3);
    let before = disk.clone();
    let other = ClusterId::new(0xbad);
    let error = open_error(&mut disk, Expect { cluster: Some(other), ..Expect::default() });
    assert!(
        matches!(error, OpenError::WrongCluster { expected, found } if expected == other && found == CLUSTER)
    );
    let other = ReplicaId::new(2);
    let error = open_error(&mut disk, Expect { cluster: Some(CLUSTER), replica: Some(other), drawn: 0 });
    assert_eq!(error.to_string(), "the data is of replica 0, not of 2");
    assert!(disk == before, "a refusal changes nothing");
    let right = Expect { cluster: Some(CLUSTER), replica: Some(ReplicaId::new(0)), drawn: 0 };
    assert!(open(&mut disk, right, Mutations::NONE).is_ok());
}

/// Nothing in the log itself says that there was more: zeros are what was never written.
#[test]
fn the_only_replica_refuses_a_log_that_ends_before_its_last_good_end() {
    let mut disk = formatted(1);
    let (mut journal, _) = reopen(&mut disk);
    let (mut numbers, mut chain) = (Numbers::new(), Chain::new(1));
    let groups: Vec<u64> = (0..3)
        .map(|_| {
            let begins = journal.wal_used();
            append(&mut disk, &mut journal, &mut numbers, &chain.take(&[100, 100]));
            begins
        })
        .collect();
    journal.close();
    drain(&mut disk, &mut journal);
    for begins in groups {
        let mut disk = disk.clone();
        disk.bytes_mut(File::Wal)[begins as usize..].fill(0);
        let error = any(&mut disk);
        assert!(matches!(error, OpenError::OnlyCopyDamaged { .. }), "from byte {begins}: {error}");
    }
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(intact(&recovered).len(), 6);
}

#[test]
fn files_of_the_wrong_size_are_refused() {
    for (file, size) in [(File::Superblock, 65536), (File::Wal, formatted(3).bytes(File::Wal).len())] {
        for change in [-4096_isize, -1, 1, 4096] {
            let mut disk = formatted(3);
            disk.bytes_mut(file).resize(size.strict_add_signed(change), 0);
            let found_size = size.strict_add_signed(change) as u64;
            match any(&mut disk) {
                OpenError::WrongSize { file: which, expected, found } => {
                    assert_eq!((which, expected, found), (file, size as u64, found_size));
                }
                error => panic!("{error}"),
            }
        }
    }
    let mut disk = formatted(3);
    disk.bytes_mut(File::Wal).clear();
    assert!(matches!(any(&mut disk), OpenError::WrongSize { found: 0, .. }));
    let mut disk = formatted(3);
    disk.bytes_mut(File::Superblock).truncate(20_000);
    assert!(matches!(any(&mut disk), OpenError::SuperblockUnreadable { copies_valid: 1 }));
    disk.bytes_mut(File::Superblock).clear();
    assert!(matches!(any(&mut disk), OpenError::FormatUnfinished));
}

#[test]
fn garbage_is_refused_whatever_it_is() {
    let mut prng = chronon_vsr::Prng::new(1);
    for fill in [0, 0xff] {
        let mut disk = formatted(3);
        disk.bytes_mut(File::Superblock).fill(fill);
        assert!(matches!(any(&mut disk), OpenError::SuperblockUnreadable { copies_valid: 0 }));
    }
    let mut disk = formatted(3);
    disk.bytes_mut(File::Superblock).iter_mut().for_each(|byte| *byte = prng.next_u64() as u8);
    assert!(matches!(any(&mut disk), OpenError::SuperblockUnreadable { copies_valid: 0 }));

    // A WAL of garbage opens: nothing says that there was anything in it, and nothing says that there was not.
    let mut disk = formatted(3);
    disk.bytes_mut(File::Wal).iter_mut().for_each(|byte| *byte = prng.next_u64() as u8);
    let (_, recovered) = reopen(&mut disk);
    assert!(!recovered.scan_complete);
    assert_eq!(recovered.uncertain_from.unwrap().value(), 1);
    assert_eq!(recovered.entries, []);
}

/// 26, with its neighbours: two processes on one directory, a directory that is not empty, none at all.
#[test]
fn a_directory_is_held_by_one_process_and_never_made_over_data() {
    let scratch = Scratch::new("held");
    let path = &scratch.0;
    assert!(
        matches!(DataDirectory::open(path).unwrap_err(), OpenError::Missing { path: found } if found == *path)
    );

    let directory = DataDirectory::create(path).unwrap();
    assert!(
        matches!(DataDirectory::open(path).unwrap_err(), OpenError::Locked { path: found } if found == *path)
    );
    let mut disk = directory.disk().unwrap();
    assert!(matches!(any(&mut disk), OpenError::FormatUnfinished));
    format(&mut disk, identity(), state(3), ring()).unwrap();
    assert!(matches!(
        format(&mut disk, identity(), state(3), ring()).unwrap_err(),
        FormatError::AlreadyFormatted { file: File::Superblock, size: 65536 }
    ));
    drop((disk, directory));

    let error = DataDirectory::create(path).unwrap_err();
    assert!(matches!(&error, FormatError::NotEmpty { .. }), "{error}");
    let held = DataDirectory::open(path).unwrap();
    assert_eq!(held.path(), path);
    assert!(matches!(DataDirectory::open(path).unwrap_err(), OpenError::Locked { .. }));
    // Somebody takes the lock for a stale one.
    std::fs::remove_file(path.join("lock")).unwrap();
    assert!(matches!(DataDirectory::open(path).unwrap_err(), OpenError::Locked { .. }));
    std::fs::remove_file(path.join("lock")).unwrap();
    assert!(matches!(ReadOnlyDirectory::open(path).unwrap_err(), OpenError::Locked { .. }));
    drop(held);
    let looking = ReadOnlyDirectory::open(path).unwrap();
    assert!(matches!(DataDirectory::open(path).unwrap_err(), OpenError::Locked { .. }));
    drop(looking);
    assert_eq!(std::fs::metadata(path.join("wal")).unwrap().len(), wal_size(&ring()).unwrap());
    assert!(DataDirectory::open(path).is_ok());

    std::fs::remove_file(path.join("wal")).unwrap();
    assert!(
        matches!(DataDirectory::open(path).unwrap_err(), OpenError::FileMissing { path: found } if found == path.join("wal"))
    );
}

#[test]
fn an_empty_directory_may_be_made_into_one_and_a_full_one_not() {
    let scratch = Scratch::new("made");
    std::fs::create_dir_all(&scratch.0).unwrap();
    drop(DataDirectory::create(&scratch.0).unwrap());
    let other = Scratch::new("photos");
    std::fs::create_dir_all(&other.0).unwrap();
    std::fs::write(other.0.join("holiday.jpg"), b"x").unwrap();
    let error = DataDirectory::create(&other.0).unwrap_err();
    assert!(matches!(&error, FormatError::NotEmpty { found, .. } if found == "holiday.jpg"), "{error}");
    let error = DataDirectory::create(other.0.join("holiday.jpg")).unwrap_err();
    assert!(matches!(&error, FormatError::Disk { .. }), "{error}");
}

#[test]
fn a_directory_that_can_not_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("read-only");
    let path = &scratch.0;
    drop(DataDirectory::create(path).unwrap());
    std::fs::remove_file(path.join("lock")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o500)).unwrap();
    let opened = DataDirectory::open(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    // A superuser may write anywhere; anybody else is told which directory it was.
    if let Err(error) = opened {
        assert!(matches!(&error, OpenError::Disk { .. }));
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_ring_without_a_layout_is_refused() {
    for log in [0, 4096, u64::MAX, u64::MAX - 4096] {
        let ring = Ring { log, checkpoint_interval: 1, slack: 1, charge_max: u64::MAX };
        let error = format(&mut MemoryDisk::new(), identity(), state(3), ring).unwrap_err();
        assert!(matches!(error, FormatError::RingUnusable { .. }));
        let ring = Ring { log: u64::MAX, charge_max: 3 * 4096, ..ring };
        let error = format(&mut MemoryDisk::new(), identity(), state(3), ring).unwrap_err();
        assert!(matches!(error, FormatError::RingUnusable { .. }));
    }
}

/// A format that stops anywhere leaves nothing that opens.
#[test]
fn an_interrupted_format_is_no_data_directory() {
    let mut operations = 0;
    let mut run = |fail_at: usize| {
        let mut count = 0;
        let mut disk =
            chronon_storage::UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(move |_| {
                count += 1;
                if count == fail_at { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            }));
        let formatted = format(&mut disk, identity(), state(3), ring());
        operations = operations.max(fail_at);
        (formatted, disk.power_cut(|_, _| false).unwrap())
    };
    for fail_at in 1..100 {
        let (result, mut disk) = run(fail_at);
        if result.is_ok() {
            assert!(5 < fail_at);
            return;
        }
        assert!(matches!(result.unwrap_err(), FormatError::Disk { .. }));
        // Once two copies are flushed and the others are not, it does open, and is whole.
        if let Ok((_, recovered)) = open(&mut disk, Expect::default(), Mutations::NONE) {
            assert_eq!(recovered.state, state(3));
        }
    }
    panic!("a format takes few operations");
}

/// Two disks of one cluster never take each other's bytes for theirs.
#[test]
fn a_wal_of_another_disk_is_garbage() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    append(&mut disk, &mut journal, &mut Numbers::new(), &Chain::new(3).take(&[100]));
    let mut other = MemoryDisk::new();
    let identity = Identity { disk: chronon_vsr::DiskId::new(0xd1), ..identity() };
    format(&mut other, identity, state(3), ring()).unwrap();
    let wal = disk.bytes(File::Wal).to_vec();
    *other.bytes_mut(File::Wal) = wal;
    let (_, recovered) = reopen(&mut other);
    assert_eq!(recovered.entries, []);
    assert!(!recovered.scan_complete);
}

#[test]
fn a_superblock_that_contradicts_itself_is_refused_though_its_checksum_is_right() {
    // The checkpoint interval; and for three voters the stamp's epoch, the log stamp's epoch and view.
    for (at, value) in [(128, 0), (253, 7), (269, 7), (277, 9)] {
        let mut disk = formatted(3);
        for copy in disk.bytes_mut(File::Superblock).chunks_mut(16 * 1024) {
            copy[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            let checksum = Checksum::of(&copy[16..]);
            copy[..16].copy_from_slice(&checksum.to_bytes());
        }
        let inspected = chronon_storage::inspect(&mut disk.clone());
        assert!(inspected.refusal.is_some(), "{at}");
        let error = any(&mut disk).to_string();
        assert!(error.contains("0 of 4 copies are right"), "{at}: {error}");
    }
}
