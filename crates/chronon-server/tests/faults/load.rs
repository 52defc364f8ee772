//! Clients that never rest: what they were told, and for how long nobody was told anything.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::common::{PATIENCE, eventually};
use crate::machine::{Books, Command, Ledger};
use chronon_client::{SubmitError, TypedClient};
use tokio::task::JoinSet;

/// How many commands are under way at once.
const TASKS: u64 = 8;

/// Transfers, one after another, from several tasks.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// Numbers the commands of all loads: none is ever used twice.
static NEXT: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    told: Mutex<Told>,
}

/// What the clients were told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Commands that were acknowledged.
    pub(crate) acknowledged: BTreeSet<u64>,
    /// Commands that were not, and why.
    pub(crate) failed: Vec<String>,
    /// The longest time without an acknowledgement.
    pub(crate) outage: Duration,
    last: Option<Instant>,
}

impl Told {
    /// What was acknowledged and is not there.
    pub(crate) fn lost(&self, books: &Books) -> Vec<u64> {
        let applied: BTreeSet<u64> = books.applied.iter().map(|(number, _)| *number).collect();
        self.acknowledged.difference(&applied).copied().collect()
    }

    /// Every command was acknowledged, and is there.
    pub(crate) fn assert_kept(&self, books: &Books) {
        assert!(self.failed.is_empty(), "failed commands: {:?}", self.failed);
        let lost = self.lost(books);
        assert!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
    }

    fn acknowledge(&mut self, number: u64) {
        let now = Instant::now();
        self.acknowledged.insert(number);
        if let Some(last) = self.last {
            self.outage = self.outage.max(now - last);
        }
        self.last = Some(now);
    }
}

impl Load {
    /// Clients of this cluster that ask this replica first, as fast as they can.
    pub(crate) fn hasty(cluster: &Cluster, first: u8) -> Load {
        Load::start(cluster, first, Duration::ZERO, 0)
    }

    /// The same with pauses between commands, for as long as a test may last.
    pub(crate) fn steady(cluster: &Cluster, first: u8) -> Load {
        Load::start(cluster, first, Duration::from_millis(30), 0)
    }

    /// As fast as they can, and every command takes 100 KiB of the log.
    pub(crate) fn heavy(cluster: &Cluster, first: u8) -> Load {
        Load::start(cluster, first, Duration::ZERO, 96 * 1024)
    }

    fn start(cluster: &Cluster, first: u8, pause: Duration, weight: usize) -> Load {
        let shared = Arc::new(Shared::default());
        let client = cluster.client(first);
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            tasks.spawn(submit(client.clone(), Arc::clone(&shared), pause, weight));
        }
        Load { shared, tasks }
    }

    /// What the clients were told so far.
    pub(crate) fn told(&self) -> Told {
        self.shared.told.lock().unwrap().clone()
    }

    fn acknowledged(&self) -> usize {
        self.shared.told.lock().unwrap().acknowledged.len()
    }

    /// Waits until so many more commands were acknowledged.
    pub(crate) async fn more(&self, count: usize) {
        let goal = self.acknowledged() + count;
        eventually("more commands", async || goal <= self.acknowledged()).await;
    }

    /// Goes on for this long.
    pub(crate) async fn go_on(&self, long: Duration) {
        let end = Instant::now() + long;
        eventually("the end of a while", async || end <= Instant::now()).await;
    }

    /// Lets the commands under way end, and says what the clients were told.
    pub(crate) async fn stop(mut self) -> Told {
        self.shared.over.store(true, Ordering::Relaxed);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // A command may wait for its client's whole patience.
        tokio::time::timeout(3 * PATIENCE, ended).await.expect("clients end");
        self.told()
    }
}

async fn submit(client: TypedClient<Ledger>, shared: Arc<Shared>, pause: Duration, weight: usize) {
    while !shared.over.load(Ordering::Relaxed) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let command = match weight {
            0 => Command::Transfer(number),
            bytes => Command::Heavy(number, vec![7; bytes]),
        };
        let mut ended = client.submit(&command).await;
        if let Err(SubmitError::Indeterminate { ticket }) = ended {
            // As an honest client does: under the same number.
            ended = client.resume(ticket).await;
        }
        {
            let mut told = shared.told.lock().unwrap();
            match ended {
                Ok(_) => told.acknowledge(number),
                Err(error) => told.failed.push(format!("{number}: {error}")),
            }
        }
        // sleeps: a client's own pace; nobody waits for it.
        tokio::time::sleep(pause).await;
    }
}
