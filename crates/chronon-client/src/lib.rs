//! An async client of a Chronon cluster.
//!
//! [`Client`] keeps a session, finds the primary, and repeats a request under its own number until it knows what became
//! of it; what it then says is the truth. [`TypedClient`] is the same for the types of one machine. [`Connection`] is
//! what lies below: one connection, many requests under way, frames that wait together leave together.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod numbers;
mod result;
mod route;
mod typed;

pub use client::{Client, ClientOptions};
pub use connection::{ConnectError, Connection, ConnectionLimits, Unanswered};
pub use result::{Committed, QueryError, Read, SubmitError, Ticket};
pub use typed::TypedClient;
