//! Idempotency keys: what was asked under a key, and what it was answered.

use core::ops::ControlFlow;
use std::sync::Arc;

use chronon_vsr::{Duration, Timestamp};
use imbl::OrdMap;

use crate::chunk::{ChunkReader, ChunkWriter, Groups, RestoreError};
use crate::sessions::{Known, size};
use crate::stored::encoding;
use crate::{Busy, Limits, Refusal, RequestResult};

/// The keys, each within its principal. Log order is their age: the oldest go first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    keys: OrdMap<Name, Arc<Entry>>,
    order: OrdMap<u64, Name>,
    sequence: u64,
    bytes: usize,
}

/// Principal and key.
pub(crate) type Name = Arc<(String, String)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) used: Timestamp,
    pub(crate) result: RequestResult,
    pub(crate) bytes: usize,
}

/// Keys whose time is over and that are dropped at most when one is added: more than one, so that they never pile up.
const EXPIRED_PER_INSERT: usize = 4;

impl Keys {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long the oldest one has been kept.
    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        self.oldest().map_or(Duration::ZERO, |entry| now.since(entry.used))
    }

    pub(crate) fn get(
        &self,
        principal: &str,
        key: &str,
        now: Timestamp,
        limits: &Limits,
    ) -> Option<(Timestamp, &RequestResult)> {
        let name: Name = Arc::new((principal.to_owned(), key.to_owned()));
        let entry = self.keys.get(&name)?;
        (now.since(entry.used) < limits.key_kept).then_some((entry.used, &entry.result))
    }

    pub(crate) fn look_up(
        &self,
        principal: &str,
        key: &str,
        command: &[u8],
        now: Timestamp,
        limits: &Limits,
    ) -> Known {
        let name: Name = Arc::new((principal.to_owned(), key.to_owned()));
        match self.keys.get(&name) {
            Some(entry) if now.since(entry.used) < limits.key_kept => {
                if entry.fingerprint == *blake3::hash(command).as_bytes() {
                    Known::Result(entry.result.clone())
                } else {
                    Known::Refused(Refusal::KeyReused)
                }
            }
            Some(_) | None => Known::New,
        }
    }

    /// Makes room for one more, from the oldest ones. Busy if those are too young to go.
    pub(crate) fn make_room(&mut self, now: Timestamp, limits: &Limits) -> Result<(), Busy> {
        for _ in 0..EXPIRED_PER_INSERT {
            match self.oldest() {
                Some(entry) if limits.key_kept <= now.since(entry.used) => self.drop_oldest(),
                Some(_) | None => break,
            }
        }
        while limits.keys_max <= self.keys.len() || limits.keys_bytes_max <= self.bytes {
            match self.oldest() {
                Some(entry) if limits.key_kept_min <= now.since(entry.used) => self.drop_oldest(),
                Some(_) | None => return Err(Busy::KeysFull),
            }
        }
        Ok(())
    }

    pub(crate) fn remember(
        &mut self,
        principal: &str,
        key: &str,
        command: &[u8],
        result: RequestResult,
        now: Timestamp,
    ) {
        let name: Name = Arc::new((principal.to_owned(), key.to_owned()));
        self.sequence += 1;
        let bytes = entry_size(&name, &result);
        let fingerprint = *blake3::hash(command).as_bytes();
        let entry = Entry { sequence: self.sequence, fingerprint, used: now, result, bytes };
        self.bytes += bytes;
        self.order.insert(self.sequence, Arc::clone(&name));
        // An expired key that is used again is a new one.
        if let Some(expired) = self.keys.insert(name, Arc::new(entry)) {
            self.order.remove(&expired.sequence);
            self.bytes -= expired.bytes;
        }
    }

    /// How many keys were remembered, ever.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Writes the table; the rest follows from it.
    pub(crate) fn write(
        &self,
        before: Option<(&Keys, &Groups<Name>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<Name>> {
        let before = before.map(|(keys, written)| (&keys.keys, written));
        chunks.table(&self.keys, before, &encoding())
    }

    /// Reads what [`Keys::write`] wrote.
    pub(crate) fn read(sequence: u64, chunks: &mut ChunkReader<'_>) -> Result<Keys, RestoreError> {
        const TABLE: &str = "idempotency keys";
        let entries = chunks.table::<Name, Arc<Entry>>(TABLE, &encoding())?;
        let mut keys = Keys { sequence, ..Keys::default() };
        for (name, entry) in &entries {
            let same = keys.order.insert(entry.sequence, Arc::clone(name));
            let bytes = entry_size(name, &entry.result);
            if same.is_some() || sequence < entry.sequence || bytes != entry.bytes {
                let what = "a key does not go together with the others";
                return Err(RestoreError::Inconsistent { table: TABLE, what });
            }
            keys.bytes += bytes;
        }
        Ok(Keys { keys: entries, ..keys })
    }

    /// The sabotage of `Mutation::ForgetSessions`.
    pub(crate) fn forget(&mut self) {
        *self = Keys { sequence: self.sequence, ..Keys::default() };
    }

    fn oldest(&self) -> Option<&Entry> {
        let (_, name) = self.order.get_min()?;
        self.keys.get(name).map(|entry| &**entry)
    }

    fn drop_oldest(&mut self) {
        let Some((sequence, name)) = self.order.get_min().cloned() else { return };
        self.order.remove(&sequence);
        if let Some(entry) = self.keys.remove(&name) {
            self.bytes -= entry.bytes;
        }
    }
}

/// What a key costs in memory, roughly.
fn entry_size(name: &Name, result: &RequestResult) -> usize {
    name.0.len() + name.1.len() + size(result) + 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    const LIMITS: Limits = Limits { keys_max: 3, ..Limits::DEFAULT };

    fn hours(hours: u64) -> Timestamp {
        Timestamp::from_nanos((1_000 + hours) * 3_600 * 1_000_000_000)
    }

    fn result(op: u64) -> RequestResult {
        let at = RequestId { op, request: 0 };
        RequestResult::Replied { at, timestamp: op, reply: vec![1], effects: Vec::new() }
    }

    fn add(keys: &mut Keys, key: &str, now: Timestamp) -> Result<(), Busy> {
        keys.make_room(now, &LIMITS)?;
        keys.remember("", key, key.as_bytes(), result(1), now);
        Ok(())
    }

    // Scenario 69.
    #[test]
    fn a_key_answers_its_own_command_for_a_day_and_no_other_ever() {
        let mut keys = Keys::default();
        keys.remember("ann", "k", b"pay 1", result(1), hours(0));
        let look = |principal: &str, command: &[u8], hour| {
            keys.look_up(principal, "k", command, hours(hour), &LIMITS)
        };
        assert_eq!(look("ann", b"pay 1", 23), Known::Result(result(1)));
        assert_eq!(look("ann", b"pay 2", 23), Known::Refused(Refusal::KeyReused));
        assert_eq!(look("bob", b"pay 2", 0), Known::New, "another principal's key is another key");
        assert_eq!(look("ann", b"pay 1", 24), Known::New, "after a day of log time it is forgotten");
    }

    #[test]
    fn full_keys_drop_the_oldest_but_never_one_younger_than_an_hour() {
        let mut keys = Keys::default();
        add(&mut keys, "a", hours(0)).unwrap();
        add(&mut keys, "b", hours(1)).unwrap();
        add(&mut keys, "c", hours(1)).unwrap();
        add(&mut keys, "d", hours(1)).unwrap();
        assert!(keys.get("", "a", hours(1), &LIMITS).is_none());
        assert_eq!(add(&mut keys, "e", hours(1)), Err(Busy::KeysFull));
        assert_eq!(keys.len(), 3);
        add(&mut keys, "e", hours(2)).unwrap();
        assert!(keys.get("", "b", hours(2), &LIMITS).is_none());
    }

    #[test]
    fn an_expired_key_that_is_used_again_is_counted_once() {
        let mut keys = Keys::default();
        keys.remember("", "k", b"1", result(1), hours(0));
        let bytes = keys.bytes();
        keys.remember("", "k", b"2", result(2), hours(30));
        assert_eq!((keys.len(), keys.bytes(), keys.order.len()), (1, bytes, 1));
        assert_eq!(keys.look_up("", "k", b"2", hours(31), &LIMITS), Known::Result(result(2)));
        add(&mut keys, "x", hours(60)).unwrap();
        assert_eq!(keys.len(), 1, "what expired goes when others come");
    }
}
