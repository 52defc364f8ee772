//! The gate: no start of an effect without proof, half a second old at most, that this primary still leads.

use core::time::Duration;

use chronon_vsr::{Instant, RoundConfirmed, Stamp};

/// The newest confirmed read round, as the executor checks it right before the first byte leaves (protocol §13.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    confirmed: Option<RoundConfirmed>,
}

impl Gate {
    /// D: how old the sending of the confirming read round may be.
    pub const AGE_MAX: Duration = Duration::from_millis(500);

    /// A gate that nothing passes.
    pub const CLOSED: Gate = Gate { confirmed: None };

    /// A quorum confirmed a read round.
    pub fn confirm(&mut self, round: RoundConfirmed) {
        self.confirmed = Some(round);
    }

    /// This replica leads no more.
    pub fn close(&mut self) {
        self.confirmed = None;
    }

    /// Whether an attempt that was ordered under `stamp` may leave at `now` (boot-time clock).
    pub fn passes(&self, stamp: Stamp, now: Instant) -> bool {
        self.confirmed.is_some_and(|round| round.stamp == stamp && now.since(round.sent) <= Gate::AGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronon_vsr::{Epoch, View};

    fn stamp(view: u64) -> Stamp {
        Stamp { epoch: Epoch::new(0), view: View::new(view) }
    }

    #[test]
    fn an_attempt_passes_only_under_its_own_stamp_and_while_the_round_is_fresh() {
        let mut gate = Gate::CLOSED;
        let sent = Instant::from_nanos(1_000_000_000);
        assert!(!gate.passes(stamp(3), sent));
        gate.confirm(RoundConfirmed { stamp: stamp(3), sent });
        assert!(gate.passes(stamp(3), sent + Gate::AGE_MAX));
        assert!(!gate.passes(stamp(3), sent + Gate::AGE_MAX + Duration::from_nanos(1)));
        assert!(!gate.passes(stamp(2), sent));
        assert!(!gate.passes(stamp(4), sent));
        gate.close();
        assert!(!gate.passes(stamp(3), sent));
    }
}
