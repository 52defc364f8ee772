//! Whether a machine is deterministic: one log, run again and again, must do the same each time.
//!
//! A replica that reads a clock, draws its own random numbers or walks a hash map differs from its peers only now and
//! then. Here nothing else differs: the log is recorded once, and every replay gets a new engine (and with it new hash
//! seeds), a thread of its own, and at last another second of the clock. What only changes with the day is not found.

use std::fmt;
use std::time::Instant;

use chronon_kernel::{Applied, CommittedOp, EngineOptions, Halted, Request, RequestResult};
use chronon_vsr::{Checksum, Digest, Duration, Entry, Op};

use crate::world::chunks_of;
use crate::{Config, Workload, World};

/// Replays at once; one more comes later.
const REPLAYS: usize = 3;

/// Calls that the recorded log holds.
const CALLS: u32 = 150;

/// The recording ends at this world time, whatever is left to do.
const RECORDED_MAX: Duration = Duration::from_secs(60);

/// When the last replay begins, after the recording, by the real clock.
const LATER: Duration = Duration::from_millis(1_100);

/// One op that did one thing and, run again, another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first op that differs.
    pub op: Op,
    /// What it was asked for, in words.
    pub asked: String,
    /// What it did when it was recorded, and in the replay.
    pub did: String,
    /// What to look for.
    pub hint: &'static str,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { op, asked, did, hint } = self;
        write!(f, "the machine is not deterministic: op {op} ({asked}) {did}. {hint}")
    }
}

impl std::error::Error for Difference {}

const HINT_NOW: &str = "Two runs of one log at one time differ, so look for a HashMap that is walked, for random \
     numbers, addresses, threads or a fine clock: use Table, BTreeMap, cx.random() and cx.now()";
const HINT_LATER: &str = "Runs at one time agree and a run a second later does not, so look for a clock: cx.now() is log \
     time, the same on every replica";

/// A log, and how an engine was made that executed it.
struct Log {
    options: EngineOptions,
    /// The state before the first op.
    genesis: Vec<Checksum>,
    ops: Vec<Recorded>,
}

/// An op as it was recorded.
struct Recorded {
    entry: Entry,
    requests: Vec<Request>,
    digest: Digest,
    results: Vec<RequestResult>,
}

/// Records a log, then replays it.
pub(crate) fn check(seed: u64, workload: impl Fn() -> Box<dyn Workload> + Sync) -> Result<(), Difference> {
    let log = record(seed, workload());
    let recorded = Instant::now();
    for _ in 0..REPLAYS {
        replay(&log, &workload, HINT_NOW)?;
    }
    // A clock is often read in seconds: the last replay begins in another one.
    std::thread::sleep(LATER.saturating_sub(recorded.elapsed()));
    replay(&log, &workload, HINT_LATER)
}

/// A calm life of one replica, up to its end or to what some judge objects to: that is for the seeds to tell.
fn record(seed: u64, workload: Box<dyn Workload>) -> Log {
    let mut config = Config::calm(1, seed);
    config.clients.clients = 3;
    config.clients.calls = CALLS / 3;
    let mut world = World::new(config, workload);
    let options = world.engine_options();
    let genesis = chunks_of(&*world.workload.engine(options));
    let end = world.now() + RECORDED_MAX;
    while world.now() < end && world.is_quiet().is_err() && world.run_for(Duration::from_millis(50)) {}
    let executed = world.results();
    let recorded = world.commits().log().iter().filter_map(|committed| {
        let op = committed.entry.op();
        let (digest, results) = (executed.digest(op)?, executed.get(op)?.to_vec());
        let (entry, requests) = (committed.entry.clone(), committed.requests.clone());
        Some(Recorded { entry, requests, digest, results })
    });
    Log { options, genesis, ops: recorded.collect() }
}

/// Runs the log on a new engine, in a thread of its own: with new hash seeds, on another stack.
fn replay(
    log: &Log,
    workload: &(impl Fn() -> Box<dyn Workload> + Sync),
    hint: &'static str,
) -> Result<(), Difference> {
    std::thread::scope(|scope| {
        let replay = scope.spawn(|| {
            let workload = workload();
            let mut engine = workload.engine(log.options);
            if chunks_of(&*engine) != log.genesis {
                let (asked, did) = ("genesis", "made one state and, run again, another");
                return Err(Difference { op: Op::ROOT, asked: asked.to_owned(), did: did.to_owned(), hint });
            }
            log.ops.iter().try_for_each(|recorded| {
                let header = recorded.entry.header();
                let op = CommittedOp {
                    op: header.op,
                    born: header.born,
                    timestamp: header.timestamp,
                    body: recorded.entry.body(),
                    skips: &[],
                };
                match engine.commit(op) {
                    Ok(applied) => recorded.compare(applied, &*workload, hint),
                    Err(Halted { op, culprit, message, .. }) => {
                        let did = format!("was executed and, run again, halted: {message}");
                        Err(Difference { op, asked: culprit.to_string(), did, hint })
                    }
                }
            })
        });
        replay.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Recorded {
    fn compare(&self, again: Applied, workload: &dyn Workload, hint: &'static str) -> Result<(), Difference> {
        if again.digest == self.digest && again.results == self.results {
            return Ok(());
        }
        let differ = self.results.iter().zip(&again.results).position(|(one, other)| one != other);
        let asked = match differ.and_then(|at| self.requests.get(at)).or(self.requests.first()) {
            Some(Request::Command { body, .. }) => workload.describe_command(body),
            Some(Request::Outcome(report)) => format!("the outcome of effect {}", report.effect),
            Some(Request::Tick) | None => "timers and retries".to_owned(),
            Some(other) => format!("{other:?}"),
        };
        let did = match differ.map(|at| (&self.results[at], &again.results[at])) {
            Some((
                RequestResult::Replied { reply: one, .. },
                RequestResult::Replied { reply: other, .. },
            )) if one != other => {
                let (one, other) = (workload.describe_reply(one), workload.describe_reply(other));
                format!("answered {one} and, run again, {other}")
            }
            Some((one, other)) => format!("ended as {one:?} and, run again, as {other:?}"),
            None => "answered the same and, run again, wrote or emitted something else".to_owned(),
        };
        Err(Difference { op: self.entry.op(), asked, did, hint })
    }
}
