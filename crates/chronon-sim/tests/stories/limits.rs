//! Counters near their ends, clocks at the ends of time, and a machine that never comes to rest.

use chronon_kernel::{
    Attempt, Cell, Context, Contract, Emit, Emitted, Engine, EngineOptions, QueryContext, Settled, SinkName,
    SinkSpec, State, StateMachine, engine,
};
use chronon_sim::{ALL, BankWorkload, Cluster, Fault, Quiet, Workload};
use chronon_vsr::{Duration, Epoch, Event, Prng, ReplicaId, Stamp, Timestamp, View};

/// 2106-02-07T06:28:15Z: the last second that fits 32 bits.
const YEAR_2106: Timestamp = Timestamp::from_nanos(u32::MAX as u64 * 1_000_000_000);

/// Epochs begin with the second of a restore: this is the last one of 2106.
const EPOCH_2106: u64 = u64::MAX - 7;

/// A replica believes no message that names a later view: there is no way back from there.
const VIEW_LAST: u64 = u64::MAX / 2 - 1;

// Scenario 55.
#[test]
fn views_and_epochs_near_their_ends_and_clocks_of_1970_and_2106_serve_like_any_other() {
    let first = |epoch, view| Stamp { epoch: Epoch::new(epoch), view: View::new(view) };
    let cases = [
        (Timestamp::ZERO, first(0, 0)),
        (Timestamp::ZERO, first(EPOCH_2106, VIEW_LAST - 1_000)),
        (YEAR_2106, first(u64::from(u32::MAX), u64::from(u32::MAX))),
        (YEAR_2106, first(EPOCH_2106, VIEW_LAST - 1_000)),
    ];
    for (seed, (wall, stamp)) in (1..).zip(cases) {
        for contract in [Contract::AtMostOnce, Contract::Transactional] {
            let mut workload = BankWorkload::new(contract);
            workload.reminders = true;
            let mut c = Cluster::of(3, Box::new(workload)).seed(seed).tiny_log(6).with(|config| {
                config.wall_start = wall;
                config.stamp = stamp;
                // In 1970 a clock that is behind shows the first moment for a while.
                config.skew_max = Duration::from_millis(400);
            });
            c.submit(20).settle();
            let old = c.primary();
            c.replica(old).crash();
            c.submit(20);
            c.replica(old).restart();
            c.start(8).run(Duration::from_millis(3));
            c.power_off_all().run(Duration::from_millis(50)).start_all();
            // A clock is set back and forth by more than a second.
            let behind = c.backups()[0];
            c.world().inflict(Fault::Clock(behind, -2_000_000_000));
            c.submit(12);
            c.world().inflict(Fault::Clock(behind, 2_000_000_000));
            c.submit(12);
            c.world().inflict(Fault::Clock(behind, 0));
            c.settle().assert_committed(ALL, 72);
            let (status, began) = (c.world().replica(old).map(chronon_vsr::Replica::stamp), stamp);
            assert!(status.is_some_and(|stamp| stamp.epoch == began.epoch && began.view < stamp.view));
            assert!(0 < c.count_events(ALL, |event| matches!(event, Event::CheckpointDurable { .. })));
        }
    }
}

/// Each settled effect is followed by another, which settles at once, until somebody says stop.
#[derive(Clone, State)]
struct Restless {
    stopped: Cell<bool>,
    heard: Cell<u64>,
}

impl StateMachine for Restless {
    /// Whether it is to stop.
    type Command = bool;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    type Effect = ();
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Restless {
        Restless { stopped: Cell::default(), heard: Cell::default() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Restless>, stop: bool) -> u64 {
        self.stopped.modify(|stopped| *stopped |= stop);
        self.go_on(cx);
        *self.heard.get()
    }

    fn query(&self, _: &QueryContext, (): ()) -> u64 {
        *self.heard.get()
    }

    fn settled(&mut self, cx: &mut Context<'_, Restless>, _: Emitted<()>, _: Settled<()>) {
        self.heard.modify(|heard| *heard += 1);
        self.go_on(cx);
    }
}

impl Restless {
    /// What is taken back before it can have started settles within the op.
    fn go_on(&self, cx: &mut Context<'_, Restless>) {
        if !*self.stopped.get() {
            let effect = cx.emit(Emit::to("nowhere"), ());
            cx.cancel(effect);
        }
    }
}

#[derive(Debug)]
struct RestlessWorkload;

impl Workload for RestlessWorkload {
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine> {
        engine::<Restless>(options)
    }

    fn sinks(&self) -> Vec<(SinkName, SinkSpec)> {
        let name = SinkName::new("nowhere").expect("it is a name");
        vec![(name, SinkSpec::new("sim", "{}", Contract::AtLeastOnce))]
    }

    fn setup(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn command(&mut self, _: &mut Prng) -> Vec<u8> {
        postcard::to_allocvec(&false).expect("it can be written")
    }

    fn query(&mut self, _: &mut Prng) -> Vec<u8> {
        Vec::new()
    }

    fn outcome(&self, _: &Attempt) -> Vec<u8> {
        Vec::new()
    }

    fn check_quiet(&self, _: &Quiet<'_>) -> Result<(), String> {
        Ok(())
    }
}

// Scenario 50.
#[test]
fn a_machine_that_answers_each_outcome_with_another_effect_holds_nobody_up_and_keeps_its_bounds() {
    let mut c = Cluster::of(3, Box::new(RestlessWorkload)).seed(3).with(|config| {
        config.engine.history_max = 100;
        config.clients.patience = Duration::from_secs(5);
    });
    let per_op = c.world().config().engine.callbacks_per_op as u64;
    for round in 1..=20_u64 {
        c.submit(8).run(Duration::from_millis(50));
        for replica in c.world().replicas() {
            let status = c.world().engine(replica).unwrap().status();
            // One chain of outcomes for each command, and no more work in an op than was allowed.
            let open = status.scheduled + status.ready + status.started + status.waiting + status.parked;
            assert!(status.callbacks <= 8 * round && open == 0, "R{replica}: {status:?}");
            let applied = c.world().engine(replica).unwrap().applied().value();
            assert!(status.cancelled <= (per_op + 8 + 1) * applied, "{status:?} after {applied} ops");
        }
    }
    let slowest = c.completed().iter().map(|call| call.completed.since(call.invoked)).max().unwrap();
    assert!(slowest < Duration::from_millis(100), "a command waited for {slowest:?}");
    let replicas: Vec<ReplicaId> = c.world().replicas();
    let heard = |c: &mut Cluster| c.world().engine(replicas[0]).unwrap().status().cancelled;
    let before = heard(&mut c);
    c.run(Duration::from_secs(1));
    let rate = heard(&mut c) - before;
    assert!((per_op..=110 * (per_op + 1)).contains(&rate), "{rate} outcomes a second while nobody asks");
    c.start_with_key("", "stop", postcard::to_allocvec(&true).unwrap());
    c.until("the word to stop is heard", chronon_sim::World::clients_done);
    // No more is remembered of what is over than was allowed, so the auditor would miss some of it.
    c.until("all is quiet", |world| world.is_quiet().is_ok());
    for replica in replicas {
        let status = c.world().engine(replica).unwrap().status();
        assert_eq!((status.cancelled, status.callbacks), (status.emitted, 0), "R{replica}");
    }
}
