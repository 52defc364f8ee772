//! The http sink: one request an attempt, and a strict eye on whether any of it left.
//!
//! It drives hyper's client over a stream that asks the gate before the first byte and remembers whether one left
//! ([`passage`]). One connection an attempt: on a reused one, a close by the sink that crosses our request would turn
//! an end that was definite into one in doubt. TLS lies below that stream: a failed handshake is definite. No redirects, no retry underneath us.

mod address;
mod config;
mod passage;
mod signature;
#[cfg(feature = "tls")]
mod tls;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chronon_kernel::{Attempt, AttemptEnd, AttemptKind, Ended, Evidence};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::{ConfigError, ExecuteFuture, Executor, GateHandle, Secrets};
pub use address::PublicOnly;
use config::{HttpConfig, Scheme, Target, Verdict};
use passage::{Guarded, Left, Passage};
use signature::Signer;

/// Bytes of an answer's head that are read at most.
const RESPONSE_HEAD_MAX: usize = 32 * 1024;
/// Bytes of evidence that are kept.
const EVIDENCE_MAX: usize = 1024;

/// Calls webhooks and HTTP APIs.
#[derive(Clone, Debug)]
pub struct HttpSink {
    secrets: Secrets,
    /// For sinks that name no authority of their own: made once, so that its sessions can be resumed.
    #[cfg(feature = "tls")]
    trust: std::sync::Arc<std::sync::OnceLock<tls::Trust>>,
}

impl HttpSink {
    /// A sink that finds the secrets of its configurations there.
    pub fn new(secrets: Secrets) -> HttpSink {
        HttpSink {
            secrets,
            #[cfg(feature = "tls")]
            trust: std::sync::Arc::default(),
        }
    }

    fn signer(&self, config: &HttpConfig) -> Result<Option<Signer>, ConfigError> {
        let Some(name) = &config.secret else { return Ok(None) };
        let missing = || ConfigError::SecretMissing { name: name.clone(), variable: Secrets::variable(name) };
        let secret = self.secrets.find(name).ok_or_else(missing)?;
        let wrong = |why| ConfigError::Field { field: "secret", why: format!("{name:?}: {why}") };
        Signer::parse(secret).map(Some).map_err(wrong)
    }
}

impl Executor for HttpSink {
    fn check_config(&self, config: &str) -> Result<(), ConfigError> {
        HttpConfig::parse(config).map(|_| ())
    }

    fn check_node(&self, config: &str) -> Result<(), ConfigError> {
        self.signer(&HttpConfig::parse(config)?).map(|_| ())
    }

    fn execute(&self, attempt: Attempt, payload_json: String, gate: GateHandle) -> ExecuteFuture {
        let sink = self.clone();
        Box::pin(async move { sink.attempt(&attempt, payload_json, gate).await })
    }
}

impl HttpSink {
    async fn attempt(&self, attempt: &Attempt, payload: String, gate: GateHandle) -> AttemptEnd {
        let prepared = HttpConfig::parse(&attempt.spec.config)
            .and_then(|config| Ok((self.signer(&config)?, config)))
            .and_then(|(signer, config)| Ok((prepare(attempt, payload, &config, signer.as_ref())?, config)));
        let (prepared, config) = match prepared {
            Ok(prepared) => prepared,
            Err(why) => return unsent(attempt.kind, why.to_string()),
        };
        let passage = Passage::new(gate);
        let exchange = self.exchange(prepared, &config, &passage);
        let exchanged = match tokio::time::timeout(attempt.timeout(), exchange).await {
            Ok(exchanged) => exchanged,
            Err(_) => Err(format!("no end within {:?}", attempt.timeout())),
        };
        match exchanged {
            Ok(answer) => AttemptEnd::Ended(judge(attempt.kind, &config, answer)),
            Err(why) => match passage.shut() {
                Left::GateClosed => AttemptEnd::Abandoned,
                Left::Nothing => unsent(attempt.kind, why),
                Left::Something => AttemptEnd::Ended(Ended::Ambiguous { evidence: evidence(why) }),
            },
        }
    }
}

/// The end of an attempt of which nothing left. For a call that is definite. A probe that could not ask has learned
/// nothing about the call it asks about, and must not be taken for a "no".
fn unsent(kind: AttemptKind, why: String) -> AttemptEnd {
    let evidence = evidence(why);
    AttemptEnd::Ended(match kind {
        AttemptKind::Call => Ended::Definite { retry_after: None, evidence },
        AttemptKind::Probe => Ended::Ambiguous { evidence },
    })
}

struct Prepared {
    target: Target,
    request: Request<Full<Bytes>>,
}

fn prepare(
    attempt: &Attempt,
    payload: String,
    config: &HttpConfig,
    signer: Option<&Signer>,
) -> Result<Prepared, ConfigError> {
    let (target, method, body) = match attempt.kind {
        AttemptKind::Call => (config.target.clone(), config.method.clone(), body(attempt, payload, config)?),
        AttemptKind::Probe => {
            let probe = config.probe.as_ref().ok_or(ConfigError::Field {
                field: "probe",
                why: "the contract asks, and the sink names no address to ask at".into(),
            })?;
            (probe.target(&attempt.key, attempt.effect)?, Method::GET, String::new())
        }
    };
    let mut request = Request::new(Full::new(Bytes::from(body.clone())));
    *request.method_mut() = method;
    *request.uri_mut() = target
        .path
        .parse()
        .map_err(|_| ConfigError::Field { field: "url", why: format!("{:?} is no path", target.path) })?;
    let headers = request.headers_mut();
    for (name, value) in &config.headers {
        headers.insert(name.clone(), value.clone());
    }
    set(headers, header::HOST, &target.authority);
    set(headers, header::CONNECTION, "close");
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("chronon"));
    if attempt.kind == AttemptKind::Call {
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        if let Some(signer) = signer {
            let signature = signer.sign(attempt.key.as_str(), &sent, body.as_bytes());
            set(headers, HeaderName::from_static("webhook-signature"), &signature);
        }
        set(headers, HeaderName::from_static("webhook-id"), attempt.key.as_str());
        set(headers, HeaderName::from_static("webhook-timestamp"), &sent);
    }
    set(headers, config.key_header.clone(), attempt.key.as_str());
    set(headers, HeaderName::from_static("chronon-effect-id"), &attempt.effect.to_string());
    set(headers, HeaderName::from_static("chronon-attempt"), &attempt.number.0.to_string());
    set(headers, HeaderName::from_static("chronon-fence"), &attempt.fence().to_string());
    set(headers, HeaderName::from_static("traceparent"), &traceparent(attempt));
    Ok(Prepared { target, request })
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("keys, numbers and parsed authorities are visible ASCII");
    headers.insert(name, value);
}

fn body(attempt: &Attempt, payload: String, config: &HttpConfig) -> Result<String, ConfigError> {
    let Some(field) = &config.key_body_field else { return Ok(payload) };
    let wrong = |why: String| ConfigError::Field { field: "key_body_field", why };
    let mut payload: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&payload)
        .map_err(|_| wrong("the effect is no JSON object, so the key can't be put into it".into()))?;
    payload.insert(field.clone(), attempt.key.as_str().into());
    Ok(serde_json::Value::Object(payload).to_string())
}

/// All attempts of an effect are one trace, each a span of its own.
fn traceparent(attempt: &Attempt) -> String {
    let trace = blake3::hash(attempt.key.as_str().as_bytes()).to_hex();
    let span = format!("{}#{}", attempt.key.as_str(), attempt.number.0);
    let span = blake3::hash(span.as_bytes()).to_hex();
    format!("00-{}-{}-01", &trace[..32], &span[..16])
}

/// What the sink answered.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    body: BodyRead,
}

enum BodyRead {
    Whole(Vec<u8>),
    /// More than the limit: its first bytes.
    TooLong(Vec<u8>),
    /// The connection failed first.
    Cut(Vec<u8>, String),
    /// The configuration does not want it.
    Ignored,
}

impl HttpSink {
    async fn exchange(
        &self,
        prepared: Prepared,
        config: &HttpConfig,
        passage: &Passage,
    ) -> Result<Answer, String> {
        let Prepared { target, request } = prepared;
        let stream = connect(&target, config.allow_private).await?;
        match target.scheme {
            Scheme::Http => {
                let stream = Guarded::new(stream, passage.clone());
                converse(stream, request, config.response_body_max).await
            }
            #[cfg(feature = "tls")]
            Scheme::Https => {
                let trust = match &config.trust {
                    Some(trust) => trust.clone(),
                    None => match self.trust.get() {
                        Some(trust) => trust.clone(),
                        None => {
                            let trust = tls::Trust::parse(None).map_err(|e| e.to_string())?;
                            self.trust.get_or_init(|| trust).clone()
                        }
                    },
                };
                let stream = trust.connect(&target.host, stream).await?;
                let stream = Guarded::above_a_buffer(stream, passage.clone());
                converse(stream, request, config.response_body_max).await
            }
            #[cfg(not(feature = "tls"))]
            Scheme::Https => Err("this build has no TLS".into()),
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: Guarded<S>,
    request: Request<Full<Bytes>>,
    response_body_max: Option<usize>,
) -> Result<Answer, String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(RESPONSE_HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| chain(&e))?;
    let connection = EndedWithUs(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
    let answer = read(response, response_body_max).await;
    drop(connection);
    Ok(answer)
}

/// The task that moves bytes lives no longer than the attempt.
struct EndedWithUs(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for EndedWithUs {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(target: &Target, allow_private: bool) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(|e| format!("{} can't be resolved: {e}", target.host))?;
    // The very addresses that were looked at are connected to: a second look-up could answer differently.
    let (allowed, private): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.partition(|address| allow_private || PublicOnly.allows(address.ip()));
    let mut why = match private.first() {
        Some(address) => {
            format!("{} is the private address {address}: allow_private is not set", target.host)
        }
        None => format!("{} has no address", target.host),
    };
    for address in allowed {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|e| format!("{address}: {e}"))?;
                return Ok(stream);
            }
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(why)
}

async fn read(response: Response<Incoming>, response_body_max: Option<usize>) -> Answer {
    let status = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(retry_after);
    // An answer that says no decides by its status; some of its body is good evidence, all of it is not needed.
    let max = if status.is_success() { response_body_max } else { Some(EVIDENCE_MAX) };
    let body = match max {
        None => BodyRead::Ignored,
        Some(max) => read_body(response.into_body(), max).await,
    };
    Answer { status: status.as_u16(), retry_after, body }
}

async fn read_body(mut body: Incoming, max: usize) -> BodyRead {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Err(error) => return BodyRead::Cut(bytes, chain(&error)),
            Ok(frame) => {
                let Ok(data) = frame.into_data() else { continue };
                let room = max - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
                if room < data.len() {
                    return BodyRead::TooLong(bytes);
                }
            }
        }
    }
    BodyRead::Whole(bytes)
}

fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

fn judge(kind: AttemptKind, config: &HttpConfig, answer: Answer) -> Ended {
    let Answer { status, retry_after, body } = answer;
    let verdict = match (kind, &config.probe) {
        (AttemptKind::Call, _) => config.status.call(status),
        (AttemptKind::Probe, Some(probe)) => probe.status.probe(status),
        (AttemptKind::Probe, None) => Verdict::Ambiguous,
    };
    let said = match &body {
        BodyRead::Whole(bytes) | BodyRead::TooLong(bytes) => String::from_utf8_lossy(bytes),
        BodyRead::Cut(bytes, why) => format!("{} [cut: {why}]", String::from_utf8_lossy(bytes)).into(),
        BodyRead::Ignored => "".into(),
    };
    let evidence = evidence(format!("status {status}: {said}"));
    match verdict {
        Verdict::Delivered => match body {
            BodyRead::Whole(bytes) => Ended::Delivered { outcome: outcome(status, &bytes), evidence },
            BodyRead::Ignored => Ended::Delivered { outcome: outcome(status, b""), evidence },
            // The sink did it; asking again would bring the same too long answer.
            BodyRead::TooLong(_) => Ended::Unreadable { evidence },
            // The sink did it, and its answer is part of the outcome. Where the contract allows it a repeat brings
            // the whole answer; where it does not, a person reads the evidence.
            BodyRead::Cut(..) => Ended::Ambiguous { evidence },
        },
        Verdict::InProgress => Ended::InProgress { evidence },
        Verdict::Definite => Ended::Definite { retry_after, evidence },
        Verdict::Permanent => Ended::Permanent { freeze: false, evidence },
        Verdict::Freeze => Ended::Permanent { freeze: true, evidence },
        Verdict::Ambiguous => Ended::Ambiguous { evidence },
        Verdict::NotFound => match kind {
            AttemptKind::Probe => Ended::NotFound { evidence },
            // Only a probe can find nothing; as the verdict on a call it means "not done".
            AttemptKind::Call => Ended::Definite { retry_after, evidence },
        },
    }
}

/// `{"status":200,"body":<JSON or string>}`; no body is null.
fn outcome(status: u16, body: &[u8]) -> Vec<u8> {
    let body = if body.is_empty() {
        serde_json::Value::Null
    } else {
        serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
    };
    serde_json::json!({ "status": status, "body": body }).to_string().into_bytes()
}

fn evidence(mut text: String) -> Evidence {
    let mut end = text.len().min(EVIDENCE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    Evidence(text)
}

/// An error and what caused it: hyper's own words hide the operating system's.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        assert_eq!(retry_after(&HeaderValue::from_static("120")), Some(Duration::from_secs(120)));
        let past = HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(retry_after(&past), Some(Duration::ZERO));
        assert_eq!(retry_after(&HeaderValue::from_static("soon")), None);
    }

    #[test]
    fn evidence_is_bounded_and_cut_between_characters() {
        let Evidence(text) = evidence("ü".repeat(EVIDENCE_MAX));
        assert_eq!(text.len(), EVIDENCE_MAX);
        let Evidence(text) = evidence(format!("x{}", "ü".repeat(EVIDENCE_MAX)));
        assert_eq!(text.len(), EVIDENCE_MAX - 1);
    }
}
