//! One replica's whole brain, in two sans-IO halves.
//!
//! [`Front`] orders: it holds the replica, the queue of requests, those in flight and the reads under way. [`Back`]
//! executes: it holds the engine (machine, sessions, outbox, timers) and the dispatcher. A driver joins them by two
//! bounded queues, [`ToBack`] and [`ToFront`], and may run them on threads of their own; the simulator schedules them
//! apart. Both have the same verbs: `handle`, then `poll_output` until it says `Wait`.
//!
//! ```text
//! clients ──► Front ──► replica ──► {disk ‖ backups} ──► quorum ──► Back: apply ──► replies
//!               ▲                                                     │
//!               └────────── outcomes, claims, ticks ◄── attempts ◄────┘ dispatcher
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod back;
mod front;
mod gate;
mod vault;

pub use back::{Back, BackInput, BackOutput, answer};
pub use chronon_vsr::Room;
pub use front::{Front, FrontInput, FrontLimits, FrontOutput, FrontStatus, Token};
pub use gate::Gate;
pub use vault::{VaultReport, VaultTask};

use alloc::vec::Vec;
use chronon_kernel::{CommittedSkip, Halted, QueryError, RequestResult};
use chronon_vsr::{Applied, Checkpoint, Entry, Op, OpRef, Stamp};

/// What Front hands to Back. Bounded: the driver lets Front work only while there is room.
#[derive(Clone, Debug)]
pub enum ToBack {
    /// Execute this entry.
    Commit(Entry),
    /// Freeze the state behind this op, which was the last to be handed over.
    Freeze(OpRef),
    /// Go on from this checkpoint's state. Nothing else that needs a state is handed over before it is there.
    Install(Checkpoint),
    /// Answer this query: the commits up to `at_least` were handed over before it.
    Query {
        /// Whose.
        token: Token,
        /// The op that the answer must reflect at least.
        at_least: Op,
        /// The encoded query.
        query: Vec<u8>,
    },
    /// A committed skip leads past the call at which Back has halted.
    Skip(CommittedSkip),
    /// This replica serves as the primary of this stamp (its first commit point is applied), or does not.
    Serving(Option<Stamp>),
}

/// What Back hands to Front.
#[derive(Clone, Debug)]
pub enum ToFront {
    /// An op was executed.
    Executed {
        /// The newest op executed, and the digest after it.
        applied: Applied,
        /// One result a request.
        results: Vec<RequestResult>,
    },
    /// An op was not executed, nor is anything behind it: a call of the machine in it panics.
    Halted(Halted),
    /// The state of a checkpoint has taken the place of the old one.
    Installed {
        /// Its op, and the digest after it.
        applied: Applied,
    },
    /// A query was answered.
    Queried {
        /// Whose.
        token: Token,
        /// The op that the answer reflects.
        op: Op,
        /// The encoded answer.
        answer: Result<Vec<u8>, QueryError>,
    },
    /// The dispatcher wants this encoded request ordered. Carried to the primary when this replica is none.
    Propose(Vec<u8>),
}
