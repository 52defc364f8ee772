//! `/v1/queries`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::Response;
use chronon_kernel::{Answer, NotExecuted};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::text;
use super::{Api, TIMEOUT_DEFAULT};

/// The parameters of a query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    consistency: Option<String>,
    timeout: Option<String>,
}

#[derive(Debug, Serialize)]
struct Answered {
    op: u64,
    answer: Box<RawValue>,
}

/// `POST /v1/queries`: answered by this replica, as fresh as is asked.
pub(super) async fn ask(
    State(api): State<Arc<Api>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters?;
    let timeout = text::timeout(parameters.timeout.as_deref())?.unwrap_or(TIMEOUT_DEFAULT);
    let consistency = text::consistency(parameters.consistency.as_deref())?;
    let query = api.admission.edge.query_from_json(&body?)?;
    match api.front.query(query, consistency, timeout).await {
        Answer::Answered { op, answer } => {
            let answer = text::raw(api.admission.edge.answer_to_json(&answer)?)?;
            Ok(text::json(&Answered { op, answer }))
        }
        Answer::NotExecuted(NotExecuted::Expired) => {
            Err(Problem::new(503, "not_executed", "the state did not become as fresh as was asked in time")
                .with("reason", "expired"))
        }
        answer => Err(Problem::of_answer(answer)),
    }
}
