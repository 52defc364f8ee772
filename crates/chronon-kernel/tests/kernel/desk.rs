//! People, cancellation, and what the machine answers to a parking.

use chronon_kernel::{
    Contract, DeskAct, EffectId, EffectState, Engine, Limits, Parked, Refusal, Request, RequestResult,
    SettleAs,
};
use chronon_vsr::Duration;

use crate::log::{Log, SECOND, ambiguous, definite, delivered, emit_in, emit_to, spec};
use crate::probe_machine::{Act, Answering, Ending};

fn desk(log: &mut Log, effect: EffectId, act: DeskAct) -> RequestResult {
    log.run(Request::Desk { effect, act, by: "ann".into() })
}

fn resolve(settle: SettleAs) -> DeskAct {
    DeskAct::Resolve { settle, reason: "asked the sink".into() }
}

fn retry(not_delivered: bool, accept_duplicate: bool) -> DeskAct {
    DeskAct::Retry { not_delivered, accept_duplicate, reason: "saw its log".into() }
}

fn cancel() -> DeskAct {
    DeskAct::Cancel { reason: "changed our mind".into() }
}

fn in_doubt() -> (Log, EffectId) {
    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let id = log.emit_one();
    log.end(id, ambiguous());
    (log, id)
}

// Scenario 64.
#[test]
fn an_effect_resolved_twice_has_one_outcome_and_both_acts_are_in_the_record() {
    let (mut log, id) = in_doubt();
    let order_before = log.view(id).attempts_count;
    assert_eq!(desk(&mut log, id, resolve(SettleAs::Failed)), RequestResult::Done);
    let outcome = "failed".to_owned();
    let already = RequestResult::Refused(Refusal::AlreadySettled { outcome });
    for act in [resolve(SettleAs::Unknown), retry(true, true), cancel()] {
        assert_eq!(desk(&mut log, id, act), already);
    }
    assert_eq!(log.endings(id), [Ending::Failed("asked the sink".into())]);
    let acts = log.kernel.acts(0, 100);
    let names: Vec<_> = acts.iter().map(|(number, act)| (*number, act.act, act.by.as_str())).collect();
    assert_eq!(
        names,
        [
            (1, "resolve_failed", "ann"),
            (2, "resolve_unknown", "ann"),
            (3, "retry", "ann"),
            (4, "cancel", "ann")
        ]
    );
    assert_eq!(acts[0].1.result, "done");
    assert!(acts[1].1.result.contains("settled already"));
    assert_eq!(log.view(id).acts.len(), 4);
    assert_eq!(log.kernel.acts(2, 1).len(), 1);
    assert_eq!(log.view(id).attempts_count, order_before);
}

#[test]
fn a_late_outcome_and_a_person_race_and_the_log_decides() {
    for person_first in [true, false] {
        let mut log = Log::with_sink(spec(Contract::AtMostOnce));
        let id = log.emit_one();
        let order = log.start(id);
        let late = log.report_of(&order, log.stamp, delivered(1));
        log.end(id, ambiguous());
        let person = Request::Desk { effect: id, act: resolve(SettleAs::Unknown), by: "ann".into() };
        let both = if person_first { vec![person, late] } else { vec![late, person] };
        log.batch(both);
        let expected = if person_first { Ending::Unknown } else { Ending::Delivered(1) };
        assert_eq!(log.endings(id), [expected]);
    }
}

#[test]
fn an_effect_in_doubt_is_retried_only_with_proof_or_with_a_duplicate_accepted() {
    for (not_delivered, accept_duplicate) in [(false, false), (true, false), (false, true)] {
        let (mut log, id) = in_doubt();
        let key = log.view(id).key;
        let result = desk(&mut log, id, retry(not_delivered, accept_duplicate));
        if !not_delivered && !accept_duplicate {
            assert!(matches!(result, RequestResult::Refused(Refusal::NotAllowed { .. })));
            assert_eq!(log.state(id), EffectState::Parked);
            continue;
        }
        assert_eq!(result, RequestResult::Done);
        assert_eq!((log.state(id), log.view(id).key), (EffectState::Started, key), "the same id and key");
        log.end(id, delivered(1));
        assert_eq!(log.endings(id), [Ending::Delivered(1)]);
    }
}

#[test]
fn resolving_as_delivered_gives_the_machine_a_readable_outcome_or_nothing() {
    let (mut log, id) = in_doubt();
    let refused = desk(&mut log, id, resolve(SettleAs::Delivered { outcome: vec![] }));
    assert!(matches!(refused, RequestResult::Refused(Refusal::NotAllowed { .. })));
    let outcome = postcard::to_allocvec(&11_u64).unwrap();
    assert_eq!(desk(&mut log, id, resolve(SettleAs::Delivered { outcome })), RequestResult::Done);
    assert_eq!(log.endings(id), [Ending::Delivered(11)]);
    let nobody = EffectId::new(chronon_vsr::Op::new(9_999), 0);
    assert_eq!(desk(&mut log, nobody, cancel()), RequestResult::Refused(Refusal::NoSuchEffect));
}

// Scenario 48.
#[test]
fn an_effect_is_cancelled_only_if_nothing_can_have_started() {
    let not_allowed = |result| matches!(result, RequestResult::Refused(Refusal::NotAllowed { .. }));
    // Without claims the release is the start; with them the claim is.
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let id = log.emit_one();
    assert!(not_allowed(desk(&mut log, id, cancel())));

    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let ids = log.emit(vec![emit_to("sink"), emit_to("sink")]);
    log.start(ids[0]);
    assert!(not_allowed(desk(&mut log, ids[0], cancel())));
    let number = log.order(ids[1]).unwrap().number;
    assert_eq!(desk(&mut log, ids[1], cancel()), RequestResult::Done);
    log.run(Request::Claim { effect: ids[1], attempt: number });
    assert!(log.order(ids[1]).is_none(), "the claim came too late");
    assert_eq!(log.endings(ids[1]), [Ending::Cancelled]);

    // And from within the machine.
    let delayed =
        Act::Emit { sink: "sink".into(), lane: None, after: SECOND, deadline: None, body: Vec::new() };
    let id = log.emit(vec![delayed])[0];
    log.emit(vec![Act::Cancel(id), Act::Cancel(ids[0])]);
    assert_eq!(log.endings(id), [Ending::Cancelled]);
    assert_eq!(log.endings(ids[0]), []);
}

#[test]
fn what_the_machine_answers_to_a_parking_is_done() {
    let exhausting = || {
        let mut spec = spec(Contract::AtMostOnce);
        spec.backoff.attempts_max = 1;
        Log::with_sink(spec)
    };
    for (answer, expected) in [
        (Answering::Wait, EffectState::Parked),
        (Answering::Panic, EffectState::Parked),
        (Answering::Retry, EffectState::Waiting),
        (Answering::SettleFailed, EffectState::Settled),
        (Answering::SettleUnknown, EffectState::Settled),
    ] {
        let mut log = exhausting();
        log.emit(vec![Act::AnswerParked(answer)]);
        let id = log.emit_one();
        log.end(id, definite());
        assert_eq!(log.state(id), expected, "{answer:?}");
        let told = usize::from(answer != Answering::Panic);
        assert_eq!(log.parkings(id), told, "a call that fails leaves no trace");
        assert_eq!(log.kernel.status().callbacks_aborted, 1 - told as u64);
        if answer == Answering::Retry {
            log.pass(SECOND);
            log.end(id, definite());
            assert_eq!(log.parkings(id), 2, "once for each parking");
        }
    }
}

#[test]
fn a_machine_cannot_have_an_effect_in_doubt_retried_where_the_contract_forbids_repeats() {
    for (contract, expected) in
        [(Contract::AtMostOnce, EffectState::Parked), (Contract::AtLeastOnce, EffectState::Waiting)]
    {
        let mut spec = spec(contract);
        spec.backoff.attempts_max = 1;
        let mut log = Log::with_sink(spec);
        log.emit(vec![Act::AnswerParked(Answering::Retry)]);
        let id = log.emit_one();
        log.end(id, ambiguous());
        assert_eq!(log.state(id), expected, "{contract:?}");
    }
}

// Scenario 45.
#[test]
fn an_exhausted_effect_holds_its_lane_only_and_a_retry_keeps_id_key_and_order() {
    for holds in [true, false] {
        let mut spec = spec(Contract::AtLeastOnce);
        spec.backoff.attempts_max = 1;
        spec.parked_holds_lane = holds;
        let mut log = Log::with_sink(spec);
        let ids = log.emit(vec![
            emit_in("sink", "a"),
            emit_in("sink", "a"),
            emit_in("sink", "a"),
            emit_in("sink", "b"),
        ]);
        let key = log.view(ids[0]).key;
        log.end(ids[0], definite());
        assert_eq!(log.view(ids[0]).parked, Some(Parked::Exhausted));
        assert!(log.order(ids[3]).is_some(), "the other lane goes on");
        assert_eq!(log.order(ids[1]).is_some(), !holds);
        assert_eq!(desk(&mut log, ids[0], retry(false, false)), RequestResult::Done);
        if holds {
            assert!(log.order(ids[0]).is_some() && log.order(ids[1]).is_none());
            log.end(ids[0], delivered(1));
            assert!(log.order(ids[1]).is_some());
        } else {
            assert!(log.order(ids[0]).is_none(), "one of its lane is at work");
            log.end(ids[1], delivered(1));
            assert!(log.order(ids[0]).is_some() && log.order(ids[2]).is_none(), "it is where it was");
        }
        assert_eq!(log.view(ids[0]).key, key);
    }
}

#[test]
fn the_record_of_acts_and_of_attempts_is_bounded() {
    let limits = Limits { acts_max: 3, attempts_kept: 4, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    let id = log.emit_one();
    for _ in 0..20 {
        log.end(id, ambiguous());
        desk(&mut log, id, cancel());
        log.pass(Duration::from_secs(600));
    }
    let view = log.view(id);
    assert_eq!(view.attempts.iter().map(|attempt| attempt.number.0).collect::<Vec<_>>(), [1, 18, 19, 20]);
    assert_eq!(log.kernel.acts(0, 100).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [18, 19, 20]);
}
