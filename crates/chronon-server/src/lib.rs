//! One replica as a running process: threads, TCP, the HTTP API.
//!
//! ```text
//!            ┌────────────── Front thread ──────────────┐   writes    ┌─ WAL thread ─┐
//! peers ◄──► │ peers.rs ─┐                              │ ──────────► │ wal.rs       │ ──► disk
//!            │           ├─► chronon_node::Front        │ ◄────────── │              │
//! clients ◄► │ clients.rs┘                              │   durable   └──────────────┘
//!            └───▲──────────────────────────────────┬───┘
//!                │ asks            executed, proposals │ commits, queries
//!            ┌───┴─── pool ───┐               ┌─────▼─ Back thread ─┐
//! HTTP ◄───► │ api            │   attempts    │ apply.rs            │
//! sinks ◄──► │ attempts.rs    │ ◄───────────► │ chronon_node::Back  │
//!            └────────────────┘               └─────▲───────────────┘
//!                           frozen states │ engines restored
//!            ┌── vault thread ──┐ ◄───────┴─────────┘
//!    disk ◄─►│ vault.rs         │ ◄──► Front: chunks from and for peers
//!            └──────────────────┘
//! ```
//!
//! Queues between threads are bounded by named limits ([`Limits`]); what is full says Busy, or drops what may be lost.
#![forbid(unsafe_code)]

mod admission;
mod api;
mod apply;
mod attempts;
mod backup;
mod call;
mod clients;
mod clock;
mod config;
mod counters;
mod forward;
mod front;
mod mailbox;
mod node;
mod pace;
mod peers;
mod reads;
mod sinks;
mod stop;
mod turn;
mod vault;
mod wal;
mod wire;

pub use backup::{
    BackupError, CHUNKS, MANIFEST, Manifest, RestoredState, chunk_bytes, chunk_name, chunk_of_name,
    manifest_bytes,
};
pub use call::{Call, CallError};
pub use config::{Addresses, CheckpointLimits, DiskHook, DiskKind, Limits, Listen, ServerConfig, WallHook};
pub use node::{BoundAddresses, Founding, Node, RunningNode, StartError};
pub use stop::StopReason;
pub use vault::CHECKPOINT_ROOM_MIN;
