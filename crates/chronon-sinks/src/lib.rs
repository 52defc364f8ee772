//! Kinds of sink: each checks a configuration and carries out attempts.
//!
//! An [`Executor`] is handed one attempt at a time by the replica that leads. It reports how the attempt ended, and it
//! is strict about one question: *may the sink have acted?* Everything that the delivery contracts promise leans on
//! the difference between a definite and an ambiguous end.
#![forbid(unsafe_code)]

#[cfg(feature = "http")]
mod http;
mod secrets;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use chronon_kernel::{Attempt, AttemptEnd};

#[cfg(feature = "http")]
pub use http::{HttpSink, PublicOnly};
pub use secrets::Secrets;

/// Carries out attempts of one kind of sink.
///
/// The outcome of [`chronon_kernel::Ended::Delivered`] is JSON text here: the caller encodes it through the machine's
/// edge before it is logged, and reports `Unreadable` if the machine's type does not fit it.
pub trait Executor: Send + Sync {
    /// Whether this configuration can be carried out at all. Pure: the same answer on every replica.
    fn check_config(&self, config: &str) -> Result<(), ConfigError>;

    /// Whether *this* node can serve the configuration: secrets present, features built in. Asked before a fail-over
    /// needs it, so that a replica that could not serve says so in time.
    fn check_node(&self, config: &str) -> Result<(), ConfigError> {
        self.check_config(config)
    }

    /// Carries out one attempt within its time-out. Before the first byte leaves, the gate is asked once more; if it
    /// is closed the attempt is abandoned. Dropping the future ends the attempt with an unknown end.
    fn execute(&self, attempt: Attempt, payload_json: String, gate: GateHandle) -> ExecuteFuture;
}

/// An attempt under way.
pub type ExecuteFuture = Pin<Box<dyn Future<Output = AttemptEnd> + Send>>;

/// Asks the gate (protocol §13.3) whether an attempt may leave now.
#[derive(Clone)]
pub struct GateHandle {
    passes: Arc<dyn Fn() -> bool + Send + Sync>,
    late: Arc<dyn Fn() + Send + Sync>,
}

impl GateHandle {
    /// A handle that asks `passes`, from any thread, right before a first byte leaves.
    pub fn new(passes: impl Fn() -> bool + Send + Sync + 'static) -> GateHandle {
        GateHandle { passes: Arc::new(passes), late: Arc::new(|| ()) }
    }

    /// The same, and `late` hears of a first byte that may have left after the gate closed.
    pub fn on_late(self, late: impl Fn() + Send + Sync + 'static) -> GateHandle {
        GateHandle { late: Arc::new(late), ..self }
    }

    /// Whether the attempt may leave now.
    pub fn passes(&self) -> bool {
        (self.passes)()
    }

    /// To be called right after the first byte left. A process can be stopped between the look at the gate and the
    /// byte; nothing in it can prevent that, but a second look tells it afterwards.
    pub fn left(&self) {
        if !self.passes() {
            (self.late)();
        }
    }
}

impl fmt::Debug for GateHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GateHandle")
    }
}

/// The executors of a node, by kind.
#[derive(Clone, Default)]
pub struct Executors {
    by_kind: BTreeMap<String, Arc<dyn Executor>>,
}

impl Executors {
    /// The kinds built in, with secrets read where `secrets` says.
    pub fn built_in(secrets: Secrets) -> Executors {
        let mut executors = Executors::default();
        #[cfg(feature = "http")]
        executors.register("http", Arc::new(HttpSink::new(secrets.clone())));
        let _ = secrets;
        executors
    }

    /// Adds a kind, or replaces one.
    pub fn register(&mut self, kind: impl Into<String>, executor: Arc<dyn Executor>) {
        self.by_kind.insert(kind.into(), executor);
    }

    /// The executor of a kind.
    pub fn of_kind(&self, kind: &str) -> Result<&Arc<dyn Executor>, ConfigError> {
        self.by_kind.get(kind).ok_or_else(|| ConfigError::UnknownKind {
            kind: kind.to_owned(),
            known: self.by_kind.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Debug for Executors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_kind.keys()).finish()
    }
}

/// Why a sink's configuration can't be carried out.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No executor of that kind.
    #[error("no kind of sink is named {kind:?} (this node knows: {known})")]
    UnknownKind {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: String,
    },
    /// The text is not the kind's configuration.
    #[error("the configuration can't be read: {why}")]
    Unreadable {
        /// The parser's words, with line and column.
        why: String,
    },
    /// One field can't be used.
    #[error("{field}: {why}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The secret that it names is not on this node.
    #[error("the secret {name:?} is not on this node: set the variable {variable}")]
    SecretMissing {
        /// Its name.
        name: String,
        /// Where it is looked for.
        variable: String,
    },
}
