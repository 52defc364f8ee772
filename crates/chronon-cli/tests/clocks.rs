//! What `chronon status` tells of wall clocks that differ: the replicas run here, so that the test sets their clocks.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chronon_bank::Bank;
use chronon_server::{Addresses, Founding, Listen, Node, RunningNode, ServerConfig};
use chronon_vsr::ReplicaId;
use support::{Directory, PATIENCE, chronon, free_ports, stdout};

const OFF: &str = "its clock is more than a second off";
const DISAGREE: &str = "no majority of clocks agrees what time it is";

/// Three replicas, and by how many seconds the clock of each is fast.
struct Clocks {
    _nodes: Vec<RunningNode<Bank>>,
    fast: Vec<Arc<AtomicU64>>,
    api: String,
    _directory: Directory,
}

impl Clocks {
    async fn started() -> Clocks {
        let directory = Directory::new("clocks");
        let founding = Founding::draw(3).unwrap().log_size(16 << 20);
        let ports: Vec<SocketAddr> =
            free_ports(9).into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let addresses = |replica: usize| Addresses {
            peer: ports[3 * replica].to_string(),
            client: ports[3 * replica + 1].to_string(),
        };
        let fast: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let mut nodes = Vec::new();
        for (replica, fast) in (0..3).zip(&fast) {
            let path = directory.path(&replica.to_string());
            Node::<Bank>::format(&path, &founding, ReplicaId::new(replica)).unwrap();
            let own = &ports[3 * usize::from(replica)..];
            let fast = Arc::clone(fast);
            let config = ServerConfig {
                listen: Listen { peer: own[0], client: own[1], http: Some(own[2]) },
                replicas: (0..3).map(|other| (ReplicaId::new(other), addresses(other.into()))).collect(),
                wall_clock: Some(Arc::new(move |wall| {
                    wall + Duration::from_secs(fast.load(Ordering::Relaxed))
                })),
                ..ServerConfig::default()
            };
            nodes.push(Node::<Bank>::open(path).config(config).start().await.unwrap());
        }
        Clocks { _nodes: nodes, fast, api: format!("http://{}", ports[2]), _directory: directory }
    }

    fn set(&self, fast: [u64; 3]) {
        for (clock, fast) in self.fast.iter().zip(fast) {
            clock.store(fast, Ordering::Relaxed);
        }
    }

    /// Waits until `status` says of the clock of each replica what is expected, and nothing else.
    async fn until_told(&self, expected: [Option<&str>; 3]) {
        let began = Instant::now();
        loop {
            let api = self.api.clone();
            let shown = tokio::task::spawn_blocking(move || stdout(&chronon(&["status", "--api", &api])));
            let shown = shown.await.unwrap();
            let told = |replica: usize| {
                let mut lines =
                    shown.lines().filter(|line| line.starts_with(&format!("replica {replica}: ")));
                lines.find_map(|line| [OFF, DISAGREE].into_iter().find(|words| line.contains(words)))
            };
            if shown.contains("primary ") && [told(0), told(1), told(2)] == expected {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not {expected:?}: {shown}");
            // sleeps: between two looks at the replicas.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_whose_clock_is_off_and_when_no_majority_agrees() {
    let clocks = Clocks::started().await;
    clocks.until_told([None; 3]).await;
    clocks.set([0, 3_600, 0]);
    clocks.until_told([None, Some(OFF), None]).await;
    clocks.set([0, 3_600, 7_200]);
    clocks.until_told([Some(DISAGREE); 3]).await;
    clocks.set([0; 3]);
    clocks.until_told([None; 3]).await;
}
