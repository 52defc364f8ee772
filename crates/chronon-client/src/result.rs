//! What a client may hear. Every variant is true when it is said.

use std::sync::Arc;

use chronon_kernel::{AbortReason, EffectId, NotExecuted, Refusal, RequestId};
use chronon_vsr::{Op, Timestamp};

use crate::numbers::Held;

/// A command was committed: durable on a quorum and applied, now or when it first came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed<R> {
    /// Where in the log it was applied.
    pub at: RequestId,
    /// Log time of that op.
    pub timestamp: Timestamp,
    /// What the machine replied. Business errors are here.
    pub reply: R,
    /// The effects that it emitted.
    pub effects: Vec<EffectId>,
}

impl<R> Committed<R> {
    /// The op that applied it.
    pub fn op(&self) -> Op {
        Op::new(self.at.op)
    }
}

/// A query's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<A> {
    /// The op that it reflects.
    pub op: Op,
    /// The answer.
    pub answer: A,
}

/// A request whose end is unknown. `Client::resume` asks again under the same number, which is safe: it is applied
/// once at most. While a ticket is kept its session's window can't move on, so resume or drop it.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub(crate) held: Arc<Held>,
    pub(crate) body: Arc<[u8]>,
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Ticket) -> bool {
        self.held.session().id() == other.held.session().id() && self.held.number() == other.held.number()
    }
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Committed, and failed: the state is as before it. The same on every replica.
    #[error("the command was aborted at op {}: {why}", at.op)]
    Aborted {
        /// Where in the log.
        at: RequestId,
        /// Why.
        why: AbortReason,
    },
    /// It was not executed and never will be.
    #[error("not executed: {0}")]
    NotExecuted(NotExecuted),
    /// Nobody can say whether it was executed. Asking again with the ticket is safe.
    #[error("the request's end is unknown; ask again with its ticket")]
    Indeterminate {
        /// To ask again.
        ticket: Ticket,
    },
    /// Nobody can say whether it took effect, and it has no number under which to ask again: look before it is repeated.
    #[error("whether it took effect is unknown; look before repeating it")]
    Unknown,
    /// The cluster forgot the session, and with it what became of this request. Later requests get a new session.
    #[error("the session was evicted: whether the request was executed is unknown")]
    SessionEvicted,
    /// The log refused it: it was not executed.
    #[error("{0}")]
    Refused(Refusal),
    /// The value does not survive its own encoding: its type needs a self-describing format. It was not sent.
    #[error("the command does not survive its own encoding; nothing was sent")]
    Codec,
    /// It was committed, and its reply can't be read by this program's types.
    #[error("committed at op {}, but the reply can't be read by this program's types", at.op)]
    UnreadableReply {
        /// Where in the log.
        at: RequestId,
    },
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Nobody answered it, and why.
    #[error("not answered: {0}")]
    NotExecuted(NotExecuted),
    /// The value does not survive its own encoding.
    #[error("the query does not survive its own encoding; nothing was sent")]
    Codec,
    /// The answer can't be read by this program's types.
    #[error("the answer can't be read by this program's types")]
    Unreadable,
}
