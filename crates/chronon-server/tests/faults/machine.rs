//! The machine of these tests: accounts, and a memory of everything that it was ever told.

use chronon_kernel::{Cell, Context, Emit, Emitted, QueryContext, Settled, State, StateMachine, Table};
use serde::{Deserialize, Serialize};

/// The sink's name.
pub(crate) const SINK: &str = "out";

/// How many accounts there are, and what each starts with.
const ACCOUNTS: u64 = 16;
const BALANCE: i64 = 1_000;

/// Money that moves, and how often each command was applied.
#[derive(Clone, State)]
pub(crate) struct Ledger {
    accounts: Table<u64, i64>,
    applied: Table<u64, u32>,
    heard: Table<u64, Vec<String>>,
    /// Of everything: a replica that differs in anything answers another one.
    trail: Cell<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Moves money between two accounts that its number chooses.
    Transfer(u64),
    /// The same, with bytes that say nothing and take room in the log.
    Heavy(u64, Vec<u8>),
    /// Asks the sink for something, under this number.
    Send(u64),
}

/// Everything that the machine knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Books {
    /// Each command that was applied, and how often.
    pub(crate) applied: Vec<(u64, u32)>,
    /// Each effect that has an outcome, and the outcomes heard.
    pub(crate) heard: Vec<(u64, Vec<String>)>,
    pub(crate) money: i64,
    pub(crate) trail: u64,
}

impl Books {
    /// No money came or went, no command was applied twice, and no effect had two outcomes.
    pub(crate) fn assert_sound(&self) {
        assert_eq!(self.money, ACCOUNTS as i64 * BALANCE, "money is conserved");
        let twice: Vec<_> = self.applied.iter().filter(|(_, times)| *times != 1).collect();
        assert!(twice.is_empty(), "applied more than once: {twice:?}");
        let doubled: Vec<_> = self.heard.iter().filter(|(_, outcomes)| outcomes.len() != 1).collect();
        assert!(doubled.is_empty(), "more than one outcome: {doubled:?}");
    }
}

impl StateMachine for Ledger {
    type Command = Command;
    type Reply = u64;
    type Query = ();
    type Answer = Books;
    type Effect = u64;
    type Outcome = String;
    const VERSION: u32 = 1;

    fn genesis() -> Ledger {
        let mut accounts = Table::new();
        for account in 0..ACCOUNTS {
            accounts.insert(account, BALANCE);
        }
        Ledger { accounts, applied: Table::new(), heard: Table::new(), trail: Cell::new(0) }
    }

    fn apply(&mut self, cx: &mut Context<'_, Ledger>, command: Command) -> u64 {
        let (Command::Transfer(number) | Command::Heavy(number, _) | Command::Send(number)) = command;
        let times = self.applied.get(&number).copied().unwrap_or(0) + 1;
        self.applied.insert(number, times);
        self.trail.set(self.trail.get().wrapping_mul(31).wrapping_add(number));
        match command {
            Command::Transfer(number) | Command::Heavy(number, _) => {
                let (from, to) = (number % ACCOUNTS, number / ACCOUNTS % ACCOUNTS);
                self.accounts.modify(&from, |balance| *balance -= 1);
                self.accounts.modify(&to, |balance| *balance += 1);
            }
            Command::Send(number) => drop(cx.emit(Emit::to(SINK), number)),
        }
        number
    }

    fn query(&self, _: &QueryContext, (): ()) -> Books {
        Books {
            applied: self.applied.iter().map(|(number, times)| (*number, *times)).collect(),
            heard: self.heard.iter().map(|(number, outcomes)| (*number, outcomes.clone())).collect(),
            money: self.accounts.values().sum(),
            trail: *self.trail.get(),
        }
    }

    fn settled(&mut self, _: &mut Context<'_, Ledger>, effect: Emitted<u64>, outcome: Settled<String>) {
        let mut outcomes = self.heard.get(&effect.effect).cloned().unwrap_or_default();
        outcomes.push(format!("{outcome:?}"));
        self.heard.insert(effect.effect, outcomes);
    }
}
