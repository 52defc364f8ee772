//! What was acknowledged stays, whatever happens to processes: SIGKILL, SIGSTOP, SIGTERM, on three and five replicas.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use chronon_bank::{Answer, Bank, Command, Query, Reply};
use chronon_client::{Client, ClientOptions, Committed, SubmitError, TypedClient};
use chronon_kernel::Consistency;
use rustix::process::Signal;
use support::{Cluster, PATIENCE, chronon, stderr};

async fn client(cluster: &Cluster) -> TypedClient<Bank> {
    let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
    TypedClient::new(Client::connect(cluster.clients(), options).await.unwrap())
}

/// Opens an account with one coin. An account can be opened once, so a second application would be told.
async fn open(client: &TypedClient<Bank>, account: u64) -> Committed<Reply> {
    let mut result = client.submit(&Command::Open { account, balance: 1 }).await;
    loop {
        match result {
            Ok(committed) => return committed,
            Err(SubmitError::Indeterminate { ticket }) => result = client.resume(ticket).await,
            Err(error) => panic!("account {account}: {error}"),
        }
    }
}

async fn open_many(client: TypedClient<Bank>, accounts: std::ops::Range<u64>) -> BTreeSet<u64> {
    let mut opened = BTreeSet::new();
    for account in accounts {
        // AccountExists would mean that it was applied twice.
        assert_eq!(open(&client, account).await.reply, Reply::Opened, "account {account}");
        opened.insert(account);
    }
    opened
}

async fn assert_all_there(client: &TypedClient<Bank>, opened: &BTreeSet<u64>) {
    for account in opened {
        let balance = client.query(&Query::Balance { account: *account }).await.unwrap().answer;
        assert_eq!(balance, Answer::Balance(Some(1)), "account {account} was acknowledged");
    }
    let Answer::Totals { held, totals } = client.query(&Query::Totals).await.unwrap().answer else {
        panic!("no totals");
    };
    assert_eq!((held, totals.accounts, totals.rejected), (opened.len() as u64, opened.len() as u64, 0));
}

async fn primaries_are_killed(name: &str, replicas: usize, at_once: usize) {
    let mut cluster = Cluster::started(name, replicas);
    let client = client(&cluster).await;
    const EACH: u64 = 60;
    let mut opened = open_many(client.clone(), 0..10).await;
    for round in 0..3 {
        let work: Vec<_> = (0..4)
            .map(|worker| {
                let first = 1_000 * (round + 1) + EACH * worker;
                tokio::spawn(open_many(client.clone(), first..first + EACH))
            })
            .collect();
        let primary = cluster.primary(None).await;
        let backups = (0..replicas).filter(|replica| *replica != primary).take(at_once - 1);
        let killed: Vec<usize> = [primary].into_iter().chain(backups).collect();
        killed.iter().for_each(|replica| cluster.kill(*replica));
        for worker in work {
            opened.extend(worker.await.unwrap());
        }
        killed.iter().for_each(|replica| cluster.start(*replica));
        cluster.primary(None).await;
    }
    assert_all_there(&client, &opened).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_or_applied_twice_when_primaries_of_three_are_killed() {
    primaries_are_killed("kill-three", 3, 1).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_or_applied_twice_when_two_of_five_are_killed_at_once() {
    primaries_are_killed("kill-five", 5, 2).await;
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_all_replicas_were_killed() {
    let mut cluster = Cluster::started("kill-all", 3);
    let client = client(&cluster).await;
    let opened = open_many(client.clone(), 0..50).await;
    (0..3).for_each(|replica| cluster.kill(replica));
    (0..3).for_each(|replica| cluster.start(replica));
    assert_all_there(&client, &opened).await;
}

/// The pause is the story itself, not a way to wait for something.
async fn primary_is_stopped(name: &str, replicas: usize) {
    let cluster = Cluster::started(name, replicas);
    let client = client(&cluster).await;
    let mut opened = open_many(client.clone(), 0..20).await;
    let stopped = cluster.primary(None).await;
    let stale = cluster.connection(stopped).await.unwrap();
    cluster.signal(stopped, Signal::STOP);
    // sleeps: the pause is the story itself.
    let pause = tokio::time::sleep(Duration::from_secs(5));
    // The others go on without it.
    opened.extend(open_many(client.clone(), 100..150).await);
    // Asked now, and read by the stopped primary the moment it wakes, before it has heard of anything: the rest of the
    // pause is time enough for the question to lie in its socket.
    let query = postcard::to_allocvec(&Query::Balance { account: 149 }).unwrap();
    let asked = {
        let stale = stale.clone();
        tokio::spawn(
            async move { stale.query(Duration::from_secs(10), Consistency::Linearizable, query).await },
        )
    };
    pause.await;
    cluster.signal(stopped, Signal::CONT);
    if let Ok(chronon_kernel::Answer::Answered { answer, .. }) = asked.await.unwrap() {
        let answer: Answer = postcard::from_bytes(&answer).unwrap();
        assert_eq!(answer, Answer::Balance(Some(1)), "a stale read");
    }
    opened.extend(open_many(client.clone(), 200..220).await);
    assert_all_there(&client, &opened).await;
}

#[tokio::test]
async fn a_primary_of_three_that_was_stopped_for_five_seconds_loses_nothing_and_reads_nothing_stale() {
    primary_is_stopped("stop-three", 3).await;
}

#[tokio::test]
async fn a_primary_of_five_that_was_stopped_for_five_seconds_loses_nothing_and_reads_nothing_stale() {
    primary_is_stopped("stop-five", 5).await;
}

/// A backup hands a command to a primary that will not answer. It does not wait for it once another one leads.
#[tokio::test]
async fn a_command_that_lies_with_a_primary_that_hangs_is_carried_out_by_the_next() {
    let cluster = Cluster::started("hanging-primary", 3);
    let primary = cluster.primary(None).await;
    let submit = |account: u64| {
        let command = format!(r#"{{"open":{{"account":{account},"balance":1}}}}"#);
        let api = cluster.api_of((primary + 1) % 3);
        chronon(&["submit", "--api", api, "--timeout", "15", &command])
    };
    // From here on there is a connection, which nothing breaks.
    let before = submit(1);
    assert!(before.status.success(), "{}", stderr(&before));
    cluster.signal(primary, Signal::STOP);
    let after = submit(2);
    assert!(after.status.success(), "{}", stderr(&after));
}

#[tokio::test]
async fn a_replica_that_is_asked_to_stop_ends_well_and_comes_back() {
    let mut cluster = Cluster::started("terminate", 3);
    let client = client(&cluster).await;
    let mut opened = open_many(client.clone(), 0..10).await;
    for round in 0..3 {
        let primary = cluster.primary(None).await;
        let first = 100 * (round + 1);
        let work = tokio::spawn(open_many(client.clone(), first..first + 40));
        assert!(cluster.terminate(primary), "an orderly stop ends with code 0");
        opened.extend(work.await.unwrap());
        cluster.start(primary);
    }
    assert_all_there(&client, &opened).await;
}
