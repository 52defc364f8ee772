//! Whole clusters of real replicas in a small deterministic world: no story ends badly.

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use chronon_vsr::{
    Applied, Checksum, Command, Digest, Duration, Event, Input, Lost, Mutations, Op, OpRef, Payload,
    PeerRefusal, Role, Status,
};
use world::{Cluster, Faults};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// One seeded life: work, mishaps, then a heal after which everything must work again.
fn live(n: usize, seed: u64, mishaps: u64) -> Cluster {
    live_with(n, seed, mishaps, Mutations::NONE)
}

fn live_with(n: usize, seed: u64, mishaps: u64, mutations: Mutations) -> Cluster {
    let mut c = Cluster::with_options(n, seed, mutations, Faults::SOME);
    for mishap in 0..mishaps {
        // Busy, almost idle, and idle spells: an idle cluster keeps a replaced suffix in its WALs for long.
        let every = [1, 1, 7, 100][((seed + mishap) % 4) as usize];
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

/// Three replicas, some ops committed everywhere, and who leads.
fn settled_three(mutations: Mutations) -> (Cluster, usize) {
    let mut c = Cluster::with_options(3, 1, mutations, Faults::NONE);
    assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
    for _ in 0..5 {
        c.propose_anywhere();
        c.run(ms(10));
    }
    c.run(ms(100));
    let primary = c.primary().expect("nothing went wrong");
    (c, primary)
}

/// A primary cut off with entries that only it holds, and another that leads the rest. Nothing was ordered there yet.
fn with_a_stale_long_log(mutations: Mutations) -> (Cluster, usize, usize) {
    let (mut c, old) = settled_three(mutations);
    c.part(&[old]);
    for _ in 0..5 {
        assert!(c.propose(old));
    }
    c.run(ms(1500));
    let new = c.primary().expect("two of three go on");
    assert_ne!(old, new);
    (c, old, new)
}

fn a_long_stale_log_loses_with(mutations: Mutations) {
    let (mut c, old, new) = with_a_stale_long_log(mutations);
    assert!(c.propose(new));
    c.run(ms(200));
    let third = 3 - old - new;
    c.crash(new);
    c.crash(third);
    c.mend();
    c.start(new);
    c.run(ms(3000));
    c.settle();
}

#[test]
fn a_long_stale_log_loses_to_a_short_newer_one() {
    a_long_stale_log_loses_with(Mutations::NONE);
}

fn excluded_entries_stay_dead_with(mutations: Mutations) {
    let (mut c, old, new) = with_a_stale_long_log(mutations);
    // It adopts a log that ends where its own uncommitted entries begin.
    c.mend();
    c.run(ms(1000));
    assert!(matches!(c.replica(old).role(), Role::Backup { .. }));
    c.part(&[old]);
    c.crash(old);
    assert!(c.propose(new));
    c.run(ms(200));
    c.start(old);
    c.run(ms(100));
    c.settle();
}

#[test]
fn entries_that_a_start_view_excluded_stay_dead_after_a_restart() {
    excluded_entries_stay_dead_with(Mutations::NONE);
}

fn an_ack_of_another_entry_does_not_count_with(mutations: Mutations) {
    let (mut c, primary) = settled_three(mutations);
    let voter = (primary + 1) % 3;
    c.part(&[primary]);
    assert!(c.propose(primary));
    c.run(ms(50));
    let entry =
        OpRef { op: c.replica(primary).head(), checksum: Checksum::of(b"another entry at the same op") };
    let applied = Applied { op: Op::ROOT, digest: Digest(0) };
    let ok = c.message_of(voter, Payload::PrepareOk { entry, applied, checkpoint: Op::ROOT });
    c.input(primary, Input::Message(ok));
    assert!(c.replica(primary).commit_max().op < entry.op);
    c.settle();
}

#[test]
fn an_ack_of_another_entry_at_the_same_op_does_not_count() {
    an_ack_of_another_entry_does_not_count_with(Mutations::NONE);
}

fn a_view_begins_while_execution_is_slow_with(mutations: Mutations) {
    let (mut c, primary) = settled_three(mutations);
    for i in 0..3 {
        c.stall_execution(i, ms(3000));
    }
    for _ in 0..4 {
        assert!(c.propose(primary));
    }
    c.run(ms(100));
    c.crash(primary);
    assert!(c.run_until(ms(1500), |c| c.primary().is_some()), "{}", c.describe());
    c.settle();
}

#[test]
fn a_view_begins_while_execution_is_slow() {
    a_view_begins_while_execution_is_slow_with(Mutations::NONE);
}

#[test]
fn slow_execution_or_a_slow_disk_of_a_backup_changes_no_view() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let stamp = c.replica(primary).stamp();
    for i in 0..3 {
        c.stall_execution(i, ms(2000));
    }
    c.stall_disk((primary + 1) % 3, ms(2000));
    for _ in 0..300 {
        c.propose_anywhere();
        c.run(ms(10));
    }
    c.stall_disk(primary, ms(500));
    for _ in 0..100 {
        c.propose_anywhere();
        c.run(ms(10));
    }
    assert_eq!(stamp, c.replica(primary).stamp());
    c.settle();
}

#[test]
fn an_idle_cluster_stays_up_and_writes_nothing() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let (stamp, writes) = (c.replica(primary).stamp(), c.writes);
    c.run(Duration::from_secs(600));
    assert_eq!(stamp, c.replica(primary).stamp());
    assert_eq!(writes, c.writes);
}

#[test]
fn a_primary_that_hears_nobody_gives_up() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    for peer in (0..3).filter(|peer| *peer != primary) {
        c.cut_link(peer, primary);
    }
    assert!(c.run_until(ms(4000), |c| c.primary().is_some_and(|now| now != primary)), "{}", c.describe());
    assert!(0 < c.count(|event| matches!(event, Event::Abdicated { .. })));
    c.settle();
}

#[test]
fn a_primary_with_a_stalled_disk_hands_over_once_its_view_is_old_enough() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    c.run(Duration::from_secs(11));
    c.stall_disk(primary, Duration::from_secs(30));
    let mut taken = 0;
    for _ in 0..1000 {
        taken += c.propose_anywhere();
        c.run(ms(10));
    }
    assert_ne!(Some(primary), c.primary(), "{}", c.describe());
    assert_eq!(1, c.count(|event| matches!(event, Event::Abdicated { .. })));
    assert!(800 < taken, "{taken}");
    c.settle();
}

#[test]
fn a_disk_that_remembers_less_is_refused() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let backup = (primary + 1) % 3;
    let image = c.image(backup);
    for _ in 0..20 {
        c.propose_anywhere();
        c.run(ms(10));
    }
    c.crash(backup);
    c.restore(backup, image);
    c.refusals_expected = true;
    c.start(backup);
    c.run(ms(1000));
    assert!(0 < c.count(|event| matches!(event, Event::PeerRefused { .. })), "{}", c.describe());
}

/// 22: whichever start of an older copy this is, a peer that knows better says so, and it takes part in nothing.
#[test]
fn an_older_copy_of_a_disk_is_told_so_and_halts() {
    let expected = [PeerRefusal::RemembersLess, PeerRefusal::TwoStarts, PeerRefusal::EarlierStart];
    for (starts, expected) in expected.into_iter().enumerate() {
        let (mut c, primary) = settled_three(Mutations::NONE);
        let backup = (primary + 1) % 3;
        let image = c.image(backup);
        let work = |c: &mut Cluster| {
            for _ in 0..20 {
                c.propose_anywhere();
                c.run(ms(10));
            }
        };
        work(&mut c);
        for _ in 0..starts {
            c.crash(backup);
            c.start(backup);
            c.run(ms(1000));
            work(&mut c);
        }
        c.crash(backup);
        c.restore(backup, image);
        c.refusals_expected = true;
        c.start(backup);
        c.run(ms(2000));
        let told = |event: &Event| matches!(event, Event::Refused { why, .. } if *why == expected);
        assert!(0 < c.count(told), "{expected:?}: {}", c.describe());
        assert_eq!(c.replica(backup).status(), Status::Halted, "{expected:?}");
    }
}

#[test]
fn a_known_number_with_another_disk_is_refused() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let backup = (primary + 1) % 3;
    c.crash(backup);
    c.replace_disk(backup);
    c.refusals_expected = true;
    c.start(backup);
    for _ in 0..50 {
        c.propose_anywhere();
        c.run(ms(10));
    }
    // Its start would be refused for what it shows as well, until it shows more; its disk is refused for ever.
    let refused = |event: &Event| matches!(event, Event::PeerRefused { why: PeerRefusal::OtherDisk, .. });
    assert!(0 < c.count(refused), "{}", c.describe());
    assert_eq!(Op::ROOT, c.replica(backup).head());
}

/// Commits a new op within so long.
fn must_work_within(c: &mut Cluster, patience: Duration, story: &str) {
    let before = c.acknowledged;
    let works = c.run_until(patience, |c| {
        c.propose_anywhere();
        before < c.acknowledged
    });
    assert!(works, "{story}\n{}", c.describe());
}

#[test]
fn a_hub_that_alone_reaches_everybody_takes_over() {
    // Quorum loss (OmniPaxos): the old primary is alive and reaches nobody but the hub.
    let mut c = Cluster::new(5, 3);
    assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
    c.run(ms(200));
    let old = c.primary().expect("nothing went wrong");
    let hub = (old + 3) % 5;
    for a in 0..5 {
        for b in (0..5).filter(|b| *b != a && a != hub && *b != hub) {
            c.cut_link(a, b);
        }
    }
    c.run(ms(100));
    must_work_within(&mut c, ms(8000), "quorum loss");
    assert_eq!(Some(hub), c.primary());
    c.settle();
}

#[test]
fn a_chain_keeps_its_primary_or_finds_the_middle() {
    for seed in 0..3 {
        let mut c = Cluster::new(3, seed);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
        c.run(ms(200));
        let primary = c.primary().expect("nothing went wrong");
        let far = (primary + 1 + seed as usize % 2) % 3;
        c.cut_link(primary, far);
        c.cut_link(far, primary);
        for _ in 0..10 {
            must_work_within(&mut c, ms(1500), "chained");
            c.run(ms(500));
        }
        c.settle();
    }
}

#[test]
fn a_link_lost_one_way_for_a_second_costs_no_more_than_that() {
    for (from_primary, seed) in [(true, 0), (false, 1), (true, 2), (false, 3)] {
        let mut c = Cluster::new(3, seed);
        assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
        c.run(ms(200));
        let primary = c.primary().expect("nothing went wrong");
        let peer = (primary + 1) % 3;
        if from_primary {
            c.cut_link(primary, peer)
        } else {
            c.cut_link(peer, primary)
        }
        c.run(ms(1000));
        c.mend();
        must_work_within(&mut c, ms(1000), "one-way loss");
        c.settle();
    }
}

#[test]
fn a_dead_primary_is_replaced_at_once_when_noticed_and_soon_when_not() {
    for (notice, patience) in [(true, ms(60)), (false, ms(400))] {
        for seed in 0..10 {
            let mut c = Cluster::new(3, seed);
            c.faults.flush = ms(8);
            assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
            for _ in 0..20 {
                c.propose_anywhere();
                c.run(ms(10));
            }
            let primary = c.primary().expect("nothing went wrong");
            c.stop(primary, notice);
            must_work_within(&mut c, patience, "fail-over");
        }
    }
}

#[test]
fn two_failures_of_five_leave_service() {
    let mut c = Cluster::new(5, 9);
    assert!(c.run_until(ms(3000), |c| c.primary().is_some()));
    for _ in 0..2 {
        let primary = c.primary().expect("somebody leads");
        c.crash(primary);
        must_work_within(&mut c, ms(3000), "one primary after another");
    }
    c.settle();
}

#[test]
fn a_primary_frozen_for_five_seconds_answers_no_stale_read() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    c.freeze(primary, ms(5000));
    must_work_within(&mut c, ms(2000), "the others go on");
    for _ in 0..480 {
        c.propose_anywhere();
        c.run(ms(10));
        // Asked of everybody, the frozen one too as soon as it thaws: the world checks every answer.
        for i in 0..3 {
            c.read(i);
        }
    }
    c.settle();
    assert!(0 < c.reads_answered);
}

#[test]
fn a_single_replica_with_a_damaged_entry_stops_and_says_so() {
    let mut c = Cluster::new(1, 1);
    for _ in 0..20 {
        c.run(ms(10));
        c.propose_anywhere();
    }
    c.run(ms(100));
    c.crash(0);
    c.rot(0);
    c.start(0);
    assert_eq!(Status::Halted, c.replica(0).status());
    assert_eq!(1, c.count(|event| matches!(event, Event::Unrecoverable(_))));
}

#[test]
fn two_rotten_copies_of_one_committed_entry_of_three_are_reported_not_lost() {
    let (mut c, _) = settled_three(Mutations::NONE);
    let op = c.acknowledged;
    for i in 0..3 {
        c.crash(i);
        c.rot_at(i, op);
    }
    for i in 0..3 {
        c.start(i);
    }
    c.run(ms(3000));
    let lost = |event: &Event| matches!(event, Event::Unrecoverable(loss) if loss.what == Lost::Op(op));
    assert!(0 < c.count(lost), "{}", c.describe());
    assert!((0..3).all(|i| c.replica(i).committed_out() < op));
}

// Scenario 17. Known to be committed by the entries after it, so no view change decides about it.
#[test]
fn an_op_below_the_commit_point_that_rots_on_every_replica_is_named_until_one_has_it_again() {
    let (mut c, _) = settled_three(Mutations::NONE);
    let op = Op::new(2);
    assert!(op < c.acknowledged);
    for i in 0..3 {
        c.crash(i);
        c.rot_at(i, op);
    }
    for i in 0..3 {
        c.start(i);
    }
    c.run(ms(6000));
    assert!((0..3).all(|i| c.replica(i).committed_out() < op));
    for i in 0..3 {
        let loss = c.replica(i).loss().cloned().expect("it is named");
        assert_eq!((loss.what, loss.replicas.len()), (Lost::Op(op), 3));
    }
    assert_eq!(3, c.count(|event| matches!(event, Event::Unrecoverable(_))), "each tells it once");

    c.crash(1);
    c.forget_rot(1);
    c.start(1);
    c.settle();
    assert!((0..3).all(|i| c.replica(i).loss().is_none()));
}

#[test]
fn a_backup_that_lost_its_tail_acks_nothing_until_its_own_question_is_answered() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let backup = (primary + 1) % 3;
    c.crash(backup);
    c.rot_tail(backup);
    c.part(&[backup]);
    c.start(backup);
    c.run(ms(150));
    assert_eq!(Status::RecoveringHead, c.status(backup));
    c.mend();
    c.run(ms(2000));
    assert_eq!(Status::Normal, c.status(backup));
    assert_eq!(c.replica(primary).head(), c.replica(backup).head());
    c.settle();
}

#[test]
fn a_lost_tail_and_a_power_cut_of_all_lose_nothing() {
    for seed in 0..10 {
        let (mut c, primary) = settled_three(Mutations::NONE);
        let backup = (primary + 1 + seed % 2) % 3;
        c.propose(primary);
        c.run(ms(seed as u64));
        for i in 0..3 {
            c.crash(i);
        }
        c.rot_tail(backup);
        for i in 0..3 {
            c.start(i);
        }
        c.settle();
    }
}

#[test]
fn a_backup_that_slept_through_a_thousand_ops_catches_up_while_work_goes_on() {
    let (mut c, primary) = settled_three(Mutations::NONE);
    let backup = (primary + 1) % 3;
    c.part(&[backup]);
    for _ in 0..400 {
        c.propose(primary);
        c.propose(primary);
        c.propose(primary);
        c.run(ms(5));
    }
    c.mend();
    let caught_up = c.run_until(ms(5000), |c| {
        c.propose(primary);
        c.acknowledged.since(c.replica(backup).committed_out()) < 10
    });
    assert!(caught_up, "{}", c.describe());
    c.settle();
}

/// Every kind of message, lost once, around a change of views: nothing stays wedged, and not for long.
#[test]
fn one_lost_message_of_any_kind_wedges_nobody() {
    for kind in [
        Command::Prepare,
        Command::PrepareOk,
        Command::Commit,
        Command::CommitOk,
        Command::StartViewChange,
        Command::DoViewChange,
        Command::StartView,
        Command::GetView,
        Command::GetHeaders,
        Command::Headers,
        Command::GetPrepare,
        Command::Repair,
        Command::Missing,
        Command::Ping,
        Command::Pong,
        Command::ReadIndex,
        Command::ReadIndexOk,
    ] {
        for again in 0..3 {
            let (mut c, primary) = settled_three(Mutations::NONE);
            c.lose_next = Some(kind);
            for i in 0..3 {
                c.read(i);
            }
            c.propose(primary);
            c.run(ms(again * 5));
            c.lose_next = Some(kind);
            c.crash(primary);
            let led = c.run_until(ms(2500), |c| {
                c.primary()
                    .is_some_and(|i| matches!(c.replica(i).role(), Role::Primary { serving: true, .. }))
            });
            assert!(led, "{kind:?} lost\n{}", c.describe());
            c.lose_next = Some(kind);
            c.start(primary);
            let before = c.now;
            c.settle();
            let took = c.now.since(before);
            assert!(took < ms(3000), "{kind:?} lost: {took:?}");
        }
    }
}

/// Guards broken one at a time: a checker must notice within the budget, or the guard guards nothing.
#[cfg(feature = "mutations")]
mod mutations {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use chronon_vsr::{Mutation, Mutations};

    use super::{
        a_long_stale_log_loses_with, a_view_begins_while_execution_is_slow_with,
        an_ack_of_another_entry_does_not_count_with, excluded_entries_stay_dead_with, live_with,
    };

    fn fails(run: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(run)).is_err()
    }

    /// Whether some seed within the budget notices.
    fn is_caught(mutation: Mutation, budget: u64) -> bool {
        (0..budget).any(|seed| {
            let n = [3, 5, 4, 3][(seed % 4) as usize];
            fails(|| drop(live_with(n, seed, 25, Mutations::broken(mutation))))
        })
    }

    #[test]
    fn seeds_catch_every_mutation_that_chance_can_reach() {
        for mutation in [
            Mutation::FaultyCountsAsNack,
            Mutation::LogChosenByView,
            Mutation::ReadWithoutRound,
            Mutation::DoViewChangeBeforePersist,
            Mutation::ServeBeforeFirstCommit,
            Mutation::IdleHeartbeatCommits,
            Mutation::AckAfterLeaving,
            Mutation::StartViewShortensLog,
            Mutation::NackAfterIncompleteScan,
            Mutation::ExecuteWithoutChain,
        ] {
            assert!(is_caught(mutation, 100), "{mutation:?} goes unnoticed");
        }
    }

    #[test]
    fn stories_catch_the_mutations_that_need_one() {
        type Story = fn(Mutations);
        let stories: [(Mutation, Story); 4] = [
            (Mutation::LogChosenByLength, a_long_stale_log_loses_with),
            (Mutation::KeepExcludedEntries, excluded_entries_stay_dead_with),
            (Mutation::AckByBareOp, an_ack_of_another_entry_does_not_count_with),
            (Mutation::StartViewWaitsForExecution, a_view_begins_while_execution_is_slow_with),
        ];
        for (mutation, story) in stories {
            assert!(fails(|| story(Mutations::broken(mutation))), "{mutation:?} goes unnoticed");
        }
    }
}
