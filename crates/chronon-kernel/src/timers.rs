//! Durable timers: named, moved by setting them again, fired once, in the order of their times.

use core::ops::ControlFlow;

use chronon_vsr::Timestamp;
use imbl::{OrdMap, OrdSet};

use crate::TimerKey;
use crate::chunk::{ChunkReader, ChunkWriter, Groups, RestoreError};
use crate::stored::encoding;

#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    at: OrdMap<TimerKey, Timestamp>,
    due: OrdSet<(Timestamp, TimerKey)>,
}

impl Timers {
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }

    /// How many there would be after these changes.
    pub(crate) fn len_after(&self, changes: &[(TimerKey, Option<Timestamp>)]) -> usize {
        let mut last = std::collections::BTreeMap::new();
        for (key, at) in changes {
            last.insert(key, at.is_some());
        }
        let mut len = self.at.len();
        for (key, set) in last {
            match (self.at.contains_key(key), set) {
                (false, true) => len += 1,
                (true, false) => len -= 1,
                (true, true) | (false, false) => {}
            }
        }
        len
    }

    pub(crate) fn set(&mut self, key: TimerKey, at: Option<Timestamp>) {
        if let Some(earlier) = self.at.remove(&key) {
            self.due.remove(&(earlier, key.clone()));
        }
        if let Some(at) = at {
            self.due.insert((at, key.clone()));
            self.at.insert(key, at);
        }
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.get_min().map(|(at, _)| *at)
    }

    /// Takes the earliest timer whose time has come.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<TimerKey> {
        let (at, key) = self.due.get_min().filter(|(at, _)| *at <= now)?.clone();
        self.due.remove(&(at, key.clone()));
        self.at.remove(&key);
        Some(key)
    }

    /// Writes the table; the order of times follows from it.
    pub(crate) fn write(
        &self,
        before: Option<(&Timers, &Groups<TimerKey>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<TimerKey>> {
        let before = before.map(|(timers, written)| (&timers.at, written));
        chunks.table(&self.at, before, &encoding())
    }

    /// Reads what [`Timers::write`] wrote.
    pub(crate) fn read(chunks: &mut ChunkReader<'_>) -> Result<Timers, RestoreError> {
        let at = chunks.table::<TimerKey, Timestamp>("timers", &encoding())?;
        let due = at.iter().map(|(key, at)| (*at, key.clone())).collect();
        Ok(Timers { at, due })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn key(name: &str) -> TimerKey {
        TimerKey(name.to_owned())
    }

    #[test]
    fn timers_fire_once_in_the_order_of_their_times_and_move_when_set_again() {
        let mut timers = Timers::default();
        timers.set(key("late"), Some(at(30)));
        timers.set(key("moved"), Some(at(10)));
        timers.set(key("moved"), Some(at(20)));
        timers.set(key("early"), Some(at(10)));
        timers.set(key("removed"), Some(at(5)));
        timers.set(key("removed"), None);
        assert_eq!((timers.len(), timers.next_due()), (3, Some(at(10))));
        assert_eq!(timers.take_due(at(9)), None);
        assert_eq!(timers.take_due(at(30)), Some(key("early")));
        assert_eq!(timers.take_due(at(30)), Some(key("moved")));
        assert_eq!(timers.take_due(at(29)), None);
        assert_eq!(timers.take_due(at(30)), Some(key("late")));
        assert_eq!(timers.take_due(Timestamp::MAX), None);
    }

    #[test]
    fn the_length_after_changes_counts_each_name_once() {
        let mut timers = Timers::default();
        timers.set(key("a"), Some(at(1)));
        let changes =
            [(key("a"), Some(at(2))), (key("b"), Some(at(2))), (key("b"), None), (key("c"), Some(at(1)))];
        assert_eq!(timers.len_after(&changes), 2);
        assert_eq!(timers.len_after(&[(key("a"), None), (key("x"), None)]), 0);
    }
}
