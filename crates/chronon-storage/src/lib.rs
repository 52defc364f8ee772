//! What a replica keeps: the superblock, the write-ahead log and checkpoints, over a small [`Disk`] trait.
//!
//! [`Journal`] decides what is written where and when it counts as durable; it holds no disk. A driver takes its
//! [`Job`]s, carries them out in order, and tells it: the server on a thread of its own ([`perform`] on a
//! [`RealDisk`]), the simulator in virtual time. [`open`] reads a data directory back and decides, by one table
//! (`table.rs`), what was durable, what was torn by a crash and what has rotted. [`Vault`] keeps the chunks of checkpoints in the same way, in files of
//! their own. [`inspect`] looks at a directory without changing it. `docs/format.md` has the bytes.
#![forbid(unsafe_code)]

mod buffer;
mod bytes;
mod directory;
mod disk;
mod group;
mod inspect;
mod journal;
mod list;
mod memory;
mod open;
mod pack;
mod read_only;
mod scan;
mod superblock;
mod table;
mod vault;

pub use buffer::Bytes;
pub use directory::{DataDirectory, RealDisk};
pub use disk::{Disk, File, Step, perform, perform_step};
pub use group::wal_size;
pub use inspect::{
    ChainReport, CheckpointReport, CopyReport, Inspection, LogDamage, LogReport, PackDamage,
    SuperblockReport, inspect, replica_at_rest,
};
pub use journal::{GroupDamage, Job, JobId, Journal, WalScrubbed};
pub use list::{CHUNKS_MAX, ChunkList, ListError};
pub use memory::{Hook, MemoryDisk, Operation, SECTOR_SIZE, UnflushedDisk};
pub use open::{Damage, Expect, FormatError, Identity, OpenError, format, open};
pub use read_only::{ReadOnlyDirectory, ReadOnlyDisk};
pub use superblock::CopyFault;
pub use vault::{ChunkDamage, Found, Scrubbed, Vault, VaultError, VaultUsage};
