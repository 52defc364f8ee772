//! No bytes from a peer may stop a replica by a panic: well-formed messages with senseless contents, from members that
//! have lost their minds, in every status that a replica can be in.

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use std::sync::Arc;

use chronon_vsr::{
    Applied, Checkpoint, Checksum, Digest, DiskId, Divergence, Durable, Duration, Entry, EntryHeader,
    Identity, Incarnation, Input, Instant, LogStamp, Message, Mutations, Now, Op, OpRef, Output, Payload,
    PeerRefusal, Prng, Purpose, Release, Replica, ReplicaId, Stamp, SuffixBits, SyncProgress, Timestamp,
    View, Write, WriteNumber,
};
use world::{Cluster, Faults};

struct Madness<'a> {
    prng: &'a mut Prng,
    replica: &'a Replica,
}

impl Madness<'_> {
    fn op(&mut self) -> Op {
        let head = self.replica.head().value();
        let near = head.saturating_add(self.prng.below(24)).saturating_sub(12);
        match self.prng.below(12) {
            0 => Op::ROOT,
            1 => Op::new(u64::MAX),
            2 => Op::new(u64::MAX / 2 - 1),
            3 => Op::new(head + 1000),
            4 => Op::new(1),
            5..=7 => self.replica.commit_max().op,
            _ => Op::new(near),
        }
    }

    fn checksum_at(&mut self, op: Op) -> Checksum {
        match self.replica.entry(op) {
            Some(entry) if self.prng.chance(3, 4) => entry.checksum(),
            _ if op == self.replica.commit_max().op => self.replica.commit_max().checksum,
            _ => Checksum::of(&[self.prng.below(3) as u8]),
        }
    }

    fn op_ref(&mut self) -> OpRef {
        let op = self.op();
        OpRef { op, checksum: self.checksum_at(op) }
    }

    fn stamp(&mut self) -> Stamp {
        let Stamp { epoch, view } = self.replica.stamp();
        let view = match self.prng.below(20) {
            0 => View::new(view.value().saturating_sub(1)),
            1 => view.next(),
            2 => View::new(view.value() + self.prng.below(9)),
            3 => View::new(u64::MAX),
            _ => view,
        };
        let epoch = if self.prng.chance(1, 50) { epoch.next() } else { epoch };
        Stamp { epoch, view }
    }

    fn header(&mut self) -> EntryHeader {
        let op = self.op();
        match self.replica.entry(op) {
            Some(entry) if self.prng.chance(2, 3) => entry.header().clone(),
            _ => {
                let below = op.previous().unwrap_or(Op::ROOT);
                let checksum = self.checksum_at(below);
                self.header_on(OpRef { op: below, checksum })
            }
        }
    }

    fn header_on(&mut self, below: OpRef) -> EntryHeader {
        EntryHeader {
            cluster: world::CLUSTER,
            born: self.stamp(),
            op: Op::new(below.op.value().saturating_add(1)),
            parent: below.checksum,
            offset: self.prng.next_u64() >> self.prng.below(64),
            timestamp: Timestamp::from_nanos(self.prng.next_u64() >> self.prng.below(64)),
            commit: self.op(),
            release: Release::new(1),
            body_size: 0,
            body_checksum: Checksum::of(&[]),
        }
    }

    fn entry(&mut self) -> Entry {
        let header = self.header();
        match self.replica.entry(header.op) {
            Some(entry) if self.prng.chance(1, 2) => entry.clone(),
            _ => {
                let header = EntryHeader { body_size: 0, body_checksum: Checksum::of(&[]), ..header };
                Entry::new(header, Arc::from(Vec::new())).expect("made to fit")
            }
        }
    }

    /// Mostly a chain, from some place on.
    fn suffix(&mut self, base: OpRef) -> Vec<EntryHeader> {
        let mut suffix = Vec::new();
        let mut below = base;
        if let Some(entry) = self.replica.entry(base.op)
            && self.prng.chance(1, 2)
        {
            suffix.push(entry.header().clone());
        }
        for _ in 0..self.prng.below(9) {
            let header = match self.replica.entry(Op::new(below.op.value().saturating_add(1))) {
                Some(entry) if self.prng.chance(4, 5) => entry.header().clone(),
                _ if self.prng.chance(4, 5) => self.header_on(below),
                _ => self.header(),
            };
            below = header.op_ref();
            suffix.push(header);
        }
        suffix.truncate(9);
        suffix
    }

    fn chunk(&mut self) -> Checksum {
        Checksum::of_chunk(&[self.prng.below(3) as u8])
    }

    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint {
            entry: self.op_ref(),
            end: if self.prng.chance(1, 2) { self.prng.next_u64() } else { self.prng.below(1 << 24) },
            timestamp: Timestamp::from_nanos(self.prng.next_u64()),
            digest: Digest(self.prng.below(3)),
            release: Release::new(1),
            root: self.prng.chance(3, 4).then(|| self.chunk()),
        }
    }

    fn payload(&mut self) -> Payload {
        let applied = Applied { op: self.op(), digest: Digest(self.prng.below(3)) };
        let disk_age_us = self.prng.next_u64() as u32;
        match self.prng.below(22) {
            0 => Payload::Prepare { commit_max: self.op_ref(), checkpoint: self.op(), entry: self.entry() },
            1 => Payload::PrepareOk { entry: self.op_ref(), applied, checkpoint: self.op() },
            2 => Payload::Commit {
                commit_max: self.op_ref(),
                read_round: self.prng.below(9),
                applied,
                disk_age_us,
                divergence: Divergence {
                    op: self.op(),
                    digest: self.prng.chance(1, 2).then(|| Digest(self.prng.below(3))),
                    voters: if self.prng.chance(1, 2) { self.prng.below(64) as u8 } else { 0 },
                },
            },
            3 => Payload::CommitOk {
                read_round: self.prng.next_u64(),
                applied,
                head: self.op(),
                checkpoint: self.op(),
                disk_age_us,
                sync: self.prng.chance(1, 2).then(|| {
                    let chunks = self.prng.below(4) as u32;
                    let fetched = self.prng.below(u64::from(chunks) + 1) as u32;
                    SyncProgress { op: self.op(), fetched, chunks }
                }),
            },
            4 => Payload::StartViewChange { to: self.stamp() },
            5 | 6 => {
                let commit_max = self.op_ref();
                Payload::DoViewChange {
                    log_stamp: LogStamp::adopted(self.stamp()),
                    checkpoint: self.op(),
                    commit_max,
                    uncertain_from: self.prng.chance(1, 4).then(|| self.op()),
                    oldest: self.op(),
                    suffix: self.suffix(commit_max),
                    bits: SuffixBits {
                        present: self.prng.next_u64() as u16,
                        nack: self.prng.next_u64() as u16,
                    },
                }
            }
            7 | 8 => {
                let commit_max = self.op_ref();
                Payload::StartView {
                    commit_max,
                    checkpoint: self.checkpoint(),
                    suffix: self.suffix(commit_max),
                    nonce: self.prng.below(2),
                }
            }
            9 => Payload::GetView { nonce: self.prng.next_u64() },
            10 => Payload::GetHeaders { top: self.op_ref(), bottom: self.op() },
            11 => {
                let top = self.op_ref();
                Payload::Headers { headers: self.suffix(top) }
            }
            12 => Payload::GetPrepare { entry: self.op_ref() },
            13 => Payload::Repair { entry: self.entry() },
            14 => Payload::Missing { entry: self.op_ref() },
            15 => Payload::ReadIndex { nonce: self.prng.below(3) },
            16 => Payload::ReadIndexOk { nonce: self.prng.below(3), index: self.op() },
            17 => Payload::GetChunk { id: self.chunk() },
            18 => Payload::MissingChunk { id: self.chunk() },
            19 => {
                let bytes = vec![self.prng.below(3) as u8];
                Payload::Chunk { id: Checksum::of_chunk(&bytes), bytes }
            }
            20 => Payload::Refused {
                disk: DiskId::new(self.prng.next_u64().into()),
                incarnation: Incarnation::new(self.prng.below(5)),
                why: PeerRefusal::ALL[self.prng.below(4) as usize],
            },
            _ => Payload::Forward { body: vec![1, 2, 3] },
        }
    }
}

/// Carries out what the replica asks of its disk, now or never.
fn drain(replica: &mut Replica, now: Now, prng: &mut Prng) {
    loop {
        let mut reports = Vec::new();
        loop {
            match replica.poll_output() {
                Output::Wait(_) => break,
                Output::Persist(Write::Append { number, .. }) => reports.push(Durable::Appended(number)),
                Output::Persist(Write::Superblock { number, .. }) => {
                    reports.push(Durable::Superblock(number))
                }
                _ => {}
            }
        }
        if reports.is_empty() || prng.chance(1, 8) {
            return;
        }
        for durable in reports {
            replica.handle(now, Input::Durable(durable));
        }
    }
}

#[test]
fn no_message_of_a_member_stops_a_replica_by_a_panic() {
    for seed in 0..60 {
        let mut c = Cluster::with_options(3, seed, Mutations::NONE, Faults::SOME);
        for _ in 0..c.seed % 7 {
            for _ in 0..10 {
                c.propose_anywhere();
                c.run(Duration::from_millis(12));
            }
            c.mishap();
        }
        let mut prng = Prng::new(seed);
        for i in (0..3).filter(|i| c.is_up(*i)) {
            let mut replica = c.replica(i).clone();
            let mut clock = c.now;
            for _ in 0..400 {
                clock = clock + Duration::from_millis(prng.below(40));
                let now = Now { monotonic: clock, wall: Timestamp::from_nanos(clock.nanos()) };
                let from = (i + 1 + prng.below(2) as usize) % 3;
                let mut madness = Madness { prng: &mut prng, replica: &replica };
                let (stamp, payload) = (madness.stamp(), madness.payload());
                let incarnation = Incarnation::new(1000);
                let message = Message { from: ReplicaId::new(from as u8), incarnation, stamp, payload };
                let identity = Identity {
                    disk: DiskId::new(1000 + from as u128),
                    acked: Op::new(u64::MAX),
                    checkpoint: Madness { prng: &mut prng, replica: &replica }.checkpoint(),
                    release: Release::new(1),
                    busy: Op::ROOT,
                };
                let ping = Message {
                    payload: Payload::Ping { sent: Instant::ZERO, identity },
                    stamp: replica.stamp(),
                    ..message.clone()
                };
                replica.handle(now, Input::Message(ping));
                drain(&mut replica, now, &mut prng);
                replica.handle(now, Input::Message(message));
                drain(&mut replica, now, &mut prng);
                if prng.chance(1, 3) {
                    let _ = replica.propose(now, Arc::from(vec![7]), Purpose::Service);
                    let _ = replica.read_index(now);
                    let applied = Applied { op: replica.committed_out(), digest: Digest(1) };
                    replica.handle(now, Input::Applied(applied));
                    drain(&mut replica, now, &mut prng);
                }
                if prng.chance(1, 50) {
                    replica.handle(now, Input::PeerUnreachable(ReplicaId::new(from as u8)));
                    replica.handle(now, Input::Durable(Durable::Appended(WriteNumber::ZERO)));
                    replica.handle(now, Input::DiskAge(Duration::from_secs(prng.below(9))));
                    drain(&mut replica, now, &mut prng);
                }
                if replica.status() == chronon_vsr::Status::Halted {
                    replica = c.replica(i).clone();
                    clock = c.now;
                }
            }
        }
    }
}
