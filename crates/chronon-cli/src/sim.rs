//! `chronon sim`: the deterministic simulator from the command line.

#[cfg(feature = "mutations")]
mod mutants;
mod story;
mod tally;

use std::process::ExitCode;
use std::time::Duration;

use chronon_sim::{Checker, Menu, Narrowed, Report, Swarm, TraceMode};
use chronon_vsr::VOTERS_MAX;

use story::Filter;
use tally::Tally;

/// How often progress is told where no bar can be drawn.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A year: so many seeds have no end.
const MINUTES_MAX: u64 = 365 * 24 * 60;

const EXIT_CODES: &str = "Exit code: 0 all well, 2 safety, 3 liveness, 4 a panic in the code under test, 5 so many \
                          seeds of the default swarm missed an event that they should reach. With --keep-going the \
                          gravest failure counts.";

/// Run whole clusters in simulation: one thread, one virtual clock, every kind of fault
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SimCommand {
    /// Run seeds until one fails
    #[command(after_help = EXIT_CODES)]
    Run(RunArguments),
    /// Run one seed again
    #[command(after_help = EXIT_CODES)]
    Replay(ReplayArguments),
    /// Break each guard in turn, and see whether some judge objects
    #[cfg(feature = "mutations")]
    Mutants(mutants::MutantsArguments),
}

/// What the seed would otherwise draw.
#[derive(Debug, clap::Args)]
struct Fixed {
    /// What the cluster runs
    #[arg(long, value_enum, default_value_t = WorkloadName::Bank)]
    workload: WorkloadName,
    /// Always this many replicas, instead of what the seed draws
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=VOTERS_MAX as i64))]
    replicas: Option<u8>,
    /// Only these kinds of fault: names with commas between them, `none`, or `all`
    #[arg(long, value_name = "KINDS")]
    faults: Option<Menu>,
    /// Disks rot beyond what the protocol promises to survive: to refuse is right, to lose is not
    #[arg(long)]
    beyond: bool,
    /// Always this many clients
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: Option<u32>,
    /// Always this many calls, by all clients together
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: Option<u32>,
    /// A guard to break
    #[cfg(feature = "mutations")]
    #[arg(long = "break", value_name = "MUTATION", value_parser = mutants::by_name)]
    broken: Option<chronon_vsr::Mutation>,
}

/// Workloads that the command knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WorkloadName {
    /// Transfers between a few accounts, each with a webhook.
    Bank,
    /// Reads, writes and swaps, whose answers alone must fit one order.
    Registers,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// How many seeds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..u64::MAX))]
    from: u64,
    /// Only this seed
    #[arg(long, conflicts_with_all = ["seeds", "from", "minutes"], value_parser = clap::value_parser!(u64).range(..u64::MAX))]
    seed: Option<u64>,
    /// As many seeds as there is time for
    #[arg(long, conflicts_with = "seeds", value_parser = clap::value_parser!(u64).range(1..=MINUTES_MAX))]
    minutes: Option<u64>,
    /// Worlds at once; all cores unless given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Run every so many seeds' one twice, and compare the traces byte for byte; 0 for none
    #[arg(long, value_name = "SEEDS", default_value_t = 0)]
    twice_every: u64,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fixed: Fixed,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArguments {
    /// The seed
    seed: u64,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    filter: Filter,
    /// The report as one JSON object on standard output, after the trace
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fixed: Fixed,
}

/// Carries out a command of the simulator.
pub(crate) fn run(command: &SimCommand) -> anyhow::Result<ExitCode> {
    // What the code under test panics with is in the report.
    std::panic::set_hook(Box::new(|_| {}));
    match command {
        SimCommand::Run(arguments) => run_seeds(arguments),
        SimCommand::Replay(arguments) => replay(arguments),
        #[cfg(feature = "mutations")]
        SimCommand::Mutants(arguments) => mutants::run(arguments),
    }
}

impl Fixed {
    /// Whether the seed decides everything.
    fn is_default(&self) -> bool {
        let Fixed { workload, replicas, faults, beyond, clients, calls, .. } = self;
        let seeds_decide = replicas.is_none() && faults.is_none() && clients.is_none() && calls.is_none();
        seeds_decide && *workload == WorkloadName::Bank && !beyond
    }

    fn swarm(&self, trace: TraceMode) -> Swarm {
        let swarm = match self.workload {
            WorkloadName::Bank => Swarm::bank(),
            WorkloadName::Registers => Swarm::registers(),
        };
        Swarm {
            replicas: self.replicas.map(usize::from),
            menu: self.faults,
            clients: self.clients,
            calls: self.calls,
            beyond: self.beyond,
            trace,
            #[cfg(feature = "mutations")]
            mutations: self.broken.map_or(chronon_vsr::Mutations::NONE, chronon_vsr::Mutations::broken),
            ..swarm
        }
    }
}

fn run_seeds(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let seeds = match (arguments.seed, arguments.minutes) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(_)) => arguments.from..u64::MAX,
        (None, None) => arguments.from..arguments.from.saturating_add(arguments.seeds),
    };
    let until = arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let swarm = Swarm { twice_every: arguments.twice_every, ..arguments.fixed.swarm(TraceMode::Fingerprint) };
    let mut tally = Tally::new(until.is_none().then(|| seeds.end - seeds.start), until);
    let failures = swarm.run_seeds_on(jobs(arguments.jobs), seeds, |report| {
        tally.count(report);
        let in_time = until.is_none_or(|until| tally.elapsed() < until);
        in_time && (report.failure.is_none() || arguments.keep_going)
    });
    tally.end();
    let narrowed = failures.first().map(|first| {
        eprintln!("seed {} fails; looking for the smallest world in which it does …", first.seed);
        swarm.narrow(first)
    });
    if arguments.json {
        println!(
            "{}",
            tally.json(
                &failures,
                narrowed.as_ref().map(|narrowed| explain_json(&arguments.fixed, &swarm, narrowed))
            )
        );
    } else {
        for failure in &failures {
            println!("{failure}");
        }
        if let Some(narrowed) = &narrowed {
            println!("{}", explain(&arguments.fixed, &swarm, narrowed));
        }
        println!("{}", tally.summary(failures.len()));
    }
    if let Some(gravest) = failures.iter().map(Ending::of).max() {
        return Ok(gravest.code());
    }
    let missed = if arguments.fixed.is_default() { tally.missed() } else { Vec::new() };
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("no seed reached {}: the swarm has a hole", missed.join(", "));
    Ok(ExitCode::from(5))
}

fn replay(arguments: &ReplayArguments) -> anyhow::Result<ExitCode> {
    let wanted = arguments.trace || arguments.filter.is_given();
    let trace = if wanted { TraceMode::Lines } else { TraceMode::Fingerprint };
    let filter = match arguments.filter.compile() {
        Ok(filter) => filter,
        Err(error) => return Ok(senseless(&error.to_string())),
    };
    let report = arguments.fixed.swarm(trace).run_seed(arguments.seed);
    let clients = report.config.clients.clients;
    if let Some(stranger) = filter.stranger(report.replicas, clients) {
        let (replicas, seed) = (report.replicas, report.seed);
        let what = format!("seed {seed} has {replicas} replicas and {clients} clients, and no {stranger}");
        return Ok(senseless(&what));
    }
    story::print(&report.trace, &filter);
    if arguments.json {
        println!("{}", tally::report_json(&report));
    } else {
        println!("{report}");
    }
    Ok(Ending::of(&report).code())
}

/// A command line makes no sense, which only a second look shows: it ends as the others do that make none.
fn senseless(what: &str) -> ExitCode {
    eprintln!("error: {what}");
    ExitCode::from(2)
}

/// The smallest world that was found, which code it ran, and how to run it again.
fn explain(fixed: &Fixed, swarm: &Swarm, narrowed: &Narrowed) -> String {
    let Narrowed { report, runs, .. } = narrowed;
    let violation = report.failure.as_ref().map(|(_, violation)| violation.to_string()).unwrap_or_default();
    let config = report.config.clients;
    format!(
        "\nthe smallest of {runs} worlds that fail like it:\n  {violation}\n  {} replicas, {} clients, {} calls, \
         faults {}\n  code: {}\n  run it again: {}\n",
        report.replicas,
        config.clients,
        config.clients * config.calls,
        report.menu,
        commit(),
        rerun(fixed, swarm, narrowed),
    )
}

fn explain_json(fixed: &Fixed, swarm: &Swarm, narrowed: &Narrowed) -> serde_json::Value {
    serde_json::json!({
        "report": tally::report_json(&narrowed.report),
        "worlds_tried": narrowed.runs,
        "code": commit(),
        "rerun": rerun(fixed, swarm, narrowed),
    })
}

fn rerun(fixed: &Fixed, swarm: &Swarm, narrowed: &Narrowed) -> String {
    #[cfg(feature = "mutations")]
    let broken = mutants::flag(swarm);
    #[cfg(not(feature = "mutations"))]
    let broken = {
        let _ = swarm;
        ""
    };
    let workload = match fixed.workload {
        WorkloadName::Bank => "",
        WorkloadName::Registers => " --workload registers",
    };
    let seed = narrowed.report.seed;
    let what = format!("{workload}{}{broken}", narrowed.flags());
    // Only two runs of one seed show that it tells two stories.
    match narrowed.report.failure.as_ref().map(|(_, violation)| violation.checker) {
        Some(Checker::Twice) => format!("chronon sim run --seed {seed} --twice-every 1{what}"),
        _ => format!("chronon sim replay {seed}{what} --trace"),
    }
}

/// Which code ran. The tree that it was built from is asked, if it is still there; otherwise only the version is known.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        let output = command.args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let version = env!("CARGO_PKG_VERSION");
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        None => format!("chronon {version}"),
        Some(head) => {
            let changed = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
            format!("chronon {version}, commit {head}{}", if changed { " with changes" } else { "" })
        }
    }
}

fn jobs(given: Option<u16>) -> usize {
    given.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

fn per_minute(runs: u64, elapsed: Duration) -> f64 {
    runs as f64 * 60.0 / elapsed.as_secs_f64().max(0.001)
}

/// What a seed came to, graver and graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Well,
    Liveness,
    Panic,
    Safety,
}

impl Ending {
    fn of(report: &Report) -> Ending {
        match report.failure.as_ref().map(|(_, violation)| violation.checker) {
            None => Ending::Well,
            Some(Checker::Liveness | Checker::Performance) => Ending::Liveness,
            Some(Checker::Panic) => Ending::Panic,
            Some(
                Checker::Commits
                | Checker::Promises
                | Checker::Time
                | Checker::Twice
                | Checker::Digest
                | Checker::Quarantine
                | Checker::Checkpoints
                | Checker::Sessions
                | Checker::Durability
                | Checker::Linearizability
                | Checker::NotExecuted
                | Checker::Effects
                | Checker::Gate
                | Checker::Machine
                | Checker::Open
                | Checker::Bounds,
            ) => Ending::Safety,
        }
    }

    fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Ending::Well => 0,
            Ending::Safety => 2,
            Ending::Liveness => 3,
            Ending::Panic => 4,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fixed: Fixed,
    }

    #[test]
    fn only_a_batch_in_which_seeds_decide_everything_must_reach_every_event() {
        let is_default = |words: &str| Line::parse_from(words.split(' ')).fixed.is_default();
        assert!(is_default("sim"));
        for flag in
            ["--beyond", "--replicas 3", "--faults all", "--clients 2", "--calls 9", "--workload registers"]
        {
            assert!(!is_default(&format!("sim {flag}")), "{flag}");
        }
    }

    #[test]
    fn of_many_endings_the_gravest_counts() {
        let endings = [Ending::Liveness, Ending::Safety, Ending::Panic, Ending::Well];
        assert_eq!(endings.into_iter().max(), Some(Ending::Safety));
        assert_eq!(endings[2..].iter().max(), Some(&Ending::Panic));
    }
}
