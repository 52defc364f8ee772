//! The atlas of damage: keeps what is done to disks within what the protocol promises to survive.
//!
//! At most f disks are damaged at a time, f being one less than the votes that commit an op: of everything that was
//! acknowledged one copy at least is whole. A disk counts as damaged until all of it was read again, by a start or a
//! full round of scrubbing, everything that its replica lacks has been repaired and is durable, and what was lost in the
//! log has been written over: until then every start finds it lost again, so after a start that did, another must not.

use std::collections::BTreeMap;

use chronon_vsr::{Quorums, ReplicaId, Status};

use crate::World;
use crate::event::{Harm, Region};
use crate::trace::Who;
use crate::world::index;

/// How many looks at everything on a disk are sure to have seen what was damaged before them. Log and checkpoints are
/// scrubbed in rounds of their own, of which one may have passed the damage before it was done, in both; a start reads
/// everything at once.
pub(crate) const LOOKS_OF_A_START: u64 = 3;

/// Which disks are damaged.
#[derive(Debug)]
pub(crate) struct Atlas {
    disks_max: usize,
    /// How many looks at the whole disk there had been when it was last damaged.
    damaged: BTreeMap<ReplicaId, u64>,
}

impl Atlas {
    pub(crate) fn new(replicas: usize) -> Atlas {
        Atlas { disks_max: Quorums::of(replicas).replication - 1, damaged: BTreeMap::new() }
    }

    /// Whether this replica's disk was damaged and is not known to be whole again.
    pub(crate) fn is_damaged(&self, replica: ReplicaId) -> bool {
        self.damaged.contains_key(&replica)
    }
}

impl World {
    /// Harms a page of a disk if the protocol promises to survive that. Says whether it did.
    pub fn harm_within_limits(&mut self, replica: ReplicaId, region: Region, harm: Harm, which: u64) -> bool {
        let machine = &mut self.machines[index(replica)];
        // A superblock is written two copies at a time, so a running one may need every copy that is whole.
        let spared = match region {
            Region::Superblock => machine.process.is_none() && machine.disk.spares_a_superblock(),
            Region::Wal | Region::Packs => true,
        };
        if !spared || !self.may_be_damaged(replica) {
            return false;
        }
        self.promises.on_damage(replica);
        let harmed = self.machines[index(replica)].disk.harm(region, harm, which);
        self.note(Who::Fault, 0xfa, || format!("{harm:?} in the {region:?} of R{replica}: {harmed}"));
        harmed
    }

    /// The replicas whose disks were damaged and are not known to be whole again.
    pub(crate) fn damaged_disks(&self) -> Vec<ReplicaId> {
        self.atlas.damaged.keys().copied().collect()
    }

    /// Whether this disk may be damaged now, besides those that are. If so it counts as damaged.
    pub(crate) fn may_be_damaged(&mut self, replica: ReplicaId) -> bool {
        let damaged: Vec<ReplicaId> = self.atlas.damaged.keys().copied().collect();
        for replica in damaged {
            if self.is_whole(replica) {
                self.atlas.damaged.remove(&replica);
            }
        }
        let may =
            self.atlas.damaged.contains_key(&replica) || self.atlas.damaged.len() < self.atlas.disks_max;
        if may {
            let looks = self.machines[index(replica)].looks;
            self.atlas.damaged.insert(replica, looks);
        }
        may
    }

    /// Whether a replica is known to hold everything, durably.
    fn is_whole(&mut self, replica: ReplicaId) -> bool {
        let looks = self.atlas.damaged.get(&replica).copied().unwrap_or(0);
        let machine = &mut self.machines[index(replica)];
        let read_again = looks + LOOKS_OF_A_START <= machine.looks;
        let clean = machine.clean;
        let Some(process) = machine.process.as_mut().filter(|_| read_again && clean) else { return false };
        let log = process.front.replica();
        let mut op = log.log_start();
        let holds_all = loop {
            if log.head() < op {
                break true;
            }
            if log.entry(op).is_none() {
                break false;
            }
            op = op.next();
        };
        holds_all
            && log.status() == Status::Normal
            && !log.is_fetching_state()
            && process.journal.idle()
            && process.journal.is_whole()
            && process.store.is_whole(&mut machine.disk)
    }
}

#[cfg(test)]
mod tests {
    use chronon_vsr::Duration;

    use super::*;
    use crate::{Cluster, R0, R1};

    /// Seed 3000296: the round had passed the damage before it was done, and another disk was damaged besides.
    #[test]
    fn the_round_of_scrubbing_under_way_says_nothing_of_what_was_damaged_meanwhile() {
        let mut c =
            Cluster::new(3).seed(1).with(|config| config.pace.scrub = Some(Duration::from_millis(10)));
        c.submit(4).settle();
        let looks = |world: &World| world.machines[index(R0)].looks;
        let before = looks(c.world());
        assert!(c.world().may_be_damaged(R0));
        for rounds in 1..LOOKS_OF_A_START {
            c.until("a round is done", |world| before + rounds <= looks(world));
            assert!(!c.world().may_be_damaged(R1), "after {rounds} rounds");
        }
        c.until("the last round is done", |world| before + LOOKS_OF_A_START <= looks(world));
        assert!(c.world().may_be_damaged(R1));
    }
}
