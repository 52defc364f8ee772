//! A replica's disk: it forgets what was not flushed when the power fails, tears what was half written, and rots.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use chronon_storage::{Disk, File, Step};
use chronon_vsr::{Duration, Prng};

use crate::network::exponential;

const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// What a disk writes as a whole: after a power cut each such unit is old or new.
pub const UNIT: usize = 512;

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
    };
}

/// One file: what is on the device, and what the device has not promised to keep yet.
#[derive(Default)]
struct SimFile {
    size: u64,
    pages: Vec<Option<Box<[u8; PAGE]>>>,
    unflushed: VecDeque<(u64, Vec<u8>)>,
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
}

/// How many of the newest writes to the WAL a disk remembers.
const RECENT_MAX: usize = 8;

impl SimDisk {
    pub(crate) fn new(config: DiskConfig, prng: Prng) -> SimDisk {
        let files = File::FIXED.into_iter().map(|file| (file, SimFile::default())).collect();
        SimDisk {
            files,
            config,
            prng,
            fail_next: false,
            stall: Duration::ZERO,
            recent: VecDeque::new(),
            wraps: 0,
        }
    }

    /// How long a step takes.
    pub(crate) fn latency(&mut self, step: &Step) -> Duration {
        let least = match step {
            Step::Write { bytes, .. } => {
                // About 2 GB/s.
                self.config.write_min + Duration::from_nanos(bytes.len() as u64 / 2)
            }
            Step::Flush { .. } => self.config.flush_min,
            Step::ReadBack { .. } | Step::Reserve { .. } | Step::Truncate { .. } | Step::Remove { .. } => {
                self.config.write_min
            }
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
    }

    pub(crate) fn set_stall(&mut self, stall: Duration) {
        self.stall = stall;
    }

    pub(crate) fn fail_next(&mut self) {
        self.fail_next = true;
    }

    /// The process was killed in the middle of this step: any of its units may have reached the page cache, a flush
    /// may have happened.
    pub(crate) fn interrupt(&mut self, step: &Step) {
        match step {
            Step::Write { file, position, bytes } => {
                let mode = self.prng.below(3);
                for (unit, part) in bytes.chunks(UNIT).enumerate() {
                    if mode == 1 || mode == 2 && self.prng.chance(1, 2) {
                        let at = position + (unit * UNIT) as u64;
                        self.file(*file).write(at, part);
                    }
                }
            }
            Step::Flush { file } => {
                if self.prng.chance(1, 2) {
                    self.file(*file).flush();
                }
            }
            Step::Truncate { .. } | Step::Remove { .. } => {
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
        for file in self.files.values_mut() {
            let unflushed = std::mem::take(&mut file.unflushed);
            for (position, bytes) in unflushed {
                for (unit, part) in bytes.chunks(UNIT).enumerate() {
                    let keep = match mode {
                        0 => false,
                        1 => self.prng.chance(15, 16),
                        _ => self.prng.chance(1, 2),
                    };
                    if keep {
                        file.put(position + (unit * UNIT) as u64, part);
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
        let file = self.files.entry(file).or_default();
        for (position, bytes) in std::mem::take(&mut file.unflushed) {
            for (unit, part) in bytes.chunks(UNIT).enumerate() {
                if self.prng.chance(1, 2) {
                    file.put(position + (unit * UNIT) as u64, part);
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

    fn flush(&mut self) {
        for (position, bytes) in std::mem::take(&mut self.unflushed) {
            self.put(position, &bytes);
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
        if file == File::Wal {
            self.wraps += u64::from(self.recent.back().is_some_and(|(before, _)| position < *before));
            self.recent.push_back((position, bytes.len() as u64));
            if RECENT_MAX < self.recent.len() {
                self.recent.pop_front();
            }
        }
        self.file(file).write(position, bytes);
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

    fn remove(&mut self, file: File) -> io::Result<()> {
        self.files.remove(&file);
        Ok(())
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        let packs = self.files.keys().filter_map(|file| match file {
            File::Pack(number) => Some(*number),
            File::Superblock | File::Wal => None,
        });
        Ok(packs.collect())
    }

    fn reserve(&mut self, file: File, _bytes: u64) -> io::Result<()> {
        self.file(file);
        Ok(())
    }

    fn available(&mut self) -> io::Result<u64> {
        Ok(u64::MAX)
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
