//! One connection to one replica: many requests under way, answers in any order.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chronon_kernel::{
    Answer, CLIENT_PROTOCOL_VERSION, ClientFrame, Consistency, FRAME_HEADER_SIZE, FRAME_SIZE_MAX, FrameError,
    ServerFrame, Submission, frame_size,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, oneshot};

/// Bounds of one connection. When one is reached a request waits here, before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Requests under way.
    pub outstanding_max: usize,
    /// Bytes of requests under way.
    pub outstanding_bytes_max: usize,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits { outstanding_max: 1_024, outstanding_bytes_max: 16 * 1024 * 1024 }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The operating system said no.
    #[error("{address}: {source}")]
    Network {
        /// Where to.
        address: String,
        /// Its answer.
        source: Arc<io::Error>,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {within:?}")]
    TimedOut {
        /// Where to.
        address: String,
        /// The time.
        within: Duration,
    },
    /// The replica does not want this client: another cluster, another protocol version, no room.
    #[error("{address} refused: {why}")]
    Refused {
        /// Where to.
        address: String,
        /// Its words.
        why: String,
    },
    /// What answers is no replica.
    #[error("{address} does not speak the chronon client protocol: {source}")]
    NotAReplica {
        /// Where to.
        address: String,
        /// What is wrong with its bytes.
        source: FrameError,
    },
}

/// The connection ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The request never left this process.
    #[error("the connection ended before the request was sent")]
    Unsent,
    /// The request may have arrived.
    #[error("the connection ended before an answer came")]
    Unknown,
}

/// A connection. Clones share it; it closes when the last one is gone.
#[derive(Clone, Debug)]
pub struct Connection {
    line: Arc<Line>,
    _closer: Arc<Closer>,
}

#[derive(Debug)]
struct Closer(Arc<Line>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[derive(Debug)]
struct Line {
    cluster: u128,
    replica: u8,
    tickets: AtomicU64,
    requests: Semaphore,
    bytes: Semaphore,
    state: Mutex<State>,
    /// Something to write, or closed.
    wake_writer: Notify,
    /// Closed.
    wake_reader: Notify,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Frames that wait for the writer: they leave with one write.
    out: Vec<u8>,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

#[derive(Debug)]
enum Reply {
    Answer(Answer),
    Status(String),
}

impl Connection {
    /// Connects and says Hello. With a cluster named, a replica of another one refuses.
    pub async fn open(
        address: &str,
        cluster: Option<u128>,
        within: Duration,
        limits: ConnectionLimits,
    ) -> Result<Connection, ConnectError> {
        match tokio::time::timeout(within, open(address, cluster, limits)).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::TimedOut { address: address.to_owned(), within }),
        }
    }

    /// The cluster that the replica belongs to.
    pub fn cluster(&self) -> u128 {
        self.line.cluster
    }

    /// The replica's number.
    pub fn replica(&self) -> u8 {
        self.line.replica
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.line.state().closed
    }

    /// Submits and waits for the answer. Dropping the future gives up waiting, nothing else.
    pub async fn submit(&self, timeout: Duration, request: Submission) -> Result<Answer, Unanswered> {
        let ticket = self.line.draw();
        let frame = ClientFrame::Submit { ticket, timeout, request };
        self.ask_answer(ticket, frame).await
    }

    /// Asks a query and waits for the answer.
    pub async fn query(
        &self,
        timeout: Duration,
        consistency: Consistency,
        query: Vec<u8>,
    ) -> Result<Answer, Unanswered> {
        let ticket = self.line.draw();
        let frame = ClientFrame::Query { ticket, timeout, consistency, query };
        self.ask_answer(ticket, frame).await
    }

    /// The cluster as this replica sees it: JSON text.
    pub async fn status(&self) -> Result<String, Unanswered> {
        let ticket = self.line.draw();
        match self.ask(ticket, ClientFrame::Status { ticket }).await? {
            Reply::Status(status) => Ok(status),
            Reply::Answer(_) => {
                self.line.close();
                Err(Unanswered::Unknown)
            }
        }
    }

    async fn ask_answer(&self, ticket: u64, frame: ClientFrame) -> Result<Answer, Unanswered> {
        match self.ask(ticket, frame).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Status(_) => {
                self.line.close();
                Err(Unanswered::Unknown)
            }
        }
    }

    async fn ask(&self, ticket: u64, frame: ClientFrame) -> Result<Reply, Unanswered> {
        let line = &self.line;
        let frame = frame.encode();
        if FRAME_SIZE_MAX < frame.len() {
            // The replica would hang up on it. Whoever builds requests checks their size first.
            return Err(Unanswered::Unsent);
        }
        let _request = line.requests.acquire().await.map_err(|_| Unanswered::Unsent)?;
        let size = u32::try_from(frame.len()).map_err(|_| Unanswered::Unsent)?;
        let _bytes = line.bytes.acquire_many(size).await.map_err(|_| Unanswered::Unsent)?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = line.state();
            if state.closed {
                return Err(Unanswered::Unsent);
            }
            state.waiting.insert(ticket, sender);
            state.out.extend_from_slice(&frame);
        }
        let _forget = Forget { line, ticket };
        line.wake_writer.notify_one();
        receiver.await.map_err(|_| Unanswered::Unknown)
    }
}

/// Nobody waits for this ticket any more.
struct Forget<'a> {
    line: &'a Line,
    ticket: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.line.state().waiting.remove(&self.ticket);
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    fn close(&self) {
        let waiting = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        // Dropping the senders wakes whoever waits; not under the lock, which they may want.
        drop(waiting);
        self.requests.close();
        self.bytes.close();
        self.wake_writer.notify_one();
        self.wake_reader.notify_one();
    }
}

async fn open(
    address: &str,
    cluster: Option<u128>,
    limits: ConnectionLimits,
) -> Result<Connection, ConnectError> {
    let network =
        |source: io::Error| ConnectError::Network { address: address.to_owned(), source: Arc::new(source) };
    let not_a_replica = |source| ConnectError::NotAReplica { address: address.to_owned(), source };
    let stream = TcpStream::connect(address).await.map_err(network)?;
    stream.set_nodelay(true).map_err(network)?;
    let (read, mut write) = stream.into_split();
    let hello = ClientFrame::Hello { version: CLIENT_PROTOCOL_VERSION, cluster };
    write.write_all(&hello.encode()).await.map_err(network)?;
    let mut frames = Frames::new(read);
    let (cluster, replica) = match frames.next().await {
        Ok(Some(ServerFrame::Welcome { cluster, replica })) => (cluster, replica),
        Ok(Some(ServerFrame::Goodbye { why })) => {
            return Err(ConnectError::Refused { address: address.to_owned(), why });
        }
        Ok(Some(ServerFrame::Answer { .. } | ServerFrame::Status { .. })) => {
            return Err(not_a_replica(FrameError::Unknown));
        }
        Ok(None) => return Err(network(io::ErrorKind::UnexpectedEof.into())),
        Err(FramesError::Network(error)) => return Err(network(error)),
        Err(FramesError::Frame(error)) => return Err(not_a_replica(error)),
    };
    let line = Arc::new(Line {
        cluster,
        replica,
        tickets: AtomicU64::new(1),
        requests: Semaphore::new(limits.outstanding_max),
        bytes: Semaphore::new(limits.outstanding_bytes_max.max(FRAME_SIZE_MAX)),
        state: Mutex::new(State::default()),
        wake_writer: Notify::new(),
        wake_reader: Notify::new(),
    });
    tokio::spawn(write_out(line.clone(), write));
    tokio::spawn(read_in(line.clone(), frames));
    Ok(Connection { _closer: Arc::new(Closer(line.clone())), line })
}

async fn write_out(line: Arc<Line>, mut write: OwnedWriteHalf) {
    let mut batch = Vec::new();
    loop {
        line.wake_writer.notified().await;
        {
            let mut state = line.state();
            if state.closed {
                return;
            }
            std::mem::swap(&mut batch, &mut state.out);
        }
        if write.write_all(&batch).await.is_err() {
            return line.close();
        }
        batch.clear();
        batch.shrink_to(BUFFER_KEPT);
    }
}

async fn read_in(line: Arc<Line>, mut frames: Frames<OwnedReadHalf>) {
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = line.wake_reader.notified() => return,
        };
        let (ticket, reply) = match frame {
            Ok(Some(ServerFrame::Answer { ticket, answer })) => (ticket, Reply::Answer(answer)),
            Ok(Some(ServerFrame::Status { ticket, status })) => (ticket, Reply::Status(status)),
            Ok(Some(ServerFrame::Goodbye { why })) => {
                tracing::debug!(replica = line.replica, why, "the replica ended the connection");
                return line.close();
            }
            Ok(Some(ServerFrame::Welcome { .. }) | None) => return line.close(),
            Err(FramesError::Network(error)) => {
                tracing::debug!(replica = line.replica, %error, "the connection failed");
                return line.close();
            }
            Err(FramesError::Frame(error)) => {
                tracing::warn!(replica = line.replica, %error, "the replica sent what is no frame");
                return line.close();
            }
        };
        let sender = line.state().waiting.remove(&ticket);
        if let Some(sender) = sender {
            // Whoever asked may have gone since.
            let _ = sender.send(reply);
        }
    }
}

/// Bytes of a buffer that are kept for the next frames.
const BUFFER_KEPT: usize = 64 * 1024;

/// Cuts a stream into frames.
struct Frames<R> {
    read: R,
    bytes: Vec<u8>,
    start: usize,
}

enum FramesError {
    Network(io::Error),
    Frame(FrameError),
}

impl<R: AsyncRead + Unpin> Frames<R> {
    fn new(read: R) -> Frames<R> {
        Frames { read, bytes: Vec::with_capacity(BUFFER_KEPT), start: 0 }
    }

    /// The next frame; none at the end of the stream. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Option<ServerFrame>, FramesError> {
        loop {
            let pending = &self.bytes[self.start..];
            if let Some(header) = pending.first_chunk::<FRAME_HEADER_SIZE>() {
                let size = frame_size(header).map_err(FramesError::Frame)?;
                if let Some(frame) = pending.get(..size) {
                    let frame = ServerFrame::decode(frame).map_err(FramesError::Frame)?;
                    self.start += size;
                    return Ok(Some(frame));
                }
            }
            self.bytes.drain(..self.start);
            self.start = 0;
            if self.bytes.is_empty() {
                self.bytes.shrink_to(BUFFER_KEPT);
            }
            self.bytes.reserve(BUFFER_KEPT / 4);
            match self.read.read_buf(&mut self.bytes).await {
                Ok(0) if self.bytes.is_empty() => return Ok(None),
                Ok(0) => return Err(FramesError::Network(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(FramesError::Network(error)),
            }
        }
    }
}
