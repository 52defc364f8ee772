//! What a transfer costs the kernel at 1, 1,000, 100,000 and 1,000,000 accounts: with its copy for the rollback, its
//! session's reply, its effect and its digest, and the outcome that settles the effect.
//!
//! `cargo bench -p chronon-bank`. The bars: at a million accounts at most ten times what it costs at a thousand, and at
//! most 5 µs for the machine's own `apply`.

use std::hint::black_box;

use chronon_bank::{Bank, Command, Outcome, Transfer, WEBHOOK, WebhookOrder};
use chronon_kernel::{
    Batch, CommittedOp, Contract, Ended, Engine, EngineOptions, Evidence, Kernel, Limits, Lineage, Origin,
    OutcomeReport, Request, RequestNumber, RequestResult, SessionId, SinkName, SinkSpec,
};
use chronon_vsr::{Epoch, Mutations, Op, Prng, Stamp, Timestamp, View};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Transfers in one op, as under load.
const BATCH: u64 = 64;

struct Log {
    kernel: Kernel<Bank>,
    op: u64,
    number: u64,
    session: SessionId,
    accounts: u64,
    random: Prng,
}

impl Log {
    fn new(accounts: u64) -> Log {
        let options =
            EngineOptions { lineage: Lineage(1), limits: Limits::DEFAULT, mutations: Mutations::NONE };
        let mut log = Log {
            kernel: Kernel::new(options),
            op: 0,
            number: 0,
            session: SessionId(chronon_kernel::RequestId { op: 1, request: 0 }),
            accounts,
            random: Prng::new(accounts),
        };
        let spec = SinkSpec { concurrency: 64, ..SinkSpec::new("http", "{}", Contract::AtLeastOnce) };
        let name = SinkName::new(WEBHOOK).expect("it is a name");
        log.commit(&[
            Request::Register { nonce: 1 },
            Request::SinkSet { name, spec: Some(spec), expected_revision: None },
        ]);
        // At least two accounts, so that there is somebody to pay.
        let accounts: Vec<u64> = (0..accounts.max(2)).collect();
        for some in accounts.chunks(1_000) {
            let open: Vec<Request> = some
                .iter()
                .map(|account| log.command(&Command::Open { account: *account, balance: 1 << 40 }))
                .collect();
            log.commit(&open);
        }
        log
    }

    fn command(&mut self, command: &Command) -> Request {
        self.number += 1;
        let origin = Origin::Session { session: self.session, number: RequestNumber(self.number) };
        Request::Command { origin, body: postcard::to_allocvec(command).expect("commands can be encoded") }
    }

    fn transfers(&mut self) -> Vec<u8> {
        let requests: Vec<Vec<u8>> = (0..BATCH)
            .map(|_| {
                let accounts = self.accounts.max(2);
                let from = self.random.below(accounts);
                let to = (from + 1 + self.random.below(accounts - 1)) % accounts;
                let transfer = self.number;
                let order = WebhookOrder::Any;
                self.command(&Command::Transfer(Transfer { transfer, from, to, amount: 1, order })).encode()
            })
            .collect();
        Batch::join(&requests)
    }

    fn outcomes(&self) -> Vec<u8> {
        let outcome = postcard::to_allocvec(&Outcome { status: 200 }).expect("outcomes can be encoded");
        let orders = self.kernel.orders(0);
        let reports: Vec<Vec<u8>> = orders
            .into_iter()
            .map(|order| {
                let ended = Ended::Delivered { outcome: outcome.clone(), evidence: Evidence("200".into()) };
                let (effect, attempt) = (order.effect, order.number);
                Request::Outcome(OutcomeReport { effect, attempt, epoch: 0, view: 0, ended }).encode()
            })
            .collect();
        Batch::join(&reports)
    }

    fn commit(&mut self, requests: &[Request]) {
        let requests: Vec<Vec<u8>> = requests.iter().map(Request::encode).collect();
        let results = self.commit_body(&Batch::join(&requests));
        assert!(results.iter().all(|result| !matches!(result, RequestResult::Refused(_))));
    }

    fn commit_body(&mut self, body: &[u8]) -> Vec<RequestResult> {
        self.op += 1;
        let timestamp = Timestamp::from_nanos(1_700_000_000_000_000_000 + self.op * 1_000_000);
        let born = Stamp { epoch: Epoch::new(0), view: View::new(0) };
        self.kernel.commit(CommittedOp { op: Op::new(self.op), born, timestamp, body }).results
    }
}

fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transfer");
    group.sample_size(30).throughput(Throughput::Elements(BATCH));
    for accounts in [1, 1_000, 100_000, 1_000_000] {
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

criterion_group!(benches, apply);
criterion_main!(benches);
