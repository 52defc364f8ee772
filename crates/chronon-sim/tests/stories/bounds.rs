//! Bounds: more clients than there is room for, sinks that are away for long, log time that jumps.

use chronon_bank::WebhookOrder;
use chronon_kernel::{Backoff, Consistency, Contract, Refusal, RequestResult};
use chronon_sim::{ALL, BankWorkload, ClientConfig, Cluster, Fault, SinkBehaviour};
use chronon_vsr::{Duration, Event, ReplicaId};

const HOUR: Duration = Duration::from_secs(3_600);

fn refused_as_evicted(c: &mut Cluster) -> usize {
    let results = c.world().results().all();
    results.filter(|(_, result)| **result == RequestResult::Refused(Refusal::SessionEvicted)).count()
}

// Scenario 35.
#[test]
fn an_evicted_session_is_told_so_on_every_replica_alike_and_nothing_runs_again() {
    let mut evicted = 0;
    for seed in 0..4 {
        let mut c = Cluster::new(3).seed(seed).with(|config| {
            config.clients.clients = 8;
            config.clients.duplicate = 300_000;
            config.engine.sessions_max = 4;
        });
        for round in 0..4 {
            c.start(24).run(Duration::from_millis(20));
            let old = c.primary();
            if round % 2 == 0 {
                c.replica(old).crash();
                c.run(Duration::from_millis(600));
                c.replica(old).restart();
            }
            c.until("every client has had its answer", chronon_sim::World::clients_done);
        }
        // The judges see that no request is applied twice and that all replicas answer alike.
        c.settle();
        evicted += refused_as_evicted(&mut c);
        for replica in c.world().replicas() {
            let sessions = c.world().engine(replica).unwrap().status().sessions;
            assert!(sessions <= 4, "R{replica} keeps {sessions} sessions");
        }
    }
    assert!(8 < evicted, "{evicted} commands met an evicted session");
}

// Scenario 36, with clocks that jump.
#[test]
fn a_primary_that_sleeps_through_a_change_of_view_answers_nothing_stale_whatever_its_clock_says() {
    for (seed, jump) in [(1, 0), (2, 3_600_000_000_000), (3, -3_600_000_000_000)] {
        sleeper(seed, jump).settle();
    }
}

/// Reads wait at a primary that sleeps while another has acknowledged writes; it wakes up before anybody tells it.
fn sleeper(seed: u64, jump: i64) -> Cluster {
    let mut c = Cluster::new(3).seed(seed);
    c.submit(24).settle();
    let old = c.primary();
    c.replica(old).pause();
    c.isolate(&[old]).submit(12);
    assert_ne!(c.primary(), old);
    // Whoever asks the sleeping one is patient.
    let clients = c.world().config().clients;
    c.world().set_clients(ClientConfig { patience: Duration::from_secs(8), ..clients });
    for _ in 0..8 {
        c.replica(old).read(Consistency::Linearizable);
    }
    c.run(Duration::from_millis(5)).world().inflict(Fault::Clock(old, jump));
    c.replica(old).resume();
    c.run(Duration::from_millis(50)).world().inflict(Fault::Clock(old, 0));
    c.heal();
    c
}

// Scenario 38.
#[test]
fn an_overloaded_cluster_says_busy_keeps_its_bounds_and_serves_everybody_in_the_end() {
    let mut c = Cluster::new(3).seed(5).with(|config| {
        config.clients.clients = 120;
        config.clients.patience = Duration::from_millis(60);
        config.limits.queue_requests_max = 6;
        config.limits.in_flight_max = 24;
        // Every op takes its time.
        config.pace.back = Duration::from_micros(400);
        config.disk.flush_min = Duration::from_millis(3);
    });
    c.start(600);
    let mut queued = 0;
    for _ in 0..400 {
        c.run(Duration::from_millis(10));
        for replica in c.world().replicas() {
            queued = queued.max(c.world().status(replica).map_or(0, |status| status.queued));
        }
    }
    c.until("everybody is served", chronon_sim::World::clients_done);
    c.settle().assert_committed(ALL, 600);
    // What the cluster itself has to order comes on top: the ends of as many calls as may be under way.
    assert!((6..=6 + 16).contains(&queued), "{queued} requests were queued at once");
    let busy = c.world().trace().lines().iter().filter(|line| line.contains("Busy")).count();
    assert!(0 < busy, "nobody was told to come back later");
    assert_eq!(c.count_events(ALL, |event| matches!(event, Event::ViewChangeStarted { .. })), 3);
}

// Scenario 47.
#[test]
fn a_sink_that_is_away_for_an_hour_is_not_stormed_when_it_returns_and_lanes_keep_their_order() {
    let contract = Contract::Idempotent { window: 24 * HOUR, replays_errors: false };
    let mut workload = BankWorkload::new(contract);
    workload.order = WebhookOrder::ByPayer;
    workload.webhook.concurrency = 4;
    workload.webhook.backoff =
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(300), attempts_max: 0 };
    let mut c = Cluster::of(3, Box::new(workload)).seed(6);
    c.submit(8).settle();
    c.world().set_sinks(SinkBehaviour { refuse: 1_000_000, ..SinkBehaviour::GOOD });
    c.submit(60);
    let before = c.world().starts();
    c.run(HOUR);
    let tried = c.world().starts() - before;
    // Eight lanes, one effect each at a time, every five minutes or so.
    assert!(tried < 8 * 60, "{tried} attempts in an hour");
    c.world().set_sinks(SinkBehaviour::GOOD);
    let mut most = 0;
    let end = c.world().now() + Duration::from_secs(600);
    while c.world().is_quiet().is_err() && c.world().now() < end {
        c.run(Duration::from_micros(500));
        most = most.max(c.world().attempts_under_way());
    }
    assert!((1..=4).contains(&most), "{most} calls at once");
    // The auditor sees that no lane is overtaken.
    c.settle().assert_committed(ALL, 68);
    let primary = c.primary();
    let status = c.world().engine(primary).unwrap().status();
    assert_eq!(status.delivered, status.emitted);
}

// Scenario 78.
#[test]
fn a_healthy_fencing_sink_refuses_nothing_whatever_order_lanes_overtake_in() {
    for seed in 0..4 {
        let mut workload = BankWorkload::new(Contract::Transactional);
        workload.order = WebhookOrder::ByPayer;
        workload.webhook.concurrency = 16;
        let mut c = Cluster::of(3, Box::new(workload)).seed(seed);
        c.submit(4).settle();
        // Calls take from one to many milliseconds: they overtake one another.
        let slow = Duration::from_millis(20);
        c.world().set_sinks(SinkBehaviour { delay_mean: slow, ..SinkBehaviour::GOOD });
        c.submit(60).settle().assert_committed(ALL, 64);
        let sink = c.world().sink(&BankWorkload::sink_name()).unwrap();
        assert_eq!(sink.fenced(), 0);
        let acted: Vec<_> = sink.ledger().iter().map(|act| act.effect).collect();
        assert!(!acted.is_sorted(), "nothing overtook anything");
    }
}

// Scenario 79.
#[test]
fn an_outage_that_outlasts_a_sinks_window_leaves_what_may_have_been_done_in_doubt() {
    let contract = Contract::Idempotent { window: HOUR, replays_errors: false };
    let mut c = Cluster::with_contract(3, contract).seed(7);
    c.submit(2).settle();
    let acts = |c: &mut Cluster| c.world().sink(&BankWorkload::sink_name()).unwrap().ledger().len();
    let before = acts(&mut c);
    c.world().set_sinks(SinkBehaviour { act_silent: 1_000_000, ..SinkBehaviour::GOOD });
    c.submit(20).run(Duration::from_millis(60));
    // It acted, and nobody heard; then it is away.
    c.world().set_sinks(SinkBehaviour { refuse: 1_000_000, ..SinkBehaviour::GOOD });
    c.run(Duration::from_secs(2));
    let acted = acts(&mut c);
    assert!(before + 10 < acted, "{acted}");
    let replicas: Vec<ReplicaId> = c.world().replicas();
    for replica in &replicas {
        c.replica(*replica).power_off();
    }
    c.run(2 * HOUR);
    c.world().set_sinks(SinkBehaviour::GOOD);
    for replica in &replicas {
        c.replica(*replica).restart();
    }
    c.settle().assert_committed(ALL, 22);
    // The sink has forgotten the keys: another call would act again. The auditor would see it.
    let doubtful = (acted - before) as u64;
    let primary = c.primary();
    let status = c.world().engine(primary).unwrap().status();
    assert_eq!((status.parked, status.delivered), (doubtful, 22 - doubtful));
}

/// The answers' delays of so many commands, sorted.
fn delays(c: &mut Cluster, commands: u32) -> Vec<Duration> {
    let before = c.completed().len();
    for _ in 0..commands / 4 {
        c.submit(4);
    }
    let mut delays: Vec<Duration> = c.completed()[before..]
        .iter()
        .map(|completed| completed.completed.since(completed.invoked))
        .collect();
    delays.sort_unstable();
    delays
}

/// What befalls a backup.
type Harm = fn(&mut Cluster, ReplicaId);

#[test]
fn a_backup_that_is_dead_slow_or_stalled_costs_no_more_than_one_flush() {
    for replicas in [3, 5] {
        let flush = Duration::from_millis(1);
        let cluster = || {
            let mut c = Cluster::new(replicas).seed(9).with(|config| config.disk.flush_min = flush);
            c.submit(20).settle();
            c
        };
        let healthy = delays(&mut cluster(), 200);
        let worse: [(&str, Harm); 4] = [
            ("dead", |c, backup| {
                c.replica(backup).crash();
            }),
            ("stalled", |c, backup| {
                c.replica(backup).stall(Duration::from_secs(3_600));
            }),
            ("slow", |c, backup| {
                c.replica(backup).stall(Duration::from_millis(20));
            }),
            ("paused", |c, backup| {
                c.replica(backup).pause();
            }),
        ];
        for (how, harm) in worse {
            let mut c = cluster();
            let backup = c.backups()[0];
            harm(&mut c, backup);
            let harmed = delays(&mut c, 200);
            for share in [50, 99] {
                let of = |delays: &[Duration]| delays[delays.len() * share / 100];
                let (before, after) = (of(&healthy), of(&harmed));
                assert!(
                    after <= before + flush + Duration::from_micros(300),
                    "{replicas} replicas, one {how}: p{share} {after:?}, healthy {before:?}"
                );
            }
        }
    }
}
