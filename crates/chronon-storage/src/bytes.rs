//! Little-endian fields, written one after another and read back with every bound checked.

/// Writes fields into memory that the caller sized for all of them.
pub(crate) struct Writer<'a> {
    rest: &'a mut [u8],
    written: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Writer<'a> {
        Writer { rest: bytes, written: 0 }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let (here, after) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.rest = after;
        self.written += bytes.len();
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        let (here, after) = std::mem::take(&mut self.rest).split_at_mut(count);
        here.fill(0);
        self.rest = after;
        self.written += count;
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    /// Zeros to the end.
    pub(crate) fn finish(mut self) {
        let left = self.rest.len();
        self.zeros(left);
    }
}

/// Reads fields. None once the bytes run out.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, after) = self.rest.split_first_chunk()?;
        self.rest = after;
        Some(*first)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// Whether every byte left is zero.
    pub(crate) fn only_zeros_left(&self) -> bool {
        self.rest.iter().all(|byte| *byte == 0)
    }

    /// The next bytes must be zero.
    pub(crate) fn zeros(&mut self, count: usize) -> Option<()> {
        let (here, after) = self.rest.split_at_checked(count)?;
        self.rest = after;
        here.iter().all(|byte| *byte == 0).then_some(())
    }
}
