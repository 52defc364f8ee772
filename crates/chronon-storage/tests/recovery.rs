//! Torn groups, rotten groups, and what a start-up may conclude from them.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use chronon_storage::{Disk, Expect, File, MemoryDisk, OpenError, Step, open, perform};
use chronon_vsr::{Checkpoint, Entry, Mutations, Op, Recovered, VsrState, Write, WriteNumber};
use support::*;

const UNIT: usize = 512;

/// A WAL of several groups, the last one written but not yet applied to the disk.
struct Story {
    /// Every group but the last is on this disk, and durable.
    disk: MemoryDisk,
    before: Vec<Entry>,
    /// The last group: where, its bytes, its entries.
    position: usize,
    bytes: Vec<u8>,
    last: Vec<Entry>,
}

/// `sizes` are those of the last group's bodies.
fn story(voters: u8, sizes: &[usize]) -> Story {
    let mut disk = formatted(voters);
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(voters);
    let before = chain.take(&[100, 600, 0, 3000]);
    append(&mut disk, &mut journal, &mut numbers, &before[..2]);
    append(&mut disk, &mut journal, &mut numbers, &before[2..]);
    evidence(&mut disk, &mut journal);
    let last = chain.take(sizes);
    for entry in &last {
        journal.submit(numbers.append(entry));
    }
    let job = journal.next_job().unwrap();
    let Step::Write { file: File::Wal, position, bytes } = &job.steps[0] else {
        panic!("a group is written")
    };
    let (position, bytes) = (*position as usize, bytes.to_vec());
    Story { disk, before, position, bytes, last }
}

impl Story {
    /// The disk after exactly these units of the last group have reached it.
    fn torn(&self, arrives: impl Fn(usize) -> bool) -> MemoryDisk {
        let mut disk = self.disk.clone();
        for (index, unit) in self.bytes.chunks(UNIT).enumerate().filter(|(index, _)| arrives(*index)) {
            disk.write(File::Wal, (self.position + index * UNIT) as u64, unit).unwrap();
        }
        disk
    }

    fn units(&self) -> usize {
        self.bytes.len() / UNIT
    }

    fn assert_cut(&self, mut disk: MemoryDisk, why: &str) {
        let (_, recovered) = reopen(&mut disk);
        assert_eq!(refs(&intact(&recovered)), refs(&self.before), "{why}");
        assert_eq!(faulty(&recovered), [], "{why}");
        assert!(recovered.scan_complete, "{why}");
        assert_eq!(recovered.uncertain_from, None, "{why}");
    }
}

fn all_entries(story: &Story) -> Vec<Entry> {
    story.before.iter().chain(&story.last).cloned().collect()
}

/// 14: a torn write at every place of the last group, sectors in any order. Alone (n = 1) it is no damage either.
#[test]
fn a_torn_last_group_is_cut_whatever_part_of_it_arrived() {
    for voters in [1, 3] {
        let story = story(voters, &[700, 0, 2500, 4000]);
        let units = story.units();
        assert!(8 < units);
        for whole in 0..units {
            story.assert_cut(story.torn(|unit| unit < whole), &format!("the first {whole} units"));
            story.assert_cut(story.torn(|unit| unit != whole), &format!("all but unit {whole}"));
            story.assert_cut(story.torn(|unit| unit == whole), &format!("only unit {whole}"));
        }
        for seed in 0..50 {
            let mut prng = chronon_vsr::Prng::new(seed);
            let arrives: Vec<bool> = (0..units).map(|_| prng.chance(1, 2)).collect();
            if arrives.contains(&false) {
                story.assert_cut(story.torn(|unit| arrives[unit]), &format!("seed {seed}"));
            }
        }
        let (_, recovered) = reopen(&mut story.torn(|_| true));
        assert_eq!(intact(&recovered), all_entries(&story));
    }
}

/// 14: sectors that tear within themselves. While one whole unit is old, the group is cut; a tear inside the last
/// unit can't be told from rot, so what it holds is faulty: never intact, never silently gone.
#[test]
fn a_write_torn_at_any_byte_never_makes_an_entry_of_half_its_bytes() {
    let story = story(3, &[300, 2900]);
    let units = story.units();
    let last_units = (units - 1) * UNIT..story.bytes.len();
    let boundaries = (0..units).flat_map(|unit| [unit * UNIT, unit * UNIT + 1, unit * UNIT + 511]);
    for bytes in boundaries.chain(last_units.step_by(3)) {
        let mut disk = story.disk.clone();
        disk.write(File::Wal, story.position as u64, &story.bytes[..bytes]).unwrap();
        if bytes <= (units - 1) * UNIT {
            story.assert_cut(disk, &format!("{bytes} bytes"));
            continue;
        }
        let (_, recovered) = reopen(&mut disk);
        let found = intact(&recovered);
        assert!(found.iter().all(|entry| all_entries(&story).contains(entry)), "{bytes} bytes");
        assert_eq!(
            found.len() + faulty(&recovered).len(),
            story.before.len() + story.last.len(),
            "{bytes} bytes"
        );
    }
}

/// After a cut the place is used again, and the remains of the torn group disturb nobody.
#[test]
fn a_cut_group_is_written_over_and_its_remains_stay_dead() {
    let story = story(3, &[700, 2500, 4000]);
    for whole in 0..story.units() {
        let mut disk = story.torn(|unit| unit != whole);
        let (mut journal, _) = reopen(&mut disk);
        let mut chain = Chain::new(3);
        chain.head = story.before.last().unwrap().op_ref();
        let entries = chain.view(5).take(&[40]);
        append(&mut disk, &mut journal, &mut Numbers::new(), &entries);
        let (_, recovered) = reopen(&mut disk);
        let expected: Vec<Entry> = story.before.iter().chain(&entries).cloned().collect();
        assert_eq!(intact(&recovered), expected, "all but unit {whole}");
        assert!(recovered.scan_complete);
    }
}

/// A torn group that a second incarnation began to write over, torn again: neither was ever durable.
#[test]
fn a_cut_group_half_written_over_by_another_torn_one_is_still_cut() {
    let story = story(1, &[700, 2500, 4000]);
    for lost in 0..story.units() {
        let mut disk = story.torn(|unit| unit != lost);
        let (mut journal, _) = reopen(&mut disk);
        let mut chain = Chain::new(1);
        chain.head = story.before.last().unwrap().op_ref();
        journal.submit(Numbers::new().append(&chain.view(5).next(7000)));
        let job = journal.next_job().unwrap();
        let Step::Write { position, bytes, .. } = &job.steps[0] else { panic!("a group is written") };
        assert_eq!(*position as usize, story.position);
        // All of it arrives but its header: what is left of the first group is a header and strange units.
        disk.write(File::Wal, position + UNIT as u64, &bytes[UNIT..]).unwrap();
        story.assert_cut(disk, &format!("without unit {lost}"));
    }
}

/// 15: a flip anywhere in the middle of the log costs the entries that it hits, by name, and nothing after them.
#[test]
fn rot_in_the_middle_of_the_log_costs_only_the_entries_that_it_hits() {
    let story = story(3, &[700, 0, 2500, 4000]);
    let everything = all_entries(&story);
    let whole = {
        let mut disk = story.torn(|_| true);
        let (mut journal, _) = reopen(&mut disk);
        evidence(&mut disk, &mut journal);
        drop(journal);
        disk
    };
    let end = story.position + story.bytes.len();
    let mut hit = 0;
    for unit in 0..end / UNIT {
        let mut disk = whole.clone();
        disk.bytes_mut(File::Wal)[unit * UNIT + unit % UNIT] ^= 0x10;
        let (_, recovered) = reopen(&mut disk);
        assert!(recovered.scan_complete, "unit {unit}");
        assert_eq!(recovered.uncertain_from, None, "unit {unit}");
        let (found, lost) = (intact(&recovered), faulty(&recovered));
        assert_eq!(found.len() + lost.len(), everything.len(), "unit {unit}");
        assert!(found.iter().all(|entry| everything.contains(entry)));
        assert!(lost.len() <= 2, "unit {unit} hits {lost:?}");
        hit += usize::from(!lost.is_empty());
    }
    // The last group was appended again for lack of evidence, so that its entries have two copies; those before have
    // one, of more than seven units of bodies.
    assert!(7 <= hit, "{hit}");
}

#[test]
fn every_flipped_byte_of_a_unit_is_seen() {
    let story = story(3, &[10]);
    // The unit of the second group that holds the middle of the 3000 bytes.
    let wal = story.disk.bytes(File::Wal);
    let body = story.before[3].body();
    let place = wal.windows(40).position(|window| *window == body[1500..1540]).unwrap() / UNIT * UNIT;
    for byte in 0..UNIT {
        let mut disk = story.disk.clone();
        disk.bytes_mut(File::Wal)[place + byte] ^= 1 << (byte % 8);
        let (_, recovered) = reopen(&mut disk);
        let content = byte < UNIT - 16;
        let expected = if content { vec![story.before[3].op_ref()] } else { vec![] };
        // A damaged trailer around right bytes costs nothing: the entry's own checksum speaks.
        assert_eq!(faulty(&recovered), expected, "byte {byte}");
        assert!(recovered.scan_complete);
    }
}

/// 16: without evidence a bad unit is no torn one: what it held is faulty, or the head is uncertain; never cut.
#[test]
fn rot_in_the_last_group_without_evidence_is_faulty_or_uncertain_but_never_cut() {
    let story = story(3, &[700, 0, 2500, 4000]);
    let first_of_last = story.last[0].op();
    let (mut named, mut uncertain) = (0, 0);
    for unit in 0..story.units() {
        let mut disk = story.torn(|_| true);
        disk.bytes_mut(File::Wal)[story.position + unit * UNIT + 100] ^= 4;
        let (_, recovered) = reopen(&mut disk);
        let known = intact(&recovered).len() + faulty(&recovered).len();
        if recovered.scan_complete {
            assert_eq!(known, story.before.len() + story.last.len(), "unit {unit}");
            assert_eq!(recovered.uncertain_from, None, "unit {unit}");
            named += 1;
        } else {
            let from = recovered.uncertain_from.unwrap();
            assert!(first_of_last <= from, "unit {unit}: {from}");
            assert!(from <= story.last.last().unwrap().op().next(), "unit {unit}: {from}");
            assert_eq!(recovered.state.uncertain_from, Some(from));
            uncertain += 1;
        }
        assert_eq!(intact(&recovered)[..story.before.len()], story.before);
        assert_persistent(&mut disk, &recovered);
    }
    assert!(0 < named && 0 < uncertain, "{named} {uncertain}");
}

/// What the scan could not tell stays in the superblock, whatever the next scan sees.
fn assert_persistent(disk: &mut MemoryDisk, recovered: &Recovered) {
    let (_, again) = reopen(disk);
    assert_eq!(again.state.uncertain_from, recovered.uncertain_from);
}

/// 16: with evidence the next group's second copy names every entry, even if the whole group is unreadable.
#[test]
fn rot_in_the_last_group_with_evidence_has_a_name() {
    let sizes = [700, 0, 2500, 4000];
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(3);
    let before = chain.take(&[100]);
    append(&mut disk, &mut journal, &mut numbers, &before);
    let start = 4096;
    let last = chain.take(&sizes);
    append(&mut disk, &mut journal, &mut numbers, &last);
    evidence(&mut disk, &mut journal);
    let end = disk.bytes(File::Wal).iter().rposition(|byte| *byte != 0).unwrap() / 4096 * 4096;
    assert!(start + 8 * UNIT < end);
    for unit in start / UNIT..end / UNIT {
        let mut damaged = disk.clone();
        damaged.bytes_mut(File::Wal)[unit * UNIT..(unit + 1) * UNIT].fill(0xee);
        let (_, recovered) = reopen(&mut damaged);
        assert!(recovered.scan_complete && recovered.uncertain_from.is_none(), "unit {unit}");
        assert_eq!(recovered.entries.len(), 5, "unit {unit}");
    }
    disk.bytes_mut(File::Wal)[start..end].fill(0xee);
    let (_, recovered) = reopen(&mut disk);
    assert!(recovered.scan_complete && recovered.uncertain_from.is_none());
    assert!(intact(&recovered).contains(&before[0]));
    // An empty body has no bytes to lose, but where it lay is unreadable: its own checksum still proves it.
    let lost: Vec<_> = last.iter().filter(|entry| !entry.body().is_empty()).map(Entry::op_ref).collect();
    assert_eq!(faulty(&recovered), lost);
}

/// A group whose header is lost together with its second copy: nobody can say what it held.
#[test]
fn a_group_that_nothing_names_makes_the_head_uncertain_and_hides_nothing_else() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(3);
    let mut groups = Vec::new();
    for _ in 0..6 {
        let entries = chain.take(&[200, 200]);
        append(&mut disk, &mut journal, &mut numbers, &entries);
        groups.push(entries);
    }
    // One block each. The header of the third and of the fourth, which has the copy.
    for group in [2, 3] {
        disk.bytes_mut(File::Wal)[group * 4096..group * 4096 + 1024].fill(0xbb);
    }
    let (_, recovered) = reopen(&mut disk);
    assert!(!recovered.scan_complete);
    assert_eq!(recovered.uncertain_from, Some(groups[2][0].op()));
    let found = intact(&recovered);
    for group in [0, 1, 4, 5] {
        assert!(groups[group].iter().all(|entry| found.contains(entry)), "group {group}");
    }
    // The fourth is named by the copy in the fifth; the third by nothing.
    let named = refs(&groups[3]);
    assert!(faulty(&recovered).iter().all(|entry| named.contains(entry)));
}

/// The suffix of the superblock names entries above which nothing is known.
#[test]
fn an_uncertain_head_starts_above_what_the_suffix_names() {
    let mut disk = formatted(3);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(3);
    let entries = chain.take(&[50, 50, 50]);
    append(&mut disk, &mut journal, &mut numbers, &entries);
    let suffix = entries.iter().map(|entry| entry.header().clone()).collect();
    let state = VsrState { suffix, ..recovered.state };
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
    drain(&mut disk, &mut journal);
    disk.bytes_mut(File::Wal)[..4096].fill(0xcc);
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(recovered.uncertain_from, Some(Op::new(4)));
    assert!(!recovered.scan_complete);
    // Whoever acked these must not deny them after the next start-up, whose scan finds the damage written over.
    assert_eq!(recovered.state.faulty, refs(&entries));
    let (_, again) = reopen(&mut disk);
    assert_eq!(again.state.faulty, refs(&entries));
}

/// Bad units in the free part of the ring are no group.
#[test]
fn rot_in_free_space_behind_the_end_is_no_entry() {
    let story = story(3, &[10]);
    let mut disk = story.disk.clone();
    let far = story.position + 8 * 4096;
    disk.bytes_mut(File::Wal)[far..far + 4096].fill(0xaa);
    story.assert_cut(disk, "rot far behind the end");
}

/// A disk that refuses to read a part has lost that part, and no more.
/// The file was replaced by an older copy, by zeros, or its device lost what it had flushed: a clean end that comes too
/// early is no proof that nothing was there.
#[test]
fn a_log_that_ends_before_what_the_superblock_knows_durable_is_uncertain() {
    let mut disk = formatted(3);
    let (mut journal, recovered) = reopen(&mut disk);
    let (mut numbers, mut chain) = (Numbers::new(), Chain::new(3));
    append(&mut disk, &mut journal, &mut numbers, &chain.take(&[100, 600]));
    evidence(&mut disk, &mut journal);
    let older = disk.bytes(File::Wal).to_vec();
    append(&mut disk, &mut journal, &mut numbers, &chain.take(&[300]));
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state: recovered.state });
    drain(&mut disk, &mut journal);
    for wal in [older.clone(), vec![0; older.len()]] {
        let mut disk = disk.clone();
        *disk.bytes_mut(File::Wal) = wal;
        let (_, recovered) = reopen(&mut disk);
        assert!(!recovered.scan_complete && recovered.uncertain_from.is_some());
        // And it stays so after a crash, and the next clean scan.
        let (_, again) = reopen(&mut disk);
        assert!(!again.scan_complete && again.state.uncertain_from.is_some());
    }
    let (_, recovered) = reopen(&mut disk);
    assert!(recovered.scan_complete);
}

#[test]
fn a_superblock_older_than_the_log_is_refused() {
    let mut disk = formatted(3);
    let older = disk.bytes(File::Superblock).to_vec();
    let (mut journal, _) = reopen(&mut disk);
    append(&mut disk, &mut journal, &mut Numbers::new(), &Chain::new(3).take(&[100]));
    *disk.bytes_mut(File::Superblock) = older;
    let before = disk.clone();
    match open(&mut disk, Expect::default(), Mutations::NONE) {
        Err(OpenError::SuperblockOlder { known, found: 1 }) => assert_eq!(known.count(), 0),
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert!(disk == before);
}

#[test]
fn a_read_error_is_damage_of_what_was_read() {
    struct Unreadable(MemoryDisk, u64);
    impl Disk for Unreadable {
        fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            let touched = position..position + buffer.len() as u64;
            if file == File::Wal && touched.contains(&self.1) {
                return Err(std::io::Error::other("medium error"));
            }
            self.0.read(file, position, buffer)
        }
        fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write(file, position, bytes)
        }
        fn flush(&mut self, file: File) -> std::io::Result<()> {
            self.0.flush(file)
        }
        fn size(&mut self, file: File) -> std::io::Result<u64> {
            self.0.size(file)
        }

        fn truncate(&mut self, file: File, size: u64) -> std::io::Result<()> {
            self.0.truncate(file, size)
        }

        fn punch(&mut self, file: File, position: u64, length: u64) -> std::io::Result<()> {
            self.0.punch(file, position, length)
        }

        fn remove(&mut self, file: File) -> std::io::Result<()> {
            self.0.remove(file)
        }

        fn packs(&mut self) -> std::io::Result<Vec<u64>> {
            self.0.packs()
        }

        fn reserve(&mut self, file: File, bytes: u64) -> std::io::Result<()> {
            self.0.reserve(file, bytes)
        }

        fn available(&mut self) -> std::io::Result<u64> {
            self.0.available()
        }
    }
    let story = story(3, &[10]);
    let mut disk = Unreadable(story.disk.clone(), 4096);
    let (_, recovered) = reopen(&mut disk);
    assert!(recovered.scan_complete);
    assert_eq!(recovered.entries.len(), story.before.len());
    assert_eq!(intact(&recovered)[..2], story.before[..2]);
    assert!(!faulty(&recovered).is_empty());
}

/// Alone, a replica does not open over damage that nobody can repair, and says what it is.
#[test]
fn the_only_replica_refuses_to_open_over_damage_and_changes_nothing() {
    let story = story(1, &[700, 2500]);
    let mut faulty = story.torn(|_| true);
    faulty.bytes_mut(File::Wal)[story.position + 6 * UNIT] ^= 1;
    let before = faulty.clone();
    let error = open(&mut faulty, Expect::default(), Mutations::NONE).unwrap_err();
    let OpenError::OnlyCopyDamaged { damage } = &error else { panic!("{error}") };
    assert_eq!(damage.faulty, [story.last[1].op_ref()]);
    assert_eq!(damage.uncertain_from, None);
    assert!(error.to_string().contains("op 6"), "{error}");
    assert!(faulty == before);

    let mut uncertain = story.torn(|_| true);
    uncertain.bytes_mut(File::Wal)[story.position] ^= 1;
    let error = open(&mut uncertain, Expect::default(), Mutations::NONE).unwrap_err();
    let OpenError::OnlyCopyDamaged { damage } = &error else { panic!("{error}") };
    assert_eq!(damage.uncertain_from, Some(Op::new(5)));
}

/// A repaired entry is appended a second time; any intact copy serves, whichever of them rots.
#[test]
fn of_two_copies_of_an_entry_any_intact_one_serves() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(3);
    let entries = chain.take(&[400, 400, 400]);
    append(&mut disk, &mut journal, &mut numbers, &entries);
    append(&mut disk, &mut journal, &mut numbers, &entries[1..2]);
    evidence(&mut disk, &mut journal);
    let whole = disk.clone();
    for unit in 0..16 {
        let mut disk = whole.clone();
        disk.bytes_mut(File::Wal)[unit * UNIT + 7] ^= 1;
        let (_, recovered) = reopen(&mut disk);
        assert_eq!(recovered.entries.len(), 3, "unit {unit}");
        assert!(intact(&recovered).contains(&entries[1]), "unit {unit}");
    }
}

#[test]
fn a_job_that_fails_says_which_file() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let entries = Chain::new(3).take(&[1]);
    journal.submit(Numbers::new().append(&entries[0]));
    let job = journal.next_job().unwrap();
    let mut failing =
        chronon_storage::UnflushedDisk::new(disk).with_hook(Box::new(|operation| match operation {
            chronon_storage::Operation::Flush { file } => Err(std::io::Error::other(file.name())),
            _ => Ok(()),
        }));
    assert_eq!(perform(&mut failing, &job).unwrap_err().to_string(), "wal");
    // Nothing more comes while the job is under way: a failed flush is never followed by another.
    journal.submit(Numbers::new().append(&entries[0]));
    assert!(journal.next_job().is_none());
}

/// The guard that rot is never taken for a tear: without it, a flushed group with one bad unit is gone.
#[cfg(feature = "mutations")]
#[test]
fn a_start_up_that_cuts_bad_units_as_torn_is_caught() {
    let story = story(3, &[700, 2500]);
    let mut disk = story.torn(|_| true);
    disk.bytes_mut(File::Wal)[story.position + 6 * UNIT] ^= 1;
    let broken = Mutations::broken(chronon_vsr::Mutation::BadUnitsCutAsTorn);
    let (_, recovered) = open(&mut disk.clone(), Expect::default(), broken).unwrap();
    assert_eq!(recovered.entries.len(), story.before.len());
    assert!(recovered.scan_complete, "the lie: it would nack what it may have acked");
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(recovered.entries.len(), story.before.len() + story.last.len());
}

/// A ring that was filled up to two blocks before its end, with evidence for all of it. Returns the head.
fn filled_to_the_end() -> (MemoryDisk, Chain, Vec<Entry>) {
    let mut disk = formatted(3);
    let size = disk.bytes(File::Wal).len() as u64;
    let (mut journal, recovered) = reopen(&mut disk);
    let (mut number, mut chain) = (WriteNumber::ZERO, Chain::new(3));
    let mut kept = Vec::new();
    // Groups of one and of three blocks, each with one of evidence behind it.
    let mut body = 10;
    loop {
        let entry = chain.next(body);
        number = number.next();
        let keep_from = Op::new(entry.op().value().saturating_sub(3));
        kept.retain(|entry: &Entry| keep_from <= entry.op());
        kept.push(entry.clone());
        journal.submit(Write::Append { number, entry, keep_from });
        drain(&mut disk, &mut journal);
        journal.give_evidence();
        let job = journal.next_job().unwrap();
        let Step::Write { position, .. } = job.steps[0] else { panic!("a group is written") };
        perform(&mut disk, &job).unwrap();
        journal.done(job.id);
        body = 8000;
        if position + 4096 == size - 8192 {
            // What was let go of lies below a checkpoint.
            let entry = kept[0].op_ref();
            let checkpoint = Checkpoint { entry, ..recovered.state.checkpoint };
            let state = VsrState { checkpoint, commit_max: entry, ..recovered.state };
            journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
            drain(&mut disk, &mut journal);
            return (disk, chain, kept);
        }
    }
}

fn assert_holds(recovered: &Recovered, kept: &[Entry]) {
    let found = intact(recovered);
    assert!(kept.iter().all(|entry| found.contains(entry)));
    assert_eq!(faulty(recovered), []);
}

/// Writes the next group, which does not fit before the end of the file.
fn wrap(disk: &mut MemoryDisk, chain: &mut Chain) -> Entry {
    let (mut journal, _) = reopen(disk);
    let entry = chain.next(8000);
    journal.submit(Numbers::new().append(&entry));
    let job = journal.next_job().unwrap();
    assert!(matches!(job.steps[0], Step::Write { position: 0, .. }));
    perform(disk, &job).unwrap();
    entry
}

#[test]
fn a_last_group_at_the_start_of_the_file_is_torn_or_rotten_like_any_other() {
    let (disk, mut chain, mut kept) = filled_to_the_end();
    let mut written = disk.clone();
    let entry = wrap(&mut written, &mut chain);
    for unit in 0..3 * 8 {
        let mut torn = written.clone();
        let range = unit * UNIT..(unit + 1) * UNIT;
        torn.bytes_mut(File::Wal)[range.clone()].copy_from_slice(&disk.bytes(File::Wal)[range.clone()]);
        let (_, recovered) = reopen(&mut torn);
        assert_holds(&recovered, &kept);
        assert!(recovered.scan_complete, "unit {unit}");
        assert!(!intact(&recovered).contains(&entry), "unit {unit}");

        let mut rotten = written.clone();
        rotten.bytes_mut(File::Wal)[unit * UNIT + 3] ^= 1;
        let (_, recovered) = reopen(&mut rotten);
        let known = intact(&recovered).contains(&entry) || faulty(&recovered).contains(&entry.op_ref());
        assert!(known || recovered.uncertain_from == Some(entry.op()), "unit {unit}");
    }
    kept.push(entry);
    let (_, recovered) = reopen(&mut written);
    assert_holds(&recovered, &kept);
}

/// A group was torn at the end of the file and left its header there; the next incarnation's went to the start, and
/// rotted. What the first left behind must not hide the second.
#[test]
fn the_header_of_a_cut_group_does_not_hide_a_rotten_group_of_a_later_incarnation() {
    let (mut disk, mut chain, kept) = filled_to_the_end();
    let (mut journal, _) = reopen(&mut disk);
    let torn = chain.clone().view(3).next(20);
    journal.submit(Numbers::new().append(&torn));
    let job = journal.next_job().unwrap();
    let Step::Write { position, bytes, .. } = &job.steps[0] else { panic!("a group is written") };
    assert_eq!(*position as usize, disk.bytes(File::Wal).len() - 8192);
    disk.write(File::Wal, *position, &bytes[..UNIT]).unwrap();

    let entry = wrap(&mut disk, &mut chain);
    disk.bytes_mut(File::Wal)[3] ^= 1;
    let (_, recovered) = reopen(&mut disk);
    assert_holds(&recovered, &kept);
    assert_eq!(recovered.uncertain_from, Some(entry.op()));
    assert!(!recovered.scan_complete);
}

/// A torn header does not hide how long the group was: any of its units says so, and one old unit is enough.
#[test]
fn a_group_with_a_bad_header_and_an_old_unit_far_behind_it_is_torn() {
    let story = story(3, &[4000, 4000]);
    let units = story.units();
    assert!(16 < units);
    let mut disk = story.torn(|unit| unit != units - 1);
    disk.bytes_mut(File::Wal)[story.position + 5] ^= 1;
    story.assert_cut(disk, "bad first unit, old last unit");
}

/// Two headers in a row are lost. The upper group has a name in the next one's copy, the lower one held nothing; but
/// what lies below that, nobody can say.
#[test]
fn a_broken_chain_makes_the_head_uncertain_even_between_groups_that_are_known() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let (mut numbers, mut chain) = (Numbers::new(), Chain::new(3));
    for _ in 0..3 {
        append(&mut disk, &mut journal, &mut numbers, &chain.take(&[100]));
        evidence(&mut disk, &mut journal);
    }
    // One block each: entry, evidence, entry, evidence, entry, evidence. The second and the third are hit.
    for (group, complete) in [(1, true), (2, false)] {
        disk.bytes_mut(File::Wal)[group * 4096 + 9] ^= 1;
        let (_, recovered) = reopen(&mut disk.clone());
        assert_eq!(recovered.scan_complete, complete);
        assert_eq!(recovered.uncertain_from.is_none(), complete);
        assert_eq!(recovered.entries.len(), 3);
    }
}

/// What a replaced log held above the suffix's head is not known of this log.
#[test]
fn entries_of_a_replaced_log_do_not_raise_the_start_of_the_uncertainty() {
    let mut disk = formatted(3);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let mut chain = Chain::new(3);
    let old = chain.take(&[50, 50, 50]);
    append(&mut disk, &mut journal, &mut numbers, &old);
    // A later view keeps only the first of them; then it wrote something that is lost.
    let mut state = VsrState { suffix: vec![old[0].header().clone()], ..recovered.state };
    state.stamp = state.stamp.next_view();
    state.log_stamp = chronon_vsr::LogStamp::adopted(state.stamp);
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
    drain(&mut disk, &mut journal);
    evidence(&mut disk, &mut journal);
    append(&mut disk, &mut journal, &mut numbers, &chain.view(1).take(&[60]));
    disk.bytes_mut(File::Wal)[2 * 4096 + 5] ^= 1;
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(intact(&recovered), old);
    assert_eq!(recovered.uncertain_from, Some(Op::new(2)));
}

/// A flushed write that the device lost is beyond what can be promised; but the old bytes in its place, though
/// their checksums are right, are never taken for the group that evidence says was there.
#[test]
fn old_bytes_in_the_place_of_an_evidenced_group_never_pass_for_it() {
    let mut disk = formatted(3);
    let blocks = disk.bytes(File::Wal).len() / 4096;
    let (mut journal, _) = reopen(&mut disk);
    let (mut number, mut chain) = (WriteNumber::ZERO, Chain::new(3));
    // Groups of one block, each with one of evidence behind it: the ring turns exactly once.
    let mut first_turn = None;
    let mut last = Vec::new();
    for _ in 0..=blocks / 2 {
        last = chain.take(&[10; 4]);
        for entry in &last {
            number = number.next();
            let keep_from = Op::new(entry.op().value().saturating_sub(8));
            journal.submit(Write::Append { number, entry: entry.clone(), keep_from });
        }
        drain(&mut disk, &mut journal);
        evidence(&mut disk, &mut journal);
        first_turn.get_or_insert_with(|| disk.bytes(File::Wal)[512..1024].to_vec());
    }
    let unit = first_turn.unwrap();
    assert_ne!(disk.bytes(File::Wal)[512..1024], unit);
    disk.bytes_mut(File::Wal)[512..1024].copy_from_slice(&unit);
    let (_, recovered) = reopen(&mut disk);
    let lowest = last[0].op().value() - 16;
    assert!(recovered.entries.iter().all(|entry| lowest <= entry.header.op.value()));
    let named: Vec<_> = recovered.entries.iter().map(|entry| entry.header.op_ref()).collect();
    assert!(refs(&last).iter().all(|entry| named.contains(entry)));
    assert!(recovered.scan_complete);
}

/// Below its checkpoint even the only replica needs nothing of the log.
#[test]
fn damage_below_the_checkpoint_refuses_nobody() {
    let mut disk = formatted(1);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let entries = Chain::new(1).take(&[500, 500]);
    append(&mut disk, &mut journal, &mut numbers, &entries[..1]);
    append(&mut disk, &mut journal, &mut numbers, &entries[1..]);
    evidence(&mut disk, &mut journal);
    let entry = entries[0].op_ref();
    let checkpoint = Checkpoint { entry, ..recovered.state.checkpoint };
    let state = VsrState { checkpoint, commit_max: entry, ..recovered.state };
    disk.bytes_mut(File::Wal)[UNIT + 9] ^= 1;
    assert!(open(&mut disk.clone(), Expect::default(), Mutations::NONE).is_err());
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
    drain(&mut disk, &mut journal);
    let (_, recovered) = reopen(&mut disk);
    assert_eq!(faulty(&recovered), [entry]);
}
