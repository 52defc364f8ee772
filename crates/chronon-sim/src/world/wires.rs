//! How messages leave a replica, travel and arrive.

use std::sync::Arc;

use chronon_node::FrontInput;
use chronon_vsr::{Message, Recipients};

use super::index;
use crate::event::Event;
use crate::network::Envelope;
use crate::trace::{Who, salt_of};
use crate::{Checker, Violation, World};

impl World {
    pub(super) fn send(&mut self, at: usize, to: Recipients, message: Message) {
        let from = self.machines[at].id;
        let verdict = self.promises.on_send(&message);
        self.judge(verdict);
        let bytes: Arc<[u8]> = message.encode(self.cluster).into();
        let message = Arc::new(message);
        // There are no learners yet: everybody else is a voter.
        let recipients = self.machines.iter().map(|machine| machine.id).filter(|id| match to {
            Recipients::One(one) => *id == one,
            Recipients::Voters | Recipients::All => *id != from,
        });
        for (number, to) in recipients.collect::<Vec<_>>().into_iter().enumerate() {
            if number != 0 && !self.lives_on(at) {
                return;
            }
            let envelope = Envelope { from, to, message: Arc::clone(&message), bytes: Arc::clone(&bytes) };
            if !self.network.passes(from, to) {
                continue;
            }
            for (delay, envelope) in self.network.send(envelope) {
                self.schedule(delay, Event::Deliver(envelope));
            }
        }
    }

    /// Lets everything that a filter held go its way, in order.
    pub fn release_held(&mut self) {
        for envelope in self.network.take_held() {
            let delay = self.network.delay();
            self.schedule(delay, Event::Deliver(envelope));
        }
    }

    /// Delivers these messages now, whatever the wires think of it.
    pub fn deliver_now(&mut self, envelopes: impl IntoIterator<Item = Envelope>) {
        for envelope in envelopes {
            self.deliver(envelope);
        }
    }

    pub(super) fn deliver(&mut self, envelope: Envelope) {
        let at = index(envelope.to);
        if self.machines[at].process.is_none() || !self.network.passes(envelope.from, envelope.to) {
            return;
        }
        if self.machines[at].paused {
            self.deferred(at, || Event::Deliver(envelope));
            return;
        }
        let (from, to) = (envelope.from, envelope.to);
        match Message::decode(&envelope.bytes, self.cluster) {
            Ok(message) => {
                let salt = salt_of(&envelope.bytes);
                self.trace.note(self.now, Who::Replica(to), salt, || {
                    format!("<- R{from} {} {}", message.stamp, summary(&message))
                });
                self.give_front(at, FrontInput::Message(message));
            }
            Err(error) => {
                let what = format!("R{to} can't read what R{from} sent: {error:?}: {:?}", envelope.message);
                self.object(Violation::new(Checker::Panic, what));
            }
        }
    }
}

/// One line of a message for a trace.
fn summary(message: &Message) -> String {
    use chronon_vsr::Payload;
    match &message.payload {
        Payload::Prepare { commit_max, entry, .. } => {
            let (op, checksum, born) = (entry.op(), entry.checksum(), entry.header().born);
            format!("Prepare {op} {checksum} born {born}, commit {}", commit_max.op)
        }
        Payload::Repair { entry } => format!("Repair {} {}", entry.op(), entry.checksum()),
        Payload::DoViewChange { log_stamp, commit_max, uncertain_from, suffix, bits, .. } => {
            let head = suffix.last().map_or(commit_max.op, |header| header.op);
            format!(
                "DoViewChange log {log_stamp}, commit {}, head {head}, uncertain {uncertain_from:?}, {bits:?}",
                commit_max.op
            )
        }
        Payload::StartView { commit_max, suffix, nonce, .. } => {
            let head = suffix.last().map_or(commit_max.op, |header| header.op);
            format!("StartView commit {}, head {head}, nonce {nonce}", commit_max.op)
        }
        Payload::Headers { headers } => format!("Headers {}", headers.len()),
        Payload::Forward { body } => format!("Forward {} bytes", body.len()),
        other => format!("{other:?}"),
    }
}
