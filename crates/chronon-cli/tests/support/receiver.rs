//! A webhook receiver inside the test: it writes down what comes, and answers when the test says so.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) transfer: u64,
    pub(crate) key: String,
    pub(crate) fence: String,
    /// It came after [`Receiver::mark`].
    pub(crate) after_mark: bool,
}

/// Which requests wait for their answer: those of these transfers that come under the first fence ever seen.
#[derive(Debug, Default)]
struct Holding {
    transfers: BTreeSet<u64>,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    seen: Mutex<Vec<Seen>>,
    marked: watch::Sender<bool>,
    holding: watch::Sender<Holding>,
}

impl Receiver {
    /// Listens on a free port of loopback, and holds the answers of `held` back from the first primary that asks.
    pub(crate) async fn start(held: impl IntoIterator<Item = u64>) -> Arc<Receiver> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let receiver = Arc::new(Receiver {
            address: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            marked: watch::Sender::new(false),
            holding: watch::Sender::new(Holding { transfers: held.into_iter().collect() }),
        });
        let serving = Arc::clone(&receiver);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(|request| receiver.answer(request));
                    // A connection that ends badly is the sender's affair.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        receiver
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let (key, fence) = (header("idempotency-key"), header("chronon-fence"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let transfer = body["transfer"].as_u64().unwrap();
        let first = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(Seen { transfer, key, fence: fence.clone(), after_mark: *self.marked.borrow() });
            seen[0].fence.clone()
        };
        if fence == first {
            let mut holding = self.holding.subscribe();
            holding.wait_for(|holding| !holding.transfers.contains(&transfer)).await.unwrap();
        }
        Ok(Response::new(Full::new(Bytes::from_static(b"\"done\""))))
    }

    /// From now on what comes is told apart from what came before.
    pub(crate) fn mark(&self) {
        self.marked.send_replace(true);
    }

    /// Answers what was held back.
    pub(crate) fn release(&self) {
        self.holding.send_modify(|holding| holding.transfers.clear());
    }

    /// Everything so far, in the order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}
