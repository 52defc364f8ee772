//! An entry: what gets ordered. It never changes; re-sent, inherited or repaired, it is the same bytes.

use alloc::sync::Arc;

use crate::{Checksum, ClusterId, Op, OpRef, Release, Stamp, Timestamp};

/// The bytes of an encoded entry header, checksum included.
pub const ENTRY_HEADER_SIZE: usize = 192;

/// The largest body of an entry: one command of 1 MiB with its envelope, or a batch of smaller ones.
pub const BODY_SIZE_MAX: usize = 1024 * 1024 + 64 * 1024;

/// What an entry's checksum covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryHeader {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// The stamp whose primary first prepared it.
    pub born: Stamp,
    /// Its place in the log.
    pub op: Op,
    /// The checksum of the entry before it.
    pub parent: Checksum,
    /// The ring charge of every entry before it (`crate::charge`), the same on every replica.
    pub offset: u64,
    /// Log time: strictly increasing.
    pub timestamp: Timestamp,
    /// The newest op that its primary knew committed when it prepared this one.
    pub commit: Op,
    /// The release that the body is written for.
    pub release: Release,
    /// Bytes of the body: 0 to [`BODY_SIZE_MAX`].
    pub body_size: u32,
    /// The checksum of the body.
    pub body_checksum: Checksum,
}

impl EntryHeader {
    /// The checksum over every field: it names the entry, its body and (through `parent`) its whole past.
    pub fn checksum(&self) -> Checksum {
        Checksum::of(&self.fields())
    }

    /// Place and checksum.
    pub fn op_ref(&self) -> OpRef {
        OpRef { op: self.op, checksum: self.checksum() }
    }

    /// Where its ring charge ends, and the next entry's begins.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(crate::charge(self.body_size))
    }

    /// Checksum, then the fields, then zeros.
    pub fn encode(&self) -> [u8; ENTRY_HEADER_SIZE] {
        let fields = self.fields();
        let mut bytes = [0; ENTRY_HEADER_SIZE];
        bytes[..16].copy_from_slice(&Checksum::of(&fields).to_bytes());
        bytes[16..16 + FIELDS_SIZE].copy_from_slice(&fields);
        bytes
    }

    /// Reads what [`EntryHeader::encode`] wrote. None if any byte differs from what a header can be.
    pub fn decode(bytes: &[u8; ENTRY_HEADER_SIZE]) -> Option<EntryHeader> {
        let fields: &[u8; FIELDS_SIZE] =
            bytes[16..16 + FIELDS_SIZE].try_into().expect("the sizes are constants");
        if bytes[..16] != Checksum::of(fields).to_bytes()
            || bytes[16 + FIELDS_SIZE..].iter().any(|byte| *byte != 0)
        {
            return None;
        }
        let mut rest: &[u8] = fields;
        let header = EntryHeader {
            cluster: ClusterId::new(u128::from_le_bytes(take(&mut rest))),
            born: Stamp {
                epoch: crate::Epoch::new(u64::from_le_bytes(take(&mut rest))),
                view: crate::View::new(u64::from_le_bytes(take(&mut rest))),
            },
            op: Op::new(u64::from_le_bytes(take(&mut rest))),
            parent: Checksum::from_bytes(take(&mut rest)),
            offset: u64::from_le_bytes(take(&mut rest)),
            timestamp: Timestamp::from_nanos(u64::from_le_bytes(take(&mut rest))),
            commit: Op::new(u64::from_le_bytes(take(&mut rest))),
            release: Release::new(u32::from_le_bytes(take(&mut rest))),
            body_size: u32::from_le_bytes(take(&mut rest)),
            body_checksum: Checksum::from_bytes(take(&mut rest)),
        };
        assert!(rest.is_empty());
        (header.body_size as usize <= BODY_SIZE_MAX).then_some(header)
    }

    fn fields(&self) -> [u8; FIELDS_SIZE] {
        let mut bytes = [0; FIELDS_SIZE];
        let mut rest: &mut [u8] = &mut bytes;
        put(&mut rest, self.cluster.value().to_le_bytes());
        put(&mut rest, self.born.epoch.value().to_le_bytes());
        put(&mut rest, self.born.view.value().to_le_bytes());
        put(&mut rest, self.op.value().to_le_bytes());
        put(&mut rest, self.parent.to_bytes());
        put(&mut rest, self.offset.to_le_bytes());
        put(&mut rest, self.timestamp.nanos().to_le_bytes());
        put(&mut rest, self.commit.value().to_le_bytes());
        put(&mut rest, self.release.value().to_le_bytes());
        put(&mut rest, self.body_size.to_le_bytes());
        put(&mut rest, self.body_checksum.to_bytes());
        assert!(rest.is_empty());
        bytes
    }
}

const FIELDS_SIZE: usize = 16 + 8 + 8 + 8 + 16 + 8 + 8 + 8 + 4 + 4 + 16;
const _: () = assert!(16 + FIELDS_SIZE <= ENTRY_HEADER_SIZE);

fn put<const N: usize>(rest: &mut &mut [u8], field: [u8; N]) {
    let (first, after) =
        core::mem::take(rest).split_first_chunk_mut().expect("FIELDS_SIZE is the sum of the fields");
    *first = field;
    *rest = after;
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, after) = rest.split_first_chunk().expect("the caller took as many bytes as there are");
    *rest = after;
    *first
}

/// A header and the body that it names. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry(Arc<Inner>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Inner {
    header: EntryHeader,
    checksum: Checksum,
    body: Arc<[u8]>,
}

impl Entry {
    /// An entry from its parts, or none when the body is not the one that the header names.
    pub fn new(header: EntryHeader, body: Arc<[u8]>) -> Option<Entry> {
        if header.body_size as usize != body.len() || header.body_checksum != Checksum::of(&body) {
            return None;
        }
        let checksum = header.checksum();
        Some(Entry(Arc::new(Inner { header, checksum, body })))
    }

    /// The header.
    pub fn header(&self) -> &EntryHeader {
        &self.0.header
    }

    /// The header's checksum, computed once.
    pub fn checksum(&self) -> Checksum {
        self.0.checksum
    }

    /// The place in the log.
    pub fn op(&self) -> Op {
        self.0.header.op
    }

    /// Place and checksum.
    pub fn op_ref(&self) -> OpRef {
        OpRef { op: self.op(), checksum: self.checksum() }
    }

    /// The ordered bytes.
    pub fn body(&self) -> &Arc<[u8]> {
        &self.0.body
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;

    use super::*;
    use crate::{Epoch, Prng, View};

    fn header() -> EntryHeader {
        EntryHeader {
            cluster: ClusterId::new(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100),
            born: Stamp { epoch: Epoch::new(0x1716_1514_1312_1110), view: View::new(0x1f1e_1d1c_1b1a_1918) },
            op: Op::new(0x2726_2524_2322_2120),
            parent: Checksum::from_bytes(core::array::from_fn(|at| 0x28 + at as u8)),
            offset: 0x3f3e_3d3c_3b3a_3938,
            timestamp: Timestamp::from_nanos(0x4746_4544_4342_4140),
            commit: Op::new(0x4f4e_4d4c_4b4a_4948),
            release: Release::new(0x5352_5150),
            body_size: 4,
            body_checksum: Checksum::of(b"body"),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_header_has_the_bytes_that_it_always_had() {
        let bytes = header().encode();
        // Counting up from 0, so that each byte names its place: byte 16 + n of the header is n.
        assert_eq!(bytes[16..100], core::array::from_fn::<u8, 84, _>(|at| at as u8));
        assert_eq!(bytes[100..104], [4, 0, 0, 0]);
        assert_eq!(bytes[104..120], Checksum::of(b"body").to_bytes());
        assert_eq!(bytes[120..], [0; 72]);
        assert_eq!(hex(&bytes[..16]), "dc17a46803399a79c6b48a6a56e93785");
        assert_eq!(bytes[..16], Checksum::of(&bytes[16..120]).to_bytes());
        assert_eq!(bytes[..16], header().checksum().to_bytes());
        assert_eq!(header().op_ref(), OpRef { op: header().op, checksum: header().checksum() });
    }

    #[test]
    fn headers_are_read_back() {
        for seed in 0..1000 {
            let mut prng = Prng::new(seed);
            let header = EntryHeader {
                cluster: ClusterId::new(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())),
                born: Stamp { epoch: Epoch::new(prng.next_u64()), view: View::new(prng.next_u64()) },
                op: Op::new(prng.next_u64()),
                parent: Checksum::of(&prng.next_u64().to_le_bytes()),
                offset: prng.next_u64(),
                timestamp: Timestamp::from_nanos(prng.next_u64()),
                commit: Op::new(prng.next_u64()),
                release: Release::new(prng.next_u64() as u32),
                body_size: prng.below(BODY_SIZE_MAX as u64 + 1) as u32,
                body_checksum: Checksum::of(&prng.next_u64().to_le_bytes()),
            };
            assert_eq!(EntryHeader::decode(&header.encode()), Some(header), "seed {seed}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_refused() {
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(EntryHeader::decode(&bytes), None, "bit {bit}");
        }
        assert_eq!(EntryHeader::decode(&[0; ENTRY_HEADER_SIZE]), None);
    }

    #[test]
    fn a_body_larger_than_any_is_refused_whatever_the_checksum_says() {
        let largest = EntryHeader { body_size: BODY_SIZE_MAX as u32, ..header() };
        assert_eq!(EntryHeader::decode(&largest.encode()), Some(largest.clone()));
        let larger = EntryHeader { body_size: BODY_SIZE_MAX as u32 + 1, ..header() };
        assert_eq!(EntryHeader::decode(&larger.encode()), None);
    }

    #[test]
    fn an_entry_is_a_header_with_the_very_body_that_it_names() {
        let entry = Entry::new(header(), Arc::from(*b"body")).unwrap();
        assert_eq!((entry.header(), &**entry.body()), (&header(), &b"body"[..]));
        assert_eq!(
            (entry.op(), entry.checksum(), entry.op_ref()),
            (header().op, header().checksum(), header().op_ref())
        );
        assert_eq!(Entry::new(header(), Arc::from(*b"BODY")), None);
        assert_eq!(Entry::new(header(), Arc::from(*b"body.")), None);
        assert_eq!(Entry::new(EntryHeader { body_size: 5, ..header() }, Arc::from(*b"body")), None);
    }
}
