//! What a transfer costs at 1, 1,000, 100,000 and 1,000,000 accounts: the machine's own `apply` with its copy for the
//! rollback, and all that the kernel does for one: its session's reply, its effect, its digest, and the outcome that
//! settles the effect.
//!
//! `cargo bench -p chronon-bank`. The bars: at a million accounts at most ten times what it costs at a thousand, and at
//! most 5 µs for the machine's own `apply`.

mod log;

use std::hint::black_box;

use chronon_bank::{Command, Transfer};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use log::{BATCH, Log};

const ACCOUNTS: [u64; 4] = [1, 1_000, 100_000, 1_000_000];

/// Transfers whose webhooks are on their way, each with a notice in the machine's state.
const NOTICES: u64 = 10_000;

/// The machine alone.
fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(1));
    for accounts in ACCOUNTS {
        let log = std::cell::RefCell::new(Log::new(accounts));
        let mut name = 0;
        group.bench_function(BenchmarkId::from_parameter(accounts), |bencher| {
            bencher.iter_batched(
                || {
                    name = (name + 1) % NOTICES;
                    match log.borrow_mut().transfer() {
                        Command::Transfer(transfer) => {
                            Command::Transfer(Transfer { transfer: name, ..transfer })
                        }
                        other => other,
                    }
                },
                |command| black_box(log.borrow_mut().kernel.rehearse(command)).is_ok(),
                BatchSize::SmallInput,
            );
        });
    }
}

fn transfer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transfer");
    group.sample_size(30).throughput(Throughput::Elements(BATCH));
    for accounts in ACCOUNTS {
        let log = std::cell::RefCell::new(Log::new(accounts));
        // What settles the last batch's effects is made outside of the measure and measured in a bench of its own.
        group.bench_function(BenchmarkId::new("commit", accounts), |bencher| {
            bencher.iter_batched(
                || {
                    let mut log = log.borrow_mut();
                    let outcomes = log.outcomes();
                    log.commit_body(&outcomes);
                    log.transfers()
                },
                |body| black_box(log.borrow_mut().commit_body(&body)),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("settle", accounts), |bencher| {
            bencher.iter_batched(
                || {
                    let mut log = log.borrow_mut();
                    let body = log.transfers();
                    log.commit_body(&body);
                    log.outcomes()
                },
                |body| black_box(log.borrow_mut().commit_body(&body)),
                BatchSize::PerIteration,
            );
        });
    }
}

/// Scenarios 46 and 74: what a batch costs while so many effects wait, and after so many have settled.
fn outbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("outbox");
    group.sample_size(30).throughput(Throughput::Elements(BATCH));
    for (name, waiting) in [("waiting", true), ("settled", false)] {
        for effects in [100, 10_000, 900_000] {
            let mut log = Log::new(1_000);
            if waiting {
                log.pile_up(effects)
            } else {
                log.settle(effects)
            };
            let log = std::cell::RefCell::new(log);
            group.bench_function(BenchmarkId::new(name, effects), |bencher| {
                bencher.iter_batched(
                    || log.borrow_mut().transfers(),
                    |body| {
                        let mut log = log.borrow_mut();
                        log.commit_body(&body);
                        let outcomes = log.outcomes();
                        black_box(log.commit_body(&outcomes))
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

criterion_group!(benches, apply, transfer, outbox);
criterion_main!(benches);
