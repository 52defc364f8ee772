//! What is lost: a replica can't go on without it, every voter is there, and each has said that it has not got it. That
//! is told loudly and kept in view; nobody ever guesses, and a copy that turns up after all ends it.

use alloc::vec::Vec;
use core::fmt;

use super::{Part, Replica};
use crate::{Event, Instant, Op, ReplicaId};

/// What no replica can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub enum Lost {
    /// The entry of this op.
    Op(Op),
    /// A part of the checkpoint of this op.
    Checkpoint(Op),
}

impl Lost {
    /// Its op.
    pub const fn op(self) -> Op {
        match self {
            Lost::Op(op) | Lost::Checkpoint(op) => op,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Op(op) => write!(f, "op {op}"),
            Lost::Checkpoint(op) => write!(f, "a part of the checkpoint of op {op}"),
        }
    }
}

/// What is lost, and whose copies are damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Loss {
    /// What no replica can serve.
    pub what: Lost,
    /// Who may have had it: mending one copy of theirs mends the cluster.
    pub replicas: Vec<ReplicaId>,
}

/// What a replica knows to be lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    /// Nobody has had this since then. Somebody may be about to mend it.
    suspected: Option<(Lost, Instant)>,
    known: Option<Loss>,
}

impl Replica {
    /// What this replica can't go on without and nobody has, if there is such a thing.
    pub fn loss(&self) -> Option<&Loss> {
        self.losses.known.as_ref()
    }

    /// Every voter has spoken, and this op can be neither kept nor given up.
    pub(super) fn note_loss(&mut self, what: Lost, replicas: Vec<ReplicaId>) {
        let loss = Loss { what, replicas };
        if self.losses.known.as_ref() != Some(&loss) {
            self.losses.known = Some(loss.clone());
            self.event(Event::Unrecoverable(loss));
        }
    }

    /// Looks whether what it misses is lost: it is, once nobody has had it for as long as a silence is forgiven.
    pub(super) fn look_for_losses(&mut self) {
        if !matches!(self.part, Part::Leading(_) | Part::Following(_)) {
            return;
        }
        let now = self.now.monotonic;
        let Some(what) = self.missed_everywhere() else {
            self.losses = Losses::default();
            return;
        };
        match self.losses.suspected {
            Some((suspected, since)) if suspected == what => {
                if since + self.options.timing.unheard_max <= now {
                    let voters = self.membership.voters.iter().map(|voter| voter.replica).collect();
                    self.note_loss(what, voters);
                }
            }
            _ => self.losses.suspected = Some((what, now)),
        }
    }

    /// What it needs next, if all voters are there and have denied it.
    fn missed_everywhere(&self) -> Option<Lost> {
        let next = self.committed_out.next();
        let what = match self.stuck_transfer() {
            Some(op) => Lost::Checkpoint(op),
            None if self.waits_for_nobody(next) => Lost::Op(next),
            None => return None,
        };
        let mut peers = self.membership.peers(self.me).filter(|peer| self.membership.is_voter(*peer));
        peers.all(|peer| self.is_there(peer)).then_some(what)
    }
}
