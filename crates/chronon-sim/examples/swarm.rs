//! Runs seeds by hand: `cargo run -p chronon-sim --example swarm -- 0 100`, or one with its trace: `-- 7`. With the
//! feature `mutations` and a mutation's name, until it is caught: `-- 0 100 SkipDueCheckpoint`. With `beyond`, disks rot beyond every promise.

use std::collections::BTreeMap;
use std::time::Instant;

use chronon_sim::{Swarm, TraceMode};
use chronon_vsr::Mutations;

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let (seeds, trace) = match numbers[..] {
        [seed] => (seed..seed + 1, TraceMode::Lines),
        [from, to] => (from..to, TraceMode::Fingerprint),
        _ => (0..100, TraceMode::Fingerprint),
    };
    let broken = std::env::args().find_map(|text| broken(&text));
    let beyond = std::env::args().any(|text| text == "beyond");
    let swarm = Swarm { trace, beyond, mutations: broken.unwrap_or_default(), ..Swarm::bank() };
    let began = Instant::now();
    let mut coverage: BTreeMap<String, u64> = BTreeMap::new();
    let mut runs = 0;
    let failures = swarm.run_seeds(seeds, |report| {
        runs += 1;
        report.trace.iter().for_each(|line| println!("{line}"));
        if report.failure.is_some() || trace == TraceMode::Lines {
            println!("{report}");
        }
        for name in report.coverage.keys() {
            *coverage.entry(name.clone()).or_default() += 1;
        }
        broken.is_none() || report.failure.is_none()
    });
    println!(
        "{runs} seeds in {:.1} s, {} failed; seeds that reached: {coverage:?}",
        began.elapsed().as_secs_f64(),
        failures.len()
    );
}

#[cfg(feature = "mutations")]
fn broken(name: &str) -> Option<Mutations> {
    let (mutation, _) = chronon_vsr::Mutation::ALL.iter().find(|(_, known)| *known == name)?;
    Some(Mutations::broken(*mutation))
}

#[cfg(not(feature = "mutations"))]
fn broken(_: &str) -> Option<Mutations> {
    None
}
