//! Back: the half that executes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptNumber, CommittedOp, Dispatcher, DispatcherInput, DispatcherOutput, EffectId,
    Engine,
};
use chronon_vsr::{Applied, Entry, Instant, Mutations, Now, Op, Stamp};

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
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// The half that executes.
pub struct Back {
    engine: Box<dyn Engine>,
    dispatcher: Dispatcher,
    outputs: VecDeque<ToFront>,
}

impl Back {
    /// A Back around an engine that has executed nothing.
    pub fn new(engine: Box<dyn Engine>, seed: u64, mutations: Mutations) -> Back {
        Back { engine, dispatcher: Dispatcher::new(seed, mutations), outputs: VecDeque::new() }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Now, input: BackInput) {
        let input = match input {
            BackInput::Tick => DispatcherInput::Tick,
            BackInput::Front(ToBack::Commit(entry)) => {
                self.on_commit(&entry);
                DispatcherInput::Applied
            }
            BackInput::Front(ToBack::Query { token, at_least, query }) => {
                return self.on_query(token, at_least, &query);
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
            return BackOutput::Front(output);
        }
        match self.dispatcher.poll_output() {
            DispatcherOutput::Start(attempt) => BackOutput::Start(attempt),
            DispatcherOutput::Propose(request) => BackOutput::Front(ToFront::Propose(request.encode())),
            DispatcherOutput::Wait(deadline) => BackOutput::Wait(deadline),
        }
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    fn on_commit(&mut self, entry: &Entry) {
        assert!(self.engine.applied().next() == entry.op());
        let header = entry.header();
        let op =
            CommittedOp { op: header.op, born: header.born, timestamp: header.timestamp, body: entry.body() };
        let executed = self.engine.commit(op);
        assert!(executed.op == entry.op());
        let applied = Applied { op: executed.op, digest: executed.digest };
        self.outputs.push_back(ToFront::Executed { applied, results: executed.results });
    }

    /// Front hands a query over behind the commits that it waits for, so its op is applied by now.
    fn on_query(&mut self, token: Token, at_least: Op, query: &[u8]) {
        let op = self.engine.applied();
        assert!(at_least <= op);
        let answer = self.engine.query(query);
        self.outputs.push_back(ToFront::Queried { token, op, answer });
    }
}
