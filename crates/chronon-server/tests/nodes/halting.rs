//! A machine that halts when it panics, on real nodes: what they say of it, and the way past it.

use chronon_kernel::{Cell, Context, Emit, Emitted, OnPanic, QueryContext, Settled, State, StateMachine};
use serde_json::Value;

use crate::cluster::{Answer, Cluster, eventually, within};

/// Adds, and can't stand the number 13.
#[derive(Clone, State)]
struct Brittle {
    sum: Cell<u64>,
    heard: Cell<u64>,
}

impl StateMachine for Brittle {
    type Command = u64;
    type Reply = u64;
    type Query = ();
    type Answer = (u64, u64);
    type Effect = u64;
    type Outcome = String;
    const VERSION: u32 = 1;
    const ON_PANIC: OnPanic = OnPanic::Halt;

    fn genesis() -> Brittle {
        Brittle { sum: Cell::new(0), heard: Cell::new(0) }
    }

    fn apply(&mut self, cx: &mut Context<'_, Brittle>, number: u64) -> u64 {
        self.sum.set(self.sum.get() + number);
        cx.emit(Emit::to("out"), number);
        assert!(number != 13, "thirteen is too much");
        *self.sum.get()
    }

    fn query(&self, _: &QueryContext, (): ()) -> (u64, u64) {
        (*self.sum.get(), *self.heard.get())
    }

    fn settled(&mut self, _: &mut Context<'_, Brittle>, _: Emitted<u64>, _: Settled<String>) {
        self.heard.set(self.heard.get() + 1);
    }
}

async fn get(cluster: &Cluster<Brittle>, replica: u8, path: &str) -> Answer {
    within("look", cluster.http(replica, "GET", path, "", "")).await
}

async fn post(cluster: &Cluster<Brittle>, replica: u8, path: &str, headers: &str, body: &str) -> Answer {
    within("act", cluster.http(replica, "POST", path, headers, body)).await
}

/// What each replica says of where it has halted, by its own number.
async fn halts(cluster: &Cluster<Brittle>) -> Vec<Value> {
    let status = get(cluster, 0, "/v1/cluster").await.json();
    status["replicas"].as_array().unwrap().iter().map(|replica| replica["halted"].clone()).collect()
}

async fn until_all_have_halted(cluster: &Cluster<Brittle>) -> Value {
    eventually("every replica halts", async || halts(cluster).await.iter().all(Value::is_object)).await;
    let halts = halts(cluster).await;
    assert!(halts.iter().all(|halt| *halt == halts[0]), "{halts:?}");
    halts[0].clone()
}

// Scenario 39.
#[tokio::test(flavor = "multi_thread")]
async fn a_halted_cluster_says_so_everywhere_lives_through_a_restart_and_goes_on_once_it_is_told_to_skip() {
    let mut cluster = Cluster::<Brittle>::found(3, |config| config).await;
    for number in 1..=5_u64 {
        within("submit", cluster.node(0).client().submit(&number)).await.unwrap();
    }
    let none = post(&cluster, 0, "/v1/ops/3/skip", "", r#"{"reason":"x"}"#).await;
    assert_eq!((none.status, none.json()["code"].as_str()), (409, Some("not_halted")), "{none:?}");

    // Nobody knows what becomes of it: the caller is told so, by its key.
    let key = "Idempotency-Key: poison\r\n";
    let unknown = post(&cluster, 1, "/v1/commands?timeout=1s", key, "13").await;
    assert_eq!(
        (unknown.status, unknown.json()["code"].as_str()),
        (504, Some("indeterminate")),
        "{unknown:?}"
    );
    let halted = until_all_have_halted(&cluster).await;
    assert_eq!((&halted["call"], &halted["message"]), (&"request 0".into(), &"thirteen is too much".into()));
    let op = halted["op"].as_u64().unwrap();
    assert!(halted["remedy"].as_str().unwrap().contains(&format!("chronon skip {op}")), "{halted}");

    for replica in 0..3 {
        assert_eq!(get(&cluster, replica, "/healthz").await.status, 200);
        let ready = get(&cluster, replica, "/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.text.contains(&format!("halted at op {op}")), "{ready:?}");
        assert!(get(&cluster, replica, "/metrics").await.text.contains(&format!("chronon_halted_op {op}\n")));
        // What is new is refused, and so is what the state from before can't answer truly.
        let refused = post(&cluster, replica, "/v1/commands?timeout=5s", "", "1").await;
        assert_eq!((refused.status, refused.json()["full"].as_str()), (503, Some("halted")), "{refused:?}");
        let refused = post(&cluster, replica, "/v1/queries", "", "null").await;
        assert_eq!((refused.status, refused.json()["full"].as_str()), (503, Some("halted")), "{refused:?}");
        let local = post(&cluster, replica, "/v1/queries?consistency=local", "", "null").await.json();
        assert_eq!((&local["op"], &local["answer"][0]), (&(op - 1).into(), &15.into()));
        for path in ["/v1/effects", "/v1/effects/2-0", "/v1/sinks", "/v1/sinks/out", "/v1/skips"] {
            let shown = get(&cluster, replica, &format!("{path}?consistency=local")).await;
            assert!([200, 404].contains(&shown.status), "{path}: {shown:?}");
        }
    }

    // One replica is away, and another restarts, and all stand where they stood.
    for replica in 0..3 {
        cluster.stop_one(replica).await;
        within("start", cluster.start_one(replica)).await.unwrap();
        assert_eq!(until_all_have_halted(&cluster).await, halted);
    }

    let skip = format!("/v1/ops/{op}/skip");
    let body = r#"{"reason":"ticket 7","by":"ada","request":0}"#;
    let elsewhere = post(&cluster, 0, &format!("/v1/ops/{}/skip", op + 1), "", body).await;
    assert_eq!((elsewhere.status, elsewhere.json()["code"].as_str()), (409, Some("halted_elsewhere")));
    assert_eq!(elsewhere.json()["halted"], halted);
    let elsewhere = post(&cluster, 0, &skip, "", r#"{"reason":"x","request":1}"#).await;
    assert_eq!(elsewhere.json()["code"], "halted_elsewhere");
    for (wrong, code) in [
        (post(&cluster, 0, &skip, "", "{}").await, "unreadable"),
        (post(&cluster, 0, &skip, "", r#"{"reason":""}"#).await, "reason"),
        (post(&cluster, 0, "/v1/ops/x/skip", "", body).await, "parameter"),
        (post(&cluster, 0, &skip, "", &format!("{{\"reason\":\"{}\"}}", "x".repeat(2_000))).await, "reason"),
    ] {
        assert!([400, 422].contains(&wrong.status), "{wrong:?}");
        assert_eq!(wrong.json()["code"], code);
    }

    let skipped = post(&cluster, 2, &skip, "", body).await;
    assert_eq!(skipped.status, 200, "{skipped:?}");
    assert_eq!(skipped.json()["skipped"], halted);
    let again = post(&cluster, 2, &skip, "", body).await;
    assert_eq!(again.status, 409, "{again:?}");
    let aborted = post(&cluster, 1, "/v1/commands", key, "13").await;
    assert_eq!((aborted.status, aborted.json()["reason"].as_str()), (422, Some("skipped")), "{aborted:?}");
    assert_eq!(aborted.json()["op"], op);
    within("submit", cluster.node(0).client().submit(&6)).await.unwrap();
    for replica in 0..3 {
        let read = post(&cluster, replica, "/v1/queries", "", "null").await.json();
        assert_eq!(read["answer"][0], 21, "{read}");
        eventually("it is ready", async || get(&cluster, replica, "/readyz").await.status == 200).await;
        assert!(get(&cluster, replica, "/metrics").await.text.contains("chronon_halted_op 0\n"));
        let skips = get(&cluster, replica, "/v1/skips").await.json();
        let [skip] = &skips["skips"].as_array().unwrap()[..] else { panic!("{skips}") };
        assert_eq!((&skip["by"], &skip["reason"]), (&"ada".into(), &"ticket 7".into()));
        assert_eq!((&skip["op"], &skip["call"]), (&op.into(), &"request 0".into()));
    }
    eventually("every outcome is heard", async || {
        let read = post(&cluster, 0, "/v1/queries", "", "null").await.json();
        read["answer"][1] == 6
    })
    .await;
}
