//! Log time: delays, deadlines, timers and jumps.

use chronon_kernel::{AttemptNumber, Contract, EffectState, Ended, Engine, Limits, Parked};
use chronon_vsr::{Duration, Timestamp};

use crate::log::{Log, SECOND, START, definite, delivered, emit_to, evidence, spec};
use crate::probe_machine::{Act, Heard};

const HOUR: Duration = Duration::from_secs(3_600);

fn emit(after: Duration, deadline: Option<Duration>) -> Act {
    Act::Emit { sink: "sink".into(), lane: None, after, deadline, body: Vec::new() }
}

fn timer(key: &str, after: Duration) -> Act {
    Act::Timer { key: key.into(), at: START + after.as_nanos() as u64 }
}

// Scenario 57, as far as the kernel has a say.
#[test]
fn nothing_is_due_in_an_idle_kernel() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    assert_eq!(log.kernel.next_due(), None);
    let id = log.emit_one();
    assert_eq!(log.kernel.next_due(), None, "an attempt under way needs no op");
    log.end(id, delivered(1));
    assert_eq!(log.kernel.next_due(), None);
}

#[test]
fn a_delayed_effect_starts_at_its_time_and_not_before() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let id = log.emit(vec![emit(SECOND, None)])[0];
    let due = log.now + SECOND;
    assert_eq!(log.kernel.next_due(), Some(due));
    log.pass(due.since(log.now) - Duration::from_millis(2));
    assert_eq!(log.state(id), EffectState::Scheduled);
    log.tick();
    assert_eq!(log.state(id), EffectState::Started);
}

#[test]
fn a_deadline_parks_what_is_not_delivered_as_exhausted() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let scheduled = log.emit(vec![emit(HOUR, Some(SECOND))])[0];
    let waiting = log.emit(vec![emit(Duration::ZERO, Some(Duration::from_secs(100)))])[0];
    log.end(waiting, definite());
    log.pass(SECOND);
    assert_eq!(log.view(scheduled).parked, Some(Parked::Exhausted));
    while log.view(waiting).parked.is_none() {
        match log.order(waiting) {
            Some(_) => log.end(waiting, definite()),
            None => log.pass(SECOND),
        }
    }
    assert_eq!(log.view(waiting).parked, Some(Parked::Exhausted));
    assert!(log.now.nanos() <= START + 102 * 1_000_000_000);
}

#[test]
fn an_attempt_that_nobody_tells_the_end_of_is_in_doubt_once_its_deadline_and_margin_are_over() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let id = log.emit(vec![emit(Duration::ZERO, Some(SECOND))])[0];
    let order = log.order(id).unwrap();
    assert_eq!(order.start_before, log.view(id).deadline.unwrap());
    log.pass(SECOND);
    assert_eq!(log.state(id), EffectState::Started, "it may still be under way");
    log.pass(Duration::from_millis(11_500));
    assert_eq!(log.view(id).parked, Some(Parked::InDoubt));
    // With claims nothing can have started.
    let mut log = Log::with_sink(spec(Contract::AtMostOnce));
    let id = log.emit(vec![emit(Duration::ZERO, Some(SECOND))])[0];
    log.pass(SECOND);
    assert_eq!(log.view(id).parked, Some(Parked::Exhausted));
}

#[test]
fn a_sink_may_ask_for_a_longer_wait_and_back_off_grows_to_its_bound() {
    let mut log = Log::with_sink(spec(Contract::AtLeastOnce));
    let id = log.emit_one();
    log.end(id, Ended::Definite { retry_after: Some(HOUR), evidence: evidence() });
    assert_eq!(log.view(id).due, Some(log.now + HOUR));
    log.pass(HOUR);
    let mut last = Duration::ZERO;
    for attempt in 2..20_u32 {
        assert_eq!(log.order(id).unwrap().number, AttemptNumber(attempt));
        log.end(id, definite());
        let wait = log.view(id).due.unwrap().since(log.now);
        let nominal = (Duration::from_millis(200) * 2_u32.pow(attempt - 1)).min(Duration::from_secs(300));
        assert!(nominal * 4 / 5 <= wait && wait <= nominal * 6 / 5, "{attempt}: {wait:?}");
        assert_ne!(wait, last);
        last = wait;
        log.pass(wait);
    }
}

// Scenario 48.
#[test]
fn a_timer_fires_once_across_a_fail_over() {
    let mut log = Log::new();
    log.emit(vec![timer("b", 3 * SECOND), timer("a", 2 * SECOND), timer("moved", SECOND)]);
    log.emit(vec![timer("moved", 4 * SECOND), timer("cleared", SECOND)]);
    log.emit(vec![Act::ClearTimer("cleared".into())]);
    assert_eq!(log.kernel.next_due(), Some(Timestamp::from_nanos(START + 2_000_000_000)));
    log.pass(2 * SECOND);
    log.fail_over();
    log.tick();
    log.pass(HOUR);
    let fired: Vec<Heard> = ["a", "b", "moved"].map(|key| Heard::Timer(key.into())).into();
    assert_eq!(log.heard(), fired);
    assert_eq!(log.kernel.next_due(), None);
}

// Scenario 79.
#[test]
fn what_falls_due_in_a_jump_of_log_time_is_released_at_a_bounded_rate() {
    let limits = Limits { due_per_op: 10, callbacks_per_op: 10, ..Limits::DEFAULT };
    let mut log = Log::with(limits);
    log.set_sink("sink", chronon_kernel::SinkSpec { concurrency: 1_000, ..spec(Contract::AtLeastOnce) });
    for _ in 0..2 {
        log.emit(vec![emit(SECOND, None); 50]);
    }
    log.emit((0..30).map(|key| timer(&format!("{key:02}"), SECOND)).collect());
    log.pass(HOUR);
    let mut started = log.kernel.orders(0).len();
    let mut ops = 1;
    while log.kernel.next_due().is_some_and(|due| due <= log.now) {
        let before = (started, log.heard().len());
        log.tick();
        started = log.kernel.orders(0).len();
        assert!(started - before.0 <= 10 && log.heard().len() - before.1 <= 11);
        ops += 1;
    }
    assert_eq!((started, log.heard().len()), (100, 30));
    assert!((10..=25).contains(&ops), "{ops}");
}

#[test]
fn an_effect_emitted_while_the_sink_is_down_for_an_hour_starts_again_without_a_herd() {
    // Scenario 47: concurrency bounds what starts at once, whatever has piled up.
    let mut log = Log::with_sink(chronon_kernel::SinkSpec { concurrency: 4, ..spec(Contract::AtLeastOnce) });
    let ids = log.emit(vec![emit_to("sink"); 40]);
    let down = log.now;
    while log.now.since(down) < HOUR {
        for id in &ids {
            if log.order(*id).is_some() {
                log.end(*id, definite());
            }
        }
        log.pass(Duration::from_secs(30));
    }
    let mut done = 0;
    while done < ids.len() {
        let orders = log.kernel.orders(0);
        assert!(orders.len() <= 4);
        match orders.first() {
            Some(order) => {
                log.end(order.effect, delivered(1));
                done += 1;
            }
            None => log.pass(Duration::from_secs(30)),
        }
    }
}
