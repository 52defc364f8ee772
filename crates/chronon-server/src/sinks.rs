//! Makes the sinks that a program names in its builder, once.

use std::time::Duration;

use chronon_kernel::{Answer, Consistency, Engine, Refusal, RequestResult, SinkName, SinkSpec, Submission};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::admission::Admission;
use crate::front::FrontHandle;

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Makes sinks.
pub(crate) struct Keeper {
    pub(crate) front: FrontHandle,
    pub(crate) admission: Admission,
}

impl Keeper {
    /// Returns once the cluster answers reads and has every one of these sinks. A sink that exists stays as it is: it
    /// is changed through the log, not by whichever program starts next.
    pub(crate) async fn make(&self, sinks: Vec<(SinkName, SinkSpec)>) {
        for (name, spec) in sinks {
            self.make_one(name, spec).await;
        }
        while self.front.look(Consistency::Linearizable, PATIENCE, |_: &dyn Engine| ()).await.is_err() {
            if self.front.is_gone() {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn make_one(&self, name: SinkName, spec: SinkSpec) {
        loop {
            let wanted = name.clone();
            let look = move |engine: &dyn Engine| engine.sink(&wanted);
            if let Ok(Some(present)) = self.front.look(Consistency::Local, PATIENCE, look).await {
                if present.spec != spec {
                    warn!(sink = %name, revision = present.revision, "the sink exists and differs from the program's");
                }
                return;
            }
            let submission = Submission::SinkSet {
                name: name.clone(),
                spec: Some(spec.clone()),
                expected_revision: Some(0),
            };
            let admitted = match self.admission.admit(submission) {
                Ok(admitted) => admitted,
                Err(why) => return error!(sink = %name, %why, "the sink can't be made"),
            };
            match self.front.submit(admitted, PATIENCE).await {
                Answer::Decided(RequestResult::SinkSet { .. }) => return info!(sink = %name, "made the sink"),
                // Another replica was faster.
                Answer::Decided(RequestResult::Refused(Refusal::WrongRevision { .. })) => return,
                answer => debug!(sink = %name, ?answer, "the sink is not made yet"),
            }
            if self.front.is_gone() {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
