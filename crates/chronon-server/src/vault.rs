//! The vault thread: makes frozen states durable as chunks, makes engines of them again, and serves them to peers.
//!
//! Neither Front, nor the WAL thread, nor Back ever waits for it. What it is told is bounded by the protocol's core: one
//! freeze and one transfer at a time, a few chunks on their way, a few reads for peers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use chronon_kernel::{Engine, Frozen, Put};
use chronon_node::{Room, VaultReport, VaultTask};
use chronon_storage::{ChunkDamage, ChunkList, DataDirectory, Disk, File, Found, Step, Vault, perform};
use chronon_vsr::{Checkpoint, Checksum, Instant, Op, OpRef, ReplicaId, Ring};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::apply::BackMessage;
use crate::backup::Manifest;
use crate::clock::Clock;
use crate::config::CheckpointLimits;
use crate::counters::Counters;
use crate::mailbox::{Mailbox, Waited};
use crate::pace::Pace;
use crate::stop::{Stop, StopReason};
use crate::turn::Turn;
use crate::wal::Scrubbing;

/// The most chunks that are reported missing at a time.
const MISSING_MAX: usize = 64;

/// What a checkpoint has written so far, or a transfer brought, becomes durable this often: a crash or a full disk costs
/// no more than that.
const SYNC_EVERY: u64 = 16 * 1024 * 1024;

/// Moved at a time out of a file that is to go.
const COMPACT_BYTES: usize = 4 * 1024 * 1024;

/// How long a disk that refused chunks is left alone.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// While the log stands still a replica writes its checkpoint this much after the one before it in turn.
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// How often a state that waits for its turn looks how far the log has come.
const TURN_LOOK: Duration = Duration::from_millis(20);

/// How far writing may run ahead of its rate before it rests.
const WRITE_AHEAD: Duration = Duration::from_millis(20);

/// Chunks are read back every so often.
const SCRUB_EVERY: Duration = Duration::from_secs(1);

/// How often room is set aside again when there was none, or the vault was busy.
const RESERVE_EVERY: Duration = Duration::from_secs(5);

/// Room that is set aside for the next checkpoint besides what the newest one takes. A replica whose disk has not so much
/// takes no commands.
pub const CHECKPOINT_ROOM_MIN: u64 = 4 * 1024 * 1024;

/// A disk that goes on refusing is told of this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Backups that are carried away at a time.
const BACKUPS_MAX: usize = 4;

/// Why there is no backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackupRefused {
    /// There are [`BACKUPS_MAX`].
    TooMany,
    /// The disk refused a part of it, or has no room for it beside the next checkpoint.
    Disk,
    /// The state has too many chunks.
    TooLarge { why: String },
    /// The replica stops.
    Stopped,
}

/// How the API asks the vault thread. Its requests are bounded by its connections.
#[derive(Clone, Debug)]
pub(crate) struct VaultHandle {
    mailbox: Mailbox<VaultMessage>,
}

impl VaultHandle {
    /// A handle to the thread behind this mailbox.
    pub(crate) fn new(mailbox: Mailbox<VaultMessage>) -> VaultHandle {
        VaultHandle { mailbox }
    }

    /// Keeps a state for as long as its chunks are being carried away.
    pub(crate) async fn back_up(
        &self,
        cluster: u128,
        frozen: Box<dyn Frozen>,
    ) -> Result<Manifest, BackupRefused> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.push(VaultMessage::BackUp { cluster, frozen, answer });
        answered.await.unwrap_or(Err(BackupRefused::Stopped))
    }

    /// Everything of a state that was kept has been carried away.
    pub(crate) fn end_backup(&self, root: Checksum) {
        self.mailbox.push(VaultMessage::EndBackup(root));
    }

    /// The bytes of a chunk, if it is here.
    pub(crate) async fn chunk(&self, id: Checksum) -> Option<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.push(VaultMessage::Chunk { id, answer });
        answered.await.ok().flatten()
    }
}

/// What the vault thread is told.
pub(crate) enum VaultMessage {
    /// From Front.
    Task(VaultTask),
    /// From Back: make this state durable.
    Freeze {
        /// The op behind which it was frozen.
        entry: OpRef,
        /// The ring offset behind that op.
        end: u64,
        /// The state.
        frozen: Box<dyn Frozen>,
    },
    /// From Back: make an engine of this checkpoint.
    Install(Checkpoint),
    /// From Front: the superblock names this checkpoint.
    Durable(Checkpoint),
    /// From the API: nobody needs the state any more that this root names.
    EndBackup(Checksum),
    /// From the API: keep this state for a while.
    BackUp {
        /// Whose state it is.
        cluster: u128,
        /// The state.
        frozen: Box<dyn Frozen>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Manifest, BackupRefused>>,
    },
    /// From the API: read and verify a chunk.
    Chunk {
        /// The chunk.
        id: Checksum,
        /// Where its bytes go; none when it is not here or damaged.
        answer: oneshot::Sender<Option<Vec<u8>>>,
    },
}

impl std::fmt::Debug for VaultMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultMessage").finish_non_exhaustive()
    }
}

/// Who wants a chunk.
enum For {
    Peer(ReplicaId),
    Backup(oneshot::Sender<Option<Vec<u8>>>),
}

/// What the vault thread is made of.
pub(crate) struct VaultParts {
    pub(crate) vault: Vault,
    pub(crate) disk: Box<dyn Disk + Send>,
    /// Holds the lock of the data directory for as long as this thread may write.
    pub(crate) directory: Arc<DataDirectory>,
    pub(crate) mailbox: Mailbox<VaultMessage>,
    pub(crate) to_front: mpsc::Sender<VaultReport>,
    pub(crate) back: Mailbox<BackMessage>,
    /// Of the machine, to restore others like it.
    pub(crate) template: Arc<dyn Engine>,
    pub(crate) turn: Arc<Turn>,
    pub(crate) limits: CheckpointLimits,
    pub(crate) scrub: Scrubbing,
    pub(crate) ring: Ring,
    pub(crate) voters: usize,
    /// The superblock's.
    pub(crate) checkpoint: Checkpoint,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: Stop,
}

/// What runs the vault thread.
pub(crate) struct VaultThread {
    parts: VaultParts,
    queue: VecDeque<VaultMessage>,
    /// Reads for peers and backups that wait for their share of the network.
    reads: VecDeque<(For, Checksum)>,
    read_pace: Pace,
    write_pace: Pace,
    /// A state that waits for its turn to be written.
    waiting: Option<Waiting>,
    /// The state that was written last: the next one is written as what differs.
    written: Option<Written>,
    /// With nobody to fetch from: the state that the present engine began with.
    restored: Option<Box<dyn Frozen>>,
    /// With nobody to fetch from: when damaged chunks are written anew from memory.
    mend_at: Option<Instant>,
    /// The checkpoint in the superblock, the one that was there before it, and the one that is being fetched.
    current: Checkpoint,
    previous: Option<Checksum>,
    target: Option<Checkpoint>,
    /// What Front was told last: the superblock may be about to name it.
    reported: Option<(Op, Checksum)>,
    /// Transfers that the process before this one did not finish: one of them may go on.
    unfinished: Vec<Checksum>,
    /// States that are being carried away, each with the time until which it is kept.
    backups: Vec<(Checksum, Instant)>,
    /// A transfer that a full disk has interrupted is looked at again.
    fetch_again: Option<(Instant, Checkpoint)>,
    since_sync: u64,
    compacting: bool,
    complaint: Complaint,
    room: Room,
    reserve_at: Instant,
    scrub_at: Instant,
}

struct Waiting {
    entry: OpRef,
    end: u64,
    frozen: Box<dyn Frozen>,
    since: Instant,
    not_before: Instant,
}

struct Written {
    frozen: Box<dyn Frozen>,
    sizes: BTreeMap<Checksum, u32>,
}

/// A disk that refuses what is asked of it again and again: told when it begins, then now and then, and when it is over.
#[derive(Debug, Default)]
struct Complaint {
    told: Option<Instant>,
    /// How often it has refused since.
    untold: usize,
    /// It was told, and not that it is over.
    lasts: bool,
}

impl Complaint {
    /// Whether this time is told, and how many were not.
    fn rise(&mut self, now: Instant) -> Option<usize> {
        if self.told.is_some_and(|told| now < told + COMPLAIN_EVERY) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        self.lasts = true;
        Some(std::mem::take(&mut self.untold))
    }

    /// Whether it is told that all is well.
    fn end(&mut self) -> bool {
        std::mem::take(&mut self.lasts)
    }
}

/// The replica stops.
struct Closed;

/// Why a state was not written.
enum Unwritten {
    Closed,
    /// The disk refused something.
    Disk,
    /// A chunk that the state before had is not here any more.
    Lacking,
    /// The state is too large.
    Never(String),
}

impl From<Closed> for Unwritten {
    fn from(Closed: Closed) -> Unwritten {
        Unwritten::Closed
    }
}

impl VaultThread {
    /// A thread's state around an opened vault.
    pub(crate) fn new(mut parts: VaultParts) -> VaultThread {
        parts.vault.scrub_from(parts.scrub.phase);
        let now = Clock.monotonic();
        VaultThread {
            queue: VecDeque::new(),
            reads: VecDeque::new(),
            read_pace: Pace { rate: parts.limits.transfer_bytes_per_second, from: now },
            write_pace: Pace { rate: parts.limits.write_bytes_per_second, from: now },
            waiting: None,
            written: None,
            restored: None,
            mend_at: None,
            current: parts.checkpoint,
            previous: None,
            target: None,
            reported: None,
            unfinished: parts.vault.unfinished(),
            backups: Vec::new(),
            fetch_again: None,
            since_sync: 0,
            compacting: false,
            complaint: Complaint::default(),
            room: Room::Enough,
            reserve_at: now,
            scrub_at: now + SCRUB_EVERY,
            parts,
        }
    }

    /// Runs until the replica stops.
    pub(crate) fn run(mut self) {
        self.give_back_room();
        // Where there is a checkpoint, that is done once it has been read.
        if self.current.root.is_none() && self.let_go().is_err() {
            return;
        }
        let Err(Closed) = self.work();
    }

    /// What an earlier process set aside and did not use: a crash leaves it behind the end of its file.
    fn give_back_room(&mut self) {
        let disk = &mut self.parts.disk;
        for pack in disk.packs().unwrap_or_default() {
            let file = File::Pack(pack);
            // It costs room, and nothing else.
            if let Err(error) = disk.size(file).and_then(|size| disk.truncate(file, size)) {
                warn!(%error, "room that is set aside behind a file can't be given back");
            }
        }
    }

    fn work(&mut self) -> Result<std::convert::Infallible, Closed> {
        loop {
            let idle = self.queue.is_empty() && !self.compacting;
            let patience = if idle { self.deadline().since(Clock.monotonic()) } else { Duration::ZERO };
            self.breathe(patience)?;
            if let Some(message) = self.queue.pop_front() {
                self.handle(message)?;
            }
            let now = Clock.monotonic();
            if let Some((at, checkpoint)) = self.fetch_again
                && at <= now
            {
                self.fetch_again = None;
                self.fetch(checkpoint)?;
            }
            if let Some(waiting) = self.waiting.take_if(|waiting| turn_at(waiting, &self.parts) <= now) {
                self.write(waiting)?;
            } else if self.compacting {
                let VaultParts { vault, disk, .. } = &mut self.parts;
                let moves = vault.compact(&mut **disk, COMPACT_BYTES);
                // Files may be there that go though nothing has to be moved out of them.
                self.compacting = self.carry_out().is_ok() && moves;
            }
            if self.backups.iter().any(|(_, until)| *until <= now) {
                self.backups.retain(|(_, until)| now < *until);
                self.let_go()?;
                self.reserve_at = now;
            }
            if self.mend_at.is_some_and(|at| at <= now) {
                self.mend()?;
            }
            // What is being moved would take what was set aside.
            if self.reserve_at <= now && !self.compacting {
                self.reserve()?;
            }
            if self.scrub_at <= now {
                self.scrub_at = now + SCRUB_EVERY;
                self.scrub()?;
            }
        }
    }

    /// When there is something to do if nothing comes in.
    fn deadline(&self) -> Instant {
        let turn = self.waiting.as_ref().map_or(Instant::NEVER, |waiting| turn_at(waiting, &self.parts));
        // The log may grow past this replica's turn at any time.
        let look = if self.waiting.is_some() { Clock.monotonic() + TURN_LOOK } else { Instant::NEVER };
        let reads = if self.reads.is_empty() { Instant::NEVER } else { self.read_pace.from };
        let again = self.fetch_again.map_or(Instant::NEVER, |(at, _)| at);
        let mend = self.mend_at.unwrap_or(Instant::NEVER);
        let backup = self.backups.iter().map(|(_, until)| *until).min().unwrap_or(Instant::NEVER);
        turn.min(look).min(reads).min(again).min(mend).min(backup).min(self.scrub_at).min(self.reserve_at)
    }

    /// Takes in what has come, and answers the reads of peers: between two messages, and within whatever takes long.
    fn breathe(&mut self, patience: Duration) -> Result<(), Closed> {
        let mut messages = VecDeque::new();
        match self.parts.mailbox.take(&mut messages, Some(patience)) {
            Waited::Closed => return Err(Closed),
            Waited::TimedOut | Waited::Filled => {}
        }
        for message in messages {
            match message {
                VaultMessage::Task(VaultTask::Read { to, id }) => self.reads.push_back((For::Peer(to), id)),
                VaultMessage::Chunk { id, answer } => self.reads.push_back((For::Backup(answer), id)),
                VaultMessage::Task(VaultTask::Fetch(_) | VaultTask::Store { .. })
                | VaultMessage::Freeze { .. }
                | VaultMessage::Install(_)
                | VaultMessage::Durable(_)
                | VaultMessage::BackUp { .. }
                | VaultMessage::EndBackup(_) => self.queue.push_back(message),
            }
        }
        while self.read_pace.from <= Clock.monotonic()
            && let Some((to, id)) = self.reads.pop_front()
        {
            self.read(to, id)?;
        }
        Ok(())
    }

    /// Does nothing else until then.
    fn rest(&mut self, until: Instant) -> Result<(), Closed> {
        loop {
            let now = Clock.monotonic();
            if until <= now {
                return Ok(());
            }
            self.breathe(until.since(now))?;
        }
    }

    fn handle(&mut self, message: VaultMessage) -> Result<(), Closed> {
        match message {
            VaultMessage::Task(VaultTask::Fetch(checkpoint)) => self.fetch(checkpoint),
            VaultMessage::Task(VaultTask::Store { root, id, bytes }) => self.store(root, id, &bytes),
            VaultMessage::Task(VaultTask::Read { to, id }) => self.read(For::Peer(to), id),
            VaultMessage::Chunk { id, answer } => self.read(For::Backup(answer), id),
            VaultMessage::BackUp { cluster, frozen, answer } => self.back_up(cluster, frozen, answer),
            VaultMessage::EndBackup(root) => {
                let now = Clock.monotonic();
                // One alone: another may have begun with the same state.
                let mut of_root =
                    self.backups.iter_mut().filter(|(kept, until)| *kept == root && now < *until);
                of_root.next().into_iter().for_each(|(_, until)| *until = now);
                Ok(())
            }
            VaultMessage::Freeze { entry, end, frozen } => {
                let since = Clock.monotonic();
                self.waiting = Some(Waiting { entry, end, frozen, since, not_before: since });
                Ok(())
            }
            VaultMessage::Install(checkpoint) => self.install(checkpoint),
            VaultMessage::Durable(checkpoint) => self.settle(checkpoint),
        }
    }

    fn report(&self, report: VaultReport) -> Result<(), Closed> {
        // Front never waits for this thread, so waiting for Front ends.
        self.parts.to_front.blocking_send(report).map_err(|_| Closed)
    }

    /// Carries out what the vault wants of the disk. An error if the disk refused something: what was not flushed has to
    /// be put again. Room that can't be given back is no loss: that is tried again.
    fn carry_out(&mut self) -> io::Result<()> {
        let VaultParts { vault, disk, counters, directory, .. } = &mut self.parts;
        let mut refused = Ok(());
        // After a refusal the file goes at once: its room is needed.
        while let Some(job) = vault.next_job() {
            let Err(error) = perform(&mut **disk, &job) else {
                vault.done(job.id);
                continue;
            };
            counters.checkpoint_disk_errors.add();
            vault.failed(job.id);
            let gives_back = |step: &Step| {
                matches!(step, Step::Remove { .. } | Step::Truncate { .. } | Step::Punch { .. })
            };
            let directory = directory.path().display();
            let told = |complaint: &mut Complaint| complaint.rise(Clock.monotonic());
            if job.steps.iter().all(gives_back) {
                if let Some(before) = told(&mut self.complaint) {
                    warn!(%error, %directory, before, "the disk does not take back room for checkpoints");
                }
                continue;
            }
            // Whether room can be set aside is told by whoever wants it.
            if !job.steps.iter().all(|step| matches!(step, Step::Reserve { .. }))
                && let Some(before) = told(&mut self.complaint)
            {
                error!(%error, %directory, before, "the disk refuses a part of a checkpoint; it will be written again");
            }
            refused = refused.and(Err(error));
        }
        refused
    }

    /// A checkpoint was written, or has room.
    fn end_complaint(&mut self) {
        if self.complaint.end() {
            info!("the disk takes checkpoints again");
        }
    }

    // Writing

    /// Writes a frozen state, and reports it once all of it is durable. If the disk refuses, tries again later: the
    /// cluster's log can go on only so far without it.
    fn write(&mut self, waiting: Waiting) -> Result<(), Closed> {
        let Waiting { entry, end, mut frozen, since, .. } = waiting;
        let begun = Clock.monotonic();
        let before = self.written.take();
        let written = self.write_chunks(&mut *frozen, before.as_ref(), end);
        drop(before);
        match written {
            Ok((root, sizes)) => {
                let digest = frozen.digest();
                self.written = Some(Written { frozen, sizes });
                let took = Clock.monotonic().since(begun);
                self.parts.counters.checkpoints_written.add();
                self.parts.counters.checkpoint_write.record(took);
                info!(op = %entry.op, ?took, "wrote a checkpoint");
                self.end_complaint();
                self.reported = Some((entry.op, root));
                self.report(VaultReport::Frozen { entry, digest, root })
            }
            Err(Unwritten::Closed) => Err(Closed),
            Err(Unwritten::Never(why)) => {
                error!(op = %entry.op, "there can be no checkpoint, and the log will fill up: {why}");
                Ok(())
            }
            Err(why @ (Unwritten::Disk | Unwritten::Lacking)) => {
                let pause = if matches!(why, Unwritten::Disk) { DISK_PAUSE } else { Duration::ZERO };
                let not_before = Clock.monotonic() + pause;
                self.waiting = Some(Waiting { entry, end, frozen, since, not_before });
                Ok(())
            }
        }
    }

    fn write_chunks(
        &mut self,
        frozen: &mut dyn Frozen,
        before: Option<&Written>,
        end: u64,
    ) -> Result<(Checksum, BTreeMap<Checksum, u32>), Unwritten> {
        let mut list = ChunkList::default();
        let mut failure = None;
        let earlier = before.map(|written| &*written.frozen);
        let flow = frozen.write(earlier, &mut |put| {
            let put = match put {
                Put::New { id, bytes } => {
                    list.chunks.push((id, u32::try_from(bytes.len()).expect("chunks are small")));
                    self.put_chunk(id, bytes, end)
                }
                Put::Kept(id) => match before.and_then(|written| written.sizes.get(&id)) {
                    Some(size) if self.parts.vault.retain(id) => {
                        list.chunks.push((id, *size));
                        Ok(())
                    }
                    Some(_) | None => Err(Unwritten::Lacking),
                },
            };
            match put {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    failure = Some(why);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(why) = failure {
            return Err(why);
        }
        assert!(flow.is_continue());
        let sizes = list.chunks.iter().copied().collect();
        let root = self.parts.vault.put_list(list).map_err(|error| Unwritten::Never(error.to_string()))?;
        self.parts.vault.finish(root);
        if self.carry_out().is_err() {
            return Err(Unwritten::Disk);
        }
        // What the state before had may have rotted since: then all of it is written.
        if self.parts.vault.is_complete(root) { Ok((root, sizes)) } else { Err(Unwritten::Lacking) }
    }

    /// Puts a chunk of a state that is being written, no faster than is allowed unless the log is far ahead already.
    fn put_chunk(&mut self, id: Checksum, bytes: &[u8], end: u64) -> Result<(), Unwritten> {
        self.parts.vault.put(id, bytes);
        if !self.keep_in_step(bytes.len()) {
            return Err(Unwritten::Disk);
        }
        self.breathe(Duration::ZERO)?;
        let hurries = self.parts.ring.slack / 2 < self.parts.turn.progress().saturating_sub(end);
        if !hurries {
            self.write_pace.spend(bytes.len());
            if Clock.monotonic() + WRITE_AHEAD < self.write_pace.from {
                self.rest(self.write_pace.from)?;
            }
        }
        Ok(())
    }

    /// Writes what has gathered, and flushes it now and then. False if the disk refused something.
    fn keep_in_step(&mut self, put: usize) -> bool {
        self.since_sync += put as u64;
        if SYNC_EVERY <= self.since_sync {
            self.since_sync = 0;
            self.parts.vault.sync();
        }
        self.carry_out().is_ok()
    }

    // Letting go

    /// The superblock names this checkpoint.
    fn settle(&mut self, checkpoint: Checkpoint) -> Result<(), Closed> {
        self.previous = std::mem::replace(&mut self.current, checkpoint).root;
        self.target = self.target.filter(|target| checkpoint.entry.op < target.entry.op);
        self.reported = self.reported.filter(|(op, _)| checkpoint.entry.op < *op);
        self.unfinished.clear();
        self.reserve_at = Clock.monotonic();
        self.let_go()
    }

    /// Keeps the superblock's checkpoint, the one before it, which peers may be fetching, the one that the superblock may
    /// name next, the one that is being fetched, and what is being carried away. Everything else may go, whatever has
    /// put it: a checkpoint or a backup that the disk refused, a transfer that the own log has overtaken. Never called
    /// while something is being put, for that has no name yet.
    fn let_go(&mut self) -> Result<(), Closed> {
        let VaultParts { vault, disk, .. } = &mut self.parts;
        if let Some(root) = self.current.root
            && !vault.is_complete(root)
        {
            let missing = vault.missing(&mut **disk, root, MISSING_MAX);
            if !missing.is_empty() {
                // What is damaged is not taken for something that nobody needs: its file stays until this is mended.
                return self.lack(self.current, &missing);
            }
        }
        let target = self.target.and_then(|target| target.root);
        let reported = self.reported.map(|(_, root)| root);
        let mut roots: Vec<Checksum> =
            [self.current.root, self.previous, target, reported].into_iter().flatten().collect();
        roots.extend(self.backups.iter().map(|(root, _)| *root).chain(self.unfinished.iter().copied()));
        vault.abandon();
        while let Err(damage) = vault.keep(&mut **disk, &roots) {
            // The list of a transfer that has just begun is still to come.
            if damage.found != Found::Nothing {
                warn!(%damage, "the list of a checkpoint is damaged");
            }
            roots.retain(|root| *root != damage.id);
        }
        self.compacting = true;
        Ok(())
    }

    /// Lets go of what is not needed, and gives back its room at once.
    fn give_back(&mut self) -> Result<(), Closed> {
        self.let_go()?;
        self.parts.vault.punch();
        // What is refused is told there.
        drop(self.carry_out());
        if self.parts.vault.lacks_holes() {
            // Whole files have to go, once what is needed of them lies elsewhere.
            self.parts.vault.punch();
            loop {
                let VaultParts { vault, disk, .. } = &mut self.parts;
                let moves = vault.compact(&mut **disk, COMPACT_BYTES);
                if self.carry_out().is_err() || !moves {
                    break;
                }
                self.breathe(Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Keeps a state, and tells of its chunks.
    fn back_up(
        &mut self,
        cluster: u128,
        mut frozen: Box<dyn Frozen>,
        answer: oneshot::Sender<Result<Manifest, BackupRefused>>,
    ) -> Result<(), Closed> {
        let now = Clock.monotonic();
        if BACKUPS_MAX <= self.backups.iter().filter(|(_, until)| now < *until).count() {
            // Whoever asked may have gone.
            drop(answer.send(Err(BackupRefused::TooMany)));
            return Ok(());
        }
        let end = self.parts.turn.progress();
        let before = self.written.take();
        let mut written = self.write_chunks(&mut *frozen, before.as_ref(), end);
        if matches!(written, Err(Unwritten::Lacking)) {
            written = self.write_chunks(&mut *frozen, None, end);
        }
        self.written = before;
        let mut kept = match written {
            Ok((root, _)) => {
                let VaultParts { vault, disk, .. } = &mut self.parts;
                let list = vault.list(&mut **disk, root);
                list.map(|list| (root, Manifest::new(cluster, &*frozen, root, &list)))
                    .map_err(|_| BackupRefused::Disk)
            }
            Err(Unwritten::Closed) => return Err(Closed),
            Err(Unwritten::Never(why)) => Err(BackupRefused::TooLarge { why }),
            Err(Unwritten::Disk | Unwritten::Lacking) => Err(BackupRefused::Disk),
        };
        if let Ok((root, _)) = kept {
            self.backups.push((root, Clock.monotonic() + self.parts.limits.backup_patience));
            // It has gone into what was set aside for the next checkpoint: there has to be as much again.
            self.reserve()?;
            if self.backups.iter().all(|(kept, _)| *kept != root) {
                kept = Err(BackupRefused::Disk);
            }
        }
        match &kept {
            Ok(_) => self.parts.counters.backups.add(),
            Err(_) => {
                self.let_go()?;
                self.reserve_at = Clock.monotonic();
            }
        }
        // Whoever asked may have gone.
        drop(answer.send(kept.map(|(_, manifest)| manifest)));
        Ok(())
    }

    /// Sets room aside for the next checkpoint, so that its state is not frozen in vain. Before commands are refused for
    /// want of room, everything goes that is not worth that.
    fn reserve(&mut self) -> Result<(), Closed> {
        self.reserve_at = Clock.monotonic() + RESERVE_EVERY;
        if !self.parts.vault.idle() {
            return Ok(());
        }
        let mut set_aside = self.set_aside();
        if set_aside.is_err() {
            self.give_back()?;
            set_aside = self.set_aside();
        }
        if set_aside.is_err() {
            self.previous = None;
            self.unfinished.clear();
            // Where there was no room before either, a backup may be the last resort: one that fits is kept for its time.
            if self.room == Room::Enough {
                self.backups.clear();
            }
            self.give_back()?;
            set_aside = self.set_aside();
        }
        let room = if set_aside.is_ok() { Room::Enough } else { Room::Short };
        if room != self.room {
            match &set_aside {
                Err(error) => {
                    error!(%error, "the disk has no room for the next checkpoint: commands are refused")
                }
                Ok(()) => info!("the disk has room for the next checkpoint again"),
            }
            self.room = room;
            self.report(VaultReport::Room(room))?;
        }
        let VaultParts { vault, disk, counters, .. } = &mut self.parts;
        counters.disk_short.set(u64::from(room == Room::Short));
        if let Ok(available) = disk.available() {
            counters.disk_available_bytes.set(available);
        }
        let usage = vault.usage();
        counters.vault_bytes.set(usage.bytes);
        counters.vault_live_bytes.set(usage.live);
        counters.vault_packs.set(usage.packs as u64);
        Ok(())
    }

    /// Asks for room for a checkpoint that is somewhat larger than the newest one.
    fn set_aside(&mut self) -> io::Result<()> {
        let stored = self.current.root.map_or(0, |root| self.parts.vault.stored_size(root));
        self.parts.vault.reserve(stored + CHECKPOINT_ROOM_MIN);
        self.carry_out()?;
        self.end_complaint();
        Ok(())
    }

    // Restoring

    /// Makes an engine of a checkpoint's chunks for Back, or says which of them are missing.
    fn install(&mut self, checkpoint: Checkpoint) -> Result<(), Closed> {
        // Whatever was frozen is of the state that this one replaces.
        self.waiting = None;
        self.written = None;
        self.restored = None;
        let begun = Clock.monotonic();
        let Some(root) = checkpoint.root else { return Ok(()) };
        let VaultParts { vault, disk, .. } = &mut self.parts;
        let missing = vault.missing(&mut **disk, root, MISSING_MAX);
        if !missing.is_empty() {
            return self.lack_at_start(checkpoint, &missing);
        }
        let list = match vault.list(&mut **disk, root) {
            Ok(list) => list,
            Err(damage) => return self.lack_at_start(checkpoint, &[damage]),
        };
        let mut damaged = None;
        let mut is_closed = false;
        let mut ids = list.chunks.iter();
        let template = Arc::clone(&self.parts.template);
        let restored = template.restore(&mut std::iter::from_fn(|| {
            let (id, _) = ids.next()?;
            if self.breathe(Duration::ZERO).is_err() {
                is_closed = true;
                return None;
            }
            let VaultParts { vault, disk, .. } = &mut self.parts;
            vault.read(&mut **disk, *id).map_err(|damage| damaged = Some(damage)).ok()
        }));
        if is_closed {
            return Err(Closed);
        }
        if let Some(damage) = damaged {
            return self.lack_at_start(checkpoint, &[damage]);
        }
        let op = checkpoint.entry.op;
        let unusable = |error: String| StopReason::CheckpointUnusable { op: op.value(), error };
        let engine = match restored {
            Ok(engine) => engine,
            Err(error) => {
                self.parts.stop.stop(unusable(error.to_string()));
                return Err(Closed);
            }
        };
        let frozen = engine.freeze();
        if engine.applied() != op || frozen.digest() != checkpoint.digest {
            self.parts.stop.stop(unusable("its chunks hold another state than it says".to_owned()));
            return Err(Closed);
        }
        self.restored = (self.parts.voters == 1).then_some(frozen);
        let took = Clock.monotonic().since(begun);
        self.parts.counters.checkpoints_restored.add();
        self.parts.counters.checkpoint_restore.record(took);
        info!(%op, ?took, "restored the state of a checkpoint");
        self.parts.back.push(BackMessage::Installed { checkpoint, engine });
        // All of it was read: what else an earlier process has left behind may go.
        self.reserve_at = Clock.monotonic();
        self.let_go()
    }

    /// Chunks of a checkpoint to begin from are not here, or damaged, and the state is not in memory either.
    fn lack_at_start(&mut self, checkpoint: Checkpoint, missing: &[ChunkDamage]) -> Result<(), Closed> {
        match missing.first() {
            Some(first) if self.parts.voters == 1 => {
                let (op, damage) = (checkpoint.entry.op.value(), first.to_string());
                self.parts.stop.stop(StopReason::CheckpointDamaged { op, damage });
                Err(Closed)
            }
            Some(_) | None => self.lack(checkpoint, missing),
        }
    }

    /// Chunks of a checkpoint are not here, or damaged: the peers are asked for them. Without any, they are written anew
    /// from memory, as soon as nothing else is being written.
    fn lack(&mut self, checkpoint: Checkpoint, missing: &[ChunkDamage]) -> Result<(), Closed> {
        let Some(root) = checkpoint.root.filter(|_| !missing.is_empty()) else { return Ok(()) };
        if self.parts.voters == 1 {
            self.mend_at = Some(Clock.monotonic());
            return Ok(());
        }
        self.report_missing(root, missing)
    }

    /// Writes what is damaged of the only replica's checkpoint anew: the state that it holds is still in memory, frozen.
    fn mend(&mut self) -> Result<(), Closed> {
        self.mend_at = None;
        let Some(root) = self.current.root else { return Ok(()) };
        let op = self.current.entry.op;
        let written = self.written.take_if(|written| written.frozen.op() == op).map(|written| written.frozen);
        let Some(mut frozen) = written.or_else(|| self.restored.take()).filter(|frozen| frozen.op() == op)
        else {
            // A newer one is all there, and takes its place as soon as the superblock names it.
            return Ok(());
        };
        let before = self.parts.vault.missing(&mut *self.parts.disk, root, usize::MAX).len();
        let outcome = self.write_chunks(&mut *frozen, None, self.parts.turn.progress());
        let (sizes, again) = match outcome {
            Ok((named, sizes)) => {
                assert!(named == root, "a state is written as the same chunks every time");
                self.parts.counters.chunks_repaired.add_many(before);
                info!(%op, chunks = before, "wrote damaged parts of the checkpoint anew, from memory");
                (sizes, None)
            }
            Err(Unwritten::Closed) => return Err(Closed),
            Err(Unwritten::Disk | Unwritten::Lacking | Unwritten::Never(_)) => {
                (BTreeMap::new(), Some(Clock.monotonic() + DISK_PAUSE))
            }
        };
        self.mend_at = again;
        self.written = Some(Written { frozen, sizes });
        Ok(())
    }

    // Fetching

    /// Says which chunks of a checkpoint are missing, or that all of them are durable.
    fn fetch(&mut self, checkpoint: Checkpoint) -> Result<(), Closed> {
        let Some(root) = checkpoint.root else { return Ok(()) };
        if checkpoint != self.current {
            self.target = Some(checkpoint);
        }
        let VaultParts { vault, disk, .. } = &mut self.parts;
        let missing = vault.missing(&mut **disk, root, MISSING_MAX);
        if !missing.is_empty() {
            return self.report_missing(root, &missing);
        }
        vault.finish(root);
        if self.carry_out().is_ok() && self.parts.vault.is_complete(root) {
            return self.report(VaultReport::Held { root });
        }
        self.fetch_again = Some((Clock.monotonic() + DISK_PAUSE, checkpoint));
        Ok(())
    }

    fn report_missing(&mut self, root: Checksum, missing: &[ChunkDamage]) -> Result<(), Closed> {
        let ids = missing.iter().map(|damage| damage.id).collect();
        let in_all = self.parts.vault.lacks(root);
        self.report(VaultReport::Missing { root, ids, in_all })
    }

    /// Keeps a chunk that a peer has sent.
    fn store(&mut self, root: Checksum, id: Checksum, bytes: &[u8]) -> Result<(), Closed> {
        self.parts.counters.chunks_fetched.add();
        if self.current.root == Some(root) {
            self.parts.counters.chunks_repaired.add();
        }
        let is_list = id == root;
        match ChunkList::decode(bytes) {
            Ok(list) if is_list => {
                // It was decoded from bytes that fit.
                let put = self.parts.vault.put_list(list);
                if let Err(error) = put {
                    error!(%error, "a checkpoint's list can't be kept");
                }
            }
            Ok(_) | Err(_) => self.parts.vault.put(id, bytes),
        }
        if !self.keep_in_step(bytes.len()) {
            // What was lost is found missing when the protocol looks again; a full disk is not asked all the time.
            self.rest(Clock.monotonic() + DISK_PAUSE)?;
        }
        self.report(VaultReport::Stored { root, id })
    }

    /// Reads a chunk for a peer or a backup.
    fn read(&mut self, reader: For, id: Checksum) -> Result<(), Closed> {
        let VaultParts { vault, disk, counters, .. } = &mut self.parts;
        let bytes = match vault.read(&mut **disk, id) {
            Ok(bytes) => {
                counters.chunks_served.add();
                self.read_pace.spend(bytes.len());
                Some(bytes)
            }
            Err(damage) => {
                self.note_damage(&[damage])?;
                None
            }
        };
        match reader {
            For::Peer(to) => self.report(VaultReport::Read { to, id, bytes }),
            For::Backup(answer) => {
                let now = Clock.monotonic();
                let carried = self.backups.iter_mut().filter(|(_, until)| now < *until);
                carried.for_each(|(_, until)| *until = now + self.parts.limits.backup_patience);
                // Whoever asked may have gone.
                drop(answer.send(bytes));
                Ok(())
            }
        }
    }

    // Scrubbing

    /// Reads a little of what is kept, and has mended what has rotted.
    fn scrub(&mut self) -> Result<(), Closed> {
        let VaultParts { vault, disk, counters, scrub, .. } = &mut self.parts;
        let scrubbed = vault.scrub(&mut **disk, scrub.bytes_per_second);
        counters.vault_bytes_scrubbed.add_many(usize::try_from(scrubbed.bytes).unwrap_or(usize::MAX));
        let read = counters.vault_scrub_bytes.value() + scrubbed.bytes;
        counters.vault_scrub_bytes.set(if scrubbed.round { 0 } else { read });
        // Where nothing is kept yet nothing has been read.
        counters.vault_scrub_rounds.add_many(usize::from(scrubbed.round && 0 < read));
        self.note_damage(&scrubbed.damage)
    }

    /// The own checkpoint is mended; of others a peer that wants them hears that they are not here.
    fn note_damage(&mut self, damage: &[ChunkDamage]) -> Result<(), Closed> {
        let Some(root) = self.current.root else { return Ok(()) };
        let VaultParts { vault, disk, counters, .. } = &mut self.parts;
        let list = match vault.list(&mut **disk, root) {
            Ok(list) => list,
            Err(damage) => return self.lack(self.current, &[damage]),
        };
        let is_own =
            |damage: &&ChunkDamage| damage.id == root || list.chunks.iter().any(|(id, _)| *id == damage.id);
        let own: Vec<ChunkDamage> = damage.iter().filter(is_own).copied().collect();
        for damage in &own {
            counters.chunks_damaged.add();
            warn!(%damage, "part of a checkpoint has rotted");
        }
        if own.is_empty() { Ok(()) } else { self.lack(self.current, &own) }
    }
}

/// When a state is to be written: after the replicas before this one, by the room that the log has left or by time,
/// whichever comes first.
fn turn_at(waiting: &Waiting, parts: &VaultParts) -> Instant {
    let rank = parts.turn.rank();
    // Half of the slack is left for the writing itself.
    let share = parts.ring.slack / 2 * u64::from(rank) / parts.voters as u64;
    let has_come = share <= parts.turn.progress().saturating_sub(waiting.end);
    let turn = if has_come { waiting.since } else { waiting.since + TURN_PAUSE * rank };
    turn.max(waiting.not_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_goes_on_refusing_is_told_of_once_a_minute_and_once_when_it_is_over() {
        let mut complaint = Complaint::default();
        assert!(!complaint.end(), "nothing was told");
        let (mut told, mut over) = (Vec::new(), Vec::new());
        for second in 0..200 {
            let now = Instant::ZERO + Duration::from_secs(second);
            // Every second at first; then it comes and goes; then it is over.
            if second < 90 || second % 10 < 5 && second < 150 {
                told.extend(complaint.rise(now).map(|before| (second, before)));
            } else if complaint.end() {
                over.push(second);
            }
        }
        assert_eq!(told, [(0, 0), (60, 59), (120, 44)]);
        assert_eq!(over, [95, 125]);
    }
}
