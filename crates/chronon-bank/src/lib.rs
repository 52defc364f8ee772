//! The reference machine: accounts, transfers between them, and one webhook a transfer, now and then on terms. Tests, the
//! demo and the benches run it; a newcomer reads it.
//!
//! Money is never made by a transfer: the balances always sum up to what the accounts were opened with.
#![forbid(unsafe_code)]

use chronon_kernel::{
    Cell, Context, EffectId, Emit, Emitted, OnParked, Parked, QueryContext, Refused, Settled, State,
    StateMachine, Table, TimerKey,
};
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// The sink that hears of every transfer.
pub const WEBHOOK: &str = "webhook";

/// The sink that keeps the receipts of those transfers that ask for one.
pub const RECEIPTS: &str = "receipts";

/// The accounts and the notices on their way.
#[derive(Clone, Debug, State)]
pub struct Bank {
    /// Balances by account.
    accounts: Table<u64, u64>,
    /// Transfers whose webhook has no outcome of `Delivered` (yet), by transfer.
    notices: Table<u64, Notice>,
    totals: Cell<Totals>,
    reminders: Table<u64, Reminder>,
    /// Webhooks that may be recalled while they are open, by transfer.
    on_terms: Table<u64, EffectId>,
}

/// What a client asks the bank to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Open an account.
    Open {
        /// The account.
        account: u64,
        /// What is in it.
        balance: u64,
    },
    /// Move money, and tell the webhook.
    Transfer(Transfer),
    /// Ring once, later. Asked again it moves; with no time it is taken back.
    Remind {
        /// The reminder's name.
        reminder: u64,
        /// After how many milliseconds of log time.
        after_ms: Option<u64>,
    },
    /// Move money, and tell the webhook on these terms.
    TransferOn(Transfer, Terms),
    /// Give up the webhook of a transfer on terms, if nothing of it can have been sent.
    Recall {
        /// The transfer.
        transfer: u64,
    },
}

/// When the webhook of a transfer is sent, and what else is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Not before so many milliseconds of log time after the transfer.
    pub after_ms: u64,
    /// Not any more after so many.
    pub deadline_ms: Option<u64>,
    /// Whether a receipt goes to another sink, on the same terms.
    pub receipt: bool,
}

/// A transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its name, drawn by the client. The bank does not compare names: that a transfer happens once is the log's promise.
    pub transfer: u64,
    /// Who pays.
    pub from: u64,
    /// Who is paid.
    pub to: u64,
    /// How much.
    pub amount: u64,
    /// The order of its webhook.
    #[serde(default)]
    pub order: WebhookOrder,
}

/// Whether the webhooks of one payer's transfers come in the order of the transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookOrder {
    /// In any order.
    #[default]
    Any,
    /// In order, one at a time: a lane per payer.
    ByPayer,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The account is open.
    Opened,
    /// The money moved.
    Transferred {
        /// What the payer has left.
        from_balance: u64,
    },
    /// It did not; nothing changed.
    Rejected(Rejection),
    /// The reminder is set, moved or taken back.
    Reminded {
        /// When it rings, in nanoseconds of log time.
        due: Option<u64>,
    },
    /// The webhook is asked back. What came of that its outcome tells.
    Recalled,
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// The account is open already.
    AccountExists {
        /// The account.
        account: u64,
    },
    /// There is no such account.
    UnknownAccount {
        /// The account.
        account: u64,
    },
    /// The payer has too little.
    InsufficientFunds {
        /// What the payer has.
        balance: u64,
    },
    /// An account, or the whole bank, would hold more than can be counted.
    TooMuch,
}

/// What a client asks the bank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// An account's balance.
    Balance {
        /// The account.
        account: u64,
    },
    /// Everything in sum.
    Totals,
    /// The webhook of a transfer.
    Notice {
        /// The transfer.
        transfer: u64,
    },
    /// A reminder.
    Reminder {
        /// Its name.
        reminder: u64,
    },
}

/// What the bank answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The balance, if there is such an account.
    Balance(Option<u64>),
    /// Everything in sum.
    Totals {
        /// The balances, added up now.
        held: u64,
        /// What was counted along the way.
        totals: Totals,
    },
    /// Where the webhook stands. None when it was delivered, or there is no such transfer.
    Notice(Option<Notice>),
    /// The reminder, if it was ever asked for.
    Reminder(Option<Reminder>),
}

/// Where a reminder stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reminder {
    /// How often it has rung.
    pub rung: u64,
    /// When it last rang, in nanoseconds of log time.
    pub last: u64,
}

/// What is counted along the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// What the accounts were opened with, in sum.
    pub opened_with: u64,
    /// Accounts.
    pub accounts: u64,
    /// Transfers applied.
    pub transfers: u64,
    /// Commands rejected.
    pub rejected: u64,
    /// Webhooks delivered.
    pub delivered: u64,
    /// Webhooks that ended otherwise.
    pub undelivered: u64,
    /// How often a webhook was parked.
    pub parked: u64,
}

/// Where a webhook stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// On its way.
    Sent,
    /// Parked.
    Parked,
    /// Firmly refused, or given up.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// The webhook's body: what was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The transfer.
    pub transfer: u64,
    /// Who paid.
    pub from: u64,
    /// Who was paid.
    pub to: u64,
    /// How much.
    pub amount: u64,
}

/// What the webhook's receiver answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
}

impl StateMachine for Bank {
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;
    type Effect = Effect;
    type Outcome = Outcome;
    const VERSION: u32 = 1;

    fn genesis() -> Bank {
        Bank {
            accounts: Table::new(),
            notices: Table::new(),
            totals: Cell::default(),
            reminders: Table::new(),
            on_terms: Table::new(),
        }
    }

    fn admit(command: &Command) -> Result<(), Refused> {
        let refused = |code: &str, message: &str| Err(Refused { code: code.into(), message: message.into() });
        match command {
            Command::Transfer(transfer) | Command::TransferOn(transfer, _) if transfer.amount == 0 => {
                refused("nothing_to_transfer", "a transfer moves at least 1")
            }
            Command::Transfer(transfer) | Command::TransferOn(transfer, _)
                if transfer.from == transfer.to =>
            {
                refused("same_account", "payer and payee are one account")
            }
            Command::Transfer(_)
            | Command::TransferOn(..)
            | Command::Open { .. }
            | Command::Remind { .. }
            | Command::Recall { .. } => Ok(()),
        }
    }

    fn apply(&mut self, cx: &mut Context<'_, Bank>, command: Command) -> Reply {
        let done = match command {
            Command::Open { account, balance } => self.open(account, balance),
            Command::Transfer(transfer) => self.transfer(cx, transfer, None),
            Command::TransferOn(transfer, terms) => self.transfer(cx, transfer, Some(terms)),
            Command::Recall { transfer } => {
                if let Some(webhook) = self.on_terms.get(&transfer) {
                    cx.cancel(*webhook);
                }
                Ok(Reply::Recalled)
            }
            Command::Remind { reminder, after_ms } => Ok(self.remind(cx, reminder, after_ms)),
        };
        done.unwrap_or_else(|rejection| {
            self.totals.modify(|totals| totals.rejected += 1);
            Reply::Rejected(rejection)
        })
    }

    fn query(&self, _: &QueryContext, query: Query) -> Answer {
        match query {
            Query::Balance { account } => Answer::Balance(self.accounts.get(&account).copied()),
            Query::Totals => {
                Answer::Totals { held: self.accounts.values().sum(), totals: *self.totals.get() }
            }
            Query::Notice { transfer } => Answer::Notice(self.notices.get(&transfer).copied()),
            Query::Reminder { reminder } => Answer::Reminder(self.reminders.get(&reminder).copied()),
        }
    }

    fn settled(&mut self, _: &mut Context<'_, Bank>, effect: Emitted<Effect>, outcome: Settled<Outcome>) {
        let transfer = effect.effect.transfer;
        let is_notice = effect.sink.as_str() == WEBHOOK;
        if is_notice {
            self.on_terms.remove(&transfer);
        }
        let notice = match outcome {
            Settled::Delivered(_) => {
                self.totals.modify(|totals| totals.delivered += 1);
                if is_notice {
                    self.notices.remove(&transfer);
                }
                return;
            }
            Settled::Failed { .. } | Settled::Cancelled => Notice::Failed,
            Settled::Unknown => Notice::Unknown,
        };
        self.totals.modify(|totals| totals.undelivered += 1);
        if is_notice {
            self.notices.insert(transfer, notice);
        }
    }

    fn parked(&mut self, _: &mut Context<'_, Bank>, effect: &Emitted<Effect>, _: Parked) -> OnParked {
        self.totals.modify(|totals| totals.parked += 1);
        if effect.sink.as_str() == WEBHOOK {
            self.notices.insert(effect.effect.transfer, Notice::Parked);
        }
        OnParked::Wait
    }

    fn timer(&mut self, cx: &mut Context<'_, Bank>, key: TimerKey) {
        let Some(reminder) = key.0.strip_prefix(REMINDER).and_then(|name| name.parse().ok()) else { return };
        let now = cx.now().nanos();
        self.reminders.modify(&reminder, |reminder| {
            reminder.rung += 1;
            reminder.last = now;
        });
    }
}

/// What the names of reminders' timers begin with.
const REMINDER: &str = "reminder/";

impl Bank {
    fn remind(&mut self, cx: &mut Context<'_, Bank>, reminder: u64, after_ms: Option<u64>) -> Reply {
        let key = TimerKey(format!("{REMINDER}{reminder}"));
        if !self.reminders.contains_key(&reminder) {
            self.reminders.insert(reminder, Reminder::default());
        }
        let due = after_ms.map(|after| cx.now() + Duration::from_millis(after));
        match due {
            Some(due) => cx.set_timer(key, due),
            None => cx.clear_timer(&key),
        }
        Reply::Reminded { due: due.map(|due| due.nanos()) }
    }

    fn open(&mut self, account: u64, balance: u64) -> Result<Reply, Rejection> {
        if self.accounts.contains_key(&account) {
            return Err(Rejection::AccountExists { account });
        }
        // No balance can overflow later if the sum of all of them can't.
        let opened_with = self.totals.get().opened_with.checked_add(balance).ok_or(Rejection::TooMuch)?;
        self.accounts.insert(account, balance);
        self.totals.modify(|totals| {
            totals.opened_with = opened_with;
            totals.accounts += 1;
        });
        Ok(Reply::Opened)
    }

    fn transfer(
        &mut self,
        cx: &mut Context<'_, Bank>,
        transfer: Transfer,
        terms: Option<Terms>,
    ) -> Result<Reply, Rejection> {
        let Transfer { transfer, from, to, amount, order } = transfer;
        let balance = *self.accounts.get(&from).ok_or(Rejection::UnknownAccount { account: from })?;
        if !self.accounts.contains_key(&to) {
            return Err(Rejection::UnknownAccount { account: to });
        }
        let from_balance = balance.checked_sub(amount).ok_or(Rejection::InsufficientFunds { balance })?;
        self.accounts.insert(from, from_balance);
        self.accounts.modify(&to, |balance| *balance += amount);
        self.totals.modify(|totals| totals.transfers += 1);
        self.notices.insert(transfer, Notice::Sent);
        let emit = match order {
            WebhookOrder::Any => Emit::to(WEBHOOK),
            WebhookOrder::ByPayer => Emit::to(WEBHOOK).lane(from.to_string()),
        };
        let effect = Effect { transfer, from, to, amount };
        let Some(Terms { after_ms, deadline_ms, receipt }) = terms else {
            cx.emit(emit, effect);
            return Ok(Reply::Transferred { from_balance });
        };
        let on_terms = |emit: Emit| {
            let emit = emit.after(Duration::from_millis(after_ms));
            match deadline_ms {
                Some(deadline) => emit.deadline(Duration::from_millis(deadline)),
                None => emit,
            }
        };
        if receipt {
            cx.emit(on_terms(Emit::to(RECEIPTS)), effect.clone());
        }
        let webhook = cx.emit(on_terms(emit), effect);
        self.on_terms.insert(transfer, webhook);
        Ok(Reply::Transferred { from_balance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronon_kernel::{
        Batch, CodecError, CommittedOp, Contract, Engine, EngineOptions, Kernel, Limits, Lineage, Origin,
        Request, RequestResult, SinkName, SinkSpec, edge,
    };
    use chronon_vsr::{Epoch, Mutations, Op, Stamp, Timestamp};

    struct Branch {
        kernel: Kernel<Bank>,
        op: u64,
    }

    impl Branch {
        fn open() -> Branch {
            let options =
                EngineOptions { lineage: Lineage(1), limits: Limits::DEFAULT, mutations: Mutations::NONE };
            let mut branch = Branch { kernel: Kernel::new(options), op: 0 };
            let name = SinkName::new(WEBHOOK).expect("it is a name");
            let spec = Some(SinkSpec::new("http", "{}", Contract::AtLeastOnce));
            branch.run(Request::SinkSet { name, spec, expected_revision: None });
            branch
        }

        fn run(&mut self, request: Request) -> RequestResult {
            self.op += 1;
            let body = Batch::join(&[request.encode()]);
            let timestamp = Timestamp::from_nanos(self.op);
            let born = Stamp::first(Epoch::new(0));
            let op = CommittedOp { op: Op::new(self.op), born, timestamp, body: &body, skips: &[] };
            self.kernel.commit(op).expect("a bank does not halt").results.remove(0)
        }

        /// The reply as JSON, and how many effects there were. Each key is another request.
        fn submit(&mut self, key: &str, json: &str) -> (String, usize) {
            let edge = edge::<Bank>();
            let body = edge.command_from_json(json.as_bytes()).expect("it is a command");
            let origin = Origin::Key { principal: String::new(), key: key.to_owned() };
            match self.run(Request::Command { origin, body }) {
                RequestResult::Replied { reply, effects, .. } => {
                    (edge.reply_to_json(&reply).expect("it is a reply"), effects.len())
                }
                other => panic!("{other:?}"),
            }
        }

        fn ask(&self, json: &str) -> String {
            let edge = edge::<Bank>();
            let query = edge.query_from_json(json.as_bytes()).expect("it is a query");
            edge.answer_to_json(&self.kernel.query(&query).expect("it is answered")).expect("it is an answer")
        }
    }

    // Scenario 67.
    #[test]
    fn a_rejected_command_answers_with_its_typed_reply_and_the_same_on_a_repeat() {
        let mut branch = Branch::open();
        assert_eq!(branch.submit("1", r#"{"open":{"account":1,"balance":10}}"#).0, r#""opened""#);
        assert_eq!(branch.submit("2", r#"{"open":{"account":2,"balance":0}}"#).0, r#""opened""#);
        let too_much = r#"{"transfer":{"transfer":1,"from":1,"to":2,"amount":11}}"#;
        let rejected = (r#"{"rejected":{"insufficient_funds":{"balance":10}}}"#.to_owned(), 0);
        assert_eq!(branch.submit("3", too_much), rejected);
        // There is enough now, but this very request was answered.
        branch.submit("4", r#"{"open":{"account":3,"balance":100}}"#);
        branch.submit("5", r#"{"transfer":{"transfer":2,"from":3,"to":1,"amount":100}}"#);
        assert_eq!(branch.submit("3", too_much), rejected);
        let cases = [
            (r#"{"open":{"account":1,"balance":1}}"#, r#"{"rejected":{"account_exists":{"account":1}}}"#),
            (
                r#"{"transfer":{"transfer":3,"from":1,"to":9,"amount":1}}"#,
                r#"{"rejected":{"unknown_account":{"account":9}}}"#,
            ),
            (r#"{"open":{"account":4,"balance":18446744073709551615}}"#, r#"{"rejected":"too_much"}"#),
        ];
        for (place, (command, reply)) in cases.into_iter().enumerate() {
            assert_eq!(branch.submit(&format!("case {place}"), command).0, reply);
        }
    }

    #[test]
    fn transfers_conserve_money_and_each_emits_one_webhook_with_its_name() {
        let mut branch = Branch::open();
        for account in 0..4 {
            branch.submit(
                &format!("open {account}"),
                &format!(r#"{{"open":{{"account":{account},"balance":100}}}}"#),
            );
        }
        for transfer in 0..50_u64 {
            let (from, to) = (transfer % 4, (transfer / 4 + 1 + transfer) % 4);
            if from == to {
                continue;
            }
            let command = format!(
                r#"{{"transfer":{{"transfer":{transfer},"from":{from},"to":{to},"amount":{},"order":"by_payer"}}}}"#,
                transfer % 60 + 1
            );
            let (reply, effects) = branch.submit(&format!("transfer {transfer}"), &command);
            assert_eq!(effects, usize::from(reply.contains("transferred")));
        }
        assert!(
            branch.ask(r#""totals""#).starts_with(r#"{"totals":{"held":400,"totals":{"opened_with":400,"#)
        );
        let effects = branch.kernel.effects(&Default::default(), None, 100);
        for effect in &effects {
            let body = edge::<Bank>().effect_to_json(&effect.payload).expect("it is an effect");
            assert!(body.starts_with(r#"{"transfer":"#) && body.contains(r#","amount":"#), "{body}");
        }
        assert!(!effects.is_empty());
    }

    #[test]
    fn a_transfer_of_nothing_or_to_oneself_is_not_admitted() {
        for json in [
            r#"{"transfer":{"transfer":1,"from":1,"to":2,"amount":0}}"#,
            r#"{"transfer":{"transfer":1,"from":1,"to":1,"amount":1}}"#,
        ] {
            let refused = edge::<Bank>().command_from_json(json.as_bytes());
            assert!(matches!(refused, Err(CodecError::Refused { .. })), "{refused:?}");
        }
    }
}
