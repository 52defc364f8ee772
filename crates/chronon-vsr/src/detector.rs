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

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(200);

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Hears the primary every `rhythm` ms from `from` to `until`, waking for each; the last time it was heard.
    fn hear(detector: &mut Detector, from: u64, until: u64, rhythm: u64) -> u64 {
        let mut now = from;
        while now + rhythm <= until {
            now += rhythm;
            detector.woke(at(now));
            detector.heard(at(now));
        }
        now
    }

    /// How long after it was last heard the primary is suspected, when this process wakes as asked.
    fn patience(detector: &mut Detector, heard: u64) -> u64 {
        let deadline = detector.deadline();
        detector.woke(deadline);
        assert!(detector.suspects(deadline));
        assert!(!detector.suspects(deadline - Duration::from_nanos(1)));
        deadline.since(at(heard)).as_millis() as u64
    }

    #[test]
    fn a_quiet_cluster_suspects_after_the_least_silence() {
        let mut detector = Detector::new(at(0), MIN);
        let heard = hear(&mut detector, 0, 10_000, 30);
        assert_eq!(patience(&mut detector, heard), 200);
    }

    #[test]
    fn a_view_that_never_was_heard_is_suspected_too() {
        assert_eq!(patience(&mut Detector::new(at(0), MIN), 0), 200);
    }

    #[test]
    fn a_slow_rhythm_is_learned_and_unlearned() {
        let mut detector = Detector::new(at(0), MIN);
        let heard = hear(&mut detector, 0, 10_000, 150);
        let slow = patience(&mut detector.clone(), heard);
        assert!((200..=400).contains(&slow), "{slow}");
        // Between calm beats the primary stalls for 190 ms now and then.
        let mut now = heard;
        for _ in 0..50 {
            now = hear(&mut detector, now, now + 190, 190);
            now = hear(&mut detector, now, now + 300, 30);
        }
        let ragged = patience(&mut detector.clone(), now);
        assert!(250 < ragged, "{ragged}");
        let heard = hear(&mut detector, now, now + 10_000, 30);
        assert_eq!(patience(&mut detector, heard), 200);
    }

    #[test]
    fn a_burst_after_a_stall_does_not_hide_the_stall() {
        let mut detector = Detector::new(at(0), MIN);
        let mut now = 0;
        for _ in 0..20 {
            now = hear(&mut detector, now, now + 190, 190);
            for _ in 0..1000 {
                detector.heard(at(now));
            }
            now = hear(&mut detector, now, now + 20, 1);
        }
        assert!(200 < patience(&mut detector, now));
    }

    #[test]
    fn patience_has_a_bound() {
        let mut detector = Detector::new(at(0), MIN);
        let mut now = 0;
        for _ in 0..100 {
            now = hear(&mut detector, now, now + 60_000, 60_000);
            now = hear(&mut detector, now, now + 200, 30);
        }
        assert!(patience(&mut detector, now) <= 1000);
    }

    #[test]
    fn an_outage_is_no_rhythm() {
        let mut detector = Detector::new(at(0), MIN);
        (0..60_000).step_by(100).for_each(|now| detector.woke(at(now)));
        let now = hear(&mut detector, 0, 60_000, 60_000);
        let now = hear(&mut detector, now, now + 2000, 30);
        assert_eq!(patience(&mut detector, now), 200);
    }

    #[test]
    fn a_replica_that_slept_does_not_accuse_the_primary() {
        let mut detector = Detector::new(at(0), MIN);
        let heard = hear(&mut detector, 0, 3000, 30);
        // Stopped for five seconds, and asked at once what it thinks of the primary.
        let woken = heard + 5000;
        detector.woke(at(woken));
        assert!(!detector.suspects(at(woken)));
        // What was sent meanwhile is read, and all is as before: the sleep is no rhythm of the primary's.
        detector.heard(at(woken + 1));
        let heard = hear(&mut detector, woken + 1, woken + 1000, 30);
        assert_eq!(patience(&mut detector, heard), 200);
    }

    #[test]
    fn a_primary_that_died_while_we_slept_is_suspected_soon_after() {
        let mut detector = Detector::new(at(0), MIN);
        let heard = hear(&mut detector, 0, 3000, 30);
        detector.woke(at(heard + 5000));
        assert_eq!(detector.deadline(), at(heard + 5200));
        assert_eq!(patience(&mut detector, heard), 5200);
    }

    #[test]
    fn a_wake_up_that_is_a_little_late_is_no_sleep() {
        let mut detector = Detector::new(at(0), MIN);
        detector.woke(at(240));
        assert!(detector.suspects(at(240)));
    }

    #[test]
    fn a_machine_that_is_always_late_still_suspects_in_the_end() {
        let mut detector = Detector::new(at(0), MIN);
        let mut now = 0;
        for _ in 0..10 {
            now = detector.deadline().nanos() / 1_000_000 + 100;
            detector.woke(at(now));
        }
        assert!(detector.suspects(at(now)));
        assert!(now < 2000);
    }

    #[test]
    fn being_awake_while_the_primary_is_suspected_is_no_sleep_either() {
        let mut detector = Detector::new(at(0), MIN);
        for now in (200..5000).step_by(300) {
            detector.woke(at(now));
            assert!(detector.suspects(at(now)));
        }
        // It speaks again.
        detector.heard(at(5000));
        assert!(!detector.suspects(at(5000)));
    }

    #[test]
    fn another_primary_begins_afresh() {
        let mut detector = Detector::new(at(0), MIN);
        let now = hear(&mut detector, 0, 10_000, 180);
        detector.reset(at(now + 400));
        assert_eq!(patience(&mut detector, now + 400), 200);
    }

    #[test]
    fn a_monotonic_clock_that_stands_still_or_ends_does_no_harm() {
        let mut detector = Detector::new(Instant::NEVER, MIN);
        detector.woke(Instant::NEVER);
        detector.heard(Instant::NEVER);
        detector.woke(at(1));
        detector.heard(at(1));
        assert_eq!(detector.deadline(), Instant::NEVER);
    }
}
