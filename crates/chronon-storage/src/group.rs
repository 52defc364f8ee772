//! The bytes of a WAL group: units of 512 bytes that each know the group they belong to; see `docs/format.md`.
//!
//! The content of a group is one stream: its header, the headers of its entries, a second copy of the previous
//! group's entry headers, then the bodies. The stream is cut into units of 496 bytes of content and a trailer.

use chronon_vsr::{Checksum, ClusterId, ENTRY_HEADER_SIZE, Entry, EntryHeader, Ring, charge};

use crate::Identity;
use crate::bytes::{Reader, Writer};

/// Bytes of a unit, and of content in it.
pub(crate) const UNIT: usize = 512;
pub(crate) const UNIT_CONTENT: usize = UNIT - TRAILER;
const TRAILER: usize = 16;

/// Groups start at multiples of this and fill whole ones.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const BLOCK_CONTENT: usize = UNITS_OF_BLOCK * UNIT_CONTENT;
pub(crate) const UNITS_OF_BLOCK: usize = BLOCK / UNIT;

/// A group's header and each entry header take one record.
pub(crate) const RECORD: usize = ENTRY_HEADER_SIZE;

/// The most entries in one group.
pub(crate) const GROUP_ENTRIES_MAX: usize = 64;

const GROUP_MAGIC: [u8; 8] = *b"CHRONGRP";
const LINK_SIZE: usize = 32;
const _: () = assert!(16 + 8 + 16 + 8 + 2 + 2 + 2 + 3 * LINK_SIZE + 16 <= RECORD);

// What the ring charges for an entry (`chronon_vsr::charge`) covers its share of any sequence of groups. A group
// with n entries takes at most 1 block for its own header and its rounding, plus ⌈(192 + body) / 3968⌉ for each
// entry; the second copies of n entry headers come later, either as n · 192 bytes more in the next group or as an
// evidence group of ⌈(192 + n · 192) / 3968⌉ blocks. The charge is ⌈(256 + body) / 3968⌉ + 2 blocks an entry.
const _: () = {
    let mut entries = 1;
    while entries <= GROUP_ENTRIES_MAX {
        let evidence = (RECORD + entries * RECORD).div_ceil(BLOCK_CONTENT);
        let in_next_group = (entries * RECORD).div_ceil(BLOCK_CONTENT);
        // With the one block above they stay within the two that each entry has besides its body.
        assert!(evidence < 2 * entries);
        assert!(in_next_group < 2 * entries);
        entries += 1;
    }
};

/// Names a group for ever: the incarnation that wrote it and a count from 1 within it. Never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence {
    pub(crate) incarnation: u32,
    /// Below 2⁴⁸.
    pub(crate) count: u64,
}

/// Where a group lies and what it holds, as later groups remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) sequence: Sequence,
    pub(crate) position: u64,
    pub(crate) blocks: u16,
    /// Its own entries.
    pub(crate) own: u16,
    /// Entry headers of the group before it that it holds as well.
    pub(crate) copies: u16,
}

/// The first record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) link: Link,
    pub(crate) previous: Option<Link>,
    /// The group before the previous one, so that one lost header doesn't break the chain.
    pub(crate) before_previous: Option<Link>,
    /// The oldest group that is still needed. What lies before it may be overwritten by later groups.
    pub(crate) oldest: Link,
    /// This group and every one before it were durable when this one was written.
    pub(crate) durable_through: Sequence,
}

/// Bytes that a ring's WAL has; none for a ring that has no layout.
pub fn wal_size(ring: &Ring) -> Option<u64> {
    Sizes::of(ring).map(|sizes| sizes.file)
}

/// What follows from the ring, whosever it is.
struct Sizes {
    file: u64,
    group_bodies_max: usize,
    group_size_max: u64,
}

impl Sizes {
    fn of(ring: &Ring) -> Option<Sizes> {
        const GATHERED_MAX: u64 = 2 * 1024 * 1024;
        if ring.checkpoint_interval == 0 {
            return None;
        }
        let body_blocks = (ring.charge_max / BLOCK as u64).checked_sub(2)?;
        let body_max = body_blocks.checked_mul(BLOCK_CONTENT as u64)?;
        let group_bodies_max = usize::try_from(body_max.max(GATHERED_MAX.min(ring.log / 16))).ok()?;
        let records = (1 + 2 * GROUP_ENTRIES_MAX) * RECORD;
        let group_blocks_max = records.checked_add(group_bodies_max)?.div_ceil(BLOCK_CONTENT);
        let group_size_max = u64::from(u16::try_from(group_blocks_max).ok()?) * BLOCK as u64;
        // A quarter more for what is written twice; and room to move live entries out of the oldest groups
        // whatever the ring's size, see `Journal::short_of_room`.
        let quarter_more = ring.log.checked_add(ring.log / 4)?;
        let room_to_move = ring.log.checked_add(8 * group_size_max)?;
        let file = quarter_more.max(room_to_move).checked_next_multiple_of(BLOCK as u64)?;
        Some(Sizes { file, group_bodies_max, group_size_max })
    }
}

/// The fixed facts about a WAL file: everything that follows from the superblock alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) cluster: ClusterId,
    /// Binds every unit to this cluster and this file.
    pub(crate) salt: u64,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Bytes of bodies that a group gathers; one entry may always go.
    pub(crate) group_bodies_max: usize,
    /// Bytes of the largest group.
    pub(crate) group_size_max: u64,
}

impl Layout {
    /// The layout of a ring's file; none when a group would not fit what a trailer can say.
    pub(crate) fn new(identity: &Identity, ring: &Ring) -> Option<Layout> {
        let Sizes { file: size, group_bodies_max, group_size_max } = Sizes::of(ring)?;
        let salt = Checksum::of_pieces(&[
            b"chronon wal",
            &identity.cluster.value().to_le_bytes(),
            &identity.disk.value().to_le_bytes(),
        ]);
        let [a, b, c, d, e, f, g, h, ..] = salt.to_bytes();
        let salt = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Some(Layout { cluster: identity.cluster, salt, size, group_bodies_max, group_size_max })
    }

    /// Whether a link can be true of this file.
    pub(crate) fn admits(&self, link: &Link) -> bool {
        let length = u64::from(link.blocks) * BLOCK as u64;
        let records = (1 + usize::from(link.own) + usize::from(link.copies)) * RECORD;
        link.position.is_multiple_of(BLOCK as u64)
            && 0 < length
            && length <= self.group_size_max
            && link.position.checked_add(length).is_some_and(|end| end <= self.size)
            && usize::from(link.own) <= GROUP_ENTRIES_MAX
            && usize::from(link.copies) <= GROUP_ENTRIES_MAX
            && records <= usize::from(link.blocks) * BLOCK_CONTENT
            && Sequence::default() < link.sequence
    }
}

impl Link {
    pub(crate) fn length(&self) -> u64 {
        u64::from(self.blocks) * BLOCK as u64
    }

    pub(crate) fn end(&self) -> u64 {
        self.position + self.length()
    }

    /// Where in the content the bodies start.
    pub(crate) fn bodies_start(&self) -> usize {
        (1 + usize::from(self.own) + usize::from(self.copies)) * RECORD
    }
}

impl GroupHeader {
    fn encode(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        let mut w = Writer::new(&mut record[16..]);
        w.put(&GROUP_MAGIC);
        encode_link(&mut w, Some(&self.link));
        encode_link(&mut w, self.previous.as_ref());
        encode_link(&mut w, self.before_previous.as_ref());
        encode_link(&mut w, Some(&self.oldest));
        w.u32(self.durable_through.incarnation);
        w.u64(self.durable_through.count);
        w.finish();
        let checksum = Checksum::of(&record[16..]);
        record[..16].copy_from_slice(&checksum.to_bytes());
        record
    }

    /// Reads a header record. None if it is no group's header.
    pub(crate) fn decode(record: &[u8; RECORD]) -> Option<GroupHeader> {
        let mut r = Reader::new(record);
        let checksum = Checksum::from_bytes(r.array()?);
        if r.array()? != GROUP_MAGIC || checksum != Checksum::of(&record[16..]) {
            return None;
        }
        let link = decode_link(&mut r)?;
        let previous = decode_link(&mut r)?;
        let before_previous = decode_link(&mut r)?;
        let oldest = decode_link(&mut r)?;
        let durable_through = Sequence { incarnation: r.u32()?, count: r.u64()? };
        Some(GroupHeader { link: link?, previous, before_previous, oldest: oldest?, durable_through })
    }
}

fn encode_link(w: &mut Writer<'_>, link: Option<&Link>) {
    let Some(link) = link else { return w.zeros(LINK_SIZE) };
    w.u32(link.sequence.incarnation);
    w.u64(link.sequence.count);
    w.u64(link.position);
    w.u16(link.blocks);
    w.u16(link.own);
    w.u16(link.copies);
    w.zeros(LINK_SIZE - 26);
}

/// Outer none: no link at all; inner none: a link to nothing.
#[expect(clippy::option_option, reason = "bytes that end too early are not a link to nothing")]
fn decode_link(r: &mut Reader<'_>) -> Option<Option<Link>> {
    let sequence = Sequence { incarnation: r.u32()?, count: r.u64()? };
    let link = Link { sequence, position: r.u64()?, blocks: r.u16()?, own: r.u16()?, copies: r.u16()? };
    r.zeros(LINK_SIZE - 26)?;
    Some((sequence != Sequence::default()).then_some(link))
}

/// Blocks of a group with so many entry header records and bytes of bodies.
pub(crate) fn group_blocks(own: usize, copies: usize, bodies: usize) -> usize {
    ((1 + own + copies) * RECORD + bodies).div_ceil(BLOCK_CONTENT)
}

/// Writes a whole group: `group` has exactly its blocks. Entry bytes are copied once, straight into their units.
pub(crate) fn encode_group(
    group: &mut [u8],
    layout: &Layout,
    header: &GroupHeader,
    records: &[[u8; RECORD]],
    copies: &[[u8; RECORD]],
    entries: &[Entry],
) {
    assert_eq!(group.len() as u64, header.link.length());
    assert_eq!(records.len(), usize::from(header.link.own));
    assert_eq!(copies.len(), usize::from(header.link.copies));
    assert_eq!(entries.len(), records.len());
    assert!(layout.admits(&header.link));
    let mut stream = ContentWriter { group, offset: 0 };
    stream.put(&header.encode());
    records.iter().chain(copies).for_each(|record| stream.put(record));
    assert_eq!(stream.offset, header.link.bodies_start());
    entries.iter().for_each(|entry| stream.put(entry.body()));
    stream.fill_with_zeros();
    for (index, unit) in group.chunks_exact_mut(UNIT).enumerate() {
        let position = header.link.position + (index * UNIT) as u64;
        seal_unit(unit, layout.salt, position, header.link.sequence, header.link.blocks);
    }
}

struct ContentWriter<'a> {
    group: &'a mut [u8],
    offset: usize,
}

impl ContentWriter<'_> {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = self.offset % UNIT_CONTENT;
            let (here, rest) = bytes.split_at(bytes.len().min(UNIT_CONTENT - within));
            let start = self.offset / UNIT_CONTENT * UNIT + within;
            self.group[start..start + here.len()].copy_from_slice(here);
            self.offset += here.len();
            bytes = rest;
        }
    }

    fn fill_with_zeros(&mut self) {
        let content_size = self.group.len() / UNIT * UNIT_CONTENT;
        while self.offset < content_size {
            let within = self.offset % UNIT_CONTENT;
            let start = self.offset / UNIT_CONTENT * UNIT + within;
            self.group[start..start + UNIT_CONTENT - within].fill(0);
            self.offset += UNIT_CONTENT - within;
        }
    }
}

/// Copies part of a group's content out of its units, good or bad. None beyond the group's end.
pub(crate) fn read_content(group: &[u8], offset: usize, length: usize) -> Option<Vec<u8>> {
    let end = offset.checked_add(length)?;
    if group.len() / UNIT * UNIT_CONTENT < end {
        return None;
    }
    let mut content = Vec::with_capacity(length);
    let mut offset = offset;
    while offset < end {
        let within = offset % UNIT_CONTENT;
        let here = (end - offset).min(UNIT_CONTENT - within);
        let start = offset / UNIT_CONTENT * UNIT + within;
        content.extend_from_slice(&group[start..start + here]);
        offset += here;
    }
    Some(content)
}

/// What a unit says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Never written.
    Zero,
    /// Written by the group of this sequence, which has so many blocks.
    Written { sequence: Sequence, blocks: u16 },
    /// Neither.
    Bad,
}

fn seal_unit(unit: &mut [u8], salt: u64, position: u64, sequence: Sequence, blocks: u16) {
    assert!(sequence.count < 1 << 48);
    let [c0, c1, c2, c3, c4, c5, ..] = sequence.count.to_le_bytes();
    let mut trailer = Writer::new(&mut unit[UNIT_CONTENT..]);
    trailer.u32(sequence.incarnation);
    trailer.put(&[c0, c1, c2, c3, c4, c5]);
    trailer.u16(blocks);
    trailer.u32(0);
    let crc = unit_crc(unit, salt, position);
    unit[UNIT - 4..].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn read_unit(unit: &[u8], salt: u64, position: u64) -> Unit {
    if *unit == [0; UNIT] {
        return Unit::Zero;
    }
    let mut trailer = Reader::new(&unit[UNIT_CONTENT..]);
    let mut fields = || {
        let incarnation = trailer.u32()?;
        let [c0, c1, c2, c3, c4, c5] = trailer.array()?;
        let count = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, 0, 0]);
        Some((Sequence { incarnation, count }, trailer.u16()?, trailer.u32()?))
    };
    match fields() {
        Some((sequence, blocks, crc)) if crc == unit_crc(unit, salt, position) => {
            Unit::Written { sequence, blocks }
        }
        Some(_) | None => Unit::Bad,
    }
}

fn unit_crc(unit: &[u8], salt: u64, position: u64) -> u32 {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = salt.to_le_bytes();
    let [p0, p1, p2, p3, p4, p5, p6, p7] = position.to_le_bytes();
    let place = [s0, s1, s2, s3, s4, s5, s6, s7, p0, p1, p2, p3, p4, p5, p6, p7];
    crc32c::crc32c_append(crc32c::crc32c(&unit[..UNIT - 4]), &place)
}

/// The ring charge of an entry.
pub(crate) fn entry_charge(header: &EntryHeader) -> u64 {
    charge(header.body_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_bound_to_its_place_its_file_and_its_group() {
        let sequence = Sequence { incarnation: 3, count: (1 << 40) + 5 };
        let mut unit = [0; UNIT];
        unit[17] = 9;
        seal_unit(&mut unit, 77, 4096, sequence, 3);
        assert_eq!(read_unit(&unit, 77, 4096), Unit::Written { sequence, blocks: 3 });
        assert_eq!(read_unit(&unit, 78, 4096), Unit::Bad);
        assert_eq!(read_unit(&unit, 77, 4608), Unit::Bad);
        assert_eq!(read_unit(&[0; UNIT], 77, 0), Unit::Zero);
        for bit in 0..UNIT * 8 {
            let mut damaged = unit;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_unit(&damaged, 77, 4096), Unit::Bad, "bit {bit}");
        }
    }

    #[test]
    fn group_headers_survive_the_round_trip_and_no_damaged_byte_does() {
        let link = |count, position| Link {
            sequence: Sequence { incarnation: 2, count },
            position,
            blocks: 4,
            own: 3,
            copies: 2,
        };
        let header = GroupHeader {
            link: link(9, 8192),
            previous: Some(link(8, 4096)),
            before_previous: None,
            oldest: link(1, 0),
            durable_through: Sequence { incarnation: 2, count: 8 },
        };
        let record = header.encode();
        assert_eq!(GroupHeader::decode(&record), Some(header));
        for byte in 0..RECORD {
            let mut damaged = record;
            damaged[byte] ^= 0x40;
            assert_eq!(GroupHeader::decode(&damaged), None, "byte {byte}");
        }
    }

    /// The charge of every entry covers what its group, the copies and an evidence group take, for every way to cut
    /// a list of entries into groups.
    #[test]
    fn charges_cover_every_layout() {
        let sizes = [0, 1, 495, 3520, 3711, 3712, 3713, 3776, 3777, 7679, 7680, 100_000];
        for entries in 1..=GROUP_ENTRIES_MAX {
            for size in sizes {
                let charged = charge(size) * entries as u64;
                for groups in [1, 2, entries] {
                    for evidence_each in [false, true] {
                        let mut taken = 0;
                        let mut previous = 0;
                        for group in 0..groups.min(entries) {
                            let own = entries * (group + 1) / groups - entries * group / groups;
                            taken += group_blocks(own, previous, own * size as usize);
                            previous = own;
                            if evidence_each || group + 1 == groups {
                                taken += group_blocks(0, previous, 0);
                                previous = 0;
                            }
                        }
                        assert!((taken * BLOCK) as u64 <= charged, "{entries} of {size} in {groups}");
                    }
                }
            }
        }
    }
}
