//! `chronon bench`: what the machine can do at best, and what a cluster on it does.

mod catchup;
mod commit;
mod etcd;
mod failover;
mod floor;
mod load;
mod machine;
mod memory;
mod read;
mod restart;
mod rig;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::interrupt::{self, Data, end_when_interrupted};

/// Measure
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// What the machine can do at best: flushes, and round trips over loopback
    Floor(floor::FloorArguments),
    /// How a backup catches up under full load, by a state, and what that costs
    Catchup(catchup::CatchupArguments),
    /// Committed commands through three replica processes
    Commit(commit::CommitArguments),
    /// How long clients wait when the primary is killed with SIGKILL
    Failover(failover::FailoverArguments),
    /// The memory of replicas on the way to a million commands
    Memory(memory::MemoryArguments),
    /// Reads per second, by how fresh they are and who answers
    Read(read::ReadArguments),
    /// How long a replica with a history takes to serve again
    Restart(restart::RestartArguments),
}

/// Runs a benchmark.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Floor(arguments) => floor::run(arguments),
        BenchCommand::Catchup(arguments) => catchup::run(arguments),
        BenchCommand::Commit(arguments) => commit::run(arguments),
        BenchCommand::Failover(arguments) => failover::run(arguments),
        BenchCommand::Memory(arguments) => memory::run(arguments),
        BenchCommand::Read(arguments) => read::run(arguments),
        BenchCommand::Restart(arguments) => restart::run(arguments),
    }
}

pub(crate) use etcd::{EtcdArguments, run_etcd};
pub(crate) use floor::{EchoArguments, run_echo};
pub(crate) use machine::{Counter, Registers};

/// Measures in a directory of its own below `parent`, which is removed afterwards however it ends.
fn in_directory<T>(parent: &Path, measure: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let directory = parent.join(format!("chronon-bench-{}", std::process::id()));
    std::fs::create_dir(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    end_when_interrupted(vec![directory.clone()], Data::Remove)?;
    let measured = measure(&directory);
    interrupt::give_way();
    std::fs::remove_dir_all(&directory).with_context(|| format!("can't remove {}", directory.display()))?;
    measured
}

/// What a figure must be, and whether it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bar {
    /// In words, with both values.
    what: String,
    held: bool,
}

impl Bar {
    fn new(held: bool, what: String) -> Bar {
        Bar { what, held }
    }
}

/// Prints figures for programs or for people, and judges them if it was asked to: then a missed bar is exit code 1.
fn conclude(
    figures: &impl Serialize,
    text: String,
    bars: &[Bar],
    printing: &Printing,
) -> anyhow::Result<ExitCode> {
    if printing.json {
        println!("{}", serde_json::to_string_pretty(figures)?);
    } else {
        print!("{text}");
        for Bar { what, held } in bars {
            println!("{}: {what}", if *held { "held" } else { "MISSED" });
        }
    }
    let missed = bars.iter().filter(|bar| !bar.held).count();
    if printing.check && 0 < missed {
        eprintln!("{missed} of {} bars missed", bars.len());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// How figures are printed and judged.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Printing {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// End with exit code 1 if a bar is missed
    #[arg(long)]
    check: bool,
}

/// Latencies of one row, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Latencies {
    count: u64,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
}

/// A minute: what takes longer is entered as that.
const LATENCY_MAX_NANOS: u64 = 60_000_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NANOS, 3).expect("legal bounds and precision")
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

impl Latencies {
    fn of(histogram: &Histogram<u64>) -> Latencies {
        let micros = |nanos: u64| nanos.div_ceil(1_000);
        Latencies {
            count: histogram.len(),
            p50_us: micros(histogram.value_at_quantile(0.5)),
            p99_us: micros(histogram.value_at_quantile(0.99)),
            max_us: micros(histogram.max()),
        }
    }

    fn cells(&self) -> [String; 4] {
        [self.count, self.p50_us, self.p99_us, self.max_us].map(|value| value.to_string())
    }
}
