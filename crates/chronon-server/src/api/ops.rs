//! `/v1/ops/{op}/skip` and `/v1/skips`: what leads past an op at which execution has halted.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use chronon_kernel::{Answer, Consistency, Culprit, Engine, RequestResult, SkipView, Submission};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::text::{self, Freshness};
use super::{Api, TIMEOUT_DEFAULT, cluster};
use crate::front::text_of_halt;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    /// The request that is meant, for a caller who would rather be refused than skip another.
    request: Option<u32>,
    reason: String,
    by: Option<String>,
}

/// `POST /v1/ops/{op}/skip`: answered once execution is past the call; or has halted at another, if it did.
pub(super) async fn skip(
    State(api): State<Arc<Api>>,
    Path(op): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let op: u64 =
        op.parse().map_err(|_| Problem::new(400, "parameter", format!("{op:?} is no op: use a number")))?;
    let Skip { request, reason, by } = text::body(&body?)?;
    if reason.is_empty() {
        return Err(Problem::new(400, "reason", "say why: \"reason\" is kept with the skip"));
    }
    let report = api.front.report().await.ok_or_else(cluster::gone)?;
    let Some(halted) = report.halted else { return Err(not_halted(&api, op).await) };
    if halted.op.value() != op || request.is_some_and(|request| halted.culprit != Culprit::Request(request)) {
        let detail = format!("execution has halted at op {}, {}", halted.op, halted.culprit);
        return Err(Problem::new(409, "halted_elsewhere", detail).with("halted", text_of_halt(&halted)));
    }
    let by = by.unwrap_or_else(|| "api".to_owned());
    match api.submit(Submission::Skip(halted.skip(by, reason)), None).await {
        Answer::Decided(RequestResult::Done) => {
            Ok(text::json(&serde_json::json!({"skipped": text_of_halt(&halted)})))
        }
        // The skip's own op may lie behind another call that panics.
        Answer::Indeterminate => match api.front.report().await.and_then(|report| report.halted) {
            Some(next) if next != halted => {
                let (skipped, next) = (text_of_halt(&halted), text_of_halt(&next));
                Ok(text::json(&serde_json::json!({"skipped": skipped, "halted": next})))
            }
            _ => Err(Problem::of_answer(Answer::Indeterminate)),
        },
        answer => Err(Problem::of_answer(answer)),
    }
}

/// Why there is nothing to skip here.
async fn not_halted(api: &Api, op: u64) -> Problem {
    let look = |engine: &dyn Engine| (engine.applied().value(), engine.skips());
    let (applied, skips) = match api.front.look(Consistency::Local, TIMEOUT_DEFAULT, look).await {
        Ok(seen) => seen,
        Err(answer) => return Problem::of_answer(answer),
    };
    match skips.iter().find(|skip| skip.op == op) {
        Some(SkipView { culprit, skipped_by, by, .. }) => {
            let detail = format!("{culprit} of op {op} was skipped by op {}, by {by}", skipped_by.op);
            Problem::new(409, "already_skipped", detail).with("by_op", skipped_by.op)
        }
        None => {
            let detail =
                format!("execution goes on here: this replica has executed everything up to op {applied}");
            Problem::new(409, "not_halted", detail).with("applied", applied)
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    op: u64,
    skips: Vec<SkipView>,
}

/// `GET /v1/skips`: the newest ones, oldest first.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    freshness: Result<Query<Freshness>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(freshness) = freshness?;
    let look = |engine: &dyn Engine| (engine.applied().value(), engine.skips());
    let seen = api.front.look(freshness.consistency()?, TIMEOUT_DEFAULT, look).await;
    let (op, skips) = seen.map_err(Problem::of_answer)?;
    Ok(text::json(&List { op, skips }))
}
