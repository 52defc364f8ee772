//! The machine of the benchmarks: it takes bytes and counts them, so that what is measured is everything else.

use chronon_kernel::{Cell, Context, QueryContext, State, StateMachine};

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
