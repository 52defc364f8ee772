//! Committed commands through a cluster of real processes: a closed loop of clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_vsr::{BODY_SIZE_MAX, Ring};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::floor::{self, Floor};
use super::machine::Counter;
use super::{Latencies, histogram, record};
use crate::local::{Flavour, LocalCluster, Machine};
use crate::output::{Progress, table};

/// Connections at most, however many clients there are.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of a command.
const COMMAND_SIZE: usize = 128;
/// Clients of a row with one command a request.
const CLIENTS: [usize; 4] = [1, 16, 64, 256];
/// Rows with batches: clients, and commands that each submits together.
const BATCHED: [(usize, usize); 2] = [(8, 64), (8, 256)];
/// How long a cluster may take to begin.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Flushes and round trips of the floor that is measured along.
const FLOOR_COUNT: u32 = 500;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CommitArguments {
    /// Where the data goes: a directory on the disk to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    replicas: u8,
    /// Seconds of each row
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Log of each replica, in MiB: the log is kept whole
    #[arg(long, default_value_t = 1_024)]
    log_mib: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
struct Row {
    clients: usize,
    connections: usize,
    /// Commands that a client submits together before it waits.
    batch: usize,
    commands_per_second: u64,
    /// Of a command, or of a whole batch.
    latency: Latencies,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    command_bytes: usize,
    floor: Floor,
    /// The bar for one client's median: 3 × (flush among three writers + two round trips).
    one_client_p50_bar_us: u64,
    rows: Vec<Row>,
}

pub(super) fn run(arguments: &CommitArguments) -> anyhow::Result<()> {
    let directory = arguments.dir.join(format!("chronon-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let figures = measure(arguments, &directory);
    std::fs::remove_dir_all(&directory).with_context(|| format!("can't remove {}", directory.display()))?;
    let figures = figures?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        println!("{}", figures.table());
    }
    Ok(())
}

impl Figures {
    fn table(&self) -> String {
        let heads = ["clients", "connections", "batch", "commands/s", "count", "p50 µs", "p99 µs", "max µs"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let mut cells: Vec<String> =
                [row.clients, row.connections, row.batch].map(|value| value.to_string()).to_vec();
            cells.push(row.commands_per_second.to_string());
            cells.extend(row.latency.cells());
            rows.push(cells);
        }
        let one = self.rows.first().map_or(0, |row| row.latency.p50_us);
        let bar = self.one_client_p50_bar_us;
        let held = if one <= bar { "held" } else { "missed" };
        format!("{}\none client's p50 {one} µs, bar {bar} µs: {held}", table(&rows))
    }
}

fn measure(arguments: &CommitArguments, directory: &Path) -> anyhow::Result<Figures> {
    let progress = Progress::new(0);
    progress.say("measuring the floor".to_owned());
    let floor = floor::measure(directory, FLOOR_COUNT)?;
    let ring = Ring::new(arguments.log_mib * 1024 * 1024, BODY_SIZE_MAX as u32)
        .context("--log-mib is too small for the pipeline")?;
    let flavour = Flavour { machine: Machine::Counter, ..Flavour::default() };
    let mut cluster =
        LocalCluster::create(directory, arguments.replicas, ring, flavour, &mut |filled, all| {
            progress.filling(filled, all);
        })?;
    cluster.start_all()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        let mut rows = Vec::new();
        let single = CLIENTS.into_iter().map(|clients| (clients, 1));
        for (clients, batch) in single.chain(BATCHED) {
            let row = measure_row(&cluster, clients, batch, Duration::from_secs(arguments.seconds)).await;
            cluster.check_alive()?;
            let row = row?;
            progress.say(format!("{clients} clients, batch {batch}: {} commands/s", row.commands_per_second));
            rows.push(row);
        }
        anyhow::Ok(rows)
    })?;
    let one_client_p50_bar_us = floor.bar_us();
    Ok(Figures {
        replicas: arguments.replicas,
        command_bytes: COMMAND_SIZE,
        floor,
        one_client_p50_bar_us,
        rows,
    })
}

async fn measure_row(
    cluster: &LocalCluster,
    clients: usize,
    batch: usize,
    time: Duration,
) -> anyhow::Result<Row> {
    let connections = clients.min(CONNECTIONS_MAX);
    let options =
        ClientOptions { timeout: START_PATIENCE, outstanding_max: 1_000, ..ClientOptions::default() };
    let mut connected = Vec::new();
    for _ in 0..connections {
        let client = Client::connect(cluster.client_addresses(), options).await;
        connected.push(TypedClient::<Counter>::new(client.context("the cluster does not answer")?));
    }
    // A first command each, so that no row pays for connections or for the first view.
    for client in &connected {
        client.submit(&command()).await?;
    }
    let began = Instant::now();
    let end = began + time;
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let client = connected[number % connections].clone();
            tokio::spawn(closed_loop(client, batch, end))
        })
        .collect();
    let mut all = histogram();
    for task in tasks {
        all.add(task.await.context("a client panicked")??)?;
    }
    let commands = all.len() * batch as u64;
    let commands_per_second = (commands as f64 / began.elapsed().as_secs_f64()).round() as u64;
    Ok(Row { clients, connections, batch, commands_per_second, latency: Latencies::of(&all) })
}

/// A command whose encoding, length included, has the size.
fn command() -> Vec<u8> {
    const LENGTH_SIZE: usize = 2;
    vec![7; COMMAND_SIZE - LENGTH_SIZE]
}

async fn closed_loop(
    client: TypedClient<Counter>,
    batch: usize,
    end: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = histogram();
    let client = Arc::new(client);
    while Instant::now() < end {
        let began = Instant::now();
        if batch == 1 {
            client.submit(&command()).await?;
        } else {
            let mut together = tokio::task::JoinSet::new();
            for _ in 0..batch {
                let client = Arc::clone(&client);
                together.spawn(async move { client.submit(&command()).await.map(|_| ()) });
            }
            while let Some(one) = together.join_next().await {
                one.context("a client panicked")??;
            }
        }
        record(&mut latencies, began.elapsed());
    }
    Ok(latencies)
}
