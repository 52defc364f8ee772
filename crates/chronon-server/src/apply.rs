//! The Back thread: the half that executes.

use std::collections::VecDeque;
use std::sync::Arc;

use chronon_kernel::{Attempt, AttemptEnd, AttemptNumber, EffectId, Engine};
use chronon_node::{Back, BackInput, BackOutput, ToBack, ToFront};
use chronon_vsr::{Checkpoint, Instant, Op, Stamp};
use tokio::sync::mpsc;

use crate::attempts::FrozenSinks;
use crate::clock::{Clock, Clocks};
use crate::counters::Counters;
use crate::front::Look;
use crate::mailbox::{Mailbox, Waited};
use crate::reads::Reads;
use crate::turn::Turn;
use crate::vault::VaultMessage;

/// What Back's thread is told. Commits are bounded by Front (`behind_ops_max`), attempts by the sinks' concurrency,
/// looks by who asks.
pub(crate) enum BackMessage {
    /// From Front.
    Front(ToBack),
    /// An attempt has ended.
    AttemptEnded { effect: EffectId, number: AttemptNumber, stamp: Stamp, end: AttemptEnd },
    /// Somebody wants to look at the engine as it is now.
    Look(Look),
    /// The engine of a checkpoint is restored.
    Installed { checkpoint: Checkpoint, engine: Box<dyn Engine> },
}

/// What runs the Back thread.
pub(crate) struct BackThread {
    pub(crate) back: Back,
    pub(crate) mailbox: Mailbox<BackMessage>,
    pub(crate) to_front: mpsc::Sender<ToFront>,
    pub(crate) start: Box<dyn FnMut(Attempt) + Send>,
    pub(crate) frozen: FrozenSinks,
    pub(crate) reads: Reads,
    pub(crate) vault: Mailbox<VaultMessage>,
    pub(crate) turn: Arc<Turn>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clocks: Clocks,
    /// When the process began to start this replica, and the newest op that it found on its disk, until that is executed.
    pub(crate) began: Instant,
    pub(crate) replays_to: Option<Op>,
    /// Called before each op is executed: tests make it slow here.
    pub(crate) before_commit: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl BackThread {
    /// Runs until the replica stops.
    pub(crate) fn run(mut self) {
        let mut messages = VecDeque::new();
        loop {
            let Some(deadline) = self.carry_out() else { return };
            let patience = (deadline != Instant::NEVER).then(|| deadline.since(Clock.monotonic()));
            match self.mailbox.take(&mut messages, patience) {
                Waited::Closed => return,
                Waited::TimedOut | Waited::Filled => {}
            }
            // Looked at in every turn: under load there is always a message before the time is up.
            if deadline <= Clock.monotonic() {
                self.back.handle(self.clocks.now(), BackInput::Tick);
            }
            for message in messages.drain(..) {
                match message {
                    BackMessage::Front(ToBack::Commit(entry)) => {
                        if let Some(hook) = &self.before_commit {
                            hook();
                        }
                        self.turn.note_progress(entry.header().end());
                        let begun = Clock.monotonic();
                        self.back.handle(self.clocks.now(), BackInput::Front(ToBack::Commit(entry)));
                        self.counters.apply.record(Clock.monotonic().since(begun));
                    }
                    BackMessage::Front(to_back) => {
                        self.back.handle(self.clocks.now(), BackInput::Front(to_back));
                    }
                    BackMessage::AttemptEnded { effect, number, stamp, end } => {
                        let input = BackInput::AttemptEnded { effect, number, stamp, end };
                        self.back.handle(self.clocks.now(), input);
                    }
                    BackMessage::Look(look) => self.reads.look(self.back.engine(), look),
                    BackMessage::Installed { checkpoint, engine } => {
                        self.back.install(self.clocks.now(), &checkpoint, engine);
                        if self.replays_to.is_some() {
                            self.counters.start_restored_ms.set(self.since_start());
                        }
                    }
                }
                // After each: a caller waits for its answer, not for the ops behind its own.
                if self.carry_out().is_none() {
                    return;
                }
            }
        }
    }

    /// The engine is another than it was.
    fn note_progress(&mut self) {
        self.frozen.set(self.back.engine().frozen_sinks());
        let applied = self.back.engine().applied();
        if self.replays_to.take_if(|op| *op <= applied).is_some() {
            self.counters.start_replayed_ms.set(self.since_start());
        }
    }

    fn since_start(&self) -> u64 {
        let took = Clock.monotonic().since(self.began);
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
    }

    /// Carries out what Back wants done; none when Front has gone.
    fn carry_out(&mut self) -> Option<Instant> {
        loop {
            match self.back.poll_output() {
                BackOutput::Front(message) => {
                    // Before anybody hears of it, and before anything is started.
                    if let ToFront::Executed { .. } | ToFront::Installed { .. } = message {
                        self.note_progress();
                    }
                    // Front never waits for this thread, so waiting for Front ends.
                    self.to_front.blocking_send(message).ok()?;
                }
                BackOutput::Start(attempt) => (self.start)(attempt),
                BackOutput::Query { token, query } => self.reads.query(self.back.engine(), token, query),
                BackOutput::Freeze(entry) => {
                    let begun = Clock.monotonic();
                    let frozen = self.back.engine().freeze();
                    self.counters.freeze.record(Clock.monotonic().since(begun));
                    // The op that was handed over last is the checkpoint's, or lies behind it if execution had halted.
                    let end = self.turn.progress();
                    self.vault.push(VaultMessage::Freeze { entry, end, frozen });
                }
                BackOutput::Install(checkpoint) => self.vault.push(VaultMessage::Install(checkpoint)),
                BackOutput::Wait(deadline) => return Some(deadline),
            }
        }
    }
}
