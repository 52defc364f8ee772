//! An attempt: one call to a sink, as the dispatcher orders it and an executor carries it out.

use core::time::Duration;
use std::sync::Arc;

use chronon_vsr::{Stamp, Timestamp};

use crate::{AttemptNumber, EffectId, EffectKey, Fence, SinkName, SinkSpec};

/// One call to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The effect.
    pub effect: EffectId,
    /// Its key: the same for every attempt.
    pub key: EffectKey,
    /// Which attempt this is, from 1.
    pub number: AttemptNumber,
    /// Whether to do it, or to ask whether an earlier attempt did.
    pub kind: AttemptKind,
    /// The stamp under which it starts: it may pass the gate only while a read round of this stamp is fresh.
    pub stamp: Stamp,
    /// For a call that may repeat one of unknown end: from then on its sink may know the key no more. It must have left
    /// before, by what a quorum of clocks agrees on, or not leave at all.
    pub key_known_until: Option<Timestamp>,
    /// The sink.
    pub sink: SinkName,
    /// The sink as it was set when the attempt was ordered.
    pub spec: Arc<SinkSpec>,
    /// The lane, if it has a named one.
    pub lane: Option<String>,
    /// Log time at which the effect was emitted.
    pub emitted: Timestamp,
    /// The encoded effect.
    pub payload: Arc<[u8]>,
}

impl Attempt {
    /// What a fencing sink compares.
    pub fn fence(&self) -> Fence {
        Fence(self.stamp)
    }

    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        self.spec.timeout
    }
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptKind {
    /// Do it.
    Call,
    /// Ask whether it was done.
    Probe,
}

/// What came of an attempt that an executor was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// It passed the gate and ended like this: to be logged.
    Ended(crate::Ended),
    /// It never passed the gate: nothing left, nothing to log. The dispatcher may order it again.
    Abandoned,
}
