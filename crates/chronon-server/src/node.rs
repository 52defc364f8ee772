//! A node: a data directory and a machine, opened and started inside any program.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_kernel::{Contract, Engine, EngineOptions, Lineage, SinkName, SinkSpec, StateMachine};
use chronon_node::{Back, Front, Gate};
use chronon_sinks::{ConfigError, Executor, Executors, Secrets};
use chronon_storage::{
    DataDirectory, Disk, Expect, File, FormatError, Journal, OpenError, Operation, RealDisk, UnflushedDisk,
    Vault, VaultError,
};
use chronon_vsr::{
    BODY_SIZE_MAX, ClusterId, DiskId, Epoch, Member, Membership, Options, Prng, Recovered, Release,
    ReplicaId, Ring, Role, VsrState,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::admission::Admission;
use crate::apply::{BackMessage, BackThread};
use crate::attempts::{Attempts, FrozenSinks};
use crate::call::{Call, CallError, CallExecutor};
use crate::clock::{Clock, Clocks};
use crate::config::{DiskHook, DiskKind, ServerConfig};
use crate::counters::Counters;
use crate::front::{FrontHandle, FrontThread, Inlets, Joints};
use crate::mailbox::Mailbox;
use crate::peers::Peers;
use crate::reads::{Reader, Reads, Serves};
use crate::stop::{Stop, StopReason, guarded};
use crate::turn::Turn;
use crate::vault::{VaultHandle, VaultParts, VaultThread};
use crate::wal::{Scrubbing, WalThread};
use crate::{api, clients, sinks};

/// The release that new log entries are written for.
pub(crate) const RELEASE: Release = Release::new(1);

/// Reports of the WAL thread, and results of the Back thread, that wait for Front. Those threads wait when it is full.
const INLET_SIZE: usize = 4_096;

/// How long a shutdown waits for another primary, for the last answers and for the threads, each.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// What `init` draws for a cluster: every replica's data directory is made from the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// The cluster's identity.
    pub cluster: ClusterId,
    /// The first part of every effect's key.
    pub lineage: u128,
    /// Who takes part, each with its disk.
    pub membership: Membership,
    /// The sizes of the WAL.
    pub ring: Ring,
}

impl Founding {
    /// Draws a cluster of so many replicas, numbered from 0.
    pub fn draw(replicas: u8) -> io::Result<Founding> {
        let voters = (0..replicas)
            .map(|replica| Ok(Member { replica: ReplicaId::new(replica), disk: DiskId::new(random()?) }))
            .collect::<io::Result<Vec<Member>>>()?;
        Ok(Founding {
            cluster: ClusterId::new(random()?),
            lineage: random()?,
            membership: Membership { epoch: Epoch::new(0), voters, learners: Vec::new() },
            ring: Ring::DEFAULT,
        })
    }

    /// In this epoch, for a cluster that is restored from a backup: see [`RestoredState::epoch_above`](crate::RestoredState).
    pub fn in_epoch(self, epoch: Epoch) -> Founding {
        Founding { membership: Membership { epoch, ..self.membership }, ..self }
    }

    /// With a WAL for so many bytes of live log: at least 16 MiB, or it stays as it is.
    pub fn log_size(self, bytes: u64) -> Founding {
        let ring = Ring::new(bytes, BODY_SIZE_MAX as u32).unwrap_or(self.ring);
        Founding { ring, ..self }
    }
}

/// 128 bits that nobody can guess.
pub(crate) fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(u128::from_le_bytes(bytes))
}

/// A node that is not started yet: `Node::<Shop>::open("./data").sink("psp", spec).start().await?`.
pub struct Node<M> {
    path: PathBuf,
    config: ServerConfig,
    executors: Executors,
    sinks: Vec<(SinkName, SinkSpec)>,
    machine: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for Node<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory can't be used.
    #[error(transparent)]
    Data(#[from] OpenError),
    /// Somebody else listens there.
    #[error("the {port} port can't be opened: {address}: {source}")]
    Listen {
        /// `peer`, `client` or `http`.
        port: &'static str,
        /// Where.
        address: SocketAddr,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The configuration does not say where a replica is reached.
    #[error("the configuration has no address of replica {replica}; the cluster has the replicas {members}")]
    AddressMissing {
        /// Which.
        replica: ReplicaId,
        /// All of them.
        members: String,
    },
    /// A sink's configuration can't be carried out.
    #[error("sink {sink}: {error}")]
    Sink {
        /// The sink.
        sink: SinkName,
        /// Why.
        error: ConfigError,
    },
    /// The operating system gave no thread, or no random bits.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// It stopped while it started.
    #[error("the replica stopped while it started: {0}")]
    Stopped(StopReason),
}

impl<M: StateMachine> Node<M> {
    /// Makes the data directory of one replica of a cluster. The directory must be new or empty.
    pub fn format(
        path: impl AsRef<Path>,
        founding: &Founding,
        replica: ReplicaId,
    ) -> Result<(), FormatError> {
        format(path.as_ref(), founding, replica)
    }

    /// A node with this data directory, which [`Node::format`] (or `chronon init`) made.
    pub fn open(path: impl Into<PathBuf>) -> Node<M> {
        Node {
            path: path.into(),
            config: ServerConfig::default(),
            executors: Executors::built_in(Secrets::from_environment()),
            sinks: Vec::new(),
            machine: PhantomData,
        }
    }

    /// With this configuration.
    pub fn config(self, config: ServerConfig) -> Node<M> {
        Node { config, ..self }
    }

    /// With an executor of the program's own for sinks of this kind.
    pub fn executor(mut self, kind: impl Into<String>, executor: Arc<dyn Executor>) -> Node<M> {
        self.executors.register(kind, executor);
        self
    }

    /// With a sink that is made, once, if the cluster has none of that name. Later changes go through the log.
    pub fn sink(mut self, name: SinkName, spec: SinkSpec) -> Node<M> {
        self.sinks.push((name, spec));
        self
    }

    /// With a sink that is a function of this program: called for each attempt, under this contract.
    pub fn call<F, T>(self, name: SinkName, contract: Contract, function: F) -> Node<M>
    where
        F: Fn(Call<M::Effect>) -> T + Send + Sync + 'static,
        T: Future<Output = Result<M::Outcome, CallError>> + Send + 'static,
    {
        let kind = format!("call:{name}");
        let spec = SinkSpec::new(kind.clone(), "{}", contract);
        self.executor(kind, Arc::new(CallExecutor::<M, F>::new(function))).sink(name, spec)
    }

    /// Opens the data directory, listens, and takes part. A single replica serves soon after; others once they find
    /// their peers: see [`RunningNode::ready`].
    pub async fn start(self) -> Result<RunningNode<M>, StartError> {
        let Node { path, config, executors, sinks, machine: _ } = self;
        for (name, spec) in &sinks {
            let check = executors.of_kind(&spec.kind).and_then(|kind| kind.check_node(&spec.config));
            check.map_err(|error| StartError::Sink { sink: name.clone(), error })?;
        }
        let admission = Admission { edge: chronon_kernel::edge::<M>(), executors };
        let running = start(path, config, admission, chronon_kernel::engine::<M>, sinks).await?;
        Ok(RunningNode { running, machine: PhantomData })
    }
}

/// Makes a data directory.
fn format(path: &Path, founding: &Founding, replica: ReplicaId) -> Result<(), FormatError> {
    let Founding { cluster, lineage, membership, ring } = founding;
    let disk = membership.member(replica).map_or(DiskId::new(0), |member| member.disk);
    let identity = chronon_storage::Identity { cluster: *cluster, lineage: *lineage, replica, disk };
    let state = VsrState::format(membership.clone(), membership.root(*cluster, *lineage));
    let directory = DataDirectory::create(path)?;
    let mut disk = directory
        .disk()
        .map_err(|source| FormatError::Disk { doing: "open the files".to_owned(), source })?;
    chronon_storage::format(&mut disk, identity, state, *ring)
}

/// A node that takes part.
pub struct RunningNode<M> {
    running: Running,
    machine: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for RunningNode<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningNode").field("addresses", &self.running.addresses).finish_non_exhaustive()
    }
}

/// Where a running node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundAddresses {
    /// For other replicas.
    pub peer: SocketAddr,
    /// For clients of the binary protocol.
    pub client: SocketAddr,
    /// For the HTTP API.
    pub http: Option<SocketAddr>,
}

struct Running {
    stop: Stop,
    front: FrontHandle,
    addresses: BoundAddresses,
    cluster: ClusterId,
    /// Where the other replicas' clients connect.
    others: Vec<String>,
    ready: watch::Receiver<bool>,
    single: bool,
    threads: Vec<std::thread::JoinHandle<()>>,
    pool: Option<Runtime>,
}

impl<M: StateMachine> RunningNode<M> {
    /// Where it listens.
    pub fn addresses(&self) -> BoundAddresses {
        self.running.addresses
    }

    /// A client of the cluster that asks this replica first. Clones share its session.
    pub fn client(&self) -> TypedClient<M> {
        let own = self.running.addresses.client;
        // Listening everywhere is reached on loopback.
        let ip = match own.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let own = SocketAddr::new(ip, own.port()).to_string();
        let others = self.running.others.iter().cloned();
        let options =
            ClientOptions { cluster: Some(self.running.cluster.value()), ..ClientOptions::default() };
        let client = Client::new(std::iter::once(own).chain(others), options);
        TypedClient::new(client.expect("there is at least the replica's own address"))
    }

    /// Waits until the cluster has a primary and the sinks of the builder exist.
    pub async fn ready(&self) -> Result<(), StopReason> {
        let mut ready = self.running.ready.clone();
        tokio::select! {
            reason = self.running.stop.stopped() => Err(reason),
            _ = ready.wait_for(|ready| *ready) => Ok(()),
        }
    }

    /// Waits until it has stopped, and says why.
    pub async fn stopped(&self) -> StopReason {
        self.running.stop.stopped().await
    }

    /// This replica as it sees itself: JSON text, its part of `GET /v1/cluster`. None once it has stopped.
    pub async fn status(&self) -> Option<String> {
        self.running.front.report().await.map(|report| report.json)
    }

    /// Stops in good order: hands the primacy over, gives the last answers, closes the data directory.
    pub async fn shutdown(mut self) -> StopReason {
        self.running.drain().await;
        self.running.stop.stop(StopReason::Requested);
        let reason = self.running.stop.stopped().await;
        let threads = std::mem::take(&mut self.running.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic was reported as the reason already.
                drop(thread.join());
            }
        });
        if timeout(SHUTDOWN_PATIENCE, joined).await.is_err() {
            warn!("a thread did not end in time; the process must end to release the data directory");
        }
        reason
    }
}

impl Running {
    async fn drain(&self) {
        self.front.step_down().await;
        let drained = async {
            while let Some(report) = self.front.report().await {
                let leads = matches!(report.status.role, Role::Primary { .. }) && !self.single;
                if !leads && report.unanswered == 0 {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SHUTDOWN_PATIENCE, drained).await.is_err() {
            warn!("stopping with requests under way");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop(StopReason::Requested);
        if let Some(pool) = self.pool.take() {
            // Not waited for: this may run on a thread of another runtime.
            pool.shutdown_background();
        }
    }
}

type MakeEngine = fn(EngineOptions) -> Box<dyn Engine>;

async fn start(
    path: PathBuf,
    config: ServerConfig,
    admission: Admission,
    engine: MakeEngine,
    wanted_sinks: Vec<(SinkName, SinkSpec)>,
) -> Result<Running, StartError> {
    let began = Clock.monotonic();
    // Ports before data: a port in use must not cost an incarnation.
    let peer_listener = listen("peer", config.listen.peer)?;
    let client_listener = listen("client", config.listen.client)?;
    let http_listener = config.listen.http.map(|address| listen("http", address)).transpose()?;
    let local = |listener: &std::net::TcpListener| {
        listener
            .local_addr()
            .map_err(|source| StartError::System { doing: "ask for a port's address", source })
    };
    let addresses = BoundAddresses {
        peer: local(&peer_listener)?,
        client: local(&client_listener)?,
        http: http_listener.as_ref().map(local).transpose()?,
    };

    let (opening, data) = (config.clone(), path.clone());
    let opened = tokio::task::spawn_blocking(move || open(path, &opening)).await;
    let Opened { directory, disk, journal, recovered, vault_disk, vault } = opened
        .map_err(|panic| StartError::System { doing: "open the data", source: io::Error::other(panic) })??;
    let membership = recovered.state.membership.clone();
    let me = recovered.replica;
    let dialled = addresses_of_peers(&membership, me, &config)?;

    let doing = "start a thread";
    let pool = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("chronon-pool")
        .enable_all()
        .build()
        .map_err(|source| StartError::System { doing, source })?;
    let seed = random().map_err(|source| StartError::System { doing: "draw random bits", source })? as u64;
    let scrub = Scrubbing {
        bytes_per_second: config.limits.scrub_bytes_per_second,
        phase: Prng::new(seed).next_u64(),
    };
    let stop = Stop::new();
    let counters = Arc::new(Counters::default());
    let gate = Arc::new(Mutex::new(Gate::CLOSED));
    let wal_mailbox = Mailbox::new();
    let back_mailbox: Mailbox<BackMessage> = Mailbox::new();
    let (durable_sender, durable) = mpsc::channel(INLET_SIZE);
    let (to_front, from_back) = mpsc::channel(INLET_SIZE);
    let reads = Reads::default();
    let reader = {
        let (reads, to_front, counters) = (reads.clone(), to_front.clone(), Arc::clone(&counters));
        let before_query = config.before_query.clone();
        move |serves| Reader {
            reads: reads.clone(),
            serves,
            to_front: to_front.clone(),
            counters: Arc::clone(&counters),
            before_query: before_query.clone(),
        }
    };
    let vault_mailbox = Mailbox::new();
    let (vault_sender, from_vault) = mpsc::channel(INLET_SIZE);
    let turn = Arc::new(Turn::default());
    let (asks_sender, asks) = mpsc::channel(config.limits.http_queue_max);
    let (primary_sender, primary) = watch::channel(None);
    let front_handle = FrontHandle::new(asks_sender, primary);
    let mut threads = Vec::new();

    let wal = WalThread {
        disk,
        directory: Arc::clone(&directory),
        mailbox: wal_mailbox.clone(),
        to_front: durable_sender,
        counters: Arc::clone(&counters),
        scrub,
        stop: stop.clone(),
        journal,
    };
    let frozen = FrozenSinks::default();
    let attempts = Attempts {
        admission: admission.clone(),
        gate: Arc::clone(&gate),
        frozen: frozen.clone(),
        pool: pool.handle().clone(),
        permits: Arc::new(Semaphore::new(config.limits.attempts_max)),
        back: back_mailbox.clone(),
        counters: Arc::clone(&counters),
    };
    let options = EngineOptions {
        lineage: Lineage(recovered.lineage),
        limits: config.engine,
        mutations: config.mutations,
    };
    let vault_thread = VaultParts {
        vault,
        disk: vault_disk,
        directory,
        mailbox: vault_mailbox.clone(),
        to_front: vault_sender,
        back: back_mailbox.clone(),
        template: Arc::from(engine(options)),
        turn: Arc::clone(&turn),
        limits: config.limits.checkpoints,
        scrub,
        ring: wal.journal.ring(),
        voters: membership.voters.len(),
        checkpoint: recovered.state.checkpoint,
        counters: Arc::clone(&counters),
        stop: stop.clone(),
    };
    let clocks = Clocks { wall_hook: config.wall_clock.clone() };
    let back_thread = {
        let clocks = clocks.clone();
        let mailbox = back_mailbox.clone();
        let (vault, turn, counters) = (vault_mailbox.clone(), Arc::clone(&turn), Arc::clone(&counters));
        let reads = reads.clone();
        let replays_to = recovered.entries.iter().map(|found| found.header.op).max();
        let before_commit = match (&config.before_commit, config.disk) {
            (None, DiskKind::Unflushed) => {
                let order = data.join("stall-apply");
                let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || drop(stall(&order)));
                Some(hook)
            }
            (hook, DiskKind::Real | DiskKind::Unflushed) => hook.clone(),
        };
        let mutations = config.mutations;
        move || BackThread {
            back: Back::new(engine(options), seed, mutations),
            mailbox,
            to_front,
            start: Box::new(move |attempt| attempts.start(attempt)),
            frozen,
            reads,
            vault,
            turn,
            counters,
            clocks,
            began,
            replays_to,
            before_commit,
        }
    };
    let ring = wal.journal.ring();
    let cluster = recovered.cluster;
    let front_thread = FrontParts {
        options: Options { timing: config.timing, ring, release: RELEASE, seed, mutations: config.mutations },
        peers: (membership.voters.iter().map(|voter| voter.replica).collect(), dialled),
        recovered,
        config: config.clone(),
        admission: admission.clone(),
        joints: Joints {
            wal: wal_mailbox.clone(),
            back: back_mailbox.clone(),
            vault: vault_mailbox.clone(),
            turn,
            voters: membership.voters.iter().map(|voter| voter.replica).collect(),
            gate,
            primary: primary_sender,
            counters: Arc::clone(&counters),
            clocks: clocks.clone(),
            stop: stop.clone(),
        },
        inlets: Inlets { durable, back: from_back, vault: from_vault, asks },
        peer_listener,
        client_listener,
    };

    let spawn = |name: &'static str, body: Box<dyn FnOnce() + Send>| {
        let stop = stop.clone();
        std::thread::Builder::new()
            .name(format!("chronon-{name}"))
            .spawn(move || stop.guard(name, body))
            .map_err(|source| StartError::System { doing, source })
    };
    threads.push(spawn("wal", Box::new(move || wal.run()))?);
    threads.push(spawn("vault", Box::new(move || VaultThread::new(vault_thread).run()))?);
    threads.push(spawn("back", Box::new(move || back_thread().run()))?);
    for serves in [Serves::Looks].into_iter().chain((0..config.limits.readers.max(1)).map(|_| Serves::All)) {
        let reader = reader(serves);
        threads.push(spawn("reader", Box::new(move || reader.run()))?);
    }
    let vault_handle = VaultHandle::new(vault_mailbox.clone());
    let closing = (wal_mailbox, back_mailbox.clone(), vault_mailbox);
    let front_stop = stop.clone();
    threads.push(spawn(
        "front",
        Box::new(move || {
            front_stop.guard("front", || front_thread.run());
            // Whatever ended Front ends the others.
            front_stop.stop(StopReason::Requested);
            closing.0.close();
            closing.1.close();
            closing.2.close();
            reads.close();
        }),
    )?);

    let (ready_sender, ready) = watch::channel(false);
    let keeper = sinks::Keeper { front: front_handle.clone(), admission: admission.clone() };
    pool.spawn(async move {
        keeper.make(wanted_sinks).await;
        // Nobody may be waiting for it.
        let _ = ready_sender.send(true);
    });
    if let Some(listener) = http_listener {
        let listener = {
            let _in_pool = pool.enter();
            TcpListener::from_std(listener)
                .map_err(|source| StartError::System { doing: "register the http port", source })?
        };
        let handles = (front_handle.clone(), vault_handle);
        let api = api::Api::new((me, cluster), &config, handles, admission, Arc::clone(&counters));
        let stop = stop.clone();
        pool.spawn(async move {
            tokio::select! {
                () = api::serve(api, listener) => {}
                _ = stop.stopped() => {}
            }
        });
    }
    info!(replica = %me, cluster = %format_args!("{:032x}", cluster.value()), ?addresses, "started");
    Ok(Running {
        stop,
        front: front_handle,
        addresses,
        cluster,
        others: config
            .replicas
            .iter()
            .filter(|(replica, _)| **replica != me)
            .map(|(_, addresses)| addresses.client.clone())
            .collect(),
        ready,
        single: membership.voters.len() == 1,
        threads,
        pool: Some(pool),
    })
}

fn listen(port: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| StartError::Listen { port, address, source })
}

/// Where to dial each peer.
fn addresses_of_peers(
    membership: &Membership,
    me: ReplicaId,
    config: &ServerConfig,
) -> Result<BTreeMap<ReplicaId, String>, StartError> {
    let peer = |replica: ReplicaId| match config.replicas.get(&replica) {
        Some(addresses) => Ok((replica, addresses.peer.clone())),
        None => {
            let members: Vec<String> =
                membership.voters.iter().map(|voter| voter.replica.to_string()).collect();
            Err(StartError::AddressMissing { replica, members: members.join(", ") })
        }
    };
    membership.peers(me).map(peer).collect()
}

struct Opened {
    directory: Arc<DataDirectory>,
    disk: Box<dyn Disk + Send>,
    journal: Journal,
    recovered: Recovered,
    /// The same files for the vault thread, which uses others of them.
    vault_disk: Box<dyn Disk + Send>,
    vault: Vault,
}

fn open(path: PathBuf, config: &ServerConfig) -> Result<Opened, OpenError> {
    let directory = DataDirectory::open(path)?;
    let open_disk = || -> Result<Box<dyn Disk + Send>, OpenError> {
        let disk = directory
            .disk()
            .map_err(|source| OpenError::Disk { doing: "open the files".to_owned(), source })?;
        Ok(match config.disk {
            DiskKind::Real => Box::new(disk),
            DiskKind::Unflushed => Box::new(stallable(disk, directory.path(), config.before_disk.clone())),
        })
    };
    let (mut disk, mut vault_disk) = (open_disk()?, open_disk()?);
    let drawn = random()
        .map_err(|source| OpenError::Disk { doing: "draw a number for this start".to_owned(), source })?;
    let expect = Expect { cluster: config.cluster, replica: config.replica, drawn: drawn as u32 };
    let (journal, recovered) = chronon_storage::open(&mut *disk, expect, config.mutations)?;
    let vault = Vault::open(&mut *vault_disk, journal.identity()).map_err(|error| match error {
        VaultError::Disk { doing, source } => OpenError::Disk { doing, source },
        // A newer release of storage may tell more.
        other => {
            OpenError::Disk { doing: "open the checkpoints".to_owned(), source: io::Error::other(other) }
        }
    })?;
    if !directory.makes_holes() {
        let directory = directory.path().display();
        warn!(%directory, "this filesystem makes no holes in files: the disk needs room for three checkpoints and 64 MiB instead of two");
    }
    for (file, error) in vault.unreadable() {
        error!(%file, %error, "a file of checkpoints can't be opened; what it holds counts as missing");
    }
    Ok(Opened { directory: Arc::new(directory), disk, journal, recovered, vault_disk, vault })
}

/// A disk whose flushes of the log wait as long as the file `stall-disk` says, once; before that each operation asks the
/// hook.
fn stallable(disk: RealDisk, path: &Path, before: Option<DiskHook>) -> UnflushedDisk<RealDisk> {
    let order = path.join("stall-disk");
    UnflushedDisk::new(disk).with_hook(Box::new(move |operation| {
        before.as_ref().map_or(Ok(()), |before| before(operation))?;
        match operation {
            Operation::Flush { file: File::Superblock | File::Wal } => stall(&order),
            Operation::Flush { file: File::Pack(_) }
            | Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::Reserve { .. }
            | Operation::Truncate { .. }
            | Operation::Punch { .. }
            | Operation::Remove { .. } => Ok(()),
        }
    }))
}

/// Sleeps as many milliseconds as this file says, if there is one.
fn stall(order: &Path) -> io::Result<()> {
    let Ok(text) = std::fs::read_to_string(order) else { return Ok(()) };
    // Removed first: a test sees by that when the stall begins.
    std::fs::remove_file(order)?;
    let millis = text.trim().parse().map_err(io::Error::other)?;
    std::thread::sleep(Duration::from_millis(millis));
    Ok(())
}

/// What the Front thread is started with.
struct FrontParts {
    options: Options,
    recovered: Recovered,
    config: ServerConfig,
    peers: (Vec<ReplicaId>, BTreeMap<ReplicaId, String>),
    admission: Admission,
    joints: Joints,
    inlets: Inlets,
    peer_listener: std::net::TcpListener,
    client_listener: std::net::TcpListener,
}

impl FrontParts {
    /// The body of the Front thread.
    fn run(self) {
        let stop = self.joints.stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                return stop
                    .stop(StopReason::System { doing: "start the Front thread", error: error.to_string() });
            }
        };
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, self.serve());
    }

    async fn serve(self) {
        let FrontParts { options, recovered, config, peers, admission, joints, inlets, .. } = self;
        let stop = joints.stop.clone();
        let listeners =
            (TcpListener::from_std(self.peer_listener), TcpListener::from_std(self.client_listener));
        let (peer_listener, client_listener) = match listeners {
            (Ok(peer), Ok(client)) => (peer, client),
            (Err(error), _) | (_, Err(error)) => {
                return stop
                    .stop(StopReason::System { doing: "register the ports", error: error.to_string() });
            }
        };
        let (me, cluster) = (recovered.replica, recovered.cluster);
        let limits = config.limits;
        let (voters, dialled) = peers;
        let peers = Peers::new(
            me,
            cluster,
            voters,
            dialled.keys().copied(),
            (limits.peer_queue_messages_max, limits.peer_queue_bytes_max),
            Arc::clone(&joints.counters),
        );
        let mut prng = Prng::new(options.seed);
        let front = Front::open(options, limits.front, recovered, joints.clocks.now());
        let front = Rc::new(FrontThread::new(front, (me, cluster), peers, limits, admission, joints));
        let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
            tokio::task::spawn_local(guarded(stop.clone(), "front", task));
        };
        for (peer, address) in dialled {
            spawn(Box::pin(Peers::dial(Rc::clone(&front), peer, address, prng.next_u64())));
        }
        spawn(Box::pin(Peers::accept(Rc::clone(&front), peer_listener)));
        spawn(Box::pin(clients::accept(Rc::clone(&front), client_listener)));
        Rc::clone(&front).run(inlets).await;
        front.end();
    }
}
