//! `/v1/cluster`, health, readiness and metrics.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chronon_kernel::{Consistency, Engine, Halted};
use chronon_vsr::{Clocks, Role, Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::problem::Problem;
use super::{Api, sinks, text};
use crate::front::millis;

/// How long other replicas may take to say how they are.
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);

/// How long this replica may take to show that it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(1);

/// `GET /v1/cluster`
pub(super) async fn show(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let asked: Vec<_> = api
        .forwarder
        .others()
        .map(|replica| {
            let api = Arc::clone(&api);
            let asked = async move { timeout(OTHERS_PATIENCE, api.forwarder.status(replica)).await };
            (replica, tokio::spawn(asked))
        })
        .collect();
    let mut replicas = vec![own(&api).await?];
    for (replica, task) in asked {
        replicas.push(match task.await {
            Ok(Ok(Ok(status))) => serde_json::from_str(&status).unwrap_or(Value::Null),
            Ok(Ok(Err(error))) => json!({"replica": replica.value(), "unreachable": error}),
            Ok(Err(_)) => json!({"replica": replica.value(), "unreachable": "no answer in time"}),
            Err(error) => json!({"replica": replica.value(), "unreachable": error.to_string()}),
        });
    }
    replicas.sort_by_key(|replica| replica["replica"].as_u64());
    let newest = replicas.iter().filter(|replica| replica["role"] == "primary");
    let newest = newest.max_by_key(|replica| (replica["epoch"].as_u64(), replica["view"].as_u64()));
    let (primary, commit) = match newest {
        Some(primary) => (primary["replica"].clone(), primary["commit"].as_u64()),
        None => (Value::Null, None),
    };
    for replica in &mut replicas {
        if let (Some(commit), Some(applied)) = (commit, replica["applied"].as_u64()) {
            replica["lag"] = commit.saturating_sub(applied).into();
        }
    }
    Ok(text::json(&json!({
        "cluster": format!("{:032x}", api.cluster.value()),
        "answered_by": api.me.value(),
        "primary": primary,
        "replicas": replicas,
    })))
}

async fn own(api: &Api) -> Result<Value, Problem> {
    let report = api.front.report().await.ok_or_else(gone)?;
    let mut own: Value = serde_json::from_str(&report.json).map_err(Problem::unreadable)?;
    let look = |engine: &dyn Engine| (engine.status(), engine.sinks());
    if let Ok((status, sinks)) = api.front.look(Consistency::Local, OTHERS_PATIENCE, look).await {
        own["outbox"] = serde_json::to_value(status).unwrap_or(Value::Null);
        let not_served = sinks.iter().filter_map(|sink| {
            sinks::not_served(api, &sink.spec).map(|why| json!({"sink": sink.name, "why": why}))
        });
        own["sinks_not_served"] = not_served.collect();
    }
    Ok(own)
}

/// `GET /healthz`: the process runs and its Front answers.
pub(super) async fn healthz(State(api): State<Arc<Api>>) -> Result<&'static str, Problem> {
    match timeout(READY_PATIENCE, api.front.report()).await {
        Ok(Some(_)) => Ok("ok\n"),
        Ok(None) | Err(_) => Err(gone()),
    }
}

/// `GET /readyz`: this replica takes part, reaches its primary or leads a quorum, and could serve every sink.
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, Problem> {
    let report = api.front.report().await.ok_or_else(gone)?;
    let not_ready = |detail: String| Problem::new(503, "not_ready", detail);
    if let Some(loss) = report.loss {
        return Err(not_ready(format!("no replica has {} any more: see /v1/cluster", loss.what)));
    }
    if report.status.status != Status::Normal {
        return Err(not_ready(format!("the replica is not in normal operation: {:?}", report.status.status)));
    }
    if report.status.quarantine.is_some() {
        return Err(not_ready("the replica's state is not the cluster's: it is quarantined".to_owned()));
    }
    if let Some(Halted { op, culprit, message, .. }) = &report.halted {
        return Err(not_ready(format!("execution has halted at op {op}, {culprit}: {message}")));
    }
    if report.fetches {
        return Err(not_ready(
            "the replica fetches a state, and acknowledges nothing before it has it".to_owned(),
        ));
    }
    match report.status.role {
        Role::Primary { serving: true, .. } | Role::Backup { .. } => {}
        Role::Primary { serving: false, .. } => {
            return Err(not_ready("the primary has not reached its first commit point".to_owned()));
        }
        Role::Changing { .. } => return Err(not_ready("no primary is known".to_owned())),
    }
    if !report.in_touch {
        return Err(not_ready("the primary, or a quorum of its backups, is not reached".to_owned()));
    }
    let look = |engine: &dyn Engine| engine.sinks();
    let sinks = api.front.look(Consistency::Local, READY_PATIENCE, look).await.map_err(Problem::of_answer)?;
    for sink in sinks {
        if let Some(why) = sinks::not_served(&api, &sink.spec) {
            return Err(not_ready(format!("this replica could not serve sink {}: {why}", sink.name)));
        }
    }
    Ok("ok\n")
}

/// `GET /metrics`: the Prometheus text format.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let mut text = String::new();
    // Writing to a string can't fail.
    let mut line = |kind: &str, name: &str, value: u64| {
        let _ = writeln!(text, "# TYPE chronon_{name} {kind}\nchronon_{name} {value}");
    };
    for (name, value) in api.counters.all() {
        line("counter", &format!("{name}_total"), value);
    }
    for (name, value) in api.counters.gauges() {
        line("gauge", name, value);
    }
    for (name, histogram) in api.counters.histograms() {
        let name = format!("chronon_{name}_seconds");
        let _ = writeln!(text, "# TYPE {name} histogram");
        let mut count = 0;
        for (bound, so_far) in histogram.buckets() {
            count = so_far;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {so_far}");
        }
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {count}", histogram.seconds());
    }
    // Writing to a string can't fail.
    let mut line = |kind: &str, name: &str, value: u64| {
        let _ = writeln!(text, "# TYPE chronon_{name} {kind}\nchronon_{name} {value}");
    };
    if let Some(report) = api.front.report().await {
        let status = report.status;
        line("gauge", "primary", u64::from(matches!(status.role, Role::Primary { .. })));
        line("gauge", "op", status.head.value());
        line("gauge", "commit", status.commit_max.op.value());
        line("gauge", "applied", status.applied.value());
        line("gauge", "checkpoint", report.checkpoint.value());
        line("gauge", "queued", status.queued as u64);
        line("gauge", "quarantined", u64::from(status.quarantine.is_some()));
        line("gauge", "unanswered", report.unanswered as u64);
        line("gauge", "unrecoverable", u64::from(report.loss.is_some()));
        line("gauge", "disk_age_ms", millis(report.disk_age));
        let sync = report.sync.map(|sync| (sync.op.value(), sync.chunks, sync.fetched));
        let (sync_op, chunks, fetched) = sync.unwrap_or_default();
        line("gauge", "fetching_state", u64::from(report.fetches));
        line("gauge", "sync_op", sync_op);
        line("gauge", "sync_chunks", chunks.into());
        line("gauge", "sync_chunks_fetched", fetched.into());
        line("gauge", "clock_off", u64::from(report.clocks == Clocks::OwnIsOff));
        line("gauge", "clocks_disagree", u64::from(report.clocks == Clocks::Disagree));
    }
    let look = |engine: &dyn Engine| engine.status();
    if let Ok(status) = api.front.look(Consistency::Local, READY_PATIENCE, look).await {
        let fields = serde_json::to_value(status).unwrap_or(Value::Null);
        for (name, value) in fields.as_object().into_iter().flatten() {
            line("gauge", &format!("engine_{name}"), value.as_u64().unwrap_or(0));
        }
    }
    let content_type = (header::CONTENT_TYPE, "text/plain; version=0.0.4");
    (StatusCode::OK, [content_type], text).into_response()
}

pub(super) fn gone() -> Problem {
    Problem::new(503, "stopped", "the replica has stopped or does not answer")
}
