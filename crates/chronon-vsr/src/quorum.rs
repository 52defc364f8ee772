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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every set of voters of that size, as bits.
    fn sets(voters: usize, size: usize) -> impl Iterator<Item = u8> + Clone {
        (0..1u8 << voters).filter(move |set| set.count_ones() as usize == size)
    }

    #[test]
    fn quorums_are_those_of_the_specification() {
        let found: [_; VOTERS_MAX] = core::array::from_fn(|at| {
            let Quorums { voters, replication, view_change, nack, read } = Quorums::of(at + 1);
            [voters, replication, view_change, nack, read]
        });
        let expected = [
            [1, 1, 1, 1, 1],
            [2, 2, 2, 1, 2],
            [3, 2, 2, 2, 2],
            [4, 2, 3, 3, 2],
            [5, 3, 3, 3, 3],
            [6, 3, 4, 4, 3],
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_two_quorums_that_must_meet_do_for_every_set_of_voters() {
        for voters in 1..=VOTERS_MAX {
            let q = Quorums::of(voters);
            for acked in sets(voters, q.replication) {
                // A new primary hears of whatever was committed.
                assert!(sets(voters, q.view_change).all(|heard| acked & heard != 0));
                // Who acked does not nack, so what was committed is never cut.
                assert!(sets(voters, q.nack).all(|nacked| acked & nacked != 0));
            }
            // Once a newer view may have begun, too few are left to confirm a read of the old one.
            for left in sets(voters, q.view_change) {
                assert!(sets(voters, q.read).all(|confirmed| confirmed & left != 0));
            }
        }
    }

    #[test]
    fn no_quorum_is_larger_than_it_must_be() {
        for voters in (1..=VOTERS_MAX).filter(|voters| *voters != 2) {
            let q = Quorums::of(voters);
            assert_eq!(q.replication + q.view_change, voters + 1);
            assert_eq!(q.replication + q.nack, voters + 1);
        }
        // Two voters both ack, so one nack would do; yet one alone must not begin a view that it then can't serve.
        assert_eq!(Quorums::of(2).replication + Quorums::of(2).nack, 3);
    }

    #[test]
    fn a_view_change_quorum_can_always_nack() {
        // Or a new primary that heard just enough voters could be left undecided over what none of them acked.
        for voters in 1..=VOTERS_MAX {
            assert!(Quorums::of(voters).nack <= Quorums::of(voters).view_change);
        }
    }

    #[test]
    fn any_minority_may_fail() {
        for voters in 1..=VOTERS_MAX {
            let alive = voters - (voters - 1) / 2;
            let q = Quorums::of(voters);
            assert!(q.replication <= alive);
            assert!(q.view_change <= alive);
            assert!(q.read <= alive);
        }
    }
}
