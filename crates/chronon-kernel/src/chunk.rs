//! Chunks: a frozen state as bytes that every replica cuts alike, however it came to that state.
//!
//! A state is a list of tables in a fixed order. A table's entries, by key, are put together into groups. A group ends
//! behind an entry that its key's hash and its size choose, or when it is full, so where groups end follows from what
//! the table holds and nothing else; and a change moves the ends near it only. A group is one chunk, or several when an
//! entry is larger than a chunk. The last chunk, the seal, holds the checksum of the names of all chunks before it.

use core::ops::{Bound, ControlFlow};

use chronon_vsr::{CHUNK_SIZE_MAX, Checksum};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::quiet;
use crate::state::Fold;

/// One chunk of a state that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put<'a> {
    /// A chunk that the state before did not have.
    New {
        /// Its name: [`Checksum::of_chunk`].
        id: Checksum,
        /// Its bytes, at most [`CHUNK_SIZE_MAX`].
        bytes: &'a [u8],
    },
    /// The same chunk as in the state before.
    Kept(Checksum),
}

/// Why chunks are no state of this machine.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A chunk is of another format, or none.
    #[error("a chunk of the {table} is of format {found}, not {CHUNK_FORMAT}")]
    Format {
        /// Where.
        table: &'static str,
        /// Its first byte.
        found: u8,
    },
    /// A chunk is too short or too long to be one.
    #[error("a chunk behind those of the {table} has {size} bytes")]
    Size {
        /// Where.
        table: &'static str,
        /// Its size.
        size: usize,
    },
    /// The chunks end before the state does.
    #[error("the chunks end within the {table}")]
    Ended {
        /// Where.
        table: &'static str,
    },
    /// A chunk is not the next of this state.
    #[error("a chunk of table number {found} comes after those of the {table}")]
    OutOfPlace {
        /// The last table whose chunks were read.
        table: &'static str,
        /// The number that the chunk names.
        found: u16,
    },
    /// An entry's bytes are not of its type.
    #[error("an entry of the {table} can't be decoded")]
    Malformed {
        /// Where.
        table: &'static str,
    },
    /// An entry's bytes read as a value that is written otherwise: its type can't be kept in a table.
    #[error("an entry of the {table} does not survive its own encoding")]
    NotReadBack {
        /// Where.
        table: &'static str,
    },
    /// Keys are out of order, or twice.
    #[error("the keys of the {table} are out of order")]
    KeysOutOfOrder {
        /// Where.
        table: &'static str,
    },
    /// An entry names what is not there, or can't be.
    #[error("the {table} are inconsistent: {what}")]
    Inconsistent {
        /// Where.
        table: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The machine that wrote them has other tables.
    #[error("the state has the tables {found:?}, this machine has {own:?}")]
    OtherTables {
        /// Those of the state.
        found: Vec<String>,
        /// Those of this machine.
        own: Vec<String>,
    },
    /// The machine that wrote them is of another version.
    #[error("the state is of the machine's version {found}, this is version {own}")]
    OtherMachineVersion {
        /// The state's.
        found: u32,
        /// This machine's.
        own: u32,
    },
    /// Reading an entry panicked: the machine's own decoding did.
    #[error("reading the {table} panicked: {message}")]
    Panicked {
        /// Where.
        table: &'static str,
        /// The panic's message.
        message: String,
    },
    /// All chunks can be read, but they are not those that were written together.
    #[error("the chunks are not those that were written together")]
    NotAsWritten,
}

/// The first byte of every chunk.
const CHUNK_FORMAT: u8 = 1;

/// Format, table number (two bytes, little-endian), and whether the group goes on in the next chunk.
const HEADER_SIZE: usize = 4;

/// A group begins with the number of its entries (four bytes, little-endian).
const COUNT_SIZE: usize = 4;

const GROUP_START: usize = HEADER_SIZE + COUNT_SIZE;

const GROUP_ENDS: u8 = 0;
const GROUP_GOES_ON: u8 = 1;

/// A group does not end before it has so many bytes: whoever chooses keys can't make chunks as small as entries.
const GROUP_SIZE_MIN: usize = 16 * 1024;

/// Beyond the least size, a group is expected to end after so many bytes more.
const GROUP_SIZE_SPREAD: u64 = 48 * 1024;

/// A group ends when it has so many bytes: only a large last entry makes it more than a chunk.
const GROUP_SIZE_FULL: usize = 128 * 1024;

const _: () = assert!(GROUP_SIZE_MIN < GROUP_SIZE_FULL && GROUP_START + GROUP_SIZE_FULL < CHUNK_SIZE_MAX);

/// The number of the seal. Tables are numbered from 0, in the order in which they are written.
const SEAL: u16 = u16::MAX;

/// How entries of a table become bytes and are read back.
pub(crate) struct Encoding<K, V> {
    pub(crate) put_key: fn(&K, &mut Vec<u8>),
    pub(crate) put_value: fn(&V, &mut Vec<u8>),
    pub(crate) take_key: fn(&mut &[u8]) -> Option<K>,
    pub(crate) take_value: fn(&mut &[u8]) -> Option<V>,
}

/// The groups of a table as it was written: what the next write compares with.
#[derive(Clone, Debug)]
pub struct Groups<K> {
    groups: Vec<Group<K>>,
    /// Whether the last group ended as groups do, not with the table: what is added behind it does not belong to it.
    closed: bool,
}

#[derive(Clone, Debug)]
struct Group<K> {
    last: K,
    chunks: Vec<Checksum>,
}

/// Takes a state's tables, and puts them out as chunks.
pub struct ChunkWriter<'a> {
    put: &'a mut dyn FnMut(Put<'_>) -> ControlFlow<()>,
    /// The table that is written; none before the first.
    table: Option<u16>,
    /// Room for a header and the count, and the entries of the group so far.
    group: Vec<u8>,
    entries: u32,
    /// The names of all chunks so far.
    ids: Vec<u8>,
}

impl<'a> ChunkWriter<'a> {
    pub(crate) fn new(put: &'a mut dyn FnMut(Put<'_>) -> ControlFlow<()>) -> ChunkWriter<'a> {
        ChunkWriter { put, table: None, group: vec![0; GROUP_START], entries: 0, ids: Vec::new() }
    }

    /// Writes the next table. `before`: as it was when it was written last.
    pub(crate) fn table<K: Ord + Clone, V: PartialEq>(
        &mut self,
        entries: &OrdMap<K, V>,
        before: Option<(&OrdMap<K, V>, &Groups<K>)>,
        encoding: &Encoding<K, V>,
    ) -> ControlFlow<(), Groups<K>> {
        self.begin_table();
        let mut written = Groups { groups: Vec::new(), closed: true };
        let Some((old_entries, old)) = before else {
            self.groups(entries, &mut written, encoding, |_| false)?;
            return ControlFlow::Continue(written);
        };
        // The trees are compared without a look at what they share.
        let mut changes = old_entries.diff(entries).map(changed_key).peekable();
        let mut old_groups = old.groups.iter().enumerate().peekable();
        let is_open = |place: usize| place + 1 == old.groups.len() && !old.closed;
        loop {
            let next_change = changes.peek().copied();
            while let Some((_, group)) = old_groups.next_if(|(place, group)| {
                next_change.is_none_or(|change| group.last < *change && !is_open(*place))
            }) {
                self.keep(&group.chunks)?;
                written.groups.push(group.clone());
            }
            if next_change.is_none() {
                written.closed = old.closed;
                break;
            }
            // From the beginning of the group that holds the change, until groups end where they ended before.
            let aligned = self.groups(entries, &mut written, encoding, |end| {
                while changes.next_if(|change| *change <= end).is_some() {}
                while old_groups.next_if(|(_, group)| group.last < *end).is_some() {}
                old_groups.next_if(|(place, group)| group.last == *end && !is_open(*place)).is_some()
            })?;
            if aligned == Aligned::No {
                break;
            }
        }
        ControlFlow::Continue(written)
    }

    /// Writes groups of what is behind those written, until `aligned` says that the group that ended with this key is
    /// where it may stop, or the table ends.
    fn groups<K: Ord + Clone, V>(
        &mut self,
        entries: &OrdMap<K, V>,
        written: &mut Groups<K>,
        encoding: &Encoding<K, V>,
        mut aligned: impl FnMut(&K) -> bool,
    ) -> ControlFlow<(), Aligned> {
        let from = match written.groups.last() {
            Some(group) => Bound::Excluded(group.last.clone()),
            None => Bound::Unbounded,
        };
        let mut last = None;
        for (key, value) in entries.range((from, Bound::Unbounded)) {
            last = Some(key);
            if self.add(key, value, encoding) == GroupIs::Complete {
                last = None;
                let chunks = self.end_group()?;
                written.groups.push(Group { last: key.clone(), chunks });
                if aligned(key) {
                    return ControlFlow::Continue(Aligned::Yes);
                }
            }
        }
        written.closed = last.is_none();
        if let Some(last) = last {
            let chunks = self.end_group()?;
            written.groups.push(Group { last: last.clone(), chunks });
        }
        ControlFlow::Continue(Aligned::No)
    }

    /// Writes a table of one value.
    pub(crate) fn value(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> ControlFlow<(), Vec<Checksum>> {
        self.begin_table();
        put(&mut self.group);
        self.entries = 1;
        self.end_group()
    }

    /// Writes a table that is as it was when it was written last.
    pub(crate) fn unchanged(&mut self, chunks: &[Checksum]) -> ControlFlow<()> {
        self.begin_table();
        self.keep(chunks)
    }

    /// Writes the seal.
    pub(crate) fn finish(mut self) -> ControlFlow<()> {
        let checksum = Checksum::of(&self.ids);
        self.table = Some(SEAL);
        self.group.extend_from_slice(&checksum.to_bytes());
        self.entries = 1;
        self.end_group()?;
        ControlFlow::Continue(())
    }

    fn begin_table(&mut self) {
        let next = self.table.map_or(0, |table| table + 1);
        assert!(next < SEAL);
        self.table = Some(next);
    }

    fn add<K, V>(&mut self, key: &K, value: &V, encoding: &Encoding<K, V>) -> GroupIs {
        let start = self.group.len();
        (encoding.put_key)(key, &mut self.group);
        let key_end = self.group.len();
        (encoding.put_value)(value, &mut self.group);
        let size = (self.group.len() - start) as u64;
        self.entries += 1;
        let filled = self.group.len() - GROUP_START;
        if filled < GROUP_SIZE_MIN {
            return GroupIs::Incomplete;
        }
        // The larger an entry the likelier it is an end, so that groups have about the same size whatever is in them.
        let mut hash = Fold::EMPTY;
        hash.bytes(&self.group[start..key_end]);
        if GROUP_SIZE_FULL <= filled || hash.value() % GROUP_SIZE_SPREAD < size {
            GroupIs::Complete
        } else {
            GroupIs::Incomplete
        }
    }

    fn end_group(&mut self) -> ControlFlow<(), Vec<Checksum>> {
        let table = self.table.expect("groups belong to a table");
        let mut group = core::mem::take(&mut self.group);
        group[HEADER_SIZE..GROUP_START].copy_from_slice(&self.entries.to_le_bytes());
        self.entries = 0;
        let mut chunks = Vec::with_capacity(1);
        if group.len() <= CHUNK_SIZE_MAX {
            group[..HEADER_SIZE].copy_from_slice(&header(table, GROUP_ENDS));
            chunks.push(self.put_new(&group)?);
        } else {
            let mut pieces = group[HEADER_SIZE..].chunks(CHUNK_SIZE_MAX - HEADER_SIZE).peekable();
            while let Some(piece) = pieces.next() {
                let more = if pieces.peek().is_some() { GROUP_GOES_ON } else { GROUP_ENDS };
                let chunk = [&header(table, more)[..], piece].concat();
                chunks.push(self.put_new(&chunk)?);
            }
        }
        group.truncate(GROUP_START);
        self.group = group;
        ControlFlow::Continue(chunks)
    }

    fn put_new(&mut self, bytes: &[u8]) -> ControlFlow<(), Checksum> {
        let id = Checksum::of_chunk(bytes);
        self.ids.extend_from_slice(&id.to_bytes());
        (self.put)(Put::New { id, bytes })?;
        ControlFlow::Continue(id)
    }

    fn keep(&mut self, chunks: &[Checksum]) -> ControlFlow<()> {
        for id in chunks {
            self.ids.extend_from_slice(&id.to_bytes());
            (self.put)(Put::Kept(*id))?;
        }
        ControlFlow::Continue(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupIs {
    Complete,
    Incomplete,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aligned {
    Yes,
    No,
}

fn changed_key<'a, K, V>(item: DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => key,
    }
}

fn header(table: u16, more: u8) -> [u8; HEADER_SIZE] {
    let [low, high] = table.to_le_bytes();
    [CHUNK_FORMAT, low, high, more]
}

/// Takes chunks, and gives out a state's tables.
pub struct ChunkReader<'a> {
    chunks: &'a mut dyn Iterator<Item = Vec<u8>>,
    /// The chunk that was looked at and belongs to a later table.
    next: Option<Vec<u8>>,
    /// The table that is read; none before the first.
    table: Option<u16>,
    /// Its name.
    name: &'static str,
    ids: Vec<u8>,
    /// For comparing what was read with how it is written.
    written: Vec<u8>,
}

impl<'a> ChunkReader<'a> {
    pub(crate) fn new(chunks: &'a mut dyn Iterator<Item = Vec<u8>>) -> ChunkReader<'a> {
        let (ids, written) = (Vec::new(), Vec::new());
        ChunkReader { chunks, next: None, table: None, name: "head", ids, written }
    }

    /// Reads the next table.
    pub(crate) fn table<K: Ord + Clone, V: Clone>(
        &mut self,
        name: &'static str,
        encoding: &Encoding<K, V>,
    ) -> Result<OrdMap<K, V>, RestoreError> {
        self.begin_table(name);
        let mut entries = OrdMap::new();
        while let Some((count, group)) = self.group()? {
            let written = &mut self.written;
            let read = quiet::catch(|| {
                let mut rest = &group[..];
                for _ in 0..count {
                    let entry = rest;
                    let key = (encoding.take_key)(&mut rest);
                    let key = key.ok_or(RestoreError::Malformed { table: name })?;
                    let value = (encoding.take_value)(&mut rest);
                    let value = value.ok_or(RestoreError::Malformed { table: name })?;
                    written.clear();
                    (encoding.put_key)(&key, written);
                    (encoding.put_value)(&value, written);
                    if entry.strip_suffix(rest) != Some(&written[..]) {
                        return Err(RestoreError::NotReadBack { table: name });
                    }
                    if entries.get_max().is_some_and(|(last, _)| key <= *last) {
                        return Err(RestoreError::KeysOutOfOrder { table: name });
                    }
                    entries.insert(key, value);
                }
                if rest.is_empty() { Ok(()) } else { Err(RestoreError::Malformed { table: name }) }
            });
            read.unwrap_or_else(|message| Err(RestoreError::Panicked { table: name, message }))?;
        }
        Ok(entries)
    }

    /// Reads a table of one value.
    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        put: fn(&T, &mut Vec<u8>),
        take: fn(&mut &[u8]) -> Option<T>,
    ) -> Result<T, RestoreError> {
        self.begin_table(name);
        let (count, group) = self.group()?.ok_or(RestoreError::Ended { table: name })?;
        let written = &mut self.written;
        let read = quiet::catch(|| {
            let mut rest = &group[..];
            let value = take(&mut rest).ok_or(RestoreError::Malformed { table: name })?;
            if count != 1 || !rest.is_empty() {
                return Err(RestoreError::Malformed { table: name });
            }
            written.clear();
            put(&value, written);
            if *written == group { Ok(value) } else { Err(RestoreError::NotReadBack { table: name }) }
        });
        read.unwrap_or_else(|message| Err(RestoreError::Panicked { table: name, message }))
    }

    /// Reads the seal: whether these were all the chunks that were written, as they were written.
    pub(crate) fn finish(mut self) -> Result<(), RestoreError> {
        let checksum = Checksum::of(&self.ids);
        let end = RestoreError::Ended { table: self.name };
        self.table = Some(SEAL);
        let (count, seal) = self.group()?.ok_or(end)?;
        let more = self.next.is_some() || self.chunks.next().is_some();
        if count != 1 || seal != checksum.to_bytes() || more {
            Err(RestoreError::NotAsWritten)
        } else {
            Ok(())
        }
    }

    fn begin_table(&mut self, name: &'static str) {
        self.table = Some(self.table.map_or(0, |table| table + 1));
        self.name = name;
    }

    /// The next group of the table that is read: how many entries, and their bytes. None when the table ends.
    fn group(&mut self) -> Result<Option<(u32, Vec<u8>)>, RestoreError> {
        let table = self.name;
        let mut group: Option<Vec<u8>> = None;
        loop {
            let Some(mut chunk) = self.next.take().or_else(|| self.chunks.next()) else {
                // Every state ends with a seal.
                return Err(RestoreError::Ended { table });
            };
            let Some((&[format, low, high, more], body)) = chunk.split_first_chunk::<HEADER_SIZE>() else {
                return Err(RestoreError::Size { table, size: chunk.len() });
            };
            if CHUNK_SIZE_MAX < chunk.len() {
                return Err(RestoreError::Size { table, size: chunk.len() });
            }
            if format != CHUNK_FORMAT {
                return Err(RestoreError::Format { table, found: format });
            }
            let found = u16::from_le_bytes([low, high]);
            if Some(found) != self.table {
                if group.is_some() || Some(found) < self.table {
                    return Err(RestoreError::OutOfPlace { table, found });
                }
                self.next = Some(chunk);
                return Ok(None);
            }
            self.ids.extend_from_slice(&Checksum::of_chunk(&chunk).to_bytes());
            match &mut group {
                Some(group) => group.extend_from_slice(body),
                None => group = Some(chunk.split_off(HEADER_SIZE)),
            }
            match more {
                GROUP_ENDS => break,
                GROUP_GOES_ON => {}
                _ => return Err(RestoreError::Malformed { table }),
            }
        }
        let group = group.expect("one chunk at least was taken");
        let Some((count, entries)) = group.split_first_chunk::<COUNT_SIZE>() else {
            return Err(RestoreError::Malformed { table });
        };
        Ok(Some((u32::from_le_bytes(*count), entries.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use std::collections::BTreeMap;

    use chronon_vsr::Prng;

    use super::*;
    use crate::stored::{Stored, encoding};

    std::thread_local! {
        static COMPARED: Cell<u64> = const { Cell::new(0) };
    }

    /// A key that counts how often it is compared.
    #[derive(Clone, Debug)]
    struct Counted(u64);

    impl PartialEq for Counted {
        fn eq(&self, other: &Counted) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Counted {}

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Counted) -> Option<core::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Counted {
        fn cmp(&self, other: &Counted) -> core::cmp::Ordering {
            COMPARED.set(COMPARED.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl Stored for Counted {
        fn put(&self, bytes: &mut Vec<u8>) {
            self.0.put(bytes);
        }

        fn take(bytes: &mut &[u8]) -> Option<Counted> {
            u64::take(bytes).map(Counted)
        }
    }

    type Entries = OrdMap<Counted, String>;

    #[derive(Default)]
    struct Chunks {
        bytes: BTreeMap<Checksum, Vec<u8>>,
        list: Vec<Checksum>,
        new: usize,
    }

    impl Chunks {
        fn write(
            entries: &Entries,
            before: Option<(&Entries, &Groups<Counted>)>,
        ) -> (Chunks, Groups<Counted>) {
            let mut chunks = Chunks::default();
            let mut put = |put: Put<'_>| {
                match put {
                    Put::New { id, bytes } => {
                        chunks.bytes.insert(id, bytes.to_vec());
                        chunks.list.push(id);
                        chunks.new += 1;
                    }
                    Put::Kept(id) => chunks.list.push(id),
                }
                ControlFlow::Continue(())
            };
            let mut writer = ChunkWriter::new(&mut put);
            let ControlFlow::Continue(groups) = writer.table(entries, before, &encoding()) else {
                panic!("nobody told it to stop")
            };
            assert_eq!(writer.finish(), ControlFlow::Continue(()));
            (chunks, groups)
        }

        fn read(&self) -> Result<Entries, RestoreError> {
            let mut chunks = self.list.iter().map(|id| self.bytes[id].clone());
            let mut reader = ChunkReader::new(&mut chunks);
            let entries = reader.table("entries", &encoding())?;
            reader.finish()?;
            Ok(entries)
        }
    }

    fn entries(count: u64, size: usize) -> Entries {
        (0..count).map(|key| (Counted(key * 7), "x".repeat(size))).collect()
    }

    #[test]
    fn groups_have_about_the_same_size_whatever_is_in_them() {
        for (count, size) in [(200_000, 8), (20_000, 200), (1_000, 5_000), (60, 100_000)] {
            let entries = entries(count, size);
            let (chunks, _) = Chunks::write(&entries, None);
            let bytes: usize = chunks.bytes.values().map(Vec::len).sum();
            let mean = bytes / chunks.list.len();
            assert!((30_000..150_000).contains(&mean), "entries of {size} bytes make chunks of {mean}");
            let small = chunks.bytes.values().filter(|chunk| chunk.len() < GROUP_SIZE_MIN).count();
            assert!(small <= 2, "only a table's last chunk and the seal are small, but {small} are");
            assert_eq!(chunks.read().unwrap(), entries);
        }
    }

    #[test]
    fn an_entry_larger_than_a_chunk_is_cut_and_put_together_again() {
        for size in [CHUNK_SIZE_MAX - 20, CHUNK_SIZE_MAX, 3 * CHUNK_SIZE_MAX + 7] {
            let mut entries = entries(5_000, 20);
            entries.insert(Counted(701), "y".repeat(size));
            let (chunks, _) = Chunks::write(&entries, None);
            assert!(chunks.bytes.values().all(|chunk| chunk.len() <= CHUNK_SIZE_MAX));
            assert_eq!(chunks.read().unwrap(), entries);
        }
    }

    #[test]
    fn chunks_follow_from_the_content_alone_after_any_edits() {
        for seed in 0..20 {
            println!("seed {seed}");
            let mut random = Prng::new(seed);
            let mut now = entries(random.below(6_000), random.between(1, 300) as usize);
            let mut before: Option<(Entries, Groups<Counted>)> = None;
            let mut known = BTreeMap::new();
            for _ in 0..12 {
                for _ in 0..random.below(20) {
                    let place = random.below(50_000);
                    match random.below(8) {
                        0..=2 => {
                            now.insert(Counted(place), "z".repeat(random.below(600) as usize));
                        }
                        3..=5 => {
                            // Something that is there, if anything is.
                            let found = now.range(Counted(place)..).next().map(|(key, _)| key.clone());
                            found.and_then(|key| now.remove(&key));
                        }
                        6 => {
                            let from = Counted(place);
                            let keys: Vec<_> = now.range(from..).map(|(key, _)| key.clone()).collect();
                            for key in keys.iter().take(random.below(800) as usize) {
                                now.remove(key);
                            }
                        }
                        _ => {
                            now.insert(Counted(60_000 + place), "tail".repeat(random.below(60_000) as usize));
                        }
                    }
                }
                let old = before.as_ref().map(|(entries, groups)| (entries, groups));
                let (chunks, groups) = Chunks::write(&now, old);
                known.extend(chunks.bytes);
                // The same content with another history, in a tree of another shape.
                let again: Entries =
                    now.iter().rev().map(|(key, value)| (key.clone(), value.clone())).collect();
                let (whole, _) = Chunks::write(&again, None);
                assert_eq!(chunks.list, whole.list);
                assert!(chunks.list.iter().all(|id| known.contains_key(id)));
                assert_eq!(whole.read().unwrap(), now);
                before = Some((now.clone(), groups));
            }
        }
    }

    #[test]
    fn a_write_looks_only_at_what_changed_and_a_little_around_it() {
        let old = entries(300_000, 8);
        let (_, groups) = Chunks::write(&old, None);
        let mut now = old.clone();
        for key in [0, 70_000, 140_001, 1_400_000] {
            now.insert(Counted(key), String::from("new"));
        }
        now.remove(&Counted(700_000));
        COMPARED.set(0);
        let (chunks, _) = Chunks::write(&now, Some((&old, &groups)));
        let compared = COMPARED.get();
        assert!(compared < 2_000, "{compared} keys were compared for five changes among 300,000");
        // Five groups, perhaps one more for each end that moved, and the seal.
        assert!(chunks.new <= 11, "{} chunks are new", chunks.new);
        assert!(20 < chunks.list.len());
    }

    #[test]
    fn keys_out_of_order_or_twice_are_an_error() {
        let (mut chunks, _) = Chunks::write(&entries(20_000, 20), None);
        chunks.list.swap(0, 1);
        let out_of_order = Err(RestoreError::KeysOutOfOrder { table: "entries" });
        assert_eq!(chunks.read(), out_of_order);
        let (mut chunks, _) = Chunks::write(&entries(1, 20), None);
        chunks.list.insert(0, chunks.list[0]);
        assert_eq!(chunks.read(), out_of_order);
    }

    #[test]
    fn members_without_a_size_are_counted() {
        let unit: OrdMap<(), ()> = OrdMap::unit((), ());
        let none = Encoding {
            put_key: |(), _| {},
            put_value: |(), _| {},
            take_key: |_| Some(()),
            take_value: |_| Some(()),
        };
        let mut list = Vec::new();
        let mut put = |put: Put<'_>| {
            if let Put::New { bytes, .. } = put {
                list.push(bytes.to_vec());
            }
            ControlFlow::Continue(())
        };
        let mut writer = ChunkWriter::new(&mut put);
        assert!(writer.table(&unit, None, &none).is_continue());
        assert!(writer.finish().is_continue());
        let mut chunks = list.into_iter();
        let mut reader = ChunkReader::new(&mut chunks);
        assert_eq!(reader.table("unit", &none), Ok(unit));
        assert_eq!(reader.finish(), Ok(()));
    }
}
