//! Guards that no judge misses would be no guards: each is broken in turn, and the swarm must see it.
//!
//! `docs/simulation.md` has a row for every mutation: who objects, and in which seed. The test begins with that seed and
//! searches on from the first when the swarm has changed since; `cargo xtask mutants` makes the table anew. That somebody
//! else objects proves nothing, nor does a seed that fails with its guards in place.
#![cfg(feature = "mutations")]

use std::collections::BTreeMap;

use chronon_sim::Swarm;
use chronon_vsr::{Mutation, Mutations};

/// A guard whose breaking is not noticed within this many seeds has survived.
const SEEDS_MAX: u64 = 1_000;

/// The rows of the document's table: what stands behind each mutation's name.
fn rows() -> BTreeMap<String, Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/simulation.md");
    let text = std::fs::read_to_string(path).expect("the document with the table is there");
    let section = text.split("## Mutations").nth(1).expect("it has a section about mutations");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<String> =
            line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().to_owned()).collect();
        let (name, rest) = cells.split_first()?;
        Some((name.trim_matches('`').to_owned(), rest.to_vec()))
    });
    rows.collect()
}

/// Who objects in a seed, if anybody does.
fn judge(seed: u64, mutations: Mutations) -> Option<String> {
    let failure = Swarm { mutations, ..Swarm::bank() }.run_seed(seed).failure;
    failure.map(|(_, violation)| format!("{:?}", violation.checker))
}

#[test]
fn every_mutation_has_a_row_and_every_row_is_a_mutation() {
    let rows = rows();
    for (_, name) in Mutation::ALL {
        assert!(rows.contains_key(*name), "docs/simulation.md has no row for {name}");
    }
    for name in rows.keys() {
        assert!(Mutation::ALL.iter().any(|(_, known)| known == name), "{name} is no mutation any more");
    }
}

/// Every mutation whose number leaves this remainder is caught: the tests share the work.
fn are_caught(share: usize) {
    let rows = rows();
    let mut survivors = Vec::new();
    for (number, (mutation, name)) in Mutation::ALL.iter().enumerate() {
        let row = rows.get(*name).filter(|_| number % SHARES == share);
        let Some([by, known, ..]) = row.map(Vec::as_slice).filter(|row| !row[0].starts_with("later:")) else {
            continue;
        };
        let known: u64 = known.parse().unwrap_or_else(|_| panic!("{name}: {known:?} is no seed"));
        let is_caught = |seed: &u64| {
            judge(*seed, Mutations::broken(*mutation)).as_ref() == Some(by)
                && judge(*seed, Mutations::NONE).is_none()
        };
        if is_caught(&known) {
            continue;
        }
        match (0..SEEDS_MAX).find(is_caught) {
            Some(seed) => println!("{name} is caught by seed {seed} now, not by {known}: mend its row"),
            None => survivors.push(*name),
        }
    }
    assert!(survivors.is_empty(), "within {SEEDS_MAX} seeds their judges did not notice: {survivors:?}");
}

const SHARES: usize = 4;

#[test]
fn the_first_quarter_of_the_mutations_is_caught() {
    are_caught(0);
}

#[test]
fn the_second_quarter_of_the_mutations_is_caught() {
    are_caught(1);
}

#[test]
fn the_third_quarter_of_the_mutations_is_caught() {
    are_caught(2);
}

#[test]
fn the_last_quarter_of_the_mutations_is_caught() {
    are_caught(3);
}
