//! A machine that halts when it panics: nothing of the op is executed, until the log says what to skip.

use core::ops::ControlFlow;

use chronon_kernel::{
    AbortReason, Applied, Batch, CommittedOp, CommittedSkip, Context, Contract, Culprit, Emit, Emitted,
    Ended, Engine, EngineOptions, Evidence, Halted, Kernel, Limits, Lineage, OnPanic, Origin, OutcomeReport,
    Put, QueryContext, Refusal, Request, RequestId, RequestResult, Settled, Skip, State, StateMachine, Table,
    TimerKey,
};
use chronon_vsr::{Mutations, Op, Timestamp};

use crate::log::{START, sink_name, spec, stamp};

/// Writes numbers, and can't stand the number 13, nor hear of it.
#[derive(Clone, Debug, State)]
struct Brittle {
    numbers: Table<u64, u64>,
}

impl StateMachine for Brittle {
    type Command = u64;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    type Effect = u64;
    type Outcome = ();
    const VERSION: u32 = 1;
    const ON_PANIC: OnPanic = OnPanic::Halt;

    fn genesis() -> Brittle {
        Brittle { numbers: Table::new() }
    }

    fn apply(&mut self, cx: &mut Context<'_, Brittle>, number: u64) -> u64 {
        self.numbers.insert(number, cx.random());
        match number {
            13 => panic!("not thirteen"),
            // An effect whose outcome can't be heard; a timer that can't; and one that does not exist.
            100 => drop(cx.emit(Emit::to("sink"), 13)),
            101 => cx.set_timer(TimerKey("13".into()), Timestamp::ZERO),
            102 => drop(cx.emit(Emit::to("nowhere"), 1)),
            _ => drop(cx.emit(Emit::to("sink"), number)),
        }
        self.numbers.len() as u64
    }

    fn query(&self, _: &QueryContext, (): ()) -> u64 {
        self.numbers.len() as u64
    }

    fn settled(&mut self, _: &mut Context<'_, Brittle>, effect: Emitted<u64>, _: Settled<()>) {
        self.numbers.insert(1_000 + effect.effect, 0);
        assert!(effect.effect != 13, "not of thirteen");
    }

    fn timer(&mut self, _: &mut Context<'_, Brittle>, TimerKey(key): TimerKey) {
        panic!("{key}");
    }
}

/// A log with a kernel that executes it.
struct Life {
    kernel: Kernel<Brittle>,
    log: Vec<Vec<u8>>,
}

fn kernel() -> Kernel<Brittle> {
    let limits = Limits { acts_max: 3, ..Limits::DEFAULT };
    Kernel::new(EngineOptions { lineage: Lineage(7), limits, mutations: Mutations::NONE })
}

impl Life {
    fn new() -> Life {
        let mut life = Life { kernel: kernel(), log: Vec::new() };
        let spec = Some(spec(Contract::AtLeastOnce));
        life.run(vec![Request::SinkSet { name: sink_name("sink"), spec, expected_revision: None }]).unwrap();
        life
    }

    fn append(&mut self, requests: &[Request]) -> Op {
        let encoded: Vec<Vec<u8>> = requests.iter().map(Request::encode).collect();
        self.log.push(Batch::join(&encoded));
        Op::new(self.log.len() as u64)
    }

    /// Appends an op and executes it without a skip.
    fn run(&mut self, requests: Vec<Request>) -> Result<Vec<RequestResult>, Halted> {
        let op = self.append(&requests);
        execute(&mut self.kernel, &self.log, op, &[]).map(|applied| applied.results)
    }

    /// Executes everything as a replica that holds this log does.
    fn catch_up(&mut self, kernel: &mut dyn Engine) -> Vec<Applied> {
        let mut done = Vec::new();
        while kernel.applied() < Op::new(self.log.len() as u64) {
            let op = kernel.applied().next();
            let mut skips = Vec::new();
            let applied = loop {
                match execute(kernel, &self.log, op, &skips) {
                    Ok(applied) => break applied,
                    Err(halted) => skips.push(self.find(&halted).expect("the log holds a skip")),
                }
            };
            done.push(applied);
        }
        done
    }

    fn find(&self, halted: &Halted) -> Option<CommittedSkip> {
        let later = halted.op.value() + 1..=self.log.len() as u64;
        later.into_iter().find_map(|op| halted.skip_in(Op::new(op), &self.log[op as usize - 1]))
    }
}

fn execute(
    kernel: &mut dyn Engine,
    log: &[Vec<u8>],
    op: Op,
    skips: &[CommittedSkip],
) -> Result<Applied, Halted> {
    let timestamp = Timestamp::from_nanos(START + op.value());
    let body = &log[op.value() as usize - 1];
    kernel.commit(CommittedOp { op, born: stamp(1), timestamp, body, skips })
}

fn command(key: &str, number: u64) -> Request {
    let origin = Origin::Key { principal: String::new(), key: key.into() };
    Request::Command { origin, body: postcard::to_allocvec(&number).unwrap() }
}

/// The whole state, as chunks, with what is in none of them.
fn look(kernel: &Kernel<Brittle>) -> (Vec<Vec<u8>>, String) {
    let mut chunks = Vec::new();
    let flow = kernel.freeze().write(None, &mut |put| {
        if let Put::New { bytes, .. } = put {
            chunks.push(bytes.to_vec());
        }
        ControlFlow::Continue(())
    });
    assert_eq!(flow, ControlFlow::Continue(()));
    (chunks, format!("{:?} {:?} {:?}", kernel.reports(0), kernel.orders(0), kernel.status()))
}

fn restored(kernel: &Kernel<Brittle>) -> Box<dyn Engine> {
    kernel.restore(&mut look(kernel).0.into_iter()).unwrap()
}

fn end_of(effect: chronon_kernel::EffectId) -> Request {
    Request::Outcome(OutcomeReport {
        effect,
        attempt: chronon_kernel::AttemptNumber(1),
        epoch: stamp(1).epoch.value(),
        view: stamp(1).view.value(),
        ended: Ended::Delivered {
            outcome: postcard::to_allocvec(&()).unwrap(),
            evidence: Evidence::default(),
        },
    })
}

fn skip(halted: &Halted) -> Request {
    Request::Skip(halted.skip("ada".into(), "a bug".into()))
}

fn skipped() -> AbortReason {
    AbortReason::Skipped { by: "ada".into(), reason: "a bug".into() }
}

#[test]
fn nothing_of_an_op_is_executed_in_which_the_machine_panics() {
    let mut life = Life::new();
    let replied = life.run(vec![command("a", 1), command("b", 2)]).unwrap();
    let RequestResult::Replied { effects, .. } = &replied[0] else { panic!("{replied:?}") };
    let before = look(&life.kernel);
    // Before and after the poison the op holds what changes everything that there is to change.
    let halted = life
        .run(vec![end_of(effects[0]), command("c", 3), command("p", 13), command("d", 101), Request::Tick])
        .unwrap_err();
    assert_eq!((halted.op, &halted.culprit), (Op::new(3), &Culprit::Request(2)));
    assert_eq!(halted.message, "not thirteen");
    assert_eq!(look(&life.kernel), before);
    assert_eq!(life.kernel.applied(), Op::new(2));
    // Again and again it is the same.
    let body = life.log.clone();
    assert_eq!(execute(&mut life.kernel, &body, Op::new(3), &[]), Err(halted));
    assert_eq!(look(&life.kernel), before);
}

#[test]
fn a_skipped_command_is_aborted_and_everything_else_of_its_op_is_executed() {
    let mut life = Life::new();
    let halted = life.run(vec![command("c", 3), command("p", 13), command("d", 4)]).unwrap_err();
    let skip_op = life.append(&[Request::Tick, skip(&halted)]);
    life.append(&[command("p", 13), skip(&halted)]);
    let mut kernel = kernel();
    let done = life.catch_up(&mut kernel);
    let [RequestResult::Replied { .. }, aborted, RequestResult::Replied { .. }] = &done[1].results[..] else {
        panic!("{done:?}")
    };
    let at = RequestId { op: 2, request: 1 };
    assert_eq!(*aborted, RequestResult::Aborted { at, why: skipped() });
    assert_eq!(done[2].results, [RequestResult::Done, RequestResult::Done]);
    // Its key remembers what became of it, and a second skip finds the first.
    let again = RequestResult::Refused(Refusal::AlreadySkipped { by_op: skip_op.value() });
    assert_eq!(done[3].results, [aborted.clone(), again]);
    let [record] = &kernel.skips()[..] else { panic!("{:?}", kernel.skips()) };
    assert_eq!((record.op, record.skipped_by), (2, RequestId { op: 3, request: 1 }));
    assert_eq!((record.by.as_str(), record.reason.as_str()), ("ada", "a bug"));
    assert_eq!(kernel.query(&[]), Ok(postcard::to_allocvec(&2_u64).unwrap()));
}

#[test]
fn only_a_skip_of_the_very_call_leads_past_it_and_the_first_one_counts() {
    let mut life = Life::new();
    let halted = life.run(vec![command("p", 13)]).unwrap_err();
    let right = halted.skip("ada".into(), "a bug".into());
    let wrong = [
        Skip { op: 1, ..right.clone() },
        Skip { op: 3, ..right.clone() },
        Skip { culprit: Culprit::Request(1), ..right.clone() },
        Skip { culprit: Culprit::Timer(TimerKey("13".into())), ..right.clone() },
        Skip { fingerprint: [0; 32], ..right.clone() },
    ];
    life.append(&wrong.clone().map(Request::Skip));
    assert_eq!(life.find(&halted), None);
    let other = Skip { by: "bob".into(), ..right.clone() };
    life.append(&[Request::Tick, Request::Skip(right.clone()), Request::Skip(other.clone())]);
    life.append(&[Request::Skip(other)]);
    let found = life.find(&halted).unwrap();
    assert_eq!((found.at, found.skip), (RequestId { op: 4, request: 1 }, right));
    let done = life.catch_up(&mut kernel());
    let not_halted = |op| RequestResult::Refused(Refusal::NotHalted { op });
    let already = RequestResult::Refused(Refusal::AlreadySkipped { by_op: 4 });
    assert_eq!(
        done[2].results,
        [not_halted(1), not_halted(3), not_halted(2), not_halted(2), already.clone()]
    );
    assert_eq!(done[3].results, [RequestResult::Done, RequestResult::Done, already.clone()]);
    assert_eq!(done[4].results, [already]);
}

#[test]
fn each_of_several_panics_in_one_op_is_skipped_by_itself() {
    let mut life = Life::new();
    let first = life.run(vec![command("p", 13), command("c", 3), command("q", 13)]).unwrap_err();
    life.append(&[skip(&first)]);
    let body = life.log.clone();
    let one = [life.find(&first).unwrap()];
    let second = execute(&mut life.kernel, &body, first.op, &one).unwrap_err();
    assert_eq!((&first.culprit, &second.culprit), (&Culprit::Request(0), &Culprit::Request(2)));
    assert_eq!(life.find(&second), None, "equal commands are told apart by their place");
    life.append(&[skip(&second)]);
    let done = life.catch_up(&mut kernel());
    let aborted = |request| RequestResult::Aborted { at: RequestId { op: 2, request }, why: skipped() };
    assert_eq!((&done[1].results[0], &done[1].results[2]), (&aborted(0), &aborted(2)));
    assert!(matches!(done[1].results[1], RequestResult::Replied { .. }));
}

#[test]
fn a_state_between_an_op_and_its_skip_goes_on_as_any_other() {
    let mut life = Life::new();
    let halted = life.run(vec![command("p", 13)]).unwrap_err();
    life.append(&[command("a", 1)]);
    life.append(&[skip(&halted)]);
    let mut whole = kernel();
    life.catch_up(&mut whole);
    // A checkpoint right behind the op holds that it was passed, and by whom.
    let mut early = Life { kernel: kernel(), log: life.log[..2].to_vec() };
    let skips = [life.find(&halted).unwrap()];
    execute(&mut early.kernel, &life.log, Op::new(1), &[]).unwrap();
    execute(&mut early.kernel, &life.log, Op::new(2), &skips).unwrap();
    let mut later = restored(&early.kernel);
    let done = life.catch_up(&mut *later);
    assert_eq!(done[1].results, [RequestResult::Done]);
    assert_eq!((later.freeze().digest(), later.skips()), (whole.freeze().digest(), whole.skips()));
}

#[test]
fn an_outcome_and_a_timer_that_panic_halt_too_and_are_not_heard_when_they_are_skipped() {
    let mut life = Life::new();
    let replied = life.run(vec![command("a", 100), command("b", 101)]).unwrap();
    let RequestResult::Replied { effects, .. } = &replied[0] else { panic!("{replied:?}") };
    let timer = life.run(vec![Request::Tick]).unwrap_err();
    assert_eq!(timer.culprit, Culprit::Timer(TimerKey("13".into())));
    life.append(&[skip(&timer)]);
    life.append(&[end_of(effects[0])]);
    let body = life.log.clone();
    let skips = [life.find(&timer).unwrap()];
    execute(&mut life.kernel, &body, Op::new(3), &skips).unwrap();
    execute(&mut life.kernel, &body, Op::new(4), &[]).unwrap();
    let outcome = execute(&mut life.kernel, &body, Op::new(5), &[]).unwrap_err();
    assert_eq!(outcome.culprit, Culprit::Settled(effects[0]));
    assert_eq!(outcome.message, "not of thirteen");
    life.append(&[skip(&outcome)]);
    let mut kernel = kernel();
    life.catch_up(&mut kernel);
    let status = kernel.status();
    assert_eq!((status.delivered, status.callbacks, status.callbacks_aborted), (1, 0, 2));
    assert_eq!(kernel.query(&[]), Ok(postcard::to_allocvec(&2_u64).unwrap()), "nothing of them is left");
}

#[test]
fn what_breaks_a_limit_and_does_not_panic_is_aborted_as_ever() {
    let mut life = Life::new();
    let aborted = life.run(vec![command("a", 102)]).unwrap();
    let why = AbortReason::UnknownSink { sink: "nowhere".into() };
    assert_eq!(aborted, [RequestResult::Aborted { at: RequestId { op: 2, request: 0 }, why }]);
}

#[test]
fn the_newest_skips_are_remembered_up_to_their_bound() {
    let mut life = Life::new();
    for key in 0..5 {
        let op = life.append(&[command(&key.to_string(), 13)]);
        let body = life.log.clone();
        let halted = execute(&mut life.kernel, &body, op, &[]).unwrap_err();
        life.append(&[skip(&halted)]);
        let (mut kernel, skips) = (kernel(), [life.find(&halted).unwrap()]);
        let body = life.log.clone();
        execute(&mut life.kernel, &body, op, &skips).unwrap();
        execute(&mut life.kernel, &body, op.next(), &[]).unwrap();
        life.catch_up(&mut kernel);
        assert_eq!(kernel.skips(), life.kernel.skips());
    }
    let ops: Vec<u64> = life.kernel.skips().iter().map(|skip| skip.op).collect();
    assert_eq!(ops, [6, 8, 10]);
}
