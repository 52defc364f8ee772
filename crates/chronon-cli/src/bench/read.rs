//! Reads per second: how fresh the answer must be, and who gives it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_kernel::Consistency;
use serde::Serialize;

use super::load::{Row, closed_loop};
use super::machine::Counter;
use super::rig::{CONNECTIONS_MAX, cluster, command, connect};
use super::{Printing, conclude};
use crate::local::{LocalCluster, Machine};
use crate::output::{Progress, table};

/// Clients of a row at most.
const CLIENTS_MAX: u64 = 4_096;
/// How long a read may take, the first one included.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReadArguments {
    /// Where the data goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas: one of them is the backup that is asked
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=6))]
    replicas: u8,
    /// Clients of each row
    #[arg(long, value_delimiter = ',', default_value = "1,64", value_parser = clap::value_parser!(u64).range(1..=CLIENTS_MAX))]
    clients: Vec<u64>,
    /// Seconds of each row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    rows: Vec<ReadRow>,
}

#[derive(Clone, Debug, Serialize)]
struct ReadRow {
    read: &'static str,
    at: &'static str,
    #[serde(flatten)]
    row: Row,
}

pub(super) fn run(arguments: &ReadArguments) -> anyhow::Result<ExitCode> {
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, directory))?;
    conclude(&figures, figures.table(), &[], &arguments.printing)
}

impl Figures {
    fn table(&self) -> String {
        let mut lines =
            vec![["read", "at"].map(str::to_owned).into_iter().chain(Row::heads("reads/s")).collect()];
        for ReadRow { read, at, row } in &self.rows {
            lines.push([*read, *at].map(str::to_owned).into_iter().chain(row.cells()).collect());
        }
        table(&lines)
    }
}

fn measure(arguments: &ReadArguments, directory: &Path) -> anyhow::Result<Figures> {
    /// What the reads need of a log.
    const LOG_MIB: u64 = 128;
    let progress = Progress::new(0);
    let mut cluster = cluster(directory, arguments.replicas, LOG_MIB, Machine::Counter, &progress)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(rows(&mut cluster, arguments, &progress))?;
    Ok(Figures { replicas: arguments.replicas, rows })
}

async fn rows(
    cluster: &mut LocalCluster,
    arguments: &ReadArguments,
    progress: &Progress,
) -> anyhow::Result<Vec<ReadRow>> {
    let writers = connect::<Counter>(cluster.client_addresses(), 1).await?;
    let written = writers[0].submit(&command()).await?.at.op;
    let (primary, _) = cluster.lead().await?;
    let backup = (primary + 1) % cluster.len();
    cluster.caught_up(backup).await?;
    let (linearizable, at_least) = (Consistency::Linearizable, Consistency::AtLeast(written));
    let mut rows = Vec::new();
    for (read, at, replica, consistency) in [
        ("linearizable", "primary", primary, linearizable),
        ("linearizable", "backup", backup, linearizable),
        ("at_least", "primary", primary, at_least),
        ("at_least", "backup", backup, at_least),
        ("local", "primary", primary, Consistency::Local),
        ("local", "backup", backup, Consistency::Local),
    ] {
        for clients in arguments.clients.iter().map(|clients| *clients as usize) {
            let time = Duration::from_secs(arguments.seconds);
            let row = row(cluster.client_address(replica), consistency, clients, time).await;
            cluster.check_alive()?;
            let row = row.with_context(|| format!("{read} reads at the {at}"))?;
            progress.say(format!("{read} at the {at}, {clients} clients: {} reads/s", row.per_second));
            rows.push(ReadRow { read, at, row });
        }
    }
    Ok(rows)
}

/// Reads that one replica answers, and no other.
async fn row(
    address: String,
    consistency: Consistency,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Row> {
    let options = ClientOptions { timeout: PATIENCE, outstanding_max: 1_000, ..ClientOptions::default() };
    let mut connected = Vec::new();
    for _ in 0..clients.min(CONNECTIONS_MAX) {
        let client = TypedClient::<Counter>::new(Client::new([address.clone()], options)?);
        // No row pays for its connections.
        client.query_at(&(), consistency).await?;
        connected.push(client);
    }
    let query = move |client: TypedClient<Counter>, _| async move {
        client.query_at(&(), consistency).await?;
        Ok(())
    };
    closed_loop(&connected, clients, 1, time, query).await
}
