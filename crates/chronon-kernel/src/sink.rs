//! Sinks: the outside world as replicated objects, set through the log.

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// A sink's name: 1 to 64 of `a-z 0-9 - _ .`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SinkName(String);

impl SinkName {
    /// A name, checked.
    pub fn new(name: impl Into<String>) -> Result<SinkName, InvalidSinkName> {
        let name = name.into();
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        if name.is_empty() || 64 < name.len() || !name.bytes().all(allowed) {
            return Err(InvalidSinkName { name });
        }
        Ok(SinkName(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SinkName {
    type Error = InvalidSinkName;

    fn try_from(name: String) -> Result<SinkName, InvalidSinkName> {
        SinkName::new(name)
    }
}

impl From<SinkName> for String {
    fn from(name: SinkName) -> String {
        name.0
    }
}

impl core::fmt::Display for SinkName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text can't name a sink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} can't name a sink: use 1 to 64 of a-z, 0-9, '-', '_' and '.'")]
pub struct InvalidSinkName {
    /// What was given.
    pub name: String,
}

/// What the sink offers, and so what Chronon may do when the end of an attempt is unknown. There is no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contract {
    /// A store that is written in one transaction with the effect's key and the fence: retry, the stored row decides.
    Transactional,
    /// Dedups by our key for `window`: retry inside it less a margin, then park in doubt.
    Idempotent {
        /// How long the sink remembers a key, from the first attempt whose end is not known definite.
        window: Duration,
        /// The sink keeps its refusals under our key too, and answers a repeat with the one that it gave. So a firm
        /// no speaks for every attempt; from a sink without it, a no after an attempt of unknown end is in doubt.
        replays_errors: bool,
    },
    /// Can be asked whether a key landed: retry only on a firm no later than `settle`.
    Probe {
        /// How long after an attempt's end its absence is proof.
        settle: Duration,
    },
    /// Nothing: an attempt of unknown end is parked in doubt, never retried.
    AtMostOnce,
    /// Tolerates repeats: retry.
    AtLeastOnce,
}

impl Contract {
    /// Whether a claim must be committed before an attempt may start.
    pub const fn claims(self) -> bool {
        match self {
            Contract::Probe { .. } | Contract::AtMostOnce => true,
            Contract::Transactional | Contract::Idempotent { .. } | Contract::AtLeastOnce => false,
        }
    }
}

/// How long to wait between attempts: exponential, with seeded jitter of ±20 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first failed attempt.
    pub first: Duration,
    /// Never longer than this.
    pub max: Duration,
    /// Attempts before the effect is parked as exhausted. 0: no limit.
    pub attempts_max: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(200), max: Duration::from_secs(300), attempts_max: 0 }
    }
}

/// Everything replicated about a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkSpec {
    /// Its contract. An effect keeps the one that it was emitted under.
    pub contract: Contract,
    /// Which executor carries attempts out: `http`, or a name that the embedding program registered.
    pub kind: String,
    /// The kind's own configuration, as JSON text: endpoint and options. Names secrets, never holds them.
    pub config: String,
    /// Waiting between attempts.
    pub backoff: Backoff,
    /// Attempts under way at once.
    pub concurrency: u32,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Whether a parked effect holds its lane.
    pub parked_holds_lane: bool,
    /// No attempt starts while frozen.
    pub frozen: bool,
    /// Open effects that the sink's outbox holds at most.
    pub open_max: u32,
}

impl SinkSpec {
    /// A sink with the usual limits: 16 attempts at once, 10 s each, 100,000 open effects.
    pub fn new(kind: impl Into<String>, config: impl Into<String>, contract: Contract) -> SinkSpec {
        SinkSpec {
            contract,
            kind: kind.into(),
            config: config.into(),
            backoff: Backoff::default(),
            concurrency: 16,
            timeout: Duration::from_secs(10),
            parked_holds_lane: true,
            frozen: false,
            open_max: 100_000,
        }
    }
}
