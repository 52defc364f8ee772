//! When a silent primary is suspected (§6.7): later than its own rhythm explains, and never for a silence that was
//! ours.

use crate::{Duration, Instant};

/// A silence is suspected at most this many times later than the least suspicious one.
const PATIENCE_FACTOR_MAX: u32 = 5;

/// How often in a row a late wake-up is forgiven before the primary is heard again. Without a bound a machine that
/// is always late would never suspect anybody.
const FORGIVEN_MAX: u32 = 3;

/// Watches one primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detector {
    /// The least silence that is suspected.
    patience_min: Duration,
    /// When the primary was last heard.
    heard: Instant,
    /// The longest silence of each slot of time, as a running mean and mean deviation. Single messages would not do:
    /// a burst after a stall would wash the stall out of the mean.
    mean: Duration,
    deviation: Duration,
    /// The slot in progress: since when, and its longest silence.
    slot_began: Instant,
    slot_longest: Duration,
    /// Not before this: we were asleep, and what it said meanwhile may be waiting to be read.
    forgiven_until: Instant,
    forgiven: u32,
    /// When this replica last looked at its clock.
    woke: Instant,
}

impl Detector {
    /// Begins to watch a primary that counts as heard now: a view has just begun, or the process has.
    pub(crate) fn new(now: Instant, patience_min: Duration) -> Detector {
        Detector {
            patience_min,
            heard: now,
            mean: Duration::ZERO,
            deviation: Duration::ZERO,
            slot_began: now,
            slot_longest: Duration::ZERO,
            forgiven_until: Instant::ZERO,
            forgiven: 0,
            woke: now,
        }
    }

    /// Watches another primary from now on. The rhythm of the last one is no measure of this one.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Detector::new(now, self.patience_min);
    }

    /// The primary was heard.
    pub(crate) fn heard(&mut self, now: Instant) {
        // A silence that we slept through says nothing of the primary's rhythm, nor does an outage.
        let silence =
            if self.forgiven == 0 { now.since(self.heard).min(self.patience_max()) } else { Duration::ZERO };
        self.heard = self.heard.max(now);
        self.forgiven = 0;
        self.slot_longest = self.slot_longest.max(silence);
        if self.patience_min / 2 <= now.since(self.slot_began) {
            // As TCP measures its round trips (RFC 6298).
            let off = self.slot_longest.abs_diff(self.mean);
            self.deviation = self.deviation * 3 / 4 + off / 4;
            self.mean = self.mean * 7 / 8 + self.slot_longest / 8;
            self.slot_began = now;
            self.slot_longest = Duration::ZERO;
        }
    }

    /// The replica runs: call it first in every input, before anything is judged by time.
    pub(crate) fn woke(&mut self, now: Instant) {
        let deadline = self.deadline();
        let late = self.woke < deadline && deadline + self.patience_min / 4 < now;
        if late && self.forgiven < FORGIVEN_MAX {
            self.forgiven += 1;
            self.forgiven_until = now + self.patience_min;
        }
        self.woke = self.woke.max(now);
    }

    /// Whether the primary has been silent for longer than its rhythm, or a sleep of ours, explains.
    pub(crate) fn suspects(&self, now: Instant) -> bool {
        self.deadline() <= now
    }

    /// When it will be suspected if nothing more is heard.
    pub(crate) fn deadline(&self) -> Instant {
        (self.heard + self.patience()).max(self.forgiven_until)
    }

    /// How long a silence is borne.
    fn patience(&self) -> Duration {
        (self.mean + self.deviation * 4).clamp(self.patience_min, self.patience_max())
    }

    fn patience_max(&self) -> Duration {
        self.patience_min * PATIENCE_FACTOR_MAX
    }
}
