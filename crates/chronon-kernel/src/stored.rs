//! The kernel's own records as bytes in a checkpoint. A new field must be named here, or nothing compiles.

use std::sync::Arc;

use chronon_vsr::{Digest, Epoch, Op, Stamp, Timestamp, View};
use serde::Serialize;

use crate::chunk::Encoding;
use crate::effect::{Claim, Effect, Phase};
use crate::frozen::Head;
use crate::keys::Entry;
use crate::outbox::{Callback, Lane, Outcome, Past, Sink};
use crate::sessions::Session;
use crate::view::{ActView, AttemptView, SkipView};
use crate::{
    AttemptKind, AttemptNumber, Contract, Culprit, EffectId, EffectKey, Fence, Parked, RequestId,
    RequestResult, SessionId, SinkName, SinkSpec, TimerKey,
};

/// What is kept in a checkpoint as bytes of its own.
pub(crate) trait Stored: Sized {
    /// Appends it.
    fn put(&self, bytes: &mut Vec<u8>);

    /// Reads what [`Stored::put`] appended, and takes it off the front. None if it is nothing of the kind.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
}

/// The encoding of a table of the kernel.
pub(crate) const fn encoding<K: Stored, V: Stored>() -> Encoding<K, V> {
    Encoding { put_key: K::put, put_value: V::put, take_key: K::take, take_value: V::take }
}

macro_rules! stored_by_serde {
    ($($name:ty),* $(,)?) => {$(
        impl Stored for $name {
            fn put(&self, bytes: &mut Vec<u8>) {
                put_serde(self, bytes);
            }

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                take_serde(bytes)
            }
        }
    )*};
}

macro_rules! stored_by_field {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl Stored for $name {
            fn put(&self, bytes: &mut Vec<u8>) {
                let $name { $($field),* } = self;
                $($field.put(bytes);)*
            }

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                $(let $field = Stored::take(bytes)?;)*
                Some($name { $($field),* })
            }
        }
    )*};
}

stored_by_serde!(
    u32,
    u64,
    u128,
    bool,
    String,
    AttemptKind,
    AttemptNumber,
    Contract,
    Culprit,
    EffectId,
    EffectKey,
    Parked,
    RequestId,
    RequestResult,
    SessionId,
    SinkName,
    SinkSpec,
    TimerKey,
);

stored_by_field! {
    Head {
        tables, machine_version, op, digest, now, born, reign, sequence, acts, session_uses, key_sequence, blocked,
        commands, aborted, unreadable_ops, callbacks_aborted, emitted, delivered, failed, unknown, cancelled,
    }
    Stamp { epoch, view }
    Session { nonce, used, replies, bytes, floor }
    Entry { sequence, fingerprint, used, result, bytes }
    Effect {
        id, key, sink, lane, contract, payload, emitted, deadline, phase, joined, number, reign, released, calls,
        probes, ask, unknown_since, may_have_started, claim, parkings, due, attempts, acts,
    }
    Claim { attempt, stamp, logged }
    AttemptView { number, kind, fence, logged, ended, decisive, evidence }
    ActView { effect, op, at, by, act, reason, result }
    SkipView { op, culprit, skipped_by, at, by, reason }
    Past { effect, outcome, settled, op, sequence }
}

/// The words that records hold as such.
const WORDS: [&str; 14] = [
    "delivered",
    "unreadable",
    "definite",
    "ambiguous",
    "permanent",
    "in_progress",
    "not_found",
    "claim_lost",
    "resolve_delivered",
    "resolve_failed",
    "resolve_unknown",
    "retry",
    "cancel",
    "restored",
];

impl Stored for &'static str {
    fn put(&self, bytes: &mut Vec<u8>) {
        let place = WORDS.iter().position(|word| word == self).expect("records hold no other words");
        bytes.push(place as u8);
    }

    fn take(bytes: &mut &[u8]) -> Option<&'static str> {
        WORDS.get(usize::from(take_byte(bytes)?)).copied()
    }
}

impl Stored for usize {
    fn put(&self, bytes: &mut Vec<u8>) {
        (*self as u64).put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<usize> {
        usize::try_from(u64::take(bytes)?).ok()
    }
}

impl Stored for Timestamp {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.nanos().put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Timestamp> {
        u64::take(bytes).map(Timestamp::from_nanos)
    }
}

impl Stored for Op {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.value().put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Op> {
        u64::take(bytes).map(Op::new)
    }
}

impl Stored for Epoch {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.value().put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Epoch> {
        u64::take(bytes).map(Epoch::new)
    }
}

impl Stored for View {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.value().put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<View> {
        u64::take(bytes).map(View::new)
    }
}

impl Stored for Digest {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Digest> {
        u64::take(bytes).map(Digest)
    }
}

impl Stored for Fence {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Fence> {
        Stamp::take(bytes).map(Fence)
    }
}

impl Stored for Phase {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.number() as u8);
        match self {
            Phase::Scheduled(at) | Phase::Waiting(at) => at.put(bytes),
            Phase::Runnable(sequence) | Phase::Released(sequence) | Phase::Claimed(sequence) => {
                sequence.put(bytes);
            }
            Phase::Queued | Phase::Parked(_) => {}
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Phase> {
        Some(match take_byte(bytes)? {
            1 => Phase::Scheduled(Stored::take(bytes)?),
            2 => Phase::Queued,
            3 => Phase::Runnable(Stored::take(bytes)?),
            4 => Phase::Released(Stored::take(bytes)?),
            5 => Phase::Claimed(Stored::take(bytes)?),
            6 => Phase::Waiting(Stored::take(bytes)?),
            7 => Phase::Parked(Parked::InDoubt),
            8 => Phase::Parked(Parked::Exhausted),
            _ => return None,
        })
    }
}

/// As it is set; the rest follows from its effects.
impl Stored for Sink {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.spec.put(bytes);
        self.revision.put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Sink> {
        Some(Sink::new(Stored::take(bytes)?, Stored::take(bytes)?))
    }
}

/// Who is at it; the rest follows from its effects.
impl Stored for Lane {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.holder.put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Lane> {
        Stored::take(bytes).map(Lane::new)
    }
}

impl Stored for Outcome {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Outcome::Delivered(body) => {
                bytes.push(0);
                body.put(bytes);
            }
            Outcome::Failed(reason) => {
                bytes.push(1);
                reason.put(bytes);
            }
            Outcome::Unknown => bytes.push(2),
            Outcome::Cancelled => bytes.push(3),
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Outcome> {
        Some(match take_byte(bytes)? {
            0 => Outcome::Delivered(Stored::take(bytes)?),
            1 => Outcome::Failed(Stored::take(bytes)?),
            2 => Outcome::Unknown,
            3 => Outcome::Cancelled,
            _ => return None,
        })
    }
}

impl Stored for Callback {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Callback::Settled { effect, outcome } => {
                bytes.push(0);
                effect.put(bytes);
                outcome.put(bytes);
            }
            Callback::Parked { effect, parking, why } => {
                bytes.push(1);
                effect.put(bytes);
                parking.put(bytes);
                why.put(bytes);
            }
            Callback::Timer(key) => {
                bytes.push(2);
                key.put(bytes);
            }
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Callback> {
        Some(match take_byte(bytes)? {
            0 => Callback::Settled { effect: Stored::take(bytes)?, outcome: Stored::take(bytes)? },
            1 => Callback::Parked {
                effect: Stored::take(bytes)?,
                parking: Stored::take(bytes)?,
                why: Stored::take(bytes)?,
            },
            2 => Callback::Timer(Stored::take(bytes)?),
            _ => return None,
        })
    }
}

impl<T: Stored> Stored for Option<T> {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.put(bytes);
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Option<T>> {
        match take_byte(bytes)? {
            0 => Some(None),
            1 => T::take(bytes).map(Some),
            _ => None,
        }
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.len().put(bytes);
        for value in self {
            value.put(bytes);
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Vec<T>> {
        (0..usize::take(bytes)?).map(|_| T::take(bytes)).collect()
    }
}

impl<K: Stored + Ord + Clone, V: Stored + Clone> Stored for imbl::OrdMap<K, V> {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.len().put(bytes);
        for (key, value) in self {
            key.put(bytes);
            value.put(bytes);
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<imbl::OrdMap<K, V>> {
        (0..usize::take(bytes)?).map(|_| Some((K::take(bytes)?, V::take(bytes)?))).collect()
    }
}

impl<T: Stored, U: Stored> Stored for (T, U) {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.0.put(bytes);
        self.1.put(bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<(T, U)> {
        Some((T::take(bytes)?, U::take(bytes)?))
    }
}

impl<T: Stored> Stored for Arc<T> {
    fn put(&self, bytes: &mut Vec<u8>) {
        T::put(self, bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Arc<T>> {
        T::take(bytes).map(Arc::new)
    }
}

impl Stored for Arc<str> {
    fn put(&self, bytes: &mut Vec<u8>) {
        put_serde(&**self, bytes);
    }

    fn take(bytes: &mut &[u8]) -> Option<Arc<str>> {
        take_serde::<&str>(bytes).map(Arc::from)
    }
}

impl Stored for Arc<[u8]> {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.len().put(bytes);
        bytes.extend_from_slice(self);
    }

    fn take(bytes: &mut &[u8]) -> Option<Arc<[u8]>> {
        let size = usize::take(bytes)?;
        bytes.split_off(..size).map(Arc::from)
    }
}

impl<const N: usize> Stored for [u8; N] {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }

    fn take(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (taken, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*taken)
    }
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    bytes.split_off_first().copied()
}

fn put_serde<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) {
    let written = postcard::to_extend(value, core::mem::take(bytes));
    *bytes = written.expect("the kernel's types hold nothing that postcard can't write");
}

fn take_serde<'a, T: serde::Deserialize<'a>>(bytes: &mut &'a [u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    *bytes = rest;
    Some(value)
}
