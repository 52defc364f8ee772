//! A cluster on this machine: real replica processes on loopback, each with its own data directory. For the demo, the
//! benchmarks and the tests.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_client::{Connection, ConnectionLimits};
use chronon_server::Founding;
use chronon_vsr::{Prng, Ring};
use serde::Deserialize;

use crate::children::OwnChild;
use crate::config::{CheckpointsConfig, Config, ListenConfig, ReplicaConfig, TimingConfig};
use crate::founding::{self, Planned};

/// How long a status may take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the cluster may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is different about the replicas of a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flavour {
    /// A guard that is broken on purpose.
    pub(crate) sabotage: Option<Sabotage>,
    /// What is not flushed lives in process memory only: SIGKILL is a power cut.
    pub(crate) unflushed: bool,
    /// What they run.
    pub(crate) machine: Machine,
}

/// What the replicas of the demo and of the benchmarks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Machine {
    /// The reference machine.
    #[default]
    Bank,
    /// The machine of most benchmarks: a state of a few bytes.
    Counter,
    /// The machine of those that need a large one.
    Registers,
}

/// A guard that is broken on purpose, to see the checks fail. In test builds only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// Every attempt of an effect draws a new key.
    NewKeyPerAttempt,
    /// Commands are acknowledged before anything is flushed.
    AckBeforeFlush,
    /// The outbox is missing after a restart.
    ForgetOutbox,
}

impl Sabotage {
    fn name(self) -> &'static str {
        match self {
            Sabotage::NewKeyPerAttempt => "new-key-per-attempt",
            Sabotage::AckBeforeFlush => "ack-before-flush",
            Sabotage::ForgetOutbox => "forget-outbox",
        }
    }
}

/// The cluster.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    flavour: Flavour,
    replicas: Vec<LocalReplica>,
}

#[derive(Debug)]
struct LocalReplica {
    config: PathBuf,
    log: PathBuf,
    client: SocketAddr,
    child: Option<OwnChild>,
}

/// What a replica says of itself; it says more than this.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ReplicaStatus {
    pub(crate) role: String,
    pub(crate) serving: bool,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) checkpoint: u64,
    pub(crate) log_start: u64,
    pub(crate) fetching_state: bool,
    pub(crate) state_transfers: u64,
    pub(crate) intake: IntakeStatus,
}

/// How fast it takes commands on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct IntakeStatus {
    pub(crate) paused_ms: u64,
}

impl LocalCluster {
    /// Makes the data directories and configurations of a cluster. `progress` hears how many bytes of all are filled.
    pub(crate) fn create(
        directory: &Path,
        replicas: u8,
        ring: Ring,
        flavour: Flavour,
        progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<LocalCluster> {
        let ports = free_ports(usize::from(replicas) * 3)?;
        let addresses = |replica: u8| {
            let [peer, client, http] = ports[usize::from(replica) * 3..][..3] else {
                unreachable!("three ports a replica")
            };
            (peer, client, http)
        };
        let reached: BTreeMap<String, ReplicaConfig> = (0..replicas)
            .map(|replica| {
                let (peer, client, _) = addresses(replica);
                (replica.to_string(), ReplicaConfig { peer: peer.to_string(), client: client.to_string() })
            })
            .collect();
        let planned = (0..replicas)
            .map(|replica| {
                let (peer, client, http) = addresses(replica);
                Planned {
                    replica,
                    directory: directory.join(format!("replica-{replica}")),
                    config: Config {
                        cluster: None,
                        replica: Some(replica),
                        data: PathBuf::from("data"),
                        listen: ListenConfig { peer, client, http: Some(http) },
                        replicas: reached.clone(),
                        timing: TimingConfig::default(),
                        checkpoints: CheckpointsConfig::default(),
                    },
                }
            })
            .collect();
        let drawn = Founding::draw(replicas).context("the operating system gave no random bits")?;
        let founding = Founding { ring, ..drawn };
        let made = founding::found(planned, &founding, &founding::format_empty, 0, progress)?;
        let replicas = made
            .into_iter()
            .zip(0..)
            .map(|(config, replica)| {
                let (_, client, _) = addresses(replica);
                let log = directory.join(format!("replica-{replica}.log"));
                LocalReplica { config, log, client, child: None }
            })
            .collect();
        Ok(LocalCluster { flavour, replicas })
    }

    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Starts a replica that is not running.
    pub(crate) fn start(&mut self, replica: usize) -> anyhow::Result<()> {
        let LocalReplica { config, log, child, .. } = &mut self.replicas[replica];
        let config = config.to_str().context("the path is not UTF-8")?;
        let mut arguments = vec!["internal-replica", "--config", config];
        if self.flavour.unflushed {
            arguments.push("--unflushed");
        }
        if let Some(sabotage) = self.flavour.sabotage {
            arguments.extend(["--sabotage", sabotage.name()]);
        }
        match self.flavour.machine {
            Machine::Bank => {}
            Machine::Counter => arguments.extend(["--machine", "counter"]),
            Machine::Registers => arguments.extend(["--machine", "registers"]),
        }
        *child = Some(OwnChild::start(&arguments, log)?);
        Ok(())
    }

    pub(crate) fn start_all(&mut self) -> anyhow::Result<()> {
        (0..self.len()).try_for_each(|replica| self.start(replica))
    }

    /// Ends a replica with SIGKILL.
    pub(crate) fn kill(&mut self, replica: usize) -> anyhow::Result<()> {
        self.replicas[replica].child.take().map_or(Ok(()), OwnChild::kill)
    }

    /// Where clients reach the replicas.
    pub(crate) fn client_addresses(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.client.to_string()).collect()
    }

    /// An error that names the first replica that ended by itself, if one did.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            if let Some(how) = replica.child.as_mut().and_then(OwnChild::ended) {
                let words = last_line(&replica.log);
                anyhow::bail!(
                    "replica {number} ended by itself ({how}): {words} [{}]",
                    replica.log.display()
                );
            }
        }
        Ok(())
    }

    /// What a replica says of itself.
    pub(crate) async fn status(&self, replica: usize) -> anyhow::Result<ReplicaStatus> {
        let address = self.replicas[replica].client.to_string();
        let connection =
            Connection::open(&address, None, STATUS_TIMEOUT, ConnectionLimits::default()).await?;
        let status = tokio::time::timeout(STATUS_TIMEOUT, connection.status()).await??;
        serde_json::from_str(&status).with_context(|| format!("replica {replica} says {status}"))
    }

    /// Waits for the replica that leads and serves.
    pub(crate) async fn lead(&mut self) -> anyhow::Result<(usize, ReplicaStatus)> {
        let began = Instant::now();
        loop {
            if let Some(primary) = self.primary().await {
                return Ok(primary);
            }
            self.check_alive()?;
            anyhow::ensure!(began.elapsed() < PATIENCE, "no replica leads after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a replica has applied what is committed now.
    pub(crate) async fn caught_up(&mut self, replica: usize) -> anyhow::Result<()> {
        let (_, status) = self.lead().await?;
        self.has_applied(replica, status.commit, PATIENCE).await
    }

    /// Waits until a replica has applied this op.
    pub(crate) async fn has_applied(
        &mut self,
        replica: usize,
        op: u64,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Ok(status) = self.status(replica).await
                && op <= status.applied
            {
                return Ok(());
            }
            self.check_alive()?;
            anyhow::ensure!(
                began.elapsed() < patience,
                "replica {replica} did not catch up with op {op} within {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The process id of a replica that runs.
    pub(crate) fn process(&self, replica: usize) -> Option<u32> {
        self.replicas[replica].child.as_ref().map(OwnChild::id)
    }

    /// Where clients reach one replica.
    pub(crate) fn client_address(&self, replica: usize) -> String {
        self.replicas[replica].client.to_string()
    }

    /// The replica that leads and serves, with its status, if one says so.
    pub(crate) async fn primary(&self) -> Option<(usize, ReplicaStatus)> {
        for replica in 0..self.len() {
            if let Ok(status) = self.status(replica).await
                && status.role == "primary"
                && status.serving
            {
                return Some((replica, status));
            }
        }
        None
    }
}

/// Free ports on loopback, to be listened on again and again.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    // Below the range that ports of outgoing connections are drawn from: one of those could take the port of a replica
    // that is down for a moment.
    const PORTS: (u64, u64) = (10_000, 32_000);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut prng = Prng::new(since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32));
    let mut listeners = Vec::new();
    let mut tries = count * 100;
    while listeners.len() < count {
        anyhow::ensure!(0 < tries, "no free ports on loopback");
        tries -= 1;
        let port = u16::try_from(prng.between(PORTS.0, PORTS.1))?;
        // All are held until the last one is found, so that none is found twice.
        listeners.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    }
    listeners.iter().map(|listener| listener.local_addr().context("a port without an address")).collect()
}

/// What a process said last into its log.
pub(crate) fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}
