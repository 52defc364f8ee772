//! The HTTP API: JSON in, JSON out, errors as problem+json with a stable code. Any replica answers; what must be
//! ordered is brought to the primary.

mod backups;
mod cluster;
mod commands;
mod effects;
mod ops;
mod problem;
mod queries;
mod sinks;
mod text;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use chronon_kernel::{Answer, COMMAND_SIZE_MAX, Submission};
use chronon_vsr::{ClusterId, ReplicaId};
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::admission::Admission;
use crate::config::ServerConfig;
use crate::counters::Counters;
use crate::forward::Forwarder;
use crate::front::FrontHandle;
use crate::vault::VaultHandle;

use self::problem::Problem;

/// How long an answer is waited for unless the caller says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The largest body: JSON may be several times the size of the command that it describes.
const BODY_SIZE_MAX: usize = 4 * COMMAND_SIZE_MAX;

/// A connection that does not bring a whole request head in this time is closed.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

/// So large a body is still read to its end, and thrown away, before it is refused: a client that is in the middle of
/// writing would rather see a broken connection than the answer.
const BODY_DRAIN_MAX: usize = 4 * BODY_SIZE_MAX;

/// A request that does not bring its whole body in this time is answered with a time-out.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// After a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the handlers share.
pub(crate) struct Api {
    me: ReplicaId,
    cluster: ClusterId,
    front: FrontHandle,
    vault: VaultHandle,
    forwarder: Forwarder,
    admission: Admission,
    counters: Arc<Counters>,
    timeout_max: Duration,
    connections_max: usize,
}

impl Api {
    /// The API of a replica.
    pub(crate) fn new(
        (me, cluster): (ReplicaId, ClusterId),
        config: &ServerConfig,
        (front, vault): (FrontHandle, VaultHandle),
        admission: Admission,
        counters: Arc<Counters>,
    ) -> Arc<Api> {
        let addresses =
            config.replicas.iter().map(|(replica, addresses)| (*replica, addresses.client.clone()));
        let forwarder = Forwarder::new((me, cluster), front.clone(), admission.clone(), addresses);
        Arc::new(Api {
            me,
            cluster,
            front,
            vault,
            forwarder,
            admission,
            counters,
            timeout_max: config.limits.request_timeout_max,
            connections_max: config.limits.http_connections_max,
        })
    }

    /// What became of a submission.
    async fn submit(&self, submission: Submission, timeout: Option<Duration>) -> Answer {
        let timeout = timeout.unwrap_or(TIMEOUT_DEFAULT).min(self.timeout_max);
        self.forwarder.submit(submission, timeout).await
    }
}

/// Takes the body in, within its limit and in time. A length far beyond the limit is refused as it is declared.
async fn with_whole_body(request: Request, next: Next) -> Response {
    let (head, mut body) = request.into_parts();
    let too_large = || {
        let detail = format!("a body has at most {BODY_SIZE_MAX} bytes");
        Problem::new(413, "too_large", detail).into_response()
    };
    let declared = body.size_hint().lower();
    if (BODY_SIZE_MAX as u64) < declared {
        if declared <= BODY_DRAIN_MAX as u64 {
            // However it ends, the answer is the same.
            let _ = timeout(BODY_PATIENCE, async { while let Some(Ok(_)) = body.frame().await {} }).await;
        }
        return too_large();
    }
    match timeout(BODY_PATIENCE, to_bytes(body, BODY_SIZE_MAX)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(error)) if is_over_limit(&error) => too_large(),
        Ok(Err(error)) => {
            let detail = format!("the body ended early: {error}");
            Problem::new(400, "unreadable", detail).into_response()
        }
        Err(_) => {
            let detail = format!("the body did not come within {BODY_PATIENCE:?}");
            Problem::new(408, "too_slow", detail).into_response()
        }
    }
}

fn is_over_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// Serves for ever.
pub(crate) async fn serve(api: Arc<Api>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(api.connections_max));
    let router = Router::new()
        .route("/v1/commands", post(commands::submit))
        .route("/v1/commands/{key}", get(commands::look_up))
        .route("/v1/queries", post(queries::ask))
        .route("/v1/effects", get(effects::list))
        .route("/v1/effects/{id}", get(effects::show))
        .route("/v1/effects/{id}/resolve", post(effects::resolve))
        .route("/v1/effects/{id}/retry", post(effects::retry))
        .route("/v1/effects/{id}/cancel", post(effects::cancel))
        .route("/v1/sinks", get(sinks::list))
        .route("/v1/sinks/{name}", get(sinks::show).put(sinks::set).delete(sinks::remove))
        .route("/v1/sinks/{name}/freeze", post(sinks::freeze))
        .route("/v1/sinks/{name}/thaw", post(sinks::thaw))
        .route("/v1/ops/{op}/skip", post(ops::skip))
        .route("/v1/skips", get(ops::list))
        .route("/v1/backups", post(backups::make))
        .route("/v1/backups/{root}", delete(backups::end))
        .route("/v1/chunks/{id}", get(backups::chunk))
        .route("/v1/cluster", get(cluster::show))
        .route("/healthz", get(cluster::healthz))
        .route("/readyz", get(cluster::readyz))
        .route("/metrics", get(cluster::metrics))
        .fallback(|| async { Problem::new(404, "no_such_path", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(405, "method_not_allowed", "this path does not take that method")
        })
        // The whole body is here before a handler runs, and was measured then.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(with_whole_body))
        .with_state(api);
    loop {
        // At the bound the rest wait in the backlog.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "can't accept an http connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Without it answers are a little later, not wrong.
            let _ = stream.set_nodelay(true);
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                debug!(%error, "an http connection ended");
            }
        });
    }
}
