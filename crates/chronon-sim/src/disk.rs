//! A replica's disk: it forgets what was not flushed when the power fails, tears what was half written, and rots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use chronon_storage::{Disk, File, Step};
use chronon_vsr::{Duration, Prng};

use crate::event::{Harm, Region};
use crate::network::exponential;

const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// What a disk writes as a whole: after a power cut each such unit is old or new.
pub const UNIT: usize = 512;

/// A copy of the superblock, and how many there are.
const COPY: usize = 16 * 1024;
const COPIES: usize = 4;

/// So many of the newest writes of a file are never lost afterwards: a device that loses what was flushed right before
/// a crash is beyond what anybody can notice (`docs/guarantees.md`).
const SETTLED_AFTER: usize = 4;

/// What a unit of the WAL holds besides its trailer.
const UNIT_CONTENT: usize = 496;

/// How a disk behaves. Chances are in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A write takes at least this long.
    pub write_min: Duration,
    /// A flush takes at least this long.
    pub flush_min: Duration,
    /// The mean of what comes on top of either, exponentially distributed.
    pub jitter_mean: Duration,
    /// A write or a flush stalls for `stall`.
    pub stall_chance: u32,
    /// How long a stall lasts.
    pub stall: Duration,
    /// A write or a flush fails: the replica must stop.
    pub error_chance: u32,
    /// What a power cut leaves old or new as a whole, in bytes: 512 or 4096.
    pub atomic: usize,
}

impl DiskConfig {
    /// A good SSD: 20 µs a write, 200 µs a flush.
    pub const GOOD: DiskConfig = DiskConfig {
        write_min: Duration::from_micros(20),
        flush_min: Duration::from_micros(200),
        jitter_mean: Duration::from_micros(30),
        stall_chance: 0,
        stall: Duration::ZERO,
        error_chance: 0,
        atomic: UNIT,
    };
}

/// One file: what is on the device, and what the device has not promised to keep yet.
#[derive(Default)]
struct SimFile {
    size: u64,
    pages: Vec<Option<Box<[u8; PAGE]>>>,
    unflushed: VecDeque<(u64, Vec<u8>)>,
    /// What each page held before it was last written over.
    older: BTreeMap<usize, Option<Box<[u8; PAGE]>>>,
    /// Places of the newest writes that were flushed.
    newest: VecDeque<(u64, u64)>,
    /// Pages that can't be read until they are written again.
    unreadable: BTreeSet<usize>,
    /// Bytes from the start for which there is room whatever happens.
    reserved: u64,
}

/// A disk in memory. Reads see unflushed writes, as they do in a page cache; only a power cut shows the difference.
pub(crate) struct SimDisk {
    files: BTreeMap<File, SimFile>,
    config: DiskConfig,
    prng: Prng,
    /// The next write or flush fails.
    fail_next: bool,
    /// Added to every step while the disk is stalled.
    stall: Duration,
    /// Where the newest writes to the WAL went, and how long they were, oldest first.
    recent: VecDeque<(u64, u64)>,
    /// How often a write to the WAL went below the one before it.
    wraps: u64,
    /// There is no room for packs to grow.
    full: bool,
    /// What was removed since the last power cut: it may be back after the next.
    removed: BTreeMap<File, SimFile>,
}

/// How many of the newest writes to the WAL a disk remembers.
const RECENT_MAX: usize = 8;

impl SimDisk {
    pub(crate) fn new(config: DiskConfig, prng: Prng) -> SimDisk {
        let files = File::FIXED.into_iter().map(|file| (file, SimFile::default())).collect();
        let (fail_next, full, stall, wraps) = (false, false, Duration::ZERO, 0);
        let (removed, recent) = (BTreeMap::new(), VecDeque::new());
        SimDisk { files, config, prng, fail_next, stall, full, removed, recent, wraps }
    }

    /// How long a step takes.
    pub(crate) fn latency(&mut self, step: &Step) -> Duration {
        let least = match step {
            Step::Write { bytes, .. } => {
                // About 2 GB/s.
                self.config.write_min + Duration::from_nanos(bytes.len() as u64 / 2)
            }
            Step::Flush { .. } => self.config.flush_min,
            Step::ReadBack { .. }
            | Step::Reserve { .. }
            | Step::Truncate { .. }
            | Step::Punch { .. }
            | Step::Remove { .. } => self.config.write_min,
        };
        let stalls = self.chance(self.config.stall_chance);
        let stall = if stalls { self.config.stall } else { Duration::ZERO };
        least + exponential(&mut self.prng, self.config.jitter_mean) + stall.max(self.stall)
    }

    /// How long it takes to read something.
    pub(crate) fn read_latency(&mut self) -> Duration {
        let jitter = exponential(&mut self.prng, self.config.jitter_mean);
        self.config.write_min + jitter + self.stall
    }

    pub(crate) fn set_config(&mut self, config: DiskConfig) {
        self.config = config;
        self.stall = Duration::ZERO;
        self.fail_next = false;
        self.full = false;
    }

    pub(crate) fn set_stall(&mut self, stall: Duration) {
        self.stall = stall;
    }

    pub(crate) fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    pub(crate) fn fail_next(&mut self) {
        self.fail_next = true;
    }

    /// The process was killed in the middle of this step: any of its units may have reached the page cache, a flush
    /// may have happened.
    pub(crate) fn interrupt(&mut self, step: &Step) {
        let atomic = self.config.atomic;
        match step {
            Step::Write { file, position, bytes } => {
                let mode = self.prng.below(3);
                for (unit, part) in bytes.chunks(atomic).enumerate() {
                    if mode == 1 || mode == 2 && self.prng.chance(1, 2) {
                        let at = position + (unit * atomic) as u64;
                        self.file(*file).write(at, part);
                    }
                }
            }
            Step::Flush { file } => {
                if self.prng.chance(1, 2) {
                    self.file(*file).flush();
                }
            }
            Step::Truncate { .. } | Step::Punch { .. } | Step::Remove { .. } => {
                if self.prng.chance(1, 2) {
                    let _ = chronon_storage::perform_step(self, step);
                }
            }
            Step::ReadBack { .. } | Step::Reserve { .. } => {}
        }
    }

    /// The power fails: of each unflushed write any subset of its units is kept.
    pub(crate) fn power_cut(&mut self) {
        let mode = self.prng.below(4);
        let atomic = self.config.atomic;
        for (name, file) in std::mem::take(&mut self.removed) {
            if self.prng.chance(1, 2) {
                self.files.entry(name).or_insert(file);
            }
        }
        for file in self.files.values_mut() {
            let unflushed = std::mem::take(&mut file.unflushed);
            for (position, bytes) in unflushed {
                for (unit, part) in bytes.chunks(atomic).enumerate() {
                    let keep = match mode {
                        0 => false,
                        1 => self.prng.chance(15, 16),
                        _ => self.prng.chance(1, 2),
                    };
                    if keep {
                        file.put(position + (unit * atomic) as u64, part);
                    }
                }
            }
        }
    }

    /// Flips one bit on the device. Returns whether anything was written there to be damaged.
    pub(crate) fn flip(&mut self, file: File, position: u64, bit: u8) -> bool {
        let file = self.file(file);
        let (page, within) = (position as usize / PAGE, position as usize % PAGE);
        match file.pages.get_mut(page) {
            Some(Some(bytes)) => {
                bytes[within] ^= 1 << (bit % 8);
                true
            }
            Some(None) | None => false,
        }
    }

    /// Where the newest writes to the WAL went, and how long they were, oldest first.
    pub(crate) fn recent(&self) -> &VecDeque<(u64, u64)> {
        &self.recent
    }

    /// How often the WAL has come to its end and begun again.
    pub(crate) fn wraps(&self) -> u64 {
        self.wraps
    }

    /// Does harm to a page of what was written here. Says whether there was anything to harm.
    pub(crate) fn harm(&mut self, region: Region, harm: Harm, which: u64) -> bool {
        let Some((file, page)) = self.page_of(region, which) else { return false };
        let (within, bit) = ((which >> 20) as usize % PAGE, (which >> 32) as u8 % 8);
        let other = self.page_of(region, which >> 8).filter(|(other, _)| *other == file);
        let file = self.file(file);
        match harm {
            Harm::Rot => match file.pages.get_mut(page) {
                Some(Some(bytes)) => bytes[within] ^= 1 << bit,
                Some(None) | None => return false,
            },
            Harm::Unreadable => drop(file.unreadable.insert(page)),
            Harm::Lost => return file.lose(page),
            Harm::Misdirected => {
                let Some((_, other)) = other.filter(|(_, other)| *other != page) else { return false };
                let astray = file.pages[page].clone();
                if !file.lose(page) {
                    return false;
                }
                file.pages[other] = astray;
            }
        }
        true
    }

    /// One of the pages of a region that hold anything.
    fn page_of(&self, region: Region, which: u64) -> Option<(File, usize)> {
        let pages = |file: File| {
            let held = self.files.get(&file).map_or(&[][..], |file| &file.pages);
            held.iter().enumerate().filter(|(_, page)| page.is_some()).map(move |(page, _)| (file, page))
        };
        let all: Vec<(File, usize)> = match region {
            Region::Wal => pages(File::Wal).collect(),
            Region::Superblock => pages(File::Superblock).collect(),
            Region::Packs => self
                .files
                .keys()
                .filter(|file| !File::FIXED.contains(file))
                .flat_map(|file| pages(*file))
                .collect(),
        };
        (!all.is_empty()).then(|| all[(which % all.len() as u64) as usize])
    }

    /// Whether at least three copies of the superblock are the same and none is being written: one may be damaged.
    pub(crate) fn spares_a_superblock(&mut self) -> bool {
        let mut copies = vec![vec![0; COPY]; COPIES];
        let mut right = true;
        for (index, copy) in copies.iter_mut().enumerate() {
            // A copy says which it is; the rest is the same in all.
            right &= self.read(File::Superblock, (index * COPY) as u64, copy).is_ok();
        }
        let same = |copy: &Vec<u8>| copies.iter().filter(|other| other[32..] == copy[32..]).count();
        right
            && self.file(File::Superblock).unflushed.is_empty()
            && copies.iter().any(|copy| COPIES == same(copy))
    }

    /// The pages of checkpoints that hold anything but zeros.
    pub(crate) fn written_packs(&self) -> Vec<(File, u64)> {
        let packs = self.files.keys().copied().filter(|file| !File::FIXED.contains(file));
        packs.flat_map(|file| self.written_pages(file).into_iter().map(move |page| (file, page))).collect()
    }

    /// Positions of the pages of a file that hold anything but zeros.
    pub(crate) fn written_pages(&self, file: File) -> Vec<u64> {
        let Some(file) = self.files.get(&file) else { return Vec::new() };
        let pages = file.pages.iter().enumerate();
        pages.filter(|(_, page)| page.is_some()).map(|(at, _)| (at * PAGE) as u64).collect()
    }

    /// Where on the device these bytes begin, every time that they are there, the trailer of each unit left out. For
    /// tests that damage one particular thing.
    pub(crate) fn find(&self, file: File, needle: &[u8]) -> Vec<u64> {
        let mut places = Vec::new();
        let (mut content, mut positions) = (Vec::new(), Vec::new());
        let pages = self.files.get(&file).map_or(&[][..], |file| &file.pages);
        for (at, page) in pages.iter().enumerate() {
            let Some(page) = page else { continue };
            for (unit, bytes) in page.chunks(UNIT).enumerate() {
                let bytes = &bytes[..UNIT_CONTENT];
                content.extend_from_slice(bytes);
                let start = at * PAGE + unit * UNIT;
                positions.extend((start..start + bytes.len()).map(|position| position as u64));
            }
        }
        let windows = content.windows(needle.len()).enumerate();
        places.extend(windows.filter(|(_, window)| *window == needle).map(|(within, _)| positions[within]));
        places
    }

    /// A file, made if it is not there.
    fn file(&mut self, file: File) -> &mut SimFile {
        self.files.entry(file).or_default()
    }

    fn chance(&mut self, parts: u32) -> bool {
        parts != 0 && self.prng.chance(u64::from(parts), 1_000_000)
    }

    fn fails(&mut self, file: File) -> io::Result<()> {
        if !self.chance(self.config.error_chance) && !std::mem::take(&mut self.fail_next) {
            return Ok(());
        }
        // The kernel marks the pages clean and may or may not have written them: what is read from now on is what
        // the device has.
        let atomic = self.config.atomic;
        let file = self.files.entry(file).or_default();
        for (position, bytes) in std::mem::take(&mut file.unflushed) {
            for (unit, part) in bytes.chunks(atomic).enumerate() {
                if self.prng.chance(1, 2) {
                    file.put(position + (unit * atomic) as u64, part);
                }
            }
        }
        Err(io::Error::other("the simulated device failed"))
    }
}

impl SimFile {
    fn write(&mut self, position: u64, bytes: &[u8]) {
        // Zeros that make the file longer change nothing that could be read: formatting costs no memory.
        let grows = self.size == position && self.unflushed.is_empty();
        self.size = self.size.max(position + bytes.len() as u64);
        if grows && bytes.chunks(PAGE).all(|page| *page == ZEROS[..page.len()]) {
            return;
        }
        self.unflushed.push_back((position, bytes.to_vec()));
    }

    /// What lies behind is gone at once, flushed or not.
    fn truncate(&mut self, size: u64) {
        self.flush();
        self.size = self.size.min(size);
        self.pages.truncate((size as usize).div_ceil(PAGE));
        if let Some(Some(last)) = self.pages.get_mut(size as usize / PAGE) {
            last[size as usize % PAGE..].fill(0);
        }
    }

    /// These bytes are zeros at once, flushed or not.
    fn punch(&mut self, position: u64, length: u64) {
        self.flush();
        let end = position.saturating_add(length).min((self.pages.len() * PAGE) as u64);
        for start in (position..end).step_by(PAGE) {
            self.pages[start as usize / PAGE] = None;
        }
    }

    fn flush(&mut self) {
        for (position, bytes) in std::mem::take(&mut self.unflushed) {
            self.put(position, &bytes);
            self.newest.push_back((position, position + bytes.len() as u64));
            if SETTLED_AFTER < self.newest.len() {
                self.newest.pop_front();
            }
        }
    }

    /// What was written to this page last never reached the device. Not if it was only just written.
    fn lose(&mut self, page: usize) -> bool {
        let (start, end) = ((page * PAGE) as u64, (page * PAGE + PAGE) as u64);
        if self.newest.iter().any(|(from, to)| *from < end && start < *to) {
            return false;
        }
        match self.older.get(&page) {
            Some(older) => {
                self.pages[page] = older.clone();
                true
            }
            None => false,
        }
    }

    fn put(&mut self, position: u64, bytes: &[u8]) {
        let mut position = position as usize;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (page, within) = (position / PAGE, position % PAGE);
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            if self.pages.len() <= page {
                self.pages.resize_with(page + 1, || None);
            }
            self.unreadable.remove(&page);
            if within == 0 {
                self.older.insert(page, self.pages[page].clone());
            }
            match &mut self.pages[page] {
                Some(held) => held[within..within + now.len()].copy_from_slice(now),
                // A page of zeros needs no memory: a fresh log is nothing else.
                None if *now == ZEROS[..now.len()] => {}
                empty => {
                    let mut held = Box::new([0; PAGE]);
                    held[within..within + now.len()].copy_from_slice(now);
                    *empty = Some(held);
                }
            }
            position += now.len();
            bytes = rest;
        }
    }

    fn read(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = position + buffer.len() as u64;
        if self.size < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pages = position as usize / PAGE..(end as usize).div_ceil(PAGE);
        if self.unreadable.range(pages).next().is_some() {
            return Err(io::Error::other("a sector can't be read"));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = position as usize + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let length = (buffer.len() - done).min(PAGE - within);
            match self.pages.get(page) {
                Some(Some(held)) => {
                    buffer[done..done + length].copy_from_slice(&held[within..within + length])
                }
                Some(None) | None => buffer[done..done + length].fill(0),
            }
            done += length;
        }
        for (start, bytes) in &self.unflushed {
            let from = position.max(*start);
            let to = end.min(start + bytes.len() as u64);
            if from < to {
                let source = (from - start) as usize..(to - start) as usize;
                buffer[(from - position) as usize..(to - position) as usize].copy_from_slice(&bytes[source]);
            }
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.files.get(&file).ok_or(io::ErrorKind::NotFound)?.read(position, buffer)
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(position.is_multiple_of(UNIT as u64));
        assert!(bytes.len().is_multiple_of(UNIT));
        let end = position + bytes.len() as u64;
        let full = self.full && !File::FIXED.contains(&file);
        if file == File::Wal {
            self.wraps += u64::from(self.recent.back().is_some_and(|(before, _)| position < *before));
            self.recent.push_back((position, bytes.len() as u64));
            if RECENT_MAX < self.recent.len() {
                self.recent.pop_front();
            }
        }
        let held = self.file(file);
        if full && held.size.max(held.reserved) < end {
            return Err(io::ErrorKind::StorageFull.into());
        }
        held.write(position, bytes);
        self.fails(file)
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        self.fails(file)?;
        self.file(file).flush();
        Ok(())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        Ok(self.files.get(&file).map_or(0, |file| file.size))
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        self.file(file).truncate(size);
        Ok(())
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        self.file(file).punch(position, length);
        Ok(())
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        if let Some(held) = self.files.remove(&file) {
            self.removed.insert(file, held);
        }
        Ok(())
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        let packs = self.files.keys().filter_map(|file| match file {
            File::Pack(number) => Some(*number),
            File::Superblock | File::Wal => None,
        });
        Ok(packs.collect())
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        let full = self.full;
        let held = self.file(file);
        if full && held.size.max(held.reserved) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        held.reserved = held.reserved.max(bytes);
        Ok(())
    }

    fn available(&mut self) -> io::Result<u64> {
        Ok(if self.full { 0 } else { u64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_a_power_cut_and_nothing_else_needs_to() {
        let mut torn = 0;
        for seed in 0..64 {
            let mut disk = SimDisk::new(DiskConfig::GOOD, Prng::new(seed));
            disk.write(File::Wal, 0, &[1; 8192]).unwrap();
            disk.flush(File::Wal).unwrap();
            disk.write(File::Wal, 4096, &[2; 8192]).unwrap();
            let mut seen = [0; 8192];
            disk.read(File::Wal, 2048, &mut seen).unwrap();
            assert_eq!(seen[..2048], [1; 2048]);
            assert_eq!(seen[2048..], [2; 6144]);
            disk.power_cut();
            let mut seen = [0; 12288];
            disk.read(File::Wal, 0, &mut seen).unwrap();
            assert_eq!(seen[..4096], [1; 4096]);
            let new = seen.chunks(UNIT).filter(|unit| *unit == [2; UNIT]).count();
            torn += usize::from(0 < new && new < 16);
        }
        assert!(8 < torn, "{torn} of 64 cuts tore the write");
    }
}
