//! Linearizable reads without log writes (§9): a read waits for a round of heartbeats that began after it arrived,
//! and whose answers prove that no later view had begun.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::normal::UNANSWERED_MAX;
use super::retry::Retry;
use super::{NotReadable, Output, Part, ReadNumber, Recipients, Replica, RoundConfirmed};
use crate::{Event, Instant, Mutation, Op, Payload, ReplicaId, Stamp};

/// The most reads that wait on one replica.
const READS_MAX: usize = 4096;

/// The most unanswered rounds that are told apart. Reads of older ones are confirmed by any later round.
const ROUNDS_MAX: usize = 64;

/// The rounds of a primary in its stamp.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    /// The newest round opened.
    opened: u64,
    open: VecDeque<Round>,
    /// The newest round that each voter answered.
    answered: BTreeMap<ReplicaId, u64>,
    /// Reads, in order of arrival; those without a round join the next.
    waiting: VecDeque<Waiting>,
}

#[derive(Clone, Debug)]
struct Round {
    number: u64,
    sent: Instant,
    /// The head as the round was opened: an ack of a later op answers the round too.
    head: Op,
}

#[derive(Clone, Debug)]
struct Waiting {
    round: Option<u64>,
    index: Op,
    reader: Reader,
}

#[derive(Clone, Copy, Debug)]
enum Reader {
    Here(ReadNumber),
    Peer { replica: ReplicaId, nonce: u64 },
}

impl Rounds {
    pub(crate) fn new() -> Rounds {
        Rounds { opened: 0, open: VecDeque::new(), answered: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// A voter answered a round.
    pub(crate) fn heard(&mut self, voter: ReplicaId, round: u64) {
        if round <= self.opened {
            let answered = self.answered.entry(voter).or_insert(0);
            *answered = (*answered).max(round);
        }
    }

    /// A voter acked an op in this stamp: as good as an answer to every round opened before the op was prepared.
    pub(crate) fn heard_ack(&mut self, voter: ReplicaId, op: Op) {
        if let Some(round) = self.open.iter().rev().find(|round| round.head < op) {
            let number = round.number;
            self.heard(voter, number);
        }
    }

    /// The newest round that a quorum answered, the primary itself among them.
    fn confirmed(&self, quorum: usize) -> u64 {
        let mut answered: Vec<u64> = self.answered.values().copied().collect();
        answered.push(self.opened);
        answered.sort_unstable_by(|a, b| b.cmp(a));
        answered.get(quorum - 1).copied().unwrap_or(0)
    }
}

/// Reads that this backup asked its primary about.
#[derive(Clone, Debug)]
pub(crate) struct RemoteReads {
    /// By nonce.
    asked: BTreeMap<u64, (ReadNumber, Retry)>,
    next: Instant,
}

impl RemoteReads {
    pub(crate) fn new() -> RemoteReads {
        RemoteReads { asked: BTreeMap::new(), next: Instant::NEVER }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next
    }
}

impl Replica {
    pub(super) fn start_read(&mut self) -> Result<ReadNumber, NotReadable> {
        let read = ReadNumber(self.read_number);
        if self.is_quarantined() && !self.options.mutations.breaks(Mutation::QuarantinedAnswers) {
            return Err(NotReadable::NoPrimary);
        }
        match self.primary() {
            None => return Err(NotReadable::NoPrimary),
            Some(primary) if primary == self.me => self.join_round(Reader::Here(read))?,
            Some(_) if self.options.mutations.breaks(Mutation::BackupReadsAlone) => {
                self.answer_read(Reader::Here(read), self.log.committed().op);
            }
            Some(primary) => {
                if READS_MAX <= self.reads.asked.len() {
                    return Err(NotReadable::TooMany);
                }
                let nonce = self.prng.next_u64();
                let mut retry = Retry::now(self.now.monotonic);
                retry.done(
                    self.now.monotonic,
                    self.options.timing.resend_min,
                    UNANSWERED_MAX,
                    &mut self.prng,
                );
                self.reads.next = self.reads.next.min(retry.at);
                self.reads.asked.insert(nonce, (read, retry));
                self.send(Recipients::One(primary), Payload::ReadIndex { nonce });
            }
        }
        self.read_number += 1;
        Ok(read)
    }

    fn join_round(&mut self, reader: Reader) -> Result<(), NotReadable> {
        let committed = self.log.committed().op;
        let guarded = !self.options.mutations.breaks(Mutation::ServeBeforeFirstCommit);
        let Part::Leading(leading) = &mut self.part else { return Err(NotReadable::NoPrimary) };
        if READS_MAX <= leading.rounds.waiting.len() {
            return Err(NotReadable::TooMany);
        }
        // Whatever an earlier primary acknowledged is in the log that this view began with.
        let index = if guarded { committed.max(leading.first_commit) } else { committed };
        if self.options.mutations.breaks(Mutation::ReadWithoutRound) {
            self.answer_read(reader, index);
            return Ok(());
        }
        leading.rounds.waiting.push_back(Waiting { round: None, index, reader });
        if leading.rounds.open.is_empty() {
            self.open_round();
        }
        Ok(())
    }

    /// Opens a round with a heartbeat, which every waiting read that has none joins.
    pub(super) fn open_round(&mut self) {
        let (now, head) = (self.now.monotonic, self.head());
        let Part::Leading(leading) = &mut self.part else { return };
        if leading.abdicating.is_some() {
            return;
        }
        let rounds = &mut leading.rounds;
        rounds.opened += 1;
        let number = rounds.opened;
        rounds.open.push_back(Round { number, sent: now, head });
        if ROUNDS_MAX < rounds.open.len() {
            rounds.open.pop_front();
        }
        for waiting in rounds.waiting.iter_mut().rev().take_while(|waiting| waiting.round.is_none()) {
            waiting.round = Some(number);
        }
        let commit = Payload::Commit {
            commit_max: self.log.committed(),
            read_round: number,
            applied: self.applied,
            disk_age_us: self.disk_age_us(),
            divergence: self.divergence(),
        };
        self.send(Recipients::All, commit);
        if self.options.mutations.breaks(Mutation::GateWithoutRound) {
            self.tell_confirmed(now);
        }
        self.confirm_rounds();
    }

    /// Answers the reads whose round a quorum has confirmed.
    pub(super) fn confirm_rounds(&mut self) {
        let quorum = self.quorums.read;
        let Part::Leading(leading) = &mut self.part else { return };
        let rounds = &mut leading.rounds;
        let confirmed = rounds.confirmed(quorum);
        let mut newest = None;
        while let Some(round) = rounds.open.front()
            && round.number <= confirmed
        {
            newest = rounds.open.pop_front();
        }
        let Some(Round { sent, number, .. }) = newest else { return };
        let mut answered = Vec::new();
        while let Some(waiting) = rounds.waiting.front()
            && waiting.round.is_some_and(|round| round <= confirmed)
        {
            answered.push((waiting.reader, waiting.index));
            rounds.waiting.pop_front();
        }
        let more = rounds.open.is_empty() && !rounds.waiting.is_empty();
        self.tell_confirmed(sent);
        if !answered.is_empty() {
            self.event(Event::ReadRoundConfirmed { round: number });
        }
        for (reader, index) in answered {
            self.answer_read(reader, index);
        }
        if more {
            self.open_round();
        }
    }

    /// A round that was sent then holds: so old, at most, is what the gate knows of this primary and of the time.
    fn tell_confirmed(&mut self, sent: crate::Instant) {
        let age = self.now.monotonic.since(sent);
        let before =
            |(_, latest): (_, crate::Timestamp)| latest.nanos().saturating_sub(age.as_nanos() as u64);
        let latest = self.agreed_time().map(before).map(crate::Timestamp::from_nanos);
        let round = RoundConfirmed { stamp: self.stamp, sent, latest };
        self.outputs.push_back(Output::RoundConfirmed(round));
    }

    fn answer_read(&mut self, reader: Reader, index: Op) {
        match reader {
            Reader::Here(read) => self.outputs.push_back(Output::ReadIndex { read, index }),
            Reader::Peer { replica, nonce } => {
                self.send(Recipients::One(replica), Payload::ReadIndexOk { nonce, index });
            }
        }
    }

    pub(super) fn on_read_index(&mut self, from: ReplicaId, stamp: Stamp, nonce: u64) {
        let Part::Leading(leading) = &self.part else { return };
        // A read asked again joins once: its answer may be on its way.
        let waits = leading.rounds.waiting.iter().any(
            |waiting| matches!(waiting.reader, Reader::Peer { replica, nonce: n } if replica == from && n == nonce),
        );
        if stamp == self.stamp && leading.announced && !waits {
            // Full: the backup asks again.
            let _ = self.join_round(Reader::Peer { replica: from, nonce });
        }
    }

    pub(super) fn on_read_index_ok(&mut self, nonce: u64, index: Op) {
        // The nonce was drawn after the read arrived: whichever stamp the answer speaks for, it is late enough.
        if let Some((read, _)) = self.reads.asked.remove(&nonce) {
            self.outputs.push_back(Output::ReadIndex { read, index });
        }
    }

    pub(super) fn read_timers(&mut self) {
        let now = self.now.monotonic;
        if now < self.reads.next {
            return;
        }
        let primary = self.primary();
        let first = self.options.timing.resend_min;
        let mut again = Vec::new();
        self.reads.next = Instant::NEVER;
        for (nonce, (_, retry)) in &mut self.reads.asked {
            if retry.is_due(now) {
                retry.done(now, first, UNANSWERED_MAX, &mut self.prng);
                again.push(*nonce);
            }
            self.reads.next = self.reads.next.min(retry.at);
        }
        if let Some(primary) = primary {
            for nonce in again {
                self.send(Recipients::One(primary), Payload::ReadIndex { nonce });
            }
        }
    }

    /// The stamp is left: nobody of it can answer reads any more.
    pub(super) fn lose_reads(&mut self) {
        let mut lost: Vec<ReadNumber> = self.reads.asked.values().map(|(read, _)| *read).collect();
        self.reads = RemoteReads::new();
        if let Part::Leading(leading) = &self.part {
            lost.extend(leading.rounds.waiting.iter().filter_map(|waiting| match waiting.reader {
                Reader::Here(read) => Some(read),
                Reader::Peer { .. } => None,
            }));
        }
        for read in lost {
            self.outputs.push_back(Output::ReadLost { read });
        }
    }
}
