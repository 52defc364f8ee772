//! One replica with its disk, as the search sees it: what can happen to it, and what must not come of that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::format;
use std::hash::{Hash, Hasher};
use std::string::{String, ToString};
use std::sync::Arc;
use std::vec::Vec;

use crate::{
    Applied, ClusterId, Digest, DiskId, Durable, Duration, Entry, EntryHeader, Event, Identity, Incarnation,
    Input, Instant, Membership, Message, Mutations, Now, Op, OpRef, Options, Output, PIPELINE_MAX, Payload,
    Prng, Purpose, Recipients, Recovered, RecoveredEntry, Release, Replica, ReplicaId, Ring, Stamp,
    Suspicion, Timestamp, Timing, Verdict, VsrState, Write,
};

use super::super::{Part, Status};

const CLUSTER: ClusterId = ClusterId::new(0xC0FFEE);
const LINEAGE: u128 = 7;
/// Enough for heartbeats, repeats and questions to fall due, and too little for any suspicion.
const TICK: Duration = Duration::from_millis(60);

/// One thing that happens to one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// A message arrives, by its number.
    Deliver(u16),
    /// The oldest write is flushed.
    Flush,
    /// It suspects its primary, or gives its primacy up.
    Suspect,
    /// An entry with this body is prepared.
    Propose(u8),
    Tick,
    /// It crashes and starts again. Then this op's entry, durable before, can't be read.
    Restart {
        rots: Option<Op>,
    },
    /// A peer says who it is: what a restart is followed by, on both sides.
    Meet {
        peer: u8,
        incarnation: u64,
    },
}

/// One replica, its disk, and what only the checks know.
#[derive(Clone)]
pub(super) struct Node {
    replica: Replica,
    disk: Disk,
    ticks: u8,
    executed: OpRef,
    /// Every vote for an entry that it ever gave.
    acked: BTreeSet<(Stamp, OpRef)>,
    /// The newest StartView that it sent: its stamp, and its log from its commit_max on.
    announced: Option<(Stamp, Vec<OpRef>)>,
}

#[derive(Clone)]
struct Disk {
    incarnation: Incarnation,
    state: VsrState,
    wal: BTreeMap<OpRef, Entry>,
    rotten: BTreeSet<OpRef>,
    queue: VecDeque<Write>,
}

/// What is looked up of a replica's state again and again.
pub(super) struct Facts {
    pub(super) view: u64,
    /// Of its newest durable superblock: not even a restart brings it back below.
    pub(super) durable_view: u64,
    pub(super) incarnation: u64,
    pub(super) writes: bool,
    pub(super) can_propose: bool,
    /// The view whose log it has.
    pub(super) log_view: u64,
    pub(super) committed: Vec<OpRef>,
    pub(super) announced: Option<(Stamp, Vec<OpRef>)>,
    pub(super) durable: BTreeSet<OpRef>,
    /// What could rot: durable, and above what it knows committed.
    pub(super) tail: Vec<Op>,
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Node { replica, disk, ticks, executed, acked, announced } = self;
        (replica.me, ticks, executed, acked, announced).hash(state);
        let part = match &replica.part {
            Part::Leading(leading) => {
                leading.hash(state);
                0_u8
            }
            Part::Following(following) => {
                following.hash(state);
                1
            }
            Part::Changing(changing) => {
                changing.hash(state);
                2
            }
            Part::Recovering(following) => {
                following.hash(state);
                3
            }
            Part::Halted => 4,
        };
        (part, replica.incarnation, replica.stamp, replica.log_stamp, replica.uncertain_from).hash(state);
        (&replica.leaving, &replica.votes, &replica.log, &replica.former, replica.commit_max).hash(state);
        (replica.suffix_head, replica.is_promised(), replica.superblock.stamp).hash(state);
        (replica.wal.next, replica.wal.through, replica.committed_out, replica.applied.op).hash(state);
        (&replica.peers, &replica.repairs).hash(state);
        told_apart(&disk.state).hash(state);
        (disk.wal.keys().collect::<Vec<_>>(), &disk.rotten, disk.incarnation).hash(state);
        for write in &disk.queue {
            match write {
                Write::Append { entry, .. } => entry.op_ref().hash(state),
                Write::Superblock { state: written, .. } => told_apart(written).hash(state),
            }
        }
    }
}

/// All of a superblock but what peers once showed.
fn told_apart(state: &VsrState) -> impl Hash + '_ {
    let VsrState { stamp, log_stamp, suffix, faulty, uncertain_from, commit_max, .. } = state;
    (stamp, log_stamp, suffix, faulty, uncertain_from, commit_max)
}

impl Node {
    /// A new replica on a new disk, before it has said anything.
    pub(super) fn open(me: ReplicaId, membership: &Membership) -> Node {
        let root = membership.root(CLUSTER, LINEAGE);
        let disk = Disk {
            incarnation: Incarnation::new(1),
            state: VsrState::format(membership.clone(), root),
            wal: BTreeMap::new(),
            rotten: BTreeSet::new(),
            queue: VecDeque::new(),
        };
        let options = Options {
            timing: Timing::default(),
            ring: Ring::new(64 * 1024 * 1024, 4096).expect("the ring is large"),
            release: Release::new(1),
            seed: 0,
            mutations: Mutations::NONE,
        };
        let replica = Replica::open(options, disk.recovered(me), now(0));
        Node { replica, disk, ticks: 0, executed: root, acked: BTreeSet::new(), announced: None }
    }

    /// What it says as it opens.
    pub(super) fn speak(&mut self) -> Result<Vec<(Recipients, Message)>, String> {
        self.drain(self.replica.stamp)
    }

    /// The search begins: with a guard broken, and nothing remembered. Says the view.
    pub(super) fn begin(&mut self, mutations: Mutations) -> u64 {
        assert!(self.replica.status() == Status::Normal, "everybody is normal at first");
        self.replica.options.mutations = mutations;
        (self.acked, self.announced) = (BTreeSet::new(), None);
        self.replica.stamp.view.value()
    }

    fn now(&self) -> Now {
        now(self.ticks)
    }

    /// Randomness only spreads what replicas do over time, and time is the search's.
    fn handle(&mut self, input: Input) {
        self.replica.prng = Prng::new(0);
        let now = self.now();
        self.replica.handle(now, input);
    }

    pub(super) fn me(&self) -> ReplicaId {
        self.replica.me
    }

    pub(super) fn facts(&self) -> Facts {
        let Node { replica, disk, .. } = self;
        let committed = replica.log.committed().op;
        let known = (1..=committed.value()).filter_map(|op| replica.log.at(Op::new(op)));
        Facts {
            view: replica.stamp.view.value(),
            durable_view: disk.state.stamp.view.value(),
            incarnation: disk.incarnation.value(),
            writes: !disk.queue.is_empty(),
            can_propose: replica.can_propose(1, Purpose::Service).is_ok(),
            log_view: replica.log_stamp.stamp().view.value(),
            committed: known.collect(),
            announced: self.announced.clone(),
            durable: disk.wal.keys().copied().collect(),
            tail: disk
                .wal
                .keys()
                .filter(|entry| committed < entry.op && !disk.rotten.contains(entry))
                .map(|entry| entry.op)
                .collect(),
        }
    }

    /// Does one thing and all that follows from it at once. The messages sent, or what must not be.
    pub(super) fn act(
        &mut self,
        action: Action,
        message: Option<Message>,
    ) -> Result<Vec<(Recipients, Message)>, String> {
        let stamp_before = self.replica.stamp;
        match action {
            Action::Deliver(_) => self.handle(Input::Message(message.expect("a delivery has a message"))),
            Action::Flush => self.flush()?,
            Action::Suspect => {
                if matches!(self.replica.part, Part::Leading(_)) {
                    self.handle(Input::StepDown);
                } else {
                    // What a detector or lost patience leads to, without the time that they take.
                    self.replica.prng = Prng::new(0);
                    self.replica.vote_to_leave(Suspicion::Silence);
                    self.replica.settle();
                }
            }
            Action::Propose(body) => {
                self.replica.prng = Prng::new(0);
                let now = self.now();
                // Whoever asks has looked.
                let _ = self.replica.propose(now, Arc::from(&[body][..]), Purpose::Service);
            }
            Action::Tick => {
                self.ticks += 1;
                self.handle(Input::Tick);
            }
            Action::Restart { rots } => self.restart(rots),
            Action::Meet { peer, incarnation } => {
                let peer = ReplicaId::new(peer);
                // It shows enough not to be refused for a disk that was restored (here no disk is), and moves nobody.
                let (stamp, monotonic) = (self.replica.stamp, self.now().monotonic);
                let identity = Identity {
                    disk: disk_of(peer),
                    acked: Op::new(u64::MAX),
                    checkpoint: *self.replica.checkpoint(),
                    release: Release::new(1),
                    busy: Op::ROOT,
                };
                let payload = Payload::Ping { sent: monotonic, identity };
                let incarnation = Incarnation::new(incarnation);
                self.handle(Input::Message(Message { from: peer, incarnation, stamp, payload }));
            }
        }
        let restarted = matches!(action, Action::Restart { .. });
        self.drain(if restarted { self.replica.stamp } else { stamp_before })
    }

    fn flush(&mut self) -> Result<(), String> {
        let Some(write) = self.disk.queue.pop_front() else { return Ok(()) };
        match write {
            Write::Append { number, entry, .. } => {
                self.disk.rotten.remove(&entry.op_ref());
                self.disk.wal.insert(entry.op_ref(), entry);
                self.handle(Input::Durable(Durable::Appended(number)));
            }
            Write::Superblock { number, state } => {
                let old = &self.disk.state;
                let falls = state.stamp < old.stamp
                    || state.log_stamp < old.log_stamp
                    || state.commit_max.op < old.commit_max.op;
                if falls {
                    return Err("I2: a superblock shows less than the one before".to_string());
                }
                self.disk.state = state;
                self.handle(Input::Durable(Durable::Superblock(number)));
            }
        }
        Ok(())
    }

    fn restart(&mut self, rots: Option<Op>) {
        let disk = &mut self.disk;
        disk.queue.clear();
        disk.incarnation = disk.incarnation.next(0).expect("few starts");
        disk.rotten.extend(disk.wal.keys().filter(|entry| Some(entry.op) == rots));
        self.executed = OpRef { op: Op::ROOT, ..self.replica.log.base() };
        let now = self.now();
        let recovered = self.disk.recovered(self.replica.me);
        self.replica = Replica::open(*self.replica.options(), recovered, now);
    }

    /// Takes all outputs and checks each; execution is done at once.
    fn drain(&mut self, stamp_before: Stamp) -> Result<Vec<(Recipients, Message)>, String> {
        let mut sent = Vec::new();
        loop {
            match self.replica.poll_output() {
                Output::Wait(_) => break,
                Output::Send(to, message) => {
                    if let Some(message) = of_interest(message) {
                        self.check_sent(&message, stamp_before)?;
                        sent.push((to, message));
                    }
                }
                Output::Persist(write) => self.disk.queue.push_back(write),
                Output::Commit(entry) => {
                    if entry.header().parent != self.executed.checksum
                        || entry.op() != self.executed.op.next()
                    {
                        return Err(format!("I4: op {} is executed off the chain", entry.op()));
                    }
                    self.executed = entry.op_ref();
                    let applied = Applied { op: entry.op(), digest: Digest(entry.op().value()) };
                    self.handle(Input::Applied(applied));
                }
                Output::Event(Event::ForkDetected { op }) => {
                    return Err(format!("I1: a replica finds two histories at op {op}"));
                }
                Output::Event(Event::PeerRefused { replica, .. }) => {
                    return Err(format!("I2: replica {replica} no longer knows what it showed"));
                }
                Output::Event(_)
                | Output::Freeze(_)
                | Output::Install(_)
                | Output::Fetch(_)
                | Output::StoreChunk { .. }
                | Output::ReadChunk { .. }
                | Output::Role(_)
                | Output::ReadIndex { .. }
                | Output::ReadLost { .. }
                | Output::RoundConfirmed(_)
                | Output::Forwarded(_) => {}
            }
        }
        let replica = &self.replica;
        if replica.status() != Status::Halted && replica.stamp < replica.log_stamp.stamp() {
            return Err("I3: log_stamp is beyond stamp".to_string());
        }
        if PIPELINE_MAX < replica.head().since(replica.log.committed().op) {
            return Err("I7: too much stands above commit_max".to_string());
        }
        Ok(sent)
    }

    fn check_sent(&mut self, message: &Message, stamp_before: Stamp) -> Result<(), String> {
        let stamp = message.stamp;
        match &message.payload {
            Payload::PrepareOk { entry, .. } => {
                if stamp < stamp_before {
                    return Err(format!(
                        "I17: a vote of view {} leaves in view {}",
                        stamp.view, stamp_before.view
                    ));
                }
                self.acked.insert((stamp, *entry));
            }
            Payload::DoViewChange { log_stamp, commit_max, uncertain_from, suffix, bits, .. } => {
                if stamp < stamp_before {
                    return Err(format!(
                        "I17: a vote for view {} leaves in view {}",
                        stamp.view, stamp_before.view
                    ));
                }
                let head = suffix.last().map_or(commit_max.op, |header| header.op);
                let own = self
                    .acked
                    .iter()
                    .filter(|(acked_in, entry)| *acked_in == log_stamp.stamp() && commit_max.op < entry.op);
                for (_, entry) in own {
                    let place = suffix.iter().position(|header| header.op == entry.op);
                    let is_nack = match place {
                        Some(at) => suffix[at].op_ref() != *entry || bits.nack & 1 << at != 0,
                        None => head < entry.op,
                    };
                    if is_nack && uncertain_from.is_none_or(|from| entry.op < from) {
                        return Err(format!("I5: op {}, which it acked, is nacked", entry.op));
                    }
                }
            }
            Payload::StartView { commit_max, suffix, .. } => {
                let log = announced_log(*commit_max, suffix);
                let before = self.announced.iter().filter(|(announced, _)| *announced == stamp);
                if before.flat_map(|(_, log)| log).any(|entry| log.iter().all(|now| now.op < entry.op)) {
                    return Err(format!("I6: the head of view {} falls", stamp.view));
                }
                self.announced = Some((stamp, log));
            }
            Payload::Prepare { .. }
            | Payload::Commit { .. }
            | Payload::CommitOk { .. }
            | Payload::StartViewChange { .. }
            | Payload::GetView { .. }
            | Payload::GetHeaders { .. }
            | Payload::Headers { .. }
            | Payload::GetPrepare { .. }
            | Payload::Repair { .. }
            | Payload::Missing { .. }
            | Payload::Ping { .. }
            | Payload::Pong { .. }
            | Payload::ReadIndex { .. }
            | Payload::ReadIndexOk { .. }
            | Payload::Forward { .. }
            | Payload::GetChunk { .. }
            | Payload::Chunk { .. }
            | Payload::MissingChunk { .. }
            | Payload::Refused { .. } => {}
        }
        Ok(())
    }
}

impl Disk {
    fn recovered(&self, me: ReplicaId) -> Recovered {
        let entries = self.wal.values().map(|entry| RecoveredEntry {
            header: entry.header().clone(),
            verdict: if self.rotten.contains(&entry.op_ref()) {
                Verdict::Faulty
            } else {
                Verdict::Intact(entry.clone())
            },
        });
        Recovered {
            cluster: CLUSTER,
            lineage: LINEAGE,
            replica: me,
            disk: disk_of(me),
            incarnation: self.incarnation,
            state: self.state.clone(),
            entries: entries.collect(),
            scan_complete: true,
            uncertain_from: None,
        }
    }
}

fn now(ticks: u8) -> Now {
    let passed = TICK * u32::from(ticks);
    Now {
        monotonic: Instant::from_nanos(1_000_000_000) + passed,
        wall: Timestamp::from_nanos(1_700_000_000_000_000_000) + passed,
    }
}

pub(super) fn disk_of(replica: ReplicaId) -> DiskId {
    DiskId::new(100 + u128::from(replica.value()))
}

/// A message without what decides nothing here; none if all of it decides nothing.
fn of_interest(mut message: Message) -> Option<Message> {
    let nothing = Applied { op: Op::ROOT, digest: Digest(0) };
    match &mut message.payload {
        Payload::PrepareOk { applied, .. } => *applied = nothing,
        Payload::Commit { applied, read_round, disk_age_us, .. } => {
            (*applied, *read_round, *disk_age_us) = (nothing, 0, 0);
        }
        Payload::Ping { .. }
        | Payload::Pong { .. }
        | Payload::CommitOk { .. }
        | Payload::ReadIndex { .. }
        | Payload::ReadIndexOk { .. }
        | Payload::Forward { .. }
        | Payload::GetChunk { .. }
        | Payload::Chunk { .. }
        | Payload::MissingChunk { .. }
        | Payload::Refused { .. } => return None,
        Payload::Prepare { .. }
        | Payload::StartViewChange { .. }
        | Payload::DoViewChange { .. }
        | Payload::StartView { .. }
        | Payload::GetView { .. }
        | Payload::GetHeaders { .. }
        | Payload::Headers { .. }
        | Payload::GetPrepare { .. }
        | Payload::Repair { .. }
        | Payload::Missing { .. } => {}
    }
    Some(message)
}

/// The log that a StartView tells, from its commit_max on.
pub(super) fn announced_log(commit_max: OpRef, suffix: &[EntryHeader]) -> Vec<OpRef> {
    let above = suffix.iter().map(|header| header.op_ref()).filter(|entry| *entry != commit_max);
    [commit_max].into_iter().chain(above).collect()
}
