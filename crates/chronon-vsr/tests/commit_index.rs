//! What a primary calls committed, against a count by hand, for every order in which acks can arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronon_vsr::{
    Applied, Checkpoint, Checksum, ClusterId, Digest, DiskId, Durable, Epoch, Identity, Incarnation, Input,
    Instant, LogStamp, Member, Membership, Message, Mutations, Now, Op, OpRef, Options, Output, Payload,
    Prng, Purpose, Quorums, Recovered, Release, Replica, ReplicaId, Ring, Stamp, SuffixBits, Timestamp,
    Timing, VsrState, Write, WriteNumber,
};

const CLUSTER: ClusterId = ClusterId::new(3);
const LINEAGE: u128 = 4;
const NOW: Now =
    Now { monotonic: Instant::from_nanos(1), wall: Timestamp::from_nanos(1_700_000_000_000_000_000) };

/// A primary that has prepared some ops, of which nothing is durable anywhere.
#[derive(Clone)]
struct Primary {
    replica: Replica,
    me: ReplicaId,
    stamp: Stamp,
    prepared: BTreeMap<Op, OpRef>,
    appends: BTreeMap<Op, WriteNumber>,
    committed: Op,
}

/// One thing that may make an op committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ack {
    /// The primary's own write of this op ended, and with it all before.
    Own(Op),
    /// Another voter's PrepareOk.
    Of(ReplicaId, Op),
}

fn message(from: ReplicaId, stamp: Stamp, payload: Payload) -> Input {
    Input::Message(Message { from, incarnation: Incarnation::new(1), stamp, payload })
}

impl Primary {
    /// The primary of view 1 (the first that a new cluster has: view 0's begins with a restart), after its view
    /// change, with `ops` prepared.
    fn with_prepared(voters: u8, ops: u64) -> Primary {
        let member = |id| Member { replica: ReplicaId::new(id), disk: DiskId::new(u128::from(id) + 100) };
        let membership = Membership {
            epoch: Epoch::new(0),
            voters: (0..voters).map(member).collect(),
            learners: Vec::new(),
        };
        let root = membership.root(CLUSTER, LINEAGE);
        let first = Stamp::first(membership.epoch);
        let stamp = first.next_view();
        let me = membership.primary(stamp);
        let recovered = Recovered {
            cluster: CLUSTER,
            lineage: LINEAGE,
            replica: me,
            disk: member(me.value()).disk,
            incarnation: Incarnation::new(1),
            state: VsrState::format(membership, root),
            entries: Vec::new(),
            scan_complete: true,
            uncertain_from: None,
        };
        let options = Options {
            timing: Timing::default(),
            ring: Ring::DEFAULT,
            release: Release::new(1),
            seed: 5,
            mutations: Mutations::NONE,
        };
        let mut primary = Primary {
            replica: Replica::open(options, recovered, NOW),
            me,
            stamp,
            prepared: BTreeMap::new(),
            appends: BTreeMap::new(),
            committed: Op::ROOT,
        };
        primary.drain();
        for voter in (0..voters).map(ReplicaId::new).filter(|voter| *voter != me) {
            // First it says who it is.
            let identity = Identity {
                disk: member(voter.value()).disk,
                acked: Op::ROOT,
                checkpoint: Checkpoint::genesis(root),
                release: Release::new(1),
                busy: Op::ROOT,
            };
            primary.handle(message(voter, first, Payload::Ping { sent: NOW.monotonic, identity }));
            primary.handle(message(
                voter,
                stamp,
                Payload::DoViewChange {
                    log_stamp: LogStamp::adopted(first),
                    checkpoint: Op::ROOT,
                    commit_max: root,
                    uncertain_from: None,
                    oldest: Op::new(1),
                    suffix: Vec::new(),
                    bits: SuffixBits::default(),
                },
            ));
        }
        for op in 1..=ops {
            let proposed = primary
                .replica
                .propose(NOW, Arc::from(op.to_le_bytes()), Purpose::Service)
                .unwrap_or_else(|why| {
                    panic!(
                        "{voters} voters: {why:?}, {:?} {:?}",
                        primary.replica.status(),
                        primary.replica.stamp()
                    )
                });
            primary.prepared.insert(Op::new(op), proposed.entry);
            primary.drain();
        }
        assert_eq!(primary.appends.len(), primary.prepared.len());
        assert_eq!(primary.committed, Op::ROOT);
        primary
    }

    fn handle(&mut self, input: Input) {
        self.replica.handle(NOW, input);
        self.drain();
    }

    /// Superblocks are durable at once; of the log nothing is until an [`Ack`] says so.
    fn drain(&mut self) {
        loop {
            match self.replica.poll_output() {
                Output::Wait(_) => return,
                Output::Persist(Write::Superblock { number, .. }) => {
                    self.replica.handle(NOW, Input::Durable(Durable::Superblock(number)));
                }
                Output::Persist(Write::Append { number, entry, .. }) => {
                    self.appends.insert(entry.op(), number);
                }
                Output::Commit(entry) => {
                    assert_eq!(entry.op(), self.committed.next());
                    assert_eq!(entry.op_ref(), self.prepared[&entry.op()]);
                    self.committed = entry.op();
                }
                _ => {}
            }
        }
    }

    fn prepare_ok(&mut self, from: ReplicaId, stamp: Stamp, entry: OpRef) {
        let applied = Applied { op: Op::ROOT, digest: Digest(0) };
        self.handle(message(from, stamp, Payload::PrepareOk { entry, applied, checkpoint: Op::ROOT }));
    }

    fn take(&mut self, ack: Ack) {
        match ack {
            Ack::Own(op) => self.handle(Input::Durable(Durable::Appended(self.appends[&op]))),
            Ack::Of(voter, op) => self.prepare_ok(voter, self.stamp, self.prepared[&op]),
        }
    }

    /// Every ack that there can be.
    fn acks(&self, voters: u8) -> Vec<Ack> {
        let of = |voter, op| if voter == self.me { Ack::Own(op) } else { Ack::Of(voter, op) };
        self.prepared
            .keys()
            .flat_map(|op| (0..voters).map(move |voter| of(ReplicaId::new(voter), *op)))
            .collect()
    }
}

/// The newest op up to which every op has a replication quorum of acks: counted by hand.
fn committed_by(acks: &[Ack], me: ReplicaId, voters: u8, ops: u64) -> Op {
    let replication = Quorums::of(usize::from(voters)).replication;
    let has_quorum = |op: &Op| {
        let who: BTreeSet<ReplicaId> = acks
            .iter()
            .filter_map(|ack| match ack {
                Ack::Own(own) => (op <= own).then_some(me),
                Ack::Of(voter, acked) => (op == acked).then_some(*voter),
            })
            .collect();
        replication <= who.len()
    };
    (1..=ops).map(Op::new).take_while(has_quorum).last().unwrap_or(Op::ROOT)
}

/// Every order of the acks that are left, each prefix tried once.
fn every_order(primary: &Primary, taken: &mut Vec<Ack>, left: &[Ack], voters: u8, ops: u64) {
    assert_eq!(primary.committed, committed_by(taken, primary.me, voters, ops), "{voters} voters, {taken:?}");
    for (at, ack) in left.iter().enumerate() {
        let mut next = primary.clone();
        next.take(*ack);
        let mut rest = left.to_vec();
        rest.remove(at);
        taken.push(*ack);
        every_order(&next, taken, &rest, voters, ops);
        taken.pop();
    }
}

#[test]
fn an_op_commits_with_its_quorum_in_every_order_of_acks() {
    for (voters, ops) in [(1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1), (6, 1)] {
        let primary = Primary::with_prepared(voters, ops);
        let acks = primary.acks(voters);
        every_order(&primary, &mut Vec::new(), &acks, voters, ops);
    }
}

#[test]
fn only_acks_of_this_entry_in_this_stamp_by_a_voter_count() {
    for seed in 0..300 {
        let mut prng = Prng::new(seed);
        let voters = prng.between(1, 6) as u8;
        let ops = prng.between(1, 5);
        let mut primary = Primary::with_prepared(voters, ops);
        let mut left = primary.acks(voters);
        let mut taken = Vec::new();
        while !left.is_empty() {
            let ack = left.swap_remove(prng.below(left.len() as u64) as usize);
            taken.push(ack);
            primary.take(ack);
            for _ in 0..prng.below(3) {
                // What comes late, twice, from elsewhere or for something else changes nothing.
                let again = taken[prng.below(taken.len() as u64) as usize];
                primary.take(again);
                let voter =
                    ReplicaId::new((0..voters).filter(|id| *id != primary.me.value()).max().unwrap_or(7));
                let entry = primary.prepared[&Op::new(prng.between(1, ops))];
                let other = OpRef { op: entry.op, checksum: Checksum::of(b"another entry") };
                primary.prepare_ok(voter, primary.stamp, other);
                primary.prepare_ok(voter, Stamp::first(Epoch::new(0)), entry);
                primary.prepare_ok(ReplicaId::new(9), primary.stamp, entry);
                primary.prepare_ok(voter, primary.stamp, OpRef { op: Op::new(ops + 1), ..entry });
            }
            let expected = committed_by(&taken, primary.me, voters, ops);
            assert_eq!(primary.committed, expected, "seed {seed}, {voters} voters, {taken:?}");
        }
    }
}
