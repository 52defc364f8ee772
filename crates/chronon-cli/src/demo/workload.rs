//! What the demo asks of the bank.

use anyhow::Context as _;
use chronon_bank::{Answer, Bank, Command, Effect, Query, Reply, Totals, Transfer, WEBHOOK, WebhookOrder};
use chronon_client::TypedClient;
use chronon_vsr::Prng;

/// The sink that the bank's webhooks go to.
pub(crate) const SINK: &str = WEBHOOK;
/// Accounts, each with enough for every transfer.
const ACCOUNTS: u64 = 50;
const BALANCE: u64 = 1_000_000_000;
const AMOUNT_MAX: u64 = 1_000;

/// What the bank knows of its webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EffectCounts {
    pub(crate) emitted: u64,
    pub(crate) delivered: u64,
    /// Settled as anything else.
    pub(crate) undelivered: u64,
}

impl EffectCounts {
    pub(crate) fn settled(&self) -> u64 {
        self.delivered + self.undelivered
    }
}

pub(crate) async fn open_accounts(bank: &TypedClient<Bank>) -> anyhow::Result<()> {
    for account in 0..ACCOUNTS {
        let opened = bank.submit(&Command::Open { account, balance: BALANCE }).await;
        let reply = opened.context("an account can't be opened")?.reply;
        anyhow::ensure!(reply == Reply::Opened, "account {account} can't be opened: {reply:?}");
    }
    Ok(())
}

/// A transfer between two accounts, under a name that nobody else draws.
pub(crate) fn transfer(prng: &mut Prng) -> (u64, Command) {
    let transfer = prng.next_u64();
    let from = prng.below(ACCOUNTS);
    let to = (from + 1 + prng.below(ACCOUNTS - 1)) % ACCOUNTS;
    let amount = 1 + prng.below(AMOUNT_MAX);
    (transfer, Command::Transfer(Transfer { transfer, from, to, amount, order: WebhookOrder::Any }))
}

pub(crate) fn is_done(reply: &Reply) -> bool {
    match reply {
        Reply::Transferred { .. } => true,
        Reply::Opened | Reply::Rejected(_) | Reply::Reminded { .. } | Reply::Recalled => false,
    }
}

/// The transfer that a webhook's body names.
pub(crate) fn transfer_of_effect(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Effect>(body).ok().map(|effect| effect.transfer)
}

async fn totals(bank: &TypedClient<Bank>) -> anyhow::Result<(u64, Totals)> {
    match bank.query(&Query::Totals).await.context("the bank does not answer")?.answer {
        Answer::Totals { held, totals } => Ok((held, totals)),
        other @ (Answer::Balance(_) | Answer::Notice(_) | Answer::Reminder(_)) => {
            anyhow::bail!("the bank answers {other:?}")
        }
    }
}

/// All the money in the bank.
pub(crate) async fn money(bank: &TypedClient<Bank>) -> anyhow::Result<u64> {
    Ok(totals(bank).await?.0)
}

/// Transfers that the bank applied, and what it knows of their webhooks.
pub(crate) async fn applied(bank: &TypedClient<Bank>) -> anyhow::Result<(u64, EffectCounts)> {
    let Totals { transfers, delivered, undelivered, .. } = totals(bank).await?.1;
    // The bank emits in the very call that counts the transfer.
    Ok((transfers, EffectCounts { emitted: transfers, delivered, undelivered }))
}
