//! Changes of view: who leads next, and what of the log is kept.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chronon_sim::{ALL, Cluster, Envelope, Fate, Fault, SinkBehaviour, World};
use chronon_vsr::{Abdication, Command, Duration, Event, Op, Payload, ReplicaId, Role};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn command(envelope: &Envelope) -> Command {
    envelope.message.payload.command()
}

fn is_not_committing(event: &Event) -> bool {
    matches!(event, Event::Abdicated { why: Abdication::NotCommitting, .. })
}

fn is_primary_started(event: &Event) -> bool {
    matches!(event, Event::PrimaryStarted { .. })
}

// Scenarios 1, 7 and 72.
#[test]
fn a_long_stale_log_gives_way_to_a_short_newer_one_and_its_owner_rejoins() {
    let mut c = Cluster::new(3).seed(11);
    c.submit(8);
    let old = c.primary();
    c.isolate(&[old]);
    // Prepared by the old primary alone, and never committed there.
    c.start(6).run(millis(50));
    let stale = c.world().status(old).unwrap().head;
    assert_eq!(stale.value(), c.head().value() + stale.since(c.head()));
    assert!(c.head() < stale);
    c.until("the others have a primary", move |world| world.primary().is_some_and(|primary| primary != old));
    c.heal().settle().assert_committed(ALL, 14);
    assert_ne!(c.primary(), old);
}

// Scenario 2.
#[test]
fn a_new_primary_fetches_what_only_another_backup_holds_before_it_leads() {
    for seed in 0..6 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(2).settle();
        let old = c.primary();
        let next = ReplicaId::new((old.value() + 1) % 3);
        // The next primary gets no entry from the old one and hears of no commit; the other backup's ack commits.
        c.filter(move |e| {
            let entry = e.to == next && matches!(command(e), Command::Prepare | Command::Repair);
            if e.from == old && (entry || command(e) == Command::Commit) { Fate::Lose } else { Fate::Pass }
        });
        c.start(3);
        c.until("the clients are answered", |world| world.clients_done());
        c.replica(old).crash();
        // What it asks the other for is held up: so long it must not lead.
        let before = c.count_events(&[next], is_primary_started);
        c.filter(|e| if command(e) == Command::Repair { Fate::Hold } else { Fate::Pass });
        for _ in 0..2_000 {
            if !c.held().is_empty() {
                break;
            }
            c.run(millis(1));
        }
        assert!(!c.held().is_empty(), "it asked nobody, seed {seed}");
        c.run(millis(60));
        assert_eq!(c.count_events(&[next], is_primary_started), before, "seed {seed}");
        c.unfilter().release();
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 5);
        c.assert_event(next, |event| matches!(event, Event::EntryRepaired { .. }));
    }
}

// Scenario 2.
#[test]
fn who_knows_more_to_be_committed_than_the_new_primary_votes_for_it_after_a_restart_too() {
    for seed in 0..6 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(2).settle();
        let old = c.primary();
        // The backups hold the newest entries, and do not hear that these are committed.
        c.filter(move |e| {
            let lost = e.from == old && command(e) == Command::Commit;
            if lost { Fate::Lose } else { Fate::Pass }
        });
        c.start(3).until("the clients are answered", World::clients_done);
        // One of them leads next, and hears no vote.
        c.isolate(&[old]);
        c.filter(|e| if command(e) == Command::PrepareOk { Fate::Lose } else { Fate::Pass });
        let others = c.backups();
        let led: Vec<usize> = others.iter().map(|id| c.count_events(&[*id], is_primary_started)).collect();
        let new = (0..500).find_map(|_| {
            c.run(millis(10));
            let leads =
                |(id, led): &(&ReplicaId, &usize)| **led < c.count_events(&[**id], is_primary_started);
            others.iter().zip(&led).find(leads).map(|(new, _)| *new)
        });
        let new = new.expect("another leads");
        let known = |c: &mut Cluster, id| c.world().replica(id).expect("it runs").commit_max().op;
        assert!(known(&mut c, new) < known(&mut c, old), "seed {seed}");
        let is_view_adopted = |event: &Event| matches!(event, Event::ViewAdopted { .. });
        let before = c.count_events(&[old], is_view_adopted);
        let follows = (0..500).any(|_| {
            c.heal().run(millis(10));
            before < c.count_events(&[old], is_view_adopted)
        });
        assert!(follows, "seed {seed}");
        c.run(millis(20));
        let third = others.into_iter().find(|id| *id != new).unwrap();
        c.replica(third).crash();
        c.replica(old).crash().restart();
        c.unfilter().submit(2);
        c.assert_no_event(is_not_committing);
        c.replica(third).restart();
        c.settle().assert_committed(ALL, 7);
    }
}

/// One backup fetches the old primary's state, which is beyond what the new primary knows to be committed. Then the old one
/// dies: once the state has come, or before.
fn the_state_is_beyond_what_the_new_primary_knows(it_comes: bool) {
    for seed in 0..6 {
        let mut c = Cluster::new(3).seed(seed).tiny_log(1);
        c.submit(2).settle();
        let old = c.primary();
        let [new, third] = c.backups()[..] else { panic!("three replicas") };
        // The log of the third comes to its end: it only hears what is committed.
        let starves = move |e: &Envelope| {
            let content = [Command::Prepare, Command::Repair, Command::Headers, Command::Chunk];
            e.to == third && content.contains(&command(e))
        };
        c.filter(move |e| if starves(e) { Fate::Lose } else { Fate::Pass }).submit(200);
        // The other backup holds some entries and does not hear that they are committed.
        c.filter(move |e| match command(e) {
            Command::PrepareOk => Fate::Hold,
            _ if starves(e) => Fate::Lose,
            _ => Fate::Pass,
        });
        c.start(8).run(millis(20)).cut(old, new);
        c.filter(move |e| if starves(e) { Fate::Lose } else { Fate::Pass }).release();
        c.until("they are committed", move |world| {
            let [known, held] = [old, new].map(|id| world.replica(id).expect("it runs"));
            held.head() <= known.commit_max().op
        });
        c.run(millis(60));
        let known = |c: &mut Cluster, id| c.world().replica(id).expect("it runs").commit_max().op;
        let covered = c.checkpoint(old).expect("it has taken one");
        assert!(known(&mut c, new) < covered, "seed {seed}");
        // The next view has these two and hears no vote. The old one offers its state, and nobody else sends chunks.
        c.filter(move |e| {
            let is_offer = matches!(command(e), Command::Ping | Command::Pong);
            let cut_off = (e.from == old || e.to == old) && !(is_offer && (e.from == third || e.to == third));
            let lost = matches!(command(e), Command::PrepareOk | Command::Chunk) || cut_off;
            if lost { Fate::Lose } else { Fate::Pass }
        });
        c.heal();
        c.until("the next view has begun", move |world| {
            let role = |id| world.replica(id).expect("it runs").role();
            matches!(role(new), Role::Primary { .. })
                && matches!(role(third), Role::Backup { primary, .. } if primary == new)
        });
        c.filter(move |e| {
            let others = [e.from, e.to] == [old, new] || [e.from, e.to] == [new, old];
            let is_chunk = command(e) == Command::Chunk && !(it_comes && e.from == old);
            let lost = others || is_chunk || command(e) == Command::PrepareOk;
            if lost { Fate::Lose } else { Fate::Pass }
        });
        c.until("the state has come, or is asked for", move |world| {
            let third = world.replica(third).expect("it runs");
            let asked = third.sync_progress().map_or(Op::ROOT, |sync| sync.op);
            covered <= if it_comes { third.checkpoint().entry.op } else { asked }
        });
        assert!(known(&mut c, new) < covered, "seed {seed}");
        c.replica(old).crash();
        c.unfilter().submit(2);
        c.assert_no_event(is_not_committing);
        c.replica(old).restart();
        c.settle();
    }
}

// Scenarios 2 and 30.
#[test]
fn who_has_a_state_beyond_what_the_new_primary_knows_to_be_committed_votes_for_what_it_covers() {
    the_state_is_beyond_what_the_new_primary_knows(true);
}

// Scenarios 2, 28 and 30.
#[test]
fn who_fetches_a_state_whose_only_holder_is_gone_takes_an_older_one_that_helps_too() {
    the_state_is_beyond_what_the_new_primary_knows(false);
}

// Scenario 2.
#[test]
fn a_primary_that_hears_everybody_and_commits_nothing_hands_over() {
    for seed in 0..3 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(2).settle();
        let deaf = c.primary();
        // Its word that it gives up is lost at first, and is said again.
        let mut lost_words = 0;
        c.filter(move |e| {
            let is_word = e.from == deaf && command(e) == Command::StartViewChange && lost_words < 12;
            lost_words += u32::from(is_word);
            let lost = is_word || e.to == deaf && command(e) == Command::PrepareOk;
            if lost { Fate::Lose } else { Fate::Pass }
        });
        let began = c.world().now();
        c.submit(2);
        let took = c.world().now().since(began);
        assert!(took < Duration::from_secs(15), "{took:?}");
        c.assert_event(deaf, is_not_committing);
        assert_ne!(c.primary(), deaf, "seed {seed}");
        c.unfilter().settle().assert_committed(ALL, 4);
    }
}

// Scenario 3.
#[test]
fn two_dead_primaries_in_a_row_delay_service_by_less_than_a_second() {
    for seed in 0..4 {
        for frozen in [false, true] {
            let mut c = Cluster::new(5).seed(seed);
            c.submit(2);
            let old = c.primary();
            let next = ReplicaId::new((old.value() + 1) % 5);
            c.replica(old).bury();
            // A process that is gone resets its connections; one that is frozen looks alive until it is waited for.
            let next = c.replica(next);
            if frozen {
                next.pause()
            } else {
                next.bury()
            };
            let began = c.world().now();
            c.until("somebody serves again", |world| world.primary().is_some());
            let took = c.world().now().since(began);
            assert!(took < Duration::from_secs(1), "{took:?}, seed {seed}, frozen {frozen}");
            c.submit(1);
            if frozen {
                c.replica(ReplicaId::new((old.value() + 1) % 5)).resume();
            }
            c.settle();
        }
    }
}

// Scenario 4.
#[test]
fn do_view_changes_of_two_views_at_once_end_in_one_log() {
    for seed in 0..4 {
        let mut c = Cluster::new(5).seed(seed);
        c.submit(3);
        let old = c.primary();
        c.filter(|e| if command(e) == Command::DoViewChange { Fate::Hold } else { Fate::Pass });
        c.replica(old).crash();
        c.start(3).run(Duration::from_secs(2));
        assert!(!c.held().is_empty());
        c.unfilter().release();
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 6);
    }
}

// Scenario 4.
#[test]
fn a_do_view_change_of_one_view_does_not_count_for_the_next() {
    for seed in 0..4 {
        let mut c = Cluster::new(5).seed(seed);
        c.submit(2).settle();
        let old = c.primary();
        let after = |turns: u8| ReplicaId::new((old.value() + turns) % 5);
        let (first, second) = (after(1), after(2));
        // The second in line hears nothing from the first, and what it is told of that one's view is held up.
        c.filter(move |e| match command(e) {
            Command::DoViewChange if e.to == second && e.from != first => Fate::Hold,
            _ if e.to == second && e.from == first => Fate::Lose,
            _ => Fate::Pass,
        });
        c.replica(old).bury();
        c.until("the first in line serves", move |world| world.primary() == Some(first));
        // Committed by the first in line and the two after the second, after they said what they had.
        c.submit(1);
        let (earlier, committed) = (c.take_held(), c.head());
        assert!(!earlier.is_empty());
        c.replica(first).crash().restart();
        let left = |world: &World| world.replica(second).map(|replica| replica.stamp());
        let view = left(c.world());
        c.until("the second in line is to lead", move |world| view < left(world)).run(millis(3));
        let before = c.count_events(&[second], is_primary_started);
        c.world().deliver_now(earlier);
        c.run(millis(50));
        assert_eq!(c.count_events(&[second], is_primary_started), before, "seed {seed}");
        c.unfilter().release();
        c.settle();
        assert!(committed <= c.head());
    }
}

// Scenario 5.
#[test]
fn a_primary_that_dies_when_just_f_backups_have_its_prepare_loses_nothing() {
    for seed in 0..4 {
        let mut c = Cluster::new(5).seed(seed);
        c.submit(2);
        let (old, backups) = (c.primary(), c.backups());
        let deaf = [backups[2], backups[3]];
        c.filter(move |e| {
            let lost = command(e) == Command::Prepare && deaf.contains(&e.to);
            if lost { Fate::Lose } else { Fate::Pass }
        });
        c.start(1).run(millis(1));
        c.replica(old).power_off();
        c.unfilter().run(millis(400));
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 3);
    }
}

// Scenario 5.
#[test]
fn a_primary_that_dies_right_after_a_commit_that_nobody_heard_of_loses_nothing() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(2);
        let (old, head) = (c.primary(), c.head());
        c.start(1);
        c.until("the primary has committed", move |world| head < world.commits().head());
        let committed = c.head();
        c.replica(old).power_off();
        c.until("the others know it too", move |world| {
            world.primary().is_some_and(|primary| world.commits().handed_out(primary) >= committed)
        });
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 3);
    }
}

// Scenario 5.
#[test]
fn a_new_primary_that_dies_right_after_its_start_view_loses_nothing() {
    for seed in 0..4 {
        let mut c = Cluster::new(5).seed(seed);
        c.submit(2);
        c.start(3).run(millis(1));
        let old = c.primary();
        c.replica(old).crash();
        let before = c.count_events(ALL, is_primary_started);
        c.until("a new primary has sent its StartView", move |world| {
            world.events().iter().filter(|(_, _, event)| is_primary_started(event)).count() > before
        });
        let new = c.world().events().iter().rev().find(|(_, _, event)| is_primary_started(event)).unwrap().1;
        c.replica(new).power_off();
        c.run(millis(700));
        c.replica(old).restart();
        c.replica(new).restart();
        c.settle().assert_committed(ALL, 5);
    }
}

// Scenario 5, whatever it was about to do.
#[test]
fn a_replica_that_dies_between_any_two_of_its_outputs_loses_nothing() {
    let mut halves = 0;
    for outputs in 0..30 {
        let mut c = Cluster::new(3).seed(u64::from(outputs));
        c.submit(4).settle();
        let dying = if outputs % 3 == 0 { c.backups()[0] } else { c.primary() };
        let heard: Rc<RefCell<BTreeMap<Op, BTreeSet<ReplicaId>>>> = Rc::default();
        let ear = Rc::clone(&heard);
        c.filter(move |e| {
            if let (true, Payload::Prepare { entry, .. }) = (e.from == dying, &e.message.payload) {
                ear.borrow_mut().entry(entry.op()).or_default().insert(e.to);
            }
            Fate::Pass
        });
        c.world().inflict(Fault::KillWithin(dying, outputs));
        c.start(6).run(millis(400));
        assert!(!c.world().is_running(dying), "it had more than {outputs} things to do");
        halves += heard.borrow().values().filter(|receivers| receivers.len() == 1).count();
        c.unfilter().replica(dying).restart();
        c.settle().assert_committed(ALL, 10);
    }
    assert!(0 < halves, "no entry reached one of two backups");
}

// Scenario 6.
#[test]
fn a_backup_that_loses_its_power_at_any_moment_of_a_view_change_keeps_its_promises() {
    for moment in 0..24 {
        let mut c = Cluster::new(3).seed(moment);
        c.submit(2);
        c.start(2).run(millis(1));
        let (old, backup) = (c.primary(), c.backups()[(moment % 2) as usize]);
        c.replica(old).crash();
        c.until("somebody leaves the view", |world| {
            let mut newest = world.events().iter().rev().take(4);
            newest.any(|(_, _, event)| matches!(event, Event::ViewChangeStarted { .. }))
        });
        c.run(Duration::from_micros(100 * moment));
        c.replica(backup).power_off();
        c.run(millis(5));
        c.replica(backup).restart();
        c.run(millis(200));
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 4);
    }
}

// Scenario 8.
#[test]
fn everything_that_was_ever_said_may_be_said_again() {
    let said: Rc<RefCell<Vec<Envelope>>> = Rc::default();
    let mut c = Cluster::new(3).seed(5);
    let ears = Rc::clone(&said);
    c.filter(move |e| {
        ears.borrow_mut().push(e.clone());
        Fate::Pass
    });
    for round in 0..4 {
        c.submit(3);
        let primary = c.primary();
        if round % 2 == 0 {
            c.replica(primary).crash();
            c.submit(2);
            c.replica(primary).restart();
        } else {
            c.isolate(&[primary]).submit(2);
            c.heal();
        }
        // All of it, of every view and every incarnation, in the order in which it was said and backwards.
        let mut again: Vec<Envelope> = said.borrow().clone();
        c.world().deliver_now(again.clone());
        c.run(millis(100));
        again.reverse();
        c.world().deliver_now(again);
        c.settle();
    }
    c.assert_committed(ALL, 20);
}

// Scenario 11.
#[test]
fn a_new_primary_answers_no_read_before_what_it_inherited_is_committed() {
    let mut c = Cluster::new(3).seed(3);
    c.submit(8);
    let (old, backups) = (c.primary(), c.backups());
    // Both backups hold the next op, and nobody has heard of its commit.
    c.filter(move |e| {
        let told = matches!(command(e), Command::Commit) && e.from == old;
        if command(e) == Command::PrepareOk || told { Fate::Lose } else { Fate::Pass }
    });
    c.start(1).run(millis(5));
    c.replica(old).crash();
    c.filter(|e| if command(e) == Command::PrepareOk { Fate::Lose } else { Fate::Pass });
    let before = c.count_events(&backups, is_primary_started);
    c.until("a new primary leads", move |world| {
        world.events().iter().filter(|(_, _, event)| is_primary_started(event)).count() > before
    });
    let reads_before = c.completed().len();
    c.start_read().run(millis(300));
    assert_eq!(c.completed().len(), reads_before);
    assert_eq!(c.world().primary(), None);
    c.unfilter();
    c.replica(old).restart();
    c.settle().assert_committed(ALL, 9);
    assert!(reads_before < c.completed().len());
}

// Scenario 11.
#[test]
fn a_new_primary_starts_no_effect_before_what_it_inherited_is_committed() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(4).settle();
        // Effects that are released and have to be tried again: any primary that serves would start them.
        c.world().set_sinks(SinkBehaviour { refuse: 1_000_000, ..SinkBehaviour::GOOD });
        c.submit(4);
        let old = c.primary();
        c.filter(move |e| {
            let told = command(e) == Command::Commit && e.from == old;
            if command(e) == Command::PrepareOk || told { Fate::Lose } else { Fate::Pass }
        });
        c.start(1).run(millis(5));
        c.replica(old).crash();
        c.filter(|e| if command(e) == Command::PrepareOk { Fate::Lose } else { Fate::Pass });
        let before = c.count_events(ALL, is_primary_started);
        c.until("a new primary leads", move |world| {
            world.events().iter().filter(|(_, _, event)| is_primary_started(event)).count() > before
        });
        let starts = c.world().starts();
        c.run(Duration::from_secs(3));
        assert_eq!(c.world().starts(), starts, "seed {seed}");
        c.unfilter();
        c.world().set_sinks(SinkBehaviour::GOOD);
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 9);
        assert!(starts < c.world().starts());
    }
}

// Scenario 70.
#[test]
fn one_lost_message_of_any_kind_wedges_nobody() {
    for number in 1..=18 {
        let mut c = Cluster::new(3).seed(number);
        let mut lost = false;
        c.filter(move |e| {
            if !lost && command(e) as u64 == number {
                lost = true;
                return Fate::Lose;
            }
            Fate::Pass
        });
        c.submit(3);
        let primary = c.primary();
        c.replica(primary).crash();
        c.submit(2);
        c.replica(primary).restart();
        c.settle().assert_committed(ALL, 5);
    }
}

// Seed 596344272097: whoever waited for a body that nobody would send said that it was busy, and everybody was patient with it for ever.
#[test]
fn a_primary_to_be_that_waits_for_a_body_that_nobody_sends_is_left_behind() {
    let mut c = Cluster::new(5).seed(12);
    c.submit(2).settle();
    let old = c.primary();
    let at = |behind: u8| ReplicaId::new((old.value() + behind) % 5);
    let (elect, holder, late) = (at(1), at(2), at(3));
    // One backup alone has the newest entry besides its primary, which is gone then.
    c.filter(move |e| {
        let entry = command(e) == Command::Prepare && e.to != holder;
        if e.from == old && entry { Fate::Lose } else { Fate::Pass }
    });
    let head = c.head();
    c.start(1);
    c.until("one backup has it", move |world| {
        world.replica(holder).is_some_and(|replica| head < replica.head())
    });
    c.run(millis(20));
    c.replica(old).crash();
    // The primary to be counts that backup's vote and never gets the body.
    c.filter(move |e| {
        let body = e.from == holder && matches!(command(e), Command::Prepare | Command::Repair);
        if body || e.from == late && command(e) == Command::DoViewChange { Fate::Lose } else { Fate::Pass }
    });
    c.until("a view change begins", move |world| {
        world
            .replica(elect)
            .is_some_and(|replica| replica.stamp().view.value() % 5 == u64::from(elect.value()))
    });
    c.run(millis(60));
    c.filter(move |e| if e.from == holder { Fate::Lose } else { Fate::Pass });
    c.run(Duration::from_secs(10));
    assert!(c.world().primary().is_some(), "three of five have a primary\n{}", c.tail());
    c.unfilter();
    c.start_all();
    c.settle().assert_committed(ALL, 3);
}
