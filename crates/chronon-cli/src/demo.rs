//! `chronon demo`: three replica processes, clients, a webhook receiver; kill -9 for them all; then the books are
//! compared with those of the outside world.

mod clients;
mod killer;
mod pace;
pub(crate) mod receipt;
pub(crate) mod receiver;
pub(crate) mod workload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_bank::Bank;
use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_kernel::{Backoff, Contract, SinkName, SinkSpec};
use chronon_vsr::{BODY_SIZE_MAX, Prng, Ring};

use crate::children::OwnChild;
use crate::interrupt::{self, Data, end_when_interrupted};
use crate::local::{Flavour, LocalCluster, Machine, Sabotage, free_ports};
use crate::output::Progress;
use clients::Workforce;
use pace::Pace;
use receipt::Receipt;
use receiver::{Nuisance, read_ledger};

/// Clients that submit at the same time, over a few connections.
const CLIENTS: usize = 16;
const CONNECTIONS: usize = 4;
/// How long the cluster may take to begin.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Effects may be on their way this long without any progress before they are given up as lost.
const DRAIN_PATIENCE: Duration = Duration::from_secs(8);
/// One new key in so many has its first connection cut after the receiver acted.
const CUT_ONE_IN: u64 = 40;
/// Transfers that a kill needs around it: one is acknowledged before it, and one after it.
const TRANSFERS_PER_KILL: u32 = 10;
/// Bytes of each replica's log: it turns under the load of the demo, and checkpoints make room in it.
const LOG: u64 = 64 * 1024 * 1024;

/// Show that it works: kill -9 at random moments, then compare the books
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// Transfers to submit; each emits one webhook
    #[arg(long, default_value_t = 2_000)]
    transfers: u32,
    /// How often the primary is killed
    #[arg(long, default_value_t = 5)]
    kills: u32,
    /// Replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    replicas: u8,
    /// Decides moments, amounts and accounts; drawn if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the data in this directory, which must be new or empty
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// First let the power go for all replicas at once: what they have not flushed by then is gone
    #[arg(long)]
    power_cut: bool,
    /// The receipt as JSON
    #[arg(long)]
    json: bool,
    /// Break a guard on purpose: the demo must notice
    #[cfg(feature = "mutations")]
    #[arg(long)]
    sabotage: Option<Sabotage>,
}

impl DemoArguments {
    #[cfg(feature = "mutations")]
    fn sabotage(&self) -> Option<Sabotage> {
        self.sabotage
    }

    #[cfg(not(feature = "mutations"))]
    fn sabotage(&self) -> Option<Sabotage> {
        None
    }
}

/// Runs the demo.
pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let needed = arguments.kills.saturating_mul(TRANSFERS_PER_KILL);
    anyhow::ensure!(
        needed <= arguments.transfers,
        "{} kills under load need at least {needed} transfers, and there are {}: use --transfers {needed} or --kills {}",
        arguments.kills,
        arguments.transfers,
        arguments.transfers / TRANSFERS_PER_KILL
    );
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ started_nanos());
    let directory = match &arguments.keep {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("chronon-demo-{}", std::process::id())),
    };
    let data = if arguments.keep.is_some() { Data::Keep } else { Data::Remove };
    end_when_interrupted(vec![directory.clone()], data)?;
    std::fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let empty = std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none());
    anyhow::ensure!(empty, "{} is not empty: name a new directory", directory.display());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(demonstrate(arguments, seed, &directory));
    interrupt::give_way();
    let again = format!("again with: chronon demo --seed {seed}");
    match result {
        Ok(receipt) => {
            receipt.print(arguments.json)?;
            if receipt.all_right() {
                if arguments.keep.is_none() {
                    std::fs::remove_dir_all(&directory)
                        .with_context(|| format!("can't remove {}", directory.display()))?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            eprintln!("NOT all right. Data and logs are kept in {}; {again}", directory.display());
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            // What holds nothing yet is not worth keeping.
            if arguments.keep.is_none() && std::fs::remove_dir(&directory).is_ok() {
                return Err(error);
            }
            eprintln!("Data and logs are kept in {}; {again}", directory.display());
            Err(error)
        }
    }
}

fn started_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

async fn demonstrate(arguments: &DemoArguments, seed: u64, directory: &Path) -> anyhow::Result<Receipt> {
    let began = Instant::now();
    let mut prng = Prng::new(seed);
    let progress = Progress::new(u64::from(arguments.transfers));
    let sabotage = arguments.sabotage();
    // Nothing else shows that a flush was skipped: a mere kill leaves the page cache.
    let power_cut = arguments.power_cut || sabotage == Some(Sabotage::AckBeforeFlush);
    let flavour = Flavour { sabotage, unflushed: power_cut, machine: Machine::Bank };

    progress.say(format!("seed {seed}, data in {}", directory.display()));
    let ring = Ring::new(LOG, BODY_SIZE_MAX as u32).context("the log is too small for its own pipeline")?;
    let mut cluster =
        LocalCluster::create(directory, arguments.replicas, ring, flavour, &mut |filled, all| {
            progress.filling(filled, all);
        })?;
    cluster.start_all()?;
    let outside = Outside::start(directory, seed)?;
    progress.say(format!("{} replicas and a webhook receiver are running", arguments.replicas));

    let options = ClientOptions { timeout: START_PATIENCE, ..ClientOptions::default() };
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let connected = Client::connect(cluster.client_addresses(), options).await;
        cluster.check_alive()?;
        clients.push(TypedClient::new(connected.context("the cluster does not answer")?));
    }
    let first: &TypedClient<Bank> = &clients[0];
    let sink = SinkName::new(workload::SINK)?;
    first.client().set_sink(sink, Some(outside.sink()), None).await.context("the sink can't be set")?;
    workload::open_accounts(first).await?;
    let money_before = workload::money(first).await?;

    // The receiver is killed too. Without kills of the primary nothing has to last.
    let primaries = arguments.kills + u32::from(power_cut);
    let pace = Pace::new(arguments.transfers, if primaries == 0 { 0 } else { primaries + 1 });
    let work = Workforce::new(pace);
    let load = Instant::now();
    let hands: Vec<_> = (0..CLIENTS)
        .map(|hand| {
            let (client, prng) = (clients[hand % CONNECTIONS].clone(), prng.fork());
            tokio::spawn(Arc::clone(&work).run(client, prng))
        })
        .collect();
    let mut killer =
        killer::Killer { cluster, outside, work: Arc::clone(&work), prng: prng.fork(), progress };
    let kills = killer.run(arguments.kills, power_cut).await;
    work.pace.free();
    let killer::Killer { mut cluster, outside, progress, .. } = killer;
    let kills = kills?;
    progress.say("no more kills: the rest at full speed".to_owned());
    let flat_out_from = (Instant::now(), work.acknowledged_count());
    let mut hands: Vec<_> = hands.into_iter().collect();
    while let Some(hand) = hands.last_mut() {
        tokio::select! {
            ended = hand => {
                hands.pop();
                ended.context("a client panicked")?;
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => progress.acknowledged(work.acknowledged_count()),
        }
    }
    let loaded = load.elapsed();
    let flat_out = (flat_out_from.0.elapsed(), work.acknowledged_count().saturating_sub(flat_out_from.1));
    cluster.check_alive()?;
    progress.say("all transfers are answered; waiting for the last webhooks".to_owned());

    let (applied, counts) = drain(first, &outside).await?;
    let money_after = workload::money(first).await?;
    let books = work.books();
    books.save(&directory.join("clients.ledger"))?;
    let records = read_ledger(&outside.ledger)?;
    drop(outside);
    drop(cluster);
    Ok(Receipt::draw(receipt::Evidence {
        seed,
        replicas: arguments.replicas,
        kills_wanted: arguments.kills,
        kills,
        books,
        records,
        applied,
        counts,
        money: (money_before, money_after),
        loaded,
        flat_out,
        took: began.elapsed(),
    }))
}

/// Waits until every effect is settled, or nothing has moved for a while.
async fn drain(bank: &TypedClient<Bank>, outside: &Outside) -> anyhow::Result<(u64, workload::EffectCounts)> {
    let mut moved = (Instant::now(), 0, 0);
    loop {
        let (applied, counts) = workload::applied(bank).await?;
        let seen = read_ledger(&outside.ledger)?.len();
        if counts.settled() == counts.emitted {
            return Ok((applied, counts));
        }
        if (counts.settled(), seen) != (moved.1, moved.2) {
            moved = (Instant::now(), counts.settled(), seen);
        }
        if DRAIN_PATIENCE < moved.0.elapsed() {
            return Ok((applied, counts));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the receiver did when it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Killed {
    /// It had acted on a request and not answered yet.
    InTheMiddle,
    Idle,
}

/// The world outside: the receiver's process and its ledger.
#[derive(Debug)]
pub(crate) struct Outside {
    address: SocketAddr,
    ledger: PathBuf,
    log: PathBuf,
    seed: u64,
    child: Option<OwnChild>,
}

impl Outside {
    fn start(directory: &Path, seed: u64) -> anyhow::Result<Outside> {
        let address = free_ports(1)?[0];
        let ledger = directory.join("receiver.ledger");
        let log = directory.join("receiver.log");
        let mut outside = Outside { address, ledger, log, seed, child: None };
        outside.restart()?;
        Ok(outside)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let (listen, seed, cut) = (self.address.to_string(), self.seed.to_string(), CUT_ONE_IN.to_string());
        let ledger = self.ledger.to_str().context("the path is not UTF-8")?;
        let arguments = [
            "internal-receiver",
            "--listen",
            &listen,
            "--ledger",
            ledger,
            "--seed",
            &seed,
            "--cut-one-in",
            &cut,
        ];
        self.child = Some(OwnChild::start(&arguments, &self.log)?);
        Ok(())
    }

    /// Kills the receiver in the middle of a request: it has acted, and will not answer.
    async fn kill_in_the_middle(&mut self) -> anyhow::Result<Killed> {
        let url = format!("http://{}/hold", self.address);
        let held = tokio::time::timeout(Duration::from_secs(3), crate::api::post_empty(&url)).await;
        // If no webhook comes by, it is killed all the same.
        self.child.take().map_or(Ok(()), OwnChild::kill)?;
        Ok(if matches!(held, Ok(Ok(_))) { Killed::InTheMiddle } else { Killed::Idle })
    }

    fn sink(&self) -> SinkSpec {
        let config = format!(r#"{{"url":"http://{}/webhook","allow_private":true}}"#, self.address);
        let window = Duration::from_secs(24 * 3_600);
        let mut sink = SinkSpec::new("http", config, Contract::Idempotent { window, replays_errors: false });
        sink.backoff =
            Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500), attempts_max: 0 };
        sink.timeout = Duration::from_secs(2);
        sink.concurrency = 32;
        sink
    }
}

/// The receiver's process, for the hidden command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReceiverArguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    cut_one_in: u64,
}

/// Runs the receiver until it is killed.
pub(crate) fn run_receiver(arguments: ReceiverArguments) -> anyhow::Result<ExitCode> {
    let ReceiverArguments { listen, ledger, seed, cut_one_in } = arguments;
    receiver::run(listen, ledger, Nuisance { cut_one_in, seed })?;
    Ok(ExitCode::SUCCESS)
}
