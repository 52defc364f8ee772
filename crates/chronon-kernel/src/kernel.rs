//! The kernel: a machine, and everything that makes its commands happen once and its effects end once.

use core::fmt;

use chronon_vsr::{Digest, Duration, Mutation, Mutations, Op, Stamp, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chunk::RestoreError;
use crate::context::Wishes;
use crate::effect::Effect;
use crate::frozen::{Frozen, FrozenKernel};
use crate::halt::{Called, Skips};
use crate::keys::Keys;
use crate::outbox::{Callback, Outbox, Outcome};
use crate::reports::Reports;
use crate::sessions::{Known, Sessions};
use crate::state::Fold;
use crate::timers::Timers;
use crate::view::{
    ActView, Asked, EffectFilter, EffectView, EngineStatus, KeyView, Order, Reported, SinkView, SkipView,
};
use crate::{
    AbortReason, Applied, Attempt, Batch, Busy, CommittedOp, CommittedSkip, Context, EffectId, Emitted,
    Engine, EngineOptions, Halted, Limits, OnPanic, Origin, QueryContext, QueryError, Refusal, Request,
    RequestId, RequestResult, Settled, SinkName, StateMachine, quiet,
};

/// A kernel around a machine. See [`Engine`].
pub struct Kernel<M: StateMachine> {
    pub(crate) machine: M,
    pub(crate) outbox: Outbox,
    pub(crate) timers: Timers,
    pub(crate) sessions: Sessions,
    pub(crate) keys: Keys,
    pub(crate) skips: Skips,
    pub(crate) reports: Reports,
    pub(crate) limits: Limits,
    pub(crate) mutations: Mutations,
    pub(crate) applied: Op,
    pub(crate) digest: Digest,
    /// Folds what belongs to the op that is executed and is in no table and not in the outbox.
    pub(crate) fold: Fold,
    /// Effects emitted by the op that is executed.
    pub(crate) emitted: u32,
    /// Calls of the machine by the op that is executed.
    pub(crate) calls: u32,
    pub(crate) passage: Passage,
    /// What a callback emitted found no room while so many effects were open: it is tried again once there are fewer, or
    /// by the next op.
    pub(crate) blocked: Option<usize>,
    pub(crate) counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commands: u64,
    pub(crate) aborted: u64,
    pub(crate) unreadable_ops: u64,
    pub(crate) callbacks_aborted: u64,
}

/// How the op that is executed gets on. Empty between ops.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    skips: Vec<CommittedSkip>,
    /// The first call that panicked and is not skipped, in a machine that halts then.
    halted: Option<Halted>,
}

/// A call of the machine that went well, and the state from before it.
struct Call<M, R> {
    result: R,
    wishes: Wishes,
    before: M,
}

/// When a callback that found no room is tried again if nothing else happens.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);

impl<M: StateMachine> Kernel<M> {
    /// A kernel that has executed nothing.
    pub fn new(options: EngineOptions) -> Kernel<M> {
        let EngineOptions { lineage, limits, mutations } = options;
        Kernel {
            machine: M::genesis(),
            outbox: Outbox::new(lineage, limits, mutations),
            timers: Timers::default(),
            sessions: Sessions::default(),
            keys: Keys::default(),
            skips: Skips::default(),
            passage: Passage::default(),
            reports: Reports::default(),
            limits,
            mutations,
            applied: Op::ROOT,
            digest: Digest(0),
            fold: Fold::EMPTY,
            emitted: 0,
            calls: 0,
            blocked: None,
            counters: Counters::default(),
        }
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Calls the machine's `apply` and nothing else of what executing a command is: no reply, effect, timer or digest
    /// comes of it. The machine's state changes, so this kernel can't go on with a log. For measuring `apply`, its copy
    /// for the rollback included.
    pub fn rehearse(&mut self, command: M::Command) -> Result<M::Reply, AbortReason> {
        let called = Called::Command { request: 0, body: &[] };
        self.call(&called, |machine, context| Ok(machine.apply(context, command))).map(|call| call.result)
    }

    fn now(&self) -> Timestamp {
        self.outbox.place().now
    }

    // ---- calling the machine ---------------------------------------------------------------------------------------

    /// Runs the machine, unless that is skipped. If it panics or asks for what it may not have, its state is put back.
    fn call<R>(
        &mut self,
        called: &Called<'_>,
        run: impl FnOnce(&mut M, &mut Context<'_, M>) -> Result<R, AbortReason>,
    ) -> Result<Call<M, R>, AbortReason> {
        self.calls += 1;
        if let Some(why) = self.skip(called) {
            return Err(why);
        }
        let before = self.machine.clone();
        let mut seed = Fold::from_value(self.digest.0);
        seed.word(self.now().nanos());
        seed.word(u64::from(self.calls));
        let mut wishes = Wishes::default();
        let result = quiet::catch(|| {
            let mut context =
                Context::new(&mut wishes, &self.outbox, &self.limits, self.emitted, seed.value());
            run(&mut self.machine, &mut context)
        });
        let result = result.unwrap_or_else(|message| {
            if M::ON_PANIC == OnPanic::Halt && self.passage.halted.is_none() {
                let (op, message) = (self.outbox.place().op, message.clone());
                let (culprit, fingerprint) = (called.culprit(), called.fingerprint());
                self.passage.halted = Some(Halted { op, culprit, fingerprint, message });
            }
            Err(AbortReason::Panicked { message })
        });
        let failure = wishes.failure.take();
        match (result, failure) {
            (Ok(result), None) => Ok(Call { result, wishes, before }),
            (Err(why), _) | (Ok(_), Some(why)) => {
                self.machine = before;
                Err(why)
            }
        }
    }

    /// If a person has this call skipped: the reason that stands in its place.
    fn skip(&mut self, called: &Called<'_>) -> Option<AbortReason> {
        let by = self.passage.skips.iter().find(|by| by.skip.culprit == called.culprit())?;
        let SkipView { by, reason, .. } =
            self.skips.record(by, self.outbox.place().now, self.limits.acts_max);
        self.fold.bytes(by.as_bytes());
        self.fold.bytes(reason.as_bytes());
        Some(AbortReason::Skipped { by: by.clone(), reason: reason.clone() })
    }

    /// Carries out what the machine asked for. There is room.
    fn carry_out(&mut self, wishes: Wishes) -> Vec<EffectId> {
        let mut effects = Vec::with_capacity(wishes.emits.len());
        for new in wishes.emits {
            let id = EffectId::new(self.outbox.place().op, self.emitted);
            self.emitted += 1;
            self.outbox.emit(id, new);
            effects.push(id);
        }
        for id in wishes.cancels {
            self.outbox.cancel(id);
        }
        for (key, at) in wishes.timers {
            self.fold.bytes(key.0.as_bytes());
            self.fold.word(at.map_or(0, |at| at.nanos()));
            self.timers.set(key, at);
        }
        effects
    }

    // ---- requests --------------------------------------------------------------------------------------------------

    fn run(&mut self, at: RequestId, request: Request) -> RequestResult {
        let readable = |outcome: &[u8]| quiet::catch(|| decode::<M::Outcome>(outcome).is_some()) == Ok(true);
        match request {
            Request::Register { nonce } => {
                RequestResult::Registered { session: self.sessions.register(nonce, at, &self.limits) }
            }
            Request::Command { origin, body } => self.run_command(at, &origin, &body),
            Request::Tick => RequestResult::Done,
            Request::Claim { effect, attempt } => {
                self.outbox.claim(effect, attempt);
                RequestResult::Done
            }
            Request::Outcome(report) => {
                self.reports.push(Reported::of(&report));
                self.outbox.report(report, readable);
                RequestResult::Done
            }
            Request::SinkSet { name, spec, expected_revision } => {
                match self.outbox.set_sink(&name, spec, expected_revision) {
                    Ok(revision) => RequestResult::SinkSet { revision },
                    Err(refusal) => RequestResult::Refused(refusal),
                }
            }
            Request::Desk { effect, act, by } => match self.outbox.desk(effect, act, &by, readable) {
                Ok(()) => RequestResult::Done,
                Err(refusal) => RequestResult::Refused(refusal),
            },
            Request::Skip(skip) => match self.skips.answer(at, &skip) {
                Ok(()) => RequestResult::Done,
                Err(refusal) => RequestResult::Refused(refusal),
            },
        }
    }

    /// A repeat gets the answer that it got, whatever else is the matter; only what is new needs room.
    fn run_command(&mut self, at: RequestId, origin: &Origin, body: &[u8]) -> RequestResult {
        let now = self.now();
        let known = match origin {
            Origin::Session { session, number } => self.sessions.look_up(*session, *number),
            Origin::Key { principal, key } => self.keys.look_up(principal, key, body, now, &self.limits),
        };
        match known {
            Known::New => {}
            Known::Result(_) if self.mutations.breaks(Mutation::ApplyRepeats) => {}
            Known::Refused(refusal) => return RequestResult::Refused(refusal),
            Known::Result(result) => {
                if let Origin::Session { session, .. } = origin {
                    self.sessions.touch(*session);
                }
                return result;
            }
        }
        let room = match origin {
            Origin::Session { .. } => Ok(()),
            Origin::Key { .. } => self.keys.make_room(now, &self.limits),
        };
        if let Err(busy) = room.and_then(|()| self.outbox.room_for_a_command()) {
            return RequestResult::Refused(Refusal::Busy(busy));
        }
        let result = match self.execute(at, body) {
            Ok(result) => result,
            // Nothing happened, and the same request may come again.
            Err(busy) => return RequestResult::Refused(Refusal::Busy(busy)),
        };
        match origin {
            Origin::Session { session, number } => {
                self.sessions.remember(*session, *number, result.clone(), &self.limits);
            }
            Origin::Key { principal, key } => {
                self.keys.remember(principal, key, body, result.clone(), now);
            }
        }
        result
    }

    fn execute(&mut self, at: RequestId, body: &[u8]) -> Result<RequestResult, Busy> {
        let reply_max = self.limits.reply_bytes_max;
        let called = Called::Command { request: at.request, body };
        let call = self.call(&called, |machine, context| {
            let command = decode::<M::Command>(body).ok_or(AbortReason::Undecodable)?;
            let reply = encode(&machine.apply(context, command))?;
            if (reply_max as usize) < reply.len() {
                return Err(AbortReason::ReplyTooLarge { limit: reply_max });
            }
            Ok(reply)
        });
        let call = match call {
            Ok(call) => call,
            Err(why) => {
                self.counters.aborted += 1;
                return Ok(RequestResult::Aborted { at, why });
            }
        };
        if let Err(busy) = self.room_for(&call.wishes) {
            self.machine = call.before;
            return Err(busy);
        }
        self.counters.commands += 1;
        let effects = self.carry_out(call.wishes);
        Ok(RequestResult::Replied { at, timestamp: self.now().nanos(), reply: call.result, effects })
    }

    fn room_for(&self, wishes: &Wishes) -> Result<(), Busy> {
        self.outbox.room_in_sinks_and_lanes(&wishes.emits)?;
        let timers = self.timers.len_after(&wishes.timers);
        if self.limits.timers_max < timers && self.timers.len() < timers {
            return Err(Busy::TimersFull);
        }
        Ok(())
    }

    // ---- callbacks -------------------------------------------------------------------------------------------------

    /// Lets the machine hear what it has still to hear, in log order, as far as the budget goes.
    fn run_callbacks(&mut self, budget: &mut usize) {
        while 0 < *budget && self.blocked.is_none_or(|open| self.outbox.len() < open) {
            let Some((sequence, callback)) = self.outbox.next_callback() else { return };
            *budget -= 1;
            match self.run_callback(&callback) {
                Ok(()) => self.outbox.remove_callback(sequence),
                Err(NoRoom) => self.blocked = Some(self.outbox.len()),
            }
        }
    }

    fn run_callback(&mut self, callback: &Callback) -> Result<(), NoRoom> {
        match callback {
            Callback::Settled { effect, outcome } => {
                self.call_back(callback, |machine, context| {
                    let emitted = emitted(effect)?;
                    machine.settled(context, emitted, settled(outcome.clone())?);
                    Ok(())
                })?;
            }
            Callback::Timer(key) => {
                self.call_back(callback, |machine, context| {
                    machine.timer(context, key.clone());
                    Ok(())
                })?;
            }
            Callback::Parked { effect: id, parking, why } => {
                let Some(effect) = self.outbox.parked_now(*id, *parking) else { return Ok(()) };
                let answer = self.call_back(callback, |machine, context| {
                    Ok(machine.parked(context, &emitted(&effect)?, *why))
                })?;
                if let Some(answer) = answer {
                    self.outbox.on_parked(*id, *parking, answer);
                }
            }
        }
        Ok(())
    }

    /// Runs the machine. What fails has no effect and is counted: the outcome stands, there is nobody to refuse it to.
    fn call_back<R>(
        &mut self,
        callback: &Callback,
        run: impl FnOnce(&mut M, &mut Context<'_, M>) -> Result<R, AbortReason>,
    ) -> Result<Option<R>, NoRoom> {
        let Ok(call) = self.call(&Called::Back(callback), run) else {
            self.counters.callbacks_aborted += 1;
            return Ok(None);
        };
        if self.outbox.room_for_a_callback(&call.wishes.emits).is_err() {
            self.machine = call.before;
            return Err(NoRoom);
        }
        if 2 * self.limits.timers_max < self.timers.len_after(&call.wishes.timers) {
            self.machine = call.before;
            self.counters.callbacks_aborted += 1;
            return Ok(None);
        }
        self.carry_out(call.wishes);
        Ok(Some(call.result))
    }

    fn run_due(&mut self) {
        let mut left = self.limits.due_per_op;
        while 0 < left
            && let Some(key) = self.timers.take_due(self.now())
        {
            left -= 1;
            if self.mutations.breaks(Mutation::TimerRingsTwice) {
                self.outbox.push_callback(Callback::Timer(key.clone()));
            }
            self.outbox.push_callback(Callback::Timer(key));
        }
        self.outbox.run_due(left.max(self.limits.due_per_op / 2));
    }

    /// The same kernel, without the reports.
    fn copy(&self) -> Kernel<M> {
        Kernel {
            machine: self.machine.clone(),
            outbox: self.outbox.clone(),
            timers: self.timers.clone(),
            sessions: self.sessions.clone(),
            keys: self.keys.clone(),
            skips: self.skips.clone(),
            passage: Passage::default(),
            reports: Reports::default(),
            ..*self
        }
    }

    /// Puts everything back as it was before an op.
    fn take_back(&mut self, before: Kernel<M>, reports: u64) {
        let kept = core::mem::take(&mut self.reports);
        *self = before;
        self.reports = kept;
        self.reports.take_back_to(reports);
    }

    fn close_digest(&mut self, op: Op, results: &[RequestResult]) {
        let mut fold = core::mem::replace(&mut self.fold, Fold::EMPTY);
        fold.word(self.digest.0);
        fold.word(op.value());
        for result in results {
            fold_result(&mut fold, result);
        }
        fold.word(self.outbox.drain_fold());
        fold.word(self.machine.drain_writes());
        self.digest = Digest(fold.value());
    }
}

/// What a callback emitted found no room.
struct NoRoom;

impl<M: StateMachine> Engine for Kernel<M> {
    fn commit(&mut self, op: CommittedOp<'_>) -> Result<Applied, Halted> {
        assert!(op.op == self.applied.next(), "ops are executed in order, each once");
        let before = (M::ON_PANIC == OnPanic::Halt).then(|| (self.copy(), self.reports.count()));
        self.passage.skips = op.skips.to_vec();
        let reign = self.outbox.place().reign;
        self.outbox.enter(op.op, op.timestamp, op.born);
        if reign != 0 && reign != self.outbox.place().reign && self.mutations.breaks(Mutation::ForgetSessions)
        {
            self.sessions.forget();
            self.keys.forget();
        }
        self.emitted = 0;
        self.calls = 0;
        self.blocked = None;
        let requests = match Batch::split(op.body) {
            Some(batch) => batch.requests,
            None => {
                self.counters.unreadable_ops += 1;
                Vec::new()
            }
        };
        let budget = &mut (self.limits.callbacks_per_op + requests.len());
        self.run_due();
        self.run_callbacks(budget);
        let mut results = Vec::with_capacity(requests.len());
        for (place, request) in requests.into_iter().enumerate() {
            let at = RequestId { op: op.op.value(), request: place as u32 };
            results.push(self.run(at, request));
            self.run_callbacks(budget);
        }
        self.outbox.release();
        // Releasing may park what is past its limit; the machine's answer may open it again.
        self.run_callbacks(budget);
        self.outbox.release();
        let Passage { halted, .. } = core::mem::take(&mut self.passage);
        if let (Some(halted), Some((before, reports))) = (halted, before) {
            self.take_back(before, reports);
            return Err(halted);
        }
        self.close_digest(op.op, &results);
        self.applied = op.op;
        Ok(Applied { op: op.op, results, digest: self.digest })
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, QueryError> {
        let context = QueryContext { op: self.applied, now: self.now() };
        let answer = quiet::catch(|| {
            let query = decode::<M::Query>(query).ok_or(QueryError::Undecodable)?;
            let answer = self.machine.query(&context, query);
            encode(&answer).map_err(|why| QueryError::Panicked { message: why.to_string() })
        });
        answer.unwrap_or_else(|message| Err(QueryError::Panicked { message }))
    }

    fn applied(&self) -> Op {
        self.applied
    }

    fn next_due(&self) -> Option<Timestamp> {
        let callbacks = match (self.outbox.next_callback(), self.blocked.is_some()) {
            (None, _) => None,
            (Some(_), false) => Some(self.now()),
            (Some(_), true) => Some(self.now() + BLOCKED_RETRY),
        };
        [callbacks, self.outbox.next_due(), self.timers.next_due()].into_iter().flatten().min()
    }

    fn newest_born(&self) -> Option<Stamp> {
        self.outbox.place().born
    }

    fn effects(&self, filter: &EffectFilter, after: Option<EffectId>, limit: usize) -> Vec<EffectView> {
        self.outbox.views(filter, after, limit)
    }

    fn effect(&self, id: EffectId) -> Option<EffectView> {
        self.outbox.view(id)
    }

    fn sinks(&self) -> Vec<SinkView> {
        self.outbox.sink_views()
    }

    fn sink(&self, name: &SinkName) -> Option<SinkView> {
        self.outbox.sink_view(name)
    }

    fn frozen_sinks(&self) -> Vec<SinkName> {
        self.outbox.frozen_sinks()
    }

    fn key_result(&self, principal: &str, key: &str) -> Option<KeyView> {
        let (used, result) = self.keys.get(principal, key, self.now(), &self.limits)?;
        Some(KeyView { used, expires: used + self.limits.key_kept, result: result.clone() })
    }

    fn acts(&self, after: u64, limit: usize) -> Vec<(u64, ActView)> {
        self.outbox.act_views(after, limit)
    }

    fn skips(&self) -> Vec<SkipView> {
        self.skips.views()
    }

    fn status(&self) -> EngineStatus {
        EngineStatus {
            callbacks_aborted: self.counters.callbacks_aborted,
            commands: self.counters.commands,
            aborted: self.counters.aborted,
            unreadable_ops: self.counters.unreadable_ops,
            sessions: self.sessions.len() as u64,
            session_bytes: self.sessions.bytes() as u64,
            keys: self.keys.len() as u64,
            key_bytes: self.keys.bytes() as u64,
            key_age_seconds: self.keys.age(self.now()).as_secs(),
            timers: self.timers.len() as u64,
            ..self.outbox.status()
        }
    }

    fn orders(&self, after: u64) -> Vec<Order> {
        self.outbox.orders(after)
    }

    fn asked(&self, effect: EffectId) -> Option<Asked> {
        self.outbox.asked(effect)
    }

    fn order(&self, effect: EffectId) -> Option<Order> {
        self.outbox.order(effect)
    }

    fn attempt(&self, order: &Order, stamp: Stamp) -> Option<Attempt> {
        self.outbox.attempt(order, stamp)
    }

    fn holds_claims_older_than(&self, stamp: Stamp) -> bool {
        self.outbox.holds_claims_older_than(stamp)
    }

    fn reports(&self, after: u64) -> (u64, Option<Vec<Reported>>) {
        self.reports.after(after)
    }

    fn distrust(&mut self) {
        self.outbox.distrust();
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenKernel::new(self.copy()))
    }

    fn restore(&self, chunks: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Box<dyn Engine>, RestoreError> {
        let (limits, mutations) = (self.limits, self.mutations);
        let options = EngineOptions { lineage: self.outbox.lineage(), limits, mutations };
        Ok(Box::new(Kernel::<M>::from_chunks(options, chunks)?))
    }
}

/// Everything but the machine, which need not be printable, and what is in no checkpoint.
impl<M: StateMachine> fmt::Debug for Kernel<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("applied", &self.applied)
            .field("digest", &self.digest)
            .field("outbox", &self.outbox)
            .field("timers", &self.timers)
            .field("sessions", &self.sessions)
            .field("keys", &self.keys)
            .field("skips", &self.skips)
            .field("blocked", &self.blocked)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn emitted<E: DeserializeOwned>(effect: &Effect) -> Result<Emitted<E>, AbortReason> {
    let payload = decode(&effect.payload).ok_or(AbortReason::Undecodable)?;
    Ok(Emitted { id: effect.id, sink: effect.sink.clone(), effect: payload })
}

fn settled<O: DeserializeOwned>(outcome: Outcome) -> Result<Settled<O>, AbortReason> {
    Ok(match outcome {
        Outcome::Delivered(outcome) => Settled::Delivered(decode(&outcome).ok_or(AbortReason::Undecodable)?),
        Outcome::Failed(reason) => Settled::Failed { reason },
        Outcome::Unknown => Settled::Unknown,
        Outcome::Cancelled => Settled::Cancelled,
    })
}

/// The value whose encoding is exactly these bytes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, AbortReason> {
    postcard::to_allocvec(value)
        .map_err(|why| AbortReason::Panicked { message: format!("a value can't be encoded: {why}") })
}

fn fold_result(fold: &mut Fold, result: &RequestResult) {
    // Replies go as bytes: an encoding would look at each byte by itself.
    if let RequestResult::Replied { at, timestamp, reply, effects } = result {
        fold.word(at.op);
        fold.word(u64::from(at.request));
        fold.word(*timestamp);
        fold.bytes(reply);
        fold.encoded(effects);
    } else {
        fold.encoded(result);
    }
}
