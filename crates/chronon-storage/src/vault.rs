//! The vault: keeps the chunks of checkpoints in packs, named by content, compressed, each once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;

use chronon_vsr::{CHUNK_SIZE_MAX, Checksum};

use crate::buffer::Buffer;
use crate::disk::PACK_NUMBER_MAX;
use crate::journal::JobId;
use crate::pack::{
    self, BLOCK, HEADER, Kind, Place, RecordHeader, append_moved, append_record, check_record,
};
use crate::{Bytes, ChunkList, Disk, File, Identity, Job, ListError, Step};

/// A pack that has grown to this takes nothing more.
const PACK_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// What is put gathers to this before it is written.
const BATCH: usize = 1024 * 1024;

/// Above so many packs small ones are merged.
const PACKS_MAX: usize = 64;

/// Keeps the chunks of checkpoints. Holds no disk for writing: like a [`Journal`](crate::Journal) it gives [`Job`]s,
/// which a driver carries out in order and reports. Reading it does at once, on the disk it is lent.
///
/// To write a checkpoint: [`put`](Vault::put) (or [`retain`](Vault::retain)) each chunk, [`put_list`](Vault::put_list),
/// [`finish`](Vault::finish); carry out jobs all along, until [`idle`](Vault::idle). It is durable once
/// [`is_complete`](Vault::is_complete) says so. A job that can't be carried out costs what it and the jobs since the
/// last flush of its pack have put: nothing of that counts, the file is discarded or cut, and the driver puts those
/// chunks again, into a new file.
///
/// To take one from peers: `put_list` what its root names; [`missing`](Vault::missing) tells which chunks to fetch;
/// `put` them as they come, [`sync`](Vault::sync) now and then, and `finish`. A crash in between costs only what was
/// not flushed.
///
/// When a superblock that names a checkpoint is durable: [`keep`](Vault::keep) says which checkpoints are still
/// needed. Until the first call nothing is ever removed. What is not needed goes with its file, sooner or later; where
/// room is short [`punch`](Vault::punch) gives it back at once.
#[derive(Debug)]
pub struct Vault {
    identity: Identity,
    /// Where each durable content lies.
    index: BTreeMap<Checksum, Held>,
    /// Every durable record that is not known to be damaged.
    places: BTreeMap<Place, RecordHeader>,
    /// Bytes of each file.
    packs: BTreeMap<u64, u64>,
    /// Bytes of each file whose room was given back.
    holes: BTreeMap<u64, u64>,
    /// Files that could not be opened, and why. Nothing in them counts, and nothing happens to them: they may hold what
    /// can be had again.
    unreadable: BTreeMap<u64, String>,
    open: Option<OpenPack>,
    next_pack: u64,
    outstanding: Option<(JobId, Undertaking)>,
    jobs_given: u64,
    cleanup: VecDeque<Step>,
    /// For each of these files the steps that give back room, and how many bytes of it are holes after them.
    punches: VecDeque<(u64, Vec<Step>, u64)>,
    /// No holes can be made in files here.
    lacks_holes: bool,
    /// Room is short, and every file of which a part may go is to go as a whole.
    squeezes: bool,
    reserve: Option<u64>,
    sync: bool,
    lists: BTreeMap<Checksum, Arc<ChunkList>>,
    maps: BTreeMap<Checksum, Place>,
    /// What the last `keep` was told and found. None before it.
    kept: Option<Kept>,
    /// Put or retained since the last list: of a checkpoint that has no list yet.
    pinned: BTreeSet<Checksum>,
    /// Roots of lists put here that no `keep` has named yet.
    unsettled: BTreeSet<Checksum>,
    /// What was pinned or is in a list that was put since the last `keep`.
    fresh: BTreeSet<Checksum>,
    /// The pack whose live records are being moved out.
    moving: Option<u64>,
    /// The record that is scrubbed next, and whether this round began with the first.
    scrub_next: Place,
    scrub_whole: bool,
    /// What a scrub reads into.
    scratch: Buffer,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    place: Place,
    /// Written or read as a whole by this process. A record whose header alone was read may have been torn.
    verified: bool,
}

#[derive(Debug, Default)]
struct Kept {
    roots: BTreeSet<Checksum>,
    live: BTreeSet<Checksum>,
}

/// The pack that is written to. What is flushed stays whatever happens to the rest.
#[derive(Debug)]
struct OpenPack {
    number: u64,
    flushed: u64,
    written: u64,
    pending: Vec<u8>,
    /// Not flushed yet.
    records: BTreeMap<Checksum, (Place, RecordHeader)>,
}

#[derive(Clone, Copy, Debug)]
enum Undertaking {
    Write {
        flushes: bool,
    },
    Reserve,
    Cleanup,
    /// Room of a pack is given back: so many bytes of it are holes then.
    Punch {
        pack: u64,
        holes: u64,
    },
}

/// Why a vault can't be opened.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The operating system said no.
    #[error("{doing}: {source}")]
    Disk {
        /// What was tried.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

/// A chunk that should be there and is not, or not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkDamage {
    /// Its name.
    pub id: Checksum,
    /// The pack that holds it, or held it, if that is known.
    pub file: Option<File>,
    /// What was found there.
    pub found: Found,
}

/// What was found in place of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing anywhere.
    Nothing,
    /// The file is gone.
    FileGone,
    /// The file is there, without a record of it.
    NoRecord,
    /// A record that can't be read.
    Unreadable,
    /// Bytes that are not what was written.
    OtherBytes,
}

impl fmt::Display for ChunkDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}", self.id)?;
        if let Some(file) = self.file {
            write!(f, " in {file}")?;
        }
        let found = match self.found {
            Found::Nothing => "is in no pack",
            Found::FileGone => "is gone with its file",
            Found::NoRecord => "has no readable record any more",
            Found::Unreadable => "can't be read",
            Found::OtherBytes => "is not what was written",
        };
        write!(f, ": it {found}")
    }
}

/// What a step of scrubbing found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Damage to chunks that are needed, each told once: the chunk counts as missing from now on.
    pub damage: Vec<ChunkDamage>,
    /// The step ended at the last record, and a step before it, or this one, began with the first. The next one begins anew.
    pub round: bool,
}

/// How much room a vault takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VaultUsage {
    /// Files.
    pub packs: usize,
    /// Bytes of all files, without those whose room was given back by this process.
    pub bytes: u64,
    /// Bytes of records that are needed.
    pub live: u64,
}

impl Vault {
    /// Reads the headers of every record there is, and makes durable what was only read: a process that was killed
    /// before its flush leaves pages that read well. A file for which that fails counts as damaged as a whole.
    pub fn open(disk: &mut dyn Disk, identity: Identity) -> Result<Vault, VaultError> {
        let mut vault = Vault {
            identity,
            index: BTreeMap::new(),
            places: BTreeMap::new(),
            packs: BTreeMap::new(),
            holes: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            open: None,
            next_pack: 1,
            outstanding: None,
            jobs_given: 0,
            cleanup: VecDeque::new(),
            punches: VecDeque::new(),
            lacks_holes: false,
            squeezes: false,
            reserve: None,
            sync: false,
            lists: BTreeMap::new(),
            maps: BTreeMap::new(),
            kept: None,
            pinned: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            fresh: BTreeSet::new(),
            moving: None,
            scrub_next: Place { pack: 0, position: 0 },
            scrub_whole: true,
            scratch: Buffer::zeroed(0),
        };
        let packs =
            disk.packs().map_err(|source| VaultError::Disk { doing: "list the packs".to_owned(), source })?;
        for number in packs {
            let file = File::Pack(number);
            vault.next_pack = vault.next_pack.max(number.saturating_add(1));
            match disk.flush(file).and_then(|()| disk.size(file)) {
                Ok(size) => {
                    vault.packs.insert(number, size);
                    vault.read_headers(disk, number, size);
                }
                Err(error) => drop(vault.unreadable.insert(number, error.to_string())),
            }
        }
        Ok(vault)
    }

    /// Files that could not be opened, and why. They are passed over: what they held is missing.
    pub fn unreadable(&self) -> impl Iterator<Item = (File, &str)> {
        self.unreadable.iter().map(|(number, why)| (File::Pack(*number), why.as_str()))
    }

    /// Takes a chunk of a checkpoint, unless it is here. `id` is its name: the caller has checked that, or made it.
    pub fn put(&mut self, id: Checksum, bytes: &[u8]) {
        assert!(bytes.len() <= CHUNK_SIZE_MAX);
        self.put_content(Kind::Chunk, id, bytes);
    }

    /// Says that the checkpoint being put has this chunk, which is here from an earlier one. False if it is not (any
    /// more, for what has rotted is not): then it has to be put.
    pub fn retain(&mut self, id: Checksum) -> bool {
        self.pinned.insert(id);
        self.is_put(id)
    }

    /// Takes the list of a checkpoint's chunks, and returns its name: the checkpoint's root.
    pub fn put_list(&mut self, list: ChunkList) -> Result<Checksum, ListError> {
        let bytes = list.encode()?;
        let root = Checksum::of_chunk(&bytes);
        self.put_content(Kind::List, root, &bytes);
        self.fresh.append(&mut self.pinned);
        self.fresh.extend(list.chunks.iter().map(|(id, _)| *id));
        self.lists.insert(root, Arc::new(list));
        self.unsettled.insert(root);
        Ok(root)
    }

    /// Everything of this checkpoint has been put: makes it durable, and notes in which files its chunks lie.
    pub fn finish(&mut self, root: Checksum) {
        self.put_map(root, None);
        self.sync();
    }

    /// Gives up a checkpoint that has no list yet, and those with one that no `keep` has named.
    pub fn abandon(&mut self) {
        self.pinned.clear();
        self.unsettled.clear();
        self.fresh.clear();
    }

    /// Makes what has been put so far durable.
    pub fn sync(&mut self) {
        self.sync = true;
    }

    /// Sets room aside for so many bytes of records.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserve = Some(bytes);
    }

    /// The next thing for the disk. None while a job is under way, or while too little has gathered.
    pub fn next_job(&mut self) -> Option<Job> {
        if self.outstanding.is_some() {
            return None;
        }
        if let Some(step) = self.cleanup.pop_front() {
            return Some(self.job(vec![step], Undertaking::Cleanup));
        }
        if let Some((pack, steps, holes)) = self.punches.pop_front() {
            return Some(self.job(steps, Undertaking::Punch { pack, holes }));
        }
        if let Some(bytes) = self.reserve.take() {
            let open = self.open_pack();
            let end = open.written + open.pending.len() as u64 + bytes;
            let step = Step::Reserve { file: File::Pack(open.number), bytes: end };
            return Some(self.job(vec![step], Undertaking::Reserve));
        }
        let sync = self.sync;
        let Some(open) = &mut self.open else {
            self.sync = false;
            return None;
        };
        let end = open.written + open.pending.len() as u64;
        let flushes = (sync || PACK_SIZE_MAX <= end) && open.flushed < end;
        if !flushes && open.pending.len() < BATCH {
            self.sync = false;
            return None;
        }
        let file = File::Pack(open.number);
        let mut steps = Vec::new();
        if !open.pending.is_empty() {
            let mut buffer = Buffer::zeroed(open.pending.len());
            buffer.as_mut().copy_from_slice(&open.pending);
            let bytes = Bytes::new(Arc::new(buffer), 0..open.pending.len());
            steps.push(Step::Write { file, position: open.written, bytes });
            open.pending.clear();
            open.written = end;
        }
        if flushes {
            steps.push(Step::Flush { file });
        }
        Some(self.job(steps, Undertaking::Write { flushes }))
    }

    /// Every step of this job has succeeded. Returns the names of what is durable now and was not before.
    pub fn done(&mut self, job: JobId) -> Vec<Checksum> {
        let (id, what) = self.outstanding.take().expect("a driver reports a job that it was given, once");
        assert_eq!(id, job);
        match what {
            Undertaking::Write { flushes: true } => self.flushed(),
            Undertaking::Punch { pack, holes } => {
                if self.packs.contains_key(&pack) {
                    self.holes.insert(pack, holes);
                }
                Vec::new()
            }
            Undertaking::Write { flushes: false } | Undertaking::Reserve | Undertaking::Cleanup => Vec::new(),
        }
    }

    /// A step of this job has failed (a full disk, mostly). Returns the names of what has to be put again: nothing
    /// that was not flushed counts, and nothing more is written to that file.
    pub fn failed(&mut self, job: JobId) -> Vec<Checksum> {
        let (id, what) = self.outstanding.take().expect("a driver reports a job that it was given, once");
        assert_eq!(id, job);
        match what {
            // What could not be removed or cut is found, and removed, after the next start.
            Undertaking::Cleanup => return Vec::new(),
            // What could not be given back is given back with the file.
            Undertaking::Punch { .. } => {
                self.lacks_holes = true;
                self.punches.clear();
                return Vec::new();
            }
            Undertaking::Write { .. } | Undertaking::Reserve => {}
        }
        self.sync = false;
        self.moving = None;
        self.end_open_pack().map_or(Vec::new(), |open| open.records.into_keys().collect())
    }

    /// Nothing more goes into the pack that is written to. Of it what is flushed stays.
    fn end_open_pack(&mut self) -> Option<OpenPack> {
        let open = self.open.take()?;
        let file = File::Pack(open.number);
        if open.flushed == 0 {
            self.remove(open.number);
        } else {
            self.cleanup.push_back(Step::Truncate { file, size: open.flushed });
        }
        Some(open)
    }

    /// Whether nothing waits and nothing is under way.
    pub fn idle(&self) -> bool {
        let written = self.open.as_ref().is_none_or(|open| open.records.is_empty());
        let cleaned = self.cleanup.is_empty() && self.punches.is_empty();
        written && cleaned && self.outstanding.is_none() && self.reserve.is_none()
    }

    /// The roots of the checkpoints that were once finished here and whose map is still there.
    pub fn roots(&self) -> impl Iterator<Item = Checksum> + '_ {
        self.maps.keys().copied()
    }

    /// The lists that are here of checkpoints that were never finished: a transfer goes on with what it has.
    pub fn unfinished(&self) -> Vec<Checksum> {
        let lists = self.places.values().filter(|header| header.kind == Kind::List).map(|header| header.id);
        lists.filter(|root| !self.maps.contains_key(root)).collect()
    }

    /// Whether this chunk or list is durable here.
    pub fn holds(&self, id: Checksum) -> bool {
        self.index.contains_key(&id)
    }

    /// Whether a checkpoint's list and all its chunks are durable here, as far as is known: [`missing`](Vault::missing)
    /// looks.
    pub fn is_complete(&self, root: Checksum) -> bool {
        let list = self.lists.get(&root);
        list.is_some_and(|list| list.chunks.iter().all(|(id, _)| self.holds(*id))) && self.holds(root)
    }

    /// How many chunks of a checkpoint are not here, as far as is known without a look at each; 0 while its list is not.
    pub fn lacks(&self, root: Checksum) -> u32 {
        let list = self.lists.get(&root);
        let lacking = list.map_or(0, |list| list.chunks.iter().filter(|(id, _)| !self.holds(*id)).count());
        u32::try_from(lacking).unwrap_or(u32::MAX)
    }

    /// Reads a chunk or a list, and checks every byte. What is damaged counts as missing from then on.
    pub fn read(&mut self, disk: &mut dyn Disk, id: Checksum) -> Result<Vec<u8>, ChunkDamage> {
        let nothing = ChunkDamage { id, file: None, found: Found::Nothing };
        let Held { place, .. } = *self.index.get(&id).ok_or(nothing)?;
        let header = self.places[&place];
        let content = read_record(disk, &self.identity, place, &header)
            .and_then(|record| pack::content(&header, &record).map_err(|_| Found::OtherBytes));
        match content {
            Ok(content) => {
                self.index.insert(id, Held { place, verified: true });
                Ok(content)
            }
            Err(found) => {
                self.forget(place);
                Err(ChunkDamage { id, file: Some(File::Pack(place.pack)), found })
            }
        }
    }

    /// The list that this root names.
    pub fn list(&mut self, disk: &mut dyn Disk, root: Checksum) -> Result<Arc<ChunkList>, ChunkDamage> {
        if let Some(list) = self.lists.get(&root) {
            return Ok(Arc::clone(list));
        }
        let bytes = self.read(disk, root)?;
        let damage = ChunkDamage { id: root, file: None, found: Found::OtherBytes };
        let list = Arc::new(ChunkList::decode(&bytes).map_err(|_| damage)?);
        self.lists.insert(root, Arc::clone(&list));
        Ok(list)
    }

    /// What of a checkpoint is not here, at most `limit`: its list alone while that is missing, else chunks in order,
    /// without those that have been put. Looks at every byte that this process has not written or read before.
    pub fn missing(&mut self, disk: &mut dyn Disk, root: Checksum, limit: usize) -> Vec<ChunkDamage> {
        let list = match self.list(disk, root) {
            Ok(list) => list,
            Err(damage) => return vec![damage],
        };
        let mut missing = Vec::new();
        let mut map = None;
        // The list itself may have rotted since it was read.
        for id in [root].into_iter().chain(list.chunks.iter().map(|(id, _)| *id)) {
            if missing.len() == limit {
                break;
            }
            if self.is_put(id) {
                continue;
            }
            if let Err(damage) = self.read(disk, id) {
                let map = map.get_or_insert_with(|| self.read_map(disk, root));
                missing.push(self.explain(damage, map));
            }
        }
        missing
    }

    /// These checkpoints are needed, and those that were put since the last call; everything else may go. If the list
    /// of one can't be read nothing goes, for nobody knows what it needs.
    pub fn keep(&mut self, disk: &mut dyn Disk, roots: &[Checksum]) -> Result<(), ChunkDamage> {
        self.squeezes = false;
        self.unsettled.retain(|root| !roots.contains(root));
        let roots: BTreeSet<Checksum> = roots.iter().chain(&self.unsettled).copied().collect();
        let mut live = roots.clone();
        for root in &roots {
            match self.list(disk, *root) {
                Ok(list) => live.extend(list.chunks.iter().map(|(id, _)| *id)),
                Err(damage) => {
                    self.kept = None;
                    return Err(damage);
                }
            }
        }
        self.lists.retain(|root, _| roots.contains(root));
        self.kept = Some(Kept { roots, live });
        self.fresh.clear();
        self.collect();
        Ok(())
    }

    /// Moves what is needed out of a pack that holds little of it, at most about so many bytes a call, so that the
    /// file can go. Returns whether there was anything to do; the driver then carries out jobs until none is left.
    pub fn compact(&mut self, disk: &mut dyn Disk, bytes_max: usize) -> bool {
        let Some(victim) = self.moving.or_else(|| self.victim()) else { return false };
        self.moving = Some(victim);
        let mut bytes = 0;
        let records: Vec<(Place, RecordHeader)> = self.records_of(victim);
        for (place, header) in records {
            let moves = !matches!(header.kind, Kind::Map { .. }) && self.is_live(place, &header);
            if !moves || self.is_pending(header.id) {
                continue;
            }
            if bytes_max <= bytes {
                return true;
            }
            bytes += header.length();
            match read_record(disk, &self.identity, place, &header) {
                Ok(record) => {
                    self.append(header.id, |records, identity, to| {
                        append_moved(records, identity, to, &header, &record);
                        header
                    });
                }
                // Whoever needs it finds it missing.
                Err(_) => self.forget(place),
            }
        }
        let roots = self.kept.as_ref().map(|kept| kept.roots.clone()).unwrap_or_default();
        roots.into_iter().for_each(|root| self.put_map(root, Some(victim)));
        self.sync();
        true
    }

    /// Gives back the room of everything that may go, within files that stay for what else they hold. It takes no room
    /// to do so, and costs a gap where the next process looks for records: for when room is short.
    ///
    /// Where no holes can be made in files (that is known once it was tried) whole ones have to go instead:
    /// [`compact`](Vault::compact) then moves what is needed out of every file of which a part may go, until the next
    /// [`keep`](Vault::keep).
    pub fn punch(&mut self) {
        if self.kept.is_none() {
            return;
        }
        if self.lacks_holes {
            self.squeezes = true;
            let rests = |open: &OpenPack| open.records.is_empty() && open.pending.is_empty();
            if self.outstanding.is_none() && self.open.as_ref().is_some_and(rests) {
                self.end_open_pack();
            }
            return;
        }
        for (pack, size) in self.packs.clone() {
            // What is not flushed yet stays.
            let end = self.open.as_ref().filter(|open| open.number == pack).map_or(size, |open| open.flushed);
            let (live, dead): (Vec<_>, Vec<_>) =
                self.records_of(pack).into_iter().partition(|(place, header)| self.is_live(*place, header));
            dead.into_iter().for_each(|(place, _)| self.forget(place));
            let (mut steps, mut holes, mut from) = (Vec::new(), 0, 0);
            let live =
                live.iter().map(|(place, header)| (place.position, place.position + header.length() as u64));
            for (start, next) in live.chain([(end, end)]) {
                if from < start {
                    steps.push(Step::Punch { file: File::Pack(pack), position: from, length: start - from });
                    holes += start - from;
                }
                from = next;
            }
            if self.holes.get(&pack).is_none_or(|known| *known < holes) && 0 < holes {
                self.punches.push_back((pack, steps, holes));
            }
        }
    }

    /// Whether a [`punch`](Vault::punch) was refused.
    pub fn lacks_holes(&self) -> bool {
        self.lacks_holes
    }

    /// The next step of scrubbing begins somewhere, as this number chooses.
    pub fn scrub_from(&mut self, phase: u64) {
        let chosen = phase.checked_rem(self.places.len() as u64).unwrap_or(0);
        if let Some(place) = self.places.keys().nth(usize::try_from(chosen).unwrap_or(0)) {
            self.scrub_next = *place;
            self.scrub_whole = chosen == 0;
        }
    }

    /// Reads on from where the last call stopped, about so many bytes, and checks them.
    pub fn scrub(&mut self, disk: &mut dyn Disk, bytes_max: u64) -> Scrubbed {
        let mut scrubbed = Scrubbed::default();
        while scrubbed.bytes < bytes_max {
            let Some((place, header)) = self.places.range(self.scrub_next..).next() else {
                self.scrub_next = Place { pack: 0, position: 0 };
                scrubbed.round = std::mem::replace(&mut self.scrub_whole, true);
                break;
            };
            let (place, header) = (*place, *header);
            self.scrub_next = Place { position: place.position + 1, ..place };
            scrubbed.bytes += header.length() as u64;
            let record = self.scratch.resized(header.length());
            if let Err(found) = read_into(record, disk, &self.identity, place, &header) {
                let needed = self.kept.is_none() || self.is_live(place, &header);
                self.forget(place);
                if needed && !matches!(header.kind, Kind::Map { .. }) {
                    let file = Some(File::Pack(place.pack));
                    scrubbed.damage.push(ChunkDamage { id: header.id, file, found });
                }
            }
        }
        scrubbed
    }

    /// How much room there is taken.
    pub fn usage(&self) -> VaultUsage {
        let live = self.places.iter().filter(|(place, header)| self.is_live(**place, header));
        VaultUsage {
            packs: self.packs.len(),
            bytes: self.packs.keys().map(|pack| self.taken(*pack)).sum(),
            live: live.map(|(_, header)| header.length() as u64).sum(),
        }
    }

    /// Bytes that the records of a checkpoint take, as far as they are here: about what the next one may need.
    pub fn stored_size(&self, root: Checksum) -> u64 {
        let Some(list) = self.lists.get(&root) else { return 0 };
        let held = list.chunks.iter().filter_map(|(id, _)| self.index.get(id));
        held.map(|held| self.places[&held.place].length() as u64).sum()
    }

    /// Hops from header to header. Where there is none, the next block may begin a record.
    fn read_headers(&mut self, disk: &mut dyn Disk, pack: u64, size: u64) {
        let mut block = Buffer::zeroed(BLOCK);
        let mut position = 0;
        while position + BLOCK as u64 <= size {
            let place = Place { pack, position };
            let read = disk.read(File::Pack(pack), position, block.as_mut()).is_ok();
            let header = block
                .first_chunk::<HEADER>()
                .filter(|_| read)
                .and_then(|header| RecordHeader::decode(&self.identity, place, header))
                .filter(|header| position + header.length() as u64 <= size);
            let Some(header) = header else {
                position += BLOCK as u64;
                continue;
            };
            self.found(disk, place, header);
            position += header.length() as u64;
        }
    }

    fn found(&mut self, disk: &mut dyn Disk, place: Place, header: RecordHeader) {
        if let Some(Held { place: other, .. }) = self.index.get(&header.id).copied() {
            // A crash while it was moved or put again: of two copies the one counts that is whole.
            let whole = read_record(disk, &self.identity, place, &header).is_ok();
            if !whole {
                return;
            }
            self.places.remove(&other);
        }
        self.places.insert(place, header);
        self.index.insert(header.id, Held { place, verified: false });
        if let Kind::Map { root } = header.kind {
            self.maps.insert(root, place);
        }
    }

    fn put_content(&mut self, kind: Kind, id: Checksum, bytes: &[u8]) {
        self.pinned.insert(id);
        if !self.is_put(id) {
            self.append(id, |records, identity, place| {
                append_record(records, identity, place, (kind, id), bytes)
            });
        }
    }

    /// Notes in which pack each chunk of a checkpoint lies, unless that is noted outside of the pack that is to go.
    fn put_map(&mut self, root: Checksum, going: Option<u64>) {
        let Some(list) = self.lists.get(&root).map(Arc::clone) else { return };
        let mut content = root.to_bytes().to_vec();
        content.extend((list.chunks.len() as u32).to_le_bytes());
        for (id, _) in &list.chunks {
            content.extend(self.pack_of(*id).unwrap_or(u64::MAX).to_le_bytes());
        }
        let id = Checksum::of_chunk(&content);
        let stays = self.index.get(&id).is_some_and(|held| Some(held.place.pack) != going);
        if stays || self.is_pending(id) {
            return;
        }
        self.append(id, |records, identity, place| {
            append_record(records, identity, place, (Kind::Map { root }, id), &content)
        });
    }

    fn pack_of(&self, id: Checksum) -> Option<u64> {
        let pending = self.open.as_ref().and_then(|open| open.records.get(&id)).map(|(place, _)| *place);
        pending.or_else(|| self.index.get(&id).map(|held| held.place)).map(|place| place.pack)
    }

    /// The packs of a checkpoint's chunks, in the order of its list, as they were noted.
    fn read_map(&mut self, disk: &mut dyn Disk, root: Checksum) -> BTreeMap<Checksum, u64> {
        let mut read = || {
            let place = self.maps.get(&root)?;
            let header = self.places.get(place)?;
            let record = read_record(disk, &self.identity, *place, header).ok()?;
            let content = pack::content(header, &record).ok()?;
            let packs = content.get(20..)?.chunks_exact(8);
            let packs = packs.map(|pack| u64::from_le_bytes(pack.try_into().expect("eight bytes")));
            let list = self.lists.get(&root)?;
            Some(list.chunks.iter().map(|(id, _)| *id).zip(packs).collect())
        };
        read().unwrap_or_default()
    }

    fn explain(&self, damage: ChunkDamage, map: &BTreeMap<Checksum, u64>) -> ChunkDamage {
        match map.get(&damage.id) {
            Some(pack) if damage.file.is_none() && *pack != u64::MAX => {
                let found = if self.unreadable.contains_key(pack) {
                    Found::Unreadable
                } else if self.packs.contains_key(pack) {
                    Found::NoRecord
                } else {
                    Found::FileGone
                };
                ChunkDamage { file: Some(File::Pack(*pack)), found, ..damage }
            }
            Some(_) | None => damage,
        }
    }

    fn open_pack(&mut self) -> &mut OpenPack {
        let Vault { open, packs, unreadable, next_pack, .. } = self;
        open.get_or_insert_with(|| {
            // Behind the highest there may be none left, if somebody has put a file there.
            let number = (*next_pack..=PACK_NUMBER_MAX)
                .chain(1..*next_pack)
                .find(|number| !packs.contains_key(number) && !unreadable.contains_key(number))
                .expect("a directory has fewer files than there are numbers");
            *next_pack = number + 1;
            packs.insert(number, 0);
            OpenPack { number, flushed: 0, written: 0, pending: Vec::new(), records: BTreeMap::new() }
        })
    }

    fn append(&mut self, id: Checksum, write: impl FnOnce(&mut Vec<u8>, &Identity, Place) -> RecordHeader) {
        let identity = self.identity;
        let open = self.open_pack();
        let place = Place { pack: open.number, position: open.written + open.pending.len() as u64 };
        let header = write(&mut open.pending, &identity, place);
        open.records.insert(id, (place, header));
    }

    fn job(&mut self, steps: Vec<Step>, what: Undertaking) -> Job {
        let id = JobId::new(self.jobs_given);
        self.jobs_given += 1;
        self.outstanding = Some((id, what));
        Job { id, steps }
    }

    fn flushed(&mut self) -> Vec<Checksum> {
        let open = self.open.as_mut().expect("a write is of the open pack");
        open.flushed = open.written;
        self.packs.insert(open.number, open.written);
        let end = open.written;
        let mut names = Vec::new();
        // What was put while the flush was under way stays for the next one.
        let (done, waiting) =
            std::mem::take(&mut open.records).into_iter().partition(|(_, (place, _))| place.position < end);
        open.records = waiting;
        let done: BTreeMap<Checksum, (Place, RecordHeader)> = done;
        if PACK_SIZE_MAX <= end && open.records.is_empty() {
            let file = File::Pack(open.number);
            self.cleanup.push_back(Step::Truncate { file, size: end });
            self.open = None;
        }
        for (id, (place, header)) in done {
            self.places.insert(place, header);
            self.index.insert(id, Held { place, verified: true });
            match header.kind {
                Kind::Map { root } => drop(self.maps.insert(root, place)),
                Kind::Chunk | Kind::List => names.push(id),
            }
        }
        if self.moving.is_some() {
            self.collect();
        }
        names
    }

    /// Whether this content is durable and known to be whole, or will be once what has been put is flushed.
    fn is_put(&self, id: Checksum) -> bool {
        self.index.get(&id).is_some_and(|held| held.verified) || self.is_pending(id)
    }

    fn is_pending(&self, id: Checksum) -> bool {
        self.open.as_ref().is_some_and(|open| open.records.contains_key(&id))
    }

    fn is_live(&self, place: Place, header: &RecordHeader) -> bool {
        let Some(kept) = &self.kept else { return true };
        match header.kind {
            Kind::Map { root } => kept.roots.contains(&root) && self.maps.get(&root) == Some(&place),
            Kind::Chunk | Kind::List => {
                let newest = self.index.get(&header.id).is_some_and(|held| held.place == place);
                let needed = [&kept.live, &self.pinned, &self.fresh];
                newest && needed.iter().any(|needed| needed.contains(&header.id))
            }
        }
    }

    fn records_of(&self, pack: u64) -> Vec<(Place, RecordHeader)> {
        let all = Place { pack, position: 0 }..=Place { pack, position: u64::MAX };
        self.places.range(all).map(|(place, header)| (*place, *header)).collect()
    }

    /// A damaged record is as if it were not there.
    fn forget(&mut self, place: Place) {
        let Some(header) = self.places.remove(&place) else { return };
        if self.index.get(&header.id).is_some_and(|held| held.place == place) {
            self.index.remove(&header.id);
        }
        if let Kind::Map { root } = header.kind
            && self.maps.get(&root) == Some(&place)
        {
            self.maps.remove(&root);
        }
    }

    /// Removes packs without anything that is needed.
    fn collect(&mut self) {
        if self.kept.is_none() {
            return;
        }
        for pack in self.closed_packs() {
            let records = self.records_of(pack);
            if records.iter().any(|(place, header)| self.is_live(*place, header)) {
                continue;
            }
            records.into_iter().for_each(|(place, _)| self.forget(place));
            self.moving = self.moving.filter(|moving| *moving != pack);
            self.remove(pack);
        }
    }

    fn remove(&mut self, pack: u64) {
        self.packs.remove(&pack);
        self.holes.remove(&pack);
        self.punches.retain(|(punched, ..)| *punched != pack);
        self.cleanup.push_back(Step::Remove { file: File::Pack(pack) });
    }

    /// Bytes of a file without those whose room was given back.
    fn taken(&self, pack: u64) -> u64 {
        self.packs[&pack].saturating_sub(self.holes.get(&pack).copied().unwrap_or(0))
    }

    fn closed_packs(&self) -> Vec<u64> {
        let open = self.open.as_ref().map(|open| open.number);
        self.packs.keys().copied().filter(|pack| Some(*pack) != open).collect()
    }

    /// The pack to move out of: one that is mostly dead, or a small one of many.
    fn victim(&self) -> Option<u64> {
        self.kept.as_ref()?;
        let closed = self.closed_packs();
        let live = |pack: u64| -> u64 {
            let records = self.records_of(pack).into_iter();
            records
                .filter(|(place, header)| self.is_live(*place, header))
                .map(|(_, h)| h.length() as u64)
                .sum()
        };
        let mut small: Vec<(u64, u64)> = closed.iter().map(|pack| (live(*pack), *pack)).collect();
        small.sort_unstable();
        let pays = if self.squeezes { 1 } else { 2 };
        let dead = small.iter().find(|(live, pack)| live.saturating_mul(pays) < self.taken(*pack));
        let many = small.first().filter(|(live, _)| PACKS_MAX < closed.len() && *live < PACK_SIZE_MAX / 4);
        dead.or(many).map(|(_, pack)| *pack)
    }
}

/// A record, every byte of it checked.
fn read_record(
    disk: &mut dyn Disk,
    identity: &Identity,
    place: Place,
    header: &RecordHeader,
) -> Result<Buffer, Found> {
    let mut record = Buffer::zeroed(header.length());
    read_into(record.as_mut(), disk, identity, place, header)?;
    Ok(record)
}

fn read_into(
    record: &mut [u8],
    disk: &mut dyn Disk,
    identity: &Identity,
    place: Place,
    header: &RecordHeader,
) -> Result<(), Found> {
    disk.read(File::Pack(place.pack), place.position, record).map_err(|_| Found::Unreadable)?;
    check_record(identity, place, header, record).map_err(|_| Found::OtherBytes)
}
