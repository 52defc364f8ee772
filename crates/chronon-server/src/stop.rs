//! How a replica ends: one reason, told once, to everybody.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use chronon_vsr::{PeerRefusal, ReplicaId};
use tokio::sync::watch;
use tracing::{error, info};

/// Why a replica stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// It was asked to.
    #[error("it was asked to stop")]
    Requested,
    /// The disk failed. What was written and not flushed may be gone, and a retry would lie.
    #[error("the disk failed: {doing}: {error}")]
    Disk {
        /// What was tried.
        doing: String,
        /// The operating system's answer.
        error: String,
    },
    /// A thread panicked: a bug.
    #[error("the {thread} thread panicked: {message}")]
    Panicked {
        /// Which.
        thread: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The operating system refused something that the replica can't do without.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        error: String,
    },
    /// The only replica of a cluster has a checkpoint that can't be read, and nobody else has it.
    #[error(
        "this is the only replica, and its checkpoint of op {op} is damaged: {damage}; restore from a backup, or recover the disk"
    )]
    CheckpointDamaged {
        /// The checkpoint's op.
        op: u64,
        /// What is damaged, and where.
        damage: String,
    },
    /// A checkpoint is whole, and this program can't go on from it: another version of the machine has written it.
    #[error("the state of op {op} can't be restored: {error}")]
    CheckpointUnusable {
        /// The checkpoint's op.
        op: u64,
        /// Why.
        error: String,
    },
    /// A peer has seen more of this replica than its data directory knows.
    #[error(
        "replica {by} will never listen to this one: {why}. The cluster goes on without it and loses nothing; what to do is \
         in docs/operations.md, under \"a directory is lost\""
    )]
    Refused {
        /// The peer.
        by: ReplicaId,
        /// Why.
        why: PeerRefusal,
    },
    /// More was written than the limits allow: a bug.
    #[error("more writes are waiting than {limit}")]
    WalQueueFull {
        /// The limit.
        limit: usize,
    },
}

/// Stops a replica, and tells who asks.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    sender: Arc<watch::Sender<Option<StopReason>>>,
}

impl Stop {
    /// Not stopped.
    pub(crate) fn new() -> Stop {
        Stop { sender: Arc::new(watch::Sender::new(None)) }
    }

    /// Stops. The first reason stays.
    pub(crate) fn stop(&self, reason: StopReason) {
        self.sender.send_if_modified(|present| {
            if present.is_some() {
                return false;
            }
            match &reason {
                StopReason::Requested => info!("stopping: {reason}"),
                StopReason::Disk { .. }
                | StopReason::Panicked { .. }
                | StopReason::System { .. }
                | StopReason::CheckpointDamaged { .. }
                | StopReason::CheckpointUnusable { .. }
                | StopReason::Refused { .. }
                | StopReason::WalQueueFull { .. } => error!("the replica stops: {reason}"),
            }
            *present = Some(reason);
            true
        });
    }

    /// Waits for the stop.
    pub(crate) async fn stopped(&self) -> StopReason {
        let mut receiver = self.sender.subscribe();
        let reason = receiver.wait_for(Option::is_some).await.expect("the sender is in self");
        reason.clone().expect("waited for")
    }

    /// Runs a thread's body: a panic stops the replica and never hangs it.
    pub(crate) fn guard(&self, thread: &'static str, body: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            self.stop(StopReason::Panicked { thread, message: message_of(&*panic) });
        }
    }
}

/// Runs a task of a thread: a panic stops the replica. Without this the runtime would swallow it, and the replica would
/// go on with half a thread.
pub(crate) async fn guarded(stop: Stop, thread: &'static str, task: impl Future<Output = ()>) {
    let mut task = pin!(task);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
        Ok(poll) => poll,
        Err(panic) => {
            stop.stop(StopReason::Panicked { thread, message: message_of(&*panic) });
            Poll::Ready(())
        }
    })
    .await;
}

/// A panic's message.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "(no message)".to_owned()
    }
}
