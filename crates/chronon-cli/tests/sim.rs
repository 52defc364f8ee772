//! `chronon sim`: what a run ends with, and what it says to whoever wants to see a failure again.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

fn chronon(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronon"));
    command.arg("sim").args(arguments);
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = chronon(arguments).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

#[test]
fn a_batch_that_ends_well_says_how_many_seeds_reached_what() {
    for workload in ["bank", "registers"] {
        let (code, said) = run(&["run", "--seeds", "3", "--replicas", "3", "--workload", workload]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("3 seeds, 0 failed"), "{said}");
        assert!(said.contains("3 seeds reached PrimaryStarted"), "{said}");
    }
}

/// What stands behind these words, to the end of the line.
#[cfg(feature = "mutations")]
fn after<'a>(words: &str, said: &'a str) -> &'a str {
    said.split_once(words).and_then(|(_, rest)| rest.lines().next()).unwrap_or_else(|| panic!("{said}"))
}

#[cfg(feature = "mutations")]
#[test]
fn a_failure_ends_with_a_code_of_its_kind_and_with_the_line_that_shows_it_again() {
    for (broken, code, judge) in [
        ("CommitWithoutQuorum", 2, "Promises"),
        ("NeverResend", 3, "Liveness"),
        ("LogTimeFromOneClock", 4, "Panic"),
    ] {
        let (ended, said) = run(&["run", "--seeds", "100", "--break", broken]);
        assert_eq!(ended, Some(code), "{broken}: {said}");
        assert!(said.contains("code: chronon "), "{said}");
        let again = after("run it again: chronon sim ", &said);
        let again: Vec<&str> = again.split_whitespace().filter(|word| *word != "--trace").collect();
        let (ended, said) = run(&again);
        assert_eq!(ended, Some(code), "{again:?}: {said}");
        assert!(said.contains(&format!(" phase: {judge}: ")), "{again:?}: {said}");
    }
}

#[test]
fn the_last_seeds_that_there_are_end_a_batch() {
    let from = (u64::MAX - 2).to_string();
    let (code, said) = run(&["run", "--seeds", "9", "--from", &from, "--jobs", "2", "--replicas", "1"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 seeds, 0 failed"), "{said}");
}

#[test]
fn what_makes_no_run_is_told_and_nothing_panics() {
    for arguments in [
        &["run", "--seeds", "0"][..],
        &["run", "--minutes", "0"],
        &["run", "--minutes", "18446744073709551615"],
        &["run", "--seed", "18446744073709551615"],
        &["run", "--replicas", "7"],
        &["run", "--faults", "rain"],
        &["run", "--workload", "chess"],
        &["replay"],
        &["replay", "1", "--by", "everybody"],
        &["replay", "1", "--after", "2", "--before", "1"],
        &["replay", "1", "--after", "nan"],
        &["replay", "1", "--before", "inf"],
        &["replay", "1", "--kind", ""],
        &["replay", "1", "--replicas", "2", "--by", "R9"],
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(!said.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_trace_is_the_same_every_time_and_may_be_left_unread() {
    let trace = ["replay", "3", "--replicas", "3", "--calls", "12", "--trace"];
    let (code, said) = run(&trace);
    assert_eq!((code, said), run(&trace));
    let mut child = chronon(&trace).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("R0 starts as incarnation 1"), "{first}");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
}
