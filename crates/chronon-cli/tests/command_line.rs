//! The command line: what an operator does, and what is told when something is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, Directory, PATIENCE, chronon, stderr, stdout};

/// Runs a command against the cluster and reads its JSON.
fn ask(cluster: &Cluster, arguments: &[&str]) -> serde_json::Value {
    let api = cluster.api();
    let output = chronon(&[arguments, &["--json", "--api", &api]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = chronon(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

#[tokio::test]
async fn an_operator_sets_a_sink_submits_queries_and_looks_at_effects() {
    let cluster = Cluster::started("operate", 3);
    cluster.primary(None).await;
    // Nobody listens there: the effect stays open.
    let sink = ["sinks", "set", "webhook", "--contract", "idempotent", "--window", "24h"];
    let set = ask(&cluster, &[&sink[..], &["--url", "http://127.0.0.1:9/hook", "--allow-private"]].concat());
    assert_eq!(set["revision"], 1, "{set}");
    for account in [1, 2] {
        let open = format!(r#"{{"open":{{"account":{account},"balance":100}}}}"#);
        assert_eq!(ask(&cluster, &["submit", &open])["reply"], "opened");
    }
    let transfer = r#"{"transfer":{"transfer":7,"from":1,"to":2,"amount":30}}"#;
    let first = ask(&cluster, &["submit", transfer, "--key", "k"]);
    assert_eq!(ask(&cluster, &["submit", transfer, "--key", "k"]), first, "a repeat has the same answer");
    let balance = ask(&cluster, &["query", r#"{"balance":{"account":2}}"#]);
    assert_eq!(balance["answer"]["balance"], 130, "{balance}");

    let effect = first["effects"][0].as_str().unwrap().to_owned();
    let listed = ask(&cluster, &["effects", "list", "--sink", "webhook"]);
    assert_eq!(listed["effects"][0]["id"], effect.as_str(), "{listed}");
    let shown = ask(&cluster, &["effects", "show", &effect]);
    assert_eq!(shown["payload"]["amount"], 30, "{shown}");
    assert_eq!(shown["contract"]["idempotent"]["window"], "1d", "as a sink shows it: {shown}");
    assert_eq!(ask(&cluster, &["sinks", "show", "webhook"])["open"], 1);
    assert_eq!(ask(&cluster, &["sinks", "list"])["sinks"][0]["name"], "webhook");
    let status = ask(&cluster, &["status"]);
    assert_eq!(status["replicas"].as_array().unwrap().len(), 3, "{status}");

    // The same for people.
    let api = cluster.api();
    for arguments in
        [&["status"][..], &["effects", "list"], &["sinks", "list"], &["effects", "show", &effect]]
    {
        let output = chronon(&[arguments, &["--api", &api]].concat());
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}: {}", stderr(&output));
    }
    let error = refused(&["submit", r#"{"opne":1}"#, "--api", &api]);
    assert!(error.contains("opne") && error.contains("open"), "{error}");
    let error = refused(&["effects", "show", "9999-0", "--api", &api]);
    assert!(error.contains("there is no effect 9999-0"), "{error}");
    let error = refused(&["sinks", "set", "x", "--contract", "probe", "--url", "http://a", "--api", &api]);
    assert!(error.contains("--settle"), "{error}");
}

#[tokio::test]
async fn an_operator_freezes_a_sink_and_decides_about_effects() {
    let cluster = Cluster::started("desk", 3);
    cluster.primary(None).await;
    let api = cluster.api();
    // Nobody listens there.
    let sink = ["sinks", "set", "webhook", "--contract", "at-most-once", "--allow-private"];
    ask(&cluster, &[&sink[..], &["--url", "http://127.0.0.1:9/hook"]].concat());
    assert_eq!(ask(&cluster, &["sinks", "freeze", "webhook"])["revision"], 2);
    assert_eq!(ask(&cluster, &["sinks", "show", "webhook"])["frozen"], true);
    for account in [1, 2] {
        let open = format!(r#"{{"open":{{"account":{account},"balance":100}}}}"#);
        ask(&cluster, &["submit", &open]);
    }
    let effects: Vec<String> = (1..=4)
        .map(|transfer| {
            let command = format!(r#"{{"transfer":{{"transfer":{transfer},"from":1,"to":2,"amount":1}}}}"#);
            ask(&cluster, &["submit", &command])["effects"][0].as_str().unwrap().to_owned()
        })
        .collect();
    let ends = ["settled", "settled", "settled"];
    let acts: [&[&str]; 3] = [
        &["cancel", &effects[0], "--reason", "a mistake", "--by", "ada"],
        &["resolve", &effects[1], "--as", "delivered", "--outcome", r#"{"status":200}"#],
        &["resolve", &effects[2], "--as", "failed", "--by", "ada"],
    ];
    let outcomes = ["cancelled", "delivered", "failed"];
    for ((act, state), outcome) in acts.iter().zip(ends).zip(outcomes) {
        let shown = ask(&cluster, &[&["effects"], *act].concat());
        assert_eq!(
            (&shown["state"], &shown["outcome"]["outcome"]),
            (&state.into(), &outcome.into()),
            "{shown}"
        );
    }
    let shown = ask(&cluster, &["effects", "show", &effects[0]]).to_string();
    assert!(shown.contains("a mistake") && shown.contains("ada"), "{shown}");

    // What can't be done is told with the reason.
    let refused = |arguments: &[&str]| refused(&[arguments, &["--api", &api]].concat());
    let error = refused(&["effects", "cancel", &effects[1]]);
    assert!(error.contains("settled"), "{error}");
    let error = refused(&["effects", "retry", &effects[3]]);
    assert!(error.contains("parked"), "{error}");
    let error = refused(&["effects", "resolve", &effects[3], "--as", "delivered"]);
    assert!(error.contains("--outcome"), "{error}");
    let error = refused(&["effects", "resolve", &effects[3], "--as", "failed", "--outcome", "{}"]);
    assert!(error.contains("--as delivered only"), "{error}");
    let error = refused(&["effects", "cancel", "9999-0"]);
    assert!(error.contains("9999-0"), "{error}");
    let error = refused(&["sinks", "thaw", "nobody"]);
    assert!(error.contains("no sink is named nobody"), "{error}");

    // Thawed, the last is tried, never reaches the sink, and is parked once its attempts are used up.
    assert_eq!(ask(&cluster, &["sinks", "thaw", "webhook"])["revision"], 3);
    let began = std::time::Instant::now();
    while ask(&cluster, &["effects", "show", &effects[3]])["attempts_count"] == 0 {
        assert!(began.elapsed() < support::PATIENCE);
        // sleeps: between two looks at another process.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn a_misspelt_key_names_file_line_key_and_what_is_allowed() {
    let cluster = Cluster::init("typo", 1);
    let config = cluster.config(0);
    let text = std::fs::read_to_string(config).unwrap();
    let line = text.lines().position(|line| line.starts_with("http")).unwrap() + 1;
    std::fs::write(config, text.replace("http = ", "htpp = ")).unwrap();
    let error = refused(&["start", "--config", config]);
    assert!(
        error.contains(&format!("{config}:{line}:1: unknown key \"htpp\", did you mean \"http\"?")),
        "{error}"
    );
    assert!(error.contains("allowed here: peer, client, http"), "{error}");
}

#[test]
fn a_cluster_is_made_in_an_empty_directory_only() {
    let directory = Directory::new("not-empty");
    std::fs::write(directory.0.join("diary"), "dear").unwrap();
    let error = refused(&["init", "--dir", directory.0.to_str().unwrap()]);
    assert!(error.contains("is not empty") && error.contains("diary"), "{error}");
    assert_eq!(std::fs::read_to_string(directory.0.join("diary")).unwrap(), "dear");
}

#[test]
fn logs_that_the_disk_has_no_room_for_are_refused_before_anything_is_written() {
    let directory = Directory::new("no-room");
    for log_mib in [1_u64 << 40, u64::MAX >> 20] {
        let to = directory.path("cluster");
        let error = refused(&["init", "--dir", &to, "--log-mib", &log_mib.to_string()]);
        assert!(error.contains("the replicas need") && error.contains("MiB free"), "{error}");
        assert!(!std::path::Path::new(&to).exists());
    }
}

#[test]
fn a_log_of_an_impossible_size_is_refused_with_one_that_is_possible() {
    let directory = Directory::new("log-sizes");
    let make = |log_mib: &str| {
        chronon(&["init", "--replicas", "1", "--dir", &directory.path(log_mib), "--log-mib", log_mib])
    };
    for small in ["0", "8"] {
        let error = stderr(&make(small));
        let least = error.split("use ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(error.ends_with("or more\n") && make(least).status.success(), "{error}");
        std::fs::remove_dir_all(directory.0.join(least)).unwrap();
        let below = (least.parse::<u64>().unwrap() - 1).to_string();
        assert!(stderr(&make(&below)).contains(&format!("use {least} or more")));
    }
    let error = stderr(&make(&u64::MAX.to_string()));
    assert!(error.contains("use less"), "{error}");
}

/// A shell's limit on the size of files stands for a disk that fills up in the middle.
#[test]
fn a_cluster_that_can_not_be_made_leaves_nothing_behind() {
    let directory = Directory::new("halves");
    std::fs::create_dir(directory.0.join("empty")).unwrap();
    for to in ["empty", "new/and/deep"] {
        let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" init --log-mib 32 --dir \"$1\"";
        let arguments = ["-c", script, env!("CARGO_BIN_EXE_chronon"), &directory.path(to)];
        let refused = Command::new("sh").args(arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("File too large"), "{}", stderr(&refused));
    }
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(directory.0.join("empty")).unwrap().count(), 0);

    let to = directory.0.join("interrupted");
    let mut init = Command::new(env!("CARGO_BIN_EXE_chronon"));
    let mut init =
        init.args(["init", "--log-mib", "256", "--dir"]).arg(&to).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !to.join("replica-2/data/wal").exists() {
        assert!(began.elapsed() < PATIENCE);
        // sleeps: between two looks at the directory.
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&init), Signal::INT).unwrap();
    assert_eq!(init.wait().unwrap().code(), Some(130));
    assert!(!to.exists());
}

#[test]
fn output_that_nobody_reads_is_no_error_and_output_that_is_lost_is_one() {
    let cluster = Cluster::init("output", 1);
    let data = std::path::Path::new(cluster.config(0)).with_file_name("data");
    for arguments in [&["inspect"][..], &["log", "show"], &["log", "verify", "--json"]] {
        let command = || {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chronon"));
            command.args(arguments).arg("--data").arg(&data).stderr(std::process::Stdio::piped());
            command
        };
        let mut child = command().stdout(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));

        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command().stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("standard output can't be written"), "{}", stderr(&output));
    }
}

/// Scenario 54.
#[tokio::test]
async fn a_replica_whose_log_nobody_reads_any_more_goes_on() {
    let mut cluster = Cluster::init("no-reader", 1);
    cluster.start_unread(0);
    // It says where it listens, and that it leads, before it does.
    cluster.primary(None).await;
    assert_eq!(cluster.ended(0), None);
}

#[test]
fn a_data_directory_of_another_replica_or_of_another_cluster_is_refused() {
    let cluster = Cluster::init("other-replica", 2);
    let other = std::fs::canonicalize(cluster.config(1)).unwrap().with_file_name("data");
    let set = format!("data={}", other.display());
    let error = refused(&["start", "--config", cluster.config(0), "--set", &set]);
    assert!(error.contains("replica 1"), "{error}");
    let error = refused(&[
        "start",
        "--config",
        cluster.config(0),
        "--set",
        "cluster=\"00000000000000000000000000000001\"",
    ]);
    assert!(error.contains("of cluster"), "{error}");
    let error = refused(&["start", "--config", cluster.config(0), "--set", "data=/nowhere"]);
    assert!(error.contains("/nowhere") && error.contains("init"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_and_a_data_directory_in_use_are_told() {
    let cluster = Cluster::started("in-use", 1);
    cluster.primary(None).await;
    let error = refused(&["start", "--config", cluster.config(0)]);
    assert!(error.contains("port can't be opened") && error.contains("127.0.0.1:"), "{error}");
    let free = ["--set", "listen.peer=127.0.0.1:0", "--set", "listen.client=127.0.0.1:0"];
    let start = ["start", "--config", cluster.config(0), "--set", "listen.http=127.0.0.1:0"];
    let error = refused(&[&start[..], &free[..]].concat());
    assert!(error.contains("in use by another process"), "{error}");
}

#[test]
fn a_replica_without_a_quorum_says_so_within_the_time_that_it_has() {
    let mut cluster = Cluster::init("alone", 3);
    cluster.start(0);
    let api = cluster.api_of(0).to_owned();
    while !chronon(&["status", "--api", &api]).status.success() {
        assert_eq!(cluster.ended(0), None, "{}", cluster.printed(0));
    }
    for arguments in [["submit", r#"{"open":{"account":1,"balance":1}}"#], ["query", r#""totals""#]] {
        let error = refused(&[&arguments[..], &["--timeout", "1", "--api", &api]].concat());
        assert!(error.contains("not executed"), "{error}");
    }
}

#[test]
fn nobody_at_the_api_is_told_with_what_to_do() {
    let error = refused(&["status", "--api", "http://127.0.0.1:1"]);
    assert!(error.contains("no replica is reached") && error.contains("--api"), "{error}");
    let error = refused(&["status", "--api", "http://127.0.0.1:99999"]);
    assert!(error.contains("no port from 0 to 65535"), "{error}");
}

/// A replica that takes a command and dies before it answers: the key is what is left to find out what became of it.
#[test]
fn a_command_whose_answer_never_comes_is_told_the_key_to_repeat_it_under() {
    for given in [None, Some("mine")] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        let replica = std::thread::spawn(move || {
            let (mut caller, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let read = std::io::Read::read(&mut caller, &mut request).unwrap();
            String::from_utf8_lossy(&request[..read]).to_lowercase()
        });
        let key = given.map_or(vec![], |key| vec!["--key", key]);
        let error = refused(&[&["submit", r#"{"Open": {}}"#, "--api", &api][..], &key].concat());
        let request = replica.join().unwrap();
        let (_, told) = error.split_once("repeat it with --key ").unwrap_or_else(|| panic!("{error}"));
        let told = told.split_whitespace().next().unwrap();
        assert!(request.contains(&format!("idempotency-key: {told}")), "{told}: {request}");
        assert!(given.is_none_or(|given| given == told), "{error}");
        assert_eq!(told.len(), given.map_or(32, str::len), "{error}");
    }
}
