//! What a replica said binds it: the stamps that it spoke for, the entries that it acked, the logs that it announced.
//!
//! Looks at every message as it leaves, at what storage reports durable, and at what a restart finds. None of it asks
//! the replica what it believes of itself.

use std::collections::{BTreeMap, BTreeSet};

use chronon_vsr::{
    Checksum, Durable, EntryHeader, Epoch, LogStamp, Message, Op, OpRef, Payload, Quorums, Recovered,
    Replica, ReplicaId, Stamp, SuffixBits, Verdict, VsrState, Write, WriteNumber,
};

use crate::{Checker, Violation};

/// Acks, votes and chains further below the newest op than this are forgotten: no view change looks back so far.
const REMEMBERED: u64 = 256;

/// Watches what replicas say and what they keep.
#[derive(Debug)]
pub struct Promises {
    voters: usize,
    replication: usize,
    told: BTreeMap<ReplicaId, Told>,
    /// Who said in which stamp that it holds which entry.
    votes: BTreeMap<(Op, Checksum, Stamp), BTreeSet<ReplicaId>>,
    /// Where storage reported which entry durable, in any life.
    durable: BTreeMap<OpRef, BTreeSet<ReplicaId>>,
    /// The log of each stamp, as its primary told it.
    chains: BTreeMap<Stamp, Chain>,
}

/// What one replica is bound by.
#[derive(Debug)]
struct Told {
    /// The newest stamp that it asked its storage to keep: it decided on it.
    decided: Stamp,
    /// What its superblock holds for certain.
    kept: Kept,
    /// The superblock that does so, if it was written in this life.
    kept_by: Option<WriteNumber>,
    /// The log that it had adopted when it was opened: of that view it is no primary any more.
    opened: Stamp,
    /// Superblocks asked for in this life and not yet reported.
    asked: BTreeMap<WriteNumber, Kept>,
    /// Entries asked for in this life and not yet reported.
    appended: BTreeMap<WriteNumber, OpRef>,
    /// The newest stamp that any message of it spoke for.
    spoke: Stamp,
    /// What it acked last at each op, and in which stamp.
    acked: BTreeMap<Op, (Stamp, Checksum)>,
    /// How many acks it has sent.
    acks: u64,
    /// Its disk was damaged at some time.
    damaged: bool,
}

/// The stamps in a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    stamp: Stamp,
    log_stamp: Stamp,
}

/// The log of one stamp.
#[derive(Debug)]
struct Chain {
    /// What was committed when it was first announced: what lies below is not told.
    base: Op,
    entries: BTreeMap<Op, Checksum>,
    /// The newest op of the StartView that was sent first: what the view inherited.
    inherited: Option<Op>,
    /// The newest op of the StartView that was sent last.
    head: Op,
}

/// What every replica of a new cluster is in.
const FIRST: Stamp = Stamp::first(Epoch::new(0));

impl Default for Told {
    fn default() -> Told {
        Told {
            decided: FIRST,
            kept: Kept { stamp: FIRST, log_stamp: FIRST },
            kept_by: None,
            opened: FIRST,
            asked: BTreeMap::new(),
            appended: BTreeMap::new(),
            spoke: FIRST,
            acked: BTreeMap::new(),
            acks: 0,
            damaged: false,
        }
    }
}

impl Kept {
    fn of(state: &VsrState) -> Kept {
        Kept { stamp: state.stamp, log_stamp: state.log_stamp.stamp() }
    }
}

impl Promises {
    pub(crate) fn new(voters: usize) -> Promises {
        Promises {
            voters,
            replication: Quorums::of(voters).replication,
            told: BTreeMap::new(),
            votes: BTreeMap::new(),
            durable: BTreeMap::new(),
            chains: BTreeMap::new(),
        }
    }

    /// How many acks a replica has sent in all its lives.
    pub(crate) fn acks(&self, replica: ReplicaId) -> u64 {
        self.told.get(&replica).map_or(0, |told| told.acks)
    }

    /// The stamp that a replica's superblock holds for certain.
    pub(crate) fn kept_stamp(&self, replica: ReplicaId) -> Stamp {
        self.told.get(&replica).map_or(FIRST, |told| told.kept.stamp)
    }

    /// A replica's disk was damaged: it may not know what it held.
    pub(crate) fn on_damage(&mut self, replica: ReplicaId) {
        self.told.entry(replica).or_default().damaged = true;
    }

    fn primary(&self, stamp: Stamp) -> ReplicaId {
        ReplicaId::new((stamp.view.value() % self.voters as u64) as u8)
    }

    /// A replica has opened its data directory: it finds at least what it promised.
    pub(crate) fn on_opened(
        &mut self,
        id: ReplicaId,
        recovered: &Recovered,
        replica: &Replica,
    ) -> Result<(), Violation> {
        let state = &recovered.state;
        let told = self.told.entry(id).or_default();
        if state.stamp < told.spoke {
            return object(format!(
                "R{id} spoke for {} and finds itself in {} after a restart",
                told.spoke, state.stamp
            ));
        }
        if state.stamp < told.kept.stamp || state.log_stamp.stamp() < told.kept.log_stamp {
            return object(format!("R{id} kept {:?} and finds {:?}", told.kept, Kept::of(state)));
        }
        let found: BTreeSet<OpRef> = recovered.entries.iter().map(|found| found.header.op_ref()).collect();
        let uncertain_from = [recovered.uncertain_from, state.uncertain_from].into_iter().flatten().min();
        for (op, (stamp, checksum)) in &told.acked {
            let entry = OpRef { op: *op, checksum: *checksum };
            let excluded = *stamp < state.log_stamp.stamp()
                && !state.suffix.iter().any(|header| header.op_ref() == entry);
            let is_known = found.contains(&entry) || state.marks_faulty(*op, *checksum);
            // Damage may take what was acked; then it is not denied: it is in doubt, or known to be committed.
            let in_doubt = told.damaged
                && (!recovered.scan_complete
                    || uncertain_from.is_some_and(|from| from <= *op)
                    || *op <= replica.commit_max().op);
            if !(excluded || is_known || in_doubt || *op <= state.checkpoint.entry.op) {
                return object(format!("R{id} acked {op} {checksum} in {stamp} and has lost it"));
            }
        }
        // Above the head that its superblock names only what the adopted view itself prepared may count.
        let mut op = state.head().op;
        while op < replica.head() {
            op = op.next();
            let born = replica.entry(op).map(|entry| entry.header().born);
            if born.is_some_and(|born| born != state.log_stamp.stamp()) {
                return object(format!(
                    "R{id} brings back {op} born {}, which the log of {} left out",
                    born.unwrap_or(FIRST),
                    state.log_stamp.stamp()
                ));
            }
        }
        told.decided = state.stamp;
        told.kept = Kept::of(state);
        told.kept_by = None;
        told.opened = told.kept.log_stamp;
        told.asked.clear();
        told.appended.clear();
        for found in recovered.entries.iter().filter(|found| matches!(found.verdict, Verdict::Intact(_))) {
            self.durable.entry(found.header.op_ref()).or_default().insert(id);
        }
        Ok(())
    }

    /// A replica asks its storage to keep something.
    pub(crate) fn on_persist(&mut self, id: ReplicaId, write: &Write) {
        let told = self.told.entry(id).or_default();
        match write {
            Write::Append { number, entry, .. } => {
                told.appended.insert(*number, entry.op_ref());
            }
            Write::Superblock { number, state } => {
                told.decided = told.decided.max(state.stamp);
                told.asked.insert(*number, Kept::of(state));
            }
        }
    }

    /// Storage reports something durable.
    pub(crate) fn on_durable(&mut self, id: ReplicaId, durable: Durable) {
        let told = self.told.entry(id).or_default();
        match durable {
            Durable::Appended(through) => {
                let later = told.appended.split_off(&through.next());
                for entry in std::mem::replace(&mut told.appended, later).into_values() {
                    self.durable.entry(entry).or_default().insert(id);
                }
            }
            Durable::Superblock(through) => {
                let later = told.asked.split_off(&through.next());
                if let Some(kept) = std::mem::replace(&mut told.asked, later).into_values().next_back() {
                    told.kept = kept;
                    told.kept_by = Some(through);
                }
            }
        }
    }

    /// A replica's Front has heard that this superblock is durable, and said what follows from it. Whoever adopted its own
    /// view's log durably says so at once, however far its execution lags (§6.5).
    pub(crate) fn on_superblock_heard(&self, id: ReplicaId, heard: WriteNumber) -> Result<(), Violation> {
        let Some(told) = self.told.get(&id) else { return Ok(()) };
        // A Front that was held up has the news of a later one still before it.
        if Some(heard) < told.kept_by {
            return Ok(());
        }
        let Kept { stamp, log_stamp } = told.kept;
        let adopted = stamp == log_stamp && told.opened < stamp;
        let leads = adopted && self.primary(stamp) == id && told.decided == stamp;
        if leads && 1 < self.voters && stamp.view.value() != 0 && !self.chains.contains_key(&stamp) {
            let what = format!("R{id} holds the log of {stamp} durably and does not begin its view");
            return Err(Violation::new(Checker::Liveness, what));
        }
        Ok(())
    }

    /// A message leaves a replica.
    pub(crate) fn on_send(&mut self, message: &Message) -> Result<(), Violation> {
        let (id, stamp) = (message.from, message.stamp);
        let told = self.told.entry(id).or_default();
        if told.kept.stamp < stamp {
            let what = format!("R{id} speaks for {stamp} before it is durable: {:?}", message.payload);
            return object(what.chars().take(160).collect::<String>());
        }
        told.spoke = told.spoke.max(stamp);
        let is_vote = matches!(
            message.payload,
            Payload::PrepareOk { .. } | Payload::CommitOk { .. } | Payload::DoViewChange { .. }
        );
        if is_vote && stamp < told.decided {
            return object(format!(
                "R{id} votes in {stamp} after it decided on {}: {:?}",
                told.decided, message.payload
            ));
        }
        match &message.payload {
            Payload::PrepareOk { entry, .. } => {
                told.acks += 1;
                told.acked.insert(entry.op, (stamp, entry.checksum));
                told.acked = told.acked.split_off(&remembered(entry.op));
                self.votes.entry((entry.op, entry.checksum, stamp)).or_default().insert(id);
                Ok(())
            }
            Payload::DoViewChange {
                log_stamp, checkpoint, commit_max, uncertain_from, suffix, bits, ..
            } => {
                let said = Said { id, log_stamp: *log_stamp, suffix, bits: *bits };
                let head = suffix.last().map_or(commit_max.op, |header| header.op);
                let uncertain = uncertain_from.unwrap_or(Op::new(u64::MAX));
                for (op, ack) in told.acked.range(checkpoint.max(&commit_max.op).next()..) {
                    said.keeps(*op, *ack, head, uncertain)?;
                }
                self.is_of_its_log(&said)
            }
            Payload::StartView { commit_max, suffix, .. } => {
                self.on_start_view(id, stamp, *commit_max, suffix)
            }
            Payload::Prepare { entry, .. } => {
                let chain = self.chains.entry(stamp).or_insert_with(|| Chain::from(Op::ROOT));
                chain.name(stamp, entry.op_ref())
            }
            Payload::Commit { .. }
            | Payload::CommitOk { .. }
            | Payload::StartViewChange { .. }
            | Payload::GetView { .. }
            | Payload::GetHeaders { .. }
            | Payload::Headers { .. }
            | Payload::GetPrepare { .. }
            | Payload::Repair { .. }
            | Payload::Missing { .. }
            | Payload::Ping { .. }
            | Payload::Pong { .. }
            | Payload::ReadIndex { .. }
            | Payload::ReadIndexOk { .. }
            | Payload::Forward { .. }
            | Payload::GetChunk { .. }
            | Payload::Chunk { .. }
            | Payload::MissingChunk { .. }
            | Payload::Refused { .. } => Ok(()),
        }
    }

    /// All StartViews of one stamp lie on one chain, and their heads never fall (I6).
    fn on_start_view(
        &mut self,
        id: ReplicaId,
        stamp: Stamp,
        commit_max: OpRef,
        suffix: &[EntryHeader],
    ) -> Result<(), Violation> {
        let head = suffix.last().map_or(commit_max.op, |header| header.op);
        let chain = self.chains.entry(stamp).or_insert_with(|| Chain::from(commit_max.op));
        if head < chain.head {
            return object(format!(
                "R{id} announces {stamp} up to {head}, and did up to {} before",
                chain.head
            ));
        }
        chain.inherited.get_or_insert(head);
        chain.head = head;
        suffix.iter().try_for_each(|header| chain.name(stamp, header.op_ref()))
    }

    /// An effect starts under a stamp: all that its view inherited is committed by then (§6.5).
    pub(crate) fn on_effect(&self, id: ReplicaId, stamp: Stamp, committed: Op) -> Result<(), Violation> {
        match self.chains.get(&stamp).and_then(|chain| chain.inherited) {
            Some(inherited) if committed < inherited => {
                let what = format!(
                    "R{id} starts an effect under {stamp}, which inherited {inherited}; {committed} is committed"
                );
                Err(Violation::new(Checker::Gate, what))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What a replica says of a log is what the primary of that log told.
    fn is_of_its_log(&self, said: &Said<'_>) -> Result<(), Violation> {
        let stamp = said.log_stamp.stamp();
        let Some(chain) = self.chains.get(&stamp) else { return Ok(()) };
        for header in said.suffix.iter().filter(|header| chain.base < header.op) {
            if chain.entries.get(&header.op) != Some(&header.checksum()) {
                let (id, op, born) = (said.id, header.op, header.born);
                return object(format!(
                    "R{id} counts {op} born {born} as of the log of {stamp}, which never had it"
                ));
            }
        }
        Ok(())
    }

    /// An entry is handed out for execution for the first time, by a replica that leads `leading`, if it leads: a quorum
    /// holds it durably and said so in one stamp.
    pub(crate) fn on_first_commit(&mut self, entry: OpRef, leading: Option<Stamp>) -> Result<(), Violation> {
        let OpRef { op, checksum } = entry;
        let here = self.durable.get(&entry);
        let voted = |stamp: Stamp, others: Option<&BTreeSet<ReplicaId>>| {
            let primary = self.primary(stamp);
            let own = here.is_some_and(|here| here.contains(&primary));
            let others = others.map_or(0, |others| others.iter().filter(|voter| **voter != primary).count());
            self.replication <= others + usize::from(own)
        };
        // What a view inherited as committed was voted for before it; everything else by votes in this very stamp.
        let inherited = |stamp| self.chains.get(&stamp).is_some_and(|chain| op <= chain.base);
        let enough = match leading.filter(|stamp| 1 < self.voters && !inherited(*stamp)) {
            Some(stamp) => voted(stamp, self.votes.get(&(op, checksum, stamp))),
            None if self.voters == 1 => here.is_some(),
            None => {
                let mut all = self.votes.range((op, checksum, FIRST)..);
                all.by_ref()
                    .take_while(|((of, name, _), _)| *of == op && *name == checksum)
                    .any(|((_, _, stamp), others)| voted(*stamp, Some(others)))
            }
        };
        if !enough {
            return object(format!(
                "op {op} is committed in {leading:?} without {} durable votes",
                self.replication
            ));
        }
        let oldest = remembered(op);
        while self.durable.first_key_value().is_some_and(|(entry, _)| entry.op < oldest) {
            self.durable.pop_first();
        }
        while self.votes.first_key_value().is_some_and(|((of, _, _), _)| *of < oldest) {
            self.votes.pop_first();
        }
        Ok(())
    }
}

impl Chain {
    fn from(base: Op) -> Chain {
        Chain { base, entries: BTreeMap::new(), inherited: None, head: Op::ROOT }
    }

    fn name(&mut self, stamp: Stamp, entry: OpRef) -> Result<(), Violation> {
        let known = *self.entries.entry(entry.op).or_insert(entry.checksum);
        if known != entry.checksum {
            return object(format!("two entries stand at {} in the log of {stamp}", entry.op));
        }
        Ok(())
    }
}

/// A DoViewChange.
struct Said<'a> {
    id: ReplicaId,
    log_stamp: LogStamp,
    suffix: &'a [EntryHeader],
    bits: SuffixBits,
}

impl Said<'_> {
    /// Whoever acked an entry holds it, or calls it faulty, or can't say, until a later view left it out (I5).
    fn keeps(&self, op: Op, ack: (Stamp, Checksum), head: Op, uncertain: Op) -> Result<(), Violation> {
        let (stamp, checksum) = ack;
        let log_stamp = self.log_stamp.stamp();
        let at = self.suffix.iter().position(|header| header.op == op);
        let stands = at.map(|at| self.suffix[at].checksum());
        let nacked = at.is_some_and(|at| self.bits.nack >> at & 1 == 1);
        let broken = match log_stamp.cmp(&stamp) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => stands == Some(checksum) && nacked,
            std::cmp::Ordering::Equal if uncertain <= op => false,
            std::cmp::Ordering::Equal => head < op || stands.is_some_and(|it| it != checksum) || nacked,
        };
        if broken {
            let id = self.id;
            return object(format!(
                "R{id} acked {op} in {stamp} and denies it, its log of {log_stamp} up to {head}"
            ));
        }
        Ok(())
    }
}

fn remembered(op: Op) -> Op {
    Op::new(op.value().saturating_sub(REMEMBERED))
}

fn object(what: impl Into<String>) -> Result<(), Violation> {
    Err(Violation::new(Checker::Promises, what))
}

#[cfg(test)]
mod tests {
    use chronon_vsr::{
        ClusterId, DiskId, Incarnation, Instant, Member, Membership, Mutations, Now, Options, Release, Ring,
        Timestamp, Timing,
    };

    use super::*;

    const CLUSTER: ClusterId = ClusterId::new(1);
    const LINEAGE: u128 = 7;

    /// What the second of three replicas keeps that has adopted the log of its own view.
    fn adopted() -> (ReplicaId, VsrState) {
        let id = ReplicaId::new(1);
        let voters =
            (0..3).map(|it| Member { replica: ReplicaId::new(it), disk: DiskId::new(it.into()) }).collect();
        let membership = Membership { epoch: Epoch::new(0), voters, learners: Vec::new() };
        let mut state = VsrState::format(membership.clone(), membership.root(CLUSTER, LINEAGE));
        state.stamp = FIRST.next_view();
        state.log_stamp = LogStamp::adopted(state.stamp);
        (id, state)
    }

    /// Seed 812: its primary had left the view by restarting.
    #[test]
    fn whoever_adopted_its_own_views_log_begins_the_view_unless_it_restarts() {
        let (id, state) = adopted();
        let number = WriteNumber::ZERO.next();
        let mut promises = Promises::new(3);
        promises.on_persist(id, &Write::Superblock { number, state: state.clone() });
        promises.on_durable(id, Durable::Superblock(number));
        assert!(promises.on_superblock_heard(id, number).is_err(), "it has said nothing");

        let recovered = Recovered {
            cluster: CLUSTER,
            lineage: LINEAGE,
            replica: id,
            disk: DiskId::new(1),
            incarnation: Incarnation::new(0).next(1).expect("the first"),
            state: state.clone(),
            entries: Vec::new(),
            scan_complete: true,
            uncertain_from: None,
        };
        let options = Options {
            timing: Timing::default(),
            ring: Ring::DEFAULT,
            release: Release::new(1),
            seed: 1,
            mutations: Mutations::NONE,
        };
        let now = Now { monotonic: Instant::ZERO, wall: Timestamp::ZERO };
        let replica = Replica::open(options, recovered.clone(), now);
        assert_eq!(promises.on_opened(id, &recovered, &replica), Ok(()));
        // It writes one of the same stamp, with what it found.
        promises.on_persist(id, &Write::Superblock { number, state });
        promises.on_durable(id, Durable::Superblock(number));
        assert_eq!(promises.on_superblock_heard(id, number), Ok(()));
    }

    /// Seed 945: of two superblocks the first named a checkpoint, the second the view; Front had heard of the first.
    #[test]
    fn whoever_has_not_heard_yet_that_its_view_is_kept_need_not_begin_it() {
        let (id, state) = adopted();
        let (first, second) = (WriteNumber::ZERO.next(), WriteNumber::ZERO.next().next());
        let before = VsrState { stamp: FIRST, log_stamp: LogStamp::adopted(FIRST), ..state.clone() };
        let mut promises = Promises::new(3);
        promises.on_persist(id, &Write::Superblock { number: first, state: before });
        promises.on_persist(id, &Write::Superblock { number: second, state });
        promises.on_durable(id, Durable::Superblock(first));
        promises.on_durable(id, Durable::Superblock(second));
        assert_eq!(promises.on_superblock_heard(id, first), Ok(()));
        assert!(promises.on_superblock_heard(id, second).is_err(), "it has said nothing");
    }
}
