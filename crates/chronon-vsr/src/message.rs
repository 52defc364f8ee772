//! What replicas say to one another (§2), and the bytes of it.

mod codec;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::{
    Applied, BODY_SIZE_MAX, Checkpoint, Checksum, ClusterId, Digest, DiskId, ENTRY_HEADER_SIZE, Entry,
    EntryHeader, Incarnation, Instant, LogStamp, Op, OpRef, PeerRefusal, Release, ReplicaId, Stamp,
    Timestamp,
};

/// The version of this protocol. A newer one under good checksums is dropped and counted, not an error.
pub const PROTOCOL_VERSION: u16 = 3;

/// Bytes of every message's header.
pub const MESSAGE_HEADER_SIZE: usize = 256;

/// The most bytes of a message: a header, an entry header, the largest body.
pub const MESSAGE_SIZE_MAX: usize = MESSAGE_HEADER_SIZE + ENTRY_HEADER_SIZE + BODY_SIZE_MAX;

/// The most headers of one Headers message: whoever wants more asks again from where it ended.
pub const HEADERS_MAX: usize = 256;

/// A message, verified: its checksums, its cluster and its size were right.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The sender.
    pub from: ReplicaId,
    /// Which start of the sender.
    pub incarnation: Incarnation,
    /// The stamp that the message speaks for; for messages outside any view, the sender's durable stamp.
    pub stamp: Stamp,
    /// What it says.
    pub payload: Payload,
}

/// What a message says. One row each in `docs/protocol.md`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Primary → all: keep this entry.
    Prepare {
        /// The newest op that the primary knows committed.
        commit_max: OpRef,
        /// The primary's durable checkpoint.
        checkpoint: Op,
        /// The entry, unchanged since it was born.
        entry: Entry,
    },
    /// Voter → primary: this very entry is durable here, in this stamp.
    PrepareOk {
        /// The entry.
        entry: OpRef,
        /// What the voter has executed.
        applied: Applied,
        /// Its durable checkpoint.
        checkpoint: Op,
    },
    /// Primary → all: heartbeat, commit point and read round.
    Commit {
        /// The newest op known committed.
        commit_max: OpRef,
        /// The read round that this heartbeat opens or repeats.
        read_round: u64,
        /// What the primary has executed.
        applied: Applied,
        /// Age of the primary's oldest outstanding write; the highest number if its disk has no room for a checkpoint.
        disk_age_us: u32,
        /// Whose state differs from the others'.
        divergence: Divergence,
    },
    /// Voter → primary: heard you, still in your stamp.
    CommitOk {
        /// The round of the Commit that this answers.
        read_round: u64,
        /// What the voter has executed.
        applied: Applied,
        /// The voter's head.
        head: Op,
        /// Its durable checkpoint.
        checkpoint: Op,
        /// Age of the voter's oldest outstanding write; the highest number if its disk has no room for a checkpoint.
        disk_age_us: u32,
        /// The state that it fetches or installs, to go on from.
        sync: Option<SyncProgress>,
    },
    /// Voter → voters: I want to leave the message's stamp for `to`. Moves nobody by itself.
    StartViewChange {
        /// The stamp that the sender wants.
        to: Stamp,
    },
    /// Voter → voters: I left for the message's stamp; this is what I hold.
    DoViewChange {
        /// The newest stamp whose log the sender adopted.
        log_stamp: LogStamp,
        /// Its durable checkpoint.
        checkpoint: Op,
        /// The newest op that it knows committed.
        commit_max: OpRef,
        /// From here up it can't say what it held.
        uncertain_from: Option<Op>,
        /// The oldest op whose entry it can still serve.
        oldest: Op,
        /// Headers from commit_max to head, both included.
        suffix: Vec<EntryHeader>,
        /// What it can say of each.
        bits: SuffixBits,
    },
    /// Primary → all: the log of this stamp.
    StartView {
        /// The newest op known committed.
        commit_max: OpRef,
        /// The primary's durable checkpoint.
        checkpoint: Checkpoint,
        /// Headers from commit_max to the head now, both included.
        suffix: Vec<EntryHeader>,
        /// The GetView that this answers; 0 when it answers none.
        nonce: u64,
    },
    /// Any → primary: tell me your StartView.
    GetView {
        /// Comes back in the answer. Never 0.
        nonce: u64,
    },
    /// Any → any: send the headers of `from..=to`, linked down from this entry.
    GetHeaders {
        /// The highest entry wanted.
        top: OpRef,
        /// The lowest op wanted.
        bottom: Op,
    },
    /// The answer: descending from `top`, each the parent of the one before; shorter where the sender's log ends.
    Headers {
        /// The headers; empty: the sender has none of them.
        headers: Vec<EntryHeader>,
    },
    /// Any → any: send this very entry.
    GetPrepare {
        /// The entry.
        entry: OpRef,
    },
    /// The answer when the sender has it.
    Repair {
        /// The entry, unchanged since it was born.
        entry: Entry,
    },
    /// The answer when the sender does not have it.
    Missing {
        /// The entry that was asked for.
        entry: OpRef,
    },
    /// All ↔ all: clocks, identity, sign of life.
    Ping {
        /// The sender's monotonic clock.
        sent: Instant,
        /// Who the sender is.
        identity: Identity,
    },
    /// The answer.
    Pong {
        /// The Ping's `sent`.
        ping_sent: Instant,
        /// The answerer's wall clock.
        wall: Timestamp,
        /// Who the answerer is.
        identity: Identity,
    },
    /// Backup → primary: which op must a read reflect?
    ReadIndex {
        /// Comes back in the answer. Made after the read arrived.
        nonce: u64,
    },
    /// The answer, after a read round.
    ReadIndexOk {
        /// The ReadIndex that this answers.
        nonce: u64,
        /// A read at this op, or later, reflects every write acknowledged before the ReadIndex was sent.
        index: Op,
    },
    /// Any → primary: opaque bytes of the layer above, carried once, without an answer.
    Forward {
        /// At most [`BODY_SIZE_MAX`] bytes.
        body: Vec<u8>,
    },
    /// Any → any: send this chunk of a checkpoint, or a checkpoint's list of chunks.
    GetChunk {
        /// The chunk.
        id: Checksum,
    },
    /// The answer when the sender has it.
    Chunk {
        /// The chunk; `Checksum::of_chunk` of the bytes, which the decoder verifies.
        id: Checksum,
        /// At most [`crate::CHUNK_LIST_SIZE_MAX`].
        bytes: Vec<u8>,
    },
    /// The answer when the sender does not have it.
    MissingChunk {
        /// The chunk that was asked for.
        id: Checksum,
    },
    /// The answer to a Ping or Pong of a start that the sender will never listen to.
    Refused {
        /// The disk that the start has.
        disk: DiskId,
        /// The start.
        incarnation: Incarnation,
        /// Why.
        why: PeerRefusal,
    },
}

/// Who a replica is and what it has made durable: lets peers notice a disk that was lost or restored (§7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its disk.
    pub disk: DiskId,
    /// The highest op that it ever acked, as far as it knows.
    pub acked: Op,
    /// Its durable checkpoint: what it can serve the chunks of.
    pub checkpoint: Checkpoint,
    /// The newest release that it can run.
    pub release: Release,
    /// How far the view change is that it is to lead, in ops: a sign of progress when it grows. [`Op::ROOT`] when there is none.
    pub busy: Op,
}

/// Which voters differ from the others about the state, as a primary judges by the digests that it heard (§5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Divergence {
    /// The op by which the last of them was found out.
    pub op: Op,
    /// The digest after it that most voters hold; none if no digest has a majority.
    pub digest: Option<Digest>,
    /// Bit i: the voter at place i of the configuration. Zero while nobody differs.
    pub voters: u8,
}

impl Divergence {
    /// Nobody differs.
    pub const NONE: Divergence = Divergence { op: Op::ROOT, digest: None, voters: 0 };
}

/// How far a voter's state transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SyncProgress {
    /// The op of the checkpoint. Never [`Op::ROOT`].
    pub op: Op,
    /// How many of the chunks that were missing when the transfer began have come.
    pub fetched: u32,
    /// How many were missing then; 0 while that is not known. With all of them fetched the state is being installed.
    pub chunks: u32,
}

impl SyncProgress {
    /// Whether all chunks are there.
    pub fn is_fetched(&self) -> bool {
        0 < self.chunks && self.fetched == self.chunks
    }
}

/// What a sender of DoViewChange can say of each header of its suffix: bit i speaks of the suffix's header i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SuffixBits {
    /// It can serve the entry now.
    pub present: u16,
    /// It provably never acked the entry since this log took it in.
    pub nack: u16,
}

/// The number of each kind of message on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is documented at its payload")]
pub enum Command {
    Prepare = 1,
    PrepareOk = 2,
    Commit = 3,
    CommitOk = 4,
    StartViewChange = 5,
    DoViewChange = 6,
    StartView = 7,
    GetView = 8,
    GetHeaders = 9,
    Headers = 10,
    GetPrepare = 11,
    Repair = 12,
    Missing = 13,
    Ping = 14,
    Pong = 15,
    ReadIndex = 16,
    ReadIndexOk = 17,
    Forward = 18,
    GetChunk = 19,
    Chunk = 20,
    MissingChunk = 21,
    Refused = 22,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not even a header.
    TooShort,
    /// The header's checksum is wrong: noise, or a torn stream. Hang up.
    HeaderChecksum,
    /// The body's checksum is wrong. Hang up.
    BodyChecksum,
    /// A message of another cluster. Hang up.
    WrongCluster { found: ClusterId },
    /// The size is impossible. Hang up.
    Size { found: u32 },
    /// Bytes that must be zero are not, or a field contradicts another. Hang up.
    Malformed,
    /// A command of a newer release. Drop and count.
    UnknownCommand { found: u8 },
    /// A version of a newer release. Drop and count.
    UnknownVersion { found: u16 },
}

impl Payload {
    /// Which kind of message it is.
    pub fn command(&self) -> Command {
        match self {
            Payload::Prepare { .. } => Command::Prepare,
            Payload::PrepareOk { .. } => Command::PrepareOk,
            Payload::Commit { .. } => Command::Commit,
            Payload::CommitOk { .. } => Command::CommitOk,
            Payload::StartViewChange { .. } => Command::StartViewChange,
            Payload::DoViewChange { .. } => Command::DoViewChange,
            Payload::StartView { .. } => Command::StartView,
            Payload::GetView { .. } => Command::GetView,
            Payload::GetHeaders { .. } => Command::GetHeaders,
            Payload::Headers { .. } => Command::Headers,
            Payload::GetPrepare { .. } => Command::GetPrepare,
            Payload::Repair { .. } => Command::Repair,
            Payload::Missing { .. } => Command::Missing,
            Payload::Ping { .. } => Command::Ping,
            Payload::Pong { .. } => Command::Pong,
            Payload::ReadIndex { .. } => Command::ReadIndex,
            Payload::ReadIndexOk { .. } => Command::ReadIndexOk,
            Payload::Forward { .. } => Command::Forward,
            Payload::GetChunk { .. } => Command::GetChunk,
            Payload::Chunk { .. } => Command::Chunk,
            Payload::MissingChunk { .. } => Command::MissingChunk,
            Payload::Refused { .. } => Command::Refused,
        }
    }
}
