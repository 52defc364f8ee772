//! Three kinds: the rules of §6.3 one at a time, everything that a few voters can say, and every state that a small
//! cluster can get into, with [`choose`] itself deciding each view change on the way.

mod enumeration;

use alloc::vec;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{ClusterId, Epoch, Prng, Release, Stamp, Timestamp, View};

const CLUSTER: ClusterId = ClusterId::new(1);

fn at_view(view: u8) -> Stamp {
    Stamp { epoch: Epoch::new(0), view: View::new(u64::from(view)) }
}

fn root() -> OpRef {
    OpRef { op: Op::ROOT, checksum: Checksum::of(b"root") }
}

/// An entry is named by the views in which it and everything before it were born: `[0, 0, 2]` stands at op 3.
fn header(births: &[u8]) -> EntryHeader {
    let (born, before) = births.split_last().unwrap();
    EntryHeader {
        cluster: CLUSTER,
        born: at_view(*born),
        op: Op::new(births.len() as u64),
        parent: entry(before).checksum,
        offset: 0,
        timestamp: Timestamp::ZERO,
        commit: Op::ROOT,
        release: Release::new(1),
        body_size: 0,
        body_checksum: Checksum::of(&[]),
    }
}

fn entry(births: &[u8]) -> OpRef {
    if births.is_empty() { root() } else { header(births).op_ref() }
}

mod rules {
    use super::*;

    /// A vote for a log of these births, of which everything is present, none is nacked, and nothing is known
    /// committed.
    fn vote(log_stamp: u8, births: &[u8]) -> DoViewChangeVote {
        DoViewChangeVote {
            log_stamp: LogStamp::adopted(at_view(log_stamp)),
            checkpoint: Op::ROOT,
            commit_max: root(),
            uncertain_from: None,
            oldest: Op::new(1),
            suffix: (1..=births.len()).map(|end| header(&births[..end])).collect(),
            bits: SuffixBits { present: (1 << births.len()) - 1, nack: 0 },
        }
    }

    fn committed(births: &[u8], vote: DoViewChangeVote) -> DoViewChangeVote {
        let suffix =
            vote.suffix.iter().filter(|header| births.len() as u64 <= header.op.value()).cloned().collect();
        let shift = births.len().saturating_sub(1);
        let bits = SuffixBits { present: vote.bits.present >> shift, nack: vote.bits.nack >> shift };
        DoViewChangeVote { commit_max: entry(births), suffix, bits, ..vote }
    }

    fn faulty(op: usize, mut vote: DoViewChangeVote) -> DoViewChangeVote {
        vote.bits.present &= !(1 << (op - 1));
        vote
    }

    fn never_durable(op: usize, mut vote: DoViewChangeVote) -> DoViewChangeVote {
        vote.bits.nack |= 1 << (op - 1);
        faulty(op, vote)
    }

    fn uncertain(op: u64, vote: DoViewChangeVote) -> DoViewChangeVote {
        DoViewChangeVote { uncertain_from: Some(Op::new(op)), ..vote }
    }

    fn decide(voters: u8, votes: &[(u8, DoViewChangeVote)]) -> Choice {
        let ids: Vec<ReplicaId> = (0..voters).map(ReplicaId::new).collect();
        let votes = votes.iter().map(|(replica, vote)| (ReplicaId::new(*replica), vote.clone())).collect();
        choose(Quorums::of(usize::from(voters)), &ids, &votes, Mutations::NONE)
    }

    fn chosen(voters: u8, votes: &[(u8, DoViewChangeVote)]) -> Chosen {
        match decide(voters, votes) {
            Choice::Chosen(chosen) => chosen,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_view_change_quorum_is_needed() {
        assert_eq!(decide(3, &[]), Choice::NeedMore);
        assert_eq!(decide(3, &[(0, vote(0, &[0]))]), Choice::NeedMore);
        assert_eq!(decide(1, &[(0, vote(0, &[]))]), Choice::Chosen(chosen(1, &[(0, vote(0, &[]))])));
    }

    #[test]
    fn who_is_no_voter_does_not_count() {
        assert_eq!(decide(3, &[(0, vote(0, &[0])), (7, vote(9, &[9]))]), Choice::NeedMore);
        let chosen = chosen(3, &[(0, vote(0, &[0])), (1, vote(0, &[0])), (7, vote(9, &[9]))]);
        assert_eq!(chosen.head(), entry(&[0]));
    }

    #[test]
    fn empty_logs_make_an_empty_log() {
        let chosen = chosen(3, &[(0, vote(0, &[])), (1, vote(0, &[]))]);
        assert_eq!((chosen.head(), chosen.headers, chosen.cut), (root(), vec![], None));
    }

    #[test]
    fn the_newest_log_wins_over_a_longer_one() {
        let chosen = chosen(3, &[(0, vote(0, &[0, 0, 0])), (1, vote(1, &[1]))]);
        assert_eq!(chosen.head(), entry(&[1]));
        assert_eq!(chosen.log_stamp, LogStamp::adopted(at_view(1)));
    }

    #[test]
    fn logs_of_one_stamp_are_united_and_name_their_sources() {
        let chosen = chosen(3, &[(0, vote(1, &[0, 1])), (1, vote(1, &[0])), (2, vote(0, &[0, 0]))]);
        assert_eq!(chosen.headers, vec![header(&[0]), header(&[0, 1])]);
        let sources = |op| chosen.sources[&Op::new(op)].iter().map(|id| id.value()).collect::<Vec<_>>();
        assert_eq!((sources(1), sources(2)), (vec![0, 1, 2], vec![0]));
    }

    #[test]
    fn an_entry_present_anywhere_is_kept_even_where_the_newest_log_lost_it() {
        // Only a voter of an older log still has the bytes.
        let votes = [(0, faulty(1, vote(1, &[0]))), (1, vote(0, &[0]))];
        assert_eq!(chosen(3, &votes).sources[&Op::new(1)], vec![ReplicaId::new(1)]);
    }

    #[test]
    fn a_nack_quorum_cuts_and_takes_what_stands_above() {
        let votes = [(0, never_durable(1, vote(0, &[0, 0]))), (1, vote(0, &[]))];
        let chosen = chosen(3, &votes);
        assert_eq!((chosen.head(), chosen.cut), (root(), Some(Op::new(1))));
    }

    fn unrecoverable(op: u64, damaged: &[u8]) -> Choice {
        let damaged = damaged.iter().map(|replica| ReplicaId::new(*replica)).collect();
        Choice::Unrecoverable { op: Op::new(op), damaged }
    }

    #[test]
    fn a_faulty_entry_is_no_nack() {
        let two = [(0, faulty(1, vote(0, &[0]))), (1, vote(0, &[]))];
        assert_eq!(decide(3, &two), Choice::NeedMore);
        let kept = chosen(3, &[two[0].clone(), two[1].clone(), (2, vote(0, &[0]))]);
        assert_eq!(kept.head(), entry(&[0]));
        let cut = chosen(3, &[two[0].clone(), two[1].clone(), (2, vote(0, &[]))]);
        assert_eq!(cut.head(), root());
        let stuck = decide(3, &[two[0].clone(), two[1].clone(), (2, faulty(1, vote(0, &[0])))]);
        assert_eq!(stuck, unrecoverable(1, &[0, 2]));
    }

    #[test]
    fn another_entry_at_the_op_is_a_nack() {
        // View 2 went on from [0], which view 1 had given up for [1].
        let votes = [(0, faulty(1, vote(2, &[0]))), (1, vote(1, &[1])), (2, vote(1, &[1]))];
        assert_eq!(chosen(3, &votes).head(), root());
    }

    #[test]
    fn an_entry_born_after_a_voters_log_is_nacked_by_it_even_when_its_head_is_uncertain() {
        let votes =
            [(0, faulty(1, vote(1, &[1]))), (1, uncertain(1, vote(0, &[]))), (2, uncertain(1, vote(0, &[])))];
        assert_eq!(chosen(3, &votes).head(), root());
        // Born no later than that log, it may have been acked by it.
        let votes = [(0, faulty(1, vote(1, &[0]))), (1, uncertain(1, vote(0, &[]))), (2, vote(0, &[]))];
        assert_eq!(decide(3, &votes), unrecoverable(1, &[0, 1]));
    }

    #[test]
    fn an_uncertain_head_leaves_the_next_op_to_the_others() {
        let lost = uncertain(2, vote(0, &[0]));
        assert_eq!(decide(3, &[(0, lost.clone()), (1, vote(0, &[0]))]), Choice::NeedMore);
        let all = chosen(3, &[(0, lost.clone()), (1, vote(0, &[0])), (2, vote(0, &[]))]);
        assert_eq!(all.head(), entry(&[0]));
        let two_lost = [(0, lost.clone()), (1, lost.clone()), (2, vote(0, &[]))];
        assert_eq!(decide(3, &two_lost), unrecoverable(2, &[0, 1]));
        // Of an older log: what it can't say was never in the newest one.
        let older = [(0, lost), (1, vote(1, &[0]))];
        assert_eq!(chosen(3, &older).head(), entry(&[0]));
    }

    #[test]
    fn what_is_known_committed_is_never_decided_again() {
        // Nobody has the body of op 1; it is committed, so it is fetched or synced, not cut.
        let votes = [(0, committed(&[0], faulty(1, vote(0, &[0])))), (1, vote(0, &[]))];
        let chosen = chosen(3, &votes);
        assert_eq!((chosen.commit_max, chosen.head()), (entry(&[0]), entry(&[0])));
        assert_eq!(chosen.sources[&Op::new(1)], vec![]);
    }

    #[test]
    fn a_commit_point_beyond_the_newest_log_is_still_the_commit_point() {
        let ahead = DoViewChangeVote { commit_max: entry(&[0, 0]), ..vote(0, &[]) };
        let chosen = chosen(3, &[(0, ahead), (1, vote(0, &[0]))]);
        assert_eq!(
            (chosen.commit_max, chosen.head(), chosen.headers),
            (entry(&[0, 0]), entry(&[0, 0]), vec![])
        );
    }

    #[test]
    fn a_blank_is_filled_by_its_childs_parent_from_anyones_headers() {
        let mut blank = vote(1, &[0, 0, 1]);
        blank.suffix.remove(1);
        blank.bits = SuffixBits { present: 0b11, nack: 0 };
        let filled = chosen(3, &[(0, blank.clone()), (1, vote(0, &[0, 0]))]);
        assert_eq!(filled.headers, vec![header(&[0]), header(&[0, 0]), header(&[0, 0, 1])]);
        // Nobody has it and a blank nacks nothing.
        assert_eq!(decide(3, &[(0, blank.clone()), (1, vote(0, &[0]))]), Choice::NeedMore);
        // Another entry there is no help, but a nack: one from each of the others cuts.
        let cut = chosen(3, &[(0, blank), (1, vote(0, &[0])), (2, vote(0, &[0]))]);
        assert_eq!((cut.head(), cut.cut), (entry(&[0]), Some(Op::new(2))));
    }

    #[test]
    fn two_logs_of_one_stamp_that_differ_are_a_fork() {
        let fork = |op| Choice::Fork { op: Op::new(op) };
        assert_eq!(decide(3, &[(0, vote(0, &[0])), (1, vote(0, &[1]))]), fork(1));
        // Two commit points, one op.
        assert_eq!(
            decide(3, &[(0, committed(&[0], vote(0, &[0]))), (1, committed(&[1], vote(1, &[1])))]),
            fork(1)
        );
        // A newest log that lacks what is committed.
        assert_eq!(decide(3, &[(0, committed(&[0], vote(0, &[0]))), (1, vote(1, &[1]))]), fork(1));
        // A log whose entries do not link.
        let mut torn = vote(0, &[0, 0]);
        torn.suffix[0] = header(&[1]);
        assert_eq!(decide(3, &[(0, torn), (1, vote(0, &[]))]), fork(1));
    }

    #[test]
    fn a_source_that_denies_an_entry_keeps_its_other_bits() {
        let mut vote = vote(0, &[0, 0]);
        vote.bits.nack = 0b11;
        vote.deny_present(entry(&[1]));
        assert_eq!(vote.bits, SuffixBits { present: 0b11, nack: 0b11 });
        vote.deny_present(entry(&[0]));
        assert_eq!(vote.bits, SuffixBits { present: 0b10, nack: 0b11 });
    }
}

/// Every state of a small cluster, each visited once.
///
/// An adversary runs the cluster: who hears what, when a write ends, when a view changes and on whose votes, which
/// replica crashes, what rots. Acks are given, and commits happen, as early as the protocol allows: that only adds to
/// what must be kept. The search asks of every decision: does it keep all that was ever committed?
mod search {
    use super::*;

    const OPS_MAX: usize = 3;
    const VOTERS_MAX: usize = 5;
    const VIEWS_MAX: usize = 4;

    /// How far the adversary may go.
    #[derive(Clone, Copy, Debug)]
    struct Bounds {
        voters: u8,
        ops: u8,
        views: u8,
        crashes: u8,
        rots: u8,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Held {
        /// The header was adopted, the body never was here.
        Missing,
        /// A write is under way, of something that never was durable here.
        Written,
        Durable,
        /// Was durable, and can't be read.
        Faulty,
        /// Was durable, and is being written again.
        Repairing,
    }

    impl Held {
        fn present(self) -> bool {
            matches!(self, Held::Written | Held::Durable | Held::Repairing)
        }

        fn nack(self) -> bool {
            matches!(self, Held::Missing | Held::Written)
        }
    }

    /// A log of births, at most [`OPS_MAX`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
    struct Births {
        births: [u8; OPS_MAX],
        length: u8,
    }

    impl Births {
        fn slice(&self) -> &[u8] {
            &self.births[..usize::from(self.length)]
        }

        fn push(&mut self, born: u8) {
            self.births[usize::from(self.length)] = born;
            self.length += 1;
        }

        fn cut(&self, length: u8) -> Births {
            let mut cut = Births::default();
            self.slice().iter().take(usize::from(length)).for_each(|born| cut.push(*born));
            cut
        }

        fn begins_with(&self, other: &Births) -> bool {
            self.slice().starts_with(other.slice())
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Replica {
        stamp: u8,
        log_stamp: u8,
        log: Births,
        copies: [Held; OPS_MAX],
        /// The head of the suffix in its superblock.
        suffix_head: u8,
        commit_max: u8,
        uncertain: bool,
    }

    impl Replica {
        const NEW: Replica = Replica {
            stamp: 0,
            log_stamp: 0,
            log: Births { births: [0; OPS_MAX], length: 0 },
            copies: [Held::Missing; OPS_MAX],
            suffix_head: 0,
            commit_max: 0,
            uncertain: false,
        };

        fn copy(&self, op: u8) -> Held {
            self.copies[usize::from(op) - 1]
        }

        fn set(&mut self, op: u8, copy: Held) {
            self.copies[usize::from(op) - 1] = copy;
        }

        fn holds(&self, entry: &Births) -> bool {
            self.log.begins_with(entry) && self.copy(entry.length).present()
        }

        /// Drops the entries above the op; two logs that say the same are the same.
        fn cut(&mut self, op: u8) {
            self.log = self.log.cut(op);
            self.copies[usize::from(op)..].fill(Held::Missing);
        }

        fn normal(&self) -> bool {
            self.stamp == self.log_stamp && !self.uncertain
        }

        fn adopt(&mut self, stamp: u8, log: Births, commit_max: u8) {
            let mut copies = [Held::Missing; OPS_MAX];
            for op in 1..=log.length {
                let same = self.log.begins_with(&log.cut(op));
                let lost = self.uncertain
                    && self.log.length < op
                    && log.births[usize::from(op) - 1] <= self.log_stamp;
                copies[usize::from(op) - 1] = match (same, lost) {
                    (true, _) => self.copy(op),
                    (false, true) => Held::Faulty,
                    (false, false) => Held::Missing,
                };
            }
            *self = Replica {
                stamp,
                log_stamp: stamp,
                log,
                copies,
                suffix_head: log.length,
                commit_max: self.commit_max.max(commit_max),
                uncertain: false,
            };
        }
    }

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct State {
        replicas: [Replica; VOTERS_MAX],
        /// The DoViewChanges of each view, as they were last sent.
        votes: [[Option<Replica>; VOTERS_MAX]; VIEWS_MAX],
        /// The log of each view, and how much of it the view began with; none before its StartView.
        views: [Option<(Births, u8)>; VIEWS_MAX],
        /// The commit point that each view began with.
        began_committed: [u8; VIEWS_MAX],
        /// Who acked what in which view.
        acks: [[u8; OPS_MAX]; VIEWS_MAX],
        /// What was committed, ever, and the lowest view in which each was.
        committed: Births,
        committed_in: [u8; OPS_MAX],
        crashes: u8,
        rots: u8,
    }

    /// All that a state says of one voter.
    type Column = (Replica, [Option<Replica>; VIEWS_MAX], [[bool; OPS_MAX]; VIEWS_MAX]);

    impl State {
        fn column(&self, r: usize) -> Column {
            (
                self.replicas[r],
                self.votes.map(|votes| votes[r]),
                self.acks.map(|ops| ops.map(|acks| acks & 1 << r != 0)),
            )
        }

        fn set_column(&mut self, r: usize, (replica, votes, acked): Column) {
            self.replicas[r] = replica;
            for view in 0..VIEWS_MAX {
                self.votes[view][r] = votes[view];
                for (acks, acked) in self.acks[view].iter_mut().zip(acked[view]) {
                    *acks = *acks & !(1 << r) | u8::from(acked) << r;
                }
            }
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Found {
        /// A decision, or a commit, against what was committed before.
        CommittedLost,
        /// Two logs of one stamp, though nobody broke the protocol.
        Fork,
        /// Undecided though nothing was damaged, or with every vote and one damaged copy.
        Stuck,
        /// More votes made a decided log undecided.
        Undone,
    }

    struct Search {
        bounds: Bounds,
        mutations: Mutations,
        quorums: Quorums,
        names: BTreeMap<Checksum, Births>,
        decided: BTreeMap<(Births, Vec<(u8, Replica)>), Outcome>,
        seen: BTreeSet<State>,
        next: Vec<State>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Outcome {
        NeedMore,
        Fork,
        Unrecoverable,
        Chosen { log: Births, commit_max: u8 },
    }

    impl Search {
        /// The number of states, or the first thing that went wrong.
        fn run(bounds: Bounds, mutations: Mutations) -> Result<usize, Found> {
            let mut search = Search::new(bounds, mutations);
            while let Some(state) = search.next.pop() {
                search.step(&state)?;
            }
            Ok(search.seen.len())
        }

        /// Where the states are too many: `walks` ways through them, each step drawn. The number of steps.
        fn wander(bounds: Bounds, mutations: Mutations, walks: u64) -> Result<usize, Found> {
            let mut search = Search::new(bounds, mutations);
            let first = search.next.pop().expect("a search begins with one state");
            let mut steps = 0;
            for seed in 0..walks {
                let mut prng = Prng::new(seed);
                let mut state = first.clone();
                loop {
                    search.seen.clear();
                    search.next.clear();
                    search.step(&state)?;
                    search.next.retain(|next| *next != state);
                    if search.next.is_empty() {
                        break;
                    }
                    let drawn = prng.below(search.next.len() as u64);
                    state = search.next.swap_remove(drawn as usize);
                    steps += 1;
                }
            }
            Ok(steps)
        }

        fn new(bounds: Bounds, mutations: Mutations) -> Search {
            let mut names = BTreeMap::from([(root().checksum, Births::default())]);
            let mut level = vec![Births::default()];
            for _ in 0..bounds.ops {
                let mut above = Vec::new();
                for births in level {
                    for born in births.slice().last().copied().unwrap_or(0)..bounds.views {
                        let mut child = births;
                        child.push(born);
                        names.insert(entry(child.slice()).checksum, child);
                        above.push(child);
                    }
                }
                level = above;
            }
            let first = State {
                replicas: [Replica::NEW; VOTERS_MAX],
                votes: [[None; VOTERS_MAX]; VIEWS_MAX],
                views: core::array::from_fn(|view| (view == 0).then(|| (Births::default(), 0))),
                began_committed: [0; VIEWS_MAX],
                acks: [[0; OPS_MAX]; VIEWS_MAX],
                committed: Births::default(),
                committed_in: [u8::MAX; OPS_MAX],
                crashes: 0,
                rots: 0,
            };
            Search {
                bounds,
                mutations,
                quorums: Quorums::of(usize::from(bounds.voters)),
                names,
                decided: BTreeMap::new(),
                seen: BTreeSet::from([first.clone()]),
                next: vec![first],
            }
        }

        /// Everything that can happen next.
        fn step(&mut self, state: &State) -> Result<(), Found> {
            for r in 0..usize::from(self.bounds.voters) {
                let replica = state.replicas[r];
                if replica.normal() {
                    self.run_normally(state, r)?;
                }
                self.finish_writes(state, r)?;
                self.break_things(state, r)?;
                for view in replica.stamp + 1..self.bounds.views {
                    let mut next = state.clone();
                    jump(&mut next, r, view);
                    self.reach(next)?;
                }
                for view in replica.stamp.max(1)..self.bounds.views {
                    self.adopt(state, r, view)?;
                }
            }
            for view in 1..self.bounds.views {
                self.decide(state, view)?;
            }
            Ok(())
        }

        /// Prepares, appends, learns of commits, fetches what it lacks.
        fn run_normally(&mut self, state: &State, r: usize) -> Result<(), Found> {
            let replica = state.replicas[r];
            let view = usize::from(replica.stamp);
            let (log, began) = state.views[view].expect("normal in a view that began");
            let primary = view % usize::from(self.bounds.voters) == r;
            if primary && replica.log.length < self.bounds.ops {
                let mut next = state.clone();
                let mut log = log;
                log.push(replica.stamp);
                next.views[view] = Some((log, began));
                next.replicas[r].log = log;
                next.replicas[r].set(log.length, Held::Written);
                self.reach(next)?;
            }
            if !primary && replica.log.length < log.length {
                let mut next = state.clone();
                next.replicas[r].log = log.cut(replica.log.length + 1);
                next.replicas[r].set(replica.log.length + 1, Held::Written);
                self.reach(next)?;
            }
            if replica.commit_max < state.committed.length && log.begins_with(&state.committed) {
                let mut next = state.clone();
                next.replicas[r].commit_max = state.committed.length;
                self.reach(next)?;
            }
            for op in 1..=replica.log.length {
                let repaired = match replica.copy(op) {
                    Held::Missing => Held::Written,
                    Held::Faulty => Held::Repairing,
                    Held::Written | Held::Durable | Held::Repairing => continue,
                };
                if state.replicas.iter().any(|peer| peer.holds(&replica.log.cut(op))) {
                    let mut next = state.clone();
                    next.replicas[r].set(op, repaired);
                    self.reach(next)?;
                }
            }
            Ok(())
        }

        /// A write ends, in any status; appends above the suffix end in order.
        fn finish_writes(&mut self, state: &State, r: usize) -> Result<(), Found> {
            let replica = state.replicas[r];
            for op in 1..=replica.log.length {
                let in_order =
                    (replica.suffix_head + 1..op).all(|below| replica.copy(below) == Held::Durable);
                if matches!(replica.copy(op), Held::Written | Held::Repairing) && in_order {
                    let mut next = state.clone();
                    next.replicas[r].set(op, Held::Durable);
                    self.reach(next)?;
                }
            }
            Ok(())
        }

        /// Crashes, with or without damage to what was flushed last; rot of any one durable copy.
        fn break_things(&mut self, state: &State, r: usize) -> Result<(), Found> {
            let replica = state.replicas[r];
            if state.rots < self.bounds.rots {
                for op in (1..=replica.log.length).filter(|op| replica.copy(*op) == Held::Durable) {
                    let mut next = state.clone();
                    next.rots += 1;
                    next.replicas[r].set(op, Held::Faulty);
                    self.reach(next)?;
                }
            }
            if state.crashes < self.bounds.crashes {
                let mut next = state.clone();
                next.crashes += 1;
                self.restart(&mut next, r);
                self.reach(next.clone())?;
                // The groups that it flushed last can't be read: from some op on it does not know what it held.
                let restarted = next.replicas[r];
                if state.rots < self.bounds.rots {
                    for last_known in restarted.suffix_head..restarted.log.length {
                        let mut lost = next.clone();
                        lost.rots += 1;
                        lost.replicas[r].cut(last_known);
                        lost.replicas[r].uncertain = true;
                        self.reach(lost)?;
                    }
                }
            }
            Ok(())
        }

        fn restart(&self, state: &mut State, r: usize) {
            let replica = &mut state.replicas[r];
            for op in 1..=replica.log.length {
                match replica.copy(op) {
                    Held::Written if replica.suffix_head < op => {
                        replica.cut(op - 1);
                        break;
                    }
                    Held::Written => replica.set(op, Held::Missing),
                    Held::Repairing => replica.set(op, Held::Faulty),
                    Held::Missing | Held::Durable | Held::Faulty => {}
                }
            }
            let (stamp, log_stamp) = (replica.stamp, replica.log_stamp);
            if log_stamp < stamp {
                send_vote(state, r);
            } else if usize::from(stamp) % usize::from(self.bounds.voters) == r {
                // A restarted primary never has its old stamp again.
                jump(state, r, stamp + 1);
            }
        }

        /// A StartView arrives: as the view began, or with its head now.
        fn adopt(&mut self, state: &State, r: usize, view: u8) -> Result<(), Found> {
            let replica = state.replicas[r];
            let Some((log, began)) = state.views[usize::from(view)] else { return Ok(()) };
            // Again in its own stamp only to learn what its head was; from the primary itself, which answers a nonce.
            let primary = state.replicas[usize::from(view) % usize::from(self.bounds.voters)];
            let again =
                replica.log_stamp == view && replica.uncertain && primary.normal() && primary.stamp == view;
            if replica.log_stamp < view || again {
                let lengths = if again { [log.length, log.length] } else { [began, log.length] };
                for length in BTreeSet::from(lengths) {
                    let mut next = state.clone();
                    next.replicas[r].adopt(view, log.cut(length), state.began_committed[usize::from(view)]);
                    self.reach(next)?;
                }
            }
            Ok(())
        }

        /// The view's primary decides on every set of votes that it may hold.
        fn decide(&mut self, state: &State, view: u8) -> Result<(), Found> {
            let voters = self.bounds.voters;
            let p = usize::from(view % voters);
            let votes = &state.votes[usize::from(view)];
            if state.replicas[p].stamp != view || state.replicas[p].log_stamp == view || votes[p].is_none() {
                return Ok(());
            }
            let mut outcomes: Vec<(u8, Outcome)> = Vec::new();
            for set in 0..1u8 << voters {
                let complete = (0..usize::from(voters)).all(|r| set & 1 << r == 0 || votes[r].is_some());
                if set & 1 << p == 0 || !complete || (set.count_ones() as usize) < self.quorums.view_change {
                    continue;
                }
                let held: Vec<(u8, Replica)> = (0..voters)
                    .filter(|r| set & 1 << r != 0)
                    .map(|r| (r, votes[usize::from(r)].unwrap()))
                    .collect();
                let outcome = self.choose(&state.committed, held.clone());
                let damaged =
                    held.iter().any(|(_, vote)| vote.uncertain || vote.copies.contains(&Held::Faulty));
                let hopeless = state.rots > 1 || (damaged && set.count_ones() < u32::from(voters));
                match outcome {
                    Outcome::Fork => return Err(Found::Fork),
                    Outcome::NeedMore | Outcome::Unrecoverable if damaged && hopeless => {}
                    Outcome::NeedMore | Outcome::Unrecoverable => return Err(Found::Stuck),
                    Outcome::Chosen { log, commit_max } => {
                        // What a later view committed is not this one's to keep: too few are left to follow it.
                        let binds = |op: &u8| state.committed_in[usize::from(*op) - 1] < view;
                        let bound = (1..=state.committed.length).rev().find(binds).unwrap_or(0);
                        let kept = log.begins_with(&state.committed.cut(bound)) || bound <= commit_max;
                        if !kept {
                            return Err(Found::CommittedLost);
                        }
                        self.begin_view(state, view, log, commit_max)?;
                    }
                }
                outcomes.push((set, outcome));
            }
            let is_decided = |outcome: &Outcome| matches!(outcome, Outcome::Chosen { .. });
            for (set, outcome) in &outcomes {
                let undone = |(more, then): &&(u8, Outcome)| more & set == *set && !is_decided(then);
                if is_decided(outcome) && outcomes.iter().find(undone).is_some() {
                    return Err(Found::Undone);
                }
            }
            Ok(())
        }

        /// The primary has fetched what it lacks, if anybody still has it, and begins.
        fn begin_view(&mut self, state: &State, view: u8, log: Births, commit_max: u8) -> Result<(), Found> {
            let p = usize::from(view % self.bounds.voters);
            let mut next = state.clone();
            next.replicas[p].adopt(view, log, commit_max);
            for op in commit_max + 1..=log.length {
                if !next.replicas[p].copy(op).present() {
                    if !state.replicas.iter().any(|peer| peer.holds(&log.cut(op))) {
                        return Ok(());
                    }
                    let was_faulty = next.replicas[p].copy(op) == Held::Faulty;
                    next.replicas[p].set(op, if was_faulty { Held::Repairing } else { Held::Written });
                }
            }
            next.views[usize::from(view)] = Some((log, log.length));
            next.began_committed[usize::from(view)] = commit_max;
            self.reach(next)
        }

        /// Acks and commits whatever may be, and remembers the state.
        fn reach(&mut self, mut state: State) -> Result<(), Found> {
            for r in 0..usize::from(self.bounds.voters) {
                let replica = state.replicas[r];
                if replica.normal() {
                    for op in 1..=replica.log.length {
                        let chained =
                            (replica.suffix_head + 1..op).all(|below| replica.copy(below) == Held::Durable);
                        if replica.copy(op) == Held::Durable && chained {
                            state.acks[usize::from(replica.stamp)][usize::from(op) - 1] |= 1 << r;
                        }
                    }
                }
            }
            for view in 0..usize::from(self.bounds.views) {
                let Some((log, _)) = state.views[view] else { continue };
                for op in 1..=log.length {
                    // In op order: an op commits with all that stands below it.
                    let now = log.cut(op);
                    let at = usize::from(op) - 1;
                    let voted = self.quorums.replication <= state.acks[view][at].count_ones() as usize;
                    if !voted && !state.committed.begins_with(&now) {
                        break;
                    }
                    if !now.begins_with(&state.committed) && !state.committed.begins_with(&now) {
                        return Err(Found::CommittedLost);
                    }
                    if state.committed.length < op {
                        state.committed = now;
                    }
                    if voted {
                        state.committed_in[at] = state.committed_in[at].min(view as u8);
                    }
                }
            }
            self.forget_what_is_over(&mut state);
            self.sort_the_interchangeable(&mut state);
            if self.seen.insert(state.clone()) {
                self.next.push(state);
            }
            Ok(())
        }

        /// Votes that decide nothing any more and acks of what is committed: states that differ in them alone are one.
        fn forget_what_is_over(&self, state: &mut State) {
            for view in 0..usize::from(self.bounds.views) {
                let primary = state.replicas[view % usize::from(self.bounds.voters)];
                if state.views[view].is_some() || view < usize::from(primary.stamp) {
                    state.votes[view] = [None; VOTERS_MAX];
                }
                let Some((log, _)) = state.views[view] else { continue };
                for op in
                    (0..usize::from(state.committed.length)).filter(|_| log.begins_with(&state.committed))
                {
                    if usize::from(state.committed_in[op]) <= view {
                        state.acks[view][op] = 0;
                    }
                }
            }
        }

        /// Voters that are nobody's primary here are alike: states that differ in their order alone are one.
        fn sort_the_interchangeable(&self, state: &mut State) {
            let alike = usize::from(self.bounds.views)..usize::from(self.bounds.voters);
            let mut columns: Vec<Column> = alike.clone().map(|r| state.column(r)).collect();
            columns.sort();
            alike.zip(columns).for_each(|(r, column)| state.set_column(r, column));
        }

        fn choose(&mut self, committed: &Births, held: Vec<(u8, Replica)>) -> Outcome {
            let key = (*committed, held);
            if let Some(outcome) = self.decided.get(&key) {
                return *outcome;
            }
            let (committed, held) = &key;
            let voters: Vec<ReplicaId> = (0..self.bounds.voters).map(ReplicaId::new).collect();
            let votes =
                held.iter().map(|(r, replica)| (ReplicaId::new(*r), vote(replica, committed))).collect();
            let outcome = match choose(self.quorums, &voters, &votes, self.mutations) {
                Choice::NeedMore => Outcome::NeedMore,
                Choice::Fork { .. } => Outcome::Fork,
                Choice::Unrecoverable { .. } => Outcome::Unrecoverable,
                Choice::Chosen(chosen) => Outcome::Chosen {
                    log: self.names[&chosen.head().checksum],
                    commit_max: chosen.commit_max.op.value() as u8,
                },
            };
            self.decided.insert(key, outcome);
            outcome
        }
    }

    fn jump(state: &mut State, r: usize, view: u8) {
        let replica = &mut state.replicas[r];
        replica.stamp = view;
        replica.suffix_head = replica.log.length;
        send_vote(state, r);
    }

    fn send_vote(state: &mut State, r: usize) {
        let replica = state.replicas[r];
        if let Some(votes) = state.votes.get_mut(usize::from(replica.stamp)) {
            votes[r] = Some(Replica { stamp: 0, suffix_head: 0, ..replica });
        }
    }

    /// The DoViewChange of a replica in this state.
    fn vote(replica: &Replica, committed: &Births) -> DoViewChangeVote {
        let lowest = replica.commit_max.max(1);
        let bits = |is: fn(Held) -> bool| {
            (lowest..=replica.log.length)
                .filter(|op| is(replica.copy(*op)))
                .map(|op| 1 << (op - lowest))
                .sum()
        };
        DoViewChangeVote {
            log_stamp: LogStamp::adopted(at_view(replica.log_stamp)),
            checkpoint: Op::ROOT,
            commit_max: entry(committed.cut(replica.commit_max).slice()),
            uncertain_from: replica.uncertain.then(|| Op::new(u64::from(replica.log.length) + 1)),
            oldest: Op::new(1),
            suffix: (lowest..=replica.log.length).map(|op| header(replica.log.cut(op).slice())).collect(),
            bits: SuffixBits { present: bits(Held::present), nack: bits(Held::nack) },
        }
    }

    const fn bounds(voters: u8, ops: u8, views: u8, crashes: u8, rots: u8) -> Bounds {
        Bounds { voters, ops, views, crashes, rots }
    }

    /// Searches these bounds, and with `CHRONON_DEEP` set the deep ones too, which take minutes.
    fn assert_nothing_is_lost(shallow: &[Bounds], deep: &[Bounds]) {
        let deep = if std::env::var_os("CHRONON_DEEP").is_some() { deep } else { &[] };
        for bounds in shallow.iter().chain(deep) {
            let states = Search::run(*bounds, Mutations::NONE);
            std::println!("{bounds:?}: {states:?} states");
            // Far fewer would mean that the adversary was tied up.
            assert!(states.is_ok_and(|states| 400 < states), "{bounds:?}");
        }
    }

    #[test]
    fn one_voter_loses_nothing() {
        assert_nothing_is_lost(&[bounds(1, 2, 3, 1, 0)], &[]);
    }

    #[test]
    fn two_voters_lose_nothing() {
        assert_nothing_is_lost(&[bounds(2, 2, 2, 1, 1), bounds(2, 1, 3, 1, 1)], &[bounds(2, 2, 3, 1, 1)]);
    }

    #[test]
    fn three_voters_lose_nothing_to_crashes_and_rot() {
        assert_nothing_is_lost(&[bounds(3, 1, 2, 1, 1), bounds(3, 1, 3, 0, 1)], &[bounds(3, 1, 3, 1, 1)]);
    }

    #[test]
    fn three_voters_lose_nothing_of_two_ops() {
        assert_nothing_is_lost(&[bounds(3, 2, 2, 0, 0)], &[bounds(3, 2, 2, 0, 1)]);
    }

    #[test]
    fn four_voters_lose_nothing() {
        assert_nothing_is_lost(&[bounds(4, 1, 2, 0, 1)], &[bounds(4, 1, 2, 1, 1)]);
    }

    #[test]
    fn five_voters_lose_nothing() {
        assert_nothing_is_lost(&[bounds(5, 1, 2, 0, 0)], &[bounds(5, 1, 2, 0, 1)]);
    }

    #[test]
    fn larger_clusters_lose_nothing_on_any_of_many_ways() {
        for bounds in [bounds(3, 3, 4, 2, 1), bounds(5, 3, 4, 2, 2), bounds(4, 2, 4, 1, 1)] {
            let steps = Search::wander(bounds, Mutations::NONE, 2000);
            assert!(matches!(steps, Ok(50_000..)), "{bounds:?}: {steps:?}");
        }
    }

    #[cfg(feature = "mutations")]
    mod mutations {
        use super::*;

        fn found(mutation: Mutation, bounds: Bounds) -> Option<Found> {
            Search::run(bounds, Mutations::broken(mutation)).err()
        }

        #[test]
        fn a_faulty_entry_that_counts_as_a_nack_loses_what_was_committed() {
            let found = found(Mutation::FaultyCountsAsNack, bounds(3, 1, 3, 0, 1));
            assert_eq!(found, Some(Found::CommittedLost));
        }

        #[test]
        fn a_log_chosen_by_view_loses_what_was_committed() {
            let found = found(Mutation::LogChosenByView, bounds(3, 1, 3, 0, 0));
            assert_eq!(found, Some(Found::CommittedLost));
        }

        #[test]
        fn a_log_chosen_by_its_length_loses_what_was_committed() {
            let mutations = Mutations::broken(Mutation::LogChosenByLength);
            let found = Search::wander(bounds(3, 2, 3, 0, 0), mutations, 100_000).err();
            // Or a later view's commit point shows the two histories first.
            assert!(matches!(found, Some(Found::CommittedLost | Found::Fork)), "{found:?}");
        }
    }
}
