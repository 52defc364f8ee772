//! What the simulator tells users of their own machines: which are not deterministic, which sinks do not keep what
//! their contract needs, and how to see it again.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::panic::{AssertUnwindSafe, catch_unwind};

use chronon::sim::{Menu, Simulation, SinkModel};
use chronon::{
    Context, Contract, Emit, Emitted, OnPanic, OnParked, Parked, QueryContext, Refused, Settled, State,
    StateMachine, Table, TimerKey,
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
    let test = "-p chronon-sdk a_failure_tells_seed_story_and_the_line_that_shows_it_again -- --exact";
    assert!(rerun.ends_with(&format!("cargo test {test}")), "{rerun}");
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

/// Emits what its command says, and does one thing more, or does it wrongly.
#[derive(Clone, State)]
struct Sender<const WHAT: u8> {
    sent: Table<u64, u64>,
}

const PLAIN: u8 = 0;
const DEADLINES: u8 = 1;
const ADMITS: u8 = 2;
const SETTLED_PANICS: u8 = 3;
const PARKED_PANICS: u8 = 4;
const TIMER_PANICS: u8 = 5;
const APPLY_HALTS: u8 = 6;
const SETTLED_HALTS: u8 = 7;

impl<const WHAT: u8> StateMachine for Sender<WHAT> {
    type Command = u64;
    type Reply = ();
    type Query = ();
    type Answer = u64;
    type Effect = u64;
    type Outcome = ();
    const VERSION: u32 = 1;
    const ON_PANIC: OnPanic =
        if WHAT == APPLY_HALTS || WHAT == SETTLED_HALTS { OnPanic::Halt } else { OnPanic::Abort };

    fn genesis() -> Sender<WHAT> {
        Sender { sent: Table::new() }
    }

    fn admit(number: &u64) -> Result<(), Refused> {
        if WHAT == ADMITS && *number == 0 {
            return Err(Refused { code: "zero".into(), message: "nothing can be divided by it".into() });
        }
        Ok(())
    }

    fn apply(&mut self, cx: &mut Context<'_, Self>, number: u64) {
        assert!(WHAT != APPLY_HALTS || number != 17, "a seventeen");
        let share = if WHAT == ADMITS { 100 / number } else { number };
        self.sent.insert(number, share);
        cx.set_timer(TimerKey(number.to_string()), cx.now() + Duration::from_millis(50));
        let emit = Emit::to("out");
        let deadline = Duration::from_millis(5 + number % 400);
        cx.emit(if WHAT == DEADLINES { emit.deadline(deadline) } else { emit }, number);
    }

    fn settled(&mut self, _: &mut Context<'_, Self>, of: Emitted<u64>, _: Settled<()>) {
        let bad = of.effect % 20 == 17;
        assert!(!bad || WHAT != SETTLED_PANICS && WHAT != SETTLED_HALTS, "settled as a seventeen");
        self.sent.insert(of.effect, 0);
    }

    fn parked(&mut self, _: &mut Context<'_, Self>, _: &Emitted<u64>, _: Parked) -> OnParked {
        assert!(WHAT != PARKED_PANICS, "parked");
        OnParked::Wait
    }

    fn timer(&mut self, _: &mut Context<'_, Self>, key: TimerKey) {
        assert!(WHAT != TIMER_PANICS || key.0 != "17", "a seventeen rings");
    }

    fn query(&self, _: &QueryContext, (): ()) -> u64 {
        self.sent.len() as u64
    }
}

fn sender<const WHAT: u8>(sink: SinkModel) -> Simulation<Sender<WHAT>> {
    Simulation::new().sink("out", sink, |_| ()).commands(|random| random.below(40)).seeds(0..4)
}

#[test]
fn a_machine_may_give_effects_up_after_a_deadline_under_every_contract() {
    for sink in [
        SinkModel::deduplicating_api(),
        SinkModel::mail_server(),
        SinkModel::database(),
        SinkModel::webhook_that_times_out(),
        SinkModel::askable_api(),
    ] {
        sender::<DEADLINES>(sink).run();
    }
}

#[test]
fn what_a_machine_does_not_admit_never_reaches_it() {
    sender::<ADMITS>(SinkModel::deduplicating_api()).run();
    let found = sender::<ADMITS>(SinkModel::mail_server()).commands(|_| 0).seeds(0..1).find().unwrap();
    assert!(found.what.contains("none is admitted"), "{found}");
    assert!(found.what.contains("zero: nothing can be divided by it"), "{found}");
}

#[test]
fn a_callback_that_panics_is_told_with_its_op_and_its_effect() {
    let found = sender::<SETTLED_PANICS>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.contains("in settled for effect "), "{found}");
    assert!(found.what.contains(", 17."), "{found}");
    let found = sender::<PARKED_PANICS>(SinkModel::mail_server()).find().unwrap();
    assert!(found.what.contains("in parked for effect "), "{found}");
    let found = sender::<TIMER_PANICS>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.contains("in timer"), "{found}");
    assert!(
        sender::<TIMER_PANICS>(SinkModel::deduplicating_api()).aborts_allowed().seeds(0..1).find().is_none()
    );
}

#[test]
fn a_machine_that_halts_is_told_where_and_why() {
    let found = sender::<APPLY_HALTS>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.contains("has halted at op "), "{found}");
    assert!(found.what.contains("at 17, for the machine panicked: a seventeen"), "{found}");
    let found = sender::<SETTLED_HALTS>(SinkModel::deduplicating_api()).find().unwrap();
    assert!(found.what.contains("at the outcome of effect "), "{found}");
    assert!(found.what.contains("settled as a seventeen"), "{found}");
}

#[test]
fn to_ask_about_a_sink_that_is_not_there_is_a_finding() {
    let found = sender::<PLAIN>(SinkModel::deduplicating_api())
        .invariant("each is sent once", |end| end.at_most_one_deed("ouch", |number| *number))
        .seeds(0..1)
        .find()
        .unwrap();
    assert!(found.what.contains("no sink is named \"ouch\"; there are: out"), "{found}");
}

/// What a misuse panics with.
fn said(misuse: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(misuse)).expect_err("it says so");
    let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    panic.downcast_ref::<String>().cloned().or(literal).expect("panics have words")
}

#[test]
fn what_would_run_nothing_or_cannot_be_run_is_told_in_a_sentence() {
    let plain = || sender::<PLAIN>(SinkModel::deduplicating_api());
    let settle = Duration::from_millis(1);
    let impatient = || SinkModel::askable_api().under(Contract::Probe { settle });
    let misuses: [(&str, &dyn Fn()); 8] = [
        (".seeds(3..3) names no seed", &|| plain().seeds(3..3).run()),
        ("nothing would be run", &|| plain().calls(0).run()),
        ("nothing would be run", &|| plain().clients(0).run()),
        ("a cluster has 1 to 6 replicas, not 7", &|| plain().replicas(7).run()),
        ("a cluster has 1 to 6 replicas, not 0", &|| plain().replicas(0).run()),
        ("needs .commands(..)", &|| Simulation::<Sender<PLAIN>>::new().run()),
        ("sink other can't be set: ", &|| plain().sink("other", impatient(), |_| ()).run()),
        ("there are two sinks named out", &|| plain().sink("out", SinkModel::database(), |_| ()).run()),
    ];
    for (sentence, misuse) in misuses {
        let said = said(misuse);
        assert!(said.contains(sentence), "{said}");
    }
    let said = said(|| drop(Simulation::<Sender<ADMITS>>::new().first(0)));
    assert!(said.contains(".first(0): the machine's admit refuses it as zero"), "{said}");
}

/// A machine with a command and an effect of these types.
macro_rules! typist {
    ($name:ident, $command:ty, $effect:ty, $emitted:expr) => {
        #[derive(Clone, State)]
        struct $name {
            count: Table<u64, u64>,
        }

        impl StateMachine for $name {
            type Command = $command;
            type Reply = ();
            type Query = ();
            type Answer = ();
            type Effect = $effect;
            type Outcome = ();
            const VERSION: u32 = 1;

            fn genesis() -> $name {
                $name { count: Table::new() }
            }

            fn apply(&mut self, cx: &mut Context<'_, Self>, _: $command) {
                self.count.insert(0, 1);
                cx.emit(Emit::to("out"), $emitted);
            }

            fn query(&self, _: &QueryContext, (): ()) {}
        }
    };
}

/// Can be read back from a format that names its fields, and from no other.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Skipping {
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<u64>,
    number: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
}

typist!(Carrier, Vec<u8>, (), ());
typist!(Measurer, f64, (), ());
typist!(Guesser, Untagged, (), ());
typist!(Skipper, (), Skipping, Skipping { note: None, number: 500 });

#[test]
fn a_command_that_every_replica_would_refuse_is_a_finding() {
    let out = SinkModel::deduplicating_api;
    let found = Simulation::<Measurer>::new()
        .sink("out", out(), |()| ())
        .commands(|random| random.below(100) as f64 / 3.0)
        .find()
        .unwrap();
    assert!(found.what.contains("holds a floating-point number"), "{found}");
    let found = Simulation::<Guesser>::new()
        .sink("out", out(), |()| ())
        .commands(|random| Untagged::Number(random.below(9)))
        .find()
        .unwrap();
    assert!(found.what.contains("the command does not survive its own encoding"), "{found}");
    assert!(found.what.contains("simulation::Untagged"), "{found}");
    let carrier = |bytes| {
        let carrier = Simulation::<Carrier>::new().sink("out", out(), |()| ());
        carrier.commands(move |_| vec![7; bytes]).seeds(0..1).calls(12)
    };
    carrier(127 * 1024 - 3).run();
    let found = carrier(200 * 1024).find().unwrap();
    assert!(found.what.contains("it takes 204803 bytes"), "{found}");
}

#[test]
fn an_effect_that_cannot_be_read_back_is_a_finding_that_names_its_sink_and_its_type() {
    let found = Simulation::<Skipper>::new()
        .sink("out", SinkModel::mail_server(), |_| ())
        .commands(|_| ())
        .find()
        .unwrap();
    assert!(found.what.contains("sink out: the effect does not survive its own encoding"), "{found}");
    assert!(found.what.contains("simulation::Skipping"), "{found}");
    assert!(found.rerun.is_some());
}

/// Goes wrong where nothing is ordered: in genesis, or when it is asked.
#[derive(Clone, State)]
struct Odd<const WHERE: u8> {
    born: Table<u64, u64>,
}

const CLOCK_IN_GENESIS: u8 = 0;
const QUERY_PANICS: u8 = 1;
const CLOCK_IN_QUERY: u8 = 2;

fn nanos_of_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos().into())
}

impl<const WHERE: u8> StateMachine for Odd<WHERE> {
    type Command = u64;
    type Reply = ();
    type Query = u64;
    type Answer = u64;
    type Effect = u64;
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Odd<WHERE> {
        let mut born = Table::new();
        if WHERE == CLOCK_IN_GENESIS {
            born.insert(0, nanos_of_the_clock());
        }
        Odd { born }
    }

    fn apply(&mut self, _: &mut Context<'_, Self>, number: u64) {
        self.born.insert(number + 1, 1);
    }

    fn query(&self, _: &QueryContext, number: u64) -> u64 {
        assert!(WHERE != QUERY_PANICS || !number.is_multiple_of(7), "asked for {number}");
        if WHERE == CLOCK_IN_QUERY {
            return nanos_of_the_clock();
        }
        self.born.get(&number).copied().unwrap_or_default()
    }
}

fn odd<const WHERE: u8>() -> Simulation<Odd<WHERE>> {
    Simulation::new().commands(|random| random.below(40)).queries(|random| random.below(40)).seeds(0..4)
}

#[test]
fn a_genesis_that_is_another_each_time_is_told_so() {
    let difference = odd::<CLOCK_IN_GENESIS>().check_determinism(1).unwrap_err();
    assert_eq!((difference.op.value(), &*difference.asked), (0, "genesis"), "{difference}");
}

#[test]
fn a_query_that_panics_is_a_finding_that_names_what_was_asked() {
    let found = odd::<QUERY_PANICS>().find().unwrap();
    assert!(found.what.contains(" is refused: "), "{found}");
    assert!(found.what.contains("query panicked: asked for "), "{found}");
    let number = found.what.split("asked for ").nth(1).unwrap().split('"').next().unwrap();
    assert!(found.what.contains(&format!(", {number} (")), "{found}");
}

#[test]
fn a_query_that_reads_a_clock_is_told_what_it_was_asked_and_answered_each_time() {
    let found = odd::<CLOCK_IN_QUERY>().find().unwrap();
    assert!(found.what.contains(" was answered "), "{found}");
    assert!(found.what.contains("Of one state it says something else each time"), "{found}");
}
