//! Doing something again until it is answered: later each time, never in step with others.

use crate::{Duration, Instant, Prng};

/// When to do it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    pub(crate) at: Instant,
    wait: Duration,
}

// For a search that tells states apart: whether and how often it was done, not when.
#[cfg(test)]
impl core::hash::Hash for Retry {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        (self.wait, self.at == Instant::NEVER).hash(state);
    }
}

impl Retry {
    /// The first time is now.
    pub(crate) fn now(now: Instant) -> Retry {
        Retry { at: now, wait: Duration::ZERO }
    }

    /// Not before somebody says so.
    pub(crate) fn never() -> Retry {
        Retry { at: Instant::NEVER, wait: Duration::ZERO }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.at <= now
    }

    /// It was done just now: again after `first`, then twice that, up to `max`, each a little shorter or longer.
    pub(crate) fn done(&mut self, now: Instant, first: Duration, max: Duration, prng: &mut Prng) {
        self.wait = if self.wait.is_zero() { first } else { (self.wait * 2).min(max.max(first)) };
        self.at = now + jittered(self.wait, prng);
    }
}

/// Between seven eighths and nine eighths of a duration.
pub(crate) fn jittered(duration: Duration, prng: &mut Prng) -> Duration {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2);
    let eighth = nanos / 8;
    Duration::from_nanos(nanos - eighth + prng.below(2 * eighth + 1))
}
