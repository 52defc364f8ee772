//! The one place that reads clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use chronon_vsr::{Instant, Now, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use crate::config::WallHook;

/// This machine's steady clock. It counts time asleep too: a laptop or a virtual machine that was suspended must not
/// believe that its gate is fresh (protocol §13.3).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// The boot-time clock.
    pub(crate) fn monotonic(self) -> Instant {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("boot time is not negative");
        let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
        Instant::from_nanos(seconds * 1_000_000_000 + nanos)
    }
}

/// Both clocks of a replica.
#[derive(Clone, Default)]
pub(crate) struct Clocks {
    /// What a test makes of what the wall clock says.
    pub(crate) wall_hook: Option<WallHook>,
}

impl Clocks {
    /// What they say.
    pub(crate) fn now(&self) -> Now {
        Now { monotonic: Clock.monotonic(), wall: self.wall() }
    }

    /// The wall clock. Before 1970 it stands at 1970.
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        self.wall_hook.as_ref().map_or(wall, |hook| hook(wall))
    }
}
