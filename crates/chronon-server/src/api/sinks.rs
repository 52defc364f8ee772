//! `/v1/sinks`: the outside world, as replicated objects.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::Response;
use chronon_kernel::{
    Answer, Backoff, Consistency, Contract, Engine, RequestResult, SinkName, SinkSpec, SinkView, Submission,
};
use chronon_node::Gate;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::problem::Problem;
use super::text::{self, Freshness, Span};
use super::{Api, TIMEOUT_DEFAULT};

/// How often a change of one field is tried against others who change the sink too.
const TRIES_MAX: usize = 5;

/// A sink as the API writes and reads it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkText {
    contract: ContractText,
    kind: String,
    config: Box<RawValue>,
    #[serde(default)]
    backoff: Option<BackoffText>,
    concurrency: Option<u32>,
    timeout: Option<Span>,
    parked_holds_lane: Option<bool>,
    frozen: Option<bool>,
    open_max: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ContractText {
    Transactional,
    Idempotent {
        window: Span,
        #[serde(default)]
        replays_errors: bool,
    },
    Probe {
        settle: Span,
    },
    AtMostOnce,
    AtLeastOnce,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackoffText {
    first: Span,
    max: Span,
    attempts_max: u32,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: SinkName,
    revision: u64,
    #[serde(flatten)]
    spec: SinkText,
    open: u64,
    started: u64,
    parked: u64,
    /// Why this replica could not carry attempts out, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_served_here: Option<String>,
}

#[derive(Debug, Serialize)]
struct List {
    op: u64,
    sinks: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Revision {
    revision: u64,
}

/// `GET /v1/sinks`
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    freshness: Result<Query<Freshness>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(freshness) = freshness?;
    let consistency = freshness.consistency()?;
    let look = |engine: &dyn Engine| (engine.applied().value(), engine.sinks());
    let (op, views) = api.front.look(consistency, TIMEOUT_DEFAULT, look).await.map_err(Problem::of_answer)?;
    let sinks = views.into_iter().map(|view| shown(&api, view)).collect::<Result<_, _>>()?;
    Ok(text::json(&List { op, sinks }))
}

/// `GET /v1/sinks/{name}`
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    freshness: Result<Query<Freshness>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(freshness) = freshness?;
    let view = find(&api, &sink_name(name)?, freshness.consistency()?).await?;
    let revision = view.revision.to_string();
    let mut response = text::json(&shown(&api, view)?);
    if let Ok(tag) = format!("\"{revision}\"").parse() {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// `PUT /v1/sinks/{name}`
pub(super) async fn set(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let name = sink_name(name)?;
    let sink: SinkText = text::body(&body?)?;
    let revision = put(&api, name, Some(sink.into_spec()), expected_revision(&headers)?).await?;
    Ok(text::json(&Revision { revision }))
}

/// `DELETE /v1/sinks/{name}`
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let revision = put(&api, sink_name(name)?, None, expected_revision(&headers)?).await?;
    Ok(text::json(&Revision { revision }))
}

/// `POST /v1/sinks/{name}/freeze`: answered once no start passes the gate anywhere.
pub(super) async fn freeze(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let revision = set_frozen(&api, sink_name(name)?, true).await?;
    sleep(Gate::FREEZE_HOLDS_AFTER).await;
    Ok(text::json(&Revision { revision }))
}

/// `POST /v1/sinks/{name}/thaw`
pub(super) async fn thaw(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let revision = set_frozen(&api, sink_name(name)?, false).await?;
    Ok(text::json(&Revision { revision }))
}

async fn set_frozen(api: &Api, name: SinkName, frozen: bool) -> Result<u64, Problem> {
    let mut tries = 0;
    loop {
        tries += 1;
        let SinkView { revision, mut spec, .. } = find(api, &name, Consistency::Linearizable).await?;
        if spec.frozen == frozen {
            return Ok(revision);
        }
        spec.frozen = frozen;
        let submission =
            Submission::SinkSet { name: name.clone(), spec: Some(spec), expected_revision: Some(revision) };
        match api.submit(submission, None).await {
            Answer::Decided(RequestResult::SinkSet { revision }) => return Ok(revision),
            // Somebody else set it meanwhile; their change is kept.
            Answer::Decided(RequestResult::Refused(_)) if tries < TRIES_MAX => {}
            answer => return Err(Problem::of_answer(answer)),
        }
    }
}

async fn put(
    api: &Api,
    name: SinkName,
    spec: Option<SinkSpec>,
    expected_revision: Option<u64>,
) -> Result<u64, Problem> {
    match api.submit(Submission::SinkSet { name, spec, expected_revision }, None).await {
        Answer::Decided(RequestResult::SinkSet { revision }) => Ok(revision),
        answer => Err(Problem::of_answer(answer)),
    }
}

async fn find(api: &Api, name: &SinkName, consistency: Consistency) -> Result<SinkView, Problem> {
    let wanted = name.clone();
    let look = move |engine: &dyn Engine| engine.sink(&wanted);
    let found = api.front.look(consistency, TIMEOUT_DEFAULT, look).await.map_err(Problem::of_answer)?;
    found.ok_or_else(|| Problem::new(404, "no_such_sink", format!("no sink is named {name}")))
}

fn sink_name(name: String) -> Result<SinkName, Problem> {
    SinkName::new(name).map_err(|error| Problem::new(400, "parameter", error.to_string()))
}

/// `If-Match: "3"` means revision 3; `If-None-Match: *` means that there is none yet.
fn expected_revision(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some("*") = text(header::IF_NONE_MATCH) {
        return Ok(Some(0));
    }
    let Some(tag) = text(header::IF_MATCH) else { return Ok(None) };
    let number = tag.trim_matches('"').parse();
    number.map(Some).map_err(|_| Problem::new(400, "parameter", format!("If-Match: {tag:?} is no revision")))
}

fn shown(api: &Api, view: SinkView) -> Result<Shown, Problem> {
    let SinkView { name, revision, spec, open, started, parked } = view;
    let not_served_here = not_served(api, &spec);
    Ok(Shown { name, revision, spec: SinkText::of(spec)?, open, started, parked, not_served_here })
}

/// Why this replica could not serve a sink, if it could not.
pub(super) fn not_served(api: &Api, spec: &SinkSpec) -> Option<String> {
    let kind = api.admission.executors.of_kind(&spec.kind);
    kind.and_then(|kind| kind.check_node(&spec.config)).err().map(|error| error.to_string())
}

impl ContractText {
    pub(super) fn of(contract: Contract) -> ContractText {
        match contract {
            Contract::Transactional => ContractText::Transactional,
            Contract::Idempotent { window, replays_errors } => {
                ContractText::Idempotent { window: Span(window), replays_errors }
            }
            Contract::Probe { settle } => ContractText::Probe { settle: Span(settle) },
            Contract::AtMostOnce => ContractText::AtMostOnce,
            Contract::AtLeastOnce => ContractText::AtLeastOnce,
        }
    }
}

impl SinkText {
    fn of(spec: SinkSpec) -> Result<SinkText, Problem> {
        let Backoff { first, max, attempts_max } = spec.backoff;
        Ok(SinkText {
            contract: ContractText::of(spec.contract),
            kind: spec.kind,
            config: text::raw(if spec.config.is_empty() { "null".to_owned() } else { spec.config })?,
            backoff: Some(BackoffText { first: Span(first), max: Span(max), attempts_max }),
            concurrency: Some(spec.concurrency),
            timeout: Some(Span(spec.timeout)),
            parked_holds_lane: Some(spec.parked_holds_lane),
            frozen: Some(spec.frozen),
            open_max: Some(spec.open_max),
        })
    }

    /// What is not said is as [`SinkSpec::new`] has it.
    fn into_spec(self) -> SinkSpec {
        let contract = match self.contract {
            ContractText::Transactional => Contract::Transactional,
            ContractText::Idempotent { window, replays_errors } => {
                Contract::Idempotent { window: window.0, replays_errors }
            }
            ContractText::Probe { settle } => Contract::Probe { settle: settle.0 },
            ContractText::AtMostOnce => Contract::AtMostOnce,
            ContractText::AtLeastOnce => Contract::AtLeastOnce,
        };
        let usual = SinkSpec::new(self.kind, self.config.get(), contract);
        SinkSpec {
            backoff: self.backoff.map_or(usual.backoff, |backoff| Backoff {
                first: backoff.first.0,
                max: backoff.max.0,
                attempts_max: backoff.attempts_max,
            }),
            concurrency: self.concurrency.unwrap_or(usual.concurrency),
            timeout: self.timeout.map_or(usual.timeout, |timeout| timeout.0),
            parked_holds_lane: self.parked_holds_lane.unwrap_or(usual.parked_holds_lane),
            frozen: self.frozen.unwrap_or(usual.frozen),
            open_max: self.open_max.unwrap_or(usual.open_max),
            ..usual
        }
    }
}
