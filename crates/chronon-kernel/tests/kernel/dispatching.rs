//! The dispatcher, joined to a log that takes what it proposes.

use std::collections::BTreeSet;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptKind, Contract, Dispatcher, DispatcherInput, DispatcherOutput, EffectState,
    Ended, Engine, Request, SinkSpec,
};
use chronon_vsr::{Duration, Instant, Mutations, Now, Stamp};

use crate::log::{Log, SECOND, ambiguous, definite, delivered, emit_to, not_found, spec};
use crate::probe_machine::{Act, Ending};

/// A dispatcher at a log. What it proposes is kept until the test says what becomes of it.
struct Desk {
    log: Log,
    dispatcher: Dispatcher,
    monotonic: Instant,
    started: Vec<Attempt>,
    proposed: Vec<Request>,
    wait: Instant,
}

impl Desk {
    fn new(spec: SinkSpec) -> Desk {
        let mut desk = Desk {
            log: Log::with_sink(spec),
            dispatcher: Dispatcher::new(1, Mutations::NONE),
            monotonic: Instant::from_nanos(1),
            started: Vec::new(),
            proposed: Vec::new(),
            wait: Instant::NEVER,
        };
        let stamp = desk.log.stamp;
        desk.hear(DispatcherInput::Serving(Some(stamp)));
        desk
    }

    fn hear(&mut self, input: DispatcherInput) {
        let now = Now { monotonic: self.monotonic, wall: self.log.now };
        self.dispatcher.handle(now, input, &self.log.kernel);
        loop {
            match self.dispatcher.poll_output() {
                DispatcherOutput::Start(attempt) => self.started.push(attempt),
                DispatcherOutput::Propose(request) => self.proposed.push(request),
                DispatcherOutput::Wait(until) => break self.wait = until,
            }
        }
    }

    /// Orders all that is proposed, until nothing more is.
    fn order_proposed(&mut self) {
        while !self.proposed.is_empty() {
            let requests = core::mem::take(&mut self.proposed);
            self.log.batch(requests);
            self.hear(DispatcherInput::Applied);
        }
    }

    fn emit(&mut self, acts: Vec<Act>) -> Vec<chronon_kernel::EffectId> {
        let ids = self.log.emit(acts);
        self.hear(DispatcherInput::Applied);
        ids
    }

    fn pass(&mut self, duration: Duration) {
        self.monotonic = self.monotonic + duration;
        self.log.now = self.log.now + duration;
        self.hear(DispatcherInput::Tick);
    }

    fn end(&mut self, attempt: &Attempt, end: AttemptEnd) {
        self.hear(DispatcherInput::AttemptEnded {
            effect: attempt.effect,
            number: attempt.number,
            stamp: attempt.stamp,
            end,
        });
    }

    fn ended(&mut self, attempt: &Attempt, ended: Ended) {
        self.end(attempt, AttemptEnd::Ended(ended));
    }

    fn serve(&mut self, stamp: Option<Stamp>) {
        self.hear(DispatcherInput::Serving(stamp));
    }

    /// Another primary leads, with this dispatcher as its own.
    fn fail_over(&mut self) {
        self.serve(None);
        self.log.fail_over();
        self.serve(Some(self.log.stamp));
    }
}

// Scenario 58.
#[test]
fn a_healthy_primary_starts_each_effect_once_and_never_again_while_the_attempt_is_alive() {
    for contract in [
        Contract::AtLeastOnce,
        Contract::AtMostOnce,
        Contract::Transactional,
        Contract::Idempotent { window: Duration::from_secs(3_600), replays_errors: false },
        Contract::Probe { settle: Duration::from_secs(60) },
    ] {
        let mut desk = Desk::new(spec(contract));
        let ids = desk.emit(vec![emit_to("sink"); 3]);
        desk.order_proposed();
        for _ in 0..100 {
            desk.pass(Duration::from_millis(100));
            desk.order_proposed();
        }
        let started: Vec<_> = desk.started.iter().map(|attempt| attempt.effect).collect();
        assert_eq!(started, ids, "{contract:?}");
        for attempt in desk.started.clone() {
            desk.ended(&attempt, delivered(1));
        }
        desk.order_proposed();
        assert!(ids.iter().all(|id| desk.log.endings(*id) == [Ending::Delivered(1)]));
        desk.pass(SECOND);
        assert_eq!((desk.started.len(), desk.proposed.len()), (3, 0));
        assert_eq!(desk.wait, Instant::NEVER, "it has nothing to do, ever");
    }
}

#[test]
fn a_claimed_contract_starts_only_after_its_claim_is_seen_in_the_log() {
    let mut desk = Desk::new(spec(Contract::AtMostOnce));
    desk.emit(vec![emit_to("sink")]);
    assert!(matches!(desk.proposed[..], [Request::Claim { .. }]));
    // The proposal is lost, and made again.
    desk.proposed.clear();
    desk.pass(SECOND);
    assert!(matches!(desk.proposed[..], [Request::Claim { .. }]));
    assert_eq!(desk.started.len(), 0);
    desk.order_proposed();
    assert_eq!(desk.started.len(), 1);
    desk.pass(10 * SECOND);
    assert_eq!((desk.proposed.len(), desk.started.len()), (0, 1));
}

#[test]
fn an_end_is_proposed_again_until_the_log_holds_it_by_a_backup_too() {
    let mut desk = Desk::new(spec(Contract::AtMostOnce));
    let id = desk.emit(vec![emit_to("sink")])[0];
    desk.order_proposed();
    let attempt = desk.started[0].clone();
    desk.serve(None);
    desk.log.fail_over();
    desk.log.tick();
    desk.hear(DispatcherInput::Applied);
    assert_eq!(desk.log.state(id), EffectState::Parked);
    desk.ended(&attempt, delivered(4));
    for _ in 0..3 {
        assert!(matches!(desk.proposed[..], [Request::Outcome(_)]));
        desk.proposed.clear();
        desk.pass(4 * SECOND);
    }
    desk.order_proposed();
    assert_eq!(desk.log.endings(id), [Ending::Delivered(4)], "a late success settles what nothing else has");
    desk.pass(100 * SECOND);
    assert_eq!((desk.proposed.len(), desk.wait), (0, Instant::NEVER));
}

#[test]
fn a_new_primary_with_older_claims_proposes_an_op_at_its_start_and_starts_nothing_of_theirs() {
    let mut desk = Desk::new(spec(Contract::AtMostOnce));
    let id = desk.emit(vec![emit_to("sink")])[0];
    desk.order_proposed();
    assert_eq!(desk.started.len(), 1);
    desk.fail_over();
    assert_eq!(desk.proposed, [Request::Tick]);
    desk.order_proposed();
    assert_eq!(desk.log.state(id), EffectState::Parked);
    assert_eq!(desk.started.len(), 1);
}

#[test]
fn a_new_primary_starts_what_is_released_without_claims_as_a_later_attempt_of_one_key() {
    let mut desk = Desk::new(spec(Contract::Idempotent { window: 3_600 * SECOND, replays_errors: false }));
    let id = desk.emit(vec![emit_to("sink")])[0];
    desk.fail_over();
    let [one, other] = &desk.started[..] else { panic!("{:?}", desk.started) };
    assert_eq!((one.key.clone(), one.number.0 + 1), (other.key.clone(), other.number.0));
    assert!(one.fence() < other.fence());
    // The first op of its stamp, someone else's, counts the attempt as it did.
    let other = other.clone();
    desk.log.tick();
    desk.hear(DispatcherInput::Applied);
    assert_eq!(desk.started.len(), 2);
    desk.ended(&other, ambiguous());
    desk.order_proposed();
    assert_eq!(desk.log.state(id), EffectState::Waiting);
    assert!(desk.log.view(id).attempts[0].decisive);
}

// Protocol §13.9.
#[test]
fn a_call_that_may_repeat_another_says_until_when_its_sink_knows_the_key() {
    let window = 3_600 * SECOND;
    let contract = Contract::Idempotent { window, replays_errors: false };
    let mut desk = Desk::new(spec(contract));
    desk.emit(vec![emit_to("sink")]);
    let first = desk.started[0].clone();
    assert_eq!(first.key_known_until, None, "nothing was called before it");
    let began = desk.log.now;
    desk.ended(&first, definite());
    desk.order_proposed();
    desk.pass(60 * SECOND);
    desk.order_proposed();
    let second = desk.started[1].clone();
    assert_eq!(second.key_known_until, None, "the first never reached its sink");
    let unknown = desk.log.now;
    desk.ended(&second, ambiguous());
    desk.order_proposed();
    desk.pass(60 * SECOND);
    desk.order_proposed();
    let third = desk.started[2].clone();
    let until = third.key_known_until.expect("the second may have acted");
    assert!(began + window / 2 < until && until < unknown + window, "{until} of {began}, {unknown}");
    // Another primary can't know what this one started.
    desk.fail_over();
    assert_eq!(desk.started[3].key_known_until, Some(until));

    let mut desk = Desk::new(spec(contract));
    desk.emit(vec![emit_to("sink")]);
    desk.fail_over();
    assert!(desk.started[1].key_known_until.is_some(), "the primary before may have called");
}

#[test]
fn an_attempt_that_never_left_is_ordered_again_later() {
    for contract in [Contract::AtMostOnce, Contract::AtLeastOnce] {
        let mut desk = Desk::new(spec(contract));
        desk.emit(vec![emit_to("sink")]);
        desk.order_proposed();
        let attempt = desk.started[0].clone();
        desk.end(&attempt, AttemptEnd::Abandoned);
        assert_eq!(desk.started.len(), 1);
        desk.pass(SECOND);
        assert_eq!(desk.started.len(), 2, "{contract:?}");
        assert_eq!(desk.started[1].number, attempt.number, "under the same claim");
        assert_eq!(desk.proposed.len(), 0);
        // But not once somebody else leads.
        let again = desk.started[1].clone();
        desk.serve(None);
        desk.end(&again, AttemptEnd::Abandoned);
        desk.pass(SECOND);
        assert_eq!(desk.started.len(), 2);
    }
}

#[test]
fn ticks_come_when_something_is_due_and_at_most_one_in_ten_milliseconds() {
    let mut desk = Desk::new(spec(Contract::AtLeastOnce));
    let delayed =
        Act::Emit { sink: "sink".into(), lane: None, after: SECOND, deadline: None, body: Vec::new() };
    desk.emit(vec![delayed]);
    assert_eq!((desk.proposed.len(), desk.wait), (0, desk.monotonic + SECOND));
    desk.pass(Duration::from_millis(999));
    assert_eq!(desk.proposed.len(), 0);
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.proposed, [Request::Tick]);
    // While it is on its way no other is proposed; once it seems lost one is.
    for _ in 0..50 {
        desk.pass(Duration::from_millis(10));
    }
    assert_eq!(desk.proposed.len(), 1);
    desk.pass(Duration::from_millis(500));
    assert_eq!(desk.proposed.len(), 2);
    desk.order_proposed();
    assert_eq!(desk.started.len(), 1);
    assert_eq!(desk.wait, Instant::NEVER);
}

// Seed 246: a clock was ahead of all others, no majority agreed on one, and what was due by it was not due in log time.
#[test]
fn ticks_that_leave_what_is_due_still_due_come_more_and_more_slowly() {
    let mut desk = Desk::new(spec(Contract::AtLeastOnce));
    let after = Duration::from_secs(60);
    desk.emit(vec![Act::Emit { sink: "sink".into(), lane: None, after, deadline: None, body: Vec::new() }]);
    let mut ticks = 0;
    for _ in 0..200 {
        let log_time = desk.log.now;
        desk.log.now = log_time + 2 * after;
        desk.monotonic = desk.monotonic + Duration::from_millis(10);
        desk.hear(DispatcherInput::Tick);
        desk.log.now = log_time;
        ticks += desk.proposed.len();
        desk.order_proposed();
    }
    assert!((2..=10).contains(&ticks), "{ticks} ticks in two seconds");
    assert_eq!(desk.started.len(), 0);
    desk.pass(after);
    desk.order_proposed();
    assert_eq!(desk.started.len(), 1);
}

#[test]
fn a_frozen_sinks_orders_wait_and_a_thawed_ones_start() {
    let mut desk = Desk::new(spec(Contract::AtMostOnce));
    desk.emit(vec![emit_to("sink")]);
    desk.log.set_sink("sink", SinkSpec { frozen: true, ..spec(Contract::AtMostOnce) });
    desk.hear(DispatcherInput::Applied);
    desk.order_proposed();
    desk.pass(SECOND);
    assert_eq!(desk.started.len(), 0);
    desk.log.set_sink("sink", spec(Contract::AtMostOnce));
    desk.hear(DispatcherInput::Applied);
    desk.pass(SECOND);
    assert_eq!(desk.started.len(), 1);
}

#[test]
fn probes_start_without_a_claim_and_ask_under_the_same_key() {
    let mut desk = Desk::new(spec(Contract::Probe { settle: Duration::from_secs(60) }));
    desk.emit(vec![emit_to("sink")]);
    desk.order_proposed();
    let call = desk.started[0].clone();
    desk.ended(&call, ambiguous());
    desk.order_proposed();
    desk.pass(SECOND);
    desk.order_proposed();
    let probe = desk.started[1].clone();
    assert_eq!((probe.kind, probe.key.clone()), (AttemptKind::Probe, call.key));
    desk.ended(&probe, delivered(1));
    desk.order_proposed();
    assert_eq!(desk.log.kernel.status().delivered, 1);
    let numbers: BTreeSet<_> = desk.started.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers.len(), 2);
}

// Scenario 62; seed 882525850747: log time had stood behind while the clocks disagreed, and then passed `settle` at once.
#[test]
fn a_no_is_proof_only_when_the_clock_of_who_asks_has_passed_settle_too() {
    let settle = Duration::from_secs(60);
    let mut desk = Desk::new(spec(Contract::Probe { settle }));
    desk.emit(vec![emit_to("sink")]);
    desk.order_proposed();
    let call = desk.started[0].clone();
    desk.ended(&call, ambiguous());
    desk.order_proposed();
    desk.pass(SECOND);
    desk.order_proposed();
    let began = desk.monotonic;
    let mut answered = 1;
    let mut called_again = None;
    while called_again.is_none() && desk.monotonic.since(began) < 2 * settle {
        // Log time leaps by an hour at every look.
        desk.log.now = desk.log.now + Duration::from_secs(3_600);
        desk.hear(DispatcherInput::Tick);
        desk.order_proposed();
        while let Some(attempt) = desk.started.get(answered).cloned() {
            answered += 1;
            match attempt.kind {
                AttemptKind::Call => called_again = Some(desk.monotonic.since(began)),
                AttemptKind::Probe => desk.ended(&attempt, not_found()),
            }
            desk.order_proposed();
        }
        desk.pass(SECOND);
    }
    assert!(3 < answered, "it goes on asking: {answered}");
    let after = called_again.expect("in the end a no is proof");
    assert!(settle <= after, "called again after {after:?}");
}

/// Seeds 22 and 26 of the swarm whose transfers have terms: a new primary's clock may be behind log time.
#[test]
fn nothing_starts_whose_deadline_has_passed_by_log_time_on_a_clock_that_is_behind_it() {
    let mut desk = Desk::new(spec(Contract::AtLeastOnce));
    desk.hear(DispatcherInput::Serving(None));
    let deadline = Some(SECOND);
    let act =
        Act::Emit { sink: "sink".into(), lane: None, after: Duration::ZERO, deadline, body: Vec::new() };
    let id = desk.emit(vec![act])[0];
    let behind = desk.log.now;
    desk.log.pass(2 * SECOND);
    assert_eq!(desk.log.state(id), EffectState::Started, "an earlier primary's attempt may be under way");
    desk.log.now = behind;
    let stamp = desk.log.stamp;
    desk.hear(DispatcherInput::Serving(Some(stamp)));
    assert_eq!(desk.started.len(), 0);
}
