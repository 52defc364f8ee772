//! What an inspection tells of directories that are whole, damaged, or no directories at all.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use chronon_storage::{
    ChunkList, CopyFault, CopyReport, DataDirectory, Disk, Expect, File, Found, Inspection, MemoryDisk,
    OpenError, Operation, ReadOnlyDirectory, UnflushedDisk, Vault, format, inspect, open, perform, wal_size,
};
use chronon_vsr::{
    Checkpoint, Checksum, Digest, Mutations, Op, OpRef, Prng, Release, Ring, Write, WriteNumber,
};
use support::*;

const COPY: usize = 16 * 1024;
const UNIT: usize = 512;

/// A directory with eight ops in four groups, all with evidence, and a checkpoint at op 2.
fn story(voters: u8) -> MemoryDisk {
    let mut disk = formatted(voters);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut numbers = Numbers::new();
    let entries = Chain::new(voters).take(&[100, 600, 0, 3000, 700, 2000, 8000, 50]);
    for pair in entries.chunks(2) {
        append(&mut disk, &mut journal, &mut numbers, pair);
    }
    evidence(&mut disk, &mut journal);

    let chunks: Vec<Vec<u8>> = (0..5_u8).map(|n| vec![n; 6000]).collect();
    let root = finish(&mut disk, &chunks.iter().collect::<Vec<_>>());

    let (second, fifth) = (entries[1].header(), entries[4].header());
    let mut state = recovered.state;
    state.checkpoint = Checkpoint {
        entry: second.op_ref(),
        end: second.end(),
        timestamp: second.timestamp,
        digest: Digest(7),
        release: Release::new(1),
        root: Some(root),
    };
    state.commit_max = fifth.op_ref();
    state.suffix = entries[4..].iter().map(|entry| entry.header().clone()).collect();
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
    drain(&mut disk, &mut journal);
    disk
}

/// Writes a checkpoint of these chunks, and returns its root.
fn finish(disk: &mut MemoryDisk, chunks: &[&Vec<u8>]) -> Checksum {
    let mut vault = Vault::open(disk, identity()).unwrap();
    let named = chunks.iter().map(|chunk| (Checksum::of_chunk(chunk), chunk.len() as u32));
    let list = ChunkList { chunks: named.collect() };
    for chunk in chunks {
        if !vault.holds(Checksum::of_chunk(chunk)) {
            vault.put(Checksum::of_chunk(chunk), chunk);
        }
    }
    let root = vault.put_list(list).unwrap();
    vault.finish(root);
    while let Some(job) = vault.next_job() {
        perform(disk, &job).unwrap();
        vault.done(job.id);
    }
    root
}

fn is_whole(inspection: &Inspection) -> bool {
    let log = inspection.log.as_ref();
    inspection.refusal.is_none()
        && inspection.copies.iter().all(|copy| matches!(copy, CopyReport::Chosen { .. }))
        && log.is_some_and(|log| log.damage.is_empty() && log.complete && log.stray.is_none())
        && inspection.chain.as_ref().is_some_and(|chain| chain.missing.is_empty() && chain.broken.is_none())
        && inspection.checkpoints.iter().all(|checkpoint| checkpoint.damage.is_empty())
}

#[test]
fn a_directory_that_is_whole_is_told_in_full_and_stays_as_it_is() {
    let mut disk = story(3);
    let before = disk.clone();
    let inspection = inspect(&mut disk);
    assert!(disk == before);
    assert!(is_whole(&inspection), "{inspection:?}");
    let superblock = inspection.superblock.unwrap();
    assert_eq!(superblock.identity, identity());
    assert_eq!(superblock.state.checkpoint.entry.op, Op::new(2));
    let log = inspection.log.unwrap();
    assert_eq!((log.entries, log.ops), (8, Some((Op::new(1), Op::new(8)))));
    assert_eq!((log.unevidenced, log.torn.len()), (0, 0));
    let chain = inspection.chain.unwrap();
    assert_eq!((chain.start, chain.head, chain.linked), (Op::new(1), Op::new(8), 8));
    let [checkpoint] = inspection.checkpoints.as_slice() else { panic!("one checkpoint") };
    assert_eq!((checkpoint.op, checkpoint.chunks), (Some(Op::new(2)), Some(5)));
}

#[test]
fn every_flipped_unit_of_the_log_is_found_at_its_place() {
    let whole = story(3);
    let used = inspect(&mut whole.clone()).log.unwrap().bytes as usize;
    assert!(6 * 4096 <= used);
    for unit in (0..used).step_by(UNIT) {
        let mut disk = whole.clone();
        disk.bytes_mut(File::Wal)[unit + 77] ^= 0x10;
        let inspection = inspect(&mut disk);
        assert!(!is_whole(&inspection), "unit at {unit}");
        let log = inspection.log.unwrap();
        let told: Vec<u64> = log.damage.iter().map(|damage| damage.first_bad).collect();
        let tail = log.unreadable_tail.is_some_and(|tail| tail <= unit as u64);
        // What lies behind the evidence of the last entries may be cut, if it is old; here it is bad.
        assert!(told == [unit as u64] || tail, "unit at {unit}: {told:?}, {log:?}");
    }
    let mut disk = whole.clone();
    let free = used + 20 * 4096 + 5;
    disk.bytes_mut(File::Wal)[free] = 1;
    let log = inspect(&mut disk).log.unwrap();
    assert_eq!(log.stray, Some(((free / UNIT * UNIT) as u64, 1)));
    assert!(log.damage.is_empty() && log.complete);
}

#[test]
fn copies_of_the_superblock_are_judged_one_by_one() {
    let mut disk = story(3);
    let bytes = disk.bytes_mut(File::Superblock);
    bytes[COPY + 99] ^= 1;
    bytes.copy_within(0..COPY, 2 * COPY);
    let inspection = inspect(&mut disk);
    let [first, second, third, fourth] = inspection.copies;
    assert!(matches!(first, CopyReport::Chosen { .. }) && first == fourth);
    assert_eq!(second, CopyReport::Damaged(CopyFault::ChecksumWrong));
    assert_eq!(third, CopyReport::Damaged(CopyFault::Misplaced { copy: 0 }));
    assert!(inspection.refusal.is_none());

    disk.bytes_mut(File::Superblock)[3 * COPY..].fill(0);
    let inspection = inspect(&mut disk);
    assert_eq!(inspection.copies[3], CopyReport::Damaged(CopyFault::Blank));
    assert!(matches!(inspection.refusal, Some(OpenError::SuperblockUnreadable { copies_valid: 1 })));
    assert!(inspection.log.is_none(), "nobody knows how to read it");

    disk.bytes_mut(File::Superblock).clear();
    let inspection = inspect(&mut disk);
    assert!(inspection.copies.iter().all(|copy| *copy == CopyReport::Damaged(CopyFault::Unreadable)));
    assert!(matches!(inspection.refusal, Some(OpenError::SuperblockLost)));
}

/// Advice to make the directory anew would take a replica's word back.
#[test]
fn a_lost_superblock_is_not_taken_for_a_format_that_was_interrupted() {
    let mut disk = story(3);
    disk.bytes_mut(File::Superblock).clear();
    let refused = open(&mut disk, Expect::default(), Mutations::NONE).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::SuperblockLost), "{refused}");
    disk.bytes_mut(File::Wal).fill(0);
    let refused = open(&mut disk, Expect::default(), Mutations::NONE).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::FormatUnfinished), "{refused}");
}

#[test]
fn what_a_refused_directory_still_holds_is_told() {
    // Alone, a replica refuses what others would repair.
    let mut disk = story(1);
    disk.bytes_mut(File::Wal)[4096 + 1200] ^= 1;
    let inspection = inspect(&mut disk);
    assert!(matches!(inspection.refusal, Some(OpenError::OnlyCopyDamaged { .. })), "{inspection:?}");
    assert_eq!(inspection.log.unwrap().entries, 8);
    // Half a file is still half a log.
    let mut disk = story(3);
    disk.bytes_mut(File::Wal).truncate(2 * 4096);
    let inspection = inspect(&mut disk);
    assert!(matches!(inspection.refusal, Some(OpenError::WrongSize { file: File::Wal, found: 8192, .. })));
    assert!(0 < inspection.log.unwrap().entries);
}

/// Whoever wrote it: memory for all of it would be more than there is, and reading it would take for ever.
#[test]
fn a_superblock_that_tells_of_a_log_without_measure_is_refused_and_not_followed() {
    for bits in [36, 40, 50, 60] {
        let mut disk = story(3);
        let huge = Ring { log: 1 << bits, ..ring() };
        let wal = wal_size(&huge).unwrap();
        for copy in disk.bytes_mut(File::Superblock).chunks_mut(COPY) {
            // docs/format.md: where the sizes stand, and the checksum of a copy.
            copy[120..128].copy_from_slice(&huge.log.to_le_bytes());
            copy[152..160].copy_from_slice(&wal.to_le_bytes());
            let checksum = Checksum::of(&copy[16..]);
            copy[..16].copy_from_slice(&checksum.to_bytes());
        }
        let inspection = inspect(&mut disk);
        let refusal = inspection.refusal.unwrap();
        assert!(
            matches!(refusal, OpenError::WrongSize { file: File::Wal, expected, .. } if expected == wal),
            "{refusal}"
        );
        assert_eq!(inspection.superblock.unwrap().wal_size, wal);
        assert!(inspection.log.is_none());
    }
}

/// A replica that was away for long may know of ops that it never had; nobody lives to count all that a number can say.
#[test]
fn ops_far_ahead_of_the_log_are_counted_and_not_looked_at_one_by_one() {
    let mut disk = story(3);
    let (mut journal, recovered) = reopen(&mut disk);
    let mut state = recovered.state;
    let head = Op::new(1 << 60);
    state.commit_max = OpRef { op: head, checksum: Checksum::of(b"far ahead") };
    state.suffix.clear();
    journal.submit(Write::Superblock { number: WriteNumber::ZERO.next(), state });
    drain(&mut disk, &mut journal);
    let chain = inspect(&mut disk).chain.unwrap();
    assert_eq!((chain.head, chain.broken, chain.missing.as_slice()), (head, None, &[chain.commit_max][..]));
    assert_eq!(chain.linked + chain.unnamed + 1, head.value() - chain.start.value() + 1);
}

#[test]
fn a_chunk_that_is_gone_or_damaged_is_named() {
    let mut disk = story(3);
    let pack = File::Pack(disk.packs().unwrap()[0]);
    disk.bytes_mut(pack)[4096 + 300] ^= 1;
    let inspection = inspect(&mut disk);
    let [damage] = inspection.checkpoints[0].damage.as_slice() else { panic!("one chunk: {inspection:?}") };
    assert_eq!((damage.file, damage.found), (Some(pack), Found::OtherBytes));
    disk.remove(pack).unwrap();
    let inspection = inspect(&mut disk);
    assert_eq!(inspection.checkpoints[0].chunks, None);
    assert!(!inspection.checkpoints[0].damage.is_empty());
}

/// A pack without anything that is needed goes, and with it chunks of checkpoints that were let go; their maps may lie in others.
#[test]
fn a_checkpoint_that_was_let_go_is_no_damage_and_rot_in_one_is() {
    let mut disk = story(3);
    let (gone, stays) = (vec![8; 6000], vec![9; 6000]);
    for chunks in [vec![&gone], vec![&gone, &stays]] {
        // Each by a process of its own, and so into a pack of its own.
        finish(&mut disk, &chunks);
    }
    let [_, first, second] = disk.packs().unwrap()[..] else { panic!("three packs") };
    assert_eq!(inspect(&mut disk).checkpoints.len(), 3);
    disk.remove(File::Pack(first)).unwrap();
    let inspection = inspect(&mut disk);
    assert!(is_whole(&inspection), "{inspection:?}");
    assert_eq!(inspection.checkpoints.len(), 1, "{inspection:?}");
    disk.bytes_mut(File::Pack(second))[300] ^= 1;
    let inspection = inspect(&mut disk);
    let [damage] = inspection.checkpoints[1].damage.as_slice() else { panic!("one chunk: {inspection:?}") };
    assert_eq!((damage.file, damage.found), (Some(File::Pack(second)), Found::OtherBytes));
}

/// Nothing is known of a record without its header, but that it was there: from the map of its checkpoint, and from its place.
#[test]
fn damaged_headers_of_records_are_told_in_the_newest_checkpoint_and_in_one_before() {
    let block = 4096_usize;
    let mut whole = story(3);
    let chunks: Vec<Vec<u8>> = (20..24_u8).map(|n| vec![n; 6000]).collect();
    let older = finish(&mut whole, &chunks.iter().collect::<Vec<_>>());
    let [newest, pack] = whole.packs().unwrap()[..] else { panic!("two packs") };
    let (newest, pack) = (File::Pack(newest), File::Pack(pack));
    let inspection = inspect(&mut whole.clone());
    assert!(is_whole(&inspection) && inspection.scarred.is_empty(), "{inspection:?}");
    assert_eq!(inspection.checkpoints.len(), 2);

    // Four chunks, a list and a map, of one block each.
    for (blocks, missing) in [(0..1, 1), (2..4, 2), (1..4, 3), (4..5, 1)] {
        let mut disk = whole.clone();
        let first = blocks.start * block;
        blocks.for_each(|record| disk.bytes_mut(pack)[record * block + 20] ^= 1);
        let inspection = inspect(&mut disk);
        let [scar] = inspection.scarred.as_slice() else { panic!("one pack: {inspection:?}") };
        assert_eq!((scar.file, scar.position, scar.places), (pack, first as u64, 1));
        let [_, checkpoint] = inspection.checkpoints.as_slice() else { panic!("two: {inspection:?}") };
        assert_eq!((checkpoint.root, checkpoint.damage.len()), (older, missing), "{inspection:?}");
        assert!(inspection.checkpoints[0].damage.is_empty());
    }
    // Its map names a checkpoint: without it, and without all the rest, the place is still told.
    for blocks in [5..6, 0..6] {
        let mut disk = whole.clone();
        let first = blocks.start * block;
        blocks.for_each(|record| disk.bytes_mut(pack)[record * block + 50] ^= 1);
        let inspection = inspect(&mut disk);
        let [scar] = inspection.scarred.as_slice() else { panic!("one pack: {inspection:?}") };
        assert_eq!((scar.file, scar.position, inspection.checkpoints.len()), (pack, first as u64, 1));
    }
    // A block that can't be read at all.
    let mut disk = UnflushedDisk::new(whole.clone()).with_hook(Box::new(move |operation| match operation {
        Operation::Read { file, position: 4096, .. } if file == pack => Err(std::io::Error::other("bad")),
        _ => Ok(()),
    }));
    let inspection = inspect(&mut disk);
    assert_eq!((inspection.scarred[0].position, inspection.checkpoints[1].damage.len()), (4096, 1));
    // And several places in several packs.
    let mut disk = whole;
    [0, 1, 3].into_iter().for_each(|record| disk.bytes_mut(pack)[record * block + 70] ^= 1);
    disk.bytes_mut(newest)[20] ^= 1;
    let inspection = inspect(&mut disk);
    let told = inspection.scarred.iter().map(|scar| (scar.file, scar.position, scar.places));
    assert_eq!(told.collect::<Vec<_>>(), [(newest, 0, 1), (pack, 0, 2)]);
    assert_eq!(inspection.checkpoints.iter().map(|of| of.damage.len()).collect::<Vec<_>>(), [1, 3]);
}

/// What nothing needs is given up within its pack where room is short, and a crash leaves parts of what it interrupted.
#[test]
fn room_that_was_given_back_and_writes_that_were_interrupted_are_no_damage() {
    let mut disk = story(3);
    let chunks: Vec<Vec<u8>> = (20..24_u8).map(|n| vec![n; 6000]).collect();
    finish(&mut disk, &chunks.iter().collect::<Vec<_>>());
    let pack = File::Pack(disk.packs().unwrap()[1]);
    disk.bytes_mut(pack)[4096..3 * 4096].fill(0);
    let inspection = inspect(&mut disk);
    assert!(is_whole(&inspection) && inspection.scarred.is_empty(), "{inspection:?}");
    assert_eq!(inspection.checkpoints.len(), 1, "{inspection:?}");

    // Of a record of three blocks any sectors may be there.
    let mut prng = Prng::new(4);
    let noise: Vec<u8> = (0..9000).map(|_| prng.next_u64() as u8).collect();
    let mut whole = story(3);
    finish(&mut whole, &[&noise]);
    let record = whole.bytes(pack)[..3 * 4096].to_vec();
    for seed in 0..200 {
        let mut disk = story(3);
        let mut torn = record[..4096 * (1 + prng.below(3) as usize)].to_vec();
        torn.chunks_mut(UNIT).filter(|_| prng.chance(1, 2)).for_each(|sector| sector.fill(0));
        disk.write(pack, 0, &torn).unwrap();
        let inspection = inspect(&mut disk);
        assert!(is_whole(&inspection) && inspection.scarred.is_empty(), "{seed}: {inspection:?}");
    }
}

/// Flips, zeros, noise, cuts and swaps with an older copy, anywhere, many at once.
#[test]
fn no_bytes_make_an_inspection_panic_and_it_refuses_what_opening_refuses() {
    let mut prng = Prng::new(9);
    for seed in 0..600 {
        let voters = if prng.chance(1, 4) { 1 } else { 3 };
        let mut disk = story(voters);
        let files = [File::Superblock, File::Wal, File::Pack(disk.packs().unwrap()[0])];
        for _ in 0..=prng.below(4) {
            damage(&mut disk, files[prng.below(3) as usize], voters, &mut prng);
        }
        let before = disk.clone();
        let inspection = inspect(&mut disk);
        assert!(disk == before, "seed {seed}");
        let opened = open(&mut disk, Expect::default(), Mutations::NONE);
        match (&inspection.refusal, &opened) {
            (None, Ok((_, recovered))) => {
                let log = inspection.log.unwrap();
                assert_eq!(log.entries, recovered.entries.len(), "seed {seed}");
                assert_eq!(log.faulty, faulty(recovered), "seed {seed}");
                assert_eq!(log.uncertain_from, recovered.uncertain_from, "seed {seed}");
            }
            (Some(told), Err(refused)) => assert_eq!(told.to_string(), refused.to_string(), "seed {seed}"),
            (told, opened) => panic!("seed {seed}: {told:?}, {:?}", opened.as_ref().map(|_| ())),
        }
    }
}

fn damage(disk: &mut MemoryDisk, file: File, voters: u8, prng: &mut Prng) {
    let older = match prng.below(8) {
        0 => formatted(voters).bytes(file).to_vec(),
        _ => Vec::new(),
    };
    let bytes = disk.bytes_mut(file);
    if bytes.is_empty() {
        return;
    }
    // Most of the WAL is empty: damage gathers at its beginning.
    let within = if prng.chance(3, 4) { bytes.len().min(80_000) } else { bytes.len() };
    let start = prng.below(within as u64) as usize;
    let end = bytes.len().min(start + 1 + prng.below(9_000) as usize);
    match prng.below(6) {
        0 | 1 => bytes[start] ^= 1 << prng.below(8),
        2 => bytes[start..end].fill(0),
        3 => bytes[start..end].iter_mut().for_each(|byte| *byte = prng.next_u64() as u8),
        4 if prng.chance(1, 4) => bytes.truncate(start),
        4 => bytes.copy_within(start..end, 0),
        _ if !older.is_empty() => *bytes = older,
        _ => bytes[start] = 0xff,
    }
}

/// In a real directory: a start and a look agree on what is no file.
#[test]
fn a_pack_that_is_no_file_is_told_and_passed_over_by_a_start_as_well() {
    let path = std::env::temp_dir().join(format!("chronon-storage-{}-no-file", std::process::id()));
    let directory = DataDirectory::create(&path).unwrap();
    let mut disk = directory.disk().unwrap();
    format(&mut disk, identity(), state(3), ring()).unwrap();
    std::fs::create_dir(path.join("pack-0000000009")).unwrap();
    std::os::unix::fs::symlink(path.join("nowhere"), path.join("pack-0000000011")).unwrap();
    std::fs::write(path.join("pack-18446744073709551615"), "not ours").unwrap();
    let mut started = Vault::open(&mut disk, identity()).unwrap();
    let passed_over: Vec<File> = started.unreadable().map(|(file, _)| file).collect();
    assert_eq!(passed_over, [File::Pack(9), File::Pack(11)]);
    started.put(Checksum::of_chunk(b"new"), b"new");
    started.sync();
    while let Some(job) = started.next_job() {
        perform(&mut disk, &job).unwrap();
        started.done(job.id);
    }
    assert!(path.join("pack-0000000012").is_file());
    drop((disk, directory));

    let directory = ReadOnlyDirectory::open(&path).unwrap();
    let inspection = inspect(&mut directory.disk());
    assert!(inspection.refusal.is_none(), "{inspection:?}");
    let told: Vec<File> = inspection.unreadable.iter().map(|(file, _)| *file).collect();
    assert_eq!(told, passed_over);
    std::fs::remove_dir_all(&path).unwrap();
}
