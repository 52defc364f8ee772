//! Real nodes in this process, on free ports of loopback, each with a data directory of its own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common;
pub(crate) use crate::common::{PATIENCE, eventually, within};
use chronon_kernel::{
    Cell, Context, Contract, Emit, Emitted, QueryContext, Settled, SinkName, State, StateMachine, Table,
};
use chronon_server::{Addresses, CallError, Founding, Listen, Node, RunningNode, ServerConfig, StartError};
use chronon_vsr::ReplicaId;
use serde::{Deserialize, Serialize};

/// Adds, keeps, panics, sends: what a test needs of a machine.
#[derive(Clone, State)]
pub(crate) struct Tally {
    sum: Cell<u64>,
    kept: Cell<u64>,
    heard: Table<u64, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Adds to the sum.
    Add(u64),
    /// Counts these bytes.
    Keep(Vec<u8>),
    /// Changes the state, then panics.
    Panic,
    /// Emits an effect.
    Send(u64),
    /// Emits to a sink that does not exist.
    Misdirect,
    /// A type that its codec can't read back when there is no value.
    Treacherous(Treacherous),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Treacherous {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) value: Option<u64>,
    pub(crate) after: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) sum: u64,
    pub(crate) kept: u64,
    pub(crate) heard: u64,
}

impl StateMachine for Tally {
    type Command = Command;
    type Reply = u64;
    type Query = ();
    type Answer = Sums;
    type Effect = u64;
    type Outcome = String;
    const VERSION: u32 = 1;

    fn genesis() -> Tally {
        Tally { sum: Cell::new(0), kept: Cell::new(0), heard: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Tally>, command: Command) -> u64 {
        match command {
            Command::Add(n) => self.sum.set(self.sum.get() + n),
            Command::Keep(bytes) => self.kept.set(self.kept.get() + bytes.len() as u64),
            Command::Panic => {
                self.sum.set(u64::MAX);
                panic!("as it was told to");
            }
            Command::Send(n) => drop(cx.emit(Emit::to("out"), n)),
            Command::Misdirect => drop(cx.emit(Emit::to("nowhere"), 0)),
            Command::Treacherous(_) => {}
        }
        *self.sum.get()
    }

    fn query(&self, _: &QueryContext, (): ()) -> Sums {
        Sums { sum: *self.sum.get(), kept: *self.kept.get(), heard: self.heard.len() as u64 }
    }

    fn settled(&mut self, _: &mut Context<'_, Tally>, effect: Emitted<u64>, outcome: Settled<String>) {
        self.heard.insert(effect.effect, format!("{outcome:?}"));
    }
}

/// A cluster.
pub(crate) struct Cluster<M: StateMachine<Effect = u64, Outcome = String> = Tally> {
    pub(crate) founding: Founding,
    directory: tempfile::TempDir,
    ports: Vec<[SocketAddr; 3]>,
    change: Box<dyn Fn(ServerConfig) -> ServerConfig + Send + Sync>,
    pub(crate) nodes: Vec<Option<RunningNode<M>>>,
}

impl Cluster {
    /// Formats so many replicas and starts them.
    pub(crate) async fn start(replicas: u8) -> Cluster {
        Cluster::start_with(replicas, |config| config).await
    }

    /// The same, with every configuration changed by this.
    pub(crate) async fn start_with(
        replicas: u8,
        change: impl Fn(ServerConfig) -> ServerConfig + Send + Sync + 'static,
    ) -> Cluster {
        Cluster::found(replicas, change).await
    }
}

impl<M: StateMachine<Effect = u64, Outcome = String>> Cluster<M> {
    /// Formats so many replicas of this machine and starts them.
    pub(crate) async fn found(
        replicas: u8,
        change: impl Fn(ServerConfig) -> ServerConfig + Send + Sync + 'static,
    ) -> Cluster<M> {
        let founding = Founding::draw(replicas).unwrap().log_size(32 << 20);
        let directory = tempfile::tempdir().unwrap();
        // All at once, so that no port is given out twice.
        let held: Vec<TcpListener> =
            (0..3 * replicas).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<SocketAddr> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(held);
        let ports = ports.chunks_exact(3).map(|chunk| chunk.try_into().unwrap()).collect();
        let nodes = (0..replicas).map(|_| None).collect();
        let mut cluster = Cluster { founding, directory, ports, change: Box::new(change), nodes };
        for replica in 0..replicas {
            Node::<M>::format(cluster.path(replica), &cluster.founding, ReplicaId::new(replica)).unwrap();
            cluster.start_one(replica).await.unwrap();
        }
        for node in cluster.nodes.iter().flatten() {
            within("ready", node.ready()).await.unwrap();
        }
        cluster
    }

    pub(crate) fn path(&self, replica: u8) -> PathBuf {
        self.directory.path().join(replica.to_string())
    }

    pub(crate) fn config(&self, replica: u8) -> ServerConfig {
        let replicas: BTreeMap<ReplicaId, Addresses> = (0..)
            .zip(&self.ports)
            .map(|(number, [peer, client, _])| {
                let addresses = Addresses { peer: peer.to_string(), client: client.to_string() };
                (ReplicaId::new(number), addresses)
            })
            .collect();
        let [peer, client, http] = self.ports[usize::from(replica)];
        ServerConfig {
            cluster: Some(self.founding.cluster),
            replica: Some(ReplicaId::new(replica)),
            listen: Listen { peer, client, http: Some(http) },
            replicas,
            ..ServerConfig::default()
        }
    }

    pub(crate) async fn start_one(&mut self, replica: u8) -> Result<(), StartError> {
        let out = SinkName::new("out").unwrap();
        let node = Node::<M>::open(self.path(replica))
            .config((self.change)(self.config(replica)))
            .call(out, Contract::AtLeastOnce, async |call| {
                Ok::<_, CallError>(format!("sent {}", call.effect))
            })
            .start()
            .await?;
        self.nodes[usize::from(replica)] = Some(node);
        Ok(())
    }

    pub(crate) fn node(&self, replica: u8) -> &RunningNode<M> {
        self.nodes[usize::from(replica)].as_ref().unwrap()
    }

    pub(crate) async fn stop_one(&mut self, replica: u8) {
        let node = self.nodes[usize::from(replica)].take().unwrap();
        within("shutdown", node.shutdown()).await;
    }

    pub(crate) fn peer_port(&self, replica: u8) -> SocketAddr {
        self.ports[usize::from(replica)][0]
    }

    pub(crate) fn client_port(&self, replica: u8) -> SocketAddr {
        self.ports[usize::from(replica)][1]
    }

    pub(crate) fn http_port(&self, replica: u8) -> SocketAddr {
        self.ports[usize::from(replica)][2]
    }

    /// A JSON request over HTTP.
    pub(crate) async fn http(
        &self,
        replica: u8,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Answer {
        let (port, method, path) = (self.http_port(replica), method.to_owned(), path.to_owned());
        let (headers, body) = (headers.to_owned(), body.to_owned());
        tokio::task::spawn_blocking(move || request(port, &method, &path, &headers, &body)).await.unwrap()
    }

    /// The number of the replica that leads, as they see it themselves.
    pub(crate) async fn primary(&self) -> u8 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (number, node) in (0..).zip(&self.nodes) {
                let Some(node) = node else { continue };
                let status: serde_json::Value = serde_json::from_str(&node.status().await.unwrap()).unwrap();
                if status["serving"] == true {
                    return number;
                }
            }
            assert!(Instant::now() < deadline, "no primary");
            // sleeps: between two looks; what is waited for is the primary.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn request(port: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let text = common::request(port, method, path, headers, body);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), text: body.to_owned() }
}
