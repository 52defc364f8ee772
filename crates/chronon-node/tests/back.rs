//! Back, alone: an engine, and a Front that these tests play.

use std::ops::ControlFlow;
use std::time::Duration;

use chronon_bank::Bank;
use chronon_kernel::{
    Batch, CommittedOp, CommittedSkip, Context, Engine, EngineOptions, Halted, Limits, Lineage, OnPanic,
    Origin, Put, QueryContext, Request, State, StateMachine, Table, engine,
};
use chronon_node::{Back, BackInput, BackOutput, ToBack, ToFront, Token};
use chronon_vsr::{
    Applied, Checkpoint, Checksum, ClusterId, Digest, Entry, EntryHeader, Epoch, Instant, Mutations, Now, Op,
    OpRef, Release, Stamp, Timestamp,
};

const NOW: Now =
    Now { monotonic: Instant::from_nanos(1_000_000_000), wall: Timestamp::from_nanos(1_000_000_000_000) };

const OPTIONS: EngineOptions =
    EngineOptions { lineage: Lineage(1), limits: Limits::DEFAULT, mutations: Mutations::NONE };

fn new_engine() -> Box<dyn Engine> {
    engine::<Bank>(OPTIONS)
}

fn outputs(back: &mut Back) -> Vec<BackOutput> {
    let mut outputs = Vec::new();
    loop {
        match back.poll_output() {
            BackOutput::Wait(_) => return outputs,
            output => outputs.push(output),
        }
    }
}

/// The state's chunks.
fn chunks(engine: &dyn Engine) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let _ = engine.freeze().write(None, &mut |put| {
        if let Put::New { bytes, .. } = put {
            chunks.push(bytes.to_vec());
        }
        ControlFlow::Continue(())
    });
    chunks
}

fn checkpoint_of(op: Op, digest: Digest) -> Checkpoint {
    Checkpoint {
        entry: OpRef { op, checksum: Checksum::from_bytes([1; 16]) },
        end: 4096,
        timestamp: NOW.wall,
        digest,
        release: Release::new(1),
        root: Some(Checksum::from_bytes([2; 16])),
    }
}

/// Executes a tick as the next op.
fn tick(engine: &mut dyn Engine) -> Applied {
    let op = engine.applied().next();
    let timestamp = NOW.wall + Duration::from_secs(op.value());
    let body = Batch::join(&[Request::Tick.encode()]);
    let born = Stamp::first(Epoch::new(0));
    let executed = engine
        .commit(CommittedOp { op, born, timestamp, body: &body, skips: &[] })
        .expect("a tick calls no machine");
    Applied { op, digest: executed.digest }
}

/// Whoever mends the chunks of its own checkpoint asks for it again, though the first request may be on its way to be
/// met. Installed twice it would take back what was executed in between.
#[test]
fn a_checkpoint_that_is_asked_for_again_is_not_installed_over_what_came_after_it() {
    let mut source = new_engine();
    let Applied { op, digest } = tick(&mut *source);
    let chunks = chunks(&*source);
    let checkpoint = checkpoint_of(op, digest);
    let mut back = Back::new(new_engine(), 1, Mutations::NONE);
    let restored = |back: &Back| back.engine().restore(&mut chunks.clone().into_iter()).unwrap();

    back.handle(NOW, BackInput::Front(ToBack::Install(checkpoint)));
    assert!(matches!(outputs(&mut back)[..], [BackOutput::Install(_)]));
    let engine = restored(&back);
    back.install(NOW, &checkpoint, engine);
    outputs(&mut back);

    back.handle(NOW, BackInput::Front(ToBack::Install(checkpoint)));
    let again = outputs(&mut back);
    let [BackOutput::Front(ToFront::Installed { applied })] = &again[..] else { panic!("{again:?}") };
    assert_eq!(*applied, Applied { op: Op::new(1), digest });
    assert_ne!(digest, Digest::default());
    // The engine that was made the second time comes too late.
    let engine = restored(&back);
    back.install(NOW, &checkpoint, engine);
    assert!(outputs(&mut back).is_empty());
    assert_eq!(back.engine().applied(), op);
}

/// Halts at the number 13.
#[derive(Clone, State)]
struct Brittle {
    numbers: Table<u64, u64>,
}

impl StateMachine for Brittle {
    type Command = u64;
    type Reply = ();
    type Query = ();
    type Answer = ();
    type Effect = ();
    type Outcome = ();
    const VERSION: u32 = 1;
    const ON_PANIC: OnPanic = OnPanic::Halt;

    fn genesis() -> Brittle {
        Brittle { numbers: Table::new() }
    }

    fn apply(&mut self, _: &mut Context<'_, Brittle>, number: u64) {
        assert!(number != 13);
        self.numbers.insert(number, number);
    }

    fn query(&self, _: &QueryContext, (): ()) {}
}

/// The op's entry: a command with this number, which its codec writes as one byte.
fn entry(op: u64, number: u8) -> Entry {
    let origin = Origin::Key { principal: String::new(), key: op.to_string() };
    let body: std::sync::Arc<[u8]> =
        Batch::join(&[Request::Command { origin, body: vec![number] }.encode()]).into();
    let header = EntryHeader {
        cluster: ClusterId::new(7),
        born: Stamp::first(Epoch::new(0)),
        op: Op::new(op),
        parent: Checksum::from_bytes([0; 16]),
        offset: op,
        timestamp: NOW.wall + Duration::from_secs(op),
        commit: Op::ROOT,
        release: Release::new(1),
        body_size: body.len() as u32,
        body_checksum: Checksum::of(&body),
    };
    Entry::new(header, body).expect("the header names its body")
}

fn query(token: u64, at_least: u64) -> ToBack {
    ToBack::Query { token: Token(token), at_least: Op::new(at_least), query: Vec::new() }
}

/// Back after it was handed these; and where it has halted, at op 2.
fn halted_back(work: Vec<ToBack>) -> (Back, Halted) {
    let mut back = Back::new(engine::<Brittle>(OPTIONS), 1, Mutations::NONE);
    for entry in [entry(1, 1), entry(2, 13)] {
        back.handle(NOW, BackInput::Front(ToBack::Commit(entry)));
    }
    for work in work {
        back.handle(NOW, BackInput::Front(work));
    }
    let done = outputs(&mut back);
    let Some(BackOutput::Front(ToFront::Halted(halted))) = done.get(1) else { panic!("{done:?}") };
    let halted = halted.clone();
    assert_eq!((halted.op, back.engine().applied()), (Op::new(2), Op::new(1)));
    (back, halted)
}

fn skip(halted: &Halted, at: u64) -> BackInput {
    let at = chronon_kernel::RequestId { op: at, request: 0 };
    let skip = halted.skip("ada".into(), "a bug".into());
    BackInput::Front(ToBack::Skip(CommittedSkip { at, skip }))
}

// Scenario 39.
#[test]
fn what_comes_behind_an_op_at_which_back_has_halted_waits_and_is_done_in_order() {
    let third = entry(3, 3);
    let (mut back, halted) = halted_back(vec![
        ToBack::Commit(third.clone()),
        ToBack::Freeze(third.op_ref()),
        query(3, 3),
        ToBack::Commit(entry(4, 13)),
        ToBack::Commit(entry(5, 5)),
    ]);
    // A query that needs no more than there is does not wait.
    back.handle(NOW, BackInput::Front(query(1, 1)));
    assert!(matches!(outputs(&mut back)[..], [BackOutput::Query { token: Token(1), .. }]));

    back.handle(NOW, skip(&halted, 5));
    let executed = |back: &mut Back, op: u64| match back.poll_output() {
        BackOutput::Front(ToFront::Executed { applied, .. }) => assert_eq!(applied.op, Op::new(op)),
        other => panic!("{other:?}"),
    };
    executed(&mut back, 2);
    executed(&mut back, 3);
    assert!(matches!(back.poll_output(), BackOutput::Freeze(entry) if entry == third.op_ref()));
    assert_eq!(back.engine().applied(), Op::new(3), "what is frozen is the state behind that op");
    assert!(matches!(back.poll_output(), BackOutput::Query { token: Token(3), .. }));
    assert_eq!(back.engine().applied(), Op::new(3));
    // It halts again, and the rest waits again.
    let [BackOutput::Front(ToFront::Halted(second))] = &outputs(&mut back)[..] else { panic!() };
    assert_eq!(second.op, Op::new(4));
    back.handle(NOW, skip(&halted, 5));
    assert!(outputs(&mut back).is_empty(), "a skip that was followed leads nowhere else");
    back.handle(NOW, skip(second, 6));
    executed(&mut back, 4);
    executed(&mut back, 5);
}

// Scenario 39.
#[test]
fn a_checkpoint_from_beyond_leads_past_an_op_at_which_back_has_halted() {
    let mut ahead = engine::<Brittle>(OPTIONS);
    let digest = (0..3).map(|_| tick(&mut *ahead).digest).last().unwrap();
    let (mut back, halted) = halted_back(vec![ToBack::Commit(entry(3, 3)), query(3, 3)]);
    let checkpoint = checkpoint_of(Op::new(3), digest);
    back.handle(NOW, BackInput::Front(ToBack::Install(checkpoint)));
    assert!(matches!(outputs(&mut back)[..], [BackOutput::Install(_)]));
    // What led past it comes too late, and does no harm.
    back.handle(NOW, skip(&halted, 3));
    assert!(outputs(&mut back).is_empty());
    let restored = back.engine().restore(&mut chunks(&*ahead).into_iter()).unwrap();
    back.install(NOW, &checkpoint, restored);
    assert!(matches!(outputs(&mut back)[..], [BackOutput::Front(ToFront::Installed { .. })]));
    back.handle(NOW, BackInput::Front(ToBack::Commit(entry(4, 4))));
    assert!(matches!(outputs(&mut back)[..], [BackOutput::Front(ToFront::Executed { .. })]));
}

/// The answer to it may be on its way while it is asked for again.
#[test]
fn a_checkpoint_from_before_the_op_at_which_back_has_halted_ends_nothing() {
    let (mut back, halted) = halted_back(vec![ToBack::Commit(entry(3, 3))]);
    let digest = Digest::default();
    back.handle(NOW, BackInput::Front(ToBack::Install(checkpoint_of(Op::new(1), digest))));
    let answered = outputs(&mut back);
    let [BackOutput::Front(ToFront::Installed { applied })] = &answered[..] else { panic!("{answered:?}") };
    assert_eq!(*applied, Applied { op: Op::new(1), digest });
    assert_eq!(back.engine().applied(), Op::new(1));
    back.handle(NOW, skip(&halted, 3));
    let passed = outputs(&mut back);
    let executed = |output: &BackOutput| match output {
        BackOutput::Front(ToFront::Executed { applied, .. }) => Some(applied.op),
        _ => None,
    };
    assert_eq!(passed.iter().filter_map(executed).collect::<Vec<_>>(), [Op::new(2), Op::new(3)]);
}
