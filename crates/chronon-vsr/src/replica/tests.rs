//! No way through a small cluster of real replicas ends badly, within stated bounds; and with a guard broken one does.

mod node;
mod search;

use std::println;

use crate::Mutations;
use search::{Bounds, Search};

const NOTHING: Bounds =
    Bounds { replicas: 3, ops: 0, views: 0, suspicions: 0, crashes: 0, rots: 0, ticks: 0 };

/// Searches these bounds completely. Far fewer states than `at_least` would mean that the adversary was tied up.
fn nothing_is_lost(bounds: Bounds, at_least: usize) {
    match Search::run(bounds, Mutations::NONE) {
        Ok(tally) => {
            println!("{bounds:?}: {tally:?}");
            assert!(at_least <= tally.states, "{bounds:?}: {tally:?}");
            assert!(0 < tally.committed, "{bounds:?}: {tally:?}");
        }
        Err(broken) => panic!("{bounds:?}\n{broken}"),
    }
}

#[test]
fn nothing_is_lost_in_a_view_change_whoever_suspects_whom_and_whatever_arrives() {
    nothing_is_lost(Bounds { ops: 1, views: 1, suspicions: 1, ..NOTHING }, 800_000);
}

#[test]
fn nothing_is_lost_when_any_replica_crashes_at_any_moment_and_its_newest_entry_rots() {
    nothing_is_lost(Bounds { ops: 1, views: 1, crashes: 1, rots: 1, ..NOTHING }, 400_000);
}

#[test]
fn nothing_is_lost_of_two_replicas_that_crash() {
    let bounds = Bounds { replicas: 2, ops: 1, views: 2, suspicions: 1, crashes: 1, ..NOTHING };
    nothing_is_lost(bounds, 1_000);
}

/// Takes minutes and gigabytes: with `CHRONON_DEEP` set only.
#[test]
fn nothing_is_lost_in_deeper_searches_where_they_are_asked_for() {
    if std::env::var_os("CHRONON_DEEP").is_some() {
        nothing_is_lost(Bounds { ops: 1, views: 1, suspicions: 2, ..NOTHING }, 3_000_000);
        nothing_is_lost(Bounds { ops: 1, views: 1, suspicions: 1, crashes: 1, ..NOTHING }, 5_000_000);
        nothing_is_lost(Bounds { ops: 2, views: 1, suspicions: 1, ..NOTHING }, 5_000_000);
    }
}

#[cfg(feature = "mutations")]
mod broken_guards {
    use std::string::ToString;

    use super::*;
    use crate::Mutation;

    /// The shortest way to a state that must not be.
    fn is_found(mutation: Mutation, bounds: Bounds, what: &str) {
        let broken = Search::run(bounds, Mutations::broken(mutation)).expect_err("the guard is needed");
        println!("{mutation:?}: {broken}");
        assert!(broken.to_string().starts_with(what), "{broken}");
    }

    const ONE_SUSPICION: Bounds = Bounds { ops: 1, views: 1, suspicions: 1, ..NOTHING };

    #[test]
    fn a_commit_without_a_quorum_is_found() {
        is_found(Mutation::CommitWithoutQuorum, ONE_SUSPICION, "op 1 is committed and 1 disks hold it");
    }

    #[test]
    fn a_primarys_vote_before_its_flush_is_found() {
        is_found(Mutation::OwnVoteBeforeFlush, ONE_SUSPICION, "op 1 is committed and 1 disks hold it");
    }

    #[test]
    fn a_heartbeat_that_commits_is_found() {
        let bounds = Bounds { ops: 1, ticks: 1, ..NOTHING };
        is_found(Mutation::IdleHeartbeatCommits, bounds, "op 1 is committed and 0 disks hold it");
    }

    #[test]
    fn an_ack_after_leaving_is_found() {
        is_found(Mutation::AckAfterLeaving, ONE_SUSPICION, "I17");
    }

    #[test]
    fn a_log_chosen_by_view_is_found() {
        is_found(
            Mutation::LogChosenByView,
            ONE_SUSPICION,
            "I1: op 1 was committed, and view 2 begins without it",
        );
    }

    #[test]
    fn a_do_view_change_before_its_stamp_is_durable_is_found() {
        let bounds = Bounds { crashes: 1, ..ONE_SUSPICION };
        is_found(
            Mutation::DoViewChangeBeforePersist,
            bounds,
            "I1: op 1 was committed, and view 2 begins without it",
        );
    }

    #[test]
    fn a_faulty_entry_that_is_nacked_is_found() {
        let bounds = Bounds { crashes: 1, rots: 1, ..ONE_SUSPICION };
        is_found(Mutation::FaultyCountsAsNack, bounds, "I5: op 1, which it acked, is nacked");
    }

    #[test]
    fn a_late_start_view_that_shortens_a_log_is_found() {
        is_found(Mutation::StartViewShortensLog, ONE_SUSPICION, "I1: a replica finds two histories at op 1");
    }
}
