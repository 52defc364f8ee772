//! Normal operation as a backup (§5): take the primary's entries in order, make them durable, ack, keep pace.

use alloc::collections::{BTreeMap, BTreeSet};

use super::log::OnDisk;
use super::retry::Retry;
use super::{Part, Recipients, Replica, Room, Timing};
use crate::detector::Detector;
use crate::event::{DropReason, Suspicion};
use crate::{
    Applied, Divergence, Duration, Entry, Event, Instant, Mutation, Op, OpRef, PIPELINE_MAX, Payload, Prng,
    ReplicaId, Stamp,
};

/// How far beyond the head entries are kept until the gap below them closes.
const AHEAD_MAX: u64 = 2 * PIPELINE_MAX;

/// A backup's view of its stamp.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    pub(crate) detector: Detector,
    /// The newest op that this stamp's primary said is committed, or that was known here at the start: nothing up to it needs
    /// our ack, unless it is sent again.
    primary_commit: Op,
    /// The ops above it that were acked in this stamp. At most a pipeline of them.
    acked: BTreeSet<Op>,
    /// Entries beyond a gap.
    ahead: BTreeMap<Op, Entry>,
    /// When to ask for what is missing below them.
    gap: Retry,
    /// When to ask for a StartView: in recovery always, otherwise when a gap is too wide.
    get_view: Retry,
    /// The question that a StartView must answer before a recovering replica believes it.
    nonce: u64,
}

// For a search that tells states apart: what was heard and said, not when.
#[cfg(test)]
impl core::hash::Hash for Following {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        let Following { detector: _, primary_commit, acked, ahead, gap, get_view, nonce } = self;
        (primary_commit, acked, ahead, gap, get_view, nonce).hash(state);
    }
}

/// What a Commit says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heartbeat {
    pub(crate) commit_max: OpRef,
    pub(crate) read_round: u64,
    pub(crate) applied: Applied,
    pub(crate) divergence: Divergence,
}

impl Following {
    pub(crate) fn new(now: Instant, timing: &Timing, primary_commit: Op, prng: &mut Prng) -> Following {
        // Backups do not all suspect at one moment.
        let spread = prng.below(1 + u64::try_from(timing.suspicion_min.as_nanos() / 4).unwrap_or(0));
        Following {
            detector: Detector::new(now, timing.suspicion_min + Duration::from_nanos(spread)),
            primary_commit,
            acked: BTreeSet::new(),
            ahead: BTreeMap::new(),
            gap: Retry::never(),
            get_view: Retry::never(),
            nonce: prng.next_u64() | 1,
        }
    }

    /// Asks the primary for its StartView at once.
    pub(crate) fn ask_for_view(&mut self, now: Instant) {
        self.get_view = Retry::now(now);
    }

    /// Whether a StartView answers this replica's own question.
    pub(crate) fn asked(&self, nonce: u64) -> bool {
        self.nonce == nonce
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.detector.deadline().min(self.gap.at).min(self.get_view.at)
    }
}

impl Replica {
    pub(super) fn on_prepare(&mut self, from: ReplicaId, stamp: Stamp, commit_max: OpRef, entry: Entry) {
        if !self.hears_primary(from, stamp) {
            return;
        }
        let name = entry.op_ref();
        if name.op == Op::ROOT || self.stamp < entry.header().born || entry.header().cluster != self.cluster {
            return self.event(Event::MessageDropped {
                from,
                command: crate::Command::Prepare,
                why: DropReason::Inconsistent,
            });
        }
        if name.op <= self.head() {
            self.on_prepare_again(from, entry);
        } else if !self.has_room(entry.header().end()) {
            // The ring must keep what is in the way: as if the Prepare had been lost.
            self.event(Event::MessageDropped {
                from,
                command: crate::Command::Prepare,
                why: DropReason::NoRoom,
            });
        } else if name.op.since(self.head()) <= AHEAD_MAX {
            if let Part::Following(following) = &mut self.part {
                following.ahead.insert(name.op, entry);
            }
            self.extend_from_ahead();
        }
        self.learn_commit(commit_max);
        self.seek_gap();
    }

    pub(super) fn on_commit(&mut self, from: ReplicaId, stamp: Stamp, heartbeat: Heartbeat) {
        if !self.hears_primary(from, stamp) {
            return;
        }
        self.learn_commit(heartbeat.commit_max);
        self.hear_digest(from, heartbeat.applied);
        self.hear_divergence(heartbeat.read_round, heartbeat.divergence);
        self.seek_gap();
        let votes = self.membership.is_voter(self.me);
        if matches!(self.part, Part::Following(_)) && self.is_promised() && votes {
            let ok = Payload::CommitOk {
                read_round: heartbeat.read_round,
                applied: self.applied,
                head: self.head(),
                checkpoint: self.log.checkpoint().entry.op,
                disk_age_us: self.disk_age_us(),
                sync: self.sync_progress(),
            };
            self.send(Recipients::One(from), ok);
        }
    }

    /// Whether a message comes from the primary of the stamp that this backup is normal in; notes that it lives.
    fn hears_primary(&mut self, from: ReplicaId, stamp: Stamp) -> bool {
        let is_heard = stamp == self.stamp
            || (stamp < self.stamp && self.options.mutations.breaks(Mutation::OldPrimaryStillHeard));
        if !is_heard || self.membership.primary(stamp) != from {
            return false; // Of a stamp that was left: note_stamp has seen to a newer one.
        }
        self.heard_primary();
        match &mut self.part {
            Part::Following(_) => true,
            Part::Changing(changing) => {
                // The view has begun without us.
                changing.ask_for_view(self.now.monotonic);
                false
            }
            Part::Recovering(_) | Part::Leading(_) | Part::Halted => false,
        }
    }

    /// Any message of the primary in its stamp takes a suspicion of it back.
    pub(super) fn heard_primary(&mut self) {
        let now = self.now.monotonic;
        if let Part::Following(following) | Part::Recovering(following) = &mut self.part {
            following.detector.heard(now);
            if self.leaving.as_ref().is_some_and(|leaving| leaving.why != Suspicion::Restarted) {
                self.leaving = None;
            }
        }
    }

    /// An entry that the log already names: its body may have been missing, its ack may have been lost.
    fn on_prepare_again(&mut self, from: ReplicaId, entry: Entry) {
        let name = entry.op_ref();
        if self.log.at(name.op).is_some_and(|stands| stands != name) {
            return self.event(Event::MessageDropped {
                from,
                command: crate::Command::Prepare,
                why: DropReason::Inconsistent,
            });
        }
        if self.log.at(name.op) == Some(name) && self.log.content(name).is_none() {
            self.keep_repaired(from, entry);
        }
        if let Part::Following(following) = &mut self.part {
            following.acked.remove(&name.op);
            if name.op <= following.primary_commit.max(self.log.checkpoint().entry.op) {
                self.ack_known_commit(name);
            }
        }
    }

    /// The primary sends again what is known to be committed here: its own view may not know it, and it waits for votes.
    /// A checkpoint that covers an op vouches for it as its entry would (I5).
    fn ack_known_commit(&mut self, entry: OpRef) {
        let is_covered = entry.op <= self.log.checkpoint().entry.op && !self.is_syncing();
        let is_held = self.log.at(entry.op) == Some(entry) && self.is_ackable(entry.op);
        if (is_covered || is_held) && self.is_promised() && self.membership.is_voter(self.me) {
            self.send_ack(entry);
        }
    }

    /// Moves entries that have become adjacent to the head into the log.
    fn extend_from_ahead(&mut self) {
        loop {
            let head = self.head();
            let Part::Following(following) = &mut self.part else { return };
            following.ahead = following.ahead.split_off(&head.next());
            let Some(next) = following.ahead.remove(&head.next()) else { return };
            if !self.log.continues(next.header()) {
                // Our log is no prefix of the primary's, or the primary contradicts itself: ask for its StartView.
                following.get_view.at = following.get_view.at.min(self.now.monotonic);
                return;
            }
            self.log.push(next.header().clone());
            self.log.hold(next, OnDisk::No);
            self.head_since = self.now.monotonic;
            self.note_committed();
        }
    }

    /// Takes in what a primary knows committed. What lies beyond the head is only remembered.
    fn learn_commit(&mut self, commit_max: OpRef) {
        if let Part::Following(following) = &mut self.part {
            following.primary_commit = following.primary_commit.max(commit_max.op);
            let pruned = following.acked.split_off(&following.primary_commit.next());
            following.acked = pruned;
        }
        if self.commit_max.op < commit_max.op {
            self.commit_max = commit_max;
        }
        self.link_commit();
    }

    /// Notes as committed what the newest committed pair heard of names in the log.
    pub(super) fn link_commit(&mut self) {
        let commit_max = self.commit_max;
        if commit_max.op <= self.log.committed().op || self.head() < commit_max.op {
            return;
        }
        match self.log.at(commit_max.op) {
            Some(stands) if stands == commit_max => self.log.commit(commit_max),
            Some(_) => self.halt(commit_max.op),
            None => {}
        }
    }

    /// The log may have learned from its own entries what is committed.
    pub(super) fn note_committed(&mut self) {
        if self.commit_max.op < self.log.committed().op {
            self.commit_max = self.log.committed();
        }
        self.link_commit();
    }

    /// What this backup lacks right below what it has of this stamp, or up to what it knows committed.
    fn gap_below(&self, following: &Following) -> Option<OpRef> {
        match following.ahead.first_key_value() {
            Some((op, entry)) => {
                op.previous().map(|below| OpRef { op: below, checksum: entry.header().parent })
            }
            None => (self.head() < self.commit_max.op).then_some(self.commit_max),
        }
    }

    /// Begins to ask for missing entries, unless that was begun already.
    fn seek_gap(&mut self) {
        let now = self.now.monotonic;
        let Part::Following(following) = &self.part else { return };
        // What could not be kept is not asked for either.
        let is_full = !self.has_room(self.log.end_offset());
        let gap = self.gap_below(following).filter(|_| !is_full);
        let Part::Following(following) = &mut self.part else { return };
        match gap {
            None => following.gap = Retry::never(),
            Some(_) if following.gap.at == Instant::NEVER => following.gap = Retry::now(now),
            Some(_) => {}
        }
    }

    fn ask_for_gap(&mut self) {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let Part::Following(following) = &self.part else { return };
        let Some(missing) = self.gap_below(following) else { return self.seek_gap() };
        let primary = self.membership.primary(self.stamp);
        let is_wide = AHEAD_MAX < missing.op.since(self.head());
        let nonce = following.nonce;
        let Part::Following(following) = &mut self.part else { return };
        following.gap.done(now, timing.resend_min, timing.backoff_max.min(UNANSWERED_MAX), &mut self.prng);
        if is_wide {
            self.send_outside(primary, Payload::GetView { nonce });
        } else {
            self.send_outside(primary, Payload::GetPrepare { entry: missing });
        }
    }

    /// An entry that came on request: perhaps the one below the gap.
    pub(super) fn fill_gap(&mut self, entry: &Entry) -> bool {
        let Part::Following(following) = &self.part else { return false };
        if self.gap_below(following) != Some(entry.op_ref()) || AHEAD_MAX < entry.op().since(self.head()) {
            return false;
        }
        let now = self.now.monotonic;
        if let Part::Following(following) = &mut self.part {
            following.ahead.insert(entry.op(), entry.clone());
            following.gap = Retry::now(now);
        }
        self.extend_from_ahead();
        self.link_commit();
        self.seek_gap();
        true
    }

    /// The primary has let go of what lies below the gap: only its StartView can carry this log on.
    pub(super) fn note_gap_missing(&mut self, entry: OpRef) {
        let now = self.now.monotonic;
        let Part::Following(following) = &self.part else { return };
        if self.gap_below(following) == Some(entry)
            && let Part::Following(following) = &mut self.part
        {
            following.ahead.clear();
            following.get_view.at = following.get_view.at.min(now);
        }
    }

    /// Whether our vote for an op of the log may count (§4): it is durable, and so is everything that a restart
    /// needs to find it again.
    pub(super) fn is_ackable(&self, op: Op) -> bool {
        let within_reach = op <= self.suffix_head || op <= self.wal.through;
        let inside_the_ack_rule = self.log.header(op).is_some_and(|header| header.end() <= self.ack_limit());
        let has_the_state = !self.is_syncing() || self.options.mutations.breaks(Mutation::AckWhileSyncing);
        within_reach && inside_the_ack_rule && has_the_state && self.log.is_durable(op)
    }

    /// Tells the primary of every entry that has become durable here in its stamp.
    pub(super) fn send_acks(&mut self) {
        // A learner follows without a vote (I12).
        if !self.is_promised() || !self.membership.is_voter(self.me) {
            return;
        }
        let Part::Following(following) = &self.part else { return };
        let mut op = following.primary_commit;
        let mut ready = alloc::vec::Vec::new();
        while op < self.head() {
            op = op.next();
            if !following.acked.contains(&op) && self.is_ackable(op) {
                ready.extend(self.log.at(op));
            }
        }
        for entry in ready {
            self.send_ack(entry);
        }
    }

    fn send_ack(&mut self, entry: OpRef) {
        if let Part::Following(following) = &mut self.part {
            following.acked.insert(entry.op);
        }
        let checkpoint = self.log.checkpoint().entry.op;
        let ok = Payload::PrepareOk { entry, applied: self.applied, checkpoint };
        self.send(Recipients::One(self.membership.primary(self.stamp)), ok);
    }

    /// The broken guard of I17: a flush that returns after the stamp was left still acks in it.
    pub(super) fn ack_after_leaving(&mut self, entry: OpRef) {
        let left = self.log_stamp.stamp();
        if matches!(self.part, Part::Changing(_)) {
            let checkpoint = self.log.checkpoint().entry.op;
            let ok = Payload::PrepareOk { entry, applied: self.applied, checkpoint };
            self.send_stamped(Recipients::One(self.membership.primary(left)), left, ok);
        }
    }

    pub(super) fn backup_timers(&mut self) {
        let (now, timing) = (self.now.monotonic, self.options.timing);
        let primary = self.membership.primary(self.stamp);
        let is_recovering = matches!(self.part, Part::Recovering(_));
        let (Part::Following(following) | Part::Recovering(following)) = &mut self.part else { return };
        let suspects = following.detector.suspects(now);
        let asks_gap = following.gap.is_due(now);
        let asks_view = following.get_view.is_due(now);
        let nonce = following.nonce;
        if suspects {
            // Once voted, the vote is what is sent again.
            following.detector.reset(now);
            self.vote_to_leave(Suspicion::Silence);
        }
        if asks_gap {
            self.ask_for_gap();
        }
        if asks_view && primary != self.me {
            self.send_outside(primary, Payload::GetView { nonce });
        }
        if asks_view && let Part::Following(following) | Part::Recovering(following) = &mut self.part {
            if is_recovering {
                following.get_view.done(now, timing.resend_min, UNANSWERED_MAX, &mut self.prng);
            } else {
                following.get_view = Retry::never();
            }
        }
    }

    /// How this replica's disk is, as peers are told: without room for a checkpoint it is no better than one that
    /// stands still.
    pub(super) fn disk_age_us(&self) -> u32 {
        match self.room {
            Room::Short => u32::MAX,
            Room::Enough => {
                u32::try_from(self.disk_age.at(self.now.monotonic).as_micros()).unwrap_or(u32::MAX)
            }
        }
    }
}

/// The longest that a question to a living peer waits for its next asking.
pub(super) const UNANSWERED_MAX: Duration = Duration::from_secs(1);
