//! The tasks. Every build that they start has one feature set, so that a crate is built once for all of them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::steps::{Steps, cargo, output, run};
use crate::tidy;
use crate::tree::Tree;

/// All features: tests break guards on purpose (`mutations`), and one set means one build.
const SELECTION: [&str; 3] = ["--workspace", "--all-features", "--locked"];

/// Every test of the workspace.
pub(crate) fn test(root: &Path, filter: Option<&str>) -> Result<()> {
    let nextest = has_nextest(root);
    let mut steps = Steps::new(if nextest { 3 } else { 2 });
    test_steps(root, &mut steps, nextest, filter)?;
    steps.finish();
    Ok(())
}

/// All of CI. The cheap steps come first, and the tree is the same before and after.
pub(crate) fn ci(root: &Path) -> Result<()> {
    let nextest = has_nextest(root);
    let mut steps = Steps::new(if nextest { 10 } else { 9 });
    let before = changes(root)?;
    steps.step("format", || run(cargo(root, &["fmt", "--all", "--", "--check"])))?;
    steps.step("tidy", || tidy(root))?;
    steps.step("lints", || {
        let mut clippy = cargo(root, &["clippy", "--all-targets"]);
        clippy.args(SELECTION).args(["--", "-D", "warnings"]);
        run(clippy)
    })?;
    steps.step("lints, as shipped", || {
        // Without `mutations`: the build that users get must not lean on what only tests have.
        let shipped =
            ["clippy", "-p", "chronon-cli", "-p", "chronon-sdk", "--locked", "--", "-D", "warnings"];
        run(cargo(root, &shipped))
    })?;
    steps.step("docs", || {
        // Only libraries: the binary `chronon` and the library `chronon` would be written to one folder.
        let mut doc = cargo(root, &["doc", "--no-deps", "--lib"]);
        doc.args(SELECTION).env("RUSTDOCFLAGS", "-D warnings");
        run(doc)
    })?;
    test_steps(root, &mut steps, nextest, None)?;
    steps.step("simulation", || sim(root, SIM_MINUTES))?;
    steps.step("the tree is unchanged", || {
        let after = changes(root)?;
        if before != after {
            bail!("CI must change no file. Before:\n{before}\nAfter:\n{after}");
        }
        Ok(())
    })?;
    steps.finish();
    Ok(())
}

/// Breaks each guard in turn. On all cores, one world a core; fails when one survives.
pub(crate) fn mutants(root: &Path, only: &[String]) -> Result<()> {
    let mut mutants =
        cargo(root, &["run", "--quiet", "-p", "chronon-cli", "--all-features", "--locked", "--"]);
    mutants.args(["sim", "mutants"]).args(only);
    let document = std::fs::read_to_string(root.join("docs/simulation.md")).context("docs/simulation.md")?;
    for (mutation, judge) in named_judges(&document) {
        mutants.args(["--named", &format!("{mutation}={judge}")]);
    }
    run(mutants)
}

/// The rows of the document's table of mutations: which, and who catches it.
fn named_judges(document: &str) -> impl Iterator<Item = (&str, &str)> {
    let section = document.split("## Mutations").nth(1).unwrap_or_default();
    section.split("\n## ").next().unwrap_or_default().lines().filter_map(|line| {
        let (mutation, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((mutation, rest.split(" |").next()?))
    })
}

/// How long CI's share of the simulator's seeds runs.
pub(crate) const SIM_MINUTES: u64 = 5;

/// Every so many seeds one is run twice, and the traces are compared byte for byte.
const TWICE_EVERY: &str = "50";

/// As many seeds as there is time for, from one that the commit names.
pub(crate) fn sim(root: &Path, minutes: u64) -> Result<()> {
    simulate(root, &["--minutes", &minutes.to_string()])
}

/// So many seeds, from one that the commit names, whatever some of them find.
pub(crate) fn soak(root: &Path, seeds: u64) -> Result<()> {
    simulate(root, &["--seeds", &seeds.to_string(), "--keep-going"])
}

fn simulate(root: &Path, how_many: &[&str]) -> Result<()> {
    let mut head = Command::new("git");
    head.args(["rev-parse", "HEAD"]).current_dir(root);
    let from = seed_of(output(head)?.trim());
    let mut sim = cargo(root, &["run", "--quiet", "-p", "chronon-cli", "--all-features", "--locked", "--"]);
    sim.args(["sim", "run", "--twice-every", TWICE_EVERY, "--from", &from.to_string()]).args(how_many);
    run(sim)
}

/// The seed that a commit names: so that every commit runs others, and anybody can run them again.
fn seed_of(commit: &str) -> u64 {
    let digits: String = commit.chars().take(10).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// Formats the workspace.
pub(crate) fn fix(root: &Path) -> Result<()> {
    run(cargo(root, &["fmt", "--all"]))
}

/// Prints what is untidy, and fails if anything is.
pub(crate) fn tidy(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let mut findings = tidy::check(&tree);
    findings.extend(tidy::weight::check(root)?);
    findings.extend(tidy::licences::check(root)?);
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} untidy {}", findings.len(), if findings.len() == 1 { "place" } else { "places" });
    }
    println!("tidy: {} files looked at, nothing found", tree.files().len());
    Ok(())
}

/// The steps that both `test` and `ci` have: three with nextest, two without.
fn test_steps(root: &Path, steps: &mut Steps, nextest: bool, filter: Option<&str>) -> Result<()> {
    if nextest {
        steps.step("build tests", || {
            let mut build = cargo(root, &["nextest", "run", "--no-run"]);
            build.args(SELECTION);
            run(build)
        })?;
        steps.step("tests", || {
            let mut tests = cargo(root, &["nextest", "run", "--no-fail-fast"]);
            tests.args(SELECTION);
            if let Some(filter) = filter {
                tests.args(["--no-tests=pass", filter]);
            }
            run(tests)
        })?;
        // The one kind of test that nextest does not run.
        steps.step("doc tests", || {
            let mut tests = cargo(root, &["test", "--doc"]);
            tests.args(SELECTION).args(filter);
            run(tests)
        })
    } else {
        steps.step("build tests", || {
            let mut build = cargo(root, &["test", "--no-run"]);
            build.args(SELECTION);
            run(build)
        })?;
        steps.step("tests and doc tests", || {
            let mut tests = cargo(root, &["test", "--no-fail-fast"]);
            tests.args(SELECTION).args(filter);
            run(tests)
        })
    }
}

/// cargo-nextest runs tests faster and shows them better; nothing needs it.
fn has_nextest(root: &Path) -> bool {
    let mut probe = cargo(root, &["nextest", "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// What git sees as changed or new.
fn changes(root: &Path) -> Result<String> {
    let mut status = Command::new("git");
    status.args(["status", "--porcelain"]).current_dir(root);
    output(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_names_a_seed_of_its_own() {
        assert_eq!(seed_of("0000000010ffffffffffffffffffffffffffffff"), 16);
        assert_ne!(seed_of("a3fd52b6ad42"), seed_of("a3fd52b6ae42"));
        assert_eq!(seed_of("no commit"), 0);
    }
}
