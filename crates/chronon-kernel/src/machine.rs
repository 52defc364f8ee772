//! The user's side: what a state machine is and what it may ask for while it runs.

use chronon_vsr::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::State;
use crate::{Context, EffectId, SinkName};

/// Deterministic business logic: the same commands in the same order give the same state, replies and effects.
pub trait StateMachine: State + Sized + Send + 'static {
    /// What clients submit.
    type Command: Serialize + DeserializeOwned + Send + 'static;
    /// What a command answers. Business errors live here, and are committed.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// What clients ask.
    type Query: Serialize + DeserializeOwned + Send + 'static;
    /// What a query answers.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
    /// What the outside world is asked to do.
    type Effect: Serialize + DeserializeOwned + Send + 'static;
    /// What the outside world answered.
    type Outcome: Serialize + DeserializeOwned + Send + 'static;

    /// The version of the logic. Log entries carry it.
    const VERSION: u32;

    /// Whether commands and outcomes may hold floating-point numbers. What is computed from them must be the same on
    /// every replica's processor, and in every release.
    const FLOATS_ALLOWED: bool = false;

    /// What becomes of a command, an outcome, a parking or a timer that panics. It decides what the log means, as the
    /// machine's code does: whoever changes it changes [`StateMachine::VERSION`] too.
    const ON_PANIC: OnPanic = OnPanic::Abort;

    /// The state before the first command.
    fn genesis() -> Self;

    /// Looks at a command without any state, on whichever replica it arrives, before it is ordered.
    fn admit(_command: &Self::Command) -> Result<(), Refused> {
        Ok(())
    }

    /// Applies a command in place. A panic puts the state back; what then is [`StateMachine::ON_PANIC`]'s to say.
    fn apply(&mut self, cx: &mut Context<'_, Self>, command: Self::Command) -> Self::Reply;

    /// Answers a query from the state.
    fn query(&self, cx: &QueryContext, query: Self::Query) -> Self::Answer;

    /// Hears an effect's one outcome.
    fn settled(
        &mut self,
        _cx: &mut Context<'_, Self>,
        _effect: Emitted<Self::Effect>,
        _outcome: Settled<Self::Outcome>,
    ) {
    }

    /// Hears, once per parking, that an effect is parked.
    fn parked(
        &mut self,
        _cx: &mut Context<'_, Self>,
        _effect: &Emitted<Self::Effect>,
        _why: Parked,
    ) -> OnParked {
        OnParked::Wait
    }

    /// Hears that a timer is due.
    fn timer(&mut self, _cx: &mut Context<'_, Self>, _key: TimerKey) {}

    /// Changes the state from an older version's.
    fn upgrade(&mut self, _from: u32) {}
}

/// What becomes of a call of the machine that panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// It changes nothing, and the log goes on: the command is aborted, the outcome, parking or timer is not heard.
    Abort,
    /// Execution halts before its op on every replica, until a person has the call skipped ([`crate::Halted`]).
    Halt,
}

/// A command that its machine will not have ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A stable code for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// A timer's name within the machine: at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct TimerKey(pub String);

/// Where and how an effect goes: `Emit::to("psp").lane("order/42").after(..).deadline(..)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emit {
    /// The sink's name; checked when the effect is emitted.
    pub sink: String,
    /// Effects of one lane go one at a time, in order. None: a lane of its own.
    pub lane: Option<String>,
    /// Not before this long after now.
    pub after: core::time::Duration,
    /// Parked as exhausted when not delivered this long after now.
    pub deadline: Option<core::time::Duration>,
}

impl Emit {
    /// To this sink, at once, in a lane of its own.
    pub fn to(sink: impl Into<String>) -> Emit {
        Emit { sink: sink.into(), lane: None, after: core::time::Duration::ZERO, deadline: None }
    }

    /// In this lane.
    pub fn lane(self, lane: impl Into<String>) -> Emit {
        Emit { lane: Some(lane.into()), ..self }
    }

    /// Not before this long after now.
    pub fn after(self, after: core::time::Duration) -> Emit {
        Emit { after, ..self }
    }

    /// Parked as exhausted when not delivered this long after now.
    pub fn deadline(self, deadline: core::time::Duration) -> Emit {
        Emit { deadline: Some(deadline), ..self }
    }
}

/// An effect that was emitted, as its machine hears of it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted<E> {
    /// Its name.
    pub id: EffectId,
    /// Its sink.
    pub sink: SinkName,
    /// What was asked.
    pub effect: E,
}

/// An effect's one outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled<O> {
    /// The sink did it, and answered this.
    Delivered(O),
    /// It was not done and will not be.
    Failed {
        /// Why.
        reason: String,
    },
    /// Somebody gave up knowing.
    Unknown,
    /// Proved that no attempt started.
    Cancelled,
}

/// Why an effect is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parked {
    /// An attempt may have acted and the contract forbids another.
    InDoubt,
    /// The retry budget or the deadline is used up; nothing is in doubt.
    Exhausted,
}

/// What the machine wants done with a parked effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnParked {
    /// Leave it to a person.
    Wait,
    /// Try again (when exhausted; an effect in doubt stays parked unless its contract allows repeats).
    Retry,
    /// Settle it as failed.
    SettleFailed,
    /// Settle it as unknown.
    SettleUnknown,
}

/// What a query may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryContext {
    /// The op that the state reflects.
    pub op: chronon_vsr::Op,
    /// Log time of that op.
    pub now: Timestamp,
}
