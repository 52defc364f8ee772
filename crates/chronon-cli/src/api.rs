//! The HTTP API as its caller sees it: one request a connection, over hyper.

use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The variable that says where the API is.
pub(crate) const ADDRESS_VARIABLE: &str = "CHRONON_API";
/// Where `chronon init` lets the first replica listen.
pub(crate) const ADDRESS_DEFAULT: &str = "http://127.0.0.1:7102";

/// The header that makes a repeat the same command.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The HTTP API of a cluster: several replicas, any of which answers.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    bases: Vec<String>,
    timeout: Duration,
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Option<String>,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Call {
        Call { method: Method::GET, path: path.into(), headers: Vec::new(), body: None }
    }
}

impl Api {
    /// The API behind these addresses (`http://host:port`, separated by commas).
    pub(crate) fn new(addresses: &str, timeout: Duration) -> Api {
        let bases = addresses.split(',').map(|base| base.trim().trim_end_matches('/').to_owned()).collect();
        Api { bases, timeout }
    }

    /// Asks the first replica that can be reached.
    pub(crate) async fn call(&self, call: Call) -> anyhow::Result<Value> {
        let mut unreached = Vec::new();
        for base in &self.bases {
            match connect(base).await {
                Ok(connected) => return self.ask(connected, base, call).await,
                Err(error) => unreached.push(format!("{base}: {error:#}")),
            }
        }
        Err(nobody(&unreached))
    }

    /// The same with only the first replica that can be reached.
    pub(crate) async fn reached(&self) -> anyhow::Result<Api> {
        let mut unreached = Vec::new();
        for base in &self.bases {
            match connect(base).await {
                Ok(_) => return Ok(Api { bases: vec![base.clone()], timeout: self.timeout }),
                Err(error) => unreached.push(format!("{base}: {error:#}")),
            }
        }
        Err(nobody(&unreached))
    }

    /// The bytes that the first replica that can be reached has at this path.
    pub(crate) async fn bytes(&self, path: &str) -> anyhow::Result<Bytes> {
        let base = self.bases.first().context("there is no address")?;
        let answered =
            tokio::time::timeout(self.timeout, exchange(connect(base).await?, base, Call::get(path)));
        let (status, body) =
            answered.await.with_context(|| format!("{base} did not answer within {:?}", self.timeout))??;
        anyhow::ensure!(status.is_success(), "{base}{path}: status {status}: {}", shown(&body));
        Ok(body)
    }

    async fn ask(&self, stream: TcpStream, base: &str, call: Call) -> anyhow::Result<Value> {
        // Whoever hears nothing has this key and nothing else to find out what became of it.
        let key = call.headers.iter().find(|(name, _)| *name == IDEMPOTENCY_KEY);
        let again = key.map(|(_, key)| format!("; it may have been executed: repeat it with --key {key}"));
        let again = again.unwrap_or_default();
        let answered = tokio::time::timeout(self.timeout, exchange(stream, base, call)).await;
        let answered = answered
            .map_err(|_| anyhow::anyhow!("{base} did not answer within {:?}{again}", self.timeout))?;
        let (status, body) =
            answered.map_err(|error| anyhow::anyhow!("{base} gave no answer: {error:#}{again}"))?;
        let parsed: Option<Value> = serde_json::from_slice(&body).ok();
        if status.is_success() {
            return parsed.with_context(|| format!("{base} answered what is no JSON: {}", shown(&body)));
        }
        let Some(problem) = parsed else { anyhow::bail!("{base}: status {status}: {}", shown(&body)) };
        let part = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
        let (title, detail, code) = (part("title"), part("detail"), part("code"));
        let words = match (title, detail) {
            ("", detail) => detail.to_owned(),
            (title, "") => title.to_owned(),
            (title, detail) => format!("{title}: {detail}"),
        };
        let again = match (code, part("key")) {
            ("indeterminate", key) if !key.is_empty() => format!("; repeat it with --key {key}"),
            (_, _) => String::new(),
        };
        anyhow::bail!("{words} [{code}, status {}]{again}", status.as_u16())
    }
}

fn nobody(unreached: &[String]) -> anyhow::Error {
    let unreached = unreached.join("; ");
    anyhow::anyhow!("no replica is reached. {unreached}. Say where one is with --api or {ADDRESS_VARIABLE}")
}

fn shown(body: &Bytes) -> String {
    String::from_utf8_lossy(body).chars().take(200).collect()
}

async fn connect(base: &str) -> anyhow::Result<TcpStream> {
    let uri: Uri = base.parse().context("is no URL")?;
    anyhow::ensure!(uri.scheme_str() == Some("http"), "must begin with http://");
    let authority = uri.authority().context("names no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = match authority.port_u16() {
        Some(port) => port,
        None if authority.as_str() == authority.host() => 80,
        None => anyhow::bail!("has no port from 0 to 65535 behind its host"),
    };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await;
    Ok(connected.context("did not answer")??)
}

async fn exchange(stream: TcpStream, base: &str, call: Call) -> anyhow::Result<(StatusCode, Bytes)> {
    let host = base.trim_start_matches("http://").to_owned();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("the connection failed")?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json");
    if call.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in call.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(call.body.unwrap_or_default())))?;
    let response = sender.send_request(request).await.context("the connection was lost before an answer")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("the answer was cut short")?.to_bytes();
    Ok((status, body))
}

/// POSTs nothing to a URL of our own.
pub(crate) async fn post_empty(url: &str) -> anyhow::Result<()> {
    let path_at =
        url.find("://").and_then(|at| Some(at + 3 + url[at + 3..].find('/')?)).context("no path")?;
    let (base, path) = url.split_at(path_at);
    let call = Call { method: Method::POST, ..Call::get(path) };
    let (status, _) = exchange(connect(base).await?, base, call).await?;
    anyhow::ensure!(status.is_success(), "{url} answered {status}");
    Ok(())
}
