//! The HTTP API of real nodes.

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
