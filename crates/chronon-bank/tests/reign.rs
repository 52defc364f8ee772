//! One effect of the bank, from the log to its start, without a cluster: what a pause of the primary, and a change of
//! the sink, must not do to it.

use std::time::Duration;

use chronon_bank::{Bank, WEBHOOK};
use chronon_kernel::{
    Attempt, AttemptEnd, Batch, CommittedOp, Contract, Dispatcher, DispatcherInput, DispatcherOutput,
    EffectState, Ended, Engine, EngineOptions, Evidence, Limits, Lineage, Origin, Request, SinkName,
    SinkSpec, edge, engine,
};
use chronon_vsr::{Epoch, Instant, Mutations, Now, Stamp, Timestamp};

/// A primary of one: an engine, a dispatcher, a clock.
struct Primary {
    engine: Box<dyn Engine>,
    dispatcher: Dispatcher,
    now: Now,
}

const STAMP: Stamp = Stamp::first(Epoch::new(0));

impl Primary {
    /// It serves, and one transfer has emitted its webhook.
    fn with_one_effect(sink: SinkSpec) -> Primary {
        let lineage = Lineage(7);
        let options = EngineOptions { lineage, limits: Limits::DEFAULT, mutations: Mutations::NONE };
        let now = Now { monotonic: Instant::from_nanos(1), wall: Timestamp::from_nanos(1_000_000_000_000) };
        let dispatcher = Dispatcher::new(1, Mutations::NONE);
        let mut primary = Primary { engine: engine::<Bank>(options), dispatcher, now };
        primary.set_sink(sink);
        primary.command(1, r#"{"open":{"account":1,"balance":100}}"#);
        primary.command(2, r#"{"open":{"account":2,"balance":0}}"#);
        primary.command(3, r#"{"transfer":{"transfer":9,"from":1,"to":2,"amount":5}}"#);
        assert!(
            primary.tell(DispatcherInput::Serving(Some(STAMP))).is_some_and(|attempt| attempt.number.0 == 1)
        );
        primary
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
    }

    fn set_sink(&mut self, spec: SinkSpec) {
        let name = SinkName::new(WEBHOOK).expect("it is a name");
        self.commit(Request::SinkSet { name, spec: Some(spec), expected_revision: None });
    }

    fn command(&mut self, key: u32, json: &str) {
        let body = edge::<Bank>().command_from_json(json.as_bytes()).expect("it is a command");
        let origin = Origin::Key { principal: String::new(), key: key.to_string() };
        self.commit(Request::Command { origin, body });
    }

    fn commit(&mut self, request: Request) {
        let body = Batch::join(&[request.encode()]);
        let op = self.engine.applied().next();
        let op = CommittedOp { op, born: STAMP, timestamp: self.now.wall, body: &body, skips: &[] };
        self.engine.commit(op).expect("a bank does not halt");
    }

    /// Tells the dispatcher something, and has everything ordered that it proposes. The attempt that it starts, if any.
    fn tell(&mut self, input: DispatcherInput) -> Option<Attempt> {
        let mut started = None;
        self.dispatcher.handle(self.now, input, &*self.engine);
        loop {
            match self.dispatcher.poll_output() {
                DispatcherOutput::Wait(_) => return started,
                DispatcherOutput::Start(attempt) => {
                    assert!(started.replace(attempt).is_none(), "one effect starts one attempt");
                }
                DispatcherOutput::Propose(request) => {
                    self.commit(request);
                    self.dispatcher.handle(self.now, DispatcherInput::Applied, &*self.engine);
                }
            }
        }
    }

    fn end(&mut self, attempt: &Attempt, end: AttemptEnd) -> Option<Attempt> {
        let (effect, number, stamp) = (attempt.effect, attempt.number, attempt.stamp);
        self.tell(DispatcherInput::AttemptEnded { effect, number, stamp, end })
    }

    fn state(&self) -> EffectState {
        let [effect] = &self.engine.effects(&Default::default(), None, 2)[..] else {
            panic!("there is one effect")
        };
        effect.state
    }
}

fn sink(contract: Contract) -> SinkSpec {
    SinkSpec::new("http", "{}", contract)
}

#[test]
fn a_primary_that_pauses_within_its_reign_starts_nothing_a_second_time() {
    for contract in [Contract::AtMostOnce, Contract::AtLeastOnce] {
        let mut primary = Primary::with_one_effect(sink(contract));
        for _ in 0..3 {
            assert_eq!(primary.tell(DispatcherInput::Serving(None)), None);
            primary.pass(Duration::from_secs(1));
            let again = primary.tell(DispatcherInput::Serving(Some(STAMP)));
            assert_eq!(again, None, "its attempt is under way since before the pause");
        }
    }
}

#[test]
fn an_attempt_that_was_abandoned_in_a_pause_is_started_after_it() {
    let mut primary = Primary::with_one_effect(sink(Contract::AtMostOnce));
    let order = primary.engine.orders(0).pop().unwrap();
    let attempt = primary.engine.attempt(&order, STAMP).unwrap();
    primary.tell(DispatcherInput::Serving(None));
    assert_eq!(primary.end(&attempt, AttemptEnd::Abandoned), None);
    let again = primary.tell(DispatcherInput::Serving(Some(STAMP))).unwrap();
    assert_eq!(
        (again.effect, again.number),
        (attempt.effect, attempt.number),
        "nothing left, so nothing is claimed anew"
    );
}

#[test]
fn a_shorter_time_out_makes_a_window_end_later_and_breaks_nothing() {
    let idempotent = Contract::Idempotent { window: Duration::from_secs(60), replays_errors: false };
    let mut primary = Primary::with_one_effect(sink(idempotent));
    let order = primary.engine.orders(0).pop().unwrap();
    let attempt = primary.engine.attempt(&order, STAMP).unwrap();
    // The next attempt waits for its turn at a frozen sink while the window runs out.
    primary.set_sink(SinkSpec { frozen: true, ..sink(idempotent) });
    let evidence = Evidence(String::from("reset"));
    assert_eq!(primary.end(&attempt, AttemptEnd::Ended(Ended::Ambiguous { evidence })), None);
    primary.pass(Duration::from_secs(1));
    primary.commit(Request::Tick);
    assert_eq!(primary.state(), EffectState::Ready);

    let limit = primary.engine.next_due().unwrap();
    primary.set_sink(SinkSpec { frozen: true, timeout: Duration::from_secs(1), ..sink(idempotent) });
    primary.pass(limit.since(primary.now.wall));
    primary.commit(Request::Tick);
    assert_eq!(primary.state(), EffectState::Ready, "a shorter call may start later");
    let limit = primary.engine.next_due().unwrap();
    assert!(primary.now.wall < limit);
    primary.pass(limit.since(primary.now.wall));
    primary.commit(Request::Tick);
    assert_eq!(primary.state(), EffectState::Parked);
}
