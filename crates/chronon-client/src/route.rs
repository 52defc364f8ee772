//! Which replica to talk to, and the connections to all of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::{ConnectError, Connection, ConnectionLimits};

/// The replicas that a client knows, and the one that it believes leads.
#[derive(Debug)]
pub(crate) struct Route {
    cluster: Mutex<Option<u128>>,
    connect_timeout: Duration,
    limits: ConnectionLimits,
    peers: Vec<Peer>,
    current: AtomicUsize,
}

#[derive(Debug)]
struct Peer {
    address: String,
    /// Its number, once it told.
    replica: Mutex<Option<u8>>,
    /// Held while connecting: many requests that lost one connection make one new one.
    connection: tokio::sync::Mutex<Link>,
}

#[derive(Debug)]
enum Link {
    None,
    Up(Connection),
    Failed { at: Instant, why: ConnectError },
}

impl Route {
    pub(crate) fn new(
        addresses: Vec<String>,
        cluster: Option<u128>,
        connect_timeout: Duration,
        limits: ConnectionLimits,
    ) -> Route {
        let peers = addresses
            .into_iter()
            .map(|address| Peer {
                address,
                replica: Mutex::new(None),
                connection: tokio::sync::Mutex::new(Link::None),
            })
            .collect();
        Route { cluster: Mutex::new(cluster), connect_timeout, limits, peers, current: AtomicUsize::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// The place of the replica to talk to now.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.peers.len()
    }

    /// That one is of no use now: on to the next. Many may say so of one replica at once; only one step is made.
    pub(crate) fn leave(&self, place: usize) {
        let next = (place + 1) % self.peers.len();
        let _ = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The replica at `place` says that another one leads, or that it does not know.
    pub(crate) fn follow(&self, place: usize, primary: Option<u8>) {
        let told = |peer: &Peer| *peer.replica.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            primary.and_then(|primary| self.peers.iter().position(|peer| told(peer) == Some(primary)));
        match known {
            Some(primary) if primary != place => {
                let _ = self.current.compare_exchange(place, primary, Ordering::Relaxed, Ordering::Relaxed);
            }
            Some(_) | None => self.leave(place),
        }
    }

    /// A connection to the replica at `place`: the one that there is, or a new one.
    pub(crate) async fn connection(&self, place: usize) -> Result<Connection, ConnectError> {
        let peer = &self.peers[place];
        let asked = Instant::now();
        let mut link = peer.connection.lock().await;
        match &*link {
            Link::Up(connection) if !connection.is_closed() => return Ok(connection.clone()),
            // Somebody tried while we waited for the lock: their failure is as good as ours.
            Link::Failed { at, why } if asked <= *at => return Err(why.clone()),
            Link::Up(_) | Link::Failed { .. } | Link::None => {}
        }
        let cluster = *self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        match Connection::open(&peer.address, cluster, self.connect_timeout, self.limits).await {
            Ok(connection) => {
                // From the first answer on it is this cluster and no other, whoever takes over the addresses.
                self.cluster
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(connection.cluster());
                *peer.replica.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.replica());
                *link = Link::Up(connection.clone());
                Ok(connection)
            }
            Err(why) => {
                *link = Link::Failed { at: Instant::now(), why: why.clone() };
                Err(why)
            }
        }
    }
}
