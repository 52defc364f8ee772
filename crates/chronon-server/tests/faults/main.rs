//! Real nodes, real sockets and real files, with faults that the test chooses: power cuts, stalled disks, lost
//! messages, sinks that answer late.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod brake;
mod checkpoints;
mod clocks;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod directories;
mod gate;
mod links;
mod load;
mod machine;
mod partitions;
mod power;
mod reads;
mod room;
mod rot;
mod sizes;
mod stalls;
