//! Committed commands through a cluster of real processes: a closed loop of clients. With `--etcd` the same load on
//! three etcd members, in the same run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chronon_client::TypedClient;
use serde::Serialize;

use super::etcd::{Etcd, EtcdCluster};
use super::floor::{self, Floor};
use super::load::{Row, closed_loop};
use super::machine::Counter;
use super::rig::{COMMAND_SIZE, CONNECTIONS_MAX, LogArguments, cluster, command, connect};
use super::{Bar, Printing, conclude};
use crate::local::{LocalCluster, Machine};
use crate::output::{Progress, table};

/// Rows with batches: clients, and commands that each submits together.
const BATCHED: [(usize, usize); 2] = [(8, 64), (8, 256)];
/// Clients of a row at most: more than that need more connections.
const CLIENTS_MAX: u64 = 4_096;
/// Flushes and round trips of the floor that is measured along.
const FLOOR_COUNT: u32 = 500;
/// How many times etcd's commands a second it must be.
const ETCD_RATIO_BAR: f64 = 2.5;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CommitArguments {
    /// Where the data goes: a directory on the disk to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    replicas: u8,
    /// Clients of each row with one command a request
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_parser = clap::value_parser!(u64).range(1..=CLIENTS_MAX))]
    clients: Vec<u64>,
    /// Seconds of each row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    #[command(flatten)]
    log: LogArguments,
    /// Drive three members of etcd alike, in the same run; PATH is the program
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "etcd")]
    etcd: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    command_bytes: usize,
    floor: Floor,
    /// The bar for one client's median: 3 × (flush among three writers + two round trips).
    one_client_p50_bar_us: u64,
    rows: Vec<Row>,
    etcd: Option<EtcdFigures>,
    bars: Vec<Bar>,
}

#[derive(Clone, Debug, Serialize)]
struct EtcdFigures {
    version: String,
    members: usize,
    rows: Vec<Row>,
    /// Commands a second here, in times of etcd's, for each row.
    ratios: Vec<f64>,
}

pub(super) fn run(arguments: &CommitArguments) -> anyhow::Result<ExitCode> {
    // Before anything is measured: nobody wants to hear it after a minute.
    let etcd = arguments.etcd.as_deref().map(Etcd::find).transpose()?;
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, etcd, directory))?;
    conclude(&figures, figures.table(), &figures.bars, &arguments.printing)
}

impl Figures {
    fn table(&self) -> String {
        let rows = |rows: &[Row]| {
            let mut lines = vec![Row::heads("commands/s")];
            lines.extend(rows.iter().map(Row::cells));
            lines
        };
        let mut text = table(&rows(&self.rows));
        if let Some(etcd) = &self.etcd {
            let mut lines = rows(&etcd.rows);
            lines[0].push("ratio".to_owned());
            for (line, ratio) in lines.iter_mut().skip(1).zip(&etcd.ratios) {
                line.push(format!("{ratio:.2}"));
            }
            text.push_str(&format!(
                "\n{}, {} members, driven alike\n{}",
                etcd.version,
                etcd.members,
                table(&lines)
            ));
        }
        text.push('\n');
        text
    }

    fn judge(&mut self) {
        if let Some(one) = self.rows.iter().find(|row| (row.clients, row.batch) == (1, 1)) {
            let (p50, bar) = (one.latency.p50_us, self.one_client_p50_bar_us);
            let what = format!("one client's p50 {p50} µs, at most {bar} µs");
            self.bars.push(Bar::new(p50 <= bar, what));
        }
        if let Some((row, ratio)) = self.etcd.as_ref().and_then(EtcdFigures::most_clients) {
            let what = format!(
                "{ratio:.2} times etcd's commands a second with {} clients, at least {ETCD_RATIO_BAR}",
                row.clients
            );
            self.bars.push(Bar::new(ETCD_RATIO_BAR <= ratio, what));
        }
    }
}

impl EtcdFigures {
    fn most_clients(&self) -> Option<(&Row, f64)> {
        self.rows.iter().zip(self.ratios.iter().copied()).max_by_key(|(row, _)| row.clients)
    }
}

fn measure(arguments: &CommitArguments, etcd: Option<Etcd>, directory: &Path) -> anyhow::Result<Figures> {
    let progress = Progress::new(0);
    progress.say("measuring the floor".to_owned());
    let floor = floor::measure(directory, FLOOR_COUNT)?;
    let time = Duration::from_secs(arguments.seconds);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = {
        let mut cluster =
            cluster(directory, arguments.replicas, arguments.log.log_mib, Machine::Counter, &progress)?;
        runtime.block_on(chronon_rows(&mut cluster, arguments, time, &progress))?
        // The replicas end here: nobody competes with etcd.
    };
    let etcd = match etcd {
        Some(etcd) => {
            let mut members = EtcdCluster::start(&etcd, directory)?;
            let measured = runtime.block_on(etcd_rows(&mut members, arguments, time, &progress))?;
            let ratio = |row: &Row| {
                let ours = rows.iter().find(|ours| (ours.clients, ours.batch) == (row.clients, 1));
                let ours = ours.map_or(0, |ours| ours.per_second);
                ours as f64 / row.per_second.max(1) as f64
            };
            let ratios = measured.iter().map(ratio).collect();
            Some(EtcdFigures { version: etcd.version, members: members.len(), rows: measured, ratios })
        }
        None => None,
    };
    let one_client_p50_bar_us = floor.bar_us();
    let mut figures = Figures {
        replicas: arguments.replicas,
        command_bytes: COMMAND_SIZE,
        floor,
        one_client_p50_bar_us,
        rows,
        etcd,
        bars: Vec::new(),
    };
    figures.judge();
    Ok(figures)
}

async fn chronon_rows(
    cluster: &mut LocalCluster,
    arguments: &CommitArguments,
    time: Duration,
    progress: &Progress,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let single = arguments.clients.iter().map(|clients| (*clients as usize, 1));
    for (clients, batch) in single.chain(BATCHED) {
        let row = chronon_row(cluster, clients, batch, time).await;
        cluster.check_alive()?;
        let row = row?;
        progress.say(format!("{clients} clients, batch {batch}: {} commands/s", row.per_second));
        rows.push(row);
    }
    Ok(rows)
}

async fn chronon_row(
    cluster: &LocalCluster,
    clients: usize,
    batch: usize,
    time: Duration,
) -> anyhow::Result<Row> {
    let connected = connect::<Counter>(cluster.client_addresses(), clients.min(CONNECTIONS_MAX)).await?;
    // A first command each, so that no row pays for connections or for the first view.
    for client in &connected {
        client.submit(&command()).await?;
    }
    let submit = move |client: TypedClient<Counter>, _| async move {
        if batch == 1 {
            client.submit(&command()).await?;
            return Ok(());
        }
        let mut together = tokio::task::JoinSet::new();
        for _ in 0..batch {
            let client = client.clone();
            together.spawn(async move { client.submit(&command()).await.map(|_| ()) });
        }
        while let Some(one) = together.join_next().await {
            one.context("a client panicked")??;
        }
        Ok(())
    };
    closed_loop(&connected, clients, batch, time, submit).await
}

async fn etcd_rows(
    members: &mut EtcdCluster,
    arguments: &CommitArguments,
    time: Duration,
    progress: &Progress,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clients in arguments.clients.iter().map(|clients| *clients as usize) {
        let row = etcd_row(members, clients, time).await;
        members.check_alive()?;
        let row = row?;
        progress.say(format!("etcd, {clients} clients: {} puts/s", row.per_second));
        rows.push(row);
    }
    Ok(rows)
}

async fn etcd_row(members: &mut EtcdCluster, clients: usize, time: Duration) -> anyhow::Result<Row> {
    // All to the leader, as Chronon's clients go to the primary: the way in which etcd is fastest.
    let leader = members.leader().await?;
    let mut connected = Vec::new();
    for connection in 0..clients.min(CONNECTIONS_MAX) {
        let grpc = super::etcd::Grpc::connect(leader).await?;
        grpc.put(&key(connection), &[7; COMMAND_SIZE]).await?;
        connected.push(grpc);
    }
    let put =
        |grpc: super::etcd::Grpc, client| async move { grpc.put(&key(client), &[7; COMMAND_SIZE]).await };
    closed_loop(&connected, clients, 1, time, put).await
}

/// Each client writes to a key of its own.
fn key(client: usize) -> [u8; 8] {
    (client as u64).to_be_bytes()
}
