//! How Front and Back of a replica run, each at its own moments.

use std::sync::Arc;

use chronon_node::{BackInput, BackOutput, FrontInput, FrontOutput, ToBack, ToFront, answer};
use chronon_vsr::{Durable, Duration, Op, OpRef, Replica, Role, Write};

use super::TICKS_IN_A_ROW_MAX;
use super::vaults::{Beside, Task};
use crate::event::Event;
use crate::network::exponential;
use crate::trace::{Who, salt_of};
use crate::{Checker, Violation, World};

impl World {
    pub(super) fn late(&mut self) -> Duration {
        let mean = self.config.pace.late_mean;
        exponential(&mut self.prng, mean)
    }

    pub(crate) fn give_front(&mut self, at: usize, input: FrontInput) {
        if self.machines[at].process.is_some() {
            self.process(at).front_inbox.push_back(input);
            let late = self.late();
            self.wake_front(at, late);
        }
    }

    pub(crate) fn give_back(&mut self, at: usize, input: BackInput) {
        if self.machines[at].process.is_some() {
            self.process(at).back_inbox.push_back(input);
            let late = self.late();
            self.wake_back(at, late);
        }
    }

    pub(super) fn wake_front(&mut self, at: usize, after: Duration) {
        let when = self.now + after;
        let life = self.machines[at].life;
        let Some(process) = &mut self.machines[at].process else { return };
        if process.front_timer.scheduled.is_none_or(|scheduled| when < scheduled) {
            process.front_timer.scheduled = Some(when);
            self.schedule_at(when, Event::Front { at, life });
        }
    }

    pub(super) fn wake_back(&mut self, at: usize, after: Duration) {
        let when = self.now + after;
        let life = self.machines[at].life;
        let Some(process) = &mut self.machines[at].process else { return };
        if process.back_timer.scheduled.is_none_or(|scheduled| when < scheduled) {
            process.back_timer.scheduled = Some(when);
            self.schedule_at(when, Event::Back { at, life });
        }
    }

    pub(super) fn run_front(&mut self, at: usize) {
        let back_queue_max = self.config.pace.back_queue_max;
        let machine = &mut self.machines[at];
        // A paused process is woken again when it goes on.
        if machine.paused {
            return;
        }
        let now = machine.clock.now(self.now);
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        if back_queue_max <= process.back_inbox.len() {
            process.front_blocked = true;
            return;
        }
        let input = match process.front_inbox.pop_front() {
            Some(input) => {
                process.ticks_in_a_row = 0;
                input
            }
            None => {
                process.ticks_in_a_row += 1;
                FrontInput::Tick
            }
        };
        if TICKS_IN_A_ROW_MAX < process.ticks_in_a_row
            && process.front_timer.deadline.is_some_and(|deadline| deadline <= self.now)
        {
            let what = format!("R{at}'s Front asks to be woken at once, for ever");
            return self.object(Violation::new(Checker::Liveness, what));
        }
        process.fetching = fetches_beyond(process.front.replica());
        let superblock =
            if let FrontInput::Durable(Durable::Superblock(number)) = input { Some(number) } else { None };
        process.front.handle(now, input);
        self.drain_front(at);
        if let (Some(heard), true) = (superblock, self.machines[at].process.is_some()) {
            let verdict = self.promises.on_superblock_heard(self.machines[at].id, heard);
            self.judge(verdict);
        }
    }

    pub(super) fn drain_front(&mut self, at: usize) {
        let mut outputs = std::mem::take(&mut self.front_outputs);
        let id = self.machines[at].id;
        let process = self.machines[at].process.as_mut().expect("the caller saw that it is alive");
        let deadline = loop {
            match process.front.poll_output() {
                FrontOutput::Wait(deadline) => break deadline,
                output => outputs.push(output),
            }
        };
        let status = process.front.status();
        process.role = status.role;
        let verdict = self.bounds.on_front(id, &status);
        self.judge(verdict);
        for output in outputs.drain(..) {
            if !self.lives_on(at) {
                break;
            }
            self.on_front_output(at, output);
        }
        self.front_outputs = outputs;
        self.start_jobs(at);

        let machine = &mut self.machines[at];
        let deadline = machine.clock.world(deadline);
        let Some(process) = &mut machine.process else { return };
        process.front_timer.deadline = deadline;
        let busy_until = self.now + self.config.pace.front;
        if !process.front_inbox.is_empty() {
            self.wake_front(at, self.config.pace.front);
        } else if let Some(deadline) = deadline {
            let when = deadline.max(busy_until);
            self.wake_front(at, when.since(self.now));
        }
    }

    pub(super) fn on_front_output(&mut self, at: usize, output: FrontOutput) {
        let id = self.machines[at].id;
        match output {
            FrontOutput::Send(to, message) => {
                // An ack may leave in the very step in which a transfer begins, or ends and the next one begins.
                let process = self.process(at);
                let fetches =
                    process.fetching.is_some() && process.fetching == fetches_beyond(process.front.replica());
                let verdict = self.checkpoints.on_send(id, &message, fetches);
                self.judge(verdict);
                let verdict = self.judge_chunk(at, &message);
                self.judge(verdict);
                self.send(at, to, message);
            }
            FrontOutput::Persist(write) => {
                let verdict = self.judge_write(at, &write);
                self.judge(verdict);
                self.promises.on_persist(id, &write);
                self.process(at).journal.submit(write);
            }
            FrontOutput::Back(to_back) => {
                match &to_back {
                    ToBack::Commit(entry) => {
                        let salt = salt_of(&entry.checksum().to_bytes());
                        self.trace.note(self.now, Who::Replica(id), salt, || {
                            format!("commits {} {}", entry.op(), entry.checksum())
                        });
                        let verdict = self.checkpoints.on_commit(id, entry);
                        self.judge(verdict);
                        let first = self.commits.head() < entry.op();
                        let verdict = self.commits.on_commit(self.now, id, entry);
                        self.judge(verdict);
                        if first {
                            let leading = match self.process(at).role {
                                Role::Primary { stamp, .. } => Some(stamp),
                                Role::Backup { .. } | Role::Changing { .. } => None,
                            };
                            let verdict = self.promises.on_first_commit(entry.op_ref(), leading);
                            self.judge(verdict);
                        }
                    }
                    ToBack::Serving(Some(stamp)) => {
                        self.trace.note(self.now, Who::Replica(id), stamp.view.value(), || {
                            format!("serves as the primary of {stamp}")
                        });
                        self.gate_watch.on_serving(self.now, *stamp);
                    }
                    ToBack::Freeze(entry) => {
                        let verdict = self.checkpoints.on_freeze(id, *entry);
                        self.judge(verdict);
                    }
                    ToBack::Install(checkpoint) => {
                        let OpRef { op, checksum } = checkpoint.entry;
                        let salt = salt_of(&checksum.to_bytes());
                        self.trace.note(self.now, Who::Replica(id), salt, || {
                            format!("goes on from the checkpoint of op {op}")
                        });
                        self.checkpoints.on_install(id);
                        let verdict = self.commits.on_install(id, checkpoint.entry);
                        self.judge(verdict);
                    }
                    ToBack::Skip(skip) => {
                        self.trace.note(self.now, Who::Replica(id), skip.at.op, || {
                            format!("goes on with {skip:?}")
                        });
                    }
                    ToBack::Serving(None) | ToBack::Query { .. } => {}
                }
                self.give_back(at, BackInput::Front(to_back));
            }
            FrontOutput::Vault(task) => self.give_vault(at, Task::Front(task)),
            FrontOutput::Answer(token, answer) => {
                let Some((client, call)) = self.process(at).tokens.remove(&token) else { return };
                if !self.may_tell(at, &answer) {
                    return;
                }
                let delay = self.network.delay();
                if !self.client_message_lost() {
                    self.schedule(delay, Event::ClientAnswer { client, call, token, answer });
                }
            }
            FrontOutput::GateConfirmed(round) => self.process(at).gate.confirm(round),
            FrontOutput::GateClosed => self.process(at).gate.close(),
            FrontOutput::Event(event) => {
                self.trace.note(self.now, Who::Replica(id), 0xe, || format!("{event:?}"));
                match event {
                    chronon_vsr::Event::CheckpointDurable { .. } => {
                        self.checkpoint_durable(at, Beside::Nothing)
                    }
                    chronon_vsr::Event::Synced { .. } => self.checkpoint_durable(at, Beside::Install),
                    _ => {}
                }
                // Disks are never exchanged here, and no replica is outside the protocol.
                use chronon_vsr::Event::{ForkDetected, PeerRefused};
                let bad = [
                    (matches!(event, ForkDetected { .. }), Checker::Commits),
                    (matches!(event, PeerRefused { .. }), Checker::Promises),
                    (self.is_unfounded(&event), Checker::Digest),
                ];
                if let Some((_, checker)) = bad.into_iter().find(|(is, _)| *is) {
                    self.object(Violation::new(checker, format!("R{id}: {event:?}")));
                }
                self.events.push((self.now, id, event));
            }
            FrontOutput::Wait(_) => unreachable!("it ends the drain"),
        }
    }

    /// What is written must keep the rules of checkpoints.
    fn judge_write(&mut self, at: usize, write: &Write) -> Result<(), Violation> {
        let id = self.machines[at].id;
        match write {
            Write::Append { keep_from, .. } => self.checkpoints.on_release(id, *keep_from),
            Write::Superblock { state, .. } => {
                let Some(root) = state.checkpoint.root else { return Ok(()) };
                // What rots between its flush and this moment is found when it is named.
                if self.process(at).store.may_be_named(root)
                    || self.atlas.is_damaged(id)
                    || self.machines[at].beyond
                {
                    return Ok(());
                }
                let op = state.checkpoint.entry.op;
                let what = format!("R{id}'s superblock names a checkpoint of op {op} that is not all there");
                Err(Violation::new(Checker::Checkpoints, what))
            }
        }
    }

    /// A superblock that names another checkpoint is durable.
    fn checkpoint_durable(&mut self, at: usize, beside: Beside) {
        let id = self.machines[at].id;
        let replica = self.process(at).front.replica();
        let checkpoint = *replica.checkpoint();
        let fetches = beside == Beside::Nothing && replica.is_fetching_state();
        let beside = if fetches { Beside::Transfer } else { beside };
        let verdict = self.checkpoints.on_durable(&self.commits, id, &checkpoint);
        self.judge(verdict);
        if beside == Beside::Install {
            self.checkpoints.on_synced(id, checkpoint.entry.op);
        }
        if let Some(root) = checkpoint.root {
            self.give_vault(at, Task::Keep(root, beside));
        }
    }

    pub(super) fn run_back(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.paused {
            return;
        }
        if self.now < machine.back_rests_until {
            let rest = machine.back_rests_until.since(self.now);
            return self.wake_back(at, rest);
        }
        let now = machine.clock.now(self.now);
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let input = process.back_inbox.pop_front().unwrap_or(BackInput::Tick);
        if let BackInput::Front(ToBack::Commit(_)) = &input {
            machine.back_rests_until = self.now + machine.back_slow;
        }
        process.back.handle(now, input);
        let unblocked = std::mem::take(&mut process.front_blocked);
        self.drain_back(at);
        if unblocked {
            self.wake_front(at, Duration::ZERO);
        }
    }

    pub(super) fn drain_back(&mut self, at: usize) {
        let deadline = loop {
            let output = self.process(at).back.poll_output();
            if !matches!(output, BackOutput::Wait(_)) && !self.lives_on(at) {
                return;
            }
            match output {
                BackOutput::Wait(deadline) => break deadline,
                BackOutput::Front(to_front) => {
                    if let ToFront::Executed { applied, results } = &to_front {
                        let id = self.machines[at].id;
                        self.trace.note(self.now, Who::Replica(id), applied.digest.0, || {
                            format!("executed {}: {results:?}", applied.op)
                        });
                        let verdict = self.judge_executed(at, *applied, results);
                        self.judge(verdict);
                        let status = self.process(at).back.engine().status();
                        let verdict = self.bounds.on_back(id, &status);
                        self.judge(verdict);
                        if status.timers != 0 {
                            self.reach("TimerSet");
                        }
                    }
                    if let ToFront::Halted(halted) = &to_front {
                        let id = self.machines[at].id;
                        self.trace
                            .note(self.now, Who::Replica(id), halted.op.value(), || format!("{halted:?}"));
                        self.reach("Halted");
                    }
                    self.give_front(at, FrontInput::Back(to_front));
                }
                BackOutput::Query { token, query } => {
                    let answered = answer(self.process(at).back.engine(), token, &query);
                    self.give_front(at, FrontInput::Back(answered));
                }
                BackOutput::Freeze(entry) => {
                    let frozen = self.process(at).back.engine().freeze();
                    self.give_vault(at, Task::Freeze(entry, frozen));
                }
                BackOutput::Install(checkpoint) => self.give_vault(at, Task::Install(checkpoint)),
                BackOutput::Start(attempt) => {
                    let executed = self.process(at).back.engine().applied();
                    let committed = self.commits.head();
                    let verdict = self.effects.on_start(executed.min(committed), &attempt);
                    self.judge(verdict);
                    self.judge_terms(at, executed.min(committed), &attempt);
                    let late = self.late();
                    let life = self.machines[at].life;
                    self.schedule(late, Event::Execute { at, life, attempt: Arc::new(attempt) });
                }
            }
        };
        let machine = &mut self.machines[at];
        let deadline = machine.clock.world(deadline);
        let Some(process) = &mut machine.process else { return };
        process.back_timer.deadline = deadline;
        let busy_until = self.now + self.config.pace.back;
        if !process.back_inbox.is_empty() {
            self.wake_back(at, self.config.pace.back);
        } else if let Some(deadline) = deadline {
            self.wake_back(at, deadline.max(busy_until).since(self.now));
        }
    }
}

/// The checkpoint of a replica that fetches a newer one.
fn fetches_beyond(replica: &Replica) -> Option<Op> {
    replica.is_fetching_state().then(|| replica.checkpoint().entry.op)
}
