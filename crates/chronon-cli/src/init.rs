//! `chronon init`: all identities of a cluster at once, and a directory for each replica.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use chronon_server::Founding;
use chronon_vsr::{BODY_SIZE_MAX, Ring};

use crate::config::{CheckpointsConfig, Config, ListenConfig, ReplicaConfig, TimingConfig};
use crate::founding::{self, Format, Planned};
use crate::interrupt::{self, Data, end_when_interrupted};
use crate::output::Progress;

/// Make a cluster: identities, data directories, configurations
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InitArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// What cluster to make, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterArguments {
    /// Replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    replicas: u8,
    /// Where to make them: a new or empty directory
    #[arg(long, default_value = "cluster")]
    dir: PathBuf,
    /// The address of each replica, in order; one address serves all of them
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1")]
    hosts: Vec<std::net::IpAddr>,
    /// The first port; replica n listens on the three ports from this + 10 n on
    #[arg(long, default_value_t = 7_100)]
    port: u16,
    /// The log of each replica, in MiB. About half of it lies between two checkpoints
    #[arg(long, default_value_t = 512)]
    log_mib: u64,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Makes a cluster.
pub(crate) fn run(arguments: &InitArguments) -> anyhow::Result<ExitCode> {
    make(&arguments.cluster, &Founding::draw, &founding::format_empty, 0)
}

/// A ring for a log of so many MiB.
fn ring_of(log_mib: u64) -> anyhow::Result<Ring> {
    let of_mib = |mib: u64| Ring::new(mib.checked_mul(1024 * 1024)?, BODY_SIZE_MAX as u32);
    of_mib(log_mib).with_context(|| {
        // Within a few dozen of the largest ops.
        match (log_mib..1024).find(|mib| of_mib(*mib).is_some()) {
            Some(least) => format!("--log-mib {log_mib} does not hold the pipeline: use {least} or more"),
            None => format!("--log-mib {log_mib} is more than bytes can be counted: use less"),
        }
    })
}

/// Makes a cluster whose identities are drawn so, and whose data directories are made so, each with a state of at most so
/// many bytes. All of it, or nothing.
pub(crate) fn make(
    arguments: &ClusterArguments,
    draw: &dyn Fn(u8) -> io::Result<Founding>,
    format: Format<'_>,
    state_size: u64,
) -> anyhow::Result<ExitCode> {
    let ClusterArguments { replicas, dir, hosts, port, log_mib, json } = arguments;
    let count = usize::from(*replicas);
    anyhow::ensure!(
        hosts.len() == 1 || hosts.len() == count,
        "--hosts names {} addresses for {replicas} replicas: name one, or one for each",
        hosts.len()
    );
    let ring = ring_of(*log_mib)?;
    if let Ok(mut entries) = std::fs::read_dir(dir)
        && let Some(Ok(entry)) = entries.next()
    {
        let found = entry.file_name();
        anyhow::bail!("{} is not empty: it holds {}; name a new directory", dir.display(), found.display());
    }
    let address = |replica: u8, port_offset: u16| -> anyhow::Result<SocketAddr> {
        let host = if hosts.len() == 1 { hosts[0] } else { hosts[usize::from(replica)] };
        let port = port.checked_add(u16::from(replica) * 10 + port_offset);
        Ok(SocketAddr::new(host, port.context("--port is too high")?))
    };
    let mut reached = BTreeMap::new();
    for replica in 0..*replicas {
        let (peer, client) = (address(replica, 0)?.to_string(), address(replica, 1)?.to_string());
        reached.insert(replica.to_string(), ReplicaConfig { peer, client });
    }
    let mut planned = Vec::new();
    for replica in 0..*replicas {
        let listen = ListenConfig {
            peer: address(replica, 0)?,
            client: address(replica, 1)?,
            http: Some(address(replica, 2)?),
        };
        planned.push(Planned {
            replica,
            directory: dir.join(format!("replica-{replica}")),
            config: Config {
                cluster: None,
                replica: Some(replica),
                data: PathBuf::from("data"),
                listen,
                replicas: reached.clone(),
                timing: TimingConfig::default(),
                checkpoints: CheckpointsConfig::default(),
            },
        });
    }
    let progress = Progress::new(100);
    let drawn = draw(*replicas).context("the operating system gave no random bits")?;
    let founding = Founding { ring, ..drawn };
    let new =
        std::path::absolute(dir)?.ancestors().take_while(|path| !path.exists()).last().map(Path::to_owned);
    let made = new.map_or_else(|| planned.iter().map(|one| one.directory.clone()).collect(), |new| vec![new]);
    end_when_interrupted(made.clone(), Data::Remove)?;
    let configs = founding::found(planned, &founding, format, state_size, &mut |filled, all| {
        progress.filling(filled, all);
    });
    interrupt::give_way();
    let configs = configs.map_err(|error| match interrupt::remove(&made) {
        true => error,
        false => error.context(format!("remove what is left in {}", dir.display())),
    })?;
    drop(progress);
    if *json {
        let configs: Vec<String> = configs.iter().map(|config| config.display().to_string()).collect();
        println!("{}", serde_json::json!({ "configs": configs }));
    } else {
        println!("made a cluster of {replicas}. Start each replica:");
        for config in configs {
            println!("  chronon start --config {}", config.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
