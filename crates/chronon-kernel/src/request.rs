//! Requests: what an op's body is made of, and what becomes of each.

use core::time::Duration;

use chronon_vsr::{Epoch, Stamp, View};
use serde::{Deserialize, Serialize};

use crate::{AttemptNumber, EffectId, RequestId, RequestNumber, SessionId, SinkName, SinkSpec, Skip};

/// One request of a batch. Everything that ever changes replicated state is one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Open a session. Registering the same nonce again gives the same session while it lives.
    Register {
        /// Drawn by the client.
        nonce: u128,
    },
    /// A command of the user's machine.
    Command {
        /// Who asks, so that a repeat is recognised.
        origin: Origin,
        /// The encoded command.
        body: Vec<u8>,
    },
    /// Log time has passed something that is due.
    Tick,
    /// The primary born in `stamp` wants to start this attempt of a claimed contract. In force only if the op that
    /// carries it was born in that very stamp.
    Claim {
        /// The effect.
        effect: EffectId,
        /// The attempt that the claim is for.
        attempt: AttemptNumber,
    },
    /// How an attempt ended.
    Outcome(OutcomeReport),
    /// Make, change or (with no spec) remove a sink.
    SinkSet {
        /// The sink.
        name: SinkName,
        /// What it shall be.
        spec: Option<SinkSpec>,
        /// The revision that the caller saw, if it cares.
        expected_revision: Option<u64>,
    },
    /// A person acts on an effect.
    Desk {
        /// The effect.
        effect: EffectId,
        /// What to do.
        act: DeskAct,
        /// Who says so.
        by: String,
    },
    /// A call of the machine that panics is not made: see [`crate::Halted`].
    Skip(Skip),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A session's request number.
    Session {
        /// The session.
        session: SessionId,
        /// Counts its requests.
        number: RequestNumber,
    },
    /// An Idempotency-Key within a principal.
    Key {
        /// Who the key belongs to; empty without authentication.
        principal: String,
        /// At most 255 bytes.
        key: String,
    },
}

/// How an attempt ended, as reported by the replica that carried it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeReport {
    /// The effect.
    pub effect: EffectId,
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Epoch of the stamp under which the attempt started.
    pub epoch: u64,
    /// View of the stamp under which the attempt started.
    pub view: u64,
    /// Its end.
    pub ended: Ended,
}

impl OutcomeReport {
    /// The stamp under which the attempt started.
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: Epoch::new(self.epoch), view: View::new(self.view) }
    }
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// The sink did it (or had done it, under our key).
    Delivered {
        /// The encoded outcome for the machine.
        outcome: Vec<u8>,
        /// What the sink said.
        evidence: Evidence,
    },
    /// The sink did it, but its answer can't be read as the machine's outcome: parked for a person, never retried.
    Unreadable {
        /// What the sink said.
        evidence: Evidence,
    },
    /// Nothing reached the sink, or the sink firmly said "not done, try again".
    Definite {
        /// Wait at least this long.
        retry_after: Option<Duration>,
        /// What happened.
        evidence: Evidence,
    },
    /// It may have acted.
    Ambiguous {
        /// What happened.
        evidence: Evidence,
    },
    /// The sink's firm no: another attempt can't succeed.
    Permanent {
        /// The sink asked to be left alone (410): freeze it.
        freeze: bool,
        /// What the sink said.
        evidence: Evidence,
    },
    /// Under our key, the sink is still at it (409): ask again, nothing is in doubt yet.
    InProgress {
        /// What the sink said.
        evidence: Evidence,
    },
    /// A probe found nothing under our key.
    NotFound {
        /// What the sink said.
        evidence: Evidence,
    },
    /// A probe found nothing under our key, and by the clock of the primary that asked this is no proof yet, whatever
    /// log time says: a call may still be under way. Made by the dispatcher, never by an executor.
    NotFoundTooSoon {
        /// How much longer to wait before a "no" is proof.
        wait: Duration,
        /// What the sink said.
        evidence: Evidence,
    },
}

/// What was seen at the end of an attempt: a status, an error, the first bytes of an answer. At most 1 KiB is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence(pub String);

/// What a person may do with an effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeskAct {
    /// Settle it.
    Resolve {
        /// As what.
        settle: SettleAs,
        /// Why.
        reason: String,
    },
    /// Open it again under the same id and key.
    Retry {
        /// For an effect in doubt: proof that nothing was delivered. Without it a duplicate must be accepted.
        not_delivered: bool,
        /// A duplicate is accepted.
        accept_duplicate: bool,
        /// Why.
        reason: String,
    },
    /// Give it up, if nothing can have started.
    Cancel {
        /// Why.
        reason: String,
    },
}

/// The outcome that a person gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SettleAs {
    /// It was delivered; the encoded outcome for the machine.
    Delivered {
        /// The encoded outcome.
        outcome: Vec<u8>,
    },
    /// It was not and will not be.
    Failed,
    /// Nobody will ever know.
    Unknown,
}

/// What became of a request, the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestResult {
    /// The command was applied: now, or when it first came.
    Replied {
        /// Where it was applied.
        at: RequestId,
        /// Log time of that op, nanoseconds since 1970.
        timestamp: u64,
        /// The encoded reply.
        reply: Vec<u8>,
        /// The effects that it emitted.
        effects: Vec<EffectId>,
    },
    /// The command was committed and failed: the state is as before it.
    Aborted {
        /// Where it was aborted.
        at: RequestId,
        /// Why.
        why: AbortReason,
    },
    /// The session is open.
    Registered {
        /// Its name.
        session: SessionId,
    },
    /// Done: a tick, a claim, an outcome or an act without an answer of its own.
    Done,
    /// A sink was set.
    SinkSet {
        /// Its revision now.
        revision: u64,
    },
    /// Not executed, and why.
    Refused(Refusal),
}

/// Why a command was aborted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AbortReason {
    /// `apply` panicked.
    #[error("apply panicked: {message}")]
    Panicked {
        /// The panic's message, at most 1 KiB.
        message: String,
    },
    /// It emitted to a sink that does not exist.
    #[error("no sink is named {sink}")]
    UnknownSink {
        /// The name.
        sink: String,
    },
    /// It emitted more, or more bytes, than one command may.
    #[error("more than {limit} effects or effect bytes for one command")]
    TooManyEffects {
        /// The bound.
        limit: u32,
    },
    /// The command's bytes can't be read by this release.
    #[error("the command can't be decoded")]
    Undecodable,
    /// The reply is larger than the limit.
    #[error("the reply has more than {limit} bytes")]
    ReplyTooLarge {
        /// The bound.
        limit: u32,
    },
    /// Execution had halted before it, and a person had it passed over.
    #[error("skipped by {by}: {reason}")]
    Skipped {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// Why a request was not executed, as the log decides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The session is not (or no longer) known. What became of its requests is unknown to it.
    #[error("the session is not known any more")]
    SessionEvicted,
    /// The request number is older than the replies that are kept: it was applied, its reply is gone.
    #[error("the reply of request {number} is not kept any more")]
    ReplyForgotten {
        /// The number.
        number: u64,
    },
    /// The Idempotency-Key was used with another command.
    #[error("the idempotency key was used with another command")]
    KeyReused,
    /// No room; nothing was executed.
    #[error("busy: {0}")]
    Busy(Busy),
    /// The revision is not the sink's.
    #[error("the sink is at revision {revision}")]
    WrongRevision {
        /// The sink's revision; 0: there is no such sink.
        revision: u64,
    },
    /// The sink still has open effects.
    #[error("the sink has {open} open effects")]
    SinkInUse {
        /// How many.
        open: u64,
    },
    /// There is no such effect.
    #[error("there is no such effect")]
    NoSuchEffect,
    /// The effect is settled already.
    #[error("the effect is settled already: {outcome}")]
    AlreadySettled {
        /// `delivered`, `failed`, `unknown` or `cancelled`.
        outcome: String,
    },
    /// The act does not fit the effect's state.
    #[error("{why}")]
    NotAllowed {
        /// What would be needed.
        why: String,
    },
    /// Execution did not halt at this call, so nothing was skipped.
    #[error("execution did not halt there: op {op} is executed in full")]
    NotHalted {
        /// The op that was named.
        op: u64,
    },
    /// An earlier skip had the call passed over.
    #[error("op {by_op} skipped it already")]
    AlreadySkipped {
        /// The op of that skip.
        by_op: u64,
    },
}

/// What is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Busy {
    /// The lane's outbox.
    #[error("the lane is full")]
    LaneFull,
    /// The sink's outbox.
    #[error("the sink's outbox is full")]
    SinkFull,
    /// The whole outbox.
    #[error("the outbox is full")]
    OutboxFull,
    /// The idempotency keys, all younger than an hour.
    #[error("the idempotency keys are full")]
    KeysFull,
    /// The primary's queue.
    #[error("the queue is full")]
    QueueFull,
    /// The WAL.
    #[error("the log is full")]
    LogFull,
    /// The timers.
    #[error("the timers are full")]
    TimersFull,
    /// The primary's disk: the next checkpoint may find no room.
    #[error("the disk is full")]
    DiskFull,
    /// Nothing: execution has halted, and a person must have the call skipped that panics.
    #[error("execution has halted before a call that panics")]
    Halted,
}

/// An op's body: requests in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Each is addressed by its place.
    pub requests: Vec<Request>,
}

impl Batch {
    /// The bytes of the batch: version byte, count, then each request as length and bytes, so that the requests can be
    /// encoded once where they come in and joined without another encoding.
    pub fn join(requests: &[Vec<u8>]) -> Vec<u8> {
        let size = 5 + requests.iter().map(|request| 4 + request.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(size);
        bytes.push(BATCH_VERSION);
        bytes.extend_from_slice(&(requests.len() as u32).to_le_bytes());
        for request in requests {
            bytes.extend_from_slice(&(request.len() as u32).to_le_bytes());
            bytes.extend_from_slice(request);
        }
        bytes
    }

    /// How many bytes a request of this size adds to a batch.
    pub const fn joined_size(request_size: usize) -> usize {
        4 + request_size
    }

    /// Reads what [`Batch::join`] wrote. None if the bytes are no batch.
    pub fn split(bytes: &[u8]) -> Option<Batch> {
        let (version, rest) = bytes.split_first()?;
        if *version != BATCH_VERSION {
            return None;
        }
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut requests = Vec::new();
        for _ in 0..u32::from_le_bytes(*count) {
            let (size, after) = rest.split_first_chunk::<4>()?;
            let (request, after) = after.split_at_checked(u32::from_le_bytes(*size) as usize)?;
            requests.push(Request::decode(request)?);
            rest = after;
        }
        rest.is_empty().then_some(Batch { requests })
    }
}

const BATCH_VERSION: u8 = 1;

impl Request {
    /// The request's bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("requests hold nothing that postcard can't write")
    }

    /// Reads what [`Request::encode`] wrote. None if the bytes are no request, or more than one.
    pub fn decode(bytes: &[u8]) -> Option<Request> {
        let (request, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(request)
    }
}
