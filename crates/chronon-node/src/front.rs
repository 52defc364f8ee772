//! Front: the half that orders.

use alloc::vec::Vec;
use core::time::Duration;

use chronon_kernel::{Answer, Consistency};
use chronon_vsr::{
    Durable, Event, Instant, Message, Now, Op, OpRef, Options, Recipients, Recovered, ReplicaId, Role,
    RoundConfirmed, Status, Write,
};

use crate::{ToBack, ToFront};

/// Names a submission or query between the driver and Front. Drawn by the driver, never used twice in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Bounds of what Front holds. When one is reached the answer is Busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontLimits {
    /// Requests waiting to be prepared.
    pub queue_requests_max: usize,
    /// Bytes of requests waiting to be prepared.
    pub queue_bytes_max: usize,
    /// Requests prepared and not yet answered.
    pub in_flight_max: usize,
    /// Queries waiting for a read round or for execution.
    pub queries_max: usize,
    /// Committed ops handed to Back and not yet executed; beyond it nothing new is prepared.
    pub behind_ops_max: u64,
}

impl Default for FrontLimits {
    fn default() -> FrontLimits {
        FrontLimits {
            queue_requests_max: 16_384,
            queue_bytes_max: 16 * 1024 * 1024,
            in_flight_max: 65_536,
            queries_max: 16_384,
            behind_ops_max: 1_024,
        }
    }
}

/// One thing that happened to Front.
#[derive(Clone, Debug)]
pub enum FrontInput {
    /// Time passed.
    Tick,
    /// A peer's message.
    Message(Message),
    /// Storage made something durable.
    Durable(Durable),
    /// The age of storage's oldest outstanding write.
    DiskAge(Duration),
    /// The connection to a peer was reset and can't be made again.
    PeerUnreachable(ReplicaId),
    /// Order this encoded request (see `chronon_kernel::Request::encode`), if this replica is the primary.
    Submit {
        /// Comes back with the answer.
        token: Token,
        /// The encoded request.
        request: Vec<u8>,
        /// No answer is of use after this instant.
        deadline: Instant,
        /// An earlier attempt's end is unknown: never answer NotExecuted.
        repeat: bool,
    },
    /// Answer this encoded query.
    Query {
        /// Comes back with the answer.
        token: Token,
        /// The encoded query.
        query: Vec<u8>,
        /// How fresh the state must be.
        consistency: Consistency,
        /// No answer is of use after this instant.
        deadline: Instant,
    },
    /// Back did something.
    Back(ToFront),
    /// Give the primacy up, if this is the primary.
    StepDown,
}

/// One thing that Front wants done, in this order.
#[derive(Clone, Debug)]
pub enum FrontOutput {
    /// Send a message; losing it is allowed.
    Send(Recipients, Message),
    /// Write this and say when it is durable.
    Persist(Write),
    /// Hand this to Back.
    Back(ToBack),
    /// Answer a submission or a query.
    Answer(Token, Answer),
    /// A read round was confirmed: open the gate.
    GateConfirmed(RoundConfirmed),
    /// This replica leads no more: close the gate.
    GateClosed,
    /// Something worth knowing happened.
    Event(Event),
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// What Front can say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontStatus {
    /// The part that it plays.
    pub role: Role,
    /// What it is doing, in the protocol's words.
    pub status: Status,
    /// The newest op in its log.
    pub head: Op,
    /// The newest op that it knows committed.
    pub commit_max: OpRef,
    /// The newest op that Back executed.
    pub applied: Op,
    /// Requests waiting to be prepared.
    pub queued: usize,
}

/// The half that orders.
#[derive(Debug)]
pub struct Front {
    _limits: FrontLimits,
}

impl Front {
    /// Front as the data directory left it. Drain its outputs before anything else.
    pub fn open(_options: Options, limits: FrontLimits, _recovered: Recovered, _now: Now) -> Front {
        Front { _limits: limits }
    }

    /// Takes one input.
    pub fn handle(&mut self, _now: Now, _input: FrontInput) {
        todo!("front")
    }

    /// The next thing to do. Drain until `Wait`.
    pub fn poll_output(&mut self) -> FrontOutput {
        todo!("front")
    }

    /// What it can say of itself.
    pub fn status(&self) -> FrontStatus {
        todo!("front")
    }
}
