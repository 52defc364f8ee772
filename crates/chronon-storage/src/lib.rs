//! What a replica keeps: the superblock and the write-ahead log, over a small [`Disk`] trait.
//!
//! [`Journal`] decides what is written where and when it counts as durable; it holds no disk. A driver takes its
//! [`Job`]s, carries them out in order, and tells it: the server on a thread of its own ([`perform`] on a
//! [`RealDisk`]), the simulator in virtual time. [`open`] reads a data directory back and decides, by one table
//! (`table.rs`), what was durable, what was torn by a crash and what has rotted. `docs/format.md` has the bytes.
#![forbid(unsafe_code)]

mod buffer;
mod bytes;
mod directory;
mod disk;
mod group;
mod journal;
mod memory;
mod open;
mod scan;
mod superblock;
mod table;

pub use buffer::Bytes;
pub use directory::{DataDirectory, RealDisk};
pub use disk::{Disk, File, Step, perform, perform_step};
pub use journal::{Job, JobId, Journal};
pub use memory::{Hook, MemoryDisk, Operation, SECTOR_SIZE, UnflushedDisk};
pub use open::{Damage, Expect, FormatError, Identity, OpenError, format, open};
