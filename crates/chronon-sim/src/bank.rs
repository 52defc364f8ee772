//! The reference machine as a workload: transfers between a few accounts, each with a webhook, and a bank of its own
//! to compare with.

use std::collections::{BTreeMap, BTreeSet};

use chronon_bank::{
    Answer, Bank, Command, Effect, Outcome, Query, RECEIPTS, Rejection, Reply, Terms, Transfer, WEBHOOK,
    WebhookOrder,
};
use chronon_kernel::{
    Attempt, Backoff, Contract, EffectFilter, Engine, EngineOptions, SinkName, SinkSpec, engine,
};
use chronon_vsr::{Duration, Prng};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{EffectTerms, Quiet, Workload};

/// Reminders that the commands of a drawn workload name.
const REMINDERS: u64 = 5;

/// What every account is opened with.
const OPENED_WITH: u64 = 500;

/// Of the newest so many transfers some webhooks are recalled.
const RECALLED_OF: u64 = 8;

/// Transfers between a few accounts.
#[derive(Clone, Debug)]
pub struct BankWorkload {
    /// How many accounts.
    pub accounts: u64,
    /// The webhook.
    pub webhook: SinkSpec,
    /// In which order webhooks go out.
    pub order: WebhookOrder,
    /// Whether some transfers ask for what the bank must reject.
    pub rejections: bool,
    /// Whether some commands set, move and take back reminders.
    pub reminders: bool,
    /// The sink of receipts, if there is one.
    pub receipts: Option<SinkSpec>,
    /// Draws which transfers are made on terms, and which of them are recalled. None: none are.
    on_terms: Option<Prng>,
    /// The terms of those that were drawn, by transfer.
    terms: BTreeMap<u64, Terms>,
    next_transfer: u64,
}

impl BankWorkload {
    /// Eight accounts and a webhook under this contract, with short patience.
    pub fn new(contract: Contract) -> BankWorkload {
        BankWorkload {
            accounts: 8,
            webhook: sink(contract),
            receipts: None,
            on_terms: None,
            terms: BTreeMap::new(),
            order: WebhookOrder::Any,
            rejections: false,
            reminders: false,
            next_transfer: 1,
        }
    }

    /// A workload whose contract, lanes and limits are drawn.
    pub fn draw(prng: &mut Prng) -> BankWorkload {
        let mut workload = BankWorkload::new(draw_contract(prng));
        workload.rejections = true;
        workload.reminders = true;
        workload.accounts = prng.between(2, 12);
        workload.webhook.concurrency = prng.between(1, 16) as u32;
        if prng.chance(1, 2) {
            workload.order = WebhookOrder::ByPayer;
        }
        if prng.chance(1, 4) {
            workload.webhook.backoff.attempts_max = prng.between(1, 4) as u32;
        }
        workload.webhook.parked_holds_lane = prng.chance(1, 2);
        // From a source of its own: without it the rest of the seed stays as it was.
        let mut own = Prng::new(prng.clone().next_u64() ^ 0x7e24_5000_0000_0000);
        if own.chance(1, 2) {
            workload.use_terms(&mut own);
        }
        workload
    }

    /// Some transfers are made on terms: later, with a deadline, with a receipt at a second sink under another contract.
    /// Some of their webhooks are recalled.
    pub fn use_terms(&mut self, prng: &mut Prng) {
        let first = std::mem::discriminant(&self.webhook.contract);
        let another = |contract: &Contract| std::mem::discriminant(contract) != first;
        let contract = std::iter::repeat_with(|| draw_contract(prng)).find(another);
        let mut receipts = sink(contract.expect("there are five kinds"));
        receipts.concurrency = prng.between(1, 16) as u32;
        receipts.parked_holds_lane = prng.chance(1, 2);
        self.receipts = Some(receipts);
        self.on_terms = Some(prng.fork());
    }

    /// The terms of the transfer of this name, if it has any; or the one before the newest few whose webhook is recalled.
    fn put_on_terms(&mut self, transfer: Transfer) -> Command {
        let Some(prng) = &mut self.on_terms else { return Command::Transfer(transfer) };
        if prng.chance(1, 16)
            && let Some((recalled, _)) = self.terms.iter().nth_back(prng.below(RECALLED_OF) as usize)
        {
            return Command::Recall { transfer: *recalled };
        }
        if prng.chance(2, 3) {
            return Command::Transfer(transfer);
        }
        let after_ms = if prng.chance(1, 2) { prng.between(1, 1_500) } else { 0 };
        // Now and then it is over before anything is due.
        let deadline_ms = prng.chance(1, 2).then(|| prng.between(1, 2_500));
        let terms = Terms { after_ms, deadline_ms, receipt: prng.chance(1, 3) };
        self.terms.insert(transfer.transfer, terms);
        Command::TransferOn(transfer, terms)
    }

    /// The webhook's name.
    pub fn sink_name() -> SinkName {
        SinkName::new(WEBHOOK).expect("the bank's own name is a good one")
    }

    /// A transfer of its own name that the bank accepts.
    pub fn transfer(&mut self, from: u64, to: u64, amount: u64) -> Vec<u8> {
        let transfer = self.next_transfer;
        self.next_transfer += 1;
        let order = self.order;
        encode(&self.put_on_terms(Transfer { transfer, from, to, amount, order }))
    }

    /// The sink of receipts' name.
    pub fn receipts_name() -> SinkName {
        SinkName::new(RECEIPTS).expect("the bank's own name is a good one")
    }
}

/// A sink with short patience.
fn sink(contract: Contract) -> SinkSpec {
    let mut spec = SinkSpec::new("sim", "{}", contract);
    spec.timeout = Duration::from_millis(200);
    spec.backoff = Backoff { first: Duration::from_millis(20), max: Duration::from_secs(1), attempts_max: 0 };
    spec
}

fn draw_contract(prng: &mut Prng) -> Contract {
    match prng.below(5) {
        0 => Contract::Transactional,
        1 => {
            // Half of these sinks forget a key before every retry is over.
            let short = Duration::from_millis(prng.between(2_500, 12_000));
            let window = if prng.chance(1, 2) { short } else { Duration::from_secs(86_400) };
            Contract::Idempotent { window, replays_errors: prng.chance(1, 2) }
        }
        2 => Contract::Probe { settle: Duration::from_secs(4) },
        3 => Contract::AtMostOnce,
        _ => Contract::AtLeastOnce,
    }
}

impl Workload for BankWorkload {
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine> {
        engine::<Bank>(options)
    }

    fn sinks(&self) -> Vec<(SinkName, SinkSpec)> {
        let receipts = self.receipts.iter().map(|spec| (BankWorkload::receipts_name(), spec.clone()));
        [(BankWorkload::sink_name(), self.webhook.clone())].into_iter().chain(receipts).collect()
    }

    fn setup(&self) -> Vec<Vec<u8>> {
        let open = |account| encode(&Command::Open { account, balance: OPENED_WITH });
        (0..self.accounts).map(open).collect()
    }

    fn command(&mut self, prng: &mut Prng) -> Vec<u8> {
        if self.reminders && prng.chance(1, 12) {
            let after_ms = if prng.chance(1, 6) { None } else { Some(prng.between(1, 1_500)) };
            return encode(&Command::Remind { reminder: prng.below(REMINDERS), after_ms });
        }
        let from = prng.below(self.accounts);
        let step = prng.between(1, self.accounts - 1);
        if !self.rejections {
            return self.transfer(from, (from + step) % self.accounts, prng.between(1, 3));
        }
        // Now and then to an account that does not exist, or more than there is: a rejection is a reply too.
        let to = if prng.chance(1, 50) { self.accounts } else { (from + step) % self.accounts };
        let amount_max = if prng.chance(1, 30) { 10 * OPENED_WITH } else { 40 };
        let amount = prng.between(1, amount_max);
        self.transfer(from, to, amount)
    }

    fn query(&mut self, prng: &mut Prng) -> Vec<u8> {
        encode(&match prng.below(4) {
            0 => Query::Totals,
            1 => Query::Notice { transfer: prng.between(1, self.next_transfer) },
            _ => Query::Balance { account: prng.below(self.accounts + 1) },
        })
    }

    fn outcome(&self, _: &Attempt) -> Vec<u8> {
        encode(&Outcome { status: 200 })
    }

    fn terms(&self, effect: &[u8]) -> Option<EffectTerms> {
        let transfer = decode::<Effect>(effect).map(|effect| effect.transfer);
        Some(
            transfer.and_then(|transfer| self.terms.get(&transfer)).map_or_else(EffectTerms::default, limits),
        )
    }

    fn describe_command(&self, command: &[u8]) -> String {
        decode::<Command>(command).map_or_else(|| "what is no command".to_owned(), |it| format!("{it:?}"))
    }

    fn describe_reply(&self, reply: &[u8]) -> String {
        decode::<Reply>(reply).map_or_else(|| "what is no reply".to_owned(), |it| format!("{it:?}"))
    }

    fn describe_effect(&self, effect: &[u8]) -> String {
        decode::<Effect>(effect).map_or_else(|| "what is no effect".to_owned(), |it| format!("{it:?}"))
    }

    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        let mut model = Model::default();
        for applied in &quiet.applied {
            let command = decode(applied.command).ok_or("a command can't be read")?;
            let expected = model.apply(&command, applied.log_time);
            let reply: Reply = decode(applied.reply).ok_or("a reply can't be read")?;
            if reply != expected {
                return Err(format!(
                    "{command:?} at {:?} was answered {reply:?}, not {expected:?}",
                    applied.at
                ));
            }
        }
        model.check_reminders(quiet)?;
        model.check_recalls(quiet)?;
        for account in 0..self.accounts {
            let answer = quiet.engine.query(&encode(&Query::Balance { account })).ok();
            let balance = model.balances.get(&account).copied();
            if answer != Some(encode(&Answer::Balance(balance))) {
                return Err(format!("account {account} does not hold {balance:?}"));
            }
        }
        let answer = quiet.engine.query(&encode(&Query::Totals)).ok();
        let Some(Answer::Totals { held, totals }) = answer.as_deref().and_then(decode) else {
            return Err("the totals can't be read".to_owned());
        };
        if held != totals.opened_with || held != self.accounts * OPENED_WITH {
            return Err(format!("{held} is held; the accounts were opened with {}", totals.opened_with));
        }
        let status = quiet.engine.status();
        if totals.transfers != model.transfers.len() as u64
            || status.emitted != totals.transfers + model.receipts
        {
            return Err(format!("{} transfers, {} effects", totals.transfers, status.emitted));
        }
        if totals.delivered != status.delivered
            || totals.undelivered + totals.delivered + status.parked + status.ready != status.emitted
        {
            return Err(format!("the machine heard {totals:?} of {status:?}"));
        }
        // The ledger outside: every notice is of a transfer that was made, in just these words, under one key.
        let mut keys = BTreeMap::new();
        let acts =
            quiet.sinks.iter().flat_map(|(name, sink)| sink.ledger().iter().map(move |act| (name, act)));
        for (name, act) in acts {
            let effect: Effect = decode(&act.payload).ok_or("a sink's body can't be read")?;
            if model.transfers.get(&effect.transfer) != Some(&(effect.from, effect.to, effect.amount)) {
                return Err(format!("the webhook heard of {effect:?}, which was never made"));
            }
            if keys.insert((name, effect.transfer), &act.key).is_some_and(|first| *first != act.key) {
                return Err(format!("transfer {} came under two keys", effect.transfer));
            }
        }
        Ok(())
    }
}

/// A bank in twenty lines: what the replies must be if every command is applied once, in log order.
#[derive(Default)]
struct Model {
    balances: BTreeMap<u64, u64>,
    transfers: BTreeMap<u64, (u64, u64, u64)>,
    /// For each reminder whatever was asked of it: when, and when it was to ring.
    reminders: BTreeMap<u64, Vec<(u64, Option<u64>)>>,
    receipts: u64,
    /// When the webhooks of transfers on terms are due.
    due: BTreeMap<u64, u64>,
    /// Whose webhook was recalled before it was due: nothing of it can have started.
    recalled: BTreeSet<u64>,
}

impl Model {
    /// What was recalled in time is cancelled.
    fn check_recalls(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        let filter = EffectFilter { sink: Some(BankWorkload::sink_name()), ..EffectFilter::default() };
        for view in quiet.engine.effects(&filter, None, usize::MAX) {
            let Some(effect) = decode::<Effect>(&view.payload) else { continue };
            let outcome = view.outcome.as_ref().map(|outcome| outcome.outcome);
            // A person may have given it an outcome before.
            let in_time = self.recalled.contains(&effect.transfer) && view.acts.is_empty();
            if in_time && outcome != Some("cancelled") {
                return Err(format!("{effect:?} was recalled before it was due, and ended as {outcome:?}"));
            }
        }
        Ok(())
    }

    /// Every reminder rang once for each time that it was due before it was moved or taken back, and not too early.
    fn check_reminders(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        for (reminder, asked) in &self.reminders {
            let replaced = asked.iter().skip(1).map(|(at, _)| *at).chain([u64::MAX]);
            let rings = asked
                .iter()
                .zip(replaced)
                .filter_map(|((_, due), replaced)| due.filter(|due| *due <= replaced));
            let (rings, last) = (rings.clone().count() as u64, rings.last().unwrap_or_default());
            let answer = quiet.engine.query(&encode(&Query::Reminder { reminder: *reminder })).ok();
            let Some(Answer::Reminder(Some(found))) = answer.as_deref().and_then(decode) else {
                return Err(format!("reminder {reminder} is forgotten"));
            };
            if found.rung != rings || found.last < last {
                return Err(format!("reminder {reminder} is {found:?}; it was asked for at {asked:?}"));
            }
        }
        Ok(())
    }

    fn apply(&mut self, command: &Command, log_time: u64) -> Reply {
        match *command {
            Command::Remind { reminder, after_ms } => {
                let due = after_ms.map(|after| log_time + after * 1_000_000);
                self.reminders.entry(reminder).or_default().push((log_time, due));
                Reply::Reminded { due }
            }
            Command::Open { account, balance } => {
                self.balances.insert(account, balance);
                Reply::Opened
            }
            Command::Recall { transfer } => {
                if self.due.get(&transfer).is_some_and(|due| log_time < *due) {
                    self.recalled.insert(transfer);
                }
                Reply::Recalled
            }
            Command::TransferOn(ref transfer, terms) => {
                let reply = self.apply(&Command::Transfer(transfer.clone()), log_time);
                if let Reply::Transferred { .. } = reply {
                    self.receipts += u64::from(terms.receipt);
                    self.due.insert(transfer.transfer, log_time + terms.after_ms * 1_000_000);
                }
                reply
            }
            Command::Transfer(Transfer { transfer, from, to, amount, .. }) => {
                let (payer, payee) = (self.balances.get(&from).copied(), self.balances.get(&to).copied());
                let unknown = |account| Reply::Rejected(Rejection::UnknownAccount { account });
                match (payer, payee) {
                    (None, _) => unknown(from),
                    (Some(_), None) => unknown(to),
                    (Some(balance), Some(_)) if balance < amount => {
                        Reply::Rejected(Rejection::InsufficientFunds { balance })
                    }
                    (Some(balance), Some(other)) => {
                        self.balances.insert(from, balance - amount);
                        self.balances.insert(to, other + amount);
                        self.transfers.insert(transfer, (from, to, amount));
                        Reply::Transferred { from_balance: balance - amount }
                    }
                }
            }
        }
    }
}

fn limits(terms: &Terms) -> EffectTerms {
    EffectTerms {
        after: Duration::from_millis(terms.after_ms),
        deadline: terms.deadline_ms.map(Duration::from_millis),
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("the bank's types can be written")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
