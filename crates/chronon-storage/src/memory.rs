//! Disks for tests: one in memory, and one that forgets what was not flushed.

use std::collections::VecDeque;
use std::io;

use crate::{Disk, File};

/// What a disk writes as a whole: a power cut leaves each sector old or new.
pub const SECTOR_SIZE: usize = 512;

/// A disk in memory. Everything written is there at once; wrap it into an [`UnflushedDisk`] for power cuts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDisk {
    superblock: Vec<u8>,
    wal: Vec<u8>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// The bytes of a file.
    pub fn bytes(&self, file: File) -> &[u8] {
        match file {
            File::Superblock => &self.superblock,
            File::Wal => &self.wal,
        }
    }

    /// The bytes of a file, to damage them.
    pub fn bytes_mut(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Superblock => &mut self.superblock,
            File::Wal => &mut self.wal,
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
    position: u64,
    bytes: Vec<u8>,
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
    /// order written. Returns the inner disk.
    pub fn power_cut(mut self, mut keep: impl FnMut(File, u64) -> bool) -> io::Result<D> {
        for write in &self.unflushed {
            for (index, sector) in write.bytes.chunks(SECTOR_SIZE).enumerate() {
                let position = write.position + (index * SECTOR_SIZE) as u64;
                if keep(write.file, position) {
                    self.inner.write(write.file, position, sector)?;
                }
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
}

impl<D: Disk> Disk for UnflushedDisk<D> {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.ask(Operation::Read { file, position, length: buffer.len() })?;
        let end = position + buffer.len() as u64;
        // What the inner file does not have yet may be unflushed: zeros stand for it until the writes are laid over.
        let inner_end = end.min(self.inner.size(file)?).max(position);
        let (flushed, beyond) = buffer.split_at_mut((inner_end - position) as usize);
        self.inner.read(file, position, flushed)?;
        beyond.fill(0);
        if self.size(file)? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for write in self.unflushed.iter().filter(|write| write.file == file) {
            let from = position.max(write.position);
            let to = end.min(write.position + write.bytes.len() as u64);
            if from < to {
                let source = (from - write.position) as usize..(to - write.position) as usize;
                buffer[(from - position) as usize..(to - position) as usize]
                    .copy_from_slice(&write.bytes[source]);
            }
        }
        Ok(())
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(Operation::Write { file, position, length: bytes.len() })?;
        self.unflushed.push_back(Unflushed { file, position, bytes: bytes.to_vec() });
        Ok(())
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        self.ask(Operation::Flush { file })?;
        for write in self.unflushed.iter().filter(|write| write.file == file) {
            self.inner.write(file, write.position, &write.bytes)?;
        }
        self.inner.flush(file)?;
        self.unflushed.retain(|write| write.file != file);
        Ok(())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        let unflushed = self.unflushed.iter().filter(|write| write.file == file);
        let end = unflushed.map(|write| write.position + write.bytes.len() as u64).max();
        Ok(self.inner.size(file)?.max(end.unwrap_or(0)))
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
                Operation::Read { .. } | Operation::Write { .. } => Ok(()),
            }));
        disk.write(File::Wal, 0, &[1; 512]).unwrap();
        assert_eq!(disk.flush(File::Wal).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.inner().bytes(File::Wal), []);
    }
}
