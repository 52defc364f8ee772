//! A machine with everything around it, behind one object-safe trait: what Back, server and simulator hold.

use chronon_vsr::{Digest, Mutations, Op, Stamp, Timestamp};

use crate::view::{
    ActView, Asked, EffectFilter, EffectView, EngineStatus, KeyView, Order, Reported, SinkView, SkipView,
};
use crate::{
    Attempt, CommittedSkip, EffectId, Frozen, Halted, Limits, Lineage, RequestResult, RestoreError, SinkName,
};

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
    /// Calls of the machine that are not made. Each is one at which executing this op, with those before it, halted.
    pub skips: &'a [CommittedSkip],
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
    /// Bounds: the same on every replica.
    pub limits: Limits,
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
pub trait Engine: Send + Sync + core::fmt::Debug {
    /// Executes the next op; or nothing of it, if a call that is not to be skipped panics in a machine that halts then.
    fn commit(&mut self, op: CommittedOp<'_>) -> Result<Applied, Halted>;

    /// Answers a query from the state as it is.
    fn query(&self, query: &[u8]) -> Result<Vec<u8>, QueryError>;

    /// The newest op executed.
    fn applied(&self) -> Op;

    /// When the next delayed effect, retry, timer, deadline or window is due, in log time.
    fn next_due(&self) -> Option<Timestamp>;

    /// The newest stamp in which an executed op was born. None before the first op.
    fn newest_born(&self) -> Option<Stamp>;

    /// Effects that pass the filter, by id, those after `after` first, at most `limit`.
    fn effects(&self, filter: &EffectFilter, after: Option<EffectId>, limit: usize) -> Vec<EffectView>;

    /// One effect: open, or settled and still remembered.
    fn effect(&self, id: EffectId) -> Option<EffectView>;

    /// Every sink, by name.
    fn sinks(&self) -> Vec<SinkView>;

    /// One sink.
    fn sink(&self, name: &SinkName) -> Option<SinkView>;

    /// The sinks that are frozen: nothing may start there. Asked after each op.
    fn frozen_sinks(&self) -> Vec<SinkName>;

    /// What became of the command under this Idempotency-Key, while the key is kept.
    fn key_result(&self, principal: &str, key: &str) -> Option<KeyView>;

    /// Desk acts after the first `after` ever recorded, oldest first, at most `limit`, each with its number.
    fn acts(&self, after: u64, limit: usize) -> Vec<(u64, ActView)>;

    /// The newest calls of the machine that were skipped, oldest first.
    fn skips(&self) -> Vec<SkipView>;

    /// Counts.
    fn status(&self) -> EngineStatus;

    /// For the dispatcher: orders given after the one of this sequence number, oldest first.
    fn orders(&self, after: u64) -> Vec<Order>;

    /// For the dispatcher: the effect's order as it stands now, if it is released.
    fn order(&self, effect: EffectId) -> Option<Order>;

    /// For the dispatcher: the attempt that this order asks for, as the primary of `stamp` would start it.
    fn attempt(&self, order: &Order, stamp: Stamp) -> Option<Attempt>;

    /// For the dispatcher: what is asked about, if the effect's next attempt is a probe.
    fn asked(&self, effect: EffectId) -> Option<Asked>;

    /// For the dispatcher: whether the log holds a claim of an older stamp that nothing has resolved yet.
    fn holds_claims_older_than(&self, stamp: Stamp) -> bool;

    /// For the dispatcher: reports executed after the first `after` ever executed, oldest first, and how many there
    /// ever were. None when so many were executed since that they are not all remembered.
    fn reports(&self, after: u64) -> (u64, Option<Vec<Reported>>);

    /// For a cluster that is restored from a backup of this state: what happened after it is lost. Every sink is frozen,
    /// and every open effect may have been carried out since: it is parked in doubt, under the key that it has.
    fn distrust(&mut self);

    /// The whole state as it is now, in constant time: the engine goes on, the copy stays.
    fn freeze(&self) -> Box<dyn Frozen>;

    /// An engine with this one's options, and the state that these chunks hold: those of a [`Frozen::write`], in order.
    fn restore(&self, chunks: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Box<dyn Engine>, RestoreError>;
}

/// The engine of a machine, which has executed nothing.
pub fn engine<M: crate::StateMachine>(options: EngineOptions) -> Box<dyn Engine> {
    Box::new(crate::Kernel::<M>::new(options))
}
