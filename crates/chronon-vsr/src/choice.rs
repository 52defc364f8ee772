//! Which log a new view begins with (§6.3): a pure function of the DoViewChanges that a new primary holds.
//!
//! ```text
//!            k = highest commit_max of all            h = end of the canonical chain
//!  ──────────┼────────────┬────────────┬──────────────┤
//!  committed │ keep: some │ cut: Qn    │ gone with it │ h + 1: only a question when a sender
//!            │ copy lives │ say "never"│              │        at L can't say what it held
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::{
    Checksum, EntryHeader, LogStamp, Mutation, Mutations, Op, OpRef, Quorums, ReplicaId, SuffixBits,
};

/// What one voter's DoViewChange says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DoViewChangeVote {
    /// The newest stamp whose log the sender adopted.
    pub(crate) log_stamp: LogStamp,
    /// Its durable checkpoint.
    pub(crate) checkpoint: Op,
    /// The newest op that it knows committed. May lie beyond its head.
    pub(crate) commit_max: OpRef,
    /// From here up it can't say what it held.
    pub(crate) uncertain_from: Option<Op>,
    /// The oldest op whose entry it can still serve.
    pub(crate) oldest: Op,
    /// Headers from commit_max to head, strictly ascending; blank (left out) where rot took one.
    pub(crate) suffix: Vec<EntryHeader>,
    /// What it can say of each header, by its place in `suffix`.
    pub(crate) bits: SuffixBits,
}

impl DoViewChangeVote {
    /// The newest op in the sender's log; its commit_max when it shows no headers, which is never too low.
    pub(crate) fn head(&self) -> Op {
        self.suffix.last().map_or(self.commit_max.op, |header| header.op)
    }

    /// Where the op stands in the suffix.
    fn position(&self, op: Op) -> Option<usize> {
        self.suffix.iter().position(|header| header.op == op)
    }

    /// Whether it can serve this very entry.
    pub(crate) fn is_present(&self, entry: OpRef) -> bool {
        self.position(entry.op)
            .is_some_and(|at| self.suffix[at].checksum() == entry.checksum && bit(self.bits.present, at))
    }

    /// Forgets that the sender can serve this entry: it was asked, and did not have it. What else it said stands.
    pub(crate) fn deny_present(&mut self, entry: OpRef) {
        if self.is_present(entry) {
            let at = self.position(entry.op).expect("is_present found it");
            self.bits.present &= !(1 << at);
        }
    }

    /// Whether the sender proves that it never acked the entry, so that the entry was not committed by its ack.
    fn nacks(&self, entry: Wanted, mutations: Mutations) -> bool {
        let Wanted { op, checksum, born } = entry;
        // It adopted no log that could hold the entry. True even of a sender that can't say where its log ended.
        if born.is_some_and(|born| self.log_stamp < born) {
            return true;
        }
        if self.uncertain_from.is_some_and(|uncertain_from| uncertain_from <= op) {
            return false;
        }
        if self.head() < op {
            return true;
        }
        // A blank: rot took the header, and with it the proof.
        let Some(at) = self.position(op) else { return false };
        let Some(checksum) = checksum else { return false };
        if self.suffix[at].checksum() != checksum {
            return true;
        }
        let faulty = !bit(self.bits.present, at);
        bit(self.bits.nack, at) || (faulty && mutations.breaks(Mutation::FaultyCountsAsNack))
    }
}

/// What the votes say of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Undecided: another voter's DoViewChange, or a fresher one, may decide.
    NeedMore,
    /// Two histories where there must be one, at this op. Halt: nothing here can be repaired by guessing.
    Fork { op: Op },
    /// Every voter has spoken, and this op can be neither kept nor given up.
    /// Whose copies of it are damaged, or whose logs can't tell.
    Unrecoverable { op: Op, damaged: Vec<ReplicaId> },
    /// The log of the new view.
    Chosen(Chosen),
}

/// The log of the new view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The log that it goes on from.
    pub(crate) log_stamp: LogStamp,
    /// The newest op known committed.
    pub(crate) commit_max: OpRef,
    /// Ascending, each the parent of the next: from commit_max's header, if any vote shows it, to the head. Empty
    /// or without commit_max's when nobody shows that one.
    pub(crate) headers: Vec<EntryHeader>,
    /// Who can serve the body of each entry above commit_max: never empty. And of commit_max, where known.
    pub(crate) sources: BTreeMap<Op, Vec<ReplicaId>>,
    /// The lowest op that a sender had and the choice cut, if any.
    pub(crate) cut: Option<Op>,
}

impl Chosen {
    /// The newest op of the new view's log.
    pub(crate) fn head(&self) -> OpRef {
        self.headers.last().map_or(self.commit_max, EntryHeader::op_ref)
    }
}

/// An entry whose fate is to be decided; what is not known of it is none.
#[derive(Clone, Copy)]
struct Wanted {
    op: Op,
    checksum: Option<Checksum>,
    born: Option<LogStamp>,
}

/// Decides the log of a new view from the DoViewChanges so far, at most one a voter. Votes of others than `voters`
/// do not count.
pub(crate) fn choose(
    quorums: Quorums,
    voters: &[ReplicaId],
    votes: &BTreeMap<ReplicaId, DoViewChangeVote>,
    mutations: Mutations,
) -> Choice {
    assert!(voters.len() == quorums.voters);
    let votes: Vec<(ReplicaId, &DoViewChangeVote)> = votes
        .iter()
        .filter(|(replica, _)| voters.contains(replica))
        .map(|(replica, vote)| (*replica, vote))
        .collect();
    if votes.len() < quorums.view_change {
        return Choice::NeedMore;
    }
    let undecided = |entry: Wanted| {
        if votes.len() < quorums.voters {
            Choice::NeedMore
        } else {
            let damaged = votes.iter().filter(|(_, vote)| !vote.nacks(entry, mutations));
            Choice::Unrecoverable { op: entry.op, damaged: damaged.map(|(replica, _)| *replica).collect() }
        }
    };

    let newest = newest_logs(&votes, mutations);
    let log_stamp =
        newest.iter().map(|vote| vote.log_stamp).max().expect("a view change quorum is at least one");
    let commit_max = match agreed_commit_max(&votes) {
        Ok(commit_max) => commit_max,
        Err(op) => return Choice::Fork { op },
    };
    let chain = match Chain::of(&newest, &votes, commit_max) {
        Ok(chain) => chain,
        Err(op) => return Choice::Fork { op },
    };

    let mut chosen =
        Chosen { log_stamp, commit_max, headers: Vec::new(), sources: BTreeMap::new(), cut: None };
    if let Some(header) = chain.header(commit_max.op) {
        chosen.headers.push(header.clone());
        chosen.sources.insert(commit_max.op, sources(&votes, commit_max));
    }
    let nacks = |entry: Wanted| votes.iter().filter(|(_, vote)| vote.nacks(entry, mutations)).count();

    let mut op = commit_max.op;
    while op < chain.end {
        op = op.next();
        let checksum = chain.checksum(op);
        if let Some(header) = chain.header(op) {
            let sources = sources(&votes, header.op_ref());
            if !sources.is_empty() {
                chosen.headers.push(header.clone());
                chosen.sources.insert(op, sources);
                continue;
            }
        }
        let born = chain.header(op).map(|header| LogStamp::adopted(header.born));
        let entry = Wanted { op, checksum, born };
        if quorums.nack <= nacks(entry) {
            chosen.cut = Some(op);
            return Choice::Chosen(chosen);
        }
        return undecided(entry);
    }

    // What a sender at L may have held beyond the chain can only be born at L: everything that L inherited is in the
    // suffix that it was adopted with.
    if newest.iter().any(|vote| vote.uncertain_from.is_some()) {
        let beyond = Wanted { op: op.next(), checksum: None, born: Some(log_stamp) };
        if nacks(beyond) < quorums.nack {
            return undecided(beyond);
        }
    }
    Choice::Chosen(chosen)
}

/// The votes whose suffixes make the canonical chain: those of the highest log_stamp.
fn newest_logs<'a>(
    votes: &[(ReplicaId, &'a DoViewChangeVote)],
    mutations: Mutations,
) -> Vec<&'a DoViewChangeVote> {
    let all = || votes.iter().map(|(_, vote)| *vote);
    if mutations.breaks(Mutation::LogChosenByView) {
        // Every vote of a view change names the same view: whoever comes first wins.
        return all().take(1).collect();
    }
    if mutations.breaks(Mutation::LogChosenByLength) {
        return all().max_by_key(|vote| vote.head()).into_iter().collect();
    }
    let highest = all().map(|vote| vote.log_stamp).max();
    all().filter(|vote| Some(vote.log_stamp) == highest).collect()
}

/// The highest commit_max of all, or the op at which two of them name different entries.
fn agreed_commit_max(votes: &[(ReplicaId, &DoViewChangeVote)]) -> Result<OpRef, Op> {
    let highest =
        votes.iter().map(|(_, vote)| vote.commit_max).max().expect("a view change quorum is at least one");
    let another = |vote: &DoViewChangeVote| vote.commit_max.op == highest.op && vote.commit_max != highest;
    if votes.iter().any(|(_, vote)| another(vote)) { Err(highest.op) } else { Ok(highest) }
}

fn sources(votes: &[(ReplicaId, &DoViewChangeVote)], entry: OpRef) -> Vec<ReplicaId> {
    votes.iter().filter(|(_, vote)| vote.is_present(entry)).map(|(replica, _)| *replica).collect()
}

/// The canonical chain: what the logs at L say stands at each op. Identity first, header where anybody shows it.
struct Chain<'a> {
    checksums: BTreeMap<Op, Checksum>,
    headers: BTreeMap<Op, &'a EntryHeader>,
    /// The newest op of the chain, and never below commit_max.
    end: Op,
}

impl<'a> Chain<'a> {
    /// The union of the suffixes at L, linked downwards by checksum through anyone's headers as far as commit_max;
    /// or the op at which they contradict one another or what is committed.
    fn of(
        newest: &[&'a DoViewChangeVote],
        votes: &[(ReplicaId, &'a DoViewChangeVote)],
        commit_max: OpRef,
    ) -> Result<Chain<'a>, Op> {
        let shown: BTreeMap<OpRef, &EntryHeader> =
            votes.iter().flat_map(|(_, vote)| &vote.suffix).map(|header| (header.op_ref(), header)).collect();
        let at_newest: BTreeSet<OpRef> =
            newest.iter().flat_map(|vote| &vote.suffix).map(EntryHeader::op_ref).collect();
        let end =
            at_newest.iter().map(|entry| entry.op).max().map_or(commit_max.op, |end| end.max(commit_max.op));

        let mut chain = Chain { checksums: BTreeMap::new(), headers: BTreeMap::new(), end };
        // Every committed entry is on the chain, wherever a vote names it.
        for (_, vote) in votes {
            chain.name(vote.commit_max)?;
        }
        for entry in at_newest {
            chain.name(entry)?;
        }
        // Downwards: a header that fills a blank names the entry below it.
        let mut op = end;
        while let Some(below) = op.previous() {
            let identity = chain.checksums.get(&op).copied();
            if let Some(header) = identity.and_then(|checksum| shown.get(&OpRef { op, checksum })) {
                chain.headers.insert(op, header);
                chain.name(OpRef { op: below, checksum: header.parent })?;
            }
            // Below commit_max all is committed, and chained already by whoever committed it.
            if op <= commit_max.op {
                break;
            }
            op = below;
        }
        Ok(chain)
    }

    fn name(&mut self, entry: OpRef) -> Result<(), Op> {
        let named = *self.checksums.entry(entry.op).or_insert(entry.checksum);
        if named == entry.checksum { Ok(()) } else { Err(entry.op) }
    }

    fn checksum(&self, op: Op) -> Option<Checksum> {
        self.checksums.get(&op).copied()
    }

    fn header(&self, op: Op) -> Option<&'a EntryHeader> {
        self.headers.get(&op).copied()
    }
}

fn bit(bits: u16, at: usize) -> bool {
    at < u16::BITS as usize && bits & (1 << at) != 0
}

#[cfg(test)]
mod tests;
