//! View change (§6): leave together, tell the next primary what is here, adopt one log.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::log::{Fork, Log, OnDisk};
use super::loss::Lost;
use super::normal::{Following, UNANSWERED_MAX};
use super::primary::Leading;
use super::retry::{Retry, jittered};
use super::{Part, Recipients, Replica, Timing};
use crate::choice::{Choice, Chosen, DoViewChangeVote, choose};
use crate::event::{DropReason, Suspicion};
use crate::{
    Duration, Entry, EntryHeader, Event, Incarnation, Instant, LogStamp, Mutation, Op, OpRef, PIPELINE_MAX,
    Payload, ReplicaId, SUFFIX_MAX, Stamp, SuffixBits,
};

/// How much of the view change's back-off is remembered while no view begins.
const BACKOFF_DOUBLINGS_MAX: u32 = 6;

/// Our own wish to leave the stamp.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct Leaving {
    pub(crate) to: Stamp,
    pub(crate) why: Suspicion,
    retry: Retry,
}

/// The wishes of others to leave this stamp, and how often it took more than one view to leave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Votes {
    votes: BTreeMap<ReplicaId, (Stamp, Instant)>,
    failed: u32,
}

/// Between two views.
#[derive(Clone, Debug)]
pub(crate) struct Changing {
    /// DoViewChange was sent.
    spoken: bool,
    do_view_change: Retry,
    get_view: Retry,
    nonce: u64,
    /// Without a sign of progress until then, the next view is tried.
    patience_at: Instant,
    patience: Duration,
    /// How far the primary to be has said that it is.
    busy: Op,
    /// What the voters said, if this is the primary to be.
    election: Option<Election>,
}

/// What the primary of the next view has gathered.
#[derive(Clone, Debug)]
struct Election {
    votes: BTreeMap<ReplicaId, (Incarnation, DoViewChangeVote)>,
    chosen: Option<Chosen>,
    /// Bodies of the chosen log that its own log lacks. Apart from its own: a crash must report the old one.
    fetched: BTreeMap<OpRef, Entry>,
    /// The votes changed since the choice was made.
    stale: bool,
}

// For a search that tells states apart: what was heard and said, not when.
#[cfg(test)]
impl core::hash::Hash for Votes {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        for (replica, (to, _)) in &self.votes {
            (replica, to).hash(state);
        }
    }
}

#[cfg(test)]
impl core::hash::Hash for Changing {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        (self.spoken, &self.do_view_change, &self.get_view).hash(state);
        if let Some(Election { votes, chosen, fetched, stale }) = &self.election {
            (votes, chosen.is_some(), fetched, stale).hash(state);
        }
    }
}

impl Changing {
    pub(crate) fn new(now: Instant, timing: &Timing, elect: bool) -> Changing {
        let election =
            Election { votes: BTreeMap::new(), chosen: None, fetched: BTreeMap::new(), stale: false };
        Changing {
            spoken: false,
            do_view_change: Retry::never(),
            get_view: Retry::never(),
            nonce: 1,
            patience_at: now + timing.view_change_patience,
            patience: timing.view_change_patience,
            busy: Op::ROOT,
            election: elect.then_some(election),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.do_view_change.at.min(self.get_view.at).min(self.patience_at)
    }

    /// A sign of progress.
    pub(crate) fn give_time(&mut self, now: Instant) {
        self.patience_at = self.patience_at.max(now + self.patience);
    }

    pub(crate) fn ask_for_view(&mut self, now: Instant) {
        if self.get_view.at == Instant::NEVER {
            self.get_view = Retry::now(now);
        }
    }

    /// Grows with every body that was fetched.
    pub(crate) fn busy_with(&self) -> Option<Op> {
        let election = self.election.as_ref()?;
        let first = election.chosen.as_ref()?.commit_max.op.next();
        Some(Op::new(first.value() + election.fetched.len() as u64))
    }

    pub(crate) fn fetched(&self, entry: OpRef) -> Option<&Entry> {
        self.election.as_ref()?.fetched.get(&entry)
    }

    /// The bodies of the chosen log that are nowhere here, and who said to have them.
    pub(crate) fn wanted(&self, log: &Log) -> Vec<(OpRef, Vec<ReplicaId>)> {
        let Some(election) = &self.election else { return Vec::new() };
        let Some(chosen) = &election.chosen else { return Vec::new() };
        let uncommitted = chosen.headers.iter().filter(|header| chosen.commit_max.op < header.op);
        uncommitted
            .map(EntryHeader::op_ref)
            .filter(|entry| log.content(*entry).is_none() && !election.fetched.contains_key(entry))
            .map(|entry| (entry, chosen.sources.get(&entry.op).cloned().unwrap_or_default()))
            .collect()
    }

    /// Keeps a body, if the chosen log wants it.
    pub(crate) fn keep_fetched(&mut self, entry: Entry) -> bool {
        let Some(election) = &mut self.election else { return false };
        let name = entry.op_ref();
        let wants = election
            .chosen
            .as_ref()
            .is_some_and(|chosen| chosen.headers.iter().any(|header| header.op_ref() == name));
        wants && election.fetched.insert(name, entry).is_none()
    }

    /// A peer does not have what its DoViewChange said it has. What else it said stands.
    pub(crate) fn deny(&mut self, from: ReplicaId, entry: OpRef) {
        if let Some(election) = &mut self.election
            && let Some((_, vote)) = election.votes.get_mut(&from)
            && vote.is_present(entry)
        {
            vote.deny_present(entry);
            election.stale = true;
        }
    }
}

impl Replica {
    // ---- leaving --------------------------------------------------------------------------------------------

    /// Votes to leave the present stamp for the next whose primary seems alive.
    pub(super) fn vote_to_leave(&mut self, why: Suspicion) {
        if self.quorums.voters == 1 || !self.membership.is_voter(self.me) {
            return;
        }
        let to = self.next_living_stamp();
        if self.leaving.as_ref().is_some_and(|leaving| leaving.to == to) {
            return;
        }
        self.event(Event::ViewChangeVoted { stamp: self.stamp, to, why });
        self.leaving = Some(Leaving { to, why, retry: Retry::now(self.now.monotonic) });
        self.count_leaving();
    }

    /// The next stamp whose primary lives and has the cluster's state; if there is none, lives.
    fn next_living_stamp(&self) -> Stamp {
        let (now, window) = (self.now.monotonic, self.options.timing.ping * 3);
        let lives = |replica| {
            replica == self.me || (!self.peers.is_gone(replica) && self.peers.is_heard(replica, now, window))
        };
        let turns = core::iter::successors(Some(self.stamp.next_view()), |stamp| Some(stamp.next_view()));
        let living = turns.take(self.quorums.voters).filter(|stamp| lives(self.membership.primary(*stamp)));
        let mut trusted = living.clone().filter(|stamp| self.is_trusted(self.membership.primary(*stamp)));
        trusted.next().or_else(|| living.clone().next()).unwrap_or(self.stamp.next_view())
    }

    pub(super) fn leaving_deadline(&self) -> Instant {
        // Before the stamp is durable nothing of it may be said.
        self.leaving
            .as_ref()
            .filter(|_| self.is_promised())
            .map_or(Instant::NEVER, |leaving| leaving.retry.at)
    }

    pub(super) fn leaving_timers(&mut self) {
        let (now, first) = (self.now.monotonic, self.options.timing.resend_min);
        if !self.is_promised() {
            return;
        }
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.retry.is_due(now) {
            leaving.retry.done(now, first, UNANSWERED_MAX, &mut self.prng);
            let to = leaving.to;
            self.send(Recipients::Voters, Payload::StartViewChange { to });
        }
    }

    pub(super) fn on_start_view_change(&mut self, from: ReplicaId, stamp: Stamp, to: Stamp) {
        if stamp != self.stamp || to <= stamp || to.epoch != stamp.epoch {
            return;
        }
        let n = self.quorums.voters as u64;
        if n < to.view.value() - stamp.view.value() {
            return; // Nobody asks for more than one turn of all primaries.
        }
        self.votes.votes.insert(from, (to, self.now.monotonic));
        if self.membership.primary(stamp) == from
            && matches!(self.part, Part::Following(_) | Part::Recovering(_))
        {
            self.vote_to_leave(Suspicion::PrimaryAsked);
        }
        self.count_leaving();
    }

    /// Enough wishes to leave move this replica to the highest stamp named.
    fn count_leaving(&mut self) {
        let (now, life) = (self.now.monotonic, self.options.timing.vote_life);
        self.votes.votes.retain(|_, (_, at)| now.since(*at) <= life);
        let own = self.leaving.as_ref().map(|leaving| leaving.to);
        let wishes: Vec<Stamp> = self.votes.votes.values().map(|(to, _)| *to).chain(own).collect();
        if self.quorums.view_change <= wishes.len()
            && let Some(to) = wishes.into_iter().max()
        {
            self.leave_for(to);
        }
    }

    /// A member shows a stamp: a newer one is followed.
    pub(super) fn note_stamp(&mut self, from: ReplicaId, stamp: Stamp, payload: &Payload) {
        // A StartView brings the log with it: on_start_view does both in one superblock write.
        let brings_the_log = matches!(payload, Payload::StartView { .. });
        if stamp <= self.stamp || brings_the_log || !self.membership.is_voter(from) {
            return;
        }
        self.leave_for(stamp);
        if let Part::Changing(changing) = &mut self.part
            && changing.election.is_none()
        {
            changing.ask_for_view(self.now.monotonic);
        }
    }

    /// Decides on a later stamp. Nothing is truncated here: the log stays as DoViewChange will report it.
    pub(super) fn leave_for(&mut self, stamp: Stamp) {
        assert!(self.stamp < stamp);
        assert!(stamp.epoch == self.stamp.epoch);
        let now = self.now.monotonic;
        self.lose_reads();
        self.stamp = stamp;
        self.since = now;
        self.leaving = None;
        self.votes.votes.clear();
        self.repairs = super::repair::Repairs::new();
        let elect = self.membership.primary(stamp) == self.me;
        let mut changing = Changing::new(now, &self.options.timing, elect);
        let timing = &self.options.timing;
        let backed_off =
            timing.view_change_patience * 2_u32.pow(self.votes.failed.min(BACKOFF_DOUBLINGS_MAX));
        changing.patience = jittered(backed_off.min(timing.backoff_max), &mut self.prng);
        changing.patience_at = now + changing.patience;
        changing.nonce = self.prng.next_u64() | 1;
        self.part = Part::Changing(changing);
        self.persist();
        self.event(Event::ViewChangeStarted { stamp });
        if self.peers.is_gone(self.membership.primary(stamp)) {
            self.vote_to_leave(Suspicion::ConnectionLost);
        }
    }

    // ---- speaking -------------------------------------------------------------------------------------------

    /// Does what became possible between two views.
    pub(super) fn advance_view_change(&mut self) {
        let may_speak =
            self.is_promised() || self.options.mutations.breaks(Mutation::DoViewChangeBeforePersist);
        let Part::Changing(changing) = &mut self.part else { return };
        if !may_speak {
            return;
        }
        if !changing.spoken {
            changing.spoken = true;
            changing.do_view_change = Retry::now(self.now.monotonic);
            if self.membership.is_voter(self.me) {
                self.say_do_view_change();
            }
        }
        self.advance_election();
    }

    fn own_vote(&self) -> DoViewChangeVote {
        let suffix = self.log.suffix();
        let mut bits = SuffixBits::default();
        for (at, header) in suffix.iter().enumerate() {
            let entry = header.op_ref();
            if self.log.content(entry).is_some() {
                bits.present |= 1 << at;
            }
            // Never durable, so never acked; and nothing that a scan could not account for.
            let is_faulty =
                self.log.is_faulty(entry) && !self.options.mutations.breaks(Mutation::FaultyCountsAsNack);
            if !self.log.is_durable(header.op) && !is_faulty {
                bits.nack |= 1 << at;
            }
        }
        DoViewChangeVote {
            log_stamp: self.log_stamp,
            checkpoint: self.log.checkpoint().entry.op,
            commit_max: self.log.committed(),
            uncertain_from: self.uncertain_from,
            oldest: self.log.oldest(),
            suffix,
            bits,
        }
    }

    fn say_do_view_change(&mut self) {
        let timing = self.options.timing;
        let vote = self.own_vote();
        let own = vote.clone();
        let DoViewChangeVote { log_stamp, checkpoint, commit_max, uncertain_from, oldest, suffix, bits } =
            vote;
        self.send(
            Recipients::Voters,
            Payload::DoViewChange { log_stamp, checkpoint, commit_max, uncertain_from, oldest, suffix, bits },
        );
        let (me, incarnation, now) = (self.me, self.incarnation, self.now.monotonic);
        let Part::Changing(changing) = &mut self.part else { return };
        changing.do_view_change.done(now, timing.resend_min, UNANSWERED_MAX, &mut self.prng);
        if let Some(election) = &mut changing.election {
            election.votes.insert(me, (incarnation, own));
            election.stale = true;
        }
    }

    pub(super) fn on_do_view_change(
        &mut self,
        from: ReplicaId,
        incarnation: Incarnation,
        stamp: Stamp,
        vote: DoViewChangeVote,
    ) {
        if self.stamp < stamp {
            return;
        }
        if !is_plausible(&vote, stamp) {
            return self.event(Event::MessageDropped {
                from,
                command: crate::Command::DoViewChange,
                why: DropReason::Inconsistent,
            });
        }
        let now = self.now.monotonic;
        match &mut self.part {
            Part::Leading(leading) if leading.announced => self.send_start_view(Recipients::One(from), 0),
            Part::Changing(changing) if stamp == self.stamp => {
                let Some(election) = &mut changing.election else { return };
                let is_new = !election.votes.contains_key(&from);
                let is_late = election.votes.get(&from).is_some_and(|(known, _)| incarnation < *known);
                if is_late {
                    return;
                }
                election.votes.insert(from, (incarnation, vote));
                election.stale = true;
                if is_new {
                    changing.give_time(now);
                }
            }
            Part::Leading(_)
            | Part::Changing(_)
            | Part::Following(_)
            | Part::Recovering(_)
            | Part::Halted => {}
        }
    }

    // ---- choosing -------------------------------------------------------------------------------------------

    fn advance_election(&mut self) {
        let voters: Vec<ReplicaId> = self.membership.voters.iter().map(|voter| voter.replica).collect();
        let Part::Changing(changing) = &mut self.part else { return };
        let Some(election) = &mut changing.election else { return };
        if election.stale {
            election.stale = false;
            if !election.votes.contains_key(&self.me) {
                return;
            }
            let votes = election.votes.iter().map(|(replica, (_, vote))| (*replica, vote.clone())).collect();
            match choose(self.quorums, &voters, &votes, self.options.mutations) {
                Choice::NeedMore => election.chosen = None,
                Choice::Fork { op } => return self.halt(op),
                Choice::Unrecoverable { op, damaged } => {
                    election.chosen = None;
                    self.note_loss(Lost::Op(op), damaged);
                }
                Choice::Chosen(chosen) => {
                    election.chosen = Some(chosen);
                    changing.give_time(self.now.monotonic);
                    // Others are patient with whom they hear to be busy.
                    self.peers.ping_at = self.peers.ping_at.min(self.now.monotonic);
                }
            }
            if self.forfeit_if_behind() {
                return;
            }
        }
        self.begin_view_when_complete();
    }

    /// A primary that lacks committed entries which no sender can serve leaves the view to who holds more (§6.4).
    fn forfeit_if_behind(&mut self) -> bool {
        let Part::Changing(Changing { election: Some(election), .. }) = &self.part else { return false };
        let Some(chosen) = &election.chosen else { return false };
        let mut first_missing = self.committed_out.next();
        while first_missing <= self.log.executable() && self.log.entry(first_missing).is_some() {
            first_missing = first_missing.next();
        }
        if chosen.commit_max.op < first_missing {
            return false;
        }
        let serves = |vote: &DoViewChangeVote| vote.oldest <= first_missing && first_missing <= vote.head();
        // Its own ring spans the op, once it has adopted a log of which it lacks the middle, and does not have it.
        if election.votes.iter().any(|(voter, (_, vote))| *voter != self.me && serves(vote)) {
            return false;
        }
        let rank = |vote: &DoViewChangeVote| (vote.checkpoint, vote.head());
        let best = election.votes.iter().max_by_key(|(_, (_, vote))| rank(vote)).map(|(replica, _)| *replica);
        let own = election.votes.get(&self.me).map(|(_, vote)| rank(vote));
        let Some(best) = best else { return false };
        if election.votes.get(&best).map(|(_, vote)| rank(vote)) <= own {
            return false;
        }
        let mut to = self.stamp.next_view();
        while self.membership.primary(to) != best {
            to = to.next_view();
        }
        self.event(Event::Forfeited { stamp: self.stamp, to: best });
        self.leave_for(to);
        true
    }

    fn begin_view_when_complete(&mut self) {
        let Part::Changing(changing) = &self.part else { return };
        let Some(election) = &changing.election else { return };
        let Some(chosen) = &election.chosen else { return };
        if !changing.wanted(&self.log).is_empty() || !self.is_promised() {
            return;
        }
        let head = chosen.head().op;
        let Chosen { commit_max, headers, .. } = chosen.clone();
        let fetched = election.fetched.clone();
        for entry in fetched.into_values() {
            self.log.hold(entry, OnDisk::No);
        }
        self.part = Part::Leading(Leading::new(self.now.monotonic, head));
        self.begin_to_judge();
        self.adopt(self.stamp, commit_max, &headers);
    }

    // ---- adopting -------------------------------------------------------------------------------------------

    /// Makes a log this replica's own, in one superblock write. The only place where anything is truncated.
    fn adopt(&mut self, stamp: Stamp, commit_max: OpRef, headers: &[EntryHeader]) {
        let now = self.now.monotonic;
        let old_log_stamp = self.log_stamp;
        self.former = self.log.uncommitted();
        if let Err(Fork { op }) = self.log.adopt(commit_max, headers) {
            return self.halt(op);
        }
        // What it may once have held there, and can't say: no proof that it never acked it.
        if let Some(uncertain_from) = self.uncertain_from.take() {
            for header in headers {
                if uncertain_from <= header.op && header.born <= old_log_stamp.stamp() {
                    self.log.mark_faulty(header.op_ref());
                }
            }
        }
        self.stamp = stamp;
        self.log_stamp = LogStamp::adopted(stamp);
        self.since = now;
        self.head_since = now;
        self.leaving = None;
        self.votes = Votes::default();
        self.repairs = super::repair::Repairs::new();
        self.note_committed();
        self.tell_truncated();
        self.persist();
        self.append_unwritten();
    }

    /// Tells, once it is known, that entries which this replica held above its commit point are of no log any more.
    pub(super) fn tell_truncated(&mut self) {
        let is_excluded = |entry: &&OpRef| {
            self.head() < entry.op || self.log.at(entry.op).is_some_and(|stands| stands != **entry)
        };
        if let Some(head) = self.former.iter().find(is_excluded).and_then(|entry| entry.op.previous()) {
            self.former.clear();
            self.event(Event::LogTruncated { stamp: self.stamp, head });
        } else if self.log.gap().is_none() {
            self.former.clear();
        }
    }

    pub(super) fn on_start_view(
        &mut self,
        from: ReplicaId,
        stamp: Stamp,
        commit_max: OpRef,
        suffix: Vec<EntryHeader>,
        nonce: u64,
    ) {
        if stamp < self.stamp {
            return;
        }
        let why = if self.membership.primary(stamp) != from {
            Some(DropReason::NotThePrimary)
        } else if !is_chained(commit_max, &suffix, stamp) {
            Some(DropReason::Inconsistent)
        } else {
            None
        };
        if let Some(why) = why {
            return self.event(Event::MessageDropped { from, command: crate::Command::StartView, why });
        }
        self.heard_primary();
        let is_newer = self.log_stamp.stamp() < stamp;
        let recovers = match &self.part {
            Part::Recovering(following) => following.asked(nonce),
            Part::Leading(_) | Part::Following(_) | Part::Changing(_) | Part::Halted => false,
        };
        let head = suffix.last().map_or(commit_max.op, |header| header.op);
        let extends = matches!(self.part, Part::Following(_)) && self.head() < head;
        let shortens = matches!(self.part, Part::Following(_))
            && self.options.mutations.breaks(Mutation::StartViewShortensLog);
        if !(is_newer || recovers || extends || shortens) {
            return;
        }
        if !is_newer && !recovers && !shortens && !self.is_extension(&suffix) {
            return self.halt(head);
        }
        self.lose_reads();
        let timing = self.options.timing;
        let following = Following::new(self.now.monotonic, &timing, commit_max.op, &mut self.prng);
        self.part = Part::Following(following);
        if self.commit_max.op < commit_max.op {
            self.commit_max = commit_max;
        }
        self.adopt(stamp, commit_max, &suffix);
        self.event(Event::ViewAdopted { stamp, head });
    }

    /// Whether a later StartView of the same stamp goes on from this log, as all of one stamp must (I6).
    fn is_extension(&self, suffix: &[EntryHeader]) -> bool {
        suffix.iter().all(|header| self.log.at(header.op).is_none_or(|stands| stands == header.op_ref()))
    }

    pub(super) fn on_get_view(&mut self, from: ReplicaId, nonce: u64) {
        if let Part::Leading(leading) = &self.part
            && leading.announced
        {
            self.send_start_view(Recipients::One(from), nonce);
        }
    }

    // ---- time -----------------------------------------------------------------------------------------------

    /// The primary to be shows that it is at work. One that comes no further may wait for what nobody will send it.
    pub(super) fn note_busy(&mut self, from: ReplicaId, busy: Op) {
        let is_elect = self.membership.primary(self.stamp) == from;
        if let Part::Changing(changing) = &mut self.part
            && is_elect
            && changing.busy < busy
        {
            changing.busy = busy;
            changing.give_time(self.now.monotonic);
        }
    }

    /// Somebody who was silent is heard again: what failed for want of voters is tried without delay.
    pub(super) fn view_changes_may_work_again(&mut self) {
        let (now, first) = (self.now.monotonic, self.options.timing.view_change_patience);
        self.votes.failed = 0;
        if let Part::Changing(changing) = &mut self.part {
            changing.patience = jittered(first, &mut self.prng);
            changing.patience_at = changing.patience_at.min(now + changing.patience);
        }
    }

    pub(super) fn view_change_timers(&mut self) {
        let now = self.now.monotonic;
        let primary = self.membership.primary(self.stamp);
        let promised = self.is_promised();
        let Part::Changing(changing) = &mut self.part else { return };
        let (speaks, asks) = (changing.do_view_change.is_due(now), changing.get_view.is_due(now));
        let nonce = changing.nonce;
        let impatient = changing.patience_at <= now;
        if asks {
            changing.get_view.done(now, self.options.timing.resend_min, UNANSWERED_MAX, &mut self.prng);
            self.send_outside(primary, Payload::GetView { nonce });
        }
        if speaks && promised && self.membership.is_voter(self.me) {
            self.say_do_view_change();
        } else if speaks && let Part::Changing(changing) = &mut self.part {
            changing.do_view_change = Retry::never();
        }
        if impatient {
            self.votes.failed = self.votes.failed.saturating_add(1);
            let patience = self.options.timing.view_change_patience * 2_u32.pow(self.votes.failed.min(6));
            let patience = patience.min(self.options.timing.backoff_max);
            if let Part::Changing(changing) = &mut self.part {
                changing.patience = jittered(patience, &mut self.prng);
                changing.patience_at = now + changing.patience;
            }
            self.vote_to_leave(Suspicion::NoProgress);
        }
    }
}

/// Whether a DoViewChange can be of a replica that follows the protocol.
fn is_plausible(vote: &DoViewChangeVote, stamp: Stamp) -> bool {
    let span = vote.head().since(vote.commit_max.op);
    let ascends = vote.suffix.windows(2).all(|pair| pair[0].op < pair[1].op);
    vote.log_stamp.stamp() < stamp && vote.suffix.len() <= SUFFIX_MAX && ascends && span <= PIPELINE_MAX
}

/// Whether a StartView's suffix is one chain from its committed entry (or right above it) on.
fn is_chained(commit_max: OpRef, suffix: &[EntryHeader], stamp: Stamp) -> bool {
    let mut below = commit_max;
    for (at, header) in suffix.iter().enumerate() {
        let name = header.op_ref();
        let is_base = at == 0 && name == commit_max && name.op != Op::ROOT;
        let follows = header.op.previous() == Some(below.op) && header.parent == below.checksum;
        if !(is_base || follows) || stamp < header.born {
            return false;
        }
        below = name;
    }
    below.op.since(commit_max.op) <= PIPELINE_MAX
}
