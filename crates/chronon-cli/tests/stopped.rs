//! A primary that is stopped in the middle of its calls and goes on as if nothing had happened: what leaves late, and
//! which late ends still count (scenarios 42 and 73 over real processes).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chronon_bank::{Answer, Bank, Command, Notice, Query, Reply, Transfer, WEBHOOK, WebhookOrder};
use chronon_client::{Client, ClientOptions, SubmitError, TypedClient};
use chronon_kernel::{Contract, SinkName, SinkSpec};
use rustix::process::Signal;
use support::receiver::{Receiver, Seen};
use support::{Cluster, PATIENCE};

/// The transfer whose call is under way when its primary is stopped.
const HELD: u64 = 1;

/// How many transfers there are in all.
const TRANSFERS: u64 = 401;

/// A story begins anew this often if the view changed by itself before the stop.
const BEGINNINGS_MAX: u32 = 5;

/// Waits until something is so.
async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        // sleeps: between two looks at what other processes say of themselves.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn submit(client: &TypedClient<Bank>, command: &Command) -> Reply {
    let mut result = client.submit(command).await;
    loop {
        match result {
            Ok(committed) => return committed.reply,
            Err(SubmitError::Indeterminate { ticket }) => result = client.resume(ticket).await,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
}

async fn transfer(client: &TypedClient<Bank>, transfer: u64) {
    let transfer = Transfer { transfer, from: 1, to: 2, amount: 1, order: WebhookOrder::Any };
    let reply = submit(client, &Command::Transfer(transfer)).await;
    assert!(matches!(reply, Reply::Transferred { .. }), "{reply:?}");
}

/// How many webhooks were delivered, and where the held one stands.
async fn books(client: &TypedClient<Bank>) -> (u64, Option<Notice>) {
    let Answer::Totals { totals, .. } = client.query(&Query::Totals).await.unwrap().answer else {
        panic!("no totals")
    };
    let Answer::Notice(held) = client.query(&Query::Notice { transfer: HELD }).await.unwrap().answer else {
        panic!("no notice")
    };
    (totals.delivered, held)
}

struct Story {
    cluster: Cluster,
    receiver: Arc<Receiver>,
    client: TypedClient<Bank>,
    primary: usize,
}

impl Story {
    /// A cluster whose primary is in the middle of the held call.
    async fn begin(name: &str, replicas: usize, contract: Contract) -> Story {
        for beginning in 0..BEGINNINGS_MAX {
            let cluster = Cluster::started(&format!("{name}-{beginning}"), replicas);
            let receiver = Receiver::start([HELD]).await;
            let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
            let client = TypedClient::<Bank>::new(Client::connect(cluster.clients(), options).await.unwrap());
            let config = format!(r#"{{"url":"http://{}/webhook","allow_private":true}}"#, receiver.address);
            let mut sink = SinkSpec::new("http", config, contract);
            sink.timeout = Duration::from_secs(30);
            client.client().set_sink(SinkName::new(WEBHOOK).unwrap(), Some(sink), None).await.unwrap();
            for account in [1, 2] {
                submit(&client, &Command::Open { account, balance: 1_000_000 }).await;
            }
            let primary = cluster.primary(None).await;
            transfer(&client, HELD).await;
            eventually("the held call comes", async || !receiver.seen().is_empty()).await;
            if cluster.primary(None).await == primary && receiver.seen().len() == 1 {
                return Story { cluster, receiver, client, primary };
            }
        }
        panic!("the view changed before the stop, {BEGINNINGS_MAX} times in a row");
    }

    /// Transfers without a pause, so that the stop falls among calls that want to leave.
    fn load(&self, transfers: std::ops::Range<u64>) -> tokio::task::JoinHandle<()> {
        let client = self.client.clone();
        tokio::spawn(async move {
            for number in transfers {
                transfer(&client, number).await;
            }
        })
    }
}

fn keys(seen: &[Seen]) -> BTreeMap<u64, BTreeSet<&str>> {
    let mut keys: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for seen in seen {
        keys.entry(seen.transfer).or_default().insert(&seen.key);
    }
    keys
}

/// Stops the primary for five seconds while it calls, and lets the held call end after it goes on.
async fn a_primary_is_stopped_while_it_calls(name: &str, replicas: usize, contract: Contract) {
    let story = Story::begin(name, replicas, contract).await;
    let Story { cluster, receiver, client, primary } = &story;
    let load: Vec<_> = (0..4).map(|worker| story.load(100 * worker + 100..100 * worker + 200)).collect();
    eventually("calls leave", async || 50 <= receiver.seen().len()).await;
    cluster.signal(*primary, Signal::STOP);
    // sleeps: the pause is the story itself.
    let pause = tokio::time::sleep(Duration::from_secs(5));
    cluster.primary(Some(*primary)).await;
    let at_most_once = contract == Contract::AtMostOnce;
    // The others go on. What the contract lets them repeat they repeat; the rest waits for a person, or for the truth.
    eventually("the others have dealt with the held call", async || {
        let (_, held) = books(client).await;
        held == at_most_once.then_some(Notice::Parked)
    })
    .await;
    pause.await;

    receiver.mark();
    cluster.signal(*primary, Signal::CONT);
    receiver.release();
    for worker in load {
        worker.await.unwrap();
    }
    // Under at_most_once a call that was claimed and never left stays in doubt: its claimant's "no" comes from a reign
    // that is over. What reached the receiver is delivered, whoever called.
    eventually("what the receiver saw is delivered", async || {
        let delivered = if at_most_once { keys(&receiver.seen()).len() as u64 } else { TRANSFERS };
        books(client).await == (delivered, None)
    })
    .await;

    let seen = receiver.seen();
    assert!(keys(&seen).values().all(|keys| keys.len() == 1), "one key a transfer: {:?}", keys(&seen));
    let old = &seen[0].fence;
    assert!(seen.iter().any(|seen| old < &seen.fence), "the next primary called under a higher fence");
    let late = seen.iter().filter(|seen| seen.after_mark && &seen.fence == old).count() as u64;
    let counted = cluster.metric(*primary, "chronon_attempts_left_late_total");
    assert!(late <= counted, "{late} calls left late and {counted} were counted");
    if at_most_once {
        assert_eq!(keys(&seen).len(), seen.len(), "nothing was called twice");
    }
}

#[tokio::test]
async fn a_late_success_settles_what_waits_in_doubt_after_its_primary_was_stopped() {
    a_primary_is_stopped_while_it_calls("stopped-doubt", 3, Contract::AtMostOnce).await;
}

#[tokio::test]
async fn a_late_success_changes_nothing_where_the_next_primary_of_five_repeated_the_call() {
    let contract = Contract::Idempotent { window: Duration::from_secs(86_400), replays_errors: false };
    a_primary_is_stopped_while_it_calls("stopped-repeat", 5, contract).await;
}
