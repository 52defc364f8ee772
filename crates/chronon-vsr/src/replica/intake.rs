//! How fast the primary takes requests on while a voter is behind (§5.7): slower step by step, for as long as that helps
//! it, and within bounds.
//!
//! ```text
//!   it executes from its log.     lag   0 ────── C/4 ────────────────── C ──────── what the log holds ───►
//!                                 pause none     5 ms  10 ms  …        40 ms       then none: it needs a state
//!
//!   it fetches a state of op s.   used up since s, of what the log holds of it (C + G):
//!                                 0 ───── what the chunks that have come allow ──── half of what is left ───►
//!                                 none                5 ms  10 ms  …                100 ms
//! ```
//!
//! A pause is for 64 KiB of an op, and longer after a larger one: it is bytes that the ring runs out of.

use alloc::collections::BTreeMap;

use super::{Part, Replica};
use crate::{Duration, Event, Instant, Op, PIPELINE_MAX, ReplicaId, SyncProgress};

/// The longest pause after so many bytes, for a voter that executes its log.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// The same for one that fetches a state.
const SYNC_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Pauses grow by so much.
const PAUSE_STEP: Duration = Duration::from_millis(5);

/// So many bytes of a body are worth one pause. While the intake is slowed a batch that can be cut is cut to it, so that
/// who is first in it does not wait for all.
const PAUSED_BYTES: usize = 64 * 1024;

/// Nobody lags who is within so many ops of the commit point, however small the ring: acks, commits and execution are
/// always a few pipelines apart.
const LAG_OPS_MIN: u64 = 4 * PIPELINE_MAX;

/// How long a voter whose state does not come any further is waited for: for its next chunk, and while it installs all.
const CHUNK_AWAITED_MAX: Duration = Duration::from_secs(2);
const INSTALL_AWAITED_MAX: Duration = Duration::from_secs(10);

/// How long a voter that fetches states is waited for in all, before it is in step again. Who says nothing for as long was
/// away: it begins anew.
const SYNC_AWAITED_MAX: Duration = Duration::from_secs(60);

/// How fast requests are taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The pause after each 64 KiB of an op, for the sake of this voter; none while nobody lags.
    pub slowed: Option<(ReplicaId, Duration)>,
    /// All pauses since the replica was opened.
    pub paused_total: Duration,
}

/// A primary's pauses.
#[derive(Clone, Debug)]
pub(super) struct Pauses {
    /// What each voter has executed.
    progress: BTreeMap<ReplicaId, Progress>,
    /// The states on their way to voters.
    syncs: BTreeMap<ReplicaId, Sync>,
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

/// A state on its way to a voter.
#[derive(Clone, Copy, Debug)]
struct Sync {
    progress: SyncProgress,
    /// When it last came further.
    at: Instant,
    /// Ring bytes between its op and the commit point when it was first heard of.
    used_at_first: u64,
    /// Since when the voter has been behind its log.
    since: Instant,
    /// When the voter last said anything.
    heard: Instant,
}

impl Pauses {
    pub(super) fn new() -> Pauses {
        let (progress, syncs) = (BTreeMap::new(), BTreeMap::new());
        Pauses { progress, syncs, slowed: None, until: Instant::NEVER }
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
        let lag = self.used_since(applied);
        let pause = lag.map_or(Duration::ZERO, |lag| pause_for(lag, self.options.ring.checkpoint_interval));
        let Part::Leading(leading) = &mut self.part else { return };
        let progress = &mut leading.pauses.progress;
        if progress.get(&voter).is_none_or(|known| known.applied < applied) {
            progress.insert(voter, Progress { applied, at, pause });
        }
    }

    /// A voter tells how far the state is that it goes on from.
    pub(super) fn note_sync(&mut self, voter: ReplicaId, told: Option<SyncProgress>) {
        let now = self.now.monotonic;
        let used = told.and_then(|sync| self.used_since(sync.op));
        let Part::Leading(leading) = &mut self.part else { return };
        let Pauses { progress, syncs, .. } = &mut leading.pauses;
        let known = syncs.get(&voter).copied().filter(|known| now.since(known.heard) < SYNC_AWAITED_MAX);
        let sync = match (told, known) {
            (Some(told), Some(known)) if told.op == known.progress.op => {
                let at = if known.progress.fetched < told.fetched { now } else { known.at };
                Sync { progress: told, at, heard: now, ..known }
            }
            (Some(told), known) => Sync {
                progress: told,
                at: now,
                used_at_first: used.unwrap_or(0),
                since: known.map_or(now, |known| known.since),
                heard: now,
            },
            // Its minute is over when it is in step again.
            (None, Some(known)) => {
                let is_in_step = progress
                    .get(&voter)
                    .is_some_and(|progress| known.progress.op < progress.applied && progress.pause.is_zero());
                if is_in_step {
                    syncs.remove(&voter);
                    return;
                }
                Sync { heard: now, ..known }
            }
            (None, None) => return,
        };
        syncs.insert(voter, sync);
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

    /// How large the layer above should let a batch become that it can cut.
    pub fn batch_size_max(&self) -> usize {
        if self.intake().slowed.is_some() { PAUSED_BYTES } else { crate::BODY_SIZE_MAX }
    }

    /// An op with a body of so many bytes was prepared: the next one may have to wait.
    pub(super) fn pause_intake(&mut self, size: usize) {
        self.judge_lag();
        let now = self.now.monotonic;
        let Part::Leading(leading) = &mut self.part else { return };
        leading.pauses.until = Instant::NEVER;
        if let Some((_, pause)) = leading.pauses.slowed {
            let pause = pause * u32::try_from(size.div_ceil(PAUSED_BYTES).max(1)).unwrap_or(u32::MAX);
            leading.pauses.until = now + pause;
            self.paused_total += pause;
        }
    }

    /// The voter that is most behind among those whom a slower primary helps. It is heard, and either executes its log:
    /// has executed something within the least silence that is suspect, was behind even so, and the log still held what
    /// it needed next. Or a state comes to it, and the log still holds what follows that. Who stands still is not waited
    /// for, and who is beyond the log without a state on its way is brought back by one.
    fn worst_laggard(&self) -> Option<(ReplicaId, Duration)> {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let Part::Leading(leading) = &self.part else { return None };
        let Pauses { progress, syncs, .. } = &leading.pauses;
        let executing = progress
            .iter()
            .filter(|(_, progress)| now.since(progress.at) < timing.suspicion_min)
            .map(|(voter, progress)| (*voter, progress.pause));
        // Whoever has executed something beyond the state goes on by its log.
        let is_fetching = |voter: &ReplicaId, sync: &Sync| {
            progress.get(voter).is_none_or(|progress| progress.applied <= sync.progress.op)
        };
        let fetching = syncs
            .iter()
            .filter(|(voter, sync)| is_fetching(voter, sync))
            .map(|(voter, sync)| (*voter, self.pause_for_sync(sync)));
        executing
            .chain(fetching)
            .filter(|(voter, pause)| !pause.is_zero() && self.peers.is_heard(*voter, now, timing.unheard_max))
            .max_by_key(|(_, pause)| *pause)
    }

    /// How long to pause while this state is on its way: the log is to be used up no faster than the chunks come.
    fn pause_for_sync(&self, sync: &Sync) -> Duration {
        let now = self.now.monotonic;
        let patience = if sync.progress.is_fetched() { INSTALL_AWAITED_MAX } else { CHUNK_AWAITED_MAX };
        if patience <= now.since(sync.at) || SYNC_AWAITED_MAX <= now.since(sync.since) {
            return Duration::ZERO;
        }
        let ring = &self.options.ring;
        match self.used_since(sync.progress.op) {
            Some(used) => {
                let held = ring.checkpoint_interval + ring.slack;
                pause_for_use(used, used_allowed(sync.used_at_first, sync.progress, held), held)
            }
            None => Duration::ZERO,
        }
    }

    /// Ring bytes between this op and the commit point; none of those that are always on their way, and nothing when the log
    /// no longer holds what follows the op.
    fn used_since(&self, op: Op) -> Option<u64> {
        let committed = self.log.committed();
        if committed.op <= op || committed.op.since(op) <= LAG_OPS_MIN {
            return Some(0);
        }
        let (next, end) = (self.log.header(op.next())?, self.log.end_of(committed)?);
        Some(end.saturating_sub(next.offset))
    }
}

/// How long the intake pauses while a voter's execution lags by so many ring bytes.
fn pause_for(lag: u64, checkpoint_interval: u64) -> Duration {
    let free = checkpoint_interval / 4;
    stepped(lag.saturating_sub(free), 3 * free, PAUSE_MAX)
}

/// How much of the log may be used up since a state's op: what was when the transfer was first heard of, and of the rest
/// as much as of the chunks has come. A quarter is kept for catching up from the log afterwards, and a sixteenth is
/// free at the beginning.
fn used_allowed(at_first: u64, SyncProgress { fetched, chunks, .. }: SyncProgress, held: u64) -> u64 {
    let end = held / 4 * 3;
    let rest = u128::from(end.saturating_sub(at_first));
    let come = rest * u128::from(fetched) / u128::from(chunks.max(1));
    let come = u64::try_from(come).unwrap_or(end);
    at_first.min(end) + come + held / 16
}

/// How long the intake pauses while so much more of the log is used up than a state on its way allows.
fn pause_for_use(used: u64, allowed: u64, held: u64) -> Duration {
    stepped(used.saturating_sub(allowed), held.saturating_sub(allowed) / 2, SYNC_PAUSE_MAX)
}

/// Steps of [`PAUSE_STEP`]: the first beyond zero, the last where `all` is reached.
fn stepped(beyond: u64, all: u64, most: Duration) -> Duration {
    let steps = u64::try_from(most.as_millis() / PAUSE_STEP.as_millis()).unwrap_or(1);
    let step = beyond.saturating_mul(steps).div_ceil(all.max(1)).min(steps);
    PAUSE_STEP * u32::try_from(step).unwrap_or(u32::MAX)
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
                assert!(before <= pause && pause <= before + PAUSE_STEP);
                before = pause;
            }
        }
    }

    #[test]
    fn the_log_is_used_up_no_faster_than_a_state_comes() {
        let sync = |fetched, chunks| SyncProgress { op: Op::new(1), fetched, chunks };
        for held in [8192, 8 << 20, 500 << 20] {
            for at_first in [0, held / 8, held / 2, held] {
                let mut before = at_first.min(held / 4 * 3);
                for fetched in 0..=64 {
                    let allowed = used_allowed(at_first, sync(fetched, 64), held);
                    // It grows with what comes, and leaves room to catch up with.
                    assert!(before <= allowed && allowed <= held / 16 * 13, "{at_first} {fetched} {allowed}");
                    assert_eq!(pause_for_use(allowed, allowed, held), Duration::ZERO);
                    assert_eq!(pause_for_use(allowed + 1, allowed, held), PAUSE_STEP);
                    assert_eq!(pause_for_use(held, allowed, held), SYNC_PAUSE_MAX);
                    before = allowed;
                }
                // Before it is known how many chunks there are, nothing has come.
                assert_eq!(
                    used_allowed(at_first, sync(0, 0), held),
                    used_allowed(at_first, sync(0, 9), held)
                );
            }
        }
    }
}
