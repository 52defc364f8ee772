//! Commands: applied once, answered the same, or not executed at all.

use chronon_kernel::{
    AbortReason, Batch, Busy, CommittedOp, Contract, EffectId, Engine, EngineOptions, Kernel, Limits,
    Lineage, Origin, QueryError, Refusal, Request, RequestNumber, RequestResult, SessionId,
};
use chronon_vsr::{Duration, Mutations, Op, Timestamp};

use crate::log::{Log, START, emit_to, spec, stamp};
use crate::probe_machine::{Act, Heard, Scribe};

fn key(principal: &str, key: &str, acts: &[Act]) -> Request {
    let origin = Origin::Key { principal: principal.into(), key: key.into() };
    Request::Command { origin, body: postcard::to_allocvec(acts).unwrap() }
}

fn wrote(log: &Log) -> usize {
    log.heard().iter().filter(|heard| matches!(heard, Heard::Wrote(_))).count()
}

// Scenarios 34 and 68, as far as the log decides them.
#[test]
fn a_repeat_is_applied_once_and_answered_the_same_in_one_batch_later_and_after_a_fail_over() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    for request in [log.command(vec![Act::Write(1), emit_to("sink")]), key("ann", "k", &[Act::Write(2)])] {
        let before = wrote(&log);
        let results = log.batch(vec![request.clone(), request.clone()]);
        assert!(matches!(results[0], RequestResult::Replied { .. }));
        assert_eq!(results[0], results[1]);
        log.fail_over();
        log.pass(Duration::from_secs(3_600));
        assert_eq!(log.run(request), results[0]);
        assert_eq!(wrote(&log), before + 1);
    }
    assert_eq!(log.kernel.status().emitted, 1);
    assert_eq!(log.kernel.status().commands, 2);
}

// Scenario 69.
#[test]
fn a_key_with_another_body_is_refused_and_belongs_to_its_principal() {
    let mut log = Log::new();
    let first = log.run(key("ann", "k", &[Act::Write(1)]));
    let reused = RequestResult::Refused(Refusal::KeyReused);
    assert_eq!(log.run(key("ann", "k", &[Act::Write(2)])), reused);
    assert!(matches!(log.run(key("bob", "k", &[Act::Write(2)])), RequestResult::Replied { .. }));
    let kept = log.kernel.key_result("ann", "k").unwrap();
    assert_eq!(kept.result, first);
    assert_eq!(kept.expires.since(kept.used), Duration::from_secs(24 * 3_600));
    assert!(log.kernel.key_result("carol", "k").is_none());
    log.pass(Duration::from_secs(24 * 3_600));
    assert!(log.kernel.key_result("ann", "k").is_none());
    assert!(matches!(log.run(key("ann", "k", &[Act::Write(2)])), RequestResult::Replied { .. }));
}

#[test]
fn keys_that_are_full_and_young_are_busy_and_nothing_is_executed() {
    let mut log = Log::with(Limits { keys_max: 2, ..Limits::DEFAULT });
    log.run(key("", "a", &[Act::Write(1)]));
    log.run(key("", "b", &[Act::Write(1)]));
    let busy = RequestResult::Refused(Refusal::Busy(Busy::KeysFull));
    assert_eq!(log.run(key("", "c", &[Act::Write(1)])), busy);
    assert_eq!(wrote(&log), 2);
    assert!(
        matches!(log.run(key("", "a", &[Act::Write(1)])), RequestResult::Replied { .. }),
        "a repeat needs no room"
    );
    log.pass(Duration::from_secs(3_600));
    assert!(matches!(log.run(key("", "c", &[Act::Write(1)])), RequestResult::Replied { .. }));
}

// Scenario 35.
#[test]
fn an_evicted_session_is_told_so_and_nothing_runs_again() {
    let mut log = Log::with(Limits { sessions_max: 2, ..Limits::DEFAULT });
    let command = log.command(vec![Act::Write(1)]);
    log.run(command.clone());
    for nonce in 10..14 {
        log.run(Request::Register { nonce });
    }
    assert_eq!(log.run(command), RequestResult::Refused(Refusal::SessionEvicted));
    assert_eq!(wrote(&log), 1);
    assert_eq!(log.kernel.status().sessions, 2);
}

#[test]
fn a_request_below_the_window_is_refused_not_run() {
    let mut log = Log::with(Limits { session_replies_max: 2, ..Limits::DEFAULT });
    let commands: Vec<Request> = (0..3).map(|_| log.command(vec![Act::Write(1)])).collect();
    for command in &commands {
        log.run(command.clone());
    }
    let forgotten = RequestResult::Refused(Refusal::ReplyForgotten { number: 1 });
    assert_eq!(log.run(commands[0].clone()), forgotten);
    assert!(matches!(log.run(commands[2].clone()), RequestResult::Replied { .. }));
    assert_eq!(wrote(&log), 3);
}

#[test]
fn a_command_that_fails_is_aborted_leaves_no_trace_and_is_aborted_the_same_on_repeat() {
    let limits = Limits { emits_max: 3, reply_bytes_max: 100, ..Limits::DEFAULT };
    let unknown = AbortReason::UnknownSink { sink: "nowhere".into() };
    let name = AbortReason::UnknownSink { sink: "No Name".into() };
    let cases = [
        (Act::Panic, AbortReason::Panicked { message: "as told".into() }),
        (emit_to("nowhere"), unknown),
        (emit_to("No Name"), name),
        (Act::LongReply(100), AbortReason::ReplyTooLarge { limit: 100 }),
    ];
    for (act, why) in cases {
        let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
        let traces = vec![Act::Write(1), emit_to("sink"), Act::Timer { key: "t".into(), at: START }, act];
        let command = log.command(traces);
        let aborted = log.run(command.clone());
        assert!(
            matches!(&aborted, RequestResult::Aborted { why: found, .. } if *found == why),
            "{aborted:?}"
        );
        assert_eq!(log.run(command), aborted);
        log.pass(Duration::from_secs(1));
        assert_eq!(log.heard(), []);
        let status = log.kernel.status();
        assert_eq!((status.emitted, status.timers, status.aborted, status.commands), (0, 0, 1, 0));
        assert_eq!(log.emit(vec![emit_to("sink")])[0].n(), 0);
    }
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    assert_eq!(log.emit(vec![emit_to("sink"); 3]).len(), 3);
    let many = log.submit(vec![emit_to("sink"); 4]);
    assert!(matches!(many, RequestResult::Aborted { why: AbortReason::TooManyEffects { limit: 3 }, .. }));
    let reply = log.submit(vec![Act::LongReply(98)]);
    assert!(matches!(reply, RequestResult::Replied { reply, .. } if reply.len() <= 100));
}

#[test]
fn bytes_that_are_no_command_are_aborted_and_bytes_that_are_no_batch_are_an_empty_op() {
    let mut log = Log::new();
    let session = log.session();
    let origin = Origin::Session { session, number: RequestNumber(1) };
    let result = log.run(Request::Command { origin, body: vec![0xff; 9] });
    assert!(matches!(result, RequestResult::Aborted { why: AbortReason::Undecodable, .. }));
    for body in [&b""[..], b"\x01", b"\x02\0\0\0\0", b"\x01\xff\xff\xff\xff", &[7; 100]] {
        assert_eq!(log.body(body), []);
    }
    assert_eq!(log.body(&Batch::join(&[])), []);
    assert_eq!(log.kernel.status().unreadable_ops, 5);
}

#[test]
fn a_request_from_a_session_that_never_was_is_told_that_it_is_not_known() {
    let mut log = Log::new();
    let session = SessionId(chronon_kernel::RequestId { op: 77, request: 3 });
    let origin = Origin::Session { session, number: RequestNumber(1) };
    let body = postcard::to_allocvec(&vec![Act::Write(1)]).unwrap();
    assert_eq!(log.run(Request::Command { origin, body }), RequestResult::Refused(Refusal::SessionEvicted));
    assert_eq!(log.heard(), []);
}

#[test]
fn a_query_answers_from_the_state_and_its_panic_is_an_error() {
    let mut log = Log::new();
    log.submit(vec![Act::Write(9)]);
    let ask = |query: u64| log.kernel.query(&postcard::to_allocvec(&query).unwrap());
    assert_eq!(ask(0), Ok(postcard::to_allocvec(&Some(Heard::Wrote(9))).unwrap()));
    assert!(matches!(ask(u64::MAX), Err(QueryError::Panicked { message }) if message.contains("the query")));
    assert_eq!(log.kernel.query(&[0xff; 20]), Err(QueryError::Undecodable));
}

#[test]
fn a_digest_tells_any_difference_in_what_was_executed() {
    let mut digests = std::collections::BTreeSet::new();
    let changes: [&[Act]; 6] = [
        &[],
        &[Act::Write(1)],
        &[Act::Write(2)],
        &[Act::Timer { key: "t".into(), at: 7 }],
        &[Act::LongReply(1)],
        &[Act::AnswerParked(crate::probe_machine::Answering::Retry)],
    ];
    for acts in changes {
        let mut kernel = Kernel::<Scribe>::new(EngineOptions {
            lineage: Lineage(1),
            limits: Limits::DEFAULT,
            mutations: Mutations::NONE,
        });
        let body = Batch::join(&[key("", "k", acts).encode()]);
        let timestamp = Timestamp::from_nanos(START);
        let op = CommittedOp { op: Op::new(1), born: stamp(0), timestamp, body: &body, skips: &[] };
        let applied = kernel.commit(op).unwrap();
        assert!(digests.insert(applied.digest.0), "{acts:?}");
    }
}

#[test]
fn random_bits_differ_from_call_to_call_and_not_from_replica_to_replica() {
    // The log runs a twin and compares.
    let mut log = Log::new();
    let replies: Vec<RequestResult> = {
        let commands = [log.command(vec![Act::Random]), log.command(vec![Act::Random])];
        log.batch(commands.to_vec())
    };
    let [RequestResult::Replied { reply: one, .. }, RequestResult::Replied { reply: other, .. }] =
        &replies[..]
    else {
        panic!("{replies:?}")
    };
    assert_ne!(one, other);
}

#[test]
fn a_sink_is_changed_only_at_the_revision_that_was_seen_and_removed_only_when_nothing_is_open() {
    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let name = crate::log::sink_name("sink");
    let set = |spec, expected_revision| Request::SinkSet { name: name.clone(), spec, expected_revision };
    let wrong = RequestResult::Refused(Refusal::WrongRevision { revision: 1 });
    assert_eq!(log.run(set(Some(spec(Contract::AtLeastOnce)), Some(7))), wrong);
    let id: EffectId = log.emit_one();
    assert_eq!(log.run(set(None, None)), RequestResult::Refused(Refusal::SinkInUse { open: 1 }));
    log.end(id, crate::log::delivered(1));
    assert_eq!(log.run(set(None, Some(1))), RequestResult::SinkSet { revision: 1 });
    let gone = RequestResult::Refused(Refusal::WrongRevision { revision: 0 });
    assert_eq!(log.run(set(None, None)), gone);
    assert!(matches!(log.submit(vec![emit_to("sink")]), RequestResult::Aborted { .. }));
}
