//! Lanes: first in, first out, one at a time, and fair between them.

use chronon_kernel::{Contract, EffectState, Engine, SinkSpec};

use crate::log::{Log, SECOND, definite, delivered, emit_in, emit_to, spec};
use crate::probe_machine::Act;

fn delayed(lane: &str) -> Act {
    Act::Emit {
        sink: "sink".into(),
        lane: Some(lane.into()),
        after: SECOND,
        deadline: None,
        body: Vec::new(),
    }
}

#[test]
fn effects_of_one_lane_go_one_at_a_time_in_order_and_those_without_go_at_once() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let lane = log.emit(vec![emit_in("sink", "a"), emit_in("sink", "a"), emit_in("sink", "a")]);
    let free = log.emit(vec![emit_to("sink"), emit_to("sink")]);
    assert!(free.iter().all(|id| log.order(*id).is_some()));
    for (place, id) in lane.iter().enumerate() {
        assert!(lane[place + 1..].iter().all(|later| log.state(*later) == EffectState::Ready));
        // Waiting for the next attempt holds the lane as well.
        log.end(*id, definite());
        assert!(lane[place + 1..].iter().all(|later| log.state(*later) == EffectState::Ready));
        log.pass(SECOND);
        log.end(*id, delivered(1));
    }
}

#[test]
fn a_delayed_effect_joins_its_lane_when_it_is_due() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let first = log.emit(vec![delayed("a"), emit_in("sink", "a"), emit_in("sink", "a")]);
    assert_eq!(log.state(first[0]), EffectState::Scheduled);
    assert!(log.order(first[1]).is_some());
    log.pass(SECOND);
    log.end(first[1], delivered(1));
    assert!(log.order(first[2]).is_some(), "it was there before");
    log.end(first[2], delivered(1));
    assert!(log.order(first[0]).is_some());
}

#[test]
fn lanes_take_turns_at_a_sink_with_one_place() {
    let mut log = Log::with_sink(SinkSpec { concurrency: 1, ..spec(Contract::AtLeastOnce) });
    let mut acts = vec![emit_in("sink", "busy"); 6];
    acts.extend([emit_in("sink", "b"), emit_in("sink", "c"), emit_to("sink")]);
    let ids = log.emit(acts);
    let mut order = Vec::new();
    while let Some(id) = ids.iter().find(|id| log.order(**id).is_some()) {
        order.push(ids.iter().position(|other| other == id).unwrap());
        log.end(*id, delivered(1));
    }
    assert_eq!(order, [0, 6, 7, 8, 1, 2, 3, 4, 5]);
}

// Scenario 76.
#[test]
fn two_commands_of_one_batch_emit_two_effects_with_two_keys() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let commands = [log.command(vec![emit_to("sink")]), log.command(vec![emit_to("sink"), emit_to("sink")])];
    let results = log.batch(commands.to_vec());
    let ids: Vec<_> = results
        .iter()
        .flat_map(|result| match result {
            chronon_kernel::RequestResult::Replied { effects, .. } => effects.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.iter().map(|id| id.n()).collect::<Vec<_>>(), [0, 1, 2]);
    let keys: std::collections::BTreeSet<_> = ids.iter().map(|id| log.view(*id).key).collect();
    assert_eq!(keys.len(), 3);
    assert_eq!(log.kernel.orders(0).len(), 3);
}

#[test]
fn no_more_are_started_than_the_sink_has_places_and_none_while_it_is_frozen() {
    let mut log = Log::with_sink(SinkSpec { concurrency: 2, ..spec(Contract::AtLeastOnce) });
    let ids = log.emit(vec![emit_to("sink"); 5]);
    assert_eq!(log.kernel.orders(0).len(), 2);
    log.set_sink("sink", SinkSpec { concurrency: 4, ..spec(Contract::AtLeastOnce) });
    assert_eq!(log.kernel.orders(0).len(), 4);
    log.set_sink("sink", SinkSpec { frozen: true, ..spec(Contract::AtLeastOnce) });
    log.end(ids[0], delivered(1));
    assert_eq!(log.kernel.orders(0).len(), 3, "what was released may still end; nothing follows");
    log.set_sink("sink", spec(Contract::AtLeastOnce));
    assert_eq!(log.kernel.orders(0).len(), 4);
}
