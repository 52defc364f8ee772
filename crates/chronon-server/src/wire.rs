//! What peers and clients have in common: frames out of a byte stream, and a bounded queue of bytes into one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// How many bytes are asked for at once.
const READ_SIZE: usize = 64 * 1024;

/// How many queued pieces go into one write at most.
const PIECES_MAX: usize = 64;

/// Bytes read from a stream, cut into frames. Holds at most one frame and one read.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// Reads some more. Ok(0) is the end of the stream.
    pub(crate) async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            // A rare large frame must not keep its memory for the life of the connection.
            self.buffer.shrink_to(READ_SIZE);
        } else {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
        self.buffer.reserve(READ_SIZE);
        (&mut *stream).take(READ_SIZE as u64).read_buf(&mut self.buffer).await
    }

    /// The next whole frame, if there is one. `size` tells a frame's whole size from its header, or refuses it.
    pub(crate) fn next<const HEADER: usize, E>(
        &mut self,
        size: impl FnOnce(&[u8; HEADER]) -> Result<usize, E>,
    ) -> Result<Option<&[u8]>, E> {
        let rest = &self.buffer[self.start..];
        let Some((header, _)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let size = size(header)?;
        if rest.len() < size {
            return Ok(None);
        }
        let from = self.start;
        self.start += size;
        Ok(Some(&self.buffer[from..from + size]))
    }

    /// Whether the stream ended inside a frame.
    pub(crate) fn holds_part(&self) -> bool {
        self.start < self.buffer.len()
    }
}

/// Bytes waiting to be written to a stream, bounded.
#[derive(Debug)]
pub(crate) struct SendQueue {
    pieces: RefCell<VecDeque<Rc<Vec<u8>>>>,
    bytes: Cell<usize>,
    pieces_max: usize,
    bytes_max: usize,
    filled: Notify,
}

impl SendQueue {
    /// An empty one.
    pub(crate) fn new(pieces_max: usize, bytes_max: usize) -> SendQueue {
        SendQueue {
            pieces: RefCell::default(),
            bytes: Cell::new(0),
            pieces_max,
            bytes_max,
            filled: Notify::new(),
        }
    }

    /// Adds a piece and says how many old ones had to go to make room.
    pub(crate) fn push_dropping_oldest(&self, piece: Rc<Vec<u8>>) -> usize {
        let mut pieces = self.pieces.borrow_mut();
        let mut dropped = 0;
        while !pieces.is_empty()
            && (self.pieces_max <= pieces.len() || self.bytes_max < self.bytes.get() + piece.len())
        {
            if let Some(old) = pieces.pop_front() {
                self.bytes.set(self.bytes.get() - old.len());
                dropped += 1;
            }
        }
        self.bytes.set(self.bytes.get() + piece.len());
        pieces.push_back(piece);
        self.filled.notify_one();
        dropped
    }

    /// Adds a piece, or says that there is no room.
    pub(crate) fn push(&self, piece: Rc<Vec<u8>>) -> Result<(), Full> {
        let mut pieces = self.pieces.borrow_mut();
        if self.pieces_max <= pieces.len() || self.bytes_max < self.bytes.get() + piece.len() {
            return Err(Full);
        }
        self.bytes.set(self.bytes.get() + piece.len());
        pieces.push_back(piece);
        self.filled.notify_one();
        Ok(())
    }

    /// Writes what comes until the stream fails.
    pub(crate) async fn write_to(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Error {
        loop {
            if let Err(error) = self.flush_to(stream).await {
                return error;
            }
            self.filled.notified().await;
        }
    }

    /// Writes what there is.
    pub(crate) async fn flush_to(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut batch: Vec<Rc<Vec<u8>>> = Vec::new();
        loop {
            {
                let mut pieces = self.pieces.borrow_mut();
                let count = pieces.len().min(PIECES_MAX);
                batch.extend(pieces.drain(..count));
                self.bytes.set(self.bytes.get() - batch.iter().map(|piece| piece.len()).sum::<usize>());
            }
            if batch.is_empty() {
                return Ok(());
            }
            let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                let written = stream.write_vectored(rest).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut rest, written);
            }
            drop(slices);
            batch.clear();
        }
    }
}

/// There is no room in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[cfg(test)]
mod tests {
    use super::*;

    fn size(header: &[u8; 1]) -> Result<usize, ()> {
        if header[0] == 0 { Err(()) } else { Ok(usize::from(header[0])) }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn frames_come_out_whole_however_the_bytes_arrive() {
        let stream: Vec<u8> = vec![1, 3, 9, 9, 2, 8];
        for cut in 0..=stream.len() {
            let (head, tail) = stream.split_at(cut);
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for mut part in [head, tail] {
                reader.fill(&mut part).await.unwrap();
                while let Some(frame) = reader.next(size).unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            assert_eq!(seen, [vec![1], vec![3, 9, 9], vec![2, 8]]);
            assert!(!reader.holds_part());
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_queue_drops_the_oldest_or_refuses_the_newest() {
        let queue = SendQueue::new(2, 10);
        for byte in 1..=3 {
            queue.push_dropping_oldest(Rc::new(vec![byte; 4]));
        }
        assert_eq!(queue.push(Rc::new(vec![4])), Err(Full));
        let mut written = Vec::new();
        queue.flush_to(&mut written).await.unwrap();
        assert_eq!(written, [2, 2, 2, 2, 3, 3, 3, 3]);
        assert_eq!(queue.push(Rc::new(vec![4; 10])), Ok(()));
        assert_eq!(queue.push(Rc::new(vec![5])), Err(Full));
    }
}
