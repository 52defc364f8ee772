//! What holds a thread of a node still: a stalled disk, a slow `apply`; and a power switch.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Condvar, Mutex};

use chronon_storage::{File, Operation};

/// What a disk gives and takes at a time.
const BLOCK: usize = 4096;

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
    /// It can't give back room within a file.
    holeless: bool,
    holds_reads: bool,
    held: usize,
    /// What each file of checkpoints takes.
    taken: BTreeMap<File, u64>,
    /// And where each block begins that was given back within it.
    holes: BTreeMap<File, BTreeSet<u64>>,
    /// What they may take together.
    room: Option<u64>,
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

    /// Whether it can't give back room within a file.
    pub(crate) fn lacks_holes(&self, holeless: bool) {
        self.state.lock().unwrap().holeless = holeless;
    }

    /// How much there is for chunks of checkpoints, if that has an end, and what each file takes already.
    pub(crate) fn bound(&self, room: Option<u64>, taken: BTreeMap<File, u64>) {
        let mut state = self.state.lock().unwrap();
        state.room = room;
        state.taken.extend(taken);
    }

    /// What chunks of checkpoints take.
    pub(crate) fn taken(&self) -> u64 {
        self.state.lock().unwrap().taken()
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
        state.take(operation)
    }
}

impl State {
    fn taken(&self) -> u64 {
        let holes: usize = self.holes.values().map(BTreeSet::len).sum();
        self.taken.values().sum::<u64>() - (holes * BLOCK) as u64
    }

    /// Counts what an operation takes or gives back.
    fn take(&mut self, operation: Operation) -> io::Result<()> {
        let (file, end) = match operation {
            Operation::Write { file, position, length } => (file, position + length as u64),
            Operation::Reserve { file, bytes } => (file, bytes),
            Operation::Truncate { file, size } => {
                self.taken.entry(file).and_modify(|taken| *taken = size.min(*taken));
                return Ok(());
            }
            Operation::Punch { .. } if self.holeless => return Err(io::ErrorKind::Unsupported.into()),
            Operation::Punch { file, position, length } => {
                self.holes.entry(file).or_default().extend((position..position + length).step_by(BLOCK));
                return Ok(());
            }
            Operation::Remove { file } => {
                self.taken.remove(&file);
                self.holes.remove(&file);
                return Ok(());
            }
            Operation::Read { .. } | Operation::Flush { .. } => return Ok(()),
        };
        if !matches!(file, File::Pack(_)) {
            return Ok(());
        }
        let before = self.taken.get(&file).copied().unwrap_or(0);
        let grown = end.max(before);
        let all = self.taken() + grown - before;
        if self.full || before < grown && self.room.is_some_and(|room| room < all) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.taken.insert(file, grown);
        Ok(())
    }
}
