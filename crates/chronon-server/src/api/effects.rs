//! `/v1/effects`: what was asked of the outside world, and the desk.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use chronon_kernel::{
    Answer, Consistency, DeskAct, EffectFilter, EffectId, EffectView, Engine, RequestResult, SettleAs,
    SinkName, Submission,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::sinks::ContractText;
use super::text::{self, Freshness};
use super::{Api, TIMEOUT_DEFAULT};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;

/// The parameters of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    state: Option<String>,
    sink: Option<String>,
    lane: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    consistency: Option<String>,
}

#[derive(Debug, Serialize)]
struct List {
    op: u64,
    effects: Vec<Shown>,
    /// Where the next page starts; none at the end.
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct One {
    op: u64,
    #[serde(flatten)]
    effect: Shown,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    view: EffectView,
    contract: ContractText,
    payload: serde_json::Value,
}

/// `GET /v1/effects`
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters?;
    let parameter = |error: String| Problem::new(400, "parameter", error);
    let filter = EffectFilter {
        state: parameters
            .state
            .map(|state| state.parse().map_err(|error| parameter(format!("{error}"))))
            .transpose()?,
        sink: parameters
            .sink
            .map(|sink| SinkName::new(sink).map_err(|error| parameter(error.to_string())))
            .transpose()?,
        lane: parameters.lane,
    };
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX);
    let after = parameters.cursor.map(|cursor| effect_id(&cursor)).transpose()?;
    let consistency = text::consistency(parameters.consistency.as_deref())?;
    let look = move |engine: &dyn Engine| (engine.applied().value(), engine.effects(&filter, after, limit));
    let (op, views) = api.front.look(consistency, TIMEOUT_DEFAULT, look).await.map_err(Problem::of_answer)?;
    let cursor = if views.len() < limit { None } else { views.last().map(|view| view.id.to_string()) };
    let effects = views.into_iter().map(|view| shown(&api, view)).collect();
    Ok(text::json(&List { op, effects, cursor }))
}

/// `GET /v1/effects/{id}`
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    freshness: Result<Query<Freshness>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(freshness) = freshness?;
    show_one(&api, effect_id(&id)?, freshness.consistency()?).await
}

async fn show_one(api: &Api, id: EffectId, consistency: Consistency) -> Result<Response, Problem> {
    let look = move |engine: &dyn Engine| (engine.applied().value(), engine.effect(id));
    let (op, view) = api.front.look(consistency, TIMEOUT_DEFAULT, look).await.map_err(Problem::of_answer)?;
    let view = view.ok_or_else(|| {
        Problem::new(404, "no_such_effect", format!("there is no effect {id}, or it is remembered no more"))
    })?;
    Ok(text::json(&One { op, effect: shown(api, view) }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum As {
    Delivered,
    Failed,
    Unknown,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    #[serde(rename = "as")]
    settle: As,
    outcome: Option<Box<RawValue>>,
    #[serde(default)]
    reason: String,
    by: Option<String>,
}

/// `POST /v1/effects/{id}/resolve`
pub(super) async fn resolve(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = effect_id(&id)?;
    let Resolve { settle, outcome, reason, by } = text::body(&body?)?;
    let settle = match (settle, outcome) {
        (As::Delivered, Some(outcome)) => {
            let outcome = api.admission.edge.outcome_from_json(outcome.get().as_bytes())?;
            SettleAs::Delivered { outcome }
        }
        (As::Delivered, None) => {
            let detail = "\"outcome\" is missing: what did the sink answer?";
            return Err(Problem::new(400, "unreadable", detail));
        }
        (As::Failed, None) => SettleAs::Failed,
        (As::Unknown, None) => SettleAs::Unknown,
        (As::Failed | As::Unknown, Some(_)) => {
            return Err(Problem::new(400, "unreadable", "\"outcome\" goes with \"as\": \"delivered\" only"));
        }
    };
    act(&api, id, DeskAct::Resolve { settle, reason }, by).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    #[serde(default)]
    not_delivered: bool,
    #[serde(default)]
    accept_duplicate: bool,
    #[serde(default)]
    reason: String,
    by: Option<String>,
}

/// `POST /v1/effects/{id}/retry`
pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = effect_id(&id)?;
    let Retry { not_delivered, accept_duplicate, reason, by } = text::body(&body?)?;
    act(&api, id, DeskAct::Retry { not_delivered, accept_duplicate, reason }, by).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    #[serde(default)]
    reason: String,
    by: Option<String>,
}

/// `POST /v1/effects/{id}/cancel`
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = effect_id(&id)?;
    let Cancel { reason, by } = text::body(&body?)?;
    act(&api, id, DeskAct::Cancel { reason }, by).await
}

/// An act goes through the log, with the name of who says so, and answers with the effect as it is then.
async fn act(
    api: &Arc<Api>,
    effect: EffectId,
    act: DeskAct,
    by: Option<String>,
) -> Result<Response, Problem> {
    let by = by.unwrap_or_else(|| "api".to_owned());
    match api.submit(Submission::Desk { effect, act, by }, None).await {
        Answer::Decided(RequestResult::Done) => show_one(api, effect, Consistency::Linearizable).await,
        answer => Err(Problem::of_answer(answer)),
    }
}

fn effect_id(text: &str) -> Result<EffectId, Problem> {
    text.parse().map_err(|error| Problem::new(400, "parameter", format!("{text:?}: {error}")))
}

fn shown(api: &Api, view: EffectView) -> Shown {
    let edge = &api.admission.edge;
    let value = |text: String| serde_json::from_str(&text).ok();
    let payload = edge.effect_to_json(&view.payload).ok().and_then(value).unwrap_or_default();
    Shown { contract: ContractText::of(view.contract), payload, view }
}
