//! What Front and the store of chunks say to one another. A driver carries it, on a thread that is neither Front's nor
//! the WAL's.

use alloc::vec::Vec;

use chronon_vsr::{Checkpoint, Checksum, Digest, OpRef, ReplicaId, Room};

/// What Front wants of the store of chunks.
#[derive(Clone, Debug)]
pub enum VaultTask {
    /// Say which chunks of this checkpoint are missing.
    Fetch(Checkpoint),
    /// Keep a chunk for the checkpoint of this root.
    Store {
        /// The checkpoint's root.
        root: Checksum,
        /// The chunk.
        id: Checksum,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Read and verify a chunk for a peer.
    Read {
        /// Who asked.
        to: ReplicaId,
        /// The chunk.
        id: Checksum,
    },
}

/// What the store of chunks reports.
#[derive(Clone, Debug)]
pub enum VaultReport {
    /// Every chunk of a frozen state, and their list, is durable.
    Frozen {
        /// The op behind which it was frozen.
        entry: OpRef,
        /// The digest after that op.
        digest: Digest,
        /// Names the list of its chunks.
        root: Checksum,
    },
    /// These chunks of a checkpoint are missing or damaged, at most 64 of them; only the root while the list is.
    Missing {
        /// The checkpoint's root.
        root: Checksum,
        /// The chunks.
        ids: Vec<Checksum>,
        /// How many are missing in all; 0 while the list is.
        in_all: u32,
    },
    /// Every chunk of this checkpoint is durable.
    Held {
        /// The checkpoint's root.
        root: Checksum,
    },
    /// A chunk is kept.
    Stored {
        /// The root of the checkpoint that it was fetched for.
        root: Checksum,
        /// The chunk.
        id: Checksum,
    },
    /// A chunk was read for a peer.
    Read {
        /// Who asked.
        to: ReplicaId,
        /// The chunk.
        id: Checksum,
        /// Its bytes; none when it is not here or damaged.
        bytes: Option<Vec<u8>>,
    },
    /// Whether the disk has room for the next checkpoint.
    Room(Room),
}
