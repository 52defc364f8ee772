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

    /// Whether a checkpoint is due after an entry with this ring charge: a multiple of C lies in (offset, end].
    pub const fn is_checkpoint(&self, offset: u64, end: u64) -> bool {
        offset / self.checkpoint_interval < end / self.checkpoint_interval
    }

    /// Ring bytes that only what brings a halted execution on again may take. No more than a checkpoint leaves: the op
    /// that a checkpoint is due after can always be prepared, and that ends at most C + b behind the checkpoint before.
    pub const fn relief(&self) -> u64 {
        let left = self.slack.saturating_sub(self.charge_max);
        if left < self.charge_max { left } else { self.charge_max }
    }

    /// The ring a data directory gets unless told otherwise: 512 MiB.
    pub const DEFAULT: Ring = match Ring::new(512 * 1024 * 1024, BODY_SIZE_MAX as u32) {
        Some(ring) => ring,
        None => panic!("512 MiB hold the pipeline"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PIPELINE_MAX;

    #[test]
    fn a_charge_is_whole_blocks_for_what_the_blocks_can_hold() {
        // A block holds 3968 bytes: eight units of 496.
        assert_eq!(charge(0), 3 * 4096);
        assert_eq!(charge(3968 - 256), 3 * 4096);
        assert_eq!(charge(3968 - 255), 4 * 4096);
        assert_eq!(charge(2 * 3968 - 256), 4 * 4096);
        assert_eq!(charge(u32::MAX), 4096 * ((256 + u64::from(u32::MAX)).div_ceil(3968) + 2));
        for body in 0..20_000u32 {
            assert!(u64::from(body) + 256 <= (charge(body) / 4096 - 2) * 3968);
            assert!(charge(body) <= charge(body + 1));
        }
    }

    #[test]
    fn every_ring_holds_its_checkpoints_its_slack_and_its_pipeline() {
        for body_size_max in [0, 100, 4096, 65_536, BODY_SIZE_MAX as u32] {
            let charge_max = charge(body_size_max);
            let smallest = charge_max * (PIPELINE_MAX + 2);
            assert_eq!(Ring::new(0, body_size_max), None);
            assert_eq!(Ring::new(smallest - 1, body_size_max), None);
            for log in (smallest..smallest + 20).chain([smallest * 3, 1 << 40, u64::MAX]) {
                let ring = Ring::new(log, body_size_max).unwrap();
                let Ring { log: w, checkpoint_interval: c, slack: g, charge_max: b } = ring;
                assert_eq!((w, b), (log, charge_max));
                assert!(b <= c);
                assert!(b <= g);
                assert!(u128::from(c) + u128::from(g) + u128::from(b * PIPELINE_MAX) <= u128::from(w));
            }
        }
    }

    #[test]
    fn the_default_ring_takes_the_largest_body() {
        assert_eq!(Ring::DEFAULT.charge_max, charge(BODY_SIZE_MAX as u32));
        assert_eq!(Ring::DEFAULT.log, 512 << 20);
    }
}
