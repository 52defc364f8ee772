//! Tables, sets and cells: what a machine's state is made of. Copy-on-write trees, so that a copy of the whole state
//! costs nothing, and every write is folded into a digest that replicas compare.

use core::fmt;
use core::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

use chronon_vsr::Checksum;
use imbl::OrdMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chunk::{ChunkReader, ChunkWriter, Encoding, Groups, RestoreError};
use crate::state::{Fold, StateField};

/// What can be a key: ordered, and the same in memory and in bytes.
pub trait Key: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Key for K {}

/// What can be kept under a key.
pub trait Value: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<V: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Value for V {}

/// An ordered map.
#[derive(Clone)]
pub struct Table<K, V> {
    entries: OrdMap<K, Slot<V>>,
    writes: Fold,
}

/// A value in a tree.
#[derive(Clone)]
struct Slot<V>(V);

/// Trees are compared by what they share: what they do not share counts as changed, without a look at it. Values of
/// a machine need not be comparable.
impl<V> PartialEq for Slot<V> {
    fn eq(&self, _: &Slot<V>) -> bool {
        false
    }
}

impl<K: Key, V: Value> Table<K, V> {
    /// An empty table.
    pub fn new() -> Table<K, V> {
        Table { entries: OrdMap::new(), writes: Fold::EMPTY }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value under a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|Slot(value)| value)
    }

    /// Whether the key has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Puts a value under a key. Returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.fold_put(&key, &value);
        self.entries.insert(key, Slot(value)).map(|Slot(value)| value)
    }

    /// Takes a key away. Returns what was there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let Slot(removed) = self.entries.remove(key)?;
        self.writes.word(REMOVED);
        self.writes.encoded(key);
        Some(removed)
    }

    /// Changes the value under a key in place. None, and `change` is not called, if there is none.
    pub fn modify<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let Slot(value) = self.entries.get_mut(key)?;
        let result = change(value);
        self.writes.word(PUT);
        self.writes.encoded(key);
        self.writes.encoded(value);
        Some(result)
    }

    /// Changes the value under a key in place; `missing` makes it first if there is none.
    pub fn modify_or_insert<R>(
        &mut self,
        key: K,
        missing: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> R,
    ) -> R {
        if let Some(Slot(value)) = self.entries.get_mut(&key) {
            let result = change(value);
            self.writes.word(PUT);
            self.writes.encoded(&key);
            self.writes.encoded(value);
            return result;
        }
        let mut value = missing();
        let result = change(&mut value);
        self.insert(key, value);
        result
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.writes.word(CLEARED);
        self.entries = OrdMap::new();
    }

    /// All entries, by key, from either end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, Slot(value))| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// All values, by key.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.entries.iter().map(|(_, Slot(value))| value)
    }

    /// The entries whose keys lie in `range`, by key, from either end. A range that ends before it starts is empty.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let range = ordered(&range).then_some(range);
        let entries = range.map(|range| self.entries.range(range)).into_iter().flatten();
        entries.map(|(key, Slot(value))| (key, value))
    }

    /// The entry with the smallest key.
    pub fn first(&self) -> Option<(&K, &V)> {
        self.entries.get_min().map(|(key, Slot(value))| (key, value))
    }

    /// The entry with the largest key.
    pub fn last(&self) -> Option<(&K, &V)> {
        self.entries.get_max().map(|(key, Slot(value))| (key, value))
    }

    fn fold_put(&mut self, key: &K, value: &V) {
        self.writes.word(PUT);
        self.writes.encoded(key);
        self.writes.encoded(value);
    }
}

/// An ordered set.
#[derive(Clone)]
pub struct Set<K> {
    members: OrdMap<K, ()>,
    writes: Fold,
}

impl<K: Key> Set<K> {
    /// An empty set.
    pub fn new() -> Set<K> {
        Set { members: OrdMap::new(), writes: Fold::EMPTY }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether this is a member.
    pub fn contains(&self, member: &K) -> bool {
        self.members.contains_key(member)
    }

    /// Adds a member. False if it was one already.
    pub fn insert(&mut self, member: K) -> bool {
        if self.members.contains_key(&member) {
            return false;
        }
        self.writes.word(PUT);
        self.writes.encoded(&member);
        self.members.insert(member, ());
        true
    }

    /// Takes a member away. False if it was none.
    pub fn remove(&mut self, member: &K) -> bool {
        if self.members.remove(member).is_none() {
            return false;
        }
        self.writes.word(REMOVED);
        self.writes.encoded(member);
        true
    }

    /// All members, in order, from either end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.members.keys()
    }

    /// The members that lie in `range`, in order, from either end. A range that ends before it starts is empty.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = &K> {
        let range = ordered(&range).then_some(range);
        range.map(|range| self.members.range(range)).into_iter().flatten().map(|(member, ())| member)
    }

    /// The smallest member.
    pub fn first(&self) -> Option<&K> {
        self.members.get_min().map(|(member, ())| member)
    }

    /// The largest member.
    pub fn last(&self) -> Option<&K> {
        self.members.get_max().map(|(member, ())| member)
    }
}

/// One value.
#[derive(Clone)]
pub struct Cell<T> {
    value: Arc<T>,
    writes: Fold,
}

impl<T: Value> Cell<T> {
    /// A cell that holds this.
    ///
    /// # Panics
    ///
    /// If the value has no encoding: it could not be checkpointed.
    pub fn new(value: T) -> Cell<T> {
        let mut encodes = Fold::EMPTY;
        encodes.encoded(&value);
        Cell { value: Arc::new(value), writes: Fold::EMPTY }
    }

    /// What it holds.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Makes it hold something else.
    pub fn set(&mut self, value: T) {
        self.writes.encoded(&value);
        self.value = Arc::new(value);
    }

    /// Changes what it holds in place.
    pub fn modify<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let value = Arc::make_mut(&mut self.value);
        let result = change(value);
        self.writes.encoded(value);
        result
    }
}

const PUT: u64 = 1;
const REMOVED: u64 = 2;
const CLEARED: u64 = 3;

/// Whether a range's start is not after its end: the trees panic on others, and a query's bounds may come from a
/// client.
fn ordered<K: Ord>(range: &impl RangeBounds<K>) -> bool {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Excluded(start), Bound::Excluded(end)) => start < end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start <= end
        }
    }
}

fn put<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) {
    let written = postcard::to_extend(value, core::mem::take(bytes));
    *bytes = written.expect("what is in a table was encoded for its digest when it was written");
}

fn take<T: DeserializeOwned>(bytes: &mut &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    *bytes = rest;
    Some(value)
}

impl<K: Key, V: Value> Table<K, V> {
    const ENCODING: Encoding<K, Slot<V>> = Encoding {
        put_key: |key, bytes| put(key, bytes),
        put_value: |Slot(value), bytes| put(value, bytes),
        take_key: take,
        take_value: |bytes| take(bytes).map(Slot),
    };
}

impl<K: Key, V: Value> StateField for Table<K, V> {
    type Written = Groups<K>;

    fn drain_writes(&mut self) -> u64 {
        core::mem::replace(&mut self.writes, Fold::EMPTY).value()
    }

    fn write(
        &self,
        before: Option<(&Table<K, V>, &Groups<K>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<K>> {
        let before = before.map(|(table, written)| (&table.entries, written));
        chunks.table(&self.entries, before, &Self::ENCODING)
    }

    fn read(name: &'static str, chunks: &mut ChunkReader<'_>) -> Result<Table<K, V>, RestoreError> {
        let entries = chunks.table(name, &Self::ENCODING)?;
        Ok(Table { entries, writes: Fold::EMPTY })
    }
}

impl<K: Key> Set<K> {
    const ENCODING: Encoding<K, ()> = Encoding {
        put_key: |member, bytes| put(member, bytes),
        put_value: |(), _| {},
        take_key: take,
        take_value: |_| Some(()),
    };
}

impl<K: Key> StateField for Set<K> {
    type Written = Groups<K>;

    fn drain_writes(&mut self) -> u64 {
        core::mem::replace(&mut self.writes, Fold::EMPTY).value()
    }

    fn write(
        &self,
        before: Option<(&Set<K>, &Groups<K>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<K>> {
        let before = before.map(|(set, written)| (&set.members, written));
        chunks.table(&self.members, before, &Self::ENCODING)
    }

    fn read(name: &'static str, chunks: &mut ChunkReader<'_>) -> Result<Set<K>, RestoreError> {
        let members = chunks.table(name, &Self::ENCODING)?;
        Ok(Set { members, writes: Fold::EMPTY })
    }
}

impl<T: Value> StateField for Cell<T> {
    type Written = Vec<Checksum>;

    fn drain_writes(&mut self) -> u64 {
        core::mem::replace(&mut self.writes, Fold::EMPTY).value()
    }

    fn write(
        &self,
        before: Option<(&Cell<T>, &Vec<Checksum>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Vec<Checksum>> {
        match before {
            Some((cell, written)) if Arc::ptr_eq(&cell.value, &self.value) => {
                chunks.unchanged(written)?;
                ControlFlow::Continue(written.clone())
            }
            Some(_) | None => chunks.value(|bytes| put(&*self.value, bytes)),
        }
    }

    fn read(name: &'static str, chunks: &mut ChunkReader<'_>) -> Result<Cell<T>, RestoreError> {
        let value = chunks.value(name, |value, bytes| put(value, bytes), take)?;
        Ok(Cell::new(value))
    }
}

impl<K: Key, V: Value> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table::new()
    }
}

impl<K: Key> Default for Set<K> {
    fn default() -> Set<K> {
        Set::new()
    }
}

impl<T: Value + Default> Default for Cell<T> {
    fn default() -> Cell<T> {
        Cell::new(T::default())
    }
}

impl<K: Key, V: Value> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Table<K, V> {
        let mut table = Table::new();
        for (key, value) in entries {
            table.insert(key, value);
        }
        table
    }
}

impl<K: Key> FromIterator<K> for Set<K> {
    fn from_iter<I: IntoIterator<Item = K>>(members: I) -> Set<K> {
        let mut set = Set::new();
        for member in members {
            set.insert(member);
        }
        set
    }
}

impl<K: fmt::Debug + Ord, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|(key, Slot(value))| (key, value))).finish()
    }
}

impl<K: fmt::Debug + Ord> fmt::Debug for Set<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.members.keys()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_was_when_it_was_taken() {
        let mut table: Table<u32, String> = (0..1_000).map(|key| (key, format!("value {key}"))).collect();
        let before = table.clone();
        table.modify(&7, |value| value.push('!'));
        table.remove(&8);
        table.insert(1_000, String::new());
        assert_eq!(before.get(&7).map(String::as_str), Some("value 7"));
        assert!(before.contains_key(&8) && !before.contains_key(&1_000));
        assert_eq!((before.len(), table.len()), (1_000, 1_000));
    }

    #[test]
    fn ranges_go_both_ways_and_an_inverted_one_is_empty() {
        let table: Table<u32, ()> = (0..10).map(|key| (key, ())).collect();
        let keys =
            |range: (Bound<u32>, Bound<u32>)| table.range(range).map(|(key, ())| *key).collect::<Vec<_>>();
        assert_eq!(keys((Bound::Included(3), Bound::Excluded(5))), [3, 4]);
        assert_eq!(keys((Bound::Included(5), Bound::Excluded(3))), [0; 0]);
        assert_eq!(keys((Bound::Excluded(3), Bound::Excluded(3))), [0; 0]);
        assert_eq!(table.range(8..).rev().map(|(key, ())| *key).collect::<Vec<_>>(), [9, 8]);
        let set: Set<u32> = (0..10).collect();
        #[expect(clippy::reversed_empty_ranges, reason = "the bounds may come from a client")]
        let inverted = set.range(5..3).count();
        assert_eq!(inverted, 0);
        assert_eq!((set.first(), set.last()), (Some(&0), Some(&9)));
    }

    #[test]
    fn every_kind_of_write_shows_in_the_digest() {
        let mut seen = std::collections::BTreeSet::new();
        let base: Table<u32, u32> = [(1, 1), (2, 2)].into_iter().collect();
        let writes: [fn(&mut Table<u32, u32>); 7] = [
            |_| {},
            |table| assert_eq!(table.insert(1, 2), Some(1)),
            |table| assert_eq!(table.insert(2, 1), Some(2)),
            |table| assert_eq!(table.remove(&1), Some(1)),
            |table| assert_eq!(table.modify(&1, |value| *value = 7), Some(())),
            |table| table.modify_or_insert(3, || 0, |value| *value += 1),
            |table| table.clear(),
        ];
        for write in writes {
            let mut table = base.clone();
            table.drain_writes();
            write(&mut table);
            assert!(seen.insert(table.drain_writes()));
            assert_eq!(table.drain_writes(), Fold::EMPTY.value());
        }
    }
}
