//! The network between replicas, in the test's hands: one proxy for each direction of each link, which passes whole
//! messages on, loses them, or keeps them until later.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use chronon_vsr::{ClusterId, MESSAGE_HEADER_SIZE, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a direction does with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    Lose,
    /// Chunks of a state are lost, but not the list that names them.
    LoseChunks,
    /// The same, and the first one that comes is passed on, as often as it comes.
    PassOneChunk,
}

/// A message that brings a part of a state: `docs/format.md`.
const CHUNK: u8 = 20;

/// What a direction has passed on while it lost chunks.
#[derive(Debug, Default)]
struct Passed(Option<[u8; 16]>);

impl Passed {
    /// Whether this message goes on.
    fn on(&mut self, mode: Mode, message: &[u8]) -> bool {
        let (header, body) = message.split_at(MESSAGE_HEADER_SIZE);
        let is_part = header[78] == CHUNK && !body.starts_with(b"CHRONLST");
        let name: [u8; 16] = header[80..96].try_into().unwrap();
        match mode {
            Mode::Pass => true,
            Mode::Lose => false,
            Mode::LoseChunks => !is_part,
            Mode::PassOneChunk => !is_part || *self.0.get_or_insert(name) == name,
        }
    }
}

/// Every direction between so many replicas.
#[derive(Debug)]
pub(crate) struct Links {
    directions: BTreeMap<(u8, u8), (SocketAddr, watch::Sender<Mode>)>,
    // Ends with the test.
    _proxies: JoinSet<()>,
}

impl Links {
    /// Proxies in front of these peer ports.
    pub(crate) async fn new(cluster: ClusterId, ports: &[SocketAddr]) -> Links {
        let mut directions = BTreeMap::new();
        let mut proxies = JoinSet::new();
        for (to, port) in (0..).zip(ports) {
            for from in (0..).take(ports.len()).filter(|from| *from != to) {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let (sender, mode) = watch::channel(Mode::Pass);
                directions.insert((from, to), (listener.local_addr().unwrap(), sender));
                proxies.spawn(proxy(listener, *port, mode, cluster));
            }
        }
        Links { directions, _proxies: proxies }
    }

    /// Where `from` dials to reach `to`.
    pub(crate) fn address(&self, from: u8, to: u8) -> SocketAddr {
        self.directions[&(from, to)].0
    }

    /// What happens from now on to messages from one replica to another.
    pub(crate) fn set(&self, from: u8, to: u8, mode: Mode) {
        self.directions[&(from, to)].1.send_replace(mode);
    }

    /// What happens from now on to messages to this replica.
    pub(crate) fn set_all_to(&self, replica: u8, mode: Mode) {
        for (from, to) in self.directions.keys().filter(|(_, to)| *to == replica) {
            self.set(*from, *to, mode);
        }
    }

    /// Loses everything between this replica and all others; or nothing any more.
    pub(crate) fn set_all_of(&self, replica: u8, mode: Mode) {
        for (from, to) in self.directions.keys() {
            if *from == replica || *to == replica {
                self.set(*from, *to, mode);
            }
        }
    }
}

async fn proxy(listener: TcpListener, port: SocketAddr, mode: watch::Receiver<Mode>, cluster: ClusterId) {
    let mut connections = JoinSet::new();
    loop {
        let (inbound, _) = listener.accept().await.unwrap();
        let mode = mode.clone();
        // Either side ends both: what a peer sees of a process that died is a connection that ended.
        connections.spawn(async move { drop(relay(inbound, port, mode, cluster).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(
    inbound: TcpStream,
    port: SocketAddr,
    mode: watch::Receiver<Mode>,
    cluster: ClusterId,
) -> io::Result<()> {
    let outbound = TcpStream::connect(port).await?;
    inbound.set_nodelay(true)?;
    outbound.set_nodelay(true)?;
    let (from, _back) = inbound.into_split();
    let (mut answers, mut to) = outbound.into_split();
    let mut from = tokio::io::BufReader::with_capacity(1 << 16, from);
    let forward = async {
        let mut header = [0; MESSAGE_HEADER_SIZE];
        let mut message = Vec::new();
        let mut passed = Passed::default();
        loop {
            from.read_exact(&mut header).await?;
            let size =
                Message::size(&header, cluster).map_err(|error| io::Error::other(format!("{error:?}")))?;
            message.clear();
            message.extend_from_slice(&header);
            message.resize(size, 0);
            from.read_exact(&mut message[MESSAGE_HEADER_SIZE..]).await?;
            let mode = *mode.borrow();
            if passed.on(mode, &message) {
                to.write_all(&message).await?;
            }
        }
    };
    let mut scrap = [0; 64];
    tokio::select! {
        ended = forward => ended,
        ended = answers.read(&mut scrap) => ended.map(drop),
    }
}
