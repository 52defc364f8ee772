//! What a replica asks its storage to keep, what it hears back, and what it gets after a restart.

use alloc::vec::Vec;

use crate::{
    Checksum, Digest, DiskId, Entry, EntryHeader, Incarnation, LogStamp, Membership, Op, OpRef, Release,
    ReplicaId, Stamp, Timestamp,
};

/// The part of the superblock that the protocol owns (§3.1). Storage adds identity, sequence and copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VsrState {
    /// The configuration in force here.
    pub membership: Membership,
    /// The newest view that this replica promised itself to.
    pub stamp: Stamp,
    /// The newest view whose log it adopted. Never later than `stamp` (I3).
    pub log_stamp: LogStamp,
    /// Entry headers from commit_max to head as adopted at `log_stamp`, both included, ascending, at most
    /// [`crate::SUFFIX_MAX`]. Empty while the log is empty. What the WAL holds above its head counts only if born at
    /// `log_stamp` and chained to it (§7).
    pub suffix: Vec<EntryHeader>,
    /// Entries known to be damaged here and not yet repaired: neither acked nor nacked.
    pub faulty: Vec<OpRef>,
    /// From here up this replica can't say what it held. Only adopting a log clears it.
    pub uncertain_from: Option<Op>,
    /// The newest op known committed; the root while there is none.
    pub commit_max: OpRef,
    /// The newest durable checkpoint; that of the root while none was taken.
    pub checkpoint: Checkpoint,
    /// What each peer last showed of itself, to refuse a disk that remembers less (§7).
    pub peers: Vec<PeerMemory>,
}

/// A checkpoint: what executing every op up to `entry` came to. A function of the log alone, so every replica's
/// checkpoint at an op is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checkpoint {
    /// The op whose execution it follows; the log's root for a cluster that has taken none.
    pub entry: OpRef,
    /// The ring offset behind that entry: where the next one's charge begins.
    pub end: u64,
    /// That entry's log time.
    pub timestamp: Timestamp,
    /// The chained digest after it.
    pub digest: Digest,
    /// The release that the entry was written for: the chunks' format follows it.
    pub release: Release,
    /// Names the list of chunks that hold the state. None before the first checkpoint: there is nothing to hold.
    pub root: Option<Checksum>,
}

impl Checkpoint {
    /// Of a cluster that has executed nothing.
    pub const fn genesis(root: OpRef) -> Checkpoint {
        Checkpoint {
            entry: root,
            end: 0,
            timestamp: Timestamp::ZERO,
            digest: Digest(0),
            release: Release::new(0),
            root: None,
        }
    }
}

/// What a replica remembers of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerMemory {
    /// The peer.
    pub replica: ReplicaId,
    /// Its disk.
    pub disk: DiskId,
    /// The highest incarnation seen.
    pub incarnation: Incarnation,
    /// The highest durable stamp shown.
    pub stamp: Stamp,
    /// The highest op that it acked.
    pub acked: Op,
}

/// Numbers a replica's writes, from 1, in the order in which it asked for them; one count for the WAL and one for
/// the superblock. Starts again with every incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteNumber(u64);

impl WriteNumber {
    /// Before the first write.
    pub const ZERO: WriteNumber = WriteNumber(0);

    /// The number after this one.
    pub const fn next(self) -> WriteNumber {
        WriteNumber(self.0.checked_add(1).expect("2^64 writes take longer than the hardware lives"))
    }
}

/// A write that storage carries out. Storage may gather appends into groups and may skip a superblock that a newer
/// one replaces, but keeps the order: an append asked for after a superblock is durable only after it, and the other
/// way round.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a write is moved a few times, and an append must not allocate"
)]
pub enum Write {
    /// Append an entry to the WAL.
    Append {
        /// Its number in the count of appends.
        number: WriteNumber,
        /// What to append.
        entry: Entry,
        /// The ring may reuse the space of entries below this op (§8). [`Op::ROOT`]: nothing may go.
        keep_from: Op,
    },
    /// Replace the superblock.
    Superblock {
        /// Its number in the count of superblocks.
        number: WriteNumber,
        /// The new contents.
        state: VsrState,
    },
}

/// What storage reports: durability is an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// Every append up to and including this one is flushed.
    Appended(WriteNumber),
    /// This superblock, or a newer one, is flushed and was read back.
    Superblock(WriteNumber),
}

/// What opening a data directory found: everything a replica needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The cluster, as the superblock has it.
    pub cluster: crate::ClusterId,
    /// What `init` drew for the cluster: binds the root and prefixes every effect's key.
    pub lineage: u128,
    /// This replica's number.
    pub replica: ReplicaId,
    /// This data directory's identity.
    pub disk: DiskId,
    /// The incarnation that this open began; durable already.
    pub incarnation: Incarnation,
    /// The protocol's part of the superblock.
    pub state: VsrState,
    /// Every entry that the WAL scan found, in WAL order: repairs and replaced suffixes may name an op more than
    /// once. What of it counts is decided by the replica against the superblock (§7). Intact entries are durable:
    /// storage has flushed again whatever lacked evidence.
    pub entries: Vec<RecoveredEntry>,
    /// Every group was found and none is unknown or uncertain: what is missing was never durable.
    pub scan_complete: bool,
    /// The scan could not tell what stood in the log from this op on.
    pub uncertain_from: Option<Op>,
}

/// One entry that the WAL scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredEntry {
    /// Its header, whose own checksum was right.
    pub header: EntryHeader,
    /// What became of its body.
    pub verdict: Verdict,
}

/// What the scan says of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Here, checksums right, durable.
    Intact(Entry),
    /// It was (or may have been) durable, and its bytes are damaged.
    Faulty,
}

impl VsrState {
    /// A new replica's state: view 0, an empty log.
    pub fn format(membership: Membership, root: OpRef) -> VsrState {
        let stamp = Stamp::first(membership.epoch);
        VsrState {
            membership,
            stamp,
            log_stamp: LogStamp::adopted(stamp),
            suffix: Vec::new(),
            faulty: Vec::new(),
            uncertain_from: None,
            commit_max: root,
            checkpoint: Checkpoint::genesis(root),
            peers: Vec::new(),
        }
    }

    /// The newest entry that the suffix names, or commit_max while it is empty.
    pub fn head(&self) -> OpRef {
        self.suffix.last().map_or(self.commit_max, EntryHeader::op_ref)
    }

    /// Whether the state marks this entry as damaged.
    pub fn marks_faulty(&self, op: Op, checksum: Checksum) -> bool {
        self.faulty.contains(&OpRef { op, checksum })
    }
}
