//! The demo with its own judgement: real processes, `kill -9`, and a ledger outside the system.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{Directory, chronon, processes_in, stderr, stdout, until_processes};

fn command(temporary: &Directory, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronon"));
    command.arg("demo").args(arguments).env("TMPDIR", &temporary.0).stdin(Stdio::null());
    command
}

/// Runs a small demo: its exit code and its receipt. What it leaves behind is looked at: nothing if all is right, the
/// data otherwise, and no process in any case.
fn demo(name: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let temporary = Directory::new(name);
    let few = ["--json", "--transfers", "200", "--kills", "2"];
    // A flag that is given twice is an error.
    let few = if arguments.contains(&"--transfers") { &few[..1] } else { &few[..] };
    let arguments = [few, arguments].concat();
    let output = command(&temporary, &arguments).output().unwrap();
    let receipt = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| {
        panic!("no receipt: {error}\n{}\n{}", stdout(&output), stderr(&output));
    });
    let left: Vec<_> = std::fs::read_dir(&temporary.0).unwrap().map(|entry| entry.unwrap().path()).collect();
    if output.status.success() {
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
    } else {
        let [kept] = &left[..] else { panic!("{left:?}") };
        let told = format!("NOT all right. Data and logs are kept in {};", kept.display());
        assert!(stderr(&output).contains(&told), "{}", stderr(&output));
        for part in ["clients.ledger", "receiver.ledger", "replica-0.log", "replica-0/data"] {
            assert!(kept.join(part).exists(), "{part} is missing");
        }
    }
    assert_eq!(processes_in(&temporary.0), 0);
    (output.status.code(), receipt)
}

/// Starts a demo that would go on for long, and sends it a signal once its three replicas and its receiver run.
fn signalled(temporary: &Directory, signal: Signal) -> Output {
    let mut demo = command(temporary, &["--transfers", "3000", "--kills", "30"]);
    let demo = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_processes(&temporary.0, 4);
    kill_process(Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap(), signal).unwrap();
    let output = demo.wait_with_output().unwrap();
    until_processes(&temporary.0, 0);
    output
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_with_it() {
    let temporary = Directory::new("demo-killed");
    assert_eq!(signalled(&temporary, Signal::KILL).status.code(), None);
}

#[test]
fn an_interrupted_demo_ends_its_processes_and_removes_its_data() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let temporary = Directory::new(&format!("demo-signal-{code}"));
        let output = signalled(&temporary, signal);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted; the data is removed"), "{}", stderr(&output));
        assert_eq!(std::fs::read_dir(&temporary.0).unwrap().count(), 0);
    }
}

#[test]
fn a_demo_that_is_interrupted_while_it_fills_its_logs_removes_them() {
    for round in 0..3 {
        let temporary = Directory::new(&format!("demo-filling-{round}"));
        let mut demo = command(&temporary, &["--transfers", "3000"]);
        let demo = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while std::fs::read_dir(&temporary.0).unwrap().count() == 0 {
            std::thread::yield_now();
        }
        kill_process(Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap(), Signal::INT).unwrap();
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert_eq!(std::fs::read_dir(&temporary.0).unwrap().count(), 0);
    }
}

#[test]
fn arguments_that_make_no_demo_are_told() {
    let full = Directory::new("demo-full");
    std::fs::write(full.0.join("diary"), "dear").unwrap();
    let (full_path, below_a_file) = (full.0.to_str().unwrap(), full.path("diary/demo"));
    for (arguments, code, told) in [
        (&["--transfers", "0"][..], 1, "5 kills under load need at least 50 transfers, and there are 0"),
        (&["--transfers", "7", "--kills", "1"], 1, "use --transfers 10 or --kills 0"),
        (&["--replicas", "0"], 2, "0 is not in 1..=6"),
        (&["--replicas", "7"], 2, "7 is not in 1..=6"),
        (&["--keep", full_path], 1, "is not empty"),
        (&["--keep", &below_a_file], 1, "can't make"),
    ] {
        let output = chronon(&[&["demo"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_demo_without_transfers_or_kills_is_all_right_and_speaks_in_plain_lines() {
    let temporary = Directory::new("demo-nothing");
    let keep = temporary.path("kept");
    let arguments = ["--transfers", "0", "--kills", "0", "--replicas", "1", "--seed", "7", "--keep", &keep];
    let output = command(&temporary, &arguments).output().unwrap();
    let (receipt, progress) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{receipt}{progress}");
    assert!(receipt.contains("All right: nothing lost"), "{receipt}");
    assert!(progress.contains(&format!("seed 7, data in {keep}")), "{progress}");
    let control = |text: &str| text.chars().any(|char| char.is_control() && char != '\n');
    assert!(!control(&receipt) && !control(&progress), "{receipt:?}{progress:?}");
    assert!(Path::new(&keep).join("replica-0/data").exists());
}

#[test]
fn a_demo_with_kills_of_the_primary_and_the_receiver_is_all_right() {
    let (code, receipt) = demo("demo-three", &[]);
    assert_eq!(code, Some(0), "{receipt:#}");
    assert_eq!(receipt["commands"]["acknowledged"], 200, "{receipt:#}");
    assert_eq!(receipt["effects"]["delivered"], 200, "{receipt:#}");
    assert_eq!(receipt["kills"]["done"], 2, "{receipt:#}");
}

#[test]
fn a_demo_of_five_replicas_with_as_few_transfers_as_its_kills_need_is_all_right() {
    let arguments = ["--replicas", "5", "--transfers", "50", "--kills", "5"];
    let (code, receipt) = demo("demo-five", &arguments);
    assert_eq!(code, Some(0), "{receipt:#}");
    assert_eq!(receipt["commands"]["applied"], 50, "{receipt:#}");
    assert_eq!(receipt["kills"]["failover_ms"].as_array().map(Vec::len), Some(5), "{receipt:#}");
}

#[test]
fn a_power_cut_of_all_replicas_loses_nothing_acknowledged() {
    let (code, receipt) = demo("demo-power", &["--power-cut"]);
    assert_eq!(code, Some(0), "{receipt:#}");
    assert_eq!(receipt["commands"]["applied"], 200, "{receipt:#}");
}

#[cfg(feature = "mutations")]
mod sabotage {
    use super::demo;

    #[test]
    fn a_new_key_for_every_attempt_is_noticed_as_doubled() {
        let (code, receipt) = demo("demo-new-key-per-attempt", &["--sabotage", "new-key-per-attempt"]);
        assert_eq!(code, Some(1), "{receipt:#}");
        assert_ne!(receipt["effects"]["doubled"], 0, "{receipt:#}");
    }

    #[test]
    fn an_acknowledgement_before_the_flush_is_noticed_by_a_power_cut() {
        let (code, receipt) = demo("demo-ack-before-flush", &["--sabotage", "ack-before-flush"]);
        assert_eq!(code, Some(1), "{receipt:#}");
        assert_ne!(receipt["commands"]["applied"], receipt["commands"]["acknowledged"], "{receipt:#}");
    }

    #[test]
    fn a_forgotten_outbox_is_noticed_as_undelivered() {
        let (code, receipt) = demo("demo-forget-outbox", &["--sabotage", "forget-outbox"]);
        assert_eq!(code, Some(1), "{receipt:#}");
        assert_ne!(receipt["effects"]["delivered"], receipt["effects"]["emitted"], "{receipt:#}");
    }
}
