//! The machines of the benchmarks. One takes bytes and counts them, so that what is measured is everything else; one
//! has a state as large as it is told to.

use chronon_kernel::{Cell, Context, QueryContext, State, StateMachine, Table};
use serde::{Deserialize, Serialize};

/// Counts what it takes.
#[derive(Clone, Debug, State)]
pub(crate) struct Counter {
    bytes: Cell<u64>,
}

impl StateMachine for Counter {
    type Command = Vec<u8>;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    type Effect = ();
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Counter {
        Counter { bytes: Cell::default() }
    }

    fn apply(&mut self, _: &mut Context<'_, Counter>, command: Vec<u8>) -> u64 {
        self.bytes.modify(|bytes| *bytes += command.len() as u64);
        *self.bytes.get()
    }

    fn query(&self, _: &QueryContext, (): ()) -> u64 {
        *self.bytes.get()
    }
}

/// Keeps what was last written to each register.
#[derive(Clone, Debug, State)]
pub(crate) struct Registers {
    registers: Table<u64, Vec<u8>>,
}

/// Writes a register.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) register: u64,
    pub(crate) value: Vec<u8>,
}

impl StateMachine for Registers {
    type Command = Write;
    type Reply = ();
    type Query = u64;
    type Answer = Option<Vec<u8>>;
    type Effect = ();
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Registers {
        Registers { registers: Table::new() }
    }

    fn apply(&mut self, _: &mut Context<'_, Registers>, Write { register, value }: Write) {
        self.registers.insert(register, value);
    }

    fn query(&self, _: &QueryContext, register: u64) -> Option<Vec<u8>> {
        self.registers.get(&register).cloned()
    }
}
