//! A data directory of the operating system that is looked at and never changed.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::buffer::Buffer;
use crate::directory::{LOCK_NAME, OpenFile, packs_of, refuse_odd_lock, refuse_what_is_no_file};
use crate::{Disk, File, OpenError};

/// A data directory, whatever is left of it. While this lives no replica starts in it: what is being looked at stays
/// as it is. Others may look at the same time.
#[derive(Debug)]
pub struct ReadOnlyDirectory {
    path: PathBuf,
    /// Held for as long as they are open: of the lock's file and the superblock's, those that are not gone.
    _locks: Vec<fs::File>,
}

impl ReadOnlyDirectory {
    /// Looks at a directory. Refuses one that a process writes to, and one that has none of the files.
    pub fn open(path: impl Into<PathBuf>) -> Result<ReadOnlyDirectory, OpenError> {
        let path = path.into();
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", path.display());
            move |source| OpenError::Disk { doing, source }
        };
        let packs = match packs_of(&path) {
            Ok(packs) => packs,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(OpenError::Missing { path });
            }
            Err(source) => return Err(OpenError::Disk { doing: "look around".to_owned(), source }),
        };
        if packs.is_empty()
            && let Err(missing @ OpenError::Missing { .. }) = refuse_what_is_no_file(&path)
        {
            return Err(missing);
        }
        refuse_odd_lock(&path)?;
        let mut locks = Vec::new();
        for name in [LOCK_NAME.to_owned(), File::Superblock.name()] {
            let file = path.join(&name);
            // Whoever opens a pipe waits for somebody to write to it.
            if fs::metadata(&file).is_ok_and(|found| !found.is_file()) {
                continue;
            }
            match fs::File::open(file) {
                Ok(lock) => match lock.try_lock_shared() {
                    Ok(()) => locks.push(lock),
                    Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path }),
                    Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
                },
                Err(source) if name == LOCK_NAME && source.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("open the lock of")(source));
                }
                // A superblock that can't be opened is told of by whoever reads it.
                Err(_) => {}
            }
        }
        Ok(ReadOnlyDirectory { path, _locks: locks })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why a start would refuse before it reads anything: a file that is gone, or is none.
    pub fn refusal(&self) -> Option<OpenError> {
        refuse_what_is_no_file(&self.path).err()
    }

    /// The files of the directory as a disk that takes no writes.
    pub fn disk(&self) -> ReadOnlyDisk {
        ReadOnlyDisk { directory: self.path.clone(), files: BTreeMap::new(), scratch: Buffer::zeroed(0) }
    }
}

/// The real disk, for reading only. A file that is gone has no bytes.
#[derive(Debug)]
pub struct ReadOnlyDisk {
    directory: PathBuf,
    /// Those used so far.
    files: BTreeMap<File, OpenFile>,
    scratch: Buffer,
}

impl ReadOnlyDisk {
    /// Opens a file, once. None if it is gone, or no file: a start looks no further, either.
    fn open(&mut self, file: File) -> io::Result<Option<(&OpenFile, &mut Buffer)>> {
        if !self.files.contains_key(&file) {
            let path = self.directory.join(file.name());
            match fs::metadata(&path) {
                Ok(found) if found.is_file() => drop(self.files.insert(file, OpenFile::open_to_read(&path)?)),
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.files.get(&file).map(|open| (open, &mut self.scratch)))
    }
}

impl Disk for ReadOnlyDisk {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (open, scratch) = self.open(file)?.ok_or(io::ErrorKind::NotFound)?;
        open.read(position, buffer, scratch)
    }

    fn write(&mut self, _file: File, _position: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Nothing was written, so nothing is left to flush. What can't be opened could not be flushed either.
    fn flush(&mut self, file: File) -> io::Result<()> {
        self.open(file)?.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        self.open(file)?.map_or(Ok(0), |(open, _)| open.size())
    }

    fn truncate(&mut self, _file: File, _size: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn punch(&mut self, _file: File, _position: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn remove(&mut self, _file: File) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        packs_of(&self.directory)
    }

    fn reserve(&mut self, _file: File, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn available(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}
