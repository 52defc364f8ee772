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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::View;

    const CLUSTER: ClusterId = ClusterId::new(7);
    const LINEAGE: u128 = 8;

    fn member(replica: u8) -> Member {
        Member { replica: ReplicaId::new(replica), disk: DiskId::new(u128::from(replica) << 64 | 5) }
    }

    fn membership() -> Membership {
        Membership {
            epoch: Epoch::new(1),
            voters: vec![member(4), member(0), member(2)],
            learners: vec![member(9)],
        }
    }

    #[test]
    fn a_root_is_what_it_always_was() {
        let root = membership().root(CLUSTER, LINEAGE);
        assert_eq!(root.op, Op::ROOT);
        assert_eq!(root.checksum.to_bytes(), 0x96de_d8da_bbe9_d5c1_1215_a66b_9c30_a42a_u128.to_be_bytes());
    }

    #[test]
    fn a_root_binds_everything_that_init_drew() {
        let root = membership().root(CLUSTER, LINEAGE);
        assert_ne!(root, membership().root(ClusterId::new(9), LINEAGE));
        assert_ne!(root, membership().root(CLUSTER, 9));
        assert_ne!(root, Membership { epoch: Epoch::new(2), ..membership() }.root(CLUSTER, LINEAGE));
        let mut swapped = membership();
        swapped.voters.swap(0, 1);
        assert_ne!(root, swapped.root(CLUSTER, LINEAGE));
        let mut other_disk = membership();
        other_disk.voters[2].disk = DiskId::new(1);
        assert_ne!(root, other_disk.root(CLUSTER, LINEAGE));
        let mut one_less = membership();
        one_less.voters.pop();
        assert_ne!(root, one_less.root(CLUSTER, LINEAGE));
        // Learners come and go without a vote.
        assert_eq!(root, Membership { learners: vec![], ..membership() }.root(CLUSTER, LINEAGE));
    }

    #[test]
    fn voters_take_turns_in_their_order() {
        let primary =
            |view| membership().primary(Stamp { epoch: Epoch::new(1), view: View::new(view) }).value();
        assert_eq!([0, 1, 2, 3, 4].map(primary), [4, 0, 2, 4, 0]);
        assert_eq!(primary(u64::MAX), [4, 0, 2][(u64::MAX % 3) as usize]);
    }

    #[test]
    fn members_are_voters_and_learners_and_peers_are_the_others() {
        let membership = membership();
        assert!(membership.is_voter(ReplicaId::new(2)));
        assert!(!membership.is_voter(ReplicaId::new(9)));
        assert_eq!(membership.member(ReplicaId::new(9)), Some(&member(9)));
        assert_eq!(membership.member(ReplicaId::new(1)), None);
        let peers: Vec<u8> = membership.peers(ReplicaId::new(0)).map(ReplicaId::value).collect();
        assert_eq!(peers, [4, 2, 9]);
    }
}
