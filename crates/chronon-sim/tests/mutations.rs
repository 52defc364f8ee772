//! Guards that no judge misses would be no guards: each is broken in turn, and the swarm must see it.
//!
//! `cargo test -p chronon-sim --features mutations --test mutations`
#![cfg(feature = "mutations")]

use chronon_sim::{BankWorkload, Swarm, TraceMode};
use chronon_vsr::{Mutation, Mutations};

/// The swarm of default seeds, with one guard broken, fails within so many seeds.
fn caught(mutation: Mutation, seeds: u64) {
    let swarm = Swarm {
        workload: |prng| Box::new(BankWorkload::draw(prng)),
        mutations: Mutations::broken(mutation),
        replicas: None,
        menu: None,
        trace: TraceMode::Fingerprint,
    };
    let failures = swarm.run_seeds(0..seeds, |report| report.failure.is_none());
    let first = failures.first().unwrap_or_else(|| panic!("{mutation:?} survived {seeds} seeds"));
    println!("{mutation:?}: {first}");
}

macro_rules! mutations {
    ($($name:ident: $mutation:ident within $seeds:literal;)*) => {
        $(
            #[test]
            fn $name() {
                caught(Mutation::$mutation, $seeds);
            }
        )*
    };
}

mutations! {
    an_ack_before_the_flush_is_caught: AckBeforeFlush within 300;
    a_faulty_entry_that_counts_as_a_nack_is_caught: FaultyCountsAsNack within 300;
    a_log_chosen_by_its_view_is_caught: LogChosenByView within 300;
    a_log_chosen_by_its_length_is_caught: LogChosenByLength within 300;
    a_read_without_a_round_is_caught: ReadWithoutRound within 300;
    an_ack_by_bare_op_is_caught: AckByBareOp within 300;
    a_do_view_change_before_its_stamp_is_durable_is_caught: DoViewChangeBeforePersist within 300;
    serving_before_the_first_commit_is_caught: ServeBeforeFirstCommit within 300;
    a_claimed_effect_that_runs_again_is_caught: RerunClaimed within 300;
    an_effect_that_settles_twice_is_caught: SettleTwice within 300;
    a_forgotten_outbox_is_caught: ForgetOutbox within 300;
    a_new_key_for_each_attempt_is_caught: NewKeyPerAttempt within 300;
    an_idle_heartbeat_that_commits_is_caught: IdleHeartbeatCommits within 300;
    an_ack_after_leaving_is_caught: AckAfterLeaving within 300;
    a_start_view_that_shortens_the_log_is_caught: StartViewShortensLog within 300;
    bad_units_cut_as_torn_are_caught: BadUnitsCutAsTorn within 300;
    groups_reported_out_of_order_are_caught: DurableOutOfOrder within 300;
    an_ack_of_what_was_only_read_is_caught: AckWhatWasOnlyRead within 300;
    excluded_entries_that_come_back_are_caught: KeepExcludedEntries within 300;
    a_nack_after_an_incomplete_scan_is_caught: NackAfterIncompleteScan within 300;
    execution_without_the_chain_is_caught: ExecuteWithoutChain within 300;
    not_executed_after_a_truncation_is_caught: NotExecutedAfterTruncation within 300;
    a_negative_outcome_of_an_old_stamp_is_caught: NegativeOutcomeFromOldStamp within 300;
    a_forgotten_session_table_is_caught: ForgetSessions within 300;
}
