//! The gate: from D after a later primary serves, no start of an earlier one passes; and from a little longer than D
//! after a freeze was answered until somebody asks for its end, nothing leaves for the frozen sink.

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
    passed: u64,
    /// From when on nothing may leave for a sink.
    frozen: BTreeMap<SinkName, Instant>,
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

    /// A freeze was answered.
    pub(crate) fn on_frozen(&mut self, now: Instant, sink: &SinkName) {
        self.frozen.entry(sink.clone()).or_insert(now + Gate::FREEZE_HOLDS_AFTER);
    }

    /// Somebody asks for a sink to go on.
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
        let Attempt { stamp, sink, effect, .. } = attempt;
        let stamp = *stamp;
        if let Some(since) = self.frozen.get(sink).filter(|since| **since < now) {
            let late = now.since(*since);
            let what = format!("R{replica} starts {effect} at {sink} {late:?} after its freeze held");
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
