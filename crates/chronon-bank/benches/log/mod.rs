//! A log for measuring: a bank with so many accounts, and ops of transfers and of the outcomes of their webhooks.

#![allow(dead_code, reason = "each of those who include it needs a part")]

use chronon_bank::{Bank, Command, Outcome, Transfer, WEBHOOK, WebhookOrder};
use chronon_kernel::{
    Batch, CommittedOp, Contract, Ended, Engine, EngineOptions, Evidence, Kernel, Limits, Lineage, Origin,
    OutcomeReport, Request, RequestNumber, RequestResult, SessionId, SinkName, SinkSpec,
};
use chronon_vsr::{Epoch, Mutations, Op, Prng, Stamp, Timestamp, View};

/// Transfers in one op, as under load.
pub(crate) const BATCH: u64 = 64;

pub(crate) struct Log {
    pub(crate) kernel: Kernel<Bank>,
    op: u64,
    number: u64,
    session: SessionId,
    accounts: u64,
    random: Prng,
}

impl Log {
    pub(crate) fn new(accounts: u64) -> Log {
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
        let spec = SinkSpec {
            concurrency: 64,
            open_max: 1_000_000,
            ..SinkSpec::new("http", "{}", Contract::AtLeastOnce)
        };
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

    pub(crate) fn command(&mut self, command: &Command) -> Request {
        self.number += 1;
        let origin = Origin::Session { session: self.session, number: RequestNumber(self.number) };
        Request::Command { origin, body: postcard::to_allocvec(command).expect("commands can be encoded") }
    }

    /// A transfer between two accounts, drawn.
    pub(crate) fn transfer(&mut self) -> Command {
        let accounts = self.accounts.max(2);
        let from = self.random.below(accounts);
        let to = (from + 1 + self.random.below(accounts - 1)) % accounts;
        let transfer = self.number;
        Command::Transfer(Transfer { transfer, from, to, amount: 1, order: WebhookOrder::Any })
    }

    pub(crate) fn transfers(&mut self) -> Vec<u8> {
        let requests: Vec<Vec<u8>> = (0..BATCH)
            .map(|_| {
                let transfer = self.transfer();
                self.command(&transfer).encode()
            })
            .collect();
        Batch::join(&requests)
    }

    pub(crate) fn outcomes(&self) -> Vec<u8> {
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

    pub(crate) fn commit_body(&mut self, body: &[u8]) -> Vec<RequestResult> {
        self.op += 1;
        let timestamp = Timestamp::from_nanos(1_700_000_000_000_000_000 + self.op * 1_000_000);
        let born = Stamp { epoch: Epoch::new(0), view: View::new(0) };
        let op = CommittedOp { op: Op::new(self.op), born, timestamp, body, skips: &[] };
        self.kernel.commit(op).expect("a bank does not halt").results
    }

    /// Lets so many effects wait.
    pub(crate) fn pile_up(&mut self, effects: u64) {
        for _ in 0..effects.div_ceil(BATCH) {
            let body = self.transfers();
            self.commit_body(&body);
        }
    }

    /// So many transfers, each settled.
    pub(crate) fn settle(&mut self, transfers: u64) {
        for _ in 0..transfers.div_ceil(BATCH) {
            let body = self.transfers();
            self.commit_body(&body);
            let outcomes = self.outcomes();
            self.commit_body(&outcomes);
        }
    }
}
