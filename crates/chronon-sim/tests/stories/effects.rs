//! Effects and the outside world, while replicas die around them.

use chronon_kernel::{Contract, RequestResult};
use chronon_sim::{ALL, BankWorkload, Cluster, Fate, Fault, SinkBehaviour};
#[cfg(feature = "mutations")]
use chronon_vsr::Mutation;
use chronon_vsr::{Abdication, Command, Duration, Event, Mutations, ReplicaId};

const DAY: Duration = Duration::from_secs(86_400);

fn contracts() -> [Contract; 5] {
    [
        Contract::Transactional,
        Contract::Idempotent { window: DAY, replays_errors: false },
        Contract::Probe { settle: Duration::from_secs(4) },
        Contract::AtMostOnce,
        Contract::AtLeastOnce,
    ]
}

fn acts(c: &mut Cluster) -> usize {
    let sink = c.world().sink(&BankWorkload::sink_name());
    sink.expect("the bank has a webhook").ledger().len()
}

// Scenario 58.
#[test]
fn a_healthy_primary_starts_each_effect_once() {
    for contract in contracts() {
        let mut c = Cluster::with_contract(3, contract).seed(1);
        c.submit(40).settle();
        let emitted = {
            let primary = c.primary();
            c.world().engine(primary).unwrap().status().emitted
        };
        assert_eq!(c.world().starts(), emitted, "{contract:?}");
        assert_eq!(acts(&mut c) as u64, emitted, "{contract:?}");
    }
}

// Scenario 41.
#[test]
fn a_primary_that_dies_at_any_moment_around_a_call_doubles_and_loses_nothing() {
    for contract in contracts() {
        for moment in 0..20 {
            let mut c = Cluster::with_contract(3, contract).seed(moment);
            c.submit(2).settle();
            let primary = c.primary();
            c.start(2).run(Duration::from_micros(250 * moment));
            if moment % 2 == 0 {
                c.replica(primary).crash();
            } else {
                c.replica(primary).power_off();
            }
            c.run(Duration::from_millis(400));
            c.replica(primary).restart();
            // The auditor compares the ledger with the log, contract by contract.
            c.settle().assert_committed(ALL, 4);
        }
    }
}

// Scenario 42.
#[test]
fn a_frozen_primary_and_its_successor_both_call_and_the_machine_hears_one_outcome() {
    let mut c = Cluster::new(3).seed(4);
    c.submit(8).settle();
    let before = acts(&mut c);
    let old = c.primary();
    let starts = c.world().starts();
    c.start(1);
    c.until("the call has left", move |world| starts < world.starts());
    c.replica(old).pause();
    c.until("the successor has called too", move |world| starts + 1 < world.starts());
    c.run(Duration::from_secs(2));
    c.replica(old).resume();
    c.settle().assert_committed(ALL, 9);
    assert_eq!(acts(&mut c), before + 1);
    let status = c.world().engine(old).unwrap().status();
    assert_eq!(status.delivered, status.emitted);
}

// Scenario 43.
#[test]
fn an_at_most_once_call_whose_primary_dies_is_parked_and_never_made_again() {
    let mut c = Cluster::with_contract(3, Contract::AtMostOnce).seed(5);
    c.submit(1).settle();
    let old = c.primary();
    let starts = c.world().starts();
    c.start(1);
    c.until("the call has left", move |world| starts < world.starts());
    c.replica(old).crash();
    c.run(Duration::from_secs(3));
    c.replica(old).restart();
    c.settle();
    assert_eq!(c.world().starts(), starts + 1);
    let status = c.world().engine(old).unwrap().status();
    assert_eq!((status.parked, status.delivered), (1, 1));
}

// Scenario 63.
#[test]
fn where_the_answer_to_a_commit_is_lost_the_row_decides_and_an_older_fence_is_turned_away() {
    for seed in 0..4 {
        let mut c = Cluster::with_contract(3, Contract::Transactional).seed(seed);
        c.submit(4).settle();
        // The row is there and nobody heard of it; the store dies right before or right after a row is there.
        for lost in [
            SinkBehaviour { act_silent: 1_000_000, ..SinkBehaviour::GOOD },
            SinkBehaviour { die: 1_000_000, ..SinkBehaviour::GOOD },
        ] {
            let before = acts(&mut c);
            c.world().set_sinks(lost);
            c.start(8).run(Duration::from_secs(3));
            assert!(before < acts(&mut c), "no row was written, and nobody heard");
            c.world().set_sinks(SinkBehaviour::GOOD);
            c.settle();
        }
        // What an old primary has begun comes to the store after its successor's rows.
        let late_max = Duration::from_secs(6);
        c.world().set_sinks(SinkBehaviour { late: 1_000_000, late_max, ..SinkBehaviour::GOOD });
        let (old, starts) = (c.primary(), c.world().starts());
        c.start(8);
        c.until("the calls have left", move |world| starts + 8 <= world.starts());
        c.isolate(&[old]).world().set_sinks(SinkBehaviour::GOOD);
        c.until("another leads", move |world| world.primary().is_some_and(|primary| primary != old));
        c.run(late_max).heal().settle().assert_committed(ALL, 28);
        let status = c.world().engine(old).unwrap().status();
        assert_eq!(status.delivered, status.emitted);
        let sink = c.world().sink(&BankWorkload::sink_name()).unwrap();
        assert_eq!(sink.ledger().len() as u64, status.emitted);
        assert!(sink.ledger().is_sorted_by_key(|act| act.fence), "a row under an older fence after a newer");
        assert!(0 < sink.fenced(), "nobody was turned away");
    }
}

// Scenario 65.
#[test]
fn a_frozen_sink_hears_of_no_primary_until_it_is_thawed() {
    for (seed, contract) in (0..).zip(contracts()) {
        let mut c = Cluster::with_contract(3, contract).seed(seed);
        c.submit(4).settle();
        // Refused connections keep the effects starting again and again.
        c.world().set_sinks(SinkBehaviour { refuse: 1_000_000, ..SinkBehaviour::GOOD });
        c.submit(8).run(Duration::from_millis(200));
        c.freeze(true).run(Duration::from_millis(600));
        let starts = c.world().starts();
        let old = c.primary();
        c.replica(old).crash();
        c.run(Duration::from_secs(3)).replica(old).restart();
        c.run(Duration::from_secs(3));
        assert_eq!(c.world().starts(), starts, "{contract:?}");
        c.world().set_sinks(SinkBehaviour::GOOD);
        c.freeze(false).settle().assert_committed(ALL, 12);
        // What was claimed when its primary died may have started, as far as anybody knows.
        let status = c.world().engine(old).unwrap().status();
        assert!(contract.claims() || status.parked == 0, "{contract:?}: {status:?}");
        assert_eq!((status.delivered, acts(&mut c) as u64), (12 - status.parked, 12 - status.parked));
    }
}

// Scenario 73.
#[test]
fn a_partitioned_primary_starts_nothing_once_its_gate_has_closed() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(8).settle();
        let old = c.primary();
        // Refused connections keep the effects released and starting again and again.
        c.world().set_sinks(SinkBehaviour { refuse: 1_000_000, ..SinkBehaviour::GOOD });
        c.start(8).run(Duration::from_millis(20));
        c.isolate(&[old]);
        c.run(Duration::from_secs(4));
        assert_ne!(c.primary(), old);
        c.world().set_sinks(SinkBehaviour::GOOD);
        c.heal().settle().assert_committed(ALL, 16);
        let status = c.world().engine(old).unwrap().status();
        assert_eq!(status.delivered, status.emitted);
    }
}

// Scenario 76.
#[test]
fn two_commands_of_one_op_emit_two_effects_with_keys_of_their_own() {
    // More callers than the pipeline is deep, so that some have to share an op.
    let mut c = Cluster::new(3).seed(6).with(|config| config.clients.clients = 40);
    c.submit(40);
    c.start(40).settle();
    let mut shared = 0;
    let log = c.world().results();
    for (at, result) in log.all() {
        let RequestResult::Replied { effects, .. } = result else { continue };
        for effect in effects {
            assert_eq!(effect.op().value(), at.op);
            shared += usize::from(effect.n() == 1);
        }
    }
    assert!(0 < shared, "no op held two transfers");
    let world = c.world();
    let sink = world.sink(&BankWorkload::sink_name()).unwrap();
    let mut keys: Vec<_> = sink.ledger().iter().map(|act| act.key.clone()).collect();
    keys.sort();
    let calls = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), calls);
    assert_eq!(calls as u64, world.starts());
}

// Seeds 0 and 88: a primary that heard nobody for two seconds gave up and took the same stamp back.
#[test]
fn a_primary_that_takes_its_primacy_back_calls_a_claimed_effect_once() {
    let mut c = Cluster::with_contract(2, Contract::AtMostOnce).seed(7);
    c.submit(8).settle();
    let (primary, backup) = (c.primary(), c.backups()[0]);
    let starts = c.world().starts();
    c.start(1);
    c.until("the call has left", move |world| starts < world.starts());
    c.replica(backup).crash();
    c.until("the primary gives up", |world| {
        let mut newest = world.events().iter().rev().take(4);
        newest.any(|(_, _, event)| matches!(event, Event::Abdicated { .. }))
    });
    c.replica(backup).restart();
    c.settle().assert_committed(ALL, 9);
    assert_eq!(c.world().starts(), starts + 1);
    assert!(c.primary() == primary || c.primary() == backup);
}

// Seed 138: a dispatcher turned log time into a wait by the monotonic clock, once.
#[test]
fn a_wall_clock_that_stood_an_hour_back_for_a_moment_delays_no_retry() {
    let mut c = Cluster::new(3).seed(8);
    c.submit(4).settle();
    c.world().set_sinks(SinkBehaviour { error_before: 1_000_000, ..SinkBehaviour::GOOD });
    c.start(4).run(Duration::from_millis(30));
    for replica in c.world().replicas() {
        c.world().inflict(chronon_sim::Fault::Clock(replica, -3_600_000_000_000));
    }
    c.run(Duration::from_millis(300));
    for replica in c.world().replicas() {
        c.world().inflict(chronon_sim::Fault::Clock(replica, 0));
    }
    c.world().set_sinks(SinkBehaviour::GOOD);
    let began = c.world().now();
    c.settle().assert_committed(ALL, 8);
    assert!(c.world().now().since(began) < Duration::from_secs(20));
}

// Seed 1000046: the end settled what was parked in doubt, and its lane went on after all had been called quiet.
#[test]
fn all_is_not_quiet_while_somebody_knows_an_end_that_the_log_does_not_hold() {
    let mut c = Cluster::with_contract(3, Contract::AtMostOnce).seed(9);
    c.submit(2).settle();
    let old = c.primary();
    c.world().set_sinks(SinkBehaviour { delay_min: Duration::from_millis(100), ..SinkBehaviour::GOOD });
    let starts = c.world().starts();
    c.start(1).until("the call has left", move |world| starts < world.starts());
    // It goes on as a backup, and nobody hears from it how the call ended.
    c.filter(move |envelope| {
        let tells = envelope.from == old && envelope.message.payload.command() == Command::Forward;
        if tells { Fate::Lose } else { Fate::Pass }
    });
    c.replica(old).step_down();
    c.run(Duration::from_secs(10));
    let waits_for = c.world().is_quiet().expect_err("it is parked, and that is not the end of it");
    assert!(waits_for.contains("knows ends of attempts"), "{waits_for}");
    c.unfilter().settle();
}

// Scenario 62; seed 882525850747.
#[test]
fn a_sink_that_acts_late_acts_once_though_all_clocks_leap_past_settle() {
    for replicas in [1, 3] {
        let mut c =
            Cluster::with_contract(replicas, Contract::Probe { settle: Duration::from_secs(4) }).seed(9);
        c.submit(4).settle();
        let late = Duration::from_secs(3);
        c.world().set_sinks(SinkBehaviour { late: 1_000_000, late_max: late, ..SinkBehaviour::GOOD });
        c.start(4).run(Duration::from_millis(400));
        for replica in c.world().replicas() {
            c.world().inflict(chronon_sim::Fault::Clock(replica, 60_000_000_000));
        }
        c.run(Duration::from_secs(1));
        c.world().set_sinks(SinkBehaviour::GOOD);
        c.settle().assert_committed(ALL, 8);
        assert_eq!(acts(&mut c), 8);
    }
}

/// Calls of unknown end, then an outage of all that outlasts the sink's memory, during which one clock stands still.
/// Its replica leads afterwards, one with a right clock follows, and the third is away: no quorum of clocks agrees.
fn after_an_outage_that_one_clock_slept_through(mutations: Mutations) -> Cluster {
    let window = Duration::from_secs(10);
    let outage = Duration::from_secs(30);
    let contract = Contract::Idempotent { window, replays_errors: false };
    let mut c = Cluster::with_contract(3, contract).seed(9).with(|config| config.mutations = mutations);
    c.submit(2).settle();
    // Views go round, so that one leads the next.
    let old = c.primary();
    let sleeper = ReplicaId::new((old.value() + 1) % 3);
    let follower = c.backups().into_iter().find(|backup| *backup != sleeper).expect("there are two");
    c.world().set_sinks(SinkBehaviour { act_silent: 1_000_000, ..SinkBehaviour::GOOD });
    let starts = c.world().starts();
    c.start(4);
    c.until("the calls have left", move |world| starts + 4 <= world.starts());
    c.run(Duration::from_millis(50));
    c.power_off_all();
    c.world().set_sinks(SinkBehaviour::GOOD);
    c.world().inflict(Fault::Clock(sleeper, -(outage.as_nanos() as i64)));
    c.run(outage);
    c.replica(sleeper).restart();
    c.replica(follower).restart();
    c.until("the sleeper leads", move |world| world.primary() == Some(sleeper));
    c
}

// Protocol §13.9.
#[test]
fn a_call_of_unknown_end_is_not_repeated_by_one_clock_that_slept_through_an_outage() {
    let mut c = after_an_outage_that_one_clock_slept_through(Mutations::NONE);
    let before = acts(&mut c);
    c.run(Duration::from_secs(3));
    assert_eq!(acts(&mut c), before);
    c.start_all();
    c.settle();
    assert_eq!(acts(&mut c), before);
}

#[cfg(feature = "mutations")]
#[test]
#[should_panic(expected = "Effects")]
fn where_clocks_are_not_asked_the_judge_sees_the_double() {
    let mut c =
        after_an_outage_that_one_clock_slept_through(Mutations::broken(Mutation::RepeatWithoutClocks));
    c.run(Duration::from_secs(3));
    c.start_all();
    c.settle();
}

// Protocol §13.9: what is due is looked at by the primary's own clock.
#[test]
fn a_primary_whose_clock_is_off_hands_over_and_stays_away_from_leading() {
    for hour in [3_600_000_000_000, -3_600_000_000_000] {
        let mut c = Cluster::new(3).seed(10);
        c.submit(2).settle();
        let old = c.primary();
        c.world().inflict(Fault::Clock(old, hour));
        c.until("another one leads", move |world| world.primary().is_some_and(|primary| primary != old));
        c.submit(2).run(Duration::from_secs(10));
        let why = Abdication::ClockOff;
        c.assert_event(old, |event| matches!(event, Event::Abdicated { why: given, .. } if *given == why));
        assert_eq!(c.count_events(ALL, |event| matches!(event, Event::Abdicated { .. })), 1);
        assert_ne!(c.primary(), old);
        c.settle().assert_committed(ALL, 4);
    }
}

#[test]
fn where_no_quorum_of_clocks_agrees_nobody_hands_over() {
    let mut c = Cluster::new(3).seed(11);
    c.submit(2).settle();
    let (old, other) = (c.primary(), c.backups()[0]);
    c.replica(other).crash();
    // What its clock said counts for so long.
    c.run(Duration::from_secs(20));
    c.world().inflict(Fault::Clock(old, 3_600_000_000_000));
    c.submit(2).run(Duration::from_secs(10));
    c.assert_no_event(|event| matches!(event, Event::Abdicated { .. }));
    c.replica(other).restart();
    c.settle().assert_committed(ALL, 4);
}
