//! Restart: a backup with a history is killed and started again. How long until it has executed all that was committed
//! when it went, and so serves again?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_bank::{Bank, Command};
use serde::Serialize;

use super::machine::Counter;
use super::rig::{CONNECTIONS_MAX, LogArguments, cluster, connect, submit_each, submit_many};
use super::{Bar, Printing, conclude};
use crate::local::{LocalCluster, Machine};
use crate::output::{Progress, table};

/// How long a replica may need to execute what it missed, or to come back.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at a replica that comes back.
const LOOK: Duration = Duration::from_millis(2);
/// Commands behind the bank's accounts at a time, and at most: they make a checkpoint due.
const BEHIND: u64 = 20_000;
const BEHIND_MAX: u64 = 20_000_000;
/// Small commands a second that replay must reach, where a row replayed enough to tell.
const REPLAY_BAR: u64 = 300_000;
const REPLAYED_MIN: u64 = 100_000;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestartArguments {
    /// Where the data goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas: the others go on while one is restarted
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=6))]
    replicas: u8,
    /// Lengths of history, in commands, ascending: a restart is measured at each
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    commands: Vec<u64>,
    /// Accounts of a bank that is restarted too, from a checkpoint that has them all; 0: none
    #[arg(long, default_value_t = 1_000_000)]
    accounts: u64,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    log_mib: u64,
    rows: Vec<Row>,
    bars: Vec<Bar>,
}

/// One restart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Row {
    /// `counter`: small commands, a state of a few bytes. `bank`: a state of so many accounts.
    machine: &'static str,
    /// Commands in all of its history.
    commands: u64,
    ops: u64,
    /// The op of the checkpoint from which it went on; 0: from the beginning.
    checkpoint: u64,
    /// Until the process answers: the log is read, and the checkpoint's state is there.
    open_ms: u64,
    /// Until it has executed everything that was committed when it was killed.
    serves_ms: u64,
    /// Commands that it executed again since it answered, as the ops behind the checkpoint have them on average.
    replayed: u64,
    /// From the first answer on. None where too few were replayed to tell.
    replayed_per_second: Option<u64>,
}

pub(super) fn run(arguments: &RestartArguments) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        arguments.commands.is_sorted() && arguments.commands.iter().all(|commands| 0 < *commands),
        "--commands must ascend: each history goes on from the one before"
    );
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, directory))?;
    conclude(&figures, figures.table(), &figures.bars, &arguments.printing)
}

impl Figures {
    fn table(&self) -> String {
        let heads =
            ["machine", "commands", "ops", "checkpoint", "opens ms", "serves ms", "replayed", "replayed/s"];
        let mut lines = vec![heads.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let mut line = vec![row.machine.to_owned()];
            let numbers = [row.commands, row.ops, row.checkpoint, row.open_ms, row.serves_ms, row.replayed];
            line.extend(numbers.map(|number| number.to_string()));
            line.push(row.replayed_per_second.map_or("-".to_owned(), |rate| rate.to_string()));
            lines.push(line);
        }
        table(&lines)
    }
}

fn measure(arguments: &RestartArguments, directory: &Path) -> anyhow::Result<Figures> {
    let RestartArguments { replicas, accounts, log: LogArguments { log_mib }, .. } = *arguments;
    let progress = Progress::new(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    {
        let directory = directory.join("counter");
        std::fs::create_dir(&directory)?;
        let mut cluster = cluster(&directory, replicas, log_mib, Machine::Counter, &progress)?;
        rows.extend(runtime.block_on(counter(&mut cluster, &arguments.commands, &progress))?);
    }
    if 0 < accounts {
        let directory = directory.join("bank");
        std::fs::create_dir(&directory)?;
        let mut cluster = cluster(&directory, replicas, log_mib, Machine::Bank, &progress)?;
        rows.push(runtime.block_on(bank(&mut cluster, accounts, &progress))?);
    }
    let rate =
        rows.iter().filter(|row| row.machine == "counter").filter_map(|row| row.replayed_per_second).max();
    let bar = |rate: u64| {
        Bar::new(
            REPLAY_BAR <= rate,
            format!("{rate} small commands a second replayed, at least {REPLAY_BAR}"),
        )
    };
    Ok(Figures { replicas, log_mib, rows, bars: rate.map(bar).into_iter().collect() })
}

async fn counter(
    cluster: &mut LocalCluster,
    histories: &[u64],
    progress: &Progress,
) -> anyhow::Result<Vec<Row>> {
    let clients = connect::<Counter>(cluster.client_addresses(), CONNECTIONS_MAX).await?;
    let mut rows = Vec::new();
    let mut so_far = 0;
    for commands in histories {
        submit_many(&clients, commands - so_far).await?;
        so_far = *commands;
        rows.push(restart(cluster, "counter", so_far, progress).await?);
    }
    Ok(rows)
}

async fn bank(cluster: &mut LocalCluster, accounts: u64, progress: &Progress) -> anyhow::Result<Row> {
    let clients = connect::<Bank>(cluster.client_addresses(), CONNECTIONS_MAX).await?;
    let open = |account| Command::Open { account, balance: 1 };
    submit_each(&clients, accounts, open).await?;
    let mut commands = accounts;
    let (primary, status) = cluster.lead().await?;
    let backup = (primary + 1) % cluster.len();
    // Commands that change nothing, until there is a checkpoint that has all accounts.
    let until = commands + BEHIND_MAX;
    while cluster.status(backup).await?.checkpoint < status.commit {
        anyhow::ensure!(
            commands < until,
            "no checkpoint after {BEHIND_MAX} more commands: use a smaller --log-mib"
        );
        submit_each(&clients, BEHIND, move |number| open(number % accounts)).await?;
        commands += BEHIND;
    }
    restart(cluster, "bank", commands, progress).await
}

async fn restart(
    cluster: &mut LocalCluster,
    machine: &'static str,
    commands: u64,
    progress: &Progress,
) -> anyhow::Result<Row> {
    let (primary, status) = cluster.lead().await?;
    let ops = status.commit;
    let backup = (primary + 1) % cluster.len();
    cluster.has_applied(backup, ops, PATIENCE).await?;
    cluster.kill(backup)?;
    let began = Instant::now();
    cluster.start(backup)?;
    let mut opened = None;
    let (status, served) = loop {
        if let Ok(status) = cluster.status(backup).await {
            opened.get_or_insert_with(|| (began.elapsed(), status.applied.max(status.checkpoint)));
            if ops <= status.applied {
                break (status, began.elapsed());
            }
        }
        cluster.check_alive()?;
        anyhow::ensure!(began.elapsed() < PATIENCE, "replica {backup} does not serve after {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    };
    let (opened, from) = opened.context("it answered before it served")?;
    let behind = u128::from(ops.saturating_sub(from));
    let replayed = (u128::from(commands) * behind / u128::from(ops.max(1))) as u64;
    let rate = (replayed as f64 / (served - opened).as_secs_f64()) as u64;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let row = Row {
        machine,
        commands,
        ops,
        checkpoint: status.checkpoint.min(ops),
        open_ms: millis(opened),
        serves_ms: millis(served),
        replayed,
        replayed_per_second: (REPLAYED_MIN <= replayed).then_some(rate),
    };
    progress.say(format!("{machine}, {commands} commands: serves again after {} ms", row.serves_ms));
    Ok(row)
}
