//! What a replica did, for logs, metrics, simulation traces and the assertions of tests. The core itself never logs.

use core::fmt;
use core::time::Duration;

use crate::{Command, Digest, Loss, Op, OpRef, ReplicaId, Stamp};

/// Something worth knowing happened inside a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It became the primary of this stamp (StartView sent).
    PrimaryStarted { stamp: Stamp, head: Op },
    /// It adopted the log of this stamp as a backup.
    ViewAdopted { stamp: Stamp, head: Op },
    /// It voted to leave its view.
    ViewChangeVoted { stamp: Stamp, to: Stamp, why: Suspicion },
    /// It left its view for this one.
    ViewChangeStarted { stamp: Stamp },
    /// As the new primary of `stamp` it gave up in favour of a replica that holds more.
    Forfeited { stamp: Stamp, to: ReplicaId },
    /// The log's end was decided: entries above were never committed.
    LogTruncated { stamp: Stamp, head: Op },
    /// The view's first commit point is reached: reads and effects may go on.
    FirstCommitReached { stamp: Stamp, op: Op },
    /// An entry that was missing or damaged here came from a peer.
    EntryRepaired { entry: OpRef, from: ReplicaId },
    /// This replica's checkpoint of this op is durable.
    CheckpointDurable { op: Op },
    /// Chunks of this replica's checkpoint are damaged: peers are asked for them.
    CheckpointDamaged { op: Op },
    /// Replicas disagree about the checkpoint of this op.
    CheckpointMismatch { op: Op, peer: ReplicaId },
    /// The log can't bring this replica on any more: it fetches the state of this op.
    SyncStarted { op: Op },
    /// It goes on from a peer's checkpoint of this op.
    Synced { op: Op },
    /// A message could not be used.
    MessageDropped { from: ReplicaId, command: Command, why: DropReason },
    /// This can be neither had nor given up: too many copies are damaged.
    Unrecoverable(Loss),
    /// Two canonical logs at one stamp: a bug, or a replica outside the protocol. The replica halts.
    ForkDetected { op: Op },
    /// A peer under a known number has another disk, or remembers less than it showed before.
    PeerRefused { replica: ReplicaId, why: PeerRefusal },
    /// This peer does not listen to this start of this replica, and never will: the replica halts.
    Refused { by: ReplicaId, why: PeerRefusal },
    /// A read round was confirmed by a quorum.
    ReadRoundConfirmed { round: u64 },
    /// The primary gives its primacy up.
    Abdicated { stamp: Stamp, why: Abdication },
    /// This voter lags: the primary pauses after each 64 KiB of an op, for so long at first.
    IntakeSlowed { voter: ReplicaId, pause: Duration },
    /// Nobody lags any more whom a slower primary would help.
    IntakeRestored,
    /// Replicas disagree about the state after this op.
    DigestMismatch { op: Op, peer: ReplicaId },
    /// The primary has judged that this voter's state is not the cluster's: what it holds after this op, and what most
    /// do, if most do.
    Diverged { replica: ReplicaId, op: Op, digest: Option<Digest>, majority: Option<Digest> },
    /// This replica was found out by this op: from now on it answers nothing, starts nothing and offers no state.
    Quarantined { op: Op, digest: Option<Digest>, majority: Option<Digest> },
    /// This replica, which was found out by this op, agrees with the others again.
    QuarantineLifted { op: Op },
    /// No majority of clocks agrees: log time goes on by the monotonic clock alone.
    ClockDegraded,
    /// A majority of clocks agrees again.
    ClockAgreed,
}

/// Why a replica wants to leave its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suspicion {
    /// Nothing was heard of the primary for longer than its rhythm allows.
    Silence,
    /// The primary's connection was reset and can't be made again.
    ConnectionLost,
    /// The primary itself asked for it.
    PrimaryAsked,
    /// A view change makes no progress.
    NoProgress,
    /// This replica is the primary of the view that it was in when it stopped.
    Restarted,
}

/// Why a primary gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abdication {
    /// It hears fewer than a replication quorum.
    Unheard,
    /// Its disk is stalled and those of a quorum are not.
    DiskStalled,
    /// Its disk has no room for the next checkpoint, and those of a quorum have.
    DiskFull,
    /// Its state is not the cluster's, and somebody else is there to lead.
    Diverged,
    /// Its wall clock is more than a second from where a quorum's agree that it is.
    ClockOff,
    /// It hears a quorum whose disks are well, its own is too, and yet it has committed nothing for long.
    NotCommitting,
    /// An operator, or a clean shutdown, asked for it.
    Asked,
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its sender is no member.
    NotAMember,
    /// It belongs to a stamp that this replica left.
    OldStamp,
    /// It belongs to a stamp that this replica has not adopted.
    NewerStamp,
    /// It belongs to another epoch.
    OtherEpoch,
    /// Only the stamp's primary may send it.
    NotThePrimary,
    /// It contradicts itself or what is known committed.
    Inconsistent,
    /// There is no room for it.
    NoRoom,
    /// This replica can't use it in its present status.
    WrongStatus,
    /// Its sender shows less than it showed before.
    PeerRefused,
}

/// Why a peer is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerRefusal {
    /// Its disk is not the one that the configuration binds to its number.
    OtherDisk,
    /// It shows a lower stamp or acked op than an earlier start did: its disk was restored, or lost what it had flushed.
    RemembersLess,
    /// It says that it is a start that was seen, and is another one: there are two copies of its disk.
    TwoStarts,
    /// A later start of it was seen: its disk was restored, or this was said long ago.
    EarlierStart,
}

impl PeerRefusal {
    /// Every reason, in the order of their numbers on the wire, from 1.
    pub const ALL: [PeerRefusal; 4] = [
        PeerRefusal::OtherDisk,
        PeerRefusal::RemembersLess,
        PeerRefusal::TwoStarts,
        PeerRefusal::EarlierStart,
    ];
}

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerRefusal::OtherDisk => "its data directory is not the one that the cluster was made with",
            PeerRefusal::RemembersLess => {
                "its data directory holds less than this replica has confirmed: it is an older copy, or its disk lost \
                 what it had flushed"
            }
            PeerRefusal::TwoStarts => {
                "there are two copies of its data directory, and both were started as the same start"
            }
            PeerRefusal::EarlierStart => "its data directory is an older copy: a later start of it was seen",
        })
    }
}
