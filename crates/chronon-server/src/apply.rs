//! The Back thread: the half that executes.

use std::collections::VecDeque;
use std::sync::Arc;

use chronon_kernel::{Attempt, AttemptEnd, AttemptNumber, EffectId};
use chronon_node::{Back, BackInput, BackOutput, ToBack, ToFront};
use chronon_vsr::{Instant, Stamp};
use tokio::sync::mpsc;

use crate::attempts::FrozenSinks;
use crate::clock::Clock;
use crate::front::Look;
use crate::mailbox::{Mailbox, Waited};

/// What Back's thread is told. Commits are bounded by Front (`behind_ops_max`), attempts by the sinks' concurrency,
/// looks by who asks.
pub(crate) enum BackMessage {
    /// From Front.
    Front(ToBack),
    /// An attempt has ended.
    AttemptEnded { effect: EffectId, number: AttemptNumber, stamp: Stamp, end: AttemptEnd },
    /// Somebody wants to look at the engine between two ops.
    Look(Look),
}

/// What runs the Back thread.
pub(crate) struct BackThread {
    pub(crate) back: Back,
    pub(crate) mailbox: Mailbox<BackMessage>,
    pub(crate) to_front: mpsc::Sender<ToFront>,
    pub(crate) start: Box<dyn FnMut(Attempt) + Send>,
    pub(crate) frozen: FrozenSinks,
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
                self.back.handle(Clock.now(), BackInput::Tick);
            }
            for message in messages.drain(..) {
                match message {
                    BackMessage::Front(to_back) => {
                        let commits = matches!(to_back, ToBack::Commit(_));
                        if let (Some(hook), true) = (&self.before_commit, commits) {
                            hook();
                        }
                        self.back.handle(Clock.now(), BackInput::Front(to_back));
                        if commits {
                            self.frozen.set(self.back.engine().frozen_sinks());
                        }
                    }
                    BackMessage::AttemptEnded { effect, number, stamp, end } => {
                        let input = BackInput::AttemptEnded { effect, number, stamp, end };
                        self.back.handle(Clock.now(), input);
                    }
                    BackMessage::Look(look) => look(self.back.engine()),
                }
                // After each: a caller waits for its answer, not for the ops behind its own.
                if carry_out(&mut self.back, &self.to_front, &mut self.start).is_none() {
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self) -> Option<Instant> {
        carry_out(&mut self.back, &self.to_front, &mut self.start)
    }
}

/// Carries out what Back wants done; none when Front has gone.
fn carry_out(
    back: &mut Back,
    to_front: &mpsc::Sender<ToFront>,
    start: &mut (dyn FnMut(Attempt) + Send),
) -> Option<Instant> {
    loop {
        match back.poll_output() {
            // Front never waits for this thread, so waiting for Front ends.
            BackOutput::Front(message) => to_front.blocking_send(message).ok()?,
            BackOutput::Start(attempt) => start(attempt),
            // TODO(#4): a vault thread. A log whose checkpoints are never durable ends when its ring is full.
            BackOutput::Freeze(_) | BackOutput::Install(_) => {}
            BackOutput::Wait(deadline) => return Some(deadline),
        }
    }
}
