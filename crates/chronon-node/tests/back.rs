//! Back, alone: a bank's engine, and a Front that these tests play.

use std::ops::ControlFlow;
use std::time::Duration;

use chronon_bank::Bank;
use chronon_kernel::{Batch, CommittedOp, Engine, EngineOptions, Limits, Lineage, Put, Request, engine};
use chronon_node::{Back, BackInput, BackOutput, ToBack, ToFront};
use chronon_vsr::{
    Applied, Checkpoint, Checksum, Digest, Epoch, Instant, Mutations, Now, Op, OpRef, Release, Stamp,
    Timestamp,
};

const NOW: Now =
    Now { monotonic: Instant::from_nanos(1_000_000_000), wall: Timestamp::from_nanos(1_000_000_000_000) };

fn new_engine() -> Box<dyn Engine> {
    engine::<Bank>(EngineOptions { lineage: Lineage(1), limits: Limits::DEFAULT, mutations: Mutations::NONE })
}

/// Executes a tick as the next op.
fn tick(engine: &mut dyn Engine) -> Applied {
    let op = engine.applied().next();
    let timestamp = NOW.wall + Duration::from_secs(op.value());
    let body = Batch::join(&[Request::Tick.encode()]);
    let born = Stamp::first(Epoch::new(0));
    let executed = engine.commit(CommittedOp { op, born, timestamp, body: &body });
    Applied { op, digest: executed.digest }
}

/// Whoever mends the chunks of its own checkpoint asks for it again, though the first request may be on its way to be
/// met. Installed twice it would take back what was executed in between.
#[test]
fn a_checkpoint_that_is_asked_for_again_is_not_installed_over_what_came_after_it() {
    let mut source = new_engine();
    let Applied { op, digest } = tick(&mut *source);
    let mut chunks = Vec::new();
    let _ = source.freeze().write(None, &mut |put| {
        if let Put::New { bytes, .. } = put {
            chunks.push(bytes.to_vec());
        }
        ControlFlow::Continue(())
    });
    let checkpoint = Checkpoint {
        entry: OpRef { op, checksum: Checksum::from_bytes([1; 16]) },
        end: 4096,
        timestamp: NOW.wall,
        digest,
        release: Release::new(1),
        root: Some(Checksum::from_bytes([2; 16])),
    };
    let mut back = Back::new(new_engine(), 1, Mutations::NONE);
    let restored = |back: &Back| back.engine().restore(&mut chunks.clone().into_iter()).unwrap();
    let outputs = |back: &mut Back| {
        let mut outputs = Vec::new();
        loop {
            match back.poll_output() {
                BackOutput::Wait(_) => return outputs,
                output => outputs.push(output),
            }
        }
    };

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
