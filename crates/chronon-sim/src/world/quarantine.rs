//! Machines that slip: what a replica may still say whose state is not the cluster's, and who has to notice.

use std::collections::BTreeSet;

use chronon_kernel::{Answer, RequestResult};
use chronon_vsr::{Applied, Checksum, Digest, Event, Message, Op, OpRef, Payload, ReplicaId};

use super::index;
use crate::trace::Who;
use crate::{Checker, Fault, Violation, World};

/// Whose machines have come to something else than the others'.
#[derive(Debug, Default)]
pub(crate) struct Slips {
    /// Who ever did.
    slipped: BTreeSet<ReplicaId>,
    /// A replica went on from a checkpoint that another one had wrong.
    spread: bool,
}

impl World {
    /// From this op on, a replica comes to something else than the others, once.
    pub fn slip(&mut self, replica: ReplicaId, from: Op) {
        self.machines[index(replica)].slip.from(from);
        self.machines[index(replica)].slips = true;
    }

    /// Whether a replica has heard that its state is not the cluster's.
    pub fn is_quarantined(&self, replica: ReplicaId) -> bool {
        self.replica(replica).is_some_and(|replica| replica.quarantine().is_some())
    }

    /// Whether a tie keeps everybody waiting: somebody is quarantined of whom no majority has said that it is wrong, nobody
    /// serves, and whoever is not quarantined lacks what is in no log any more, only in states of those who are.
    pub(crate) fn is_tied(&self) -> bool {
        let waited_for = self.machines.iter().filter(|machine| !machine.forsaken && !machine.paused);
        let running: Vec<_> = waited_for
            .filter_map(|machine| Some((machine.id, machine.process.as_ref()?.front.replica())))
            .collect();
        let quarantines = running.iter().filter_map(|(_, replica)| replica.quarantine());
        let is_undecided = quarantines.into_iter().any(|quarantine| quarantine.majority.is_none());
        let mut sound = running.iter().filter(|(_, replica)| replica.quarantine().is_none());
        is_undecided
            && self.primary().is_none()
            && sound.all(|(id, replica)| {
                let next = replica.committed_out().next();
                running.iter().all(|(other, log)| other == id || next < log.log_start())
            })
    }

    /// Everybody who runs is started again, and executes again from its checkpoint. Nobody remembers who was named.
    pub(crate) fn start_all_again(&mut self) {
        let all = self.machines.iter().filter(|machine| machine.process.is_some() && !machine.forsaken);
        let running: Vec<ReplicaId> = all.map(|machine| machine.id).collect();
        for replica in running {
            self.inflict(Fault::Kill(replica));
            self.inflict(Fault::Start(replica));
        }
    }

    /// Whether a replica's state differs from what the log comes to.
    pub fn has_diverged(&self, replica: ReplicaId) -> bool {
        self.machines[index(replica)].diverged
    }

    /// Who differs from the others, or is about to.
    pub(crate) fn slipping(&self) -> Vec<ReplicaId> {
        let slips = self.machines.iter().filter(|machine| machine.diverged || machine.slip.is_due());
        slips.map(|machine| machine.id).collect()
    }

    /// Whether a wrong state has gone from one replica to another: they may be more than the others then.
    pub(crate) fn has_spread(&self) -> bool {
        self.slips.spread
    }

    /// A replica executed an op. What it came to after it slipped is not the others'.
    pub(super) fn judge_executed(
        &mut self,
        at: usize,
        applied: Applied,
        results: &[RequestResult],
    ) -> Result<(), Violation> {
        let machine = &mut self.machines[at];
        let id = machine.id;
        if machine.slipped() {
            machine.diverged = true;
            self.slips.slipped.insert(id);
            self.reach("Slipped");
            self.trace.note(self.now, Who::Fault, 0x511b, || format!("R{id} slips at op {}", applied.op));
        }
        if !self.machines[at].diverged {
            return self.results.on_executed(&self.commits, id, applied, results);
        }
        Ok(())
    }

    /// A replica has written a checkpoint of its own.
    pub(super) fn judge_checkpoint(
        &mut self,
        at: usize,
        entry: OpRef,
        digest: Digest,
        root: Checksum,
    ) -> Result<(), Violation> {
        let machine = &self.machines[at];
        if machine.diverged && self.results.digest(entry.op) != Some(digest) {
            self.checkpoints.on_written_wrong(root);
            self.reach("WrongCheckpoint");
            return Ok(());
        }
        self.checkpoints.on_written(&self.results, machine.id, entry, digest, root)
    }

    /// A replica goes on from a checkpoint.
    pub(super) fn note_restored(&mut self, at: usize, root: Checksum) {
        let is_wrong = self.checkpoints.is_wrong(root);
        let id = self.machines[at].id;
        self.machines[at].diverged = is_wrong;
        if is_wrong && !self.slips.slipped.contains(&id) {
            self.slips.spread = true;
            self.reach("WrongStateSpread");
        }
    }

    /// Whether an answer reaches its client. What a diverged replica says before it can know is lost on the way: nobody
    /// promised that it is right. Afterwards it says nothing.
    pub(super) fn may_tell(&mut self, at: usize, answer: &Answer) -> bool {
        let id = self.machines[at].id;
        let is_quarantined = self.is_quarantined(id);
        match answer {
            Answer::Decided(_) | Answer::Answered { .. } => {}
            Answer::NotExecuted(_) | Answer::Indeterminate => {
                if is_quarantined {
                    self.reach("AnswerWithheld");
                }
                return true;
            }
        }
        if is_quarantined {
            let what = format!("R{id} is quarantined and answers {answer:?}");
            self.object(Violation::new(Checker::Quarantine, what));
        }
        !self.machines[at].diverged
    }

    /// An attempt passed the gate.
    pub(super) fn judge_start(&self, at: usize) -> Result<(), Violation> {
        let id = self.machines[at].id;
        if self.is_quarantined(id) {
            return Err(Violation::new(
                Checker::Quarantine,
                format!("R{id} is quarantined and starts an effect"),
            ));
        }
        Ok(())
    }

    /// A message leaves a replica.
    pub(super) fn judge_chunk(&self, at: usize, message: &Message) -> Result<(), Violation> {
        let id = self.machines[at].id;
        if matches!(message.payload, Payload::Chunk { .. }) && self.is_quarantined(id) {
            return Err(Violation::new(
                Checker::Quarantine,
                format!("R{id} is quarantined and serves a chunk"),
            ));
        }
        Ok(())
    }

    /// Whether an event speaks of a difference that there is not. On a tie both sides are quarantined, and rightly so.
    pub(super) fn is_unfounded(&self, event: &Event) -> bool {
        match event {
            Event::DigestMismatch { .. } | Event::CheckpointMismatch { .. } => self.slips.slipped.is_empty(),
            Event::Diverged { replica, majority: Some(_), .. } => {
                !self.slips.slipped.contains(replica) && !self.slips.spread
            }
            Event::Diverged { .. } | Event::Quarantined { .. } => self.slips.slipped.is_empty(),
            _ => false,
        }
    }
}
