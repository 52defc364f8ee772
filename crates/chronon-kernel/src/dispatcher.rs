//! The dispatcher: on the primary, starts what the log has released. Sans-IO.
//!
//! It decides nothing that must survive it: what is released, claimed, due or parked is replicated state in the
//! outbox. A new primary's dispatcher starts from that state alone.

use chronon_vsr::{Mutations, Now, Stamp};

use crate::{Attempt, AttemptEnd, AttemptNumber, EffectId, Engine, Request};

/// What a dispatcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatcherInput {
    /// An op was executed: look at the outbox again.
    Applied,
    /// This replica serves as the primary of this stamp, or does not serve.
    Serving(Option<Stamp>),
    /// An attempt that was ordered has ended.
    AttemptEnded {
        /// The effect.
        effect: EffectId,
        /// The attempt.
        number: AttemptNumber,
        /// The stamp under which it was ordered.
        stamp: Stamp,
        /// Its end.
        end: AttemptEnd,
    },
    /// Time passed.
    Tick,
}

/// What a dispatcher wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatcherOutput {
    /// Hand this to an executor.
    Start(Attempt),
    /// Order this (in at the front door). Proposed again after a while until its effect is seen in the log.
    Propose(Request),
    /// Nothing to do before this instant, or the next input.
    Wait(chronon_vsr::Instant),
}

/// Starts released effects.
#[derive(Debug)]
pub struct Dispatcher {
    _mutations: Mutations,
}

impl Dispatcher {
    /// A dispatcher that does not serve yet.
    pub fn new(_seed: u64, mutations: Mutations) -> Dispatcher {
        Dispatcher { _mutations: mutations }
    }

    /// Takes one input; the engine is the state that it decides from.
    pub fn handle(&mut self, _now: Now, _input: DispatcherInput, _engine: &dyn Engine) {
        todo!("kernel")
    }

    /// The next thing to do. Drain until `Wait`.
    pub fn poll_output(&mut self) -> DispatcherOutput {
        todo!("kernel")
    }
}
