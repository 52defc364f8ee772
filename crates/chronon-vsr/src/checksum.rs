//! Checksums that name content: BLAKE3, cut to 128 bits.

use core::fmt;

/// The most bytes in one chunk of a checkpoint.
pub const CHUNK_SIZE_MAX: usize = 256 * 1024;

/// The most bytes in the list of a checkpoint's chunks, which is sent and kept as a chunk itself.
pub const CHUNK_LIST_SIZE_MAX: usize = 1024 * 1024;

/// The first 128 bits of a BLAKE3 hash. Names an entry, a body or a chunk by its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum([u8; 16]);

impl Checksum {
    /// Below every other checksum: to find the first of an op among many.
    pub(crate) const LEAST: Checksum = Checksum([0; 16]);

    /// The checksum of some bytes.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum::cut(blake3::hash(bytes))
    }

    /// The checksum of several pieces, each preceded by its length, so that no two lists of pieces collide.
    pub fn of_pieces(pieces: &[&[u8]]) -> Checksum {
        let mut hasher = blake3::Hasher::new();
        for piece in pieces {
            hasher.update(&(piece.len() as u64).to_le_bytes());
            hasher.update(piece);
        }
        Checksum::cut(hasher.finalize())
    }

    /// The name of a chunk of a checkpoint (or of a list of chunks). Never the checksum of an entry's body: what
    /// clients write can't pass for a chunk.
    pub fn of_chunk(bytes: &[u8]) -> Checksum {
        Checksum::of_pieces(&[b"chronon chunk", bytes])
    }

    /// A checksum as read from bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Checksum {
        Checksum(bytes)
    }

    /// The bytes of the checksum.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn cut(hash: blake3::Hash) -> Checksum {
        let (first, _) = hash.as_bytes().split_at(16);
        Checksum(first.try_into().expect("a BLAKE3 hash has 32 bytes"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first four bytes in hex: enough for a person to tell entries apart.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_checksum_is_the_first_half_of_blake3() {
        // The first bytes of BLAKE3's published hash of nothing: af1349b9 f5f9a1a6 a0404dea 36dcc949.
        let empty = Checksum::of(&[]);
        let hash = 0xaf13_49b9_f5f9_a1a6_a040_4dea_36dc_c949_u128;
        assert_eq!(empty.to_bytes(), hash.to_be_bytes());
        assert_eq!(Checksum::from_bytes(empty.to_bytes()), empty);
        assert_eq!(empty.to_string(), "af1349b9");
    }

    #[test]
    fn pieces_are_kept_apart() {
        let of = Checksum::of_pieces;
        assert_eq!(of(&[b"ab", b"c"]), of(&[b"ab", b"c"]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"abc"]));
        assert_ne!(of(&[b"ab", b""]), of(&[b"ab"]));
        assert_ne!(of(&[b"ab"]), Checksum::of(b"ab"));
        assert_ne!(Checksum::of_chunk(b"ab"), Checksum::of(b"ab"));
        assert_ne!(Checksum::of_chunk(b"ab"), of(&[b"ab"]));
    }
}
