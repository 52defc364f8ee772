//! Small rings that wrap: checkpoints free their space, and whoever the log has left behind fetches a state.

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

#[cfg(feature = "mutations")]
use chronon_vsr::Mutation;
use chronon_vsr::{Command, Duration, Event, Mutations, NotProposed, Op, Purpose};
use world::{Cluster, Faults};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A cluster whose checkpoints are a few ops apart.
fn tiny(n: usize, seed: u64, mutations: Mutations, faults: Faults) -> Cluster {
    Cluster::with_ring(n, seed, mutations, faults, Cluster::tiny_ring(6))
}

/// One seeded life in which the ring wraps many times; then a heal after which everything must work again.
fn live(n: usize, seed: u64, mishaps: u64, mutations: Mutations) -> Cluster {
    let mut c = tiny(n, seed, mutations, Faults::SOME);
    for mishap in 0..mishaps {
        let every = [1, 1, 3, 100][((seed + mishap) % 4) as usize];
        for step in 0..20 {
            if step % every == 0 {
                c.propose_anywhere();
            }
            c.read_anywhere();
            c.run(ms(10));
        }
        c.mishap();
    }
    c.settle();
    c
}

/// Proposes until so many more are acknowledged.
fn work(c: &mut Cluster, ops: u64) {
    let target = c.acknowledged.plus(ops);
    let done = c.run_until(Duration::from_secs(60), |c| {
        c.propose_anywhere();
        target <= c.acknowledged
    });
    assert!(done, "seed {}: stuck before {target:?}\n{}", c.seed, c.describe());
}

/// Proposes so many at one replica, each when the one before is acknowledged.
fn one_by_one(c: &mut Cluster, primary: usize, ops: u64) {
    for _ in 0..ops {
        assert!(c.propose(primary));
        let head = c.replica(primary).head();
        assert!(c.run_until(ms(1000), |c| head <= c.acknowledged), "{}", c.describe());
    }
}

/// Some checkpoints are behind them. And who leads.
fn settled(n: usize, mutations: Mutations) -> (Cluster, usize) {
    let mut c = tiny(n, 1, mutations, Faults::NONE);
    assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
    work(&mut c, 40);
    c.run(ms(200));
    let primary = c.primary().expect("nothing went wrong");
    (c, primary)
}

#[test]
fn the_ring_of_a_cluster_of_any_size_wraps_for_ever() {
    for n in 1..=6 {
        let mut c = tiny(n, n as u64, Mutations::NONE, Faults::NONE);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()), "n = {n}");
        work(&mut c, 300);
        c.settle();
        for i in 0..n {
            assert!(Op::new(250) < c.checkpoint(i).entry.op, "n = {n}\n{}", c.describe());
            assert!(Op::new(200) < c.wal_start(i), "n = {n}: {i} keeps {:?}", c.wal_start(i));
            assert!(Op::new(200) < c.replica(i).log_start(), "n = {n}");
        }
    }
}

#[test]
fn no_seed_with_a_tiny_ring_ends_badly() {
    for n in 1..=6 {
        for seed in 0..20 {
            live(n, seed * 7 + n as u64, 25, Mutations::NONE);
        }
    }
}

#[test]
fn the_seeds_with_a_tiny_ring_tell_every_kind_of_story() {
    let (mut synced, mut damaged, mut taken, mut forfeited) = (0, 0, 0, 0);
    for seed in 0..20 {
        let c = live(3, seed, 25, Mutations::NONE);
        synced += c.count(|event| matches!(event, Event::Synced { .. }));
        damaged += c.count(|event| matches!(event, Event::CheckpointDamaged { .. }));
        taken += c.count(|event| matches!(event, Event::CheckpointDurable { .. }));
        forfeited += c.count(|event| matches!(event, Event::Forfeited { .. }));
    }
    println!("synced {synced}, damaged {damaged}, taken {taken}, forfeited {forfeited}");
    assert!(0 < synced && 0 < damaged && 100 < taken);
}

#[test]
fn one_seed_with_a_tiny_ring_is_one_trace() {
    assert_eq!(live(3, 99, 10, Mutations::NONE).trace, live(3, 99, 10, Mutations::NONE).trace);
}

fn a_laggard_catches_up_with(mutations: Mutations) -> Cluster {
    let (mut c, primary) = settled(3, mutations);
    let laggard = (primary + 1) % 3;
    c.cut_off(laggard);
    work(&mut c, 80);
    assert!(c.replica(laggard).head() < c.replica(primary).log_start(), "the rings have moved on");
    c.mend();
    // Under load, and not only once all is quiet.
    let done = c.run_until(Duration::from_secs(20), |c| {
        c.propose_anywhere();
        c.run(ms(5));
        c.count(|event| matches!(event, Event::Synced { .. })) == 1
            && c.acknowledged.value() < c.checkpoint(laggard).entry.op.value() + 12
    });
    assert!(done, "{}", c.describe());
    c.settle();
    c
}

/// A replica returns after the others' rings have wrapped, while the cluster is at work.
#[test]
fn a_replica_that_the_rings_have_left_behind_catches_up_under_load() {
    a_laggard_catches_up_with(Mutations::NONE);
}

/// Restoring a large state takes long. Meanwhile the rings move on: what the replica needs next is in no log any more, and
/// every checkpoint on offer lies beyond the log that it knows. Nothing is lost.
#[test]
fn a_replica_that_restores_a_state_while_the_rings_move_on_takes_nothing_for_lost() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let laggard = (primary + 1) % 3;
    c.cut_off(laggard);
    work(&mut c, 80);
    // The newest checkpoint is of the newest op: behind it there is nothing yet.
    let rest = (6 - c.replica(primary).head().value() % 6) % 6;
    one_by_one(&mut c, primary, rest);
    c.run(ms(200));
    c.mend();
    while c.count(|event| matches!(event, Event::Synced { .. })) == 0 {
        c.run(Duration::from_micros(50));
    }
    c.stall_vault(laggard, Duration::from_secs(20));
    let next = c.replica(laggard).committed_out().next();
    c.cut_off(laggard);
    work(&mut c, 40);
    c.mend();
    c.run(ms(1_000));
    c.cut_off(laggard);
    work(&mut c, 40);
    c.mend();
    c.run(Duration::from_secs(5));
    assert!(next == c.replica(laggard).committed_out().next(), "it still restores\n{}", c.describe());
    assert!(next < c.replica(primary).log_start(), "{}", c.describe());
    assert_eq!(0, c.count(|event| matches!(event, Event::Unrecoverable(_))), "{}", c.describe());
    c.settle();
}

/// The transfer is cut by crashes of either side, and goes on from what was kept.
#[test]
fn a_transfer_survives_crashes_of_both_sides() {
    for seed in 0..30 {
        let mut c = tiny(3, seed, Mutations::NONE, Faults::NONE);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
        work(&mut c, 40);
        let primary = c.primary().expect("nothing went wrong");
        let laggard = (primary + 1) % 3;
        c.crash(laggard);
        work(&mut c, 80);
        c.start(laggard);
        let begun = c.run_until(Duration::from_secs(5), |c| c.replica(laggard).is_fetching_state());
        assert!(begun, "seed {seed}\n{}", c.describe());
        c.run(Duration::from_micros(seed * 400));
        c.crash(laggard);
        c.run(ms(20));
        c.start(laggard);
        c.run(Duration::from_micros(seed * 700));
        if let Some(primary) = c.primary() {
            c.crash(primary);
        }
        c.settle();
        assert!(Op::new(100) < c.checkpoint(laggard).entry.op);
    }
}

/// A chunk of a checkpoint rots. A scrub finds it, or the next start does; a peer has it.
#[test]
fn a_rotten_chunk_is_fetched_from_a_peer() {
    for is_up in [true, false] {
        let (mut c, primary) = settled(3, Mutations::NONE);
        let backup = (primary + 1) % 3;
        while c.chunks_missing(backup) == 0 {
            c.rot_chunk(backup);
        }
        if is_up {
            c.scrub(backup);
        } else {
            c.stop(backup, true);
            c.run(ms(50));
            c.start(backup);
        }
        assert!(c.run_until(ms(3000), |c| c.chunks_missing(backup) == 0), "{}", c.describe());
        assert_eq!(c.count(|event| matches!(event, Event::CheckpointDamaged { .. })), 1);
        assert_eq!(c.count(|event| matches!(event, Event::Synced { .. })), 0);
        c.settle();
    }
}

/// The whole checkpoint is damaged, and the peers have moved on to newer ones.
#[test]
fn a_replica_whose_damaged_checkpoint_nobody_has_any_more_takes_a_newer_one() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let backup = (primary + 1) % 3;
    c.stop(backup, true);
    for _ in 0..200 {
        c.rot_chunk(backup);
    }
    work(&mut c, 80);
    c.start(backup);
    c.settle();
    assert_eq!(c.count(|event| matches!(event, Event::Synced { .. })), 1);
}

/// With one voter nobody can help: it starts from its checkpoint and its own log.
#[test]
fn a_single_replica_restarts_from_its_checkpoint() {
    for seed in 0..20 {
        let mut c = tiny(1, seed, Mutations::NONE, Faults::NONE);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
        for _ in 0..6 {
            work(&mut c, 17);
            c.crash(0);
            c.start(0);
        }
        c.settle();
        assert!(Op::new(90) < c.checkpoint(0).entry.op);
    }
}

/// All replicas stop at once, again and again, in the middle of checkpoints.
#[test]
fn power_cuts_of_the_whole_cluster_around_checkpoints_lose_nothing() {
    for seed in 0..20 {
        let mut c = tiny(3, seed, Mutations::NONE, Faults::NONE);
        for _ in 0..8 {
            assert!(c.run_until(Duration::from_secs(20), |c| c.primary().is_some()), "seed {seed}");
            work(&mut c, 5 + seed % 7);
            for i in 0..3 {
                c.crash(i);
            }
            for i in 0..3 {
                c.start(i);
            }
        }
        c.settle();
    }
}

/// A primary to be that lacks what nobody's ring holds leaves the view to whoever has a newer checkpoint.
#[test]
fn a_primary_that_the_rings_have_left_behind_forfeits() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let (laggard, third) = ((primary + 1) % 3, (primary + 2) % 3);
    c.cut_off(laggard);
    work(&mut c, 80);
    // Only the laggard and one that can't be first in turn are left.
    c.crash(primary);
    c.mend();
    assert!(c.run_until(Duration::from_secs(20), |c| c.primary() == Some(third)), "{}", c.describe());
    assert!(0 < c.count(|event| matches!(event, Event::Forfeited { .. })), "{}", c.describe());
    c.settle();
}

/// It has adopted the newest log, of which it lacks the middle: what its ring spans it does not have.
#[test]
fn a_primary_to_be_whose_log_has_a_hole_that_no_ring_fills_forfeits() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let (laggard, third) = ((primary + 1) % 3, (primary + 2) % 3);
    c.stop(laggard, true);
    work(&mut c, 80);
    c.start(laggard);
    c.stall_vault(laggard, Duration::from_secs(20));
    let adopted = c.run_until(ms(2000), |c| c.replica(primary).head() == c.replica(laggard).head());
    assert!(adopted, "{}", c.describe());
    assert!(c.replica(laggard).committed_out().next() < c.replica(primary).log_start(), "{}", c.describe());
    c.crash(primary);
    assert!(c.run_until(Duration::from_secs(5), |c| c.primary() == Some(third)), "{}", c.describe());
    assert!(0 < c.count(|event| matches!(event, Event::Forfeited { .. })), "{}", c.describe());
    // Nobody waits for the state that the laggard fetches.
    let before = c.acknowledged;
    work(&mut c, 3);
    assert!(before < c.acknowledged);
    c.settle();
}

fn acks_nothing_while_it_fetches_with(mutations: Mutations) {
    let (mut c, primary) = settled(3, mutations);
    let (laggard, third) = ((primary + 1) % 3, (primary + 2) % 3);
    let beyond = (7 - c.replica(primary).head().value() % 6) % 6;
    one_by_one(&mut c, primary, beyond);
    c.run(ms(100));
    let own = c.checkpoint(laggard).entry.op;
    c.cut_off(laggard);
    one_by_one(&mut c, primary, 6);
    c.run(ms(300));
    // What the laggard needs next rots on both others, below their newest checkpoint: only that can help.
    for i in [primary, third] {
        assert_eq!(c.checkpoint(i).entry.op, own.plus(6));
        c.stop(i, true);
        (own.value() + 1..=own.value() + 6).for_each(|op| c.rot_at(i, Op::new(op)));
    }
    c.start(primary);
    c.start(third);
    assert!(c.run_until(ms(5000), |c| c.primary().is_some()), "{}", c.describe());
    c.stall_vault(laggard, ms(1500));
    c.mend();
    let fetches = c.run_until(ms(5000), |c| c.replica(laggard).is_fetching_state());
    assert!(fetches, "{}", c.describe());
    let primary = c.primary().expect("just asked");
    one_by_one(&mut c, primary, 3);
    c.run(ms(100));
    assert!(c.replica(laggard).is_fetching_state(), "{}", c.describe());
    c.settle();
    assert_eq!(c.count(|event| matches!(event, Event::Synced { .. })), 1);
}

/// The entries are within its ack rule, durable, and of its stamp: but it can't yet execute what it would vote for.
#[test]
fn a_replica_acks_nothing_while_it_fetches_a_state() {
    acks_nothing_while_it_fetches_with(Mutations::NONE);
}

/// What is to be written next was damaged, and nobody has it any more: a state takes its place. Seed 6000427 came to it
/// another way: the ring had no room for that op, and the replica's own checkpoint went past it.
#[test]
fn a_replica_whose_next_entry_to_write_is_gone_passes_over_it_and_votes_for_what_comes_after() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let (backup, third) = ((primary + 1) % 3, (primary + 2) % 3);
    let beyond = (7 - c.replica(primary).head().value() % 6) % 6;
    one_by_one(&mut c, primary, beyond);
    c.run(ms(200));
    // Everybody has a superblock of the newest checkpoint. What comes now is in the log alone.
    let gone = c.replica(primary).head().next();
    one_by_one(&mut c, primary, 4);
    c.run(ms(50));
    c.stop(backup, true);
    c.rot_at(backup, gone);
    one_by_one(&mut c, primary, 10);
    c.run(ms(200));
    assert!(gone < c.replica(primary).log_start() && gone < c.replica(third).log_start(), "{}", c.describe());
    // A StartView would begin the log anew: it follows by what it is sent.
    c.lose_next = Some(Command::StartView);
    c.cut_link(third, backup);
    c.start(backup);
    let follows = c.run_until(ms(1000), |c| c.replica(backup).head() == c.replica(primary).head());
    assert!(follows, "{}", c.describe());
    c.mend();
    let synced = c.run_until(ms(5000), |c| c.count(|event| matches!(event, Event::Synced { .. })) == 1);
    assert!(synced, "{}", c.describe());
    let stamp = c.replica(backup).stamp();
    c.stop(third, true);
    one_by_one(&mut c, primary, 3);
    assert_eq!(
        (stamp, stamp),
        (c.replica(primary).stamp(), c.replica(backup).stamp()),
        "nobody left the view"
    );
    c.settle();
}

/// A disk that can't write its checkpoint holds its replica back, and nobody else.
#[test]
fn a_replica_whose_checkpoint_is_not_written_votes_for_nothing_beyond_it() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    let backup = (primary + 1) % 3;
    c.stall_vault(backup, Duration::from_secs(5));
    work(&mut c, 80);
    let stuck = c.checkpoint(backup);
    assert!(c.replica(backup).committed_out() < stuck.entry.op.plus(2 * 6 + 1), "{}", c.describe());
    assert!(stuck.entry.op.plus(40) < c.checkpoint(primary).entry.op, "{}", c.describe());
    c.settle();
}

/// While no voter can write a checkpoint the cluster says that its log is full; nothing is lost, and it goes on.
#[test]
fn a_cluster_that_can_write_no_checkpoint_refuses_and_goes_on_later() {
    let (mut c, primary) = settled(3, Mutations::NONE);
    for i in 0..3 {
        c.stall_vault(i, Duration::from_secs(3));
    }
    let before = c.acknowledged;
    for _ in 0..200 {
        c.propose_anywhere();
        c.run(ms(5));
    }
    assert_eq!(c.replica(primary).can_propose(8, Purpose::Service), Err(NotProposed::LogFull));
    assert!(c.acknowledged < before.plus(3 * 6), "{}", c.describe());
    c.settle();
    work(&mut c, 50);
}

/// Guards broken one at a time: a checker must notice within the budget, or the guard guards nothing.
#[cfg(feature = "mutations")]
mod mutations {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn caught_by(mutation: Mutation) -> Option<u64> {
        (0..60).find(|seed| {
            let n = [3, 5, 4, 3][(seed % 4) as usize];
            let run = || drop(live(n, *seed, 25, Mutations::broken(mutation)));
            catch_unwind(AssertUnwindSafe(run)).is_err()
        })
    }

    #[test]
    fn a_story_catches_acks_of_who_fetches_a_state() {
        let run = || acks_nothing_while_it_fetches_with(Mutations::broken(Mutation::AckWhileSyncing));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    }

    #[test]
    fn seeds_catch_every_broken_rule_of_checkpoints() {
        for mutation in [
            Mutation::RecycleWithoutOwnCheckpoint,
            Mutation::RecycleWithoutCommitRule,
            Mutation::SkipDueCheckpoint,
            Mutation::SuperblockBeforeChunks,
        ] {
            let seed = caught_by(mutation);
            println!("{mutation:?}: {seed:?}");
            assert!(seed.is_some(), "{mutation:?} goes unnoticed");
        }
    }
}
