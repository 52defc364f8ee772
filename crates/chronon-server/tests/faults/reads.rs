//! Queries that take long, and reads that may be old.

use chronon_kernel::Consistency;

use crate::cluster::{Cluster, Setup};
use crate::common::{eventually, within};
use crate::links::Mode;
use crate::load::Load;

/// The queries of a replica are held: commands, status and metrics are not, and the queries are answered in the end.
#[tokio::test(flavor = "multi_thread")]
async fn slow_queries_delay_neither_commands_nor_anybodys_look() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::hasty(&cluster, 0);
    load.more(20).await;
    let primary = cluster.primary().await;
    cluster.query(primary).pull();
    let mut queries = tokio::task::JoinSet::new();
    for consistency in [Consistency::Linearizable, Consistency::Local, Consistency::AtLeast(1)].repeat(10) {
        let client = cluster.client(primary);
        queries.spawn(async move { client.query_at(&(), consistency).await.unwrap() });
    }
    eventually("queries are held", async || cluster.query(primary).holds()).await;
    load.more(200).await;
    assert!(cluster.get(primary, "/v1/effects").await.is_object());
    assert!(200 < cluster.gauge(primary, "engine_commands").await);
    assert_eq!(cluster.measured(primary, "query").await, 0);
    cluster.query(primary).release();
    while let Some(answered) = within("an answer", queries.join_next()).await {
        answered.unwrap().answer.assert_sound();
    }
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
}

/// A replica that is cut off answers from what it has, and waits when that is not as new as was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_at_least_as_new_as_an_op_waits_for_it_on_a_replica_that_lags() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::hasty(&cluster, 0);
    load.more(20).await;
    let primary = cluster.primary().await;
    let lagging = (primary + 1) % 3;
    cluster.links.set_all_to(lagging, Mode::Lose);
    cluster.links.set_all_of(lagging, Mode::Lose);
    load.more(50).await;
    let told = load.stop().await;
    let newest = cluster.status(primary).await.commit;

    let local = cluster.ask(lagging, "consistency=local").await;
    let op = local["op"].as_u64().unwrap();
    assert!(op < newest, "{op} is as new as {newest}");
    let too_late = cluster.ask(lagging, &format!("consistency=at_least:{newest}&timeout=100ms")).await;
    assert_eq!(too_late["reason"], "expired", "{too_late}");
    cluster.links.set_all_to(lagging, Mode::Pass);
    cluster.links.set_all_of(lagging, Mode::Pass);
    let fresh = cluster.ask(lagging, &format!("consistency=at_least:{newest}&timeout=15s")).await;
    assert!(newest <= fresh["op"].as_u64().unwrap(), "{fresh}");
    told.assert_kept(&serde_json::from_value(fresh["answer"].clone()).unwrap());
}
