//! The way out: a stream that asks the gate before its first byte and remembers whether one left.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::GateHandle;

/// Whether anything left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, and from now on nothing will.
    Nothing,
    /// Nothing: the gate was closed when the first byte wanted out.
    GateClosed,
    /// At least one byte was handed to the operating system: the sink may see it.
    Something,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untouched,
    GateClosed,
    Open,
    Shut,
}

/// One attempt's way out. Shared by the stream and by the attempt that judges the end.
#[derive(Clone, Debug)]
pub(super) struct Passage {
    gate: GateHandle,
    state: Arc<Mutex<State>>,
}

impl Passage {
    pub(super) fn new(gate: GateHandle) -> Passage {
        Passage { gate, state: Arc::new(Mutex::new(State::Untouched)) }
    }

    /// Ends the passage and says what left. A connection that is being torn down on another thread can write no more
    /// after this: an end that was judged definite stays definite.
    pub(super) fn shut(&self) -> Left {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Untouched | State::Shut => {
                *state = State::Shut;
                Left::Nothing
            }
            State::GateClosed => Left::GateClosed,
            State::Open => Left::Something,
        }
    }
}

/// A stream whose writes go through a passage.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    passage: Passage,
    failed_write: FailedWrite,
}

/// What a write that failed may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailedWrite {
    SentNothing,
    MayHaveSent,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, passage: Passage) -> Guarded<S> {
        Guarded { stream, passage, failed_write: FailedWrite::SentNothing }
    }

    /// Around a stream that takes bytes in before it sends them, as TLS does: a write that fails may have sent some.
    #[cfg(feature = "tls")]
    pub(super) fn above_a_buffer(stream: S, passage: Passage) -> Guarded<S> {
        Guarded { stream, passage, failed_write: FailedWrite::MayHaveSent }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Guarded { stream, passage, failed_write } = &mut *self;
        // The lock is held over the write, which does not block: nobody may judge the end between the look and the
        // leap.
        let mut state = passage.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::GateClosed | State::Shut => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            State::Open => {}
            State::Untouched => {
                if !passage.gate.passes() {
                    *state = State::GateClosed;
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
        let written = Pin::new(stream).poll_write(cx, bytes);
        let sent = match &written {
            Poll::Ready(Ok(count)) => 0 < *count,
            Poll::Ready(Err(_)) => *failed_write == FailedWrite::MayHaveSent,
            Poll::Pending => false,
        };
        if sent && *state == State::Untouched {
            *state = State::Open;
            passage.gate.left();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_passage_that_was_judged_empty_lets_nothing_out_any_more() {
        let (near, _far) = tokio::io::duplex(64);
        let passage = Passage::new(GateHandle::new(|| true));
        let mut stream = Guarded::new(near, passage.clone());
        assert_eq!(passage.shut(), Left::Nothing);
        assert!(stream.write(b"x").await.is_err());
        assert_eq!(passage.shut(), Left::Nothing);
    }

    /// Writes twice through a gate that passes the first `open` looks. How often was it looked at, and what was late?
    async fn looks_and_late(open: u32) -> (u32, u32) {
        let (near, _far) = tokio::io::duplex(64);
        let counts = Arc::new(Mutex::new((0, 0)));
        let (looks, late) = (counts.clone(), counts.clone());
        let gate = GateHandle::new(move || {
            let mut counts = looks.lock().unwrap();
            counts.0 += 1;
            counts.0 <= open
        });
        let gate = gate.on_late(move || late.lock().unwrap().1 += 1);
        let passage = Passage::new(gate);
        let mut stream = Guarded::new(near, passage.clone());
        stream.write_all(b"a").await.unwrap();
        stream.write_all(b"b").await.unwrap();
        assert_eq!(passage.shut(), Left::Something);
        *counts.lock().unwrap()
    }

    #[tokio::test]
    async fn the_gate_is_asked_before_the_first_byte_and_no_later_byte_is_held_back() {
        assert_eq!(looks_and_late(2).await, (2, 0));
    }

    #[tokio::test]
    async fn a_first_byte_that_left_while_the_gate_closed_is_told_once() {
        assert_eq!(looks_and_late(1).await, (2, 1));
    }
}
