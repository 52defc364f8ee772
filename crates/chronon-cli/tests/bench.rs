//! Each benchmark, as small as it can be: real processes, figures as JSON, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Directory, chronon, stderr, stdout, until_processes};

/// Runs a benchmark and reads its figures. It must leave its directory as it found it.
fn figures(name: &str, arguments: &[&str]) -> Value {
    let directory = Directory::new(name);
    let dir = directory.0.to_str().unwrap();
    let output = chronon(&[&["bench"], arguments, &["--json", "--dir", dir]].concat());
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    let figures: Value = serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", stderr(&output)));
    // A missed bar is a failure only where that was asked for; a busy machine misses some.
    let missed = figures["bars"].as_array().is_some_and(|bars| bars.iter().any(|bar| bar["held"] == false));
    let code = i32::from(missed && arguments.contains(&"--check"));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    figures
}

fn numbers(figures: &Value, key: &str) -> Vec<u64> {
    let rows = figures.as_array().unwrap();
    rows.iter().map(|row| row[key].as_u64().unwrap_or_else(|| panic!("no {key} in {row}"))).collect()
}

fn is_positive(values: &[u64]) -> bool {
    values.iter().all(|value| 0 < *value)
}

fn etcd_is_here() -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join("etcd").is_file())
}

#[test]
fn the_floor_is_measured() {
    let floor = figures("bench-floor", &["floor", "--count", "20"]);
    for row in ["fdatasync_alone", "fdatasync_three_writers", "loopback_round_trip"] {
        assert!(floor[row]["p50_us"].as_u64().is_some_and(|p50| 0 < p50), "{floor}");
    }
}

#[test]
fn commits_are_measured_for_as_many_clients_as_are_asked_for() {
    let figures = figures(
        "bench-commit",
        &["commit", "--clients", "1,9", "--seconds", "1", "--log-mib", "256", "--check"],
    );
    let rows = &figures["rows"];
    assert_eq!(numbers(rows, "clients")[..2], [1, 9], "{figures}");
    assert_eq!(numbers(rows, "connections")[..2], [1, 8], "{figures}");
    assert!(is_positive(&numbers(rows, "per_second")), "{figures}");
    assert_eq!(figures["etcd"], Value::Null);
    assert_eq!(figures["bars"].as_array().unwrap().len(), 1, "{figures}");
}

/// Where there is no etcd there is nothing to compare with; then only what is told can be looked at.
#[test]
fn etcd_is_driven_alike_and_the_ratio_is_told() {
    if !etcd_is_here() {
        assert!(std::env::var_os("CI").is_none(), "there is no etcd: apt-get install etcd-server");
        eprintln!("skipped, there is no etcd: apt-get install etcd-server");
        let output = chronon(&["bench", "commit", "--etcd"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("apt-get install etcd-server"), "{}", stderr(&output));
        return;
    }
    let arguments =
        ["commit", "--clients", "2", "--seconds", "1", "--log-mib", "256", "--replicas", "1", "--etcd"];
    let figures = figures("bench-etcd", &arguments);
    let etcd = &figures["etcd"];
    assert_eq!(etcd["members"], 3, "{figures}");
    assert!(is_positive(&numbers(&etcd["rows"], "per_second")), "{figures}");
    let (ours, theirs) =
        (figures["rows"][0]["per_second"].as_f64().unwrap(), etcd["rows"][0]["per_second"].as_f64().unwrap());
    assert!((etcd["ratios"][0].as_f64().unwrap() - ours / theirs).abs() < 0.001, "{figures}");
}

#[test]
fn an_etcd_that_is_none_is_told_before_anything_is_measured() {
    for (program, told) in
        [("/nowhere/etcd", "no etcd at /nowhere/etcd"), ("/bin/true", "/bin/true is not etcd")]
    {
        let output = chronon(&["bench", "commit", "--etcd", program]);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(told) && error.contains("--etcd PATH"), "{error}");
        assert!(!error.contains("measuring"), "{error}");
    }
}

#[test]
fn failover_is_measured_once_a_kill() {
    let figures = figures("bench-failover", &["failover", "--kills", "2", "--log-mib", "128"]);
    let silences = figures["failover_ms"].as_array().unwrap();
    assert_eq!((silences.len(), &figures["kills"]), (2, &Value::from(2)), "{figures}");
    assert_eq!(numbers(&figures["histogram"], "kills").iter().sum::<u64>(), 2, "{figures}");
    assert!(figures["acknowledged"].as_u64().is_some_and(|count| 10 < count), "{figures}");
}

#[test]
fn a_backup_catches_up_by_a_state_while_commands_are_counted() {
    let arguments = ["catchup", "--entries", "2000", "--clients", "64", "--seconds", "1", "--log-mib", "12"];
    let figures = figures("bench-catchup", &arguments);
    let backups: Vec<&str> =
        figures["rows"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap()).collect();
    assert_eq!(backups, ["away", "coming", "back"], "{figures}");
    assert!(is_positive(&numbers(&figures["rows"], "per_second")), "{figures}");
    assert!(is_positive(&[figures["caught_up_ms"].as_u64().unwrap()]), "{figures}");
    assert!(is_positive(&[figures["transfers"].as_u64().unwrap()]), "{figures}");
}

#[test]
fn memory_is_read_along_the_way_and_the_limits_are_named() {
    let arguments = ["memory", "--commands", "2000", "--replicas", "2", "--log-mib", "128"];
    let figures = figures("bench-memory", &arguments);
    assert_eq!(numbers(&figures["looks"], "commands"), [0, 500, 1_000, 1_500, 2_000], "{figures}");
    for look in figures["looks"].as_array().unwrap() {
        let (now, peak) = (numbers(&look["resident"], "now_kib"), numbers(&look["resident"], "peak_kib"));
        assert!(now.len() == 2 && is_positive(&now) && now[0] <= peak[0], "{figures}");
    }
    let limits = figures["limits"].as_array().unwrap();
    assert!(limits.iter().any(|limit| limit["name"] == "sessions_bytes_max"), "{figures}");
}

#[test]
fn reads_are_measured_at_the_primary_and_at_a_backup() {
    let figures = figures("bench-read", &["read", "--clients", "2", "--seconds", "1"]);
    let rows = figures["rows"].as_array().unwrap();
    let kinds: Vec<(&str, &str)> =
        rows.iter().map(|row| (row["read"].as_str().unwrap(), row["at"].as_str().unwrap())).collect();
    let at_both = |read| [(read, "primary"), (read, "backup")];
    assert_eq!(kinds, ["linearizable", "at_least", "local"].map(at_both).concat(), "{figures}");
    assert!(is_positive(&numbers(&figures["rows"], "per_second")), "{figures}");
}

#[test]
fn a_restart_is_measured_at_each_length_of_history() {
    let arguments = ["restart", "--commands", "500,2000", "--accounts", "300", "--log-mib", "64"];
    let figures = figures("bench-restart", &arguments);
    assert_eq!(numbers(&figures["rows"], "commands")[..2], [500, 2_000], "{figures}");
    assert!(0 < numbers(&figures["rows"], "checkpoint")[2], "{figures}");
    let machines: Vec<&str> =
        figures["rows"].as_array().unwrap().iter().map(|row| row["machine"].as_str().unwrap()).collect();
    assert_eq!(machines, ["counter", "counter", "bank"], "{figures}");
    for (opens, serves) in
        numbers(&figures["rows"], "open_ms").iter().zip(numbers(&figures["rows"], "serves_ms"))
    {
        assert!(*opens <= serves, "{figures}");
    }
}

#[test]
fn an_interrupted_benchmark_removes_its_data_and_ends_its_processes() {
    let directory = Directory::new("bench-interrupted");
    let dir = directory.0.to_str().unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let bench = Command::new(env!("CARGO_BIN_EXE_chronon"))
            .args(["bench", "failover", "--log-mib", "64", "--dir", dir])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until_processes(&directory.0, 3);
        kill_process(Pid::from_raw(i32::try_from(bench.id()).unwrap()).unwrap(), signal).unwrap();
        let output = bench.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted; the data is removed"), "{}", stderr(&output));
        until_processes(&directory.0, 0);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }
}

#[test]
fn arguments_that_make_no_benchmark_are_told() {
    for (arguments, code, told) in [
        (&["commit", "--clients", "0"][..], 2, "0 is not in 1..=4096"),
        (&["commit", "--seconds", "0"], 2, "0 is not in 1.."),
        (&["floor", "--count", "0"], 2, "0 is not in 1.."),
        (&["commit", "--log-mib", "1", "--dir", "DIR"], 1, "--log-mib is too small"),
        (&["failover", "--kills", "0"], 2, "0 is not in 1..=10000"),
        (&["failover", "--replicas", "2"], 2, "2 is not in 3..=6"),
        (&["floor", "--dir", "/nowhere"], 1, "can't make /nowhere/"),
        (&["memory", "--commands", "0"], 2, "0 is not in 1.."),
        (&["read", "--replicas", "1"], 2, "1 is not in 2..=6"),
        (&["restart", "--commands", "2,1"], 1, "--commands must ascend"),
    ] {
        let directory = Directory::new("bench-arguments");
        let dir = directory.0.to_str().unwrap();
        let arguments: Vec<&str> =
            arguments.iter().map(|argument| if *argument == "DIR" { dir } else { argument }).collect();
        let output = chronon(&[&["bench"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
        assert_eq!(std::fs::read_dir(Path::new(dir)).unwrap().count(), 0);
    }
}
