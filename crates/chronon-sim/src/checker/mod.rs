//! The judges: each looks at the run from one side and knows nothing of the others. The first to object ends it.

mod bounds;
mod checkpoints;
mod commits;
mod effects;
mod gate;
mod history;
pub mod linear;
mod promises;
mod results;

use core::fmt;

pub use bounds::Bounds;
pub use checkpoints::Checkpoints;
pub use commits::{Commits, Committed};
pub use effects::Effects;
pub(crate) use effects::{HandedOut, Replayed};
pub use gate::GateWatch;
pub use history::{Begun, Completed, History};
pub use promises::Promises;
pub use results::Results;

/// Which judge objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Checker {
    /// Two replicas committed different entries at one op, or one skipped an op (I1).
    Commits,
    /// A replica broke its word: spoke too early, denied what it acked, voted for what it had left, committed without
    /// its votes (I2, I5, I6, I17).
    Promises,
    /// Log time went back (I10).
    Time,
    /// Replicas disagree about what an op did (I11).
    Digest,
    /// A replica whose state differs from the others' is not found out, or speaks of that state once it is.
    Quarantine,
    /// Replicas disagree about a checkpoint, left one out, or let go of what none covers (I8, I11, §8).
    Checkpoints,
    /// A request was applied twice, or answered in two ways (I9).
    Sessions,
    /// An acknowledged command is not in the log.
    Durability,
    /// Answers contradict the order in which things happened (I15).
    Linearizability,
    /// A call that was "not executed" was executed (I18).
    NotExecuted,
    /// A sink was asked for what nobody ordered, too often, or not at all (I14, I16).
    Effects,
    /// A start passed the gate of a primary that leads no more.
    Gate,
    /// The machine's own invariant is broken.
    Machine,
    /// Nothing is broken any more and yet something does not end.
    Liveness,
    /// A replica could not open its data directory.
    Open,
    /// The code under test panicked: an assertion of its own.
    Panic,
    /// The same seed told two stories.
    Twice,
    /// A queue or a store grew beyond its bound.
    Bounds,
    /// A backup in trouble makes everybody wait.
    Performance,
}

/// A judge's objection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Who objects.
    pub checker: Checker,
    /// To what.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(checker: Checker, what: impl Into<String>) -> Violation {
        Violation { checker, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.checker, self.what)
    }
}

impl std::error::Error for Violation {}
