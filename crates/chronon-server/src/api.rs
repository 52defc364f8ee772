//! The HTTP API.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use chronon_vsr::{ClusterId, ReplicaId};
use tokio::net::TcpListener;
use tracing::error;

use crate::admission::Admission;
use crate::config::ServerConfig;
use crate::counters::Counters;
use crate::front::FrontHandle;

/// What the handlers share.
pub(crate) struct Api {
    me: ReplicaId,
    cluster: ClusterId,
    front: FrontHandle,
    admission: Admission,
    counters: Arc<Counters>,
}

impl Api {
    /// The API of a replica.
    pub(crate) fn new(
        (me, cluster): (ReplicaId, ClusterId),
        _config: &ServerConfig,
        front: FrontHandle,
        admission: Admission,
        counters: Arc<Counters>,
    ) -> Arc<Api> {
        Arc::new(Api { me, cluster, front, admission, counters })
    }
}

/// Serves for ever.
pub(crate) async fn serve(api: Arc<Api>, listener: TcpListener) {
    let router = Router::new().route("/healthz", get(|| async { "ok\n" })).with_state(api);
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "the http port is closed");
    }
}
