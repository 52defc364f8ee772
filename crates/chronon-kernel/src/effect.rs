//! One effect of the outbox, from its emission to its outcome.

use std::sync::Arc;

use chronon_vsr::{Duration, Stamp, Timestamp};

use crate::delivery::Doubt;
use crate::view::{ActView, AttemptView, ClaimState, ClaimView, EffectState, EffectView, OutcomeView};
use crate::{AttemptKind, AttemptNumber, Contract, EffectId, EffectKey, Fence, Parked, SinkName};

/// An effect. What it is never changes; where it stands is its phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) id: EffectId,
    pub(crate) key: EffectKey,
    pub(crate) sink: SinkName,
    pub(crate) lane: Option<Arc<str>>,
    /// As the sink was set when the effect was emitted.
    pub(crate) contract: Contract,
    pub(crate) payload: Arc<[u8]>,
    pub(crate) emitted: Timestamp,
    pub(crate) deadline: Option<Timestamp>,

    pub(crate) phase: Phase,
    /// Its place in its lane, kept over retries. None until it first joins.
    pub(crate) joined: Option<u64>,
    /// The attempt that is ordered, or was last. 0: none was.
    pub(crate) number: u32,
    /// How many stamps the log had seen when that attempt was ordered.
    pub(crate) reign: u32,
    /// When it was ordered.
    pub(crate) released: Timestamp,
    /// Calls that count against the retry budget.
    pub(crate) calls: u32,
    /// Probes since the last call.
    pub(crate) probes: u32,
    /// The last call may have acted, so ask; a "no" is proof if asked at or after this time.
    pub(crate) ask: Option<Timestamp>,
    /// When the first attempt whose end is not logged as definite was released.
    pub(crate) unknown_since: Option<Timestamp>,
    /// An attempt was released (without claims) or claimed (with them).
    pub(crate) may_have_started: bool,
    /// The newest claim, resolved or not.
    pub(crate) claim: Option<Claim>,
    /// How often it was parked.
    pub(crate) parkings: u32,
    /// Its entry in the index of what falls due.
    pub(crate) due: Option<Timestamp>,

    pub(crate) attempts: Vec<AttemptView>,
    pub(crate) acts: Vec<ActView>,
}

/// Where an open effect stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not before this time.
    Scheduled(Timestamp),
    /// Behind others of its lane.
    Queued,
    /// First of its lane: waits for one of the sink's places, in the order of these turns.
    Runnable(u64),
    /// Released to the primary under this sequence number.
    Released(u64),
    /// Claimed, under a newer sequence number.
    Claimed(u64),
    /// Holds its lane until this time.
    Waiting(Timestamp),
    /// Left to a person or to its machine.
    Parked(Parked),
}

/// A claim in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) attempt: u32,
    pub(crate) stamp: Stamp,
    pub(crate) logged: Timestamp,
}

impl Phase {
    /// For digests.
    pub(crate) const fn number(self) -> u64 {
        match self {
            Phase::Scheduled(_) => 1,
            Phase::Queued => 2,
            Phase::Runnable(_) => 3,
            Phase::Released(_) => 4,
            Phase::Claimed(_) => 5,
            Phase::Waiting(_) => 6,
            Phase::Parked(Parked::InDoubt) => 7,
            Phase::Parked(Parked::Exhausted) => 8,
        }
    }
}

impl Effect {
    pub(crate) fn kind(&self) -> AttemptKind {
        if self.ask.is_some() { AttemptKind::Probe } else { AttemptKind::Call }
    }

    /// Whether its next start must be claimed. Asking changes nothing at the sink and needs no claim.
    pub(crate) fn needs_claim(&self) -> bool {
        self.contract.claims() && self.kind() == AttemptKind::Call
    }

    /// The number of the attempt that is ordered. Without claims nobody but the primary knows whether it started, so
    /// a later primary's start is a later attempt.
    pub(crate) fn ordered_number(&self, reign: u32) -> u32 {
        let released = matches!(self.phase, Phase::Released(_)) && !self.needs_claim();
        if released { self.number.saturating_add(reign - self.reign) } else { self.number }
    }

    pub(crate) fn claim_state(&self) -> ClaimState {
        match (self.phase, self.claim) {
            _ if !self.needs_claim() => ClaimState::NotNeeded,
            (Phase::Claimed(_), Some(claim)) => ClaimState::Claimed(claim.stamp),
            _ => ClaimState::Needed,
        }
    }

    /// Whether an attempt, this one or an earlier one, may have acted without the log knowing.
    pub(crate) fn doubt(&self, reign: u32) -> Doubt {
        if self.unknown_since.is_some() || self.lost_attempt(reign) { Doubt::Possible } else { Doubt::None }
    }

    /// Whether an earlier primary may have started the attempt that is ordered.
    pub(crate) fn lost_attempt(&self, reign: u32) -> bool {
        matches!(self.phase, Phase::Released(_))
            && !self.needs_claim()
            && self.ask.is_none()
            && self.reign != reign
    }

    /// No call may start at or after this time: its deadline, or the end of the sink's window less the margin.
    pub(crate) fn start_before(&self, margin: Duration) -> Timestamp {
        self.window_end(margin).min(self.deadline.unwrap_or(Timestamp::MAX))
    }

    /// Until when its sink knows the key of a call that may have been made before, less the margin.
    pub(crate) fn window_end(&self, margin: Duration) -> Timestamp {
        let since = match self.phase {
            Phase::Released(_) | Phase::Claimed(_) => Some(self.unknown_since.unwrap_or(self.released)),
            Phase::Scheduled(_)
            | Phase::Queued
            | Phase::Runnable(_)
            | Phase::Waiting(_)
            | Phase::Parked(_) => self.unknown_since,
        };
        match (self.contract, since) {
            (Contract::Idempotent { window, .. }, Some(since)) => since + window.saturating_sub(margin),
            (_, _) => Timestamp::MAX,
        }
    }

    /// When something has to be done about it, if nobody does anything.
    pub(crate) fn next_due(&self, margin: Duration) -> Option<Timestamp> {
        let limit = self.start_before(margin);
        let due = match self.phase {
            Phase::Scheduled(at) | Phase::Waiting(at) => at.min(limit),
            Phase::Queued | Phase::Runnable(_) => limit,
            Phase::Released(_) if self.needs_claim() => limit,
            // It may have started right before the limit: what the last start answers is waited for.
            Phase::Released(_) if limit != Timestamp::MAX => limit + margin,
            Phase::Released(_) | Phase::Claimed(_) | Phase::Parked(_) => return None,
        };
        (due != Timestamp::MAX).then_some(due)
    }

    /// The sequence number of its order, if it is released.
    pub(crate) fn order_sequence(&self) -> Option<u64> {
        match self.phase {
            Phase::Released(sequence) | Phase::Claimed(sequence) => Some(sequence),
            Phase::Scheduled(_)
            | Phase::Queued
            | Phase::Runnable(_)
            | Phase::Waiting(_)
            | Phase::Parked(_) => None,
        }
    }

    pub(crate) fn state(&self) -> EffectState {
        match self.phase {
            Phase::Scheduled(_) => EffectState::Scheduled,
            Phase::Queued | Phase::Runnable(_) => EffectState::Ready,
            Phase::Released(_) | Phase::Claimed(_) => EffectState::Started,
            Phase::Waiting(_) => EffectState::Waiting,
            Phase::Parked(_) => EffectState::Parked,
        }
    }

    /// Keeps a report: the first one for ever, and the newest ones.
    pub(crate) fn record(&mut self, attempt: AttemptView, kept_max: usize) {
        if kept_max <= self.attempts.len() && 1 < self.attempts.len() {
            self.attempts.remove(1);
        }
        if self.attempts.len() < kept_max {
            self.attempts.push(attempt);
        }
    }

    pub(crate) fn view(&self, reign: u32, outcome: Option<OutcomeView>) -> EffectView {
        let parked = match self.phase {
            Phase::Parked(why) if outcome.is_none() => Some(why),
            _ => None,
        };
        EffectView {
            id: self.id,
            key: self.key.clone(),
            sink: self.sink.clone(),
            lane: self.lane.as_deref().map(str::to_owned),
            state: if outcome.is_some() { EffectState::Settled } else { self.state() },
            contract: self.contract,
            emitted: self.emitted,
            due: if outcome.is_some() { None } else { self.due },
            deadline: self.deadline,
            attempts_count: if outcome.is_some() { self.number } else { self.ordered_number(reign) },
            attempts: self.attempts.clone(),
            claim: self.claim.map(|claim| ClaimView {
                attempt: AttemptNumber(claim.attempt),
                fence: Fence(claim.stamp),
                logged: claim.logged,
            }),
            parked,
            outcome,
            acts: self.acts.clone(),
            payload: Arc::clone(&self.payload),
        }
    }
}
