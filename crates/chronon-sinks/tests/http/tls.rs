//! The same sink over TLS, against a real small server with a certificate of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use chronon_kernel::{AttemptEnd, Ended};
use chronon_sinks::{Executor, GateHandle};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::{attempt, call, evidence, open, sink};

/// A server with a key and certificate of its own: where it is, its certificate as PEM in JSON, and what it was asked.
struct TlsServer {
    address: SocketAddr,
    ca: String,
    requests: Arc<Mutex<Vec<String>>>,
    heard: Arc<Notify>,
}

/// A key and a certificate for `localhost` that vouches for itself, good until 2999. For nothing but these tests.
const LOCALHOST: &str = include_str!("localhost.pem");
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
/// The same for `elsewhere.example`.
const ELSEWHERE: &str = include_str!("elsewhere.pem");

async fn tls_server(identity: &str) -> TlsServer {
    let key = PrivateKeyDer::from_pem_slice(identity.as_bytes()).unwrap();
    let certificate = CertificateDer::from_pem_slice(identity.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, heard) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let (kept, told) = (requests.clone(), heard.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut bytes = Vec::new();
            let mut chunk = [0; 4096];
            while !bytes.ends_with(br#"{"amount":7}"#) {
                match stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => bytes.extend_from_slice(&chunk[..read]),
                }
            }
            kept.lock().unwrap().push(String::from_utf8(bytes).unwrap());
            told.notify_one();
            // The client may have gone.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            let _ = stream.shutdown().await;
        }
    });
    TlsServer {
        address,
        ca: serde_json::to_string(&identity[identity.find(BEGIN).unwrap()..]).unwrap(),
        requests,
        heard,
    }
}

fn config(server: &TlsServer, ca: &str) -> String {
    let port = server.address.port();
    format!(r#"{{"url":"https://localhost:{port}/hook","allow_private":true,"secret":"psp"{ca}}}"#)
}

#[tokio::test]
async fn a_call_over_tls_is_delivered_with_the_same_headers() {
    let server = tls_server(LOCALHOST).await;
    let ended = call(attempt(&config(&server, &format!(r#","ca":{}"#, server.ca)))).await;
    assert!(matches!(ended, Ended::Delivered { .. }), "{ended:?}");
    let request = server.requests.lock().unwrap().pop().unwrap();
    let host = format!("host: localhost:{}\r\n", server.address.port());
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    for part in [&host, "idempotency-key: ", "webhook-signature: v1,", "chronon-fence: ", "traceparent: 00-"]
    {
        assert!(request.contains(part), "{part} is missing in\n{request}");
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_definite_and_no_request_leaves() {
    let server = tls_server(LOCALHOST).await;
    let ended = call(attempt(&config(&server, ""))).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
    assert!(evidence(&ended).contains("no TLS with localhost"), "{ended:?}");
    assert_eq!(*server.requests.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_certificate_of_another_name_is_definite_and_no_request_leaves() {
    let server = tls_server(ELSEWHERE).await;
    let ended = call(attempt(&config(&server, &format!(r#","ca":{}"#, server.ca)))).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
    assert_eq!(*server.requests.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_definite() {
    let (address, _) = super::answering("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let port = address.port();
    let text = format!(r#"{{"url":"https://localhost:{port}/","allow_private":true}}"#);
    let mut attempt = attempt(&text);
    // It waits for a head that never ends.
    Arc::make_mut(&mut attempt.spec).timeout = std::time::Duration::from_millis(300);
    let ended = call(attempt).await;
    assert!(matches!(ended, Ended::Definite { .. }), "{ended:?}");
}

#[tokio::test]
async fn the_gate_is_asked_behind_the_handshake_and_stops_the_request() {
    let server = tls_server(LOCALHOST).await;
    let ca = format!(r#","ca":{}"#, server.ca);
    let gate = GateHandle::new(|| false);
    let end = sink().execute(attempt(&config(&server, &ca)), r#"{"amount":7}"#.into(), gate).await;
    assert_eq!(end, AttemptEnd::Abandoned);
    server.heard.notified().await;
    assert_eq!(*server.requests.lock().unwrap(), [""], "hands were shaken, and nothing was asked");
    let end = sink().execute(attempt(&config(&server, &ca)), r#"{"amount":7}"#.into(), open()).await;
    assert!(matches!(end, AttemptEnd::Ended(Ended::Delivered { .. })), "{end:?}");
}
