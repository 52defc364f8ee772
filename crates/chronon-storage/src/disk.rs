//! The disk as storage sees it: files, positions, flushes.

use std::fmt;
use std::io;

use crate::{Bytes, Job};

/// The highest number that a name of ten digits can hold.
pub(crate) const PACK_NUMBER_MAX: u64 = 9_999_999_999;

/// The files of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// Four copies of the superblock.
    Superblock,
    /// The write-ahead log: a ring of groups.
    Wal,
    /// Chunks of checkpoints. Numbers rise as long as there are higher ones; none is used again while the file of that
    /// number is there.
    Pack(u64),
}

impl File {
    /// The files that every data directory has.
    pub const FIXED: [File; 2] = [File::Superblock, File::Wal];

    /// The file's name in a data directory.
    pub fn name(self) -> String {
        self.to_string()
    }

    /// The file of this name, if there can be one.
    pub fn of_name(name: &str) -> Option<File> {
        let number = name.strip_prefix("pack-").and_then(|number| number.parse().ok());
        let number = number.filter(|number| *number <= PACK_NUMBER_MAX);
        let file = [File::Superblock, File::Wal].into_iter().chain(number.map(File::Pack));
        // A name that only looks like one of ours is not: `pack-7` is no `pack-0000000007`.
        file.into_iter().find(|file| file.name() == name)
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            File::Superblock => write!(f, "superblock"),
            File::Wal => write!(f, "wal"),
            File::Pack(number) => write!(f, "pack-{number:010}"),
        }
    }
}

/// Files of a data directory as byte ranges: positional, synchronous. Positions and lengths of writes are multiples
/// of 512. A write is durable only after a flush of its file that returned well.
///
/// After a write or a flush of the superblock or the WAL has failed nothing may be assumed of that file any more: its
/// driver stops the replica and never retries (a kernel may have dropped the pages and would call the second flush a
/// success). A pack's is told to the [`Vault`](crate::Vault), which never writes to that file again.
pub trait Disk {
    /// Reads exactly as many bytes as the buffer holds. An error counts as damage of what was read.
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all the bytes. Beyond the end the file grows; a pack that is not there is made.
    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes every write to this file that has returned durable, and the file's name with them.
    fn flush(&mut self, file: File) -> io::Result<()>;

    /// The file's size in bytes; 0 when there is none.
    fn size(&mut self, file: File) -> io::Result<u64>;

    /// Cuts a pack to this size, and gives back what was reserved for it. Whether that survives a power cut is left
    /// open: what lies behind is of no use to anybody.
    fn truncate(&mut self, file: File, size: u64) -> io::Result<()>;

    /// Gives back the room that these bytes of a pack take, if the filesystem can; they read as zeros from then on, or
    /// as before after a power cut. The file's size does not change.
    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()>;

    /// Removes a pack, if it is there. It may be back after a power cut.
    fn remove(&mut self, file: File) -> io::Result<()>;

    /// The numbers of all packs, ascending.
    fn packs(&mut self) -> io::Result<Vec<u64>>;

    /// Sets space aside, so that writes to this pack up to so many bytes from its start find room. Its size does not
    /// change; without room the error is [`StorageFull`](io::ErrorKind::StorageFull).
    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()>;

    /// Bytes that could still be written before the disk is full, besides what is reserved.
    fn available(&mut self) -> io::Result<u64>;
}

impl<D: Disk + ?Sized> Disk for &mut D {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read(file, position, buffer)
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write(file, position, bytes)
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        (**self).flush(file)
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        (**self).size(file)
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        (**self).truncate(file, size)
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        (**self).punch(file, position, length)
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        (**self).remove(file)
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        (**self).packs()
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        (**self).reserve(file, bytes)
    }

    fn available(&mut self) -> io::Result<u64> {
        (**self).available()
    }
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read(file, position, buffer)
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write(file, position, bytes)
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        (**self).flush(file)
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        (**self).size(file)
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        (**self).truncate(file, size)
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        (**self).punch(file, position, length)
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        (**self).remove(file)
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        (**self).packs()
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        (**self).reserve(file, bytes)
    }

    fn available(&mut self) -> io::Result<u64> {
        (**self).available()
    }
}

/// One thing for a disk to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Write these bytes there.
    Write {
        /// The file.
        file: File,
        /// Where, in bytes from its start.
        position: u64,
        /// What.
        bytes: Bytes,
    },
    /// Flush a file.
    Flush {
        /// The file.
        file: File,
    },
    /// Read copies back and compare them with what was written: fewer good ones than required is an error.
    ReadBack {
        /// The file.
        file: File,
        /// Where the first copy starts.
        position: u64,
        /// What must be there: the copies, one after another.
        bytes: Bytes,
        /// Bytes of one copy.
        copy_size: usize,
        /// How many copies must be right.
        copies_required: usize,
    },
    /// Set space aside for a pack.
    Reserve {
        /// The file.
        file: File,
        /// From its start.
        bytes: u64,
    },
    /// Cut a pack.
    Truncate {
        /// The file.
        file: File,
        /// Bytes that stay.
        size: u64,
    },
    /// Give back the room of a part of a pack.
    Punch {
        /// The file.
        file: File,
        /// Where the part starts, in bytes from the file's start.
        position: u64,
        /// Bytes of the part.
        length: u64,
    },
    /// Remove a pack.
    Remove {
        /// The file.
        file: File,
    },
}

/// Carries out a job, step by step. An error of a [`Journal`](crate::Journal)'s job means that the replica must stop.
pub fn perform(disk: &mut dyn Disk, job: &Job) -> io::Result<()> {
    job.steps.iter().try_for_each(|step| perform_step(disk, step))
}

/// Carries out one step of a job; the steps of a job are done in order.
pub fn perform_step(disk: &mut dyn Disk, step: &Step) -> io::Result<()> {
    match step {
        Step::Write { file, position, bytes } => disk.write(*file, *position, bytes),
        Step::Flush { file } => disk.flush(*file),
        Step::Reserve { file, bytes } => disk.reserve(*file, *bytes),
        Step::Truncate { file, size } => disk.truncate(*file, *size),
        Step::Punch { file, position, length } => disk.punch(*file, *position, *length),
        Step::Remove { file } => disk.remove(*file),
        Step::ReadBack { file, position, bytes, copy_size, copies_required } => {
            let mut found = crate::buffer::Buffer::zeroed(*copy_size);
            let mut right = 0;
            for (index, expected) in bytes.chunks_exact(*copy_size).enumerate() {
                let read = disk.read(*file, position + (index * copy_size) as u64, found.as_mut());
                right += usize::from(read.is_ok() && *found == *expected);
            }
            if right < *copies_required {
                let text = format!(
                    "{right} copies of the {} read back right, {copies_required} are needed",
                    file.name()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(())
        }
    }
}
