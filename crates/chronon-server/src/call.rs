//! A sink that is a function of the embedding program.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptKind, AttemptNumber, EffectId, EffectKey, Ended, Evidence, Fence, SinkName,
    StateMachine,
};
use chronon_sinks::{ConfigError, ExecuteFuture, Executor, GateHandle};
use tokio::time::timeout;

/// One call of a function that is a sink.
#[derive(Clone, Debug)]
pub struct Call<E> {
    /// What the machine asked for.
    pub effect: E,
    /// The effect's name.
    pub id: EffectId,
    /// The key to hand to the outside: the same for every attempt of the effect.
    pub key: EffectKey,
    /// Which attempt this is, from 1.
    pub attempt: AttemptNumber,
    /// Orders primaries, for a sink that refuses the older one.
    pub fence: Fence,
    /// Whether to do it, or (under the contract `probe`) to say whether an earlier attempt did.
    pub kind: AttemptKind,
    /// The sink.
    pub sink: SinkName,
}

/// Why a call brought no outcome. What becomes of the effect is the contract's to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing was done, for certain: try again.
    #[error("not done: {0}")]
    NotDone(String),
    /// It may have been done.
    #[error("unknown: {0}")]
    Unknown(String),
    /// It was refused for good.
    #[error("refused: {0}")]
    Refused(String),
    /// Asked whether it was done: it was not.
    #[error("not found")]
    NotFound,
}

/// The executor around a function.
pub(crate) struct CallExecutor<M, F> {
    function: Arc<F>,
    machine: PhantomData<fn() -> M>,
}

impl<M, F> CallExecutor<M, F> {
    pub(crate) fn new(function: F) -> CallExecutor<M, F> {
        CallExecutor { function: Arc::new(function), machine: PhantomData }
    }
}

impl<M, F, T> Executor for CallExecutor<M, F>
where
    M: StateMachine,
    F: Fn(Call<M::Effect>) -> T + Send + Sync + 'static,
    T: Future<Output = Result<M::Outcome, CallError>> + Send + 'static,
{
    fn check_config(&self, _config: &str) -> Result<(), ConfigError> {
        Ok(())
    }

    fn execute(&self, attempt: Attempt, payload_json: String, gate: GateHandle) -> ExecuteFuture {
        let function = Arc::clone(&self.function);
        Box::pin(async move {
            let patience = attempt.timeout();
            let effect: M::Effect = match serde_json::from_str(&payload_json) {
                Ok(effect) => effect,
                Err(error) => return definite(format!("the effect can't be read: {error}")),
            };
            if !gate.passes() {
                return AttemptEnd::Abandoned;
            }
            let fence = attempt.fence();
            let call = Call {
                effect,
                id: attempt.effect,
                key: attempt.key,
                attempt: attempt.number,
                fence,
                kind: attempt.kind,
                sink: attempt.sink,
            };
            let mut call = std::pin::pin!(function(call));
            let mut begun = false;
            // What the function sends we can't see. It can send nothing before its first poll, so the second look at the
            // gate comes right after that.
            let call = std::future::poll_fn(|cx| {
                let end = call.as_mut().poll(cx);
                if !std::mem::replace(&mut begun, true) {
                    gate.left();
                }
                end
            });
            AttemptEnd::Ended(match timeout(patience, call).await {
                Ok(Ok(outcome)) => match serde_json::to_vec(&outcome) {
                    Ok(outcome) => Ended::Delivered { outcome, evidence: Evidence::default() },
                    Err(error) => Ended::Unreadable { evidence: Evidence(error.to_string()) },
                },
                Ok(Err(CallError::NotDone(why))) => return definite(why),
                Ok(Err(CallError::Unknown(why))) => Ended::Ambiguous { evidence: Evidence(why) },
                Ok(Err(CallError::Refused(why))) => {
                    Ended::Permanent { freeze: false, evidence: Evidence(why) }
                }
                Ok(Err(CallError::NotFound)) => Ended::NotFound { evidence: Evidence::default() },
                Err(_) => Ended::Ambiguous { evidence: Evidence(format!("no answer within {patience:?}")) },
            })
        })
    }
}

fn definite(why: String) -> AttemptEnd {
    AttemptEnd::Ended(Ended::Definite { retry_after: None, evidence: Evidence(why) })
}
