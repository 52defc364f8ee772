//! `/v1/commands`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chronon_kernel::{Answer, Consistency, Engine, Origin, RequestResult, Submission, rfc3339};
use chronon_vsr::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::text;
use super::{Api, TIMEOUT_DEFAULT};

/// The most commands of one array.
const ITEMS_MAX: usize = 1_000;

/// The parameters of a submission.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    timeout: Option<String>,
}

/// One command of an array.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    command: Box<RawValue>,
    key: Option<String>,
}

/// What became of a command.
#[derive(Debug, Serialize)]
struct Done {
    op: u64,
    request: u32,
    timestamp: String,
    reply: Box<RawValue>,
    effects: Vec<String>,
    key: String,
}

/// `POST /v1/commands`
pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    parameters: Result<Query<Parameters>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters?;
    let timeout = text::timeout(parameters.timeout.as_deref())?;
    let key = text::idempotency_key(&headers)?;
    let body = body?;
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        if key.is_some() {
            let detail = "the commands of an array have keys of their own: {\"command\": …, \"key\": …}";
            return Err(Problem::new(400, "key", detail));
        }
        return submit_many(&api, &body, timeout).await;
    }
    let key = key.map_or_else(draw_key, Ok)?;
    let done = submit_one(&api, &body, key, timeout).await?;
    Ok(text::json(&done))
}

/// Each for itself: an array is not atomic.
async fn submit_many(api: &Arc<Api>, body: &[u8], timeout: Option<Duration>) -> Result<Response, Problem> {
    let items: Vec<Item> = serde_json::from_slice(body).map_err(|error| {
        Problem::unreadable(format!("each command of an array is {{\"command\": …, \"key\": …}}: {error}"))
    })?;
    if ITEMS_MAX < items.len() {
        let detail = format!("{} commands are more than the limit of {ITEMS_MAX}", items.len());
        return Err(Problem::new(413, "too_large", detail).with("limit", ITEMS_MAX));
    }
    let mut tasks = Vec::with_capacity(items.len());
    for Item { command, key } in items {
        let key = key.map_or_else(draw_key, |key| text::unquote(&key))?;
        let api = Arc::clone(api);
        tasks.push(tokio::spawn(
            async move { submit_one(&api, command.get().as_bytes(), key, timeout).await },
        ));
    }
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        let done = task.await.map_err(|error| Problem::new(500, "unexpected", error.to_string()))?;
        let result = match done {
            Ok(done) => serde_json::value::to_raw_value(&done),
            Err(problem) => serde_json::value::to_raw_value(&problem.to_json()),
        };
        results.push(result.map_err(|error| Problem::new(500, "unexpected", error.to_string()))?);
    }
    Ok(text::json(&results))
}

async fn submit_one(
    api: &Api,
    command: &[u8],
    key: String,
    timeout: Option<Duration>,
) -> Result<Done, Problem> {
    let body = api.admission.edge.command_from_json(command)?;
    let origin = Origin::Key { principal: String::new(), key: key.clone() };
    match api.submit(Submission::Command { origin, repeat: false, body }, timeout).await {
        Answer::Decided(result) => done(api, result, key),
        Answer::Indeterminate => {
            let detail = "nobody can say yet what became of it; repeat it with the same key";
            Err(Problem::new(504, "indeterminate", detail).with("key", key))
        }
        answer => Err(Problem::of_answer(answer).with("key", key)),
    }
}

fn done(api: &Api, result: RequestResult, key: String) -> Result<Done, Problem> {
    let RequestResult::Replied { at, timestamp, reply, effects } = result else {
        return Err(Problem::of_answer(Answer::Decided(result)).with("key", key));
    };
    Ok(Done {
        op: at.op,
        request: at.request,
        timestamp: rfc3339(Timestamp::from_nanos(timestamp)),
        reply: text::raw(api.admission.edge.reply_to_json(&reply)?)?,
        effects: effects.iter().map(ToString::to_string).collect(),
        key,
    })
}

/// A key for a caller who gave none.
fn draw_key() -> Result<String, Problem> {
    let bits = crate::node::random()
        .map_err(|error| Problem::new(500, "unexpected", format!("no random bits: {error}")))?;
    Ok(format!("{bits:032x}"))
}

/// `GET /v1/commands/{key}`
pub(super) async fn look_up(
    State(api): State<Arc<Api>>,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    let key = text::unquote(&key)?;
    let wanted = key.clone();
    let look = move |engine: &dyn Engine| engine.key_result("", &wanted);
    let found = api.front.look(Consistency::Linearizable, TIMEOUT_DEFAULT, look).await;
    match found.map_err(Problem::of_answer)? {
        Some(view) => Ok(text::json(&done(&api, view.result, key)?)),
        None => {
            Err(Problem::new(404, "no_such_key", "no command came under this key, or it is kept no more")
                .with("key", key))
        }
    }
}
