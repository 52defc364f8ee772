//! Random histories of ops: whatever comes, in whatever order, the checks of [`Log`] hold after each op, no effect
//! leaves its lane's order, and in the end everything has one outcome or waits for a person.

use std::collections::BTreeMap;

use chronon_kernel::{
    AttemptNumber, Contract, DeskAct, EffectFilter, EffectId, EffectState, Engine, Limits, Origin,
    OutcomeReport, Request, RequestNumber, RequestResult, SettleAs, SinkSpec,
};
use chronon_vsr::{Duration, Mutations, Prng};

use crate::log::{
    Log, SECOND, ambiguous, definite, delivered, emit_in, emit_to, evidence, not_found, permanent, spec,
};
use crate::probe_machine::{Act, Answering, Heard, LAST};

const SINKS: [&str; 5] = ["many", "most", "once", "probe", "store"];

const LIMITS: Limits = Limits {
    sessions_max: 4,
    session_replies_max: 8,
    keys_max: 8,
    open_effects_max: 24,
    lane_open_max: 6,
    emits_max: 4,
    timers_max: 6,
    due_per_op: 5,
    callbacks_per_op: 4,
    history_max: 10,
    attempts_kept: 3,
    acts_max: 5,
    ..Limits::DEFAULT
};

fn contract(sink: &str) -> Contract {
    match sink {
        "many" => Contract::AtLeastOnce,
        "most" => Contract::AtMostOnce,
        "once" => Contract::Idempotent { window: 300 * SECOND, replays_errors: false },
        "probe" => Contract::Probe { settle: 30 * SECOND },
        _ => Contract::Transactional,
    }
}

pub(crate) struct History {
    pub(crate) log: Log,
    random: Prng,
    known: Vec<EffectId>,
    /// What started of each lane, in order.
    started: BTreeMap<(String, String), Vec<EffectId>>,
}

impl History {
    pub(crate) fn new(seed: u64) -> History {
        History::with_mutations(seed, Mutations::NONE)
    }

    pub(crate) fn with_mutations(seed: u64, mutations: Mutations) -> History {
        let mut random = Prng::new(seed);
        let mut log = Log::with_mutations(LIMITS, mutations);
        for sink in SINKS {
            let mut spec = SinkSpec { concurrency: 3, open_max: 12, ..spec(contract(sink)) };
            spec.backoff.attempts_max = random.below(4) as u32;
            spec.parked_holds_lane = random.chance(1, 2);
            log.set_sink(sink, spec);
        }
        History { log, random, known: Vec::new(), started: BTreeMap::new() }
    }

    fn pick(&mut self) -> Option<EffectId> {
        let count = self.known.len() as u64;
        (count != 0).then(|| self.known[self.random.below(count) as usize])
    }

    fn acts(&mut self) -> Vec<Act> {
        let count = self.random.between(1, 4);
        (0..count).map(|_| self.act()).collect()
    }

    fn act(&mut self) -> Act {
        let sink = SINKS[self.random.below(SINKS.len() as u64) as usize];
        let duration = Duration::from_millis(self.random.below(20_000));
        match self.random.below(24) {
            0 => Act::Panic,
            1 => Act::Write(1),
            2 => Act::Timer {
                key: self.random.below(9).to_string(),
                at: self.log.now.nanos() + duration.as_nanos() as u64,
            },
            3 => Act::ClearTimer(self.random.below(9).to_string()),
            4 => self.pick().map_or(Act::Write(2), Act::Cancel),
            5 => Act::EmitAndCancel { sink: sink.into() },
            6 => {
                let answers = [
                    Answering::Wait,
                    Answering::Retry,
                    Answering::SettleFailed,
                    Answering::SettleUnknown,
                    Answering::Panic,
                ];
                Act::AnswerParked(answers[self.random.below(5) as usize])
            }
            7 => {
                let acts = match self.random.below(4) {
                    // Once, or it would never come to rest.
                    0 => vec![Act::Emit {
                        sink: sink.into(),
                        lane: None,
                        after: Duration::ZERO,
                        deadline: None,
                        body: LAST.into(),
                    }],
                    1 => vec![Act::Write(3), Act::Panic],
                    _ => Vec::new(),
                };
                Act::OnSettled(acts)
            }
            8..=10 => {
                let deadline = self.random.chance(1, 2).then_some(2 * duration);
                Act::Emit { sink: sink.into(), lane: None, after: duration, deadline, body: vec![1; 30] }
            }
            11..=15 => emit_to(sink),
            _ => emit_in(sink, ["a", "b"][self.random.below(2) as usize]),
        }
    }

    fn request(&mut self) -> Option<Request> {
        Some(match self.random.below(12) {
            0..=3 => {
                let acts = self.acts();
                self.log.command(acts)
            }
            4 => {
                let acts = self.acts();
                let key = self.random.below(20).to_string();
                let origin = chronon_kernel::Origin::Key { principal: String::new(), key };
                Request::Command { origin, body: postcard::to_allocvec(&acts).ok()? }
            }
            5 => Request::Register { nonce: u128::from(self.random.below(5)) },
            6 => {
                let effect = self.pick()?;
                let reason = String::from("why not");
                let act = match self.random.below(5) {
                    0 => DeskAct::Cancel { reason },
                    1 => DeskAct::Resolve { settle: SettleAs::Failed, reason },
                    2 => DeskAct::Resolve { settle: SettleAs::Delivered { outcome: vec![1] }, reason },
                    _ => DeskAct::Retry {
                        not_delivered: self.random.chance(1, 2),
                        accept_duplicate: self.random.chance(1, 2),
                        reason,
                    },
                };
                Request::Desk { effect, act, by: String::new() }
            }
            7 => {
                // Anything from anybody, mostly nonsense.
                Request::Outcome(OutcomeReport {
                    effect: self.pick()?,
                    attempt: AttemptNumber(self.random.below(4) as u32),
                    epoch: 0,
                    view: self.random.between(1, self.log.stamp.view.value()),
                    ended: self.ended(),
                })
            }
            8 => Request::Claim { effect: self.pick()?, attempt: AttemptNumber(self.random.below(4) as u32) },
            _ => {
                let orders = self.log.kernel.orders(0);
                let order = orders.get(self.random.below(orders.len().max(1) as u64) as usize)?;
                if order.claim == chronon_kernel::ClaimState::Needed {
                    Request::Claim { effect: order.effect, attempt: order.number }
                } else {
                    let ended = self.ended();
                    self.log.report_of(order, self.log.stamp, ended)
                }
            }
        })
    }

    fn resolve_parked(&mut self) {
        let parked = EffectFilter { state: Some(EffectState::Parked), ..EffectFilter::default() };
        for view in self.log.kernel.effects(&parked, None, usize::MAX) {
            let act = DeskAct::Resolve { settle: SettleAs::Unknown, reason: String::new() };
            self.log.run(Request::Desk { effect: view.id, act, by: String::new() });
        }
        if let Some(order) = self.log.kernel.orders(0).first() {
            self.log.end(order.effect, permanent());
        }
    }

    fn ended(&mut self) -> chronon_kernel::Ended {
        match self.random.below(8) {
            0 => permanent(),
            1 => chronon_kernel::Ended::InProgress { evidence: evidence() },
            2 => not_found(),
            3 => chronon_kernel::Ended::Unreadable { evidence: evidence() },
            4 => definite(),
            5 => ambiguous(),
            _ => delivered(1),
        }
    }

    pub(crate) fn step(&mut self) {
        if self.random.chance(1, 20) {
            self.log.fail_over();
        }
        if self.random.chance(1, 3) {
            let millis = if self.random.chance(1, 20) { 400_000 } else { self.random.below(3_000) };
            self.log.now = self.log.now + Duration::from_millis(millis);
        }
        let count = self.random.below(4);
        let requests = (0..count).filter_map(|_| self.request()).collect();
        let results = self.log.batch(requests);
        for result in results {
            if let RequestResult::Replied { effects, .. } = result {
                self.known.extend(effects);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        // What is emitted in settled is known from the views only.
        let views = self.log.kernel.effects(&EffectFilter::default(), None, usize::MAX);
        for view in &views {
            if !self.known.contains(&view.id) {
                self.known.push(view.id);
            }
        }
        for order in self.log.kernel.orders(0) {
            let view = self.log.view(order.effect);
            let Some(lane) = view.lane else { continue };
            let started = self.started.entry((view.sink.to_string(), lane)).or_default();
            if !started.contains(&view.id) {
                started.push(view.id);
            }
        }
        // Nothing here joins a lane later than it was emitted: so a lane starts its effects in the order of their ids.
        for started in self.started.values() {
            assert!(started.is_sorted(), "{started:?}");
        }
        let status = self.log.kernel.status();
        assert!(status.sessions <= 4 && status.keys <= 8 && status.timers <= 12);
        assert!(self.log.kernel.acts(0, usize::MAX).len() <= 5);
        assert!(views.iter().filter(|view| view.state == EffectState::Settled).count() <= 10);
        assert!(views.iter().all(|view| view.attempts.len() <= 3));
        let ended = status.delivered + status.failed + status.unknown + status.cancelled;
        let open = status.scheduled + status.ready + status.started + status.waiting + status.parked;
        assert_eq!(status.emitted, ended + open);
    }

    /// The world turns kind: people resolve what is parked, and everything that starts is delivered.
    fn heal(&mut self) {
        let calm = vec![Act::AnswerParked(Answering::Wait), Act::OnSettled(Vec::new())];
        for nonce in 100.. {
            let RequestResult::Registered { session } = self.log.run(Request::Register { nonce }) else {
                panic!("no session")
            };
            let origin = Origin::Session { session, number: RequestNumber(1) };
            let body = postcard::to_allocvec(&calm).expect("acts can be encoded");
            match self.log.run(Request::Command { origin, body }) {
                RequestResult::Replied { .. } => break,
                _ => self.resolve_parked(),
            }
            assert!(nonce < 1_000, "there is never room for a command: {:?}", self.log.kernel.status());
        }
        for _ in 0..10_000 {
            let orders = self.log.kernel.orders(0);
            if let Some(order) = orders.first() {
                self.log.end(order.effect, delivered(1));
            } else if let Some(due) = self.log.kernel.next_due() {
                self.log.now = self.log.now.max(due);
                self.log.tick();
            } else {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.log.kernel.status());
    }
}

#[test]
fn every_history_keeps_the_invariants_and_comes_to_rest() {
    for seed in 0..100 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        for _ in 0..150 {
            history.step();
        }
        history.heal();
        let status = history.log.kernel.status();
        assert_eq!(status.scheduled + status.started + status.waiting, 0);
        assert_eq!((status.callbacks, status.timers), (0, 0));
        // Who is ready stands behind somebody parked.
        assert!(status.ready == 0 || status.parked != 0);
        let heard = history.log.heard();
        let settled = heard.iter().filter(|heard| matches!(heard, Heard::Settled(..))).count() as u64;
        let ended = status.delivered + status.failed + status.unknown + status.cancelled;
        assert!(settled <= ended && ended <= settled + status.callbacks_aborted);
    }
}
