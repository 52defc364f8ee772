//! The books of the outbox: every index over its effects, and the one way in which an effect changes its phase, so that
//! no index is ever forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use chronon_vsr::{Duration, Op, Prng, Timestamp};
use imbl::{OrdMap, OrdSet};

use super::{Callback, Place};
use crate::effect::{Effect, Phase};
use crate::state::Fold;
use crate::view::EngineStatus;
use crate::{EffectId, Ended, Evidence, Limits, SinkName, SinkSpec};

/// A sink, with its part of the indexes.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    pub(crate) spec: Arc<SinkSpec>,
    pub(crate) revision: u64,
    pub(crate) open: u64,
    pub(crate) started: u64,
    pub(crate) parked: u64,
    /// Those that wait for a place, by turn: the first of each lane, so that lanes take turns.
    pub(super) runnable: OrdMap<u64, EffectId>,
}

impl Sink {
    /// A sink without effects.
    pub(crate) fn new(spec: Arc<SinkSpec>, revision: u64) -> Sink {
        Sink { spec, revision, open: 0, started: 0, parked: 0, runnable: OrdMap::new() }
    }
}

/// Two sinks are the same to a checkpoint if they are set alike: the rest follows from their effects.
impl PartialEq for Sink {
    fn eq(&self, other: &Sink) -> bool {
        self.spec == other.spec && self.revision == other.revision
    }
}

/// A named lane that has open effects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane {
    pub(super) open: u32,
    /// The one that is at it; nobody overtakes it.
    pub(crate) holder: Option<EffectId>,
    /// The others, in order.
    pub(super) queue: OrdMap<u64, EffectId>,
}

impl Lane {
    /// A lane without effects, but with the one that is at it.
    pub(crate) fn new(holder: Option<EffectId>) -> Lane {
        Lane { holder, ..Lane::default() }
    }
}

/// Two lanes are the same to a checkpoint if the same effect is at them: the rest follows from their effects.
impl PartialEq for Lane {
    fn eq(&self, other: &Lane) -> bool {
        self.holder == other.holder
    }
}

pub(crate) type LaneKey = (SinkName, Arc<str>);

/// Everything about effects that is not one effect.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub(super) place: Place,
    pub(super) limits: Limits,
    pub(super) sinks: OrdMap<SinkName, Sink>,
    pub(super) lanes: OrdMap<LaneKey, Lane>,
    pub(super) due: OrdSet<(Timestamp, EffectId)>,
    pub(super) orders: OrdMap<u64, EffectId>,
    pub(super) claimed: OrdSet<EffectId>,
    pub(super) parked: OrdSet<EffectId>,
    pub(super) callbacks: OrdMap<u64, Callback>,
    /// Counts turns, places in lanes, orders and callbacks. Never used twice.
    pub(super) sequence: u64,
    /// Sinks that may have a free place and somebody to take it. Empty between ops.
    pub(super) dirty: BTreeSet<SinkName>,
    pub(super) status: EngineStatus,
    pub(super) fold: Fold,
}

impl Books {
    pub(super) fn new(limits: Limits) -> Books {
        Books {
            place: Place { op: Op::ROOT, now: Timestamp::ZERO, born: None, reign: 0 },
            limits,
            sinks: OrdMap::new(),
            lanes: OrdMap::new(),
            due: OrdSet::new(),
            orders: OrdMap::new(),
            claimed: OrdSet::new(),
            parked: OrdSet::new(),
            callbacks: OrdMap::new(),
            sequence: 0,
            dirty: BTreeSet::new(),
            status: EngineStatus::default(),
            fold: Fold::EMPTY,
        }
    }

    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn call_back(&mut self, callback: Callback) {
        let sequence = self.next_sequence();
        self.callbacks.insert(sequence, callback);
    }

    /// How long before a window's end the last start must be: it may take its whole time-out, and clocks differ.
    pub(super) fn margin(&self, spec: &SinkSpec) -> Duration {
        spec.timeout + self.limits.clock_bound
    }

    pub(super) fn margin_of(&self, effect: &Effect) -> Duration {
        self.margin(&self.sinks.get(&effect.sink).expect("open effects have a sink").spec)
    }

    pub(super) fn move_to(&mut self, effect: &mut Effect, phase: Phase) {
        self.leave_phase(effect);
        self.enter_phase(effect, phase);
    }

    /// Takes an effect out of every index.
    pub(super) fn leave_phase(&mut self, effect: &mut Effect) {
        let id = effect.id;
        if let Some(due) = effect.due.take() {
            self.due.remove(&(due, id));
        }
        // Whoever may have started it under a later stamp started a later attempt.
        effect.number = effect.ordered_number(self.place.reign);
        effect.reign = self.place.reign;
        *self.count_of(effect.phase) -= 1;
        match effect.phase {
            Phase::Scheduled(_) | Phase::Waiting(_) => {}
            Phase::Queued => {
                let key = lane_key(effect).expect("only effects with a lane queue");
                let joined = effect.joined.expect("what queues has joined");
                self.lanes.get_mut(&key).expect("open effects have their lane").queue.remove(&joined);
            }
            Phase::Runnable(turn) => {
                self.sink_mut(effect).runnable.remove(&turn);
                // Whoever stands behind it may be next, also when it leaves without having been released.
                self.dirty.insert(effect.sink.clone());
            }
            Phase::Released(sequence) => {
                self.orders.remove(&sequence);
                self.sink_mut(effect).started -= 1;
                self.dirty.insert(effect.sink.clone());
            }
            Phase::Claimed(sequence) => {
                self.orders.remove(&sequence);
                self.claimed.remove(&id);
                self.sink_mut(effect).started -= 1;
                self.dirty.insert(effect.sink.clone());
            }
            Phase::Parked(_) => {
                self.parked.remove(&id);
                self.sink_mut(effect).parked -= 1;
            }
        }
    }

    /// Puts an effect that is in no index into those of its new phase.
    pub(super) fn enter_phase(&mut self, effect: &mut Effect, phase: Phase) {
        effect.phase = phase;
        self.index_phase(effect);
        self.note_due(effect);
        self.fold.word(effect.id.op().value());
        self.fold.word(u64::from(effect.id.n()) << 8 | phase.number());
    }

    /// The indexes of phases.
    pub(super) fn index_phase(&mut self, effect: &Effect) {
        let id = effect.id;
        *self.count_of(effect.phase) += 1;
        match effect.phase {
            Phase::Scheduled(_) | Phase::Waiting(_) => {}
            Phase::Queued => {
                let key = lane_key(effect).expect("only effects with a lane queue");
                let joined = effect.joined.expect("what queues has joined");
                self.lanes.get_mut(&key).expect("open effects have their lane").queue.insert(joined, id);
            }
            Phase::Runnable(turn) => {
                self.sink_mut(effect).runnable.insert(turn, id);
                self.dirty.insert(effect.sink.clone());
            }
            Phase::Released(sequence) => {
                self.orders.insert(sequence, id);
                self.sink_mut(effect).started += 1;
            }
            Phase::Claimed(sequence) => {
                self.orders.insert(sequence, id);
                self.claimed.insert(id);
                self.sink_mut(effect).started += 1;
            }
            Phase::Parked(_) => {
                self.parked.insert(id);
                self.sink_mut(effect).parked += 1;
            }
        }
    }

    /// Puts an effect into the index of what falls due, at its time as it is now.
    pub(super) fn note_due(&mut self, effect: &mut Effect) {
        if let Some(due) = effect.due.take() {
            self.due.remove(&(due, effect.id));
        }
        effect.due = effect.next_due(self.margin_of(effect));
        if let Some(due) = effect.due {
            self.due.insert((due, effect.id));
        }
    }

    fn sink_mut(&mut self, effect: &Effect) -> &mut Sink {
        self.sinks.get_mut(&effect.sink).expect("open effects have a sink")
    }

    fn count_of(&mut self, phase: Phase) -> &mut u64 {
        match phase {
            Phase::Scheduled(_) => &mut self.status.scheduled,
            Phase::Queued | Phase::Runnable(_) => &mut self.status.ready,
            Phase::Released(_) | Phase::Claimed(_) => &mut self.status.started,
            Phase::Waiting(_) => &mut self.status.waiting,
            Phase::Parked(_) => &mut self.status.parked,
        }
    }
}

pub(super) fn lane_key(effect: &Effect) -> Option<LaneKey> {
    effect.lane.as_ref().map(|lane| (effect.sink.clone(), Arc::clone(lane)))
}

/// How long to wait after the `count`-th end: exponential, with jitter of ±20 % that every replica draws alike.
pub(super) fn back_off(spec: &SinkSpec, id: EffectId, count: u32) -> Duration {
    let doublings = count.saturating_sub(1).min(31);
    let wait = spec.backoff.first.saturating_mul(1 << doublings).min(spec.backoff.max);
    let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
    let mut seed = Fold::EMPTY;
    seed.word(id.op().value());
    seed.word(u64::from(id.n()));
    seed.word(u64::from(count));
    let fifth = wait / 5;
    let jittered = Prng::new(seed.value()).between(wait - fifth, wait + fifth);
    Duration::from_nanos(jittered)
}

pub(super) fn evidence_of(ended: &Ended) -> &str {
    let Evidence(text) = match ended {
        Ended::Delivered { evidence, .. }
        | Ended::Unreadable { evidence }
        | Ended::Definite { evidence, .. }
        | Ended::Ambiguous { evidence }
        | Ended::Permanent { evidence, .. }
        | Ended::InProgress { evidence }
        | Ended::NotFound { evidence }
        | Ended::NotFoundTooSoon { evidence, .. } => evidence,
    };
    text
}

/// How much is kept of what a sink or a person said.
const TEXT_BYTES_MAX: usize = 1_024;

pub(crate) fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
