//! Logs that end: checkpoints take their place, and whoever was away comes back through them.

use chronon_kernel::{Answer, Engine, RequestResult};
use chronon_sim::{ALL, Cluster, Fate, Harm, R0, Region, SinkBehaviour, World};
use chronon_vsr::{Command, Duration, Event, ReplicaId};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn is_synced(event: &Event) -> bool {
    matches!(event, Event::Synced { .. })
}

fn is_sync_started(event: &Event) -> bool {
    matches!(event, Event::SyncStarted { .. })
}

/// A backup was cut off while the others' logs wrapped. Nothing is under way. Returns who it is.
fn left_behind(mut c: Cluster) -> (Cluster, ReplicaId) {
    c.submit(10).settle();
    let laggard = c.backups()[0];
    c.isolate(&[laggard]);
    // A log that was full in between lets the last outcomes wait for seconds.
    c.submit(60).until("nothing is open", |world| {
        let others = world.replicas().into_iter().filter(|id| *id != laggard);
        others.filter_map(|id| world.engine(id)).map(Engine::status).all(|status| {
            status.scheduled + status.ready + status.started + status.waiting + status.callbacks == 0
        })
    });
    c.run(millis(500));
    let own = c.world().status(laggard).expect("it runs").head;
    for other in c.world().replicas() {
        assert!(other == laggard || own < c.log_start(other), "the others still have what it lacks");
    }
    (c, laggard)
}

// Scenario 27.
#[test]
fn a_replica_that_an_idle_cluster_has_left_behind_catches_up_without_a_new_op() {
    for seed in 0..4 {
        let (mut c, laggard) = left_behind(Cluster::new(3).seed(seed).tiny_log(4));
        let before = c.head();
        c.heal().settle().assert_committed(ALL, 70);
        assert_eq!(c.head(), before, "nothing was ordered for its sake");
        c.assert_event(laggard, is_synced);
    }
}

// Scenario 28.
#[test]
fn a_transfer_whose_sender_dies_goes_on_elsewhere_and_a_newer_checkpoint_may_take_its_place() {
    for seed in 0..6 {
        let (mut c, laggard) = left_behind(Cluster::new(3).seed(seed).tiny_log(4));
        let chunk = |command| matches!(command, Command::Chunk);
        c.filter(move |e| {
            let held = e.to == laggard && chunk(e.message.payload.command());
            if held { Fate::Hold } else { Fate::Pass }
        });
        c.heal();
        for _ in 0..400 {
            if !c.held().is_empty() {
                break;
            }
            c.run(millis(5));
        }
        let sender = c.held().first().expect("it is sent a chunk").from;
        // Two newer checkpoints are taken meanwhile.
        c.submit(12);
        c.replica(sender).crash();
        c.unfilter();
        if seed % 2 == 0 {
            c.release();
        }
        c.run(millis(700));
        c.replica(sender).restart();
        c.settle().assert_committed(ALL, 82);
        c.assert_event(laggard, is_synced);
    }
}

// Scenario 29.
#[test]
fn an_install_that_takes_longer_than_every_time_out_is_waited_for_and_never_begun_again() {
    let c = Cluster::new(3).seed(29).tiny_log(4).with(|config| config.pace.restore = Duration::from_secs(30));
    let (mut c, laggard) = left_behind(c);
    let views = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
    c.heal();
    c.until("it has fetched a state", move |world| {
        world.events().iter().any(|(_, replica, event)| *replica == laggard && is_synced(event))
    });
    // The cluster serves all the while.
    for _ in 0..10 {
        c.submit(1).run(Duration::from_secs(2));
    }
    c.run(Duration::from_secs(25)).settle();
    assert_eq!(c.count_events(&[laggard], is_sync_started), 1, "it began once");
    let after = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
    assert_eq!(after, views, "no view was changed");
    c.assert_committed(ALL, 80);
}

// Scenarios 30 and 33.
#[test]
fn a_laggard_catches_up_under_full_load_and_the_load_goes_on() {
    for seed in 0..4 {
        let (mut c, laggard) = left_behind(Cluster::new(3).seed(seed).tiny_log(6));
        c.heal().start(400);
        c.until("it has a state to go on from", move |world| {
            world.events().iter().any(|(_, replica, event)| *replica == laggard && is_synced(event))
        });
        c.until("it is abreast", move |world| {
            let own = world.status(laggard).map(|status| status.applied);
            own.is_some_and(|own| world.commits().head().since(own.min(world.commits().head())) < 12)
        });
        assert!(!c.world().clients_done(), "the load was over before it was abreast");
        c.until("all is answered", World::clients_done);
        let slowest = c.completed().iter().map(|call| call.completed.since(call.invoked)).max();
        assert!(slowest < Some(millis(400)), "{slowest:?}");
        c.settle().assert_committed(ALL, 470);
    }
}

// Scenarios 31 and 59.
#[test]
fn open_effects_travel_with_a_state_and_each_is_settled_once_by_a_primary_that_never_saw_them_emitted() {
    let mut c = Cluster::new(3).seed(59).tiny_log(4).with(|config| config.sinks.refuse = 1_000_000);
    c.submit(10);
    let laggard = c.backups()[0];
    c.isolate(&[laggard]);
    c.submit(50).run(millis(300));
    c.heal();
    c.until("it has fetched a state", move |world| {
        world.events().iter().any(|(_, replica, event)| *replica == laggard && is_synced(event))
    });
    c.run(millis(500));
    // It becomes the primary: the others go, one after the other, until it leads.
    while c.primary() != laggard {
        let primary = c.primary();
        c.replica(primary).step_down();
        c.run(millis(300));
    }
    c.world().set_sinks(SinkBehaviour::GOOD);
    c.settle().assert_committed(ALL, 60);
    let sink = chronon_sim::BankWorkload::sink_name();
    let acts = c.world().sink(&sink).expect("it is there").ledger().len();
    assert_eq!(acts, 60);
}

// Scenarios 34 and 68.
#[test]
fn a_retry_is_answered_like_the_first_time_by_a_primary_that_knows_it_from_a_checkpoint_alone() {
    let (mut c, laggard) = {
        let mut c = Cluster::new(3).seed(34).tiny_log(4);
        c.submit(10).settle();
        let laggard = c.backups()[0];
        c.isolate(&[laggard]);
        (c, laggard)
    };
    let body = c.draw_command();
    c.start_with_key("alice", "once", body.clone());
    c.until("it is answered", World::clients_done);
    let first = c.completed().last().expect("just answered").answer.clone();
    c.submit(60).heal().settle();
    c.assert_event(laggard, is_synced);
    while c.primary() != laggard {
        let primary = c.primary();
        c.replica(primary).step_down();
        c.run(millis(300));
    }
    c.start_with_key("alice", "once", body.clone());
    c.until("it is answered again", World::clients_done);
    let again = c.completed().last().expect("just answered").answer.clone();
    assert!(matches!(first, Answer::Decided(RequestResult::Replied { .. })), "{first:?}");
    assert_eq!(again, first);
    // And once more after every replica has begun from its checkpoint.
    c.power_off_all().start_all();
    c.start_with_key("alice", "once", body);
    c.until("it is answered a third time", World::clients_done);
    assert_eq!(c.completed().last().expect("just answered").answer, first);
    c.settle().assert_committed(ALL, 71);
}

#[cfg(feature = "mutations")]
#[test]
fn a_checkpoint_without_sessions_or_outbox_does_not_go_unnoticed() {
    use chronon_vsr::{Mutation, Mutations};
    for mutation in [Mutation::ForgetSessionsInCheckpoint, Mutation::ForgetOutboxInCheckpoint] {
        let told = std::panic::catch_unwind(|| {
            let broken = Cluster::new(3)
                .seed(1)
                .tiny_log(4)
                .with(|config| config.mutations = Mutations::broken(mutation));
            let (mut c, _) = left_behind(broken);
            c.heal().settle();
        });
        assert!(told.is_err(), "{mutation:?}");
    }
}

// Scenario 32.
#[test]
fn a_chunk_that_comes_twice_or_after_the_transfer_changes_nothing() {
    for seed in 0..4 {
        let (mut c, laggard) = left_behind(Cluster::new(3).seed(seed).tiny_log(4));
        c.filter(move |e| {
            let chunk = e.to == laggard && e.message.payload.command() == Command::Chunk;
            if chunk { Fate::Hold } else { Fate::Pass }
        });
        c.heal();
        // Every chunk is asked for more than once, and then comes more than once.
        c.run(Duration::from_secs(2));
        let held = c.take_held();
        assert!(!held.is_empty());
        c.unfilter();
        c.world().deliver_now(held.clone());
        c.world().deliver_now(held.iter().rev().cloned());
        c.settle();
        // Another transfer is long done.
        c.world().deliver_now(held);
        c.settle().assert_committed(ALL, 70);
    }
}

// Scenario 32.
#[test]
fn a_chunk_that_rots_at_its_sender_is_fetched_from_another() {
    for seed in 0..4 {
        let (mut c, laggard) = left_behind(Cluster::new(4).seed(seed).tiny_log(4));
        let sender = c.primary();
        for which in 0..40 {
            c.world().harm_within_limits(sender, Region::Packs, Harm::Rot, which);
        }
        c.heal().settle().assert_committed(ALL, 70);
        c.assert_event(laggard, is_synced);
    }
}

// A single replica has nobody to fetch from: its own checkpoint and its own log must do.
#[test]
fn a_single_replica_begins_from_its_checkpoint_and_replays_what_came_after_it() {
    let mut c = Cluster::new(1).seed(3).tiny_log(4);
    c.submit(60).settle();
    let newest = c.checkpoint(R0).expect("it took some");
    c.replica(R0).power_off().restart();
    c.settle().assert_committed(ALL, 60);
    assert!(newest.value() + 8 > c.head().value(), "{newest} of {}", c.head());
}
