//! A replica: the whole of the protocol, one input at a time.
//!
//! [`Replica::handle`] takes an input apart and changes state; then `advance` does whatever has become possible
//! (acks, commits, the next step of a view change, writes, repairs), and `timers` whatever has become due. Nothing
//! waits in a queue for a flush: what needs one is looked at again when the flush is reported, and then speaks for
//! the state of that moment. So no message of a stamp leaves after the replica decided on a later one (I17).

mod checkpoints;
mod intake;
mod log;
mod loss;
mod normal;
mod peers;
mod primary;
mod quarantine;
mod reads;
mod repair;
mod retry;
mod startup;
mod view_change;

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::clock::Clock;
use crate::event::DropReason;
use crate::{
    Checkpoint, Checksum, ClusterId, DiskId, Durable, Entry, Event, Incarnation, Instant, LogStamp,
    Membership, Message, Mutation, Mutations, Now, Op, OpRef, Payload, Prng, Quorums, ReplicaId, Ring, Stamp,
    VsrState, Write, WriteNumber, charge,
};

use checkpoints::Checkpoints;
pub use intake::Intake;
use log::Log;
use loss::Losses;
pub use loss::{Loss, Lost};
use normal::Following;
use peers::Peers;
use primary::Leading;
use quarantine::Digests;
pub use quarantine::Quarantine;
use reads::RemoteReads;
use repair::Repairs;
use view_change::{Changing, Leaving, Votes};

/// What a replica is told about its surroundings. Everything else is in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Rhythms and patience.
    pub timing: Timing,
    /// The sizes of the WAL.
    pub ring: Ring,
    /// The release that new entries are written for.
    pub release: crate::Release,
    /// Seeds jitter.
    pub seed: u64,
    /// Guards broken on purpose. [`Mutations::NONE`] outside tests.
    pub mutations: Mutations,
}

/// Rhythms and patience. The defaults suit a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between two heartbeats of an idle primary.
    pub heartbeat: Duration,
    /// The least silence of a primary that a backup suspects; measured rhythm and pauses of this process raise it.
    pub suspicion_min: Duration,
    /// A vote to leave a view counts this long.
    pub vote_life: Duration,
    /// A view change that shows no sign of progress for this long votes for the next view; backs off.
    pub view_change_patience: Duration,
    /// The longest that any back-off grows.
    pub backoff_max: Duration,
    /// First resend of what was not answered; backs off.
    pub resend_min: Duration,
    /// A primary that hears fewer than Qr voters for this long gives up.
    pub unheard_max: Duration,
    /// A primary whose oldest write is older than this, while others' are not, gives up.
    pub disk_stall_max: Duration,
    /// Between two Pings to a peer.
    pub ping: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(30),
            suspicion_min: Duration::from_millis(200),
            vote_life: Duration::from_secs(5),
            view_change_patience: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            resend_min: Duration::from_millis(50),
            unheard_max: Duration::from_secs(2),
            disk_stall_max: Duration::from_secs(1),
            ping: Duration::from_millis(500),
        }
    }
}

/// One thing that happened to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing but time: the deadline of the last [`Output::Wait`] has come.
    Tick,
    /// A peer's message, verified by its codec.
    Message(Message),
    /// Storage made something durable.
    Durable(Durable),
    /// The age of storage's oldest outstanding write; zero when there is none. Told on every change of health and
    /// at least every 100 ms while a write is outstanding.
    DiskAge(Duration),
    /// Whether the disk has room for the next checkpoint. Told on every change.
    Room(Room),
    /// The layer above has executed everything up to here, or holds the state of an installed checkpoint.
    Applied(Applied),
    /// Every chunk of a frozen state, and their list, is durable.
    Frozen {
        /// The op behind which it was frozen.
        entry: OpRef,
        /// The chained digest after that op.
        digest: Digest,
        /// Names the list of its chunks.
        root: Checksum,
    },
    /// These chunks of a checkpoint are missing or damaged, at most 64 of them; only the root while the list itself
    /// is. Answers [`Output::Fetch`] or [`Output::Install`], or is what a scrub found.
    ChunksMissing {
        /// The checkpoint's root.
        root: Checksum,
        /// The chunks.
        ids: Vec<Checksum>,
        /// How many are missing in all; 0 while the list itself is.
        in_all: u32,
    },
    /// Every chunk of this checkpoint is durable. Answers [`Output::Fetch`].
    ChunksHeld {
        /// The checkpoint's root.
        root: Checksum,
    },
    /// Storage keeps a chunk. Answers [`Output::StoreChunk`].
    ChunkStored {
        /// The root of the checkpoint that it was fetched for.
        root: Checksum,
        /// The chunk.
        id: Checksum,
    },
    /// Answers [`Output::ReadChunk`].
    ChunkRead {
        /// Who asked.
        to: ReplicaId,
        /// The chunk.
        id: Checksum,
        /// Its bytes, verified; none when it is not here or damaged.
        bytes: Option<Vec<u8>>,
    },
    /// The connection to a peer was reset and a new one was refused or unanswered: the process is probably gone.
    PeerUnreachable(ReplicaId),
    /// Carry opaque bytes to the primary (to itself when this is the primary).
    Forward(Vec<u8>),
    /// Give the primacy up if this is the primary: an operator, or a clean shutdown, asks.
    StepDown,
}

/// One thing that a replica wants done. Outputs are carried out in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message; losing it is allowed.
    Send(Recipients, Message),
    /// Write this to disk and say when it is durable.
    Persist(Write),
    /// Execute this entry: it is committed. In op order, each once.
    Commit(Entry),
    /// Freeze the state behind this op, which was the last to be committed, and make it durable as chunks. In one
    /// order with Commit; answered by [`Input::Frozen`].
    Freeze(OpRef),
    /// Go on from this checkpoint's state: everything after is executed on top of it. In one order with Commit;
    /// answered by [`Input::Applied`] or [`Input::ChunksMissing`], and nothing is committed before that.
    Install(Checkpoint),
    /// Say which chunks of this checkpoint are missing: [`Input::ChunksMissing`] or [`Input::ChunksHeld`].
    Fetch(Checkpoint),
    /// Keep this chunk for the checkpoint of this root. Answered by [`Input::ChunkStored`].
    StoreChunk {
        /// The checkpoint's root.
        root: Checksum,
        /// The chunk.
        id: Checksum,
        /// Its bytes, verified.
        bytes: Vec<u8>,
    },
    /// Read and verify a chunk for a peer. Answered by [`Input::ChunkRead`].
    ReadChunk {
        /// Who asked.
        to: ReplicaId,
        /// The chunk.
        id: Checksum,
    },
    /// This replica's part has changed.
    Role(Role),
    /// A read that was asked for may be executed once `index` is applied.
    ReadIndex { read: ReadNumber, index: Op },
    /// A read that was asked for will not be answered by this replica's view of the cluster: ask again elsewhere.
    ReadLost { read: ReadNumber },
    /// A read round of the present stamp was confirmed by a quorum: the gate for effects (§13.3).
    RoundConfirmed(RoundConfirmed),
    /// Bytes that a peer forwarded to this primary.
    Forwarded(Vec<u8>),
    /// Something worth knowing happened.
    Event(Event),
    /// Nothing more to do before this instant, or the next input. Ends every drain.
    Wait(crate::Instant),
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recipients {
    /// One peer.
    One(ReplicaId),
    /// Every other voter.
    Voters,
    /// Every other voter and every learner.
    All,
}

/// What the layer above has executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Applied {
    /// The newest op executed.
    pub op: Op,
    /// The chained digest of all replies, effects, timers and table writes up to it.
    pub digest: Digest,
}

/// A chained digest of what execution did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u64);

/// The part that a replica plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It orders requests. `serving` once the view's first commit point is applied here: before, no effect starts
    /// and reads wait.
    Primary { stamp: Stamp, serving: bool },
    /// It follows this primary.
    Backup { stamp: Stamp, primary: ReplicaId },
    /// It is between views, or can't take part; `stamp` is the one that it is moving to.
    Changing { stamp: Stamp },
}

/// Whether a disk has room for the next checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Room {
    /// There is.
    Enough,
    /// There may be none: the log can still take what is under way, and no more.
    Short,
}

/// What a replica is doing, in the protocol's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// stamp = log_stamp, both durable.
    Normal,
    /// Promised to a stamp whose log it has not adopted.
    ViewChange,
    /// Can't say what its log's end was: waits for a StartView.
    RecoveringHead,
    /// Found two logs where there must be one. Takes part in nothing any more.
    Halted,
}

/// What a replica knows of an op of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// The entry is here.
    Held(&'a Entry),
    /// The hash chain names it, and it is not here, or damaged.
    Named(OpRef),
    /// Not even its name is known.
    Unknown,
}

/// A read round that a quorum confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoundConfirmed {
    /// The stamp that the round belongs to.
    pub stamp: Stamp,
    /// When the round was sent, on this replica's monotonic clock.
    pub sent: crate::Instant,
    /// The latest that it can have been then by what a quorum of clocks agrees on. None: they don't agree.
    pub latest: Option<crate::Timestamp>,
}

/// An entry that was just prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposed {
    /// Its place and checksum. What commits at that op may be another entry: compare both.
    pub entry: OpRef,
    /// The stamp in which it was born.
    pub born: Stamp,
}

/// What a body is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What is asked for day by day.
    Service,
    /// Nothing is executed any more until it is committed: it takes the room that is kept free for it, and waits for no
    /// execution.
    Relief,
}

/// Why a body was not prepared: it is in no Prepare and will never be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// This replica is not a normal primary; the one that it believes in, if any.
    NotPrimary { primary: Option<ReplicaId> },
    /// The pipeline is full: ask again after the next commit.
    PipelineFull,
    /// Too much is waiting for the disk or for execution: ask again later.
    Behind,
    /// A voter lags: ask again after a pause ([`Intake`]).
    Slowed,
    /// The ring has no room until a checkpoint frees some.
    LogFull,
    /// The body is larger than [`crate::BODY_SIZE_MAX`].
    TooLarge,
}

/// Why no read can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReadable {
    /// No primary is known.
    NoPrimary,
    /// Too many reads are waiting.
    TooMany,
}

/// Names a read that was asked for, within one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadNumber(pub u64);

/// How far execution may lag behind what was handed out before no more is handed out.
const EXECUTION_LAG_MAX: u64 = 1024;

/// How far execution may lag before the primary takes no more requests on.
const INTAKE_LAG_MAX: u64 = 256;

/// One replica of the cluster.
#[derive(Clone, Debug)]
pub struct Replica {
    options: Options,
    cluster: ClusterId,
    me: ReplicaId,
    disk: DiskId,
    incarnation: Incarnation,
    membership: Membership,
    quorums: Quorums,
    prng: Prng,
    now: Now,
    clock: Clock,
    clock_degraded: bool,

    /// The newest stamp decided on; durable once `superblock` has caught up with `promise`.
    stamp: Stamp,
    log_stamp: LogStamp,
    uncertain_from: Option<Op>,
    part: Part,
    leaving: Option<Leaving>,
    votes: Votes,
    /// When the part played now began.
    since: Instant,

    log: Log,
    /// What stood above the commit point before the log was adopted, until it is known whether it still does.
    former: Vec<OpRef>,
    /// The newest committed pair heard of; may lie beyond the head.
    commit_max: OpRef,
    /// When the head last changed: log time goes on from there while clocks disagree.
    head_since: Instant,
    /// The head of the suffix in the newest superblock asked for.
    suffix_head: Op,
    superblock: Superblock,
    wal: Wal,

    /// The newest op handed out for execution.
    committed_out: Op,
    applied: Applied,
    digests: Digests,
    /// Whose checkpoint was found to differ: told once.
    mismatched: BTreeSet<ReplicaId>,
    disk_age: DiskAge,
    room: Room,

    checkpoints: Checkpoints,
    losses: Losses,
    peers: Peers,
    repairs: Repairs,
    reads: RemoteReads,
    read_number: u64,
    stalls: u32,
    /// How often it gave up because it committed nothing.
    not_committing: u32,
    /// How often it gave the primacy up as diverged in its present quarantine.
    handed_over: u32,
    /// All pauses of the intake.
    paused_total: Duration,

    role: Role,
    outputs: VecDeque<Output>,
}

/// The superblocks asked for and reported.
#[derive(Clone, Debug)]
struct Superblock {
    asked: WriteNumber,
    durable: WriteNumber,
    /// The stamps that superblocks on their way to disk carry.
    stamps: VecDeque<(WriteNumber, Stamp)>,
    /// The newest stamp on disk.
    stamp: Stamp,
    /// The superblock that all messages of the present stamp wait for.
    promise: WriteNumber,
}

/// The appends asked for and not yet reported.
#[derive(Clone, Debug)]
struct Wal {
    asked: WriteNumber,
    writing: BTreeMap<WriteNumber, Entry>,
    writing_bytes: u64,
    /// The ring had no room for an entry: it is written when something was let go of.
    refused: bool,
    /// The next op above the suffix's head to append: those go in op order.
    next: Op,
    /// Every entry above the suffix's head up to here is durable.
    through: Op,
}

/// What storage last said of its health, and when.
#[derive(Clone, Copy, Debug)]
struct DiskAge {
    told: Duration,
    at: Instant,
}

impl DiskAge {
    fn at(self, now: Instant) -> Duration {
        if self.told.is_zero() { Duration::ZERO } else { self.told + now.since(self.at) }
    }
}

/// What a replica does in its present stamp.
#[derive(Clone, Debug)]
enum Part {
    /// Adopted the stamp's log as its primary.
    Leading(Leading),
    /// Adopted the stamp's log as a backup.
    Following(Following),
    /// Promised itself to the stamp and has not adopted its log.
    Changing(Changing),
    /// Can't say what its log's end was.
    Recovering(Following),
    /// Found two histories.
    Halted,
}

impl Replica {
    /// Takes one input. Cannot fail: what can't be used is dropped and becomes an [`Event`].
    pub fn handle(&mut self, now: Now, input: Input) {
        if matches!(self.part, Part::Halted) {
            return;
        }
        self.wake(now);
        match input {
            Input::Tick => {}
            Input::Message(message) => self.on_message(message),
            Input::Durable(durable) => self.on_durable(durable),
            Input::DiskAge(age) => self.disk_age = DiskAge { told: age, at: self.now.monotonic },
            Input::Room(room) => self.room = room,
            Input::Applied(applied) => self.on_applied(applied),
            Input::Frozen { entry, digest, root } => self.on_frozen(entry, digest, root),
            Input::ChunksMissing { root, ids, in_all } => self.on_chunks_missing(root, ids, in_all),
            Input::ChunksHeld { root } => self.on_chunks_held(root),
            Input::ChunkStored { root, id } => self.on_chunk_stored(root, id),
            Input::ChunkRead { to, id, bytes } => self.on_chunk_read(to, id, bytes),
            Input::PeerUnreachable(peer) => self.on_peer_unreachable(peer),
            Input::Forward(body) => self.on_forward(body),
            Input::StepDown => self.abdicate(crate::event::Abdication::Asked),
        }
        self.settle();
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or_else(|| Output::Wait(self.deadline()))
    }

    /// Prepares a body as the next op, if this is a normal primary with room.
    pub fn propose(&mut self, now: Now, body: Arc<[u8]>, purpose: Purpose) -> Result<Proposed, NotProposed> {
        self.can_propose(body.len(), purpose)?;
        self.wake(now);
        let proposed = self.prepare(body);
        self.settle();
        Ok(proposed)
    }

    /// Whether [`Replica::propose`] would accept a body of this size now.
    pub fn can_propose(&self, body_size: usize, purpose: Purpose) -> Result<(), NotProposed> {
        let Part::Leading(leading) = &self.part else {
            return Err(NotProposed::NotPrimary { primary: self.primary() });
        };
        if !leading.announced || leading.abdicating.is_some() || self.is_quarantined() {
            return Err(NotProposed::NotPrimary { primary: None });
        }
        let size = u32::try_from(body_size).map_err(|_| NotProposed::TooLarge)?;
        let ring = &self.options.ring;
        if crate::BODY_SIZE_MAX < body_size || ring.charge_max < charge(size) {
            return Err(NotProposed::TooLarge);
        }
        // What the ack rule (§8) would forbid us to vote for is not even prepared.
        let kept_free = match purpose {
            Purpose::Service => ring.relief(),
            Purpose::Relief => 0,
        };
        if self.ack_limit() < self.log.end_offset().saturating_add(charge(size) + kept_free) {
            return Err(NotProposed::LogFull);
        }
        if crate::PIPELINE_MAX <= self.log.head().op.since(self.log.committed().op) {
            return Err(NotProposed::PipelineFull);
        }
        let unflushed_max = 2 * crate::PIPELINE_MAX * ring.charge_max;
        if unflushed_max < self.wal.writing_bytes {
            return Err(NotProposed::Behind);
        }
        match purpose {
            Purpose::Service if leading.pauses.holds(self.now.monotonic) => Err(NotProposed::Slowed),
            Purpose::Service if INTAKE_LAG_MAX < self.log.committed().op.since(self.applied.op) => {
                Err(NotProposed::Behind)
            }
            Purpose::Service | Purpose::Relief => Ok(()),
        }
    }

    /// The entry of this op, if it is known to be committed and is here.
    pub fn committed_entry(&self, op: Op) -> Option<&Entry> {
        if op <= self.log.executable() { self.log.entry(op) } else { None }
    }

    /// Starts a linearizable read on any replica. Answered by [`Output::ReadIndex`] or [`Output::ReadLost`].
    pub fn read_index(&mut self, now: Now) -> Result<ReadNumber, NotReadable> {
        if matches!(self.part, Part::Halted) {
            return Err(NotReadable::NoPrimary);
        }
        self.wake(now);
        let started = self.start_read();
        self.settle();
        started
    }

    /// The part that it plays now.
    pub fn role(&self) -> Role {
        match &self.part {
            Part::Leading(leading) if leading.announced => {
                Role::Primary { stamp: self.stamp, serving: self.is_serving(leading) }
            }
            Part::Following(_) if self.is_promised() => {
                Role::Backup { stamp: self.stamp, primary: self.membership.primary(self.stamp) }
            }
            Part::Leading(_)
            | Part::Following(_)
            | Part::Changing(_)
            | Part::Recovering(_)
            | Part::Halted => Role::Changing { stamp: self.stamp },
        }
    }

    /// The primary that it follows, or will as soon as its own disk says so: whoever can't wait for that may ask there.
    pub fn followed(&self) -> Option<ReplicaId> {
        matches!(self.part, Part::Following(_)).then(|| self.membership.primary(self.stamp))
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        match &self.part {
            Part::Leading(_) | Part::Following(_) => Status::Normal,
            Part::Changing(_) => Status::ViewChange,
            Part::Recovering(_) => Status::RecoveringHead,
            Part::Halted => Status::Halted,
        }
    }

    /// Its newest promised stamp.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The newest op in its log.
    pub fn head(&self) -> Op {
        self.log.head().op
    }

    /// The newest op that it knows committed.
    pub fn commit_max(&self) -> OpRef {
        self.commit_max
    }

    /// The newest op handed out for execution, by [`Output::Commit`].
    pub fn committed_out(&self) -> Op {
        self.committed_out
    }

    /// Its newest durable checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.log.checkpoint()
    }

    /// The lowest op that its log still holds.
    pub fn log_start(&self) -> Op {
        self.log.start()
    }

    /// Whether it is fetching a state to go on from.
    pub fn is_fetching_state(&self) -> bool {
        self.is_syncing()
    }

    /// The entry that stands at an op of its log, while its body is here: for inspection and for checkers.
    pub fn entry(&self, op: Op) -> Option<&Entry> {
        self.log.entry(op)
    }

    /// What is known of an op of its log: for inspection.
    pub fn standing(&self, op: Op) -> Standing<'_> {
        match (self.log.at(op), self.log.entry(op)) {
            (Some(_), Some(entry)) => Standing::Held(entry),
            (Some(name), None) => Standing::Named(name),
            (None, _) => Standing::Unknown,
        }
    }

    /// The options that it runs with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    // ---- between inputs -------------------------------------------------------------------------------------

    /// Looks at the clocks before anything is judged by them.
    fn wake(&mut self, now: Now) {
        let monotonic = now.monotonic.max(self.now.monotonic);
        let asked = self.deadline();
        let slept = asked.max(self.now.monotonic) + self.options.timing.suspicion_min / 2 < monotonic;
        self.now = Now { monotonic, wall: now.wall };
        match &mut self.part {
            Part::Following(following) | Part::Recovering(following) => following.detector.woke(monotonic),
            Part::Leading(_) | Part::Changing(_) | Part::Halted => {}
        }
        if slept {
            // A silence that we slept through is nobody's fault but ours.
            self.peers.forgive(monotonic);
            if let Part::Changing(changing) = &mut self.part {
                changing.give_time(monotonic);
            }
        }
    }

    /// Does what the input made possible, then what time made due.
    fn settle(&mut self) {
        self.advance();
        self.timers();
        self.advance();
        if self.deadline() <= self.now.monotonic {
            // What has just become possible has begun with something that is due at once.
            self.timers();
            self.advance();
        }
        self.look_for_losses();
        let role = self.role();
        if role != self.role {
            self.role = role;
            self.outputs.push_back(Output::Role(role));
        }
        self.invariants();
    }

    fn advance(&mut self) {
        // A view change may go through several steps at once: with one voter, all of them.
        loop {
            let before = (self.stamp, self.log_stamp);
            match &self.part {
                Part::Changing(_) => self.advance_view_change(),
                Part::Leading(_) => self.advance_primary(),
                Part::Following(_) => self.send_acks(),
                Part::Recovering(_) | Part::Halted => {}
            }
            if before == (self.stamp, self.log_stamp) {
                break;
            }
        }
        self.recycle();
        self.append_in_order();
        self.execute();
        self.request_repairs();
        self.resume_freeze();
        self.advance_transfer();
    }

    fn timers(&mut self) {
        self.ping_when_due();
        match &self.part {
            Part::Leading(_) => self.primary_timers(),
            Part::Following(_) | Part::Recovering(_) => self.backup_timers(),
            Part::Changing(_) => self.view_change_timers(),
            Part::Halted => {}
        }
        self.leaving_timers();
        self.read_timers();
    }

    /// When time alone will make something due.
    fn deadline(&self) -> Instant {
        let part = match &self.part {
            Part::Leading(leading) => self.primary_deadline(leading),
            Part::Following(following) | Part::Recovering(following) => following.deadline(),
            Part::Changing(changing) => changing.deadline(),
            Part::Halted => return Instant::NEVER,
        };
        part.min(self.peers.ping_at)
            .min(self.leaving_deadline())
            .min(self.repairs.deadline())
            .min(self.checkpoints.deadline())
            .min(self.reads.deadline())
    }

    fn invariants(&self) {
        if matches!(self.part, Part::Halted) {
            return;
        }
        assert!(self.log_stamp.stamp() <= self.stamp); // I3
        assert!(self.stamp.epoch == self.membership.epoch);
        assert!(self.superblock.stamp <= self.stamp);
        assert!(self.superblock.durable <= self.superblock.asked);
        assert!(self.superblock.promise <= self.superblock.asked);
        assert!(self.applied.op <= self.committed_out);
        assert!(
            self.committed_out <= self.log.executable()
                || self.options.mutations.breaks(Mutation::ExecuteWithoutChain)
        );
        assert!(self.log.committed().op <= self.commit_max.op);
        self.log.invariants();
        match &self.part {
            Part::Leading(_) => {
                assert!(self.log_stamp.stamp() == self.stamp);
                assert!(self.membership.primary(self.stamp) == self.me);
            }
            Part::Following(_) => {
                assert!(self.log_stamp.stamp() == self.stamp);
                assert!(self.membership.primary(self.stamp) != self.me);
                assert!(self.uncertain_from.is_none());
            }
            Part::Changing(_) => assert!(self.log_stamp.stamp() < self.stamp),
            Part::Recovering(_) => assert!(self.log_stamp.stamp() == self.stamp),
            Part::Halted => unreachable!("returned above"),
        }
    }

    // ---- disk -----------------------------------------------------------------------------------------------

    /// Asks for a superblock of the state as it is now. Messages of this stamp wait for it.
    fn persist(&mut self) {
        let number = self.next_superblock();
        self.superblock.promise = number;
        self.suffix_head = self.log.head().op;
        self.wal.next = self.suffix_head.next();
        self.wal.through = self.suffix_head;
        self.write_superblock(number);
    }

    fn next_superblock(&mut self) -> WriteNumber {
        let number = self.superblock.asked.next();
        self.superblock.asked = number;
        if self.superblock.stamps.len() == SUPERBLOCKS_TRACKED_MAX {
            // Forgetting the newest but one only means to learn of its stamp with the next.
            self.superblock.stamps.pop_back();
        }
        self.superblock.stamps.push_back((number, self.stamp));
        number
    }

    fn write_superblock(&mut self, number: WriteNumber) {
        let state = VsrState {
            membership: self.membership.clone(),
            stamp: self.stamp,
            log_stamp: self.log_stamp,
            suffix: self.log.suffix(),
            faulty: self.log.faulty_uncommitted(),
            uncertain_from: self.uncertain_from,
            commit_max: self.log.committed(),
            checkpoint: self.checkpoints.asked().unwrap_or(*self.log.checkpoint()),
            peers: self.peers.memories(),
        };
        self.outputs.push_back(Output::Persist(Write::Superblock { number, state }));
    }

    /// Whether everything that messages of the present stamp depend on is durable.
    fn is_promised(&self) -> bool {
        self.superblock.promise <= self.superblock.durable
    }

    /// Asks for an entry of the log to be written, if it is here and nobody has asked yet.
    fn append(&mut self, op: Op) {
        let Some(entry) = self.log.entry(op).cloned() else { return };
        if self.log.on_disk(op) != log::OnDisk::No {
            return;
        }
        if !self.has_room(entry.header().end()) {
            self.wal.refused = true;
            return;
        }
        let number = self.wal.asked.next();
        self.wal.asked = number;
        self.wal.writing_bytes += charge(entry.header().body_size);
        self.wal.writing.insert(number, entry.clone());
        self.log.writing(entry.op_ref(), number);
        self.outputs.push_back(Output::Persist(Write::Append { number, entry, keep_from: self.keep_from() }));
    }

    /// Above the suffix's head entries are written in op order: an acked op above a gap would be dead after a
    /// restart.
    fn append_in_order(&mut self) {
        if !matches!(self.part, Part::Leading(_) | Part::Following(_)) {
            return;
        }
        while self.wal.next <= self.log.head().op
            && self.log.entry(self.wal.next).is_some_and(|entry| self.has_room(entry.header().end()))
        {
            self.append(self.wal.next);
            self.wal.next = self.wal.next.next();
        }
    }

    fn on_durable(&mut self, durable: Durable) {
        match durable {
            Durable::Appended(through) => {
                let through = through.min(self.wal.asked);
                while let Some((number, entry)) = self.wal.writing.pop_first() {
                    if through < number {
                        self.wal.writing.insert(number, entry);
                        break;
                    }
                    self.wal.writing_bytes -= charge(entry.header().body_size);
                    self.log.durable(entry.op_ref(), number);
                    if self.options.mutations.breaks(Mutation::AckAfterLeaving) {
                        self.ack_after_leaving(entry.op_ref());
                    }
                }
                while self.wal.through < self.log.head().op && self.log.is_durable(self.wal.through.next()) {
                    self.wal.through = self.wal.through.next();
                }
            }
            Durable::Superblock(number) => {
                let number = number.min(self.superblock.asked);
                self.superblock.durable = self.superblock.durable.max(number);
                while let Some((asked, stamp)) = self.superblock.stamps.front().copied()
                    && asked <= number
                {
                    self.superblock.stamp = stamp;
                    self.superblock.stamps.pop_front();
                }
                self.note_checkpoint_durable();
            }
        }
    }

    // ---- execution ------------------------------------------------------------------------------------------

    /// Hands out what is committed, here, and chained to a committed pair. A due checkpoint is never skipped: the
    /// stream waits at the next one while one is being made durable (§8).
    fn execute(&mut self) {
        if self.checkpoints.is_switching() {
            return;
        }
        let skips = self.options.mutations.breaks(Mutation::SkipDueCheckpoint);
        let by_number = self.options.mutations.breaks(Mutation::ExecuteWithoutChain);
        let limit = if by_number { self.commit_max.op } else { self.log.executable() };
        while self.committed_out < limit && self.committed_out.since(self.applied.op) < EXECUTION_LAG_MAX {
            let next = self.committed_out.next();
            let entry = if by_number { self.log.any_at(next) } else { self.log.entry(next) };
            let Some(entry) = entry else { break };
            let (offset, end) = (entry.header().offset, entry.header().end());
            let is_due = self.options.ring.is_checkpoint(offset, end);
            // Nor is one taken of a state that differs from the others'.
            let is_busy = self.checkpoints.is_busy() || self.is_quarantined();
            if is_due && is_busy && !skips {
                break;
            }
            self.outputs.push_back(Output::Commit(entry.clone()));
            self.committed_out = next;
            if is_due && !is_busy && !by_number {
                self.freeze(next);
            }
        }
    }

    fn on_applied(&mut self, applied: Applied) {
        if self.committed_out < applied.op || applied.op < self.applied.op {
            return;
        }
        self.applied = applied;
        self.note_installed(applied);
        self.note_digest(applied);
    }

    // ---- messages -------------------------------------------------------------------------------------------

    fn on_message(&mut self, message: Message) {
        let Some(message) = self.admit(message) else { return };
        let Message { from, incarnation, stamp, payload } = message;
        let is_voter = self.membership.is_voter(from);
        self.note_stamp(from, stamp, &payload);
        match payload {
            Payload::Prepare { commit_max, checkpoint: _, entry } => {
                self.on_prepare(from, stamp, commit_max, entry)
            }
            Payload::PrepareOk { entry, applied, checkpoint: _ } if is_voter => {
                self.on_prepare_ok(from, stamp, entry, applied);
            }
            Payload::Commit { commit_max, read_round, applied, disk_age_us: _, divergence } => {
                self.on_commit(
                    from,
                    stamp,
                    normal::Heartbeat { commit_max, read_round, applied, divergence },
                );
            }
            Payload::CommitOk { read_round, applied, head: _, checkpoint: _, disk_age_us, sync }
                if is_voter =>
            {
                self.on_commit_ok(from, stamp, read_round, applied, disk_age_us, sync);
            }
            Payload::StartViewChange { to } if is_voter => self.on_start_view_change(from, stamp, to),
            Payload::DoViewChange {
                log_stamp,
                checkpoint,
                commit_max,
                uncertain_from,
                oldest,
                suffix,
                bits,
            } if is_voter => {
                let vote = crate::choice::DoViewChangeVote {
                    log_stamp,
                    checkpoint,
                    commit_max,
                    uncertain_from,
                    oldest,
                    suffix,
                    bits,
                };
                self.on_do_view_change(from, incarnation, stamp, vote);
            }
            Payload::StartView { commit_max, checkpoint, suffix, nonce } => {
                self.note_offer(from, checkpoint);
                self.on_start_view(from, stamp, commit_max, suffix, nonce);
            }
            Payload::GetView { nonce } => self.on_get_view(from, nonce),
            Payload::GetHeaders { top, bottom } => self.on_get_headers(from, top, bottom),
            Payload::Headers { headers } => self.on_headers(from, headers),
            Payload::GetPrepare { entry } => self.on_get_prepare(from, entry),
            Payload::Repair { entry } => self.on_repair(from, entry),
            Payload::Missing { entry } => self.on_missing(from, entry),
            Payload::Ping { sent, identity } => self.on_ping(from, sent, identity),
            Payload::Pong { ping_sent, wall, identity } => self.on_pong(from, ping_sent, wall, identity),
            Payload::ReadIndex { nonce } => self.on_read_index(from, stamp, nonce),
            Payload::ReadIndexOk { nonce, index } => self.on_read_index_ok(nonce, index),
            Payload::Forward { body } => self.on_forwarded(body),
            Payload::GetChunk { id } => self.on_get_chunk(from, id),
            Payload::Chunk { id, bytes } => self.on_chunk(id, bytes),
            Payload::MissingChunk { id } => self.on_missing_chunk(from, id),
            Payload::Refused { disk, incarnation, why } => self.on_refused(from, disk, incarnation, why),
            // Votes of those who have none.
            Payload::PrepareOk { .. }
            | Payload::CommitOk { .. }
            | Payload::StartViewChange { .. }
            | Payload::DoViewChange { .. } => self.dropped(from, &payload, DropReason::NotAMember),
        }
    }

    /// Sends a message of the present stamp, which must be durable.
    fn send(&mut self, to: Recipients, payload: Payload) {
        assert!(self.is_promised() || self.options.mutations.breaks(Mutation::DoViewChangeBeforePersist));
        self.send_stamped(to, self.stamp, payload);
    }

    /// Sends a message that speaks for no stamp: it carries the durable one.
    fn send_outside(&mut self, to: ReplicaId, payload: Payload) {
        self.send_stamped(Recipients::One(to), self.superblock.stamp, payload);
    }

    fn send_stamped(&mut self, to: Recipients, stamp: Stamp, payload: Payload) {
        let alone = match to {
            Recipients::One(peer) => peer == self.me,
            Recipients::Voters | Recipients::All => self.membership.peers(self.me).next().is_none(),
        };
        if !alone {
            let message = Message { from: self.me, incarnation: self.incarnation, stamp, payload };
            self.outputs.push_back(Output::Send(to, message));
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn dropped(&mut self, from: ReplicaId, payload: &Payload, why: DropReason) {
        self.event(Event::MessageDropped { from, command: payload.command(), why });
    }

    /// Stops for good: there are two histories, and every further step could lose one of them.
    fn halt(&mut self, op: Op) {
        self.event(Event::ForkDetected { op });
        self.lose_reads();
        self.part = Part::Halted;
    }

    // ---- opaque bytes ---------------------------------------------------------------------------------------

    fn on_forward(&mut self, body: Vec<u8>) {
        match self.primary() {
            Some(primary) if primary == self.me => self.outputs.push_back(Output::Forwarded(body)),
            Some(primary) => self.send_outside(primary, Payload::Forward { body }),
            // Nobody to carry them to. They are carried once and without an answer: the layer above asks again.
            None => {}
        }
    }

    fn on_forwarded(&mut self, body: Vec<u8>) {
        if self.primary() == Some(self.me) {
            self.outputs.push_back(Output::Forwarded(body));
        }
    }

    /// The primary that this replica believes in.
    fn primary(&self) -> Option<ReplicaId> {
        match self.role() {
            Role::Primary { .. } => Some(self.me),
            Role::Backup { primary, .. } => Some(primary),
            Role::Changing { .. } => None,
        }
    }
}

/// How many superblocks on their way to disk are told apart.
const SUPERBLOCKS_TRACKED_MAX: usize = 16;
