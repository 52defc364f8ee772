//! The outbox: every effect from its emission to its outcome, the lanes, and the sinks. It knows neither the machine
//! nor the types of its effects: what the machine must hear is left as callbacks, in log order.

mod books;
mod sinks;
mod tables;
mod views;

use std::sync::Arc;

use chronon_vsr::{Duration, Mutation, Mutations, Op, Stamp, Timestamp};
use imbl::OrdMap;

use self::books::{Books, back_off, evidence_of, lane_key};
pub(crate) use self::books::{Lane, LaneKey, Sink, clip};
pub(crate) use self::tables::OutboxWritten;

use crate::context::NewEffect;
use crate::delivery::{Doubt, End, Known, Verdict, judge};
use crate::effect::{Claim, Effect, Phase};
use crate::view::{ActView, AttemptView, OutcomeView};
use crate::{
    AttemptKind, AttemptNumber, Busy, Contract, DeskAct, EffectId, EffectKey, Ended, Fence, Limits, Lineage,
    OnParked, OutcomeReport, Parked, Refusal, SettleAs, SinkName, SinkSpec, TimerKey,
};

/// Where the log is while an op is executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) op: Op,
    pub(crate) now: Timestamp,
    /// The newest stamp in which an op was born.
    pub(crate) born: Option<Stamp>,
    /// How many such stamps there were.
    pub(crate) reign: u32,
}

/// What the machine has still to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    Settled { effect: Arc<Effect>, outcome: Outcome },
    Parked { effect: EffectId, parking: u32, why: Parked },
    Timer(TimerKey),
}

/// An outcome, with the machine's part still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered(Arc<[u8]>),
    Failed(String),
    Unknown,
    Cancelled,
}

impl Outcome {
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Delivered(_) => "delivered",
            Outcome::Failed(_) => "failed",
            Outcome::Unknown => "unknown",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// An effect that has its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) effect: Arc<Effect>,
    pub(crate) outcome: Outcome,
    pub(crate) settled: Timestamp,
    pub(crate) op: Op,
    /// Its place in the order in which they are forgotten.
    pub(crate) sequence: u64,
}

impl Past {
    pub(crate) fn outcome_view(&self) -> OutcomeView {
        OutcomeView {
            outcome: self.outcome.as_str(),
            reason: match &self.outcome {
                Outcome::Failed(reason) => Some(reason.clone()),
                Outcome::Delivered(_) | Outcome::Unknown | Outcome::Cancelled => None,
            },
            settled: self.settled,
            op: self.op.value(),
            body: match &self.outcome {
                Outcome::Delivered(body) => Some(Arc::clone(body)),
                Outcome::Failed(_) | Outcome::Unknown | Outcome::Cancelled => None,
            },
        }
    }

    fn size(&self) -> usize {
        let body = match &self.outcome {
            Outcome::Delivered(body) => body.len(),
            Outcome::Failed(reason) => reason.len(),
            Outcome::Unknown | Outcome::Cancelled => 0,
        };
        let attempts: usize = self.effect.attempts.iter().map(|attempt| attempt.evidence.len()).sum();
        256 + self.effect.payload.len() + body + attempts
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    effects: OrdMap<EffectId, Arc<Effect>>,
    books: Books,
    bytes: usize,
    lineage: Lineage,
    mutations: Mutations,

    past: OrdMap<EffectId, Arc<Past>>,
    past_order: OrdMap<u64, EffectId>,
    past_bytes: usize,
    acts: OrdMap<u64, ActView>,
    acts_count: u64,
}

/// Nothing starts at a sink while it is frozen.
fn is_frozen(sink: &Sink, mutations: Mutations) -> bool {
    sink.spec.frozen && !mutations.breaks(Mutation::FrozenStarts)
}

/// The longest wait that a sink may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Desk acts shown with one effect.
const EFFECT_ACTS_MAX: usize = 16;

impl Outbox {
    pub(crate) fn new(lineage: Lineage, limits: Limits, mutations: Mutations) -> Outbox {
        Outbox {
            effects: OrdMap::new(),
            books: Books::new(limits),
            bytes: 0,
            lineage,
            mutations,
            past: OrdMap::new(),
            past_order: OrdMap::new(),
            past_bytes: 0,
            acts: OrdMap::new(),
            acts_count: 0,
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.books.place
    }

    /// Goes to the next op. The first op born in a later stamp puts every claim of an older one in doubt.
    pub(crate) fn enter(&mut self, op: Op, now: Timestamp, born: Stamp) {
        let place = &mut self.books.place;
        assert!(place.op < op);
        assert!(place.now <= now);
        place.op = op;
        place.now = now;
        if place.born.is_some_and(|newest| born <= newest) {
            return;
        }
        let changed = place.born.is_some();
        place.born = Some(born);
        place.reign =
            place.reign.checked_add(1).expect("2^32 fail-overs take longer than the hardware lives");
        if changed && self.mutations.breaks(Mutation::ForgetOutbox) {
            self.forget();
        }
        for id in self.books.claimed.iter().copied().collect::<Vec<_>>() {
            self.lose_claim(id);
        }
    }

    /// The sabotage of [`Mutation::ForgetOutbox`]: everything open is gone, as if a restart had dropped it.
    fn forget(&mut self) {
        let mut empty = Outbox::new(self.lineage, self.books.limits, self.mutations);
        empty.books.place = self.books.place;
        empty.books.sequence = self.books.sequence;
        for (name, sink) in &self.books.sinks {
            let fresh = Sink::new(Arc::clone(&sink.spec), sink.revision);
            empty.books.sinks.insert(name.clone(), fresh);
        }
        *self = empty;
    }

    fn lose_claim(&mut self, id: EffectId) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("what is claimed is open"));
        let claim = effect.claim.expect("what is claimed has a claim");
        let spec = Arc::clone(&books.sinks.get(&effect.sink).expect("open effects have a sink").spec);
        effect.record(
            AttemptView {
                number: AttemptNumber(claim.attempt),
                kind: AttemptKind::Call,
                fence: Fence(claim.stamp),
                logged: books.place.now,
                ended: "claim_lost",
                decisive: true,
                evidence: String::from("its primary was replaced before its end was logged"),
            },
            books.limits.attempts_kept,
        );
        effect.unknown_since.get_or_insert(effect.released);
        match effect.contract {
            Contract::Probe { settle } => {
                // The call may have started as late as now, and may take as long as a call can.
                effect.ask = Some(books.place.now + spec.timeout + books.limits.clock_bound + settle);
                let at = books.place.now + back_off(&spec, id, 1);
                books.move_to(effect, Phase::Waiting(at));
            }
            _ if self.mutations.breaks(Mutation::RerunClaimed) => {
                let turn = books.next_sequence();
                books.move_to(effect, Phase::Runnable(turn));
            }
            Contract::AtMostOnce
            | Contract::AtLeastOnce
            | Contract::Idempotent { .. }
            | Contract::Transactional => self.park(id, Parked::InDoubt),
        }
    }

    // ---- emission ------------------------------------------------------------------------------------------------

    /// Whether a command may still be applied: the room for all that it may emit must be there before.
    pub(crate) fn room_for_a_command(&self) -> Result<(), Busy> {
        let limits = &self.books.limits;
        let effects = self.effects.len() + self.books.callbacks.len() + limits.emits_max as usize;
        let bytes = self.bytes + limits.emit_bytes_max;
        if limits.open_effects_max < effects || limits.open_bytes_max < bytes {
            return Err(Busy::OutboxFull);
        }
        Ok(())
    }

    /// Whether what a command emitted fits its sinks and lanes.
    pub(crate) fn room_in_sinks_and_lanes(&self, emits: &[NewEffect]) -> Result<(), Busy> {
        for (place, emit) in emits.iter().enumerate() {
            let earlier = &emits[..place];
            let sink = self.books.sinks.get(&emit.sink).expect("unknown sinks abort before this");
            let same_sink = earlier.iter().filter(|other| other.sink == emit.sink).count() as u64;
            if u64::from(sink.spec.open_max) <= sink.open + same_sink {
                return Err(Busy::SinkFull);
            }
            let Some(lane) = &emit.lane else { continue };
            let same_lane = earlier
                .iter()
                .filter(|other| other.sink == emit.sink && other.lane.as_ref() == Some(lane))
                .count();
            let key = (emit.sink.clone(), Arc::clone(lane));
            let open = self.books.lanes.get(&key).map_or(0, |lane| lane.open);
            if u64::from(self.books.limits.lane_open_max) <= u64::from(open) + same_lane as u64 {
                return Err(Busy::LaneFull);
            }
        }
        Ok(())
    }

    /// Whether what `settled`, `parked` or `timer` emitted fits.
    pub(crate) fn room_for_a_callback(&self, emits: &[NewEffect]) -> Result<(), Busy> {
        let bytes: usize = emits.iter().map(|emit| emit.payload.len()).sum();
        let limits = &self.books.limits;
        let fits = self.effects.len() + emits.len() <= limits.open_effects_max
            && self.bytes + bytes <= limits.open_bytes_max;
        if emits.is_empty() || fits { Ok(()) } else { Err(Busy::OutboxFull) }
    }

    /// Takes an effect in.
    pub(crate) fn emit(&mut self, id: EffectId, new: NewEffect) {
        let books = &mut self.books;
        let now = books.place.now;
        books.fold.word(id.op().value());
        books.fold.word(u64::from(id.n()));
        books.fold.bytes(new.sink.as_str().as_bytes());
        books.fold.bytes(new.lane.as_deref().unwrap_or_default().as_bytes());
        books.fold.bytes(&new.payload);
        let sink = books.sinks.get_mut(&new.sink).expect("unknown sinks abort before this");
        sink.open += 1;
        let contract = match sink.spec.contract {
            Contract::Idempotent { replays_errors, .. }
                if self.mutations.breaks(Mutation::WindowForgotten) =>
            {
                Contract::Idempotent { window: Duration::from_secs(1 << 32), replays_errors }
            }
            contract => contract,
        };
        if let Some(lane) = &new.lane {
            let key = (new.sink.clone(), Arc::clone(lane));
            if let Some(lane) = books.lanes.get_mut(&key) {
                lane.open += 1;
            } else {
                books.lanes.insert(key, Lane { open: 1, ..Lane::default() });
            }
        }
        self.bytes += new.payload.len();
        books.status.emitted += 1;
        let delayed = !self.mutations.breaks(Mutation::DelayIgnored);
        let at = if delayed { now + new.after } else { now };
        let heeds_deadline = !self.mutations.breaks(Mutation::DeadlineIgnored);
        let mut effect = Effect {
            id,
            key: EffectKey::draw(self.lineage, id),
            sink: new.sink,
            lane: new.lane,
            contract,
            payload: new.payload,
            emitted: now,
            deadline: new.deadline.filter(|_| heeds_deadline).map(|deadline| now + deadline),
            phase: Phase::Scheduled(at),
            joined: None,
            number: 0,
            reign: books.place.reign,
            released: now,
            calls: 0,
            probes: 0,
            ask: None,
            unknown_since: None,
            may_have_started: false,
            claim: None,
            parkings: 0,
            due: None,
            attempts: Vec::new(),
            acts: Vec::new(),
        };
        books.enter_phase(&mut effect, Phase::Scheduled(at));
        self.effects.insert(id, Arc::new(effect));
        if at <= now {
            self.join(id);
        }
    }

    // ---- lanes ---------------------------------------------------------------------------------------------------

    /// Takes its place in its lane, or the one that it had.
    fn join(&mut self, id: EffectId) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("only open effects join"));
        let Some(lane_key) = lane_key(effect) else {
            let turn = books.next_sequence();
            books.move_to(effect, Phase::Runnable(turn));
            return;
        };
        let joined = match effect.joined {
            Some(joined) => joined,
            None => books.next_sequence(),
        };
        effect.joined = Some(joined);
        let holds = books.lanes.get(&lane_key).is_some_and(|lane| lane.holder == Some(id));
        if holds {
            let turn = books.next_sequence();
            books.move_to(effect, Phase::Runnable(turn));
            return;
        }
        books.move_to(effect, Phase::Queued);
        self.advance(&lane_key);
    }

    /// Lets the next of a lane come forward, if nobody is at it.
    fn advance(&mut self, lane_key: &LaneKey) {
        let books = &mut self.books;
        let Some(lane) = books.lanes.get(lane_key) else { return };
        if lane.holder.is_some() && !self.mutations.breaks(Mutation::LaneOvertakes) {
            return;
        }
        let Some((_, next)) = lane.queue.get_min().copied() else { return };
        let effect = Arc::make_mut(self.effects.get_mut(&next).expect("lanes hold open effects"));
        let turn = books.next_sequence();
        books.move_to(effect, Phase::Runnable(turn));
        books.lanes.get_mut(lane_key).expect("found above").holder = Some(next);
    }

    /// Gives a lane up that this effect was at.
    fn leave_lane(&mut self, lane_key: &LaneKey, id: EffectId) {
        if let Some(lane) = self.books.lanes.get_mut(lane_key)
            && lane.holder == Some(id)
        {
            lane.holder = None;
            self.advance(lane_key);
        }
    }

    // ---- release -------------------------------------------------------------------------------------------------

    /// Gives the sinks' free places to those whose turn it is.
    pub(crate) fn release(&mut self) {
        let margin_parked = &mut 0;
        while let Some(name) = self.books.dirty.pop_first() {
            self.release_sink(&name, margin_parked);
        }
    }

    fn release_sink(&mut self, name: &SinkName, parked: &mut usize) {
        loop {
            let books = &mut self.books;
            let Some(sink) = books.sinks.get(name) else { return };
            if is_frozen(sink, self.mutations) || u64::from(sink.spec.concurrency) <= sink.started {
                return;
            }
            let Some((_, id)) = sink.runnable.get_min().copied() else { return };
            let margin = books.margin(&sink.spec);
            let effect = Arc::make_mut(self.effects.get_mut(&id).expect("sinks hold open effects"));
            if effect.start_before(margin) <= books.place.now {
                // Too many at once are left to what falls due.
                *parked += 1;
                if books.limits.due_per_op < *parked {
                    return;
                }
                self.park_given_up(id);
                continue;
            }
            effect.number = effect.ordered_number(books.place.reign).max(effect.number) + 1;
            effect.reign = books.place.reign;
            effect.released = books.place.now;
            if !effect.contract.claims() {
                effect.may_have_started = true;
            }
            let sequence = books.next_sequence();
            books.move_to(effect, Phase::Released(sequence));
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.books.due.get_min().map(|(at, _)| *at)
    }

    /// Does what is due, at most so many times. Returns how many times it did.
    pub(crate) fn run_due(&mut self, count_max: usize) -> usize {
        for count in 0..count_max {
            let Some((at, id)) = self.books.due.get_min().copied() else { return count };
            if self.books.place.now < at {
                return count;
            }
            self.run_due_effect(id);
        }
        count_max
    }

    fn run_due_effect(&mut self, id: EffectId) {
        let books = &mut self.books;
        let now = books.place.now;
        let effect = self.effects.get(&id).expect("what falls due is open");
        let margin = books.margin_of(effect);
        let given_up = effect.start_before(margin) <= now;
        match effect.phase {
            Phase::Released(_) if !effect.needs_claim() && effect.ask.is_none() => {
                // Its last start could have been heard of by now.
                let effect = Arc::make_mut(self.effects.get_mut(&id).expect("found above"));
                effect.unknown_since.get_or_insert(effect.released);
                self.park(id, Parked::InDoubt);
            }
            Phase::Scheduled(_)
            | Phase::Queued
            | Phase::Runnable(_)
            | Phase::Waiting(_)
            | Phase::Released(_)
                if given_up =>
            {
                self.park_given_up(id);
            }
            Phase::Scheduled(_) => self.join(id),
            Phase::Waiting(_) => {
                let effect = Arc::make_mut(self.effects.get_mut(&id).expect("found above"));
                let turn = books.next_sequence();
                books.move_to(effect, Phase::Runnable(turn));
            }
            // The sink's time-out was made shorter since the limit was noted, so the limit is later now.
            Phase::Queued | Phase::Runnable(_) | Phase::Released(_) => {
                let effect = Arc::make_mut(self.effects.get_mut(&id).expect("found above"));
                books.note_due(effect);
            }
            Phase::Claimed(_) | Phase::Parked(_) => unreachable!("nothing falls due in this phase"),
        }
    }

    // ---- parking and settling --------------------------------------------------------------------------------------

    /// Parks what may not be started any more.
    fn park_given_up(&mut self, id: EffectId) {
        let effect = self.effects.get(&id).expect("only open effects are parked");
        let why = match effect.doubt(self.books.place.reign) {
            Doubt::None => Parked::Exhausted,
            Doubt::Possible => Parked::InDoubt,
        };
        self.park(id, why);
    }

    fn park(&mut self, id: EffectId, why: Parked) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("only open effects are parked"));
        books.move_to(effect, Phase::Parked(why));
        effect.parkings += 1;
        let parking = effect.parkings;
        books.call_back(Callback::Parked { effect: id, parking, why });
        let holds = books.sinks.get(&effect.sink).expect("open effects have a sink").spec.parked_holds_lane;
        if let (false, Some(lane_key)) = (holds, lane_key(effect)) {
            self.leave_lane(&lane_key, id);
        }
    }

    /// What became of open effects after this state is unknown, and nothing may start until a person has looked.
    pub(crate) fn distrust(&mut self) {
        let books = &mut self.books;
        for name in books.sinks.keys().cloned().collect::<Vec<_>>() {
            let sink = books.sinks.get_mut(&name).expect("just listed");
            if !sink.spec.frozen {
                Arc::make_mut(&mut sink.spec).frozen = true;
                sink.revision += 1;
            }
        }
        for id in self.effects.keys().copied().collect::<Vec<_>>() {
            let effect = Arc::make_mut(self.effects.get_mut(&id).expect("just listed"));
            if effect.phase == Phase::Parked(Parked::InDoubt) {
                continue;
            }
            let (number, place) = (effect.number, self.books.place);
            let fence = Fence(place.born.expect("the op that emitted it was born in a stamp"));
            effect.record(
                AttemptView {
                    number: AttemptNumber(number),
                    kind: AttemptKind::Call,
                    fence,
                    logged: place.now,
                    ended: "restored",
                    decisive: true,
                    evidence: String::from("it was open in the backup that the cluster was restored from"),
                },
                self.books.limits.attempts_kept,
            );
            effect.may_have_started = true;
            effect.unknown_since.get_or_insert(effect.released);
            self.park(id, Parked::InDoubt);
        }
    }

    /// Does as the machine says about a parked effect, if it is still parked for that reason.
    pub(crate) fn on_parked(&mut self, id: EffectId, parking: u32, answer: OnParked) {
        let Some(effect) = self.effects.get(&id) else { return };
        let Phase::Parked(why) = effect.phase else { return };
        if effect.parkings != parking {
            return;
        }
        match answer {
            OnParked::Wait => {}
            OnParked::Retry => {
                let repeats = match effect.contract {
                    Contract::Transactional | Contract::AtLeastOnce => true,
                    Contract::Idempotent { .. } | Contract::Probe { .. } | Contract::AtMostOnce => false,
                };
                if why == Parked::Exhausted || repeats {
                    let spec = Arc::clone(&self.books.sinks.get(&effect.sink).expect("it is open").spec);
                    self.reopen(id, effect.unknown_since, back_off(&spec, id, 1));
                }
            }
            OnParked::SettleFailed => {
                self.settle(id, Outcome::Failed(String::from("given up by the machine")));
            }
            OnParked::SettleUnknown => self.settle(id, Outcome::Unknown),
        }
    }

    /// Opens a parked effect again under the same id and key, with a fresh budget.
    fn reopen(&mut self, id: EffectId, unknown_since: Option<Timestamp>, after: Duration) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("the caller found it open"));
        effect.calls = 0;
        effect.probes = 0;
        effect.unknown_since = unknown_since;
        if unknown_since.is_none() {
            effect.ask = None;
        }
        if effect.deadline.is_some_and(|deadline| deadline <= books.place.now + after) {
            effect.deadline = None;
        }
        let at = books.place.now + after;
        let held = lane_key(effect)
            .is_none_or(|key| books.lanes.get(&key).is_some_and(|lane| lane.holder == Some(id)));
        if !held {
            // Its lane went on without it: it queues where it was.
            self.join(id);
        } else if after == Duration::ZERO {
            let turn = books.next_sequence();
            books.move_to(effect, Phase::Runnable(turn));
        } else {
            books.move_to(effect, Phase::Waiting(at));
        }
    }

    fn settle(&mut self, id: EffectId, outcome: Outcome) {
        let mut effect = self.effects.remove(&id).expect("only open effects are settled");
        let books = &mut self.books;
        {
            let effect = Arc::make_mut(&mut effect);
            effect.number = effect.ordered_number(books.place.reign);
            books.leave_phase(effect);
        }
        let status = &mut books.status;
        match &outcome {
            Outcome::Delivered(_) => status.delivered += 1,
            Outcome::Failed(_) => status.failed += 1,
            Outcome::Unknown => status.unknown += 1,
            Outcome::Cancelled => status.cancelled += 1,
        }
        books.fold.word(id.op().value());
        books.fold.word(u64::from(id.n()));
        books.fold.bytes(outcome.as_str().as_bytes());
        books.sinks.get_mut(&effect.sink).expect("open effects have a sink").open -= 1;
        self.bytes -= effect.payload.len();
        books.call_back(Callback::Settled { effect: Arc::clone(&effect), outcome: outcome.clone() });
        if let Some(lane_key) = lane_key(&effect) {
            let lane = books.lanes.get_mut(&lane_key).expect("open effects have their lane");
            lane.open -= 1;
            if lane.open == 0 {
                books.lanes.remove(&lane_key);
            } else {
                self.leave_lane(&lane_key, id);
            }
        }
        self.remember(effect, outcome);
    }

    fn remember(&mut self, effect: Arc<Effect>, outcome: Outcome) {
        let id = effect.id;
        let replaced = self.past.remove(&id);
        // Only when an effect settles twice, which only a broken guard lets happen.
        if let Some(replaced) = &replaced {
            self.past_bytes -= replaced.size();
        }
        let sequence = match replaced {
            Some(replaced) => replaced.sequence,
            None => self.books.next_sequence(),
        };
        let (settled, op) = (self.books.place.now, self.books.place.op);
        let past = Past { effect, outcome, settled, op, sequence };
        self.past_bytes += past.size();
        self.past.insert(id, Arc::new(past));
        self.past_order.insert(sequence, id);
        let limits = self.books.limits;
        while limits.history_max < self.past.len() || limits.history_bytes_max < self.past_bytes {
            let Some((sequence, oldest)) = self.past_order.get_min().copied() else { break };
            self.past_order.remove(&sequence);
            if let Some(past) = self.past.remove(&oldest) {
                self.past_bytes -= past.size();
            }
        }
    }

    /// Gives an effect up if it is proved that no attempt started.
    pub(crate) fn cancel(&mut self, id: EffectId) -> bool {
        let Some(effect) = self.effects.get(&id) else { return false };
        if effect.may_have_started && !self.mutations.breaks(Mutation::MachineCancelsStarted) {
            return false;
        }
        self.settle(id, Outcome::Cancelled);
        true
    }

    // ---- claims and outcomes ---------------------------------------------------------------------------------------

    /// A claim is in force if the effect waits for one, for this very attempt. It belongs to the stamp of the op.
    pub(crate) fn claim(&mut self, id: EffectId, attempt: AttemptNumber) {
        let books = &mut self.books;
        let Some(effect) = self.effects.get(&id) else { return };
        let waits = matches!(effect.phase, Phase::Released(_)) && effect.needs_claim();
        if !waits || effect.number != attempt.0 {
            return;
        }
        if effect.start_before(books.margin_of(effect)) <= books.place.now {
            return;
        }
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("found above"));
        let stamp = books.place.born.expect("an op is being executed");
        effect.claim = Some(Claim { attempt: attempt.0, stamp, logged: books.place.now });
        effect.may_have_started = true;
        let sequence = books.next_sequence();
        books.move_to(effect, Phase::Claimed(sequence));
    }

    /// Takes the report of an attempt's end. `readable`: whether the machine can read this outcome.
    pub(crate) fn report(&mut self, report: OutcomeReport, readable: impl FnOnce(&[u8]) -> bool) {
        let (id, number, stamp) = (report.effect, report.attempt, report.stamp());
        let ended = match report.ended {
            Ended::Delivered { outcome, evidence } if !readable(&outcome) => Ended::Unreadable { evidence },
            ended => ended,
        };
        let Some(effect) = self.effects.get(&id) else {
            self.report_late(id, number, stamp, &ended);
            return;
        };
        let decisive = self.is_decisive(effect, number, stamp, &ended);
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("found above"));
        let attempt = AttemptView {
            number,
            kind: effect.kind(),
            fence: Fence(stamp),
            logged: books.place.now,
            ended: End::of(&ended).as_str(),
            decisive,
            evidence: clip(evidence_of(&ended)),
        };
        effect.record(attempt, books.limits.attempts_kept);
        if decisive {
            self.decide(id, ended);
        }
    }

    /// A report about an effect that has its outcome: evidence.
    fn report_late(&mut self, id: EffectId, number: AttemptNumber, stamp: Stamp, ended: &Ended) {
        let Some(past) = self.past.get(&id) else { return };
        let mut past = Past::clone(past);
        if self.mutations.breaks(Mutation::SettleTwice)
            && let Ended::Delivered { outcome, .. } = ended
        {
            let outcome = Outcome::Delivered(Arc::from(&outcome[..]));
            self.books.call_back(Callback::Settled { effect: Arc::clone(&past.effect), outcome });
        }
        let attempt = AttemptView {
            number,
            kind: AttemptKind::Call,
            fence: Fence(stamp),
            logged: self.books.place.now,
            ended: End::of(ended).as_str(),
            decisive: false,
            evidence: clip(evidence_of(ended)),
        };
        self.past_bytes -= past.size();
        Arc::make_mut(&mut past.effect).record(attempt, self.books.limits.attempts_kept);
        self.past_bytes += past.size();
        self.past.insert(id, Arc::new(past));
    }

    /// "Delivered" from any attempt of the newest claim is the answer (where the sink knows our key, or nothing is
    /// claimed, from any attempt at all). Anything else counts only about the attempt that is under way, from the
    /// primary whose attempt it is.
    fn is_decisive(&self, effect: &Effect, number: AttemptNumber, stamp: Stamp, ended: &Ended) -> bool {
        let place = self.books.place;
        let ordered = effect.ordered_number(place.reign);
        // The primary may be one stamp ahead of the log when it counts a start without a claim.
        if !effect.may_have_started || ordered.saturating_add(1) < number.0 {
            return false;
        }
        if let Ended::Delivered { .. } = ended {
            return match effect.claim {
                Some(claim) if effect.contract.claims() => claim.attempt <= number.0,
                _ => !effect.contract.claims(),
            };
        }
        let under_way = match effect.phase {
            Phase::Claimed(_) => true,
            Phase::Released(_) => !effect.needs_claim(),
            Phase::Scheduled(_)
            | Phase::Queued
            | Phase::Runnable(_)
            | Phase::Waiting(_)
            | Phase::Parked(_) => false,
        };
        if self.mutations.breaks(Mutation::NegativeOutcomeFromOldStamp) {
            return under_way;
        }
        under_way && place.born == Some(stamp) && number.0 == ordered
    }

    fn decide(&mut self, id: EffectId, ended: Ended) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("the caller found it"));
        // A call that an earlier primary may have started, and whose end nobody told, stays unknown.
        if effect.lost_attempt(books.place.reign) {
            effect.unknown_since.get_or_insert(effect.released);
        }
        let known = Known {
            contract: effect.contract,
            kind: effect.kind(),
            doubt: if self.mutations.breaks(Mutation::FirmNoSpeaksForAll) {
                Doubt::None
            } else {
                effect.doubt(books.place.reign)
            },
            settled_down: effect.ask.is_some_and(|firm| firm <= effect.released)
                || self.mutations.breaks(Mutation::ProbeFirmAtOnce),
        };
        let too_soon = match &ended {
            Ended::NotFoundTooSoon { wait, .. } => *wait,
            _ => Duration::ZERO,
        };
        if let Ended::Permanent { freeze: true, .. } = &ended {
            let sink = books.sinks.get_mut(&effect.sink).expect("open effects have a sink");
            if !sink.spec.frozen {
                Arc::make_mut(&mut sink.spec).frozen = true;
                sink.revision += 1;
            }
        }
        let spec = Arc::clone(&books.sinks.get(&effect.sink).expect("open effects have a sink").spec);
        let retry_after = match &ended {
            Ended::Definite { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let end = match End::of(&ended) {
            End::Ambiguous if self.mutations.breaks(Mutation::AmbiguousIsDefinite) => End::Definite,
            End::Definite if self.mutations.breaks(Mutation::DefiniteIsAmbiguous) => End::Ambiguous,
            end => end,
        };
        match judge(known, end) {
            Verdict::Deliver => {
                let Ended::Delivered { outcome, .. } = ended else { unreachable!("only that is a delivery") };
                self.settle(id, Outcome::Delivered(outcome.into()));
            }
            Verdict::Fail => self.settle(id, Outcome::Failed(clip(evidence_of(&ended)))),
            Verdict::CallAgain(doubt) => {
                if doubt == Doubt::Possible {
                    effect.unknown_since.get_or_insert(effect.released);
                }
                self.call_again(id, &spec, retry_after);
            }
            Verdict::CallAgainProved => {
                effect.unknown_since = None;
                effect.ask = None;
                effect.probes = 0;
                self.call_again(id, &spec, Duration::ZERO);
            }
            Verdict::Ask => {
                let Contract::Probe { settle } = effect.contract else {
                    unreachable!("only a probe contract asks")
                };
                effect.unknown_since.get_or_insert(effect.released);
                effect.ask = Some(books.place.now + settle);
                effect.calls += 1;
                effect.probes = 0;
                self.ask_at(id, &spec, Timestamp::ZERO);
            }
            Verdict::AskAgain => {
                let at = books.place.now + retry_after;
                self.ask_at(id, &spec, at);
            }
            Verdict::AskWhenSettled => {
                let firm = effect.ask.expect("a probe is under way").max(books.place.now + too_soon);
                self.ask_at(id, &spec, firm);
            }
            Verdict::Park(why) => {
                effect.unknown_since.get_or_insert(effect.released);
                self.park(id, why);
            }
        }
    }

    /// Waits for the next call, unless budget, deadline or window forbid it.
    fn call_again(&mut self, id: EffectId, spec: &SinkSpec, retry_after: Duration) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("the caller found it"));
        if effect.kind() == AttemptKind::Call {
            effect.calls += 1;
        }
        let at = books.place.now + back_off(spec, id, effect.calls).max(retry_after.min(RETRY_AFTER_MAX));
        let spent = spec.backoff.attempts_max != 0 && spec.backoff.attempts_max <= effect.calls;
        books.move_to(effect, Phase::Waiting(at));
        if spent || effect.start_before(books.margin(spec)) <= at {
            self.park_given_up(id);
        }
    }

    /// Waits for the next probe, unless the deadline forbids it.
    fn ask_at(&mut self, id: EffectId, spec: &SinkSpec, at: Timestamp) {
        let books = &mut self.books;
        let effect = Arc::make_mut(self.effects.get_mut(&id).expect("the caller found it"));
        effect.probes += 1;
        let at = at.max(books.place.now + back_off(spec, id, effect.probes));
        books.move_to(effect, Phase::Waiting(at));
        if effect.start_before(books.margin(spec)) <= at {
            self.park_given_up(id);
        }
    }

    // ---- the desk --------------------------------------------------------------------------------------------------

    /// A person acts. `readable`: whether the machine can read this outcome.
    pub(crate) fn desk(
        &mut self,
        id: EffectId,
        act: DeskAct,
        by: &str,
        readable: impl FnOnce(&[u8]) -> bool,
    ) -> Result<(), Refusal> {
        let (name, reason) = match &act {
            DeskAct::Resolve { settle: SettleAs::Delivered { .. }, reason } => ("resolve_delivered", reason),
            DeskAct::Resolve { settle: SettleAs::Failed, reason } => ("resolve_failed", reason),
            DeskAct::Resolve { settle: SettleAs::Unknown, reason } => ("resolve_unknown", reason),
            DeskAct::Retry { reason, .. } => ("retry", reason),
            DeskAct::Cancel { reason } => ("cancel", reason),
        };
        let reason = clip(reason);
        let allowed = self.desk_allows(id, &act, readable);
        let view = ActView {
            effect: id,
            op: self.books.place.op.value(),
            at: self.books.place.now,
            by: clip(by),
            act: name,
            reason: reason.clone(),
            result: allowed.as_ref().err().map_or_else(|| String::from("done"), Refusal::to_string),
        };
        self.record_act(view);
        allowed?;
        match act {
            DeskAct::Resolve { settle: SettleAs::Delivered { outcome }, .. } => {
                self.settle(id, Outcome::Delivered(outcome.into()));
            }
            DeskAct::Resolve { settle: SettleAs::Failed, .. } => self.settle(id, Outcome::Failed(reason)),
            DeskAct::Resolve { settle: SettleAs::Unknown, .. } => self.settle(id, Outcome::Unknown),
            DeskAct::Cancel { .. } => self.settle(id, Outcome::Cancelled),
            DeskAct::Retry { .. } => self.reopen(id, None, Duration::ZERO),
        }
        Ok(())
    }

    fn desk_allows(
        &self,
        id: EffectId,
        act: &DeskAct,
        readable: impl FnOnce(&[u8]) -> bool,
    ) -> Result<(), Refusal> {
        let Some(effect) = self.effects.get(&id) else {
            let past = self.past.get(&id).ok_or(Refusal::NoSuchEffect)?;
            return Err(Refusal::AlreadySettled { outcome: past.outcome.as_str().to_owned() });
        };
        let needed = match act {
            DeskAct::Resolve { settle: SettleAs::Delivered { outcome }, .. } if !readable(outcome) => {
                "the machine can't read this outcome"
            }
            DeskAct::Resolve { .. } => return Ok(()),
            DeskAct::Cancel { .. }
                if effect.may_have_started && !self.mutations.breaks(Mutation::CancelStarted) =>
            {
                "an attempt may have started: resolve it instead"
            }
            DeskAct::Cancel { .. } => return Ok(()),
            DeskAct::Retry { not_delivered, accept_duplicate, .. } => match effect.phase {
                Phase::Parked(Parked::InDoubt)
                    if !not_delivered
                        && !accept_duplicate
                        && !self.mutations.breaks(Mutation::DeskRetriesDoubt) =>
                {
                    "it is in doubt: give proof that it was not delivered, or accept a duplicate"
                }
                Phase::Parked(_) => return Ok(()),
                Phase::Scheduled(_)
                | Phase::Queued
                | Phase::Runnable(_)
                | Phase::Released(_)
                | Phase::Claimed(_)
                | Phase::Waiting(_) => "it is not parked",
            },
        };
        Err(Refusal::NotAllowed { why: needed.to_owned() })
    }

    fn record_act(&mut self, act: ActView) {
        let id = act.effect;
        let kept = |acts: &mut Vec<ActView>| {
            if acts.len() == EFFECT_ACTS_MAX {
                acts.remove(0);
            }
            acts.push(act.clone());
        };
        if let Some(effect) = self.effects.get_mut(&id) {
            kept(&mut Arc::make_mut(effect).acts);
        } else if let Some(past) = self.past.get_mut(&id) {
            kept(&mut Arc::make_mut(&mut Arc::make_mut(past).effect).acts);
        }
        self.acts_count += 1;
        self.acts.insert(self.acts_count, act);
        while self.books.limits.acts_max < self.acts.len() {
            let Some((oldest, _)) = self.acts.get_min() else { break };
            let oldest = *oldest;
            self.acts.remove(&oldest);
        }
    }
}
