//! A machine that does as it is told, and writes down all that it hears.

use chronon_kernel::{
    Cell, Context, EffectId, Emit, Emitted, OnParked, Parked, QueryContext, Settled, State, StateMachine,
    Table, TimerKey,
};
use chronon_vsr::{Duration, Timestamp};
use serde::{Deserialize, Serialize};

/// The body of an effect upon whose outcome nothing follows.
pub(crate) const LAST: [u8; 1] = [9];

#[derive(Clone, State)]
pub(crate) struct Scribe {
    heard: Table<u64, Heard>,
    /// What `parked` answers.
    on_parked: Cell<Answering>,
    /// What `settled` does.
    on_settled: Cell<Vec<Act>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Heard {
    Settled(EffectId, Ending),
    Parked(EffectId, Parked),
    Timer(String),
    Wrote(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    Delivered(u64),
    Failed(String),
    Unknown,
    Cancelled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answering {
    #[default]
    Wait,
    Retry,
    SettleFailed,
    SettleUnknown,
    Panic,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    Write(u64),
    Emit {
        sink: String,
        lane: Option<String>,
        after: Duration,
        deadline: Option<Duration>,
        body: Vec<u8>,
    },
    /// Emits and takes it back at once.
    EmitAndCancel {
        sink: String,
    },
    Cancel(EffectId),
    Timer {
        key: String,
        at: u64,
    },
    ClearTimer(String),
    Panic,
    LongReply(u32),
    AnswerParked(Answering),
    OnSettled(Vec<Act>),
    Random,
}

impl Scribe {
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.values().cloned().collect()
    }

    fn hear(&mut self, heard: Heard) {
        let place = self.heard.last().map_or(0, |(place, _)| place + 1);
        self.heard.insert(place, heard);
    }

    fn act(&mut self, cx: &mut Context<'_, Scribe>, act: Act) -> Vec<u8> {
        match act {
            Act::Write(value) => self.hear(Heard::Wrote(value)),
            Act::Emit { sink, lane, after, deadline, body } => {
                cx.emit(Emit { sink, lane, after, deadline }, body);
            }
            Act::EmitAndCancel { sink } => {
                let id = cx.emit(Emit::to(sink), Vec::new());
                cx.cancel(id);
            }
            Act::Cancel(id) => cx.cancel(id),
            Act::Timer { key, at } => cx.set_timer(TimerKey(key), Timestamp::from_nanos(at)),
            Act::ClearTimer(key) => cx.clear_timer(&TimerKey(key)),
            Act::Panic => panic!("as told"),
            Act::LongReply(size) => return vec![7; size as usize],
            Act::AnswerParked(answer) => self.on_parked.set(answer),
            Act::OnSettled(acts) => self.on_settled.set(acts),
            Act::Random => return cx.random().to_le_bytes().to_vec(),
        }
        Vec::new()
    }
}

impl StateMachine for Scribe {
    type Command = Vec<Act>;
    type Reply = Vec<u8>;
    type Query = u64;
    type Answer = Option<Heard>;
    type Effect = Vec<u8>;
    type Outcome = u64;
    const VERSION: u32 = 1;

    fn genesis() -> Scribe {
        Scribe { heard: Table::new(), on_parked: Cell::default(), on_settled: Cell::default() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Scribe>, command: Vec<Act>) -> Vec<u8> {
        let mut reply = Vec::new();
        for act in command {
            reply.extend(self.act(cx, act));
        }
        reply
    }

    fn query(&self, _: &QueryContext, place: u64) -> Option<Heard> {
        assert_ne!(place, u64::MAX, "the query that panics");
        self.heard.get(&place).cloned()
    }

    fn settled(&mut self, cx: &mut Context<'_, Scribe>, effect: Emitted<Vec<u8>>, outcome: Settled<u64>) {
        let ending = match outcome {
            Settled::Delivered(value) => Ending::Delivered(value),
            Settled::Failed { reason } => Ending::Failed(reason),
            Settled::Unknown => Ending::Unknown,
            Settled::Cancelled => Ending::Cancelled,
        };
        self.hear(Heard::Settled(effect.id, ending));
        if effect.effect == LAST {
            return;
        }
        for act in self.on_settled.get().clone() {
            self.act(cx, act);
        }
    }

    fn parked(&mut self, _: &mut Context<'_, Scribe>, effect: &Emitted<Vec<u8>>, why: Parked) -> OnParked {
        self.hear(Heard::Parked(effect.id, why));
        match self.on_parked.get() {
            Answering::Wait => OnParked::Wait,
            Answering::Retry => OnParked::Retry,
            Answering::SettleFailed => OnParked::SettleFailed,
            Answering::SettleUnknown => OnParked::SettleUnknown,
            Answering::Panic => panic!("as told"),
        }
    }

    fn timer(&mut self, _: &mut Context<'_, Scribe>, key: TimerKey) {
        self.hear(Heard::Timer(key.0));
    }
}
