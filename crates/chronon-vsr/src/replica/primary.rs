//! Normal operation as the primary (§5): order, send, count votes, commit; and give up when it can't.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;

use super::intake::Pauses;
use super::log::OnDisk;
use super::reads::Rounds;
use super::retry::Retry;
use super::{Part, Proposed, Recipients, Replica, Room};
use crate::event::{Abdication, DropReason, Suspicion};
use crate::{
    Applied, Clocks, Duration, Entry, EntryHeader, Event, Instant, Mutation, Op, OpRef, Payload, ReplicaId,
    Stamp, SyncProgress, Timestamp,
};

/// A disk that answers within this is healthy enough to lead.
const DISK_HEALTHY: Duration = Duration::from_millis(250);

/// A view this young is not given up for a slow disk; doubles each time that it happens.
const STALL_PATIENCE: Duration = Duration::from_secs(10);

/// So long a primary waits for votes that a quorum with good disks could give; doubles each time that it happens. Whatever
/// they lack, the next view may have it: each tells it what it knows to be committed.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);

/// A diverged primary hands over at once. The view that comes back to it while nobody else could lead is kept this long
/// before it hands over again; doubles each time that it happens, up to the longest back-off.
const DIVERGED_PATIENCE: Duration = Duration::from_secs(1);

/// How long a primary that was asked to step down waits for somebody to take over.
const STEP_DOWN_PATIENCE: Duration = Duration::from_secs(5);

/// A primary's view of its stamp.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    /// StartView was sent: everything of this stamp is durable.
    pub(crate) announced: bool,
    /// The head at StartView: the view's first commit point.
    pub(crate) first_commit: Op,
    pub(crate) first_commit_reached: bool,
    /// Who voted for each op above the commit point.
    votes: BTreeMap<Op, BTreeSet<ReplicaId>>,
    pub(crate) rounds: Rounds,
    heartbeat_at: Instant,
    resend: Retry,
    /// The commit point when it was last looked at, and since when something above it waits.
    waiting: (Op, Instant),
    /// What each voter last said of its disk, and when.
    disks: BTreeMap<ReplicaId, (Duration, Instant)>,
    pub(super) pauses: Pauses,
    pub(crate) abdicating: Option<(Abdication, Instant)>,
}

// For a search that tells states apart: what was heard and said, not when.
#[cfg(test)]
impl core::hash::Hash for Leading {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        let Leading { announced, first_commit, first_commit_reached, votes, resend, abdicating, .. } = self;
        (announced, first_commit, first_commit_reached, votes, resend, abdicating.is_some()).hash(state);
    }
}

impl Leading {
    pub(crate) fn new(now: Instant, first_commit: Op) -> Leading {
        Leading {
            announced: false,
            first_commit,
            first_commit_reached: false,
            votes: BTreeMap::new(),
            rounds: Rounds::new(),
            heartbeat_at: now,
            resend: Retry::never(),
            waiting: (Op::ROOT, now),
            disks: BTreeMap::new(),
            pauses: Pauses::new(),
            abdicating: None,
        }
    }
}

impl Replica {
    /// Prepares a body as the next op. [`Replica::can_propose`] has said yes.
    pub(super) fn prepare(&mut self, body: Arc<[u8]>) -> Proposed {
        let head = self.log.head();
        let header = EntryHeader {
            cluster: self.cluster,
            born: self.stamp,
            op: head.op.next(),
            parent: head.checksum,
            offset: self.log.end_offset(),
            timestamp: self.log_time(),
            commit: self.log.committed().op,
            release: self.options.release,
            body_size: u32::try_from(body.len()).expect("can_propose has compared it with the largest body"),
            body_checksum: crate::Checksum::of(&body),
        };
        let size = body.len();
        let entry = Entry::new(header, body).expect("size and checksum were just taken from this body");
        let name = entry.op_ref();
        self.log.push(entry.header().clone());
        self.log.hold(entry.clone(), OnDisk::No);
        let now = self.now.monotonic;
        self.head_since = now;
        // The network first: the disk works in parallel.
        self.send_prepare(Recipients::All, entry);
        let patience = self.resend_after();
        if let Part::Leading(leading) = &mut self.part
            && leading.resend.at == Instant::NEVER
        {
            leading.resend = Retry::now(now + patience);
        }
        self.pause_intake(size);
        Proposed { entry: name, born: self.stamp }
    }

    fn send_prepare(&mut self, to: Recipients, entry: Entry) {
        let checkpoint = self.log.checkpoint().entry.op;
        let prepare = Payload::Prepare { commit_max: self.log.committed(), checkpoint, entry };
        self.send(to, prepare);
    }

    fn resend_after(&self) -> Duration {
        self.options.timing.resend_min.max(self.peers.round_trip() * 2)
    }

    /// Between what and what it is now, if a quorum of clocks agrees.
    pub(super) fn agreed_time(&self) -> Option<(Timestamp, Timestamp)> {
        self.clock.agreed(self.now, self.quorums.view_change)
    }

    /// What it knows of the wall clocks of all voters.
    pub fn clocks(&self) -> Clocks {
        self.clock.state(self.now, self.quorums.view_change)
    }

    /// The next timestamp: what a quorum of clocks agrees on, and always after the one before.
    fn log_time(&mut self) -> Timestamp {
        let previous = self.log.head_timestamp();
        if self.options.mutations.breaks(Mutation::LogTimeFromOneClock) {
            return self.now.wall;
        }
        let agreed = self.agreed_time();
        if agreed.is_none() != self.clock_degraded {
            self.clock_degraded = agreed.is_none();
            self.event(if agreed.is_none() { Event::ClockDegraded } else { Event::ClockAgreed });
        }
        let clock = match agreed {
            Some((low, high)) => self.now.wall.clamp(low, high),
            // No time at all yet. A first timestamp that is an hour ahead would stop log time for that hour.
            None if previous == Timestamp::ZERO => self.clock.middle(self.now),
            None => previous + self.now.monotonic.since(self.head_since),
        };
        clock.max(previous.successor())
    }

    /// Does what became possible: says that the view has begun, votes for what is durable here, commits.
    pub(super) fn advance_primary(&mut self) {
        let Part::Leading(leading) = &self.part else { return };
        if !leading.announced {
            let waits = self.options.mutations.breaks(Mutation::StartViewWaitsForExecution)
                && self.applied.op < self.log.committed().op;
            if !self.is_promised() || waits {
                return;
            }
            self.announce();
        }
        self.vote_own();
        self.commit_voted();
    }

    fn announce(&mut self) {
        let now = self.now.monotonic;
        self.send_start_view(Recipients::All, 0);
        let patience = self.resend_after();
        let inherited = self.log.committed().op < self.head();
        let Part::Leading(leading) = &mut self.part else { return };
        leading.announced = true;
        leading.heartbeat_at = now;
        if inherited {
            leading.resend = Retry::now(now + patience);
        }
        self.event(Event::PrimaryStarted { stamp: self.stamp, head: self.head() });
        self.forwarded_role();
    }

    /// The role changes before anything that follows from it.
    fn forwarded_role(&mut self) {
        let role = self.role();
        if role != self.role {
            self.role = role;
            self.outputs.push_back(super::Output::Role(role));
        }
    }

    pub(super) fn send_start_view(&mut self, to: Recipients, nonce: u64) {
        let start_view = Payload::StartView {
            commit_max: self.log.committed(),
            checkpoint: self.offered_checkpoint(),
            suffix: self.log.suffix(),
            nonce,
        };
        self.send(to, start_view);
    }

    fn vote_own(&mut self) {
        let mut op = self.log.committed().op;
        while op < self.head() {
            op = op.next();
            if (self.is_ackable(op) || self.options.mutations.breaks(Mutation::OwnVoteBeforeFlush))
                && let Part::Leading(leading) = &mut self.part
            {
                leading.votes.entry(op).or_default().insert(self.me);
            }
        }
    }

    pub(super) fn on_prepare_ok(&mut self, from: ReplicaId, stamp: Stamp, entry: OpRef, applied: Applied) {
        let by_bare_op = self.options.mutations.breaks(Mutation::AckByBareOp);
        let is_ours = stamp == self.stamp || by_bare_op;
        let Part::Leading(leading) = &mut self.part else { return };
        if !is_ours || !leading.announced {
            return self.event(Event::MessageDropped {
                from,
                command: crate::Command::PrepareOk,
                why: DropReason::OldStamp,
            });
        }
        // An ack names what it acks: another entry may have stood at this op in an earlier view.
        let matches = self.log.at(entry.op) == Some(entry) || (by_bare_op && entry.op <= self.log.head().op);
        if !matches {
            return self.event(Event::MessageDropped {
                from,
                command: crate::Command::PrepareOk,
                why: DropReason::Inconsistent,
            });
        }
        leading.rounds.heard_ack(from, entry.op);
        if self.log.committed().op < entry.op {
            leading.votes.entry(entry.op).or_default().insert(from);
        } else {
            self.peers.note_acked(from, entry.op);
        }
        self.note_progress(from, applied.op);
        self.hear_digest(from, applied);
        self.confirm_rounds();
    }

    /// Commits in op order what enough voters have made durable.
    fn commit_voted(&mut self) {
        let before = self.log.committed().op;
        let one_less = usize::from(self.options.mutations.breaks(Mutation::CommitWithoutQuorum));
        while self.log.committed().op < self.head() {
            let next = self.log.committed().op.next();
            let Part::Leading(leading) = &mut self.part else { return };
            let voters = leading.votes.get(&next).map_or(0, BTreeSet::len);
            if voters + one_less < self.quorums.replication {
                break;
            }
            if self.options.mutations.breaks(Mutation::CommitWaitsForSlowest)
                && voters < self.membership.voters.len()
                && self.log.entry(next).is_some_and(|entry| {
                    self.now.wall.since(entry.header().timestamp) < Duration::from_millis(20)
                })
            {
                break;
            }
            let voters = leading.votes.remove(&next).unwrap_or_default();
            for voter in voters {
                self.peers.note_acked(voter, next);
            }
            let entry = self.log.at(next).expect("the chain names every op above the commit point");
            self.log.commit(entry);
        }
        self.note_committed();
        let committed = self.log.committed().op;
        let (stamp, head, now) = (self.stamp, self.head(), self.now.monotonic);
        let patience = self.resend_after();
        let Part::Leading(leading) = &mut self.part else { return };
        if before < committed {
            leading.resend = if committed < head { Retry::now(now + patience) } else { Retry::never() };
        }
        if !leading.first_commit_reached && leading.first_commit <= committed {
            leading.first_commit_reached = true;
            let op = leading.first_commit;
            self.event(Event::FirstCommitReached { stamp, op });
        }
    }

    pub(super) fn is_serving(&self, leading: &Leading) -> bool {
        let reached = leading.first_commit_reached && leading.first_commit <= self.applied.op;
        leading.abdicating.is_none()
            && !self.is_quarantined()
            && (reached || self.options.mutations.breaks(Mutation::ServeBeforeFirstCommit))
    }

    pub(super) fn on_commit_ok(
        &mut self,
        from: ReplicaId,
        stamp: Stamp,
        read_round: u64,
        applied: Applied,
        disk_age_us: u32,
        sync: Option<SyncProgress>,
    ) {
        let now = self.now.monotonic;
        if stamp != self.stamp {
            return;
        }
        let Part::Leading(leading) = &mut self.part else { return };
        leading.disks.insert(from, (Duration::from_micros(u64::from(disk_age_us)), now));
        leading.rounds.heard(from, read_round);
        self.note_progress(from, applied.op);
        self.note_sync(from, sync);
        self.hear_digest(from, applied);
        self.confirm_rounds();
    }

    // ---- time -----------------------------------------------------------------------------------------------

    pub(super) fn primary_deadline(&self, leading: &Leading) -> Instant {
        if !leading.announced {
            return Instant::NEVER;
        }
        if self.options.mutations.breaks(Mutation::NeverResend) {
            return leading.heartbeat_at.min(leading.pauses.until);
        }
        leading.heartbeat_at.min(leading.resend.at).min(leading.pauses.until)
    }

    pub(super) fn primary_timers(&mut self) {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let Part::Leading(leading) = &mut self.part else { return };
        if !leading.announced {
            return;
        }
        if leading.pauses.until <= now {
            leading.pauses.until = Instant::NEVER;
        }
        if leading.heartbeat_at <= now {
            self.judge_disputed();
            self.judge_primacy();
            self.judge_lag();
            let Part::Leading(leading) = &mut self.part else { return };
            leading.heartbeat_at = now + timing.heartbeat;
            if leading.abdicating.is_none() {
                if self.options.mutations.breaks(Mutation::IdleHeartbeatCommits) {
                    self.log.commit(self.log.head());
                    self.note_committed();
                }
                self.open_round();
            }
        }
        let Part::Leading(leading) = &self.part else { return };
        if leading.resend.is_due(now) && !self.options.mutations.breaks(Mutation::NeverResend) {
            self.resend_prepares();
        }
    }

    fn resend_prepares(&mut self) {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let mut op = self.log.committed().op;
        while op < self.head() {
            op = op.next();
            let Some(entry) = self.log.entry(op).cloned() else { continue };
            let Part::Leading(leading) = &self.part else { return };
            let voted = leading.votes.get(&op).cloned().unwrap_or_default();
            let silent: VecDeque<ReplicaId> = self
                .membership
                .voters
                .iter()
                .map(|voter| voter.replica)
                .filter(|voter| *voter != self.me && !voted.contains(voter))
                .collect();
            for voter in silent {
                self.send_prepare(Recipients::One(voter), entry.clone());
            }
        }
        let first = self.resend_after();
        let Part::Leading(leading) = &mut self.part else { return };
        leading.resend.done(
            now,
            first,
            timing.backoff_max.min(super::normal::UNANSWERED_MAX),
            &mut self.prng,
        );
    }

    /// Whether this is still the right replica to lead (§5.6).
    fn judge_primacy(&mut self) {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let heard = 1 + self
            .membership
            .peers(self.me)
            .filter(|peer| {
                self.membership.is_voter(*peer) && self.peers.is_heard(*peer, now, timing.unheard_max)
            })
            .count();
        let is_unheard = heard < self.quorums.replication;
        let Part::Leading(leading) = &self.part else { return };

        let others_healthy = leading
            .disks
            .values()
            .filter(|(age, told)| *age < DISK_HEALTHY && now.since(*told) < timing.unheard_max)
            .count();
        let young = STALL_PATIENCE * 2_u32.saturating_pow(self.stalls.min(10));
        let is_stalled = 3 <= self.quorums.voters
            && timing.disk_stall_max < self.disk_age.at(now)
            && self.quorums.view_change <= others_healthy
            && young <= now.since(self.since);

        // A view may be as young as it likes: whoever comes next has said that there is room.
        let is_full = 3 <= self.quorums.voters
            && self.room == Room::Short
            && self.quorums.view_change <= others_healthy;

        // Log time keeps to the quorum's clocks all the same; but what is due would be looked at too late or too often.
        let is_off = 3 <= self.quorums.voters && self.clocks() == Clocks::OwnIsOff;

        let patience = COMMIT_PATIENCE * 2_u32.saturating_pow(self.not_committing.min(10));
        let awaited = self.commit_awaited();
        let is_stuck = 1 < self.quorums.voters
            && patience <= awaited
            && !self.options.mutations.breaks(Mutation::NeverResend)
            && self.disk_age.at(now) < DISK_HEALTHY
            && self.quorums.replication.max(self.quorums.view_change) <= 1 + others_healthy;

        let kept = match self.handed_over.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => DIVERGED_PATIENCE * 2_u32.saturating_pow(before.min(10)),
        };
        let has_diverged = self.is_quarantined() && self.has_trusted_peer();
        let is_kept = now.since(self.since) < kept.min(timing.backoff_max);

        let Part::Leading(leading) = &self.part else { return };
        match leading.abdicating {
            None if has_diverged && !is_kept => {
                self.handed_over += 1;
                self.abdicate(Abdication::Diverged);
            }
            None if is_unheard => self.abdicate(Abdication::Unheard),
            None if is_stalled => {
                self.stalls += 1;
                self.abdicate(Abdication::DiskStalled);
            }
            None if is_full => self.abdicate(Abdication::DiskFull),
            None if is_off => self.abdicate(Abdication::ClockOff),
            None if is_stuck => {
                self.not_committing += 1;
                self.abdicate(Abdication::NotCommitting);
            }
            None => {}
            Some((why, since)) => {
                let is_over = match why {
                    Abdication::Unheard => !is_unheard,
                    Abdication::DiskStalled => self.disk_age.at(now) < DISK_HEALTHY,
                    Abdication::DiskFull => self.room == Room::Enough,
                    Abdication::Diverged => !has_diverged,
                    Abdication::ClockOff => !is_off,
                    // Its patience has grown meanwhile: what counts is that nothing waits any more, or that nobody came.
                    Abdication::NotCommitting => {
                        awaited < COMMIT_PATIENCE || STEP_DOWN_PATIENCE < now.since(since)
                    }
                    Abdication::Asked => STEP_DOWN_PATIENCE < now.since(since),
                };
                // Nobody took over, and the cause is gone: it still leads.
                if is_over && let Part::Leading(leading) = &mut self.part {
                    leading.abdicating = None;
                    self.leaving = None;
                }
            }
        }
    }

    /// For how long nothing was committed though something waits for it.
    fn commit_awaited(&mut self) -> Duration {
        let (committed, head, now) = (self.log.committed().op, self.head(), self.now.monotonic);
        let Part::Leading(leading) = &mut self.part else { return Duration::ZERO };
        if committed == head || leading.waiting.0 < committed {
            leading.waiting = (committed, now);
        }
        now.since(leading.waiting.1)
    }

    /// Gives the primacy up: asks the others to move on and falls silent. Needs no disk.
    pub(super) fn abdicate(&mut self, why: Abdication) {
        let now = self.now.monotonic;
        let (stamp, alone) = (self.stamp, self.quorums.voters == 1);
        let Part::Leading(leading) = &mut self.part else { return };
        if alone || !leading.announced || leading.abdicating.is_some() {
            return;
        }
        leading.abdicating = Some((why, now));
        self.event(Event::Abdicated { stamp, why });
        self.vote_to_leave(Suspicion::PrimaryAsked);
    }
}
