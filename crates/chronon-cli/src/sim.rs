//! `chronon sim`: the deterministic simulator from the command line.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chronon_sim::{BankWorkload, Checker, Report, Swarm, TraceMode};
use chronon_vsr::{Mutations, VOTERS_MAX};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Run whole clusters in simulation: one thread, one virtual clock, every kind of fault
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SimCommand {
    /// Run seeds until one fails
    #[command(after_help = "Exit code: 0 all well, 2 safety, 3 liveness, 4 a panic in the code under test.")]
    Run(RunArguments),
    /// Run one seed again
    Replay(ReplayArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this seed
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Stop after this many minutes, however many seeds there are
    #[arg(long)]
    minutes: Option<u64>,
    /// Always this many replicas, instead of what the seed draws
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=VOTERS_MAX as i64))]
    replicas: Option<u8>,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArguments {
    /// The seed
    seed: u64,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
    /// As given to `sim run`
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=VOTERS_MAX as i64))]
    replicas: Option<u8>,
}

/// Carries out a command of the simulator.
pub(crate) fn run(command: &SimCommand) -> ExitCode {
    match command {
        SimCommand::Run(arguments) => run_seeds(arguments),
        SimCommand::Replay(arguments) => replay(arguments),
    }
}

fn swarm(replicas: Option<u8>, trace: TraceMode) -> Swarm {
    Swarm {
        workload: |prng| Box::new(BankWorkload::draw(prng)),
        mutations: Mutations::NONE,
        replicas: replicas.map(usize::from),
        menu: None,
        trace,
    }
}

fn run_seeds(arguments: &RunArguments) -> ExitCode {
    let seeds = match arguments.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => arguments.from..arguments.from.saturating_add(arguments.seeds),
    };
    let began = Instant::now();
    let until = arguments.minutes.map(|minutes| began + Duration::from_secs(60 * minutes));
    let mut told = began;
    let mut runs: u64 = 0;
    let mut commands: u64 = 0;
    let mut reached: BTreeMap<String, u64> = BTreeMap::new();
    let failures = swarm(arguments.replicas, TraceMode::Fingerprint).run_seeds(seeds, |report| {
        runs += 1;
        commands += report.commands as u64;
        for event in report.coverage.keys() {
            *reached.entry(event.clone()).or_default() += 1;
        }
        if report.failure.is_some() {
            println!("{report}");
        }
        if PROGRESS_EVERY <= told.elapsed() {
            told = Instant::now();
            eprintln!("{runs} seeds, {:.0} a minute", per_minute(runs, began.elapsed()));
        }
        let in_time = until.is_none_or(|until| Instant::now() < until);
        in_time && (report.failure.is_none() || arguments.keep_going)
    });
    println!(
        "{runs} seeds, {} failed, {commands} commands, {:.0} seeds a minute",
        failures.len(),
        per_minute(runs, began.elapsed())
    );
    for (event, seeds) in &reached {
        println!("  {seeds:>6} seeds reached {event}");
    }
    failures.first().map_or(ExitCode::SUCCESS, exit_code)
}

fn replay(arguments: &ReplayArguments) -> ExitCode {
    let trace = if arguments.trace { TraceMode::Lines } else { TraceMode::Fingerprint };
    let report = swarm(arguments.replicas, trace).run_seed(arguments.seed);
    for line in &report.trace {
        println!("{line}");
    }
    println!("{report}");
    exit_code(&report)
}

fn per_minute(runs: u64, elapsed: Duration) -> f64 {
    runs as f64 * 60.0 / elapsed.as_secs_f64().max(0.001)
}

fn exit_code(report: &Report) -> ExitCode {
    match report.failure.as_ref().map(|(_, violation)| violation.checker) {
        None => ExitCode::SUCCESS,
        Some(Checker::Liveness) => ExitCode::from(3),
        Some(Checker::Panic) => ExitCode::from(4),
        Some(
            Checker::Commits
            | Checker::Time
            | Checker::Digest
            | Checker::Sessions
            | Checker::Durability
            | Checker::Linearizability
            | Checker::NotExecuted
            | Checker::Effects
            | Checker::Gate
            | Checker::Machine
            | Checker::Open
            | Checker::Bounds,
        ) => ExitCode::from(2),
    }
}
