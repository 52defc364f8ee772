//! Attempts: carries out what the dispatcher starts, through the executor of the sink's kind.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chronon_kernel::{Attempt, AttemptEnd, Ended, Evidence, SinkName};
use chronon_node::Gate;
use chronon_sinks::GateHandle;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use crate::admission::Admission;
use crate::apply::BackMessage;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::mailbox::Mailbox;

/// How long after its time-out an executor is ended from outside.
const GRACE: Duration = Duration::from_secs(5);

/// The sinks that are frozen, by what is executed here. Back says so before anybody hears that the freeze is executed, so
/// that an attempt which waits for its place, or for a connection, sees it at the gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrozenSinks(Arc<Mutex<Vec<SinkName>>>);

impl FrozenSinks {
    /// These are frozen, and no others.
    pub(crate) fn set(&self, names: Vec<SinkName>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn hold(&self, name: &SinkName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// Starts attempts on the pool.
#[derive(Clone)]
pub(crate) struct Attempts {
    pub(crate) admission: Admission,
    pub(crate) gate: Arc<Mutex<Gate>>,
    pub(crate) frozen: FrozenSinks,
    pub(crate) pool: Handle,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) back: Mailbox<BackMessage>,
    pub(crate) counters: Arc<Counters>,
}

impl Attempts {
    /// Starts an attempt; Back hears of its end.
    pub(crate) fn start(&self, attempt: Attempt) {
        let attempts = self.clone();
        self.pool.spawn(async move {
            let (effect, number, stamp) = (attempt.effect, attempt.number, attempt.stamp);
            let end = attempts.carry_out(attempt).await;
            debug!(%effect, attempt = number.0, ?end, "an attempt ended");
            attempts.back.push(BackMessage::AttemptEnded { effect, number, stamp, end });
        });
    }

    async fn carry_out(&self, attempt: Attempt) -> AttemptEnd {
        let Ok(_permit) = self.permits.acquire().await else { return AttemptEnd::Abandoned };
        // It may have waited for its place: the gate may have closed meanwhile.
        let gate = self.gate_of(&attempt);
        if !gate.passes() {
            self.counters.attempts_abandoned.add();
            return AttemptEnd::Abandoned;
        }
        let executor = match self.admission.executors.of_kind(&attempt.spec.kind) {
            Ok(executor) => Arc::clone(executor),
            Err(error) => return definite(format!("not on this replica: {error}")),
        };
        let payload = match self.admission.edge.effect_to_json(&attempt.payload) {
            Ok(payload) => payload,
            Err(error) => {
                let evidence = Evidence(error.to_string());
                return AttemptEnd::Ended(Ended::Permanent { freeze: false, evidence });
            }
        };
        self.counters.attempts_started.add();
        let (effect, patience) = (attempt.effect, attempt.timeout() + GRACE);
        // A task of its own, so that a panic of an executor ends the attempt and nothing else.
        let mut task = tokio::spawn(executor.execute(attempt, payload, gate));
        let end = match timeout(patience, &mut task).await {
            Ok(Ok(end)) => end,
            Ok(Err(panic)) => {
                error!(%effect, %panic, "an executor panicked");
                ambiguous(format!("the executor panicked: {panic}"))
            }
            Err(_) => {
                task.abort();
                error!(%effect, "an executor did not keep its time-out");
                ambiguous("the executor did not keep its time-out".to_owned())
            }
        };
        if end == AttemptEnd::Abandoned {
            self.counters.attempts_abandoned.add();
        }
        self.encode_outcome(end)
    }

    /// The gate of one attempt: nothing passes it either while the sink is frozen (protocol §13.3). What was past the
    /// gate when this process was stopped, and left afterwards, is counted.
    fn gate_of(&self, attempt: &Attempt) -> GateHandle {
        let (gate, frozen, sink) = (Arc::clone(&self.gate), self.frozen.clone(), attempt.sink.clone());
        let (stamp, until) = (attempt.stamp, attempt.key_known_until);
        let (effect, number, fence) = (attempt.effect, attempt.number.0, attempt.fence());
        let counters = Arc::clone(&self.counters);
        let passes = move || {
            let gate = *gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.passes(stamp, until, Clock.monotonic()) && !frozen.hold(&sink)
        };
        GateHandle::new(passes).on_late(move || {
            counters.attempts_left_late.add();
            warn!(%effect, attempt = number, %fence, "an attempt may have left after the gate closed");
        })
    }

    /// An executor reports an outcome as JSON; the log holds it in the machine's own encoding.
    fn encode_outcome(&self, end: AttemptEnd) -> AttemptEnd {
        let AttemptEnd::Ended(Ended::Delivered { outcome, evidence }) = end else { return end };
        AttemptEnd::Ended(match self.admission.edge.outcome_from_json(&outcome) {
            Ok(outcome) => Ended::Delivered { outcome, evidence },
            Err(error) => Ended::Unreadable { evidence: Evidence(format!("{error}; {}", evidence.0)) },
        })
    }
}

fn definite(evidence: String) -> AttemptEnd {
    AttemptEnd::Ended(Ended::Definite { retry_after: None, evidence: Evidence(evidence) })
}

fn ambiguous(evidence: String) -> AttemptEnd {
    AttemptEnd::Ended(Ended::Ambiguous { evidence: Evidence(evidence) })
}
