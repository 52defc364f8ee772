//! Clusters of every size, idle ones, lonely ones, and power cuts.

use chronon_sim::{ALL, Cluster, Prepare, R0, TraceMode};
use chronon_vsr::{Duration, Event};

// Scenario 13.
#[test]
fn every_size_from_one_to_six_serves_and_survives_a_power_cut_of_all() {
    for replicas in 1..=6 {
        let mut c = Cluster::new(replicas).seed(replicas as u64);
        c.submit(10);
        for round in 0..3 {
            c.start(4).run(Duration::from_micros(300 * round));
            for replica in c.world().replicas() {
                c.replica(replica).power_off();
            }
            c.run(Duration::from_millis(50));
            for replica in c.world().replicas() {
                c.replica(replica).restart();
            }
            c.settle();
        }
        c.assert_committed(ALL, 22);
    }
}

// Scenario 13.
#[test]
fn every_size_from_three_to_six_loses_its_primary_and_serves_on() {
    for replicas in 3..=6 {
        let mut c = Cluster::new(replicas).seed(replicas as u64);
        c.submit(5);
        let old = c.primary();
        c.replica(old).crash();
        let began = c.world().now();
        c.submit(5);
        assert!(c.world().now().since(began) < Duration::from_secs(2));
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 10);
    }
}

// Scenario 24.
#[test]
fn a_single_replica_acknowledges_nothing_before_its_flush() {
    let mut c = Cluster::new(1).seed(1);
    c.submit(3);
    let answered = c.completed().len();
    c.replica(R0).stall(Duration::from_secs(30));
    c.start(1).run(Duration::from_secs(5));
    assert_eq!(c.completed().len(), answered);
    c.replica(R0).power_off().stall(Duration::ZERO).restart();
    c.settle().assert_committed(ALL, 4);
}

// Scenario 57.
#[test]
fn an_idle_cluster_writes_nothing_and_changes_no_view_for_an_hour() {
    let mut c = Cluster::new(3).seed(1).with(|config| config.trace = TraceMode::Fingerprint);
    c.submit(3).settle();
    let (head, primary) = (c.head(), c.primary());
    let starts = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
    c.run(Duration::from_secs(3_600));
    assert_eq!((c.head(), c.primary()), (head, primary));
    assert_eq!(c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. })), starts);
    c.submit(1).settle().assert_committed(ALL, 4);
}

#[test]
fn a_backup_with_a_corrupt_prepare_repairs_it_from_its_peers() {
    let mut c = Cluster::new(3).seed(1);
    c.submit(12).settle();
    let backup = c.backups()[0];
    let op = c.head().value() - 6;
    c.replica(backup).crash().corrupt(Prepare(op)).restart();
    c.settle().assert_committed(ALL, 12);
    c.assert_event(backup, |event| matches!(event, Event::EntryRepaired { .. }));
}

// Seeds 23 and 47: an opening wrote over the only good copies of the superblock.
#[test]
fn a_replica_whose_power_fails_at_every_opening_still_finds_its_superblock() {
    let mut c = Cluster::new(3).seed(9);
    c.submit(2);
    let backup = c.backups()[0];
    for moment in 0..120 {
        if moment % 3 == 0 {
            c.replica(backup).crash();
        } else {
            c.replica(backup).power_off();
        }
        c.replica(backup).restart();
        c.run(Duration::from_micros(37 * moment));
    }
    c.settle().assert_committed(ALL, 2);
}
