//! Chronon: a replicated deterministic state machine with exactly-once side effects.
//!
//! Write business logic as a [`StateMachine`] over [`Table`], [`Set`] and [`Cell`] fields. Its commands are ordered on
//! a quorum of replicas before they are acknowledged. When it needs the outside world it emits an effect; state, reply
//! and effects of a command are one fact in one log, and every effect is carried out under the [`Contract`] that its
//! sink declares. `examples/shop.rs` is a whole program.
//!
//! Features: `node` (run a replica inside your program), `http` (the built-in http sink), `sim` (the deterministic
//! simulator for your own machine).
#![forbid(unsafe_code)]

// The derive that names this crate hides the kernel's own.
pub use chronon_derive::FacadeState as State;
pub use chronon_kernel::*;
pub use chronon_vsr::{Duration, ReplicaId, Timestamp};

/// Clients of a cluster.
pub mod client {
    pub use chronon_client::*;
}

/// A replica inside your program.
#[cfg(feature = "node")]
pub mod node {
    pub use chronon_server::*;
}

#[cfg(feature = "node")]
pub use chronon_server::{Call, CallError, Founding, Node, RunningNode};

/// Kinds of sink.
#[cfg(feature = "http")]
pub mod sinks {
    pub use chronon_sinks::*;
}

/// The deterministic simulator: your own machine in a hostile world, in `cargo test`. See [`sim::Simulation`].
#[cfg(feature = "sim")]
pub mod sim {
    pub use chronon_sim::*;
}
