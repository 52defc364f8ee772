//! The words of the kernel, one type each.

use core::fmt;
use core::str::FromStr;

use chronon_vsr::{Op, Stamp};
use serde::{Deserialize, Serialize};

/// An effect's name: the op that emitted it, and its place among all the effects of that op. Text: `42-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectId {
    op: u64,
    n: u32,
}

impl EffectId {
    /// The n-th effect (from 0) of the whole op, whichever request or outcome or timer in it emitted it.
    pub const fn new(op: Op, n: u32) -> EffectId {
        EffectId { op: op.value(), n }
    }

    /// The op that emitted it.
    pub const fn op(self) -> Op {
        Op::new(self.op)
    }

    /// Its place among the effects of that op, from 0.
    pub const fn n(self) -> u32 {
        self.n
    }
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.op, self.n)
    }
}

impl FromStr for EffectId {
    type Err = ParseEffectIdError;

    fn from_str(text: &str) -> Result<EffectId, ParseEffectIdError> {
        let (op, n) = text.split_once('-').ok_or(ParseEffectIdError)?;
        let op = op.parse().map_err(|_| ParseEffectIdError)?;
        let n = n.parse().map_err(|_| ParseEffectIdError)?;
        Ok(EffectId { op, n })
    }
}

/// The text is no effect id: expected `<op>-<n>`, like `42-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an effect id: expected <op>-<n>, like 42-0")]
pub struct ParseEffectIdError;

/// A request's name: the op that applied it, and its place in the op's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The op.
    pub op: u64,
    /// Its place in the batch, from 0.
    pub request: u32,
}

/// A session of a client, named by the op and request that registered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub RequestId);

/// Counts a session's requests, from 1. A repeated number is the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestNumber(pub u64);

/// Counts an effect's attempts, from 1, across replicas and fail-overs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptNumber(pub u32);

/// 128 random bits drawn when the cluster was made: the first part of every effect's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage(pub u128);

impl fmt::Display for Lineage {
    /// Base32 (RFC 4648 alphabet in lower case, without padding): 26 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        for place in (0..26).rev() {
            let digit = (self.0 >> (5 * place)) as usize & 31;
            write!(f, "{}", ALPHABET[digit] as char)?;
        }
        Ok(())
    }
}

/// The key that goes over the wire with every attempt of an effect: `<lineage>-<op>-<n>`. Drawn at emit, kept with
/// the effect, never drawn again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectKey(String);

impl EffectKey {
    /// The key of an effect that is emitted now.
    pub fn draw(lineage: Lineage, effect: EffectId) -> EffectKey {
        EffectKey(format!("{lineage}-{effect}"))
    }

    /// A key that changes with every attempt: the sabotage of `Mutation::NewKeyPerAttempt`.
    pub(crate) fn of_attempt(key: &EffectKey, number: AttemptNumber, stamp: Stamp) -> EffectKey {
        EffectKey(format!("{}-{}-{stamp}", key.0, number.0))
    }

    /// The key as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Orders primaries at a sink: the stamp under which an attempt started. Text: 32 hex digits, string order = fence
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub Stamp);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0.epoch.value(), self.0.view.value())
    }
}
