//! Seeds: no story ends badly, and a story told twice is the same story.

use std::collections::BTreeSet;

use chronon_sim::{Swarm, TraceMode};

fn swarm(trace: TraceMode) -> Swarm {
    Swarm { trace, ..Swarm::bank() }
}

fn run(seeds: std::ops::Range<u64>) {
    let failures = swarm(TraceMode::Fingerprint).run_seeds(seeds, |_| true);
    let said: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", said.join("\n"));
}

#[test]
fn seeds_from_0_end_well() {
    run(0..20);
}

#[test]
fn seeds_from_20_end_well() {
    run(20..40);
}

#[test]
fn seeds_from_40_end_well() {
    run(40..60);
}

#[test]
fn many_threads_stop_at_the_last_number_that_there_is() {
    let small = Swarm { calls: Some(4), clients: Some(2), replicas: Some(1), ..Swarm::registers() };
    let mut seen = Vec::new();
    small.run_seeds_on(2, u64::MAX - 2..u64::MAX, |report| {
        seen.push(report.seed);
        seen.len() < 9
    });
    seen.sort_unstable();
    assert_eq!(seen, [u64::MAX - 2, u64::MAX - 1]);
}

/// Each has a row in docs/simulation.md.
const FOUND_A_BUG: [u64; 31] = [
    27,
    46,
    88,
    97,
    138,
    157,
    246,
    351,
    371,
    498,
    598,
    812,
    1_000_046,
    2_000_214,
    3_000_296,
    6_000_427,
    6_001_254,
    35_779_364_177,
    287_302_125_787,
    676_536_422_122,
    882_525_850_747,
    1_078_765_611_289,
    601_398_872_586,
    31_225_784_009,
    646_003_152_928,
    596_344_271_299,
    596_344_272_097,
    500_000_110,
    857_289_192_515,
    462_313_832_488,
    462_313_838_685,
];

#[test]
fn seeds_that_found_a_bug_once_end_well() {
    for seed in FOUND_A_BUG {
        run(seed..seed + 1);
    }
}

#[test]
fn every_seed_that_found_a_bug_has_a_row_and_every_star_is_run() {
    let text = include_str!("../../../../docs/simulation.md");
    let section = text.split("\n## Bugs that seeds found\n").nth(1).expect("it has that section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let seeds = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let starred = seeds.flat_map(|cell| cell.split(", ")).filter_map(|seed| seed.strip_suffix("\\*"));
    let starred: BTreeSet<u64> = starred.map(|seed| seed.parse().expect("a number")).collect();
    assert_eq!(starred, BTreeSet::from(FOUND_A_BUG));
}

#[test]
fn a_seed_that_is_run_twice_tells_the_same_story_byte_for_byte() {
    for seed in [3, 16, 18] {
        let (one, other) = (swarm(TraceMode::Lines).run_seed(seed), swarm(TraceMode::Lines).run_seed(seed));
        assert_eq!(one.fingerprint, other.fingerprint);
        assert!(!one.trace.is_empty());
        assert!(one.trace == other.trace, "the traces of seed {seed} differ");
        let quick = swarm(TraceMode::Fingerprint).run_seed(seed);
        assert_eq!(quick.fingerprint, one.fingerprint);
    }
}

#[test]
fn what_clients_see_of_registers_fits_one_order() {
    let failures = Swarm::registers().run_seeds(0..12, |_| true);
    let said: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", said.join("\n"));
}

#[cfg(feature = "mutations")]
#[test]
fn registers_that_are_read_without_asking_are_caught_by_what_clients_saw() {
    use chronon_sim::Checker;
    use chronon_vsr::{Mutation, Mutations};
    let mutations = Mutations::broken(Mutation::BackupReadsAlone);
    let swarm = Swarm { mutations, ..Swarm::registers() };
    let failures = swarm.run_seeds(0..200, |report| report.failure.is_none());
    let (_, violation) = failures.first().and_then(|first| first.failure.clone()).expect("somebody notices");
    assert_eq!(violation.checker, Checker::Linearizability, "{violation}");
}
