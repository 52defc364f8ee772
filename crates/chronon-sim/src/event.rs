//! What can happen in a world, and what can be done to it.

use core::fmt;
use std::sync::Arc;

use chronon_kernel::{Answer, Attempt, Ended};
use chronon_node::Token;
use chronon_storage::JobId;
use chronon_vsr::{Duration, Instant, ReplicaId};

use crate::CallId;
use crate::network::Envelope;
use crate::sink::Deed;

/// Something that happens at some instant.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message arrives.
    Deliver(Envelope),
    /// A half of a replica runs.
    Front { at: usize, life: u32 },
    /// A half of a replica runs.
    Back { at: usize, life: u32 },
    /// The first step of a job is done.
    DiskStep { at: usize, life: u32, job: JobId, left: usize },
    /// The store of chunks does its next thing.
    Vault { at: usize, life: u32 },
    /// The first step of the store's job is done.
    VaultStep { at: usize, life: u32, job: JobId, left: usize },
    /// The journal and the store look at some of what they hold.
    Scrub { at: usize, life: u32 },
    /// Front is told how old the oldest write is.
    DiskAge { at: usize, life: u32 },
    /// The journal may write its evidence.
    Evidence { at: usize, life: u32 },
    /// A connection to a dead process is reset.
    PeerGone { at: usize, peer: ReplicaId },
    /// An executor takes an attempt up.
    Execute { at: usize, life: u32, attempt: Arc<Attempt> },
    /// An attempt's bytes arrive at the sink.
    SinkArrive { call: u64, attempt: Arc<Attempt> },
    /// A sink acts.
    SinkAct { call: u64, attempt: Arc<Attempt>, deed: Deed },
    /// A sink's answer arrives.
    SinkAnswer { call: u64, ended: Ended },
    /// An executor has waited long enough.
    AttemptTimeout { call: u64 },
    /// A client does its next thing.
    ClientWake { client: u32, life: u32 },
    /// A client's request arrives at a replica.
    ClientArrive { client: u32, call: CallId, token: Token, at: usize },
    /// An answer arrives at a client.
    ClientAnswer { client: u32, call: CallId, token: Token, answer: Answer },
    /// A client has waited long enough for one attempt.
    ClientTimeout { client: u32, call: CallId, token: Token },
    /// A client sends the same call again.
    ClientRetry { client: u32, call: CallId },
    /// Somebody does harm, or ends it.
    Fault(Fault),
}

/// What can be done to a world. Scenarios do it by hand, the swarm by the dice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed. What it wrote and did not flush stays in the page cache.
    Kill(ReplicaId),
    /// The process is killed as soon as it has carried out so many more of its outputs: between two of them, or with half
    /// of a message's receivers served.
    KillWithin(ReplicaId, u32),
    /// The machine loses its power: what was not flushed is lost or torn.
    PowerOff(ReplicaId),
    /// The replica is started.
    Start(ReplicaId),
    /// The process is stopped (SIGSTOP).
    Pause(ReplicaId),
    /// The process goes on (SIGCONT).
    Resume(ReplicaId),
    /// Nothing passes from the first to the second.
    Cut(ReplicaId, ReplicaId),
    /// Messages pass again from the first to the second.
    Mend(ReplicaId, ReplicaId),
    /// All wires are whole again.
    MendAll,
    /// Every step of the disk takes this much longer. Zero ends it.
    DiskStall(ReplicaId, Duration),
    /// The replica takes this long to execute each op. Zero ends it.
    SlowExecution(ReplicaId, Duration),
    /// The next write or flush fails.
    DiskError(ReplicaId),
    /// One bit of the WAL flips, on the page given by this number modulo the pages in use.
    Rot(ReplicaId, u64),
    /// Harm is done to a page of one region, the one given by this number. Whether the protocol can bear it is the
    /// caller's business.
    Harm(ReplicaId, Region, Harm, u64),
    /// The disk has no room for packs to grow any more, or has again.
    DiskFull(ReplicaId, bool),
    /// The wall clock is set this many nanoseconds off.
    Clock(ReplicaId, i64),
    /// The replica is asked to give its primacy up.
    StepDown(ReplicaId),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(replica) => write!(f, "R{replica} is killed"),
            Fault::KillWithin(replica, outputs) => {
                write!(f, "R{replica} is to be killed after {outputs} more outputs")
            }
            Fault::PowerOff(replica) => write!(f, "R{replica} loses its power"),
            Fault::Start(replica) => write!(f, "R{replica} is started"),
            Fault::Pause(replica) => write!(f, "R{replica} is stopped (SIGSTOP)"),
            Fault::Resume(replica) => write!(f, "R{replica} goes on (SIGCONT)"),
            Fault::Cut(from, to) => write!(f, "nothing passes from R{from} to R{to} any more"),
            Fault::Mend(from, to) => write!(f, "messages pass from R{from} to R{to} again"),
            Fault::MendAll => f.write_str("all wires are whole again"),
            Fault::DiskStall(replica, Duration::ZERO) => write!(f, "R{replica}'s disk stalls no more"),
            Fault::DiskStall(replica, stall) => {
                write!(f, "each step of R{replica}'s disk takes {stall:?} longer")
            }
            Fault::SlowExecution(replica, Duration::ZERO) => {
                write!(f, "R{replica} executes no slower any more")
            }
            Fault::SlowExecution(replica, each) => write!(f, "R{replica} takes {each:?} longer for each op"),
            Fault::DiskError(replica) => write!(f, "R{replica}'s next write or flush fails"),
            Fault::Rot(replica, _) => write!(f, "a bit flips in R{replica}'s log"),
            Fault::Harm(replica, region, harm, _) => {
                let region = match region {
                    Region::Wal => "log",
                    Region::Superblock => "superblock",
                    Region::Packs => "packs",
                };
                let harm = match harm {
                    Harm::Rot => "rots",
                    Harm::Unreadable => "can't be read any more",
                    Harm::Lost => "never got what was last written to it",
                    Harm::Misdirected => "did not get what was last written to it, for another page did",
                };
                write!(f, "a page of R{replica}'s {region} {harm}")
            }
            Fault::DiskFull(replica, true) => write!(f, "R{replica}'s disk is full"),
            Fault::DiskFull(replica, false) => write!(f, "R{replica}'s disk has room again"),
            Fault::Clock(replica, 0) => write!(f, "R{replica}'s wall clock is right again"),
            Fault::Clock(replica, skew) => {
                write!(f, "R{replica}'s wall clock is set {} ms off", skew / 1_000_000)
            }
            Fault::StepDown(replica) => write!(f, "R{replica} is asked to give its primacy up"),
        }
    }
}

/// A part of a replica's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The log.
    Wal,
    /// The copies of the superblock.
    Superblock,
    /// The chunks of checkpoints.
    Packs,
}

/// What may happen to a page of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A bit flips.
    Rot,
    /// It can't be read until it is written again.
    Unreadable,
    /// What was last written to it never arrived, though a flush said so.
    Lost,
    /// What was last written to it went to another page.
    Misdirected,
}

/// An event and its place in the heap: earlier first, and of one instant in the order of their making.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) at: Instant,
    pub(crate) number: u64,
    pub(crate) event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
