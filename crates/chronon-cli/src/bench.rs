//! `chronon bench`: what the machine can do at best, and what a cluster on it does.

mod commit;
mod floor;
mod machine;

use std::process::ExitCode;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Measure
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// What the machine can do at best: flushes, and round trips over loopback
    Floor(floor::FloorArguments),
    /// Committed commands through three replica processes
    Commit(commit::CommitArguments),
}

/// Runs a benchmark.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Floor(arguments) => floor::run(arguments)?,
        BenchCommand::Commit(arguments) => commit::run(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) use floor::{EchoArguments, run_echo};
pub(crate) use machine::Counter;

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
