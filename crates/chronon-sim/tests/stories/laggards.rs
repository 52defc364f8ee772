//! Voters that are slower than the load: the primary goes slower for their sake, within bounds.

use chronon_sim::{ALL, Cluster, Fate, World};
use chronon_vsr::{Command, Duration, Event, Intake, Replica, ReplicaId};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A cluster whose log holds about 320 ops beyond a checkpoint, and one of its backups.
fn cluster(seed: u64) -> (Cluster, ReplicaId) {
    // A replica is as slow as its Back: its Front must not be held up by it.
    let mut c = Cluster::new(3).seed(seed).tiny_log(160).with(|config| config.pace.back_queue_max = 100_000);
    c.submit(10).settle();
    let laggard = c.backups()[0];
    (c, laggard)
}

fn intake(c: &mut Cluster) -> Intake {
    let primary = c.primary();
    c.world().replica(primary).expect("it leads").intake()
}

fn is_slowed(event: &Event) -> bool {
    matches!(event, Event::IntakeSlowed { .. })
}

fn is_restored(event: &Event) -> bool {
    matches!(event, Event::IntakeRestored)
}

fn is_sync_started(event: &Event) -> bool {
    matches!(event, Event::SyncStarted { .. })
}

// Scenario 33.
#[test]
fn a_backup_that_executes_slower_than_the_load_is_waited_for_and_never_left_behind() {
    for seed in 0..3 {
        let (mut c, laggard) = cluster(seed);
        c.replica(laggard).slow(millis(15));
        c.start(1_500);
        let mut worst = Duration::ZERO;
        while !c.world().clients_done() {
            c.run(millis(20));
            let slowed = intake(&mut c).slowed;
            assert!(slowed.is_none_or(|(voter, _)| voter == laggard));
            worst = worst.max(slowed.map_or(Duration::ZERO, |(_, pause)| pause));
        }
        assert!(millis(10) < worst && worst <= millis(40), "{worst:?}");
        // However slow it is, nobody waits for longer than the pauses of a pipeline.
        let slowest = c.completed().iter().map(|call| call.completed.since(call.invoked)).max();
        assert!(slowest < Some(millis(1_000)), "{slowest:?}");
        c.replica(laggard).slow(Duration::ZERO);
        c.settle().assert_committed(ALL, 1_510).run(millis(300));
        c.assert_no_event(is_sync_started);
        let (slowed, restored) = (c.count_events(ALL, is_slowed), c.count_events(ALL, is_restored));
        assert!(0 < slowed && slowed == restored, "{slowed}, {restored}");
        let Intake { slowed, paused_total } = intake(&mut c);
        assert_eq!(slowed, None);
        assert!(millis(1_000) < paused_total, "{paused_total:?}");
    }
}

// Scenario 33.
#[test]
fn a_voter_that_stands_still_slows_nobody() {
    let (mut c, laggard) = cluster(4);
    c.replica(laggard).slow(Duration::from_secs(600));
    c.submit(2_000);
    assert!(c.world().status(laggard).expect("it runs").applied.plus(300) < c.head());
    c.assert_no_event(is_slowed);
    assert_eq!(intake(&mut c), Intake { slowed: None, paused_total: Duration::ZERO });
}

/// A backup comes back to a cluster whose log has moved on, and to which so much is written that the log moves on past the
/// next state before that has come: its chunks take long.
fn comes_back_under_load(chunk: Duration) -> (Cluster, ReplicaId) {
    let (mut c, laggard) = cluster(5);
    c.isolate(&[laggard]).submit(700);
    let own = c.world().status(laggard).expect("it runs").head;
    for other in c.backups() {
        assert!(other == laggard || own < c.log_start(other), "the others still have what it lacks");
    }
    c.filter(move |envelope| {
        let is_chunk = envelope.to == laggard && envelope.message.payload.command() == Command::Chunk;
        if is_chunk { Fate::Delay(chunk) } else { Fate::Pass }
    });
    c.heal().start(4_000);
    (c, laggard)
}

// Scenario 30.
#[test]
fn the_log_is_used_up_no_faster_than_a_state_comes() {
    let (mut c, laggard) = comes_back_under_load(millis(150));
    let mut worst = Duration::ZERO;
    loop {
        c.run(millis(20));
        assert!(!c.world().clients_done(), "the load was over before it was abreast");
        let slowed = intake(&mut c).slowed;
        assert!(slowed.is_none_or(|(voter, _)| voter == laggard));
        worst = worst.max(slowed.map_or(Duration::ZERO, |(_, pause)| pause));
        let own = c.world().status(laggard).expect("it runs").applied;
        if 0 < c.count_events(&[laggard], |event| matches!(event, Event::Synced { .. }))
            && c.head().since(own) < 40
        {
            break;
        }
    }
    assert!(millis(5) <= worst && worst <= millis(100), "{worst:?}");
    assert_eq!(c.count_events(&[laggard], is_sync_started), 1, "it fetched one state, and that was enough");
    c.until("all is answered", World::clients_done);
    let slowest = c.completed().iter().map(|call| call.completed.since(call.invoked)).max();
    assert!(slowest < Some(millis(1_000)), "{slowest:?}");
    c.unfilter().settle().assert_committed(ALL, 4_710);
    assert_eq!(c.count_events(ALL, is_slowed), c.count_events(ALL, is_restored));
}

// Scenario 30.
#[test]
fn a_voter_to_which_no_chunk_comes_is_waited_for_no_longer_than_two_seconds() {
    let (mut c, laggard) = comes_back_under_load(Duration::from_secs(3_600));
    c.until("all is answered", World::clients_done);
    let Intake { slowed, paused_total } = intake(&mut c);
    assert_eq!(slowed, None);
    assert!(Duration::ZERO < paused_total && paused_total < millis(2_500), "{paused_total:?}");
    c.unfilter().settle().assert_committed(ALL, 4_710);
    c.assert_event(laggard, |event| matches!(event, Event::Synced { .. }));
}

// Scenario 30.
#[test]
fn a_voter_that_was_away_for_more_than_its_minute_is_waited_for_again() {
    let (mut c, laggard) = comes_back_under_load(Duration::from_secs(3_600));
    c.until("all is answered", World::clients_done);
    let before = intake(&mut c).paused_total;
    let old = c.world().replica(laggard).and_then(Replica::sync_progress).expect("it still waits").op;
    c.isolate(&[laggard]).run(Duration::from_secs(61)).unfilter();
    c.filter(move |envelope| {
        let is_chunk = envelope.to == laggard && envelope.message.payload.command() == Command::Chunk;
        if is_chunk { Fate::Delay(millis(150)) } else { Fate::Pass }
    });
    c.heal().until("it knows of a state that there still is", |world| {
        let sync = world.replica(laggard).and_then(Replica::sync_progress);
        sync.is_some_and(|sync| old < sync.op)
    });
    c.start(3_000).until("all is answered", World::clients_done);
    let after = intake(&mut c).paused_total;
    assert!(before + millis(500) < after, "{before:?}, {after:?}");
    c.unfilter().settle().assert_committed(ALL, 7_710);
}
