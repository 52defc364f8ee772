//! Power cuts of a whole cluster of real processes: what is not flushed lives in each process's memory, so that SIGKILL
//! takes it along.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chronon_bank::{Answer, Bank, Command, Query, Reply};
use chronon_client::{Client, ClientOptions, SubmitError, TypedClient};
use support::{Cluster, PATIENCE};
use tokio::task::JoinSet;

const TASKS: u64 = 8;

/// Clients that never rest, each opening one account after another.
struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    client: TypedClient<Bank>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    over: AtomicBool,
    opened: Mutex<BTreeSet<u64>>,
    failed: Mutex<Vec<String>>,
}

impl Load {
    async fn start(cluster: &Cluster, timeout: Duration) -> Load {
        let options = ClientOptions { timeout, ..ClientOptions::default() };
        let client = TypedClient::new(Client::connect(cluster.clients(), options).await.unwrap());
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            tasks.spawn(open_accounts(client.clone(), Arc::clone(&shared)));
        }
        Load { shared, tasks, client }
    }

    fn acknowledged(&self) -> usize {
        self.shared.opened.lock().unwrap().len()
    }

    /// Waits until so many more were acknowledged. False if nothing comes any more.
    async fn more(&self, count: usize, patience: Duration) -> bool {
        let goal = self.acknowledged() + count;
        let began = Instant::now();
        while self.acknowledged() < goal {
            if patience < began.elapsed() {
                return false;
            }
            // sleeps: between two looks at what clients were told.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }

    /// Ends the clients, and says what was acknowledged and is not there, and what else went wrong.
    async fn lost(mut self) -> (usize, Vec<String>) {
        self.shared.over.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let mut lost = self.shared.failed.lock().unwrap().clone();
        let opened = self.shared.opened.lock().unwrap().clone();
        for account in &opened {
            match self.client.query(&Query::Balance { account: *account }).await {
                Ok(answered) if answered.answer == Answer::Balance(Some(1)) => {}
                Ok(answered) => lost.push(format!("account {account}: {:?}", answered.answer)),
                Err(error) => lost.push(format!("account {account}: {error}")),
            }
        }
        if let Ok(answered) = self.client.query(&Query::Totals).await
            && let Answer::Totals { totals, .. } = answered.answer
            && totals.rejected != 0
        {
            lost.push(format!("{} were applied twice", totals.rejected));
        }
        (opened.len(), lost)
    }
}

async fn open_accounts(client: TypedClient<Bank>, shared: Arc<Shared>) {
    while !shared.over.load(Ordering::Relaxed) {
        let account = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut result = client.submit(&Command::Open { account, balance: 1 }).await;
        // As an honest client does: under the same number.
        while let Err(SubmitError::Indeterminate { ticket }) = result {
            if shared.over.load(Ordering::Relaxed) {
                return;
            }
            result = client.resume(ticket).await;
        }
        match result {
            Ok(committed) if committed.reply == Reply::Opened => {
                shared.opened.lock().unwrap().insert(account);
            }
            Ok(committed) => shared.failed.lock().unwrap().push(format!("{account}: {:?}", committed.reply)),
            Err(error) => {
                shared.failed.lock().unwrap().push(format!("{account}: {error}"));
                return;
            }
        }
    }
}

/// Cuts the power of all replicas again and again, each time after another number of acknowledgements.
async fn power_cuts(name: &str, rounds: usize, start: &[&str], patience: Duration) -> (usize, Vec<String>) {
    let mut cluster = Cluster::with_log(name, 3, 16);
    (0..3).for_each(|replica| cluster.start_as(replica, start));
    let load = Load::start(&cluster, patience).await;
    for round in 0..rounds {
        if !load.more(1 + round * 7 % 40, patience).await {
            break;
        }
        (0..3).for_each(|replica| cluster.kill(replica));
        (0..3).for_each(|replica| cluster.start_as(replica, start));
    }
    load.more(20, patience).await;
    load.lost().await
}

#[tokio::test]
async fn fifty_power_cuts_of_all_replicas_in_a_row_lose_nothing_that_was_acknowledged() {
    let start = ["internal-replica", "--unflushed"];
    let (acknowledged, lost) = power_cuts("power", 50, &start, PATIENCE).await;
    assert!(500 < acknowledged, "{acknowledged}");
    assert_eq!(lost, Vec::<String>::new());
}

#[cfg(feature = "mutations")]
#[tokio::test]
async fn power_cuts_find_replicas_that_acknowledge_before_they_flush() {
    let start = ["internal-replica", "--unflushed", "--sabotage", "ack-before-flush"];
    let (_, lost) = power_cuts("power-sabotage", 2, &start, Duration::from_secs(5)).await;
    assert_ne!(lost, Vec::<String>::new());
}
