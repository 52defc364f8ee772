//! A machine that is not deterministic, on real nodes: what its replica says of it, and how it gets the others' state.

use std::sync::atomic::{AtomicBool, Ordering};

use chronon_kernel::{Cell, Context, QueryContext, State, StateMachine};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::{Answer, Cluster, eventually, within};

/// Whichever replica adds next adds one too many.
static SLIPS: AtomicBool = AtomicBool::new(false);

/// Adds, and once on one replica wrongly.
#[derive(Clone, State)]
struct Erring {
    sum: Cell<u64>,
    kept: Cell<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Command {
    Add(u64),
    /// Fills the log.
    Keep(Vec<u8>),
}

impl StateMachine for Erring {
    type Command = Command;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    type Effect = u64;
    type Outcome = String;
    const VERSION: u32 = 1;

    fn genesis() -> Erring {
        Erring { sum: Cell::new(0), kept: Cell::new(0) }
    }

    fn apply(&mut self, _: &mut Context<'_, Erring>, command: Command) -> u64 {
        match command {
            Command::Add(n) => {
                let slip = u64::from(SLIPS.swap(false, Ordering::Relaxed));
                self.sum.set(self.sum.get() + n + slip);
            }
            Command::Keep(bytes) => self.kept.set(self.kept.get() + bytes.len() as u64),
        }
        *self.sum.get()
    }

    fn query(&self, _: &QueryContext, (): ()) -> u64 {
        *self.sum.get()
    }
}

async fn get(cluster: &Cluster<Erring>, replica: u8, path: &str) -> Answer {
    within("look", cluster.http(replica, "GET", path, "", "")).await
}

async fn query(cluster: &Cluster<Erring>, replica: u8, consistency: &str) -> Answer {
    let path = format!("/v1/queries?consistency={consistency}");
    within("read", cluster.http(replica, "POST", &path, "", "null")).await
}

/// What each replica says of itself, by its own number.
async fn replicas(cluster: &Cluster<Erring>, asked: u8) -> Vec<Value> {
    get(cluster, asked, "/v1/cluster").await.json()["replicas"].as_array().unwrap().clone()
}

async fn metric(cluster: &Cluster<Erring>, replica: u8, name: &str) -> u64 {
    let text = get(cluster, replica, "/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("chronon_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

// Scenario 40.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_machine_slips_says_so_answers_nothing_and_heals_by_a_peers_checkpoint() {
    let cluster = Cluster::<Erring>::found(3, |config| config).await;
    let client = cluster.node(0).client();
    assert_eq!(within("submit", client.submit(&Command::Add(1))).await.unwrap().reply, 1);
    SLIPS.store(true, Ordering::Relaxed);
    // If the primary is the one that slips, nobody promised anything of what it says before it knows.
    let _ = within("submit", client.submit(&Command::Add(10))).await;

    let named = async || {
        let replicas = replicas(&cluster, 0).await;
        replicas.iter().position(|replica| replica["quarantine"].is_object())
    };
    eventually("it is found out", async || named().await.is_some()).await;
    let slipped = u8::try_from(named().await.unwrap()).unwrap();
    let others: Vec<u8> = (0..3).filter(|replica| *replica != slipped).collect();
    let quarantine = replicas(&cluster, others[0]).await[usize::from(slipped)]["quarantine"].clone();
    let (digest, majority) = (&quarantine["digest"], &quarantine["majority"]);
    assert!(
        0 < quarantine["op"].as_u64().unwrap() && digest.is_string() && majority.is_string(),
        "{quarantine}"
    );
    assert_ne!(digest, majority);
    assert_eq!(metric(&cluster, slipped, "quarantined").await, 1);
    let ready = get(&cluster, slipped, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text.contains("quarantined"), "{ready:?}");
    for consistency in ["local", "linearizable"] {
        let refused = query(&cluster, slipped, consistency).await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }

    // The others serve, and know of it.
    eventually("another one leads", async || cluster.primary().await != slipped).await;
    for replica in &others {
        eventually("it is told", async || {
            replicas(&cluster, *replica).await[usize::from(*replica)]["diverged"]
                == serde_json::json!([slipped])
        })
        .await;
        eventually("it is ready", async || get(&cluster, *replica, "/readyz").await.status == 200).await;
        assert_eq!(query(&cluster, *replica, "linearizable").await.json()["answer"], 11);
        assert_eq!(metric(&cluster, *replica, "quarantined").await, 0);
    }

    // Their next checkpoint takes the place of its state.
    let client = cluster.node(others[0]).client();
    let bytes = Command::Keep(vec![7; 500_000]);
    eventually("it is believed again", async || {
        within("fill", client.submit(&bytes)).await.unwrap();
        named().await.is_none()
    })
    .await;
    assert_eq!(metric(&cluster, slipped, "checkpoints_restored_total").await, 1);
    eventually("it is ready", async || get(&cluster, slipped, "/readyz").await.status == 200).await;
    assert_eq!(within("submit", client.submit(&Command::Add(100))).await.unwrap().reply, 111);
    assert_eq!(query(&cluster, slipped, "linearizable").await.json()["answer"], 111);
    for replica in 0..3 {
        eventually("nobody differs", async || {
            replicas(&cluster, replica).await[usize::from(replica)]["diverged"] == serde_json::json!([])
        })
        .await;
    }
}
