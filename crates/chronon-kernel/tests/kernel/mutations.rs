//! The guards, broken one at a time: each of these tests sees what the guard is for.

use chronon_kernel::{
    AttemptEnd, Contract, Dispatcher, DispatcherInput, DispatcherOutput, EffectState, Engine, Limits, Request,
};
use chronon_vsr::{Instant, Mutation, Mutations, Now};

use crate::log::{Log, SECOND, ambiguous, definite, delivered, emit_to, spec};
use crate::probe_machine::{Act, Ending, Heard};

/// Runs the same story with the guard and without it.
fn both<R>(mutation: Mutation, story: impl Fn(Log) -> R) -> (R, R) {
    let run = |mutations| {
        let mut log = Log::with_mutations(Limits::DEFAULT, mutations);
        log.checks = mutations == Mutations::NONE;
        story(log)
    };
    (run(Mutations::NONE), run(Mutations::broken(mutation)))
}

#[test]
fn without_the_claim_rule_a_fail_over_runs_an_at_most_once_effect_again() {
    let (kept, broken) = both(Mutation::RerunClaimed, |mut log| {
        log.set_sink("sink", spec(Contract::AtMostOnce));
        let id = log.emit_one();
        log.start(id);
        log.fail_over();
        log.tick();
        log.order(id).is_some()
    });
    assert_eq!((kept, broken), (false, true));
}

#[test]
fn without_the_single_outcome_a_late_delivery_is_heard_twice() {
    let (kept, broken) = both(Mutation::SettleTwice, |mut log| {
        log.set_sink("sink", spec(Contract::AtLeastOnce));
        let id = log.emit_one();
        let order = log.start(id);
        let report = log.report_of(&order, log.stamp, delivered(1));
        log.batch(vec![report.clone(), report]);
        log.endings(id).len()
    });
    assert_eq!((kept, broken), (1, 2));
}

#[test]
fn without_the_outbox_a_fail_over_loses_effects() {
    let (kept, broken) = both(Mutation::ForgetOutbox, |mut log| {
        log.set_sink("sink", spec(Contract::AtLeastOnce));
        log.emit_one();
        log.fail_over();
        log.tick();
        log.kernel.orders(0).len()
    });
    assert_eq!((kept, broken), (1, 0));
}

#[test]
fn without_the_sessions_a_repeat_after_a_fail_over_is_applied_again() {
    let (kept, broken) = both(Mutation::ForgetSessions, |mut log| {
        let command = log.command(vec![Act::Write(1)]);
        log.run(command.clone());
        log.fail_over();
        log.run(command);
        log.heard().iter().filter(|heard| **heard == Heard::Wrote(1)).count()
    });
    assert_eq!((kept, broken), (1, 2));
}

#[test]
fn without_the_stamp_rule_an_old_primarys_no_ends_a_new_primarys_attempt() {
    let (kept, broken) = both(Mutation::NegativeOutcomeFromOldStamp, |mut log| {
        log.set_sink("sink", spec(Contract::Transactional));
        let id = log.emit_one();
        let (order, old) = (log.order(id).unwrap(), log.stamp);
        log.fail_over();
        log.tick();
        let report = log.report_of(&order, old, definite());
        log.run(report);
        log.state(id)
    });
    assert_eq!((kept, broken), (EffectState::Started, EffectState::Waiting));
}

#[test]
fn without_the_kept_key_a_second_attempt_goes_under_another() {
    let (kept, broken) = both(Mutation::NewKeyPerAttempt, |mut log| {
        let mutations =
            if log.checks { Mutations::NONE } else { Mutations::broken(Mutation::NewKeyPerAttempt) };
        let mut dispatcher = Dispatcher::new(1, mutations);
        log.set_sink("sink", spec(Contract::AtLeastOnce));
        let id = log.emit(vec![emit_to("sink")])[0];
        let mut keys = std::collections::BTreeSet::new();
        for attempt in 1..=2_u32 {
            let now = Now { monotonic: Instant::from_nanos(u64::from(attempt)), wall: log.now };
            let serving = DispatcherInput::Serving(Some(log.stamp));
            dispatcher.handle(
                now,
                if attempt == 1 { serving } else { DispatcherInput::Applied },
                &log.kernel,
            );
            let DispatcherOutput::Start(started) = dispatcher.poll_output() else { panic!("nothing starts") };
            let end = AttemptEnd::Ended(ambiguous());
            let (effect, number, stamp) = (started.effect, started.number, started.stamp);
            dispatcher.handle(now, DispatcherInput::AttemptEnded { effect, number, stamp, end }, &log.kernel);
            let DispatcherOutput::Propose(Request::Outcome(report)) = dispatcher.poll_output() else {
                panic!("its end is not proposed")
            };
            log.run(Request::Outcome(report));
            log.pass(SECOND);
            keys.insert(started.key);
        }
        assert_eq!(log.endings(id), Vec::<Ending>::new());
        keys.len()
    });
    assert_eq!((kept, broken), (1, 2));
}
