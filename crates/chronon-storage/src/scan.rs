//! The start-up scan of the WAL: finds every group, compares it with what later groups say of it, and judges it by
//! the recovery table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronon_vsr::{Checksum, Entry, EntryHeader, Mutations, Op, RecoveredEntry, Verdict, VsrState};

use crate::buffer::Buffer;
use crate::group::{
    BLOCK, GroupHeader, Layout, Link, RECORD, Sequence, UNIT, UNIT_CONTENT, UNITS_OF_BLOCK, Unit,
    read_content, read_unit,
};
use crate::superblock::Superblock;
use crate::table::{Before, Contents, Evidence, GroupFacts, GroupVerdict, Names, Units, judge};
use crate::{Disk, File};

/// What the scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The groups that stay, oldest first.
    pub(crate) groups: Vec<ScannedGroup>,
    /// Every entry that they name, each once, in WAL order.
    pub(crate) entries: Vec<RecoveredEntry>,
    /// Intact entries of which no copy has evidence that it was durable.
    pub(crate) unevidenced: Vec<Entry>,
    /// Every group was found, and none is unknown or uncertain.
    pub(crate) complete: bool,
    /// Nobody can tell what the log held from here up.
    pub(crate) uncertain_from: Option<Op>,
    /// Everything up to here has evidence.
    pub(crate) durable_through: Sequence,
    /// The start that wrote the newest group of which the header can be read. 0: there is none.
    pub(crate) incarnation: u32,
    pub(crate) survey: Survey,
    /// Blocks in which something can't be read and where no group stays.
    pub(crate) blots: BTreeSet<u64>,
}

/// Where the WAL is not as it was written, for people.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Groups that stay, oldest first.
    pub(crate) damaged: Vec<DamagedGroup>,
    /// Where groups were cut: writes that a crash interrupted.
    pub(crate) torn: Vec<u64>,
    /// Where there may have been a group behind the newest one.
    pub(crate) unreadable_tail: Option<u64>,
    /// The superblock knows of groups behind the last one that is here.
    pub(crate) ends_early: bool,
    /// Bad units that belong to no group that is needed: the first, and how many.
    pub(crate) stray: Option<(u64, usize)>,
}

/// A group that is needed and not whole.
#[derive(Debug)]
pub(crate) struct DamagedGroup {
    pub(crate) link: Link,
    /// The first unit that can't be read; the group's start if all can, and an entry is still not the one named.
    pub(crate) first_bad: u64,
    pub(crate) lost: Lost,
}

/// A group that stays.
#[derive(Debug)]
pub(crate) struct ScannedGroup {
    pub(crate) link: Link,
    pub(crate) previous: Option<Link>,
    /// Its entry headers, as far as they are known.
    pub(crate) names: Vec<Option<EntryHeader>>,
    pub(crate) intact: Vec<Entry>,
    pub(crate) lost: Lost,
}

/// What of a group is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    /// These entries.
    Named(Vec<(Op, Checksum)>),
    /// Nobody knows what.
    Unknown,
}

/// A group on the chain from the newest header back to the oldest live group.
struct Found {
    link: Link,
    previous: Option<Link>,
    units: Units,
    names: Vec<Option<EntryHeader>>,
    /// One for each name; none where the bytes are not what the name says.
    entries: Vec<Option<Entry>>,
    /// The chain breaks below this group: what lies between it and the next one found is unknown.
    gap_below: bool,
}

/// Scans the whole WAL. What can't be read counts as damaged.
pub(crate) fn scan(
    disk: &mut dyn Disk,
    layout: &Layout,
    superblock: &Superblock,
    mutations: Mutations,
) -> Scan {
    let map = Map::read(disk, layout);
    let mut chain = map.chain(disk, layout);
    chain.reverse();
    let durable_through = map.durable_through();

    let mut groups: Vec<ScannedGroup> = Vec::new();
    let mut survey = Survey::default();
    let mut uncertain = false;
    let mut cut: Option<Sequence> = None;
    for found in chain {
        let facts = found.facts(durable_through, cut);
        uncertain |= found.gap_below;
        match judge(facts, mutations) {
            GroupVerdict::Cut => {
                cut = Some(found.link.sequence);
                survey.torn.push(found.link.position);
                continue;
            }
            GroupVerdict::Intact => groups.push(found.stay(Damaged::No)),
            GroupVerdict::EntryByEntry => groups.push(found.stay(Damaged::Yes)),
            GroupVerdict::HeadUncertain | GroupVerdict::EntriesUnknown => {
                uncertain = true;
                groups.push(found.stay(Damaged::Yes));
            }
        }
        survey.damaged.extend(groups.last().and_then(|group| map.damage_of(group)));
    }
    for (position, facts) in map.facts_of_unreadable_tails(layout, &groups) {
        match judge(facts, mutations) {
            GroupVerdict::Cut => survey.torn.push(position),
            GroupVerdict::HeadUncertain => {
                uncertain = true;
                survey.unreadable_tail = Some(position);
            }
            verdict @ (GroupVerdict::Intact | GroupVerdict::EntryByEntry | GroupVerdict::EntriesUnknown) => {
                unreachable!("a group without a header or evidence can't be {verdict:?}")
            }
        }
    }
    // What was durable once does not end before its end.
    let newest = groups.last().map(|group| group.link.sequence).unwrap_or_default();
    survey.ends_early = newest < superblock.wal_durable;
    uncertain |= survey.ends_early;
    let blots = map.bad_outside(&groups);
    survey.stray = stray_damage(&blots, &survey);
    let entries = merge(&groups);
    let uncertain_from = uncertain.then(|| op_after_the_last_known(&entries, &superblock.state));
    let unevidenced = unevidenced(&groups, durable_through);
    let incarnation = map.newest().map_or(0, |header| header.link.sequence.incarnation);
    Scan {
        incarnation,
        groups,
        entries,
        unevidenced,
        complete: !uncertain,
        uncertain_from,
        durable_through,
        survey,
        blots: blots.iter().map(|position| position / BLOCK as u64 * BLOCK as u64).collect(),
    }
}

enum Damaged {
    Yes,
    No,
}

impl Found {
    fn facts(&self, durable_through: Sequence, cut: Option<Sequence>) -> GroupFacts {
        let known = self.names.iter().all(Option::is_some);
        let right = self.entries.iter().all(Option::is_some);
        let same_incarnation = cut.is_some_and(|cut| cut.incarnation == self.link.sequence.incarnation);
        GroupFacts {
            units: self.units,
            contents: if right { Contents::Right } else { Contents::Wrong },
            names: if known { Names::Known } else { Names::Lost },
            evidence: if self.link.sequence <= durable_through { Evidence::Durable } else { Evidence::None },
            before: if same_incarnation { Before::Cut } else { Before::Whole },
        }
    }

    fn stay(self, damaged: Damaged) -> ScannedGroup {
        // Bad units that hold no entry's bytes cost nothing, but unknown ones may.
        let lost = if self.gap_below || self.names.iter().any(Option::is_none) {
            Lost::Unknown
        } else {
            let entries = self.names.iter().flatten().zip(&self.entries);
            let lost = entries.filter(|(_, entry)| entry.is_none());
            match lost.map(|(name, _)| (name.op, name.checksum())).collect::<Vec<_>>() {
                none if none.is_empty() => Lost::Nothing,
                named => Lost::Named(named),
            }
        };
        assert!(lost == Lost::Nothing || self.gap_below || matches!(damaged, Damaged::Yes));
        let intact = self.entries.into_iter().flatten().collect();
        ScannedGroup { link: self.link, previous: self.previous, names: self.names, intact, lost }
    }
}

/// Every entry once, in WAL order: any intact copy serves.
fn merge(groups: &[ScannedGroup]) -> Vec<RecoveredEntry> {
    let mut intact: BTreeMap<(Op, Checksum), Entry> = BTreeMap::new();
    for entry in groups.iter().flat_map(|group| &group.intact) {
        intact.entry((entry.op(), entry.checksum())).or_insert_with(|| entry.clone());
    }
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for header in groups.iter().flat_map(|group| group.names.iter().flatten()) {
        let key = (header.op, header.checksum());
        if seen.insert(key) {
            let verdict = intact.remove(&key).map_or(Verdict::Faulty, Verdict::Intact);
            entries.push(RecoveredEntry { header: header.clone(), verdict });
        }
    }
    entries
}

/// Intact entries that no evidenced group holds, each once, in WAL order.
fn unevidenced(groups: &[ScannedGroup], durable_through: Sequence) -> Vec<Entry> {
    let (with, without): (Vec<_>, Vec<_>) =
        groups.iter().partition(|group| group.link.sequence <= durable_through);
    let entries_of = |groups: &[&ScannedGroup]| -> Vec<Entry> {
        groups.iter().flat_map(|group| group.intact.iter().cloned()).collect()
    };
    let mut seen: BTreeSet<(Op, Checksum)> =
        entries_of(&with).iter().map(|entry| (entry.op(), entry.checksum())).collect();
    let mut entries = entries_of(&without);
    entries.retain(|entry| seen.insert((entry.op(), entry.checksum())));
    entries
}

/// The first op of which nothing is known: after the suffix's head (or the checkpoint) and what chains to it from the WAL with the
/// same log_stamp. Entries of logs that were replaced don't count, so this never is too high.
fn op_after_the_last_known(entries: &[RecoveredEntry], state: &VsrState) -> Op {
    let checkpoint = state.checkpoint.entry;
    let mut head = if state.head().op < checkpoint.op { checkpoint } else { state.head() };
    let born = state.log_stamp.stamp();
    let mut by_parent: BTreeMap<(Op, Checksum), &EntryHeader> = BTreeMap::new();
    for RecoveredEntry { header, .. } in entries {
        if header.born == born {
            by_parent.insert((header.op, header.parent), header);
        }
    }
    while let Some(header) = by_parent.get(&(head.op.next(), head.checksum)) {
        head = header.op_ref();
    }
    head.op.next()
}

/// What every unit of the WAL says, and every readable group header.
struct Map {
    units: Vec<Unit>,
    headers: BTreeMap<Sequence, GroupHeader>,
}

impl Map {
    fn read(disk: &mut dyn Disk, layout: &Layout) -> Map {
        const CHUNK: u64 = 4 * 1024 * 1024;
        let mut map = Map { units: Vec::new(), headers: BTreeMap::new() };
        map.units.reserve_exact(usize::try_from(layout.size).unwrap_or(0) / UNIT);
        let mut buffer = Buffer::zeroed(CHUNK as usize);
        let mut position = 0;
        while position < layout.size {
            let length = (layout.size - position).min(CHUNK) as usize;
            let chunk = &mut buffer.as_mut()[..length];
            if disk.read(File::Wal, position, chunk).is_ok() {
                map.take_blocks(chunk, position, layout);
            } else {
                for (index, block) in chunk.chunks_exact_mut(BLOCK).enumerate() {
                    let position = position + (index * BLOCK) as u64;
                    if disk.read(File::Wal, position, block).is_ok() {
                        map.take_blocks(block, position, layout);
                    } else {
                        map.units.extend([Unit::Bad; UNITS_OF_BLOCK]);
                    }
                }
            }
            position += length as u64;
        }
        map
    }

    fn take_blocks(&mut self, bytes: &[u8], position: u64, layout: &Layout) {
        for (index, unit) in bytes.chunks_exact(UNIT).enumerate() {
            let position = position + (index * UNIT) as u64;
            let class = read_unit(unit, layout.salt, position);
            self.units.push(class);
            if !position.is_multiple_of(BLOCK as u64) {
                continue;
            }
            if let Unit::Written { sequence, blocks } = class
                && let Some(header) = unit.first_chunk().and_then(GroupHeader::decode)
                && (header.link.sequence, header.link.blocks, header.link.position)
                    == (sequence, blocks, position)
                && layout.admits(&header.link)
                && layout.admits(&header.oldest)
                && header.oldest.sequence <= sequence
            {
                self.headers.insert(sequence, header);
            }
        }
    }

    fn newest(&self) -> Option<&GroupHeader> {
        self.headers.values().next_back()
    }

    /// Up to here some group says that everything was durable.
    fn durable_through(&self) -> Sequence {
        self.headers.values().map(|header| header.durable_through).max().unwrap_or_default()
    }

    fn units_of(&self, position: u64, length: u64) -> &[Unit] {
        let unit = |position: u64| usize::try_from(position / UNIT as u64).unwrap_or(usize::MAX);
        self.units.get(unit(position)..unit(position + length)).unwrap_or(&[])
    }

    fn first_bad(&self, link: &Link) -> Option<u64> {
        let index =
            self.units_of(link.position, link.length()).iter().position(|unit| !is_of(*unit, link))?;
        Some(link.position + (index * UNIT) as u64)
    }

    /// What is wrong with a group that stays.
    fn damage_of(&self, group: &ScannedGroup) -> Option<DamagedGroup> {
        let ScannedGroup { link, lost, .. } = group;
        let first_bad = self.first_bad(link);
        if first_bad.is_none() && *lost == Lost::Nothing {
            return None;
        }
        let first_bad = first_bad.unwrap_or(link.position);
        Some(DamagedGroup { link: *link, first_bad, lost: lost.clone() })
    }

    /// Where bad units lie outside the groups that stay, ascending.
    fn bad_outside(&self, groups: &[ScannedGroup]) -> Vec<u64> {
        let mut live: Vec<(u64, u64)> =
            groups.iter().map(|group| (group.link.position, group.link.end())).collect();
        live.sort_unstable();
        let in_group = |position: &u64| {
            let before = live.partition_point(|(start, _)| start <= position);
            before.checked_sub(1).is_some_and(|index| *position < live[index].1)
        };
        let bad = self.units.iter().enumerate().filter(|(_, unit)| **unit == Unit::Bad);
        bad.map(|(index, _)| (index * UNIT) as u64).filter(|position| !in_group(position)).collect()
    }

    /// From the newest readable header back to the oldest live group, newest first.
    fn chain(&self, disk: &mut dyn Disk, layout: &Layout) -> Vec<Found> {
        let mut chain: Vec<Found> = Vec::new();
        let Some(newest) = self.newest() else { return chain };
        // What a group without evidence lets go of is not free yet: should that group be lost, an earlier one counts.
        let lately = self.headers.range(self.durable_through()..);
        let stop = lately.map(|(_, header)| header.oldest.sequence).min().unwrap_or(newest.oldest.sequence);
        let mut successor: Option<Successor> = None;
        let mut link = newest.link;
        loop {
            let header = self.headers.get(&link.sequence).filter(|header| header.link == link);
            let bytes = read_group(disk, &link);
            let units = self.units_of(link.position, link.length());
            let copies = successor.as_ref().filter(|successor| successor.previous == Some(link));
            let names =
                names(&link, header.is_some(), &bytes, units, copies.map(|successor| &successor.copies));
            let entries = entries(&link, &names, &bytes, layout);
            let mut found = Found {
                link,
                previous: header.and_then(|header| header.previous),
                units: classify(units, &link),
                names,
                entries,
                gap_below: false,
            };
            if link.sequence <= stop {
                chain.push(found);
                return chain;
            }
            let below = match (header, &successor) {
                (Some(header), _) => header.previous,
                (None, Some(successor)) => successor.before_previous,
                (None, None) => None,
            };
            found.previous = below;
            let below = below.filter(|below| layout.admits(below) && below.sequence < link.sequence);
            // Two neighbours without headers: the chain goes on at the newest header below them.
            let next = below.or_else(|| self.headers.range(..link.sequence).next_back().map(|(_, h)| h.link));
            found.gap_below = below.is_none();
            successor = header.map(|header| Successor {
                previous: header.previous,
                before_previous: header.before_previous,
                copies: copied_names(header, &bytes, units),
            });
            chain.push(found);
            match next.filter(|next| stop <= next.sequence) {
                Some(next) => link = next,
                None => return chain,
            }
        }
    }

    /// What there is behind the newest group that stays: the facts of groups without a readable header, unless
    /// everything there is old. One may lie right behind, or at the start of the file if it did not fit before the
    /// end. (Where a group that was cut left its header, that header is old, and only the other place is of interest:
    /// a later incarnation may have put a group there.)
    fn facts_of_unreadable_tails(&self, layout: &Layout, groups: &[ScannedGroup]) -> Vec<(u64, GroupFacts)> {
        let sequence = self.newest().map(|header| header.link.sequence).unwrap_or_default();
        let tail = groups.first().map(|group| group.link.position);
        let after = groups.last().map_or(0, |group| group.link.end());
        let wrap = layout.size - after < layout.group_size_max && tail != Some(0) && after != 0;
        let free_end = |start: u64| tail.filter(|tail| start < *tail).unwrap_or(layout.size);
        let starts = [Some(after).filter(|after| *after < layout.size), wrap.then_some(0)];
        let facts = starts.into_iter().flatten().filter_map(|start| {
            let length = free_end(start).saturating_sub(start).min(layout.group_size_max);
            Some((start, self.facts_of_headless_group(start, length, sequence)?))
        });
        facts.collect()
    }

    fn facts_of_headless_group(&self, start: u64, length_max: u64, newest: Sequence) -> Option<GroupFacts> {
        let units = self.units_of(start, length_max);
        if units.first().is_none_or(|unit| is_old(*unit, newest)) {
            return None;
        }
        // Any unit of the group tells how long it is.
        let blocks = units.iter().find_map(|unit| match unit {
            Unit::Written { sequence, blocks } if newest < *sequence => Some(usize::from(*blocks)),
            Unit::Written { .. } | Unit::Zero | Unit::Bad => None,
        });
        let length = blocks.unwrap_or(1) * UNITS_OF_BLOCK;
        let some_old = units.iter().take(length).any(|unit| is_old(*unit, newest));
        Some(GroupFacts {
            units: if some_old { Units::SomeOld } else { Units::SomeBad },
            contents: Contents::Wrong,
            names: Names::Lost,
            evidence: Evidence::None,
            before: Before::Whole,
        })
    }
}

/// Of the bad units outside all groups those that are not at the unreadable tail: the first, and how many.
fn stray_damage(bad: &[u64], survey: &Survey) -> Option<(u64, usize)> {
    let tail = survey.unreadable_tail.map(|tail| tail..tail + BLOCK as u64);
    let mut stray = bad.iter().filter(|position| tail.as_ref().is_none_or(|tail| !tail.contains(position)));
    let first = *stray.next()?;
    Some((first, 1 + stray.count()))
}

/// What the group above on the chain says of the ones below it.
struct Successor {
    previous: Option<Link>,
    before_previous: Option<Link>,
    copies: Vec<Option<EntryHeader>>,
}

/// Whether a unit was there before anything newer than `newest` was written.
fn is_old(unit: Unit, newest: Sequence) -> bool {
    match unit {
        Unit::Zero => true,
        Unit::Written { sequence, .. } => sequence <= newest,
        Unit::Bad => false,
    }
}

fn is_of(unit: Unit, link: &Link) -> bool {
    unit == Unit::Written { sequence: link.sequence, blocks: link.blocks }
}

fn is_of_another(unit: Unit, link: &Link) -> bool {
    match unit {
        Unit::Zero => true,
        Unit::Written { sequence, .. } => sequence != link.sequence,
        Unit::Bad => false,
    }
}

/// A unit of another group counts as old whether it is older or newer: a newer one shows that a later incarnation
/// cut this group and began to write over it, for the place of a group that is needed is never used again.
fn classify(units: &[Unit], link: &Link) -> Units {
    if units.iter().any(|unit| is_of_another(*unit, link)) {
        Units::SomeOld
    } else if units.iter().all(|unit| is_of(*unit, link)) {
        Units::New
    } else {
        Units::SomeBad
    }
}

/// A group's bytes; zeros where they can't be read.
fn read_group(disk: &mut dyn Disk, link: &Link) -> Buffer {
    let length = usize::from(link.blocks) * BLOCK;
    let mut buffer = Buffer::zeroed(length);
    if disk.read(File::Wal, link.position, buffer.as_mut()).is_err() {
        for (index, block) in buffer.as_mut().chunks_exact_mut(BLOCK).enumerate() {
            if disk.read(File::Wal, link.position + (index * BLOCK) as u64, block).is_err() {
                block.fill(0);
            }
        }
    }
    buffer
}

/// An entry header out of a group's records. Its own checksum proves it even in a bad unit; but a unit of another
/// group may hold a good header that is not this group's.
fn record(link: &Link, index: usize, bytes: &[u8], units: &[Unit]) -> Option<EntryHeader> {
    let start = index * RECORD;
    let touched = start / UNIT_CONTENT..=(start + RECORD - 1) / UNIT_CONTENT;
    if units.get(touched)?.iter().any(|unit| is_of_another(*unit, link)) {
        return None;
    }
    let record: [u8; RECORD] = read_content(bytes, start, RECORD)?.try_into().ok()?;
    EntryHeader::decode(&record)
}

/// The second copies that a group holds of the entry headers before it.
fn copied_names(header: &GroupHeader, bytes: &[u8], units: &[Unit]) -> Vec<Option<EntryHeader>> {
    let first = 1 + usize::from(header.link.own);
    let records = first..first + usize::from(header.link.copies);
    records.map(|index| record(&header.link, index, bytes, units)).collect()
}

/// The names of a group's entries, from its own records or else from the next group's copies.
fn names(
    link: &Link,
    header_readable: bool,
    bytes: &[u8],
    units: &[Unit],
    copies: Option<&Vec<Option<EntryHeader>>>,
) -> Vec<Option<EntryHeader>> {
    (0..usize::from(link.own))
        .map(|index| {
            let own = header_readable.then(|| record(link, 1 + index, bytes, units)).flatten();
            own.or_else(|| copies?.get(index)?.clone())
        })
        .collect()
}

/// The entries whose bytes are what their names say. An unknown name hides where the bodies behind it start.
fn entries(link: &Link, names: &[Option<EntryHeader>], bytes: &[u8], layout: &Layout) -> Vec<Option<Entry>> {
    let mut start = Some(link.bodies_start());
    names
        .iter()
        .map(|name| {
            let name = name.as_ref();
            let here = start;
            start = name.and_then(|name| here?.checked_add(name.body_size as usize));
            let name = name.filter(|name| name.cluster == layout.cluster)?;
            let body = read_content(bytes, here?, name.body_size as usize)?;
            Entry::new(name.clone(), Arc::from(body))
        })
        .collect()
}
