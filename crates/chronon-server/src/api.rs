//! The HTTP API: JSON in, JSON out, errors as problem+json with a stable code. Any replica answers; what must be
//! ordered is brought to the primary.

mod cluster;
mod commands;
mod effects;
mod problem;
mod queries;
mod sinks;
mod text;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::serve::Listener;
use chronon_kernel::{Answer, COMMAND_SIZE_MAX, Submission};
use chronon_vsr::{ClusterId, ReplicaId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tracing::{error, warn};

use crate::admission::Admission;
use crate::config::ServerConfig;
use crate::counters::Counters;
use crate::forward::Forwarder;
use crate::front::FrontHandle;

use self::problem::Problem;

/// How long an answer is waited for unless the caller says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The largest body: JSON may be several times the size of the command that it describes.
const BODY_SIZE_MAX: usize = 4 * COMMAND_SIZE_MAX;

/// What the handlers share.
pub(crate) struct Api {
    me: ReplicaId,
    cluster: ClusterId,
    front: FrontHandle,
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
        front: FrontHandle,
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
        .route("/v1/cluster", get(cluster::show))
        .route("/healthz", get(cluster::healthz))
        .route("/readyz", get(cluster::readyz))
        .route("/metrics", get(cluster::metrics))
        .fallback(|| async { Problem::new(404, "no_such_path", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(405, "method_not_allowed", "this path does not take that method")
        })
        .layer(DefaultBodyLimit::max(BODY_SIZE_MAX))
        .with_state(api);
    if let Err(error) = axum::serve(Bounded { listener, permits }, router).await {
        error!(%error, "the http port is closed");
    }
}

/// A listener that accepts only while fewer than so many connections are open; the rest wait in the backlog.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Permitted;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Permitted, Self::Addr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Without it answers are a little later, not wrong.
                    let _ = stream.set_nodelay(true);
                    return (Permitted { stream, _permit: permit }, address);
                }
                Err(error) => {
                    warn!(%error, "can't accept an http connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that counts until it closes.
struct Permitted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Permitted {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Permitted {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
