//! What a checkpoint costs at a million accounts: the pause, writing all or what changed, reading it back; and how fast a
//! log of small commands is replayed.
//!
//! `cargo bench -p chronon-bank --bench checkpoint`. The bars: a pause under 5 ms, 300,000 commands a second.

mod log;

use core::ops::ControlFlow;
use std::hint::black_box;

use chronon_bank::Command;
use chronon_kernel::{Batch, Engine, Frozen, Put};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use log::{BATCH, Log};

const ACCOUNTS: u64 = 1_000_000;

/// Commands in one op of a replay: what is under way when a primary is busy.
const REPLAYED: u64 = 256;

fn write(frozen: &mut dyn Frozen, before: Option<&dyn Frozen>) -> (u64, u64) {
    let (mut new, mut kept) = (0, 0);
    let _ = frozen.write(before, &mut |put| {
        match put {
            Put::New { .. } => new += 1,
            Put::Kept(_) => kept += 1,
        }
        ControlFlow::Continue(())
    });
    (new, kept)
}

fn checkpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoint");
    group.sample_size(10);
    let mut log = Log::new(ACCOUNTS);
    log.settle(20_000);
    group.bench_function("freeze", |bencher| {
        bencher.iter_with_large_drop(|| log.kernel.freeze());
    });
    group.bench_function("write all", |bencher| {
        bencher.iter(|| black_box(write(&mut *log.kernel.freeze(), None)));
    });
    let mut before = log.kernel.freeze();
    write(&mut *before, None);
    log.settle(BATCH);
    eprintln!("64 transfers later (new, kept): {:?}", write(&mut *log.kernel.freeze(), Some(&*before)));
    group.bench_function("write after 64 transfers", |bencher| {
        bencher.iter(|| black_box(write(&mut *log.kernel.freeze(), Some(&*before))));
    });
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let _ = log.kernel.freeze().write(None, &mut |put| {
        if let Put::New { bytes, .. } = put {
            chunks.push(bytes.to_vec());
        }
        ControlFlow::Continue(())
    });
    eprintln!("{} bytes in {} chunks", chunks.iter().map(Vec::len).sum::<usize>(), chunks.len());
    group.bench_function("restore", |bencher| {
        bencher.iter_with_large_drop(|| {
            log.kernel.restore(&mut chunks.iter().cloned()).expect("these chunks were just written")
        });
    });
}

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.sample_size(20).throughput(Throughput::Elements(REPLAYED));
    let log = std::cell::RefCell::new(Log::new(1));
    let account = std::cell::Cell::new(1_000);
    group.bench_function("small commands", |bencher| {
        bencher.iter_batched(
            || {
                let mut log = log.borrow_mut();
                let opens: Vec<Vec<u8>> = (0..REPLAYED)
                    .map(|_| {
                        account.set(account.get() + 1);
                        log.command(&Command::Open { account: account.get(), balance: 1 }).encode()
                    })
                    .collect();
                Batch::join(&opens)
            },
            |body| black_box(log.borrow_mut().commit_body(&body)),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, checkpoint, replay);
criterion_main!(benches);
