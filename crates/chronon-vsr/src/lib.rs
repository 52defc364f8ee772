//! Viewstamped Replication as a sans-IO state machine.
//!
//! A [`Replica`] orders opaque bytes. It names no clock, socket, file, thread or source of randomness: all of them
//! are arguments. Everything goes in through [`Replica::handle`] (and the two questions [`Replica::propose`] and
//! [`Replica::read_index`]) and comes out of [`Replica::poll_output`], which is drained until it says
//! [`Output::Wait`]. `docs/protocol.md` is the specification; section marks (§) in comments refer to it.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod checksum;
mod choice;
mod clock;
mod detector;
mod durable;
mod entry;
mod event;
mod ids;
mod membership;
mod message;
mod mutation;
mod prng;
mod quorum;
mod replica;
mod ring;
mod time;

pub use checksum::{CHUNK_LIST_SIZE_MAX, CHUNK_SIZE_MAX, Checksum};
pub use clock::Clocks;
pub use durable::{
    Checkpoint, Durable, PeerMemory, Recovered, RecoveredEntry, Verdict, VsrState, Write, WriteNumber,
};
pub use entry::{BODY_SIZE_MAX, ENTRY_HEADER_SIZE, Entry, EntryHeader};
pub use event::{Abdication, DropReason, Event, PeerRefusal, Suspicion};
pub use ids::{ClusterId, DiskId, Epoch, Incarnation, LogStamp, Op, OpRef, Release, ReplicaId, Stamp, View};
pub use membership::{Member, Membership, VOTERS_MAX};
pub use message::{
    Command, DecodeError, Divergence, HEADERS_MAX, Identity, MESSAGE_HEADER_SIZE, MESSAGE_SIZE_MAX, Message,
    PROTOCOL_VERSION, Payload, SuffixBits, SyncProgress,
};
pub use mutation::{Mutation, Mutations};
pub use prng::Prng;
pub use quorum::Quorums;
pub use replica::{
    Applied, Digest, Input, Intake, Loss, Lost, NotProposed, NotReadable, Options, Output, Proposed, Purpose,
    Quarantine, ReadNumber, Recipients, Replica, Role, Room, RoundConfirmed, Standing, Status, Timing,
};
pub use ring::{Ring, charge};
pub use time::{Duration, Instant, Now, Timestamp};

/// How many ops a primary prepares beyond the newest op it knows committed (P in the specification).
pub const PIPELINE_MAX: u64 = 8;

/// The most entry headers a suffix holds: from commit_max to head, both included.
pub const SUFFIX_MAX: usize = PIPELINE_MAX as usize + 1;
