//! What happened, in order: a fingerprint that is always kept, and lines that are kept when somebody will read them.

use core::fmt;

use chronon_vsr::{Instant, ReplicaId};

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A replica's consensus half, its disk, its process.
    Replica(ReplicaId),
    /// A client.
    Client(u32),
    /// The outside world.
    Sink,
    /// Whoever does harm.
    Fault,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Replica(replica) => write!(f, "R{replica}"),
            Who::Client(client) => write!(f, "C{client}"),
            Who::Sink => f.write_str("sink"),
            Who::Fault => f.write_str("fault"),
        }
    }
}

/// Whether the lines of a trace are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceMode {
    /// Only the fingerprint: nothing is formatted.
    Fingerprint,
    /// Every line.
    Lines,
}

/// The story of one run. Two runs of one seed have the same fingerprint and, when kept, the same lines.
#[derive(Clone, Debug)]
pub struct Trace {
    fingerprint: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace.
    pub fn new(mode: TraceMode) -> Trace {
        let lines = match mode {
            TraceMode::Fingerprint => None,
            TraceMode::Lines => Some(Vec::new()),
        };
        Trace { fingerprint: 0xcbf2_9ce4_8422_2325, events: 0, lines }
    }

    /// One thing happened. `salt` stands for its content in the fingerprint.
    pub(crate) fn note(&mut self, at: Instant, who: Who, salt: u64, line: impl FnOnce() -> String) {
        self.events += 1;
        let who_salt = match who {
            Who::Replica(replica) => u64::from(replica.value()),
            Who::Client(client) => 0x100 + u64::from(client),
            Who::Sink => 0x10_0000_0000,
            Who::Fault => 0x20_0000_0000,
        };
        self.mix(at.nanos());
        self.mix(who_salt);
        self.mix(salt);
        if let Some(lines) = &mut self.lines {
            let nanos = at.nanos();
            let line = line();
            lines.push(format!(
                "{:>5}.{:06} {who:>5} {line}",
                nanos / 1_000_000_000,
                nanos / 1_000 % 1_000_000
            ));
        }
    }

    /// A number that stands for the whole run.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How many things happened.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or(&[])
    }

    fn mix(&mut self, value: u64) {
        self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// Folds bytes into a salt for the fingerprint.
pub(crate) fn salt_of(bytes: &[u8]) -> u64 {
    let mut salt = bytes.len() as u64;
    for piece in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        salt = (salt ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }
    salt
}
