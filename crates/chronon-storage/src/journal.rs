//! The journal: turns a replica's writes into jobs for a disk, and finished jobs into reports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use chronon_vsr::{
    Checksum, Durable, ENTRY_HEADER_SIZE, Entry, Incarnation, Mutation, Mutations, Op, OpRef, Ring, VsrState,
    Write, WriteNumber, charge,
};

use crate::buffer::Buffer;
use crate::group::{
    BLOCK, GROUP_ENTRIES_MAX, GroupHeader, Layout, Link, Sequence, UNIT, Unit, encode_group, entry_charge,
    group_blocks, read_unit,
};
use crate::scan::{Lost, Scan, ScannedGroup};
use crate::superblock::{self, Superblock};
use crate::{Bytes, Disk, File, Identity, Step};

/// Names a job of one journal or one vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    pub(crate) const fn new(number: u64) -> JobId {
        JobId(number)
    }
}

/// Steps for the disk, to be carried out in order. One group of the WAL, one superblock, or records of one pack.
#[derive(Clone, Debug)]
pub struct Job {
    /// Given back to [`Journal::done`] or [`Vault::done`](crate::Vault::done) when every step has succeeded.
    pub id: JobId,
    /// What to do.
    pub steps: Vec<Step>,
}

/// Decides what is written where, and when it counts as durable. Holds no disk and no clock.
///
/// A driver repeats: [`submit`](Journal::submit) what the replica wants written; [`next_job`](Journal::next_job);
/// carry it out; [`done`](Journal::done), and hand the reports to the replica. While one job is under way, what is
/// submitted gathers, and becomes one group with one flush.
#[derive(Debug)]
pub struct Journal {
    layout: Layout,
    mutations: Mutations,
    /// What the superblock says besides the protocol's state, and the last state written.
    superblock: Superblock,
    superblock_checksum: Checksum,
    /// Its copies, once they were looked at.
    superblock_written: Option<Buffer>,
    incarnation: u32,
    groups_written: u64,
    waiting: VecDeque<Write>,
    /// Entries to append that nobody asked for: found without evidence at start-up.
    again: VecDeque<Entry>,
    outstanding: VecDeque<Outstanding>,
    jobs_given: u64,
    /// The groups that are still needed, oldest first, the one under way included.
    groups: VecDeque<Group>,
    /// The newest group, and what the next one repeats of it.
    last: Option<Last>,
    /// Where the next group goes, unless it has to wrap.
    head: u64,
    keep_from: Op,
    /// How many durable intact copies there are of each entry.
    copies: BTreeMap<(Op, Checksum), u32>,
    /// The charges of all entries in `copies` that are still needed, each counted once.
    live_charge: u64,
    durable_through: Sequence,
    evidence: EvidenceWish,
    buffer: Arc<Buffer>,
    /// What a scrub reads into.
    scratch: Buffer,
    /// Where scrubbing goes on, and whether this round began with the oldest group.
    scrub_next: ScrubNext,
    scrub_whole: bool,
    /// Blocks in which something can't be read, and which may lie where no group is. They are filled with zeros before
    /// anything else is written: of a write that is torn there, units that never arrived must read as old (table.rs).
    blots: BTreeSet<u64>,
    /// Copies of the superblock have rotted; these have not.
    superblock_again: Option<[bool; superblock::COPIES]>,
    /// What the start found; it has written all of them anew.
    superblock_copies_damaged: usize,
}

/// What a step of scrubbing the WAL found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalScrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Damaged groups, each told once.
    pub damage: Vec<GroupDamage>,
    /// Blocks of 4 KiB where no group is and something can't be read, each told once. They are filled with zeros.
    pub blots: usize,
    /// The step ended at the end of the file, and a step before it, or this one, began with the oldest group. The next one
    /// begins anew.
    pub round: bool,
}

/// Where the next step of scrubbing goes on: first through the groups, oldest first, then through the rest of the file.
#[derive(Clone, Copy, Debug)]
enum ScrubNext {
    /// At this group, or the first one above it.
    Group(Sequence),
    /// At this position, or the first one above it where no group is.
    Rest(u64),
}

/// A group of the WAL that can't be read, or not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDamage {
    /// Where it starts, in bytes from the file's start.
    pub position: u64,
    /// Its entries. Those that are still needed and have no other copy are appended again, from memory.
    pub entries: Vec<OpRef>,
}

/// What a journal starts from.
pub(crate) struct Start {
    pub(crate) superblock: Superblock,
    pub(crate) checksum: Checksum,
    pub(crate) superblock_copies_damaged: usize,
    pub(crate) layout: Layout,
    pub(crate) incarnation: u32,
    pub(crate) scan: Scan,
    pub(crate) mutations: Mutations,
}

#[derive(Debug)]
struct Outstanding {
    id: JobId,
    what: Undertaking,
}

#[derive(Debug)]
enum Undertaking {
    /// Nobody has asked for one that only mends copies.
    Superblock {
        number: Option<WriteNumber>,
    },
    Group {
        sequence: Sequence,
        oldest: Sequence,
        reports: Option<WriteNumber>,
    },
    Zeros {
        blots: Vec<u64>,
    },
}

#[derive(Debug)]
struct Group {
    link: Link,
    /// Its intact entries. They share their bytes with the replica's own log.
    entries: Vec<Entry>,
    /// While what it held may be needed its place is not used again: the scan would forget what was lost.
    lost: Lost,
    /// Some of its units can't be read, be it only where they hold nothing.
    blotted: bool,
    durable: bool,
}

#[derive(Debug)]
struct Last {
    link: Link,
    previous: Option<Link>,
    records: Vec<[u8; ENTRY_HEADER_SIZE]>,
}

/// Whether the newest group still lacks the evidence that it was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EvidenceWish {
    Given,
    Lacking,
    Asked,
}

impl Journal {
    pub(crate) fn start(start: Start) -> Journal {
        let Start { superblock, checksum, superblock_copies_damaged, layout, incarnation, scan, mutations } =
            start;
        let head = scan.groups.last().map_or(0, |group| group.link.end());
        let last = scan.groups.last().map(|group| Last {
            link: group.link,
            previous: group.previous,
            records: group.names.iter().flatten().map(|header| header.encode()).collect(),
        });
        let mut journal = Journal {
            layout,
            mutations,
            superblock,
            superblock_checksum: checksum,
            superblock_written: None,
            incarnation,
            groups_written: 0,
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            outstanding: VecDeque::new(),
            jobs_given: 0,
            groups: VecDeque::new(),
            last,
            head,
            keep_from: Op::ROOT,
            copies: BTreeMap::new(),
            live_charge: 0,
            durable_through: scan.durable_through,
            evidence: EvidenceWish::Given,
            buffer: Arc::new(Buffer::zeroed(0)),
            scratch: Buffer::zeroed(0),
            scrub_next: ScrubNext::Group(Sequence::default()),
            scrub_whole: true,
            blots: scan.blots,
            superblock_again: None,
            superblock_copies_damaged,
        };
        for group in scan.groups {
            journal.count_copies(&group.intact);
            let ScannedGroup { link, intact: entries, lost, .. } = group;
            let blotted = scan.survey.damaged.iter().any(|damaged| damaged.link == link);
            journal.groups.push_back(Group { link, entries, lost, blotted, durable: true });
        }
        journal
    }

    /// Takes a write. Appends that come while a job is under way become one group.
    pub fn submit(&mut self, write: Write) {
        match &write {
            Write::Append { entry, keep_from, .. } => {
                assert!(entry_charge(entry.header()) <= self.superblock.ring.charge_max);
                self.keep_from = self.keep_from.max(*keep_from);
            }
            Write::Superblock { .. } => {}
        }
        self.waiting.push_back(write);
    }

    /// The next thing for the disk. None while nothing waits, while a job is under way, or while the ring has no
    /// room for what waits: then it waits for the ops that the replica lets go of.
    pub fn next_job(&mut self) -> Option<Job> {
        let outstanding_max = if self.mutations.breaks(Mutation::DurableOutOfOrder) { 2 } else { 1 };
        if outstanding_max <= self.outstanding.len() {
            return None;
        }
        match self.waiting.front() {
            _ if !self.blots.is_empty() => self.zeros_job().or_else(|| self.next_job()),
            // Appends of this incarnation's start go first: nothing may be acked before they are durable again.
            _ if !self.again.is_empty() => self.group_job(),
            Some(Write::Append { .. }) => self.group_job(),
            Some(Write::Superblock { .. }) => self.superblock_job(),
            None if self.superblock_again.is_some() => self.superblock_job(),
            None if self.evidence == EvidenceWish::Asked => self.group_job(),
            None => None,
        }
    }

    /// Every step of this job has succeeded. Returns what is durable now, in order.
    pub fn done(&mut self, job: JobId) -> Vec<Durable> {
        let index = self.outstanding.iter().position(|outstanding| outstanding.id == job);
        let index = index.expect("a driver reports a job that it was given, once");
        assert!(index == 0 || self.mutations.breaks(Mutation::DurableOutOfOrder));
        let Outstanding { what, .. } = self.outstanding.remove(index).expect("the index was just found");
        match what {
            Undertaking::Superblock { number } => number.map(Durable::Superblock).into_iter().collect(),
            Undertaking::Group { sequence, oldest, reports } => {
                self.group_done(sequence, oldest);
                reports.map(Durable::Appended).into_iter().collect()
            }
            Undertaking::Zeros { blots } => {
                self.blots.retain(|blot| !blots.contains(blot));
                Vec::new()
            }
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub fn idle(&self) -> bool {
        let nothing_waits = self.waiting.is_empty() && self.again.is_empty();
        let nothing_to_mend = self.superblock_again.is_none() && self.blots.is_empty();
        nothing_waits && nothing_to_mend && self.outstanding.is_empty()
    }

    /// Whether the journal is idle and its newest entries still lack evidence that they were durable. A driver that
    /// sees this for about 5 ms calls [`give_evidence`](Journal::give_evidence): damage found in them after a crash
    /// then can't be taken for a torn write.
    pub fn wants_evidence(&self) -> bool {
        self.idle() && self.evidence == EvidenceWish::Lacking
    }

    /// Makes the next job an empty group that says that everything before it was durable. Delays nothing: appends
    /// that come in time go into the same group.
    pub fn give_evidence(&mut self) {
        if self.evidence == EvidenceWish::Lacking {
            self.evidence = EvidenceWish::Asked;
        }
    }

    /// The next step of scrubbing begins somewhere, as this number chooses.
    pub fn scrub_from(&mut self, phase: u64) {
        let mut skipped = phase % self.layout.size;
        self.scrub_whole = skipped == 0;
        for group in &self.groups {
            if skipped < group.link.length() {
                self.scrub_next = ScrubNext::Group(group.link.sequence);
                return;
            }
            skipped -= group.link.length();
        }
        for rest in self.rest() {
            let length = rest.end - rest.start;
            if skipped < length {
                self.scrub_next = ScrubNext::Rest(rest.start + skipped / BLOCK as u64 * BLOCK as u64);
                return;
            }
            skipped -= length;
        }
    }

    /// Reads on from where the last call stopped, about so many bytes, and checks them: groups first, then what lies
    /// between the newest and the oldest. What has rotted becomes a job: the entries of groups are in memory.
    pub fn scrub(&mut self, disk: &mut dyn Disk, bytes_max: u64) -> WalScrubbed {
        let mut scrubbed = WalScrubbed::default();
        while scrubbed.bytes < bytes_max {
            self.scrub_next = match self.scrub_next {
                ScrubNext::Group(from) => {
                    match self.groups.iter().position(|group| from <= group.link.sequence) {
                        Some(index) if self.groups[index].durable => {
                            self.scrub_group(disk, index, &mut scrubbed)
                        }
                        Some(_) | None => ScrubNext::Rest(0),
                    }
                }
                ScrubNext::Rest(from) => match self.rest_from(from) {
                    Some(rest) => self.scrub_rest(disk, rest, &mut scrubbed),
                    None => {
                        self.scrub_next = ScrubNext::Group(Sequence::default());
                        scrubbed.round = std::mem::replace(&mut self.scrub_whole, true);
                        break;
                    }
                },
            };
        }
        scrubbed
    }

    fn scrub_group(&mut self, disk: &mut dyn Disk, index: usize, scrubbed: &mut WalScrubbed) -> ScrubNext {
        let Group { link, blotted, .. } = &self.groups[index];
        let link = *link;
        // What is known to be damaged stays so.
        if !*blotted {
            scrubbed.bytes += link.length();
            if !reads_as_written(disk, &self.layout, &link, &mut self.scratch) {
                let entries = self.lose(index);
                scrubbed.damage.push(GroupDamage { position: link.position, entries });
            }
        }
        ScrubNext::Group(Sequence { count: link.sequence.count + 1, ..link.sequence })
    }

    fn scrub_rest(&mut self, disk: &mut dyn Disk, rest: Range<u64>, scrubbed: &mut WalScrubbed) -> ScrubNext {
        const CHUNK: u64 = 16 * BLOCK as u64;
        let end = rest.end.min(rest.start + CHUNK);
        scrubbed.bytes += end - rest.start;
        for block in unreadable_blocks(disk, &self.layout, rest.start..end) {
            scrubbed.blots += usize::from(self.blots.insert(block));
        }
        ScrubNext::Rest(end)
    }

    /// Reads the copies of the superblock back, unless one is being written. Returns how many are not as they were
    /// written: a job writes them again, and only then the others.
    pub fn scrub_superblock(&mut self, disk: &mut dyn Disk) -> usize {
        let is_written =
            |outstanding: &Outstanding| matches!(outstanding.what, Undertaking::Superblock { .. });
        if self.outstanding.iter().any(is_written) {
            return 0;
        }
        let written = self.superblock_written.get_or_insert_with(|| self.superblock.encoded());
        let good = superblock::copies_as_written(written, disk, &mut self.scratch);
        let damaged = good.iter().filter(|good| !**good).count();
        if 0 < damaged {
            self.superblock_again = Some(good);
        }
        damaged
    }

    /// A group turns out to be damaged. Returns its entries.
    fn lose(&mut self, index: usize) -> Vec<OpRef> {
        let entries = std::mem::take(&mut self.groups[index].entries);
        entries.iter().for_each(|entry| self.forget_copy(entry));
        let names: Vec<OpRef> = entries.iter().map(Entry::op_ref).collect();
        self.groups[index].blotted = true;
        self.groups[index].lost = Lost::Named(names.iter().map(|entry| (entry.op, entry.checksum)).collect());
        let needed = |entry: &Entry| {
            self.keep_from <= entry.op() && !self.copies.contains_key(&(entry.op(), entry.checksum()))
        };
        self.again.extend(entries.into_iter().filter(needed));
        names
    }

    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        self.superblock.identity
    }

    /// Which start of the replica this is.
    pub fn incarnation(&self) -> Incarnation {
        self.superblock.incarnation
    }

    /// The sizes that the data directory was made with: what a replica's options must say.
    pub fn ring(&self) -> Ring {
        self.superblock.ring
    }

    /// Whether the whole file is as it was written, as far as is known. What was lost counts until its place is free and
    /// filled with zeros, for every start until then finds it lost.
    pub fn is_whole(&self) -> bool {
        self.groups.iter().all(|group| group.lost == Lost::Nothing && !group.blotted) && self.blots.is_empty()
    }

    /// How many groups, and blocks of 4 KiB where no group is, are known not to be as they were written. At the start: what
    /// the scan found.
    pub fn damaged(&self) -> (usize, usize) {
        let groups = self.groups.iter().filter(|group| group.lost != Lost::Nothing || group.blotted).count();
        (groups, self.blots.len())
    }

    /// How many copies of the superblock the start found damaged, or half written. It wrote all of them anew.
    pub fn superblock_copies_damaged_at_start(&self) -> usize {
        self.superblock_copies_damaged
    }

    /// Whether nobody else has what this replica keeps.
    pub fn is_alone(&self) -> bool {
        self.superblock.state.membership.voters.len() == 1
    }

    /// Nothing more will be written: the next job is a superblock that says how far the log goes, unless that is known.
    pub fn close(&mut self) {
        assert!(self.idle());
        self.note_end();
    }

    /// When nothing else is to be written a superblock says how far the log goes, unless that is known. A log that ends before
    /// is known for damaged at the next start, though nothing in it says so.
    pub fn note_end(&mut self) {
        if self.superblock.wal_durable < self.durable_through {
            self.superblock_again.get_or_insert([true; superblock::COPIES]);
        }
    }

    /// Bytes of the WAL that hold groups which are still needed.
    pub fn wal_used(&self) -> u64 {
        self.layout.size - self.free()
    }

    /// Entries to append before anything else, without a report.
    pub(crate) fn append_again(&mut self, entries: Vec<Entry>) {
        self.again.extend(entries);
    }

    fn superblock_job(&mut self) -> Option<Job> {
        // Of several in a row only the newest is wanted; an append between them keeps its place.
        let mut newest: Option<(WriteNumber, VsrState)> = None;
        while let Some(Write::Superblock { .. }) = self.waiting.front() {
            let Some(Write::Superblock { number, state }) = self.waiting.pop_front() else { break };
            newest = Some((number, state));
        }
        let good = self.superblock_again.take();
        let (number, state) = match newest {
            Some((number, state)) => (Some(number), state),
            None => (good.map(|_| None)?, self.superblock.state.clone()),
        };
        assert!(state.log_stamp.stamp() <= state.stamp);
        assert!(self.superblock.state.stamp <= state.stamp);
        assert!(self.superblock.state.log_stamp <= state.log_stamp);
        self.superblock.sequence += 1;
        self.superblock.parent = self.superblock_checksum;
        self.superblock.state = superblock::within_bounds(state);
        self.superblock.wal_durable = self.superblock.wal_durable.max(self.durable_through);
        let (mut steps, checksum) = self.superblock.steps_sparing(good.unwrap_or([true; superblock::COPIES]));
        if self.mutations.breaks(Mutation::SuperblockInOneWrite)
            && let Some(flush) = steps.iter().position(|step| matches!(step, Step::Flush { .. }))
        {
            steps.remove(flush);
        }
        self.superblock_checksum = checksum;
        self.superblock_written = None;
        Some(self.job(steps, Undertaking::Superblock { number }))
    }

    /// Fills blots with zeros, a mebibyte at most. What a group was put on in the meantime reads well again.
    fn zeros_job(&mut self) -> Option<Job> {
        const BLOTS_MAX: usize = 256;
        let rest = self.rest();
        self.blots.retain(|block| rest.iter().any(|rest| rest.contains(block)));
        let blots: Vec<u64> = self.blots.iter().copied().take(BLOTS_MAX).collect();
        let longest = blots.chunk_by(|block, next| block + BLOCK as u64 == *next).map(<[u64]>::len).max()?;
        let zeros = Arc::new(Buffer::zeroed(longest * BLOCK));
        let runs = blots.chunk_by(|block, next| block + BLOCK as u64 == *next);
        let writes = runs.map(|run| Step::Write {
            file: File::Wal,
            position: run[0],
            bytes: Bytes::new(Arc::clone(&zeros), 0..run.len() * BLOCK),
        });
        let steps = writes.chain([Step::Flush { file: File::Wal }]).collect();
        Some(self.job(steps, Undertaking::Zeros { blots }))
    }

    /// Where no group is: between the newest and the oldest, and what a wrap left over at the end of the file.
    fn rest(&self) -> [Range<u64>; 2] {
        let size = self.layout.size;
        let Some(oldest) = self.groups.front() else { return [0..size, size..size] };
        let tail = oldest.link.position;
        if tail < self.head {
            return [0..tail, self.head..size];
        }
        let upper = self.groups.partition_point(|group| tail <= group.link.position);
        let wrapped_at = upper.checked_sub(1).map_or(size, |last| self.groups[last].link.end());
        [self.head..tail, wrapped_at..size]
    }

    /// The first stretch at or above this position where no group is.
    fn rest_from(&self, from: u64) -> Option<Range<u64>> {
        let stretches = self.rest().into_iter().map(|rest| rest.start.max(from)..rest.end);
        stretches.into_iter().find(|stretch| !stretch.is_empty())
    }

    fn job(&mut self, steps: Vec<Step>, what: Undertaking) -> Job {
        let id = JobId(self.jobs_given);
        self.jobs_given += 1;
        self.outstanding.push_back(Outstanding { id, what });
        Job { id, steps }
    }

    fn group_job(&mut self) -> Option<Job> {
        let reclaimed = self.reclaimable();
        let mut content = Content::new(&self.layout, self.last.as_ref());
        if self.short_of_room() {
            for group in
                self.groups.iter().skip(reclaimed).take_while(|group| group.durable && !self.must_stay(group))
            {
                let before = content.mark();
                let taken = content.take_whole(group.entries.iter().filter(|entry| self.must_move(entry)));
                if !taken || self.place(content.length_with(None)).is_none() {
                    content.back_to(before);
                    break;
                }
            }
        }
        while let Some(entry) = self.again.front()
            && content.fits(entry)
            && self.place(content.length_with(Some(entry))).is_some()
        {
            content.take(self.again.pop_front().expect("just looked at"));
        }
        let mut reports = None;
        while self.again.is_empty()
            && let Some(Write::Append { entry, .. }) = self.waiting.front()
            && content.fits(entry)
            && self.has_room_for(content.length_with(Some(entry)))
        {
            let Some(Write::Append { number, entry, .. }) = self.waiting.pop_front() else { break };
            reports = Some(number);
            content.take(entry);
        }
        if content.entries.is_empty() {
            // A group without entries still moves the tail, or gives evidence. That gates nothing: without room for
            // it there is none.
            let evidence =
                self.evidence == EvidenceWish::Asked && self.has_room_for(content.length_with(None));
            let moves_tail = 0 < reclaimed && !self.waiting.is_empty();
            if !evidence && !moves_tail {
                if self.evidence == EvidenceWish::Asked {
                    self.evidence = EvidenceWish::Given;
                }
                return None;
            }
        }
        let Some(position) = self.place(content.length_with(None)) else {
            // What has room for appends has a place; only a group that moves the tail may find none.
            assert!(content.entries.is_empty());
            return None;
        };
        Some(self.group_job_at(position, content, reclaimed, reports))
    }

    fn group_job_at(
        &mut self,
        position: u64,
        content: Content,
        reclaimed: usize,
        reports: Option<WriteNumber>,
    ) -> Job {
        let length = content.length_with(None);
        self.groups_written += 1;
        let count = |number: usize| u16::try_from(number).expect("the layout has bounded groups");
        let link = Link {
            sequence: Sequence { incarnation: self.incarnation, count: self.groups_written },
            position,
            blocks: count((length / BLOCK as u64) as usize),
            own: count(content.entries.len()),
            copies: count(content.copies),
        };
        let oldest = self.groups.get(reclaimed).map_or(link, |group| group.link);
        let header = GroupHeader {
            link,
            previous: self.last.as_ref().map(|last| last.link),
            before_previous: self.last.as_ref().and_then(|last| last.previous),
            oldest,
            durable_through: self.durable_through,
        };
        let records: Vec<_> = content.entries.iter().map(|entry| entry.header().encode()).collect();
        let copies = self.last.as_ref().map_or(&[][..], |last| &last.records);
        let length = usize::try_from(length).expect("a group fits the memory");
        let group = Buffer::renew(&mut self.buffer, length);
        encode_group(group, &self.layout, &header, &records, copies, &content.entries);
        let bytes = Bytes::new(Arc::clone(&self.buffer), 0..length);

        self.evidence = if content.entries.is_empty() { EvidenceWish::Given } else { EvidenceWish::Lacking };
        self.head = link.end();
        self.last = Some(Last { link, previous: header.previous, records });
        let (entries, lost) = (content.entries, Lost::Nothing);
        self.groups.push_back(Group { link, entries, lost, blotted: false, durable: false });
        let mut steps = vec![Step::Write { file: File::Wal, position, bytes }];
        if !self.mutations.breaks(Mutation::AckBeforeFlush) {
            steps.push(Step::Flush { file: File::Wal });
        }
        self.job(steps, Undertaking::Group { sequence: link.sequence, oldest: oldest.sequence, reports })
    }

    fn group_done(&mut self, sequence: Sequence, oldest: Sequence) {
        let index = self.groups.iter().rposition(|group| group.link.sequence == sequence);
        let index = index.expect("a group stays until a later one has replaced it");
        let group = &mut self.groups[index];
        group.durable = true;
        let entries = std::mem::take(&mut group.entries);
        self.count_copies(&entries);
        self.groups[index].entries = entries;
        self.durable_through = self.durable_through.max(sequence);
        // The group says where the oldest one is now; being durable, it frees what lies before.
        while let Some(front) = self.groups.front()
            && front.link.sequence < oldest
        {
            let group = self.groups.pop_front().expect("just looked at");
            for entry in &group.entries {
                self.forget_copy(entry);
            }
            if group.blotted || group.lost != Lost::Nothing {
                self.blots.extend((group.link.position..group.link.end()).step_by(BLOCK));
            }
        }
    }

    fn count_copies(&mut self, entries: &[Entry]) {
        for entry in entries {
            let copies = self.copies.entry((entry.op(), entry.checksum())).or_insert(0);
            *copies += 1;
            if *copies == 1 {
                self.live_charge += entry_charge(entry.header());
            }
        }
    }

    fn forget_copy(&mut self, entry: &Entry) {
        let key = (entry.op(), entry.checksum());
        let copies = self.copies.get_mut(&key).expect("every entry of a durable group was counted");
        *copies -= 1;
        if *copies == 0 {
            self.copies.remove(&key);
            self.live_charge -= entry_charge(entry.header());
        }
    }

    /// Whether this is the only durable copy of an entry that is still needed.
    fn must_move(&self, entry: &Entry) -> bool {
        self.keep_from <= entry.op() && self.copies.get(&(entry.op(), entry.checksum())) == Some(&1)
    }

    /// Whether what is lost in a group may still be needed, so that every later scan must find it lost: an entry that no
    /// checkpoint covers and of which there is no other copy (`decisions/0005`). What nobody can name, the superblock of
    /// the opening has made unclear, and no later scan has to.
    fn must_stay(&self, group: &Group) -> bool {
        match &group.lost {
            Lost::Nothing | Lost::Unknown => false,
            Lost::Named(entries) => {
                entries.iter().any(|entry| self.keep_from <= entry.0 && !self.copies.contains_key(entry))
            }
        }
    }

    /// How many of the oldest groups hold nothing that is needed: their entries are below `keep_from`, or have
    /// copies in groups that stay.
    fn reclaimable(&self) -> usize {
        // No hurry while half of the ring is free.
        if self.layout.size / 2 <= self.free() {
            return 0;
        }
        let mut going: BTreeMap<(Op, Checksum), u32> = BTreeMap::new();
        let mut reclaimable = 0;
        for group in &self.groups {
            if !group.durable || self.must_stay(group) {
                break;
            }
            for entry in &group.entries {
                *going.entry((entry.op(), entry.checksum())).or_insert(0) += 1;
            }
            let needed = group.entries.iter().any(|entry| {
                let key = (entry.op(), entry.checksum());
                self.keep_from <= entry.op() && going.get(&key) == self.copies.get(&key)
            });
            if needed {
                break;
            }
            reclaimable += 1;
        }
        reclaimable
    }

    /// Whether live entries of the oldest groups have to move, so that the ring does not end in what was written
    /// twice. Every turn of moving shrinks what is used to the charges of what is live and two groups, so this ends;
    /// and as the replica keeps those charges within `ring.log`, of the file's `log + 8` groups there are then four
    /// to append to: one that a wrap may waste, three that are kept free to move through.
    fn short_of_room(&self) -> bool {
        let group = self.layout.group_size_max;
        self.free() < 5 * group && self.live_charge + 2 * group < self.wal_used()
    }

    /// Room that appends may use: they leave enough to move live entries through.
    fn has_room_for(&self, length: u64) -> bool {
        length + 3 * self.layout.group_size_max <= self.free()
    }

    /// Bytes between the newest group and the oldest.
    fn free(&self) -> u64 {
        let Some(oldest) = self.groups.front() else { return self.layout.size };
        let tail = oldest.link.position;
        if tail < self.head { self.layout.size - self.head + tail } else { tail - self.head }
    }

    /// Where a group of this length goes: right after the newest, or at the start of the file when it does not fit
    /// before the end. None if it would reach the oldest group.
    fn place(&self, length: u64) -> Option<u64> {
        let Some(oldest) = self.groups.front() else {
            let fits = self.head + length <= self.layout.size;
            return Some(if fits { self.head } else { 0 });
        };
        let tail = oldest.link.position;
        if tail < self.head {
            if self.head + length <= self.layout.size {
                return Some(self.head);
            }
            // Never up to the tail itself: an empty and a full ring must differ.
            return (length < tail).then_some(0);
        }
        (self.head + length < tail).then_some(self.head)
    }
}

/// Whether every unit of a group is its own.
fn reads_as_written(disk: &mut dyn Disk, layout: &Layout, link: &Link, scratch: &mut Buffer) -> bool {
    let group = scratch.resized(usize::from(link.blocks) * BLOCK);
    if disk.read(File::Wal, link.position, group).is_err() {
        return false;
    }
    let written = Unit::Written { sequence: link.sequence, blocks: link.blocks };
    group
        .chunks_exact(UNIT)
        .enumerate()
        .all(|(index, unit)| read_unit(unit, layout.salt, link.position + (index * UNIT) as u64) == written)
}

/// The blocks of this stretch in which a unit is neither a whole one of some group nor zeros.
fn unreadable_blocks(disk: &mut dyn Disk, layout: &Layout, stretch: Range<u64>) -> Vec<u64> {
    let mut block = Buffer::zeroed(BLOCK);
    let is_unreadable = |position: &u64| {
        if disk.read(File::Wal, *position, block.as_mut()).is_err() {
            return true;
        }
        let mut units = block.chunks_exact(UNIT).zip((*position..).step_by(UNIT));
        units.any(|(unit, position)| read_unit(unit, layout.salt, position) == Unit::Bad)
    };
    stretch.step_by(BLOCK).filter(is_unreadable).collect()
}

/// The entries of a group that is being gathered.
struct Content {
    entries: Vec<Entry>,
    bodies: usize,
    bodies_max: usize,
    /// Entry headers of the previous group.
    copies: usize,
}

impl Content {
    fn new(layout: &Layout, last: Option<&Last>) -> Content {
        let copies = last.map_or(0, |last| last.records.len());
        Content { entries: Vec::new(), bodies: 0, bodies_max: layout.group_bodies_max, copies }
    }

    fn fits(&self, entry: &Entry) -> bool {
        self.entries.len() < GROUP_ENTRIES_MAX && self.bodies + entry.body().len() <= self.bodies_max
    }

    fn take(&mut self, entry: Entry) {
        self.bodies += entry.body().len();
        self.entries.push(entry);
    }

    /// Takes these entries up to the first that does not fit; says whether all of them did.
    fn take_whole<'a>(&mut self, mut entries: impl Iterator<Item = &'a Entry>) -> bool {
        entries.all(|entry| {
            let fits = self.fits(entry);
            if fits {
                self.take(entry.clone());
            }
            fits
        })
    }

    /// What has been taken so far, to go back to.
    fn mark(&self) -> (usize, usize) {
        (self.entries.len(), self.bodies)
    }

    fn back_to(&mut self, (length, bodies): (usize, usize)) {
        self.entries.truncate(length);
        self.bodies = bodies;
    }

    /// Bytes of the group, with one entry more if there is one.
    fn length_with(&self, entry: Option<&Entry>) -> u64 {
        let bodies = self.bodies + entry.map_or(0, |entry| entry.body().len());
        let own = self.entries.len() + usize::from(entry.is_some());
        (group_blocks(own, self.copies, bodies) * BLOCK) as u64
    }
}

const _: () = assert!(charge(0) == 3 * BLOCK as u64);
