//! Bounds: each one reached exactly, and one more refused.

use chronon_kernel::{Busy, Contract, Engine, Limits, Refusal, RequestResult, SinkSpec};
use chronon_vsr::Duration;

use crate::log::{Log, START, delivered, emit_in, emit_to, permanent, spec};
use crate::probe_machine::{Act, Ending, Heard};

fn busy(busy: Busy) -> RequestResult {
    RequestResult::Refused(Refusal::Busy(busy))
}

#[test]
fn a_full_lane_sink_or_outbox_refuses_a_command_before_anything_is_executed() {
    let limits = Limits { open_effects_max: 8, emits_max: 4, lane_open_max: 2, ..Limits::DEFAULT };
    let cases = [
        (Busy::LaneFull, vec![emit_in("sink", "a"), emit_in("sink", "a")], emit_in("sink", "a")),
        (Busy::SinkFull, vec![emit_to("sink"), emit_to("sink"), emit_to("sink")], emit_to("sink")),
        (Busy::OutboxFull, vec![emit_to("wide"); 4], emit_to("wide")),
    ];
    for (which, fill, one_more) in cases {
        let mut log = Log::set_limited_sink(limits, SinkSpec { open_max: 3, ..spec(Contract::AtLeastOnce) });
        log.set_sink("wide", spec(Contract::AtLeastOnce));
        let filled = log.emit(fill);
        if which == Busy::OutboxFull {
            log.emit(vec![emit_to("wide")]);
        }
        let command = log.command(vec![Act::Write(1), one_more]);
        assert_eq!(log.run(command.clone()), busy(which));
        assert_eq!(log.heard(), [], "{which:?}");
        // Nothing of it is remembered: the same request goes through when there is room.
        log.end(filled[0], delivered(1));
        assert!(matches!(log.run(command), RequestResult::Replied { .. }), "{which:?}");
    }
}

#[test]
fn one_command_counts_all_that_it_emits_against_sink_and_lane() {
    let limits = Limits { lane_open_max: 2, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, SinkSpec { open_max: 4, ..spec(Contract::AtLeastOnce) });
    assert_eq!(log.submit(vec![emit_in("sink", "a"); 3]), busy(Busy::LaneFull));
    assert_eq!(log.submit(vec![emit_to("sink"); 5]), busy(Busy::SinkFull));
    assert_eq!(
        log.emit(vec![emit_to("sink"), emit_to("sink"), emit_in("sink", "a"), emit_in("sink", "a")]).len(),
        4
    );
}

#[test]
fn full_timers_refuse_a_command_that_sets_one_more() {
    let mut log = Log::with(Limits { timers_max: 2, ..Limits::DEFAULT });
    let timer = |key: &str| Act::Timer { key: key.into(), at: 2 * START };
    log.emit(vec![timer("a"), timer("b"), timer("b")]);
    assert_eq!(log.submit(vec![Act::Write(1), timer("c")]), busy(Busy::TimersFull));
    assert_eq!(log.heard(), []);
    assert!(
        matches!(log.submit(vec![timer("a")]), RequestResult::Replied { .. }),
        "moving one needs no room"
    );
    assert!(matches!(
        log.submit(vec![Act::ClearTimer("a".into()), timer("c")]),
        RequestResult::Replied { .. }
    ));
    let long = log.submit(vec![Act::Timer { key: "k".repeat(256), at: 0 }]);
    assert!(matches!(long, RequestResult::Aborted { .. }));
}

// Scenario 50.
#[test]
fn settled_effects_that_emit_effects_that_settle_at_once_do_not_starve_commands() {
    let limits = Limits { callbacks_per_op: 10, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    let again = Act::EmitAndCancel { sink: "sink".into() };
    log.emit(vec![Act::OnSettled(vec![again.clone()])]);
    log.emit(vec![again]);
    for value in 0..5 {
        let before = log.heard().len();
        assert!(matches!(log.submit(vec![Act::Write(value)]), RequestResult::Replied { .. }));
        assert!(log.heard().contains(&Heard::Wrote(value)));
        assert!(log.heard().len() - before <= 12, "the work of one op is bounded");
        assert_eq!(log.kernel.status().callbacks, 1, "and what is left waits");
        assert_eq!(log.kernel.next_due(), Some(log.now));
    }
    log.emit(vec![Act::OnSettled(Vec::new())]);
    log.tick();
    assert_eq!((log.kernel.status().callbacks, log.kernel.next_due()), (0, None));
}

#[test]
fn a_settled_that_finds_no_room_is_heard_later_and_in_order() {
    let limits = Limits { open_effects_max: 4, emits_max: 2, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    log.emit(vec![Act::OnSettled(vec![emit_to("sink"), emit_to("sink")])]);
    let ids = [log.emit(vec![emit_to("sink"), emit_to("sink")]), log.emit(vec![emit_to("sink")])].concat();
    // Each outcome frees one place and asks for two.
    log.end(ids[0], delivered(1));
    assert_eq!(log.kernel.status().ready + log.kernel.status().started, 4);
    log.end(ids[1], delivered(1));
    assert_eq!(log.endings(ids[1]), [], "there is no room for what it emits");
    assert_eq!(log.kernel.status().callbacks, 1);
    assert!(log.now < log.kernel.next_due().unwrap(), "and an idle cluster does not spin on it");
    log.end(ids[2], delivered(3));
    // Two places free: the first in the log is heard first, and takes both.
    assert_eq!(log.endings(ids[1]), [Ending::Delivered(1)]);
    assert_eq!(log.endings(ids[2]), []);
    let open: Vec<_> = log.kernel.orders(0).iter().map(|order| order.effect).collect();
    log.end(open[0], permanent());
    log.end(open[1], permanent());
    assert_eq!(log.endings(ids[2]), [Ending::Delivered(3)]);
}

#[test]
fn a_settled_that_panics_loses_its_own_writes_and_nothing_else() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    log.emit(vec![Act::OnSettled(vec![Act::Write(1), emit_to("sink"), Act::Panic])]);
    let id = log.emit_one();
    log.end(id, delivered(1));
    assert_eq!(log.heard(), []);
    assert_eq!(log.state(id), chronon_kernel::EffectState::Settled);
    let status = log.kernel.status();
    assert_eq!((status.callbacks_aborted, status.callbacks, status.emitted), (1, 0, 1));
}

// Scenario 74, in what is kept; the bench of chronon-bank measures time.
#[test]
fn settled_effects_are_forgotten_in_the_order_in_which_they_settled() {
    let limits = Limits { history_max: 3, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    let ids = log.emit(vec![emit_to("sink"); 6]);
    for id in ids.iter().rev() {
        log.end(*id, delivered(1));
    }
    let known: Vec<bool> = ids.iter().map(|id| log.kernel.effect(*id).is_some()).collect();
    assert_eq!(known, [true, true, true, false, false, false]);
    let limits = Limits { history_bytes_max: 0, ..Limits::DEFAULT };
    let mut log = Log::set_limited_sink(limits, spec(Contract::AtLeastOnce));
    let id = log.emit_one();
    log.end(id, delivered(1));
    assert!(log.kernel.effect(id).is_none());
    log.pass(Duration::from_secs(1));
}
