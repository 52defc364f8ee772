//! A whole cluster, its disks, its clocks, its wires, its clients and the outside world in one thread and one seed.
//!
//! The replicas are the production code: [`chronon_node::Front`] and [`chronon_node::Back`] around the very replica,
//! kernel and journal that the server runs. Only what touches the world is played: time, disks, wires, sinks. A run
//! is a function of (seed, configuration, code): the same seed gives the same trace, byte for byte.
#![forbid(unsafe_code)]

mod atlas;
mod bank;
mod checker;
mod client;
mod clock;
mod config;
pub mod coverage;
mod crowd;
mod determinism;
mod disk;
mod event;
mod model;
mod narrow;
mod network;
mod performance;
mod plot;
mod process;
mod registers;
mod scenario;
mod simulation;
mod sink;
mod slip;
mod swarm;
mod trace;
mod workload;
mod world;

pub use bank::BankWorkload;
pub use checker::linear;
pub use checker::{
    Begun, Bounds, Checker, Checkpoints, Commits, Committed, Completed, Effects, GateWatch, History,
    Promises, Results, Violation,
};
pub use chronon_vsr::{Duration, Prng};
pub use client::{CallId, CallKind, ClientConfig};
pub use clock::WALL_START;
pub use config::{Config, Pace};
pub use determinism::Difference;
pub use disk::{DiskConfig, UNIT};
pub use event::{Fault, Harm, Region};
pub use model::SinkModel;
pub use narrow::Narrowed;
pub use network::{Envelope, Fate, NetworkConfig};
pub use registers::{RegisterWorkload, Registers, Set};
pub use scenario::{ALL, Chunks, Cluster, Hand, Prepare, R0, R1, R2, R3, R4, R5, SuperblockCopy, Target};
pub use simulation::{Deed, End, Found, Simulation};
pub use sink::{Act, Sink, SinkBehaviour, SinkKind};
pub use swarm::{MakeWorkload, Menu, Phase, Report, Swarm, UnknownFault};
pub use trace::{Trace, TraceMode, Who};
pub use workload::{Applied, EffectTerms, Quiet, Workload};
pub use world::World;
