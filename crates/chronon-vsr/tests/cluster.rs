//! Whole clusters of real replicas in a small deterministic world: no story ends badly.

mod world;

use chronon_vsr::{Duration, Event, Op};
use world::{Cluster, Faults};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// One seeded life: work, mishaps, then a heal after which everything must work again.
fn live(n: usize, seed: u64, mishaps: u64) -> Cluster {
    let mut c = Cluster::with_options(n, seed, chronon_vsr::Mutations::NONE, Faults::SOME);
    for _ in 0..mishaps {
        for _ in 0..20 {
            c.propose_anywhere();
            c.read_anywhere();
            c.run(ms(10));
        }
        c.mishap();
    }
    c.settle();
    c
}

#[test]
fn a_healthy_cluster_of_any_size_commits_everywhere() {
    for n in 1..=6 {
        let mut c = Cluster::new(n, n as u64);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()), "n = {n}\n{}", c.describe());
        for _ in 0..100 {
            c.propose_anywhere();
            c.run(ms(5));
        }
        assert!(Op::new(90) <= c.acknowledged, "n = {n}\n{}", c.describe());
        c.settle();
    }
}

#[test]
fn no_seed_ends_badly() {
    for n in 1..=6 {
        for seed in 0..20 {
            live(n, seed * 7 + n as u64, 25);
        }
    }
}

#[test]
fn one_seed_is_one_trace() {
    for n in [1, 3, 5] {
        assert_eq!(live(n, 99, 10).trace, live(n, 99, 10).trace);
    }
}

#[test]
fn the_seeds_tell_every_kind_of_story() {
    let mut repaired = 0;
    let mut truncated = 0;
    let mut rounds = 0;
    for seed in 0..10 {
        let c = live(3, seed, 25);
        repaired += c.count(|event| matches!(event, Event::EntryRepaired { .. }));
        truncated += c.count(|event| matches!(event, Event::LogTruncated { .. }));
        rounds += c.reads_answered;
    }
    assert!(0 < repaired);
    assert!(0 < truncated);
    assert!(0 < rounds);
}
