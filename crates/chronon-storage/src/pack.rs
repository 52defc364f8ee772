//! The bytes of a pack: records of chunks, each bound to its cluster, disk, file and place; see `docs/format.md`.
//!
//! A record is a header, the chunk's bytes (compressed if that makes them fewer), and zeros to the next block. The
//! header's checksum covers the header, a CRC everything behind it: no byte of a record can change unnoticed.

use chronon_vsr::{CHUNK_LIST_SIZE_MAX, CHUNK_SIZE_MAX, Checksum};

use crate::Identity;
use crate::bytes::{Reader, Writer};

/// Records start at multiples of this and fill whole ones: what direct I/O asks for.
pub(crate) const BLOCK: usize = 4096;

/// Bytes of a record's header.
pub(crate) const HEADER: usize = 96;

/// Stands in each header, behind its checksum.
pub(crate) const MAGIC: [u8; 8] = *b"CHRONCHK";

/// The most bytes that a record can hold before compression. A map is at most as long as its list, see `ChunkList`.
pub(crate) const CONTENT_MAX: usize = CHUNK_LIST_SIZE_MAX;
const _: () = assert!(CHUNK_SIZE_MAX <= CONTENT_MAX);

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A part of a state.
    Chunk,
    /// The list of a checkpoint's chunks.
    List,
    /// In which packs the chunks of the checkpoint with this root lay when it was written: what names the file when
    /// one of them is gone.
    Map { root: Checksum },
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    /// The name of the content.
    pub(crate) id: Checksum,
    /// Bytes of the content.
    pub(crate) size: u32,
    /// Bytes that it takes here. Fewer than `size`: compressed.
    pub(crate) stored: u32,
    /// Over everything behind the header to the end of the record.
    pub(crate) crc: u32,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pack: u64,
    pub(crate) position: u64,
}

/// Why a record can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Header,
    Content,
}

impl RecordHeader {
    /// Bytes of the whole record.
    pub(crate) fn length(&self) -> usize {
        (HEADER + self.stored as usize).next_multiple_of(BLOCK)
    }

    fn encode(&self, identity: &Identity, place: Place) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let mut w = Writer::new(&mut header[16..]);
        w.put(&MAGIC);
        w.put(&self.id.to_bytes());
        let (kind, root) = match self.kind {
            Kind::Chunk => (1, [0; 16]),
            Kind::List => (2, [0; 16]),
            Kind::Map { root } => (3, root.to_bytes()),
        };
        w.u8(kind);
        w.zeros(3);
        w.u32(self.size);
        w.u32(self.stored);
        w.u32(self.crc);
        w.put(&root);
        w.finish();
        let checksum = header_checksum(identity, place, &header);
        header[..16].copy_from_slice(&checksum.to_bytes());
        header
    }

    /// Reads a header as it lies at a place. None if it is not the header of a record there.
    pub(crate) fn decode(identity: &Identity, place: Place, header: &[u8; HEADER]) -> Option<RecordHeader> {
        let mut r = Reader::new(header);
        let checksum = Checksum::from_bytes(r.array()?);
        if r.array()? != MAGIC || checksum != header_checksum(identity, place, header) {
            return None;
        }
        let id = Checksum::from_bytes(r.array()?);
        let kind = r.u8()?;
        r.zeros(3)?;
        let (size, stored, crc) = (r.u32()?, r.u32()?, r.u32()?);
        let root: [u8; 16] = r.array()?;
        let kind = match kind {
            1 if root == [0; 16] => Kind::Chunk,
            2 if root == [0; 16] => Kind::List,
            3 => Kind::Map { root: Checksum::from_bytes(root) },
            _ => return None,
        };
        let right = r.only_zeros_left() && stored <= size && size as usize <= CONTENT_MAX;
        right.then_some(RecordHeader { kind, id, size, stored, crc })
    }
}

fn header_checksum(identity: &Identity, place: Place, header: &[u8; HEADER]) -> Checksum {
    Checksum::of_pieces(&[
        b"chronon pack",
        &identity.cluster.value().to_le_bytes(),
        &identity.disk.value().to_le_bytes(),
        &place.pack.to_le_bytes(),
        &place.position.to_le_bytes(),
        &header[16..],
    ])
}

/// Appends the record of some content. `records` holds what lies before it from a block's start on.
pub(crate) fn append_record(
    records: &mut Vec<u8>,
    identity: &Identity,
    place: Place,
    (kind, id): (Kind, Checksum),
    content: &[u8],
) -> RecordHeader {
    assert!(records.len().is_multiple_of(BLOCK));
    assert!(content.len() <= CONTENT_MAX);
    let start = records.len();
    records.resize(start + HEADER + lz4_flex::block::get_maximum_output_size(content.len()), 0);
    let compressed = lz4_flex::block::compress_into(content, &mut records[start + HEADER..]);
    let stored = compressed.expect("there is room for the worst case");
    let stored = if stored < content.len() {
        stored
    } else {
        records[start + HEADER..start + HEADER + content.len()].copy_from_slice(content);
        content.len()
    };
    let count = |length: usize| u32::try_from(length).expect("contents are bounded");
    let mut header = RecordHeader { kind, id, size: count(content.len()), stored: count(stored), crc: 0 };
    records.truncate(start + HEADER + stored);
    records.resize(start + header.length(), 0);
    header.crc = crc32c::crc32c(&records[start + HEADER..]);
    records[start..start + HEADER].copy_from_slice(&header.encode(identity, place));
    header
}

/// Appends a record as it was read elsewhere.
pub(crate) fn append_moved(
    records: &mut Vec<u8>,
    identity: &Identity,
    place: Place,
    header: &RecordHeader,
    record: &[u8],
) {
    assert!(records.len().is_multiple_of(BLOCK));
    assert_eq!(record.len(), header.length());
    records.extend_from_slice(&header.encode(identity, place));
    records.extend_from_slice(&record[HEADER..]);
}

/// Whether a record is the one that its header was, every byte of it.
pub(crate) fn check_record(
    identity: &Identity,
    place: Place,
    header: &RecordHeader,
    record: &[u8],
) -> Result<(), Wrong> {
    let found = record.first_chunk().and_then(|found| RecordHeader::decode(identity, place, found));
    if found != Some(*header) || record.len() != header.length() {
        return Err(Wrong::Header);
    }
    if crc32c::crc32c(&record[HEADER..]) != header.crc {
        return Err(Wrong::Content);
    }
    Ok(())
}

/// The content of a record that [`check_record`] passed.
pub(crate) fn content(header: &RecordHeader, record: &[u8]) -> Result<Vec<u8>, Wrong> {
    let (size, stored) = (header.size as usize, header.stored as usize);
    let stored = record.get(HEADER..HEADER + stored).ok_or(Wrong::Content)?;
    let content = if stored.len() < size {
        let mut content = vec![0; size];
        let length = lz4_flex::block::decompress_into(stored, &mut content).map_err(|_| Wrong::Content)?;
        content.truncate(length);
        content
    } else {
        stored.to_vec()
    };
    // The name is checked over the content itself: what is given out is what was taken in, whatever happened between.
    if content.len() != size || Checksum::of_chunk(&content) != header.id {
        return Err(Wrong::Content);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use chronon_vsr::{ClusterId, DiskId, ReplicaId};

    use super::*;

    fn identity() -> Identity {
        Identity { cluster: ClusterId::new(1), lineage: 2, replica: ReplicaId::new(0), disk: DiskId::new(3) }
    }

    const PLACE: Place = Place { pack: 7, position: 8192 };

    fn record(content: &[u8]) -> (RecordHeader, Vec<u8>) {
        let mut records = Vec::new();
        let of = (Kind::Chunk, Checksum::of_chunk(content));
        let header = append_record(&mut records, &identity(), PLACE, of, content);
        (header, records)
    }

    #[test]
    fn content_of_every_size_comes_back_and_takes_whole_blocks() {
        let mut prng = chronon_vsr::Prng::new(1);
        for size in [0, 1, 100, 3999, 4000, 4001, 8096, 70_000, CHUNK_SIZE_MAX, CONTENT_MAX] {
            let noise: Vec<u8> = (0..size).map(|_| prng.next_u64() as u8).collect();
            for content in [noise, vec![7; size]] {
                let (header, record) = record(&content);
                assert_eq!(record.len() % BLOCK, 0);
                assert_eq!(check_record(&identity(), PLACE, &header, &record), Ok(()));
                assert_eq!(super::content(&header, &record), Ok(content));
            }
        }
        let (header, _) = record(&[7; 100_000]);
        assert_eq!(header.length(), BLOCK);
    }

    #[test]
    fn no_byte_of_a_record_changes_unnoticed() {
        let (header, record) = record(&[5; 6000]);
        for byte in 0..record.len() {
            let mut damaged = record.clone();
            damaged[byte] ^= 1 << (byte % 8);
            let expected = if byte < HEADER { Wrong::Header } else { Wrong::Content };
            assert_eq!(check_record(&identity(), PLACE, &header, &damaged), Err(expected), "byte {byte}");
        }
    }

    #[test]
    fn a_record_is_bound_to_its_place_its_file_its_disk_and_its_cluster() {
        let (header, record) = record(&[5; 6000]);
        let first = record.first_chunk().unwrap();
        assert_eq!(RecordHeader::decode(&identity(), PLACE, first), Some(header));
        let elsewhere = [Place { pack: 8, ..PLACE }, Place { position: 4096, ..PLACE }];
        assert!(elsewhere.iter().all(|place| RecordHeader::decode(&identity(), *place, first).is_none()));
        let others = [
            Identity { cluster: ClusterId::new(9), ..identity() },
            Identity { disk: DiskId::new(9), ..identity() },
        ];
        assert!(others.iter().all(|other| RecordHeader::decode(other, PLACE, first).is_none()));
    }

    #[test]
    fn a_moved_record_is_one_of_its_new_place() {
        let (header, record) = record(&[9; 5000]);
        let there = Place { pack: 9, position: 0 };
        let mut moved = Vec::new();
        append_moved(&mut moved, &identity(), there, &header, &record);
        assert_eq!(check_record(&identity(), there, &header, &moved), Ok(()));
        assert_eq!(content(&header, &moved), Ok(vec![9; 5000]));
    }
}
