//! From what the data directory holds to a running replica (§7, end).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::checkpoints::Checkpoints;
use super::log::{Log, OnDisk};
use super::loss::{Losses, Lost};
use super::normal::Following;
use super::peers::Peers;
use super::reads::RemoteReads;
use super::repair::Repairs;
use super::view_change::{Changing, Votes};
use super::{Applied, Digest, DiskAge, Options, Part, Replica, Role, Room, Superblock, Wal};
use crate::clock::Clock;
use crate::event::Suspicion;
use crate::{
    Checksum, Duration, EntryHeader, Mutation, Now, Op, OpRef, PIPELINE_MAX, Prng, Quorums, Recovered,
    Verdict, WriteNumber,
};

impl Replica {
    /// A replica as its data directory left it. Drain its outputs before anything else: it may have to speak first.
    pub fn open(options: Options, recovered: Recovered, now: Now) -> Replica {
        let Recovered { cluster, replica: me, disk, incarnation, state, .. } = &recovered;
        let membership = state.membership.clone();
        let (stamp, log_stamp, me) = (state.stamp, state.log_stamp, *me);
        assert!(log_stamp.stamp() <= stamp);
        let restored = restore_log(&recovered, options);
        let Restored { log, uncertain_from, fork } = restored;
        let suffix_head =
            state.suffix.last().map_or(log.committed().op.min(log.head().op), |header| header.op);
        let mut through = suffix_head;
        while through < log.head().op && log.is_durable(through.next()) {
            through = through.next();
        }
        let mut prng = Prng::new(options.seed ^ incarnation.value().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let monotonic = now.monotonic;
        let mut following = Following::new(monotonic, &options.timing, log.committed().op, &mut prng);
        following.ask_for_view(monotonic);
        let mut replica = Replica {
            options,
            cluster: *cluster,
            me,
            disk: *disk,
            incarnation: *incarnation,
            quorums: Quorums::of(membership.voters.len()),
            prng,
            now,
            clock: Clock::new(),
            clock_degraded: false,
            stamp,
            log_stamp,
            uncertain_from,
            part: Part::Following(following.clone()),
            leaving: None,
            votes: Votes::default(),
            since: monotonic,
            former: Vec::new(),
            commit_max: log.committed(),
            head_since: monotonic,
            suffix_head,
            superblock: Superblock {
                asked: WriteNumber::ZERO,
                durable: WriteNumber::ZERO,
                stamps: VecDeque::new(),
                stamp,
                promise: WriteNumber::ZERO,
            },
            wal: Wal {
                asked: WriteNumber::ZERO,
                writing: BTreeMap::new(),
                writing_bytes: 0,
                refused: false,
                next: suffix_head.next(),
                through,
            },
            committed_out: Op::ROOT,
            applied: Applied { op: Op::ROOT, digest: Digest::default() },
            digests: super::quarantine::Digests::new(),
            mismatched: BTreeSet::new(),
            disk_age: DiskAge { told: Duration::ZERO, at: monotonic },
            room: Room::Enough,
            checkpoints: Checkpoints::new(),
            losses: Losses::default(),
            peers: Peers::new(membership.peers(me), &state.peers, monotonic),
            repairs: Repairs::new(),
            reads: RemoteReads::new(),
            read_number: 0,
            stalls: 0,
            not_committing: 0,
            handed_over: 0,
            paused_total: Duration::ZERO,
            role: Role::Changing { stamp },
            outputs: VecDeque::new(),
            membership,
            log,
        };
        if let Some(op) = fork {
            replica.halt(op);
            return replica;
        }
        if state.checkpoint.root.is_some() {
            replica.install(state.checkpoint);
        }
        // A clean second scan must not undo what this one found; and nothing is said before it is kept.
        if replica.uncertain_from != state.uncertain_from || replica.log.faulty_uncommitted() != state.faulty
        {
            replica.persist();
        }
        replica.take_part(following);
        replica.settle();
        replica
    }

    fn take_part(&mut self, following: Following) {
        let alone = self.quorums.voters == 1 && self.membership.is_voter(self.me);
        let leads = self.membership.primary(self.stamp) == self.me;
        if alone && let Some(op) = self.first_lost() {
            // All that it ever flushed may be acked, and nobody else has it.
            self.note_loss(Lost::Op(op), alloc::vec![self.me]);
            self.part = Part::Halted;
        } else if self.log_stamp.stamp() < self.stamp {
            self.part = Part::Changing(Changing::new(self.now.monotonic, &self.options.timing, leads));
        } else if self.uncertain_from.is_some() {
            self.part = Part::Recovering(following);
            if leads {
                self.vote_to_leave(Suspicion::Restarted);
            }
        } else if leads {
            // Another entry of the same stamp may already be on its way: this stamp's primary is no more.
            self.leave_for(self.stamp.next_view());
        } else {
            self.part = Part::Following(following);
        }
    }

    /// The lowest op whose entry is damaged, missing, or can't be named.
    fn first_lost(&self) -> Option<Op> {
        if let Some((top, _)) = self.log.gap() {
            return Some(top.op);
        }
        let kept = self.log.checkpoint().entry.op.next();
        let missing = self.log.missing(kept, self.log.head().op).next().map(|entry| entry.op);
        let lost = match (missing, self.uncertain_from) {
            (Some(missing), Some(uncertain)) => Some(missing.min(uncertain)),
            (missing, uncertain) => missing.or(uncertain),
        };
        // What a suffix names and a complete scan did not find was never durable, so never acked.
        lost.filter(|op| {
            self.uncertain_from.is_some()
                || *op <= self.log.committed().op
                || self.log.at(*op).is_some_and(|entry| self.log.is_faulty(entry))
        })
    }
}

struct Restored {
    log: Log,
    uncertain_from: Option<Op>,
    /// Where the superblock and the WAL contradict one another.
    fork: Option<Op>,
}

/// Decides what of the WAL counts: entries of the suffix by checksum, below it by the chain, and above it those born
/// at log_stamp and chained. All else is of a log that a StartView replaced.
fn restore_log(recovered: &Recovered, options: Options) -> Restored {
    let state = &recovered.state;
    let mut log = Log::new(state.checkpoint);
    let mut headers: BTreeMap<(Op, Checksum), &EntryHeader> = BTreeMap::new();
    let mut names: BTreeMap<OpRef, &EntryHeader> = BTreeMap::new();
    let mut damaged: BTreeSet<OpRef> = BTreeSet::new();
    for found in &recovered.entries {
        let name = found.header.op_ref();
        headers.insert((name.op, found.header.parent), &found.header);
        names.insert(name, &found.header);
        if found.verdict == Verdict::Faulty {
            damaged.insert(name);
        }
    }
    // Above the suffix two entries can share op and parent only if they are of two stamps: prefer log_stamp's.
    for found in recovered.entries.iter().filter(|found| found.header.born == state.log_stamp.stamp()) {
        headers.insert((found.header.op, found.header.parent), &found.header);
    }

    let result = log.adopt(state.commit_max, &state.suffix).and_then(|()| {
        // Below the suffix: damaged bodies still name their parents.
        let mut result = log.link_down();
        while result.is_ok()
            && let Some((top, _)) = log.gap()
            && let Some(header) = names.get(&top)
            && log.learn_header(header)
        {
            result = log.link_down();
        }
        result
    });
    // Peers may still need what the checkpoint covers here, and the ring must keep it for them (§8).
    if result.is_ok() {
        while let Some(header) = names.get(&log.base())
            && log.lower(header)
        {}
    }
    let excluded_live = options.mutations.breaks(Mutation::KeepExcludedEntries);
    let mut above = Op::ROOT;
    if result.is_ok() {
        while let Some(header) = headers.get(&(log.head().op.next(), log.head().checksum))
            && (header.born == state.log_stamp.stamp() || excluded_live)
            && log.continues(header)
        {
            log.push((*header).clone());
        }
        let born_here = recovered.entries.iter().filter(|found| found.header.born == state.log_stamp.stamp());
        above = born_here.map(|found| found.header.op).max().unwrap_or(Op::ROOT);
    }
    for found in &recovered.entries {
        if let Verdict::Intact(entry) = &found.verdict {
            log.hold(entry.clone(), OnDisk::Durable);
        }
    }
    log.drop_excluded();

    // What a suffix names and the scan did not find was never durable, if the scan saw everything.
    let complete = recovered.scan_complete || options.mutations.breaks(Mutation::NackAfterIncompleteScan);
    let mut op = log.committed().op;
    while op < log.head().op {
        op = op.next();
        let Some(entry) = log.at(op) else { continue };
        if damaged.contains(&entry) || state.faulty.contains(&entry) || !complete {
            log.mark_faulty(entry);
        }
    }
    if let Some(op) = log.head().op.value().checked_sub(PIPELINE_MAX).map(Op::new)
        && let Some(entry) = log.at(op)
    {
        log.commit(entry);
    }

    // What the scan could not name lies above the head: whatever stands at or below it, the chain names. The op that
    // storage gives may be too high, if the last entry that it could read is of a log that was replaced.
    let hole = log.head().op < above && !recovered.scan_complete;
    let found = recovered.uncertain_from.is_some() || state.uncertain_from.is_some() || hole;
    let unnamed = found.then(|| log.head().op.next());
    let uncertain_from = [state.uncertain_from, unnamed].into_iter().flatten().min();
    Restored { log, uncertain_from, fork: result.err().map(|fork| fork.op) }
}
