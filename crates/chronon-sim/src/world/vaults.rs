//! How checkpoints are written, kept, fetched and restored: the work of a replica's third thread, done in virtual time
//! on the same disk as the journal's.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use chronon_kernel::{Frozen, Put};
use chronon_node::{FrontInput, Room, VaultReport, VaultTask};
use chronon_storage::{ChunkDamage, ChunkList, Found, Job, JobId, Scrubbed, Step, Vault, perform_step};
use chronon_vsr::{Checkpoint, Checksum, Digest, Duration, OpRef};

use crate::disk::SimDisk;
use crate::event::Event;
use crate::trace::Who;
use crate::{Checker, Violation, World};

/// The most missing chunks that are reported at a time.
const MISSING_MAX: usize = 64;

/// How long the store waits after a job that failed before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// About so many bytes are moved at a time to empty a pack.
const COMPACT_BYTES: usize = 64 * 1024;

/// The store of chunks of one process, and what it has to do.
pub(crate) struct Store {
    vault: Vault,
    tasks: VecDeque<Task>,
    /// The job under way, and its steps that are not done.
    job: Option<(JobId, VecDeque<Step>)>,
    writing: Option<Writing>,
    /// The last state of the present engine that was written to its end.
    before: Option<Written>,
    /// Chunks that were fetched and are not durable yet.
    storing: BTreeMap<Checksum, (Checksum, Vec<u8>)>,
    /// A fetched checkpoint of which everything has been put.
    finishing: Option<Checkpoint>,
    /// The checkpoint that is being fetched.
    fetching: Option<Checksum>,
    /// The superblock's checkpoint, and the one before it.
    current: Option<Checksum>,
    previous: Option<Checksum>,
    /// Whether room could be set aside when that was last tried.
    room: Room,
    /// A wake-up is in the heap.
    awake: bool,
    /// Small packs may be worth merging.
    compacts: bool,
}

/// What the store is asked to do.
pub(crate) enum Task {
    /// Write this state's chunks.
    Freeze(OpRef, Box<dyn Frozen>),
    /// Restore an engine.
    Install(Checkpoint),
    /// What Front wants.
    Front(VaultTask),
    /// The superblock names this checkpoint now.
    Keep(Checksum, Beside),
    /// Put again what failed to be written.
    PutAgain,
}

/// What else goes on in the store when the superblock names another checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing.
    Nothing,
    /// Chunks of a newer one are fetched.
    Transfer,
    /// The engine is replaced: what was written of the old one is of no use.
    Install,
}

/// A checkpoint on its way to the disk.
struct Writing {
    entry: OpRef,
    digest: Digest,
    frozen: Box<dyn Frozen>,
    /// What is still to be put. None: to be drawn up anew.
    pieces: Option<VecDeque<(Checksum, Piece)>>,
    list: ChunkList,
    root: Option<Checksum>,
}

/// A state that was written, and the sizes of its chunks.
struct Written {
    frozen: Box<dyn Frozen>,
    sizes: BTreeMap<Checksum, u32>,
}

enum Piece {
    New(Vec<u8>),
    Kept(u32),
}

impl Store {
    pub(crate) fn new(vault: Vault, current: Option<Checksum>) -> Store {
        Store {
            vault,
            tasks: VecDeque::new(),
            job: None,
            writing: None,
            before: None,
            storing: BTreeMap::new(),
            finishing: None,
            fetching: None,
            current,
            previous: None,
            room: Room::Enough,
            awake: false,
            compacts: false,
        }
    }

    /// The job under way, and how many of its steps are not done.
    pub(crate) fn job(&self) -> Option<(JobId, usize)> {
        self.job.as_ref().map(|(job, steps)| (*job, steps.len()))
    }

    /// Reads some of what is kept.
    pub(crate) fn scrub(&mut self, disk: &mut SimDisk, bytes_max: u64) -> Scrubbed {
        self.vault.scrub(disk, bytes_max)
    }

    /// Whether nothing is missing of what the superblock names.
    pub(crate) fn is_whole(&mut self, disk: &mut SimDisk) -> bool {
        self.current.is_none_or(|root| self.vault.missing(disk, root, 1).is_empty()) && self.vault.idle()
    }

    /// The step that a crash interrupts.
    pub(crate) fn step_under_way(&self) -> Option<&Step> {
        self.job.as_ref().and_then(|(_, steps)| steps.front())
    }

    /// Whether a superblock may name this checkpoint: it does so already, or everything of it is durable.
    pub(crate) fn may_be_named(&self, root: Checksum) -> bool {
        self.current == Some(root) || self.vault.is_complete(root)
    }

    /// Sets room aside for a checkpoint as large as the newest one.
    fn reserve(&mut self) {
        if let Some(root) = self.current {
            self.vault.reserve(self.vault.stored_size(root));
        }
    }

    fn has_work(&self) -> bool {
        !self.tasks.is_empty() || self.writing.as_ref().is_some_and(|writing| writing.root.is_none())
    }
}

impl Writing {
    /// The chunks of the state, those that the state before had by name alone.
    fn draw_up(&mut self, before: Option<&Written>) {
        let mut pieces = VecDeque::new();
        let sizes = before.map(|before| &before.sizes);
        let mut put = |put: Put<'_>| {
            pieces.push_back(match put {
                Put::New { id, bytes } => (id, Piece::New(bytes.to_vec())),
                Put::Kept(id) => {
                    let size = sizes.and_then(|sizes| sizes.get(&id)).copied();
                    (id, Piece::Kept(size.expect("a chunk that is kept was in the state before")))
                }
            });
            ControlFlow::Continue(())
        };
        let ended = self.frozen.write(before.map(|before| &*before.frozen), &mut put);
        assert_eq!(ended, ControlFlow::Continue(()));
        self.list = ChunkList::default();
        self.root = None;
        self.pieces = Some(pieces);
    }
}

impl World {
    pub(super) fn give_vault(&mut self, at: usize, task: Task) {
        if self.machines[at].process.is_some() {
            self.process(at).store.tasks.push_back(task);
            self.wake_vault(at, Duration::ZERO);
        }
    }

    /// The store does its next thing, after what it takes to read.
    fn wake_vault(&mut self, at: usize, after: Duration) {
        let late = self.late();
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        if !process.store.has_work() || std::mem::replace(&mut process.store.awake, true) {
            return;
        }
        let mut after = after + late + machine.disk.read_latency();
        after += match process.store.tasks.front() {
            Some(Task::Freeze(..)) => self.config.pace.checkpoint,
            Some(Task::Install(_)) => self.config.pace.restore,
            Some(Task::Front(_) | Task::Keep(..) | Task::PutAgain) | None => Duration::ZERO,
        };
        let life = machine.life;
        self.schedule(after, Event::Vault { at, life });
    }

    pub(super) fn run_vault(&mut self, at: usize) {
        let store = &mut self.process(at).store;
        store.awake = false;
        match store.tasks.pop_front() {
            Some(task) => self.do_task(at, task),
            None => self.put_some(at),
        }
        self.start_vault_job(at);
        self.wake_vault(at, Duration::ZERO);
    }

    fn do_task(&mut self, at: usize, task: Task) {
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let (store, disk) = (&mut process.store, &mut machine.disk);
        match task {
            Task::Freeze(entry, frozen) => {
                let digest = frozen.digest();
                let list = ChunkList::default();
                store.reserve();
                store.writing = Some(Writing { entry, digest, frozen, pieces: None, list, root: None });
            }
            Task::Install(checkpoint) => self.restore(at, checkpoint),
            Task::Front(VaultTask::Fetch(checkpoint)) => self.look_for_missing(at, checkpoint),
            Task::Front(VaultTask::Store { root, id, bytes }) => {
                let was_here = store.vault.holds(id);
                put(&mut store.vault, root, id, &bytes);
                store.vault.sync();
                if was_here {
                    // A state of its own had the same chunk, since it was asked for: nothing may be written.
                    self.report(at, VaultReport::Stored { root, id });
                } else {
                    store.storing.insert(id, (root, bytes));
                }
            }
            Task::Front(VaultTask::Read { to, id }) => {
                let read = store.vault.read(disk, id);
                let damaged = read.as_ref().is_err_and(|damage| damage.found != Found::Nothing);
                let report = VaultReport::Read { to, id, bytes: read.ok() };
                self.report(at, report);
                if damaged {
                    self.tell_damage(at);
                }
            }
            Task::Keep(root, beside) => {
                if store.current != Some(root) {
                    store.previous = store.current.replace(root);
                }
                if beside == Beside::Install {
                    store.writing = None;
                    store.before = None;
                }
                if beside != Beside::Transfer {
                    store.fetching = None;
                    store.vault.abandon();
                }
                let roots: Vec<Checksum> =
                    [store.current, store.previous, store.fetching].into_iter().flatten().collect();
                if store.vault.keep(disk, &roots).is_err() && store.vault.keep(disk, &[root]).is_err() {
                    return self.tell_damage(at);
                }
                store.compacts = true;
                self.tell_damage(at);
            }
            Task::PutAgain => {
                if store.room == Room::Short {
                    store.reserve();
                }
                let Store { vault, storing, writing, .. } = store;
                for (id, (root, bytes)) in storing {
                    put(vault, *root, *id, bytes);
                }
                vault.sync();
                if let Some(writing) = writing {
                    writing.pieces = None;
                    writing.root = None;
                }
                if let Some(checkpoint) = store.finishing.take() {
                    self.look_for_missing(at, checkpoint);
                }
            }
        }
    }

    /// Puts the next chunks of the checkpoint that is being written.
    fn put_some(&mut self, at: usize) {
        let (count, syncs) = (self.prng.between(1, 8), self.prng.chance(1, 3));
        let store = &mut self.process(at).store;
        let Store { vault, writing: Some(writing), before, .. } = store else { return };
        if writing.pieces.is_none() {
            writing.draw_up(before.as_ref());
        }
        let Some(pieces) = &mut writing.pieces else { return };
        for _ in 0..count {
            let Some((id, piece)) = pieces.pop_front() else { break };
            let size = match piece {
                Piece::New(bytes) => {
                    vault.put(id, &bytes);
                    bytes.len() as u32
                }
                Piece::Kept(size) if vault.retain(id) => size,
                Piece::Kept(_) => {
                    // It has rotted since: everything is put anew.
                    *before = None;
                    writing.pieces = None;
                    return;
                }
            };
            writing.list.chunks.push((id, size));
        }
        if pieces.is_empty() {
            let root = vault.put_list(writing.list.clone()).expect("the states of simulations are small");
            vault.finish(root);
            writing.root = Some(root);
        } else if syncs {
            vault.sync();
        }
        self.note_progress(at);
    }

    fn start_vault_job(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        let store = &mut process.store;
        if store.job.is_some() {
            return;
        }
        let mut job = store.vault.next_job();
        if job.is_none() && store.compacts && store.writing.is_none() && store.storing.is_empty() {
            store.compacts = store.vault.compact(&mut machine.disk, COMPACT_BYTES);
            job = store.vault.next_job();
        }
        let Some(Job { id, steps }) = job else { return };
        store.job = Some((id, steps.into()));
        self.schedule_vault_step(at, id);
    }

    fn schedule_vault_step(&mut self, at: usize, job: JobId) {
        let machine = &mut self.machines[at];
        let Some(process) = &machine.process else { return };
        let step = process.store.step_under_way().expect("a job has steps");
        let latency = machine.disk.latency(step);
        let (life, left) = (machine.life, process.store.job().map_or(0, |(_, left)| left));
        self.schedule(latency, Event::VaultStep { at, life, job, left });
    }

    pub(super) fn vault_step(&mut self, at: usize, job: JobId, left: usize) {
        let machine = &mut self.machines[at];
        let id = machine.id;
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let store = &mut process.store;
        let mut room = store.room;
        // A step that was waited for in a stall may be done already.
        let is_it =
            |(under_way, steps): &&mut (JobId, VecDeque<Step>)| *under_way == job && steps.len() == left;
        let Some((_, steps)) = store.job.as_mut().filter(is_it) else { return };
        let step = steps.pop_front().expect("a step was under way");
        let ended = steps.is_empty();
        machine.steps += 1;
        let done = perform_step(&mut machine.disk, &step);
        if let Step::Reserve { .. } = step {
            room = if done.is_ok() { Room::Enough } else { Room::Short };
        }
        if room != std::mem::replace(&mut store.room, room) {
            self.trace
                .note(self.now, Who::Replica(id), 0xfd, || format!("has {room:?} room for checkpoints"));
            self.give_front(at, FrontInput::Vault(VaultReport::Room(room)));
        }
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("it was there a moment ago");
        let store = &mut process.store;
        if let Err(error) = done {
            store.job = None;
            let lost = store.vault.failed(job);
            self.trace.note(self.now, Who::Replica(id), 0xfe, || {
                format!("can't keep {} chunks: {error}; tries again", lost.len())
            });
            self.process(at).store.tasks.push_back(Task::PutAgain);
            self.wake_vault(at, RETRY_AFTER);
            return;
        }
        if !ended {
            return self.schedule_vault_step(at, job);
        }
        store.job = None;
        let durable = store.vault.done(job);
        self.trace.note(self.now, Who::Replica(id), durable.len() as u64, || {
            format!("{} chunks are durable", durable.len())
        });
        for chunk in durable {
            if let Some((root, _)) = self.process(at).store.storing.remove(&chunk) {
                self.report(at, VaultReport::Stored { root, id: chunk });
            }
        }
        self.note_progress(at);
        self.start_vault_job(at);
        self.wake_vault(at, Duration::ZERO);
    }

    /// Looks whether what was to become durable is.
    fn note_progress(&mut self, at: usize) {
        let store = &mut self.process(at).store;
        if !store.vault.idle() {
            return;
        }
        if let Some(Writing { root: Some(root), entry, digest, .. }) = store.writing {
            if !store.vault.is_complete(root) {
                // A chunk that was there already turned out to be damaged.
                store.before = None;
                store.tasks.push_back(Task::PutAgain);
                return self.wake_vault(at, Duration::ZERO);
            }
            let writing = store.writing.take().expect("it was just looked at");
            let sizes = writing.list.chunks.into_iter().collect();
            store.before = Some(Written { frozen: writing.frozen, sizes });
            let verdict = self.judge_checkpoint(at, entry, digest, root);
            self.judge(verdict);
            self.report(at, VaultReport::Frozen { entry, digest, root });
        }
        let store = &mut self.process(at).store;
        if let Some(checkpoint) = store.finishing.take()
            && let Some(root) = checkpoint.root
        {
            if store.vault.is_complete(root) {
                self.report(at, VaultReport::Held { root });
            } else {
                self.look_for_missing(at, checkpoint);
            }
        }
    }

    fn look_for_missing(&mut self, at: usize, checkpoint: Checkpoint) {
        let Some(root) = checkpoint.root else { return };
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let store = &mut process.store;
        if store.current != Some(root) {
            store.fetching = Some(root);
        }
        let missing = store.vault.missing(&mut machine.disk, root, MISSING_MAX);
        if missing.is_empty() {
            store.vault.finish(root);
            store.finishing = Some(checkpoint);
            self.start_vault_job(at);
            return self.note_progress(at);
        }
        self.report_missing(at, root, &missing);
    }

    /// A chunk turned out to be damaged: what the superblock's checkpoint lacks is to be fetched.
    pub(super) fn tell_damage(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        let Some(root) = process.store.current else { return };
        let missing = process.store.vault.missing(&mut machine.disk, root, MISSING_MAX);
        if !missing.is_empty() {
            self.report_missing(at, root, &missing);
        }
    }

    fn report_missing(&mut self, at: usize, root: Checksum, missing: &[ChunkDamage]) {
        let ids = missing.iter().map(|damage| damage.id).collect();
        let process = self.machines[at].process.as_ref().expect("the caller saw that it is alive");
        let in_all = process.store.vault.lacks(root);
        self.report(at, VaultReport::Missing { root, ids, in_all });
    }

    /// Back waits for an engine.
    fn restore(&mut self, at: usize, checkpoint: Checkpoint) {
        let machine = &mut self.machines[at];
        let now = machine.clock.now(self.now);
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let root = checkpoint.root.expect("a checkpoint to go on from has chunks");
        let Some(chunks) = read_all(&mut process.store.vault, &mut machine.disk, root) else {
            let missing = process.store.vault.missing(&mut machine.disk, root, MISSING_MAX);
            if missing.is_empty() {
                // What could not be read a moment ago can be read now.
                process.store.tasks.push_back(Task::Install(checkpoint));
                return;
            }
            return self.report_missing(at, root, &missing);
        };
        match process.back.engine().restore(&mut chunks.into_iter()) {
            Ok(engine) => {
                process.store.before = None;
                let digest = engine.freeze().digest();
                process.back.install(now, &checkpoint, engine);
                self.note_restored(at, root);
                self.trace.note(self.now, Who::Replica(self.machines[at].id), digest.0, || {
                    format!("restores the state of op {}", checkpoint.entry.op)
                });
                if digest != checkpoint.digest {
                    let what = format!("R{at} restores another state at op {}", checkpoint.entry.op);
                    return self.object(Violation::new(Checker::Digest, what));
                }
                self.drain_back(at);
            }
            Err(error) => {
                let what = format!("R{at} can't restore op {}: {error}", checkpoint.entry.op);
                self.object(Violation::new(Checker::Open, what));
            }
        }
    }

    fn report(&mut self, at: usize, report: VaultReport) {
        self.give_front(at, FrontInput::Vault(report));
    }
}

fn put(vault: &mut Vault, root: Checksum, id: Checksum, bytes: &[u8]) {
    if id != root {
        return vault.put(id, bytes);
    }
    // Bytes of the right name that are no list were made by nobody.
    if let Ok(list) = ChunkList::decode(bytes) {
        let named = vault.put_list(list);
        assert_eq!(named, Ok(root));
    }
}

fn read_all(vault: &mut Vault, disk: &mut SimDisk, root: Checksum) -> Option<Vec<Vec<u8>>> {
    let list = vault.list(disk, root).ok()?;
    list.chunks.iter().map(|(id, _)| vault.read(disk, *id).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::index;
    use crate::{Cluster, R1};

    /// Seed 27: the transfer waited for ever. What is put a second time writes nothing, so nothing ever becomes durable.
    #[test]
    fn a_fetched_chunk_that_a_state_of_its_own_brought_meanwhile_is_told_as_stored() {
        let mut c = Cluster::new(3).seed(1).tiny_log(20);
        c.submit(60).settle();
        let root = c.world().machines[index(R1)].process.as_ref().and_then(|process| process.store.current);
        let root = root.expect("checkpoints were taken");
        let machine = &mut c.world().machines[index(R1)];
        let process = machine.process.as_mut().expect("it runs");
        let bytes = process.store.vault.read(&mut machine.disk, root).expect("it is whole");
        let id = root;
        c.world().do_task(index(R1), Task::Front(VaultTask::Store { root, id, bytes }));
        let process = c.world().machines[index(R1)].process.as_ref().expect("it runs");
        let is_told = |input: &FrontInput| matches!(input, FrontInput::Vault(VaultReport::Stored { id: stored, .. }) if *stored == id);
        assert!(process.front_inbox.iter().any(is_told));
        assert!(process.store.storing.is_empty(), "it waits for a write that nobody makes");
    }
}
