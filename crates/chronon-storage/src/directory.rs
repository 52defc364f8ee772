//! A data directory of the operating system: one process at a time, direct I/O where the filesystem takes it.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::buffer::Buffer;
use crate::{Disk, File, FormatError, OpenError};

const LOCK_NAME: &str = "lock";

/// What `O_DIRECT` asks of positions, lengths and memory.
const ALIGNMENT: usize = 4096;

/// A data directory that this process holds: nobody else can open it until this is dropped or the process ends.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: fs::File,
}

impl DataDirectory {
    /// Makes a directory for [`crate::format`]: a new one, or an empty one that exists.
    pub fn create(path: impl Into<PathBuf>) -> Result<DataDirectory, FormatError> {
        let path = path.into();
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", path.display());
            move |source| FormatError::Disk { doing, source }
        };
        fs::create_dir_all(&path).map_err(failed("make the directory"))?;
        for found in fs::read_dir(&path).map_err(failed("list"))? {
            let found = found.map_err(failed("list"))?.file_name().to_string_lossy().into_owned();
            if found != LOCK_NAME {
                return Err(FormatError::NotEmpty { path, found });
            }
        }
        let lock = open_lock(&path).map_err(failed("write to"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FormatError::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        for file in File::ALL {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            options.open(path.join(file.name())).map_err(failed("make the files in"))?;
        }
        // The names must survive a power cut as well as the bytes: those of the files, and that of the directory.
        sync_directory(&path).map_err(failed("flush"))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(failed("flush the directory above"))?;
        }
        Ok(DataDirectory { path, _lock: lock })
    }

    /// Opens a directory that [`DataDirectory::create`] made.
    pub fn open(path: impl Into<PathBuf>) -> Result<DataDirectory, OpenError> {
        let path = path.into();
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", path.display());
            move |source| OpenError::Disk { doing, source }
        };
        let (there, missing): (Vec<File>, Vec<File>) =
            File::ALL.into_iter().partition(|file| path.join(file.name()).is_file());
        match missing.first() {
            None => {}
            Some(_) if there.is_empty() => return Err(OpenError::Missing { path }),
            Some(file) => return Err(OpenError::FileMissing { path: path.join(file.name()) }),
        }
        let lock = open_lock(&path).map_err(failed("write to"))?;
        match lock.try_lock() {
            Ok(()) => Ok(DataDirectory { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of the directory as a disk.
    pub fn disk(&self) -> io::Result<RealDisk> {
        Ok(RealDisk {
            superblock: OpenFile::open(&self.path.join(File::Superblock.name()))?,
            wal: OpenFile::open(&self.path.join(File::Wal.name()))?,
            scratch: Buffer::zeroed(0),
        })
    }
}

fn open_lock(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path.join(LOCK_NAME))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// The real disk: positional reads and writes, and `fdatasync`.
#[derive(Debug)]
pub struct RealDisk {
    superblock: OpenFile,
    wal: OpenFile,
    /// For callers whose memory is not aligned.
    scratch: Buffer,
}

#[derive(Debug)]
struct OpenFile {
    file: fs::File,
    path: PathBuf,
    /// Whether the page cache is passed by.
    direct: bool,
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<OpenFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let plain = options.clone();
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        // Some filesystems (tmpfs of older kernels, overlays) refuse the flag, others take it and refuse to read.
        let direct = options.custom_flags(flags).open(path).ok().filter(|file| {
            let mut probe = Buffer::zeroed(ALIGNMENT);
            file.read_at(probe.as_mut(), 0).is_ok()
        });
        let path = path.to_owned();
        match direct {
            Some(file) => Ok(OpenFile { file, path, direct: true }),
            None => Ok(OpenFile { file: plain.open(&path)?, path, direct: false }),
        }
    }

    fn name_error(&self, doing: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{doing} {}: {error}", self.path.display()))
    }
}

impl RealDisk {
    /// Whether reads and writes pass the page cache by.
    pub fn is_direct(&self) -> bool {
        self.superblock.direct && self.wal.direct
    }

    fn open_file(&self, file: File) -> &OpenFile {
        match file {
            File::Superblock => &self.superblock,
            File::Wal => &self.wal,
        }
    }

    /// A file, and scratch memory of this length if the caller's can't be used for direct I/O.
    fn file(&mut self, file: File, memory: &[u8]) -> (&OpenFile, Option<&mut Buffer>) {
        let open = match file {
            File::Superblock => &self.superblock,
            File::Wal => &self.wal,
        };
        if !open.direct || memory.as_ptr().align_offset(ALIGNMENT) == 0 {
            return (open, None);
        }
        if self.scratch.len() != memory.len() {
            self.scratch = Buffer::zeroed(memory.len());
        }
        (open, Some(&mut self.scratch))
    }
}

impl Disk for RealDisk {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (open, scratch) = self.file(file, buffer);
        let result = match scratch {
            None => open.file.read_exact_at(buffer, position),
            Some(scratch) => {
                open.file.read_exact_at(scratch.as_mut(), position).map(|()| buffer.copy_from_slice(scratch))
            }
        };
        result.map_err(|error| open.name_error("read", &error))
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        let (open, scratch) = self.file(file, bytes);
        let result = match scratch {
            None => open.file.write_all_at(bytes, position),
            Some(scratch) => {
                scratch.as_mut().copy_from_slice(bytes);
                open.file.write_all_at(scratch, position)
            }
        };
        result.map_err(|error| open.name_error("write", &error))
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        let open = self.open_file(file);
        open.file.sync_data().map_err(|error| open.name_error("flush", &error))
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        let open = self.open_file(file);
        open.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|error| open.name_error("look at", &error))
    }
}
