//! Disks that lie: what rots is repaired or refused, and never taken for what was never there.

use chronon_sim::{ALL, Chunks, Cluster, Fault, Harm, Prepare, R0, R1, R2, Region, SuperblockCopy, World};
use chronon_vsr::{Abdication, Duration, Event, Lost, Op, ReplicaId};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn is_repaired(event: &Event) -> bool {
    matches!(event, Event::EntryRepaired { .. })
}

fn is_unrecoverable(event: &Event) -> bool {
    matches!(event, Event::Unrecoverable(_))
}

fn head(world: &World, replica: ReplicaId) -> Option<Op> {
    world.status(replica).map(|status| status.head)
}

// Scenario 15.
#[test]
fn a_bit_flipped_in_the_middle_of_a_log_is_repaired_and_nothing_behind_it_is_lost() {
    let mut c = Cluster::new(3).seed(15);
    c.submit(12).settle();
    let backup = c.backups()[0];
    let before = c.head();
    let middle = before.value() / 2;
    c.replica(backup).crash().corrupt(Prepare(middle)).restart();
    // Not one op behind the damage is given up, not even until a peer has helped.
    assert_eq!(head(c.world(), backup), Some(before));
    c.settle().assert_committed(ALL, 12);
    c.assert_event(
        backup,
        |event| matches!(event, Event::EntryRepaired { entry, .. } if entry.op.value() == middle),
    );
    // And it stays repaired.
    c.replica(backup).power_off().restart();
    c.settle().assert_committed(ALL, 12);
}

/// The newest op is held by two of three, and rots on one of them. Only that one and the third are left.
fn the_newest_entry_rots(seed: u64) -> Cluster {
    let mut c = Cluster::new(3).seed(seed);
    c.submit(5).settle();
    let primary = c.primary();
    let [holder, third] = c.backups()[..] else { panic!("three replicas") };
    c.isolate(&[third]);
    c.submit(1);
    let newest = c.head();
    c.power_off_all().heal();
    c.replica(holder).corrupt(Prepare(newest.value()));
    c.replica(holder).restart();
    c.replica(third).restart();
    c.run(Duration::from_secs(3));
    assert_eq!(c.world().primary(), None, "nobody may serve without the op");
    c.replica(primary).restart();
    c.settle().assert_committed(ALL, 6);
    c
}

// Scenario 16.
#[test]
fn rot_in_the_newest_entry_is_never_taken_for_its_absence() {
    for seed in 0..6 {
        the_newest_entry_rots(seed);
    }
}

#[cfg(feature = "mutations")]
#[test]
fn whoever_takes_rot_for_absence_loses_what_was_acknowledged() {
    use chronon_vsr::{Mutation, Mutations};
    let lost = std::panic::catch_unwind(|| {
        let mut c = Cluster::new(3)
            .seed(1)
            .with(|config| config.mutations = Mutations::broken(Mutation::FaultyCountsAsNack));
        c.submit(5).settle();
        let [holder, third] = c.backups()[..] else { panic!("three replicas") };
        c.isolate(&[third]);
        c.submit(1);
        let newest = c.head();
        c.power_off_all().heal();
        c.replica(holder).corrupt(Prepare(newest.value()));
        c.replica(holder).restart();
        c.replica(third).restart();
        c.run(Duration::from_secs(3));
        assert_eq!(c.world().primary(), None);
    });
    assert!(lost.is_err());
}

// Scenario 17.
#[test]
fn an_op_that_rots_on_two_of_three_comes_back_from_the_third() {
    let mut c = Cluster::new(3).seed(17);
    c.submit(9).settle();
    let middle = c.head().value() - 4;
    for replica in c.backups() {
        c.replica(replica).crash().corrupt(Prepare(middle)).restart();
    }
    c.settle().assert_committed(ALL, 9);
    assert_eq!(c.count_events(ALL, is_repaired), 2);
}

// Scenario 17.
#[test]
fn an_op_whose_every_copy_rots_is_named_and_never_guessed() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(5).settle();
        let primary = c.primary();
        let [holder, third] = c.backups()[..] else { panic!("three replicas") };
        c.isolate(&[third]);
        c.submit(1);
        let newest = c.head();
        c.power_off_all().heal();
        for replica in [primary, holder] {
            c.replica(replica).corrupt(Prepare(newest.value())).restart();
        }
        c.replica(third).restart();
        c.run(Duration::from_secs(8));
        assert_eq!(c.world().primary(), None, "seed {seed}");
        assert!(0 < c.count_events(ALL, is_unrecoverable), "seed {seed}");
        assert_eq!(c.head(), newest);
    }
}

/// What all three say is lost.
fn lost(c: &mut Cluster) -> Vec<Option<Lost>> {
    let replicas = c.world().replicas();
    replicas.into_iter().map(|id| Some(c.world().replica(id)?.loss()?.what)).collect()
}

// Scenario 17.
#[test]
fn a_committed_op_or_a_checkpoint_of_which_no_copy_is_left_is_named_and_never_guessed() {
    // Known to be committed by what comes after it: no view change decides about it.
    let mut c = Cluster::new(3).seed(17);
    c.submit(12).settle().power_off_all();
    for replica in [R0, R1, R2] {
        c.replica(replica).corrupt(Prepare(6)).restart();
    }
    c.run(Duration::from_secs(8));
    assert_eq!(lost(&mut c), vec![Some(Lost::Op(Op::new(6))); 3]);

    let mut c = Cluster::new(3).seed(17).tiny_log(5);
    c.submit(30).settle().power_off_all();
    for replica in [R0, R1, R2] {
        c.replica(replica).corrupt(Chunks).restart();
    }
    c.run(Duration::from_secs(8));
    let lost = lost(&mut c);
    assert!(lost.iter().all(|lost| matches!(lost, Some(Lost::Checkpoint(_)))), "{lost:?}");
}

// Scenario 18.
#[test]
fn two_copies_of_a_superblock_may_rot_and_with_all_four_the_replica_refuses() {
    let mut c = Cluster::new(3).seed(18);
    c.submit(4).settle();
    let backup = c.backups()[0];
    for copies in [[0, 1], [1, 2], [2, 3], [0, 3]] {
        c.replica(backup).crash();
        for copy in copies {
            c.replica(backup).corrupt(SuperblockCopy(copy));
        }
        c.replica(backup).restart();
        c.settle();
    }
    c.replica(backup).crash();
    for copy in 0..4 {
        c.replica(backup).corrupt(SuperblockCopy(copy));
    }
    c.replica(backup).restart();
    c.assert_refuses(backup, "superblock");
    // The others go on.
    c.submit(4);
}

// Scenario 19.
#[test]
fn writes_that_went_astray_were_lost_or_cant_be_read_cost_one_replica_a_repair_and_nothing_else() {
    for harm in [Harm::Misdirected, Harm::Lost, Harm::Unreadable, Harm::Rot] {
        for seed in 0..6 {
            let mut c = Cluster::new(3).seed(seed).tiny_log(6);
            c.submit(40).settle();
            let victim = ReplicaId::new((seed % 3) as u8);
            c.replica(victim).crash();
            for round in 0..4 {
                let which = (seed + 8 * round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                c.world().harm_within_limits(victim, Region::Wal, harm, which);
                c.world().harm_within_limits(victim, Region::Packs, harm, which);
            }
            c.replica(victim).restart();
            c.settle().submit(10).settle();
            c.assert_committed(ALL, 50);
        }
    }
}

// Scenario 20.
#[test]
fn a_flush_that_fails_once_ends_the_process_and_loses_nothing() {
    for seed in 0..8 {
        let mut c = Cluster::new(3).seed(seed).tiny_log(6);
        c.submit(5);
        let target = ReplicaId::new((seed % 3) as u8);
        c.start(20).run(millis(seed));
        c.replica(target).fail_disk();
        c.settle().assert_committed(ALL, 25);
    }
}

// Scenario 20.
#[test]
fn a_full_disk_holds_its_replica_back_and_nobody_else() {
    let mut c = Cluster::new(3).seed(20).tiny_log(4);
    c.submit(10).settle();
    let backup = c.backups()[0];
    c.replica(backup).fill_disk();
    let before = c.checkpoint(backup);
    c.submit(60);
    assert_eq!(c.checkpoint(backup), before, "no half-written checkpoint counts");
    assert!(c.world().is_running(backup), "a full disk ends no process");
    c.replica(backup).empty_disk();
    c.settle().assert_committed(ALL, 70);
    assert!(before < c.checkpoint(backup));
}

// Scenario 20.
#[test]
fn a_primary_whose_disk_is_full_hands_over_to_one_with_room_and_every_command_is_served() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed).tiny_log(4);
        c.submit(10).settle();
        let primary = c.primary();
        c.replica(primary).fill_disk();
        c.submit(60);
        assert_ne!(c.primary(), primary);
        c.assert_event(primary, |event| matches!(event, Event::Abdicated { why: Abdication::DiskFull, .. }));
        // A second one: nobody is left to hand over to who would do better with a quorum.
        let next = c.primary();
        let views = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
        assert!(views <= 3, "no storm: {views} views");
        assert!(c.world().is_running(primary) && c.world().is_running(next));
        c.replica(primary).empty_disk();
        c.settle().assert_committed(ALL, 70);
    }
}

// Scenario 20.
#[test]
fn full_disks_everywhere_stop_the_cluster_loudly_and_it_goes_on_when_there_is_room() {
    let mut c = Cluster::new(3).seed(21).tiny_log(4);
    c.submit(10).settle();
    for replica in [R0, R1, R2] {
        c.replica(replica).fill_disk();
    }
    c.start(60).run(Duration::from_secs(5));
    let stuck = c.head();
    assert!(!c.world().clients_done());
    c.run(Duration::from_secs(2));
    assert_eq!(c.head(), stuck);
    for replica in [R0, R1, R2] {
        c.replica(replica).empty_disk();
    }
    c.settle().assert_committed(ALL, 70);
}

// Scenario 21.
#[test]
fn a_disk_that_stalls_costs_no_command_whoever_it_is_and_however_long() {
    for (stall, seed) in [(millis(100), 1), (Duration::from_secs(5), 2), (Duration::from_secs(1_000_000), 3)]
    {
        for primary_too in [false, true] {
            let mut c = Cluster::new(5).seed(seed).tiny_log(8);
            c.submit(5).settle();
            // A view is not given up for a slow disk in its first ten seconds.
            c.run(Duration::from_secs(11));
            let (primary, backups) = (c.primary(), c.backups());
            let stalled = if primary_too { [primary, backups[0]] } else { [backups[0], backups[1]] };
            for replica in stalled {
                c.replica(replica).stall(stall);
            }
            c.submit(40);
            if !primary_too {
                assert_eq!(c.world().primary(), Some(primary), "a backup's disk changes no view");
            }
            // No storm: a view for each of the two at most, and a little luck.
            c.run(Duration::from_secs(10));
            let changes = c.count_events(ALL, |event| matches!(event, Event::PrimaryStarted { .. }));
            assert!(changes <= 5, "{changes} views, {stall:?}, primary too: {primary_too}");
            for replica in stalled {
                c.replica(replica).stall(Duration::ZERO);
            }
            c.settle().assert_committed(ALL, 45);
        }
    }
}

/// A short life of three replicas in which checkpoints are taken and the log wraps.
fn short_life(seed: u64) -> Cluster {
    let mut c = Cluster::new(3).seed(seed).tiny_log(3);
    c.submit(2);
    c.start(14);
    c
}

fn all_steps(world: &World) -> u64 {
    world.replicas().into_iter().map(|replica| world.disk_steps(replica)).sum()
}

// Scenarios 23 and 25.
#[test]
fn a_power_cut_of_all_at_any_write_site_loses_nothing_that_was_acknowledged() {
    let mut c = short_life(23);
    let first = all_steps(c.world());
    c.until("all is answered", World::clients_done);
    let last = all_steps(c.world());
    assert!(first + 100 < last, "{first}..{last}");
    for step in first..last {
        let mut c = short_life(23);
        c.until("the step is done", move |world| step <= all_steps(world));
        c.power_off_all().start_all();
        c.settle().assert_committed(ALL, 16);
    }
}

// Scenarios 25 and 80.
#[test]
fn a_replica_that_dies_at_any_write_site_and_then_loses_its_power_keeps_its_word() {
    let mut c = short_life(25);
    let target = c.backups()[0];
    let first = c.world().disk_steps(target);
    c.until("all is answered", World::clients_done);
    let last = c.world().disk_steps(target);
    for step in first..last {
        let mut c = short_life(25);
        c.until("the step is done", move |world| step <= world.disk_steps(target));
        // It reads from the page cache what it never flushed, and may ack it; then the power goes everywhere.
        c.replica(target).crash().restart();
        c.run(millis(step % 7));
        c.power_off_all().start_all();
        c.settle().assert_committed(ALL, 16);
    }
}

// Scenario 24.
#[test]
fn a_single_replica_whose_power_fails_at_any_write_site_has_all_that_it_acknowledged() {
    let life = || {
        let mut c = Cluster::new(1).seed(24).tiny_log(3);
        c.submit(2);
        c.start(12);
        c
    };
    let mut c = life();
    let first = c.world().disk_steps(R0);
    c.until("all is answered", World::clients_done);
    let last = c.world().disk_steps(R0);
    for step in first..last {
        let mut c = life();
        c.until("the step is done", move |world| step <= world.disk_steps(R0));
        c.replica(R0).power_off().restart();
        c.settle().assert_committed(ALL, 14);
    }
}

// Scenario 32.
#[test]
fn rotten_chunks_are_found_by_a_start_or_by_a_scrub_and_fetched_from_a_peer() {
    for scrubs in [false, true] {
        let mut c = Cluster::new(3).seed(32).tiny_log(5).with(|config| {
            config.pace.scrub = scrubs.then(|| millis(20));
        });
        c.submit(30).settle();
        let backup = c.backups()[0];
        if scrubs {
            c.replica(backup).corrupt(Chunks);
            c.run(Duration::from_secs(1));
        } else {
            c.replica(backup).crash().corrupt(Chunks).restart();
        }
        c.settle().assert_committed(ALL, 30);
        c.assert_event(backup, |event| matches!(event, Event::CheckpointDamaged { .. }));
        // What came from the peer is good for a start.
        c.replica(backup).power_off().restart();
        c.settle().assert_committed(ALL, 30);
    }
}

// A whole disk of one replica rots at once; the cluster goes on, and the replica heals or says why not.
#[test]
fn a_replica_that_lost_every_page_of_its_log_votes_for_nothing_it_cant_know() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed);
        c.submit(10).settle();
        let victim = ReplicaId::new((seed % 3) as u8);
        c.replica(victim).crash();
        for page in 0..64 {
            c.world().inflict(Fault::Harm(victim, Region::Wal, Harm::Unreadable, page));
        }
        c.replica(victim).restart();
        c.settle().submit(5).settle();
        c.assert_committed(ALL, 15);
    }
}
