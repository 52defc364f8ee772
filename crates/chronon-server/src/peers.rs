//! Between replicas: each dials every other and sends on its own connection; it receives on those that it accepted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronon_vsr::{
    ClusterId, DecodeError, MESSAGE_HEADER_SIZE, Message, Prng, Quorums, Recipients, ReplicaId,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::counters::Counters;
use crate::front::FrontThread;
use crate::stop::guarded;
use crate::wire::{FrameReader, SendQueue};

/// The first pause between two attempts to connect; doubles up to [`PAUSE_MAX`], with ±25 % of jitter.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long an ordinary attempt to connect may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The least time that a peer whose connection was just lost gets to answer a new one.
const REDIAL_PATIENCE_MIN: Duration = Duration::from_millis(20);

/// A connection that lived this long resets the pauses.
const SETTLED: Duration = Duration::from_secs(1);

/// A connection that was accepted and says nothing this long is closed.
const FIRST_MESSAGE_PATIENCE: Duration = Duration::from_secs(10);

/// The connections to every other replica, and those from them.
#[derive(Debug)]
pub(crate) struct Peers {
    me: ReplicaId,
    cluster: ClusterId,
    links: BTreeMap<ReplicaId, Rc<Link>>,
    voters: Vec<ReplicaId>,
    /// The newest connection that each peer sends on: an older one of a process that is gone makes way.
    receiving: RefCell<BTreeMap<ReplicaId, Rc<Notify>>>,
    accepted: Cell<usize>,
    counters: Arc<Counters>,
}

/// The connection to one other replica.
#[derive(Debug)]
struct Link {
    queue: SendQueue,
    /// The time that a connection took to be made: one round trip.
    round_trip: Cell<Duration>,
    connected: Cell<bool>,
}

impl Peers {
    /// Links to these replicas, not yet dialled.
    pub(crate) fn new(
        me: ReplicaId,
        cluster: ClusterId,
        voters: Vec<ReplicaId>,
        all: impl IntoIterator<Item = ReplicaId>,
        (messages_max, bytes_max): (usize, usize),
        counters: Arc<Counters>,
    ) -> Peers {
        let link = || {
            Rc::new(Link {
                queue: SendQueue::new(messages_max, bytes_max),
                round_trip: Cell::new(Duration::ZERO),
                connected: Cell::new(false),
            })
        };
        let links = all.into_iter().filter(|peer| *peer != me).map(|peer| (peer, link())).collect();
        Peers {
            me,
            cluster,
            links,
            voters: voters.into_iter().filter(|peer| *peer != me).collect(),
            receiving: RefCell::default(),
            accepted: Cell::new(0),
            counters,
        }
    }

    /// Queues a message: encoded once, shared by all its recipients.
    pub(crate) fn send(&self, to: Recipients, message: &Message) {
        let bytes = Rc::new(message.encode(self.cluster));
        match to {
            Recipients::One(peer) => self.send_to(peer, &bytes),
            Recipients::Voters => self.voters.iter().for_each(|peer| self.send_to(*peer, &bytes)),
            Recipients::All => self.links.keys().for_each(|peer| self.send_to(*peer, &bytes)),
        }
    }

    fn send_to(&self, peer: ReplicaId, bytes: &Rc<Vec<u8>>) {
        let Some(link) = self.links.get(&peer) else { return };
        self.counters.peer_messages_sent.add();
        let dropped = link.queue.push_dropping_oldest(Rc::clone(bytes));
        self.counters.peer_messages_dropped.add_many(dropped);
    }

    /// How many links are up.
    pub(crate) fn connected(&self) -> usize {
        self.links.values().filter(|link| link.connected.get()).count()
    }

    /// Whether there is a link to a peer.
    pub(crate) fn reaches(&self, peer: ReplicaId) -> bool {
        self.links.get(&peer).is_some_and(|link| link.connected.get())
    }

    /// Whether a primary here reaches as many voters as it takes to commit.
    pub(crate) fn reaches_a_quorum(&self) -> bool {
        let reached = self.voters.iter().filter(|voter| self.reaches(**voter)).count();
        Quorums::of(self.voters.len() + 1).replication <= reached + 1
    }

    /// Dials a peer for ever and sends what is queued for it.
    pub(crate) async fn dial(front: Rc<FrontThread>, peer: ReplicaId, address: String, seed: u64) {
        let Some(link) = front.peers.links.get(&peer).cloned() else { return };
        let mut prng = Prng::new(seed);
        let mut pause = PAUSE_MIN;
        // Set while the last connection was lost and no new one has been tried.
        let mut lost = false;
        loop {
            let patience =
                if lost { REDIAL_PATIENCE_MIN.max(2 * link.round_trip.get()) } else { CONNECT_PATIENCE };
            let dialled = Instant::now();
            match timeout(patience, TcpStream::connect(&address)).await {
                Ok(Ok(stream)) => {
                    link.round_trip.set(dialled.elapsed());
                    info!(%peer, %address, "connected to peer");
                    link.connected.set(true);
                    let connected = Instant::now();
                    let why = link.run(stream).await;
                    link.connected.set(false);
                    lost = true;
                    info!(%peer, %why, "lost the connection to peer");
                    if SETTLED <= connected.elapsed() {
                        pause = PAUSE_MIN;
                        // At once: whether it answers tells a lost connection from a lost process.
                        continue;
                    }
                }
                Ok(Err(_)) | Err(_) => {
                    if std::mem::take(&mut lost) {
                        front.counters.peer_unreachable.add();
                        front.peer_unreachable(peer);
                    }
                }
            }
            let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
            sleep(Duration::from_nanos(prng.between(nanos * 3 / 4, nanos * 5 / 4))).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Accepts connections of peers for ever.
    pub(crate) async fn accept(front: Rc<FrontThread>, listener: TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: what is open goes on.
                    warn!(%error, "can't accept a peer's connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if front.limits.peer_connections_max <= front.peers.accepted.get() {
                front.counters.client_connections_refused.add();
                continue;
            }
            let front = Rc::clone(&front);
            let stop = front.stop.clone();
            tokio::task::spawn_local(guarded(stop, "front", async move {
                front.peers.accepted.set(front.peers.accepted.get() + 1);
                Peers::receive(&front, stream).await;
                front.peers.accepted.set(front.peers.accepted.get() - 1);
            }));
        }
    }

    /// Receives a peer's messages until the connection ends, or must.
    async fn receive(front: &FrontThread, mut stream: TcpStream) {
        let peers = &front.peers;
        let from = stream.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
        let mut reader = FrameReader::default();
        // Who sends here, and how a newer connection of it ends this one.
        let mut sender: Option<(ReplicaId, Rc<Notify>)> = None;
        let replaced = Rc::new(Notify::new());
        loop {
            loop {
                let bytes = match reader
                    .next(|header: &[u8; MESSAGE_HEADER_SIZE]| Message::size(header, peers.cluster))
                {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) => break,
                    Err(error) => return peers.hang_up(&from, &error, sender.as_ref()),
                };
                let message = match Message::decode(bytes, peers.cluster) {
                    Ok(message) => message,
                    Err(
                        error @ (DecodeError::UnknownCommand { .. } | DecodeError::UnknownVersion { .. }),
                    ) => {
                        debug!(%from, ?error, "dropped a message of a newer release");
                        front.counters.peer_messages_unknown.add();
                        continue;
                    }
                    Err(error) => return peers.hang_up(&from, &error, sender.as_ref()),
                };
                match &sender {
                    Some((peer, _)) if *peer == message.from => {}
                    Some(_) => {
                        return peers.hang_up(&from, &"the sender changed its number", sender.as_ref());
                    }
                    None if message.from == peers.me || !peers.links.contains_key(&message.from) => {
                        return peers.hang_up(&from, &"the sender is no peer", None);
                    }
                    None => {
                        let older = peers.receiving.borrow_mut().insert(message.from, Rc::clone(&replaced));
                        if let Some(older) = older {
                            older.notify_one();
                        }
                        sender = Some((message.from, Rc::clone(&replaced)));
                    }
                }
                front.counters.peer_messages_received.add();
                front.message(message);
            }
            let filled = async {
                if sender.is_some() {
                    reader.fill(&mut stream).await
                } else {
                    timeout(FIRST_MESSAGE_PATIENCE, reader.fill(&mut stream)).await.unwrap_or(Ok(0))
                }
            };
            tokio::select! {
                filled = filled => match filled {
                    Ok(0) if reader.holds_part() => {
                        debug!(%from, "a peer's connection ended inside a message");
                        break;
                    }
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                () = replaced.notified() => break,
            }
        }
        peers.forget(sender.as_ref());
    }

    /// Ends a connection because of what came over it. No evidence against the peer: anybody may have sent it.
    fn hang_up(&self, from: &str, why: &dyn std::fmt::Debug, sender: Option<&(ReplicaId, Rc<Notify>)>) {
        warn!(%from, ?why, "bad bytes on the peer port: hanging up");
        self.counters.peer_connections_bad.add();
        self.forget(sender);
    }

    fn forget(&self, sender: Option<&(ReplicaId, Rc<Notify>)>) {
        let Some((peer, mine)) = sender else { return };
        let mut receiving = self.receiving.borrow_mut();
        if receiving.get(peer).is_some_and(|newest| Rc::ptr_eq(newest, mine)) {
            receiving.remove(peer);
        }
    }
}

impl Link {
    /// Sends until the connection ends, and says why it did.
    async fn run(&self, mut stream: TcpStream) -> String {
        if let Err(error) = stream.set_nodelay(true) {
            return error.to_string();
        }
        let (mut read, mut write) = stream.split();
        // Nothing is ever said on this side of it; the read is there to notice the end.
        let ended = async {
            let mut scrap = [0; 256];
            loop {
                match read.read(&mut scrap).await {
                    Ok(0) => return "closed by the peer".to_owned(),
                    Ok(_) => {}
                    Err(error) => return error.to_string(),
                }
            }
        };
        tokio::select! {
            why = ended => why,
            error = self.queue.write_to(&mut write) => error.to_string(),
        }
    }
}
