//! The kernel through its public door: ops go in, results, orders and views come out.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod checkpoints;
mod commands;
mod contracts;
mod desk;
mod dispatching;
mod halting;
mod lanes;
mod limits;
mod log;
#[cfg(feature = "mutations")]
mod mutations;
mod probe_machine;
mod random;
mod time;
