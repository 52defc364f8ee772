//! Everything that shapes a run besides its seed.

use chronon_node::FrontLimits;
use chronon_vsr::{Duration, Epoch, Mutations, Ring, Stamp, Timestamp, Timing, VOTERS_MAX};

use crate::{ClientConfig, DiskConfig, NetworkConfig, SinkBehaviour, TraceMode, WALL_START};

/// The configuration of a world. A run is a function of this, the seed, the workload and the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many voters.
    pub replicas: usize,
    /// What everything random is drawn from.
    pub seed: u64,
    /// The wires between replicas.
    pub network: NetworkConfig,
    /// Every replica's disk.
    pub disk: DiskConfig,
    /// Every sink.
    pub sinks: SinkBehaviour,
    /// The clients.
    pub clients: ClientConfig,
    /// Rhythms and patience of the protocol.
    pub timing: Timing,
    /// The sizes of every replica's log.
    pub ring: Ring,
    /// Bounds of Front.
    pub limits: FrontLimits,
    /// Bounds of the kernel.
    pub engine: chronon_kernel::Limits,
    /// How long each half of a replica takes for one input, and how late it may start on it.
    pub pace: Pace,
    /// Guards broken on purpose.
    pub mutations: Mutations,
    /// Machines' clocks run at most this much too fast or too slow, in parts per million.
    pub drift_ppm_max: u32,
    /// What the world's wall clock says at world time zero.
    pub wall_start: Timestamp,
    /// The stamp that the replicas are formatted with. Beyond its epoch's first view they are about to change to it.
    pub stamp: Stamp,
    /// Machines' wall clocks start at most this far off.
    pub skew_max: Duration,
    /// Sinks remember keys this much longer than their contracts say: windows are reckoned in log time, which keeps pace
    /// with the world's only where clocks are no further apart than the kernel allows for.
    pub window_slack: Duration,
    /// How long a peer takes to notice that a process is gone. None: it never does.
    pub reset_after: Option<Duration>,
    /// Whether the lines of the trace are kept.
    pub trace: TraceMode,
}

/// How fast a replica's halves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Front takes this long for an input.
    pub front: Duration,
    /// Back takes this long for an input.
    pub back: Duration,
    /// The mean of how late either starts on what has come, exponentially distributed.
    pub late_mean: Duration,
    /// Writing a state takes this long, besides what the disk takes.
    pub checkpoint: Duration,
    /// Restoring a state takes this long.
    pub restore: Duration,
    /// A disk is scrubbed step by step, this far apart. None: never.
    pub scrub: Option<Duration>,
    /// Commits that wait for Back before Front has to wait too.
    pub back_queue_max: usize,
}

impl Config {
    /// A world where nothing goes wrong by itself: what scenarios start from.
    pub fn calm(replicas: usize, seed: u64) -> Config {
        assert!(0 < replicas);
        assert!(replicas <= VOTERS_MAX);
        Config {
            replicas,
            seed,
            network: NetworkConfig::GOOD,
            disk: DiskConfig::GOOD,
            sinks: SinkBehaviour::GOOD,
            clients: ClientConfig::QUIET,
            timing: Timing::default(),
            ring: Ring::new(18 * 1024 * 1024, 128 * 1024).expect("18 MiB hold the pipeline"),
            limits: FrontLimits::default(),
            engine: chronon_kernel::Limits::default(),
            pace: Pace {
                front: Duration::from_micros(3),
                back: Duration::from_micros(5),
                late_mean: Duration::from_micros(4),
                checkpoint: Duration::from_micros(200),
                restore: Duration::from_micros(200),
                scrub: None,
                back_queue_max: 64,
            },
            mutations: Mutations::NONE,
            drift_ppm_max: 0,
            wall_start: WALL_START,
            stamp: Stamp::first(Epoch::new(0)),
            skew_max: Duration::ZERO,
            window_slack: Duration::ZERO,
            reset_after: Some(Duration::from_millis(1)),
            trace: TraceMode::Fingerprint,
        }
    }
}
