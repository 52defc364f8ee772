//! The http sink against a real small server that misbehaves in every way that matters.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[cfg(feature = "tls")]
#[path = "http/tls.rs"]
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use chronon_kernel::{
    Attempt, AttemptEnd, AttemptKind, AttemptNumber, Contract, EffectId, EffectKey, Ended, Lineage, SinkName,
    SinkSpec,
};
use chronon_sinks::{ConfigError, Executor, Executors, GateHandle, HttpSink, Secrets};
use chronon_vsr::{Epoch, Op, Stamp, Timestamp, View};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves every connection with `story`; counts the connections.
async fn server<F, S>(story: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> S + Send + Sync + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(story(stream));
        }
    });
    (address, count)
}

/// Reads one whole request: head and as many body bytes as it announces.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if length <= body.len() {
                return text;
            }
        }
        assert!(read != 0, "the request ended early: {text}");
    }
}

/// Answers every request with this, and keeps what came.
async fn answering(answer: impl Into<Vec<u8>>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let answer: Arc<Vec<u8>> = Arc::new(answer.into());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = requests.clone();
    let (address, _) = server(move |mut stream| {
        let (answer, kept) = (answer.clone(), kept.clone());
        async move {
            let request = read_request(&mut stream).await;
            kept.lock().unwrap().push(request);
            // The client may hang up in the middle of a long answer.
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    (address, requests)
}

fn stamp() -> Stamp {
    Stamp { epoch: Epoch::new(0), view: View::new(7) }
}

fn attempt(config: &str) -> Attempt {
    let effect = EffectId::new(Op::new(42), 0);
    let mut spec = SinkSpec::new("http", config, Contract::AtLeastOnce);
    spec.timeout = Duration::from_secs(20);
    Attempt {
        effect,
        key: EffectKey::draw(Lineage(1), effect),
        number: AttemptNumber(2),
        kind: AttemptKind::Call,
        stamp: stamp(),
        key_known_until: None,
        sink: SinkName::new("hook").unwrap(),
        spec: Arc::new(spec),
        lane: None,
        emitted: Timestamp::ZERO,
        payload: Arc::from([]),
    }
}

fn config(address: SocketAddr, more: &str) -> String {
    format!(r#"{{"url":"http://{address}/hook","allow_private":true{more}}}"#)
}

fn open() -> GateHandle {
    GateHandle::new(|| true)
}

fn sink() -> HttpSink {
    HttpSink::new(Secrets::from_fn(|name| (name == "psp").then(|| b"secret".to_vec())))
}

async fn call(attempt: Attempt) -> Ended {
    match sink().execute(attempt, r#"{"amount":7}"#.into(), open()).await {
        AttemptEnd::Ended(ended) => ended,
        AttemptEnd::Abandoned => panic!("abandoned though the gate was open"),
    }
}

async fn answered(answer: &str) -> Ended {
    let (address, _) = answering(answer).await;
    call(attempt(&config(address, ""))).await
}

fn evidence(ended: &Ended) -> &str {
    match ended {
        Ended::Delivered { evidence, .. }
        | Ended::Unreadable { evidence }
        | Ended::Definite { evidence, .. }
        | Ended::Ambiguous { evidence }
        | Ended::Permanent { evidence, .. }
        | Ended::InProgress { evidence }
        | Ended::NotFound { evidence }
        | Ended::NotFoundTooSoon { evidence, .. } => &evidence.0,
    }
}

#[tokio::test]
async fn a_delivered_effect_carries_its_key_fence_attempt_and_signature() {
    let (address, requests) = answering("HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\n{\"id\":12}").await;
    let ended = call(attempt(&config(address, r#","secret":"psp","headers":{"x-tenant":"a"}"#))).await;
    let Ended::Delivered { outcome, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(String::from_utf8(outcome).unwrap(), r#"{"body":{"id":12},"status":201}"#);

    let request = requests.lock().unwrap().pop().unwrap();
    let key = EffectKey::draw(Lineage(1), EffectId::new(Op::new(42), 0));
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    for line in [
        format!("host: {address}"),
        format!("idempotency-key: {}", key.as_str()),
        format!("webhook-id: {}", key.as_str()),
        "chronon-effect-id: 42-0".into(),
        "chronon-attempt: 2".into(),
        "chronon-fence: 00000000000000000000000000000007".into(),
        "content-type: application/json".into(),
        "x-tenant: a".into(),
    ] {
        assert!(request.contains(&format!("{line}\r\n")), "{line} is missing in\n{request}");
    }
    for start in ["webhook-timestamp: ", "webhook-signature: v1,", "traceparent: 00-"] {
        assert!(request.contains(start), "{start} is missing in\n{request}");
    }
    assert!(request.ends_with(r#"{"amount":7}"#), "{request}");
}

#[tokio::test]
async fn the_key_goes_where_the_configuration_says() {
    let (address, requests) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let more = r#","key_header":"X-Request-Id","key_body_field":"reference""#;
    let ended = call(attempt(&config(address, more))).await;
    assert!(matches!(ended, Ended::Delivered { .. }), "{ended:?}");
    let request = requests.lock().unwrap().pop().unwrap();
    assert!(request.contains("x-request-id: "), "{request}");
    assert!(!request.contains("idempotency-key"), "{request}");
    assert!(request.contains(r#""reference":"aaaaaaaaaaaaaaaaaaaaaaaaab-42-0""#), "{request}");
}

#[tokio::test]
async fn a_refused_connection_is_definite() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let ended = call(attempt(&config(address, ""))).await;
    assert!(matches!(ended, Ended::Definite { retry_after: None, .. }), "{ended:?}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_definite() {
    let ended = call(attempt(r#"{"url":"http://no-such-host.invalid/","allow_private":true}"#)).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
}

/// Scenario 60, first half.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_connection_reset_before_any_byte_left_is_definite() {
    let (reset, was_reset) = mpsc::channel();
    let (address, _) = server(move |stream| {
        let reset = reset.clone();
        async move {
            stream.set_zero_linger().unwrap();
            drop(stream);
            reset.send(()).unwrap();
        }
    })
    .await;
    // The gate is asked right before the first byte: by then the connection is reset.
    let was_reset = Mutex::new(was_reset);
    let gate = GateHandle::new(move || {
        was_reset.lock().unwrap().recv().unwrap();
        true
    });
    let end = sink().execute(attempt(&config(address, "")), "{}".into(), gate).await;
    assert!(matches!(end, AttemptEnd::Ended(Ended::Definite { .. })), "{end:?}");
}

/// Scenario 60, second half.
#[tokio::test]
async fn a_connection_reset_after_the_last_byte_is_ambiguous() {
    let (address, count) = server(|mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let ended = call(attempt(&config(address, ""))).await;
    assert!(matches!(ended, Ended::Ambiguous { .. }), "{ended:?}");
    assert_eq!(count.load(Ordering::SeqCst), 1, "a retry underneath us");
}

#[tokio::test]
async fn a_closed_gate_abandons_the_attempt_and_nothing_leaves() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let (closed, when_closed) = tokio::sync::oneshot::channel();
    let closed = Arc::new(Mutex::new(Some(closed)));
    let (address, _) = server(move |mut stream| {
        let (kept, closed) = (kept.clone(), closed.clone());
        async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            *kept.lock().unwrap() = bytes;
            closed.lock().unwrap().take().unwrap().send(()).unwrap();
        }
    })
    .await;
    let asked = Arc::new(AtomicUsize::new(0));
    let gate = GateHandle::new({
        let asked = asked.clone();
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            false
        }
    });
    let end = sink().execute(attempt(&config(address, "")), "{}".into(), gate).await;
    assert_eq!(end, AttemptEnd::Abandoned);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    when_closed.await.unwrap();
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_time_out_after_the_request_left_is_ambiguous() {
    let (address, _) = server(|mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let mut attempt = attempt(&config(address, ""));
    Arc::get_mut(&mut attempt.spec).unwrap().timeout = Duration::from_millis(50);
    let ended = call(attempt).await;
    assert!(matches!(ended, Ended::Ambiguous { .. }), "{ended:?}");
    assert!(evidence(&ended).contains("no end within 50ms"), "{ended:?}");
}

#[tokio::test]
async fn a_time_out_before_the_request_left_is_definite() {
    // A full backlog: the connection is never made. An address that drops packets would do as well, but is not ours.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    loop {
        let connect = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await;
        let Ok(stream) = connect else { break };
        fill.push(stream.unwrap());
    }
    let mut attempt = attempt(&config(address, ""));
    Arc::get_mut(&mut attempt.spec).unwrap().timeout = Duration::from_millis(50);
    let ended = call(attempt).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
}

#[tokio::test]
async fn statuses_mean_what_the_table_says() {
    let ended = answered("HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n").await;
    assert!(matches!(ended, Ended::InProgress { .. }), "{ended:?}");
    let ended =
        answered("HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n").await;
    let Ended::Definite { retry_after, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(retry_after, Some(Duration::from_secs(7)));
    let ended = answered("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await;
    assert!(matches!(ended, Ended::Permanent { freeze: true, .. }), "{ended:?}");
    let ended = answered("HTTP/1.1 422 Unprocessable\r\ncontent-length: 8\r\n\r\nno funds").await;
    assert!(matches!(ended, Ended::Permanent { freeze: false, .. }), "{ended:?}");
    assert!(evidence(&ended).contains("no funds"), "{ended:?}");
    for status in [408, 500, 503] {
        let ended = answered(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        assert!(matches!(ended, Ended::Ambiguous { .. }), "{status}: {ended:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, followed) = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let ended = answered(&format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\r\n"
    ))
    .await;
    assert!(matches!(ended, Ended::Permanent { freeze: false, .. }), "{ended:?}");
    assert!(followed.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_garbage_answer_is_ambiguous() {
    for garbage in ["\0\u{1}\u{2}garbage\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "", "HTTP/1.1 200"] {
        let ended = answered(garbage).await;
        assert!(matches!(ended, Ended::Ambiguous { .. }), "{garbage:?}: {ended:?}");
    }
    let endless_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    let ended = answered(&endless_head).await;
    assert!(matches!(ended, Ended::Ambiguous { .. }), "{ended:?}");
}

#[tokio::test]
async fn an_answer_cut_in_its_body_is_ambiguous() {
    let ended = answered("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":").await;
    assert!(matches!(ended, Ended::Ambiguous { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_unreadable_and_never_held_whole() {
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n{}", "x".repeat(4_000_000));
    let (address, _) = answering(long.clone()).await;
    let ended = call(attempt(&config(address, ""))).await;
    assert!(matches!(ended, Ended::Unreadable { .. }), "{ended:?}");
    assert!(evidence(&ended).len() <= 1024);

    let (address, _) = answering(long).await;
    let ended = call(attempt(&config(address, r#","response_body":"ignore""#))).await;
    let Ended::Delivered { outcome, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(outcome, br#"{"body":null,"status":200}"#);
}

#[tokio::test]
async fn a_private_address_is_refused_unless_the_sink_allows_it() {
    let (address, count) = server(|_| async {}).await;
    let ended = call(attempt(&format!(r#"{{"url":"http://{address}/"}}"#))).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
    assert!(evidence(&ended).contains("allow_private"), "{ended:?}");
    let by_name = format!(r#"{{"url":"http://localhost:{}/"}}"#, address.port());
    let ended = call(attempt(&by_name)).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_probe_asks_about_one_key_and_tells_yes_from_no() {
    let probe = |attempt: Attempt| Attempt { kind: AttemptKind::Probe, ..attempt };
    for (status, found) in [(200, true), (404, false)] {
        let (address, requests) =
            answering(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}")).await;
        let more = format!(r#","probe":{{"url":"http://{address}/sent/{{key}}"}}"#);
        let ended = call(probe(attempt(&config(address, &more)))).await;
        match found {
            true => assert!(matches!(ended, Ended::Delivered { .. }), "{ended:?}"),
            false => assert!(matches!(ended, Ended::NotFound { .. }), "{ended:?}"),
        }
        let request = requests.lock().unwrap().pop().unwrap();
        assert!(request.starts_with("GET /sent/aaaaaaaaaaaaaaaaaaaaaaaaab-42-0 HTTP/1.1\r\n"), "{request}");
    }
}

#[tokio::test]
async fn a_probe_that_could_not_ask_says_nothing_about_the_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let more = format!(r#","probe":{{"url":"http://{address}/sent/{{key}}"}}"#);
    let probe = Attempt { kind: AttemptKind::Probe, ..attempt(&config(address, &more)) };
    let ended = call(probe).await;
    assert!(matches!(ended, Ended::Ambiguous { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_node_without_the_secret_says_so_before_and_sends_nothing_without_it() {
    let executors = Executors::built_in(Secrets::from_fn(|_| None));
    let config = r#"{"url":"http://127.0.0.1:1/","secret":"psp-key"}"#;
    let http = executors.of_kind("http").unwrap();
    assert_eq!(http.check_config(config), Ok(()));
    let error = http.check_node(config).unwrap_err();
    assert_eq!(
        error,
        ConfigError::SecretMissing { name: "psp-key".into(), variable: "CHRONON_SECRET_PSP_KEY".into() }
    );
    let ended = call(attempt(config)).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
    let error = executors.of_kind("pigeon").err().unwrap().to_string();
    assert!(error.contains("http"), "{error}");
}
