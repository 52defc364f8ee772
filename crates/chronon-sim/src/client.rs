//! Clients: sessions and keys, one call at a time, retried under the same name at any replica until the truth is known.

use core::fmt;
use std::collections::BTreeSet;

use chronon_kernel::{Consistency, DeskAct, EffectId, Origin, SessionId, SinkName, SinkSpec, Skip};
use chronon_node::Token;
use chronon_vsr::{Duration, Instant, Op, ReplicaId};

/// What clients do. Chances are in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// How many clients there are, besides the one that sets the cluster up.
    pub clients: u32,
    /// How many calls each makes.
    pub calls: u32,
    /// A call is a query.
    pub query: u32,
    /// A query is content with whatever the replica has applied.
    pub query_local: u32,
    /// A command goes under an Idempotency-Key instead of the session.
    pub key: u32,
    /// Whether a command under a key is sent again, or to two replicas at once, though an attempt may have been applied.
    pub repeat_keys: bool,
    /// A query is sent to any replica, wherever the primary may be.
    pub wander: u32,
    /// A call is sent to two replicas at once.
    pub duplicate: u32,
    /// A client dies in the middle of a call and comes back as another.
    pub crash: u32,
    /// A client that is told "not executed" takes it at its word and gives the call up.
    pub give_up: u32,
    /// The mean pause between two calls, exponentially distributed.
    pub think_mean: Duration,
    /// How long a client waits for an answer before it asks again.
    pub patience: Duration,
}

impl ClientConfig {
    /// Clients that only do what tests ask of them.
    pub const QUIET: ClientConfig = ClientConfig {
        clients: 0,
        calls: 0,
        query: 0,
        query_local: 0,
        key: 0,
        repeat_keys: true,
        wander: 0,
        duplicate: 0,
        crash: 0,
        give_up: 0,
        think_mean: Duration::from_millis(1),
        patience: Duration::from_secs(1),
    };
}

/// Names a call for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}", self.0)
    }
}

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Open a session.
    Register,
    /// Set a sink, if it is at this revision; 0 makes it.
    SinkSet {
        /// The sink.
        name: SinkName,
        /// What it shall be.
        spec: Box<SinkSpec>,
        /// What it was, as far as the operator knew when the call's turn came.
        revision: u64,
    },
    /// Act on an effect, as a person does.
    Desk(EffectId, DeskAct),
    /// Have a call of the machine skipped at which execution has halted.
    Skip(Box<Skip>),
    /// Order a command.
    Command {
        /// Under which name.
        origin: Origin,
        /// The encoded command.
        body: Vec<u8>,
    },
    /// Answer a query.
    Query {
        /// How fresh.
        consistency: Consistency,
        /// The encoded query.
        query: Vec<u8>,
    },
}

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: CallId,
    pub(crate) kind: CallKind,
    /// The encoded request or query.
    pub(crate) bytes: Vec<u8>,
    pub(crate) invoked: Instant,
    /// The newest op that anybody had been told of when the call began.
    pub(crate) floor: Op,
    /// An attempt's end is unknown: from now on it is a repeat.
    pub(crate) unknown: bool,
    /// Attempts under way.
    pub(crate) tokens: BTreeSet<Token>,
    pub(crate) attempts: u32,
}

impl Call {
    /// Whether it is a command under an Idempotency-Key.
    pub(crate) fn is_keyed(&self) -> bool {
        matches!(self.kind, CallKind::Command { origin: Origin::Key { .. }, .. })
    }
}

/// A client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) number: u32,
    /// Counts its lives: a client that crashed comes back with a new one.
    pub(crate) life: u32,
    pub(crate) session: Option<SessionId>,
    pub(crate) next_number: u64,
    pub(crate) next_key: u64,
    pub(crate) calls_left: u32,
    pub(crate) call: Option<Call>,
    /// Where it believes the primary to be.
    pub(crate) target: ReplicaId,
    /// Calls that wait for their turn: those of the set-up, and those that tests ask for.
    pub(crate) script: std::collections::VecDeque<CallKind>,
}

impl Client {
    pub(crate) fn new(number: u32, calls: u32, target: ReplicaId) -> Client {
        Client {
            number,
            life: 0,
            session: None,
            next_number: 1,
            next_key: 1,
            calls_left: calls,
            call: None,
            target,
            script: std::collections::VecDeque::new(),
        }
    }

    /// Whether it has nothing to do any more.
    pub(crate) fn is_done(&self) -> bool {
        self.call.is_none() && self.calls_left == 0 && self.script.is_empty()
    }

    /// It dies and is born again: it knows nothing of its session or its call.
    pub(crate) fn crash(&mut self) {
        self.life += 1;
        self.session = None;
        self.next_number = 1;
        self.call = None;
    }

    pub(crate) fn nonce(&self) -> u128 {
        u128::from(self.number) << 64 | u128::from(self.life) << 32 | u128::from(self.next_number)
    }
}
