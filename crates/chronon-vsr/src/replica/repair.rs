//! Fetching what is missing, by content, from whoever has it (§5.3, §6.5, §7).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::log::{Fork, OnDisk};
use super::normal::UNANSWERED_MAX;
use super::retry::Retry;
use super::{Part, Replica};
use crate::{Entry, EntryHeader, Event, HEADERS_MAX, Instant, Op, OpRef, Payload, ReplicaId};

/// The most entries asked for at a time.
const REQUESTS_MAX: usize = 16;

/// How far above what was executed missing bodies are looked for.
const LOOKAHEAD: u64 = 64;

/// What was asked for and has not come.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct Repairs {
    entries: BTreeMap<OpRef, Request>,
    headers: Option<(OpRef, Request)>,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Hash))]
struct Request {
    retry: Retry,
    /// How many peers were asked so far: the next in turn is asked next.
    asked: usize,
    /// Who said that it has it not.
    denied: BTreeSet<ReplicaId>,
}

impl Repairs {
    pub(crate) fn new() -> Repairs {
        Repairs { entries: BTreeMap::new(), headers: None }
    }

    pub(crate) fn deadline(&self) -> Instant {
        let entries = self.entries.values().map(|request| request.retry.at).min().unwrap_or(Instant::NEVER);
        self.headers.as_ref().map_or(entries, |(_, request)| entries.min(request.retry.at))
    }
}

impl Replica {
    /// Asks for what is wanted now, forgets what no longer is.
    pub(super) fn request_repairs(&mut self) {
        let wanted = self.wanted_entries();
        if !self.repairs.entries.is_empty() {
            self.repairs.entries.retain(|entry, _| wanted.iter().any(|(wanted, _)| wanted == entry));
        }
        let now = self.now.monotonic;
        for (entry, sources) in wanted {
            if !self.repairs.entries.contains_key(&entry) && REQUESTS_MAX <= self.repairs.entries.len() {
                continue;
            }
            let request = self.repairs.entries.entry(entry).or_insert_with(|| Request::new(now));
            if let Some(peer) = request.next_peer(now, &sources, &self.options.timing, &mut self.prng) {
                self.send_outside(peer, Payload::GetPrepare { entry });
            }
        }

        let gap = match &self.part {
            Part::Leading(_) | Part::Following(_) => self.log.gap(),
            Part::Changing(_) | Part::Recovering(_) | Part::Halted => None,
        };
        let Some((top, bottom)) = gap else {
            self.repairs.headers = None;
            return;
        };
        let sources = self.repair_sources();
        let fresh = Request::new(now);
        let (_, request) = match &mut self.repairs.headers {
            Some(asked) if asked.0 == top => asked,
            other => other.insert((top, fresh)),
        };
        if let Some(peer) = request.next_peer(now, &sources, &self.options.timing, &mut self.prng) {
            self.send_outside(peer, Payload::GetHeaders { top, bottom });
        }
    }

    /// The entries that are wanted, most urgent first, and who may have them.
    fn wanted_entries(&self) -> Vec<(OpRef, Vec<ReplicaId>)> {
        match &self.part {
            Part::Changing(changing) => changing.wanted(&self.log),
            Part::Leading(_) | Part::Following(_) => {
                let committed = self.log.committed().op;
                let mut wanted: Vec<OpRef> = Vec::new();
                // What the cluster waits for: our votes.
                // But what the ring has no room for could not be voted for.
                if committed < self.head() && self.has_room(self.log.end_offset()) {
                    wanted.extend(self.log.missing(committed.next(), self.head()));
                }
                // What our own execution waits for.
                let next = self.committed_out.next();
                if next <= committed {
                    wanted.extend(self.log.missing(next, committed.min(next.plus(LOOKAHEAD))));
                }
                let sources = if wanted.is_empty() { Vec::new() } else { self.repair_sources() };
                wanted.into_iter().take(REQUESTS_MAX).map(|entry| (entry, sources.clone())).collect()
            }
            Part::Recovering(_) | Part::Halted => Vec::new(),
        }
    }

    /// Whether everybody who is there has said that it has not what stands at an op of the log, or the headers that
    /// would tell what does.
    pub(super) fn is_nowhere(&self, op: Op) -> bool {
        let linked = self.log.at(op).filter(|_| op <= self.log.executable());
        let request = match linked {
            Some(entry) => self.repairs.entries.get(&entry),
            None => self.repairs.headers.as_ref().map(|(_, request)| request),
        };
        let Some(request) = request else { return false };
        let mut there = self.membership.peers(self.me).filter(|peer| self.is_there(*peer)).peekable();
        there.peek().is_some() && there.all(|peer| request.denied.contains(&peer))
    }

    /// Whether a peer was heard of late.
    pub(super) fn is_there(&self, peer: ReplicaId) -> bool {
        self.peers.is_heard(peer, self.now.monotonic, self.options.timing.ping * 3)
    }

    /// Everybody who may help, the primary first.
    fn repair_sources(&self) -> Vec<ReplicaId> {
        let primary = self.membership.primary(self.stamp);
        let mut sources: Vec<ReplicaId> =
            self.membership.peers(self.me).filter(|peer| !self.peers.is_gone(*peer)).collect();
        if let Some(place) = sources.iter().position(|peer| *peer == primary) {
            sources[..=place].rotate_right(1);
        }
        sources
    }

    pub(super) fn on_get_prepare(&mut self, from: ReplicaId, entry: OpRef) {
        let payload = match self.content(entry) {
            Some(entry) => Payload::Repair { entry: entry.clone() },
            None => Payload::Missing { entry },
        };
        self.send_outside(from, payload);
    }

    /// An entry in the log, or fetched for a log that is about to be adopted.
    fn content(&self, entry: OpRef) -> Option<&Entry> {
        self.log.content(entry).or_else(|| match &self.part {
            Part::Changing(changing) => changing.fetched(entry),
            Part::Leading(_) | Part::Following(_) | Part::Recovering(_) | Part::Halted => None,
        })
    }

    pub(super) fn on_get_headers(&mut self, from: ReplicaId, top: OpRef, bottom: Op) {
        let mut headers: Vec<EntryHeader> = Vec::new();
        let mut want = Some(top);
        while let Some(next) = want
            && bottom <= next.op
            && headers.len() < HEADERS_MAX
        {
            let chained = self.log.header(next.op).filter(|_| self.log.at(next.op) == Some(next));
            let Some(header) = chained.or_else(|| self.content(next).map(Entry::header)) else { break };
            want = header.op.previous().map(|op| OpRef { op, checksum: header.parent });
            headers.push(header.clone());
        }
        self.send_outside(from, Payload::Headers { headers });
    }

    pub(super) fn on_headers(&mut self, from: ReplicaId, headers: Vec<EntryHeader>) {
        let mut learned = false;
        for header in &headers {
            // Each must be the very one that the one above it names; anything else is no answer of use.
            if self.log.learn_header(header) {
                learned = true;
                if let Err(Fork { op }) = self.log.link_down() {
                    return self.halt(op);
                }
            }
        }
        if learned {
            self.repairs.headers = None;
            self.link_commit();
            self.append_unwritten();
            self.tell_truncated();
        } else if let Some((_, request)) = &mut self.repairs.headers
            && headers.is_empty()
        {
            request.denied(from, self.now.monotonic);
        }
    }

    pub(super) fn on_repair(&mut self, from: ReplicaId, entry: Entry) {
        if entry.header().cluster != self.cluster {
            return;
        }
        if let Part::Changing(changing) = &mut self.part {
            if changing.keep_fetched(entry.clone()) {
                changing.give_time(self.now.monotonic);
                self.event(Event::EntryRepaired { entry: entry.op_ref(), from });
            }
            return;
        }
        if self.fill_gap(&entry) {
            return;
        }
        let name = entry.op_ref();
        if self.log.at(name.op) == Some(name) && self.log.content(name).is_none() {
            self.keep_repaired(from, entry);
        }
    }

    /// Takes in a body that the chain names and the log lacked.
    pub(super) fn keep_repaired(&mut self, from: ReplicaId, entry: Entry) {
        let name = entry.op_ref();
        self.repairs.entries.remove(&name);
        self.log.hold(entry, OnDisk::No);
        if let Err(Fork { op }) = self.log.link_down() {
            return self.halt(op);
        }
        if name.op <= self.suffix_head {
            self.append(name.op);
        }
        self.event(Event::EntryRepaired { entry: name, from });
    }

    /// Writes what is here, belongs to the log, and nobody has asked to write yet. What lies above the suffix's head
    /// has its own order.
    pub(super) fn append_unwritten(&mut self) {
        for op in self.log.unwritten(self.suffix_head) {
            self.append(op);
        }
    }

    pub(super) fn on_missing(&mut self, from: ReplicaId, entry: OpRef) {
        if let Part::Changing(changing) = &mut self.part {
            changing.deny(from, entry);
        }
        self.note_gap_missing(entry);
        if let Some(request) = self.repairs.entries.get_mut(&entry) {
            request.denied(from, self.now.monotonic);
        }
    }
}

impl Request {
    fn new(now: Instant) -> Request {
        Request { retry: Retry::now(now), asked: 0, denied: BTreeSet::new() }
    }

    /// Whom to ask now, if it is time to ask.
    fn next_peer(
        &mut self,
        now: Instant,
        sources: &[ReplicaId],
        timing: &super::Timing,
        prng: &mut crate::Prng,
    ) -> Option<ReplicaId> {
        if !self.retry.is_due(now) {
            return None;
        }
        self.retry.done(now, timing.resend_min, UNANSWERED_MAX, prng);
        let peer = sources.get(self.asked.checked_rem(sources.len())?).copied();
        self.asked += 1;
        peer
    }

    /// The peer that was asked does not have it: the next one is asked at once, but each only once a round.
    fn denied(&mut self, from: ReplicaId, now: Instant) {
        self.denied.insert(from);
        if self.asked < crate::VOTERS_MAX {
            self.retry.at = now;
        }
    }
}
