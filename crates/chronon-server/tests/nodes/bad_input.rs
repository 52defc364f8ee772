//! Noise on every port, strangers, and data directories that can't be used (scenario 53 and its neighbours).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::cluster::{Cluster, Command, PATIENCE, Tally, within};
use chronon_client::{ConnectError, Connection, ConnectionLimits};
use chronon_kernel::{ClientFrame, FRAME_SIZE_MAX, ServerFrame};
use chronon_server::{DiskKind, Founding, Node, ServerConfig, StartError};
use chronon_storage::OpenError;
use chronon_vsr::{ClusterId, MESSAGE_SIZE_MAX, ReplicaId};

/// Sends bytes and reads until the other side hangs up.
fn say(port: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

/// Noise that looks ever more like the real thing.
fn noises(good: &[u8], size_max: usize) -> Vec<Vec<u8>> {
    let mut noises =
        vec![Vec::new(), vec![0; 1], vec![0; 4096], vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    noises.extend((0..good.len()).step_by(7).map(|cut| good[..cut].to_vec()));
    noises.extend((0..good.len().min(64)).map(|at| {
        let mut changed = good.to_vec();
        changed[at] ^= 0x40;
        changed
    }));
    noises.push(vec![0x43; size_max + 4096]);
    noises
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_every_port_ends_its_connection_and_nothing_else() {
    let cluster = Cluster::start(3).await;
    let client = cluster.node(0).client();
    within("submit", client.submit(&Command::Add(1))).await.unwrap();

    let hello = ClientFrame::Hello { version: 1, cluster: None }.encode();
    let strange = chronon_vsr::Message {
        from: ReplicaId::new(9),
        incarnation: chronon_vsr::Incarnation::new(1),
        stamp: chronon_vsr::Stamp::first(chronon_vsr::Epoch::new(0)),
        payload: chronon_vsr::Payload::GetView { nonce: 1 },
    };
    let stranger = strange.encode(cluster.founding.cluster);
    let other_cluster = strange.encode(ClusterId::new(1));
    for replica in 0..3 {
        let (peer, client, http) =
            (cluster.peer_port(replica), cluster.client_port(replica), cluster.http_port(replica));
        let (hello, stranger, other_cluster) = (hello.clone(), stranger.clone(), other_cluster.clone());
        let noise = tokio::task::spawn_blocking(move || {
            for bytes in noises(&stranger, MESSAGE_SIZE_MAX) {
                assert_eq!(say(peer, &bytes), b"", "peers are told nothing");
            }
            assert_eq!(say(peer, &stranger), b"");
            assert_eq!(say(peer, &other_cluster), b"");
            for bytes in noises(&hello, FRAME_SIZE_MAX) {
                let answer = say(client, &bytes);
                assert!(answer.is_empty() || ServerFrame::decode(&answer).is_ok(), "{bytes:?}: {answer:?}");
            }
            for bytes in noises(
                b"POST /v1/commands HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{\"add\":",
                1 << 20,
            ) {
                say(http, &bytes);
            }
        });
        within("noise", noise).await.unwrap();
    }
    assert_eq!(within("submit", client.submit(&Command::Add(1))).await.unwrap().reply, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_why_before_the_connection_ends() {
    let cluster = Cluster::start(1).await;
    let port = cluster.client_port(0);
    let address = port.to_string();
    let refused = Connection::open(&address, Some(1), PATIENCE, ConnectionLimits::default()).await;
    match refused {
        Err(ConnectError::Refused { why, .. }) => assert!(why.contains("this is cluster"), "{why}"),
        other => panic!("{other:?}"),
    }
    let query = ClientFrame::Status { ticket: 1 };
    let cases = [
        (ClientFrame::Hello { version: 99, cluster: None }.encode(), "version 1"),
        (query.encode(), "Hello"),
        (b"GET /v1/cluster HTTP/1.1\r\n\r\n".to_vec(), "no frame"),
        ([b"CHRN".as_slice(), &u32::MAX.to_le_bytes(), &[0; 8]].concat(), "more than the limit"),
    ];
    for (bytes, expected) in cases {
        let answer = tokio::task::spawn_blocking(move || say(port, &bytes)).await.unwrap();
        match ServerFrame::decode(&answer) {
            Ok(ServerFrame::Goodbye { why }) => assert!(why.contains(expected), "{why}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_costs_the_data_nothing() {
    let mut cluster = Cluster::start(1).await;
    cluster.stop_one(0).await;
    let holder = TcpListener::bind(cluster.client_port(0)).unwrap();
    match cluster.start_one(0).await {
        Err(StartError::Listen { port, address, .. }) => {
            assert_eq!((port, address), ("client", holder.local_addr().unwrap()));
        }
        other => panic!("{other:?}"),
    }
    drop(holder);
    cluster.start_one(0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_not_ours_is_refused_with_the_reason() {
    let cluster = Cluster::start(1).await;
    let open = async |path: &std::path::Path, config: ServerConfig| {
        Node::<Tally>::open(path).config(config).start().await.err().unwrap()
    };
    let fresh = ServerConfig::default;

    let error = open(&cluster.path(0), fresh()).await;
    assert!(matches!(error, StartError::Data(OpenError::Locked { .. })), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = open(empty.path(), fresh()).await;
    assert!(matches!(error, StartError::Data(OpenError::Missing { .. })), "{error}");

    let other = empty.path().join("other");
    let founding = Founding::draw(3).unwrap().log_size(16 << 20);
    Node::<Tally>::format(&other, &founding, ReplicaId::new(2)).unwrap();
    let error = open(&other, ServerConfig { cluster: Some(ClusterId::new(5)), ..fresh() }).await;
    assert!(matches!(error, StartError::Data(OpenError::WrongCluster { .. })), "{error}");
    let error = open(&other, ServerConfig { replica: Some(ReplicaId::new(0)), ..fresh() }).await;
    assert!(matches!(error, StartError::Data(OpenError::WrongReplica { .. })), "{error}");
    let error = open(&other, ServerConfig { disk: DiskKind::Unflushed, ..fresh() }).await;
    assert!(matches!(error, StartError::AddressMissing { .. }), "{error}");
    assert!(Node::<Tally>::format(&other, &founding, ReplicaId::new(2)).is_err());
}
