//! The disk as storage sees it: two files, positions, flushes.

use std::io;

use crate::{Bytes, Job};

/// The files of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// Four copies of the superblock.
    Superblock,
    /// The write-ahead log: a ring of groups.
    Wal,
}

impl File {
    /// Every file.
    pub const ALL: [File; 2] = [File::Superblock, File::Wal];

    /// The file's name in a data directory.
    pub const fn name(self) -> &'static str {
        match self {
            File::Superblock => "superblock",
            File::Wal => "wal",
        }
    }
}

/// Files of a data directory as byte ranges: positional, synchronous. Positions and lengths of writes are multiples
/// of 512. A write is durable only after a flush of its file that returned well.
///
/// After a write or a flush has failed nothing may be assumed of that file any more: its driver stops the replica
/// and never retries (a kernel may have dropped the pages and would call the second flush a success).
pub trait Disk {
    /// Reads exactly as many bytes as the buffer holds. An error counts as damage of what was read.
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all the bytes. Beyond the end the file grows.
    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes every write to this file that has returned durable.
    fn flush(&mut self, file: File) -> io::Result<()>;

    /// The file's size in bytes; 0 when there is none.
    fn size(&mut self, file: File) -> io::Result<u64>;
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
}

/// Carries out a job, step by step. An error means that the replica must stop.
pub fn perform(disk: &mut dyn Disk, job: &Job) -> io::Result<()> {
    job.steps.iter().try_for_each(|step| perform_step(disk, step))
}

/// Carries out one step of a job; the steps of a job are done in order.
pub fn perform_step(disk: &mut dyn Disk, step: &Step) -> io::Result<()> {
    match step {
        Step::Write { file, position, bytes } => disk.write(*file, *position, bytes),
        Step::Flush { file } => disk.flush(*file),
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
