//! The clients of the demo, and their own books.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_bank::Bank;
use chronon_client::{SubmitError, TypedClient};
use chronon_vsr::Prng;
use tokio::sync::Notify;

use super::pace::Pace;
use super::workload;

/// A transfer whose end stays unknown this long is entered as unknown.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(60);

/// The clients' work, and what they know of it.
#[derive(Debug)]
pub(crate) struct Workforce {
    pub(crate) pace: Pace,
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
    /// When the youngest of the acknowledged transfers began, and when its acknowledgement came.
    pub(super) youngest: Option<(Instant, Instant)>,
    /// What went wrong otherwise, with its transfer.
    pub(crate) problems: Vec<String>,
}

impl Books {
    fn ended(&self) -> u64 {
        (self.acknowledged.len() + self.problems.len()) as u64
    }

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
    pub(crate) fn new(pace: Pace) -> Arc<Workforce> {
        Arc::new(Workforce { pace, books: Mutex::new(Books::default()), entered: Notify::new() })
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

    /// Waits until so many more transfers have ended, well or not.
    pub(crate) async fn ended(&self, more: u32) {
        let ended = || self.lock().ended();
        let enough = ended() + u64::from(more);
        loop {
            let entered = self.entered.notified();
            if enough <= ended() {
                return;
            }
            entered.await;
        }
    }

    /// Waits until a transfer is acknowledged that began after `since`, and says when that was: an answer to an older one
    /// may have been on its way already. None: all that may begin have ended, and none of them so.
    pub(crate) async fn success_after(&self, since: Instant) -> Option<Instant> {
        loop {
            let entered = self.entered.notified();
            let (youngest, ended) = {
                let books = self.lock();
                (books.youngest, books.ended())
            };
            match youngest {
                Some((began, acknowledged)) if since < began => return Some(acknowledged),
                Some(_) | None if self.pace.allowed() <= ended => return None,
                Some(_) | None => entered.await,
            }
        }
    }

    /// Writes down what became of a transfer.
    fn enter(&self, id: u64, began: Instant, problem: Option<String>) {
        let mut books = self.lock();
        match problem {
            None => {
                let now = Instant::now();
                books.acknowledged.insert(id);
                books.successes.push(now);
                if books.youngest.is_none_or(|(youngest, _)| youngest < began) {
                    books.youngest = Some((began, now));
                }
            }
            Some(problem) => books.problems.push(format!("{id}: {problem}")),
        }
        self.entered.notify_waiters();
    }

    /// One client: transfer after transfer, each until its end is known.
    pub(crate) async fn run(self: Arc<Self>, client: TypedClient<Bank>, mut prng: Prng) {
        while self.pace.turn().await {
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
            self.enter(id, began, problem);
        }
    }
}
