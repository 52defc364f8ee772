//! Wires that fail in part, one way, or for a while.

use chronon_sim::{ALL, Cluster, R0, R1, R2, R3, R4};
use chronon_vsr::{Duration, Event, ReplicaId};

const ENOUGH: Duration = Duration::from_secs(4);

fn cut_between(c: &mut Cluster, one: ReplicaId, other: ReplicaId) {
    c.cut(one, other).cut(other, one);
}

fn others_than(primary: ReplicaId) -> Vec<ReplicaId> {
    [R0, R1, R2, R3, R4].into_iter().filter(|replica| *replica != primary).collect()
}

// Scenario 10.
#[test]
fn where_only_one_replica_sees_a_quorum_it_comes_to_lead() {
    let mut c = Cluster::new(5).seed(1);
    c.submit(3);
    let old = c.primary();
    let others = others_than(old);
    // Everybody sees the hub and nobody else.
    let hub = others[2];
    for (at, one) in [R0, R1, R2, R3, R4].into_iter().enumerate() {
        for other in [R0, R1, R2, R3, R4].into_iter().skip(at + 1) {
            if one != hub && other != hub {
                cut_between(&mut c, one, other);
            }
        }
    }
    let began = c.world().now();
    c.submit(3);
    assert!(c.world().now().since(began) < 3 * ENOUGH);
    c.heal().settle().assert_committed(ALL, 6);
}

// Scenario 10.
#[test]
fn where_the_old_primary_sees_only_the_one_that_can_lead_service_goes_on() {
    let mut c = Cluster::new(5).seed(2);
    c.submit(3);
    let old = c.primary();
    let others = others_than(old);
    let hub = others[1];
    // The old primary sees the hub alone; three more see the hub, and the hub sees all.
    for other in others.iter().filter(|other| **other != hub) {
        cut_between(&mut c, old, *other);
    }
    let began = c.world().now();
    c.submit(3);
    assert!(c.world().now().since(began) < 3 * ENOUGH);
    c.heal().settle().assert_committed(ALL, 6);
}

// Scenario 10.
#[test]
fn a_chain_of_three_goes_on_without_changing_views_for_ever() {
    let mut c = Cluster::new(3).seed(3);
    c.submit(3);
    let old = c.primary();
    let blind = c.backups()[1];
    cut_between(&mut c, old, blind);
    let began = c.world().now();
    c.submit(3);
    assert!(c.world().now().since(began) < ENOUGH);
    c.run(Duration::from_secs(10));
    let changes = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
    c.run(Duration::from_secs(10));
    let later = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
    assert!(later <= changes + 3, "{changes} primaries at first, {later} ten seconds later");
    c.heal().settle().assert_committed(ALL, 6);
}

// Scenario 10.
#[test]
fn a_primary_that_can_speak_and_not_hear_gives_up() {
    let mut c = Cluster::new(3).seed(4);
    c.submit(8);
    let old = c.primary();
    for backup in c.backups() {
        c.cut(backup, old);
    }
    let began = c.world().now();
    c.submit(3);
    assert!(c.world().now().since(began) < ENOUGH);
    c.assert_event(old, |event| matches!(event, Event::Abdicated { .. }));
    c.heal().settle().assert_committed(ALL, 11);
}

// Scenario 10.
#[test]
fn a_primary_that_can_hear_and_not_speak_is_left() {
    let mut c = Cluster::new(3).seed(5);
    c.submit(8);
    let old = c.primary();
    for backup in c.backups() {
        c.cut(old, backup);
    }
    let began = c.world().now();
    c.submit(3);
    assert!(c.world().now().since(began) < ENOUGH);
    c.heal().settle().assert_committed(ALL, 11);
}

// Scenario 71.
#[test]
fn a_second_without_one_wire_costs_no_outage_afterwards() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(3);
        let (old, backup) = (c.primary(), c.backups()[0]);
        if seed % 2 == 0 {
            c.cut(old, backup)
        } else {
            c.cut(backup, old)
        };
        c.run(Duration::from_secs(1)).heal();
        let began = c.world().now();
        c.submit(3);
        assert!(c.world().now().since(began) < Duration::from_millis(1_500));
        c.settle().assert_committed(ALL, 6);
    }
}

// Scenario 71.
#[test]
fn with_two_of_five_dead_service_goes_on() {
    let mut c = Cluster::new(5).seed(6);
    c.submit(3);
    let (primary, backup) = (c.primary(), c.backups()[1]);
    c.replica(backup).bury();
    c.submit(3);
    c.replica(primary).bury();
    c.submit(3).settle();
    let alive: Vec<ReplicaId> =
        others_than(primary).into_iter().filter(|replica| *replica != backup).collect();
    c.assert_committed(&alive, 9);
}
