//! Back: the half that executes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptNumber, CommittedOp, Dispatcher, DispatcherInput, DispatcherOutput, EffectId,
    Engine,
};
use chronon_vsr::{Applied, Checkpoint, Entry, Instant, Mutations, Now, OpRef, Stamp};

use crate::{ToBack, ToFront, Token};

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
    /// Freeze [`Back::engine`] before the next input, and make the copy durable as chunks, off this thread.
    Freeze(OpRef),
    /// Restore an engine from this checkpoint's chunks and hand it to [`Back::install`]. If chunks are missing, the
    /// replica is to be told which.
    Install(Checkpoint),
    /// Let [`answer`] have this query, with [`Back::engine`] as it is now or a copy frozen now or later, on any thread.
    Query {
        /// Whose.
        token: Token,
        /// The encoded query.
        query: Vec<u8>,
    },
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// Answers a query from an engine that reflects what the query waited for.
pub fn answer(engine: &dyn Engine, token: Token, query: &[u8]) -> ToFront {
    ToFront::Queried { token, op: engine.applied(), answer: engine.query(query) }
}

/// The half that executes.
pub struct Back {
    engine: Box<dyn Engine>,
    dispatcher: Dispatcher,
    /// The checkpoint that an engine is waited for.
    installing: Option<Checkpoint>,
    outputs: VecDeque<BackOutput>,
}

impl Back {
    /// A Back around an engine that has executed nothing.
    pub fn new(engine: Box<dyn Engine>, seed: u64, mutations: Mutations) -> Back {
        let dispatcher = Dispatcher::new(seed, mutations);
        Back { engine, dispatcher, installing: None, outputs: VecDeque::new() }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Now, input: BackInput) {
        let input = match input {
            BackInput::Tick => DispatcherInput::Tick,
            BackInput::Front(ToBack::Commit(entry)) => {
                self.on_commit(&entry);
                DispatcherInput::Applied
            }
            BackInput::Front(ToBack::Freeze(entry)) => {
                assert!(self.engine.applied() == entry.op);
                return self.outputs.push_back(BackOutput::Freeze(entry));
            }
            BackInput::Front(ToBack::Install(checkpoint)) => {
                let Checkpoint { entry: OpRef { op, .. }, digest, .. } = checkpoint;
                // Asked for again when its chunks were mended, while the engine from the first time was on its way here.
                if op <= self.engine.applied() {
                    let installed = ToFront::Installed { applied: Applied { op, digest } };
                    return self.outputs.push_back(BackOutput::Front(installed));
                }
                self.installing = Some(checkpoint);
                return self.outputs.push_back(BackOutput::Install(checkpoint));
            }
            BackInput::Front(ToBack::Query { token, at_least, query }) => {
                // Front hands a query over behind the commits that it waits for, so its op is applied by now.
                assert!(at_least <= self.engine.applied());
                return self.outputs.push_back(BackOutput::Query { token, query });
            }
            BackInput::Front(ToBack::Serving(stamp)) => DispatcherInput::Serving(stamp),
            BackInput::AttemptEnded { effect, number, stamp, end } => {
                DispatcherInput::AttemptEnded { effect, number, stamp, end }
            }
        };
        self.dispatcher.handle(now, input, &*self.engine);
    }

    /// The next thing to do. Drain until `Wait`. Answers come before starts: a caller waits for them.
    pub fn poll_output(&mut self) -> BackOutput {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        match self.dispatcher.poll_output() {
            DispatcherOutput::Start(attempt) => BackOutput::Start(attempt),
            DispatcherOutput::Propose(request) => BackOutput::Front(ToFront::Propose(request.encode())),
            DispatcherOutput::Wait(deadline) => BackOutput::Wait(deadline),
        }
    }

    /// An engine restored from a checkpoint takes the place of the old one, if that checkpoint is still the one wanted.
    /// Attempts under way go on: what became of them is in the log, or will be.
    pub fn install(&mut self, now: Now, checkpoint: &Checkpoint, engine: Box<dyn Engine>) {
        if self.installing != Some(*checkpoint) {
            return;
        }
        let op = checkpoint.entry.op;
        assert!(engine.applied() == op);
        assert!(self.engine.applied() < op);
        self.installing = None;
        self.engine = engine;
        let applied = Applied { op, digest: checkpoint.digest };
        self.outputs.push_back(BackOutput::Front(ToFront::Installed { applied }));
        self.dispatcher.handle(now, DispatcherInput::Applied, &*self.engine);
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Ends of attempts that were started here and that the log does not hold yet.
    pub fn unlogged_ends(&self) -> usize {
        self.dispatcher.unlogged_ends()
    }

    fn on_commit(&mut self, entry: &Entry) {
        assert!(self.engine.applied().next() == entry.op());
        let header = entry.header();
        let op =
            CommittedOp { op: header.op, born: header.born, timestamp: header.timestamp, body: entry.body() };
        let executed = self.engine.commit(op);
        assert!(executed.op == entry.op());
        let applied = Applied { op: executed.op, digest: executed.digest };
        let executed = ToFront::Executed { applied, results: executed.results };
        self.outputs.push_back(BackOutput::Front(executed));
    }
}
