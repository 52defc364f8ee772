//! Checkpoints in the vault: what was reported durable is there whatever happens, and nothing half-written counts.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use std::collections::BTreeMap;
use std::io;

use chronon_storage::{
    ChunkList, DataDirectory, Disk, File, Found, Job, MemoryDisk, Operation, UnflushedDisk, Vault, format,
    perform, perform_step,
};
use chronon_vsr::{CHUNK_SIZE_MAX, Checksum, Prng};
use support::*;

/// A state: chunks, in order.
type State = Vec<Vec<u8>>;

fn state_of(seed: u64, chunks: usize, size: usize) -> State {
    let mut prng = Prng::new(seed);
    // Half noise, half zeros: both encodings are used.
    let mut chunk = |_| {
        let noisy = prng.chance(1, 2);
        let mut bytes: Vec<u8> = (0..size).map(|_| if noisy { prng.next_u64() as u8 } else { 0 }).collect();
        bytes.push(prng.next_u64() as u8);
        bytes.extend(prng.next_u64().to_le_bytes());
        bytes
    };
    (0..chunks).map(&mut chunk).collect()
}

/// The state with one chunk changed and one added.
fn changed(state: &State, seed: u64) -> State {
    let mut state = state.clone();
    let mut prng = Prng::new(seed);
    let at = prng.below(state.len() as u64) as usize;
    state[at] = (0..state[at].len()).map(|_| prng.next_u64() as u8).collect();
    state.push(prng.next_u64().to_le_bytes().to_vec());
    state
}

fn list_of(state: &State) -> ChunkList {
    let chunk = |bytes: &Vec<u8>| (Checksum::of_chunk(bytes), bytes.len() as u32);
    ChunkList { chunks: state.iter().map(chunk).collect() }
}

fn root_of(state: &State) -> Checksum {
    Checksum::of_chunk(&list_of(state).encode().unwrap())
}

fn vault(disk: &mut dyn Disk) -> Vault {
    Vault::open(disk, identity()).unwrap()
}

/// Carries out jobs until none is left. False if one failed.
fn drive(disk: &mut dyn Disk, vault: &mut Vault) -> bool {
    let mut well = true;
    while let Some(job) = vault.next_job() {
        match perform(disk, &job) {
            Ok(()) => drop(vault.done(job.id)),
            Err(_) => {
                vault.failed(job.id);
                well = false;
            }
        }
    }
    well
}

/// Writes a checkpoint as a driver does; says whether every job went well.
fn write(disk: &mut dyn Disk, vault: &mut Vault, state: &State) -> bool {
    let mut well = true;
    for chunk in state {
        vault.put(Checksum::of_chunk(chunk), chunk);
        well &= drive(disk, vault);
    }
    let root = vault.put_list(list_of(state)).unwrap();
    vault.finish(root);
    well & drive(disk, vault)
}

fn written(disk: &mut dyn Disk, vault: &mut Vault, state: &State) -> Checksum {
    assert!(write(disk, vault, state));
    let root = root_of(state);
    assert!(vault.idle() && vault.is_complete(root));
    root
}

/// Writes a checkpoint by a process that knows nothing of those before.
fn write_anew(disk: &mut MemoryDisk, state: &State) {
    let mut vault = vault(disk);
    written(disk, &mut vault, state);
}

/// Every chunk reads as it was.
fn assert_whole(disk: &mut dyn Disk, vault: &mut Vault, state: &State, why: &str) {
    let list = vault.list(disk, root_of(state)).unwrap_or_else(|damage| panic!("{why}: {damage}"));
    let read: Result<State, _> = list.chunks.iter().map(|(id, _)| vault.read(disk, *id)).collect();
    assert_eq!(read.unwrap_or_else(|damage| panic!("{why}: {damage}")), *state, "{why}");
    assert!(vault.is_complete(root_of(state)), "{why}");
}

fn only_pack(disk: &mut MemoryDisk) -> File {
    let packs = disk.packs().unwrap();
    assert_eq!(packs.len(), 1);
    File::Pack(packs[0])
}

#[test]
fn checkpoints_come_back_chunk_by_chunk() {
    let mut disk = MemoryDisk::new();
    let mut kept = vault(&mut disk);
    let states = [vec![], vec![vec![]], state_of(1, 20, 5000), state_of(2, 9, CHUNK_SIZE_MAX - 9)];
    for state in &states {
        written(&mut disk, &mut kept, state);
        assert_whole(&mut disk, &mut kept, state, "written");
    }
    let mut again = vault(&mut disk);
    for state in &states {
        assert_whole(&mut disk, &mut again, state, "opened again");
        assert_eq!(again.missing(&mut disk, root_of(state), 64), []);
    }
    let (root, absent) = (Checksum::of_chunk(b"?"), again.missing(&mut disk, Checksum::of_chunk(b"?"), 64));
    assert_eq!((absent.len(), absent[0].id, absent[0].found), (1, root, Found::Nothing));
}

/// Chunks shared with the checkpoint before are there once, and writing costs what has changed.
#[test]
fn a_checkpoint_writes_only_what_changed() {
    let mut disk = MemoryDisk::new();
    let mut vault = vault(&mut disk);
    let first = state_of(1, 100, 20_000);
    written(&mut disk, &mut vault, &first);
    let before = vault.usage().bytes;
    let second = changed(&first, 7);
    written(&mut disk, &mut vault, &second);
    let more = vault.usage().bytes - before;
    // One chunk of 20 kB, a small one, the list, the map.
    assert!(more < 50_000 && 20 * more < before, "{more} after {before}");
    assert_whole(&mut disk, &mut vault, &first, "first");
    assert_whole(&mut disk, &mut vault, &second, "second");
}

#[test]
fn retained_chunks_need_no_bytes_and_rotten_ones_say_so() {
    let mut disk = MemoryDisk::new();
    let mut vault = vault(&mut disk);
    let state = state_of(1, 3, 9000);
    written(&mut disk, &mut vault, &state);
    let id = |chunk: &Vec<u8>| Checksum::of_chunk(chunk);
    assert!(state.iter().all(|chunk| vault.retain(id(chunk))));
    assert!(!vault.retain(Checksum::of_chunk(b"never put")));
    let pack = only_pack(&mut disk);
    disk.bytes_mut(pack)[200] ^= 1;
    let damage = vault.scrub(&mut disk, u64::MAX).damage;
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].id, damage[0].file), (id(&state[0]), Some(pack)));
    assert!(!vault.retain(id(&state[0])) && vault.retain(id(&state[1])));
    vault.put(id(&state[0]), &state[0]);
    vault.sync();
    assert!(drive(&mut disk, &mut vault));
    assert_whole(&mut disk, &mut vault, &state, "put again");
}

/// 25: a crash at every step of writing a checkpoint, with every kind of loss. The checkpoint before is whole, the new
/// one counts only if it was reported, and it can be written after all.
#[test]
fn a_crash_at_any_step_of_writing_a_checkpoint_costs_only_that_checkpoint() {
    let first = state_of(1, 30, 40_000);
    let mut second = changed(&changed(&first, 2), 3);
    second.extend(state_of(4, 220, 40_000));
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &first);
    let (mut crashes, mut held_by_cache) = (0, 0);
    for step in 0.. {
        for mode in 0..4 {
            let mut unflushed = UnflushedDisk::new(disk.clone());
            let mut writing = vault(&mut unflushed);
            // Evidence of the superblock: the first checkpoint is read.
            assert_whole(&mut unflushed, &mut writing, &first, "before the crash");
            let finished = write_until(&mut unflushed, &mut writing, &second, step);
            if finished {
                assert!(4 < step, "{step}");
                assert_eq!(crashes, 4 * step);
                assert!(0 < held_by_cache, "a killed process leaves pages that read well");
                return;
            }
            crashes += 1;
            let mut prng = Prng::new(step as u64);
            let mut after = match mode {
                0 => unflushed,
                1 => UnflushedDisk::new(unflushed.power_cut(|_, _| false).unwrap()),
                2 => UnflushedDisk::new(unflushed.power_cut(|_, _| prng.chance(1, 2)).unwrap()),
                _ => UnflushedDisk::new(unflushed.power_cut(|_, _| prng.chance(15, 16)).unwrap()),
            };
            let why = format!("step {step}, mode {mode}");
            let mut opened = vault(&mut after);
            assert_whole(&mut after, &mut opened, &first, &why);
            // A killed process leaves pages that read well; what is told as held now survives a power cut.
            let held = opened.missing(&mut after, root_of(&second), usize::MAX).is_empty();
            if held {
                held_by_cache += usize::from(mode == 0);
                let mut flushed = after.power_cut(|_, _| false).unwrap();
                assert_whole(&mut flushed.clone(), &mut vault(&mut flushed), &second, &why);
                continue;
            }
            written(&mut after, &mut opened, &second);
            let mut flushed = after.power_cut(|_, _| false).unwrap();
            let mut opened = vault(&mut flushed);
            assert_whole(&mut flushed, &mut opened, &second, &why);
            assert_whole(&mut flushed, &mut opened, &first, &why);
        }
    }
}

/// Carries out so many steps of writing a checkpoint; says whether it is durable.
fn write_until(disk: &mut dyn Disk, vault: &mut Vault, state: &State, steps: usize) -> bool {
    let mut left = steps;
    let mut work = |vault: &mut Vault| -> bool {
        while let Some(job) = vault.next_job() {
            for step in &job.steps {
                if left == 0 {
                    return false;
                }
                left -= 1;
                perform_step(disk, step).unwrap();
            }
            vault.done(job.id);
        }
        true
    };
    for chunk in state {
        vault.put(Checksum::of_chunk(chunk), chunk);
        if !work(vault) {
            return false;
        }
    }
    let root = vault.put_list(list_of(state)).unwrap();
    vault.finish(root);
    work(vault) && vault.is_complete(root)
}

/// 20b: the disk is full at each write, flush and reservation of a checkpoint in turn. Nothing half-written counts, the
/// checkpoint before stays, and once there is room the checkpoint is written into a new file.
#[test]
fn a_full_disk_at_any_write_site_costs_the_file_and_never_counts_a_half_written_checkpoint() {
    let first = state_of(1, 30, 40_000);
    let mut second = changed(&first, 3);
    second.extend(state_of(4, 220, 40_000));
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &first);
    for (sites, fail_at) in (1..).enumerate() {
        let mut count = 0;
        let hook = move |operation| match operation {
            Operation::Write { file: File::Pack(_), .. }
            | Operation::Flush { file: File::Pack(_) }
            | Operation::Reserve { .. } => {
                count += 1;
                if count == fail_at { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            }
            _ => Ok(()),
        };
        let mut unflushed = UnflushedDisk::new(disk.clone());
        let mut vault = vault(&mut unflushed);
        assert_whole(&mut unflushed, &mut vault, &first, "before");
        let mut full = unflushed.with_hook(Box::new(hook));
        vault.reserve(vault.stored_size(root_of(&first)));
        let well = drive(&mut full, &mut vault) & write(&mut full, &mut vault, &second);
        let why = format!("site {fail_at}");
        if well {
            assert!(4 < sites, "{sites}");
            return;
        }
        // The last write may have gone well again, but what the failed job held is not there.
        if !vault.is_complete(root_of(&second)) {
            let mut opened = Vault::open(&mut full, identity()).unwrap();
            assert!(!opened.missing(&mut full, root_of(&second), 1).is_empty(), "{why}");
            assert_whole(&mut full, &mut opened, &first, &why);
        }
        assert!(write(&mut full, &mut vault, &second), "{why}");
        assert!(vault.is_complete(root_of(&second)), "{why}");
        let mut after = full.power_cut(|_, _| false).unwrap();
        let mut opened = Vault::open(&mut after, identity()).unwrap();
        assert_whole(&mut after, &mut opened, &second, &why);
        assert_whole(&mut after, &mut opened, &first, &why);
    }
}

/// A flush that failed may have dropped its pages while they still read well: nothing of that file may be counted, by
/// this process or by the next.
#[test]
fn what_a_failed_flush_left_behind_is_removed() {
    let mut disk = UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(|operation| match operation {
        Operation::Flush { file: File::Pack(1) } => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }));
    let mut vault = vault(&mut disk);
    let state = state_of(1, 3, 100);
    assert!(!write(&mut disk, &mut vault, &state));
    assert!(!vault.is_complete(root_of(&state)) && vault.idle());
    assert_eq!(disk.packs().unwrap(), []);
    written(&mut disk, &mut vault, &state);
    assert_eq!(disk.packs().unwrap(), [2]);
}

/// What was flushed before the disk ran full stays: a transfer goes on from there.
#[test]
fn a_full_disk_does_not_cost_what_was_flushed_before() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now = std::sync::Arc::clone(&full);
    let mut disk =
        UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(move |operation| match operation {
            Operation::Write { .. } if now.load(std::sync::atomic::Ordering::Relaxed) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }));
    let mut vault = vault(&mut disk);
    let state = state_of(1, 10, 30_000);
    let root = vault.put_list(list_of(&state)).unwrap();
    let (early, late) = state.split_at(6);
    early.iter().for_each(|chunk| vault.put(Checksum::of_chunk(chunk), chunk));
    vault.sync();
    assert!(drive(&mut disk, &mut vault));
    full.store(true, std::sync::atomic::Ordering::Relaxed);
    late.iter().for_each(|chunk| vault.put(Checksum::of_chunk(chunk), chunk));
    vault.sync();
    assert!(!drive(&mut disk, &mut vault));
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    let missing: Vec<_> = vault.missing(&mut disk, root, 64).iter().map(|damage| damage.id).collect();
    assert_eq!(missing, late.iter().map(|chunk| Checksum::of_chunk(chunk)).collect::<Vec<_>>());
    written(&mut disk, &mut vault, &state);
    assert_eq!(disk.packs().unwrap(), [1, 2]);
}

/// A transfer that was cut off goes on with what it has.
#[test]
fn a_half_finished_transfer_goes_on_after_a_crash() {
    let state = state_of(1, 40, 20_000);
    for stored in 0..=state.len() {
        let mut disk = UnflushedDisk::new(MemoryDisk::new());
        let mut receiving = vault(&mut disk);
        let root = receiving.put_list(list_of(&state)).unwrap();
        for chunk in &state[..stored] {
            receiving.put(Checksum::of_chunk(chunk), chunk);
        }
        receiving.sync();
        assert!(drive(&mut disk, &mut receiving));
        // One more is written and not flushed.
        if let Some(chunk) = state.get(stored) {
            receiving.put(Checksum::of_chunk(chunk), chunk);
        }
        receiving.sync();
        if let Some(job) = receiving.next_job() {
            perform_step(&mut disk, &job.steps[0]).unwrap();
        }
        let mut disk = disk.power_cut(|_, _| false).unwrap();
        let mut receiving = vault(&mut disk);
        let missing = receiving.missing(&mut disk, root, usize::MAX);
        let expected = state[stored..].iter().map(|chunk| Checksum::of_chunk(chunk));
        assert_eq!(missing.iter().map(|damage| damage.id).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        for chunk in &state[stored..] {
            receiving.put(Checksum::of_chunk(chunk), chunk);
        }
        receiving.finish(root);
        assert!(drive(&mut disk, &mut receiving));
        assert_whole(&mut disk, &mut receiving, &state, &format!("{stored} stored"));
    }
}

/// A flipped byte anywhere in any pack costs at most the chunk it hits, which is named with its file, both by a scrub
/// and by a start.
#[test]
fn every_flipped_byte_is_found_and_its_chunk_and_file_are_named() {
    let state = state_of(3, 6, 6000);
    let mut disk = MemoryDisk::new();
    let mut scrubbing = vault(&mut disk);
    let root = written(&mut disk, &mut scrubbing, &state);
    let pack = only_pack(&mut disk);
    let (size, mut hit) = (disk.bytes(pack).len(), BTreeMap::<Checksum, usize>::new());
    for byte in (0..size).filter(|byte| byte % 4096 < 112 || byte % 37 == 0) {
        let mut damaged = disk.clone();
        damaged.bytes_mut(pack)[byte] ^= 1 << (byte % 8);
        let mut running = vault(&mut disk);
        let scrubbed = running.scrub(&mut damaged, u64::MAX);
        assert!(scrubbed.round);
        let by_scrub: Vec<_> = scrubbed.damage.iter().map(|damage| (damage.id, damage.file)).collect();
        let mut opened = vault(&mut damaged);
        let by_start: Vec<_> =
            opened.missing(&mut damaged, root, 64).iter().map(|damage| (damage.id, damage.file)).collect();
        // The last record is the map, which nothing but explanations needs.
        let in_map = size - 4096 <= byte;
        assert_eq!(by_scrub.len(), usize::from(!in_map), "byte {byte}");
        assert_eq!(by_start.len(), by_scrub.len(), "byte {byte}");
        if let ([(id, file)], [(scrubbed, scrubbed_file)]) = (by_start.as_slice(), by_scrub.as_slice()) {
            assert_eq!((id, *scrubbed_file), (scrubbed, Some(pack)), "byte {byte}");
            // Of a list that is gone nobody knows the map.
            assert!(*file == Some(pack) || *id == root, "byte {byte}");
            *hit.entry(*id).or_default() += 1;
        }
    }
    assert_eq!(hit.len(), state.len() + 1);
}

/// A deleted pack is told by name, chunk by chunk; so is one that was cut short.
#[test]
fn a_deleted_or_truncated_pack_is_named_with_the_chunks_that_it_held() {
    let first = state_of(1, 10, 9000);
    let second = changed(&first, 2);
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &first);
    write_anew(&mut disk, &second);
    assert_eq!(disk.packs().unwrap(), [1, 2]);

    let mut damaged = disk.clone();
    damaged.remove(File::Pack(1)).unwrap();
    let missing = vault(&mut damaged).missing(&mut damaged, root_of(&second), 64);
    // The process that wrote the second had read nothing of the first, and so wrote its chunks again.
    assert_eq!(missing, []);
    let missing = vault(&mut damaged).missing(&mut damaged, root_of(&first), 64);
    assert_eq!((missing.len(), missing[0].id, missing[0].file), (1, root_of(&first), None));

    let mut disk = MemoryDisk::new();
    let mut writing = vault(&mut disk);
    written(&mut disk, &mut writing, &first);
    drop(writing);
    let mut writing = vault(&mut disk);
    assert_whole(&mut disk, &mut writing, &first, "read at start");
    written(&mut disk, &mut writing, &second);
    let mut damaged = disk.clone();
    damaged.remove(File::Pack(1)).unwrap();
    let missing = vault(&mut damaged).missing(&mut damaged, root_of(&second), 64);
    assert_eq!(missing.len(), 9);
    assert!(
        missing.iter().all(|damage| damage.file == Some(File::Pack(1)) && damage.found == Found::FileGone)
    );
    assert!(
        missing[0].to_string().ends_with("in pack-0000000001: it is gone with its file"),
        "{}",
        missing[0]
    );

    for cut in [4096, 5000, 8192, 20_000] {
        let mut damaged = disk.clone();
        damaged.bytes_mut(File::Pack(1)).truncate(cut);
        let missing = vault(&mut damaged).missing(&mut damaged, root_of(&second), 64);
        assert!(!missing.is_empty());
        assert!(missing.iter().all(|damage| damage.file == Some(File::Pack(1))), "{missing:?}");
    }
}

/// Two generations are kept; what only older ones need goes, mostly dead packs are rewritten, and files stay few
/// however often the state changes.
#[test]
fn old_generations_go_and_their_room_is_used_again() {
    let mut disk = MemoryDisk::new();
    let mut vault = vault(&mut disk);
    let mut state = state_of(1, 60, 60_000);
    let mut before = None;
    let mut packs_max = 0;
    for round in 0..64 {
        for part in 0..5 {
            state = changed(&state, 1000 + round * 10 + part);
            state.truncate(60);
        }
        let root = written(&mut disk, &mut vault, &state);
        // One that nobody has named yet, as when the superblock is still being written.
        let unnamed = changed(&state, 5000 + round);
        written(&mut disk, &mut vault, &unnamed);
        let roots: Vec<Checksum> = [root].into_iter().chain(before.as_ref().map(root_of)).collect();
        vault.keep(&mut disk, &roots).unwrap();
        assert!(drive(&mut disk, &mut vault));
        while vault.compact(&mut disk, 500_000) {
            assert!(drive(&mut disk, &mut vault));
        }
        packs_max = packs_max.max(disk.packs().unwrap().len());
        assert_eq!(disk.packs().unwrap().len(), vault.usage().packs);
        if round % 8 == 7 {
            // A restart writes on in a new pack.
            vault = Vault::open(&mut disk, identity()).unwrap();
        }
        assert_whole(&mut disk, &mut vault, &state, "newest");
        if let Some(before) = &before {
            assert_whole(&mut disk, &mut vault, before, "the one before");
        }
        assert_whole(&mut disk, &mut vault, &unnamed, "the one not named yet");
        vault.abandon();
        before = Some(state.clone());
    }
    let usage = vault.usage();
    assert!(packs_max <= 8, "{packs_max} packs");
    assert!(usage.live < 8_000_000, "{usage:?}");
    assert!(usage.bytes < 80_000_000, "{usage:?}");
    let mut opened = Vault::open(&mut disk, identity()).unwrap();
    assert_whole(&mut disk, &mut opened, &state, "opened");
}

/// Moving live chunks out of a pack survives a crash at every step, whatever is lost.
#[test]
fn a_crash_at_any_step_of_compaction_loses_nothing() {
    let first = state_of(1, 20, 9000);
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &first);
    let last: State = first[..6].to_vec();
    let mut setup = vault(&mut disk);
    assert_whole(&mut disk, &mut setup, &first, "read");
    written(&mut disk, &mut setup, &last);
    assert_eq!(disk.packs().unwrap().len(), 2);
    for steps in 0.. {
        let mut over = false;
        for lost in [0, 50, 94, 100] {
            let mut unflushed = UnflushedDisk::new(disk.clone());
            let mut moving = vault(&mut unflushed);
            moving.keep(&mut unflushed, &[root_of(&last)]).unwrap();
            over = compact_until(&mut unflushed, &mut moving, steps);
            let mut prng = Prng::new(steps as u64);
            let mut after = unflushed.power_cut(|_, _| !prng.chance(lost, 100)).unwrap();
            let mut opened = vault(&mut after);
            assert_whole(&mut after, &mut opened, &last, &format!("step {steps}, {lost} % lost"));
        }
        if over {
            assert!(3 <= steps, "{steps}");
            return;
        }
    }
}

/// Carries out so many steps of compaction; says whether it came to its end.
fn compact_until(disk: &mut dyn Disk, vault: &mut Vault, steps: usize) -> bool {
    let mut left = steps;
    loop {
        while let Some(Job { id, steps }) = vault.next_job() {
            for step in &steps {
                if left == 0 {
                    return false;
                }
                left -= 1;
                perform_step(disk, step).unwrap();
            }
            vault.done(id);
        }
        if !vault.compact(disk, 10_000) {
            return true;
        }
    }
}

#[test]
fn nothing_goes_while_the_list_of_a_needed_checkpoint_is_damaged() {
    let (first, second) = (state_of(1, 4, 5000), state_of(2, 4, 5000));
    let mut disk = MemoryDisk::new();
    let mut vault = vault(&mut disk);
    written(&mut disk, &mut vault, &first);
    written(&mut disk, &mut vault, &second);
    let absent = Checksum::of_chunk(b"a list nobody has");
    assert_eq!(vault.keep(&mut disk, &[root_of(&second), absent]).unwrap_err().id, absent);
    assert!(!vault.compact(&mut disk, usize::MAX));
    assert_whole(&mut disk, &mut vault, &first, "kept");
}

/// A scrub goes round in small steps and tells each damage once.
#[test]
fn a_scrub_goes_round_and_tells_each_damage_once() {
    let state = state_of(1, 12, 9000);
    let mut disk = MemoryDisk::new();
    let mut vault = vault(&mut disk);
    let root = written(&mut disk, &mut vault, &state);
    let pack = only_pack(&mut disk);
    disk.bytes_mut(pack)[30_000] ^= 4;
    let (mut steps, mut told) = (0, Vec::new());
    for _ in 0..2 {
        loop {
            let scrubbed = vault.scrub(&mut disk, 10_000);
            steps += 1;
            told.extend(scrubbed.damage);
            if scrubbed.round {
                break;
            }
        }
    }
    assert!(10 < steps, "{steps}");
    assert_eq!(told.len(), 1);
    assert!(!vault.is_complete(root));
    assert_eq!(vault.missing(&mut disk, root, 64)[0].id, told[0].id);
}

/// The vault on a real directory: names survive, `packs` lists them, space is set aside and given back.
#[test]
fn a_real_directory_keeps_checkpoints() {
    let path = std::env::temp_dir().join(format!("chronon-storage-{}-vault", std::process::id()));
    let directory = DataDirectory::create(&path).unwrap();
    let mut disk = directory.disk().unwrap();
    format(&mut disk, identity(), state(3), ring()).unwrap();
    let states = [state_of(1, 20, 50_000), state_of(2, 20, 50_000)];
    let mut vault = vault(&mut disk);
    assert!(1 << 20 < disk.available().unwrap());
    vault.reserve(8 << 20);
    assert!(drive(&mut disk, &mut vault));
    assert_eq!(disk.packs().unwrap(), [1]);
    assert_eq!(disk.size(File::Pack(1)).unwrap(), 0);
    written(&mut disk, &mut vault, &states[0]);
    drop((disk, directory));

    let directory = DataDirectory::open(&path).unwrap();
    let mut disk = directory.disk().unwrap();
    let mut vault = Vault::open(&mut disk, identity()).unwrap();
    assert_whole(&mut disk, &mut vault, &states[0], "opened again");
    let root = written(&mut disk, &mut vault, &states[1]);
    vault.keep(&mut disk, &[root]).unwrap();
    assert!(drive(&mut disk, &mut vault));
    assert_eq!(disk.packs().unwrap(), [2]);
    assert!(!path.join("pack-0000000001").exists());
    let mut block = vec![1; 4096];
    disk.read(File::Pack(2), 4096, &mut block).unwrap();
    assert_ne!(block, [0; 4096]);
    let size = disk.size(File::Pack(2)).unwrap();
    disk.punch(File::Pack(2), 4096, 8192).unwrap();
    disk.read(File::Pack(2), 4096, &mut block).unwrap();
    assert_eq!((block, disk.size(File::Pack(2)).unwrap()), (vec![0; 4096], size));
    disk.truncate(File::Pack(2), 4096).unwrap();
    assert_eq!(disk.size(File::Pack(2)).unwrap(), 4096);
    assert_eq!(disk.size(File::Pack(9)).unwrap(), 0);
    std::fs::remove_dir_all(&path).unwrap();
}

/// What may go lies between what stays. Its room is given back without taking any, and nothing that stays is touched:
/// neither in what is closed, nor in the file that is written to.
#[test]
fn room_of_what_may_go_is_given_back_within_files_that_stay() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now = std::sync::Arc::clone(&full);
    let mut disk =
        UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(move |operation| match operation {
            Operation::Write { .. } | Operation::Reserve { .. }
                if now.load(std::sync::atomic::Ordering::Relaxed) =>
            {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }));
    let mut vault = vault(&mut disk);
    let first = state_of(1, 40, 20_000);
    let second: State = first.iter().skip(1).step_by(2).cloned().chain(state_of(2, 5, 20_000)).collect();
    written(&mut disk, &mut vault, &first);
    vault.punch();
    assert!(vault.idle(), "before anybody said what is needed nothing goes");
    let root = written(&mut disk, &mut vault, &second);
    vault.abandon();
    vault.keep(&mut disk, &[root]).unwrap();
    let before = vault.usage();
    assert!(before.live < before.bytes * 3 / 4, "{before:?}");

    full.store(true, std::sync::atomic::Ordering::Relaxed);
    vault.punch();
    assert!(drive(&mut disk, &mut vault));
    let after = vault.usage();
    assert_eq!((after.bytes, after.live), (before.live, before.live));
    vault.punch();
    assert!(vault.idle(), "it is given back once");
    assert_whole(&mut disk, &mut vault, &second, "punched");
    full.store(false, std::sync::atomic::Ordering::Relaxed);

    // What the first state had is not taken for being there.
    assert!(!vault.retain(Checksum::of_chunk(&first[0])));
    written(&mut disk, &mut vault, &first);
    let mut flushed = disk.power_cut(|_, _| true).unwrap();
    let mut opened = Vault::open(&mut flushed, identity()).unwrap();
    assert_whole(&mut flushed, &mut opened, &first, "opened");
    assert_whole(&mut flushed, &mut opened, &second, "opened");
}

/// It comes back with whole files: what is needed of them moves, though it is most of what they hold.
#[test]
fn where_no_holes_can_be_made_room_comes_back_with_whole_files() {
    let mut disk = UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(|operation| match operation {
        Operation::Punch { .. } => Err(io::ErrorKind::Unsupported.into()),
        _ => Ok(()),
    }));
    let mut vault = vault(&mut disk);
    let first = state_of(1, 40, 20_000);
    let second: State = first.iter().skip(10).cloned().collect();
    written(&mut disk, &mut vault, &first);
    let root = written(&mut disk, &mut vault, &second);
    vault.abandon();
    vault.keep(&mut disk, &[root]).unwrap();
    assert!(!vault.compact(&mut disk, 500_000), "for so little nothing moves by itself");
    let before = vault.usage();
    assert!(before.live < before.bytes && before.bytes < 2 * before.live, "{before:?}");

    vault.punch();
    assert!(!drive(&mut disk, &mut vault));
    assert!(vault.lacks_holes());
    vault.punch();
    while vault.compact(&mut disk, 100_000) {
        assert!(drive(&mut disk, &mut vault));
    }
    assert!(drive(&mut disk, &mut vault));
    let after = vault.usage();
    assert_eq!((after.bytes, after.live), (after.live, before.live));
    assert_whole(&mut disk, &mut vault, &second, "moved");
    assert_eq!(disk.packs().unwrap().len(), 1);
    let mut flushed = disk.power_cut(|_, _| false).unwrap();
    let mut opened = Vault::open(&mut flushed, identity()).unwrap();
    assert_whole(&mut flushed, &mut opened, &second, "opened");
}

#[test]
fn a_power_cut_while_room_is_given_back_loses_nothing() {
    let first = state_of(1, 30, 9000);
    let last: State = first[10..20].to_vec();
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &first);
    let mut setup = vault(&mut disk);
    assert_whole(&mut disk, &mut setup, &first, "read");
    written(&mut disk, &mut setup, &last);
    for seed in 0..64 {
        let mut unflushed = UnflushedDisk::new(disk.clone());
        let mut punching = vault(&mut unflushed);
        punching.keep(&mut unflushed, &[root_of(&last)]).unwrap();
        punching.punch();
        assert!(drive(&mut unflushed, &mut punching));
        let mut prng = Prng::new(seed);
        let mut after = unflushed.power_cut(|_, _| prng.chance(1, 2)).unwrap();
        let mut opened = vault(&mut after);
        assert_whole(&mut after, &mut opened, &last, &format!("seed {seed}"));
    }
}

/// It may be a mount that is missing, or a device that answers again later: nobody writes to it or removes it.
#[test]
fn a_file_that_cant_be_opened_counts_as_missing_and_is_left_alone() {
    let state = state_of(1, 10, 9000);
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &state);
    let unreadable = |disk: MemoryDisk| {
        UnflushedDisk::new(disk).with_hook(Box::new(|operation| match operation {
            Operation::Flush { file: File::Pack(1) } => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        }))
    };
    let mut disk = unreadable(disk);
    let mut passing = vault(&mut disk);
    let told: Vec<_> = passing.unreadable().map(|(file, why)| (file, why.to_owned())).collect();
    assert_eq!(told, [(File::Pack(1), "permission denied".to_owned())]);
    assert_eq!(passing.missing(&mut disk, root_of(&state), 64).len(), 1);
    let root = written(&mut disk, &mut passing, &state);
    passing.keep(&mut disk, &[root]).unwrap();
    while passing.compact(&mut disk, 500_000) {
        assert!(drive(&mut disk, &mut passing));
    }
    passing.punch();
    assert!(drive(&mut disk, &mut passing));
    assert_eq!(disk.packs().unwrap(), [1, 2]);
    assert!(!disk.inner().bytes(File::Pack(1)).iter().all(|byte| *byte == 0));
    assert_whole(&mut disk, &mut passing, &state, "written anew");

    // Where the list lies elsewhere each chunk is named with the file.
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &state);
    let mut writing = vault(&mut disk);
    assert_whole(&mut disk, &mut writing, &state, "read");
    let second = changed(&state, 3);
    written(&mut disk, &mut writing, &second);
    let mut disk = unreadable(disk);
    let missing = vault(&mut disk).missing(&mut disk, root_of(&second), 64);
    assert!(!missing.is_empty());
    let here = |damage: &chronon_storage::ChunkDamage| (damage.file, damage.found);
    assert!(missing.iter().all(|damage| here(damage) == (Some(File::Pack(1)), Found::Unreadable)));
}

/// Somebody has put them there.
#[test]
fn files_with_the_last_numbers_stop_nothing() {
    assert_eq!(File::of_name("pack-9999999999"), Some(File::Pack(9_999_999_999)));
    for name in ["pack-18446744073709551615", "pack-10000000000", "pack-7"] {
        assert_eq!(File::of_name(name), None);
    }
    let mut disk = MemoryDisk::new();
    let states = [state_of(1, 5, 9000), state_of(2, 5, 9000)];
    write_anew(&mut disk, &states[0]);
    disk.bytes_mut(File::Pack(9_999_999_998)).push(7);
    for state in &states {
        let mut opened = vault(&mut disk);
        written(&mut disk, &mut opened, state);
    }
    assert_eq!(disk.packs().unwrap(), [1, 2, 9_999_999_998, 9_999_999_999]);
    let mut opened = vault(&mut disk);
    states.iter().for_each(|state| assert_whole(&mut disk, &mut opened, state, "opened"));
}

/// Replicas that start together read different parts, and what a start in the middle has passed over is no round.
#[test]
fn a_scrub_begins_where_it_is_told_to_and_a_round_is_one_from_end_to_end() {
    let state = state_of(1, 12, 9000);
    let mut disk = MemoryDisk::new();
    write_anew(&mut disk, &state);
    let whole = vault(&mut disk).scrub(&mut disk, u64::MAX);
    assert!(whole.round);
    let mut firsts = std::collections::BTreeSet::new();
    for phase in 0..64 {
        let mut scrubbing = vault(&mut disk);
        scrubbing.scrub_from(phase);
        let first = scrubbing.scrub(&mut disk, u64::MAX);
        assert_eq!(first.round, first.bytes == whole.bytes, "{phase}: {first:?}");
        assert_eq!(scrubbing.scrub(&mut disk, u64::MAX), whole);
        firsts.insert(first.bytes);
    }
    // Each chunk, the list and the map.
    assert_eq!(firsts.len(), 14);
    let mut empty = MemoryDisk::new();
    vault(&mut empty).scrub_from(7);
}

#[test]
fn only_a_transfer_that_was_cut_off_is_unfinished() {
    let (done, cut_off) = (state_of(1, 4, 9000), state_of(2, 4, 9000));
    let mut disk = MemoryDisk::new();
    let mut receiving = vault(&mut disk);
    written(&mut disk, &mut receiving, &done);
    receiving.put_list(list_of(&cut_off)).unwrap();
    receiving.put(Checksum::of_chunk(&cut_off[0]), &cut_off[0]);
    receiving.sync();
    assert!(drive(&mut disk, &mut receiving));
    let mut again = vault(&mut disk);
    assert_eq!(again.unfinished(), [root_of(&cut_off)]);
    written(&mut disk, &mut again, &cut_off);
    assert_eq!(again.unfinished(), []);
}
