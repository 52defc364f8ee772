//! Checkpoints, and fetching those of others (§8): what lets the ring be used again, and what carries a replica that
//! the log has left behind.
//!
//! ```text
//!   Commit(c) Freeze(c) ──► Frozen(root) ──► superblock ──► durable: the ring may let go
//!   Fetch(c) ⇄ ChunksMissing, GetChunk, StoreChunk … ──► ChunksHeld ──► superblock ──► Install(c)
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::log::Fork;
use super::retry::Retry;
use super::{Applied, Output, Part, Replica};
use crate::{
    Checkpoint, Checksum, Digest, Duration, Event, Instant, Mutation, Op, OpRef, Payload, Release, ReplicaId,
    SyncProgress, Timestamp, WriteNumber,
};

/// The most chunks asked for at a time. With the size of a chunk it bounds what a transfer takes of the network
/// beside the live load.
const CHUNK_REQUESTS_MAX: usize = 4;

/// The most chunk reads for peers at a time. Whoever asks beyond it asks again.
const CHUNK_READS_MAX: usize = 8;

/// How long a chunk may take before it is asked for again, at first and at most.
const CHUNK_PATIENCE: Duration = Duration::from_millis(250);
const CHUNK_PATIENCE_MAX: Duration = Duration::from_secs(2);

/// The most missing chunks that are looked after at a time; storage names the others later.
const CHUNKS_WANTED_MAX: usize = 64;

/// The checkpoints on their way.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    /// Execution has reached it, and it is not durable yet. Execution waits at the next one.
    freezing: Option<Freezing>,
    /// A superblock on its way that names another checkpoint than the log hangs from.
    asked: Option<(WriteNumber, Checkpoint)>,
    transfer: Option<Transfer>,
    /// When a StartView may be asked for again because all checkpoints on offer lie beyond the log.
    view: Retry,
    /// Install was handed out, and is not answered: nothing can be executed.
    installing: bool,
    /// Chunks that are being read for peers.
    reading: BTreeSet<(ReplicaId, Checksum)>,
}

#[derive(Clone, Copy, Debug)]
struct Freezing {
    entry: OpRef,
    end: u64,
    timestamp: Timestamp,
    release: Release,
    /// It is durable, and waits for the end of a quarantine, or of a dispute, to be named.
    held: Option<(Digest, Checksum)>,
}

/// Chunks being fetched: of a checkpoint to go on from, or those of the own one that were damaged.
#[derive(Clone, Debug)]
struct Transfer {
    target: Checkpoint,
    /// What storage last said is missing.
    wanted: BTreeMap<Checksum, ChunkRequest>,
    /// How many chunks were missing when storage first knew, and how many still are.
    chunks: Option<(u32, u32)>,
    /// Every chunk is here.
    held: bool,
}

#[derive(Clone, Debug)]
struct ChunkRequest {
    retry: Retry,
    /// How many peers were asked so far.
    asked: usize,
    denied: BTreeSet<ReplicaId>,
    /// Everybody who was there has denied it, at least once.
    in_vain: bool,
    /// It has come, and storage is keeping it.
    storing: bool,
}

impl Checkpoints {
    pub(crate) fn new() -> Checkpoints {
        Checkpoints {
            freezing: None,
            asked: None,
            transfer: None,
            view: Retry::now(Instant::ZERO),
            installing: false,
            reading: BTreeSet::new(),
        }
    }

    /// Whether the next checkpoint must wait for one that is being made durable.
    pub(crate) fn is_busy(&self) -> bool {
        self.freezing.is_some() || self.asked.is_some()
    }

    /// Whether nothing may be executed: the state is about to be another.
    pub(crate) fn is_switching(&self) -> bool {
        self.installing
            || (self.asked.is_some() && self.transfer.as_ref().is_some_and(|transfer| transfer.held))
    }

    /// The checkpoint that the next superblock names, if it is another than the log hangs from.
    pub(crate) fn asked(&self) -> Option<Checkpoint> {
        self.asked.map(|(_, checkpoint)| checkpoint)
    }

    pub(crate) fn deadline(&self) -> Instant {
        let Some(transfer) = &self.transfer else { return Instant::NEVER };
        transfer.in_flight().map(|(_, request)| request.retry.at).min().unwrap_or(Instant::NEVER)
    }
}

impl Transfer {
    fn in_flight(&self) -> impl Iterator<Item = (&Checksum, &ChunkRequest)> {
        self.wanted.iter().filter(|(_, request)| !request.storing).take(CHUNK_REQUESTS_MAX)
    }
}

impl Replica {
    // ---- taking one -----------------------------------------------------------------------------------------

    /// Execution has reached a checkpoint op: the state is frozen right behind it.
    pub(super) fn freeze(&mut self, op: Op) {
        let header = self.log.header(op).expect("its entry was just handed out");
        let (entry, end) = (header.op_ref(), header.end());
        let (timestamp, release) = (header.timestamp, header.release);
        let freezing = Freezing { entry, end, timestamp, release, held: None };
        self.checkpoints.freezing = Some(freezing);
        self.outputs.push_back(Output::Freeze(entry));
    }

    /// Every chunk of a checkpoint is durable: the superblock may name it.
    pub(super) fn on_frozen(&mut self, entry: OpRef, digest: Digest, root: Checksum) {
        let may_be_wrong = self.is_quarantined() || self.is_disputed();
        let Some(freezing) = &mut self.checkpoints.freezing else { return };
        if freezing.entry != entry || self.checkpoints.asked.is_some() {
            return;
        }
        if may_be_wrong {
            freezing.held = Some((digest, root));
            return;
        }
        let Freezing { entry, end, timestamp, release, held: _ } = *freezing;
        self.persist_checkpoint(Checkpoint { entry, end, timestamp, digest, release, root: Some(root) });
    }

    /// Names what was held back, if the quarantine is over, and not by a peer's checkpoint, or the dispute is: then the
    /// own state was right.
    pub(super) fn resume_freeze(&mut self) {
        if let Some(Freezing { entry, held: Some((digest, root)), .. }) = self.checkpoints.freezing {
            self.on_frozen(entry, digest, root);
        }
    }

    /// Asks for a superblock that names a checkpoint. Nothing of the present stamp waits for it: what it says of the
    /// log is what the one before, and the entries above that one's suffix, say as well.
    fn persist_checkpoint(&mut self, checkpoint: Checkpoint) {
        let number = self.next_superblock();
        self.checkpoints.asked = Some((number, checkpoint));
        self.write_superblock(number);
    }

    /// A superblock is durable: perhaps the one that names a checkpoint.
    pub(super) fn note_checkpoint_durable(&mut self) {
        let Some((number, checkpoint)) = self.checkpoints.asked else { return };
        if self.superblock.durable < number {
            return;
        }
        self.checkpoints.asked = None;
        let op = checkpoint.entry.op;
        if op <= self.committed_out {
            // The own one; or, in quarantine, a peer's in place of it, for the next start to go on from.
            if self.checkpoints.freezing.is_some_and(|freezing| freezing.entry.op <= op) {
                self.checkpoints.freezing = None;
            }
            if self.checkpoints.transfer.as_ref().is_some_and(|transfer| transfer.target == checkpoint) {
                self.checkpoints.transfer = None;
            }
            self.log.checkpointed(checkpoint);
            self.event(Event::CheckpointDurable { op });
        } else {
            self.checkpoints.transfer = None;
            self.checkpoints.freezing = None;
            if let Err(Fork { op }) = self.log.rebase(checkpoint) {
                return self.halt(op);
            }
            self.pass_over_what_is_gone();
            self.install(checkpoint);
            self.event(Event::Synced { op });
            self.link_commit();
        }
        self.recycle();
        if core::mem::take(&mut self.wal.refused) {
            self.append_unwritten();
        }
    }

    /// Hands out a checkpoint to go on from.
    pub(super) fn install(&mut self, checkpoint: Checkpoint) {
        self.committed_out = checkpoint.entry.op;
        self.forget_digests();
        self.checkpoints.installing = true;
        self.outputs.push_back(Output::Install(checkpoint));
    }

    /// The layer above has executed up to here, or holds the state of a checkpoint.
    pub(super) fn note_installed(&mut self, applied: Applied) {
        if self.log.checkpoint().entry.op <= applied.op {
            self.checkpoints.installing = false;
        }
    }

    // ---- the ring -------------------------------------------------------------------------------------------

    /// Lets go of entries below the own checkpoint that a quorum of voters holds in checkpoints too (§8): who voted
    /// for the newest committed op had its checkpoint no further than C + G behind that op.
    pub(super) fn recycle(&mut self) {
        let start = self.recyclable(Some(self.log.checkpoint().entry.op));
        if self.log.start() < start {
            self.log.release(start);
            self.pass_over_what_is_gone();
            if core::mem::take(&mut self.wal.refused) {
                self.append_unwritten();
            }
        }
    }

    /// An entry that was to be written next may be gone: executed without room for it in the ring, and covered by a
    /// checkpoint since. A restart begins above that, so nothing needs it, and what comes after is written.
    fn pass_over_what_is_gone(&mut self) {
        let start = self.log.start();
        self.wal.next = self.wal.next.max(start);
        self.wal.through = self.wal.through.max(start.previous().unwrap_or(Op::ROOT));
    }

    /// The lowest op that the ring must keep.
    pub(super) fn keep_from(&self) -> Op {
        if self.options.mutations.breaks(Mutation::RecycleWithoutOwnCheckpoint) {
            return self.recyclable(None);
        }
        self.log.start()
    }

    fn recyclable(&self, own: Option<Op>) -> Op {
        let ring = &self.options.ring;
        let by_own_alone = self.options.mutations.breaks(Mutation::RecycleWithoutCommitRule);
        let mut start = self.log.start();
        let Some(end) = self.log.end_of(self.log.committed()) else { return start };
        while own.is_none_or(|own| start <= own)
            && let Some(header) = self.log.header(start)
            && (by_own_alone || header.offset.saturating_add(ring.checkpoint_interval + ring.slack) < end)
        {
            start = start.next();
        }
        start
    }

    /// Whether an entry whose ring charge ends here has a place in the ring beside what must be kept.
    pub(super) fn has_room(&self, end: u64) -> bool {
        end <= self.log.start_offset().saturating_add(self.options.ring.log)
    }

    /// The end of the ring charge up to which this replica's vote may count: the ack rule.
    pub(super) fn ack_limit(&self) -> u64 {
        let ring = &self.options.ring;
        self.log.checkpoint().end.saturating_add(ring.checkpoint_interval + ring.slack)
    }

    // ---- fetching one ---------------------------------------------------------------------------------------

    /// Whether this replica fetches a state to go on from: it votes for nothing meanwhile.
    pub(super) fn is_syncing(&self) -> bool {
        self.checkpoints
            .transfer
            .as_ref()
            .is_some_and(|transfer| self.log.checkpoint().entry.op < transfer.target.entry.op)
    }

    /// How far the state is that this replica fetches or installs, to go on from.
    pub fn sync_progress(&self) -> Option<SyncProgress> {
        let fetching = self.checkpoints.transfer.as_ref().filter(|_| self.is_syncing());
        match fetching {
            Some(Transfer { target, held: true, .. }) => {
                Some(SyncProgress { op: target.entry.op, fetched: 1, chunks: 1 })
            }
            Some(Transfer { target, chunks, .. }) => {
                let (chunks, left) = chunks.unwrap_or((0, 0));
                Some(SyncProgress { op: target.entry.op, fetched: chunks - left, chunks })
            }
            None if self.checkpoints.installing => {
                let op = self.log.checkpoint().entry.op;
                (op != Op::ROOT).then_some(SyncProgress { op, fetched: 1, chunks: 1 })
            }
            None => None,
        }
    }

    /// Begins, goes on with, or ends a transfer.
    pub(super) fn advance_transfer(&mut self) {
        self.drop_overtaken_transfer();
        if self.checkpoints.transfer.is_none() {
            self.seek_checkpoint();
        }
        let switches = self
            .checkpoints
            .transfer
            .as_ref()
            .filter(|transfer| transfer.held)
            .map(|transfer| transfer.target);
        if let Some(target) = switches
            && self.checkpoints.asked.is_none()
        {
            self.persist_checkpoint(target);
        }
        self.request_chunks();
    }

    /// Its own log has brought the replica past the checkpoint that it was fetching, or a newer one has taken the
    /// place of the one that it was repairing.
    fn drop_overtaken_transfer(&mut self) {
        let Some(transfer) = &self.checkpoints.transfer else { return };
        let own = self.log.checkpoint();
        let repairs_own = transfer.target == *own;
        // What a quarantined replica executed takes it past nothing.
        let reached = if self.is_quarantined() { own.entry.op } else { self.committed_out.max(own.entry.op) };
        let is_overtaken = transfer.target.entry.op <= reached;
        if !repairs_own && is_overtaken && !self.checkpoints.is_switching() {
            self.checkpoints.transfer = None;
        }
    }

    /// Begins a transfer when the log can't go on: what comes next is in nobody's ring any more. Or when it must not: a
    /// quarantined replica takes every newer state than its own that others hold.
    fn seek_checkpoint(&mut self) {
        let next = self.committed_out.next();
        let is_normal = matches!(self.part, Part::Leading(_) | Part::Following(_));
        if self.is_quarantined() {
            return match self.best_offer(Op::ROOT) {
                _ if !is_normal || self.checkpoints.is_switching() => {}
                Some(target) => self.start_transfer(target),
                None => self.ask_for_newer_log(),
            };
        }
        if !is_normal || self.checkpoints.is_switching() || !self.is_denied(next) {
            return;
        }
        match self.best_offer(next) {
            Some(target) => self.start_transfer(target),
            None => self.ask_for_newer_log(),
        }
    }

    /// Whether a committed op is to be executed that neither this replica has nor anybody who is there.
    fn is_denied(&self, op: Op) -> bool {
        let is_here = op <= self.log.executable() && self.log.entry(op).is_some();
        op <= self.log.committed().op && !is_here && self.is_nowhere(op)
    }

    /// Whether nobody's log and nobody's checkpoint brings this replica to an op that it is to execute. A checkpoint beyond
    /// what it knows to be committed does, too: it is fetched as soon as this replica knows more.
    pub(super) fn waits_for_nobody(&self, op: Op) -> bool {
        let reaches = |(replica, offer): (ReplicaId, Checkpoint)| {
            offer.root.is_some() && op <= offer.entry.op && self.is_trusted(replica)
        };
        self.checkpoints.transfer.is_none() && self.is_denied(op) && !self.peers.offers().any(reaches)
    }

    /// The op of the checkpoint that it can't go on without, if somebody denied a part of it and nobody has given it since.
    pub(super) fn stuck_transfer(&self) -> Option<Op> {
        let transfer = self.checkpoints.transfer.as_ref()?;
        let needed = self.checkpoints.installing || self.is_syncing();
        let in_vain = transfer.wanted.values().any(|request| request.in_vain && !request.storing);
        (needed && in_vain).then_some(transfer.target.entry.op)
    }

    /// Every checkpoint on offer may be of an op that this replica does not know to be committed: then the primary's
    /// StartView is adopted first.
    fn ask_for_newer_log(&mut self) {
        let (now, committed) = (self.now.monotonic, self.log.committed().op);
        let is_beyond = self.peers.offers().any(|(_, offer)| committed < offer.entry.op);
        if is_beyond && self.checkpoints.view.is_due(now) {
            self.checkpoints.view.done(now, CHUNK_PATIENCE, CHUNK_PATIENCE_MAX, &mut self.prng);
            if let Part::Following(following) = &mut self.part {
                following.ask_for_view(now);
            }
        }
    }

    /// The best checkpoint that somebody offers who is there, of a committed op not below `least`: one that a quorum holds will be
    /// there longest, and the newest leaves least to replay.
    fn best_offer(&self, least: Op) -> Option<Checkpoint> {
        let most = self.log.committed().op;
        let fits = |offer: &Checkpoint| {
            let op = offer.entry.op;
            offer.root.is_some() && least <= op && op <= most && self.log.checkpoint().entry.op < op
        };
        let trusted =
            self.peers.offers().filter(|(replica, _)| self.is_trusted(*replica) && self.is_there(*replica));
        let offers: Vec<Checkpoint> = trusted.map(|(_, offer)| offer).filter(fits).collect();
        let held_by = |offer: &Checkpoint| offers.iter().filter(|other| *other == offer).count();
        let rank = |offer: &Checkpoint| (self.quorums.replication <= held_by(offer), offer.entry.op);
        offers.iter().max_by_key(|offer| rank(offer)).copied()
    }

    fn start_transfer(&mut self, target: Checkpoint) {
        // Its superblock would name what is not here after a crash.
        let held = self.options.mutations.breaks(Mutation::SuperblockBeforeChunks);
        self.checkpoints.transfer = Some(Transfer { target, wanted: BTreeMap::new(), chunks: None, held });
        self.event(Event::SyncStarted { op: target.entry.op });
        if !held {
            self.outputs.push_back(Output::Fetch(target));
        }
    }

    /// Storage lacks chunks of a checkpoint: of the one that is being fetched, or of the own one.
    pub(super) fn on_chunks_missing(&mut self, root: Checksum, ids: Vec<Checksum>, in_all: u32) {
        let own = *self.log.checkpoint();
        if self.checkpoints.transfer.is_none() && own.root == Some(root) {
            let op = own.entry.op;
            self.checkpoints.transfer =
                Some(Transfer { target: own, wanted: BTreeMap::new(), chunks: None, held: false });
            self.event(Event::CheckpointDamaged { op });
        }
        let now = self.now.monotonic;
        let Some(transfer) = self.checkpoints.transfer.as_mut() else { return };
        if transfer.target.root != Some(root) {
            return;
        }
        if 0 < in_all {
            let (at_first, _) = transfer.chunks.unwrap_or((in_all, in_all));
            transfer.chunks = Some((at_first.max(in_all), in_all));
        }
        for id in ids.into_iter().take(CHUNKS_WANTED_MAX) {
            if CHUNKS_WANTED_MAX <= transfer.wanted.len() {
                break;
            }
            transfer.wanted.entry(id).or_insert(ChunkRequest {
                retry: Retry::now(now),
                asked: 0,
                denied: BTreeSet::new(),
                in_vain: false,
                storing: false,
            });
        }
    }

    /// Storage holds every chunk of a checkpoint.
    pub(super) fn on_chunks_held(&mut self, root: Checksum) {
        let own = *self.log.checkpoint();
        let is_own = own.root == Some(root);
        if let Some(transfer) = &mut self.checkpoints.transfer
            && transfer.target.root == Some(root)
        {
            if !is_own {
                transfer.held = true;
                return;
            }
            self.checkpoints.transfer = None;
        }
        if is_own && self.checkpoints.installing {
            self.outputs.push_back(Output::Install(own));
        }
    }

    /// Asks for the chunks that are missing.
    fn request_chunks(&mut self) {
        let now = self.now.monotonic;
        let Some(transfer) = &self.checkpoints.transfer else { return };
        let due: Vec<Checksum> = transfer
            .in_flight()
            .filter(|(_, request)| request.retry.is_due(now))
            .map(|(id, _)| *id)
            .collect();
        if due.is_empty() {
            return;
        }
        let sources = self.chunk_sources(transfer.target);
        let is_nowhere =
            |request: &ChunkRequest| sources.iter().all(|source| request.denied.contains(source));
        let gone = due.iter().any(|id| is_nowhere(&transfer.wanted[id])) && !sources.is_empty();
        if gone && self.turn_to_another_checkpoint() {
            return;
        }
        for id in due {
            let Some(transfer) = &mut self.checkpoints.transfer else { return };
            let Some(request) = transfer.wanted.get_mut(&id) else { continue };
            let willing: Vec<ReplicaId> =
                sources.iter().copied().filter(|source| !request.denied.contains(source)).collect();
            request.retry.done(now, CHUNK_PATIENCE, CHUNK_PATIENCE_MAX, &mut self.prng);
            if willing.is_empty() {
                // Everybody denied it once. Whoever repairs its own copy may have it again.
                request.denied.clear();
                request.in_vain = true;
                continue;
            }
            let peer = willing[request.asked % willing.len()];
            request.asked += 1;
            self.send_outside(peer, Payload::GetChunk { id });
        }
    }

    /// Nobody who is there has a chunk: the cluster has moved on, or who offered it has gone. Says whether there is something
    /// else to fetch that brings this replica further.
    fn turn_to_another_checkpoint(&mut self) -> bool {
        let Some(Transfer { target: present, .. }) = self.checkpoints.transfer else { return false };
        let least = if self.is_quarantined() { Op::ROOT } else { self.committed_out.next() };
        match self.best_offer(least) {
            Some(target)
                if target != present && self.checkpoints.asked.is_none_or(|(_, asked)| asked != present) =>
            {
                self.start_transfer(target);
                true
            }
            Some(_) => false,
            None => {
                self.ask_for_newer_log();
                false
            }
        }
    }

    /// Who may have a chunk of this checkpoint: first those who offer it, then everybody else who is there.
    fn chunk_sources(&self, target: Checkpoint) -> Vec<ReplicaId> {
        let (offering, others): (Vec<ReplicaId>, Vec<ReplicaId>) = self
            .membership
            .peers(self.me)
            .filter(|peer| self.is_there(*peer))
            .partition(|peer| self.peers.offer(*peer).is_some_and(|offer| offer.root == target.root));
        offering.into_iter().chain(others).collect()
    }

    pub(super) fn on_chunk(&mut self, id: Checksum, bytes: Vec<u8>) {
        let Some(transfer) = &mut self.checkpoints.transfer else { return };
        let Some(request) = transfer.wanted.get_mut(&id).filter(|request| !request.storing) else { return };
        let Some(root) = transfer.target.root else { return };
        request.storing = true;
        self.outputs.push_back(Output::StoreChunk { root, id, bytes });
    }

    pub(super) fn on_chunk_stored(&mut self, root: Checksum, id: Checksum) {
        let Some(transfer) = &mut self.checkpoints.transfer else { return };
        if transfer.target.root != Some(root) || transfer.wanted.remove(&id).is_none() {
            return;
        }
        if let Some((_, left)) = &mut transfer.chunks {
            *left = left.saturating_sub(1);
        }
        if transfer.wanted.is_empty() {
            // The list may have named more.
            let target = transfer.target;
            self.outputs.push_back(Output::Fetch(target));
        }
    }

    pub(super) fn on_missing_chunk(&mut self, from: ReplicaId, id: Checksum) {
        let now = self.now.monotonic;
        if let Some(transfer) = &mut self.checkpoints.transfer
            && let Some(request) = transfer.wanted.get_mut(&id)
            && request.denied.insert(from)
        {
            request.retry.at = now;
        }
    }

    // ---- serving --------------------------------------------------------------------------------------------

    pub(super) fn on_get_chunk(&mut self, from: ReplicaId, id: Checksum) {
        if self.is_quarantined() {
            self.send_outside(from, Payload::MissingChunk { id });
        } else if self.checkpoints.reading.len() < CHUNK_READS_MAX
            && self.checkpoints.reading.insert((from, id))
        {
            self.outputs.push_back(Output::ReadChunk { to: from, id });
        }
    }

    /// Storage read and verified a chunk for a peer, or has it not.
    pub(super) fn on_chunk_read(&mut self, to: ReplicaId, id: Checksum, bytes: Option<Vec<u8>>) {
        if self.checkpoints.reading.remove(&(to, id)) {
            // It may have been found out while the chunk was read.
            let payload = match bytes {
                Some(bytes) if !self.is_quarantined() => Payload::Chunk { id, bytes },
                Some(_) | None => Payload::MissingChunk { id },
            };
            self.send_outside(to, payload);
        }
    }

    /// A peer shows its durable checkpoint. Every replica's at one op must be the same (I11).
    pub(super) fn note_offer(&mut self, from: ReplicaId, checkpoint: Checkpoint) {
        let own = self.log.checkpoint();
        let is_offered = checkpoint.root.is_some();
        let differs = is_offered && own.entry.op == checkpoint.entry.op && *own != checkpoint;
        if differs && self.mismatched.insert(from) {
            self.event(Event::CheckpointMismatch { op: checkpoint.entry.op, peer: from });
        }
        self.peers.note_offer(from, checkpoint);
    }
}
