//! A machine with its disk and clocks, and the process that runs on it now and then: the production Front, Back and
//! journal.

use std::collections::{BTreeMap, VecDeque};

use chronon_node::{Back, BackInput, Front, FrontInput, Gate, Token};
use chronon_storage::{JobId, Journal, Step};
use chronon_vsr::{DiskId, Duration, Instant, Op, ReplicaId, Role};

use crate::CallId;
use crate::clock::MachineClock;
use crate::disk::SimDisk;
use crate::event::Event;
use crate::slip::Slip;
use crate::world::Store;

/// What survives a process.
pub(crate) struct Machine {
    pub(crate) id: ReplicaId,
    pub(crate) disk_id: DiskId,
    pub(crate) disk: SimDisk,
    pub(crate) clock: MachineClock,
    /// Counts processes, so that what was meant for a dead one is not given to the next.
    pub(crate) life: u32,
    pub(crate) process: Option<Box<Process>>,
    pub(crate) paused: bool,
    /// Its process dies when it has carried out so many more outputs.
    pub(crate) outputs_left: Option<u32>,
    /// What reached the process while it was paused.
    pub(crate) deferred: Vec<Event>,
    /// Why its process ended by itself, if it did.
    pub(crate) failed: Option<String>,
    /// Steps that its disk has carried out: the places where a crash can hit.
    pub(crate) steps: u64,
    /// Its disk was harmed without a look at the atlas: it may refuse to open.
    pub(crate) beyond: bool,
    /// Looks at everything on its disk: a round of scrubbing is one, a start is [`LOOKS_OF_A_START`](crate::atlas::LOOKS_OF_A_START).
    pub(crate) looks: u64,
    /// Whether the last start found nothing in the log that it could not read or place.
    pub(crate) clean: bool,
    /// It will not come back, and nobody waits for it.
    pub(crate) forsaken: bool,
    /// Its Back does nothing before this: `apply` is slow there.
    pub(crate) back_rests_until: Instant,
    /// Executing an op takes this much longer.
    pub(crate) back_slow: Duration,
    /// When its engine comes to something else than everybody else's.
    pub(crate) slip: Slip,
    /// Whether that was still to come when it was last looked at.
    pub(crate) slips: bool,
    /// Its engine has done so, in this life or in one whose checkpoint it went on from.
    pub(crate) diverged: bool,
}

/// A running replica.
pub(crate) struct Process {
    pub(crate) front: Front,
    pub(crate) back: Back,
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    pub(crate) gate: Gate,
    pub(crate) front_inbox: VecDeque<FrontInput>,
    pub(crate) back_inbox: VecDeque<BackInput>,
    pub(crate) front_timer: Timer,
    pub(crate) back_timer: Timer,
    /// Front waits for room in Back's queue.
    pub(crate) front_blocked: bool,
    pub(crate) jobs: BTreeMap<JobId, Running>,
    /// Whether Front has been told of an old write.
    pub(crate) disk_age_told: bool,
    pub(crate) disk_age_due: bool,
    pub(crate) evidence_due: bool,
    /// Which of WAL and packs the present round of scrubbing has seen to the end.
    pub(crate) scrubbed: (bool, bool),
    pub(crate) role: Role,
    /// The checkpoint that Front had before its present input, if it was fetching a newer one.
    pub(crate) fetching: Option<Op>,
    /// Whose answer each token is for.
    pub(crate) tokens: BTreeMap<Token, (u32, CallId)>,
    /// Inputs handled in a row at one instant of world time: a loop that makes no progress would never end.
    pub(crate) ticks_in_a_row: u32,
}

/// A job on its way through the disk.
pub(crate) struct Running {
    pub(crate) steps: VecDeque<Step>,
    pub(crate) since: Instant,
}

/// When a half runs next: events at any other time are stale.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timer {
    /// The event in the heap that counts.
    pub(crate) scheduled: Option<Instant>,
    /// What the half last asked for, in world time.
    pub(crate) deadline: Option<Instant>,
}

impl Machine {
    /// Whether its engine has slipped since this was asked last.
    pub(crate) fn slipped(&mut self) -> bool {
        std::mem::replace(&mut self.slips, self.slip.is_due()) && !self.slip.is_due()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some() && !self.paused
    }
}
