//! The gate: from D after a later primary serves, no start of an earlier one passes.

use chronon_node::Gate;
use chronon_vsr::{Duration, Instant, ReplicaId, Stamp};

use crate::{Checker, Violation};

/// Clocks of machines run apart by this much at most within one D.
const DRIFT: Duration = Duration::from_millis(1);

/// Watches who serves and what passes.
#[derive(Debug, Default)]
pub struct GateWatch {
    /// The newest stamp that serves, and since when.
    serving: Option<(Stamp, Instant)>,
    passed: u64,
}

impl GateWatch {
    /// How many starts passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// A replica serves as the primary of a stamp.
    pub(crate) fn on_serving(&mut self, now: Instant, stamp: Stamp) {
        if self.serving.is_none_or(|(newest, _)| newest < stamp) {
            self.serving = Some((stamp, now));
        }
    }

    /// A start passes a replica's gate.
    pub(crate) fn on_passed(
        &mut self,
        now: Instant,
        replica: ReplicaId,
        stamp: Stamp,
    ) -> Result<(), Violation> {
        self.passed += 1;
        match self.serving {
            Some((newest, since)) if stamp < newest && since + Gate::AGE_MAX + DRIFT < now => {
                let late = now.since(since);
                let what = format!("R{replica} starts under {stamp} {late:?} after {newest} began to serve");
                Err(Violation::new(Checker::Gate, what))
            }
            Some(_) | None => Ok(()),
        }
    }
}
