//! Catching up: a backup comes back to a cluster whose logs have moved on, under full load. How long until it is abreast,
//! and what does that cost those who write meanwhile?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_client::{SubmitError, TypedClient};
use chronon_vsr::PIPELINE_MAX;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::machine::{Registers, Write};
use super::rig::{CONNECTIONS_MAX, cluster, connect, submit_each};
use super::{Bar, Latencies, Printing, conclude, histogram, record};
use crate::local::{LocalCluster, Machine, ReplicaStatus};
use crate::output::{Progress, table};

/// How long the backup may take, and the logs to move on without it.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at the replicas.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a register's value.
const VALUE_SIZE: usize = 100;
/// A backup is abreast when it has executed all but so many ops.
const ABREAST: u64 = 8 * PIPELINE_MAX;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CatchupArguments {
    /// Where the data goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas: all but one go on meanwhile
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=6))]
    replicas: u8,
    /// Entries of the state that has to be fetched; each command writes one of them
    #[arg(long, default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Clients, each with one command at a time
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..=4_096))]
    clients: u64,
    /// Seconds that are measured before the backup comes back, and after it has caught up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Log of each replica, in MiB: the smaller, the sooner it moves on past a state that is being fetched
    #[arg(long, default_value_t = 64)]
    log_mib: u64,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    entries: u64,
    log_mib: u64,
    /// From the start of its process until it was abreast.
    caught_up_ms: u64,
    /// States that it began to fetch.
    transfers: u64,
    /// How long the primary has paused for its sake.
    paused_ms: u64,
    rows: Vec<Row>,
    bars: Vec<Bar>,
}

/// What clients saw while the backup was away, coming, or back.
#[derive(Clone, Debug, Serialize)]
struct Row {
    backup: &'static str,
    seconds: f64,
    per_second: u64,
    latency: Latencies,
}

/// What the load is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    MovingOn,
    Away,
    Coming,
    Back,
    Over,
}

pub(super) fn run(arguments: &CatchupArguments) -> anyhow::Result<ExitCode> {
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, directory))?;
    conclude(&figures, figures.text(), &figures.bars, &arguments.printing)
}

impl Figures {
    fn text(&self) -> String {
        let heads = ["backup", "seconds", "commands/s", "count", "p50 µs", "p99 µs", "max µs"];
        let mut lines = vec![heads.map(str::to_owned).to_vec()];
        for Row { backup, seconds, per_second, latency } in &self.rows {
            let mut line = vec![(*backup).to_owned(), format!("{seconds:.1}"), per_second.to_string()];
            line.extend(latency.cells());
            lines.push(line);
        }
        let Figures { caught_up_ms, transfers, paused_ms, .. } = self;
        format!(
            "{}\ncaught up after {caught_up_ms} ms, {transfers} state transfers begun, {paused_ms} ms of pauses\n",
            table(&lines)
        )
    }
}

fn measure(arguments: &CatchupArguments, directory: &Path) -> anyhow::Result<Figures> {
    let CatchupArguments { replicas, log_mib, .. } = *arguments;
    let progress = Progress::new(0);
    let mut cluster = cluster(directory, replicas, log_mib, Machine::Registers, &progress)?;
    // The clients must not be what the load waits for.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(catch_up(&mut cluster, arguments, &progress))
}

async fn catch_up(
    cluster: &mut LocalCluster,
    arguments: &CatchupArguments,
    progress: &Progress,
) -> anyhow::Result<Figures> {
    let CatchupArguments { replicas, entries, clients, seconds, log_mib, .. } = *arguments;
    let time = Duration::from_secs(seconds);
    let connections = connect::<Registers>(cluster.client_addresses(), CONNECTIONS_MAX).await?;
    submit_each(&connections, entries, write).await?;
    let (primary, _) = cluster.lead().await?;
    let backup = (primary + 1) % cluster.len();
    cluster.caught_up(backup).await?;
    let executed = asked(cluster, backup).await?.applied;
    cluster.kill(backup)?;

    let load = Load::start(&connections, clients, entries);
    progress.say("the logs of the others move on".to_owned());
    let began = Instant::now();
    while asked(cluster, primary).await?.log_start <= executed {
        anyhow::ensure!(
            began.elapsed() < PATIENCE,
            "the others' logs still hold op {executed} after {PATIENCE:?}: use a smaller --log-mib"
        );
        tokio::time::sleep(LOOK).await;
    }
    load.enter(Phase::Away);
    tokio::time::sleep(time).await;

    load.enter(Phase::Coming);
    let paused_before = asked(cluster, primary).await?.intake.paused_ms;
    let began = Instant::now();
    cluster.start(backup)?;
    let transfers = loop {
        let committed = asked(cluster, primary).await?.commit;
        if let Ok(status) = cluster.status(backup).await
            && committed <= status.applied + ABREAST
            && !status.fetching_state
        {
            break status.state_transfers;
        }
        cluster.check_alive()?;
        anyhow::ensure!(began.elapsed() < PATIENCE, "it has not caught up after {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    };
    let took = began.elapsed();
    load.enter(Phase::Back);
    let paused_ms = asked(cluster, primary).await?.intake.paused_ms.saturating_sub(paused_before);
    progress.say(format!("caught up after {} ms", took.as_millis()));
    tokio::time::sleep(time).await;

    let histograms = load.end().await?;
    let row = |backup, phase: Phase, time: Duration| {
        let histogram = &histograms[phase as usize];
        let per_second = (histogram.len() as f64 / time.as_secs_f64()).round() as u64;
        Row { backup, seconds: time.as_secs_f64(), per_second, latency: Latencies::of(histogram) }
    };
    let rows = vec![
        row("away", Phase::Away, time),
        row("coming", Phase::Coming, took),
        row("back", Phase::Back, time),
    ];
    let bars = vec![Bar::new(
        0 < transfers && transfers <= 2,
        format!("{transfers} state transfers begun, at least one and at most 2"),
    )];
    let caught_up_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Ok(Figures { replicas, entries, log_mib, caught_up_ms, transfers, paused_ms, rows, bars })
}

/// What a replica says of itself, however busy it is.
async fn asked(cluster: &mut LocalCluster, replica: usize) -> anyhow::Result<ReplicaStatus> {
    let began = Instant::now();
    loop {
        match cluster.status(replica).await {
            Ok(status) => return Ok(status),
            Err(error) if PATIENCE < began.elapsed() => return Err(error),
            Err(_) => cluster.check_alive()?,
        }
    }
}

/// The nth write: all over the registers, so that no chunk of a checkpoint stays as it was.
fn write(number: u64) -> Write {
    Write { register: number, value: vec![number as u8; VALUE_SIZE] }
}

/// A closed loop of clients that goes on through all phases.
struct Load {
    phase: Arc<AtomicUsize>,
    clients: JoinSet<anyhow::Result<[Histogram<u64>; Phase::Over as usize]>>,
}

impl Load {
    fn start(connections: &[TypedClient<Registers>], clients: u64, entries: u64) -> Load {
        let phase = Arc::new(AtomicUsize::new(Phase::MovingOn as usize));
        let mut together = JoinSet::new();
        for client in 0..clients {
            let connection = connections[client as usize % connections.len()].clone();
            let phase = Arc::clone(&phase);
            together.spawn(async move {
                let mut histograms = std::array::from_fn(|_| histogram());
                for number in 0.. {
                    let now = phase.load(Ordering::Relaxed);
                    if now == Phase::Over as usize {
                        break;
                    }
                    // An odd multiplier visits every residue; clients begin apart.
                    let register = (client.wrapping_mul(0x9E37_79B9) ^ number)
                        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                        .rotate_left(32)
                        % entries;
                    let began = Instant::now();
                    let mut result = connection.submit(&write(register)).await;
                    while let Err(SubmitError::Indeterminate { ticket }) = result {
                        result = connection.resume(ticket).await;
                    }
                    result.context("a command failed")?;
                    record(&mut histograms[now], began.elapsed());
                }
                Ok(histograms)
            });
        }
        Load { phase, clients: together }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as usize, Ordering::Relaxed);
    }

    async fn end(mut self) -> anyhow::Result<[Histogram<u64>; Phase::Over as usize]> {
        self.enter(Phase::Over);
        let mut all = std::array::from_fn(|_| histogram());
        while let Some(client) = self.clients.join_next().await {
            let histograms = client.context("a client panicked")??;
            for (sum, histogram) in all.iter_mut().zip(&histograms) {
                sum.add(histogram)?;
            }
        }
        Ok(all)
    }
}
