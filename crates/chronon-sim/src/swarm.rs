//! The swarm: every seed draws a cluster, its timings, its workload and its misfortunes of its own; first safety under
//! faults, then everything heals and whatever was asked for must come to an end.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use chronon_kernel::{Contract, EffectFilter, EffectView, Parked, RequestResult};
use chronon_vsr::{Duration, Event, Instant, Mutations, Op, Prng, Quorums, ReplicaId, Ring};

use crate::performance;
use crate::plot::{BLACKOUT_MIN, Plot};
use crate::{
    BankWorkload, Checker, ClientConfig, Config, DiskConfig, Fault, Harm, NetworkConfig, Pace, Region,
    RegisterWorkload, SinkBehaviour, Trace, TraceMode, Violation, Workload, World,
};

/// The safety phase ends at this world time, whatever the clients have left to do.
const SAFETY_MAX: Duration = Duration::from_secs(25);

/// After the healing everything must have ended within this world time.
const LIVENESS_MAX: Duration = Duration::from_secs(120);

/// After damage beyond every promise all has ended within this world time, or somebody has refused.
const REFUSAL_MAX: Duration = Duration::from_secs(120);

/// When all is quiet it stays so: the world runs on for this long, and nothing may be ordered.
const QUIET: Duration = Duration::from_secs(3);

/// A process that dies in the middle of a drain carries out fewer outputs than this before.
const OUTPUTS_MAX: u64 = 16;

/// A partition that comes and goes does so at most this often.
const FLAPS_MAX: u64 = 16;

/// When all is quiet a person sees to what is parked, with at most so many looks.
const DESK_ACTS_MAX: u64 = 24;

/// Which phase of a run a judge objected in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Under faults.
    Safety,
    /// After the healing.
    Liveness,
    /// With one backup in trouble.
    Performance,
    /// When all was quiet.
    Quiet,
}

/// What a run of one seed came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What a judge objected to, and when.
    pub failure: Option<(Phase, Violation)>,
    /// Voters.
    pub replicas: usize,
    /// The faults that this seed could have.
    pub menu: Menu,
    /// What else this seed drew.
    pub config: Config,
    /// World time at the end.
    pub world_time: Duration,
    /// Ops committed.
    pub ops: u64,
    /// Commands applied.
    pub commands: usize,
    /// Calls that ended well.
    pub calls: usize,
    /// Attempts that left a replica.
    pub starts: u64,
    /// Acts of all sinks.
    pub acts: usize,
    /// Faults inflicted.
    pub faults: u32,
    /// How often each protocol event happened.
    pub coverage: BTreeMap<String, u64>,
    /// Stands for the whole run: the same seed and code give the same.
    pub fingerprint: u64,
    /// Everything that happened, if it was kept.
    pub trace: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, replicas, ops, commands, starts, faults, fingerprint, .. } = self;
        match &self.failure {
            None => write!(f, "seed {seed}: ok")?,
            Some((phase, violation)) => write!(f, "seed {seed}: FAILED in the {phase:?} phase: {violation}")?,
        }
        write!(
            f,
            " ({replicas} replicas, {ops} ops, {commands} commands, {starts} starts, {faults} faults, {:.1} s, {fingerprint:016x})",
            self.world_time.as_secs_f64()
        )?;
        if self.failure.is_some() {
            write!(f, "\nfaults that it could have: {}", self.menu)?;
        }
        Ok(())
    }
}

/// Which kinds of misfortune a seed may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// Processes are killed and started again.
    pub kill: bool,
    /// Machines lose their power, now and then all at once.
    pub power: bool,
    /// Processes are stopped and go on.
    pub pause: bool,
    /// Wires are cut: in two parts, one way, between two.
    pub partition: bool,
    /// Messages are lost, doubled, replayed, late.
    pub wires: bool,
    /// Disks stall.
    pub stall: bool,
    /// Disks fail a write or a flush.
    pub disk_error: bool,
    /// Pages rot or can't be read any more, in any part of a disk, on so many disks at a time as a quorum can spare.
    pub rot: bool,
    /// Writes are lost or go astray, as widely.
    pub lost: bool,
    /// Disks are full for a while.
    pub full: bool,
    /// Clocks drift, are off, and jump.
    pub clock: bool,
    /// Sinks refuse, fail, hang, act late.
    pub sinks: bool,
    /// Clients die, duplicate and give up.
    pub clients: bool,
    /// Primaries are asked to step down.
    pub step_down: bool,
    /// Execution is slow for a while.
    pub slow: bool,
    /// A person freezes and thaws sinks and, where [`Swarm::desk`] lets them, works at the desk.
    pub operator: bool,
}

impl Menu {
    const KINDS: usize = 16;

    /// Those that the bits of one draw stand for.
    const DRAWN: usize = 15;

    /// Every kind of misfortune.
    pub const ALL: Menu = Menu {
        kill: true,
        power: true,
        pause: true,
        partition: true,
        wires: true,
        stall: true,
        disk_error: true,
        rot: true,
        lost: true,
        full: true,
        clock: true,
        sinks: true,
        clients: true,
        step_down: true,
        slow: true,
        operator: true,
    };

    /// Every kind with its name.
    fn switches(&mut self) -> [(&'static str, &mut bool); Menu::KINDS] {
        [
            ("kill", &mut self.kill),
            ("power", &mut self.power),
            ("pause", &mut self.pause),
            ("partition", &mut self.partition),
            ("wires", &mut self.wires),
            ("stall", &mut self.stall),
            ("disk-error", &mut self.disk_error),
            ("rot", &mut self.rot),
            ("clock", &mut self.clock),
            ("sinks", &mut self.sinks),
            ("clients", &mut self.clients),
            ("step-down", &mut self.step_down),
            ("slow", &mut self.slow),
            ("lost", &mut self.lost),
            ("full", &mut self.full),
            ("operator", &mut self.operator),
        ]
    }

    fn from_bits(bits: u64) -> Menu {
        let mut menu = Menu::default();
        for (bit, (_, on)) in menu.switches().into_iter().enumerate() {
            *on = bits >> bit & 1 == 1;
        }
        menu
    }

    /// The same with one kind less, for each kind that it has.
    pub fn without_one(self) -> Vec<Menu> {
        let one_off = |kind: usize| {
            let mut menu = self;
            let on = menu.switches().into_iter().nth(kind).map(|(_, on)| std::mem::take(on));
            (on == Some(true)).then_some(menu)
        };
        (0..Menu::KINDS).filter_map(one_off).collect()
    }

    /// No kind at all, and each kind that it has alone.
    pub fn few(self) -> Vec<Menu> {
        let alone = |kind: usize| {
            let mut menu = self;
            let on = menu.switches().into_iter().nth(kind).is_some_and(|(_, on)| *on);
            on.then(|| Menu::from_bits(1 << kind))
        };
        std::iter::once(Menu::default()).chain((0..Menu::KINDS).filter_map(alone)).collect()
    }

    /// No faults, one kind alone, some, or all of them; and an operator or none, from a source of its own.
    fn draw(prng: &mut Prng, seed: u64) -> Menu {
        let all = (1 << Menu::DRAWN) - 1;
        let menu = Menu::from_bits(match prng.below(10) {
            0 => 0,
            1 | 2 => 1 << prng.below(Menu::DRAWN as u64),
            3..=6 => prng.next_u64() & all,
            _ => all,
        });
        Menu { operator: Prng::new(seed ^ 0x09e4_a704_0000_0000).chance(1, 2), ..menu }
    }

    /// Those that come at moments of their own, not with every message or write.
    fn disruptions(&self) -> Vec<Disruption> {
        let kinds = [
            (self.kill, Disruption::Kill),
            (self.power, Disruption::Power),
            (self.pause, Disruption::Pause),
            (self.partition, Disruption::Partition),
            (self.stall, Disruption::Stall),
            (self.disk_error, Disruption::DiskError),
            (self.rot, Disruption::Harm([Harm::Rot, Harm::Unreadable])),
            (self.lost, Disruption::Harm([Harm::Lost, Harm::Misdirected])),
            (self.full, Disruption::Full),
            (self.clock, Disruption::Clock),
            (self.step_down, Disruption::StepDown),
            (self.slow, Disruption::Slow),
        ];
        kinds.into_iter().filter(|(on, _)| *on).map(|(_, kind)| kind).collect()
    }
}

/// Kinds of fault by name, separated by commas; `none` for none of them.
impl fmt::Display for Menu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut menu = *self;
        let names = menu.switches().into_iter().filter_map(|(name, on)| on.then_some(name));
        let names: Vec<&str> = names.collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(","))
    }
}

/// There is no such kind of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFault {
    name: String,
}

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = Menu::ALL;
        write!(f, "no kind of fault is called {:?}: write some of {all}, or none, or all", self.name)
    }
}

impl std::error::Error for UnknownFault {}

impl std::str::FromStr for Menu {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Menu, UnknownFault> {
        let mut menu = match text {
            "all" => return Ok(Menu::ALL),
            "none" | "" => return Ok(Menu::default()),
            _ => Menu::default(),
        };
        for name in text.split(',').map(str::trim) {
            let switch = menu.switches().into_iter().find(|(known, _)| *known == name);
            let (_, on) = switch.ok_or_else(|| UnknownFault { name: name.to_owned() })?;
            *on = true;
        }
        Ok(menu)
    }
}

/// A misfortune with a moment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disruption {
    Kill,
    Power,
    Pause,
    Partition,
    Stall,
    DiskError,
    Harm([Harm; 2]),
    Full,
    Clock,
    StepDown,
    Slow,
}

/// Makes the workload of a seed.
pub type MakeWorkload = Arc<dyn Fn(&mut Prng) -> Box<dyn Workload> + Send + Sync>;

/// How a swarm is run.
#[derive(Clone)]
pub struct Swarm {
    /// Makes the workload of a seed.
    pub workload: MakeWorkload,
    /// Guards broken on purpose.
    pub mutations: Mutations,
    /// The largest body of an op, in bytes: the rings that seeds draw are as small as that allows.
    pub body_size_max: u32,
    /// Disks rot beyond what the protocol promises to survive: then to refuse is right, and to lose is not.
    pub beyond: bool,
    /// Whether the cost of a backup in trouble is measured, with commands after those that clients were to submit.
    pub performance: bool,
    /// Whether seeds may have room for a few timers only: no command is told to come back for ever if they all ring soon.
    pub few_timers: bool,
    /// Whether operators work at the desk too: resolve, retry and cancel effects, as the sinks' ledgers say. Machines
    /// hear of outcomes then that no sink gave.
    pub desk: bool,
    /// Always this many replicas.
    pub replicas: Option<usize>,
    /// Faults that may happen; none: the seed decides.
    pub menu: Option<Menu>,
    /// Always this many clients.
    pub clients: Option<u32>,
    /// Always this many calls, by all clients together.
    pub calls: Option<u32>,
    /// Whether lines are kept.
    pub trace: TraceMode,
    /// Every so many seeds one is run twice, and the two stories are compared byte for byte. Zero: never.
    pub twice_every: u64,
}

impl Swarm {
    /// The default swarm of a workload: every seed decides everything.
    pub fn of(workload: impl Fn(&mut Prng) -> Box<dyn Workload> + Send + Sync + 'static) -> Swarm {
        Swarm {
            workload: Arc::new(workload),
            mutations: Mutations::NONE,
            body_size_max: 128 * 1024,
            beyond: false,
            performance: false,
            few_timers: false,
            desk: false,
            replicas: None,
            menu: None,
            clients: None,
            calls: None,
            trace: TraceMode::Fingerprint,
            twice_every: 0,
        }
    }

    /// The default swarm of the bank.
    pub fn bank() -> Swarm {
        let bank = Swarm::of(|prng| Box::new(BankWorkload::draw(prng)));
        Swarm { body_size_max: 8 * 1024, performance: true, few_timers: true, desk: true, ..bank }
    }

    /// The default swarm of registers, whose histories are judged by what clients saw alone.
    pub fn registers() -> Swarm {
        Swarm { body_size_max: 8 * 1024, ..Swarm::of(|prng| Box::new(RegisterWorkload::draw(prng))) }
    }

    /// Runs one seed, and now and then once more, to see that it tells the same story.
    pub(crate) fn run_and_compare(&self, seed: u64) -> Report {
        if self.twice_every == 0 || !seed.is_multiple_of(self.twice_every) {
            return self.run_seed(seed);
        }
        let swarm = Swarm { trace: TraceMode::Lines, ..self.clone() };
        let (mut report, again) = (swarm.run_seed(seed), swarm.run_seed(seed));
        if report.failure.is_none()
            && (report.trace != again.trace || report.fingerprint != again.fingerprint)
        {
            let differs = report.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
            let what = differs.map_or_else(
                || format!("one run has {} lines, the other {}", report.trace.len(), again.trace.len()),
                |(one, other)| format!("once {one:?}, then {other:?}"),
            );
            report.failure = Some((Phase::Quiet, Violation::new(Checker::Twice, what)));
        }
        if self.trace == TraceMode::Fingerprint {
            report.trace = Vec::new();
        }
        report
    }

    /// Runs one seed.
    pub fn run_seed(&self, seed: u64) -> Report {
        let mut run = Run::draw(self, seed);
        let report = Report {
            seed,
            failure: None,
            replicas: run.config.replicas,
            menu: run.menu,
            config: run.config,
            world_time: Duration::ZERO,
            ops: 0,
            commands: 0,
            calls: 0,
            starts: 0,
            acts: 0,
            faults: 0,
            coverage: BTreeMap::new(),
            fingerprint: 0,
            trace: Vec::new(),
        };
        // An assertion of the code under test ends the run like a judge's objection. The world is looked at
        // afterwards, never run on.
        let mut world =
            match catch_unwind(AssertUnwindSafe(|| World::new(run.config, (self.workload)(&mut run.prng)))) {
                Ok(world) => world,
                Err(panic) => {
                    let violation = Violation::new(Checker::Panic, panic_message(&*panic));
                    return Report { failure: Some((Phase::Safety, violation)), ..report };
                }
            };
        let mut failure = None;
        for phase in [Phase::Safety, Phase::Liveness, Phase::Performance, Phase::Quiet] {
            let ended = catch_unwind(AssertUnwindSafe(|| match phase {
                Phase::Safety => run.safety(&mut world),
                Phase::Liveness => run.liveness(&mut world),
                Phase::Performance => run.performance(&mut world),
                Phase::Quiet => run.quiet(&mut world),
            }));
            let violation = match ended {
                Ok(Ok(())) if run.refused => break,
                Ok(Ok(())) => continue,
                // More replicas than one hold a wrong state by now, and may outvote the others: beyond what is promised.
                _ if world.has_spread() => break,
                Ok(Err(violation)) => violation,
                Err(panic) => Violation::new(Checker::Panic, panic_message(&*panic)),
            };
            failure = Some((phase, violation));
            break;
        }
        let mut coverage = BTreeMap::new();
        for (_, _, event) in world.events() {
            *coverage.entry(name_of(event)).or_insert(0) += 1;
        }
        for (what, times) in outcomes(&world) {
            *coverage.entry(what.to_owned()).or_insert(0) += times;
        }
        let trace: &Trace = world.trace();
        Report {
            failure,
            world_time: world.now().since(Instant::ZERO),
            ops: world.commits().head().value(),
            commands: world.results().commands_applied(),
            calls: world.history().completed().len(),
            starts: world.starts(),
            acts: world.sinks().values().map(|sink| sink.ledger().len()).sum(),
            faults: run.faults,
            coverage,
            fingerprint: trace.fingerprint(),
            trace: trace.lines().to_vec(),
            ..report
        }
    }

    /// Runs these seeds and tells of each as it ends. The callback says whether to go on. Returns the failures.
    pub fn run_seeds(&self, seeds: Range<u64>, mut progress: impl FnMut(&Report) -> bool) -> Vec<Report> {
        let mut failures = Vec::new();
        for seed in seeds {
            let report = self.run_and_compare(seed);
            let go_on = progress(&report);
            if report.failure.is_some() {
                failures.push(report);
            }
            if !go_on {
                break;
            }
        }
        failures
    }
}

/// A protocol event's name; where it has causes, and each is a path of its own, with its cause.
fn name_of(event: &Event) -> String {
    match event {
        Event::Abdicated { why, .. } => format!("Abdicated({why:?})"),
        Event::ViewChangeVoted { why, .. } => format!("ViewChangeVoted({why:?})"),
        event => {
            let text = format!("{event:?}");
            text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
        }
    }
}

/// What the run's end shows to have happened.
fn outcomes(world: &World) -> Vec<(&'static str, u64)> {
    let mut outcomes: Vec<(&'static str, u64)> =
        world.reached().iter().map(|(what, times)| (*what, *times)).collect();
    outcomes.push(("LogWrapped", world.machines.iter().map(|machine| machine.disk.wraps()).sum()));
    outcomes.push(("SinkFenced", world.sinks().values().map(crate::Sink::fenced).sum()));
    outcomes
        .extend(world.sinks().values().flat_map(crate::Sink::reached).map(|(what, times)| (*what, *times)));
    let repeats = world
        .results()
        .all()
        .filter(|(at, result)| matches!(result, RequestResult::Replied { at: first, .. } if first != at));
    outcomes.push(("RepeatAnswered", repeats.count() as u64));
    let engines = world.replicas().into_iter().filter_map(|replica| world.engine(replica));
    if let Some(engine) = engines.max_by_key(|engine| engine.applied()) {
        let status = engine.status();
        outcomes.push(("EffectDelivered", status.delivered));
        outcomes.push(("EffectFailed", status.failed));
        let keyed = world.results().keys_applied() as u64;
        outcomes.push(("KeyExpired", keyed.saturating_sub(status.keys)));
        for view in engine.effects(&EffectFilter::default(), None, usize::MAX) {
            outcomes.extend(why_parked(&view).map(|why| (why, 1)));
            if view.outcome.as_ref().is_some_and(|it| it.outcome == "cancelled") && view.acts.is_empty() {
                outcomes.push(("MachineCancelled", 1));
            }
        }
    }
    outcomes.retain(|(_, times)| *times != 0);
    outcomes
}

/// Why an effect is parked, if it is.
pub(crate) fn why_parked(view: &EffectView) -> Option<&'static str> {
    let no = view.attempts.iter().any(|attempt| attempt.ended == "permanent");
    Some(match view.parked? {
        // Its deadline may have ended it as well.
        Parked::InDoubt if view.deadline.is_some() => "EffectInDoubt",
        Parked::InDoubt if matches!(view.contract, Contract::Idempotent { .. }) && !no => "WindowClosed",
        Parked::InDoubt if view.contract.claims() => "ClaimInDoubt",
        Parked::InDoubt => "EffectInDoubt",
        // Nothing that has attempts left is exhausted but by its deadline.
        Parked::Exhausted if view.attempts_count == 0 => "DeadlinePassed",
        Parked::Exhausted => "EffectExhausted",
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// One seed's run.
struct Run {
    config: Config,
    menu: Menu,
    prng: Prng,
    /// The mean pause between two misfortunes.
    fault_mean: Duration,
    /// The only replica whose clock goes far astray.
    victim: ReplicaId,
    faults: u32,
    beyond: bool,
    performance: bool,
    /// Draws where in a drain processes die.
    deaths: Prng,
    /// Draws which partitions come and go.
    flaps: Prng,
    /// Draws what the operator does.
    operator: Prng,
    desk: bool,
    /// Whose machine slips, and from which op on.
    slip: Option<(ReplicaId, Op)>,
    /// Somebody has refused, and rightly so: the run ends there.
    refused: bool,
}

impl Run {
    fn draw(swarm: &Swarm, seed: u64) -> Run {
        let mut prng = Prng::new(seed ^ 0x5eed_5eed_5eed_5eed);
        let drawn = [3, 3, 3, 3, 5, 5, 1, 2, 4, 6][prng.below(10) as usize];
        let replicas = swarm.replicas.unwrap_or(drawn);
        let mut menu = Menu::draw(&mut prng, seed);
        if let Some(forced) = swarm.menu {
            menu = forced;
        }
        if swarm.beyond {
            // What a device lost without a trace nobody can refuse.
            menu.rot = true;
            menu.lost = false;
        }
        let mut config = Config::calm(replicas, seed);
        config.mutations = swarm.mutations;
        config.trace = swarm.trace;
        let micros = |prng: &mut Prng, low: u64, high: u64| Duration::from_micros(prng.between(low, high));
        config.network = NetworkConfig {
            delay_min: micros(&mut prng, 5, 300),
            delay_mean: micros(&mut prng, 5, 1_000),
            ..NetworkConfig::GOOD
        };
        config.disk = DiskConfig {
            write_min: micros(&mut prng, 5, 100),
            flush_min: micros(&mut prng, 50, 3_000),
            jitter_mean: micros(&mut prng, 5, 2_000),
            ..DiskConfig::GOOD
        };
        let back_max = if prng.chance(1, 4) { 2_000 } else { 50 };
        config.pace = Pace {
            front: micros(&mut prng, 1, 20),
            back: micros(&mut prng, 1, back_max),
            late_mean: micros(&mut prng, 1, 300),
            checkpoint: Duration::ZERO,
            restore: Duration::ZERO,
            scrub: None,
            back_queue_max: prng.between(1, 64) as usize,
        };
        config.reset_after = prng.chance(2, 3).then(|| Duration::from_millis(1));
        config.clients = ClientConfig {
            clients: prng.between(1, 12) as u32,
            calls: 0,
            query: prng.below(400_000) as u32,
            query_local: 150_000,
            key: if prng.chance(1, 2) { prng.below(600_000) as u32 } else { 0 },
            repeat_keys: true,
            wander: if prng.chance(1, 2) { prng.below(500_000) as u32 } else { 0 },
            duplicate: 0,
            crash: 0,
            give_up: 0,
            think_mean: micros(&mut prng, 100, 40_000),
            patience: Duration::from_millis(prng.between(100, 1_500)),
        };
        let calls = prng.between(220, 420) as u32;
        config.clients.clients = swarm.clients.unwrap_or(config.clients.clients).max(1);
        config.clients.calls = swarm.calls.unwrap_or(calls).div_ceil(config.clients.clients);
        // Each kind draws from a source of its own: without it the rest of the seed stays as it was.
        let mut own = prng.fork();
        if menu.wires {
            config.network.loss = own.below(80_000) as u32;
            config.network.duplicate = own.below(60_000) as u32;
            config.network.replay = own.below(20_000) as u32;
            if own.chance(1, 3) {
                config.network.delay_mean = micros(&mut own, 1_000, 20_000);
            }
        }
        let mut own = prng.fork();
        if menu.clock {
            config.drift_ppm_max = 200;
            config.skew_max = Duration::from_millis(own.below(3_000));
            config.window_slack = 2 * config.skew_max + Duration::from_secs(5);
        }
        let mut own = prng.fork();
        if menu.clients {
            config.clients.duplicate = own.below(150_000) as u32;
            config.clients.crash = own.below(20_000) as u32;
            config.clients.give_up = own.below(500_000) as u32;
        }
        let mut own = prng.fork();
        if menu.sinks {
            let share = |prng: &mut Prng| if prng.chance(1, 2) { prng.below(200_000) as u32 } else { 0 };
            config.sinks = SinkBehaviour {
                refuse: share(&mut own),
                error_before: share(&mut own),
                error_after: share(&mut own),
                silent: share(&mut own) / 4,
                act_silent: share(&mut own) / 2,
                late: share(&mut own) / 2,
                permanent: share(&mut own) / 4,
                gateway: share(&mut own) / 4,
                late_max: Duration::from_millis(own.between(300, 3_000)),
                die: share(&mut own) / 2,
                ..SinkBehaviour::GOOD
            };
        }
        let slip = Run::draw_slip(seed, &menu, replicas);
        Run::draw_ring(swarm, seed, &menu, &mut config);
        Run::draw_limits(swarm, seed, &menu, &mut config);
        let victim = ReplicaId::new(prng.below(replicas as u64) as u8);
        let fault_mean = Duration::from_millis(prng.between(20, 1_500));
        Run {
            config,
            menu,
            prng,
            fault_mean,
            victim,
            faults: 0,
            beyond: swarm.beyond,
            performance: swarm.performance && !swarm.beyond,
            deaths: Prng::new(seed ^ 0xd1e5_0000_0d4a_1000),
            flaps: Prng::new(seed ^ 0xf1a9_0000_c07e_5000),
            operator: Prng::new(seed ^ 0x09e4_a704_4a2d_0000),
            desk: swarm.desk,
            slip,
            refused: false,
        }
    }

    /// A ring so small that it wraps, and checkpoints a few ops apart, from a source of their own.
    fn draw_ring(swarm: &Swarm, seed: u64, menu: &Menu, config: &mut Config) {
        let mut prng = Prng::new(seed ^ 0x0c4e_c490_1177_0000);
        let charge_max = chronon_vsr::charge(swarm.body_size_max);
        let mut some = |most: u64| {
            let times = prng.between(1, most);
            times * charge_max + prng.below(charge_max)
        };
        let (checkpoint_interval, slack, spare) = (some(8), some(8), some(4) - charge_max);
        let log = checkpoint_interval + slack + chronon_vsr::PIPELINE_MAX * charge_max + spare;
        config.ring = Ring { log, checkpoint_interval, slack, charge_max };
        let longest = if prng.chance(1, 4) { 100_000 } else { 2_000 };
        config.pace.checkpoint = Duration::from_micros(prng.between(10, longest));
        config.pace.restore = Duration::from_micros(prng.between(10, longest));
        // Where nothing rots a scrub is only to do no harm.
        let rarely = if menu.rot || menu.lost { 1 } else { 5 };
        config.pace.scrub = prng.chance(1, 2).then(|| Duration::from_millis(prng.between(10, 400) * rarely));
        config.disk.atomic = if prng.chance(1, 2) { 4_096 } else { 512 };
    }

    /// Sessions and keys so few that some are evicted, from a source of their own.
    fn draw_limits(swarm: &Swarm, seed: u64, menu: &Menu, config: &mut Config) {
        let mut prng = Prng::new(seed ^ 0x5e55_1045_0000_0000);
        let clients = u64::from(config.clients.clients);
        if prng.chance(3, 4) {
            // One or a few less than there are clients, or they would do nothing but register.
            let most = (clients.max(3) - 1).max(2);
            config.engine.sessions_max = prng.between((most / 2).max(2), most) as usize;
        }
        // Queues and tables so short that callers are told to come back.
        if prng.chance(1, 3) {
            config.limits.queue_requests_max = prng.between(1, 6) as usize;
            config.limits.in_flight_max = prng.between(2, 16) as usize;
            let timers_max = prng.between(1, 4) as usize;
            if swarm.few_timers {
                config.engine.timers_max = timers_max;
            }
        }
        if config.clients.key == 0 && prng.chance(5, 6) {
            config.clients.key = prng.below(600_000) as u32;
        }
        if prng.chance(5, 6) {
            // Time for an attempt and for another one.
            config.engine.key_kept = config.clients.patience * prng.between(3, 6) as u32;
            config.engine.key_kept_min = config.engine.key_kept / 2;
            // Keys expire by log time: where clocks are off it may jump by more than any client has patience for.
            config.clients.repeat_keys = !menu.clock;
        }
    }

    /// A machine that is not deterministic once, from a source of its own. Its disk counts as damaged, so no other's
    /// may be; and two replicas can't tell whose fault it is.
    fn draw_slip(seed: u64, menu: &Menu, replicas: usize) -> Option<(ReplicaId, Op)> {
        let mut prng = Prng::new(seed ^ 0x511b_0000_d1ff_0000);
        let may = 3 <= replicas && !menu.rot && !menu.lost && prng.chance(1, 3);
        let replica = ReplicaId::new(prng.below(replicas as u64) as u8);
        let op = Op::new(prng.between(20, 160));
        // Every second time whoever leads first.
        let replica = if prng.chance(1, 2) { ReplicaId::new(1) } else { replica };
        may.then_some((replica, op))
    }

    /// Under faults, until the clients are done or time is up.
    fn safety(&mut self, world: &mut World) -> Result<(), Violation> {
        if let Some((replica, op)) = self.slip {
            world.slip(replica, op);
        }
        let end = Instant::ZERO + SAFETY_MAX;
        while world.now() < end && !world.clients_done() {
            let pause = crate::network::exponential(&mut self.prng, self.fault_mean);
            run(world, pause)?;
            if self.menu.operator {
                world.operate(&mut self.operator, self.desk);
            }
            let forgets = world.sinks.values().any(|sink| sink.forgets_within(BLACKOUT_MIN));
            let plots = Plot::of(&self.menu, self.config.replicas, forgets);
            if !plots.is_empty() && self.prng.chance(1, 3) {
                self.faults += 1;
                let plot = plots[self.prng.below(plots.len() as u64) as usize];
                plot.play(world, &mut self.prng, self.victim)?;
            } else if !self.menu.disruptions().is_empty() {
                self.disrupt(world)?;
            }
        }
        let mut own = Prng::new(self.config.seed ^ 0x57a1_1000_d15c_0000);
        if self.performance && self.menu.stall && 3 <= self.config.replicas && own.chance(1, 6) {
            self.faults += 1;
            Plot::Standstill.play(world, &mut own, self.victim)?;
        }
        Ok(())
    }

    /// A core heals, everything else is broken for good: whatever was asked for must come to an end. Then the rest heals
    /// too, and must catch up.
    fn liveness(&mut self, world: &mut World) -> Result<(), Violation> {
        if self.beyond {
            return self.ends_or_refuses(world);
        }
        if self.prng.chance(2, 3) {
            let outside = self.outside(world);
            self.heal(world);
            for replica in &outside {
                world.forsake(*replica);
                self.faults += 1;
                match self.prng.below(4) {
                    0 => world.inflict(Fault::Kill(*replica)),
                    1 => world.inflict(Fault::Pause(*replica)),
                    2 => self.cut_off(world, *replica, true),
                    _ => self.cut_off(world, *replica, false),
                }
            }
            Run::until_quiet_or_tied(world, "with what is left of the cluster")?;
            for replica in outside {
                world.welcome(replica);
            }
        }
        self.heal(world);
        Run::until_quiet_or_tied(world, "when everything has healed")?;
        self.see_to_what_is_parked(world)
    }

    /// Both sides of a tie are quarantined, and a third replica, which was away meanwhile, may need a state that nobody
    /// else has: then a person starts all again who are there.
    fn until_quiet_or_tied(world: &mut World, when: &str) -> Result<(), Violation> {
        match Run::until_quiet(world, when) {
            Err(violation) if violation.checker == Checker::Liveness && world.is_tied() => {
                world.reach("TieStartedAgain");
                world.start_all_again();
                Run::until_quiet(world, "when all were started again")
            }
            ended => ended,
        }
    }

    /// All is quiet, and becomes so again when a person has seen to what is parked.
    fn see_to_what_is_parked(&mut self, world: &mut World) -> Result<(), Violation> {
        if !self.menu.operator || !self.desk {
            return Ok(());
        }
        for _ in 0..DESK_ACTS_MAX {
            if !world.holds_parked() {
                break;
            }
            world.work_at_desk(&mut self.operator);
            run(world, Duration::from_millis(500))?;
            Run::until_quiet_or_tied(world, "when a person has seen to what is parked")?;
        }
        Ok(())
    }

    /// After damage that nobody promised to survive: all ends well, or somebody has said that it can't.
    fn ends_or_refuses(&mut self, world: &mut World) -> Result<(), Violation> {
        self.heal(world);
        let end = world.now() + REFUSAL_MAX;
        loop {
            run(world, Duration::from_millis(100))?;
            match world.is_quiet() {
                Ok(()) => return Ok(()),
                Err(_) if end <= world.now() && world.has_refused() => {
                    self.refused = true;
                    return Ok(());
                }
                Err(why) if end <= world.now() => {
                    let what = format!("{REFUSAL_MAX:?} after the healing nobody refuses, and {why}");
                    return Err(Violation::new(Checker::Liveness, what));
                }
                Err(_) => {}
            }
        }
    }

    /// Who is not in the core: so few that a quorum of every kind is left, and first those whose disks are damaged, for
    /// what they lost the others hold between them.
    fn outside(&mut self, world: &World) -> Vec<ReplicaId> {
        let mut replicas = world.replicas();
        let quorums = Quorums::of(replicas.len());
        let most = replicas.len() - quorums.view_change.max(quorums.replication);
        let mut outside = Vec::new();
        for damaged in world.slipping().into_iter().chain(world.damaged_disks()) {
            if outside.len() < most {
                outside.push(damaged);
                replicas.retain(|replica| *replica != damaged);
            }
        }
        while outside.len() < most && self.prng.chance(3, 4) {
            outside.push(replicas.swap_remove(self.prng.below(replicas.len() as u64) as usize));
        }
        outside
    }

    /// Nobody hears a replica any more, nor, if `both` ways, does it hear anybody.
    fn cut_off(&self, world: &mut World, replica: ReplicaId, both: bool) {
        for other in world.replicas().into_iter().filter(|other| *other != replica) {
            world.inflict(Fault::Cut(replica, other));
            if both {
                world.inflict(Fault::Cut(other, replica));
            }
        }
    }

    /// Each call has so long to end, and so has all that is left after the last one.
    fn until_quiet(world: &mut World, when: &str) -> Result<(), Violation> {
        let mut since = world.now();
        loop {
            run(world, Duration::from_millis(100))?;
            // Nobody here skips what a machine halts at.
            if let Some(halted) = world.anyone_halted() {
                return Err(Violation::new(Checker::Machine, halted));
            }
            let Err(why) = world.is_quiet() else { return Ok(()) };
            since = since.max(world.oldest_call().unwrap_or(since));
            if since + LIVENESS_MAX <= world.now() {
                let what = format!("{LIVENESS_MAX:?} after the healing or a call, {when}: {why}");
                return Err(Violation::new(Checker::Liveness, what));
            }
        }
    }

    /// A backup in trouble costs little.
    fn performance(&mut self, world: &mut World) -> Result<(), Violation> {
        if !self.performance || !performance::is_measurable(world) {
            return Ok(());
        }
        performance::compare(world, &mut self.prng)?;
        Run::until_quiet(world, "when a backup is out of trouble")
    }

    /// When all is quiet it stays so, and everything fits together.
    fn quiet(&mut self, world: &mut World) -> Result<(), Violation> {
        // An end that nobody waits for any more may still be on its way into the log, as evidence.
        run(world, 2 * QUIET)?;
        let head = world.commits().head();
        run(world, QUIET)?;
        if world.expects_something() {
            Run::until_quiet(world, "between what is set for later")?;
            return world.check_quiet();
        }
        // Whoever is quarantined does not see in its state what the log holds, and proposes an end that it knows again.
        let sees_all = !world.replicas().into_iter().any(|replica| world.is_quarantined(replica));
        if world.commits().head() != head && sees_all {
            let requests = world.commits().get(head.next()).map(|committed| &committed.requests);
            let what =
                format!("an idle cluster went on from op {head} to {}: {requests:?}", world.commits().head());
            return Err(Violation::new(Checker::Bounds, what));
        }
        world.check_quiet()
    }

    fn heal(&mut self, world: &mut World) {
        world.set_network(NetworkConfig { loss: 0, duplicate: 0, replay: 0, ..self.config.network });
        world.set_disks(DiskConfig { stall_chance: 0, error_chance: 0, ..self.config.disk });
        world.set_sinks(SinkBehaviour { permanent: self.config.sinks.permanent, ..SinkBehaviour::GOOD });
        world.set_clients(ClientConfig { crash: 0, ..self.config.clients });
        world.thaw_all();
        world.forget_amends();
        world.inflict(Fault::MendAll);
        for replica in world.replicas() {
            world.inflict(Fault::Clock(replica, 0));
            world.inflict(Fault::Resume(replica));
            world.inflict(Fault::Start(replica));
        }
    }

    /// One misfortune, and when it ends.
    fn disrupt(&mut self, world: &mut World) -> Result<(), Violation> {
        let replicas = world.replicas();
        let any = |prng: &mut Prng| replicas[prng.below(replicas.len() as u64) as usize];
        // The primary is where it hurts.
        let aimed = |prng: &mut Prng| match world.primary() {
            Some(primary) if prng.chance(1, 2) => primary,
            Some(_) | None => any(prng),
        };
        let target = aimed(&mut self.prng);
        let other = any(&mut self.prng);
        let kinds = self.menu.disruptions();
        let kind = kinds[self.prng.below(kinds.len() as u64) as usize];
        let short = Duration::from_millis(self.prng.between(1, 300));
        let long = Duration::from_millis(self.prng.between(100, 4_000));
        let length = if self.prng.chance(2, 3) { short } else { long };
        self.faults += 1;
        match kind {
            Disruption::Kill => {
                let outputs = self.deaths.below(OUTPUTS_MAX) as u32;
                let between = self.deaths.chance(1, 2);
                world.inflict(if between { Fault::KillWithin(target, outputs) } else { Fault::Kill(target) });
                world.inflict_after(length, Fault::Start(target));
            }
            Disruption::Power => {
                if self.prng.chance(1, 3) {
                    for replica in &replicas {
                        world.inflict(Fault::PowerOff(*replica));
                        let boot = Duration::from_millis(self.prng.between(1, 300));
                        world.inflict_after(boot, Fault::Start(*replica));
                    }
                } else {
                    world.inflict(Fault::PowerOff(target));
                    world.inflict_after(length, Fault::Start(target));
                }
            }
            Disruption::Pause => {
                world.inflict(Fault::Pause(target));
                world.inflict_after(length, Fault::Resume(target));
            }
            Disruption::Partition => self.partition(world, target, other, length)?,
            Disruption::Stall => {
                // Now and then for ever, as far as this phase goes.
                let length = if self.prng.chance(1, 8) { Duration::from_secs(86_400) } else { length };
                world.inflict(Fault::DiskStall(target, length));
                world.inflict_after(long, Fault::DiskStall(target, Duration::ZERO));
            }
            Disruption::DiskError => world.inflict(Fault::DiskError(target)),
            Disruption::Harm(harms) => {
                // While it runs a scrub may find it, or nobody does before the next start.
                let dies = self.prng.chance(1, 2);
                if dies {
                    world.inflict(Fault::Kill(target));
                    world.inflict_after(short, Fault::Start(target));
                }
                for _ in 0..self.prng.between(1, 4) {
                    let region = match self.prng.below(5) {
                        0 => Region::Superblock,
                        1 | 2 => Region::Packs,
                        _ => Region::Wal,
                    };
                    let (harm, which) = (harms[self.prng.below(2) as usize], self.prng.next_u64());
                    if self.beyond {
                        world.inflict(Fault::Harm(target, region, harm, which));
                    } else {
                        world.harm_within_limits(target, region, harm, which);
                    }
                }
            }
            Disruption::Full => {
                world.inflict(Fault::DiskFull(target, true));
                world.inflict_after(long, Fault::DiskFull(target, false));
            }
            Disruption::Clock => {
                let hour = 3_600_000_000_000_i64;
                let skew = self.prng.between(0, 2 * hour.unsigned_abs()) as i64 - hour;
                // A majority of clocks is right, give or take a second: one replica's alone goes far astray. Alone or
                // of two, it has nobody to tell it so.
                let small = replicas.len() < 3 || target != self.victim;
                let skew = if small { skew / 3_600 } else { skew };
                world.inflict(Fault::Clock(target, skew));
                world.inflict_after(long, Fault::Clock(target, 0));
            }
            Disruption::StepDown => world.inflict(Fault::StepDown(target)),
            Disruption::Slow => world.rest_execution(target, length),
        }
        Ok(())
    }

    fn partition(
        &mut self,
        world: &mut World,
        target: ReplicaId,
        other: ReplicaId,
        length: Duration,
    ) -> Result<(), Violation> {
        let replicas = world.replicas();
        let pairs = replicas.iter().flat_map(|from| replicas.iter().map(|to| (*from, *to)));
        let pairs = pairs.filter(|(from, to)| from != to);
        let cuts: Vec<(ReplicaId, ReplicaId)> = match self.prng.below(4) {
            // One alone.
            0 => pairs.filter(|(from, to)| *from == target || *to == target).collect(),
            // One way: it hears, or is heard, no more.
            1 => {
                let hears = self.prng.chance(1, 2);
                pairs.filter(|(from, to)| target == if hears { *from } else { *to }).collect()
            }
            // Only two do not see one another.
            2 if target != other => vec![(target, other), (other, target)],
            _ => {
                let bits = self.prng.next_u64();
                if 3 <= replicas.len() && bits >> 32 & 1 == 0 {
                    // A chain: each sees its neighbours alone.
                    world.reach("PartitionChained");
                    let count = replicas.len() as u64;
                    let link = |replica: ReplicaId| (u64::from(replica.value()) + (bits >> 40)) % count;
                    pairs.filter(|(from, to)| link(*from).abs_diff(link(*to)) != 1).collect()
                } else {
                    // Two camps.
                    pairs.filter(|(from, to)| bits >> from.value() & 1 != bits >> to.value() & 1).collect()
                }
            }
        };
        let cut = |world: &mut World| {
            for (from, to) in &cuts {
                world.inflict(Fault::Cut(*from, *to));
            }
        };
        if self.flaps.chance(1, 3) {
            world.reach("PartitionFlapped");
            for _ in 0..self.flaps.between(1, FLAPS_MAX) {
                cut(world);
                run(world, Duration::from_millis(self.flaps.between(1, 120)))?;
                world.inflict(Fault::MendAll);
                run(world, Duration::from_millis(self.flaps.between(1, 60)))?;
            }
        }
        cut(world);
        world.inflict_after(length, Fault::MendAll);
        Ok(())
    }
}

fn run(world: &mut World, duration: Duration) -> Result<(), Violation> {
    world.run_for(duration);
    world.violation().cloned().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cluster, R0};

    /// Seed 287302125787: a client that had many calls left was slow, and was taken for stuck.
    #[test]
    fn each_call_has_two_minutes_to_end_however_many_come_one_after_the_other() {
        let workload = RegisterWorkload::draw(&mut Prng::new(1));
        let mut c = Cluster::of(1, Box::new(workload)).seed(1).with(|config| {
            config.clients.clients = 1;
            config.clients.calls = 10;
            config.clients.think_mean = Duration::from_secs(20);
            config.clients.patience = Duration::from_secs(4);
        });
        c.replica(R0).slow(Duration::from_secs(1));
        let began = c.world().now();
        assert_eq!(Run::until_quiet(c.world(), "in this test"), Ok(()));
        let took = c.world().now().since(began);
        assert!(LIVENESS_MAX < took, "{took:?}");
    }
}
