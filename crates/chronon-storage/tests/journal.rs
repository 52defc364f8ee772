//! What goes into the journal comes out of it again.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use chronon_storage::{
    DataDirectory, Disk, Expect, File, MemoryDisk, Step, UnflushedDisk, format, open, perform, perform_step,
};
use chronon_vsr::{Durable, Mutations, Write, WriteNumber};
use support::*;

#[test]
fn a_new_replica_opens_with_an_empty_log() {
    let mut disk = formatted(3);
    let (journal, recovered) = reopen(&mut disk);
    assert_eq!(recovered.cluster, CLUSTER);
    assert_eq!(recovered.lineage, LINEAGE);
    assert_eq!(recovered.incarnation.value(), 1);
    assert_eq!(recovered.state, state(3));
    assert_eq!(recovered.entries, []);
    assert!(recovered.scan_complete);
    assert_eq!(recovered.uncertain_from, None);
    assert!(journal.idle() && !journal.wants_evidence());
    assert_eq!(journal.ring(), ring());
    let (_, again) = reopen(&mut disk);
    assert_eq!(again.incarnation.value(), 2);
}

#[test]
fn entries_of_every_size_come_back_as_they_were() {
    let mut disk = formatted(3);
    let mut chain = Chain::new(3);
    let mut all = Vec::new();
    for sizes in [&[0][..], &[1, 495, 496, 497], &[3519, 3520, 3521], &[8000, 0, 8000], &[7; 40], &[100; 100]]
    {
        let (mut journal, recovered) = reopen(&mut disk);
        assert_eq!(intact(&recovered), all);
        let entries = chain.take(sizes);
        append(&mut disk, &mut journal, &mut Numbers::new(), &entries);
        all.extend(entries);
        evidence(&mut disk, &mut journal);
    }
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(intact(&recovered), all);
    assert!(recovered.scan_complete);
}

#[test]
fn what_waits_becomes_one_group_with_one_write_and_one_flush() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let entries = Chain::new(3).take(&[10; 20]);
    journal.submit(numbers.append(&entries[0]));
    let first = journal.next_job().unwrap();
    for entry in &entries[1..] {
        journal.submit(numbers.append(entry));
    }
    assert!(journal.next_job().is_none());
    perform(&mut disk, &first).unwrap();
    assert_eq!(journal.done(first.id), [Durable::Appended(WriteNumber::ZERO.next())]);
    let second = journal.next_job().unwrap();
    assert!(matches!(
        second.steps.as_slice(),
        [Step::Write { file: File::Wal, .. }, Step::Flush { file: File::Wal }]
    ));
    perform(&mut disk, &second).unwrap();
    assert_eq!(journal.done(second.id), [Durable::Appended(numbers.0)]);
    assert!(journal.next_job().is_none());
}

#[test]
fn superblocks_and_appends_keep_their_order_and_only_the_newest_of_a_run_is_written() {
    let mut disk = formatted(3);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let entries = Chain::new(3).take(&[10, 10]);
    let (mut promised, mut number) = (recovered.state.clone(), WriteNumber::ZERO);
    let mut promise = |journal: &mut chronon_storage::Journal| {
        promised.stamp = promised.stamp.next_view();
        number = number.next();
        journal.submit(Write::Superblock { number, state: promised.clone() });
        (promised.clone(), number)
    };
    journal.submit(numbers.append(&entries[0]));
    promise(&mut journal);
    let (_, second) = promise(&mut journal);
    journal.submit(numbers.append(&entries[1]));
    let (last_state, third) = promise(&mut journal);

    let reports = drain(&mut disk, &mut journal);
    let first_append = WriteNumber::ZERO.next();
    assert_eq!(
        reports,
        [
            Durable::Appended(first_append),
            Durable::Superblock(second),
            Durable::Appended(first_append.next()),
            Durable::Superblock(third),
        ]
    );
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(recovered.state, last_state);
    assert_eq!(intact(&recovered), entries);
}

/// 80: a process is killed between write and flush, reads its WAL back intact from the page cache, and then the
/// power goes.
#[test]
fn what_start_up_only_read_is_flushed_again_before_it_counts() {
    let mut disk = UnflushedDisk::new(formatted(3));
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let entries = Chain::new(3).take(&[100, 200]);
    journal.submit(numbers.append(&entries[0]));
    journal.submit(numbers.append(&entries[1]));
    let job = journal.next_job().unwrap();
    perform_step(&mut disk, &job.steps[0]).unwrap();
    drop(journal);

    let (_, recovered) = reopen(&mut disk);
    assert_eq!(intact(&recovered), entries);
    let mut disk = disk.power_cut(|_, _| false).unwrap();
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(intact(&recovered), entries);
    assert_eq!(faulty(&recovered), []);
}

#[test]
fn a_real_directory_keeps_what_was_durable() {
    let path = std::env::temp_dir().join(format!("chronon-storage-{}-real", std::process::id()));
    let directory = DataDirectory::create(&path).unwrap();
    let mut disk = directory.disk().unwrap();
    format(&mut disk, identity(), state(3), ring()).unwrap();
    drop((disk, directory));
    let mut chain = Chain::new(3);
    let mut all = Vec::new();
    for round in 0..3 {
        let directory = DataDirectory::open(&path).unwrap();
        let mut disk = directory.disk().unwrap();
        let (mut journal, recovered) = open(&mut disk, Expect::default(), Mutations::NONE).unwrap();
        assert_eq!(recovered.incarnation.value(), round + 1);
        assert_eq!(intact(&recovered), all);
        let entries = chain.take(&[100, 5000, 0]);
        append(&mut disk, &mut journal, &mut Numbers::new(), &entries);
        all.extend(entries);
        // Memory that is not aligned must do as well.
        let mut odd = vec![0; 4097];
        disk.read(File::Wal, 0, &mut odd[1..]).unwrap();
        assert_ne!(odd, vec![0; 4097]);
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn the_same_writes_make_the_same_bytes() {
    let run = || {
        let mut disk = formatted(3);
        let (mut journal, _) = reopen(&mut disk);
        append(&mut disk, &mut journal, &mut Numbers::new(), &Chain::new(3).take(&[1, 2, 3000]));
        disk
    };
    let first: MemoryDisk = run();
    assert!(first == run());
}
