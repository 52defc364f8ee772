//! The project's own tasks, started with `cargo xtask`.

#![forbid(unsafe_code)]

mod rust;
mod steps;
mod tasks;
mod tidy;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Every test of the workspace, doc tests included
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// All of CI: format, tidy, lints, docs, the tests and a share of the simulator's seeds. Changes no file
    Ci,
    /// Formats the workspace
    Fix,
    /// Breaks each guard in turn and sees whether the default swarm notices: the table of docs/simulation.md
    Mutants {
        /// Only these mutations, by name
        only: Vec<String>,
    },
    /// Seeds of the simulator, beginning with one that the commit names: another share with every commit
    Sim {
        /// For how long
        #[arg(long, default_value_t = tasks::SIM_MINUTES)]
        minutes: u64,
    },
    /// A long run of the simulator: so many seeds, beginning with one that the commit names
    Soak {
        /// How many seeds
        #[arg(long, default_value_t = 20_000)]
        seeds: u64,
    },
    /// Checks what neither the compiler nor clippy can: arrows between crates, words, docs against code
    Tidy,
}

fn main() -> ExitCode {
    let root = root();
    let done = match Arguments::parse().task {
        Task::Test { filter } => tasks::test(&root, filter.as_deref()),
        Task::Ci => tasks::ci(&root),
        Task::Fix => tasks::fix(&root),
        Task::Mutants { only } => tasks::mutants(&root, &only),
        Task::Sim { minutes } => tasks::sim(&root, minutes),
        Task::Soak { seeds } => tasks::soak(&root, seeds),
        Task::Tidy => tasks::tidy(&root),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder. Asked at run time first: a checkout may have been moved since it was built.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = here.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    here.parent().unwrap_or(Path::new(".")).to_owned()
}
