//! The HTTP API of real nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_takes_a_command_and_a_repeat_gets_the_same_answer() {
    let cluster = Cluster::start(3).await;
    let mut answers = Vec::new();
    for (replica, key) in [(0, "k-1"), (1, "\"k-1\""), (2, "k-1")] {
        let key = format!("Idempotency-Key: {key}\r\n");
        let done = cluster.http(replica, "POST", "/v1/commands?timeout=10s", &key, r#"{"add":5}"#).await;
        assert_eq!(done.status, 200, "{done:?}");
        answers.push(done.json());
    }
    assert_eq!(answers[0]["reply"], 5);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    for replica in 0..3 {
        let known = cluster.http(replica, "GET", "/v1/commands/k-1", "", "").await;
        assert_eq!(known.json(), answers[0]);
        let read = cluster.http(replica, "POST", "/v1/queries", "", "null").await;
        assert_eq!((read.status, &read.json()["answer"]["sum"]), (200, &5.into()), "{read:?}");
    }

    let reused = cluster.http(1, "POST", "/v1/commands", "Idempotency-Key: k-1\r\n", r#"{"add":6}"#).await;
    assert_eq!((reused.status, &reused.json()["code"]), (422, &"key_reused".into()), "{reused:?}");
    assert!(reused.head.contains("application/problem+json"), "{reused:?}");
    let missing = cluster.http(1, "GET", "/v1/commands/k-2", "", "").await;
    assert_eq!((missing.status, &missing.json()["code"]), (404, &"no_such_key".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_array_of_commands_answers_each_for_itself() {
    let cluster = Cluster::start(1).await;
    let body = r#"[{"command":{"add":1},"key":"a"},{"command":{"subtract":1}},{"command":"panic"},{"command":{"add":2}}]"#;
    let done = cluster.http(0, "POST", "/v1/commands", "", body).await;
    assert_eq!(done.status, 200, "{done:?}");
    let results = done.json();
    assert_eq!(results[0]["key"], "a");
    assert_eq!(results[1]["code"], "unreadable");
    assert_eq!(results[2]["code"], "aborted");
    assert!(results[3]["reply"].is_u64(), "{results}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_problems_with_a_code() {
    let cluster = Cluster::start(1).await;
    let long = format!("Idempotency-Key: {}\r\n", "k".repeat(256));
    let cases = [
        ("POST", "/v1/commands", "", "", 400, "unreadable"),
        ("POST", "/v1/commands", "", "{", 400, "unreadable"),
        ("POST", "/v1/commands?timeout=soon", "", r#"{"add":1}"#, 400, "parameter"),
        ("POST", "/v1/commands?patience=1s", "", r#"{"add":1}"#, 400, "parameter"),
        ("POST", "/v1/commands", long.as_str(), r#"{"add":1}"#, 400, "key"),
        ("POST", "/v1/queries?consistency=strong", "", "null", 400, "parameter"),
        ("POST", "/v1/queries?consistency=at_least:999&timeout=50ms", "", "null", 503, "not_executed"),
        ("GET", "/v1/effects/forty-two", "", "", 400, "parameter"),
        ("GET", "/v1/effects/42-0", "", "", 404, "no_such_effect"),
        ("GET", "/v1/effects?state=lost", "", "", 400, "parameter"),
        ("POST", "/v1/effects/42-0/cancel", "", "{}", 404, "no_such_effect"),
        ("GET", "/v1/sinks/none", "", "", 404, "no_such_sink"),
        ("PUT", "/v1/sinks/psp", "", r#"{"kind":"http","config":{}}"#, 400, "unreadable"),
        (
            "PUT",
            "/v1/sinks/psp",
            "",
            r#"{"kind":"carrier-pigeon","config":{},"contract":"at_least_once"}"#,
            422,
            "sink_config",
        ),
        ("DELETE", "/v1/commands", "", "", 405, "method_not_allowed"),
        ("GET", "/v2/commands", "", "", 404, "no_such_path"),
    ];
    for (method, path, headers, body, status, code) in cases {
        let answer = cluster.http(0, method, path, headers, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert_eq!(answer.json()["code"], code, "{method} {path} {body}: {answer:?}");
    }
    // One byte over the limit of a body.
    let large = format!("{}1", " ".repeat(4 << 20));
    let answer = cluster.http(0, "POST", "/v1/commands", "", &large).await;
    assert_eq!((answer.status, &answer.json()["code"]), (413, &"too_large".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_are_set_frozen_and_removed_through_any_replica() {
    let cluster = Cluster::start(3).await;
    let sink = r#"{"kind":"http","config":{"url":"http://example.com/hook"},"contract":{"idempotent":{"window":"24h"}}}"#;
    let put = cluster.http(1, "PUT", "/v1/sinks/psp", "If-None-Match: *\r\n", sink).await;
    assert_eq!(put.status, 200, "{put:?}");
    let again = cluster.http(2, "PUT", "/v1/sinks/psp", "If-None-Match: *\r\n", sink).await;
    assert_eq!((again.status, &again.json()["code"]), (412, &"wrong_revision".into()), "{again:?}");

    let frozen = cluster.http(0, "POST", "/v1/sinks/psp/freeze", "", "").await;
    assert_eq!(frozen.status, 200, "{frozen:?}");
    let shown = cluster.http(2, "GET", "/v1/sinks/psp", "", "").await.json();
    assert_eq!(shown["frozen"], true);
    assert_eq!(shown["contract"]["idempotent"]["window"], "1d");
    assert_eq!(shown["revision"], frozen.json()["revision"]);
    assert_eq!(cluster.http(1, "POST", "/v1/sinks/psp/thaw", "", "").await.status, 200);

    assert_eq!(cluster.http(1, "DELETE", "/v1/sinks/psp", "", "").await.status, 200);
    assert_eq!(cluster.http(0, "GET", "/v1/sinks/psp", "", "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_shows_every_replica_and_one_primary() {
    let mut cluster = Cluster::start(3).await;
    for replica in 0..3 {
        let shown = cluster.http(replica, "GET", "/v1/cluster", "", "").await.json();
        assert_eq!(shown["replicas"].as_array().unwrap().len(), 3);
        assert!(shown["primary"].is_u64(), "{shown}");
        assert_eq!(cluster.http(replica, "GET", "/healthz", "", "").await.text, "ok\n");
        assert_eq!(cluster.http(replica, "GET", "/readyz", "", "").await.text, "ok\n");
        let metrics = cluster.http(replica, "GET", "/metrics", "", "").await.text;
        assert!(metrics.contains("chronon_peer_messages_received_total"), "{metrics}");
    }
    cluster.stop_one(1).await;
    eventually("the stopped replica is shown as unreachable", async || {
        let shown = cluster.http(0, "GET", "/v1/cluster", "", "").await.json();
        shown["replicas"][1]["unreachable"].is_string()
    })
    .await;
    cluster.stop_one(2).await;
    eventually("a replica that is left alone is not ready", async || {
        cluster.http(0, "GET", "/readyz", "", "").await.status == 503
    })
    .await;
    assert_eq!(cluster.http(0, "GET", "/healthz", "", "").await.status, 200);
}

/// What a replica's `/metrics` have: the name and the value of each line, and of a histogram its name alone.
async fn metrics(cluster: &Cluster, replica: u8) -> BTreeMap<String, Option<f64>> {
    let text = cluster.http(replica, "GET", "/metrics", "", "").await.text;
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    declared
        .map(|(name, _)| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            (name.to_owned(), line.map(|value| value.parse().unwrap()))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_name_every_metric_and_no_other() {
    let cluster = Cluster::start(1).await;
    let printed: BTreeSet<String> = metrics(&cluster, 0).await.into_keys().collect();
    assert!(printed.contains("chronon_engine_keys"), "the engine was not asked: {printed:?}");
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
    let documents = std::fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    let documents = documents.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let texts: Vec<String> = documents.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let named_in = |text: &str| -> BTreeSet<String> {
        let words = text.split('`').filter(|word| word.starts_with("chronon_"));
        words.map(str::to_owned).collect()
    };
    let named: BTreeSet<String> = texts.iter().flat_map(|text| named_in(text)).collect();
    assert_eq!(named.difference(&printed).collect::<Vec<_>>(), [""; 0], "no such metric");
    let reference = std::fs::read_to_string(format!("{docs}/http-api.md")).unwrap();
    let missing: Vec<String> = printed.difference(&named_in(&reference)).cloned().collect();
    assert!(missing.is_empty(), "docs/http-api.md does not name {missing:?}");
}

/// Where each number that `GET /v1/cluster` has about the disk, the intake and a transfer is in `/metrics`.
const ALSO_METRICS: [(&str, &str); 22] = [
    ("/disk/age_ms", "disk_age_ms"),
    ("/disk/stalls", "disk_stalls_total"),
    ("/disk/stall_ms_max", "disk_stall_ms_max"),
    ("/disk/short", "disk_short"),
    ("/disk/available_bytes", "disk_available_bytes"),
    ("/disk/wal_bytes", "wal_bytes"),
    ("/disk/wal_used_bytes", "wal_used_bytes"),
    ("/disk/checkpoints_bytes", "vault_bytes"),
    ("/disk/checkpoints_live_bytes", "vault_live_bytes"),
    ("/disk/damaged/wal_groups", "wal_groups_damaged_total"),
    ("/disk/damaged/wal_blots", "wal_blots_total"),
    ("/disk/damaged/superblock_copies", "superblock_copies_damaged_total"),
    ("/disk/damaged/chunks", "chunks_damaged_total"),
    ("/disk/damaged/chunks_mended", "chunks_repaired_total"),
    ("/disk/scrub/wal_bytes", "wal_scrub_bytes"),
    ("/disk/scrub/wal_rounds", "wal_scrub_rounds_total"),
    ("/disk/scrub/checkpoints_bytes", "vault_scrub_bytes"),
    ("/disk/scrub/checkpoints_rounds", "vault_scrub_rounds_total"),
    ("/intake/pause_ms", "intake_pause_ms"),
    ("/intake/paused_ms", "intake_paused_ms"),
    ("/state_transfers", "state_transfers_total"),
    ("/fetching_state", "fetching_state"),
];

fn numbers_in(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numbers_in(value, &format!("{path}/{name}"), found));
        }
        serde_json::Value::Number(_) | serde_json::Value::Bool(_) => drop(found.insert(path.to_owned())),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_shows_of_disks_intake_and_transfers_is_a_metric_too() {
    let cluster = Cluster::start(1).await;
    let shown = cluster.http(0, "GET", "/v1/cluster", "", "").await.json()["replicas"][0].clone();
    let mut numbers = BTreeSet::from(["/state_transfers".to_owned(), "/fetching_state".to_owned()]);
    for part in ["disk", "intake", "sync"] {
        numbers_in(&shown[part], &format!("/{part}"), &mut numbers);
    }
    let known: BTreeSet<String> = ALSO_METRICS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(numbers, known, "what is shown has a metric each, and the other way round");
    let metrics = metrics(&cluster, 0).await;
    for (path, name) in ALSO_METRICS {
        assert!(shown.pointer(path).is_some(), "{path} is not shown: {shown}");
        assert!(metrics.contains_key(&format!("chronon_{name}")), "no {name}, which is {path}");
    }
    // Of those that nothing changes meanwhile the value is the same.
    for (path, name) in [("/disk/wal_bytes", "wal_bytes"), ("/disk/checkpoints_bytes", "vault_bytes")] {
        let value = metrics[&format!("chronon_{name}")];
        assert_eq!(shown.pointer(path).unwrap().as_f64(), value, "{path}");
    }
}
