//! What a replica holds has bounds, all of them named: looked at after every step of each half.

use chronon_kernel::{Attempt, EngineStatus, Limits, SinkSpec};
use chronon_node::{FrontLimits, FrontStatus};
use chronon_vsr::{PIPELINE_MAX, ReplicaId};

use crate::{Checker, Violation};

/// The bounds of a replica.
#[derive(Debug)]
pub struct Bounds {
    front: FrontLimits,
    kernel: Limits,
    /// Attempts under way at once, over all sinks.
    started_max: u64,
}

impl Bounds {
    pub(crate) fn new<'a>(
        front: FrontLimits,
        kernel: Limits,
        sinks: impl Iterator<Item = &'a SinkSpec>,
    ) -> Bounds {
        let started_max = sinks.map(|sink| u64::from(sink.concurrency)).sum();
        Bounds { front, kernel, started_max }
    }

    /// Front has taken an input.
    pub(crate) fn on_front(&self, id: ReplicaId, status: &FrontStatus) -> Result<(), Violation> {
        // Clients fill half of the queue at most, the other half is for what the replica itself proposes.
        let queue = 2 * self.front.queue_requests_max;
        within(id, "requests wait to be prepared", status.queued as u64, queue as u64)?;
        let waiting = self.front.in_flight_max + self.front.queries_max;
        within(id, "callers wait for an answer", status.waiting as u64, waiting as u64)?;
        let ahead = status.head.value().saturating_sub(status.commit_max.op.value());
        within(id, "ops are prepared and not committed", ahead, PIPELINE_MAX)
    }

    /// Back has executed an op.
    pub(crate) fn on_back(&self, id: ReplicaId, status: &EngineStatus) -> Result<(), Violation> {
        let Limits { sessions_max, keys_max, open_effects_max, timers_max, sinks_max, .. } = self.kernel;
        let Limits { sessions_bytes_max, keys_bytes_max, open_bytes_max, .. } = self.kernel;
        let open = status.scheduled + status.ready + status.started + status.waiting + status.parked;
        let newest = u64::from(self.kernel.reply_bytes_max);
        within(id, "sessions are open", status.sessions, sessions_max as u64)?;
        within(id, "bytes of replies are kept", status.session_bytes, sessions_bytes_max as u64 + newest)?;
        within(id, "keys are kept", status.keys, keys_max as u64)?;
        within(id, "bytes of keys are kept", status.key_bytes, keys_bytes_max as u64 + newest)?;
        within(id, "effects are open", open, open_effects_max as u64)?;
        within(id, "bytes of effects are open", status.outbox_bytes, open_bytes_max as u64)?;
        within(id, "effects are released", status.started, self.started_max)?;
        // Commands stop at half of it.
        within(id, "timers are set", status.timers, 2 * timers_max as u64)?;
        within(id, "sinks are set", status.sinks, sinks_max as u64)
    }

    /// An attempt leaves a replica; so many of its reign that hold a place at its sink are under way then.
    pub(crate) fn on_leave(&self, id: ReplicaId, attempt: &Attempt, calls: usize) -> Result<(), Violation> {
        let what = format!("calls of one reign are under way at {}", attempt.sink);
        within(id, &what, calls as u64, u64::from(attempt.spec.concurrency))
    }
}

fn within(id: ReplicaId, what: &str, found: u64, most: u64) -> Result<(), Violation> {
    if found <= most {
        return Ok(());
    }
    Err(Violation::new(Checker::Bounds, format!("R{id}: {found} {what}, {most} at most")))
}
