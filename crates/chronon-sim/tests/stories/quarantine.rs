//! Machines that are not deterministic: whoever comes to something else than the others is found out, says nothing more,
//! and gets the others' state (scenario 40).

use std::cell::Cell;
use std::rc::Rc;

use chronon_kernel::Consistency;
use chronon_sim::{ALL, CallKind, Cluster, Fate, Fault, World};
use chronon_vsr::{Abdication, Checksum, Duration, Event, Op, Payload, ReplicaId};

/// A replica that slips under load is found out within so many ops.
const FOUND_WITHIN: u64 = 16;

fn is_quarantined(event: &Event) -> bool {
    matches!(event, Event::Quarantined { .. })
}

fn is_lifted(event: &Event) -> bool {
    matches!(event, Event::QuarantineLifted { .. })
}

/// A cluster of so many that takes a checkpoint about every so many ops, and has done something already.
fn cluster(replicas: usize, seed: u64, interval: u64) -> Cluster {
    let mut c = Cluster::new(replicas).seed(seed).tiny_log(interval);
    c = c.with(|config| config.clients.wander = 500_000);
    c.submit(10).settle();
    c
}

/// The replica's next command comes out wrong. The first op that may hold it.
fn slip(c: &mut Cluster, replica: ReplicaId) -> Op {
    let from = c.head().next();
    c.world().slip(replica, from);
    from
}

/// The op by which a replica was found out.
fn found(c: &mut Cluster, replica: ReplicaId) -> Option<Op> {
    let events = c.world().events().iter().rev();
    events
        .filter(|(_, who, _)| *who == replica)
        .find_map(|(_, _, event)| if let Event::Quarantined { op, .. } = event { Some(*op) } else { None })
}

/// Submits until a replica has a checkpoint that it did not have.
fn until_a_checkpoint(c: &mut Cluster, replica: ReplicaId) {
    let newest = |c: &mut Cluster| c.world().replica(replica).expect("it runs").checkpoint().entry.op;
    let before = newest(c);
    while newest(c) == before {
        c.submit(1).run(Duration::from_millis(100));
    }
}

/// Waits until a replica has the cluster's state again, and everybody knows it.
pub(crate) fn heals(c: &mut Cluster, replica: ReplicaId) {
    c.until("it is believed again", |world| !world.has_diverged(replica) && !world.is_quarantined(replica));
    c.settle().assert_event(replica, is_lifted);
    assert!(!c.world().is_quarantined(replica));
}

/// The root that a replica's superblock names, if it is not what the log comes to at that op.
pub(crate) fn wrong_root(world: &World, replica: ReplicaId) -> Option<Checksum> {
    let checkpoint = world.replica(replica)?.checkpoint();
    let right = world.checkpoints().roots().get(&checkpoint.entry.op);
    checkpoint.root.filter(|root| Some(root) != right)
}

/// Every client asks for what any replica may say of its own state.
fn ask_everybody(c: &mut Cluster) {
    for client in 1..=8 {
        let (workload, prng) = c.world().workload();
        let query = workload.query(prng);
        c.world().ask(client, CallKind::Query { consistency: Consistency::Local, query });
        c.start_read();
    }
}

fn withheld(c: &mut Cluster) -> u64 {
    c.world().reached().get("AnswerWithheld").copied().unwrap_or(0)
}

#[test]
fn a_backup_that_diverges_is_found_within_a_few_ops_answers_nothing_and_heals_by_a_peers_checkpoint() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 60);
        let diverged = c.backups()[0];
        let from = slip(&mut c, diverged);
        c.start(40).until("it is found out", |world| world.is_quarantined(diverged));
        let found = found(&mut c, diverged).unwrap();
        assert!(
            from <= found && found.value() < from.value() + FOUND_WITHIN,
            "slipped at {from}, found by {found}"
        );
        // The others go on, and nobody hears of it again.
        let before = withheld(&mut c);
        for _ in 0..8 {
            ask_everybody(&mut c);
            c.until("everybody is answered", |world| world.clients_done());
        }
        assert!(before < withheld(&mut c), "nobody asked the diverged one");
        // Until a checkpoint of theirs is beyond what it has executed.
        c.submit(120);
        heals(&mut c, diverged);
        c.assert_event(diverged, |event| matches!(event, Event::Synced { .. }));
        let others: Vec<ReplicaId> = ALL.iter().copied().filter(|replica| *replica != diverged).collect();
        assert_eq!(c.count_events(&others, is_quarantined), 0);
    }
}

#[test]
fn a_primary_that_diverges_hands_over_and_says_nothing_wrong_after_that() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 60);
        let diverged = c.primary();
        slip(&mut c, diverged);
        c.start(40).until("it is found out", |world| world.is_quarantined(diverged));
        c.until("another one leads", move |world| world.primary().is_some_and(|primary| primary != diverged));
        let why = Abdication::Diverged;
        c.assert_event(
            diverged,
            |event| matches!(event, Event::Abdicated { why: found, .. } if *found == why),
        );
        ask_everybody(&mut c);
        c.submit(120);
        heals(&mut c, diverged);
    }
}

#[test]
fn a_quarantined_replica_does_not_lead_while_another_can() {
    let mut c = cluster(3, 1, 10_000);
    let diverged = c.backups()[0];
    slip(&mut c, diverged);
    c.submit(5).until("it is found out", |world| world.is_quarantined(diverged));
    let is_start = |event: &Event| matches!(event, Event::PrimaryStarted { .. });
    let led = c.count_events(&[diverged], is_start);
    for _ in 0..4 {
        let primary = c.primary();
        assert_ne!(primary, diverged);
        c.replica(primary).step_down();
        c.until("another one leads", move |world| world.primary().is_some_and(|now| now != primary));
    }
    c.submit(5).run(Duration::from_secs(1));
    assert!(c.world().is_quarantined(diverged));
    assert_eq!(c.count_events(&[diverged], is_start), led);
    // It has voted and acked all the while: with it alone the others' word would not be kept.
    let others: Vec<ReplicaId> = c.backups().into_iter().filter(|replica| *replica != diverged).collect();
    c.replica(others[0]).crash();
    c.submit(5).replica(others[0]).restart();
    c.settle();
}

#[test]
fn three_replicas_that_come_to_three_things_halt_and_acknowledge_nothing_more() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 10_000);
        let backups = c.backups();
        for replica in &backups {
            slip(&mut c, *replica);
        }
        c.start(40).until("everybody is quarantined", |world| {
            world.replicas().into_iter().all(|replica| world.is_quarantined(replica))
        });
        assert_eq!(c.count_events(ALL, is_quarantined), 3);
        // Answers that were on their way arrive.
        c.run(Duration::from_millis(50));
        assert_eq!(c.world().primary(), None, "nobody serves");
        let (completed, head) = (c.completed().len(), c.head());
        ask_everybody(&mut c);
        c.start(40).run(Duration::from_secs(10));
        assert_eq!(c.completed().len(), completed);
        assert!(c.head().value() <= head.value() + chronon_vsr::PIPELINE_MAX, "nothing new is ordered");
        for replica in c.world().replicas() {
            let quarantine = c.world().status(replica).unwrap().quarantine.expect("it says why");
            assert_eq!(quarantine.majority, None);
            assert!(quarantine.own.is_some());
        }
        // Whoever starts again executes again. Two that come to the same are enough.
        for replica in backups {
            c.replica(replica).crash().restart();
            c.run(Duration::from_secs(2));
        }
        c.until("every command is answered", |world| world.clients_done()).settle();
        assert!(!c.world().replicas().into_iter().any(|replica| c.world().is_quarantined(replica)));
    }
}

#[test]
fn a_diverged_replica_that_starts_again_executes_again_and_is_believed() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 10_000);
        let diverged = if seed % 2 == 0 { c.primary() } else { c.backups()[1] };
        slip(&mut c, diverged);
        c.submit(20).until("it is found out", |world| world.is_quarantined(diverged));
        c.run(Duration::from_secs(5));
        assert!(c.world().is_quarantined(diverged), "an idle cluster has no newer checkpoint");
        let head = c.head();
        c.replica(diverged).crash().restart();
        c.run(Duration::from_secs(1)).settle();
        assert!(!c.world().is_quarantined(diverged));
        assert!(c.head().value() <= head.value() + 1, "a new primary may have had something to order");
        // That it was believed once is nothing to its next start.
        c.world().slip(diverged, Op::ROOT.next());
        c.replica(diverged).crash().restart();
        c.until("it is found out again", |world| world.is_quarantined(diverged));
    }
}

#[test]
fn two_replicas_that_disagree_both_halt_and_a_third_that_comes_back_decides() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 10_000);
        let (right, backups) = (c.primary(), c.backups());
        let wrong = backups[1];
        c.replica(backups[0]).crash();
        slip(&mut c, wrong);
        c.start(10).until("both are quarantined", |world| {
            world.replicas().into_iter().filter(|replica| world.is_quarantined(*replica)).count() == 2
        });
        c.replica(backups[0]).restart();
        c.until("the right one is believed", move |world| {
            !world.is_quarantined(right) && world.is_quarantined(wrong)
        });
        c.until("every command is answered", |world| world.clients_done());
        c.replica(wrong).crash().restart();
        c.settle();
    }
}

/// Two that disagree, while the third, which needs a state, is away.
struct Tie {
    c: Cluster,
    right: ReplicaId,
    wrong: ReplicaId,
    away: ReplicaId,
}

/// Both sides are quarantined.
fn tie(seed: u64) -> Tie {
    let mut c = cluster(3, seed, 60);
    let (right, backups) = (c.primary(), c.backups());
    let (away, wrong) = (backups[0], backups[1]);
    c.replica(away).crash();
    c.submit(300).run(Duration::from_secs(4));
    // None is taken of the wrong state.
    until_a_checkpoint(&mut c, wrong);
    slip(&mut c, wrong);
    c.start(1).until("both are quarantined", |world| {
        [right, wrong].into_iter().all(|replica| world.is_quarantined(replica))
    });
    Tie { c, right, wrong, away }
}

/// Both are started again: then all goes on.
fn end_tie(c: &mut Cluster, [wrong, right]: [ReplicaId; 2]) {
    for replica in [wrong, right] {
        c.replica(replica).crash().restart();
    }
    c.until("every command is answered", |world| world.clients_done()).settle();
}

/// Seed 1078765611289.
#[test]
fn two_that_disagree_have_no_state_for_a_third_that_needs_one_until_they_are_started_again() {
    for seed in 0..4 {
        let Tie { mut c, right, wrong, away } = tie(seed);
        let head = c.head();
        c.replica(away).restart();
        c.run(Duration::from_secs(20));
        assert_eq!(c.count_events(&[away], |event| matches!(event, Event::Synced { .. })), 0);
        assert!(c.head().value() <= head.value() + chronon_vsr::PIPELINE_MAX, "somebody serves");
        end_tie(&mut c, [wrong, right]);
        assert!(!c.world().has_diverged(wrong) && !c.world().is_quarantined(wrong));
    }
}

/// Seed 154 of those where a machine slips: the two that disagree lead in turn, each only to hand over to the third, which
/// can't lead without a state of theirs and leaves the view to them.
#[test]
fn a_tie_that_nobody_breaks_changes_views_more_and_more_rarely() {
    for seed in 0..4 {
        let Tie { mut c, right, wrong, away } = tie(seed);
        if seed % 2 == 0 {
            c.replica(wrong).crash();
        }
        c.replica(away).restart();
        let view = |c: &mut Cluster| c.world().replica(right).expect("it runs").stamp().view.value();
        for most in [40, 25, 25] {
            let before = view(&mut c);
            c.run(Duration::from_secs(60));
            let begun = view(&mut c) - before;
            assert!(begun <= most, "seed {seed}: {begun} views in a minute");
        }
        let why = Abdication::Diverged;
        let hands_over =
            |event: &Event| matches!(event, Event::Abdicated { why: found, .. } if *found == why);
        assert!(2 <= c.count_events(ALL, hands_over), "it goes on asking whether the third can lead now");
        end_tie(&mut c, [wrong, right]);
    }
}

/// Seed 529 of those where a machine slips: a wrong state that is on a disk outlives every start.
#[test]
fn while_two_differ_and_a_third_could_say_who_is_right_neither_names_a_checkpoint() {
    for seed in 0..4 {
        // Writing a checkpoint takes longer than hearing what the other one came to.
        let mut c = Cluster::new(3).seed(seed).tiny_log(60).with(|config| {
            config.pace.checkpoint = Duration::from_millis(100);
        });
        c.submit(10).settle();
        let (right, backups) = (c.primary(), c.backups());
        let (away, wrong) = (backups[0], backups[1]);
        until_a_checkpoint(&mut c, wrong);
        // It is waited for.
        c.replica(away).pause();
        let from = slip(&mut c, wrong);
        let both = [right, wrong];
        c.start(300).until("both are quarantined", |world| {
            for replica in both {
                let checkpoint = world.replica(replica).expect("it runs").checkpoint().entry.op;
                assert!(
                    checkpoint < from,
                    "R{replica} slipped at {from} and names its state of op {checkpoint}"
                );
            }
            both.into_iter().all(|replica| world.is_quarantined(replica))
        });
        assert!(c.world().reached().contains_key("WrongCheckpoint"), "none was due");
        for replica in both {
            c.replica(replica).crash().restart();
        }
        c.until("every command is answered", |world| world.clients_done());
        assert!(!c.world().has_diverged(wrong));
        c.replica(away).resume();
        c.settle();
    }
}

/// Seed 601398872586.
#[test]
fn a_machine_slips_only_once_log_time_leaves_room_for_it() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 10_000);
        let wrong = c.backups()[1];
        // Log time goes on by the least step, from op to op, until the clocks have caught up with it.
        for replica in c.world().replicas() {
            c.world().inflict(Fault::Clock(replica, -3_600_000_000_000));
        }
        c.run(Duration::from_secs(1));
        slip(&mut c, wrong);
        c.submit(40).run(Duration::from_millis(100));
        assert!(!c.world().has_diverged(wrong), "the op before was too near");
        for replica in c.world().replicas() {
            c.world().inflict(Fault::Clock(replica, 0));
        }
        c.run(Duration::from_secs(1)).submit(20);
        c.until("it is found out", |world| world.is_quarantined(wrong));
        c.replica(wrong).crash().restart();
        c.settle();
    }
}

#[test]
fn those_in_quarantine_do_not_bring_down_the_one_that_is_left_while_the_others_are_away() {
    for (replicas, seed) in [(3, 0), (3, 1), (5, 0), (5, 1)] {
        let mut c = cluster(replicas, seed, 10_000);
        let (primary, backups) = (c.primary(), c.backups());
        // The others' word is believed by whoever leads next, too.
        let left = if seed == 0 { primary } else { backups[replicas - 2] };
        let diverged = &backups[..replicas / 2];
        for replica in diverged {
            slip(&mut c, *replica);
            c.submit(5).until("it is found out", |world| world.is_quarantined(*replica));
        }
        c.run(Duration::from_millis(100));
        let away: Vec<ReplicaId> = c.world().replicas();
        let away = away.into_iter().filter(|replica| *replica != left && !diverged.contains(replica));
        for replica in away.clone() {
            c.replica(replica).crash();
        }
        // Nobody waits for those any more.
        c.until("it leads", |world| world.primary() == Some(left));
        c.run(Duration::from_secs(4)).submit(20).run(Duration::from_secs(1));
        assert!(!c.world().is_quarantined(left), "{replicas} replicas, seed {seed}");
        assert_eq!(c.world().primary(), Some(left));
        // Whoever starts again executes again, and agrees with the one that was always right.
        for replica in diverged {
            c.replica(*replica).crash().restart();
            c.until("it is believed", |world| {
                !world.is_quarantined(*replica) && !world.has_diverged(*replica)
            });
        }
        for replica in away {
            c.replica(replica).restart();
        }
        c.submit(5).settle();
        assert_eq!(c.count_events(&[left], is_quarantined), 0);
    }
}

#[test]
fn a_wrong_checkpoint_is_offered_to_nobody_once_it_is_known_and_a_peers_takes_its_place() {
    for seed in 0..4 {
        let mut c = cluster(3, seed, 20);
        let diverged = c.backups()[0];
        let primary = c.primary();
        slip(&mut c, diverged);
        // It hears the primary and is not heard by it: its wrong state is on its disk before it is found out.
        c.cut(diverged, primary).submit(100);
        c.until("its superblock names a wrong state", |world| wrong_root(world, diverged).is_some());
        // It gets nothing that could take the wrong one's place.
        let offers = Rc::new(Cell::new(0));
        let seen = Rc::clone(&offers);
        c.heal().filter(move |envelope| match &envelope.message.payload {
            Payload::Ping { identity, .. } | Payload::Pong { identity, .. } if envelope.from == diverged => {
                seen.set(seen.get() + u32::from(identity.checkpoint.root.is_some()));
                Fate::Pass
            }
            Payload::Chunk { .. } if envelope.to == diverged => Fate::Lose,
            _ => Fate::Pass,
        });
        c.until("it is found out", |world| world.is_quarantined(diverged));
        // What it said before is on its way.
        offers.set(0);
        c.run(Duration::from_secs(2));
        assert!(wrong_root(c.world(), diverged).is_some());
        assert_eq!(offers.get(), 0, "it shows a checkpoint");
        c.unfilter().submit(200);
        heals(&mut c, diverged);
        c.replica(diverged).power_off().restart();
        c.settle();
        assert!(!c.world().has_diverged(diverged) && !c.world().is_quarantined(diverged));
    }
}

#[test]
fn a_state_that_was_frozen_wrong_is_not_named_once_that_is_known() {
    for seed in 0..4 {
        // Writing a checkpoint takes longer than finding out.
        let mut c = Cluster::new(3).seed(seed).tiny_log(60).with(|config| {
            config.pace.checkpoint = Duration::from_millis(300);
        });
        c.submit(10).settle();
        let diverged = c.backups()[0];
        let from = slip(&mut c, diverged);
        c.start(160).until("it is found out", |world| world.is_quarantined(diverged));
        let mut adopted = false;
        c.until("it is believed again", |world| {
            let replica = world.replica(diverged).expect("it runs");
            let checkpoint = replica.checkpoint();
            assert_eq!(wrong_root(world, diverged), None, "slipped at {from}, and names {checkpoint:?}");
            let is_quarantined = world.is_quarantined(diverged);
            adopted |= is_quarantined
                && from <= checkpoint.entry.op
                && checkpoint.entry.op <= replica.committed_out();
            !is_quarantined
        });
        assert!(adopted, "a peer's takes its place for the next start");
        let is_sync = |event: &Event| matches!(event, Event::SyncStarted { .. });
        assert!(c.count_events(&[diverged], is_sync) < 10, "each is fetched once");
        assert!(c.world().reached().contains_key("WrongCheckpoint"), "it was not writing one");
        c.settle();
    }
}

#[test]
fn a_heartbeat_from_before_the_verdict_that_comes_late_clears_nobody() {
    let mut c = cluster(3, 1, 10_000);
    let diverged = c.backups()[0];
    let mut holds = true;
    c.filter(move |envelope| {
        let is_heartbeat =
            matches!(envelope.message.payload, Payload::Commit { .. }) && envelope.to == diverged;
        if is_heartbeat && std::mem::take(&mut holds) { Fate::Hold } else { Fate::Pass }
    });
    c.run(Duration::from_millis(100));
    assert_eq!(c.held().len(), 1);
    slip(&mut c, diverged);
    c.submit(5).until("it is found out", |world| world.is_quarantined(diverged));
    // Two heartbeats that name it have come by now.
    c.run(Duration::from_millis(100)).release();
    for _ in 0..100 {
        c.run(Duration::from_micros(100));
        assert!(c.world().is_quarantined(diverged));
    }
}

#[test]
fn what_a_replica_said_before_it_was_healed_and_comes_late_is_not_held_against_it() {
    let mut c = cluster(3, 1, 60);
    let diverged = c.backups()[0];
    slip(&mut c, diverged);
    c.submit(5).until("it is found out", |world| world.is_quarantined(diverged));
    // Idle: everybody says what came of the same op.
    c.run(Duration::from_millis(500));
    let mut holds = true;
    c.filter(move |envelope| {
        let is_answer =
            matches!(envelope.message.payload, Payload::CommitOk { .. }) && envelope.from == diverged;
        if is_answer && std::mem::take(&mut holds) { Fate::Hold } else { Fate::Pass }
    });
    c.run(Duration::from_millis(100));
    assert_eq!(c.held().len(), 1);
    c.submit(150);
    heals(&mut c, diverged);
    c.release().run(Duration::from_secs(1)).settle();
    assert_eq!(c.count_events(ALL, is_quarantined), 1);
}
