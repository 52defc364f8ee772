//! What an op costs does not grow with what is there. Times are compared with times of the same run, and so loosely that
//! only another order of growth can fail.

#[path = "../benches/log/mod.rs"]
mod log;

use std::time::{Duration, Instant};

use log::Log;

/// A cost in proportion to the size would be a thousand times as much.
const GROWN: u64 = 1_000;

/// A tree is deeper and its nodes are further apart; the machine may be busy.
const FACTOR_MAX: u32 = 30;

/// The shortest time that a batch of transfers and the outcomes of its webhooks takes.
fn cost(log: &mut Log) -> Duration {
    let rounds = (0..40).map(|_| {
        let body = log.transfers();
        let start = Instant::now();
        log.commit_body(&body);
        let between = start.elapsed();
        let outcomes = log.outcomes();
        let start = Instant::now();
        log.commit_body(&outcomes);
        between + start.elapsed()
    });
    rounds.min().expect("there are rounds")
}

fn assert_flat(what: &str, small: Duration, large: Duration) {
    assert!(
        large < small * FACTOR_MAX,
        "{what}: {small:?} with few and {large:?} with {GROWN} times as many"
    );
}

/// Scenario 46.
#[test]
fn an_op_costs_no_more_while_a_thousand_times_as_many_effects_wait() {
    let (mut few, mut many) = (Log::new(100), Log::new(100));
    few.pile_up(200);
    many.pile_up(200 * GROWN);
    assert_flat("waiting effects", cost(&mut few), cost(&mut many));
}

/// Scenario 74.
#[test]
fn an_op_costs_no_more_with_a_thousand_times_as_many_accounts() {
    let (mut few, mut many) = (Log::new(200), Log::new(200 * GROWN));
    assert_flat("accounts", cost(&mut few), cost(&mut many));
}

/// Scenario 74.
#[test]
fn an_op_costs_no_more_after_a_thousand_times_as_many_effects_have_settled() {
    let (mut few, mut many) = (Log::new(100), Log::new(100));
    few.settle(64);
    many.settle(64 * GROWN);
    assert_flat("settled effects", cost(&mut few), cost(&mut many));
}
