//! `chronon sim mutants`: guards that no judge misses would be no guards. Each is broken in turn, and the default swarm
//! must see it.

use std::process::ExitCode;
use std::time::Instant;

use chronon_sim::{Report, Swarm, TraceMode};
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
    /// Who must object to which, in a seed that ends well with the guard in place; anybody unless given
    #[arg(long, value_name = "MUTATION=JUDGE", value_parser = named)]
    named: Vec<(Mutation, String)>,
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

/// A mutation and the judge that is to catch it.
fn named(text: &str) -> Result<(Mutation, String), String> {
    let (name, judge) = text.split_once('=').ok_or("write MUTATION=JUDGE")?;
    Ok((by_name(name)?, judge.to_owned()))
}

/// Who objected in a seed that failed.
fn judge(report: &Report) -> String {
    report.failure.as_ref().map_or_else(String::new, |(_, violation)| format!("{:?}", violation.checker))
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
    println!(
        "| mutation | caught by | seed | seeds needed | first to object |\n| --- | --- | --- | --- | --- |"
    );
    for (number, (mutation, name)) in all.iter().enumerate() {
        let began = Instant::now();
        let mutations = Mutations::broken(*mutation);
        let swarm = Swarm { mutations, trace: TraceMode::Fingerprint, ..Swarm::bank() };
        let named = arguments.named.iter().find(|(named, _)| named == mutation).map(|(_, judge)| judge);
        let is_named = |report: &Report| named.is_none_or(|named| judge(report) == *named);
        let ends_well = |seed| Swarm::bank().run_seed(seed).failure.is_none();
        let (mut first, mut caught, mut from) = (None, None, 0);
        while caught.is_none() && from < arguments.seeds {
            // Every seed below the last failure that counts has ended when this returns: the first is the first.
            let failures = swarm.run_seeds_on(jobs(arguments.jobs), from..arguments.seeds, |report| {
                report.failure.is_none() || !is_named(report)
            });
            first = first.or_else(|| failures.first().map(|first| (judge(first), first.seed)));
            let Some(found) = failures.into_iter().find(is_named) else { break };
            from = found.seed + 1;
            caught = (named.is_none() || ends_well(found.seed)).then_some(found);
        }
        let others = first.map_or_else(String::new, |(judge, seed)| format!("{judge}, {seed}"));
        let said = match caught {
            Some(Report { seed, failure: Some((_, violation)), .. }) => {
                println!("| `{name}` | {:?} | {seed} | {} | {others} |", violation.checker, seed + 1);
                format!("{violation}")
            }
            Some(_) | None => {
                survivors.push(*name);
                let by = named.map_or("nobody", String::as_str);
                println!("| `{name}` | not by {by} | | more than {} | {others} |", arguments.seeds);
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
