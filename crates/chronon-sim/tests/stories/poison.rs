//! A machine that halts when it panics: every replica stands before one op, and a skip leads all of them past it.

use std::collections::BTreeMap;

use chronon_kernel::{
    AbortReason, Answer, Attempt, Context, Contract, Culprit, Emit, Emitted, Engine, EngineOptions, Halted,
    OnPanic, QueryContext, RequestResult, Settled, SinkName, SinkSpec, State, StateMachine, Table, TimerKey,
    engine,
};
use chronon_sim::{ALL, CallKind, Cluster, Completed, Quiet, Workload};
use chronon_vsr::{Duration, Op, Prng, ReplicaId, Role, Timestamp};
use serde::{Deserialize, Serialize};

use crate::quarantine::{heals, wrong_root};

/// Sums, by account; and a command, an outcome and a timer that it can't stand.
#[derive(Clone, Debug, State)]
struct Brittle {
    sums: Table<u64, u64>,
    heard: Table<u64, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Command {
    Add {
        account: u64,
        amount: u64,
    },
    /// Emits an effect whose outcome is heard well or not.
    Send {
        is_poison: bool,
    },
    /// Sets a timer that can't be heard.
    Wait,
    Poison,
}

impl StateMachine for Brittle {
    type Command = Command;
    type Reply = u64;
    type Query = u64;
    type Answer = u64;
    type Effect = bool;
    type Outcome = ();
    const VERSION: u32 = 1;
    const ON_PANIC: OnPanic = OnPanic::Halt;

    fn genesis() -> Brittle {
        Brittle { sums: Table::new(), heard: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Brittle>, command: Command) -> u64 {
        match command {
            Command::Add { account, amount } => {
                let sum = self.sums.get(&account).copied().unwrap_or(0) + amount;
                self.sums.insert(account, sum);
                sum
            }
            Command::Send { is_poison } => {
                cx.emit(Emit::to("hook"), is_poison);
                0
            }
            Command::Wait => {
                cx.set_timer(TimerKey("bang".into()), Timestamp::ZERO);
                0
            }
            Command::Poison => {
                // What it did before is taken back.
                self.sums.insert(0, u64::MAX);
                cx.emit(Emit::to("hook"), true);
                panic!("it can't stand this");
            }
        }
    }

    fn query(&self, _: &QueryContext, account: u64) -> u64 {
        self.sums.get(&account).copied().unwrap_or(0)
    }

    fn settled(&mut self, _: &mut Context<'_, Brittle>, effect: Emitted<bool>, _: Settled<()>) {
        self.heard.insert(effect.id.op().value(), 1);
        assert!(!effect.effect, "it can't hear this");
    }

    fn timer(&mut self, _: &mut Context<'_, Brittle>, TimerKey(key): TimerKey) {
        panic!("{key}");
    }
}

struct Sums;

impl Workload for Sums {
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine> {
        engine::<Brittle>(options)
    }

    fn sinks(&self) -> Vec<(SinkName, SinkSpec)> {
        let contract = Contract::Idempotent { window: Duration::from_secs(86_400), replays_errors: false };
        vec![(SinkName::new("hook").expect("it is a name"), SinkSpec::new("sim", "{}", contract))]
    }

    fn setup(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn command(&mut self, prng: &mut Prng) -> Vec<u8> {
        encode(&Command::Add { account: prng.below(4), amount: prng.between(1, 9) })
    }

    fn query(&mut self, prng: &mut Prng) -> Vec<u8> {
        encode(&prng.below(4))
    }

    fn outcome(&self, _: &Attempt) -> Vec<u8> {
        encode(&())
    }

    fn describe_command(&self, command: &[u8]) -> String {
        format!("{:?}", decode::<Command>(command))
    }

    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        let mut sums = BTreeMap::new();
        for applied in &quiet.applied {
            let Command::Add { account, amount } = decode(applied.command) else { continue };
            *sums.entry(account).or_insert(0) += amount;
            if decode::<u64>(applied.reply) != sums[&account] {
                return Err(format!("{:?} was answered as if another order held", applied.at));
            }
        }
        for (account, sum) in sums {
            if quiet.engine.query(&encode(&account)) != Ok(encode(&sum)) {
                return Err(format!("account {account} does not hold {sum}"));
            }
        }
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("it can be written")
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).expect("it was written here")
}

/// So many that some are idle while others wait behind the poison.
const CLIENTS: u32 = 40;

fn cluster(seed: u64) -> Cluster {
    Cluster::of(3, Box::new(Sums)).seed(seed).with(|config| config.clients.clients = CLIENTS)
}

/// Waits until every replica that runs has halted, and says where: at one call, with one message.
fn halted(c: &mut Cluster) -> Halted {
    halted_beyond(c, None)
}

/// Waits until every replica that runs has halted elsewhere than there.
fn halted_beyond(c: &mut Cluster, before: Option<&Halted>) -> Halted {
    let replicas = c.world().replicas();
    c.until("every replica halts", |world| {
        let has_halted = |id| world.halted(id).is_some_and(|halted| Some(halted) != before);
        replicas.iter().all(|id| !world.is_running(*id) || has_halted(*id))
    });
    let running: Vec<ReplicaId> = replicas.into_iter().filter(|id| c.world().is_running(*id)).collect();
    let found: Vec<Halted> = running.iter().filter_map(|id| c.world().halted(*id).cloned()).collect();
    assert!(found.iter().all(|halted| *halted == found[0]), "{found:?}");
    for id in running {
        // The state is that from before the op.
        assert_eq!(c.world().engine(id).map(|engine| engine.applied().next()), Some(found[0].op));
    }
    found[0].clone()
}

fn skip(c: &mut Cluster, halted: &Halted) {
    c.skip(halted.skip("ada".into(), "a bug".into()));
}

fn poison(c: &mut Cluster, key: &str) {
    c.start_with_key("sim", key, encode(&Command::Poison));
}

fn ended(c: &mut Cluster, is: impl Fn(&CallKind) -> bool) -> Vec<Completed> {
    c.completed().iter().filter(|completed| is(&completed.kind)).cloned().collect()
}

/// Whether somebody who called for this was told that execution has halted.
fn hears_of_it(c: &mut Cluster, call: &str) -> bool {
    let lines = c.world().trace().lines();
    let calls = lines.iter().filter_map(|line| {
        let (before, what) = line.split_once(" calls ")?;
        what.contains(call).then(|| before.rsplit_once("call ").map(|(_, number)| number))?
    });
    let calls: Vec<&str> = calls.collect();
    let is_told = |number: &&str| {
        let hears = format!("call {number} hears");
        lines.iter().any(|line| line.contains(&hears) && line.contains("Halted"))
    };
    calls.iter().any(is_told)
}

fn is_poison(kind: &CallKind) -> bool {
    matches!(kind, CallKind::Command { body, .. } if *body == encode(&Command::Poison))
}

fn assert_skipped(completed: &Completed, halted: &Halted) {
    let Answer::Decided(RequestResult::Aborted { at, why }) = &completed.answer else {
        panic!("{completed:?}")
    };
    assert_eq!(Op::new(at.op), halted.op);
    assert_eq!(*why, AbortReason::Skipped { by: "ada".into(), reason: "a bug".into() });
}

// Scenario 39.
#[test]
fn a_command_that_panics_halts_every_replica_before_one_op_until_it_is_skipped() {
    for seed in 0..6 {
        let mut c = cluster(seed);
        // Every client has its session now.
        c.submit(CLIENTS).settle();
        let before = c.head();
        // The poison waits among others, perhaps in one op with some of them.
        c.start(3);
        poison(&mut c, "p");
        c.start(4);
        let first = halted(&mut c);
        assert!(before < first.op);
        assert!(first.message.contains("can't stand"), "{first:?}");

        // What comes now is refused, and so is a read that the state from before would not answer truly.
        c.start(2).start_read().run(Duration::from_millis(500));
        assert!(ended(&mut c, is_poison).is_empty(), "nobody knows yet what becomes of it");
        assert!(hears_of_it(&mut c, "Add") && hears_of_it(&mut c, "query"));
        let head_before = c.world().replica(ReplicaId::new(0)).unwrap().head();

        // Views change; whoever restarts halts at the same op; so do all of them after a power cut.
        let leads = |world: &chronon_sim::World, id: ReplicaId| {
            matches!(world.status(id).map(|status| status.role), Some(Role::Primary { .. }))
        };
        let replicas = c.world().replicas();
        let old = *replicas.iter().find(|id| leads(c.world(), **id)).expect("a primary leads");
        c.replica(old).crash();
        c.until("another leads", |world| replicas.iter().any(|id| *id != old && leads(world, *id)));
        c.replica(old).restart();
        assert_eq!(halted(&mut c), first);
        c.power_off_all().start_all().run(Duration::from_secs(2));
        assert_eq!(halted(&mut c), first);
        assert_eq!(c.world().replica(old).unwrap().head(), head_before, "nothing is ordered but a skip");

        skip(&mut c, &first);
        c.until("every call ends", chronon_sim::World::clients_done);
        // Every judge looks: one digest everywhere, and a replay that skips what they skipped.
        c.settle().assert_committed(ALL, u64::from(CLIENTS) + 9);
        assert_skipped(&ended(&mut c, is_poison)[0], &first);
        for id in c.world().replicas() {
            let skips = c.world().engine(id).unwrap().skips();
            let [skipped] = &skips[..] else { panic!("{skips:?}") };
            assert_eq!((skipped.op, &skipped.culprit), (first.op.value(), &first.culprit));
            assert_eq!((skipped.by.as_str(), skipped.reason.as_str()), ("ada", "a bug"));
        }
        // The key has its answer for good, and a restart finds its own way past.
        poison(&mut c, "p");
        c.until("it is answered again", chronon_sim::World::clients_done);
        assert_skipped(&ended(&mut c, is_poison)[1], &first);
        c.power_off_all().start_all().settle().submit(3).settle();
        c.assert_committed(ALL, u64::from(CLIENTS) + 12);
    }
}

// Scenario 39.
#[test]
fn whoever_was_away_passes_the_skipped_call_in_its_own_replay_or_with_a_checkpoint() {
    for seed in 0..4 {
        let mut c = cluster(seed).tiny_log(12);
        c.submit(40).settle();
        let away = c.backups()[0];
        let cut_off = c.backups()[1];
        c.replica(away).crash();
        poison(&mut c, "p");
        let first = halted(&mut c);
        // One was down all the while, one halts, and hears nothing of the skip.
        c.replica(away).restart();
        assert_eq!(halted(&mut c), first);
        c.isolate(&[cut_off]);
        skip(&mut c, &first);
        c.until("every call ends", chronon_sim::World::clients_done);
        let old = c.checkpoint(cut_off);
        c.submit(4);
        // It replays from a checkpoint before the op, and finds the skip further on.
        c.replica(away).crash().restart();
        c.submit(100);
        assert_eq!(c.world().halted(cut_off), Some(&first));
        assert_eq!(c.checkpoint(cut_off), old);
        let start = c.log_start(away);
        assert!(first.op < start, "the log holds neither the op nor its skip any more: {start}");
        c.heal().settle();
        c.assert_event(cut_off, |event| matches!(event, chronon_vsr::Event::Synced { .. }));
        c.assert_committed(ALL, 144);
    }
}

// Scenario 39.
#[test]
fn every_call_that_panics_is_skipped_by_itself_also_when_one_op_holds_several() {
    let mut c = cluster(3).with(|config| config.disk.flush_min = Duration::from_millis(30));
    c.submit(CLIENTS).settle();
    // While the disk is at the first ones, the others gather in one op.
    c.start(24).run(Duration::from_millis(10));
    for key in ["a", "b"] {
        poison(&mut c, key);
    }
    let first = halted(&mut c);
    skip(&mut c, &first);
    let second = halted_beyond(&mut c, Some(&first));
    assert_eq!(second.op, first.op, "one op holds both");
    let (Culprit::Request(one), Culprit::Request(other)) = (&first.culprit, &second.culprit) else {
        panic!("{first:?} {second:?}")
    };
    assert!(one < other);
    // Replays halt at the first one, and know how to pass it; the second stops them.
    c.power_off_all().start_all();
    assert_eq!(halted_beyond(&mut c, Some(&first)), second);
    skip(&mut c, &second);
    c.until("every call ends", chronon_sim::World::clients_done);
    c.settle().assert_committed(ALL, u64::from(CLIENTS) + 24);
    let poisons = ended(&mut c, is_poison);
    assert_eq!(poisons.len(), 2);
    for completed in &poisons {
        assert_skipped(completed, &first);
    }
}

// Scenario 39.
#[test]
fn an_outcome_or_a_timer_that_panics_halts_as_a_command_does_and_is_skipped_by_its_name() {
    let mut c = cluster(4);
    c.submit(4).settle();
    c.start_with_key("sim", "good", encode(&Command::Send { is_poison: false }));
    c.until("it is answered", chronon_sim::World::clients_done);
    c.settle();
    c.start_with_key("sim", "bad", encode(&Command::Send { is_poison: true }));
    let first = halted(&mut c);
    assert!(matches!(first.culprit, Culprit::Settled(_)), "{first:?}");
    assert!(first.message.contains("can't hear"), "{first:?}");
    skip(&mut c, &first);
    c.until("it ends", chronon_sim::World::clients_done);
    // The outcome stands; the machine did not hear it.
    c.settle().submit(2);
    c.start_with_key("sim", "timer", encode(&Command::Wait));
    let second = halted(&mut c);
    assert_eq!(second.culprit, Culprit::Timer(TimerKey("bang".into())));
    skip(&mut c, &second);
    c.until("it ends", chronon_sim::World::clients_done);
    c.settle().submit(2).settle();
    for id in c.world().replicas() {
        let engine = c.world().engine(id).unwrap();
        assert_eq!((engine.skips().len(), engine.status().callbacks_aborted), (2, 2));
        assert_eq!((engine.status().delivered, engine.status().timers), (2, 0));
    }
}

// Scenarios 39 and 40.
#[test]
fn a_quarantined_replica_halts_as_the_others_do_and_is_healed_beyond_the_skip() {
    for seed in 0..4 {
        let mut c = cluster(seed).tiny_log(80);
        c.submit(CLIENTS).settle();
        let (primary, diverged) = (c.primary(), c.backups()[0]);
        let from = c.head().next();
        c.world().slip(diverged, from);
        let is_found_before = seed % 2 == 0;
        if is_found_before {
            c.submit(5).until("it is found out", |world| world.is_quarantined(diverged));
        } else {
            // It hears the primary and is not heard by it.
            c.cut(diverged, primary).submit(5);
        }
        poison(&mut c, "p");
        let first = halted(&mut c);
        assert_eq!(c.world().is_quarantined(diverged), is_found_before);
        c.heal().until("it is found out", |world| world.is_quarantined(diverged));
        c.run(Duration::from_secs(2));
        assert_eq!(halted(&mut c), first);
        skip(&mut c, &first);
        c.until("every call ends", chronon_sim::World::clients_done);
        // Until a checkpoint of the others is beyond what it has executed.
        c.submit(120);
        heals(&mut c, diverged);
        c.assert_event(diverged, |event| matches!(event, chronon_vsr::Event::Synced { .. }));
        c.assert_committed(ALL, u64::from(CLIENTS) + 125);
    }
}

// Scenarios 39 and 40.
#[test]
fn a_peers_checkpoint_from_below_the_op_is_what_a_halted_replica_in_quarantine_starts_from() {
    for seed in 0..4 {
        // Writing a checkpoint takes longer than halting and finding out.
        let mut c = cluster(seed).tiny_log(100).with(|config| {
            config.pace.checkpoint = Duration::from_secs(2);
        });
        c.submit(CLIENTS).settle();
        let (primary, diverged) = (c.primary(), c.backups()[0]);
        let from = c.head().next();
        c.world().slip(diverged, from);
        // It hears the primary and is not heard by it.
        c.cut(diverged, primary);
        for _ in 0..60 {
            c.submit(1);
        }
        poison(&mut c, "p");
        let first = halted(&mut c);
        let old = c.checkpoint(diverged);
        c.heal().until("it is found out", |world| world.is_quarantined(diverged));
        c.until("it names a checkpoint", |world| world.checkpoints().durable(diverged) != old);
        let adopted = c.checkpoint(diverged);
        assert!(Some(from) <= adopted && adopted < Some(first.op), "{from} {adopted:?}");
        assert_eq!(wrong_root(c.world(), diverged), None);
        // It was for the next start: this one stands where it stood, and holds what it held.
        c.run(Duration::from_secs(2));
        assert!(c.world().has_diverged(diverged) && c.world().is_quarantined(diverged));
        assert_eq!(halted(&mut c), first);
        if seed % 2 == 0 {
            c.replica(diverged).crash().restart();
            assert_eq!(halted(&mut c), first);
            c.run(Duration::from_secs(1));
            assert!(!c.world().has_diverged(diverged) && !c.world().is_quarantined(diverged));
        }
        skip(&mut c, &first);
        c.until("every call ends", chronon_sim::World::clients_done);
        // Until a checkpoint of the others is beyond what it has executed.
        for _ in 0..120 {
            c.submit(1);
        }
        c.until("it is believed", |world| !world.has_diverged(diverged) && !world.is_quarantined(diverged));
        c.settle().assert_committed(ALL, u64::from(CLIENTS) + 180);
    }
}

/// What was ordered before anybody knew may fill the log, up to what is kept free for the skip.
#[test]
fn a_skip_finds_room_in_a_log_that_is_full_of_what_was_ordered_behind_the_op() {
    for seed in 0..4 {
        let mut c = cluster(seed).tiny_log(12).with(|config| config.pace.back_queue_max = 100_000);
        c.submit(30).settle();
        for id in c.world().replicas() {
            // Long enough for the log to fill meanwhile.
            c.replica(id).slow(Duration::from_millis(400));
        }
        poison(&mut c, "p");
        c.start(400).run(Duration::from_secs(8));
        let is_full = c.world().trace().lines().iter().any(|line| line.contains("LogFull"));
        assert!(is_full, "the log is full");
        for id in c.world().replicas() {
            c.replica(id).slow(Duration::ZERO);
        }
        let first = halted(&mut c);
        skip(&mut c, &first);
        c.until("every call ends", chronon_sim::World::clients_done);
        c.settle().assert_committed(ALL, 430);
    }
}
