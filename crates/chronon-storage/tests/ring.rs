//! What a ring that turns does with damage: keeps finding it while it may matter, and lets go of it once a checkpoint
//! covers it. And what a scrub of the WAL does about it.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use chronon_storage::{File, Journal, MemoryDisk};
use chronon_vsr::{Entry, Op, Recovered, VsrState, Write, WriteNumber};
use support::*;

const UNIT: usize = 512;

/// Appends entries one by one, each its own group, letting go of all but the newest `keep`. Says whether the ring
/// took all of them.
fn turn(
    disk: &mut MemoryDisk,
    journal: &mut Journal,
    chain: &mut Chain,
    ops: usize,
    keep: Option<u64>,
) -> bool {
    let mut number = WriteNumber::ZERO;
    for _ in 0..ops {
        let entry = chain.next(3000);
        let keep_from = keep.map_or(Op::ROOT, |keep| Op::new(entry.op().value().saturating_sub(keep)));
        number = number.next();
        journal.submit(Write::Append { number, entry, keep_from });
        while let Some(job) = journal.next_job() {
            chronon_storage::perform(disk, &job).unwrap();
            journal.done(job.id);
        }
        if !journal.idle() {
            return false;
        }
    }
    true
}

/// Ten groups of one entry each, with evidence.
fn ten_groups() -> (MemoryDisk, Chain, Vec<Entry>) {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let mut chain = Chain::new(3);
    let entries = chain.take(&[3000; 10]);
    let mut numbers = Numbers::new();
    for entry in &entries {
        append(&mut disk, &mut journal, &mut numbers, std::slice::from_ref(entry));
    }
    evidence(&mut disk, &mut journal);
    (disk, chain, entries)
}

/// Where the WAL has the middle of an entry's body.
fn place_of(disk: &MemoryDisk, entry: &Entry) -> usize {
    let body = entry.body();
    disk.bytes(File::Wal).windows(40).position(|window| *window == body[1500..1540]).unwrap()
}

/// Four entries of 3000 bytes fill about three blocks each; a ring of 640 KiB turns several times in so many.
const TURNS: usize = 400;

#[test]
fn a_damaged_entry_below_the_checkpoint_does_not_hold_up_the_ring() {
    let (mut disk, mut chain, entries) = ten_groups();
    let place = place_of(&disk, &entries[4]);
    disk.bytes_mut(File::Wal)[place] ^= 1;
    let (mut journal, recovered) = reopen(&mut disk);
    assert_eq!(faulty(&recovered), [entries[4].op_ref()]);
    assert!(turn(&mut disk, &mut journal, &mut chain, TURNS, Some(20)));
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(faulty(&recovered), []);
    assert!(recovered.scan_complete);
    assert!(20 <= intact(&recovered).len());
}

/// While no checkpoint covers it the ring waits rather than forget it; and every start finds it again.
#[test]
fn a_damaged_entry_that_may_be_needed_holds_up_the_ring() {
    let (mut disk, mut chain, entries) = ten_groups();
    let place = place_of(&disk, &entries[4]);
    disk.bytes_mut(File::Wal)[place] ^= 1;
    let (mut journal, _) = reopen(&mut disk);
    let mut number = WriteNumber::ZERO;
    let mut waits = false;
    for _ in 0..TURNS {
        number = number.next();
        let entry = chain.next(3000);
        journal.submit(Write::Append { number, entry, keep_from: entries[4].op() });
        while let Some(job) = journal.next_job() {
            chronon_storage::perform(&mut disk, &job).unwrap();
            journal.done(job.id);
        }
        waits |= !journal.idle();
    }
    assert!(waits);
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(faulty(&recovered), [entries[4].op_ref()]);
}

/// Once it was repaired its damaged copy is of no use, checkpoint or not.
#[test]
fn a_repaired_entry_does_not_hold_up_the_ring() {
    for repaired in [false, true] {
        let (mut disk, _, entries) = ten_groups();
        let place = place_of(&disk, &entries[4]);
        disk.bytes_mut(File::Wal)[place] ^= 1;
        let (mut journal, _) = reopen(&mut disk);
        let mut number = WriteNumber::ZERO;
        let again = std::iter::repeat_n(&entries[9], TURNS);
        let repair = repaired.then_some(&entries[4]);
        for entry in repair.into_iter().chain(again) {
            number = number.next();
            journal.submit(Write::Append { number, entry: entry.clone(), keep_from: entries[4].op() });
            while let Some(job) = journal.next_job() {
                chronon_storage::perform(&mut disk, &job).unwrap();
                journal.done(job.id);
            }
        }
        assert_eq!(journal.idle(), repaired);
        let (_, recovered) = reopen(&mut disk);
        assert_eq!(faulty(&recovered).is_empty(), repaired);
    }
}

/// The second of two neighbouring headers, and the first: a group that nobody can name.
fn without_a_name() -> (MemoryDisk, Chain, Recovered, Journal) {
    let (mut disk, chain, entries) = ten_groups();
    for entry in &entries[4..6] {
        let header = place_of(&disk, entry) / 4096 * 4096;
        disk.bytes_mut(File::Wal)[header + UNIT / 2] ^= 1;
        disk.bytes_mut(File::Wal)[header + 40] ^= 1;
    }
    let (journal, recovered) = reopen(&mut disk);
    assert!(recovered.uncertain_from.is_some() && !recovered.scan_complete);
    (disk, chain, recovered, journal)
}

/// A ring that waited for it would wait for ever, if the replica is restarted often or if its peers wait for it.
#[test]
fn a_group_without_a_name_does_not_hold_up_the_ring_and_stays_unclear_until_a_log_is_adopted() {
    for adopted in [false, true] {
        let (mut disk, mut chain, recovered, mut journal) = without_a_name();
        if adopted {
            let state = VsrState { uncertain_from: None, commit_max: chain.head, ..recovered.state.clone() };
            journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
            drain(&mut disk, &mut journal);
        }
        assert!(turn(&mut disk, &mut journal, &mut chain, TURNS, Some(20)));
        let (_, recovered) = reopen(&mut disk);
        assert!(recovered.scan_complete);
        assert_eq!(recovered.state.uncertain_from.is_none(), adopted);
    }
}

/// Rot that a scrub finds is mended from memory at once; after a power cut and rot of nothing else the log is whole.
#[test]
fn a_scrub_appends_again_what_has_rotted() {
    let (mut disk, _, entries) = ten_groups();
    let (mut journal, _) = reopen(&mut disk);
    assert_eq!(journal.scrub(&mut disk, u64::MAX).damage, []);
    let place = place_of(&disk, &entries[4]);
    disk.bytes_mut(File::Wal)[place] ^= 1;
    let mut told = Vec::new();
    for _ in 0..3 {
        let mut steps = 0;
        loop {
            let scrubbed = journal.scrub(&mut disk, 8192);
            told.extend(scrubbed.damage);
            drain(&mut disk, &mut journal);
            if scrubbed.round {
                break;
            }
            steps += 1;
        }
        assert!(4 < steps, "{steps}");
    }
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].entries, [entries[4].op_ref()]);
    assert!(told[0].position as usize <= place && place < told[0].position as usize + 8192);
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(faulty(&recovered), []);
    let mut found = refs(&intact(&recovered));
    found.sort_unstable();
    assert_eq!(found, refs(&entries));
}

/// Wherever a process begins, its second look is one from end to end, and what the first has passed over is no round.
#[test]
fn a_scrub_of_the_log_begins_where_it_is_told_to() {
    let (disk, _, _) = ten_groups();
    let size = disk.bytes(File::Wal).len() as u64;
    let mut begun = std::collections::BTreeSet::new();
    for phase in (0..size).step_by(4096) {
        let mut disk = disk.clone();
        let (mut journal, _) = reopen(&mut disk);
        journal.scrub_from(7 * size + phase);
        let first = journal.scrub(&mut disk, u64::MAX);
        assert_eq!(first.round, phase == 0, "{phase}");
        assert!(size - phase <= first.bytes && first.bytes < size - phase + 100_000, "{phase}: {first:?}");
        begun.insert(first.bytes);
        let second = journal.scrub(&mut disk, u64::MAX);
        assert!(second.round);
        assert_eq!(second.bytes, size);
    }
    assert!(100 < begun.len(), "{}", begun.len());
}

/// Any byte of any group that is needed.
#[test]
fn a_scrub_sees_every_flipped_unit() {
    let (disk, _, _) = ten_groups();
    let used = disk.bytes(File::Wal).iter().rposition(|byte| *byte != 0).unwrap();
    for unit in 0..=used / UNIT {
        let mut disk = disk.clone();
        let (mut journal, _) = reopen(&mut disk);
        disk.bytes_mut(File::Wal)[unit * UNIT + unit * 7 % UNIT] ^= 0x10;
        assert_eq!(journal.scrub(&mut disk, u64::MAX).damage.len(), 1, "unit {unit}");
    }
}

/// Blocks of the file where no group is, from the newest group to the file's end.
fn rest(disk: &MemoryDisk) -> std::ops::Range<usize> {
    let wal = disk.bytes(File::Wal);
    let used = wal.iter().rposition(|byte| *byte != 0).unwrap();
    (used / 4096 + 1) * 4096..wal.len()
}

/// A write that is torn over rot leaves no old unit where the rot was, and would pass for one that had been durable.
#[test]
fn rot_where_no_group_is_makes_no_torn_write_look_durable() {
    for (scrubs, complete) in [("at the start", true), ("while it runs", true), ("never", false)] {
        let (mut disk, mut chain, _) = ten_groups();
        let (mut journal, _) = reopen(&mut disk);
        // The header of the next group will lie here.
        let next = rest(&disk).start;
        disk.bytes_mut(File::Wal)[next + 100] = 1;
        match scrubs {
            "at the start" => journal = reopen(&mut disk).0,
            "while it runs" => {
                assert_eq!(journal.scrub(&mut disk, u64::MAX).blots, 1);
                assert!(!journal.is_whole());
                drain(&mut disk, &mut journal);
                assert_eq!(journal.scrub(&mut disk, u64::MAX).blots, 0);
            }
            _ => {}
        }
        assert!(journal.is_whole());
        // The power fails when all of a group has arrived but its first unit.
        let before = disk.bytes(File::Wal)[next..next + UNIT].to_vec();
        let entry = chain.next(3000);
        journal.submit(Write::Append { number: WriteNumber::ZERO.next(), entry, keep_from: Op::ROOT });
        drain(&mut disk, &mut journal);
        disk.bytes_mut(File::Wal)[next..next + UNIT].copy_from_slice(&before);
        let (_, recovered) = reopen(&mut disk);
        assert_eq!(recovered.scan_complete, complete, "{scrubs}");
        assert_eq!(intact(&recovered).len(), 10);
    }
}

/// What a damaged group leaves behind when the ring lets it go is not left for a torn write to fall on.
#[test]
fn the_place_of_a_damaged_group_is_filled_with_zeros_when_it_is_let_go() {
    let (mut disk, mut chain, entries) = ten_groups();
    let place = place_of(&disk, &entries[4]);
    disk.bytes_mut(File::Wal)[place] ^= 1;
    let (mut journal, _) = reopen(&mut disk);
    assert!(!journal.is_whole());
    let mut number = WriteNumber::ZERO;
    let mut ops = 0;
    while !journal.is_whole() {
        ops += 1;
        assert!(ops < 200, "it is never let go");
        let entry = chain.next(3000);
        let keep_from = entry.op();
        number = number.next();
        journal.submit(Write::Append { number, entry, keep_from });
        drain(&mut disk, &mut journal);
    }
    assert_eq!(disk.bytes(File::Wal)[place], 0);
    evidence(&mut disk, &mut journal);
    assert!(reopen(&mut disk).0.is_whole());
}

/// The file wraps many times, and rot anywhere outside the groups is found and mended by one round.
#[test]
fn a_scrub_reads_the_whole_file_wherever_the_ring_stands() {
    let (mut disk, mut chain, _) = ten_groups();
    let (mut journal, _) = reopen(&mut disk);
    for turns in 0..60 {
        assert!(turn(&mut disk, &mut journal, &mut chain, 7, Some(20)));
        evidence(&mut disk, &mut journal);
        let before = disk.clone();
        let blocks = before.bytes(File::Wal).len() / 4096;
        let (mut in_groups, mut outside) = (0, 0);
        for block in (0..blocks).filter(|block| block % 10 == turns % 10) {
            disk.bytes_mut(File::Wal)[block * 4096 + 9] ^= 0x10;
            let scrubbed = journal.scrub(&mut disk, u64::MAX);
            assert!(scrubbed.round);
            assert_eq!(scrubbed.blots + scrubbed.damage.len(), 1, "block {block}");
            in_groups += scrubbed.damage.len();
            outside += scrubbed.blots;
            drain(&mut disk, &mut journal);
        }
        assert!(0 < in_groups && 0 < outside, "{in_groups}, {outside}");
        let (_, recovered) = reopen(&mut disk);
        assert!(recovered.scan_complete);
        assert!(17 <= intact(&recovered).len());
        // Damage of many turns side by side would be more than a scan can bear.
        disk = before;
        journal = reopen(&mut disk).0;
    }
}
