//! Time is an argument. Two clocks: a monotonic one for waiting, a wall clock for timestamps in the log.

use core::fmt;
use core::ops::{Add, Sub};

pub use core::time::Duration;

/// Nanoseconds on a clock that never goes back and counts while the machine sleeps (`CLOCK_BOOTTIME`). Only
/// differences within one boot mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The earliest instant.
    pub const ZERO: Instant = Instant(0);
    /// Later than anything: wait for an input, not for time.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// An instant as nanoseconds of the monotonic clock.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds of the monotonic clock.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Nanoseconds since 1970-01-01T00:00:00Z. In the log timestamps strictly increase (invariant I10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const ZERO: Timestamp = Timestamp(0);
    /// The end of time: year 2554.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// A timestamp as nanoseconds since 1970.
    pub const fn from_nanos(nanos: u64) -> Timestamp {
        Timestamp(nanos)
    }

    /// Nanoseconds since 1970.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The smallest timestamp after this one.
    pub const fn successor(self) -> Timestamp {
        Timestamp(self.0.saturating_add(1))
    }

    /// The time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What both clocks say as an input is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For waiting.
    pub monotonic: Instant,
    /// For timestamps.
    pub wall: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_stop_at_their_ends_instead_of_wrapping() {
        let year = Duration::from_secs(365 * 24 * 3600);
        assert_eq!(Instant::NEVER + year, Instant::NEVER);
        assert_eq!(Instant::ZERO - year, Instant::ZERO);
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::NEVER);
        assert_eq!(Instant::NEVER - Duration::MAX, Instant::ZERO);
        assert_eq!(Timestamp::MAX + year, Timestamp::MAX);
        assert_eq!(Timestamp::MAX.successor(), Timestamp::MAX);
        assert_eq!(Timestamp::ZERO + Duration::MAX, Timestamp::MAX);
    }

    #[test]
    fn a_time_since_something_later_is_zero() {
        let (early, late) = (Instant::from_nanos(5), Instant::from_nanos(8));
        assert_eq!((late.since(early), early.since(late)), (Duration::from_nanos(3), Duration::ZERO));
        let (early, late) = (Timestamp::from_nanos(5), Timestamp::from_nanos(8));
        assert_eq!((late.since(early), early.since(late)), (Duration::from_nanos(3), Duration::ZERO));
        assert_eq!(early.successor(), Timestamp::from_nanos(6));
    }
}
