//! Checkpoints: the same at one op on every replica; none is left out; and the ring lets go only of what they cover.

use std::collections::{BTreeMap, BTreeSet};

use chronon_vsr::{
    Checkpoint, Checksum, Digest, Entry, Message, Op, OpRef, Payload, Quorums, ReplicaId, Ring,
};

use crate::{Checker, Commits, Results, Violation};

/// Watches every checkpoint of every replica.
#[derive(Debug)]
pub struct Checkpoints {
    ring: Ring,
    quorums: Quorums,
    /// The root at each op, as it was first seen.
    roots: BTreeMap<Op, Checksum>,
    /// Roots that only a diverged replica wrote.
    wrong: BTreeSet<Checksum>,
    /// What each replica's superblock names, in any incarnation.
    durable: BTreeMap<ReplicaId, Op>,
    /// A checkpoint op was handed out: what must come next.
    due: BTreeMap<ReplicaId, Op>,
    /// Below this each replica has told its journal that entries may go.
    released: BTreeMap<ReplicaId, Op>,
}

impl Checkpoints {
    pub(crate) fn new(ring: Ring, replicas: usize) -> Checkpoints {
        Checkpoints {
            ring,
            quorums: Quorums::of(replicas),
            roots: BTreeMap::new(),
            wrong: BTreeSet::new(),
            durable: BTreeMap::new(),
            due: BTreeMap::new(),
            released: BTreeMap::new(),
        }
    }

    /// The ops at which some replica wrote a checkpoint, and its root.
    pub fn roots(&self) -> &BTreeMap<Op, Checksum> {
        &self.roots
    }

    /// The op of a replica's newest durable checkpoint; none before its first.
    pub fn durable(&self, replica: ReplicaId) -> Option<Op> {
        self.durable.get(&replica).copied()
    }

    /// A replica has written a checkpoint of its own (I11).
    pub(crate) fn on_written(
        &mut self,
        results: &Results,
        replica: ReplicaId,
        entry: OpRef,
        digest: Digest,
        root: Checksum,
    ) -> Result<(), Violation> {
        let op = entry.op;
        if results.digest(op) != Some(digest) {
            let what = format!("R{replica}'s checkpoint of op {op} has another digest than the op");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        let known = *self.roots.entry(op).or_insert(root);
        if known != root {
            let what = format!("R{replica}'s checkpoint of op {op} is {root}, another replica's is {known}");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        Ok(())
    }

    /// A replica that has diverged has written a checkpoint of its own.
    pub(crate) fn on_written_wrong(&mut self, root: Checksum) {
        self.wrong.insert(root);
    }

    /// Whether only a diverged replica wrote this checkpoint.
    pub(crate) fn is_wrong(&self, root: Checksum) -> bool {
        self.wrong.contains(&root)
    }

    /// A replica's superblock names this checkpoint: as it says, or as it starts with it (I2).
    pub(crate) fn on_durable(
        &mut self,
        commits: &Commits,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
    ) -> Result<(), Violation> {
        let OpRef { op, checksum } = checkpoint.entry;
        let Some(root) = checkpoint.root else { return Ok(()) };
        if commits.get(op).is_none_or(|committed| committed.entry.checksum() != checksum) {
            let what = format!("R{replica} has a checkpoint of {checksum} at op {op}, which nobody executed");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        if self.roots.get(&op) != Some(&root) && !self.is_wrong(root) {
            let what = format!("R{replica} has the checkpoint {root} of op {op}, which nobody wrote");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        let before = self.durable.insert(replica, op);
        if before.is_some_and(|before| op < before) {
            let what = format!("R{replica}'s checkpoint goes back from {before:?} to {op}");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        Ok(())
    }

    /// A replica starts.
    pub(crate) fn restarted(&mut self, replica: ReplicaId) {
        self.due.remove(&replica);
    }

    /// A replica hands an op out for execution.
    pub(crate) fn on_commit(&mut self, replica: ReplicaId, entry: &Entry) -> Result<(), Violation> {
        if let Some(due) = self.due.get(&replica) {
            let what = format!("R{replica} leaves the checkpoint of op {due} out");
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        let header = entry.header();
        if self.ring.is_checkpoint(header.offset, header.end()) {
            self.due.insert(replica, header.op);
        }
        Ok(())
    }

    /// A replica freezes its state, or goes on from another.
    pub(crate) fn on_freeze(&mut self, replica: ReplicaId, entry: OpRef) -> Result<(), Violation> {
        if self.due.remove(&replica) != Some(entry.op) {
            let what = format!("R{replica} freezes its state at op {}, where no checkpoint is due", entry.op);
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        Ok(())
    }

    /// A replica goes on from a checkpoint.
    pub(crate) fn on_install(&mut self, replica: ReplicaId) {
        self.due.remove(&replica);
    }

    /// A replica sends a message: while it fetches a state it votes for nothing (I12).
    pub(crate) fn on_send(
        &mut self,
        replica: ReplicaId,
        message: &Message,
        fetches: bool,
    ) -> Result<(), Violation> {
        match &message.payload {
            Payload::PrepareOk { entry, .. } if fetches => {
                let what = format!("R{replica} acks op {} while it fetches a state", entry.op);
                Err(Violation::new(Checker::Checkpoints, what))
            }
            _ => Ok(()),
        }
    }

    /// A replica took a state from its peers: what lies below goes, however many hold it. It held those entries, or
    /// none, and holds the state now; nobody holds less than before.
    pub(crate) fn on_synced(&mut self, replica: ReplicaId, op: Op) {
        let released = self.released.entry(replica).or_insert(Op::ROOT);
        *released = (*released).max(op.next());
    }

    /// Damage took entries from a replica that starts; it goes on with what it holds from here up. Its own checkpoint
    /// covers the rest, or it still asks for it (`decisions/0008`).
    pub(crate) fn on_lost(&mut self, replica: ReplicaId, log_start: Op) {
        let covered = self.durable.get(&replica).map_or(Op::ROOT, |durable| durable.next());
        let released = self.released.entry(replica).or_insert(Op::ROOT);
        *released = (*released).max(log_start.min(covered));
    }

    /// A replica tells its journal that entries below this op may be written over (I8).
    pub(crate) fn on_release(&mut self, replica: ReplicaId, keep_from: Op) -> Result<(), Violation> {
        let before = self.released.entry(replica).or_insert(Op::ROOT);
        if keep_from <= *before {
            return Ok(());
        }
        *before = keep_from;
        let Some(newest) = keep_from.previous().filter(|newest| Op::ROOT < *newest) else { return Ok(()) };
        let covers = |durable: &Op| newest <= *durable;
        let by_itself = self.durable.get(&replica).is_some_and(covers);
        let covering = self.durable.values().filter(|durable| covers(durable)).count();
        if !by_itself || covering < self.quorums.replication {
            let what = format!(
                "R{replica} lets go of op {newest}, which {covering} checkpoints cover, its own {}",
                if by_itself { "too" } else { "not" }
            );
            return Err(Violation::new(Checker::Checkpoints, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::R1;

    /// Seed 676536422122: a hole below its own checkpoint was taken for a breach of I8.
    #[test]
    fn what_damage_took_below_a_replicas_own_checkpoint_was_not_let_go() {
        let fresh = || {
            let mut checkpoints = Checkpoints::new(Ring::DEFAULT, 3);
            checkpoints.durable.insert(R1, Op::new(30));
            checkpoints
        };
        assert!(fresh().on_release(R1, Op::new(20)).is_err(), "nobody else covers it");
        let mut holed = fresh();
        holed.on_lost(R1, Op::new(20));
        assert_eq!(holed.on_release(R1, Op::new(20)), Ok(()));
        assert!(holed.on_release(R1, Op::new(21)).is_err(), "this one it holds");
        // Nor does damage excuse what the checkpoint does not cover.
        holed.on_lost(R1, Op::new(40));
        assert_eq!(holed.on_release(R1, Op::new(31)), Ok(()));
        assert!(holed.on_release(R1, Op::new(32)).is_err());
    }
}
