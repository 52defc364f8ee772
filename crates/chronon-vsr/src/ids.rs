//! The words of the protocol, one type each. No arithmetic but the named steps.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// The value as read from bytes or from a configuration.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The value as written to bytes or shown to a person.
            pub const fn value(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A cluster's identity: 128 random bits drawn at init. Bytes of another cluster are never mixed in.
    ClusterId(u128)
);
number!(
    /// A data directory's identity: 128 random bits drawn at format. A replica id with another disk is another replica.
    DiskId(u128)
);
number!(
    /// A replica's number within its cluster. Never given to another replica again.
    ReplicaId(u8)
);
number!(
    /// Counts configurations of the cluster. A restore starts above all epochs of what it restores.
    Epoch(u64)
);
number!(
    /// A view within an epoch; `voters[view mod n]` is its primary.
    View(u64)
);
number!(
    /// A place in the log. 0 is the root, which binds the cluster's identity; the first entry is 1. Dense: no op is
    /// ever skipped.
    Op(u64)
);
number!(
    /// The release of the software that an entry's body is written for.
    Release(u32)
);

impl Op {
    /// The virtual entry before the first: see [`crate::Membership::root`].
    pub const ROOT: Op = Op(0);

    /// The op after this one.
    pub const fn next(self) -> Op {
        Op(self.0.checked_add(1).expect("2^64 ops take longer than the hardware lives"))
    }

    /// The op before this one, or none for the root.
    pub const fn previous(self) -> Option<Op> {
        match self.0 {
            0 => None,
            op => Some(Op(op - 1)),
        }
    }

    /// The op `count` places later.
    pub const fn plus(self, count: u64) -> Op {
        Op(self.0.saturating_add(count))
    }

    /// How many ops lie in `(earlier, self]`; 0 when `earlier` is not earlier.
    pub const fn since(self, earlier: Op) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl View {
    /// The view after this one.
    pub const fn next(self) -> View {
        View(self.0.checked_add(1).expect("2^64 views take longer than the hardware lives"))
    }
}

impl Epoch {
    /// The epoch after this one.
    pub const fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("2^64 epochs take longer than the hardware lives"))
    }
}

/// One start of one replica: each open of its data directory is a new one. Ordered by the count; the number that was
/// drawn tells two starts apart that claim the same count, which only copies of one directory do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    count: u32,
    drawn: u32,
}

impl Incarnation {
    /// The value as read from bytes: the count in the low half.
    pub const fn new(value: u64) -> Incarnation {
        Incarnation { count: value as u32, drawn: (value >> 32) as u32 }
    }

    /// The value as written to bytes.
    pub const fn value(self) -> u64 {
        self.count as u64 | (self.drawn as u64) << 32
    }

    /// How many starts there were, this one included.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The start after this one, with a number drawn for it. None after 2³² − 1 starts.
    pub const fn next(self, drawn: u32) -> Option<Incarnation> {
        match self.count.checked_add(1) {
            Some(count) => Some(Incarnation { count, drawn }),
            None => None,
        }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count.fmt(f)
    }
}

/// A view of an epoch, compared epoch first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The configuration that the view belongs to.
    pub epoch: Epoch,
    /// The view within the epoch.
    pub view: View,
}

impl Stamp {
    /// View 0 of an epoch.
    pub const fn first(epoch: Epoch) -> Stamp {
        Stamp { epoch, view: View::new(0) }
    }

    /// The next view of the same epoch.
    pub const fn next_view(self) -> Stamp {
        Stamp { epoch: self.epoch, view: self.view.next() }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.view)
    }
}

/// The newest stamp whose log a replica adopted. Another type than [`Stamp`], so that the log is never chosen by
/// a view that a replica only promised itself to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogStamp(Stamp);

impl LogStamp {
    /// The log of this stamp was adopted.
    pub const fn adopted(stamp: Stamp) -> LogStamp {
        LogStamp(stamp)
    }

    /// The stamp whose log it is.
    pub const fn stamp(self) -> Stamp {
        self.0
    }
}

impl fmt::Display for LogStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An op together with the checksum of the entry there: what an ack, a commit and a repair name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpRef {
    /// The place in the log.
    pub op: Op,
    /// The checksum of the entry at that place.
    pub checksum: crate::Checksum,
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::Checksum;

    #[test]
    fn ops_step_and_do_not_wrap() {
        assert_eq!(Op::ROOT.next(), Op::new(1));
        assert_eq!((Op::ROOT.previous(), Op::new(1).previous()), (None, Some(Op::ROOT)));
        assert_eq!(Op::new(u64::MAX - 1).next(), Op::new(u64::MAX));
        assert_eq!(Op::new(u64::MAX).plus(1), Op::new(u64::MAX));
        assert_eq!((Op::new(7).since(Op::new(3)), Op::new(3).since(Op::new(7))), (4, 0));
    }

    #[test]
    #[should_panic(expected = "2^64 ops")]
    fn the_last_op_has_no_next() {
        let _ = Op::new(u64::MAX).next();
    }

    #[test]
    fn stamps_compare_epoch_first() {
        let stamp = |epoch, view| Stamp { epoch: Epoch::new(epoch), view: View::new(view) };
        assert!(stamp(1, 9) < stamp(2, 0));
        assert!(stamp(2, 0) < stamp(2, 1));
        assert_eq!(stamp(2, 1).next_view(), stamp(2, 2));
        assert_eq!(Stamp::first(Epoch::new(2).next()), stamp(3, 0));
        assert!(LogStamp::adopted(stamp(1, 9)) < LogStamp::adopted(stamp(2, 0)));
        assert_eq!(LogStamp::adopted(stamp(1, 9)).stamp(), stamp(1, 9));
        assert_eq!(
            (stamp(2, 1).to_string(), LogStamp::adopted(stamp(2, 1)).to_string()),
            ("2.1".into(), "2.1".into())
        );
    }

    #[test]
    fn refs_compare_op_first() {
        let named = |op, byte| OpRef { op: Op::new(op), checksum: Checksum::from_bytes([byte; 16]) };
        assert!(named(1, 9) < named(2, 0));
        assert_ne!(named(1, 9), named(1, 8));
    }
}
