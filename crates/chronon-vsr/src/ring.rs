//! Ring bytes: how much of the WAL an entry may take, and how far a log may run ahead of its checkpoint (§1, §8).

use crate::BODY_SIZE_MAX;

/// The most that an entry's first writing takes in any replica's ring: whole 4 KiB blocks for header and body with
/// their trailers, its group's header and an evidence group. The same on every replica, so ring positions that
/// decide anything are functions of the log alone.
pub const fn charge(body_size: u32) -> u64 {
    let content = 256 + body_size as u64;
    4096 * (content.div_ceil(3968) + 2)
}

/// The sizes of the ring, in bytes. `log ≥ checkpoint_interval + slack + pipeline` (§8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring {
    /// W: ring bytes for live log. The file holds a quarter more.
    pub log: u64,
    /// C: a checkpoint is due whenever the log's offset crosses a multiple of this.
    pub checkpoint_interval: u64,
    /// G: how far an op may be acked beyond the checkpoint that should have freed its room.
    pub slack: u64,
    /// b: the largest charge of one entry.
    pub charge_max: u64,
}

impl Ring {
    /// A ring for `log` bytes of live log, or none when that is too small to hold the pipeline and two checkpoints.
    pub const fn new(log: u64, body_size_max: u32) -> Option<Ring> {
        let charge_max = charge(body_size_max);
        let Some(rest) = log.checked_sub(charge_max * crate::PIPELINE_MAX) else { return None };
        let half = rest / 2;
        if half < charge_max {
            return None;
        }
        Some(Ring { log, checkpoint_interval: half, slack: half, charge_max })
    }

    /// The ring a data directory gets unless told otherwise: 512 MiB.
    pub const DEFAULT: Ring = match Ring::new(512 * 1024 * 1024, BODY_SIZE_MAX as u32) {
        Some(ring) => ring,
        None => panic!("512 MiB hold the pipeline"),
    };
}
