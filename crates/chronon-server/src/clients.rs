//! The client port: the binary protocol of `chronon_kernel`, many requests under way on each connection.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use chronon_kernel::{
    Answer, Busy, CLIENT_PROTOCOL_VERSION, ClientFrame, FRAME_HEADER_SIZE, FrameError, NotExecuted,
    ServerFrame, frame_size,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::front::{FrontThread, Waiter};
use crate::stop::guarded;
use crate::wire::{FrameReader, SendQueue};

/// How long a client that is told Goodbye may take to read it.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// When a client that is told Busy may come again.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    queue: SendQueue,
    outstanding: Cell<usize>,
    cut_off: Notify,
}

impl Connection {
    /// Answers a request.
    pub(crate) fn answer(&self, ticket: u64, answer: Answer) {
        self.outstanding.set(self.outstanding.get().saturating_sub(1));
        self.send(&ServerFrame::Answer { ticket, answer });
    }

    fn send(&self, frame: &ServerFrame) {
        if self.queue.push(Rc::new(frame.encode())).is_err() {
            // It asks and does not read: its memory is ours until it goes.
            self.cut_off.notify_one();
        }
    }
}

/// Accepts clients for ever.
pub(crate) async fn accept(front: Rc<FrontThread>, listener: TcpListener) {
    let connections = Rc::new(Cell::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "can't accept a client's connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if front.limits.client_connections_max <= connections.get() {
            front.counters.client_connections_refused.add();
            continue;
        }
        front.counters.client_connections.add();
        let (front, connections) = (Rc::clone(&front), Rc::clone(&connections));
        let stop = front.stop.clone();
        tokio::task::spawn_local(guarded(stop, "front", async move {
            connections.set(connections.get() + 1);
            serve(&front, stream).await;
            connections.set(connections.get() - 1);
        }));
    }
}

async fn serve(front: &FrontThread, mut stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let limits = &front.limits;
    let connection = Rc::new(Connection {
        // Twice as many pieces as answers can be due, for what is no answer.
        queue: SendQueue::new(2 * limits.client_outstanding_max + 2, limits.client_unread_bytes_max),
        outstanding: Cell::new(0),
        cut_off: Notify::new(),
    });
    let (mut read, mut write) = stream.split();
    let ended = tokio::select! {
        ended = listen(front, &connection, &mut read) => ended,
        error = connection.queue.write_to(&mut write) => End::Gone(error.to_string()),
        () = connection.cut_off.notified() => End::Slow,
    };
    match ended {
        End::Gone(why) => debug!(%why, "a client's connection ended"),
        End::Slow => {
            front.counters.client_connections_slow.add();
            debug!("cut off a client that does not read its answers");
        }
        End::Goodbye(why) => {
            front.counters.client_connections_bad.add();
            debug!(%why, "said goodbye to a client");
            connection.send(&ServerFrame::Goodbye { why });
            // A client that does not even read this is owed nothing more.
            let _ = timeout(GOODBYE_PATIENCE, connection.queue.flush_to(&mut write)).await;
        }
    }
}

/// Why a connection ends.
enum End {
    /// The client left, or the network did.
    Gone(String),
    /// The client does not read.
    Slow,
    /// The client is told why and left.
    Goodbye(String),
}

async fn listen(
    front: &FrontThread,
    connection: &Rc<Connection>,
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> End {
    let mut reader = FrameReader::default();
    let mut welcome = false;
    loop {
        loop {
            let frame = match reader.next(|header: &[u8; FRAME_HEADER_SIZE]| frame_size(header)) {
                Ok(Some(bytes)) => ClientFrame::decode(bytes),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return End::Goodbye(explain(error)),
            };
            if let ClientFrame::Hello { version, cluster } = frame {
                if version != CLIENT_PROTOCOL_VERSION {
                    return End::Goodbye(format!(
                        "this replica speaks version {CLIENT_PROTOCOL_VERSION} of the client protocol, not {version}"
                    ));
                }
                let mine = front.cluster.value();
                if let Some(cluster) = cluster
                    && cluster != mine
                {
                    return End::Goodbye(format!("this is cluster {mine:032x}, not {cluster:032x}"));
                }
                welcome = true;
                connection.send(&ServerFrame::Welcome { cluster: mine, replica: front.me.value() });
                continue;
            }
            if !welcome {
                return End::Goodbye("the first frame of a connection is Hello".to_owned());
            }
            handle(front, connection, frame);
        }
        let patience = if welcome { front.limits.client_idle_max } else { front.limits.client_hello_max };
        match timeout(patience, reader.fill(stream)).await {
            Ok(Ok(0)) if reader.holds_part() => return End::Gone("it ended inside a frame".to_owned()),
            Ok(Ok(0)) => return End::Gone("closed by the client".to_owned()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return End::Gone(error.to_string()),
            Err(_) if connection.outstanding.get() == 0 => {
                return End::Goodbye(format!("nothing was said for {} s", patience.as_secs()));
            }
            Err(_) => {}
        }
    }
}

fn explain(error: FrameError) -> String {
    format!("{error}; the connection ends here")
}

/// Takes one request. Every one gets exactly one answer, unless the connection ends first.
fn handle(front: &FrontThread, connection: &Rc<Connection>, frame: ClientFrame) {
    match frame {
        ClientFrame::Hello { .. } => {}
        ClientFrame::Status { ticket } => {
            let status = front.status_json();
            connection.send(&ServerFrame::Status { ticket, status });
        }
        ClientFrame::Submit { ticket, timeout, request } => {
            if let Err(busy) = reserve(front, connection) {
                return connection.send(&ServerFrame::Answer { ticket, answer: busy });
            }
            let waiter = Waiter::Client { connection: Rc::clone(connection), ticket };
            match front.admission.admit(request) {
                Ok(admitted) => front.submit(waiter, admitted, timeout),
                Err(why) => waiter.answer(Answer::NotExecuted(why)),
            }
        }
        ClientFrame::Query { ticket, timeout, consistency, query } => {
            if let Err(busy) = reserve(front, connection) {
                return connection.send(&ServerFrame::Answer { ticket, answer: busy });
            }
            let waiter = Waiter::Client { connection: Rc::clone(connection), ticket };
            front.query(waiter, query, consistency, timeout);
        }
    }
}

fn reserve(front: &FrontThread, connection: &Connection) -> Result<(), Answer> {
    if front.limits.client_outstanding_max <= connection.outstanding.get() {
        let why = NotExecuted::Busy { busy: Busy::QueueFull, retry_after: RETRY_AFTER };
        return Err(Answer::NotExecuted(why));
    }
    connection.outstanding.set(connection.outstanding.get() + 1);
    Ok(())
}
