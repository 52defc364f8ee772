//! A pace: how fast bytes may go, so that what is not urgent leaves room for what is.

use std::time::Duration;

use chronon_vsr::Instant;

use crate::clock::Clock;

/// How fast something may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    pub(crate) rate: u64,
    /// When the next may go.
    pub(crate) from: Instant,
}

impl Pace {
    /// So many bytes go now.
    pub(crate) fn spend(&mut self, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.rate.max(1);
        self.from = self.from.max(Clock.monotonic()) + Duration::from_nanos(nanos);
    }
}
