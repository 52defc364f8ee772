//! Real nodes in this process over disks, links and a sink that the test controls.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::brake::Brake;
use crate::common::{PATIENCE, eventually, request, within};
use crate::links::Links;
use crate::machine::{Books, Ledger, SINK};
use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_kernel::{Consistency, Contract, SinkName};
use chronon_server::{
    Addresses, Call, CallError, CheckpointLimits, DiskKind, Founding, Limits, Listen, Node, RunningNode,
    ServerConfig, StartError, StopReason,
};
use chronon_storage::{File, OpenError};
use chronon_vsr::{ClusterId, Mutations, Op, ReplicaId};

/// What answers a call of the sink, made by the replica with this number.
pub(crate) type Serve = Arc<
    dyn Fn(u8, Call<u64>) -> Pin<Box<dyn Future<Output = Result<String, CallError>> + Send>> + Send + Sync,
>;

/// What a cluster is made of.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) replicas: u8,
    pub(crate) mutations: Mutations,
    pub(crate) attempts_max: usize,
    /// The log of each replica.
    pub(crate) log_bytes: u64,
    /// How much of it, and of checkpoints, is read back a second.
    pub(crate) scrub_bytes_per_second: u64,
    /// How long a backup is kept that nobody carries away.
    pub(crate) backup_patience: Duration,
    pub(crate) serve: Serve,
}

impl Setup {
    /// So many replicas, and a sink that does what it is asked.
    pub(crate) fn new(replicas: u8) -> Setup {
        let serve: Serve = Arc::new(|_, call| Box::pin(async move { Ok(format!("did {}", call.effect)) }));
        let Limits { scrub_bytes_per_second, checkpoints, .. } = Limits::default();
        Setup {
            replicas,
            mutations: Mutations::NONE,
            attempts_max: 1_024,
            log_bytes: 48 << 20,
            scrub_bytes_per_second,
            backup_patience: checkpoints.backup_patience,
            serve,
        }
    }
}

/// A cluster.
pub(crate) struct Cluster {
    setup: Setup,
    founding: Founding,
    directory: tempfile::TempDir,
    ports: Vec<[SocketAddr; 3]>,
    pub(crate) links: Links,
    nodes: Vec<Option<Running>>,
    /// Of disks that have an end, what there is for chunks of checkpoints.
    rooms: BTreeMap<u8, u64>,
    /// By how many seconds each replica's wall clock is fast.
    fast: Vec<Arc<AtomicU64>>,
}

/// One life of a node, with what can hold it.
struct Running {
    node: RunningNode<Ledger>,
    disk: Arc<Brake>,
    apply: Arc<Brake>,
    query: Arc<Brake>,
}

/// How a replica sees itself.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Status {
    pub(crate) role: String,
    pub(crate) serving: bool,
    pub(crate) view: u64,
    pub(crate) op: u64,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) checkpoint: u64,
    pub(crate) log_start: u64,
}

impl Cluster {
    /// Formats the replicas and starts them.
    pub(crate) async fn start(setup: Setup) -> Cluster {
        let founding = Founding::draw(setup.replicas).unwrap().log_size(setup.log_bytes);
        let directory = tempfile::tempdir().unwrap();
        // All at once, with those of the links, so that no port is given out twice.
        let held: Vec<TcpListener> =
            (0..3 * setup.replicas).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<SocketAddr> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let ports: Vec<[SocketAddr; 3]> =
            ports.chunks_exact(3).map(|chunk| chunk.try_into().unwrap()).collect();
        let peer_ports: Vec<SocketAddr> = ports.iter().map(|[peer, _, _]| *peer).collect();
        let links = Links::new(founding.cluster, &peer_ports).await;
        drop(held);
        let nodes = (0..setup.replicas).map(|_| None).collect();
        let rooms = BTreeMap::new();
        let fast = (0..setup.replicas).map(|_| Arc::default()).collect();
        let mut cluster = Cluster { setup, founding, directory, ports, links, nodes, rooms, fast };
        for replica in cluster.replicas() {
            let path = cluster.path(replica);
            Node::<Ledger>::format(path, &cluster.founding, ReplicaId::new(replica)).unwrap();
            cluster.start_one(replica).await;
        }
        for running in cluster.nodes.iter().flatten() {
            within("ready", running.node.ready()).await.unwrap();
        }
        cluster
    }

    pub(crate) fn replicas(&self) -> std::ops::Range<u8> {
        0..self.setup.replicas
    }

    pub(crate) fn path(&self, replica: u8) -> PathBuf {
        self.directory.path().join(replica.to_string())
    }

    fn config(&self, replica: u8, [disk, apply, query]: &[Arc<Brake>; 3]) -> ServerConfig {
        let addresses = |other: u8| {
            let [own_peer, client, _] = self.ports[usize::from(other)];
            let peer = if other == replica { own_peer } else { self.links.address(replica, other) };
            (ReplicaId::new(other), Addresses { peer: peer.to_string(), client: client.to_string() })
        };
        let [peer, client, http] = self.ports[usize::from(replica)];
        let (disk, apply, query) = (Arc::clone(disk), Arc::clone(apply), Arc::clone(query));
        let fast = Arc::clone(&self.fast[usize::from(replica)]);
        ServerConfig {
            cluster: Some(self.founding.cluster),
            replica: Some(ReplicaId::new(replica)),
            listen: Listen { peer, client, http: Some(http) },
            replicas: self.replicas().map(addresses).collect::<BTreeMap<_, _>>(),
            limits: Limits {
                attempts_max: self.setup.attempts_max,
                scrub_bytes_per_second: self.setup.scrub_bytes_per_second,
                checkpoints: CheckpointLimits {
                    backup_patience: self.setup.backup_patience,
                    ..CheckpointLimits::default()
                },
                ..Limits::default()
            },
            mutations: self.setup.mutations,
            disk: DiskKind::Unflushed,
            before_disk: Some(Arc::new(move |operation| disk.before_disk(operation))),
            before_commit: Some(Arc::new(move || apply.pass())),
            before_query: Some(Arc::new(move || query.pass())),
            wall_clock: Some(Arc::new(move |wall| wall + Duration::from_secs(fast.load(Ordering::Relaxed)))),
            ..ServerConfig::default()
        }
    }

    /// How a replica of another cluster is told that it is this one.
    pub(crate) fn config_of_stranger(&self, replica: u8, other: ClusterId) -> ServerConfig {
        let addresses = |other: u8| {
            let [peer, client, _] = self.ports[usize::from(other)].map(|port| port.to_string());
            (ReplicaId::new(other), Addresses { peer, client })
        };
        let [peer, client, http] = self.ports[usize::from(replica)];
        ServerConfig {
            cluster: Some(other),
            replica: Some(ReplicaId::new(replica)),
            listen: Listen { peer, client, http: Some(http) },
            replicas: self.replicas().map(addresses).collect(),
            ..ServerConfig::default()
        }
    }

    /// Starts a replica, once the threads of its last life have let go of its directory.
    pub(crate) async fn start_one(&mut self, replica: u8) {
        if let Err(error) = self.try_to_start(replica).await {
            panic!("replica {replica}: {error}");
        }
    }

    /// The same, for a replica that may refuse.
    pub(crate) async fn try_to_start(&mut self, replica: u8) -> Result<(), StartError> {
        let deadline = Instant::now() + PATIENCE;
        let brakes = [(); 3].map(|()| Arc::new(Brake::default()));
        let window = Duration::from_secs(3_600);
        let contract = Contract::Idempotent { window, replays_errors: false };
        brakes[0].bound(self.rooms.get(&replica).copied(), self.packs(replica));
        let node = loop {
            let serve = Arc::clone(&self.setup.serve);
            let started = Node::<Ledger>::open(self.path(replica))
                .config(self.config(replica, &brakes))
                .call(SinkName::new(SINK).unwrap(), contract, move |call| serve(replica, call))
                .start()
                .await;
            match started {
                Ok(node) => break node,
                Err(StartError::Data(OpenError::Locked { .. }) | StartError::Listen { .. })
                    if Instant::now() < deadline =>
                {
                    // sleeps: between two tries.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        };
        let [disk, apply, query] = brakes;
        self.nodes[usize::from(replica)] = Some(Running { node, disk, apply, query });
        Ok(())
    }

    /// From now on the chunks of this replica's checkpoints find so much room, whatever they take already.
    pub(crate) fn bound(&mut self, replica: u8, room: u64) {
        self.rooms.insert(replica, room);
        self.disk(replica).bound(Some(room), BTreeMap::new());
    }

    /// From now on a replica's wall clock is fast by so many seconds.
    pub(crate) fn set_clock(&self, replica: u8, fast: u64) {
        self.fast[usize::from(replica)].store(fast, Ordering::Relaxed);
    }

    /// At its next start a replica finds no room for chunks of checkpoints.
    pub(crate) fn full_from_the_start(&mut self, replica: u8) {
        self.rooms.insert(replica, 0);
    }

    /// What each file of checkpoints takes.
    pub(crate) fn packs(&self, replica: u8) -> BTreeMap<File, u64> {
        let found = std::fs::read_dir(self.path(replica)).unwrap().map(|found| found.unwrap());
        let size = |found: std::fs::DirEntry| {
            let file = File::of_name(found.file_name().to_str()?)?;
            matches!(file, File::Pack(_)).then(|| (file, found.metadata().unwrap().len()))
        };
        found.filter_map(size).collect()
    }

    /// Flips a bit of each of these bytes in a replica's file, under the replica if it runs.
    pub(crate) fn flip(&self, replica: u8, file: File, positions: impl IntoIterator<Item = u64>) {
        let path = self.path(replica).join(file.name());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        for position in positions {
            let mut byte = [0];
            file.read_exact_at(&mut byte, position).unwrap();
            file.write_all_at(&[byte[0] ^ 0x20], position).unwrap();
        }
        file.sync_all().unwrap();
    }

    /// The power of these replicas goes, at once: what they did not flush is gone, and nobody says goodbye.
    pub(crate) fn cut_power(&mut self, replicas: &[u8]) {
        for replica in replicas {
            self.running(*replica).disk.cut_power();
            self.running(*replica).apply.release();
            self.running(*replica).query.release();
        }
        for replica in replicas {
            self.nodes[usize::from(*replica)] = None;
        }
    }

    /// Makes the directory of a replica that is down anew, from the same founding, and keeps the old one beside it.
    pub(crate) fn make_anew(&self, replica: u8) -> PathBuf {
        let kept = self.path(replica).with_extension("kept");
        std::fs::rename(self.path(replica), &kept).unwrap();
        Node::<Ledger>::format(self.path(replica), &self.founding, ReplicaId::new(replica)).unwrap();
        kept
    }

    fn running(&self, replica: u8) -> &Running {
        self.nodes[usize::from(replica)].as_ref().unwrap()
    }

    /// What holds a replica's flushes.
    pub(crate) fn disk(&self, replica: u8) -> Arc<Brake> {
        Arc::clone(&self.running(replica).disk)
    }

    /// What holds a replica's execution.
    pub(crate) fn apply(&self, replica: u8) -> &Brake {
        &self.running(replica).apply
    }

    /// What holds a replica's queries.
    pub(crate) fn query(&self, replica: u8) -> &Brake {
        &self.running(replica).query
    }

    /// A client of its own that asks this replica first.
    pub(crate) fn client(&self, first: u8) -> TypedClient<Ledger> {
        let ports = self.ports.iter().map(|[_, client, _]| client.to_string());
        let mut addresses: Vec<String> = ports.collect();
        addresses.rotate_left(usize::from(first));
        let options = ClientOptions { cluster: Some(self.founding.cluster.value()), ..Default::default() };
        TypedClient::new(Client::new(addresses, options).unwrap())
    }

    pub(crate) async fn status(&self, replica: u8) -> Status {
        serde_json::from_str(&self.running(replica).node.status().await.unwrap()).unwrap()
    }

    fn alive(&self) -> impl Iterator<Item = u8> {
        self.replicas().filter(|replica| self.nodes[usize::from(*replica)].is_some())
    }

    /// The number of the replica that leads the newest view, once it serves.
    pub(crate) async fn primary(&self) -> u8 {
        self.primary_after(None).await.0
    }

    /// Who leads, and in which view, once that view is later than this one.
    pub(crate) async fn primary_after(&self, view: Option<u64>) -> (u8, u64) {
        let mut found = None;
        eventually("a primary", async || {
            found = None;
            let mut newest = 0;
            for replica in self.alive() {
                let status = self.status(replica).await;
                newest = newest.max(status.view);
                if status.role == "primary" && status.serving && view < Some(status.view) {
                    found = found.max(Some((status.view, replica)));
                }
            }
            found.is_some_and(|(view, _)| view == newest)
        })
        .await;
        let (view, replica) = found.unwrap();
        (replica, view)
    }

    /// A counter of a replica, by its name in `/metrics`.
    pub(crate) async fn counter(&self, replica: u8, name: &str) -> u64 {
        let port = self.ports[usize::from(replica)][2];
        let text = tokio::task::spawn_blocking(move || request(port, "GET", "/metrics", "", ""));
        let name = format!("chronon_{name}_total ");
        let text = text.await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    /// How something is, by its name in `/metrics`.
    pub(crate) async fn gauge(&self, replica: u8, name: &str) -> u64 {
        let port = self.ports[usize::from(replica)][2];
        let text = tokio::task::spawn_blocking(move || request(port, "GET", "/metrics", "", ""));
        let name = format!("chronon_{name} ");
        let text = text.await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    /// How often something was measured, by the name of its histogram in `/metrics`.
    pub(crate) async fn measured(&self, replica: u8, name: &str) -> u64 {
        let port = self.ports[usize::from(replica)][2];
        let text = tokio::task::spawn_blocking(move || request(port, "GET", "/metrics", "", ""));
        let name = format!("chronon_{name}_seconds_count ");
        let text = text.await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    /// Waits until a replica has stopped by itself, and says why.
    pub(crate) async fn stopped(&mut self, replica: u8) -> StopReason {
        let running = self.nodes[usize::from(replica)].take().unwrap();
        within("the replica stops", running.node.stopped()).await
    }

    /// A counter's sum over all replicas.
    pub(crate) async fn count(&self, name: &str) -> u64 {
        let mut sum = 0;
        for replica in self.alive() {
            sum += self.counter(replica, name).await;
        }
        sum
    }

    /// What a replica answers to whoever asks whether it is ready.
    pub(crate) async fn ready(&self, replica: u8) -> String {
        let port = self.ports[usize::from(replica)][2];
        tokio::task::spawn_blocking(move || request(port, "GET", "/readyz", "", "")).await.unwrap()
    }

    /// JSON that a replica answers to a GET.
    pub(crate) async fn get(&self, replica: u8, path: &str) -> serde_json::Value {
        let (port, path) = (self.ports[usize::from(replica)][2], path.to_owned());
        let text = tokio::task::spawn_blocking(move || request(port, "GET", &path, "", "")).await.unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What a replica answers to a query with these parameters.
    pub(crate) async fn ask(&self, replica: u8, parameters: &str) -> serde_json::Value {
        let (port, path) = (self.ports[usize::from(replica)][2], format!("/v1/queries?{parameters}"));
        let json = "content-type: application/json\r\n";
        let text = tokio::task::spawn_blocking(move || request(port, "POST", &path, json, "null")).await;
        let text = text.unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What a replica answers to a command under an idempotency key.
    pub(crate) async fn submit_under_key(&self, replica: u8, key: &str, command: &str) -> serde_json::Value {
        let port = self.ports[usize::from(replica)][2];
        let headers = format!("content-type: application/json\r\nidempotency-key: {key}\r\n");
        let command = command.to_owned();
        let text =
            tokio::task::spawn_blocking(move || request(port, "POST", "/v1/commands", &headers, &command));
        let text = text.await.unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Asks a replica for something with a POST that has no body, and asserts that it is done.
    pub(crate) async fn post(&self, replica: u8, path: &str) {
        let text = self.send(replica, path, "").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }

    /// Posts some JSON to a replica; everything that is answered.
    pub(crate) async fn send(&self, replica: u8, path: &str, body: &str) -> String {
        let port = self.ports[usize::from(replica)][2];
        let (path, body) = (path.to_owned(), body.to_owned());
        let json = "content-type: application/json\r\n";
        tokio::task::spawn_blocking(move || request(port, "POST", &path, json, &body)).await.unwrap()
    }

    /// What the machine knows, on every replica alike.
    pub(crate) async fn books(&self) -> Books {
        let newest = within("query", self.client(0).query(&())).await.unwrap();
        newest.answer.assert_sound();
        for replica in self.alive() {
            let at_least = Consistency::AtLeast(newest.op.value());
            let caught_up = async || Op::new(self.status(replica).await.applied) >= newest.op;
            eventually(&format!("replica {replica} caught up"), caught_up).await;
            let own = within("query", self.client(replica).query_at(&(), at_least)).await.unwrap();
            own.answer.assert_sound();
            if own.op == newest.op {
                assert_eq!(own.answer, newest.answer, "replica {replica} differs");
            }
        }
        newest.answer
    }
}
