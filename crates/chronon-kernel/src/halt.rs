//! Halting: where execution has stopped because the machine panics, and the skips that lead past it.
//!
//! ```text
//! log:   … 41 │ 42: the machine panics │ 43 … │ 57: Skip 42 │ …
//!             ▲ every replica stands here      └─ committed: found by looking ahead, so 42 is executed without the call
//! ```
//!
//! What a replica does at an op follows from the log alone: it executes the op, and where the machine panics it goes on
//! with the first skip in the log behind that op that names the very call. A replica that comes there before the skip is
//! committed waits for it; one that replays the log finds it at once; both go on from the same state.

use core::fmt;
use core::ops::ControlFlow;

use chronon_vsr::{Op, Timestamp};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::chunk::{ChunkReader, ChunkWriter, Groups, RestoreError};
use crate::outbox::{Callback, clip};
use crate::stored::{Stored as _, encoding};
use crate::{Batch, EffectId, Refusal, Request, RequestId, SkipView, TimerKey};

/// A call of the machine, within the op that makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Culprit {
    /// `apply`, with the command of this request of the batch.
    Request(u32),
    /// `settled`, with the outcome of this effect.
    Settled(EffectId),
    /// `parked`, with this effect.
    Parked(EffectId),
    /// `timer`, with this timer.
    Timer(TimerKey),
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Culprit::Request(request) => write!(f, "request {request}"),
            Culprit::Settled(effect) => write!(f, "the outcome of effect {effect}"),
            Culprit::Parked(effect) => write!(f, "the parking of effect {effect}"),
            Culprit::Timer(TimerKey(key)) => write!(f, "timer {key:?}"),
        }
    }
}

/// An op that was not executed: a call of the machine in it panics. The state is as before the op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halted {
    /// The op.
    pub op: Op,
    /// The call.
    pub culprit: Culprit,
    /// Tells what the machine was called with.
    pub fingerprint: [u8; 32],
    /// The panic's message, at most 1 KiB.
    pub message: String,
}

impl Halted {
    /// A skip that leads past it.
    pub fn skip(&self, by: String, reason: String) -> Skip {
        let (culprit, fingerprint) = (self.culprit.clone(), self.fingerprint);
        Skip { op: self.op.value(), culprit, fingerprint, by, reason }
    }

    /// Whether this skip leads past it.
    pub fn is_passed_by(&self, skip: &Skip) -> bool {
        skip.op == self.op.value() && skip.culprit == self.culprit && skip.fingerprint == self.fingerprint
    }

    /// The first skip in the body of a later op that leads past it.
    pub fn skip_in(&self, op: Op, body: &[u8]) -> Option<CommittedSkip> {
        assert!(self.op < op);
        let requests = Batch::split(body)?.requests;
        requests.into_iter().zip(0..).find_map(|(request, place)| match request {
            Request::Skip(skip) if self.is_passed_by(&skip) => {
                Some(CommittedSkip { at: RequestId { op: op.value(), request: place }, skip })
            }
            _ => None,
        })
    }
}

/// A person's word that a call of the machine is not made, because it panics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The op that makes the call.
    pub op: u64,
    /// The call.
    pub culprit: Culprit,
    /// What the machine is called with: nobody skips what they did not mean.
    pub fingerprint: [u8; 32],
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A skip that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedSkip {
    /// The request that it is.
    pub at: RequestId,
    /// What it says.
    pub skip: Skip,
}

/// What the machine is about to be called with.
pub(crate) enum Called<'a> {
    Command { request: u32, body: &'a [u8] },
    Back(&'a Callback),
}

impl Called<'_> {
    pub(crate) fn culprit(&self) -> Culprit {
        match self {
            Called::Command { request, .. } => Culprit::Request(*request),
            Called::Back(Callback::Settled { effect, .. }) => Culprit::Settled(effect.id),
            Called::Back(Callback::Parked { effect, .. }) => Culprit::Parked(*effect),
            Called::Back(Callback::Timer(key)) => Culprit::Timer(key.clone()),
        }
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        *match self {
            Called::Command { body, .. } => blake3::hash(body),
            Called::Back(callback) => {
                let mut bytes = Vec::new();
                callback.put(&mut bytes);
                blake3::hash(&bytes)
            }
        }
        .as_bytes()
    }
}

/// The calls that were passed over, numbered as they were; the newest ones are remembered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skips {
    passed: OrdMap<u64, SkipView>,
}

impl Skips {
    /// A call is passed over.
    pub(crate) fn record(&mut self, by: &CommittedSkip, now: Timestamp, limit: usize) -> &SkipView {
        let CommittedSkip { at: skipped_by, skip: Skip { op, culprit, by, reason, .. } } = by;
        let view = SkipView {
            op: *op,
            culprit: culprit.clone(),
            skipped_by: *skipped_by,
            at: now,
            by: clip(by),
            reason: clip(reason),
        };
        let number = self.passed.get_max().map_or(0, |(newest, _)| *newest) + 1;
        self.passed.insert(number, view);
        while limit < self.passed.len() {
            let Some((oldest, _)) = self.passed.get_min() else { break };
            let oldest = *oldest;
            self.passed.remove(&oldest);
        }
        &self.passed[&number]
    }

    /// What becomes of a skip when its own op is executed: it has done its work before, or never will.
    pub(crate) fn answer(&self, at: RequestId, skip: &Skip) -> Result<(), Refusal> {
        let names_it = |view: &&SkipView| view.op == skip.op && view.culprit == skip.culprit;
        if self.passed.values().any(|view| view.skipped_by == at) {
            return Ok(());
        }
        Err(match self.passed.values().find(names_it) {
            Some(view) => Refusal::AlreadySkipped { by_op: view.skipped_by.op },
            None => Refusal::NotHalted { op: skip.op },
        })
    }

    pub(crate) fn views(&self) -> Vec<SkipView> {
        self.passed.values().cloned().collect()
    }

    pub(crate) fn write(
        &self,
        before: Option<(&Skips, &Groups<u64>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<u64>> {
        let before = before.map(|(skips, written)| (&skips.passed, written));
        chunks.table(&self.passed, before, &encoding())
    }

    pub(crate) fn read(chunks: &mut ChunkReader<'_>) -> Result<Skips, RestoreError> {
        Ok(Skips { passed: chunks.table::<u64, SkipView>("skips", &encoding())? })
    }
}
