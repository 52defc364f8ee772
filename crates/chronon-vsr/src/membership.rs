//! Who takes part, and the root of the log that binds them.

use alloc::vec::Vec;

use crate::{Checksum, ClusterId, DiskId, Epoch, Op, OpRef, ReplicaId, Stamp};

/// The most voters of a cluster.
pub const VOTERS_MAX: usize = 6;

/// A replica as the configuration binds it: its number and the disk that number belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The replica's number.
    pub replica: ReplicaId,
    /// The data directory that this number was given to. Another disk under the same number is refused.
    pub disk: DiskId,
}

/// The configuration of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The epoch that this configuration is in force for.
    pub epoch: Epoch,
    /// 1 to [`VOTERS_MAX`], in the order that primaries take turns.
    pub voters: Vec<Member>,
    /// Followers without a vote.
    pub learners: Vec<Member>,
}

impl Membership {
    /// The root of the log: the virtual entry at op 0. Its checksum binds the cluster id, what `init` drew for the
    /// cluster (`lineage`) and every voter's disk, so that replicas of two inits can never chain to one another.
    pub fn root(&self, cluster: ClusterId, lineage: u128) -> OpRef {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&cluster.value().to_le_bytes());
        bytes.extend_from_slice(&lineage.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.value().to_le_bytes());
        for member in &self.voters {
            bytes.push(member.replica.value());
            bytes.extend_from_slice(&member.disk.value().to_le_bytes());
        }
        OpRef { op: Op::ROOT, checksum: Checksum::of_pieces(&[b"chronon root", &bytes]) }
    }

    /// The primary of a view of this epoch.
    pub fn primary(&self, stamp: Stamp) -> ReplicaId {
        assert!(stamp.epoch == self.epoch);
        let turn = stamp.view.value() % self.voters.len() as u64;
        self.voters[usize::try_from(turn).expect("there are at most six voters")].replica
    }

    /// Whether the replica has a vote.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.iter().any(|voter| voter.replica == replica)
    }

    /// The member of that number, voter or learner.
    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.voters.iter().chain(&self.learners).find(|member| member.replica == replica)
    }

    /// Everybody but `me`, voters first.
    pub fn peers(&self, me: ReplicaId) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.iter().chain(&self.learners).map(|member| member.replica).filter(move |peer| *peer != me)
    }
}
