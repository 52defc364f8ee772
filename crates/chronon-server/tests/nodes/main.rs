//! Real nodes in one process: threads, sockets, disks.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod bad_input;
mod cluster;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod halting;
mod http;
mod slipping;
mod trouble;
