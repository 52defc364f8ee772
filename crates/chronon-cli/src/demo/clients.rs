//! The clients of the demo, and their own books.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_bank::Bank;
use chronon_client::{SubmitError, TypedClient};
use chronon_vsr::Prng;
use tokio::sync::Notify;

use super::workload;

/// About how long a kill takes, with everything around it: the load is spread over the kills by it.
const TIME_PER_KILL: Duration = Duration::from_secs(3);
/// The part of the transfers, in percent, that is spread over the kills. The rest runs at full speed.
const SPREAD_PERCENT: u64 = 60;
/// The longest pause between two transfers of one client: the load must not stop.
const PAUSE_MAX: Duration = Duration::from_millis(1_000);
/// A transfer whose end stays unknown this long is entered as unknown.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(60);

/// The clients' work, and what they know of it.
#[derive(Debug)]
pub(crate) struct Workforce {
    transfers: u32,
    clients: u32,
    begun: AtomicU32,
    kills_left: AtomicU32,
    books: Mutex<Books>,
    /// Something was written into the books.
    entered: Notify,
}

/// What the clients wrote down: the ledger inside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    /// Every transfer id that was ever sent.
    pub(crate) submitted: BTreeSet<u64>,
    /// Those that were acknowledged.
    pub(crate) acknowledged: BTreeSet<u64>,
    /// When acknowledgements came, in order.
    pub(crate) successes: Vec<Instant>,
    /// What went wrong otherwise, with its transfer.
    pub(crate) problems: Vec<String>,
}

impl Books {
    /// Writes them down for whoever looks into a failure.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let lines: String = self
            .submitted
            .iter()
            .map(|id| {
                let how = if self.acknowledged.contains(id) { "acknowledged" } else { "submitted" };
                format!("{id} {how}\n")
            })
            .chain(self.problems.iter().map(|problem| format!("# {problem}\n")))
            .collect();
        std::fs::write(path, lines).with_context(|| format!("can't write {}", path.display()))
    }
}

impl Workforce {
    pub(crate) fn new(transfers: u32, kills: u32, clients: usize) -> Arc<Workforce> {
        Arc::new(Workforce {
            transfers,
            clients: clients as u32,
            begun: AtomicU32::new(0),
            kills_left: AtomicU32::new(kills),
            books: Mutex::new(Books::default()),
            entered: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn books(&self) -> Books {
        self.lock().clone()
    }

    pub(crate) fn acknowledged_count(&self) -> u64 {
        self.lock().acknowledged.len() as u64
    }

    pub(crate) fn kill_done(&self) {
        self.kills_left.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn kills_are_over(&self) {
        self.kills_left.store(0, Ordering::Relaxed);
    }

    /// Whether there is still something to submit.
    pub(crate) fn has_more(&self) -> bool {
        self.begun.load(Ordering::Relaxed) < self.transfers
    }

    /// Waits for an acknowledgement that came after `since`. False: none came, and nothing is left to submit.
    pub(crate) async fn success_after(&self, since: Instant) -> bool {
        loop {
            let entered = self.entered.notified();
            if self.lock().successes.last().is_some_and(|last| since < *last) {
                return true;
            }
            if !self.has_more() {
                return false;
            }
            entered.await;
        }
    }

    /// How long a client waits before its next transfer, so that the load lasts as long as the kills.
    fn pause(&self) -> Duration {
        let kills_left = self.kills_left.load(Ordering::Relaxed);
        if kills_left == 0 {
            return Duration::ZERO;
        }
        let spread = u64::from(self.transfers) * SPREAD_PERCENT / 100;
        let left = spread.saturating_sub(u64::from(self.begun.load(Ordering::Relaxed))).max(1);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        (TIME_PER_KILL * kills_left * self.clients / left).min(PAUSE_MAX)
    }

    /// Writes down what became of a transfer.
    fn enter(&self, id: u64, problem: Option<String>) {
        let mut books = self.lock();
        match problem {
            None => {
                books.acknowledged.insert(id);
                books.successes.push(Instant::now());
            }
            Some(problem) => books.problems.push(format!("{id}: {problem}")),
        }
        self.entered.notify_waiters();
    }

    /// One client: transfer after transfer, each until its end is known.
    pub(crate) async fn run(self: Arc<Self>, client: TypedClient<Bank>, mut prng: Prng) {
        while self.begun.fetch_add(1, Ordering::Relaxed) < self.transfers {
            let (id, command) = workload::transfer(&mut prng);
            self.lock().submitted.insert(id);
            let began = Instant::now();
            let mut result = client.submit(&command).await;
            let problem = loop {
                match result {
                    Ok(committed) if workload::is_done(&committed.reply) => break None,
                    Ok(committed) => break Some(format!("{:?}", committed.reply)),
                    Err(error) if UNKNOWN_PATIENCE < began.elapsed() => break Some(error.to_string()),
                    Err(SubmitError::Indeterminate { ticket }) => result = client.resume(ticket).await,
                    // It was not executed, so it may be sent as something new.
                    Err(SubmitError::NotExecuted(_)) => result = client.submit(&command).await,
                    Err(error) => break Some(error.to_string()),
                }
            };
            let failed = problem.is_some();
            self.enter(id, problem);
            let pause = self.pause();
            if !failed && !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}
