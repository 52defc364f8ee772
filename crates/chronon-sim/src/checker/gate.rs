//! The gate: from D after a later primary serves, no start of an earlier one passes, and from D after a sink is frozen none
//! for that sink.

use std::collections::BTreeMap;

use chronon_kernel::{Attempt, SinkName};
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
    /// Since when somebody knows that it is frozen, and has not asked to thaw it.
    frozen: BTreeMap<SinkName, Instant>,
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

    /// Somebody hears that a sink is frozen.
    pub(crate) fn on_frozen(&mut self, now: Instant, sink: SinkName) {
        self.frozen.entry(sink).or_insert(now);
    }

    /// Somebody asks to thaw a sink.
    pub(crate) fn on_thaw(&mut self, sink: &SinkName) {
        self.frozen.remove(sink);
    }

    /// A start passes a replica's gate.
    pub(crate) fn on_passed(
        &mut self,
        now: Instant,
        replica: ReplicaId,
        attempt: &Attempt,
    ) -> Result<(), Violation> {
        self.passed += 1;
        let (stamp, sink) = (attempt.stamp, &attempt.sink);
        if let Some(since) = self.frozen.get(sink).filter(|since| **since + Gate::AGE_MAX + DRIFT < now) {
            let late = now.since(*since);
            let what = format!("R{replica} starts under {stamp} at {sink} {late:?} after it was frozen");
            return Err(Violation::new(Checker::Gate, what));
        }
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
