//! Three members of etcd on this machine, for comparison: started from a program that is already here, in a directory of
//! the benchmark's, on free ports of loopback, ended by their process ids.

mod grpc;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;

pub(super) use grpc::Grpc;

use crate::children::OwnChild;
use crate::local::{free_ports, last_line};

const MEMBERS: usize = 3;
/// How long they may take to elect a leader.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// What to do where there is no etcd.
const HOW_TO_GET: &str = "install it (Debian and Ubuntu: apt-get install etcd-server), or unpack a release from \
                          https://github.com/etcd-io/etcd/releases and name the program with --etcd PATH";

/// An etcd program that was found.
#[derive(Clone, Debug)]
pub(super) struct Etcd {
    program: PathBuf,
    /// As it calls itself.
    pub(super) version: String,
}

impl Etcd {
    /// Looks for the program, by path or by a name that is searched for in PATH, and asks for its version.
    pub(super) fn find(program: &Path) -> anyhow::Result<Etcd> {
        let output = Command::new(program)
            .arg("--version")
            .output()
            .with_context(|| format!("no etcd at {}: {HOW_TO_GET}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd Version: "))
            .with_context(|| format!("{} is not etcd: {HOW_TO_GET}", program.display()))?;
        Ok(Etcd { program: program.to_owned(), version: format!("etcd {version}") })
    }
}

/// The members.
#[derive(Debug)]
pub(super) struct EtcdCluster {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    log: PathBuf,
    child: OwnChild,
}

impl EtcdCluster {
    /// Starts them, with etcd's own defaults for everything that is not a place or a port.
    pub(super) fn start(etcd: &Etcd, directory: &Path) -> anyhow::Result<EtcdCluster> {
        let ports = free_ports(MEMBERS * 2)?;
        let (clients, peers) = ports.split_at(MEMBERS);
        let all: Vec<String> =
            peers.iter().enumerate().map(|(member, peer)| format!("m{member}=http://{peer}")).collect();
        let all = all.join(",");
        let program = etcd.program.to_str().context("the path of etcd is not UTF-8")?;
        let members = (0..MEMBERS)
            .map(|member| {
                let data = directory.join(format!("etcd-{member}"));
                let data = data.to_str().context("the path is not UTF-8")?;
                let log = directory.join(format!("etcd-{member}.log"));
                let (name, client, peer) = (
                    format!("m{member}"),
                    format!("http://{}", clients[member]),
                    format!("http://{}", peers[member]),
                );
                let arguments = [
                    "internal-etcd",
                    program,
                    "--name",
                    &name,
                    "--data-dir",
                    data,
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                    "--initial-cluster",
                    &all,
                    "--initial-cluster-state",
                    "new",
                ];
                let child = OwnChild::start(&arguments, &log)?;
                Ok(Member { client: clients[member], log, child })
            })
            .collect::<anyhow::Result<Vec<Member>>>()?;
        Ok(EtcdCluster { members })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// An error that names the first member that ended by itself, if one did.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for (number, Member { child, log, .. }) in self.members.iter_mut().enumerate() {
            if let Some(how) = child.ended() {
                anyhow::bail!("etcd member {number} ended by itself ({how}): {}", last_line(log));
            }
        }
        Ok(())
    }

    /// Where clients reach the leader, once there is one.
    pub(super) async fn leader(&mut self) -> anyhow::Result<SocketAddr> {
        let began = Instant::now();
        loop {
            for client in self.members.iter().map(|member| member.client) {
                if let Ok(grpc) = Grpc::connect(client).await
                    && let Ok(true) = grpc.is_leader().await
                {
                    return Ok(client);
                }
            }
            self.check_alive()?;
            anyhow::ensure!(began.elapsed() < START_PATIENCE, "etcd has no leader after {START_PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A member's process, for the hidden command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EtcdArguments {
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Becomes etcd. It knows nothing of our way to end children with their parent, so the system is asked to.
pub(crate) fn run_etcd(arguments: &EtcdArguments) -> anyhow::Error {
    let EtcdArguments { program, arguments } = arguments;
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("can't be ended with its parent");
    }
    // Variables like ETCD_NAME would be settings.
    let ours = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("ETCD_"));
    let error = Command::new(program).args(arguments).env_clear().envs(ours).exec();
    anyhow::Error::new(error).context(format!("can't start {}", program.display()))
}
