//! How fast the primary takes requests on while a voter lags behind (§5.7): slower step by step, and never by more than
//! [`PAUSE_MAX`] an op.
//!
//! ```text
//!   a voter's lag   0 ──────── C/4 ─────────────────────── C ───────── what the log holds ──────►
//!   pause an op     none       5 ms  10 ms  …             40 ms       then none: a state is fetched
//! ```

use alloc::collections::BTreeMap;

use super::{Part, Replica};
use crate::{Duration, Event, Instant, Op, PIPELINE_MAX, ReplicaId};

/// The longest pause after an op.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// In so many steps the pause grows from a lag of C/4 to one of C.
const STEPS: u64 = 8;

/// Nobody lags who is within so many ops of the commit point, however small the ring: acks, commits and execution are
/// always a few pipelines apart.
const LAG_OPS_MIN: u64 = 4 * PIPELINE_MAX;

/// How fast requests are taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The pause after each op, for the sake of this voter; none while nobody lags.
    pub slowed: Option<(ReplicaId, Duration)>,
    /// All pauses since the replica was opened.
    pub paused_total: Duration,
}

/// A primary's pauses.
#[derive(Clone, Debug)]
pub(super) struct Pauses {
    /// What each voter has executed.
    progress: BTreeMap<ReplicaId, Progress>,
    slowed: Option<(ReplicaId, Duration)>,
    /// Nothing is prepared before; [`Instant::NEVER`] when nothing is in the way.
    pub(super) until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    applied: Op,
    /// When that last grew.
    at: Instant,
    /// The pause that suited its lag then. Who stands still has none: it fell behind after its last step.
    pause: Duration,
}

impl Pauses {
    pub(super) fn new() -> Pauses {
        Pauses { progress: BTreeMap::new(), slowed: None, until: Instant::NEVER }
    }

    /// Whether nothing may be prepared now.
    pub(super) fn holds(&self, now: Instant) -> bool {
        self.until != Instant::NEVER && now < self.until
    }
}

impl Replica {
    /// How fast it takes requests on.
    pub fn intake(&self) -> Intake {
        let slowed = match &self.part {
            Part::Leading(leading) => leading.pauses.slowed,
            Part::Following(_) | Part::Changing(_) | Part::Recovering(_) | Part::Halted => None,
        };
        Intake { slowed, paused_total: self.paused_total }
    }

    /// A voter tells what it has executed.
    pub(super) fn note_progress(&mut self, voter: ReplicaId, applied: Op) {
        let at = self.now.monotonic;
        let lag = self.lag(applied);
        let pause = lag.map_or(Duration::ZERO, |lag| pause_for(lag, self.options.ring.checkpoint_interval));
        let Part::Leading(leading) = &mut self.part else { return };
        let progress = &mut leading.pauses.progress;
        if progress.get(&voter).is_none_or(|known| known.applied < applied) {
            progress.insert(voter, Progress { applied, at, pause });
        }
    }

    /// Looks who lags: after each op, and with each heartbeat.
    pub(super) fn judge_lag(&mut self) {
        let slowed = self.worst_laggard();
        let Part::Leading(leading) = &mut self.part else { return };
        let before = core::mem::replace(&mut leading.pauses.slowed, slowed);
        match (before, slowed) {
            (None, Some((voter, pause))) => self.event(Event::IntakeSlowed { voter, pause }),
            (Some(_), None) => self.event(Event::IntakeRestored),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// An op was prepared: the next one may have to wait.
    pub(super) fn pause_intake(&mut self) {
        self.judge_lag();
        let now = self.now.monotonic;
        let Part::Leading(leading) = &mut self.part else { return };
        leading.pauses.until = Instant::NEVER;
        if let Some((_, pause)) = leading.pauses.slowed {
            leading.pauses.until = now + pause;
            self.paused_total += pause;
        }
    }

    /// The voter that lags most among those whom a slower primary helps: it is heard, it has executed something within
    /// the least silence that is suspect and was behind even so, and the log still held what it needed next. Who stands
    /// still is not waited for, and who is beyond the log is brought back by a state.
    fn worst_laggard(&self) -> Option<(ReplicaId, Duration)> {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let Part::Leading(leading) = &self.part else { return None };
        let is_live = |voter: ReplicaId, progress: &Progress| {
            self.peers.is_heard(voter, now, timing.unheard_max)
                && now.since(progress.at) < timing.suspicion_min
        };
        let laggards = leading
            .pauses
            .progress
            .iter()
            .filter(|(voter, progress)| !progress.pause.is_zero() && is_live(**voter, progress));
        laggards.map(|(voter, progress)| (*voter, progress.pause)).max_by_key(|(_, pause)| *pause)
    }

    /// How far a voter that has executed everything up to `applied` is behind the commit point, in ring bytes; none when
    /// it is not behind, or so far that the log no longer holds what it needs.
    fn lag(&self, applied: Op) -> Option<u64> {
        let committed = self.log.committed();
        if committed.op <= applied || committed.op.since(applied) <= LAG_OPS_MIN {
            return None;
        }
        let (next, end) = (self.log.header(applied.next())?, self.log.end_of(committed)?);
        Some(end.saturating_sub(next.offset))
    }
}

/// How long the intake pauses after an op while a voter lags by so many ring bytes.
fn pause_for(lag: u64, checkpoint_interval: u64) -> Duration {
    let free = checkpoint_interval / 4;
    match lag.checked_sub(free) {
        None | Some(0) => Duration::ZERO,
        Some(beyond) => {
            let step = beyond.saturating_mul(STEPS).div_ceil((3 * free).max(1)).min(STEPS);
            PAUSE_MAX / STEPS as u32 * step as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_beyond_a_quarter_of_an_interval_grows_in_steps_and_has_an_end() {
        for interval in [4096, 12_288 * 8, 250 << 20] {
            assert_eq!(pause_for(0, interval), Duration::ZERO);
            assert_eq!(pause_for(interval / 4, interval), Duration::ZERO);
            assert_eq!(pause_for(interval / 4 + 1, interval), Duration::from_millis(5));
            assert_eq!(pause_for(interval, interval), PAUSE_MAX);
            assert_eq!(pause_for(u64::MAX, interval), PAUSE_MAX);
            let mut before = Duration::ZERO;
            for part in 0..=1_000 {
                let pause = pause_for(interval / 1_000 * part, interval);
                assert!(before <= pause && pause <= before + PAUSE_MAX / STEPS as u32);
                before = pause;
            }
        }
    }
}
