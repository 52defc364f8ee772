//! How many voters make each kind of quorum (§1), and why they meet.

use crate::VOTERS_MAX;

/// The quorums of a cluster of `voters` voters. Every one counts the counting replica itself; learners never count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorums {
    /// How many voters there are: 1 to [`VOTERS_MAX`].
    pub voters: usize,
    /// Qr: durable votes that commit an op.
    pub replication: usize,
    /// Qv: DoViewChanges that a new primary needs.
    pub view_change: usize,
    /// Qn: nacks that prove that an entry was never committed.
    pub nack: usize,
    /// Qread: answers that confirm a read round.
    pub read: usize,
}

impl Quorums {
    /// The quorums of `voters` voters. Panics outside `1..=VOTERS_MAX`: membership is checked where it is parsed.
    pub const fn of(voters: usize) -> Quorums {
        assert!(0 < voters);
        assert!(voters <= VOTERS_MAX);
        let half = voters.div_ceil(2);
        let replication = if voters == 2 {
            2
        } else if half < 3 {
            half
        } else {
            3
        };
        let view_change = if voters == 2 { 2 } else { voters - replication + 1 };
        Quorums { voters, replication, view_change, nack: voters - replication + 1, read: replication }
    }
}

const _: () = {
    let mut voters = 1;
    while voters <= VOTERS_MAX {
        let q = Quorums::of(voters);
        assert!(voters < q.replication + q.view_change);
        assert!(voters < q.nack + q.replication);
        assert!(voters < q.read + q.view_change);
        voters += 1;
    }
};
