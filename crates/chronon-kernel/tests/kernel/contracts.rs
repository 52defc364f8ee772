//! The five contracts, end by end.

use chronon_kernel::{
    AttemptKind, ClaimState, Contract, EffectState, Ended, Engine, Parked, Request, RequestResult, SinkSpec,
};
use chronon_vsr::Duration;

use crate::log::{
    Log, SECOND, ambiguous, definite, delivered, emit_to, evidence, not_found, permanent, spec,
};
use crate::probe_machine::{Ending, Heard};

const HOUR: Duration = Duration::from_secs(3_600);
const IDEMPOTENT: Contract = Contract::Idempotent { window: HOUR, replays_errors: false };
const PROBE: Contract = Contract::Probe { settle: Duration::from_secs(60) };

fn contracts() -> [Contract; 5] {
    [Contract::Transactional, IDEMPOTENT, PROBE, Contract::AtMostOnce, Contract::AtLeastOnce]
}

fn unreadable() -> Ended {
    Ended::Unreadable { evidence: evidence() }
}

fn in_progress() -> Ended {
    Ended::InProgress { evidence: evidence() }
}

#[test]
fn each_contract_and_each_end_of_a_first_call_lead_where_the_table_says() {
    use EffectState::{Parked, Settled, Waiting};
    let ends: [fn() -> Ended; 7] =
        [|| delivered(7), unreadable, definite, ambiguous, permanent, in_progress, not_found];
    let table = [
        [Settled, Parked, Waiting, Waiting, Settled, Waiting, Waiting],
        [Settled, Parked, Waiting, Waiting, Settled, Waiting, Waiting],
        [Settled, Parked, Waiting, Waiting, Settled, Waiting, Waiting],
        [Settled, Parked, Waiting, Parked, Settled, Parked, Parked],
        [Settled, Parked, Waiting, Waiting, Settled, Waiting, Waiting],
    ];
    for (contract, row) in contracts().into_iter().zip(table) {
        for (end, expected) in ends.iter().zip(row) {
            let mut log = Log::with_sink(spec(contract));
            let id = log.emit_one();
            log.end(id, end());
            assert_eq!(log.state(id), expected, "{contract:?} {:?}", end());
            assert_eq!(log.parkings(id), usize::from(expected == Parked));
            assert_eq!(log.endings(id).len(), usize::from(expected == Settled));
            if expected == Waiting {
                log.pass(HOUR / 2);
                let asks = matches!(contract, Contract::Probe { .. }) && end() != definite();
                let kind = if asks { AttemptKind::Probe } else { AttemptKind::Call };
                assert_eq!(log.order(id).expect("its wait is over").kind, kind, "{contract:?} {:?}", end());
            }
        }
    }
}

#[test]
fn a_delivery_is_heard_once_with_its_outcome_and_a_failure_with_its_reason() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let ids = log.emit(vec![emit_to("sink"), emit_to("sink")]);
    log.end(ids[1], permanent());
    log.end(ids[0], delivered(42));
    let heard = [
        Heard::Settled(ids[1], Ending::Failed("seen".into())),
        Heard::Settled(ids[0], Ending::Delivered(42)),
    ];
    assert_eq!(log.heard(), heard);
    let status = log.kernel.status();
    assert_eq!((status.emitted, status.delivered, status.failed, status.outbox_bytes), (2, 1, 1, 0));
}

#[test]
fn an_outcome_that_the_machine_cannot_read_parks_its_effect() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let id = log.emit_one();
    log.end(id, Ended::Delivered { outcome: vec![0xff; 11], evidence: evidence() });
    assert_eq!(log.view(id).parked, Some(Parked::InDoubt));
    log.pass(24 * HOUR);
    assert!(log.order(id).is_none(), "never retried");
}

#[test]
fn the_contracts_with_claims_start_only_under_a_claim_of_their_own_stamp() {
    for contract in contracts() {
        let mut log = Log::with_sink(spec(contract));
        let id = log.emit_one();
        let order = log.order(id).unwrap();
        let claims = matches!(contract, Contract::Probe { .. } | Contract::AtMostOnce);
        assert_eq!(order.claim, if claims { ClaimState::Needed } else { ClaimState::NotNeeded });
        if !claims {
            continue;
        }
        // Nobody can have started it: nothing that is said of it counts.
        let early = log.report_of(&order, log.stamp, delivered(1));
        log.run(early);
        assert_eq!(log.state(id), EffectState::Started);
        log.run(Request::Claim { effect: id, attempt: chronon_kernel::AttemptNumber(order.number.0 + 1) });
        assert_eq!(log.order(id).unwrap().claim, ClaimState::Needed, "a claim of another attempt is void");
        log.run(Request::Claim { effect: id, attempt: order.number });
        let claimed = log.order(id).unwrap();
        assert_eq!(claimed.claim, ClaimState::Claimed(log.stamp));
        assert!(order.sequence < claimed.sequence, "a dispatcher sees it as news");
        log.run(Request::Claim { effect: id, attempt: order.number });
        assert_eq!(log.order(id).unwrap(), claimed, "claiming again changes nothing");
    }
}

// Scenario 43.
#[test]
fn a_claimed_at_most_once_effect_is_parked_by_a_fail_over_told_once_and_never_run_again() {
    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let id = log.emit_one();
    let order = log.start(id);
    let old = log.stamp;
    log.fail_over();
    assert!(log.kernel.holds_claims_older_than(log.stamp));
    assert!(!log.kernel.holds_claims_older_than(old));
    log.tick();
    assert_eq!(log.view(id).parked, Some(Parked::InDoubt));
    assert!(!log.kernel.holds_claims_older_than(log.stamp));
    for _ in 0..3 {
        log.fail_over();
        log.pass(HOUR);
    }
    assert!(log.order(id).is_none());
    assert_eq!((log.parkings(id), log.endings(id)), (1, vec![]));
    // Its primary comes back and knows.
    let late = log.report_of(&order, old, delivered(5));
    log.run(late.clone());
    log.run(late);
    assert_eq!(log.endings(id), [Ending::Delivered(5)]);
}

// Scenario 73.
#[test]
fn what_an_older_primary_says_counts_only_if_it_is_a_delivery() {
    for contract in contracts() {
        let mut log = Log::with_sink(spec(contract));
        let id = log.emit_one();
        let order = log.start(id);
        let old = log.stamp;
        log.fail_over();
        log.tick();
        let before = log.view(id);
        for end in [definite(), ambiguous(), permanent(), unreadable(), in_progress(), not_found()] {
            let report = log.report_of(&order, old, end);
            log.run(report);
        }
        let after = log.view(id);
        assert_eq!((after.state, after.parked, after.due), (before.state, before.parked, before.due));
        assert!(after.attempts.len() > before.attempts.len(), "it is kept as evidence");
        assert!(after.attempts.iter().skip(before.attempts.len()).all(|attempt| !attempt.decisive));
        let report = log.report_of(&order, old, delivered(9));
        log.run(report);
        assert_eq!(log.endings(id), [Ending::Delivered(9)], "{contract:?}");
    }
}

// Scenario 44.
#[test]
fn the_first_outcome_in_the_log_wins_and_the_second_is_evidence() {
    let mut log = Log::with_sink(spec(IDEMPOTENT));
    let id = log.emit_one();
    let (old, old_order) = (log.stamp, log.order(id).unwrap());
    log.fail_over();
    log.tick();
    let new_order = log.order(id).unwrap();
    assert!(old_order.number < new_order.number, "a later primary's start is a later attempt");
    let second = log.report_of(&new_order, log.stamp, delivered(2));
    let first = log.report_of(&old_order, old, delivered(1));
    log.batch(vec![second, first]);
    assert_eq!(log.endings(id), [Ending::Delivered(2)]);
    let view = log.view(id);
    assert_eq!(view.attempts.len(), 2);
    assert_eq!((view.attempts[0].decisive, view.attempts[1].decisive), (true, false));
}

// Scenario 61.
#[test]
fn an_idempotent_effect_is_not_retried_after_its_window() {
    let window = Duration::from_secs(24 * 3_600);
    let contract = Contract::Idempotent { window, replays_errors: false };
    let mut log = Log::with_sink(spec(contract));
    let id = log.emit_one();
    let first = log.now;
    // The sink is down for three days: every call may have acted.
    let mut last_start = first;
    while log.now.since(first) < 3 * window {
        match log.order(id) {
            Some(_) => {
                last_start = log.now;
                log.end(id, ambiguous());
            }
            None => log.pass(Duration::from_secs(60)),
        }
    }
    assert_eq!(log.view(id).parked, Some(Parked::InDoubt));
    let margin = Duration::from_millis(11_500);
    assert!(last_start.since(first) < window - margin);
    assert!(window / 2 < last_start.since(first), "it was retried while it could be");
    assert_eq!(log.parkings(id), 1);
}

#[test]
fn a_definite_end_does_not_use_the_window_up() {
    let contract = Contract::Idempotent { window: HOUR, replays_errors: false };
    let mut log = Log::with_sink(spec(contract));
    let id = log.emit_one();
    let first = log.now;
    while log.now.since(first) < 3 * HOUR {
        match log.order(id) {
            Some(_) => log.end(id, definite()),
            None => log.pass(Duration::from_secs(60)),
        }
    }
    assert_ne!(log.state(id), EffectState::Parked);
    assert_eq!(log.parkings(id), 0);
}

#[test]
fn a_window_counts_from_a_start_that_an_older_primary_may_have_made() {
    let mut log = Log::with_sink(spec(IDEMPOTENT));
    let id = log.emit_one();
    let start_before = log.order(id).unwrap().start_before;
    log.fail_over();
    log.pass(HOUR / 2);
    // This primary's call is definite; of the older one's nothing is known.
    log.end(id, definite());
    log.pass(Duration::from_secs(60));
    assert_eq!(log.order(id).unwrap().start_before, start_before);
    log.fail_over();
    log.pass(HOUR);
    assert_eq!(log.view(id).parked, Some(Parked::InDoubt), "nobody may start it after its window");
}

// Scenario 62.
#[test]
fn a_probe_that_finds_nothing_before_settle_starts_no_second_call() {
    let mut log = Log::with_sink(spec(PROBE));
    let id = log.emit_one();
    log.end(id, ambiguous());
    let ended = log.now;
    log.pass(SECOND);
    let asked = log.order(id).unwrap();
    assert_eq!((asked.kind, asked.claim), (AttemptKind::Probe, ClaimState::NotNeeded));
    log.end(id, not_found());
    log.pass(Duration::from_secs(30));
    assert!(log.order(id).is_none(), "a call may still be in flight");
    log.pass(Duration::from_secs(30));
    assert_eq!(log.order(id).unwrap().kind, AttemptKind::Probe);
    assert!(Duration::from_secs(60) <= log.now.since(ended));
    log.end(id, not_found());
    log.pass(HOUR);
    let again = log.order(id).unwrap();
    assert_eq!((again.kind, again.claim), (AttemptKind::Call, ClaimState::Needed));
    log.end(id, delivered(1));
    assert_eq!(log.endings(id), [Ending::Delivered(1)]);
}

#[test]
fn a_probe_that_finds_it_settles_its_effect() {
    let mut log = Log::with_sink(spec(PROBE));
    let id = log.emit_one();
    log.end(id, ambiguous());
    log.pass(SECOND);
    log.end(id, delivered(3));
    assert_eq!(log.endings(id), [Ending::Delivered(3)]);
}

#[test]
fn after_a_fail_over_a_probe_counts_settle_from_there_plus_the_longest_call() {
    let mut log = Log::with_sink(spec(PROBE));
    let id = log.emit_one();
    log.start(id);
    log.fail_over();
    log.tick();
    let lost = log.now;
    // Settle of 60 s, a call of 10 s, clocks 1.5 s apart.
    let firm = Duration::from_millis(71_500);
    while log.now.since(lost) < firm {
        if log.order(id).is_some() {
            assert_eq!(log.order(id).unwrap().kind, AttemptKind::Probe);
            log.end(id, not_found());
        }
        log.pass(SECOND);
    }
    if log.order(id).is_none() {
        log.pass(SECOND);
    }
    assert_eq!(log.order(id).unwrap().kind, AttemptKind::Probe);
    log.end(id, not_found());
    log.pass(HOUR);
    assert_eq!(log.order(id).unwrap().kind, AttemptKind::Call);
}

// Scenario 66, for claims of primaries.
#[test]
fn under_probe_a_delivery_of_an_older_claim_is_evidence_once_a_newer_claim_is_made() {
    let mut log = Log::with_sink(spec(PROBE));
    let id = log.emit_one();
    let old = log.start(id);
    let old_stamp = log.stamp;
    log.end(id, ambiguous());
    log.pass(2 * Duration::from_secs(60));
    log.end(id, not_found());
    log.pass(HOUR);
    log.start(id);
    let report = log.report_of(&old, old_stamp, delivered(1));
    log.run(report);
    assert_eq!(log.endings(id), []);
    log.end(id, delivered(2));
    assert_eq!(log.endings(id), [Ending::Delivered(2)]);
}

#[test]
fn a_firm_no_after_a_call_of_unknown_end_is_a_failure_only_where_it_speaks_for_both() {
    let keeps_errors = Contract::Idempotent { window: HOUR, replays_errors: true };
    for (contract, expected) in [
        (Contract::Transactional, EffectState::Settled),
        (keeps_errors, EffectState::Settled),
        // A gateway's 401 never saw our key, and the first call may have acted.
        (IDEMPOTENT, EffectState::Parked),
        (Contract::AtLeastOnce, EffectState::Parked),
    ] {
        let mut log = Log::with_sink(spec(contract));
        let id = log.emit_one();
        log.end(id, ambiguous());
        log.pass(SECOND);
        log.end(id, permanent());
        assert_eq!(log.state(id), expected, "{contract:?}");
    }
}

#[test]
fn a_spent_budget_parks_as_exhausted_if_all_ends_are_definite_and_in_doubt_otherwise() {
    for (ends, why) in
        [([definite(), definite()], Parked::Exhausted), ([ambiguous(), definite()], Parked::InDoubt)]
    {
        let mut spec = spec(Contract::AtLeastOnce);
        spec.backoff.attempts_max = 2;
        let mut log = Log::with_sink(spec);
        let id = log.emit_one();
        for end in ends {
            assert_eq!(log.parkings(id), 0);
            log.end(id, end);
            log.pass(SECOND);
        }
        assert_eq!((log.view(id).parked, log.parkings(id)), (Some(why), 1));
    }
}

#[test]
fn a_sink_that_asks_to_be_left_alone_is_frozen() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let ids = log.emit(vec![emit_to("sink"), emit_to("sink")]);
    log.end(ids[0], Ended::Permanent { freeze: true, evidence: evidence() });
    let sink = log.kernel.sink(&crate::log::sink_name("sink")).unwrap();
    assert_eq!((sink.spec.frozen, sink.revision), (true, 2));
    let order = log.order(ids[1]).unwrap();
    assert!(log.kernel.attempt(&order, log.stamp).is_none());
    let later = log.emit_one();
    assert_eq!(log.state(later), EffectState::Ready);
    log.set_sink("sink", spec(Contract::AtLeastOnce));
    assert!(log.kernel.attempt(&order, log.stamp).is_some());
    assert_eq!(log.state(later), EffectState::Started);
}

// Scenario 77.
#[test]
fn an_effect_keeps_the_contract_that_it_was_emitted_under() {
    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let old = log.emit_one();
    let changed = log.set_sink("sink", SinkSpec { timeout: SECOND, ..spec(Contract::AtLeastOnce) });
    assert_eq!(changed, RequestResult::SinkSet { revision: 2 });
    let new = log.emit_one();
    log.end(old, ambiguous());
    log.end(new, ambiguous());
    assert_eq!((log.state(old), log.state(new)), (EffectState::Parked, EffectState::Waiting));
    log.pass(SECOND);
    let order = log.order(new).unwrap();
    assert_eq!(log.kernel.attempt(&order, log.stamp).unwrap().timeout(), SECOND, "limits apply at once");
}

#[test]
fn a_sink_whose_margins_do_not_fit_is_refused() {
    let mut log = Log::new();
    let margin = Duration::from_millis(11_500);
    let window = |window| spec(Contract::Idempotent { window, replays_errors: true });
    let settle = |settle| spec(Contract::Probe { settle });
    for refused in [window(margin), settle(margin), SinkSpec { concurrency: 0, ..spec(PROBE) }] {
        assert!(matches!(log.set_sink("sink", refused), RequestResult::Refused(_)));
    }
    let nanosecond = Duration::from_nanos(1);
    assert_eq!(log.set_sink("a", window(margin + nanosecond)), RequestResult::SinkSet { revision: 1 });
    assert_eq!(log.set_sink("b", settle(margin + nanosecond)), RequestResult::SinkSet { revision: 1 });
    assert_eq!(log.set_sink("b", settle(margin + nanosecond)), RequestResult::SinkSet { revision: 1 });
}
