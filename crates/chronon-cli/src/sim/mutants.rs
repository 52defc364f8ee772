//! `chronon sim mutants`: guards that no judge misses would be no guards. Each is broken in turn, and the default swarm
//! must see it.

use std::process::ExitCode;
use std::time::Instant;

use chronon_sim::{Swarm, TraceMode};
use chronon_vsr::{Mutation, Mutations};

use super::jobs;

#[derive(Debug, clap::Args)]
pub(crate) struct MutantsArguments {
    /// A guard whose breaking is not noticed within this many seeds has survived
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Only these, by name
    #[arg(value_name = "MUTATION", value_parser = by_name)]
    only: Vec<Mutation>,
    /// Worlds at once; all cores unless given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

/// The mutation of this name.
pub(super) fn by_name(name: &str) -> Result<Mutation, String> {
    let known = Mutation::ALL.iter().find(|(_, known)| *known == name);
    known.map(|(mutation, _)| *mutation).ok_or_else(|| {
        let names: Vec<&str> = Mutation::ALL.iter().map(|(_, name)| *name).collect();
        format!("there is no such mutation; there are {}", names.join(", "))
    })
}

/// The flag that breaks the same guard again.
pub(super) fn flag(swarm: &Swarm) -> String {
    let broken = Mutation::ALL.iter().find(|(mutation, _)| swarm.mutations.breaks(*mutation));
    broken.map_or_else(String::new, |(_, name)| format!(" --break {name}"))
}

/// Breaks each guard and prints the table of docs/simulation.md.
pub(super) fn run(arguments: &MutantsArguments) -> anyhow::Result<ExitCode> {
    let all: Vec<(Mutation, &str)> = Mutation::ALL
        .iter()
        .copied()
        .filter(|(mutation, _)| arguments.only.is_empty() || arguments.only.contains(mutation))
        .collect();
    let mut survivors = Vec::new();
    println!("| mutation | caught by | seed | seeds needed |\n| --- | --- | --- | --- |");
    for (number, (mutation, name)) in all.iter().enumerate() {
        let began = Instant::now();
        let mutations = Mutations::broken(*mutation);
        let swarm = Swarm { mutations, trace: TraceMode::Fingerprint, ..Swarm::bank() };
        // Every seed below the first failure has ended when this returns: the first is the first.
        let failures =
            swarm.run_seeds_on(jobs(arguments.jobs), 0..arguments.seeds, |report| report.failure.is_none());
        let first = failures.first().and_then(|first| Some((first.seed, first.failure.as_ref()?)));
        let said = match first {
            Some((seed, (_, violation))) => {
                println!("| `{name}` | {:?} | {seed} | {} |", violation.checker, seed + 1);
                format!("{violation}")
            }
            None => {
                survivors.push(*name);
                println!("| `{name}` | nobody | | more than {} |", arguments.seeds);
                "SURVIVED".to_owned()
            }
        };
        let said: String = said.chars().take(110).collect();
        let took = began.elapsed().as_secs_f64();
        eprintln!("[{}/{}] {name}: {said} ({took:.1} s)", number + 1, all.len());
    }
    if survivors.is_empty() {
        eprintln!("all {} are caught", all.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} survived: {}", survivors.len(), survivors.join(", "));
    Ok(ExitCode::from(2))
}
