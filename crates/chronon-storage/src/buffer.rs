//! Memory for direct I/O: its start is a multiple of a page, as `O_DIRECT` wants it.

use std::ops::{Deref, Range};
use std::sync::Arc;

const ALIGNMENT: usize = 4096;

/// Bytes that start at a page. The allocation has slack in front, so that no unsafe code is needed.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeros.
    pub(crate) fn zeroed(length: usize) -> Buffer {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT);
        Buffer { memory, start, length }
    }

    /// Memory of this length to write into: what was there if nobody else holds it and it is large enough, or new
    /// zeros in its place. Contents are whatever was there.
    pub(crate) fn renew(buffer: &mut Arc<Buffer>, length: usize) -> &mut [u8] {
        if Arc::get_mut(buffer).is_none() {
            *buffer = Arc::new(Buffer::zeroed(length));
        }
        Arc::get_mut(buffer).expect("it is free, or was just made").resized(length)
    }

    /// Memory of this length to write into: what was there if it is large enough, or new zeros in its place. Contents are
    /// whatever was there.
    pub(crate) fn resized(&mut self, length: usize) -> &mut [u8] {
        if self.memory.len() < length + ALIGNMENT {
            *self = Buffer::zeroed(length);
        }
        self.length = length;
        self.as_mut()
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

/// A part of a buffer that a job writes. Cheap to clone; the memory is used again once every clone is gone.
#[derive(Clone, Debug)]
pub struct Bytes {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Bytes {
    pub(crate) fn new(buffer: Arc<Buffer>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end);
        assert!(range.end <= buffer.len());
        Bytes { buffer, range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_at_a_page_and_is_used_again_only_when_nobody_holds_it() {
        for length in [0, 1, 512, 4096, 70_000] {
            let buffer = Buffer::zeroed(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        }
        let mut buffer = Arc::new(Buffer::zeroed(8192));
        let address = buffer.as_ptr();
        let held = Arc::clone(&buffer);
        assert_eq!(Buffer::renew(&mut buffer, 4096).len(), 4096);
        assert_ne!(buffer.as_ptr(), address);
        assert_eq!(held.as_ptr(), address);
        drop(held);
        let address = buffer.as_ptr();
        assert_eq!(Buffer::renew(&mut buffer, 512).len(), 512);
        assert_eq!(buffer.as_ptr(), address);
        assert_eq!(Buffer::renew(&mut buffer, 8192).len(), 8192);
    }
}
