//! A small world for replicas: a network that delays, loses, repeats and reorders; disks that flush late and forget
//! in a crash what was not flushed; clocks that disagree. Everything is a function of the seed. It drives the real
//! replica through its public doors and checks, at every step, what must never be broken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use chronon_vsr::{
    Applied, Checkpoint, Checksum, ClusterId, Command, Digest, DiskId, Durable, Duration, Entry, Epoch,
    Event, Incarnation, Input, Instant, Member, Membership, Message, Mutations, Now, Op, OpRef, Options,
    Output, Payload, Prng, Purpose, Quorums, ReadNumber, Recipients, Recovered, RecoveredEntry, Release,
    Replica, ReplicaId, Ring, Role, Stamp, Status, Timestamp, Timing, Verdict, VsrState, Write,
};

pub(crate) const CLUSTER: ClusterId = ClusterId::new(0xC0FFEE);
const LINEAGE: u128 = 7;
const WALL_START: u64 = 1_700_000_000_000_000_000;

/// What goes wrong, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// Of 1000 messages, how many are lost; how many are repeated.
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    /// The longest that a message takes.
    pub(crate) delay: Duration,
    /// The longest that a flush takes.
    pub(crate) flush: Duration,
}

impl Faults {
    pub(crate) const NONE: Faults =
        Faults { lost: 0, repeated: 0, delay: Duration::from_micros(500), flush: Duration::from_millis(2) };
    pub(crate) const SOME: Faults =
        Faults { lost: 30, repeated: 30, delay: Duration::from_millis(15), flush: Duration::from_millis(12) };
}

enum Happening {
    Wake { replica: usize, life: u64 },
    Deliver { to: usize, bytes: Vec<u8> },
    Flushed { replica: usize, life: u64 },
    Executed { replica: usize, life: u64, applied: Applied },
    DiskHealth { replica: usize, life: u64 },
    Vault { replica: usize, life: u64, job: Job },
}

/// What the vault is asked to do; done when its time comes, unless the process ended.
enum Job {
    Freeze { entry: OpRef, digest: Digest, chunks: Vec<Vec<u8>> },
    Install(Checkpoint),
    Fetch(Checkpoint),
    Store { root: Checksum, id: Checksum, bytes: Vec<u8> },
    Read { to: ReplicaId, id: Checksum },
}

struct Scheduled {
    at: Instant,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A data directory: what is flushed, and what is on its way.
#[derive(Clone)]
pub(crate) struct Disk {
    id: DiskId,
    state: VsrState,
    wal: Vec<Entry>,
    damaged: BTreeSet<(Op, Checksum)>,
    incarnation: Incarnation,
    queue: VecDeque<(Instant, Write)>,
    /// Nothing is flushed before this.
    stalled_until: Instant,
    /// The tail of the WAL rotted so that a scan can't say what stood there, until a superblock has kept that.
    lost_from: Option<Op>,
    /// All that was ever flushed here, rotten or not.
    flushed: BTreeSet<Checksum>,
    vault: Vault,
}

/// Chunks by their names, two generations of checkpoints, and what was fetched for a third.
#[derive(Clone, Default)]
struct Vault {
    chunks: BTreeMap<Checksum, Vec<u8>>,
    generations: VecDeque<Checksum>,
    staged: BTreeSet<Checksum>,
    rotten: BTreeSet<Checksum>,
}

impl Vault {
    /// The ids of a checkpoint's chunks, its list first; only the list's while that is missing.
    fn ids(&self, root: Checksum) -> Vec<Checksum> {
        let list = self.chunks.get(&root).map_or(&[][..], Vec::as_slice);
        let (ids, _) = list.as_chunks::<16>();
        [root].into_iter().chain(ids.iter().map(|id| Checksum::from_bytes(*id))).collect()
    }

    fn missing(&self, root: Checksum) -> Vec<Checksum> {
        self.ids(root).into_iter().filter(|id| !self.chunks.contains_key(id)).collect()
    }

    /// How many chunks are missing in all; none while the list is.
    fn lacks(&self, root: Checksum) -> u32 {
        if self.chunks.contains_key(&root) { self.missing(root).len() as u32 } else { 0 }
    }

    /// The superblock names this checkpoint: what neither it nor the one before needs goes.
    fn keep(&mut self, root: Checksum) {
        if self.generations.back() == Some(&root) {
            return;
        }
        self.generations.push_back(root);
        if 2 < self.generations.len() {
            self.generations.pop_front();
        }
        if self.staged.contains(&root) {
            self.staged.clear();
        }
        let needed: BTreeSet<Checksum> =
            self.generations.iter().flat_map(|root| self.ids(*root)).chain(self.staged.clone()).collect();
        self.chunks.retain(|id, _| needed.contains(id));
    }
}

struct Host {
    replica: Option<Replica>,
    life: u64,
    disk: Disk,
    skew: i64,
    wake_at: Instant,
    deadline: Instant,
    /// The newest stamp that it asked to be written.
    decided: Stamp,
    /// The newest log_stamp that it asked to be written.
    adopted: Stamp,
    /// What it ever acked, and no later log excluded.
    acked: BTreeSet<OpRef>,
    /// Its executor does nothing before this.
    executes_from: Instant,
    frozen_until: Instant,
    /// Its vault does nothing before this.
    vault_from: Instant,
    executed: Applied,
    last_timestamp: Timestamp,
    /// A checkpoint op was executed: the next thing in the stream must be its Freeze.
    freeze_due: Option<OpRef>,
    reads: BTreeMap<ReadNumber, Op>,
    /// The one role output after another, to compare with what the replica says of itself.
    role: Option<Role>,
}

pub(crate) struct Cluster {
    pub(crate) seed: u64,
    pub(crate) n: usize,
    pub(crate) now: Instant,
    pub(crate) options: Options,
    pub(crate) faults: Faults,
    prng: Prng,
    hosts: Vec<Host>,
    cut: BTreeSet<(usize, usize)>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    /// I1: op → checksum is one function for all, for ever.
    committed: BTreeMap<Op, Checksum>,
    /// I11: the checkpoint of an op is one for all, for ever.
    checkpoints: BTreeMap<Op, Checkpoint>,
    /// The newest op that some primary committed: acknowledged.
    pub(crate) acknowledged: Op,
    pub(crate) events: Vec<(usize, Event)>,
    pub(crate) trace: Checksum,
    pub(crate) reads_answered: usize,
    /// How many writes were asked for.
    pub(crate) writes: usize,
    pub(crate) refusals_expected: bool,
    /// The next message of this kind is lost.
    pub(crate) lose_next: Option<Command>,
    /// The chain that the StartViews of each stamp showed, and the newest head.
    start_views: BTreeMap<Stamp, (BTreeMap<Op, Checksum>, u64)>,
    proposals: u64,
}

impl Cluster {
    pub(crate) fn new(n: usize, seed: u64) -> Cluster {
        Cluster::with_options(n, seed, Mutations::NONE, Faults::NONE)
    }

    pub(crate) fn with_options(n: usize, seed: u64, mutations: Mutations, faults: Faults) -> Cluster {
        Cluster::with_ring(n, seed, mutations, faults, Ring::DEFAULT)
    }

    /// A ring that a few dozen entries fill: its checkpoints are `ops` entries apart.
    pub(crate) fn tiny_ring(ops: u64) -> Ring {
        let charge = chronon_vsr::charge(208);
        Ring::new(charge * (chronon_vsr::PIPELINE_MAX + 2 * ops), 208).expect("it holds the pipeline")
    }

    pub(crate) fn with_ring(
        n: usize,
        seed: u64,
        mutations: Mutations,
        faults: Faults,
        ring: Ring,
    ) -> Cluster {
        let mut prng = Prng::new(seed);
        let voters = (0..n)
            .map(|i| Member { replica: ReplicaId::new(i as u8), disk: DiskId::new(1000 + i as u128) })
            .collect();
        let membership = Membership { epoch: Epoch::new(0), voters, learners: Vec::new() };
        let root = membership.root(CLUSTER, LINEAGE);
        let options = Options { timing: Timing::default(), ring, release: Release::new(1), seed, mutations };
        let hosts = (0..n)
            .map(|i| Host {
                replica: None,
                life: 0,
                disk: Disk {
                    id: DiskId::new(1000 + i as u128),
                    state: VsrState::format(membership.clone(), root),
                    wal: Vec::new(),
                    damaged: BTreeSet::new(),
                    incarnation: Incarnation::new(0),
                    queue: VecDeque::new(),
                    stalled_until: Instant::ZERO,
                    lost_from: None,
                    flushed: BTreeSet::new(),
                    vault: Vault::default(),
                },
                skew: prng.between(0, 200_000_000) as i64 - 100_000_000,
                wake_at: Instant::NEVER,
                deadline: Instant::NEVER,
                decided: Stamp::first(Epoch::new(0)),
                adopted: Stamp::first(Epoch::new(0)),
                acked: BTreeSet::new(),
                executes_from: Instant::ZERO,
                frozen_until: Instant::ZERO,
                vault_from: Instant::ZERO,
                executed: Applied { op: Op::ROOT, digest: Digest(0) },
                last_timestamp: Timestamp::ZERO,
                freeze_due: None,
                reads: BTreeMap::new(),
                role: None,
            })
            .collect();
        let mut cluster = Cluster {
            seed,
            n,
            now: Instant::from_nanos(1_000_000_000),
            options,
            faults,
            prng,
            hosts,
            cut: BTreeSet::new(),
            queue: BinaryHeap::new(),
            order: 0,
            committed: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            acknowledged: Op::ROOT,
            events: Vec::new(),
            trace: Checksum::of(&[]),
            reads_answered: 0,
            writes: 0,
            refusals_expected: false,
            lose_next: None,
            start_views: BTreeMap::new(),
            proposals: 0,
        };
        for i in 0..n {
            cluster.start(i);
        }
        cluster
    }

    // ---- faults ---------------------------------------------------------------------------------------------

    pub(crate) fn is_up(&self, i: usize) -> bool {
        self.hosts[i].replica.is_some()
    }

    pub(crate) fn start(&mut self, i: usize) {
        assert!(!self.is_up(i));
        let host = &mut self.hosts[i];
        host.life += 1;
        let drawn = u32::try_from(host.life).expect("few lives");
        host.disk.incarnation = host.disk.incarnation.next(drawn).expect("few starts");
        host.executed = Applied { op: Op::ROOT, digest: Digest(0) };
        host.last_timestamp = Timestamp::ZERO;
        host.freeze_due = None;
        host.reads.clear();
        host.role = None;
        // A decision that was not durable went with the process that made it.
        host.decided = host.disk.state.stamp;
        host.adopted = host.disk.state.log_stamp.stamp();
        host.wake_at = Instant::NEVER;
        let disk = &host.disk;
        let entries = disk
            .wal
            .iter()
            .map(|entry| RecoveredEntry {
                header: entry.header().clone(),
                verdict: if disk.damaged.contains(&(entry.op(), entry.checksum())) {
                    Verdict::Faulty
                } else {
                    Verdict::Intact(entry.clone())
                },
            })
            .collect();
        let recovered = Recovered {
            cluster: CLUSTER,
            lineage: LINEAGE,
            replica: ReplicaId::new(i as u8),
            disk: disk.id,
            incarnation: disk.incarnation,
            state: disk.state.clone(),
            entries,
            scan_complete: disk.lost_from.is_none(),
            uncertain_from: disk.lost_from,
        };
        let mut options = self.options;
        options.seed = self.seed * 31 + i as u64;
        let now = self.clocks(i);
        self.hosts[i].replica = Some(Replica::open(options, recovered, now));
        self.drain(i);
    }

    /// Power off: what was not flushed is gone, but for what the device had taken already and not reported.
    pub(crate) fn crash(&mut self, i: usize) {
        if self.prng.chance(1, 3) {
            self.write_group(i);
        }
        let notice = self.prng.chance(1, 2);
        self.stop(i, notice);
    }

    /// Ends a process; its peers see their connections go, or don't.
    pub(crate) fn stop(&mut self, i: usize, notice: bool) {
        let host = &mut self.hosts[i];
        host.replica = None;
        host.life += 1;
        host.disk.queue.clear();
        host.disk.stalled_until = Instant::ZERO;
        host.frozen_until = Instant::ZERO;
        if notice {
            let gone = ReplicaId::new(i as u8);
            for peer in 0..self.n {
                if self.is_up(peer) && peer != i {
                    self.input(peer, Input::PeerUnreachable(gone));
                }
            }
        }
    }

    /// What is on the device now.
    pub(crate) fn image(&self, i: usize) -> Disk {
        Disk { queue: VecDeque::new(), ..self.hosts[i].disk.clone() }
    }

    /// Puts an older image back, as a backup tool would.
    pub(crate) fn restore(&mut self, i: usize, image: Disk) {
        assert!(!self.is_up(i));
        self.hosts[i].disk = image;
    }

    /// An empty disk under the same number.
    pub(crate) fn replace_disk(&mut self, i: usize) {
        assert!(!self.is_up(i));
        self.hosts[i].acked.clear();
        let disk = &mut self.hosts[i].disk;
        let membership = disk.state.membership.clone();
        let root = membership.root(CLUSTER, LINEAGE);
        disk.id = DiskId::new(2000 + i as u128);
        disk.state = VsrState::format(membership, root);
        disk.wal.clear();
        disk.vault = Vault::default();
        disk.incarnation = Incarnation::new(0);
    }

    /// The body of one flushed entry rots; seen at the next start.
    pub(crate) fn rot(&mut self, i: usize) {
        let count = self.hosts[i].disk.wal.len() as u64;
        if 0 < count {
            let at = self.prng.below(count) as usize;
            let disk = &mut self.hosts[i].disk;
            let (op, checksum) = (disk.wal[at].op(), disk.wal[at].checksum());
            disk.damaged.insert((op, checksum));
        }
    }

    /// A chunk of the vault rots; seen when it is read.
    pub(crate) fn rot_chunk(&mut self, i: usize) {
        let vault = &mut self.hosts[i].disk.vault;
        let count = vault.chunks.len() as u64;
        if 0 < count {
            let at = self.prng.below(count) as usize;
            let id = *vault.chunks.keys().nth(at).expect("counted");
            vault.chunks.remove(&id);
            vault.rotten.insert(id);
        }
    }

    /// A scrub of the current checkpoint, which reports what it finds damaged.
    pub(crate) fn scrub(&mut self, i: usize) {
        let disk = &self.hosts[i].disk;
        let Some(root) = disk.state.checkpoint.root else { return };
        let ids = disk.vault.missing(root);
        if !ids.is_empty() {
            let in_all = disk.vault.lacks(root);
            self.input(i, Input::ChunksMissing { root, ids, in_all });
        }
    }

    /// How many chunks of the checkpoint in its superblock are damaged.
    pub(crate) fn chunks_missing(&self, i: usize) -> usize {
        let disk = &self.hosts[i].disk;
        disk.state.checkpoint.root.map_or(0, |root| disk.vault.missing(root).len())
    }

    /// The durable checkpoint in a replica's superblock.
    pub(crate) fn checkpoint(&self, i: usize) -> Checkpoint {
        self.hosts[i].disk.state.checkpoint
    }

    /// The lowest op in a replica's WAL.
    pub(crate) fn wal_start(&self, i: usize) -> Op {
        self.hosts[i].disk.wal.iter().map(Entry::op).min().unwrap_or(Op::ROOT)
    }

    /// The body of a certain op rots.
    pub(crate) fn rot_at(&mut self, i: usize, op: Op) {
        let disk = &mut self.hosts[i].disk;
        let rotten = disk.wal.iter().filter(|entry| entry.op() == op);
        disk.damaged.extend(rotten.map(|entry| (entry.op(), entry.checksum())));
    }

    /// What had rotted in its WAL reads well again, at the next start.
    pub(crate) fn forget_rot(&mut self, i: usize) {
        self.hosts[i].disk.damaged.clear();
    }

    /// The last entries of the WAL rot, headers and all; seen at the next start.
    pub(crate) fn rot_tail(&mut self, i: usize) {
        let disk = &mut self.hosts[i].disk;
        let keep = disk.wal.len().saturating_sub(1 + self.prng.below(3) as usize);
        disk.wal.truncate(keep);
        disk.lost_from = Some(disk.wal.last().map_or(Op::ROOT, Entry::op).next());
    }

    pub(crate) fn stall_disk(&mut self, i: usize, duration: Duration) {
        self.hosts[i].disk.stalled_until = self.now + duration;
        let life = self.hosts[i].life;
        self.schedule(Duration::from_millis(100), Happening::DiskHealth { replica: i, life });
    }

    pub(crate) fn freeze(&mut self, i: usize, duration: Duration) {
        self.hosts[i].frozen_until = self.now + duration;
    }

    pub(crate) fn cut_link(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn cut_off(&mut self, i: usize) {
        for peer in (0..self.n).filter(|peer| *peer != i) {
            self.cut.insert((i, peer));
            self.cut.insert((peer, i));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.faults = Faults::NONE;
        for i in 0..self.n {
            self.hosts[i].disk.stalled_until = Instant::ZERO;
            self.hosts[i].frozen_until = Instant::ZERO;
            self.hosts[i].vault_from = Instant::ZERO;
            if !self.is_up(i) {
                self.start(i);
            }
        }
    }

    /// The executor takes a long time over whatever it gets next.
    pub(crate) fn stall_execution(&mut self, i: usize, duration: Duration) {
        self.hosts[i].executes_from = self.now + duration;
    }

    /// The vault does nothing for so long: full, or slow.
    pub(crate) fn stall_vault(&mut self, i: usize, duration: Duration) {
        self.hosts[i].vault_from = self.now + duration;
    }

    /// Links between two sides are cut, both ways.
    pub(crate) fn part(&mut self, side: &[usize]) {
        for a in 0..self.n {
            for b in 0..self.n {
                if side.contains(&a) != side.contains(&b) {
                    self.cut.insert((a, b));
                }
            }
        }
    }

    pub(crate) fn mend(&mut self) {
        self.cut.clear();
    }

    /// A random mishap.
    pub(crate) fn mishap(&mut self) {
        let i = self.prng.below(self.n as u64) as usize;
        let other = self.prng.below(self.n as u64) as usize;
        let span = Duration::from_millis(self.prng.between(50, 2500));
        match self.prng.below(19) {
            0..=3 if self.is_up(i) => self.crash(i),
            0..=5 if !self.is_up(i) => self.start(i),
            4 => self.cut_off(i),
            5 if i != other => self.cut_link(i, other),
            6..=9 => self.cut.clear(),
            10 => self.stall_disk(i, span),
            11 => self.freeze(i, span),
            12 if self.prng.chance(1, 4) => {
                for i in 0..self.n {
                    if self.is_up(i) {
                        self.crash(i);
                    }
                }
            }
            13 => {
                for i in 0..self.n {
                    if !self.is_up(i) {
                        self.start(i);
                    }
                }
            }
            14 if self.is_up(i) => self.input(i, Input::StepDown),
            // Always the same disk: two rotten copies of one entry are beyond what three replicas bear.
            15 if 3 <= self.n => self.rot(0),
            16 if 3 <= self.n && self.is_up(0) => {
                self.crash(0);
                self.rot_tail(0);
            }
            17 if 3 <= self.n => self.rot_chunk(0),
            18 if self.is_up(0) => self.scrub(0),
            _ => {}
        }
    }

    // ---- clients --------------------------------------------------------------------------------------------

    pub(crate) fn primary(&self) -> Option<usize> {
        (0..self.n)
            .filter(|i| self.is_up(*i))
            .filter_map(|i| match self.replica(i).role() {
                Role::Primary { stamp, .. } => Some((stamp, i)),
                Role::Backup { .. } | Role::Changing { .. } => None,
            })
            .max()
            .map(|(_, i)| i)
    }

    /// Proposes a body at one replica. Says whether it was taken on.
    pub(crate) fn propose(&mut self, i: usize) -> bool {
        if !self.is_up(i) || self.now < self.hosts[i].frozen_until {
            return false;
        }
        self.proposals += 1;
        let mut body = self.proposals.to_le_bytes().to_vec();
        body.resize(8 + self.prng.below(200) as usize, 0xAB);
        let now = self.clocks(i);
        let replica = self.hosts[i].replica.as_mut().expect("is up");
        let is_taken = replica.propose(now, Arc::from(body), Purpose::Service).is_ok();
        self.drain(i);
        is_taken
    }

    /// Proposes a body wherever somebody takes himself for the primary. Says how many took one on.
    pub(crate) fn propose_anywhere(&mut self) -> usize {
        (0..self.n).filter(|i| self.propose(*i)).count()
    }

    /// A message as this replica would send it now.
    pub(crate) fn message_of(&self, i: usize, payload: Payload) -> Message {
        Message {
            from: ReplicaId::new(i as u8),
            incarnation: self.hosts[i].disk.incarnation,
            stamp: self.replica(i).stamp(),
            payload,
        }
    }

    /// Starts a read; its index must cover everything that was acknowledged before.
    pub(crate) fn read(&mut self, i: usize) {
        if !self.is_up(i) || self.now < self.hosts[i].frozen_until {
            return;
        }
        let now = self.clocks(i);
        let acknowledged = self.acknowledged;
        let replica = self.hosts[i].replica.as_mut().expect("is up");
        if let Ok(read) = replica.read_index(now) {
            self.hosts[i].reads.insert(read, acknowledged);
        }
        self.drain(i);
    }

    pub(crate) fn read_anywhere(&mut self) {
        let i = self.prng.below(self.n as u64) as usize;
        self.read(i);
    }

    // ---- running --------------------------------------------------------------------------------------------

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(Reverse(next)) = self.queue.peek()
            && next.at <= end
        {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = self.now.max(next.at);
            self.happen(next.what);
        }
        self.now = end;
    }

    /// Runs until a condition holds, at most so long. Says whether it came to hold.
    pub(crate) fn run_until(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Cluster) -> bool,
    ) -> bool {
        let end = self.now + patience;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run(Duration::from_millis(5));
        }
        done(self)
    }

    /// Heals everything and demands that the cluster works again: everybody up, one new op committed everywhere.
    pub(crate) fn settle(&mut self) {
        self.heal();
        let healed = self.now;
        let is_alive = self.run_until(Duration::from_secs(40), |cluster| cluster.propose_anywhere() == 1);
        assert!(
            is_alive,
            "seed {}: n = {}: no primary after the heal\n{}",
            self.seed,
            self.n,
            self.describe()
        );
        let target = self.acknowledged.next();
        let agrees = self.run_until(Duration::from_secs(40), |cluster| {
            if cluster.primary().is_none_or(|primary| cluster.replica(primary).head() < target) {
                cluster.propose_anywhere();
            }
            let acknowledged = cluster.acknowledged;
            target <= acknowledged && (0..cluster.n).all(|i| cluster.hosts[i].executed.op == acknowledged)
        });
        assert!(
            agrees,
            "seed {}: n = {}: stuck {:?} after the heal, wants {target:?}\n{}",
            self.seed,
            self.n,
            self.now.since(healed),
            self.describe()
        );
    }

    pub(crate) fn replica(&self, i: usize) -> &Replica {
        self.hosts[i].replica.as_ref().expect("is up")
    }

    pub(crate) fn status(&self, i: usize) -> Status {
        self.replica(i).status()
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = format!("acknowledged {:?} at {:?}\n", self.acknowledged, self.now);
        for i in 0..self.n {
            match &self.hosts[i].replica {
                Some(replica) => {
                    text += &format!(
                        "{i}: {:?} {:?} head {:?} commit {:?} out {:?} executed {:?} start {:?} checkpoint {:?} fetching {}\n",
                        replica.status(),
                        replica.role(),
                        replica.head(),
                        replica.commit_max().op,
                        replica.committed_out(),
                        self.hosts[i].executed.op,
                        replica.log_start(),
                        replica.checkpoint().entry.op,
                        replica.is_fetching_state(),
                    )
                }
                None => text += &format!("{i}: down\n"),
            }
            if std::env::var_os("CLUSTER_DEBUG").is_some() {
                text += &format!("{:#?}\n", self.hosts[i].replica);
            }
        }
        for (i, event) in self.events.iter().rev().take(25).rev() {
            text += &format!("  {i}: {event:?}\n");
        }
        text
    }

    pub(crate) fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, event)| matches(event)).count()
    }

    fn clocks(&self, i: usize) -> Now {
        let wall = (WALL_START + self.now.nanos()).saturating_add_signed(self.hosts[i].skew);
        Now { monotonic: self.now, wall: Timestamp::from_nanos(wall) }
    }

    fn schedule(&mut self, after: Duration, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, order: self.order, what }));
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Wake { replica, life } => {
                if self.hosts[replica].life == life && self.hosts[replica].wake_at <= self.now {
                    if self.postpone(replica, Happening::Wake { replica, life }) {
                        return;
                    }
                    self.hosts[replica].wake_at = Instant::NEVER;
                    self.input(replica, Input::Tick);
                }
            }
            Happening::Deliver { to, bytes } => {
                if self.is_up(to) {
                    if self.hosts[to].frozen_until <= self.now {
                        let message =
                            Message::decode(&bytes, CLUSTER).expect("the network keeps bytes whole");
                        self.input(to, Input::Message(message));
                    } else {
                        self.postpone(to, Happening::Deliver { to, bytes });
                    }
                }
            }
            Happening::Flushed { replica, life } => {
                if self.hosts[replica].life == life {
                    self.flush(replica);
                }
            }
            Happening::Executed { replica, life, applied } => {
                if self.hosts[replica].life == life {
                    if self.hosts[replica].frozen_until <= self.now {
                        self.input(replica, Input::Applied(applied));
                    } else {
                        self.postpone(replica, Happening::Executed { replica, life, applied });
                    }
                }
            }
            Happening::DiskHealth { replica, life } => {
                if self.hosts[replica].life == life && self.is_up(replica) {
                    let oldest = self.hosts[replica].disk.queue.front().map(|(asked, _)| *asked);
                    let age = oldest.map_or(Duration::ZERO, |asked| self.now.since(asked));
                    self.input(replica, Input::DiskAge(age));
                    if self.now < self.hosts[replica].disk.stalled_until || !age.is_zero() {
                        self.schedule(Duration::from_millis(100), Happening::DiskHealth { replica, life });
                    }
                }
            }
            Happening::Vault { replica, life, job } => {
                let host = &self.hosts[replica];
                if host.life == life {
                    // What was begun before a stall stands still with the rest.
                    let stalls = host.frozen_until.max(host.vault_from).since(self.now);
                    if stalls.is_zero() {
                        self.do_job(replica, job);
                    } else {
                        self.schedule(stalls, Happening::Vault { replica, life, job });
                    }
                }
            }
        }
    }

    fn postpone(&mut self, i: usize, what: Happening) -> bool {
        let until = self.hosts[i].frozen_until;
        if self.now < until {
            self.schedule(until.since(self.now) + Duration::from_nanos(1), what);
            true
        } else {
            false
        }
    }

    pub(crate) fn input(&mut self, i: usize, input: Input) {
        let now = self.clocks(i);
        if let Some(replica) = &mut self.hosts[i].replica {
            replica.handle(now, input);
            self.drain(i);
            let is_quiet = self.now < self.hosts[i].deadline;
            assert!(is_quiet, "seed {}: something is due and was not done: it would spin", self.seed);
        }
    }

    /// The oldest write on its way becomes durable.
    fn flush(&mut self, i: usize) {
        let life = self.hosts[i].life;
        let stalled = self.hosts[i].disk.stalled_until;
        let frozen = self.hosts[i].frozen_until;
        let later = stalled.max(frozen);
        if self.now < later {
            return self.schedule(
                later.since(self.now) + Duration::from_nanos(1),
                Happening::Flushed { replica: i, life },
            );
        }
        let reports = self.write_group(i);
        if !self.hosts[i].disk.queue.is_empty() {
            self.schedule_flush(i);
        }
        for durable in reports {
            self.input(i, Input::Durable(durable));
        }
    }

    /// Puts a group of the oldest waiting writes on the device: everything queued so far, perhaps.
    fn write_group(&mut self, i: usize) -> Vec<Durable> {
        let length = self.hosts[i].disk.queue.len();
        let size = 1 + self.prng.below(length.max(1) as u64) as usize;
        let mut reports = Vec::new();
        for _ in 0..size.min(length) {
            match self.hosts[i].disk.queue.pop_front().expect("counted").1 {
                Write::Append { number, entry, keep_from } => {
                    self.reuse_ring(i, keep_from);
                    let disk = &mut self.hosts[i].disk;
                    disk.damaged.remove(&(entry.op(), entry.checksum()));
                    disk.flushed.insert(entry.checksum());
                    disk.wal.push(entry);
                    reports.push(Durable::Appended(number));
                }
                Write::Superblock { number, state } => {
                    let seed = self.seed;
                    let disk = &mut self.hosts[i].disk;
                    assert!(disk.state.checkpoint.entry.op <= state.checkpoint.entry.op, "I2: checkpoint");
                    if disk.state.checkpoint != state.checkpoint
                        && let Some(root) = state.checkpoint.root
                    {
                        let mut missing = disk.vault.missing(root);
                        missing.retain(|id| !disk.vault.rotten.contains(id));
                        assert!(
                            missing.is_empty(),
                            "seed {seed}: a superblock without its chunks: {missing:?}"
                        );
                        disk.vault.keep(root);
                    }
                    assert!(disk.state.stamp <= state.stamp, "I2: stamp");
                    assert!(disk.state.log_stamp <= state.log_stamp, "I2: log_stamp");
                    assert!(disk.state.commit_max.op <= state.commit_max.op, "I2: commit_max");
                    assert!(state.log_stamp.stamp() <= state.stamp, "I3");
                    disk.state = state;
                    disk.lost_from = None;
                    reports.push(Durable::Superblock(number));
                }
            }
        }
        reports
    }

    /// Entries below an op may be written over, and are: I8.
    fn reuse_ring(&mut self, i: usize, keep_from: Op) {
        let (gone, kept): (Vec<Entry>, Vec<Entry>) =
            self.hosts[i].disk.wal.drain(..).partition(|entry| entry.op() < keep_from);
        for entry in &gone {
            if self.committed.get(&entry.op()) != Some(&entry.checksum()) {
                continue;
            }
            let covers = |host: &Host| entry.op() <= host.disk.state.checkpoint.entry.op;
            let covering = self.hosts.iter().filter(|host| covers(host)).count();
            assert!(
                covers(&self.hosts[i]) && Quorums::of(self.n).replication <= covering,
                "seed {}: I8: {i} reuses the space of {:?}, which {covering} checkpoints cover\n{}",
                self.seed,
                entry.op(),
                self.describe()
            );
        }
        let unique: BTreeSet<Checksum> = kept.iter().map(Entry::checksum).collect();
        let live: u64 = kept
            .iter()
            .filter(|entry| self.committed.get(&entry.op()) == Some(&entry.checksum()))
            .map(|entry| (entry.checksum(), chronon_vsr::charge(entry.header().body_size)))
            .collect::<BTreeMap<_, _>>()
            .values()
            .sum();
        assert!(live <= self.options.ring.log, "seed {}: the ring overflows: {}", self.seed, unique.len());
        self.hosts[i].disk.wal = kept;
    }

    fn vault_job(&mut self, i: usize, slowness: u64, job: Job) {
        let life = self.hosts[i].life;
        let longest = self.faults.flush.as_micros() as u64 * slowness;
        let after = Duration::from_micros(self.prng.between(longest / 8, longest));
        self.schedule(after, Happening::Vault { replica: i, life, job });
    }

    fn do_job(&mut self, i: usize, job: Job) {
        let vault = &mut self.hosts[i].disk.vault;
        let input = match job {
            Job::Freeze { entry, digest, chunks } => {
                let mut list = Vec::new();
                for chunk in chunks {
                    let id = Checksum::of_chunk(&chunk);
                    list.extend_from_slice(&id.to_bytes());
                    vault.chunks.insert(id, chunk);
                }
                let root = Checksum::of_chunk(&list);
                vault.chunks.insert(root, list);
                Input::Frozen { entry, digest, root }
            }
            Job::Fetch(checkpoint) => {
                let root = checkpoint.root.expect("genesis is not fetched");
                let ids = vault.missing(root);
                let in_all = vault.lacks(root);
                if ids.is_empty() {
                    Input::ChunksHeld { root }
                } else {
                    Input::ChunksMissing { root, ids, in_all }
                }
            }
            Job::Store { root, id, bytes } => {
                vault.chunks.insert(id, bytes);
                vault.staged.insert(id);
                Input::ChunkStored { root, id }
            }
            Job::Read { to, id } => Input::ChunkRead { to, id, bytes: vault.chunks.get(&id).cloned() },
            Job::Install(checkpoint) => {
                let root = checkpoint.root.expect("genesis is not installed");
                let ids = vault.missing(root);
                if ids.is_empty() {
                    let first = vault.ids(root)[1];
                    let state = &vault.chunks[&first];
                    let number =
                        |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().expect("eight bytes"));
                    let applied = Applied { op: Op::new(number(0)), digest: Digest(number(8)) };
                    assert!(applied.op == checkpoint.entry.op && applied.digest == checkpoint.digest);
                    let timestamp = Timestamp::from_nanos(number(16));
                    self.hosts[i].executed = applied;
                    self.hosts[i].last_timestamp = timestamp;
                    Input::Applied(applied)
                } else {
                    Input::ChunksMissing { root, ids, in_all: vault.lacks(root) }
                }
            }
        };
        self.input(i, input);
    }

    fn schedule_flush(&mut self, i: usize) {
        let life = self.hosts[i].life;
        let longest = self.faults.flush.as_micros() as u64;
        let after = Duration::from_micros(self.prng.between(longest / 4, longest));
        self.schedule(after, Happening::Flushed { replica: i, life });
    }

    fn drain(&mut self, i: usize) {
        loop {
            let Some(replica) = &mut self.hosts[i].replica else { return };
            match replica.poll_output() {
                Output::Wait(deadline) => {
                    let host = &mut self.hosts[i];
                    host.deadline = deadline;
                    if deadline < host.wake_at {
                        host.wake_at = deadline;
                        let life = host.life;
                        let after = deadline.since(self.now).max(Duration::from_nanos(1));
                        self.schedule(after, Happening::Wake { replica: i, life });
                    }
                    return;
                }
                Output::Send(to, message) => self.send(i, to, &message),
                Output::Persist(write) => {
                    self.writes += 1;
                    if let Write::Superblock { state, .. } = &write {
                        let checkpoint = state.checkpoint;
                        let known = *self.checkpoints.entry(checkpoint.entry.op).or_insert(checkpoint);
                        assert!(known == checkpoint, "seed {}: I11: {known:?}, {checkpoint:?}", self.seed);
                        let host = &mut self.hosts[i];
                        host.decided = state.stamp;
                        if host.adopted < state.log_stamp.stamp() {
                            host.adopted = state.log_stamp.stamp();
                            let stands =
                                |entry: &OpRef| state.suffix.iter().any(|header| header.op_ref() == *entry);
                            host.acked.retain(|entry| entry.op <= state.commit_max.op || stands(entry));
                        }
                    }
                    let disk = &mut self.hosts[i].disk;
                    disk.queue.push_back((self.now, write));
                    if disk.queue.len() == 1 {
                        self.schedule_flush(i);
                    }
                }
                Output::Commit(entry) => self.commit(i, &entry),
                Output::Freeze(entry) => {
                    let host = &mut self.hosts[i];
                    assert!(host.freeze_due.take() == Some(entry), "Freeze follows its Commit");
                    let digest = host.executed.digest;
                    let chunks = chunks_of(host.executed, host.last_timestamp);
                    self.vault_job(i, 6, Job::Freeze { entry, digest, chunks });
                }
                Output::Install(checkpoint) => {
                    self.hosts[i].freeze_due = None;
                    self.vault_job(i, 2, Job::Install(checkpoint));
                }
                Output::Fetch(checkpoint) => self.vault_job(i, 1, Job::Fetch(checkpoint)),
                Output::StoreChunk { root, id, bytes } => {
                    assert!(Checksum::of_chunk(&bytes) == id);
                    self.vault_job(i, 1, Job::Store { root, id, bytes });
                }
                Output::ReadChunk { to, id } => self.vault_job(i, 1, Job::Read { to, id }),
                Output::Role(role) => {
                    assert!(self.hosts[i].role != Some(role), "a role is told when it changes");
                    self.hosts[i].role = Some(role);
                }
                Output::ReadIndex { read, index } => {
                    let acknowledged = self.hosts[i].reads.remove(&read).expect("each read is answered once");
                    assert!(
                        acknowledged <= index,
                        "seed {}: I15: a read at {index:?} misses {acknowledged:?}",
                        self.seed
                    );
                    self.reads_answered += 1;
                }
                Output::ReadLost { read } => {
                    self.hosts[i].reads.remove(&read).expect("each read is answered once");
                }
                Output::RoundConfirmed(round) => assert!(round.sent <= self.now),
                Output::Forwarded(_) => {}
                Output::Event(event) => self.on_event(i, event),
            }
        }
    }

    fn on_event(&mut self, i: usize, event: Event) {
        if std::env::var_os("CLUSTER_TRACE").is_some() {
            println!("{:>12} {i}: {event:?}", self.now.nanos() / 1000);
        }
        match &event {
            Event::ForkDetected { op } => panic!("seed {}: fork at {op:?}\n{}", self.seed, self.describe()),
            Event::DigestMismatch { .. } => panic!("seed {}: {event:?}", self.seed),
            Event::PeerRefused { .. } if !self.refusals_expected => {
                panic!("seed {}: {event:?}\n{}", self.seed, self.describe())
            }
            _ => {}
        }
        self.events.push((i, event));
    }

    fn send(&mut self, from: usize, to: Recipients, message: &Message) {
        let speaks_for_its_stamp = matches!(
            message.payload,
            Payload::Prepare { .. }
                | Payload::PrepareOk { .. }
                | Payload::Commit { .. }
                | Payload::CommitOk { .. }
                | Payload::StartViewChange { .. }
                | Payload::DoViewChange { .. }
                | Payload::StartView { .. }
                | Payload::ReadIndexOk { .. }
        );
        self.check_promises(from, message);
        if self.lose_next == Some(message.payload.command()) {
            self.lose_next = None;
            return;
        }
        if speaks_for_its_stamp {
            let decided = self.hosts[from].decided;
            assert!(decided <= message.stamp, "seed {}: I17: {message:?} after {decided:?}", self.seed);
            let durable = self.hosts[from].disk.state.stamp;
            assert!(message.stamp <= durable, "seed {}: {message:?} before its stamp is durable", self.seed);
        }
        let bytes = message.encode(CLUSTER);
        self.trace = Checksum::of_pieces(&[&self.trace.to_bytes(), &self.now.nanos().to_le_bytes(), &bytes]);
        let recipients: Vec<usize> = match to {
            Recipients::One(replica) => vec![usize::from(replica.value())],
            Recipients::Voters | Recipients::All => (0..self.n).filter(|peer| *peer != from).collect(),
        };
        for to in recipients {
            if self.cut.contains(&(from, to)) || self.prng.chance(self.faults.lost, 1000) {
                continue;
            }
            let copies = if self.prng.chance(self.faults.repeated, 1000) { 2 } else { 1 };
            for copy in 0..copies {
                let longest = self.faults.delay.as_micros() as u64;
                let mut after = self.prng.between(longest / 10, longest);
                if copy == 1 {
                    after += self.prng.below(3_000_000); // Repeated from any earlier time.
                }
                self.schedule(Duration::from_micros(after), Happening::Deliver { to, bytes: bytes.clone() });
            }
        }
    }

    /// I5: who acked an entry never says that it did not, until a StartView of a later stamp excludes it.
    /// I6: all StartViews of one stamp lie on one chain, and their heads never fall.
    fn check_promises(&mut self, from: usize, message: &Message) {
        let seed = self.seed;
        match &message.payload {
            Payload::PrepareOk { entry, .. } => {
                let syncs = self.replica(from).is_fetching_state();
                assert!(!syncs, "seed {seed}: I12: {from} acks {entry:?} while it fetches a state");
                self.hosts[from].acked.insert(*entry);
            }
            Payload::DoViewChange { commit_max, uncertain_from, suffix, bits, .. } => {
                let above = OpRef { op: commit_max.op.next(), checksum: Checksum::from_bytes([0; 16]) };
                for acked in self.hosts[from].acked.range(above..) {
                    if uncertain_from.is_some_and(|uncertain| uncertain <= acked.op) {
                        continue;
                    }
                    let at = suffix.iter().position(|header| header.op_ref() == *acked);
                    let is_honest = at.is_some_and(|at| bits.nack & (1 << at) == 0);
                    assert!(is_honest, "seed {seed}: I5: {from} acked {acked:?} and nacks it: {message:?}");
                }
            }
            Payload::StartView { suffix, .. } => {
                let (chain, head) = self.start_views.entry(message.stamp).or_default();
                for header in suffix {
                    let stands = *chain.entry(header.op).or_insert(header.checksum());
                    assert!(stands == header.checksum(), "seed {seed}: I6: two chains in {message:?}");
                }
                let now = suffix.last().map_or(0, |header| header.op.value());
                assert!(*head <= now, "seed {seed}: I6: the head fell: {message:?}");
                *head = now;
            }
            _ => {}
        }
    }

    /// A replica calls an entry committed.
    fn commit(&mut self, i: usize, entry: &Entry) {
        let (op, checksum) = (entry.op(), entry.checksum());
        let known = *self.committed.entry(op).or_insert(checksum);
        assert!(
            known == checksum,
            "seed {}: I1: two entries committed at {op:?}\n{}",
            self.seed,
            self.describe()
        );
        let quorum = Quorums::of(self.n).replication;
        if self.acknowledged < op {
            let holders = self.hosts.iter().filter(|host| host.disk.flushed.contains(&checksum)).count();
            assert!(
                quorum <= holders,
                "seed {}: {op:?} was committed with {holders} flushed copies\n{}",
                self.seed,
                self.describe()
            );
            self.acknowledged = op;
        }
        let host = &mut self.hosts[i];
        assert!(host.executed.op.next() == op, "each op once, in order");
        assert!(host.freeze_due.is_none(), "seed {}: a due checkpoint was skipped", self.seed);
        if self.options.ring.is_checkpoint(entry.header().offset, entry.header().end()) {
            host.freeze_due = Some(entry.op_ref());
        }
        assert!(host.last_timestamp < entry.header().timestamp, "I10");
        host.last_timestamp = entry.header().timestamp;
        let mut digest = [0; 8];
        digest.copy_from_slice(
            &Checksum::of_pieces(&[&host.executed.digest.0.to_le_bytes(), entry.body()]).to_bytes()[..8],
        );
        let applied = Applied { op, digest: Digest(u64::from_le_bytes(digest)) };
        host.executed = applied;
        let life = host.life;
        let after = host.executes_from.since(self.now) + Duration::from_micros(self.prng.below(300));
        // The executor answers in order.
        self.schedule(after, Happening::Executed { replica: i, life, applied });
    }
}

/// The whole state, as chunks: one that changes with every op, and others that checkpoints share for a while.
fn chunks_of(executed: Applied, timestamp: Timestamp) -> Vec<Vec<u8>> {
    let mut state = Vec::new();
    for number in [executed.op.value(), executed.digest.0, timestamp.nanos()] {
        state.extend_from_slice(&number.to_le_bytes());
    }
    let old = |age: u64| vec![age as u8; 1 + (executed.op.value() >> age) as usize % 1000];
    [state].into_iter().chain([3, 5, 7, 9].map(old)).collect()
}
