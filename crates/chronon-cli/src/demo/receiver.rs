//! The outside world of the demo: a webhook receiver that remembers everything it was asked to do.
//!
//! It appends (transfer, key, body hash) to a file and flushes it *before* it answers. To be a realistic nuisance it cuts
//! some connections after it acted and before it answered; a repeat under the same key it answers as done.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use anyhow::Context as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

/// The largest body that is taken.
const BODY_MAX: usize = 64 * 1024;
/// Records that wait for the flush under way.
const RECORDS_MAX: usize = 1_024;

/// What is remembered of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The transfer that the body names.
    pub(crate) transfer: u64,
    /// The key that it came under.
    pub(crate) key: String,
    /// A hash of the whole body.
    pub(crate) body: String,
}

/// How the receiver misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nuisance {
    /// One key in so many has the connection of its first request cut after the record was flushed. 0: none.
    pub(crate) cut_one_in: u64,
    /// Which ones.
    pub(crate) seed: u64,
}

/// Reads what a receiver remembered. A last line without an end was never flushed, and never answered.
pub(crate) fn read_ledger(path: &Path) -> anyhow::Result<Vec<Record>> {
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.and_then(|mut file| file.read_to_string(&mut text)),
    }
    .with_context(|| format!("can't read the receiver's ledger {}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| serde_json::from_str(line).with_context(|| format!("{}: {line:?}", path.display()));
    whole.lines().filter(|line| !line.is_empty()).map(parse).collect()
}

/// Runs the receiver until the process is killed.
pub(crate) fn run(listen: SocketAddr, ledger: PathBuf, nuisance: Nuisance) -> anyhow::Result<()> {
    let seen = read_ledger(&ledger)?.into_iter().map(|record| record.key).collect();
    let (records, to_write) = mpsc::sync_channel(RECORDS_MAX);
    let mut file = OpenOptions::new().create(true).append(true).open(&ledger)?;
    // A line that a kill cut in two must not swallow the next one.
    file.write_all(b"\n")?;
    std::thread::Builder::new().name("ledger".into()).spawn(move || write_ledger(file, &to_write))?;
    let receiver = Arc::new(Receiver {
        records,
        seen: Mutex::new(seen),
        nuisance,
        holding: AtomicBool::new(false),
        held: AtomicUsize::new(0),
        held_changed: Notify::new(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("can't listen on {listen}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            let receiver = receiver.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| receiver.clone().serve(request));
                // A connection that ends badly is the sender's affair.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

struct ToWrite {
    line: String,
    written: oneshot::Sender<()>,
}

/// One flush for all records that gathered during the one before.
fn write_ledger(mut file: File, records: &mpsc::Receiver<ToWrite>) {
    while let Ok(first) = records.recv() {
        let mut group = vec![first];
        group.extend(records.try_iter());
        let lines: String = group.iter().map(|record| record.line.as_str()).collect();
        if let Err(error) = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()) {
            // What may not be durable is not answered: the senders see their connections end.
            eprintln!("the ledger can't be written: {error}");
            return;
        }
        for record in group {
            // Its connection may have gone.
            let _ = record.written.send(());
        }
    }
}

struct Receiver {
    records: mpsc::SyncSender<ToWrite>,
    seen: Mutex<BTreeSet<String>>,
    nuisance: Nuisance,
    /// Requests are recorded and not answered any more.
    holding: AtomicBool,
    held: AtomicUsize,
    held_changed: Notify,
}

/// The connection is cut instead of an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Cut {
        match never {}
    }
}

type Answer = Response<Full<Bytes>>;

impl Receiver {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Cut> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/webhook") => self.webhook(request).await,
            (&Method::POST, "/hold") => {
                self.hold().await;
                Ok(answer(StatusCode::OK, "held"))
            }
            (&Method::GET, "/healthz") => Ok(answer(StatusCode::OK, "ok")),
            _ => Ok(answer(StatusCode::NOT_FOUND, "not here")),
        }
    }

    async fn webhook(&self, request: Request<Incoming>) -> Result<Answer, Cut> {
        let key =
            request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
        let Some(key) = key else { return Ok(answer(StatusCode::BAD_REQUEST, "no idempotency-key")) };
        let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else { return Err(Cut) };
        let body = body.to_bytes();
        let Some(transfer) = super::workload::transfer_of_effect(&body) else {
            return Ok(answer(StatusCode::BAD_REQUEST, "the body names no transfer"));
        };
        let first = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        let cut = first && self.cuts(&key);
        let hash = blake3::hash(&body).to_hex().to_string();
        let mut line = serde_json::to_string(&Record { transfer, key, body: hash }).map_err(|_| Cut)?;
        line.push('\n');
        let (written, when_written) = oneshot::channel();
        // try_send, because a full queue would block the one thread: the sender comes again.
        self.records.try_send(ToWrite { line, written }).map_err(|_| Cut)?;
        when_written.await.map_err(|_| Cut)?;
        if self.holding.load(Ordering::SeqCst) {
            self.held.fetch_add(1, Ordering::SeqCst);
            self.held_changed.notify_waiters();
            std::future::pending::<()>().await;
        }
        if cut { Err(Cut) } else { Ok(answer(StatusCode::OK, r#"{"received":true}"#)) }
    }

    /// From now on requests are acted on and not answered. Returns when at least one is in that state: the moment to
    /// be killed in the middle of a request.
    async fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
        loop {
            let changed = self.held_changed.notified();
            if 0 < self.held.load(Ordering::SeqCst) {
                return;
            }
            changed.await;
        }
    }

    fn cuts(&self, key: &str) -> bool {
        let Nuisance { cut_one_in, seed } = self.nuisance;
        let hash = blake3::hash(format!("{seed}/{key}").as_bytes());
        let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
        cut_one_in != 0 && u64::from_le_bytes(*first).is_multiple_of(cut_one_in)
    }
}

fn answer(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = status;
    answer
}
