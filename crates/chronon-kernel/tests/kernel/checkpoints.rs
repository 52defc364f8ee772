//! Checkpoints: a state as chunks, and an engine from chunks. In every history each op's state is written, restored,
//! and goes on as the original does.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use chronon_kernel::{
    CommittedOp, EffectFilter, Engine, EngineOptions, Frozen, Kernel, Limits, Lineage, Parked, Put,
    RestoreError,
};
use chronon_vsr::{CHUNK_SIZE_MAX, Checksum, Mutations, Op};

use crate::log::{Log, START, emit_to, spec, stamp};
use crate::probe_machine::{Act, Scribe};
use crate::random::History;

/// Chunks by name, and a state's list of them: what a vault does.
#[derive(Default)]
struct Vault {
    chunks: BTreeMap<Checksum, Vec<u8>>,
}

struct Written {
    list: Vec<Checksum>,
    new: usize,
}

impl Vault {
    fn write(&mut self, frozen: &mut dyn Frozen, before: Option<&dyn Frozen>) -> Written {
        let mut written = Written { list: Vec::new(), new: 0 };
        let flow = frozen.write(before, &mut |put| {
            match put {
                Put::New { id, bytes } => {
                    assert!(bytes.len() <= CHUNK_SIZE_MAX);
                    assert_eq!(id, Checksum::of_chunk(bytes));
                    self.chunks.insert(id, bytes.to_vec());
                    written.list.push(id);
                    written.new += 1;
                }
                Put::Kept(id) => {
                    assert!(before.is_some() && self.chunks.contains_key(&id), "nobody ever gave this chunk");
                    written.list.push(id);
                }
            }
            ControlFlow::Continue(())
        });
        assert_eq!(flow, ControlFlow::Continue(()));
        written
    }

    fn read(&self, list: &[Checksum]) -> Vec<Vec<u8>> {
        list.iter().map(|id| self.chunks[id].clone()).collect()
    }
}

fn chunks(engine: &dyn Engine) -> Vec<Vec<u8>> {
    let mut vault = Vault::default();
    let written = vault.write(&mut *engine.freeze(), None);
    vault.read(&written.list)
}

fn restore(engine: &dyn Engine, chunks: Vec<Vec<u8>>) -> Result<Box<dyn Engine>, RestoreError> {
    engine.restore(&mut chunks.into_iter())
}

/// Everything that anybody can see, and what decides and can't be seen.
fn look(engine: &dyn Engine) -> String {
    let effects = engine.effects(&EffectFilter::default(), None, usize::MAX);
    let orders = engine.orders(0);
    let acts = engine.acts(0, usize::MAX);
    let of_keys: Vec<_> = (0..20).map(|key: u32| engine.key_result("", &key.to_string())).collect();
    format!(
        "{:?} {:?} {:?} {effects:?} {orders:?} {acts:?} {of_keys:?} {:?} {:?} {:?}",
        engine.applied(),
        engine.next_due(),
        engine.newest_born(),
        engine.sinks(),
        engine.status(),
        engine,
    )
}

/// Scenarios 31 and 59: what a checkpoint holds of machine, sessions, keys, outbox and timers is what a replay gives.
#[test]
fn a_restored_engine_is_the_original_and_goes_on_like_it() {
    for seed in 1_000..1_020 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        for _ in 0..120 {
            history.step();
            let original = &history.log.kernel;
            let written = chunks(original);
            let restored = restore(original, written.clone()).unwrap();
            assert_eq!(look(&*restored), look(original), "what was restored is not what was written");
            assert_eq!(chunks(&*restored), written, "the same state has other chunks after a restore");
            // From here on the log checks that both execute every op alike; so each restored engine goes one op, and
            // is itself restored from: no history is too long.
            history.log.twin = restored;
        }
    }
}

#[test]
fn an_engine_restored_once_goes_on_like_the_original_for_the_rest_of_the_history() {
    for seed in 2_000..2_040 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        for step in 0..120 {
            history.step();
            if step == seed % 60 {
                let written = chunks(&history.log.kernel);
                history.log.twin = restore(&history.log.kernel, written).unwrap();
            }
        }
        assert_eq!(look(&*history.log.twin), look(&history.log.kernel));
        assert_eq!(chunks(&*history.log.twin), chunks(&history.log.kernel));
    }
}

#[test]
fn what_is_written_after_an_earlier_state_is_what_is_written_without_it() {
    for seed in 3_000..3_030 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        let mut vault = Vault::default();
        let mut before: Option<Box<dyn Frozen>> = None;
        for _ in 0..100 {
            history.step();
            let mut frozen = history.log.kernel.freeze();
            let written = vault.write(&mut *frozen, before.as_deref());
            let whole = Vault::default().write(&mut *history.log.kernel.freeze(), None);
            assert_eq!(written.list, whole.list);
            before = Some(frozen);
        }
    }
}

#[test]
fn a_frozen_state_stays_as_it_was() {
    let mut history = History::new(4_000);
    for _ in 0..60 {
        history.step();
    }
    let mut frozen = history.log.kernel.freeze();
    let (op, then, seen) = (frozen.op(), chunks(&history.log.kernel), look(frozen.engine()));
    for _ in 0..60 {
        history.step();
    }
    assert_eq!((frozen.op(), look(frozen.engine())), (op, seen));
    let mut vault = Vault::default();
    let written = vault.write(&mut *frozen, None);
    assert_eq!(vault.read(&written.list), then);
    assert_ne!(chunks(&history.log.kernel), then);
}

#[test]
fn a_changed_chunk_is_an_error_wherever_it_is_changed() {
    let mut history = History::new(5_000);
    for _ in 0..80 {
        history.step();
    }
    let engine = &history.log.kernel;
    let good = chunks(engine);
    let all: usize = good.iter().map(Vec::len).sum();
    let mut errors = std::collections::BTreeSet::new();
    for (place, chunk) in good.iter().enumerate() {
        for byte in 0..chunk.len() {
            // Each bit somewhere; all of them everywhere would take long.
            for bit in if all < 4_096 { 0..8 } else { byte as u32 % 8..byte as u32 % 8 + 1 } {
                let mut bad = good.clone();
                bad[place][byte] ^= 1 << bit;
                let error = restore(engine, bad).map(|_| ()).expect_err("a flipped bit was not noticed");
                errors.insert(format!("{error:?}").split([' ', '{']).next().unwrap().to_owned());
            }
        }
        let without = [&good[..place], &good[place + 1..]].concat();
        assert!(restore(engine, without).is_err(), "chunk {place} is missing, and nobody noticed");
        let twice = [&good[..=place], &good[place..]].concat();
        assert!(restore(engine, twice).is_err(), "chunk {place} came twice, and nobody noticed");
        let mut cut = good.clone();
        cut[place].pop();
        assert!(restore(engine, cut).is_err());
        let mut longer = good.clone();
        longer[place].push(0);
        assert!(restore(engine, longer).is_err());
        assert!(restore(engine, good[..place].to_vec()).is_err());
    }
    for expected in ["Format", "OutOfPlace", "Malformed", "NotAsWritten"] {
        assert!(errors.contains(expected), "{expected} is not among {errors:?}");
    }
    restore(engine, good).unwrap();
}

#[test]
fn chunks_of_two_states_do_not_make_one() {
    let mut history = History::new(6_000);
    let mut states = Vec::new();
    for _ in 0..60 {
        history.step();
        states.push(chunks(&history.log.kernel));
    }
    let newest = states.last().unwrap();
    let earlier = states.iter().rev().find(|state| state.len() == newest.len() && *state != newest).unwrap();
    for place in 0..newest.len() {
        if newest[place] != earlier[place] {
            let mut mixed = newest.clone();
            mixed[place] = earlier[place].clone();
            assert!(restore(&history.log.kernel, mixed).is_err());
        }
    }
}

#[test]
fn a_large_value_is_cut_into_chunks_and_comes_back() {
    let mut log = Log::with_sink(spec(chronon_kernel::Contract::AtLeastOnce));
    let Act::Emit { sink, lane, after, deadline, .. } = emit_to("sink") else { unreachable!() };
    let large = Act::Emit { sink, lane, after, deadline, body: vec![7; 1_000_000] };
    log.emit(vec![large]);
    let written = chunks(&log.kernel);
    assert!(4 < written.iter().filter(|chunk| chunk.len() == CHUNK_SIZE_MAX).count() + 2);
    let restored = restore(&log.kernel, written.clone()).unwrap();
    assert_eq!(chunks(&*restored), written);
    assert_eq!(look(&*restored), look(&log.kernel));
}

fn options() -> EngineOptions {
    EngineOptions { lineage: Lineage(7), limits: Limits::DEFAULT, mutations: Mutations::NONE }
}

#[test]
fn a_restored_engine_keeps_its_own_options_and_the_keys_of_open_effects() {
    let mut log = Log::with_sink(spec(chronon_kernel::Contract::AtLeastOnce));
    let id = log.emit_one();
    let other = Kernel::<Scribe>::new(EngineOptions { lineage: Lineage(8), ..options() });
    let restored = restore(&other, chunks(&log.kernel)).unwrap();
    assert_eq!(restored.effect(id).unwrap().key, log.kernel.effect(id).unwrap().key);
}

/// What happened after a backup is lost with the cluster: an effect that was open in it may have been carried out since.
#[test]
fn a_state_restored_from_a_backup_starts_nothing_and_doubts_every_open_effect_under_its_key() {
    for seed in 0..40 {
        let mut history = History::new(9_000 + seed);
        for _ in 0..60 {
            history.step();
        }
        let original = &history.log.kernel;
        let mut restored = restore(original, chunks(original)).unwrap();
        restored.distrust();
        let all = |engine: &dyn Engine| engine.effects(&EffectFilter::default(), None, usize::MAX);
        let (before, after) = (all(original), all(&*restored));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.id, &before.key, &before.outcome), (after.id, &after.key, &after.outcome));
            if before.outcome.is_none() {
                assert_eq!(after.parked, Some(Parked::InDoubt), "{before:?}");
            }
        }
        assert!(restored.sinks().iter().all(|sink| sink.spec.frozen));
        assert!(restored.orders(0).is_empty());

        // It is a state like any other: it can be kept, and the next op finds nothing to start.
        let mut kept = restore(original, chunks(&*restored)).unwrap();
        assert_eq!(all(&*kept), after);
        assert_eq!(kept.status(), restored.status());
        let timestamp = restored.freeze().timestamp() + core::time::Duration::from_secs(1);
        let body = chronon_kernel::Batch::join(&[]);
        let op = CommittedOp {
            op: kept.applied().next(),
            born: stamp(1 << 40),
            timestamp,
            body: &body,
            skips: &[],
        };
        kept.commit(op).unwrap();
        assert!(kept.orders(0).is_empty(), "seed {seed}");
    }
}

#[test]
fn an_empty_engine_is_restored_and_executes_the_first_op() {
    let kernel = Kernel::<Scribe>::new(options());
    let mut restored = restore(&kernel, chunks(&kernel)).unwrap();
    assert_eq!(restored.applied(), Op::ROOT);
    let timestamp = chronon_vsr::Timestamp::from_nanos(START);
    let body = chronon_kernel::Batch::join(&[]);
    let op = CommittedOp { op: Op::new(1), born: stamp(1), timestamp, body: &body, skips: &[] };
    restored.commit(op).unwrap();
}

#[test]
fn writing_stops_when_it_is_told_to() {
    let mut history = History::new(7_000);
    for _ in 0..20 {
        history.step();
    }
    let mut frozen = history.log.kernel.freeze();
    let mut count = 0;
    let flow = frozen.write(None, &mut |_| {
        count += 1;
        if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((flow, count), (ControlFlow::Break(()), 3));
    // What was not written to its end is no base for the next.
    let mut next = history.log.kernel.freeze();
    let mut vault = Vault::default();
    let whole = Vault::default().write(&mut *history.log.kernel.freeze(), None);
    let written = vault.write(&mut *next, Some(&*frozen));
    assert_eq!((written.new, written.list), (whole.list.len(), whole.list));
}

#[cfg(feature = "mutations")]
mod broken {
    use super::{chunks, look, restore};
    use crate::random::History;
    use chronon_vsr::{Mutation, Mutations};

    fn differs(mutation: Mutation) -> bool {
        let mut history = History::with_mutations(1_000, Mutations::broken(mutation));
        for _ in 0..60 {
            history.step();
        }
        let restored = restore(&history.log.kernel, chunks(&history.log.kernel)).unwrap();
        look(&*restored) != look(&history.log.kernel)
    }

    #[test]
    fn a_checkpoint_that_forgets_sessions_or_the_outbox_is_caught() {
        assert!(differs(Mutation::ForgetSessionsInCheckpoint));
        assert!(differs(Mutation::ForgetOutboxInCheckpoint));
        assert!(!differs(Mutation::AckBeforeFlush));
    }
}
