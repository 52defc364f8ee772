//! What clients are told, again and again.

use chronon_bank::{Command, Rejection, Reply, Transfer, WebhookOrder};
use chronon_kernel::{Answer, Consistency, Refusal, RequestResult};
use chronon_sim::{ALL, CallKind, Cluster, Completed};
use chronon_vsr::Duration;

fn transfer(transfer: u64, amount: u64) -> Vec<u8> {
    let order = WebhookOrder::Any;
    postcard::to_allocvec(&Command::Transfer(Transfer { transfer, from: 0, to: 1, amount, order }))
        .expect("it can be written")
}

fn last_answers(c: &mut Cluster, count: usize) -> Vec<RequestResult> {
    let commands =
        c.completed().iter().filter(|completed| matches!(completed.kind, CallKind::Command { .. }));
    let commands: Vec<_> = commands.collect();
    let newest = commands[commands.len() - count..].iter();
    newest
        .map(|completed| match &completed.answer {
            Answer::Decided(result) => result.clone(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn ask_with_key(c: &mut Cluster, principal: &str, key: &str, body: &[u8]) -> RequestResult {
    c.start_with_key(principal, key, body.to_vec());
    c.until("it is answered", |world| world.clients_done());
    last_answers(c, 1).remove(0)
}

// Scenarios 34 and 68.
#[test]
fn a_retry_is_answered_like_the_first_time_after_fail_over_power_cut_and_restart() {
    let mut c = Cluster::new(3).seed(1);
    c.submit(8);
    let body = transfer(1_000, 7);
    let first = ask_with_key(&mut c, "alice", "k", &body);
    assert!(matches!(first, RequestResult::Replied { .. }));
    assert_eq!(ask_with_key(&mut c, "alice", "k", &body), first);
    let old = c.primary();
    c.replica(old).crash();
    assert_eq!(ask_with_key(&mut c, "alice", "k", &body), first);
    c.replica(old).restart();
    for replica in c.world().replicas() {
        c.replica(replica).power_off();
        c.replica(replica).restart();
    }
    assert_eq!(ask_with_key(&mut c, "alice", "k", &body), first);
    c.settle().assert_committed(ALL, 9);
}

// Scenario 34.
#[test]
fn a_command_sent_to_two_replicas_at_once_and_over_lossy_wires_is_applied_once() {
    for seed in 0..6 {
        let mut c = Cluster::new(3).seed(seed).with(|config| {
            config.clients.duplicate = 800_000;
            config.clients.patience = Duration::from_millis(60);
            config.network.loss = 100_000;
            config.network.delay_mean = Duration::from_millis(2);
        });
        c.submit(20);
        let old = c.primary();
        c.start(10).run(Duration::from_millis(3));
        c.replica(old).crash();
        c.run(Duration::from_millis(500));
        c.replica(old).restart();
        c.settle().assert_committed(ALL, 30);
    }
}

// Scenario 37.
#[test]
fn a_read_at_a_replica_that_has_just_started_again_never_goes_back_behind_what_was_seen() {
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed).with(|config| {
            // To execute again what its log holds takes a replica its time.
            config.pace.back = Duration::from_millis(1);
            config.clients.patience = Duration::from_secs(5);
        });
        c.submit(40).settle();
        let backup = c.backups()[0];
        c.replica(backup).power_off();
        c.submit(12);
        let (seen, asked) = (c.head(), c.completed().len());
        let at_least = Consistency::AtLeast(seen.value());
        c.replica(backup).restart().read(Consistency::Linearizable).read(at_least).read(Consistency::Local);
        c.run(Duration::from_millis(2));
        assert!(c.world().engine(backup).unwrap().applied() < seen);
        c.until("every read is answered", chronon_sim::World::clients_done);
        let reads: Vec<Completed> = c.completed()[asked..].to_vec();
        assert_eq!(reads.len(), 3);
        for read in reads {
            let CallKind::Query { consistency, .. } = read.kind else { panic!("{read:?}") };
            // Nobody else was asked. Who is content with whatever there is gets that, and hears how old it is.
            assert_eq!(read.attempts, 1, "{read:?}");
            assert_eq!(consistency == Consistency::Local, read.op < seen, "{read:?}, {seen} was seen");
        }
        c.settle().assert_committed(ALL, 52);
    }
}

// Scenario 67.
#[test]
fn a_rejected_command_is_committed_and_its_retry_hears_the_same_rejection() {
    let mut c = Cluster::new(3).seed(2);
    c.submit(1);
    let body = transfer(2_000, 1_000_000);
    let first = ask_with_key(&mut c, "alice", "too much", &body);
    let RequestResult::Replied { reply, effects, .. } = &first else { panic!("{first:?}") };
    let reply: Reply = postcard::from_bytes(reply).unwrap();
    assert!(matches!(reply, Reply::Rejected(Rejection::InsufficientFunds { .. })), "{reply:?}");
    assert!(effects.is_empty());
    let old = c.primary();
    c.replica(old).crash();
    assert_eq!(ask_with_key(&mut c, "alice", "too much", &body), first);
    c.replica(old).restart();
    c.settle().assert_committed(ALL, 2);
}

// Scenario 69.
#[test]
fn a_key_belongs_to_one_command_of_one_principal() {
    let mut c = Cluster::new(3).seed(3);
    let (one, other) = (transfer(3_000, 1), transfer(3_001, 2));
    let first = ask_with_key(&mut c, "alice", "k", &one);
    assert_eq!(ask_with_key(&mut c, "alice", "k", &other), RequestResult::Refused(Refusal::KeyReused));
    let bob = ask_with_key(&mut c, "bob", "k", &other);
    assert!(matches!(bob, RequestResult::Replied { .. }));
    assert_ne!(bob, first);
    // Three at once under one key: all hear the answer of the one that was applied.
    for _ in 0..3 {
        c.start_with_key("carol", "k", transfer(3_002, 3));
    }
    c.until("they are answered", |world| world.clients_done());
    let answers = last_answers(&mut c, 3);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    c.settle().assert_committed(ALL, 3);
}
