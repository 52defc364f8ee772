//! One log: what is committed at an op is the same on every replica, in every incarnation, for ever.

use std::collections::BTreeMap;

use chronon_kernel::{Applied, Batch, CommittedOp, Engine, Halted, Request};
use chronon_vsr::{Entry, Instant, Op, OpRef, ReplicaId};

use crate::{Checker, Violation};

/// An op as it was first seen committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The entry.
    pub entry: Entry,
    /// Its requests.
    pub requests: Vec<Request>,
    /// When a replica first handed it out for execution, in world time.
    pub at: Instant,
}

/// Watches every entry that any replica hands out for execution.
#[derive(Debug, Default)]
pub struct Commits {
    log: Vec<Committed>,
    /// The next op of each replica's present incarnation.
    next: BTreeMap<ReplicaId, Op>,
}

impl Commits {
    /// The newest op that any replica executed.
    pub fn head(&self) -> Op {
        Op::new(self.log.len() as u64)
    }

    /// The op, if any replica ever handed it out.
    pub fn get(&self, op: Op) -> Option<&Committed> {
        self.log.get(usize::try_from(op.value().checked_sub(1)?).ok()?)
    }

    /// The whole log, from op 1.
    pub fn log(&self) -> &[Committed] {
        &self.log
    }

    /// Executes an op as every replica does: where the machine halts, with the first skip behind it.
    pub fn execute(&self, engine: &mut dyn Engine, entry: &Entry) -> Result<Applied, Halted> {
        let header = entry.header();
        let (op, born, timestamp, body) = (header.op, header.born, header.timestamp, entry.body());
        let mut skips = Vec::new();
        loop {
            let halted = match engine.commit(CommittedOp { op, born, timestamp, body, skips: &skips }) {
                Ok(applied) => return Ok(applied),
                Err(halted) => halted,
            };
            let later = self.log.iter().map(|committed| &committed.entry).filter(|later| op < later.op());
            let found = later.filter_map(|later| halted.skip_in(later.op(), later.body())).next();
            skips.push(found.ok_or(halted)?);
        }
    }

    /// How far a replica's present incarnation got.
    pub fn handed_out(&self, replica: ReplicaId) -> Op {
        self.next.get(&replica).and_then(|next| next.previous()).unwrap_or(Op::ROOT)
    }

    /// A replica starts: it executes from the first op again.
    pub(crate) fn restarted(&mut self, replica: ReplicaId) {
        self.next.insert(replica, Op::ROOT.next());
    }

    /// A replica goes on from a checkpoint: it executes from the op after it. Some replica executed that op.
    pub(crate) fn on_install(&mut self, replica: ReplicaId, entry: OpRef) -> Result<(), Violation> {
        if self.get(entry.op).is_none_or(|known| known.entry.checksum() != entry.checksum) {
            let what = format!(
                "R{replica} goes on from {} at op {}, which nobody committed",
                entry.checksum, entry.op
            );
            return Err(Violation::new(Checker::Commits, what));
        }
        self.next.insert(replica, entry.op.next());
        Ok(())
    }

    /// A replica hands an entry out for execution.
    pub(crate) fn on_commit(
        &mut self,
        at: Instant,
        replica: ReplicaId,
        entry: &Entry,
    ) -> Result<(), Violation> {
        let next = self.next.entry(replica).or_insert(Op::ROOT.next());
        if entry.op() != *next {
            let what = format!("R{replica} executes op {} where {next} is due", entry.op());
            return Err(Violation::new(Checker::Commits, what));
        }
        *next = next.next();
        if let Some(known) = self.get(entry.op()) {
            if known.entry.checksum() != entry.checksum() {
                let what = format!(
                    "R{replica} commits {} born {} at op {}; before it was {} born {}",
                    entry.checksum(),
                    entry.header().born,
                    entry.op(),
                    known.entry.checksum(),
                    known.entry.header().born,
                );
                return Err(Violation::new(Checker::Commits, what));
            }
            return Ok(());
        }
        assert!(entry.op() == self.head().next(), "replicas execute in order, so the first of them too");
        if let Some(last) = self.log.last() {
            if entry.header().parent != last.entry.checksum() {
                let what = format!("op {} does not chain to the op before it", entry.op());
                return Err(Violation::new(Checker::Commits, what));
            }
            if entry.header().timestamp <= last.entry.header().timestamp {
                let what = format!("log time goes back at op {}", entry.op());
                return Err(Violation::new(Checker::Time, what));
            }
        }
        let requests = Batch::split(entry.body()).map_or_else(Vec::new, |batch| batch.requests);
        self.log.push(Committed { entry: entry.clone(), requests, at });
        Ok(())
    }
}
