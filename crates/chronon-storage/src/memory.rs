//! Disks for tests: one in memory, and one that forgets what was not flushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use crate::{Disk, File};

/// What a disk writes as a whole: a power cut leaves each sector old or new.
pub const SECTOR_SIZE: usize = 512;

/// A disk in memory. Everything written is there at once; wrap it into an [`UnflushedDisk`] for power cuts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDisk {
    superblock: Vec<u8>,
    wal: Vec<u8>,
    packs: BTreeMap<u64, Vec<u8>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// The bytes of a file; none when it is not there.
    pub fn bytes(&self, file: File) -> &[u8] {
        match file {
            File::Superblock => &self.superblock,
            File::Wal => &self.wal,
            File::Pack(number) => self.packs.get(&number).map_or(&[], Vec::as_slice),
        }
    }

    /// The bytes of a file, to damage them. A pack that is not there is made.
    pub fn bytes_mut(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Superblock => &mut self.superblock,
            File::Wal => &mut self.wal,
            File::Pack(number) => self.packs.entry(number).or_default(),
        }
    }
}

impl Disk for MemoryDisk {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes(file);
        let range = usize::try_from(position)
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        let held = self.bytes_mut(file);
        if held.len() < end {
            held.resize(end, 0);
        }
        held[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, _file: File) -> io::Result<()> {
        Ok(())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        Ok(self.bytes(file).len() as u64)
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.bytes_mut(file).truncate(size);
        Ok(())
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        let held = self.bytes_mut(file);
        let inside = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(held.len());
        let part = inside(position)..inside(position.saturating_add(length));
        held[part].fill(0);
        Ok(())
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        match file {
            File::Pack(number) => {
                self.packs.remove(&number);
                Ok(())
            }
            File::Superblock | File::Wal => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.packs.keys().copied().collect())
    }

    fn reserve(&mut self, file: File, _bytes: u64) -> io::Result<()> {
        self.bytes_mut(file);
        Ok(())
    }

    fn available(&mut self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// What a disk is about to do, told to a [`Hook`] before it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A read of that many bytes.
    Read {
        /// The file.
        file: File,
        /// Where.
        position: u64,
        /// Bytes.
        length: usize,
    },
    /// A write of that many bytes.
    Write {
        /// The file.
        file: File,
        /// Where.
        position: u64,
        /// Bytes.
        length: usize,
    },
    /// A flush.
    Flush {
        /// The file.
        file: File,
    },
    /// Space set aside for a pack.
    Reserve {
        /// The file.
        file: File,
        /// From its start.
        bytes: u64,
    },
    /// A pack is cut.
    Truncate {
        /// The file.
        file: File,
        /// Bytes that stay.
        size: u64,
    },
    /// Room of a part of a pack is given back.
    Punch {
        /// The file.
        file: File,
        /// Where.
        position: u64,
        /// Bytes.
        length: u64,
    },
    /// A pack is removed.
    Remove {
        /// The file.
        file: File,
    },
}

/// Looks at each operation before it happens: it may wait (a stalled disk) or refuse (a failing one).
pub type Hook = Box<dyn FnMut(Operation) -> io::Result<()> + Send>;

/// A disk that keeps what was not flushed in memory and hands it to the inner disk on a flush, so that the death of
/// the process loses exactly what a power cut may lose. Reads see unflushed writes, as they do in a page cache.
pub struct UnflushedDisk<D> {
    inner: D,
    unflushed: VecDeque<Unflushed>,
    hook: Option<Hook>,
}

struct Unflushed {
    file: File,
    change: Change,
}

enum Change {
    Write { position: u64, bytes: Vec<u8> },
    Truncate { size: u64 },
    Punch { position: u64, length: u64 },
    Remove,
}

impl<D: Disk> UnflushedDisk<D> {
    /// Nothing unflushed, no hook.
    pub fn new(inner: D) -> UnflushedDisk<D> {
        UnflushedDisk { inner, unflushed: VecDeque::new(), hook: None }
    }

    /// Asks this hook before each operation.
    pub fn with_hook(mut self, hook: Hook) -> UnflushedDisk<D> {
        self.hook = Some(hook);
        self
    }

    /// The power fails: of the unflushed sectors, those for which `keep` says so reached the inner disk, in the
    /// order written; a cut or a removal is asked about at the position where the file ends after it, a hole where it
    /// starts. Returns the inner disk.
    pub fn power_cut(mut self, mut keep: impl FnMut(File, u64) -> bool) -> io::Result<D> {
        for Unflushed { file, change } in &self.unflushed {
            match change {
                Change::Write { position, bytes } => {
                    for (index, sector) in bytes.chunks(SECTOR_SIZE).enumerate() {
                        let position = position + (index * SECTOR_SIZE) as u64;
                        if keep(*file, position) {
                            self.inner.write(*file, position, sector)?;
                        }
                    }
                }
                Change::Truncate { size } if keep(*file, *size) => self.inner.truncate(*file, *size)?,
                Change::Punch { position, length } if keep(*file, *position) => {
                    self.inner.punch(*file, *position, *length)?;
                }
                Change::Remove if keep(*file, 0) => self.inner.remove(*file)?,
                Change::Truncate { .. } | Change::Punch { .. } | Change::Remove => {}
            }
        }
        Ok(self.inner)
    }

    /// The inner disk, to look at what is flushed.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn ask(&mut self, operation: Operation) -> io::Result<()> {
        self.hook.as_mut().map_or(Ok(()), |hook| hook(operation))
    }

    fn changes(&self, file: File) -> impl Iterator<Item = &Change> {
        self.unflushed
            .iter()
            .filter(move |unflushed| unflushed.file == file)
            .map(|unflushed| &unflushed.change)
    }
}

impl<D: Disk> Disk for UnflushedDisk<D> {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.ask(Operation::Read { file, position, length: buffer.len() })?;
        let end = position + buffer.len() as u64;
        if self.size(file)? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // What the inner file does not have yet may be unflushed: zeros stand for it until the writes are laid over.
        let inner_end = end.min(self.inner.size(file)?).max(position);
        let (flushed, beyond) = buffer.split_at_mut((inner_end - position) as usize);
        if !flushed.is_empty() {
            self.inner.read(file, position, flushed)?;
        }
        beyond.fill(0);
        for change in self.changes(file) {
            let (from, to) = match change {
                Change::Write { position: start, bytes } => (*start, start + bytes.len() as u64),
                Change::Truncate { size } => (*size, end),
                Change::Punch { position, length } => (*position, position + length),
                Change::Remove => (0, end),
            };
            let (from, to) = (from.max(position), to.min(end));
            if to <= from {
                continue;
            }
            let target = &mut buffer[(from - position) as usize..(to - position) as usize];
            match change {
                Change::Write { position: start, bytes } => {
                    target.copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
                }
                Change::Truncate { .. } | Change::Punch { .. } | Change::Remove => target.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(Operation::Write { file, position, length: bytes.len() })?;
        let change = Change::Write { position, bytes: bytes.to_vec() };
        self.unflushed.push_back(Unflushed { file, change });
        Ok(())
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        self.ask(Operation::Flush { file })?;
        for unflushed in self.unflushed.iter().filter(|unflushed| unflushed.file == file) {
            match &unflushed.change {
                Change::Write { position, bytes } => self.inner.write(file, *position, bytes)?,
                Change::Truncate { size } => self.inner.truncate(file, *size)?,
                Change::Punch { position, length } => self.inner.punch(file, *position, *length)?,
                Change::Remove => self.inner.remove(file)?,
            }
        }
        self.inner.flush(file)?;
        self.unflushed.retain(|unflushed| unflushed.file != file);
        Ok(())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        let size = self.inner.size(file)?;
        Ok(self.changes(file).fold(size, |size, change| match change {
            Change::Write { position, bytes } => size.max(position + bytes.len() as u64),
            Change::Truncate { size: cut } => size.min(*cut),
            Change::Punch { .. } => size,
            Change::Remove => 0,
        }))
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        self.ask(Operation::Truncate { file, size })?;
        self.unflushed.push_back(Unflushed { file, change: Change::Truncate { size } });
        Ok(())
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        self.ask(Operation::Punch { file, position, length })?;
        self.unflushed.push_back(Unflushed { file, change: Change::Punch { position, length } });
        Ok(())
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        self.ask(Operation::Remove { file })?;
        self.unflushed.push_back(Unflushed { file, change: Change::Remove });
        Ok(())
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        let mut packs: BTreeSet<u64> = self.inner.packs()?.into_iter().collect();
        for Unflushed { file, change } in &self.unflushed {
            if let File::Pack(number) = file {
                match change {
                    Change::Write { .. } => drop(packs.insert(*number)),
                    Change::Truncate { .. } | Change::Punch { .. } => {}
                    Change::Remove => drop(packs.remove(number)),
                }
            }
        }
        Ok(packs.into_iter().collect())
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        self.ask(Operation::Reserve { file, bytes })?;
        self.inner.reserve(file, bytes)
    }

    fn available(&mut self) -> io::Result<u64> {
        self.inner.available()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unflushed_writes_are_read_but_lost_with_the_power() {
        let mut disk = UnflushedDisk::new(MemoryDisk::new());
        disk.write(File::Wal, 0, &[1; 1024]).unwrap();
        disk.flush(File::Wal).unwrap();
        disk.write(File::Wal, 512, &[2; 1024]).unwrap();
        disk.write(File::Superblock, 0, &[3; 512]).unwrap();
        disk.flush(File::Superblock).unwrap();

        let mut seen = [0; 1024];
        disk.read(File::Wal, 256, &mut seen).unwrap();
        assert_eq!(seen[..256], [1; 256]);
        assert_eq!(seen[256..], [2; 768]);
        assert_eq!(disk.size(File::Wal).unwrap(), 1536);
        disk.write(File::Pack(1), 0, &[4; 1024]).unwrap();
        disk.read(File::Pack(1), 512, &mut seen[..512]).unwrap();
        assert_eq!(seen[..512], [4; 512]);
        disk.truncate(File::Pack(1), 512).unwrap();
        assert!(disk.read(File::Pack(1), 512, &mut seen[..512]).is_err());
        assert_eq!(disk.packs().unwrap(), [1]);
        disk.punch(File::Pack(1), 0, 100).unwrap();
        disk.read(File::Pack(1), 0, &mut seen[..200]).unwrap();
        assert_eq!((&seen[..100], &seen[100..200]), (&[0; 100][..], &[4; 100][..]));
        disk.remove(File::Pack(1)).unwrap();
        assert_eq!(disk.packs().unwrap(), []);
        assert_eq!(disk.inner().bytes(File::Wal), [1; 1024]);

        let torn = disk.power_cut(|_, position| position == 1024).unwrap();
        assert_eq!(torn.bytes(File::Wal)[..1024], [1; 1024]);
        assert_eq!(torn.bytes(File::Wal)[1024..], [2; 512]);
        assert_eq!(torn.bytes(File::Superblock), [3; 512]);
    }

    #[test]
    fn a_hook_can_fail_any_operation() {
        let mut disk =
            UnflushedDisk::new(MemoryDisk::new()).with_hook(Box::new(|operation| match operation {
                Operation::Flush { .. } => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }));
        disk.write(File::Wal, 0, &[1; 512]).unwrap();
        assert_eq!(disk.flush(File::Wal).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.inner().bytes(File::Wal), []);
    }
}
