//! Fail-over as a client sees it: the primary is killed with SIGKILL again and again while clients go on submitting, and
//! for each kill the longest time without an acknowledgement counts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_client::{SubmitError, TypedClient};
use chronon_vsr::Prng;
use serde::Serialize;
use tokio::sync::Notify;

use super::machine::Counter;
use super::rig::{LogArguments, cluster, command, connect};
use super::{Bar, Printing, conclude};
use crate::demo::receipt::{Kill, failovers};
use crate::local::{LocalCluster, Machine};
use crate::output::{Progress, table};

const CLIENTS: usize = 16;
const CONNECTIONS: usize = 8;
/// Between an acknowledgement and the client's next command: about 800 commands a second from all of them, so that a
/// silence is known to about a millisecond and the log stays small.
const PAUSE: Duration = Duration::from_millis(20);
/// How long acknowledgements may stay away.
const PATIENCE: Duration = Duration::from_secs(30);
/// The bar for the median.
const MEDIAN_BAR_MS: u64 = 500;
/// Upper ends of the histogram's rows.
const BUCKETS_MS: [u64; 9] = [50, 100, 150, 200, 300, 500, 1_000, 2_000, u64::MAX];
/// Kills between two lines of progress.
const PROGRESS_EVERY: u32 = 10;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FailoverArguments {
    /// Where the data goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas: with fewer than three nobody takes over
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=6))]
    replicas: u8,
    /// How often the primary is killed
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Decides the moments; drawn if not given
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    seed: u64,
    kills: u32,
    median_ms: u64,
    p90_ms: u64,
    worst_ms: u64,
    histogram: Vec<Bucket>,
    /// One a kill, in their order.
    failover_ms: Vec<u64>,
    acknowledged: u64,
    bars: Vec<Bar>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bucket {
    from_ms: u64,
    /// None: without an end.
    below_ms: Option<u64>,
    kills: usize,
}

pub(super) fn run(arguments: &FailoverArguments) -> anyhow::Result<ExitCode> {
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, directory))?;
    conclude(&figures, figures.text(), &figures.bars, &arguments.printing)
}

impl Figures {
    fn new(replicas: u8, seed: u64, failover_ms: Vec<u64>, acknowledged: u64) -> Figures {
        let mut sorted = failover_ms.clone();
        sorted.sort_unstable();
        let at =
            |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        let at = |percent: usize| at(percent).copied().unwrap_or(0);
        let (median_ms, p90_ms, worst_ms) = (at(50), at(90), at(100));
        let what =
            format!("median fail-over {median_ms} ms over {} kills, below {MEDIAN_BAR_MS} ms", sorted.len());
        Figures {
            replicas,
            seed,
            kills: sorted.len() as u32,
            median_ms,
            p90_ms,
            worst_ms,
            histogram: buckets(&sorted),
            failover_ms,
            acknowledged,
            bars: vec![Bar::new(median_ms < MEDIAN_BAR_MS, what)],
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![["silence", "kills", ""].map(str::to_owned).to_vec()];
        for Bucket { from_ms, below_ms, kills } in &self.histogram {
            let range = match below_ms {
                Some(below_ms) => format!("below {below_ms} ms"),
                None => format!("from {from_ms} ms on"),
            };
            let bar = "#".repeat((kills * 50).div_ceil(self.failover_ms.len().max(1)));
            lines.push(vec![range, kills.to_string(), bar]);
        }
        format!(
            "{}\n{} replicas, {} kills of the primary, seed {}: median {} ms, p90 {} ms, worst {} ms\n",
            table(&lines),
            self.replicas,
            self.kills,
            self.seed,
            self.median_ms,
            self.p90_ms,
            self.worst_ms
        )
    }
}

fn buckets(silences_ms: &[u64]) -> Vec<Bucket> {
    let mut from_ms = 0;
    BUCKETS_MS
        .iter()
        .map(|end| {
            let kills = silences_ms.iter().filter(|silence| (from_ms..*end).contains(silence)).count();
            let bucket = Bucket { from_ms, below_ms: (*end != u64::MAX).then_some(*end), kills };
            from_ms = *end;
            bucket
        })
        .collect()
}

fn measure(arguments: &FailoverArguments, directory: &Path) -> anyhow::Result<Figures> {
    let progress = Progress::new(u64::from(arguments.kills));
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let kills = arguments.kills;
    let mut cluster =
        cluster(directory, arguments.replicas, arguments.log.log_mib, Machine::Counter, &progress)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let load = Load::start(&cluster).await?;
        let killed = kill_all(&mut cluster, &load, kills, Prng::new(seed), &progress).await;
        let successes = load.stop().await;
        let (killed, successes) = (killed?, successes?);
        let silences = failovers(&until_the_next(&killed), &successes);
        anyhow::ensure!(silences.len() == killed.len(), "a kill was followed by no acknowledgement");
        Ok(Figures::new(arguments.replicas, seed, silences, successes.len() as u64))
    })
}

/// The load never stops, so the whole time until the next kill is searched for the silence that each caused.
fn until_the_next(killed: &[Instant]) -> Vec<Kill> {
    let next = |number: usize, at: Instant| killed.get(number + 1).copied().unwrap_or(at + PATIENCE);
    killed.iter().enumerate().map(|(number, at)| Kill { at: *at, served: next(number, *at) }).collect()
}

async fn kill_all(
    cluster: &mut LocalCluster,
    load: &Load,
    kills: u32,
    mut prng: Prng,
    progress: &Progress,
) -> anyhow::Result<Vec<Instant>> {
    let mut killed = Vec::new();
    for number in 1..=kills {
        tokio::time::sleep(Duration::from_millis(prng.between(150, 500))).await;
        let (primary, _) = cluster.lead().await?;
        let at = Instant::now();
        cluster.kill(primary)?;
        load.success_after(at, cluster).await?;
        killed.push(at);
        tokio::time::sleep(Duration::from_millis(prng.between(0, 300))).await;
        cluster.start(primary)?;
        cluster.caught_up(primary).await?;
        progress.acknowledged(u64::from(number));
        if number % PROGRESS_EVERY == 0 {
            progress.say(format!("{number} of {kills} kills"));
        }
    }
    Ok(killed)
}

/// Clients that submit without end, and when they were answered.
#[derive(Debug)]
struct Load {
    books: Arc<Books>,
    clients: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug, Default)]
struct Books {
    successes: Mutex<Vec<Instant>>,
    entered: Notify,
    over: AtomicBool,
}

impl Books {
    fn enter(&self) {
        self.successes.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        self.entered.notify_waiters();
    }

    fn newest(&self) -> Option<Instant> {
        self.successes.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }
}

impl Load {
    async fn start(cluster: &LocalCluster) -> anyhow::Result<Load> {
        let connected = connect::<Counter>(cluster.client_addresses(), CONNECTIONS).await?;
        let books = Arc::new(Books::default());
        let clients = (0..CLIENTS)
            .map(|client| tokio::spawn(submit(connected[client % CONNECTIONS].clone(), Arc::clone(&books))))
            .collect();
        Ok(Load { books, clients })
    }

    async fn success_after(&self, since: Instant, cluster: &mut LocalCluster) -> anyhow::Result<()> {
        let success = async {
            loop {
                let entered = self.books.entered.notified();
                if self.books.newest().is_some_and(|newest| since < newest) {
                    return;
                }
                entered.await;
            }
        };
        let success = tokio::time::timeout(PATIENCE, success).await;
        cluster.check_alive()?;
        success.with_context(|| format!("no command was acknowledged within {PATIENCE:?} after a kill"))
    }

    /// Every client ends its command; all their acknowledgements.
    async fn stop(self) -> anyhow::Result<Vec<Instant>> {
        self.books.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.context("a client panicked")??;
        }
        Ok(self.books.successes.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn submit(client: TypedClient<Counter>, books: Arc<Books>) -> anyhow::Result<()> {
    while !books.over.load(Ordering::Relaxed) {
        let mut result = client.submit(&command()).await;
        loop {
            match result {
                Ok(_) => break,
                Err(SubmitError::Indeterminate { ticket }) => result = client.resume(ticket).await,
                Err(SubmitError::NotExecuted(_)) if !books.over.load(Ordering::Relaxed) => {
                    result = client.submit(&command()).await;
                }
                Err(error) => return Err(error).context("a command failed"),
            }
        }
        books.enter();
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_silence_is_in_one_bucket_and_the_median_is_judged() {
        let figures = Figures::new(3, 1, vec![700, 49, 50, 120, 5_000], 9);
        assert_eq!((figures.median_ms, figures.worst_ms), (120, 5_000));
        assert_eq!(figures.histogram.iter().map(|bucket| bucket.kills).sum::<usize>(), 5);
        let last = figures.histogram.last().map(|bucket| (bucket.from_ms, bucket.below_ms, bucket.kills));
        assert_eq!(last, Some((2_000, None, 1)));
        assert!(figures.bars[0].held);
        assert!(!Figures::new(3, 1, vec![100, 500, 500], 9).bars[0].held);
    }
}
