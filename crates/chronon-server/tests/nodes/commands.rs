//! Commands, reads and effects through three real nodes.

use crate::cluster::{Cluster, Command, PATIENCE, Treacherous, eventually, within};
use chronon_client::{Connection, ConnectionLimits, SubmitError};
use chronon_kernel::{AbortReason, Answer, COMMAND_SIZE_MAX, Consistency, NotExecuted, Origin, Submission};

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_applied_once_and_read_on_every_replica() {
    let cluster = Cluster::start(3).await;
    let client = cluster.node(0).client();
    let mut submissions = tokio::task::JoinSet::new();
    for n in 1..=200 {
        let client = client.clone();
        submissions.spawn(async move { client.submit(&Command::Add(n)).await.unwrap().op() });
    }
    let mut newest = 0;
    while let Some(op) = within("submit", submissions.join_next()).await {
        newest = newest.max(op.unwrap().value());
    }
    for replica in 0..3 {
        let client = cluster.node(replica).client();
        let read = within("query", client.query(&())).await.unwrap();
        assert_eq!(read.answer.sum, 200 * 201 / 2);
        let read = within("query", client.query_at(&(), Consistency::AtLeast(newest))).await.unwrap();
        assert_eq!(read.answer.sum, 200 * 201 / 2);
        assert!(newest <= read.op.value());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_replicas_find_everything_and_the_service_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let mut sum = 0;
    for round in 0..3 {
        for replica in [cluster.primary().await, round] {
            let survivor = (replica + 1) % 3;
            let client = cluster.node(survivor).client();
            cluster.stop_one(replica).await;
            within("submit", client.submit(&Command::Add(1))).await.unwrap();
            sum += 1;
            within("start", cluster.start_one(replica)).await.unwrap();
            let client = cluster.node(replica).client();
            within("submit", client.submit(&Command::Add(1))).await.unwrap();
            sum += 1;
            assert_eq!(within("query", client.query(&())).await.unwrap().answer.sum, sum);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_restarted_at_once_find_everything() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.node(0).client();
    within("submit", client.submit(&Command::Add(7))).await.unwrap();
    for replica in 0..3 {
        cluster.stop_one(replica).await;
    }
    for replica in 0..3 {
        cluster.start_one(replica).await.unwrap();
    }
    let client = cluster.node(2).client();
    assert_eq!(within("query", client.query(&())).await.unwrap().answer.sum, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_is_delivered_and_its_outcome_heard_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.node(1).client();
    let sent = within("submit", client.submit(&Command::Send(5))).await.unwrap();
    assert_eq!(sent.effects.len(), 1);
    eventually("the outcome is heard", async || client.query(&()).await.unwrap().answer.heard == 1).await;
    let id = sent.effects[0].to_string();
    let shown = within("show", cluster.http(2, "GET", &format!("/v1/effects/{id}"), "", "")).await;
    assert_eq!(shown.status, 200, "{shown:?}");
    let effect = shown.json();
    assert_eq!(effect["state"], "settled");
    assert_eq!(effect["outcome"]["outcome"], "delivered");
    assert_eq!(effect["payload"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_inside_apply_aborts_the_command_and_nothing_else() {
    let cluster = Cluster::start(1).await;
    let client = cluster.node(0).client();
    within("submit", client.submit(&Command::Add(1))).await.unwrap();
    match within("submit", client.submit(&Command::Panic)).await {
        Err(SubmitError::Aborted { why: AbortReason::Panicked { message }, .. }) => {
            assert!(message.contains("as it was told to"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    match within("submit", client.submit(&Command::Misdirect)).await {
        Err(SubmitError::Aborted { why: AbortReason::UnknownSink { sink }, .. }) => {
            assert_eq!(sink, "nowhere")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(within("submit", client.submit(&Command::Add(1))).await.unwrap().reply, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_taken_up_to_the_limit_and_refused_one_byte_over_it() {
    let cluster = Cluster::start(3).await;
    let client = cluster.node(0).client();
    // Variant and length take four bytes.
    let most = COMMAND_SIZE_MAX - 4;
    within("submit", client.submit(&Command::Keep(vec![1; most]))).await.unwrap();
    match within("submit", client.submit(&Command::Keep(vec![1; most + 1]))).await {
        Err(SubmitError::NotExecuted(NotExecuted::TooLarge { size, limit })) => {
            assert_eq!((size, limit), (COMMAND_SIZE_MAX as u64 + 1, COMMAND_SIZE_MAX as u64));
        }
        other => panic!("{other:?}"),
    }
    // The replica does not lean on its clients for that.
    let address = cluster.client_port(0).to_string();
    let connection = Connection::open(&address, None, PATIENCE, ConnectionLimits::default()).await.unwrap();
    let origin = Origin::Key { principal: String::new(), key: "over".into() };
    let over = Submission::Command { origin, repeat: false, body: vec![1; COMMAND_SIZE_MAX + 1] };
    match within("submit", connection.submit(PATIENCE, over)).await {
        Ok(Answer::NotExecuted(NotExecuted::TooLarge { size, limit })) => {
            assert_eq!((size, limit), (COMMAND_SIZE_MAX as u64 + 1, COMMAND_SIZE_MAX as u64));
        }
        other => panic!("{other:?}"),
    }
    match within("submit", client.client().submit(Vec::new())).await {
        Err(SubmitError::NotExecuted(NotExecuted::Refused { code, .. })) => assert_eq!(code, "codec"),
        other => panic!("{other:?}"),
    }
    within("submit", client.submit(&Command::Keep(Vec::new()))).await.unwrap();
    assert_eq!(within("query", client.query(&())).await.unwrap().answer.kept, most as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_its_codec_cannot_read_back_is_refused_before_the_log() {
    let cluster = Cluster::start(1).await;
    let client = cluster.node(0).client();
    let good = Command::Treacherous(Treacherous { value: Some(1), after: 2 });
    within("submit", client.submit(&good)).await.unwrap();
    let bad = Command::Treacherous(Treacherous { value: None, after: 2 });
    assert_eq!(within("submit", client.submit(&bad)).await, Err(SubmitError::Codec));

    let refused = cluster.http(0, "POST", "/v1/commands", "", r#"{"treacherous":{"after":2}}"#).await;
    assert_eq!((refused.status, &refused.json()["code"]), (400, &"codec".into()), "{refused:?}");
}
