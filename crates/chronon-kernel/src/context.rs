//! What a machine may ask for while it runs, and what it asked for, until the kernel carries it out or drops it.

use core::marker::PhantomData;
use core::time::Duration;
use std::sync::Arc;

use chronon_vsr::{Op, Prng, Timestamp};

use crate::outbox::Outbox;
use crate::{AbortReason, EffectId, Emit, Limits, SinkName, StateMachine, TimerKey};

/// What a command, an outcome, a parking or a timer may ask for while it runs. Nothing of it happens if the call is
/// aborted.
pub struct Context<'a, M: StateMachine> {
    wishes: &'a mut Wishes,
    outbox: &'a Outbox,
    limits: &'a Limits,
    now: Timestamp,
    op: Op,
    first: u32,
    random: Prng,
    machine: PhantomData<fn(M)>,
}

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) emits: Vec<NewEffect>,
    pub(crate) cancels: Vec<EffectId>,
    /// Timers to set, or with no time to remove.
    pub(crate) timers: Vec<(TimerKey, Option<Timestamp>)>,
    pub(crate) failure: Option<AbortReason>,
    bytes: usize,
}

/// An effect that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct NewEffect {
    pub(crate) sink: SinkName,
    pub(crate) lane: Option<Arc<str>>,
    pub(crate) after: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) payload: Arc<[u8]>,
}

/// The longest name of a timer or a lane.
const NAME_BYTES_MAX: usize = 255;

impl<'a, M: StateMachine> Context<'a, M> {
    /// `first`: how many effects the op has emitted before this call.
    pub(crate) fn new(
        wishes: &'a mut Wishes,
        outbox: &'a Outbox,
        limits: &'a Limits,
        first: u32,
        seed: u64,
    ) -> Context<'a, M> {
        let place = outbox.place();
        Context {
            wishes,
            outbox,
            limits,
            now: place.now,
            op: place.op,
            first,
            random: Prng::new(seed),
            machine: PhantomData,
        }
    }

    /// Log time: when the op was ordered. The same on every replica.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The op that is executed.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Emits an effect. It starts once the op is committed, and ends in exactly one outcome. To an unknown sink, or
    /// beyond what one call may emit, the whole call is aborted when it returns.
    pub fn emit(&mut self, emit: Emit, effect: M::Effect) -> EffectId {
        let place = self.wishes.emits.len() as u32;
        let id = EffectId::new(self.op, self.first.saturating_add(place));
        match self.check(emit, &effect) {
            Ok(new) => self.wishes.emits.push(new),
            Err(why) => {
                self.wishes.failure.get_or_insert(why);
            }
        }
        id
    }

    fn check(&mut self, emit: Emit, effect: &M::Effect) -> Result<NewEffect, AbortReason> {
        let Ok(sink) = SinkName::new(emit.sink.as_str()) else {
            return Err(AbortReason::UnknownSink { sink: emit.sink });
        };
        if !self.outbox.has_sink(&sink) {
            return Err(AbortReason::UnknownSink { sink: emit.sink });
        }
        if self.limits.emits_max as usize <= self.wishes.emits.len() {
            return Err(AbortReason::TooManyEffects { limit: self.limits.emits_max });
        }
        if emit.lane.as_ref().is_some_and(|lane| NAME_BYTES_MAX < lane.len()) {
            let message = format!("a lane's name has at most {NAME_BYTES_MAX} bytes");
            return Err(AbortReason::Panicked { message });
        }
        let payload = postcard::to_allocvec(effect)
            .map_err(|why| AbortReason::Panicked { message: format!("an effect can't be encoded: {why}") })?;
        self.wishes.bytes += payload.len();
        if self.limits.emit_bytes_max < self.wishes.bytes {
            let limit = u32::try_from(self.limits.emit_bytes_max).unwrap_or(u32::MAX);
            return Err(AbortReason::TooManyEffects { limit });
        }
        Ok(NewEffect {
            sink,
            lane: emit.lane.map(Arc::from),
            after: emit.after,
            deadline: emit.deadline,
            payload: payload.into(),
        })
    }

    /// Random bits, the same on every replica.
    pub fn random(&mut self) -> u64 {
        self.random.next_u64()
    }

    /// Asks to give up an effect: it settles as cancelled if no attempt can have started, and goes on otherwise.
    pub fn cancel(&mut self, effect: EffectId) {
        self.wishes.cancels.push(effect);
    }

    /// Sets (or moves) a timer. One whose time has passed fires as soon as it can.
    pub fn set_timer(&mut self, key: TimerKey, at: Timestamp) {
        if NAME_BYTES_MAX < key.0.len() {
            let message = format!("a timer's name has at most {NAME_BYTES_MAX} bytes");
            self.wishes.failure.get_or_insert(AbortReason::Panicked { message });
            return;
        }
        self.wishes.timers.push((key, Some(at)));
    }

    /// Removes a timer.
    pub fn clear_timer(&mut self, key: &TimerKey) {
        self.wishes.timers.push((key.clone(), None));
    }
}
