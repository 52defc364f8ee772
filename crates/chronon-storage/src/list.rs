//! The list of a checkpoint's chunks: what its root names.

use chronon_vsr::{CHUNK_LIST_SIZE_MAX, CHUNK_SIZE_MAX, Checksum};

use crate::bytes::{Reader, Writer};

const MAGIC: [u8; 8] = *b"CHRONLST";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const ITEM: usize = 20;

/// The most chunks that a checkpoint can have.
pub const CHUNKS_MAX: usize = (CHUNK_LIST_SIZE_MAX - HEAD) / ITEM;

// The map of a checkpoint (8 bytes a chunk, and 4) fits where its list fits.
const _: () = assert!(4 + CHUNKS_MAX * 8 <= CHUNK_LIST_SIZE_MAX);

/// A checkpoint's chunks, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkList {
    /// The name and the size of each.
    pub chunks: Vec<(Checksum, u32)>,
}

/// Why there is no list.
#[non_exhaustive]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The state is too large for a checkpoint.
    #[error(
        "the state takes {chunks} chunks, a checkpoint has at most {CHUNKS_MAX}: about {most} GiB of state",
        most = (CHUNKS_MAX * CHUNK_SIZE_MAX) >> 30
    )]
    TooManyChunks {
        /// How many there are.
        chunks: usize,
    },
    /// The bytes are no list of chunks.
    #[error("the list of chunks is malformed")]
    Malformed,
}

impl ChunkList {
    /// The bytes of the list; their name is the checkpoint's root.
    pub fn encode(&self) -> Result<Vec<u8>, ListError> {
        if CHUNKS_MAX < self.chunks.len() {
            return Err(ListError::TooManyChunks { chunks: self.chunks.len() });
        }
        let mut bytes = vec![0; HEAD + self.chunks.len() * ITEM];
        let mut w = Writer::new(&mut bytes);
        w.put(&MAGIC);
        w.u32(VERSION);
        w.u32(u32::try_from(self.chunks.len()).expect("just bounded"));
        for (id, size) in &self.chunks {
            w.put(&id.to_bytes());
            w.u32(*size);
        }
        w.finish();
        Ok(bytes)
    }

    /// Reads a list.
    pub fn decode(bytes: &[u8]) -> Result<ChunkList, ListError> {
        let fields = || {
            let mut r = Reader::new(bytes);
            let right = r.array()? == MAGIC && r.u32()? == VERSION;
            let count = r.u32()? as usize;
            if !right || CHUNKS_MAX < count || bytes.len() != HEAD + count * ITEM {
                return None;
            }
            let chunks = (0..count)
                .map(|_| {
                    let (id, size) = (Checksum::from_bytes(r.array()?), r.u32()?);
                    (size as usize <= CHUNK_SIZE_MAX).then_some((id, size))
                })
                .collect::<Option<_>>()?;
            Some(ChunkList { chunks })
        };
        fields().ok_or(ListError::Malformed)
    }

    /// Bytes of the state, before compression.
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|(_, size)| u64::from(*size)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_the_round_trip_and_nothing_else_is_one() {
        for count in [0_u32, 1, 2, 100, CHUNKS_MAX as u32] {
            let chunk = |n: u32| (Checksum::of_chunk(&n.to_le_bytes()), n % (CHUNK_SIZE_MAX as u32 + 1));
            let list = ChunkList { chunks: (0..count).map(chunk).collect() };
            let bytes = list.encode().unwrap();
            assert!(bytes.len() <= CHUNK_LIST_SIZE_MAX);
            assert_eq!(ChunkList::decode(&bytes), Ok(list));
            assert_eq!(ChunkList::decode(&bytes[..bytes.len() - 1]), Err(ListError::Malformed));
            for byte in 0..HEAD {
                let mut damaged = bytes.clone();
                damaged[byte] ^= 0x20;
                assert_eq!(ChunkList::decode(&damaged), Err(ListError::Malformed), "byte {byte} of {count}");
            }
        }
        let too_large = ChunkList { chunks: vec![(Checksum::of_chunk(b""), CHUNK_SIZE_MAX as u32 + 1)] };
        assert_eq!(ChunkList::decode(&too_large.encode().unwrap()), Err(ListError::Malformed));
        let too_many = ChunkList { chunks: vec![(Checksum::of_chunk(b""), 0); CHUNKS_MAX + 1] };
        let error = too_many.encode().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state takes 52429 chunks, a checkpoint has at most 52428: about 12 GiB of state"
        );
    }
}
