//! What holds a thread of a node still: a stalled disk, a slow `apply`; and a power switch.

use std::io;
use std::sync::{Condvar, Mutex};

use chronon_storage::{File, Operation};

/// Stops whoever passes for as long as it is on.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    on: bool,
    powerless: bool,
    full: bool,
    holds_reads: bool,
    held: usize,
}

impl Brake {
    /// From now on whoever passes is held.
    pub(crate) fn pull(&self) {
        self.state.lock().unwrap().on = true;
    }

    /// Lets everybody go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().on = false;
        self.changed.notify_all();
    }

    /// Whether somebody is held now.
    pub(crate) fn holds(&self) -> bool {
        0 < self.state.lock().unwrap().held
    }

    /// Waits while it is on.
    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        state = self.changed.wait_while(state, |state| state.on && !state.powerless).unwrap();
        state.held -= 1;
    }

    /// Nothing reaches the disk behind it any more.
    pub(crate) fn cut_power(&self) {
        self.state.lock().unwrap().powerless = true;
        self.changed.notify_all();
    }

    /// Whether there is no room for chunks of checkpoints any more.
    pub(crate) fn fill(&self, full: bool) {
        self.state.lock().unwrap().full = full;
    }

    /// Whether chunks of checkpoints are read only later.
    pub(crate) fn hold_reads(&self, hold: bool) {
        self.state.lock().unwrap().holds_reads = hold;
        self.changed.notify_all();
    }

    /// The hook of a disk: flushes wait while the brake is on, and nothing happens without power.
    pub(crate) fn before_disk(&self, operation: Operation) -> io::Result<()> {
        if let Operation::Flush { .. } = operation {
            self.pass();
        }
        let mut state = self.state.lock().unwrap();
        if let Operation::Read { file: File::Pack(_), .. } = operation {
            state = self.changed.wait_while(state, |state| state.holds_reads && !state.powerless).unwrap();
        }
        if state.powerless {
            return Err(io::Error::other("the power is gone"));
        }
        let (Operation::Write { file, .. } | Operation::Reserve { file, .. }) = operation else {
            return Ok(());
        };
        if state.full && matches!(file, File::Pack(_)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}
