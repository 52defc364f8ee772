//! A machine's state as the kernel sees it: something that can be copied in constant time, written out, and asked
//! what was written to it.

use core::ops::ControlFlow;

use serde::Serialize;

pub use chronon_derive::State;

use crate::chunk::{ChunkReader, ChunkWriter, RestoreError};

/// A machine's state: a struct of [`crate::Table`], [`crate::Set`] and [`crate::Cell`] fields, through
/// `#[derive(State)]`. A clone costs the same however much is in it.
pub trait State: Clone + Send + Sync + 'static {
    /// Which chunks the state was written as: what the next write compares with.
    type Written: Send + Sync + 'static;

    /// The fields' names, in order.
    const TABLES: &'static [&'static str];

    /// A digest of what was written since this was asked last. Equal writes in equal order give equal digests.
    fn drain_writes(&mut self) -> u64;

    /// Writes the whole state. `before`: an earlier state and its chunks; what is as it was then is not written again.
    /// Equal states give equal chunks.
    fn write(
        &self,
        before: Option<(&Self, &Self::Written)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Self::Written>;

    /// Reads what [`State::write`] wrote.
    fn read(chunks: &mut ChunkReader<'_>) -> Result<Self, RestoreError>;
}

/// What may be a field of a [`State`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a field of a `State`",
    label = "not a `Table`, `Set` or `Cell`",
    note = "keep keyed records in a `Table<K, V>`, members in a `Set<K>` and single values in a `Cell<T>`: these can be rolled back, compared between replicas and checkpointed"
)]
pub trait StateField: Clone + Send + Sync + 'static {
    /// As [`State::Written`].
    type Written: Send + Sync + 'static;
    /// As [`State::drain_writes`].
    fn drain_writes(&mut self) -> u64;
    /// As [`State::write`].
    fn write(
        &self,
        before: Option<(&Self, &Self::Written)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Self::Written>;
    /// As [`State::read`]; `name` is the field's.
    fn read(name: &'static str, chunks: &mut ChunkReader<'_>) -> Result<Self, RestoreError>;
}

/// Folds words and bytes into 64 bits, in order. It tells replicas that differ by a bug apart; it is no defence
/// against somebody who looks for collisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold(u64);

impl Fold {
    /// Nothing folded yet.
    pub const EMPTY: Fold = Fold(0);

    /// Goes on from an earlier value.
    pub const fn from_value(value: u64) -> Fold {
        Fold(value)
    }

    /// What was folded so far.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// Folds a word.
    pub const fn word(&mut self, word: u64) {
        // Multiply and xor the halves (as wyhash does); the odd constants keep zeros from vanishing.
        let product = (self.0.rotate_left(29) ^ word ^ 0x9e37_79b9_7f4a_7c15) as u128
            * (word ^ 0xe703_7ed1_a0b4_28db | 1) as u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(17);
    }

    /// Folds bytes and their count.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut words = Words::of(self);
        words.extend(bytes);
        words.finish();
    }

    /// Folds a value through its encoding, without allocating.
    ///
    /// # Panics
    ///
    /// If the value has no encoding. Within a command that aborts it, on every replica: nothing that can't be
    /// checkpointed ever gets into a table.
    pub fn encoded<T: Serialize + ?Sized>(&mut self, value: &T) {
        let mut words = Words::of(self);
        let written = postcard::serialize_with_flavor(value, Flavor(&mut words));
        words.finish();
        if let Err(why) = written {
            panic!("a value can't be encoded: {why}");
        }
    }
}

/// Packs bytes into words before they are folded.
struct Words<'a> {
    fold: &'a mut Fold,
    word: [u8; 8],
    filled: usize,
    count: u64,
}

impl<'a> Words<'a> {
    fn of(fold: &'a mut Fold) -> Words<'a> {
        Words { fold, word: [0; 8], filled: 0, count: 0 }
    }

    fn push(&mut self, byte: u8) {
        self.word[self.filled] = byte;
        self.filled += 1;
        self.count += 1;
        if self.filled == 8 {
            self.fold.word(u64::from_le_bytes(self.word));
            self.filled = 0;
        }
    }

    fn extend(&mut self, mut bytes: &[u8]) {
        while self.filled != 0 {
            let Some((byte, rest)) = bytes.split_first() else { return };
            self.push(*byte);
            bytes = rest;
        }
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.fold.word(u64::from_le_bytes(chunk.try_into().expect("chunks_exact gives eight")));
            self.count += 8;
        }
        for byte in chunks.remainder() {
            self.push(*byte);
        }
    }

    fn finish(mut self) {
        if self.filled != 0 {
            self.word[self.filled..].fill(0);
            self.fold.word(u64::from_le_bytes(self.word));
            self.filled = 0;
        }
        self.fold.word(self.count);
    }
}

struct Flavor<'a, 'b>(&'a mut Words<'b>);

impl postcard::ser_flavors::Flavor for Flavor<'_, '_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(parts: &[&[u8]]) -> u64 {
        let mut fold = Fold::EMPTY;
        for part in parts {
            fold.bytes(part);
        }
        fold.value()
    }

    #[test]
    fn order_borders_and_length_of_what_is_folded_matter() {
        assert_ne!(folded(&[b"a", b"b"]), folded(&[b"b", b"a"]));
        assert_ne!(folded(&[b"ab", b"c"]), folded(&[b"a", b"bc"]));
        assert_ne!(folded(&[b"a"]), folded(&[b"a\0"]));
        assert_ne!(folded(&[]), folded(&[b""]));
        let mut zeros = std::collections::BTreeSet::new();
        for count in 0..100 {
            assert!(zeros.insert(folded(&[&vec![0; count]])), "{count} zeros collide with fewer");
        }
    }

    #[test]
    fn an_encoded_value_folds_as_its_bytes() {
        let value = (7_u8, String::from("a text of some length"), vec![1_u32, 70_000, 3]);
        let mut one = Fold::EMPTY;
        one.encoded(&value);
        let mut other = Fold::EMPTY;
        other.bytes(&postcard::to_allocvec(&value).unwrap());
        assert_eq!(one, other);
    }
}
