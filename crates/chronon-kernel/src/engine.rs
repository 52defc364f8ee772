//! A machine with everything around it, behind one object-safe trait: what Back, server and simulator hold.

use chronon_vsr::{Digest, Mutations, Op, Stamp, Timestamp};

use crate::{Lineage, RequestResult};

/// A committed op as the kernel executes it.
#[derive(Clone, Copy, Debug)]
pub struct CommittedOp<'a> {
    /// Its place in the log.
    pub op: Op,
    /// The stamp whose primary first prepared it.
    pub born: Stamp,
    /// Log time.
    pub timestamp: Timestamp,
    /// A [`crate::Batch`]. Bytes that are none are executed as an empty batch, and counted.
    pub body: &'a [u8],
}

/// What executing an op did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The op.
    pub op: Op,
    /// One result a request.
    pub results: Vec<RequestResult>,
    /// The chained digest after it.
    pub digest: Digest,
}

/// How an engine is made.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// The first part of every effect's key.
    pub lineage: Lineage,
    /// Guards broken on purpose. [`Mutations::NONE`] outside tests.
    pub mutations: Mutations,
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The bytes are no query of this machine.
    #[error("the query can't be decoded")]
    Undecodable,
    /// `query` panicked.
    #[error("query panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

/// A kernel around some machine.
pub trait Engine: Send {
    /// Executes the next op.
    fn commit(&mut self, op: CommittedOp<'_>) -> Applied;

    /// Answers a query from the state as it is.
    fn query(&self, query: &[u8]) -> Result<Vec<u8>, QueryError>;

    /// The newest op executed.
    fn applied(&self) -> Op;

    /// When the next delayed effect, retry, timer, deadline or window is due, in log time.
    fn next_due(&self) -> Option<Timestamp>;
}
