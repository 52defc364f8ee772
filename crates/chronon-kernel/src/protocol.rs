//! The binary client protocol: what a client and a replica say over one connection. Many requests may be under way;
//! answers come in any order and carry the request's ticket.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Busy, EffectId, SinkName, SinkSpec};

/// The version of the client protocol.
pub const CLIENT_PROTOCOL_VERSION: u16 = 1;

/// The largest command: 1 MiB.
pub const COMMAND_SIZE_MAX: usize = 1024 * 1024;

/// The largest frame of the client protocol, its own header included: a command with its envelope.
pub const FRAME_SIZE_MAX: usize = COMMAND_SIZE_MAX + 4096;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// The first frame of a connection.
    Hello {
        /// [`CLIENT_PROTOCOL_VERSION`].
        version: u16,
        /// The cluster that the client means, if it knows.
        cluster: Option<u128>,
    },
    /// Order something and answer with what became of it.
    Submit {
        /// Comes back with the answer.
        ticket: u64,
        /// How long an answer is of use.
        timeout: Duration,
        /// What to order.
        request: Submission,
    },
    /// Answer a query.
    Query {
        /// Comes back with the answer.
        ticket: u64,
        /// How long an answer is of use.
        timeout: Duration,
        /// How fresh it must be.
        consistency: Consistency,
        /// The encoded query.
        query: Vec<u8>,
    },
    /// Ask for the cluster as this replica sees it.
    Status {
        /// Comes back with the answer.
        ticket: u64,
    },
}

/// What a client may have ordered. Claims, ticks and outcomes are not for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Submission {
    /// Open a session.
    Register {
        /// Drawn by the client, kept over its retries.
        nonce: u128,
    },
    /// A command.
    Command {
        /// Who asks.
        origin: crate::Origin,
        /// This is not the first attempt: an earlier one's end is unknown.
        repeat: bool,
        /// The encoded command.
        body: Vec<u8>,
    },
    /// Set a sink.
    SinkSet {
        /// The sink.
        name: SinkName,
        /// What it shall be; none removes it.
        spec: Option<SinkSpec>,
        /// The revision that the caller saw, if it cares.
        expected_revision: Option<u64>,
    },
    /// Act on an effect.
    Desk {
        /// The effect.
        effect: EffectId,
        /// What to do.
        act: crate::DeskAct,
        /// Who says so.
        by: String,
    },
    /// Have a call of the machine skipped at which execution has halted.
    Skip(crate::Skip),
}

/// How fresh a query's state must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Reflects every write acknowledged before the query was sent.
    Linearizable,
    /// Whatever this replica has applied.
    Local,
    /// Reflects at least this op.
    AtLeast(u64),
}

/// What a replica says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerFrame {
    /// The answer to a good Hello.
    Welcome {
        /// The cluster.
        cluster: u128,
        /// The replica.
        replica: u8,
    },
    /// What became of a submission.
    Answer {
        /// The submission's.
        ticket: u64,
        /// What became of it.
        answer: Answer,
    },
    /// The connection ends, and why.
    Goodbye {
        /// A sentence for people.
        why: String,
    },
    /// JSON text: the replica's part of `GET /v1/cluster`.
    Status {
        /// The question's.
        ticket: u64,
        /// JSON text.
        status: String,
    },
}

/// What became of a submission or a query. It tells the truth: `NotExecuted` is never said of what may yet happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Committed and executed; the log decided this.
    Decided(crate::RequestResult),
    /// The query's answer, and the op that it reflects.
    Answered {
        /// The op.
        op: u64,
        /// The encoded answer.
        answer: Vec<u8>,
    },
    /// This attempt was not and will not be executed.
    NotExecuted(NotExecuted),
    /// Nobody can say. Sending it again under the same session and number, or the same key, is safe.
    Indeterminate,
}

/// Why an attempt was not executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotExecuted {
    /// No room.
    #[error("busy: {busy}")]
    Busy {
        /// What is full.
        busy: Busy,
        /// When to come again.
        retry_after: Duration,
    },
    /// The machine, or the edge, will not have it.
    #[error("refused: {message}")]
    Refused {
        /// A stable code.
        code: String,
        /// A sentence.
        message: String,
    },
    /// It is larger than the limit.
    #[error("{size} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// This replica is not the primary.
    #[error("this replica is not the primary")]
    NoPrimary {
        /// The replica that it follows, if any.
        primary: Option<u8>,
    },
    /// Its time ran out before it was ordered.
    #[error("its time ran out before it was ordered")]
    Expired,
}
