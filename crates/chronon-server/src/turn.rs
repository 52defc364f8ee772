//! Whose turn it is to write a checkpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use chronon_vsr::{ReplicaId, Role};

/// How far the log has come, and this replica's turn: replicas write their checkpoints one after another, the primary
/// last, so that a commit rarely waits for a disk that is busy with one.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    progress: AtomicU64,
    rank: AtomicU32,
}

impl Turn {
    /// Back was handed an op that ends there in the ring.
    pub(crate) fn note_progress(&self, end: u64) {
        self.progress.store(end, Ordering::Relaxed);
    }

    /// Where the newest op that Back was handed ends in the ring.
    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// This replica plays that part among these voters.
    pub(crate) fn note_role(&self, me: ReplicaId, voters: &[ReplicaId], role: &Role) {
        self.rank.store(rank(me, voters, role), Ordering::Relaxed);
    }

    /// How many replicas write before this one.
    pub(crate) fn rank(&self) -> u32 {
        self.rank.load(Ordering::Relaxed)
    }
}

/// How many replicas write before this one.
fn rank(me: ReplicaId, voters: &[ReplicaId], role: &Role) -> u32 {
    let place = |replica: ReplicaId| voters.iter().position(|voter| *voter == replica).unwrap_or(0);
    let last = match role {
        Role::Primary { .. } => place(me),
        Role::Backup { primary, .. } => place(*primary),
        Role::Changing { .. } => voters.len() - 1,
    };
    ((place(me) + voters.len() - 1 - last) % voters.len()) as u32
}

#[cfg(test)]
mod tests {
    use chronon_vsr::{Epoch, Stamp};

    use super::*;

    #[test]
    fn every_replica_writes_in_a_turn_of_its_own_and_the_primary_last() {
        let stamp = Stamp::first(Epoch::new(0));
        for count in 1..=6 {
            let voters: Vec<ReplicaId> = (0..count).map(ReplicaId::new).collect();
            for primary in &voters {
                let role = |me: &ReplicaId| {
                    if me == primary {
                        Role::Primary { stamp, serving: true }
                    } else {
                        Role::Backup { stamp, primary: *primary }
                    }
                };
                let mut ranks: Vec<u32> = voters.iter().map(|me| rank(*me, &voters, &role(me))).collect();
                assert_eq!(ranks[usize::from(primary.value())], u32::from(count) - 1);
                ranks.sort_unstable();
                assert_eq!(ranks, (0..u32::from(count)).collect::<Vec<u32>>());
            }
        }
    }
}
