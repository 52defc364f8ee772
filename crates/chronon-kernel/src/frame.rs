//! The bytes of the client protocol's frames: a 16-byte header, then the frame in postcard.
//!
//! ```text
//! 0    "CHRN"
//! 4    u32 LE   bytes after the header
//! 8    8 bytes  first 64 bits of BLAKE3 over the size and the bytes after the header
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ClientFrame, FRAME_SIZE_MAX, ServerFrame};

/// Bytes of every frame's header.
pub const FRAME_HEADER_SIZE: usize = 16;

const MAGIC: [u8; 4] = *b"CHRN";

/// Why bytes are no frame. After any of these the stream can't be read on: hang up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not what this protocol begins with: another protocol knocks.
    #[error("the bytes are no frame of the chronon client protocol")]
    NotAFrame,
    /// Larger than any frame may be.
    #[error("a frame of {size} bytes is more than the limit of {limit}")]
    TooLarge {
        /// Its size, header included.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The checksum is wrong.
    #[error("the frame's checksum is wrong")]
    Checksum,
    /// The checksum is right and the contents are unknown: a newer release, or another direction's frame.
    #[error("the frame can't be decoded by this release")]
    Unknown,
}

/// How many bytes the frame has whose header these are, header included: what a stream reader must wait for.
pub fn frame_size(header: &[u8; FRAME_HEADER_SIZE]) -> Result<usize, FrameError> {
    let (magic, rest) = header.split_at(4);
    if magic != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    let body = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
    let size = u64::from(body) + FRAME_HEADER_SIZE as u64;
    let limit = FRAME_SIZE_MAX as u64;
    if size <= limit {
        Ok(FRAME_HEADER_SIZE + body as usize)
    } else {
        Err(FrameError::TooLarge { size, limit })
    }
}

impl ClientFrame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a whole frame. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<ClientFrame, FrameError> {
        decode(bytes)
    }
}

impl ServerFrame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a whole frame. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<ServerFrame, FrameError> {
        decode(bytes)
    }
}

fn encode<F: Serialize>(frame: &F) -> Vec<u8> {
    let bytes = vec![0; FRAME_HEADER_SIZE];
    let mut bytes = postcard::to_extend(frame, bytes).expect("frames hold nothing that postcard can't write");
    let size = u32::try_from(bytes.len() - FRAME_HEADER_SIZE).expect("a frame is made of bounded parts");
    let checksum = checksum(size, &bytes[FRAME_HEADER_SIZE..]);
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&size.to_le_bytes());
    bytes[8..16].copy_from_slice(&checksum);
    bytes
}

fn decode<F: DeserializeOwned>(bytes: &[u8]) -> Result<F, FrameError> {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_SIZE>().ok_or(FrameError::NotAFrame)?;
    if frame_size(header)? != bytes.len() {
        return Err(FrameError::NotAFrame);
    }
    if header[8..] != checksum(body.len() as u32, body) {
        return Err(FrameError::Checksum);
    }
    let (frame, rest) = postcard::take_from_bytes(body).map_err(|_| FrameError::Unknown)?;
    if rest.is_empty() { Ok(frame) } else { Err(FrameError::Unknown) }
}

fn checksum(size: u32, body: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    hasher.update(body);
    let hash = hasher.finalize();
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    *first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> ClientFrame {
        ClientFrame::Hello { version: 1, cluster: Some(7) }
    }

    #[test]
    fn a_frame_reads_back_as_what_was_written() {
        let bytes = hello().encode();
        let (header, _) = bytes.split_first_chunk().expect("a frame has a header");
        assert_eq!(frame_size(header), Ok(bytes.len()));
        assert_eq!(ClientFrame::decode(&bytes), Ok(hello()));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let bytes = hello().encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(ClientFrame::decode(&changed).is_err(), "byte {at}");
            assert!(ClientFrame::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_size_is_refused_one_byte_over_the_limit_and_not_before() {
        let mut header = [0; FRAME_HEADER_SIZE];
        header[..4].copy_from_slice(&MAGIC);
        let most = (FRAME_SIZE_MAX - FRAME_HEADER_SIZE) as u32;
        header[4..8].copy_from_slice(&most.to_le_bytes());
        assert_eq!(frame_size(&header), Ok(FRAME_SIZE_MAX));
        header[4..8].copy_from_slice(&(most + 1).to_le_bytes());
        assert!(matches!(frame_size(&header), Err(FrameError::TooLarge { .. })));
    }
}
