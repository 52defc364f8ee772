//! Bytes that are none of ours, on every port of real replicas; commands that are too large or no commands;
//! configurations that make no sense. Each ends in a clear error, costs nothing, and crashes nobody.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use chronon_client::{Client, ClientOptions, ConnectError, Connection, ConnectionLimits};
use chronon_kernel::{Answer, COMMAND_SIZE_MAX, ClientFrame, NotExecuted, Origin, ServerFrame, Submission};
use chronon_vsr::{Checksum, ClusterId, Incarnation, MESSAGE_SIZE_MAX, Message, Payload, ReplicaId, Stamp};
use support::accounts::Accounts;
use support::{Cluster, PATIENCE, chronon, stderr, stdout};

/// A message between replicas, as replica 1 would send it.
fn message(cluster: ClusterId) -> Vec<u8> {
    let payload = Payload::GetView { nonce: 1 };
    let stamp = Stamp::first(chronon_vsr::Epoch::new(0));
    Message { from: ReplicaId::new(1), incarnation: Incarnation::new(1), stamp, payload }.encode(cluster)
}

/// The same with one byte of its header changed, under a checksum that is right again.
fn changed(cluster: ClusterId, at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = message(cluster);
    bytes[at] = byte;
    let checksum = Checksum::of(&bytes[16..256]);
    bytes[..16].copy_from_slice(&checksum.to_bytes());
    bytes
}

/// Sends bytes, and returns what comes back until the other side hangs up.
fn say(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Asks, and reads until the answer is over: a request that says `connection: close` ends its connection.
fn http(cluster: &Cluster, replica: usize, request: &str) -> String {
    let mut stream = TcpStream::connect(cluster.http(replica)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Whoever is refused in the middle of a body may be cut off before the end of the answer.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until a counter has grown to this.
fn counted(cluster: &Cluster, replica: usize, name: &str, goal: u64) {
    let began = std::time::Instant::now();
    while cluster.metric(replica, name) < goal {
        assert!(began.elapsed() < PATIENCE, "{name} did not reach {goal}");
        // sleeps: between two looks at another process.
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn noise_on_the_ports_of_a_live_cluster_is_counted_and_costs_nothing() {
    let cluster = Cluster::started("noise", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(10).await;
    let id = cluster.id();
    for replica in 0..3 {
        let peer = cluster.peer(replica).to_owned();
        let bad = cluster.metric(replica, "chronon_peer_connections_bad_total");
        let good = message(id);
        let oversize = {
            let size = u32::try_from(MESSAGE_SIZE_MAX).unwrap() + 1;
            let mut bytes = good.clone();
            bytes[72..76].copy_from_slice(&size.to_le_bytes());
            let checksum = Checksum::of(&bytes[16..256]);
            bytes[..16].copy_from_slice(&checksum.to_bytes());
            bytes
        };
        let mut torn = good.clone();
        torn[100] ^= 1;
        let noise: [&[u8]; 5] = [
            &[0x5a; 4096],
            &vec![0xff; MESSAGE_SIZE_MAX + 4096],
            &torn,
            &message(ClusterId::new(1)),
            &oversize,
        ];
        for bytes in noise {
            assert_eq!(say(&peer, bytes), b"", "peers are told nothing");
        }
        // A part of a message, and then the end, is what crashes look like.
        assert_eq!(say(&peer, &good[..100]), b"");
        counted(&cluster, replica, "chronon_peer_connections_bad_total", bad + 5);

        let client = cluster.clients()[replica].clone();
        let hello = ClientFrame::Hello { version: 1, cluster: None }.encode();
        let huge = [b"CHRN".as_slice(), &u32::MAX.to_le_bytes(), &[0; 8]].concat();
        let noise: [&[u8]; 5] =
            [&[0x5a; 4096], &vec![0x43; 3 << 20], &hello[..9], &huge, b"GET / HTTP/1.1\r\n\r\n"];
        for bytes in noise {
            let answer = say(&client, bytes);
            let told = matches!(ServerFrame::decode(&answer), Ok(ServerFrame::Goodbye { .. }));
            assert!(answer.is_empty() || told, "{answer:?}");
        }

        let head = "POST /v1/commands HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
        for (request, status) in [
            ("\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), "400"),
            (format!("{head}content-length: 0\r\n\r\n"), "4"),
            (format!("{head}content-length: 9\r\n\r\n{{\"open\":{{"), "4"),
            (format!("{head}content-length: 9999999999\r\n\r\n{{"), "413"),
            ("BREW /v1/commands HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "4"),
        ] {
            let answer = http(&cluster, replica, &request);
            let told = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            assert!(told.starts_with(status), "{request:?}: {answer}");
        }
    }
    accounts.open(10).await;
    accounts.assert_all_there().await;
}

/// What a newer release says is stepped over: the connection stays, or a rolling upgrade would tear every link.
#[tokio::test]
async fn messages_of_a_newer_release_are_dropped_and_counted_and_their_connection_stays() {
    let cluster = Cluster::started("newer", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(5).await;
    let (id, bad) = (cluster.id(), cluster.metric(0, "chronon_peer_connections_bad_total"));
    let mut stream = TcpStream::connect(cluster.peer(0)).unwrap();
    let (unknown_kind, unknown_version) = (changed(id, 78, 200), changed(id, 76, 99));
    let mut sent = 0;
    for bytes in [&unknown_kind, &unknown_version, &unknown_kind] {
        stream.write_all(bytes).unwrap();
        sent += 1;
        counted(&cluster, 0, "chronon_peer_messages_unknown_total", sent);
    }
    assert_eq!(cluster.metric(0, "chronon_peer_connections_bad_total"), bad);
    // Noise after them, on the same connection, ends it.
    stream.write_all(&[0x5a; 4096]).unwrap();
    counted(&cluster, 0, "chronon_peer_connections_bad_total", bad + 1);
    accounts.open(5).await;
    accounts.assert_all_there().await;
}

#[tokio::test]
async fn a_client_of_another_cluster_is_told_so() {
    let cluster = Cluster::started("other-cluster", 1);
    cluster.primary(None).await;
    let address = cluster.clients()[0].clone();
    match Connection::open(&address, Some(1), PATIENCE, ConnectionLimits::default()).await {
        Err(ConnectError::Refused { why, .. }) => {
            assert!(
                why.contains("this is cluster") && why.contains(&format!("{:032x}", cluster.id().value())),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    let options =
        ClientOptions { cluster: Some(1), timeout: Duration::from_secs(2), ..ClientOptions::default() };
    let error = Client::connect([address], options).await.expect_err("no session").to_string();
    assert!(error.contains("cluster"), "{error}");
}

#[tokio::test]
async fn a_command_is_taken_up_to_its_limit_by_a_real_replica_and_refused_beyond() {
    let mut cluster = Cluster::init("sizes", 3);
    (0..3).for_each(|replica| cluster.start_as(replica, &["internal-replica", "--machine", "counter"]));
    let primary = cluster.primary(None).await;
    let connection = cluster.connection(primary).await.unwrap();
    let submit = async |key: &str, body: Vec<u8>| {
        let origin = Origin::Key { principal: String::new(), key: key.to_owned() };
        connection.submit(PATIENCE, Submission::Command { origin, repeat: false, body }).await
    };
    // A vector of bytes begins with its length.
    let of_size = |size: usize| {
        let length = (1..5).find(|length| {
            let whole = postcard::to_allocvec(&vec![7_u8; size - length]).unwrap();
            whole.len() == size
        });
        postcard::to_allocvec(&vec![7_u8; size - length.unwrap()]).unwrap()
    };
    for (name, body) in [("nothing at all", Vec::new()), ("no command", vec![0xff; 9])] {
        match submit(name, body).await {
            Ok(Answer::NotExecuted(NotExecuted::Refused { code, .. })) => assert_eq!(code, "codec"),
            other => panic!("{name}: {other:?}"),
        }
    }
    for size in [1_000, COMMAND_SIZE_MAX - 1, COMMAND_SIZE_MAX] {
        match submit(&size.to_string(), of_size(size)).await {
            Ok(Answer::Decided(_)) => {}
            other => panic!("{size}: {other:?}"),
        }
    }
    match submit("over", of_size(COMMAND_SIZE_MAX + 1)).await {
        Ok(Answer::NotExecuted(NotExecuted::TooLarge { size, limit })) => {
            assert_eq!((size, limit), (COMMAND_SIZE_MAX as u64 + 1, COMMAND_SIZE_MAX as u64));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(submit("after", of_size(100)).await, Ok(Answer::Decided(_))), "it goes on");
}

#[test]
fn a_configuration_that_makes_no_sense_names_file_line_key_and_what_is_allowed() {
    let cluster = Cluster::init("senseless", 3);
    let config = cluster.config(0).to_owned();
    let good = std::fs::read_to_string(&config).unwrap();
    let line_of =
        |text: &str, key: &str| text.lines().position(|line| line.trim_start().starts_with(key)).unwrap() + 1;
    let replaced = |key: &str, value: &str| {
        let line = good.lines().find(|line| line.starts_with(key)).unwrap();
        good.replacen(line, &format!("{key} = {value}"), 1)
    };
    let cases = [
        ("replica", replaced("replica", "300"), "expected u8"),
        ("replica", replaced("replica", "\"one\""), "expected u8"),
        ("cluster", replaced("cluster", "\"xyz\""), "32 hex digits"),
        ("data", replaced("data", "7"), "expected"),
        ("client", replaced("client", "\"localhost\""), "socket address"),
        ("http", replaced("http", "\"127.0.0.1:99999\""), "socket address"),
        ("heartbeat_ms", format!("{good}\n[timing]\nheartbeat_ms = 0\n"), "1 to 10000"),
        ("heartbeat_ms", format!("{good}\n[timing]\nheartbeat_ms = -5\n"), "1 to 10000"),
        ("suspicion_min_ms", format!("{good}\n[timing]\nsuspicion_min_ms = 999999\n"), "10 to 60000"),
        (
            "view_change_patience_ms",
            format!("{good}\n[timing]\nview_change_patience_ms = 1.5\n"),
            "10 to 60000",
        ),
        ("hartbeat_ms", format!("{good}\n[timing]\nhartbeat_ms = 30\n"), "did you mean \"heartbeat_ms\"?"),
    ];
    for (key, text, words) in cases {
        std::fs::write(&config, &text).unwrap();
        let output = chronon(&["start", "--config", &config]);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{key}: {}{error}", stdout(&output));
        let place = format!("{config}:{}:", line_of(&text, key));
        for part in [place.as_str(), key, words] {
            assert!(error.contains(part), "{key}: {part:?} is not in {error}");
        }
    }
    std::fs::write(&config, &good).unwrap();
    for (set, words) in [
        ("timing.heartbeat_ms=0", "1 to 10000"),
        ("timing.heartbeat_ms=soon", "1 to 10000"),
        ("replicas.1.peer=nowhere", "host:port"),
    ] {
        let error = stderr(&chronon(&["start", "--config", &config, "--set", set]));
        let key = set.split('=').next().unwrap();
        assert!(error.contains(key) && error.contains(words), "{set}: {error}");
    }
}
