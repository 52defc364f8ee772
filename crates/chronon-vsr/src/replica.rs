//! A replica: the whole of the protocol, one input at a time.

use alloc::sync::Arc;
use core::time::Duration;

use crate::{
    Durable, Entry, Event, Message, Mutations, Now, Op, OpRef, Recovered, ReplicaId, Ring, Stamp, Write,
};

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
    /// The layer above has executed everything up to here.
    Applied(Applied),
    /// The connection to a peer was reset and a new one was refused or unanswered: the process is probably gone.
    PeerUnreachable(ReplicaId),
    /// Carry opaque bytes to the primary (to itself when this is the primary).
    Forward(alloc::vec::Vec<u8>),
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
    /// This replica's part has changed.
    Role(Role),
    /// A read that was asked for may be executed once `index` is applied.
    ReadIndex { read: ReadNumber, index: Op },
    /// A read that was asked for will not be answered by this replica's view of the cluster: ask again elsewhere.
    ReadLost { read: ReadNumber },
    /// A read round of the present stamp was confirmed by a quorum: the gate for effects (§13.3).
    RoundConfirmed(RoundConfirmed),
    /// Bytes that a peer forwarded to this primary.
    Forwarded(alloc::vec::Vec<u8>),
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

/// A read round that a quorum confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoundConfirmed {
    /// The stamp that the round belongs to.
    pub stamp: Stamp,
    /// When the round was sent, on this replica's monotonic clock.
    pub sent: crate::Instant,
}

/// An entry that was just prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposed {
    /// Its place and checksum. What commits at that op may be another entry: compare both.
    pub entry: OpRef,
    /// The stamp in which it was born.
    pub born: Stamp,
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

/// One replica of the cluster.
#[derive(Clone, Debug)]
pub struct Replica {
    options: Options,
}

impl Replica {
    /// A replica as its data directory left it. Drain its outputs before anything else: it may have to speak first.
    pub fn open(_options: Options, _recovered: Recovered, _now: Now) -> Replica {
        todo!("replica")
    }

    /// Takes one input. Cannot fail: what can't be used is dropped and becomes an [`Event`].
    pub fn handle(&mut self, _now: Now, _input: Input) {
        todo!("replica")
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    pub fn poll_output(&mut self) -> Output {
        todo!("replica")
    }

    /// Prepares a body as the next op, if this is a normal primary with room.
    pub fn propose(&mut self, _now: Now, _body: Arc<[u8]>) -> Result<Proposed, NotProposed> {
        todo!("replica")
    }

    /// Whether [`Replica::propose`] would accept a body of this size now.
    pub fn can_propose(&self, _body_size: usize) -> Result<(), NotProposed> {
        todo!("replica")
    }

    /// Starts a linearizable read on any replica. Answered by [`Output::ReadIndex`] or [`Output::ReadLost`].
    pub fn read_index(&mut self, _now: Now) -> Result<ReadNumber, NotReadable> {
        todo!("replica")
    }

    /// The part that it plays now.
    pub fn role(&self) -> Role {
        todo!("replica")
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        todo!("replica")
    }

    /// Its newest promised stamp.
    pub fn stamp(&self) -> Stamp {
        todo!("replica")
    }

    /// The newest op in its log.
    pub fn head(&self) -> Op {
        todo!("replica")
    }

    /// The newest op that it knows committed.
    pub fn commit_max(&self) -> OpRef {
        todo!("replica")
    }

    /// The newest op handed out for execution, by [`Output::Commit`].
    pub fn committed_out(&self) -> Op {
        todo!("replica")
    }

    /// The options that it runs with.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
