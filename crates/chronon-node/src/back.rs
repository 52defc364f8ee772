//! Back: the half that executes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptNumber, CommittedOp, CommittedSkip, Dispatcher, DispatcherInput,
    DispatcherOutput, EffectId, Engine, Halted,
};
use chronon_vsr::{Applied, Checkpoint, Entry, Instant, Mutations, Now, OpRef, Stamp, Timestamp};

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
    /// Freeze [`Back::engine`] before the next output is asked for, and make the copy durable as chunks, off this thread.
    Freeze(OpRef),
    /// Restore an engine from this checkpoint's chunks and hand it to [`Back::install`]. If chunks are missing, the
    /// replica is to be told which.
    Install(Checkpoint),
    /// Let [`answer`] have this query, with [`Back::engine`] as it is now, before the next output is asked for, or a copy frozen now or later, on any thread.
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
    halt: Option<Halt>,
    /// What came in order behind the op at which it has halted, and waits as long as that. Front bounds it, as it bounds
    /// the queue in between.
    held: VecDeque<ToBack>,
    outputs: VecDeque<BackOutput>,
    now: Now,
}

/// An op that can't be executed as it is.
struct Halt {
    entry: Entry,
    halted: Halted,
    /// The skips that it was tried with: it may hold more than one call that panics.
    skips: Vec<CommittedSkip>,
}

impl Back {
    /// A Back around an engine that has executed nothing.
    pub fn new(engine: Box<dyn Engine>, seed: u64, mutations: Mutations) -> Back {
        let dispatcher = Dispatcher::new(seed, mutations);
        Back {
            engine,
            dispatcher,
            installing: None,
            halt: None,
            held: VecDeque::new(),
            outputs: VecDeque::new(),
            now: Now { monotonic: Instant::ZERO, wall: Timestamp::ZERO },
        }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Now, input: BackInput) {
        self.now = now;
        let input = match input {
            BackInput::Tick => DispatcherInput::Tick,
            BackInput::Front(work) if self.must_wait(&work) => return self.held.push_back(work),
            BackInput::Front(work) => return self.carry_out(work),
            BackInput::AttemptEnded { effect, number, stamp, end } => {
                DispatcherInput::AttemptEnded { effect, number, stamp, end }
            }
        };
        self.dispatcher.handle(now, input, &*self.engine);
    }

    /// The next thing to do. Drain until `Wait`. Answers come before starts: a caller waits for them.
    pub fn poll_output(&mut self) -> BackOutput {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return output;
            }
            // One at a time: what is to be frozen or asked is the state in between.
            if self.halt.is_none()
                && let Some(work) = self.held.pop_front()
            {
                self.carry_out(work);
                continue;
            }
            return match self.dispatcher.poll_output() {
                DispatcherOutput::Start(attempt) => BackOutput::Start(attempt),
                DispatcherOutput::Propose(request) => BackOutput::Front(ToFront::Propose(request.encode())),
                DispatcherOutput::Wait(deadline) => BackOutput::Wait(deadline),
            };
        }
    }

    /// Whether this has its place behind an op that is not executed.
    fn must_wait(&self, work: &ToBack) -> bool {
        let is_halted = self.halt.is_some() || !self.held.is_empty();
        match work {
            ToBack::Commit(_) | ToBack::Freeze(_) => is_halted,
            ToBack::Query { at_least, .. } => is_halted && self.engine.applied() < *at_least,
            ToBack::Install(_) | ToBack::Skip(_) | ToBack::Serving(_) => false,
        }
    }

    fn carry_out(&mut self, work: ToBack) {
        let input = match work {
            ToBack::Commit(entry) => return self.execute(entry, Vec::new()),
            ToBack::Skip(skip) => return self.on_skip(skip),
            ToBack::Freeze(entry) => {
                assert!(self.engine.applied() == entry.op);
                return self.outputs.push_back(BackOutput::Freeze(entry));
            }
            ToBack::Install(checkpoint) => return self.on_install(checkpoint),
            ToBack::Query { token, at_least, query } => {
                // Front hands a query over behind the commits that it waits for, so its op is applied by now.
                assert!(at_least <= self.engine.applied());
                return self.outputs.push_back(BackOutput::Query { token, query });
            }
            ToBack::Serving(stamp) => DispatcherInput::Serving(stamp),
        };
        self.dispatcher.handle(self.now, input, &*self.engine);
    }

    /// Executes the next op, or halts before it: then nothing behind it is executed either.
    fn execute(&mut self, entry: Entry, skips: Vec<CommittedSkip>) {
        assert!(self.engine.applied().next() == entry.op());
        let header = entry.header();
        let op = CommittedOp {
            op: header.op,
            born: header.born,
            timestamp: header.timestamp,
            body: entry.body(),
            skips: &skips,
        };
        match self.engine.commit(op) {
            Ok(executed) => {
                assert!(executed.op == entry.op());
                let applied = Applied { op: executed.op, digest: executed.digest };
                let executed = ToFront::Executed { applied, results: executed.results };
                self.outputs.push_back(BackOutput::Front(executed));
                self.dispatcher.handle(self.now, DispatcherInput::Applied, &*self.engine);
            }
            Err(halted) => {
                assert!(self.engine.applied() < halted.op);
                self.outputs.push_back(BackOutput::Front(ToFront::Halted(halted.clone())));
                self.halt = Some(Halt { entry, halted, skips });
            }
        }
    }

    /// The op is tried again without the call. A skip of what has been overtaken by a checkpoint is of no more use.
    fn on_skip(&mut self, skip: CommittedSkip) {
        if let Some(Halt { entry, mut skips, .. }) =
            self.halt.take_if(|halt| halt.halted.is_passed_by(&skip.skip))
        {
            skips.push(skip);
            self.execute(entry, skips);
        }
    }

    fn on_install(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { entry: OpRef { op, .. }, digest, .. } = checkpoint;
        // Asked for again when its chunks were mended, while the engine from the first time was on its way here.
        if op <= self.engine.applied() {
            let installed = ToFront::Installed { applied: Applied { op, digest } };
            return self.outputs.push_back(BackOutput::Front(installed));
        }
        // It holds what became of the op at which this replica stands, and of all that it was handed since.
        self.halt = None;
        self.held.clear();
        self.installing = Some(checkpoint);
        self.outputs.push_back(BackOutput::Install(checkpoint));
    }

    /// An engine restored from a checkpoint takes the place of the old one, if that checkpoint is still the one wanted.
    /// Attempts under way go on: what became of them is in the log, or will be.
    pub fn install(&mut self, now: Now, checkpoint: &Checkpoint, engine: Box<dyn Engine>) {
        if self.installing != Some(*checkpoint) {
            return;
        }
        self.now = now;
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
}
