//! A data directory of the operating system: one process at a time, direct I/O where the filesystem takes it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::buffer::Buffer;
use crate::{Disk, File, FormatError, OpenError};

pub(crate) const LOCK_NAME: &str = "lock";

/// What `O_DIRECT` asks of positions, lengths and memory.
const ALIGNMENT: usize = 4096;

/// A data directory that this process holds: nobody else can open it until this is dropped or the process ends.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Held for as long as they are open: the lock's file, and the superblock's, which nobody removes for being stale.
    locks: [fs::File; 2],
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
        let locked = |error| match error {
            TryLockError::WouldBlock => FormatError::Locked { path: path.clone() },
            TryLockError::Error(source) => failed("lock")(source),
        };
        let lock = open_lock(&path).map_err(failed("write to"))?;
        lock.try_lock().map_err(locked)?;
        let mut create = OpenOptions::new();
        create.write(true).create_new(true);
        let make = |file: File| create.open(path.join(file.name())).map_err(failed("make the files in"));
        let superblock = make(File::Superblock)?;
        superblock.try_lock().map_err(locked)?;
        make(File::Wal)?;
        // The names must survive a power cut as well as the bytes: those of the files, and that of the directory.
        sync_directory(&path).map_err(failed("flush"))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(failed("flush the directory above"))?;
        }
        Ok(DataDirectory { path, locks: [lock, superblock] })
    }

    /// Opens a directory that [`DataDirectory::create`] made.
    pub fn open(path: impl Into<PathBuf>) -> Result<DataDirectory, OpenError> {
        let path = path.into();
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", path.display());
            move |source| OpenError::Disk { doing, source }
        };
        refuse_what_is_no_file(&path)?;
        refuse_odd_lock(&path)?;
        let lock = open_lock(&path).map_err(failed("write to"))?;
        let mut write = OpenOptions::new();
        write.write(true);
        let superblock = write.open(path.join(File::Superblock.name())).map_err(failed("write to"))?;
        for held in [&lock, &superblock] {
            held.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => OpenError::Locked { path: path.clone() },
                TryLockError::Error(source) => failed("lock")(source),
            })?;
        }
        Ok(DataDirectory { path, locks: [lock, superblock] })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this filesystem can make holes in files. Where it can't, room comes back with whole files alone.
    pub fn makes_holes(&self) -> bool {
        let [lock, _] = &self.locks;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // It is empty, and stays so.
        rustix::fs::fallocate(lock, flags, 0, ALIGNMENT as u64).is_ok()
    }

    /// The files of the directory as a disk.
    pub fn disk(&self) -> io::Result<RealDisk> {
        Ok(RealDisk {
            superblock: OpenFile::open_named(&self.path.join(File::Superblock.name()))?,
            wal: OpenFile::open_named(&self.path.join(File::Wal.name()))?,
            packs: BTreeMap::new(),
            directory: self.path.clone(),
            scratch: Buffer::zeroed(0),
        })
    }
}

/// Looks whether the files that every data directory has are files, and says what is the matter with the first that is none.
pub(crate) fn refuse_what_is_no_file(directory: &Path) -> Result<(), OpenError> {
    let found = File::FIXED.map(|file| look_for_file(&directory.join(file.name())));
    let gone = |found: &Result<(), OpenError>| matches!(found, Err(OpenError::FileMissing { .. }));
    if found.iter().all(gone) {
        return Err(OpenError::Missing { path: directory.to_owned() });
    }
    found.into_iter().collect()
}

/// Says what is the matter with a lock that is there and no file. One that is not there is made.
pub(crate) fn refuse_odd_lock(directory: &Path) -> Result<(), OpenError> {
    match look_for_file(&directory.join(LOCK_NAME)) {
        Err(OpenError::FileMissing { .. }) => Ok(()),
        looked => looked,
    }
}

fn look_for_file(path: &Path) -> Result<(), OpenError> {
    let no_file = |what: String| OpenError::NotAFile { path: path.to_owned(), what };
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(found) if found.is_dir() => Err(no_file("a directory".to_owned())),
        Ok(_) => Err(no_file("a device, a pipe or a socket".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(to) => Err(no_file(format!("a link to {}, which is not there", to.display()))),
            Err(_) => Err(OpenError::FileMissing { path: path.to_owned() }),
        },
        Err(source) => Err(OpenError::Disk { doing: format!("look at {}", path.display()), source }),
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
    /// Those used so far.
    packs: BTreeMap<u64, OpenFile>,
    directory: PathBuf,
    /// For callers whose memory is not aligned.
    scratch: Buffer,
}

/// A file of a data directory, open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: fs::File,
    path: PathBuf,
    /// Whether the page cache is passed by.
    direct: bool,
    /// The file was made by this process, and its name may not be durable yet.
    new: bool,
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<OpenFile> {
        OpenFile::open_with(path, OpenOptions::new().read(true).write(true))
    }

    /// The error names the file.
    fn open_named(path: &Path) -> io::Result<OpenFile> {
        OpenFile::open(path).map_err(|error| named("open", path, &error))
    }

    /// To read it, and never to write.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<OpenFile> {
        OpenFile::open_with(path, OpenOptions::new().read(true))
    }

    fn open_with(path: &Path, options: &OpenOptions) -> io::Result<OpenFile> {
        // Even a directory can be opened to read it, and a pipe is waited for.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        let (plain, mut options) = (options, options.clone());
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        // Some filesystems (tmpfs of older kernels, overlays) refuse the flag, others take it and refuse to read.
        let direct = options.custom_flags(flags).open(path).ok().filter(|file| {
            let mut probe = Buffer::zeroed(ALIGNMENT);
            file.read_at(probe.as_mut(), 0).is_ok()
        });
        let path = path.to_owned();
        match direct {
            Some(file) => Ok(OpenFile { file, path, direct: true, new: false }),
            None => Ok(OpenFile { file: plain.open(&path)?, path, direct: false, new: false }),
        }
    }

    fn make(path: &Path) -> io::Result<OpenFile> {
        OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(OpenFile { new: true, ..OpenFile::open(path)? })
    }

    fn name_error(&self, doing: &str, error: &io::Error) -> io::Error {
        named(doing, &self.path, error)
    }

    /// Whether this memory can't be read or written as it is.
    fn needs_scratch(&self, memory: &[u8]) -> bool {
        self.direct && memory.as_ptr().align_offset(ALIGNMENT) != 0
    }

    pub(crate) fn read(&self, position: u64, buffer: &mut [u8], scratch: &mut Buffer) -> io::Result<()> {
        let result = if self.needs_scratch(buffer) {
            let scratch = fitted(scratch, buffer.len());
            self.file.read_exact_at(scratch.as_mut(), position).map(|()| buffer.copy_from_slice(scratch))
        } else {
            self.file.read_exact_at(buffer, position)
        };
        result.map_err(|error| self.name_error("read", &error))
    }

    fn write(&self, position: u64, bytes: &[u8], scratch: &mut Buffer) -> io::Result<()> {
        let result = if self.needs_scratch(bytes) {
            let scratch = fitted(scratch, bytes.len());
            scratch.as_mut().copy_from_slice(bytes);
            self.file.write_all_at(scratch, position)
        } else {
            self.file.write_all_at(bytes, position)
        };
        result.map_err(|error| self.name_error("write", &error))
    }

    pub(crate) fn size(&self) -> io::Result<u64> {
        let metadata = self.file.metadata().map_err(|error| self.name_error("look at", &error))?;
        Ok(metadata.len())
    }
}

fn fitted(scratch: &mut Buffer, length: usize) -> &mut Buffer {
    if scratch.len() != length {
        *scratch = Buffer::zeroed(length);
    }
    scratch
}

impl RealDisk {
    /// Whether reads and writes pass the page cache by.
    pub fn is_direct(&self) -> bool {
        self.superblock.direct && self.wal.direct
    }

    /// Opens a pack that is there, once.
    fn open_pack(&mut self, file: File) -> io::Result<()> {
        if let File::Pack(number) = file
            && !self.packs.contains_key(&number)
        {
            let path = self.directory.join(file.name());
            let open = OpenFile::open(&path).map_err(|error| named("open", &path, &error))?;
            self.packs.insert(number, open);
        }
        Ok(())
    }

    /// Makes a pack, unless it is there.
    fn make_pack(&mut self, file: File) -> io::Result<()> {
        if let File::Pack(number) = file
            && !self.packs.contains_key(&number)
        {
            let path = self.directory.join(file.name());
            if !path.try_exists()? {
                let open = OpenFile::make(&path).map_err(|error| named("make", &path, &error))?;
                self.packs.insert(number, open);
            }
        }
        Ok(())
    }

    fn open_file(&mut self, file: File) -> io::Result<&mut OpenFile> {
        self.open_pack(file)?;
        Ok(self.opened(file).0)
    }

    /// A file that is open, and the scratch memory.
    fn opened(&mut self, file: File) -> (&mut OpenFile, &mut Buffer) {
        let RealDisk { superblock, wal, packs, scratch, .. } = self;
        let open = match file {
            File::Superblock => superblock,
            File::Wal => wal,
            File::Pack(number) => packs.get_mut(&number).expect("a pack is opened before it is used"),
        };
        (open, scratch)
    }
}

pub(crate) fn named(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}

/// The numbers of the packs in a directory, ascending.
pub(crate) fn packs_of(directory: &Path) -> io::Result<Vec<u64>> {
    let failed = |error| named("list", directory, &error);
    let mut packs = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        let name = found.map_err(failed)?.file_name();
        if let Some(File::Pack(number)) = name.to_str().and_then(File::of_name) {
            packs.push(number);
        }
    }
    packs.sort_unstable();
    Ok(packs)
}

impl Disk for RealDisk {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.open_pack(file)?;
        let (open, scratch) = self.opened(file);
        open.read(position, buffer, scratch)
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.make_pack(file)?;
        self.open_pack(file)?;
        let (open, scratch) = self.opened(file);
        open.write(position, bytes, scratch)
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        let directory = self.directory.clone();
        let open = self.open_file(file)?;
        open.file.sync_data().map_err(|error| open.name_error("flush", &error))?;
        if open.new {
            sync_directory(&directory).map_err(|error| named("flush", &directory, &error))?;
            open.new = false;
        }
        Ok(())
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        if let File::Pack(_) = file
            && !self.directory.join(file.name()).try_exists()?
        {
            return Ok(0);
        }
        self.open_file(file)?.size()
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        assert!(matches!(file, File::Pack(_)));
        let open = self.open_file(file)?;
        open.file.set_len(size).map_err(|error| open.name_error("cut", &error))
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        assert!(matches!(file, File::Pack(_)));
        let open = self.open_file(file)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = rustix::fs::fallocate(&open.file, flags, position, length).map_err(io::Error::from);
        punched.map_err(|error| open.name_error("give back room of", &error))
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        let File::Pack(number) = file else { return Err(io::ErrorKind::PermissionDenied.into()) };
        self.packs.remove(&number);
        let path = self.directory.join(file.name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named("remove", &path, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        packs_of(&self.directory)
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        self.make_pack(file)?;
        let size = self.size(file)?;
        let flags = FallocateFlags::KEEP_SIZE;
        let open = self.open_file(file)?;
        match rustix::fs::fallocate(&open.file, flags, 0, bytes).map_err(io::Error::from) {
            Ok(()) => Ok(()),
            // A filesystem that can't reserve: what is free now has to do.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if size.saturating_add(self.available()?) < bytes {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(())
            }
            Err(error) => Err(open.name_error("reserve space for", &error)),
        }
    }

    fn available(&mut self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.directory).map_err(io::Error::from);
        let found = found.map_err(|error| named("look at the filesystem of", &self.directory, &error))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}
