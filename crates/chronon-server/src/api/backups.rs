//! `/v1/backups` and `/v1/chunks`: a state to be carried away, chunk by chunk.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chronon_kernel::Engine;
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::text;
use super::{Api, TIMEOUT_DEFAULT};
use crate::backup::chunk_of_name;
use crate::vault::BackupRefused;

/// When one of those that are being carried away may have ended.
const BUSY: Duration = Duration::from_secs(5);

/// The parameters of a backup.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    consistency: Option<String>,
    timeout: Option<String>,
}

/// `POST /v1/backups`: keeps the state as it is now, for a minute after the last of its chunks was asked for.
pub(super) async fn make(
    State(api): State<Arc<Api>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters?;
    let timeout = text::timeout(parameters.timeout.as_deref())?.unwrap_or(TIMEOUT_DEFAULT);
    let consistency = text::consistency(parameters.consistency.as_deref())?;
    let freeze = |engine: &dyn Engine| engine.freeze();
    let frozen = api.front.look(consistency, timeout, freeze).await.map_err(Problem::of_answer)?;
    match api.vault.back_up(api.cluster.value(), frozen).await {
        Ok(manifest) => Ok(text::json(&manifest)),
        Err(BackupRefused::TooMany) => {
            let why = "too many backups are being carried away; each has a minute since its last chunk";
            Err(Problem::new(503, "busy", why).retry_after(BUSY))
        }
        Err(BackupRefused::Disk) => {
            Err(Problem::new(503, "disk_full", "the disk refuses to keep the backup"))
        }
        Err(BackupRefused::TooLarge { why }) => Err(Problem::new(503, "too_large", why)),
        Err(BackupRefused::Stopped) => Err(Problem::new(503, "stopped", "the replica has stopped")),
    }
}

/// `DELETE /v1/backups/{root}`: it has been carried away, and need not be kept for the rest of its time.
pub(super) async fn end(State(api): State<Arc<Api>>, Path(root): Path<String>) -> Result<Response, Problem> {
    let none = || Problem::new(404, "no_such_backup", "that is no root of a backup");
    api.vault.end_backup(chunk_of_name(&root).ok_or_else(none)?);
    Ok(text::json(&json!({ "ended": root })))
}

/// `GET /v1/chunks/{id}`: the chunk's bytes.
pub(super) async fn chunk(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let gone = || Problem::new(404, "no_such_chunk", "this replica has no such chunk");
    let id = chunk_of_name(&name).ok_or_else(gone)?;
    let bytes = api.vault.chunk(id).await.ok_or_else(gone)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
