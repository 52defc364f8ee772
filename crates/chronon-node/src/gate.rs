//! The gate: no start of an effect without proof, half a second old at most, that this primary still leads.

use core::time::Duration;

use chronon_vsr::{Instant, RoundConfirmed, Stamp, Timestamp};

/// The newest confirmed read round, as the executor checks it right before the first byte leaves (protocol §13.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    confirmed: Option<RoundConfirmed>,
}

impl Gate {
    /// D: how old the sending of the confirming read round may be.
    pub const AGE_MAX: Duration = Duration::from_millis(500);

    /// So long after a freeze was executed nothing starts at its sink anywhere: a primary of before may hold a round that
    /// is young enough until then, and its clock may run a percent slow.
    pub const FREEZE_HOLDS_AFTER: Duration =
        Duration::from_millis(Gate::AGE_MAX.as_millis() as u64 * 101 / 100 + 1);

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

    /// Whether an attempt that was ordered under `stamp` may leave at `now` (boot-time clock). One whose sink knows its
    /// key only `until` then leaves no later, by what a quorum of clocks agrees on; where none agrees it waits.
    pub fn passes(&self, stamp: Stamp, until: Option<Timestamp>, now: Instant) -> bool {
        self.confirmed.is_some_and(|round| {
            let age = now.since(round.sent);
            let is_before = |until| round.latest.is_some_and(|latest| latest + age < until);
            round.stamp == stamp && age <= Gate::AGE_MAX && until.is_none_or(is_before)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronon_vsr::{Epoch, View};

    const SENT: Instant = Instant::from_nanos(1_000_000_000);
    const LATEST: Timestamp = Timestamp::from_nanos(77_000_000_000);

    fn stamp(view: u64) -> Stamp {
        Stamp { epoch: Epoch::new(0), view: View::new(view) }
    }

    fn confirmed(latest: Option<Timestamp>) -> Gate {
        let mut gate = Gate::CLOSED;
        gate.confirm(RoundConfirmed { stamp: stamp(3), sent: SENT, latest });
        gate
    }

    #[test]
    fn an_attempt_passes_only_under_its_own_stamp_and_while_the_round_is_fresh() {
        assert!(!Gate::CLOSED.passes(stamp(3), None, SENT));
        let mut gate = confirmed(None);
        assert!(gate.passes(stamp(3), None, SENT + Gate::AGE_MAX));
        assert!(!gate.passes(stamp(3), None, SENT + Gate::AGE_MAX + Duration::from_nanos(1)));
        assert!(!gate.passes(stamp(2), None, SENT));
        assert!(!gate.passes(stamp(4), None, SENT));
        gate.close();
        assert!(!gate.passes(stamp(3), None, SENT));
    }

    #[test]
    fn what_repeats_a_call_of_unknown_end_leaves_while_a_quorum_of_clocks_says_that_its_key_is_known() {
        let gate = confirmed(Some(LATEST));
        let until = LATEST + Duration::from_millis(100);
        assert!(gate.passes(stamp(3), Some(until), SENT + Duration::from_millis(99)));
        assert!(!gate.passes(stamp(3), Some(until), SENT + Duration::from_millis(100)));
        assert!(gate.passes(stamp(3), None, SENT + Duration::from_millis(100)));
        assert!(!confirmed(None).passes(stamp(3), Some(Timestamp::MAX), SENT));
    }
}
