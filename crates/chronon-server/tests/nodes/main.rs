//! Real nodes in one process: threads, sockets, disks.

mod bad_input;
mod cluster;
mod commands;
mod http;
