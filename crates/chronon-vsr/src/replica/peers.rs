//! What is known of the other replicas: who they are, whether they live, and what they once showed (§7).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::{Part, Replica};
use crate::event::{DropReason, PeerRefusal, Suspicion};
use crate::{
    Checkpoint, DiskId, Duration, Event, Identity, Incarnation, Instant, Message, Op, Payload, PeerMemory,
    ReplicaId, Timestamp,
};

/// All other members.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    peers: BTreeMap<ReplicaId, Peer>,
    pub(crate) ping_at: Instant,
}

#[derive(Clone, Debug)]
struct Peer {
    /// What it last showed of itself, in this or an earlier run of ours.
    memory: Option<PeerMemory>,
    /// The incarnation whose identity was checked. Nothing but Ping and Pong is taken from another.
    verified: Option<Incarnation>,
    /// The start that was refused last.
    refused: Option<Incarnation>,
    heard: Instant,
    /// Its connection was lost and can't be made again; nothing was heard since.
    gone: bool,
    pinged: Option<Instant>,
    round_trip: Duration,
    /// The durable checkpoint that it last showed.
    offer: Option<Checkpoint>,
}

// For a search that tells states apart. What a peer once showed only refuses disks that were restored.
#[cfg(test)]
impl core::hash::Hash for Peers {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        for Peer { verified, refused, gone, .. } in self.peers.values() {
            (verified, refused, gone).hash(state);
        }
    }
}

impl Peers {
    pub(crate) fn new(
        members: impl Iterator<Item = ReplicaId>,
        memories: &[PeerMemory],
        now: Instant,
    ) -> Peers {
        let peer = |replica| Peer {
            memory: memories.iter().find(|memory| memory.replica == replica).copied(),
            verified: None,
            refused: None,
            heard: now,
            gone: false,
            pinged: None,
            round_trip: Duration::ZERO,
            offer: None,
        };
        Peers { peers: members.map(|replica| (replica, peer(replica))).collect(), ping_at: now }
    }

    pub(crate) fn memories(&self) -> Vec<PeerMemory> {
        self.peers.values().filter_map(|peer| peer.memory).collect()
    }

    /// The longest measured round trip.
    pub(crate) fn round_trip(&self) -> Duration {
        self.peers.values().map(|peer| peer.round_trip).max().unwrap_or(Duration::ZERO)
    }

    /// Counts everybody who was heard of late as heard now.
    pub(crate) fn forgive(&mut self, now: Instant) {
        for peer in self.peers.values_mut().filter(|peer| !peer.gone) {
            peer.heard = now;
        }
    }

    /// Whether a peer was heard within `window`.
    pub(crate) fn is_heard(&self, peer: ReplicaId, now: Instant, window: Duration) -> bool {
        self.peers.get(&peer).is_some_and(|peer| !peer.gone && now.since(peer.heard) < window)
    }

    pub(crate) fn is_gone(&self, peer: ReplicaId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.gone)
    }

    /// The checkpoint that a peer offers.
    pub(crate) fn offer(&self, peer: ReplicaId) -> Option<Checkpoint> {
        self.peers.get(&peer).and_then(|peer| peer.offer)
    }

    /// The checkpoints that peers offer.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (ReplicaId, Checkpoint)> + '_ {
        self.peers.iter().filter_map(|(replica, peer)| Some((*replica, peer.offer?)))
    }

    /// The start of a peer that is listened to.
    pub(crate) fn incarnation(&self, peer: ReplicaId) -> Option<Incarnation> {
        self.peers.get(&peer).and_then(|peer| peer.verified)
    }

    pub(crate) fn note_offer(&mut self, peer: ReplicaId, checkpoint: Checkpoint) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.offer = Some(checkpoint);
        }
    }

    /// Remembers that a peer acked an op that is committed: it will never show less.
    pub(crate) fn note_acked(&mut self, peer: ReplicaId, op: Op) {
        if let Some(memory) = self.peers.get_mut(&peer).and_then(|peer| peer.memory.as_mut()) {
            memory.acked = memory.acked.max(op);
        }
    }
}

impl Replica {
    /// The door for messages: lets through what a known, verified, present incarnation of a member says.
    pub(super) fn admit(&mut self, message: Message) -> Option<Message> {
        let now = self.now.monotonic;
        let from = message.from;
        let Some(peer) = self.peers.peers.get_mut(&from) else {
            self.dropped(from, &message.payload, DropReason::NotAMember);
            return None;
        };
        if message.stamp.epoch != self.membership.epoch {
            self.dropped(from, &message.payload, DropReason::OtherEpoch);
            return None;
        }
        if !is_sane(&message) {
            self.dropped(from, &message.payload, DropReason::Inconsistent);
            return None;
        }
        let identity = match &message.payload {
            Payload::Ping { identity, .. } | Payload::Pong { identity, .. } => Some(*identity),
            _ => None,
        };
        let bound = self.membership.member(from).map(|member| member.disk);
        if let Some(identity) = identity
            && let Some(why) = refusal_of(bound, &peer.memory, &message, identity)
        {
            self.refuse(&message, identity, why);
            return None;
        }
        // A message of an earlier start, late: no evidence against anybody, and no use.
        let known = peer.memory.map(|memory| memory.incarnation);
        if known.is_some_and(|known| message.incarnation.count() < known.count()) {
            self.dropped(from, &message.payload, DropReason::PeerRefused);
            return None;
        }
        if let Some(identity) = identity {
            let acked = peer.memory.map_or(Op::ROOT, |memory| memory.acked);
            peer.verified = Some(message.incarnation);
            peer.memory = Some(PeerMemory {
                replica: from,
                disk: identity.disk,
                incarnation: message.incarnation,
                stamp: peer.memory.map_or(message.stamp, |memory| memory.stamp.max(message.stamp)),
                acked,
            });
        } else if peer.verified != Some(message.incarnation) {
            // A disk that nobody knows under a known number must not vote: first it says who it is.
            let ask = peer.pinged.is_none_or(|at| at + self.options.timing.heartbeat < now);
            if ask {
                self.ping(from);
            }
            self.dropped(from, &message.payload, DropReason::PeerRefused);
            return None;
        }
        if let Some(memory) = &mut peer_of(&mut self.peers, from).memory {
            memory.stamp = memory.stamp.max(message.stamp);
        }
        let window = self.options.timing.ping * 2;
        let peer = peer_of(&mut self.peers, from);
        let is_back = peer.gone || window < now.since(peer.heard);
        peer.heard = now;
        peer.gone = false;
        if is_back {
            self.view_changes_may_work_again();
        }
        Some(message)
    }

    /// Tells a start that it is not listened to: whoever reads the other side's log must not wonder at the silence.
    fn refuse(&mut self, message: &Message, identity: Identity, why: PeerRefusal) {
        let Message { from, incarnation, .. } = *message;
        let peer = peer_of(&mut self.peers, from);
        let is_new = peer.refused != Some(incarnation);
        match why {
            // Perhaps it is only late: then nobody is left who would read the answer.
            PeerRefusal::EarlierStart => {}
            PeerRefusal::OtherDisk | PeerRefusal::RemembersLess | PeerRefusal::TwoStarts if is_new => {
                peer.refused = Some(incarnation);
                self.event(Event::PeerRefused { replica: from, why });
            }
            PeerRefusal::OtherDisk | PeerRefusal::RemembersLess | PeerRefusal::TwoStarts => {}
        }
        self.dropped(from, &message.payload, DropReason::PeerRefused);
        self.send_outside(from, Payload::Refused { disk: identity.disk, incarnation, why });
    }

    /// A peer has seen more of this replica than this directory knows. Others may not have, and would count its votes:
    /// it casts none.
    pub(super) fn on_refused(
        &mut self,
        by: ReplicaId,
        disk: DiskId,
        incarnation: Incarnation,
        why: PeerRefusal,
    ) {
        // What was said to another start, or to another disk, is not meant for this one.
        if disk == self.disk && incarnation == self.incarnation {
            self.event(Event::Refused { by, why });
            self.lose_reads();
            self.part = Part::Halted;
        }
    }

    fn identity(&self) -> Identity {
        // Who can't say what it held, can't say what it acked either.
        let acked = if self.uncertain_from.is_some() { Op::new(u64::MAX) } else { self.log.head().op };
        Identity {
            disk: self.disk,
            acked,
            checkpoint: self.offered_checkpoint(),
            release: self.options.release,
            busy: self.busy_with().unwrap_or(Op::ROOT),
        }
    }

    /// The op that a view change of which this is the primary is busy with.
    fn busy_with(&self) -> Option<Op> {
        match &self.part {
            Part::Changing(changing) => changing.busy_with(),
            Part::Leading(leading) if !leading.announced => Some(self.log.head().op.next()),
            Part::Leading(_) | Part::Following(_) | Part::Recovering(_) | Part::Halted => None,
        }
    }

    pub(super) fn ping(&mut self, to: ReplicaId) {
        let sent = self.now.monotonic;
        peer_of(&mut self.peers, to).pinged = Some(sent);
        let identity = self.identity();
        self.send_outside(to, Payload::Ping { sent, identity });
    }

    pub(super) fn ping_when_due(&mut self) {
        let now = self.now.monotonic;
        if now < self.peers.ping_at {
            return;
        }
        let timing = self.options.timing;
        // Others are patient with a view change that they hear of.
        let interval = if self.busy_with().is_some() {
            timing.ping.min(timing.view_change_patience / 2)
        } else {
            timing.ping
        };
        self.peers.ping_at = now + super::retry::jittered(interval, &mut self.prng);
        let all: Vec<ReplicaId> = self.peers.peers.keys().copied().collect();
        for peer in all {
            self.ping(peer);
        }
    }

    pub(super) fn on_ping(&mut self, from: ReplicaId, sent: Instant, identity: Identity) {
        self.note_busy(from, identity.busy);
        self.note_offer(from, identity.checkpoint);
        let pong = Payload::Pong { ping_sent: sent, wall: self.now.wall, identity: self.identity() };
        self.send_outside(from, pong);
    }

    pub(super) fn on_pong(
        &mut self,
        from: ReplicaId,
        ping_sent: Instant,
        wall: Timestamp,
        identity: Identity,
    ) {
        self.note_busy(from, identity.busy);
        self.note_offer(from, identity.checkpoint);
        let now = self.now.monotonic;
        let peer = peer_of(&mut self.peers, from);
        if peer.pinged != Some(ping_sent) {
            return; // Not the answer to our last question: its round trip measures nothing.
        }
        let sample = now.since(ping_sent);
        peer.round_trip = if peer.round_trip.is_zero() { sample } else { (peer.round_trip * 7 + sample) / 8 };
        if self.membership.is_voter(from) {
            self.clock.sample(from, ping_sent, self.now, wall);
        }
    }

    pub(super) fn on_peer_unreachable(&mut self, peer: ReplicaId) {
        let Some(known) = self.peers.peers.get_mut(&peer) else { return };
        known.gone = true;
        if self.membership.primary(self.stamp) == peer
            && matches!(self.part, Part::Following(_) | Part::Recovering(_) | Part::Changing(_))
        {
            self.vote_to_leave(Suspicion::ConnectionLost);
        }
    }
}

/// Whether a start that says who it is must not be listened to: its disk must be the one that the configuration binds
/// to its number, and it must show at least what earlier starts did. A start that is known shows less only in messages
/// that are late.
fn refusal_of(
    bound: Option<DiskId>,
    memory: &Option<PeerMemory>,
    message: &Message,
    identity: Identity,
) -> Option<PeerRefusal> {
    if bound.is_some_and(|bound| bound != identity.disk) {
        return Some(PeerRefusal::OtherDisk);
    }
    let memory = memory.as_ref()?;
    if memory.incarnation == message.incarnation {
        return None;
    }
    match message.incarnation.count().cmp(&memory.incarnation.count()) {
        Ordering::Less => Some(PeerRefusal::EarlierStart),
        Ordering::Equal => Some(PeerRefusal::TwoStarts),
        Ordering::Greater => (message.stamp < memory.stamp || identity.acked < memory.acked)
            .then_some(PeerRefusal::RemembersLess),
    }
}

/// Whether the numbers of a message leave room to count on from them. No cluster lives long enough to use half of
/// them up; bytes that say otherwise are not a replica's.
fn is_sane(message: &Message) -> bool {
    let named = match &message.payload {
        Payload::Prepare { commit_max, .. }
        | Payload::Commit { commit_max, .. }
        | Payload::DoViewChange { commit_max, .. }
        | Payload::StartView { commit_max, .. } => commit_max.op,
        Payload::StartViewChange { .. }
        | Payload::PrepareOk { .. }
        | Payload::CommitOk { .. }
        | Payload::GetView { .. }
        | Payload::GetHeaders { .. }
        | Payload::Headers { .. }
        | Payload::GetPrepare { .. }
        | Payload::Repair { .. }
        | Payload::Missing { .. }
        | Payload::Ping { .. }
        | Payload::Pong { .. }
        | Payload::ReadIndex { .. }
        | Payload::ReadIndexOk { .. }
        | Payload::Forward { .. }
        | Payload::GetChunk { .. }
        | Payload::Chunk { .. }
        | Payload::MissingChunk { .. }
        | Payload::Refused { .. } => Op::ROOT,
    };
    named.value() < u64::MAX / 2 && message.stamp.view.value() < u64::MAX / 2
}

fn peer_of(peers: &mut Peers, replica: ReplicaId) -> &mut Peer {
    peers.peers.get_mut(&replica).expect("callers name members")
}
