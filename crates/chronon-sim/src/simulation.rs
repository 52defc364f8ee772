//! A user's own machine in the simulator: a test of one expression.
//!
//! ```text
//! Simulation::<Shop>::new()
//!     .sink("psp", SinkModel::deduplicating_api(), |charge| Receipt { cents: charge.cents })
//!     .commands(|random| Place { order: random.below(50), cents: 100 })
//!     .invariant("no order is charged twice", |end| …)
//!     .run();
//! ```

use std::any::type_name;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use chronon_kernel::{
    Attempt, Batch, CodecError, CommittedOp, EffectFilter, EffectId, EffectKey, EffectView, Engine,
    EngineOptions, Lineage, Request, RequestResult, SinkName, SinkSpec, StateMachine, edge, engine,
};
use chronon_vsr::{Op, Prng, VOTERS_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::determinism::Difference;
use crate::{
    Checker, Config, EffectTerms, Menu, Narrowed, Quiet, SinkBehaviour, SinkKind, SinkModel, Swarm,
    TraceMode, Violation, Workload,
};

/// Seeds that [`Simulation::run`] runs unless told otherwise.
const SEEDS: u64 = 40;

/// Calls of all clients together, unless told otherwise.
const CALLS: u32 = 120;

/// What a simulated log takes in one op is 128 KiB, some of which is not the command's.
const COMMAND_SIZE_MAX: usize = 127 * 1024;

/// A client draws so often until it has a command that the machine admits.
const DRAWS_MAX: usize = 1_000;

/// Lines of the story that a failure tells.
const STORY_LINES_MAX: usize = 60;

/// Names a run to repeat: `CHRONON_SIM='7 --faults kill --calls 3' cargo test the_name`.
const RERUN: &str = "CHRONON_SIM";

/// A machine, its sinks, its clients and what must be true of it in the end.
pub struct Simulation<M: StateMachine> {
    life: Life<M>,
    seeds: Range<u64>,
    replicas: Option<usize>,
    faults: Option<Menu>,
    clients: Option<u32>,
    calls: u32,
}

type AnswerBytes = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;
type Draw<T> = Arc<dyn Fn(&mut Prng) -> T + Send + Sync>;
/// What a client draws: its bytes, or why no replica would take it.
type Drawn = Result<Vec<u8>, NotTaken>;
type Invariant<M> = Arc<dyn Fn(&End<'_, M>) -> Result<(), String> + Send + Sync>;

/// What a world needs to know of the machine.
struct Life<M: StateMachine> {
    sinks: Vec<Outside<M>>,
    setup: Vec<Vec<u8>>,
    commands: Option<Draw<Drawn>>,
    queries: Option<Queries>,
    invariants: Vec<(String, Invariant<M>)>,
    aborts_allowed: bool,
    /// The first command drawn that is no fit one for any replica, in words.
    unfit: Option<String>,
}

/// What clients ask, and how to tell of it.
#[derive(Clone)]
struct Queries {
    draw: Draw<Vec<u8>>,
    describe: fn(&[u8]) -> String,
    describe_answer: fn(&[u8]) -> String,
}

/// Why a replica's edge would not take a command.
enum NotTaken {
    /// The machine's `admit` says no, to a client that may well try.
    Refused(String),
    /// Its type is none that can be replicated.
    Unfit(String),
}

impl<M: StateMachine> Clone for Life<M> {
    fn clone(&self) -> Life<M> {
        Life {
            sinks: self.sinks.clone(),
            setup: self.setup.clone(),
            commands: self.commands.clone(),
            queries: self.queries.clone(),
            invariants: self.invariants.clone(),
            aborts_allowed: self.aborts_allowed,
            unfit: self.unfit.clone(),
        }
    }
}

struct Outside<M: StateMachine> {
    name: SinkName,
    model: SinkModel,
    /// From an encoded effect to the encoded outcome.
    answer: AnswerBytes,
    machine: PhantomData<fn(M)>,
}

impl<M: StateMachine> Clone for Outside<M> {
    fn clone(&self) -> Outside<M> {
        let Outside { name, model, answer, .. } = self;
        Outside { name: name.clone(), model: model.clone(), answer: Arc::clone(answer), machine: PhantomData }
    }
}

impl<M: StateMachine> Default for Simulation<M>
where
    M::Command: fmt::Debug,
    M::Reply: fmt::Debug,
    M::Effect: fmt::Debug,
{
    fn default() -> Simulation<M> {
        Simulation::new()
    }
}

impl<M: StateMachine> Simulation<M>
where
    M::Command: fmt::Debug,
    M::Reply: fmt::Debug,
    M::Effect: fmt::Debug,
{
    /// A simulation without sinks, clients or invariants.
    pub fn new() -> Simulation<M> {
        Simulation {
            life: Life {
                sinks: Vec::new(),
                setup: Vec::new(),
                commands: None,
                queries: None,
                invariants: Vec::new(),
                aborts_allowed: false,
                unfit: None,
            },
            seeds: 0..SEEDS,
            replicas: None,
            faults: None,
            clients: None,
            calls: CALLS,
        }
    }

    /// A sink, and what it answers once it has acted: a function of the effect alone.
    #[track_caller]
    pub fn sink(
        mut self,
        name: &str,
        model: SinkModel,
        answer: impl Fn(M::Effect) -> M::Outcome + Send + Sync + 'static,
    ) -> Simulation<M> {
        let name = SinkName::new(name).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            self.life.sinks.iter().all(|sink| sink.name != name),
            "there are two sinks named {name}: give each a name of its own"
        );
        let sink = name.clone();
        let answer = move |effect: &[u8]| {
            let effect = decode::<M::Effect>(effect)
                .unwrap_or_else(|| panic!("sink {sink}: {}", unreadable::<M::Effect>("effect")));
            let outcome = encode("outcome", &answer(effect));
            if decode::<M::Outcome>(&outcome).is_none() {
                panic!("sink {sink}: {}", unreadable::<M::Outcome>("outcome"));
            }
            outcome
        };
        self.life.sinks.push(Outside { name, model, answer: Arc::new(answer), machine: PhantomData });
        self
    }

    /// A command that is applied before the clients begin. In order, one after another.
    ///
    /// # Panics
    ///
    /// When no replica would take the command.
    #[track_caller]
    pub fn first(mut self, command: M::Command) -> Simulation<M> {
        match at_the_edge::<M>(&command) {
            Ok(command) => self.life.setup.push(command),
            Err(NotTaken::Refused(why) | NotTaken::Unfit(why)) => panic!(".first({command:?}): {why}"),
        }
        self
    }

    /// What clients submit. What they draw goes through the edge of a replica, as it does in production: what the
    /// machine's `admit` refuses is drawn again, and a command that can't be replicated is a finding.
    pub fn commands(
        mut self,
        draw: impl Fn(&mut Prng) -> M::Command + Send + Sync + 'static,
    ) -> Simulation<M> {
        self.life.commands = Some(Arc::new(move |prng| at_the_edge::<M>(&draw(prng))));
        self
    }

    /// What clients ask. Without it they ask nothing.
    pub fn queries(mut self, draw: impl Fn(&mut Prng) -> M::Query + Send + Sync + 'static) -> Simulation<M>
    where
        M::Query: fmt::Debug,
        M::Answer: fmt::Debug,
    {
        self.life.queries = Some(Queries {
            draw: Arc::new(move |prng| encode("query", &draw(prng))),
            describe: |query| in_words::<M::Query>("query", query),
            describe_answer: |answer| in_words::<M::Answer>("answer", answer),
        });
        self
    }

    /// What must be true when everything that was asked for has come to an end.
    pub fn invariant(
        mut self,
        name: &str,
        holds: impl Fn(&End<'_, M>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Simulation<M> {
        self.life.invariants.push((name.to_owned(), Arc::new(holds)));
        self
    }

    /// A command that panics, or emits what it may not, is no finding; nor is `settled`, `parked` or `timer` that does.
    pub fn aborts_allowed(mut self) -> Simulation<M> {
        self.life.aborts_allowed = true;
        self
    }

    /// Which seeds [`run`](Simulation::run) runs: 0 to 39 unless given.
    pub fn seeds(mut self, seeds: Range<u64>) -> Simulation<M> {
        self.seeds = seeds;
        self
    }

    /// Always this many replicas, instead of what each seed draws.
    pub fn replicas(mut self, replicas: usize) -> Simulation<M> {
        self.replicas = Some(replicas);
        self
    }

    /// Only these kinds of fault, instead of what each seed draws. What a sink's model does is no fault.
    pub fn faults(mut self, faults: Menu) -> Simulation<M> {
        self.faults = Some(faults);
        self
    }

    /// Always this many clients, instead of what each seed draws.
    pub fn clients(mut self, clients: u32) -> Simulation<M> {
        self.clients = Some(clients);
        self
    }

    /// How many calls all clients together make: 120 unless given.
    pub fn calls(mut self, calls: u32) -> Simulation<M> {
        self.calls = calls;
        self
    }

    /// Looks whether the machine is deterministic, then runs every seed.
    ///
    /// # Panics
    ///
    /// When something is found: the message tells the seed, what happened, and how to run just that again.
    #[track_caller]
    pub fn run(&self) {
        if let Some(found) = self.find() {
            panic!("{found}");
        }
    }

    /// Like [`run`](Simulation::run), and returns what was found first.
    ///
    /// # Panics
    ///
    /// When the simulation is none: it lacks something, or would run nothing.
    #[track_caller]
    pub fn find(&self) -> Option<Found> {
        if let Ok(words) = std::env::var(RERUN) {
            return self.rerun(&words);
        }
        let (seeds, swarm) = (self.seeds.clone(), self.swarm());
        assert!(!seeds.is_empty(), ".seeds({seeds:?}) names no seed, so nothing would be run");
        self.must_run(&swarm);
        // What panics while the log is recorded does so in a seed as well, which then has a story.
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_determinism(seeds.start)));
        if let Ok(Err(difference)) = checked {
            return Some(Found { seed: seeds.start, what: difference.to_string(), ..Found::default() });
        }
        let failures = swarm.run_seeds(seeds, |report| report.failure.is_none());
        match (failures.first(), checked) {
            (Some(first), _) => Some(self.tell(swarm.narrow(first))),
            (None, Err(panic)) => resume_unwind(panic),
            (None, Ok(_)) => None,
        }
    }

    /// A simulation of nothing would be green for ever.
    #[track_caller]
    fn must_run(&self, swarm: &Swarm) {
        let calls = swarm.calls != Some(0) && swarm.clients != Some(0);
        assert!(
            self.life.commands.is_some() || !calls,
            "what do clients submit? A simulation needs .commands(..)"
        );
        assert!(
            calls || !self.life.setup.is_empty(),
            "without clients and their calls, and without .first(..), nothing would be run"
        );
        if let Some(replicas) = swarm.replicas {
            assert!(
                (1..=VOTERS_MAX).contains(&replicas),
                "a cluster has 1 to {VOTERS_MAX} replicas, not {replicas}"
            );
        }
        self.must_take_sinks();
    }

    /// The kernel itself is asked whether it takes the sinks.
    #[track_caller]
    fn must_take_sinks(&self) {
        let Config { engine: limits, stamp, wall_start, mutations, .. } = Config::calm(1, 0);
        let mut kernel = engine::<M>(EngineOptions { lineage: Lineage(0), limits, mutations });
        let set = self.life.sinks.iter().map(|Outside { name, model, .. }| {
            let (name, spec) = (name.clone(), Some(model.spec.clone()));
            Request::SinkSet { name, spec, expected_revision: None }.encode()
        });
        let body = Batch::join(&set.collect::<Vec<_>>());
        let op = CommittedOp { op: Op::new(1), born: stamp, timestamp: wall_start, body: &body, skips: &[] };
        let Ok(applied) = kernel.commit(op) else { return };
        for (sink, result) in self.life.sinks.iter().zip(applied.results) {
            if let RequestResult::Refused(why) = result {
                panic!("sink {} can't be set: {why}", sink.name);
            }
        }
    }

    /// Whether the machine does the same whenever and however often it is run. Runs one log of this seed several times,
    /// with other hash seeds and, the last time, more than a second later; compares every result and every write.
    #[track_caller]
    pub fn check_determinism(&self, seed: u64) -> Result<(), Difference> {
        crate::determinism::check(seed, || Box::new(self.life.clone()))
    }

    fn swarm(&self) -> Swarm {
        let life = self.life.clone();
        Swarm {
            replicas: self.replicas,
            menu: self.faults,
            clients: self.clients,
            calls: Some(self.calls),
            ..Swarm::of(move |_| Box::new(life.clone()))
        }
    }

    /// One seed, in the world that a failure named.
    #[track_caller]
    fn rerun(&self, words: &str) -> Option<Found> {
        let mut swarm = Swarm { trace: TraceMode::Lines, ..self.swarm() };
        let mut words = words.split_whitespace();
        let seed = words.next().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| panic!("{RERUN} begins with a seed"));
        while let Some(flag) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{RERUN}: {flag} lacks what comes behind it"));
            let number = || value.parse::<u32>().unwrap_or_else(|_| panic!("{RERUN}: {flag} takes a number"));
            match flag {
                "--replicas" => swarm.replicas = Some(number() as usize),
                "--clients" => swarm.clients = Some(number()),
                "--calls" => swarm.calls = Some(number()),
                "--faults" => match value.parse() {
                    Ok(menu) => swarm.menu = Some(menu),
                    Err(error) => panic!("{RERUN}: {error}"),
                },
                _ => panic!("{RERUN}: {flag} is none of --replicas, --faults, --clients, --calls"),
            }
        }
        self.must_run(&swarm);
        let report = swarm.run_seed(seed);
        report.trace.iter().for_each(|line| println!("{line}"));
        report.failure.is_some().then(|| self.tell(Narrowed { swarm, report, runs: 1 }))
    }

    fn tell(&self, narrowed: Narrowed) -> Found {
        let seed = narrowed.report.seed;
        let flags = narrowed.flags();
        let report = Swarm { trace: TraceMode::Lines, ..narrowed.swarm }.run_seed(seed);
        let what = report.failure.as_ref().map(|(_, violation)| violation.clone());
        let what = what.unwrap_or_else(|| Violation::new(Checker::Digest, "it fails only now and then"));
        let story: Vec<String> = report.trace.iter().filter(|line| is_told(line)).cloned().collect();
        let left_out = story.len().saturating_sub(STORY_LINES_MAX);
        Found {
            seed,
            what: what.to_string(),
            world: format!(
                "{} replicas, {} clients, {} calls, faults: {}",
                report.replicas,
                report.config.clients.clients,
                report.config.clients.clients * report.config.clients.calls,
                report.menu
            ),
            story: story[left_out..].to_vec(),
            left_out,
            rerun: Some(format!("{RERUN}='{seed}{flags}' cargo test {}", test_name())),
        }
    }
}

/// Something that a simulation found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// What is wrong.
    pub what: String,
    /// The smallest world in which it was found to go wrong.
    pub world: String,
    /// What happened in it, as far as clients, replicas' lives and sinks are concerned.
    pub story: Vec<String>,
    /// Lines of the story before these.
    pub left_out: usize,
    /// What to type to see just this again, with everything that happened.
    pub rerun: Option<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)?;
        let Some(rerun) = &self.rerun else { return Ok(()) };
        write!(f, "\n\nin a world of {}, this happened (seconds first):", self.world)?;
        if self.left_out != 0 {
            write!(f, "\n     … {} lines before", self.left_out)?;
        }
        for line in &self.story {
            write!(f, "\n{line}")?;
        }
        write!(f, "\n\nrun it again: {rerun}\n")
    }
}

impl std::error::Error for Found {}

/// A run at its end, when everything that was asked for has come to an end.
pub struct End<'a, M: StateMachine> {
    quiet: &'a Quiet<'a>,
    machine: PhantomData<fn(M)>,
}

/// Something that a sink really did.
#[derive(Clone, Debug)]
pub struct Deed<E> {
    /// What it was asked for.
    pub effect: E,
    /// Which effect that was.
    pub id: EffectId,
    /// Under which key.
    pub key: EffectKey,
}

impl<M: StateMachine> End<'_, M> {
    /// Every command that was applied and what it was answered, in order.
    pub fn applied(&self) -> impl Iterator<Item = (M::Command, M::Reply)> {
        self.quiet
            .applied
            .iter()
            .filter_map(|applied| Some((decode(applied.command)?, decode(applied.reply)?)))
    }

    /// Asks the machine.
    ///
    /// # Panics
    ///
    /// When the machine's `query` does.
    pub fn query(&self, query: &M::Query) -> M::Answer {
        let answer = self.quiet.engine.query(&encode("query", query));
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        decode(&answer).expect("the machine's own answer can be read back")
    }

    /// Everything that a sink did, in order. None of it can be taken back.
    ///
    /// # Panics
    ///
    /// When the simulation has no sink of this name.
    #[track_caller]
    pub fn deeds(&self, sink: &str) -> Vec<Deed<M::Effect>> {
        let found = self.quiet.sinks.iter().find(|(name, _)| name.as_str() == sink);
        let Some((_, found)) = found else {
            let names: Vec<&str> = self.quiet.sinks.keys().map(SinkName::as_str).collect();
            panic!("no sink is named {sink:?}; there are: {}", names.join(", "));
        };
        let deed = |act: &crate::Act| {
            Some(Deed { effect: decode(&act.payload)?, id: act.effect, key: act.key.clone() })
        };
        found.ledger().iter().filter_map(deed).collect()
    }

    /// Every effect that was emitted, with its attempts and its outcome.
    pub fn effects(&self) -> Vec<EffectView> {
        self.quiet.engine.effects(&EffectFilter::default(), None, usize::MAX)
    }

    /// No two deeds of a sink are for the same thing.
    ///
    /// # Panics
    ///
    /// When the simulation has no sink of this name.
    #[track_caller]
    pub fn at_most_one_deed<T: Ord + fmt::Debug>(
        &self,
        sink: &str,
        of: impl Fn(&M::Effect) -> T,
    ) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for deed in self.deeds(sink) {
            let thing = of(&deed.effect);
            if seen.contains(&thing) {
                return Err(format!(
                    "{sink} acted twice for {thing:?}, the second time for effect {}",
                    deed.id
                ));
            }
            seen.insert(thing);
        }
        Ok(())
    }
}

impl<M: StateMachine> Workload for Life<M>
where
    M::Command: fmt::Debug,
    M::Reply: fmt::Debug,
    M::Effect: fmt::Debug,
{
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine> {
        engine::<M>(options)
    }

    fn sinks(&self) -> Vec<(SinkName, SinkSpec)> {
        self.sinks.iter().map(|sink| (sink.name.clone(), sink.model.spec.clone())).collect()
    }

    fn setup(&self) -> Vec<Vec<u8>> {
        self.setup.clone()
    }

    fn command(&mut self, prng: &mut Prng) -> Vec<u8> {
        let draw = self.commands.as_ref().expect("looked at before anything is run");
        let mut refused = String::new();
        for _ in 0..DRAWS_MAX {
            match draw(prng) {
                Ok(command) => return command,
                Err(NotTaken::Refused(why)) => refused = why,
                Err(NotTaken::Unfit(why)) => {
                    self.unfit.get_or_insert(format!("a command that .commands(..) drew: {why}"));
                    return Vec::new();
                }
            }
        }
        self.unfit.get_or_insert(format!(
            "of {DRAWS_MAX} commands that .commands(..) drew one after another none is admitted; of the last one {refused}"
        ));
        Vec::new()
    }

    fn query(&mut self, prng: &mut Prng) -> Vec<u8> {
        self.queries.as_ref().map_or_else(Vec::new, |queries| (queries.draw)(prng))
    }

    fn asks_queries(&self) -> bool {
        self.queries.is_some()
    }

    fn terms(&self, _effect: &[u8]) -> Option<EffectTerms> {
        None
    }

    fn outcome(&self, attempt: &Attempt) -> Vec<u8> {
        let sink = self.sinks.iter().find(|sink| sink.name == attempt.sink);
        sink.map_or_else(Vec::new, |sink| (sink.answer)(&attempt.payload))
    }

    fn sink(&self, name: &SinkName, spec: &SinkSpec, drawn: SinkBehaviour) -> (SinkKind, SinkBehaviour) {
        match self.sinks.iter().find(|sink| sink.name == *name) {
            Some(sink) => (sink.model.kind, sink.model.worst(drawn)),
            None => (SinkKind::of(spec.contract), drawn),
        }
    }

    fn describe_command(&self, command: &[u8]) -> String {
        in_words::<M::Command>("command", command)
    }

    fn describe_reply(&self, reply: &[u8]) -> String {
        in_words::<M::Reply>("reply", reply)
    }

    fn describe_query(&self, query: &[u8]) -> String {
        self.queries.as_ref().map_or_else(|| "a query".to_owned(), |queries| (queries.describe)(query))
    }

    fn describe_answer(&self, answer: &[u8]) -> String {
        self.queries
            .as_ref()
            .map_or_else(|| "an answer".to_owned(), |queries| (queries.describe_answer)(answer))
    }

    fn describe_effect(&self, effect: &[u8]) -> String {
        in_words::<M::Effect>("effect", effect)
    }

    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        if let Some(unfit) = &self.unfit {
            return Err(unfit.clone());
        }
        if let Some((command, why)) = quiet.aborted.first().filter(|_| !self.aborts_allowed) {
            return Err(format!("{} was aborted: {why}", self.describe_command(command)));
        }
        if let Some(op) = quiet.callbacks_aborted.first().filter(|_| !self.aborts_allowed) {
            return Err(self.describe_aborted(*op, quiet));
        }
        let end = End { quiet, machine: PhantomData };
        for (name, holds) in &self.invariants {
            holds(&end).map_err(|why| format!("not true that {name}: {why}"))?;
        }
        Ok(())
    }
}

impl<M: StateMachine> Life<M>
where
    M::Command: fmt::Debug,
    M::Reply: fmt::Debug,
    M::Effect: fmt::Debug,
{
    /// A call of the machine other than `apply` was undone in this op: which it may have been.
    fn describe_aborted(&self, op: Op, quiet: &Quiet<'_>) -> String {
        let effects = quiet.engine.effects(&EffectFilter::default(), None, usize::MAX);
        let settled =
            effects.iter().find(|view| view.outcome.as_ref().is_some_and(|outcome| outcome.op == op.value()));
        let parked = effects.iter().find(|view| quiet.replayed.parked_in(view.id) == Some(op));
        let what = match settled.or(parked) {
            Some(view) => {
                let call = if settled.is_some() { "settled" } else { "parked" };
                format!("{call} for effect {}, {}", view.id, self.describe_effect(&view.payload))
            }
            None => "timer, or settled or parked for an effect of an earlier op".to_owned(),
        };
        format!(
            "in op {op} the machine panicked, or did what it may not, where nobody hears of it: in {what}. What it did there \
             was undone"
        )
    }
}

/// What a reader of a failure wants to see: clients, sinks, starts, and what befell replicas.
fn is_told(line: &str) -> bool {
    const PRELUDE: [&str; 6] =
        ["to register", "Registered", "NoPrimary", "SinkSet", "to set the sink", "as incarnation 1:"];
    if PRELUDE.iter().any(|word| line.contains(word)) {
        return false;
    }
    let mut words = line.split_whitespace().skip(1);
    let who = words.next().unwrap_or_default();
    let what = words.next().unwrap_or_default();
    let replica = who.starts_with('R') && (what == "starts" || what == "serves");
    replica || who == "sink" || who == "fault" || who.starts_with('C')
}

/// What names the test that runs, and no other, to `cargo test`.
fn test_name() -> String {
    // Cargo says which package's test it runs; a test runs in a thread of its name.
    let package =
        std::env::var("CARGO_PKG_NAME").map_or_else(|_| String::new(), |name| format!("-p {name} "));
    let thread = std::thread::current();
    format!("{package}{} -- --exact", thread.name().unwrap_or("NAME_OF_THE_TEST"))
}

/// A command as a replica takes it from a client: the very check of production.
fn at_the_edge<M: StateMachine>(command: &M::Command) -> Result<Vec<u8>, NotTaken> {
    let bytes = postcard::to_allocvec(command).map_err(|error| {
        NotTaken::Unfit(format!("the type {} can't be written: {error}", type_name::<M::Command>()))
    })?;
    if COMMAND_SIZE_MAX < bytes.len() {
        return Err(NotTaken::Unfit(format!(
            "it takes {} bytes, and the logs of the simulator are made for commands of {COMMAND_SIZE_MAX} at most (those of \
             production for 1 MiB)",
            bytes.len()
        )));
    }
    match edge::<M>().check_command(&bytes) {
        Ok(()) => Ok(bytes),
        Err(CodecError::Refused { code, message }) => {
            Err(NotTaken::Refused(format!("the machine's admit refuses it as {code}: {message}")))
        }
        Err(CodecError::Bytes { .. } | CodecError::NotReadBack { .. }) => {
            Err(NotTaken::Unfit(unreadable::<M::Command>("command")))
        }
        Err(error @ (CodecError::Float { .. } | CodecError::Json { .. })) => {
            Err(NotTaken::Unfit(error.to_string()))
        }
    }
}

/// What to say of a type that its codec can't read back.
fn unreadable<T>(what: &'static str) -> String {
    let error = CodecError::NotReadBack { what };
    let name = type_name::<T>();
    format!("{error}: look in {name} for untagged, flatten, or skip_serializing_if without a fixed place")
}

fn encode<T: Serialize>(what: &str, value: &T) -> Vec<u8> {
    postcard::to_allocvec(value)
        .unwrap_or_else(|error| panic!("the {what} type {} can't be written: {error}", type_name::<T>()))
}

/// What these bytes hold, as Rust writes it.
fn in_words<T: DeserializeOwned + fmt::Debug>(what: &str, bytes: &[u8]) -> String {
    decode::<T>(bytes).map_or_else(|| format!("what is no {what}"), |it| format!("{it:?}"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
