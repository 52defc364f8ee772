//! The dispatcher: on the primary, starts what the log has released. Sans-IO.
//!
//! It decides nothing that must survive it: what is released, claimed, due or parked is replicated state in the
//! outbox. A new primary's dispatcher starts from that state alone. What it keeps is bounded by the attempts that may
//! be under way at once, because an effect holds its place at its sink until its attempt's end is in the log.

use std::collections::{BTreeMap, VecDeque};

use chronon_vsr::{Duration, Instant, Mutation, Mutations, Now, Op, Prng, Stamp, Timestamp};

use crate::view::{ClaimState, Order, Reported};
use crate::{
    Attempt, AttemptEnd, AttemptKind, AttemptNumber, EffectId, EffectKey, Ended, Engine, OutcomeReport,
    Request,
};

/// What a dispatcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatcherInput {
    /// An op was executed: look at the outbox again.
    Applied,
    /// This replica serves as the primary of this stamp, or does not serve.
    Serving(Option<Stamp>),
    /// An attempt that was ordered has ended.
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
    /// Time passed.
    Tick,
}

/// What a dispatcher wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatcherOutput {
    /// Hand this to an executor.
    Start(Attempt),
    /// Order this (in at the front door). Proposed again after a while until its effect is seen in the log.
    Propose(Request),
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// Starts released effects.
#[derive(Debug)]
pub struct Dispatcher {
    random: Prng,
    mutations: Mutations,
    serving: Option<Stamp>,
    /// The stamp served now, or last: what is running belongs to it. A primary that wants to give up and then stays
    /// pauses within one reign.
    reign: Option<Stamp>,
    /// Orders up to this sequence number were looked at since it serves.
    orders_seen: u64,
    /// Reports up to this count were looked at.
    reports_seen: u64,
    /// Attempts handed out in this reign whose end the log does not hold.
    running: BTreeMap<EffectId, AttemptNumber>,
    /// Claims proposed in this reign and not seen, by the order that they are for.
    claims: BTreeMap<EffectId, u64>,
    /// What this reign asks about.
    asking: BTreeMap<EffectId, Asking>,
    /// How many of them were still asked about when they were last looked through.
    asking_kept: usize,
    /// Ends that the log does not hold, of this reign and of earlier ones.
    ends: BTreeMap<Reported, OutcomeReport>,
    /// What to look at again, and when.
    again: BTreeMap<(Instant, u64), Again>,
    again_count: u64,
    /// When the last tick was proposed, and what was applied then.
    tick: Option<Ticked>,
    outputs: VecDeque<DispatcherOutput>,
    wait: Instant,
}

/// A call that probes ask about. Log time may jump past a probe's `settle` while the call is still under way, so a "no"
/// is proof only if this primary's own clock says so too.
#[derive(Clone, Copy, Debug)]
struct Asking {
    call: AttemptNumber,
    /// From when on a "no" is proof.
    firm: Instant,
    /// When the newest probe was handed out.
    asked: Instant,
}

/// A tick that was proposed.
#[derive(Clone, Copy, Debug)]
struct Ticked {
    at: Instant,
    /// What was applied then.
    applied: Op,
    /// What was due then, and how many ticks in a row left it due.
    due: Option<Timestamp>,
    in_vain: u32,
}

#[derive(Clone, Copy, Debug)]
enum Again {
    /// Propose this end again, if the log does not hold it.
    End { reported: Reported, tries: u32 },
    /// Propose this claim again, if its order still waits for it.
    Claim { effect: EffectId, sequence: u64, tries: u32 },
    /// Look at this order again: it could not be started.
    Order { effect: EffectId },
}

/// At most one tick in this time.
const TICK_INTERVAL: Duration = Duration::from_millis(10);

/// When a tick that is not seen in the log is proposed again.
const TICK_LOST: Duration = Duration::from_secs(1);

/// Log time is waited for by the monotonic clock, so the wall clock is looked at this often: it may be set.
const WALL_LOOK: Duration = Duration::from_secs(1);

/// The largest outcome that is logged.
const OUTCOME_SIZE_MAX: usize = 1024 * 1024;

/// When an attempt that never left, or a frozen sink's, is looked at again.
const START_AGAIN: Duration = Duration::from_millis(100);

impl Dispatcher {
    /// A dispatcher that does not serve yet.
    pub fn new(seed: u64, mutations: Mutations) -> Dispatcher {
        Dispatcher {
            random: Prng::new(seed),
            mutations,
            serving: None,
            reign: None,
            orders_seen: 0,
            reports_seen: 0,
            running: BTreeMap::new(),
            claims: BTreeMap::new(),
            asking: BTreeMap::new(),
            asking_kept: 0,
            ends: BTreeMap::new(),
            again: BTreeMap::new(),
            again_count: 0,
            tick: None,
            outputs: VecDeque::new(),
            wait: Instant::NEVER,
        }
    }

    /// Takes one input; the engine is the state that it decides from.
    pub fn handle(&mut self, now: Now, input: DispatcherInput, engine: &dyn Engine) {
        match input {
            DispatcherInput::Applied => self.see_reports(engine),
            DispatcherInput::Serving(serving) => self.serve(serving),
            DispatcherInput::AttemptEnded { effect, number, stamp, end } => {
                self.end(now, effect, number, stamp, end);
            }
            DispatcherInput::Tick => {}
        }
        self.see_orders(now, engine);
        self.look_again(now, engine);
        self.propose_tick(now, engine);
        self.wait = self.next_wait(now, engine);
    }

    /// The next thing to do. Drain until `Wait`.
    pub fn poll_output(&mut self) -> DispatcherOutput {
        self.outputs.pop_front().unwrap_or(DispatcherOutput::Wait(self.wait))
    }

    /// Ends of attempts that the log does not hold yet: they are proposed until it does.
    pub fn unlogged_ends(&self) -> usize {
        self.ends.len()
    }

    /// The primary begins to serve, or stops. Attempts under way go on, and belong to the reign that started them:
    /// after a pause within one reign none of them is started again.
    fn serve(&mut self, serving: Option<Stamp>) {
        if self.serving == serving {
            return;
        }
        self.serving = serving;
        self.orders_seen = 0;
        self.claims.clear();
        self.tick = None;
        // What was to be done as a serving primary is void; ends are not. What was not handed out did not start.
        self.again.retain(|_, again| matches!(again, Again::End { .. }));
        let running = &mut self.running;
        self.outputs.retain(|output| match output {
            DispatcherOutput::Start(attempt) => {
                running.remove(&attempt.effect);
                false
            }
            DispatcherOutput::Propose(request) => matches!(request, Request::Outcome(_)),
            DispatcherOutput::Wait(_) => true,
        });
        if serving.is_some() && self.reign != serving {
            self.reign = serving;
            self.running.clear();
            self.asking.clear();
            self.asking_kept = 0;
        }
    }

    fn see_reports(&mut self, engine: &dyn Engine) {
        let (count, reports) = engine.reports(self.reports_seen);
        self.reports_seen = count;
        // If some were missed, the ends are proposed again and seen then: a report twice in the log decides once.
        for reported in reports.unwrap_or_default() {
            self.ends.remove(&reported);
            if Some(reported.stamp) == self.reign
                && self.running.get(&reported.effect) == Some(&reported.number)
            {
                self.running.remove(&reported.effect);
            }
        }
    }

    fn see_orders(&mut self, now: Now, engine: &dyn Engine) {
        let Some(stamp) = self.serving else { return };
        for order in engine.orders(self.orders_seen) {
            self.orders_seen = order.sequence;
            self.obey(now, stamp, &order, engine);
        }
    }

    fn obey(&mut self, now: Now, stamp: Stamp, order: &Order, engine: &dyn Engine) {
        if self.running.get(&order.effect).is_some_and(|running| order.number <= *running) {
            return;
        }
        match order.claim {
            ClaimState::Needed if !self.mutations.breaks(Mutation::StartBeforeCommit) => {
                if now.wall < order.start_before {
                    self.claims.insert(order.effect, order.sequence);
                    self.propose_claim(now, order, 0);
                }
            }
            // Its primary is gone; the first op of this stamp puts it in doubt.
            ClaimState::Claimed(born)
                if born != stamp && !self.mutations.breaks(Mutation::StartOthersClaim) => {}
            ClaimState::Needed | ClaimState::Claimed(_) | ClaimState::NotNeeded => {
                if order.claim == ClaimState::Needed {
                    self.propose_claim(now, order, 0);
                }
                self.claims.remove(&order.effect);
                if order.start_before <= now.wall {
                    return;
                }
                let Some(mut attempt) = engine.attempt(order, stamp) else {
                    self.again_after(now, START_AGAIN, Again::Order { effect: order.effect });
                    return;
                };
                if self.mutations.breaks(Mutation::NewKeyPerAttempt) {
                    attempt.key = EffectKey::of_attempt(&attempt.key, attempt.number, stamp);
                }
                if self.mutations.breaks(Mutation::RepeatWithoutClocks) {
                    attempt.key_known_until = None;
                }
                if attempt.kind == AttemptKind::Probe {
                    self.note_probe(now, order.effect, engine);
                }
                self.running.insert(order.effect, attempt.number);
                self.outputs.push_back(DispatcherOutput::Start(attempt));
            }
        }
    }

    /// Notes when a probe is handed out, and from when on its "no" is proof.
    fn note_probe(&mut self, now: Now, effect: EffectId, engine: &dyn Engine) {
        let Some(asked) = engine.asked(effect) else { return };
        match self.asking.get_mut(&effect) {
            Some(asking) if asking.call == asked.call => asking.asked = now.monotonic,
            _ => {
                // What nobody asks about any more goes, each time that there is twice as much.
                if 2 * self.asking_kept < self.asking.len() {
                    self.asking.retain(|effect, asking| {
                        engine.asked(*effect).is_some_and(|asked| asked.call == asking.call)
                    });
                    self.asking_kept = self.asking.len();
                }
                let firm = now.monotonic + asked.firm_after;
                self.asking.insert(effect, Asking { call: asked.call, firm, asked: now.monotonic });
            }
        }
    }

    /// A "no" that came too soon by this primary's own clock says so in the log.
    fn doubt_too_soon(&self, effect: EffectId, stamp: Stamp, ended: Ended) -> Ended {
        let blind = [Mutation::ProbeFirmByLogTime, Mutation::ProbeFirmAtOnce];
        let blind = blind.into_iter().any(|mutation| self.mutations.breaks(mutation));
        match (ended, self.asking.get(&effect)) {
            (Ended::NotFound { mut evidence }, Some(asking))
                if self.reign == Some(stamp) && asking.asked < asking.firm && !blind =>
            {
                let wait = asking.firm.since(asking.asked);
                evidence.0.insert_str(0, &format!("asked {wait:?} too soon for a firm no; "));
                Ended::NotFoundTooSoon { wait, evidence }
            }
            (ended, _) => ended,
        }
    }

    fn propose_claim(&mut self, now: Now, order: &Order, tries: u32) {
        let request = Request::Claim { effect: order.effect, attempt: order.number };
        self.outputs.push_back(DispatcherOutput::Propose(request));
        let again = Again::Claim { effect: order.effect, sequence: order.sequence, tries: tries + 1 };
        let after = self.patience(tries);
        self.again_after(now, after, again);
    }

    fn end(&mut self, now: Now, effect: EffectId, number: AttemptNumber, stamp: Stamp, end: AttemptEnd) {
        match end {
            AttemptEnd::Ended(ended) => {
                let ended = within_an_op(self.doubt_too_soon(effect, stamp, ended));
                let report = OutcomeReport {
                    effect,
                    attempt: number,
                    epoch: stamp.epoch.value(),
                    view: stamp.view.value(),
                    ended,
                };
                let reported = Reported::of(&report);
                self.ends.insert(reported, report);
                self.propose_end(now, reported, 0);
            }
            AttemptEnd::Abandoned => {
                if self.reign == Some(stamp) && self.running.get(&effect) == Some(&number) {
                    self.running.remove(&effect);
                    self.again_after(now, START_AGAIN, Again::Order { effect });
                }
            }
        }
    }

    fn propose_end(&mut self, now: Now, reported: Reported, tries: u32) {
        let Some(report) = self.ends.get(&reported) else { return };
        self.outputs.push_back(DispatcherOutput::Propose(Request::Outcome(report.clone())));
        let after = self.patience(tries);
        self.again_after(now, after, Again::End { reported, tries: tries + 1 });
    }

    fn look_again(&mut self, now: Now, engine: &dyn Engine) {
        while let Some(entry) = self.again.first_entry()
            && entry.key().0 <= now.monotonic
        {
            match entry.remove() {
                Again::End { reported, tries } => self.propose_end(now, reported, tries),
                Again::Claim { effect, sequence, tries } => {
                    if self.claims.get(&effect) != Some(&sequence) {
                        continue;
                    }
                    match engine.order(effect) {
                        Some(order) if order.sequence == sequence && order.claim == ClaimState::Needed => {
                            if now.wall < order.start_before {
                                self.propose_claim(now, &order, tries);
                            }
                        }
                        Some(_) | None => {
                            self.claims.remove(&effect);
                        }
                    }
                }
                Again::Order { effect } => {
                    let (Some(stamp), Some(order)) = (self.serving, engine.order(effect)) else { continue };
                    self.obey(now, stamp, &order, engine);
                }
            }
        }
    }

    /// Has something that is due, or claims of a primary before this one, looked at by an op.
    fn propose_tick(&mut self, now: Now, engine: &dyn Engine) {
        let Some(stamp) = self.serving else { return };
        let due = engine.next_due().filter(|due| *due <= now.wall);
        if (due.is_some() || engine.holds_claims_older_than(stamp))
            && self.tick_allowed_at(engine) <= now.monotonic
        {
            let before = self.tick.filter(|tick| tick.due == due);
            let in_vain = before.map_or(0, |tick| tick.in_vain.saturating_add(1));
            self.tick = Some(Ticked { at: now.monotonic, applied: engine.applied(), due, in_vain });
            self.outputs.push_back(DispatcherOutput::Propose(Request::Tick));
        }
    }

    fn tick_allowed_at(&self, engine: &dyn Engine) -> Instant {
        match self.tick {
            None => Instant::ZERO,
            // What is due by our wall clock need not be due in log time: a clock that is ahead of all others would
            // fill the log with ticks that change nothing.
            Some(tick) if tick.applied < engine.applied() => {
                tick.at + TICK_INTERVAL * (1 << tick.in_vain.min(6))
            }
            Some(tick) => tick.at + TICK_LOST,
        }
    }

    fn next_wait(&self, now: Now, engine: &dyn Engine) -> Instant {
        let again = self.again.first_key_value().map_or(Instant::NEVER, |((at, _), _)| *at);
        let Some(stamp) = self.serving else { return again };
        let due = if engine.holds_claims_older_than(stamp) { Some(now.wall) } else { engine.next_due() };
        let tick = due.map_or(Instant::NEVER, |due| {
            (now.monotonic + due.since(now.wall).min(WALL_LOOK)).max(self.tick_allowed_at(engine))
        });
        again.min(tick)
    }

    /// How long to wait before saying the same again: 0.2 s, doubled up to 3.2 s, a bit more or less.
    fn patience(&mut self, tries: u32) -> Duration {
        let millis = 200 << tries.min(4);
        Duration::from_millis(self.random.between(millis * 4 / 5, millis * 6 / 5))
    }

    fn again_after(&mut self, now: Now, after: Duration, again: Again) {
        self.again_count += 1;
        self.again.insert((now.monotonic + after, self.again_count), again);
    }
}

/// An outcome that fits no op would be proposed for ever. It was delivered all the same: a person reads the rest.
fn within_an_op(ended: Ended) -> Ended {
    match ended {
        Ended::Delivered { outcome, mut evidence } if OUTCOME_SIZE_MAX < outcome.len() => {
            evidence.0.insert_str(0, &format!("an outcome of {} bytes is too large; ", outcome.len()));
            Ended::Unreadable { evidence }
        }
        ended => ended,
    }
}
