//! Errors as problem+json (RFC 9457).

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chronon_kernel::{AbortReason, Answer, Busy, CodecError, NotExecuted, Refusal, RequestId, RequestResult};
use serde_json::{Map, Value, json};

/// An error as the caller sees it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: u16,
    code: String,
    detail: String,
    more: Map<String, Value>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with a stable code and a sentence.
    pub(crate) fn new(status: u16, code: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem { status, code: code.into(), detail: detail.into(), more: Map::new(), retry_after: None }
    }

    /// With another member.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn retry_after(self, after: Duration) -> Problem {
        Problem { retry_after: Some(after), ..self }
    }

    /// The problem's JSON.
    pub(crate) fn to_json(&self) -> Value {
        let mut body = json!({
            "type": format!("urn:chronon:problem:{}", self.code),
            "title": self.code.replace('_', " "),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        });
        if let Some(members) = body.as_object_mut() {
            members.extend(self.more.clone());
        }
        body
    }

    /// What a request's body can't be.
    pub(crate) fn unreadable(error: impl std::fmt::Display) -> Problem {
        Problem::new(400, "unreadable", error.to_string())
    }

    /// The state did not become fresh enough in time, or nothing answered.
    pub(crate) fn of_answer(answer: Answer) -> Problem {
        match answer {
            Answer::NotExecuted(why) => Problem::from(why),
            Answer::Indeterminate => Problem::new(504, "indeterminate", "nobody can say what became of it"),
            Answer::Decided(result) => match Problem::of_result(&result) {
                Some(problem) => problem,
                None => Problem::new(500, "unexpected", "the answer does not fit the request"),
            },
            Answer::Answered { .. } => Problem::new(500, "unexpected", "the answer does not fit the request"),
        }
    }

    /// The problem that a decided result is, if it is one.
    pub(crate) fn of_result(result: &RequestResult) -> Option<Problem> {
        match result {
            RequestResult::Aborted { at, why } => Some(Problem::of_abort(*at, why)),
            RequestResult::Refused(refusal) => Some(Problem::of_refusal(refusal)),
            RequestResult::Replied { .. }
            | RequestResult::Registered { .. }
            | RequestResult::Done
            | RequestResult::SinkSet { .. } => None,
        }
    }

    fn of_abort(at: RequestId, why: &AbortReason) -> Problem {
        let reason = match why {
            AbortReason::Panicked { .. } => "panicked",
            AbortReason::UnknownSink { .. } => "unknown_sink",
            AbortReason::TooManyEffects { .. } => "too_many_effects",
            AbortReason::Undecodable => "undecodable",
            AbortReason::ReplyTooLarge { .. } => "reply_too_large",
            AbortReason::Skipped { .. } => "skipped",
            #[allow(unreachable_patterns, reason = "the kernel may name more reasons")]
            _ => "aborted",
        };
        Problem::new(422, "aborted", format!("committed, and the state is as before it: {why}"))
            .with("reason", reason)
            .with("op", at.op)
            .with("request", at.request)
    }

    fn of_refusal(refusal: &Refusal) -> Problem {
        let detail = refusal.to_string();
        match refusal {
            Refusal::SessionEvicted => Problem::new(410, "session_evicted", detail),
            Refusal::ReplyForgotten { .. } => Problem::new(410, "reply_forgotten", detail),
            Refusal::KeyReused => Problem::new(422, "key_reused", detail),
            Refusal::Busy(busy) => Problem::busy(*busy, Duration::from_secs(1)),
            Refusal::WrongRevision { revision } => {
                Problem::new(412, "wrong_revision", detail).with("revision", *revision)
            }
            Refusal::SinkInUse { open } => Problem::new(409, "sink_in_use", detail).with("open", *open),
            Refusal::NoSuchEffect => Problem::new(404, "no_such_effect", detail),
            Refusal::AlreadySettled { outcome } => {
                Problem::new(409, "already_settled", detail).with("outcome", outcome.as_str())
            }
            Refusal::NotAllowed { .. } => Problem::new(409, "not_allowed", detail),
            Refusal::NotHalted { .. } => Problem::new(409, "not_halted", detail),
            Refusal::AlreadySkipped { by_op } => {
                Problem::new(409, "already_skipped", detail).with("by_op", *by_op)
            }
            #[allow(unreachable_patterns, reason = "the kernel may name more refusals")]
            _ => Problem::new(409, "refused", detail),
        }
    }

    fn busy(busy: Busy, retry_after: Duration) -> Problem {
        let full = serde_json::to_value(busy).unwrap_or(Value::Null);
        Problem::new(503, "not_executed", format!("busy: {busy}"))
            .with("reason", "busy")
            .with("full", full)
            .retry_after(retry_after)
    }
}

impl From<NotExecuted> for Problem {
    fn from(why: NotExecuted) -> Problem {
        let detail = why.to_string();
        match why {
            NotExecuted::Busy { busy, retry_after } => Problem::busy(busy, retry_after),
            NotExecuted::Refused { code, message } if code == "codec" => Problem::new(400, code, message),
            NotExecuted::Refused { code, message } if code == "halted_elsewhere" => {
                Problem::new(409, code, message)
            }
            NotExecuted::Refused { code, message } => Problem::new(422, code, message),
            NotExecuted::TooLarge { size, limit } => {
                Problem::new(413, "too_large", detail).with("size", size).with("limit", limit)
            }
            NotExecuted::NoPrimary { .. } => {
                Problem::new(503, "not_executed", "no primary was found in time")
                    .with("reason", "no_primary")
                    .retry_after(Duration::from_secs(1))
            }
            NotExecuted::Expired => Problem::new(503, "not_executed", detail)
                .with("reason", "expired")
                .retry_after(Duration::from_secs(1)),
        }
    }
}

impl From<CodecError> for Problem {
    fn from(error: CodecError) -> Problem {
        match error {
            CodecError::Json { .. } => Problem::new(400, "unreadable", error.to_string()),
            CodecError::Bytes { .. } | CodecError::NotReadBack { .. } | CodecError::Float { .. } => {
                Problem::new(400, "codec", error.to_string())
            }
            CodecError::Refused { code, message } => Problem::new(422, code, message),
        }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Problem {
        let code =
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "unreadable" };
        Problem::new(rejection.status().as_u16(), code, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::new(400, "parameter", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.to_json().to_string()).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        if let Some(after) = self.retry_after {
            // Whole seconds: never sooner than was asked for.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() != 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
