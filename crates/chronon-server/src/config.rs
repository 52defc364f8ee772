//! What a replica's process is told: addresses, limits, rhythms.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chronon_node::FrontLimits;
use chronon_storage::Operation;
use chronon_vsr::{ClusterId, ReplicaId, Timestamp, Timing};

/// Everything a replica's process is told besides its data directory.
#[derive(Clone)]
pub struct ServerConfig {
    /// The cluster that is meant. None: whatever the data directory is of.
    pub cluster: Option<ClusterId>,
    /// The replica that is meant. None: whatever the data directory is of.
    pub replica: Option<ReplicaId>,
    /// Where this replica listens.
    pub listen: Listen,
    /// Where every replica is reached, this one included. May be empty for a single replica.
    pub replicas: BTreeMap<ReplicaId, Addresses>,
    /// Bounds.
    pub limits: Limits,
    /// The protocol's rhythms and patience.
    pub timing: Timing,
    /// Which disk the data directory is on.
    pub disk: DiskKind,
    /// Bounds of the machine's surroundings. They are part of what the log means: the same on every replica, for ever.
    pub engine: chronon_kernel::Limits,
    /// Guards broken on purpose. `Mutations::NONE` outside tests.
    pub mutations: chronon_vsr::Mutations,
    /// Called on the Back thread before each op is executed. For tests: a slow `apply`.
    pub before_commit: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called on a reader's thread before each query is answered. For tests: a slow query.
    pub before_query: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Asked before each operation of an unflushed disk, on the thread that does it. For tests: a disk that stalls, or fails.
    pub before_disk: Option<DiskHook>,
    /// What this replica takes the wall clock to say, given what it says. For tests: clocks that differ.
    pub wall_clock: Option<WallHook>,
}

/// Looks at what a disk is about to do: it may wait, or refuse.
pub type DiskHook = Arc<dyn Fn(Operation) -> io::Result<()> + Send + Sync>;

/// A wall clock that a test sets.
pub type WallHook = Arc<dyn Fn(Timestamp) -> Timestamp + Send + Sync>;

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("cluster", &self.cluster)
            .field("replica", &self.replica)
            .field("listen", &self.listen)
            .field("replicas", &self.replicas)
            .field("limits", &self.limits)
            .field("timing", &self.timing)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            cluster: None,
            replica: None,
            listen: Listen::default(),
            replicas: BTreeMap::new(),
            limits: Limits::default(),
            timing: Timing::default(),
            disk: DiskKind::Real,
            engine: chronon_kernel::Limits::DEFAULT,
            mutations: chronon_vsr::Mutations::NONE,
            before_commit: None,
            before_query: None,
            before_disk: None,
            wall_clock: None,
        }
    }
}

/// Where a replica listens. Port 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For other replicas.
    pub peer: SocketAddr,
    /// For clients of the binary protocol.
    pub client: SocketAddr,
    /// For the HTTP API. None: there is none.
    pub http: Option<SocketAddr>,
}

impl Default for Listen {
    /// Free ports on loopback.
    fn default() -> Listen {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Listen { peer: free, client: free, http: Some(free) }
    }
}

/// Where others reach a replica: `host:port` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For other replicas.
    pub peer: String,
    /// For clients of the binary protocol, and for replicas that forward.
    pub client: String,
}

/// Which disk a data directory is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskKind {
    /// The real one.
    #[default]
    Real,
    /// The real one behind a layer that keeps what is not flushed in process memory, so that SIGKILL is a power cut.
    /// For tests. A file `stall-disk` in the data directory that holds a number of milliseconds stalls the next flush,
    /// `stall-apply` the next op's execution; the file is gone when the stall begins.
    Unflushed,
}

/// Bounds of the process. When one is reached, the answer is Busy, or a message is dropped; nothing grows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bounds of what Front holds.
    pub front: FrontLimits,
    /// Connections of other replicas.
    pub peer_connections_max: usize,
    /// Messages waiting to be sent to one peer; beyond it the oldest are dropped.
    pub peer_queue_messages_max: usize,
    /// Bytes waiting to be sent to one peer; beyond it the oldest messages are dropped.
    pub peer_queue_bytes_max: usize,
    /// Writes handed to the WAL thread and not yet durable; beyond it prepares from peers are dropped.
    pub wal_writes_max: usize,
    /// Bytes of such writes.
    pub wal_bytes_max: usize,
    /// Connections of clients.
    pub client_connections_max: usize,
    /// Requests of one connection that are not answered yet.
    pub client_outstanding_max: usize,
    /// Bytes of answers that one client has not read yet; a slower reader is cut off.
    pub client_unread_bytes_max: usize,
    /// A connection that asks for nothing this long is closed.
    pub client_idle_max: Duration,
    /// A connection that does not say Hello this long is closed.
    pub client_hello_max: Duration,
    /// The longest that an answer is waited for, whatever the caller asks.
    pub request_timeout_max: Duration,
    /// Connections to the HTTP API.
    pub http_connections_max: usize,
    /// Requests of the HTTP API waiting for Front.
    pub http_queue_max: usize,
    /// Attempts under way at once, of all sinks together.
    pub attempts_max: usize,
    /// Threads that answer queries.
    pub readers: usize,
    /// How fast checkpoints are written and sent.
    pub checkpoints: CheckpointLimits,
    /// Bytes of the log, and as many of checkpoints, that are read back a second to find what has rotted: at 256 KiB a full
    /// ring of 1 GiB in little more than an hour, for less than a millisecond of the WAL thread a second.
    pub scrub_bytes_per_second: u64,
}

/// How fast checkpoints are written and sent, so that neither disk nor network is taken from the live load, and how
/// long one that is carried away is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointLimits {
    /// Bytes of state a second, before compression. When the log has used up half of its slack it is no limit.
    pub write_bytes_per_second: u64,
    /// Bytes of state a second that this replica sends to peers which fetch a state, all of them together.
    pub transfer_bytes_per_second: u64,
    /// A backup is kept for so long after the last of its chunks was asked for.
    pub backup_patience: Duration,
}

impl Default for CheckpointLimits {
    fn default() -> CheckpointLimits {
        let mib = 1024 * 1024;
        CheckpointLimits {
            write_bytes_per_second: 64 * mib,
            transfer_bytes_per_second: 64 * mib,
            backup_patience: Duration::from_secs(60),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            front: FrontLimits::default(),
            peer_connections_max: 32,
            peer_queue_messages_max: 1_024,
            peer_queue_bytes_max: 32 * 1024 * 1024,
            wal_writes_max: 4_096,
            wal_bytes_max: 64 * 1024 * 1024,
            client_connections_max: 1_024,
            client_outstanding_max: 4_096,
            client_unread_bytes_max: 16 * 1024 * 1024,
            client_idle_max: Duration::from_secs(600),
            client_hello_max: Duration::from_secs(5),
            request_timeout_max: Duration::from_secs(60),
            http_connections_max: 256,
            http_queue_max: 4_096,
            attempts_max: 1_024,
            readers: 4,
            checkpoints: CheckpointLimits::default(),
            scrub_bytes_per_second: 256 * 1024,
        }
    }
}
