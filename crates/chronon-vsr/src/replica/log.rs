//! The log in memory: which entry stands at each op (the chain), and the entries themselves, named by content.
//!
//! ```text
//!   base ── … checkpoint … linked ──╌╌╌ unknown ╌╌╌── floor … committed … head
//!           chained to the base                       chained to the head
//! ```
//! The gap closes downwards: a header names its parent. Nothing in or above it is executed before it is closed. Below
//! the base the log is gone: a checkpoint holds what it came to.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::{
    Checkpoint, Checksum, Entry, EntryHeader, Op, OpRef, PIPELINE_MAX, SUFFIX_MAX, Timestamp, WriteNumber,
};

/// The entries of one replica. Bounded by the ring: the ack rule (§8) ends the log before it grows beyond it.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct Log {
    /// What the chain hangs from: the root, or the newest entry that the ring may let go of.
    base: OpRef,
    /// The newest durable checkpoint here.
    checkpoint: Checkpoint,
    head: OpRef,
    /// The newest entry of this chain that is known committed. Never falls.
    committed: OpRef,
    /// Every op of `floor..=head` is in the chain.
    floor: Op,
    /// Every op above the base up to `linked` is in the chain, and chained to the base.
    linked: Op,
    chain: BTreeMap<Op, Link>,
    held: BTreeMap<OpRef, Held>,
    /// Entries that were, or may have been, durable and acked here, and are damaged.
    faulty: BTreeSet<OpRef>,
}

/// What stands at an op. The header is missing where only the child named the entry.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
struct Link {
    checksum: Checksum,
    header: Option<EntryHeader>,
}

/// An entry that is here.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
struct Held {
    entry: Entry,
    disk: OnDisk,
}

/// How far an entry is on its way to our disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// Not asked for.
    No,
    /// Asked for.
    Writing(WriteNumber),
    /// Flushed.
    Durable,
}

// For a search that tells states apart: the numbers of writes differ from one way to a state to another.
#[cfg(test)]
impl core::hash::Hash for OnDisk {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        core::mem::discriminant(self).hash(state);
    }
}

/// Two histories where there must be one, at this op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fork {
    pub(crate) op: Op,
}

impl Log {
    /// A log that has nothing above a checkpoint.
    pub(crate) fn new(checkpoint: Checkpoint) -> Log {
        let base = checkpoint.entry;
        Log {
            base,
            checkpoint,
            head: base,
            committed: base,
            floor: base.op.next(),
            linked: base.op,
            chain: BTreeMap::new(),
            held: BTreeMap::new(),
            faulty: BTreeSet::new(),
        }
    }

    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the chain hangs from.
    pub(crate) fn base(&self) -> OpRef {
        self.base
    }

    /// The op above the base: nothing below it is kept.
    pub(crate) fn start(&self) -> Op {
        self.base.op.next()
    }

    /// Where the ring bytes of what is kept begin.
    pub(crate) fn start_offset(&self) -> u64 {
        self.header(self.start()).map_or(self.checkpoint.end, |header| header.offset)
    }

    /// Where an entry's ring charge ends, if its header is known.
    pub(crate) fn end_of(&self, entry: OpRef) -> Option<u64> {
        if entry == self.checkpoint.entry {
            return Some(self.checkpoint.end);
        }
        self.header(entry.op).map(EntryHeader::end)
    }

    pub(crate) fn head(&self) -> OpRef {
        self.head
    }

    pub(crate) fn committed(&self) -> OpRef {
        self.committed
    }

    /// The entry that stands at an op, if the chain says.
    pub(crate) fn at(&self, op: Op) -> Option<OpRef> {
        if op == self.base.op {
            return Some(self.base);
        }
        self.chain.get(&op).map(|link| OpRef { op, checksum: link.checksum })
    }

    pub(crate) fn header(&self, op: Op) -> Option<&EntryHeader> {
        self.chain.get(&op).and_then(|link| link.header.as_ref())
    }

    /// The body and header of what stands at an op, if they are here.
    pub(crate) fn entry(&self, op: Op) -> Option<&Entry> {
        self.at(op).and_then(|entry| self.content(entry))
    }

    /// An entry by its content, on the chain or beside it.
    pub(crate) fn content(&self, entry: OpRef) -> Option<&Entry> {
        self.held.get(&entry).map(|held| &held.entry)
    }

    /// Any entry of that number, whatever the chain says: what the guard of the chain is there to prevent.
    pub(crate) fn any_at(&self, op: Op) -> Option<&Entry> {
        self.held.iter().find(|(entry, _)| entry.op == op).map(|(_, held)| &held.entry)
    }

    pub(crate) fn on_disk(&self, op: Op) -> OnDisk {
        self.at(op).and_then(|entry| self.held.get(&entry)).map_or(OnDisk::No, |held| held.disk)
    }

    pub(crate) fn is_durable(&self, op: Op) -> bool {
        self.on_disk(op) == OnDisk::Durable
    }

    pub(crate) fn is_faulty(&self, entry: OpRef) -> bool {
        self.faulty.contains(&entry)
    }

    /// Where the next entry's ring charge begins.
    pub(crate) fn end_offset(&self) -> u64 {
        self.header(self.head.op).map_or(self.checkpoint.end, EntryHeader::end)
    }

    pub(crate) fn head_timestamp(&self) -> Timestamp {
        self.header(self.head.op).map_or(self.checkpoint.timestamp, |header| header.timestamp)
    }

    /// Up to where entries may be executed: committed, and chained to a committed pair without a gap.
    pub(crate) fn executable(&self) -> Op {
        self.linked.min(self.committed.op)
    }

    /// The top and bottom of the gap between what is chained to the base and what is chained to the head. The header
    /// of the top is what is missing.
    pub(crate) fn gap(&self) -> Option<(OpRef, Op)> {
        if self.linked == self.head.op {
            return None;
        }
        self.at(self.floor).map(|top| (top, self.linked.next()))
    }

    /// Headers from committed to head, both included where known.
    pub(crate) fn suffix(&self) -> Vec<EntryHeader> {
        let suffix: Vec<EntryHeader> = self
            .chain
            .range(self.committed.op..=self.head.op)
            .filter_map(|(_, link)| link.header.clone())
            .collect();
        assert!(suffix.len() <= SUFFIX_MAX);
        suffix
    }

    /// The entries above committed that are marked damaged: what a restart must not forget.
    pub(crate) fn faulty_uncommitted(&self) -> Vec<OpRef> {
        self.faulty.iter().filter(|entry| self.committed.op < entry.op).copied().collect()
    }

    /// What stands above committed.
    pub(crate) fn uncommitted(&self) -> Vec<OpRef> {
        let above = self.chain.range(self.committed.op.next()..);
        above.map(|(op, link)| OpRef { op: *op, checksum: link.checksum }).collect()
    }

    /// The oldest op whose entry can be served.
    pub(crate) fn oldest(&self) -> Op {
        self.held.keys().next().map_or(self.head.op.next(), |entry| entry.op)
    }

    /// Whether an entry may stand right above the head.
    pub(crate) fn continues(&self, header: &EntryHeader) -> bool {
        header.op.previous() == Some(self.head.op)
            && header.parent == self.head.checksum
            && header.offset == self.end_offset()
            && self.head_timestamp() < header.timestamp
            && header.commit < header.op
            && header.op.since(header.commit) <= PIPELINE_MAX
    }

    /// Makes an entry's header the head. It must continue the log.
    pub(crate) fn push(&mut self, header: EntryHeader) {
        assert!(self.continues(&header));
        let entry = header.op_ref();
        let commit = header.commit;
        if self.linked == self.head.op {
            self.linked = entry.op;
        }
        self.chain.insert(entry.op, Link { checksum: entry.checksum, header: Some(header) });
        self.head = entry;
        // Its primary knew `commit` committed when it prepared this entry on top of it.
        if let Some(committed) = self.at(commit) {
            self.commit(committed);
        }
    }

    /// Keeps an entry's body. It need not be on the chain.
    pub(crate) fn hold(&mut self, entry: Entry, disk: OnDisk) {
        let name = entry.op_ref();
        if let Some(link) = self.chain.get_mut(&name.op)
            && link.checksum == name.checksum
            && link.header.is_none()
        {
            link.header = Some(entry.header().clone());
        }
        let held = self.held.entry(name).or_insert(Held { entry, disk });
        if disk == OnDisk::Durable {
            held.disk = disk;
        }
    }

    /// Notes that an entry is on its way to disk.
    pub(crate) fn writing(&mut self, entry: OpRef, number: WriteNumber) {
        let held = self.held.get_mut(&entry).expect("only entries that are held are written");
        assert!(held.disk == OnDisk::No);
        held.disk = OnDisk::Writing(number);
    }

    /// Notes that a write is flushed. A damaged entry is repaired by it.
    pub(crate) fn durable(&mut self, entry: OpRef, number: WriteNumber) {
        if let Some(held) = self.held.get_mut(&entry)
            && held.disk == OnDisk::Writing(number)
        {
            held.disk = OnDisk::Durable;
            self.faulty.remove(&entry);
        }
    }

    /// Marks an entry of the chain as damaged, unless it is durable here.
    pub(crate) fn mark_faulty(&mut self, entry: OpRef) {
        if self.at(entry.op) == Some(entry) && !self.is_durable(entry.op) {
            self.faulty.insert(entry);
        }
    }

    /// Notes that an entry of the chain is committed. One that is older than what is known already changes nothing.
    pub(crate) fn commit(&mut self, entry: OpRef) {
        assert!(self.at(entry.op) == Some(entry));
        if self.committed.op < entry.op {
            self.committed = entry;
        }
    }

    /// Replaces what lies above `base`, which is committed, with these headers: from base's own, if known, to the
    /// new head. Keeps every entry that matches; what is above or beside the new log is dropped.
    pub(crate) fn adopt(&mut self, base: OpRef, headers: &[EntryHeader]) -> Result<(), Fork> {
        let mut links: BTreeMap<Op, Link> = headers
            .iter()
            .map(|header| (header.op, Link { checksum: header.checksum(), header: Some(header.clone()) }))
            .collect();
        if self.base.op < base.op {
            links.entry(base.op).or_insert(Link { checksum: base.checksum, header: None });
        }
        let head = headers.last().map_or(base, EntryHeader::op_ref);

        // Nothing committed may change or go.
        let known = self.committed;
        let stands = |op: Op| links.get(&op).map(|link| link.checksum);
        if base.op == self.base.op && base != self.base {
            return Err(Fork { op: base.op });
        }
        if base.op < known.op && stands(known.op) != Some(known.checksum) {
            return Err(Fork { op: known.op });
        }
        for (op, link) in self.chain.range(base.op..=known.op.max(base.op)) {
            if *op <= known.op && stands(*op) != Some(link.checksum) {
                return Err(Fork { op: *op });
            }
        }

        self.chain.split_off(&known.op.next());
        // What lies at or below the base is committed, and gone.
        for (op, mut link) in links.into_iter().filter(|(op, _)| self.base.op < *op) {
            if link.header.is_none() {
                link.header = self.known_header(OpRef { op, checksum: link.checksum });
            }
            self.chain.entry(op).or_insert(link);
        }
        self.head = head;
        self.linked = self.linked.min(known.op);
        if base.op <= self.linked {
            self.linked = head.op;
            self.floor = self.start();
        } else if base.op <= known.op && self.floor <= base.op {
            // The new log overlaps the part that still hangs above the gap: so does its head.
        } else {
            self.floor = base.op;
        }
        if self.committed.op < base.op {
            self.committed = base;
        }
        if let Some(commit) = headers.last().and_then(|header| self.at(header.commit)) {
            self.commit(commit);
        }
        let result = self.link_down();
        self.drop_excluded();
        result
    }

    /// Follows parents down from the floor as far as headers are known.
    pub(crate) fn link_down(&mut self) -> Result<(), Fork> {
        while self.linked < self.head.op {
            let Some(header) = self.header(self.floor) else { return Ok(()) };
            let below = header.op.previous().expect("the chain begins above the base");
            let parent = OpRef { op: below, checksum: header.parent };
            match self.at(below) {
                Some(stands) if stands != parent => return Err(Fork { op: below }),
                Some(_) if below <= self.linked => {
                    self.linked = self.head.op;
                    self.floor = self.start();
                    self.drop_excluded();
                }
                Some(_) => self.floor = below,
                None => {
                    let link = Link { checksum: parent.checksum, header: self.known_header(parent) };
                    self.chain.insert(below, link);
                    self.floor = below;
                }
            }
        }
        Ok(())
    }

    /// Gives an entry of the chain the header that only its child had named. Nothing happens unless it is the one.
    pub(crate) fn learn_header(&mut self, header: &EntryHeader) -> bool {
        match self.chain.get_mut(&header.op) {
            Some(link) if link.header.is_none() && link.checksum == header.checksum() => {
                link.header = Some(header.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    fn known_header(&self, entry: OpRef) -> Option<EntryHeader> {
        self.held.get(&entry).map(|held| held.entry.header().clone())
    }

    /// Drops entries that the log excludes. What lies in the gap stays: it may still turn out to belong.
    pub(crate) fn drop_excluded(&mut self) {
        let (chain, base, head) = (&self.chain, self.base.op, self.head.op);
        let belongs = |entry: &OpRef| match chain.get(&entry.op) {
            Some(link) => link.checksum == entry.checksum,
            None => base < entry.op && entry.op <= head,
        };
        self.held.retain(|entry, _| belongs(entry));
        self.faulty.retain(|entry| chain.get(&entry.op).is_some_and(|link| link.checksum == entry.checksum));
    }

    /// Puts the entry that the chain hangs from into it: its header is still there. Says whether it was the one.
    pub(crate) fn lower(&mut self, header: &EntryHeader) -> bool {
        let name = header.op_ref();
        let Some(below) = name.op.previous() else { return false };
        if name != self.base {
            return false;
        }
        self.chain.insert(name.op, Link { checksum: name.checksum, header: Some(header.clone()) });
        self.base = OpRef { op: below, checksum: header.parent };
        if self.linked == self.head.op {
            self.floor = self.start();
        }
        true
    }

    /// Lets go of everything below `start`. A checkpoint has taken its place.
    pub(crate) fn release(&mut self, start: Op) {
        let Some(base) = start.previous().and_then(|below| self.at(below)) else { return };
        assert!(base.op <= self.checkpoint.entry.op);
        assert!(base.op <= self.linked);
        self.base = base;
        self.chain = self.chain.split_off(&start);
        self.held = self.held.split_off(&OpRef { op: start, checksum: Checksum::LEAST });
        self.faulty = self.faulty.split_off(&OpRef { op: start, checksum: Checksum::LEAST });
        if self.linked == self.head.op {
            self.floor = start;
        }
    }

    /// Notes that a checkpoint of an op of this log is durable here.
    pub(crate) fn checkpointed(&mut self, checkpoint: Checkpoint) {
        assert!(self.checkpoint.entry.op <= checkpoint.entry.op);
        assert!(self.at(checkpoint.entry.op) == Some(checkpoint.entry));
        self.checkpoint = checkpoint;
    }

    /// Hangs the log from a checkpoint whose op it may never have had. The op is committed.
    pub(crate) fn rebase(&mut self, checkpoint: Checkpoint) -> Result<(), Fork> {
        let base = checkpoint.entry;
        assert!(self.checkpoint.entry.op < base.op);
        assert!(base.op <= self.committed.op);
        if self.at(base.op).is_some_and(|stands| stands != base) {
            return Err(Fork { op: base.op });
        }
        let start = base.op.next();
        let above_agrees = self.header(start).is_none_or(|header| header.parent == base.checksum);
        if !above_agrees {
            return Err(Fork { op: base.op });
        }
        self.base = base;
        self.checkpoint = checkpoint;
        self.chain = self.chain.split_off(&start);
        self.held = self.held.split_off(&OpRef { op: start, checksum: Checksum::LEAST });
        self.faulty = self.faulty.split_off(&OpRef { op: start, checksum: Checksum::LEAST });
        let has_no_gap = self.linked == self.head.op;
        if has_no_gap || (self.linked < base.op && self.floor <= base.op) {
            self.linked = self.head.op;
            self.floor = start;
        } else {
            self.linked = self.linked.max(base.op);
        }
        self.link_down()
    }

    /// Ops of `from..=to` that the chain names and whose bodies are not here, lowest first.
    pub(crate) fn missing(&self, from: Op, to: Op) -> impl Iterator<Item = OpRef> + '_ {
        self.chain
            .range(from..=to.max(from))
            .filter(move |(op, _)| **op <= to)
            .map(|(op, link)| OpRef { op: *op, checksum: link.checksum })
            .filter(|entry| !self.held.contains_key(entry))
    }

    /// Ops up to `to` that are here, belong to the chain, and that nobody has asked to write.
    pub(crate) fn unwritten(&self, to: Op) -> Vec<Op> {
        self.held
            .iter()
            .filter(|(entry, held)| {
                entry.op <= to && held.disk == OnDisk::No && self.at(entry.op) == Some(**entry)
            })
            .map(|(entry, _)| entry.op)
            .collect()
    }

    /// What must hold between any two inputs.
    pub(crate) fn invariants(&self) {
        assert!(self.base.op <= self.checkpoint.entry.op);
        assert!(self.checkpoint.entry.op <= self.committed.op);
        assert!(self.base.op <= self.linked);
        assert!(self.committed.op <= self.head.op);
        assert!(self.head.op.since(self.committed.op) <= PIPELINE_MAX);
        assert!(self.linked <= self.head.op);
        assert!(self.committed.op <= self.base.op || self.at(self.committed.op) == Some(self.committed));
        assert!(self.at(self.head.op) == Some(self.head));
        assert!(self.linked == self.head.op || self.linked < self.floor);
        if cfg!(debug_assertions) {
            // The part that still moves; the rest was checked as it moved.
            for (op, link) in self.chain.range(self.committed.op.next()..) {
                let below = op.previous().and_then(|below| self.at(below));
                assert!(
                    link.header
                        .as_ref()
                        .is_none_or(|header| below.is_some_and(|at| at.checksum == header.parent))
                );
            }
        }
    }
}
