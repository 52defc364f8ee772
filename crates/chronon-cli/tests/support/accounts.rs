//! What clients were told, in a form that shows both a loss and a second application: an account can be opened once.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each test uses some of them")]

use std::collections::BTreeSet;

use chronon_bank::{Answer, Bank, Command, Query, Reply};
use chronon_client::{Client, ClientOptions, SubmitError, TypedClient};

use super::{Cluster, PATIENCE};

/// A client, and the accounts that were acknowledged to it.
pub(crate) struct Accounts {
    pub(crate) client: TypedClient<Bank>,
    opened: BTreeSet<u64>,
    next: u64,
}

impl Accounts {
    pub(crate) async fn of(cluster: &Cluster) -> Accounts {
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        let client = TypedClient::new(Client::connect(cluster.clients(), options).await.unwrap());
        Accounts { client, opened: BTreeSet::new(), next: 0 }
    }

    /// Opens so many more accounts, eight at once, each with one coin.
    pub(crate) async fn open(&mut self, count: u64) {
        for start in (self.next..self.next + count).step_by(8) {
            let end = (start + 8).min(self.next + count);
            let opening: Vec<_> =
                (start..end).map(|account| tokio::spawn(open(self.client.clone(), account))).collect();
            for (opening, account) in opening.into_iter().zip(start..end) {
                opening.await.unwrap();
                self.opened.insert(account);
            }
        }
        self.next += count;
    }

    /// Everything that was acknowledged is there, once.
    pub(crate) async fn assert_all_there(&self) {
        let Answer::Totals { held, totals } = self.client.query(&Query::Totals).await.unwrap().answer else {
            panic!("no totals");
        };
        let count = self.opened.len() as u64;
        assert_eq!((held, totals.accounts, totals.rejected), (count, count, 0));
        for account in self.opened.iter().step_by(17) {
            let balance = self.client.query(&Query::Balance { account: *account }).await.unwrap().answer;
            assert_eq!(balance, Answer::Balance(Some(1)), "account {account} was acknowledged");
        }
    }
}

/// As an honest client does: a command of which the end is unknown is sent again under its number.
async fn open(client: TypedClient<Bank>, account: u64) {
    let mut result = client.submit(&Command::Open { account, balance: 1 }).await;
    loop {
        match result {
            Ok(committed) => return assert_eq!(committed.reply, Reply::Opened, "account {account}"),
            Err(SubmitError::Indeterminate { ticket }) => result = client.resume(ticket).await,
            Err(error) => panic!("account {account}: {error}"),
        }
    }
}
