//! A machine's clocks: what it believes of the one virtual time.

use chronon_vsr::{Duration, Instant, Now, Timestamp};

/// Where the wall clocks of a run start unless a story says otherwise: 2026-01-01T00:00:00Z.
pub const WALL_START: Timestamp = Timestamp::from_nanos(1_767_225_600_000_000_000);

/// The clocks of one machine. World time is the truth; the machine never sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachineClock {
    /// What the monotonic clock said at world time zero. Another after every boot.
    boot: u64,
    /// What the world's wall clock said at world time zero.
    start: u64,
    /// How much faster than the world its clocks run, in parts per million.
    drift_ppm: i64,
    /// How far its wall clock is from the world's, in nanoseconds.
    skew: i64,
}

impl MachineClock {
    /// Clocks that were `boot` old at world time zero, when it was `start`, run `drift_ppm` fast and are `skew` nanoseconds off.
    pub(crate) fn new(boot: Duration, start: Timestamp, drift_ppm: i64, skew: i64) -> MachineClock {
        let boot = u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX / 4);
        MachineClock { boot, start: start.nanos(), drift_ppm, skew }
    }

    /// What the clocks say at a world time.
    pub(crate) fn now(&self, world: Instant) -> Now {
        let elapsed = self.elapsed(world);
        let wall = self.start.saturating_add(elapsed).saturating_add_signed(self.skew);
        Now { monotonic: Instant::from_nanos(self.boot + elapsed), wall: Timestamp::from_nanos(wall) }
    }

    /// The first world time at which the monotonic clock says at least `local`. None: never.
    pub(crate) fn world(&self, local: Instant) -> Option<Instant> {
        if local == Instant::NEVER {
            return None;
        }
        let elapsed = u128::from(local.nanos().saturating_sub(self.boot));
        let rate = u128::try_from(1_000_000 + i128::from(self.drift_ppm)).expect("clocks run forwards");
        let mut world = u64::try_from(elapsed * 1_000_000 / rate).ok()?;
        // The division rounds down, and so does `elapsed` itself.
        while self.elapsed(Instant::from_nanos(world)) < u64::try_from(elapsed).ok()? {
            world += 1;
        }
        Some(Instant::from_nanos(world))
    }

    /// Sets the wall clock another way off; the monotonic clock does not notice.
    pub(crate) fn set_skew(&mut self, skew: i64) {
        self.skew = skew;
    }

    /// How far off the wall clock was set.
    pub(crate) fn skew(&self) -> i64 {
        self.skew
    }

    /// The machine boots: its monotonic clock starts somewhere else.
    pub(crate) fn reboot(&mut self, boot: Duration) {
        self.boot = u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX / 4);
    }

    fn elapsed(&self, world: Instant) -> u64 {
        let elapsed = i128::from(world.nanos());
        let drifted = elapsed + elapsed * i128::from(self.drift_ppm) / 1_000_000;
        u64::try_from(drifted).expect("clocks run forwards from zero")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_time_of_a_deadline_is_the_first_at_which_the_clock_shows_it() {
        for drift in [-1000, -1, 0, 1, 333] {
            let clock = MachineClock::new(Duration::from_secs(77), WALL_START, drift, 5);
            for local in [77_000_000_000_u64, 77_000_000_001, 77_123_456_789, 99_999_999_999] {
                let world = clock.world(Instant::from_nanos(local)).unwrap();
                assert!(local <= clock.now(world).monotonic.nanos());
                if world != Instant::ZERO {
                    let before = Instant::from_nanos(world.nanos() - 1);
                    assert!(clock.now(before).monotonic.nanos() < local);
                }
            }
        }
        assert_eq!(MachineClock::new(Duration::ZERO, WALL_START, 0, 0).world(Instant::NEVER), None);
    }
}
