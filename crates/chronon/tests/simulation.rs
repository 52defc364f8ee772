//! What the simulator tells users of their own machines: which are not deterministic, which sinks do not keep what
//! their contract needs, and how to see it again.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronon::sim::{Menu, Simulation, SinkModel};
use chronon::{
    Context, Contract, Emit, Emitted, QueryContext, Settled, State, StateMachine, Table, TimerKey,
};
use serde::{Deserialize, Serialize};

/// Takes numbers in, and sins in one of several ways.
#[derive(Clone, State)]
struct Sinner<const SIN: u8> {
    sums: Table<u64, u64>,
}

const NONE: u8 = 0;
const HASH_ORDER: u8 = 1;
const CLOCK: u8 = 2;
const RANDOMNESS: u8 = 3;
const PANIC: u8 = 4;

#[derive(Debug, Serialize, Deserialize)]
struct Add {
    numbers: Vec<u64>,
}

impl<const SIN: u8> StateMachine for Sinner<SIN> {
    type Command = Add;
    type Reply = u64;
    type Query = u64;
    type Answer = Option<u64>;
    type Effect = Add;
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Sinner<SIN> {
        Sinner { sums: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Self>, Add { numbers }: Add) -> u64 {
        let first = numbers.first().copied().unwrap_or_default();
        let answer = match SIN {
            HASH_ORDER => {
                let counted: HashMap<u64, u64> = numbers.iter().map(|number| (*number, 1)).collect();
                counted.keys().next().copied().unwrap_or_default()
            }
            CLOCK => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            RANDOMNESS => {
                use std::hash::BuildHasher as _;
                std::collections::hash_map::RandomState::new().hash_one(first) % 2
            }
            PANIC if first == 7 => panic!("a seven"),
            _ => first + cx.random() % 2,
        };
        self.sums.insert(first, answer);
        cx.emit(Emit::to("out"), Add { numbers });
        answer
    }

    fn settled(&mut self, _: &mut Context<'_, Self>, of: Emitted<Add>, _: Settled<()>) {
        self.sums.insert(of.effect.numbers.len() as u64, of.id.op().value());
    }

    fn query(&self, _: &QueryContext, number: u64) -> Option<u64> {
        self.sums.get(&number).copied()
    }
}

fn simulation<const SIN: u8>(sink: SinkModel) -> Simulation<Sinner<SIN>> {
    Simulation::new()
        .sink("out", sink, |_| ())
        .commands(|random| Add { numbers: (0..5).map(|_| random.below(20)).collect() })
        .queries(|random| random.below(20))
        .seeds(0..6)
}

#[test]
fn a_machine_that_walks_a_hash_map_is_told_so_with_the_first_op_that_differs() {
    let difference =
        simulation::<HASH_ORDER>(SinkModel::deduplicating_api()).check_determinism(1).unwrap_err();
    assert!(difference.asked.starts_with("Add { numbers: ["), "{difference}");
    assert!(difference.did.contains("and, run again,"), "{difference}");
    assert!(difference.hint.contains("HashMap"), "{difference}");
    assert!(0 < difference.op.value());
}

#[test]
fn a_machine_that_reads_a_clock_in_seconds_is_told_so() {
    let difference = simulation::<CLOCK>(SinkModel::deduplicating_api()).check_determinism(1).unwrap_err();
    assert!(difference.hint.contains("clock"), "{difference}");
}

#[test]
fn a_machine_that_draws_its_own_random_numbers_is_told_so() {
    let difference =
        simulation::<RANDOMNESS>(SinkModel::deduplicating_api()).check_determinism(1).unwrap_err();
    assert!(difference.hint.contains("random"), "{difference}");
}

#[test]
fn a_machine_that_is_not_deterministic_fails_its_test_before_any_seed_runs() {
    let found = simulation::<HASH_ORDER>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.starts_with("the machine is not deterministic"), "{found}");
}

#[test]
fn a_machine_that_panics_is_told_on_which_command() {
    let found = simulation::<PANIC>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.contains("Add { numbers: [7,"), "{found}");
    assert!(found.what.contains("a seven"), "{found}");
    assert!(simulation::<PANIC>(SinkModel::deduplicating_api()).aborts_allowed().find().is_none());
}

#[test]
fn every_bundled_sink_keeps_what_its_contract_needs() {
    for sink in [
        SinkModel::deduplicating_api(),
        SinkModel::deduplicating_api().replays_errors(),
        SinkModel::mail_server(),
        SinkModel::database(),
        SinkModel::webhook_that_times_out(),
        SinkModel::askable_api(),
    ] {
        simulation::<NONE>(sink).run();
    }
}

#[test]
fn a_sink_that_forgets_keys_sooner_than_its_contract_says_is_found_to_act_twice() {
    let forgetful = SinkModel::deduplicating_api()
        .forgets_keys_after(Duration::from_millis(30))
        .behaviour(|behaviour| behaviour.act_silent = 400_000);
    let found = simulation::<NONE>(forgetful).find().expect("a day was promised");
    assert!(found.what.contains("was acted upon 2 times"), "{found}");
}

#[test]
fn a_mail_server_under_a_contract_that_retries_is_found_to_act_twice() {
    let window = Duration::from_secs(86_400);
    let wrong = SinkModel::mail_server().under(Contract::Idempotent { window, replays_errors: false });
    let found = simulation::<NONE>(wrong).find().expect("it never dedups");
    assert!(found.what.contains("was acted upon 2 times"), "{found}");
}

#[test]
fn a_failure_tells_seed_story_and_the_line_that_shows_it_again() {
    let wrong = SinkModel::webhook_that_times_out().under(Contract::Transactional);
    let found = simulation::<NONE>(wrong).replicas(3).faults(Menu::default()).find().unwrap();
    let text = found.to_string();
    assert!(text.starts_with("seed "), "{text}");
    assert!(text.contains("in a world of 3 replicas"), "{text}");
    assert!(text.contains("calls Add { numbers: ["), "{text}");
    assert!(text.contains("out acts on "), "{text}");
    let rerun = found.rerun.unwrap();
    assert!(rerun.starts_with(&format!("CHRONON_SIM='{} --replicas 3 --faults none", found.seed)), "{rerun}");
    assert!(
        rerun.ends_with("cargo test a_failure_tells_seed_story_and_the_line_that_shows_it_again"),
        "{rerun}"
    );
}

/// Remembers what is due tomorrow, looks around every second, and sends something in an hour.
#[derive(Clone, State)]
struct Planner {
    rung: Table<String, u64>,
}

const EVERY_SECOND: &str = "every second";
const TOMORROW: &str = "tomorrow";

impl StateMachine for Planner {
    type Command = u64;
    type Reply = ();
    type Query = String;
    type Answer = u64;
    type Effect = u64;
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Planner {
        Planner { rung: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Planner>, number: u64) {
        cx.set_timer(TimerKey(TOMORROW.to_owned()), cx.now() + Duration::from_secs(86_400));
        if number == 0 {
            cx.set_timer(TimerKey(EVERY_SECOND.to_owned()), cx.now() + Duration::from_secs(1));
        }
        cx.emit(Emit::to("out").after(Duration::from_secs(3_600)), number);
    }

    fn timer(&mut self, cx: &mut Context<'_, Planner>, key: TimerKey) {
        let rung = self.rung.get(&key.0).copied().unwrap_or_default() + 1;
        self.rung.insert(key.0.clone(), rung);
        cx.emit(Emit::to("out"), rung);
        cx.set_timer(key, cx.now() + Duration::from_secs(1));
    }

    fn query(&self, _: &QueryContext, key: String) -> u64 {
        self.rung.get(&key).copied().unwrap_or_default()
    }
}

#[test]
fn a_machine_may_have_timers_that_ring_again_and_again_and_some_that_are_due_tomorrow() {
    Simulation::<Planner>::new()
        .sink("out", SinkModel::deduplicating_api(), |_| ())
        .first(0)
        .commands(|random| random.between(1, 9))
        .invariant("it looks around every second and not before", |end| {
            let (often, late) = (end.query(&EVERY_SECOND.to_owned()), end.query(&TOMORROW.to_owned()));
            if often < 10 || late != 0 {
                return Err(format!("{often} looks around, {late} tomorrows"));
            }
            Ok(())
        })
        .seeds(0..12)
        .run();
}
