//! A machine that is not deterministic, once: an engine that comes to something else than everybody else's.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chronon_kernel::{
    ActView, Applied, Asked, Attempt, Batch, CommittedOp, EffectFilter, EffectId, EffectView, Engine,
    EngineStatus, Frozen, Halted, KeyView, Order, Put, QueryError, Reported, Request, RequestResult,
    RestoreError, SinkName, SinkView, SkipView,
};
use chronon_vsr::{Op, Stamp, Timestamp};

/// When the engine of a machine is to slip. It outlives the process: a restart executes the same op again, and well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slip(Arc<AtomicU64>);

impl Slip {
    /// From this op on, the first op that applies a command comes out wrong, once.
    pub(crate) fn from(&self, op: Op) {
        self.0.store(op.value(), Ordering::Relaxed);
    }

    /// Whether it has still to come.
    pub(crate) fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// An engine that slips, by so many nanoseconds of log time that it takes an op for earlier than it is.
    pub(crate) fn engine(&self, inner: Box<dyn Engine>, by: u64) -> Box<dyn Engine> {
        Box::new(Slipping { inner, slip: self.clone(), by, before: None })
    }
}

#[derive(Debug)]
struct Slipping {
    inner: Box<dyn Engine>,
    slip: Slip,
    by: u64,
    /// When the op before was, if this engine has executed it.
    before: Option<Timestamp>,
}

impl Slipping {
    fn copy(&self) -> Box<dyn Engine> {
        let mut chunks = Vec::new();
        let ended = self.inner.freeze().write(None, &mut |put| {
            match put {
                Put::New { bytes, .. } => chunks.push(bytes.to_vec()),
                Put::Kept(_) => unreachable!("there is no state before"),
            }
            ControlFlow::Continue(())
        });
        assert_eq!(ended, ControlFlow::Continue(()));
        self.inner.restore(&mut chunks.into_iter()).expect("the chunks were just written")
    }
}

impl Engine for Slipping {
    fn commit(&mut self, op: CommittedOp<'_>) -> Result<Applied, Halted> {
        let from = self.slip.0.load(Ordering::Relaxed);
        let before = self.before.replace(op.timestamp);
        let has_command = || {
            let requests = Batch::split(op.body).map(|batch| batch.requests).unwrap_or_default();
            requests.iter().any(|request| matches!(request, Request::Command { .. }))
        };
        if from == 0 || op.op.value() < from || !has_command() {
            return self.inner.commit(op);
        }
        // Too early, never too late: time may stand still while clocks disagree, and it must not go back for the next op.
        let timestamp = Timestamp::from_nanos(op.timestamp.nanos().saturating_sub(self.by));
        if before.is_none_or(|before| timestamp <= before) {
            return self.inner.commit(op);
        }
        let wrong = CommittedOp { timestamp, ..op };
        let tells_time = |result: &RequestResult| matches!(result, RequestResult::Replied { at, .. } if at.op == op.op.value());
        // A repeat, or what is refused, would tell nobody of the time: tried on a copy first.
        if !self.copy().commit(wrong).is_ok_and(|applied| applied.results.iter().any(tells_time)) {
            return self.inner.commit(op);
        }
        self.slip.0.store(0, Ordering::Relaxed);
        self.inner.commit(wrong)
    }

    fn restore(&self, chunks: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Box<dyn Engine>, RestoreError> {
        Ok(self.slip.engine(self.inner.restore(chunks)?, self.by))
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, QueryError> {
        self.inner.query(query)
    }

    fn applied(&self) -> Op {
        self.inner.applied()
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.inner.next_due()
    }

    fn newest_born(&self) -> Option<Stamp> {
        self.inner.newest_born()
    }

    fn effects(&self, filter: &EffectFilter, after: Option<EffectId>, limit: usize) -> Vec<EffectView> {
        self.inner.effects(filter, after, limit)
    }

    fn effect(&self, id: EffectId) -> Option<EffectView> {
        self.inner.effect(id)
    }

    fn sinks(&self) -> Vec<SinkView> {
        self.inner.sinks()
    }

    fn sink(&self, name: &SinkName) -> Option<SinkView> {
        self.inner.sink(name)
    }

    fn frozen_sinks(&self) -> Vec<SinkName> {
        self.inner.frozen_sinks()
    }

    fn key_result(&self, principal: &str, key: &str) -> Option<KeyView> {
        self.inner.key_result(principal, key)
    }

    fn skips(&self) -> Vec<SkipView> {
        self.inner.skips()
    }

    fn acts(&self, after: u64, limit: usize) -> Vec<(u64, ActView)> {
        self.inner.acts(after, limit)
    }

    fn status(&self) -> EngineStatus {
        self.inner.status()
    }

    fn orders(&self, after: u64) -> Vec<Order> {
        self.inner.orders(after)
    }

    fn order(&self, effect: EffectId) -> Option<Order> {
        self.inner.order(effect)
    }

    fn attempt(&self, order: &Order, stamp: Stamp) -> Option<Attempt> {
        self.inner.attempt(order, stamp)
    }

    fn asked(&self, effect: EffectId) -> Option<Asked> {
        self.inner.asked(effect)
    }

    fn holds_claims_older_than(&self, stamp: Stamp) -> bool {
        self.inner.holds_claims_older_than(stamp)
    }

    fn reports(&self, after: u64) -> (u64, Option<Vec<Reported>>) {
        self.inner.reports(after)
    }

    fn distrust(&mut self) {
        self.inner.distrust();
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        self.inner.freeze()
    }
}
