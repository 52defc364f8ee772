//! Back: the half that executes.

use alloc::boxed::Box;

use chronon_kernel::{Attempt, AttemptEnd, AttemptNumber, EffectId, Engine};
use chronon_vsr::{Instant, Mutations, Now, Stamp};

use crate::{ToBack, ToFront};

/// One thing that happened to Back.
#[derive(Clone, Debug)]
pub enum BackInput {
    /// Time passed.
    Tick,
    /// Front hands something over.
    Front(ToBack),
    /// An attempt has ended.
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
}

/// One thing that Back wants done.
#[derive(Clone, Debug)]
pub enum BackOutput {
    /// Hand this to Front.
    Front(ToFront),
    /// Hand this to an executor. It checks the gate right before the first byte leaves.
    Start(Attempt),
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// The half that executes.
pub struct Back {
    engine: Box<dyn Engine>,
}

impl Back {
    /// A Back around an engine that has executed nothing.
    pub fn new(engine: Box<dyn Engine>, _seed: u64, _mutations: Mutations) -> Back {
        Back { engine }
    }

    /// Takes one input.
    pub fn handle(&mut self, _now: Now, _input: BackInput) {
        todo!("back")
    }

    /// The next thing to do. Drain until `Wait`.
    pub fn poll_output(&mut self) -> BackOutput {
        todo!("back")
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }
}
