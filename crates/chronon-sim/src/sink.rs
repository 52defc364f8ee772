//! The outside world: sinks that act, refuse, hang, answer late or never, each with a ledger of its own that no
//! replica can touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronon_kernel::{
    Attempt, AttemptKind, AttemptNumber, Contract, EffectId, EffectKey, Ended, Evidence, Fence,
};
use chronon_vsr::{Duration, Instant, Prng};

use crate::network::exponential;

/// How long a sink that remembers errors remembers them: a run must come to an end.
const ERRORS_KEPT: Duration = Duration::from_secs(5);

/// What a sink is able to do against repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// Acts every time that it is asked.
    Webhook,
    /// Remembers keys for a window and answers a repeat with the first answer.
    Deduplicating {
        /// How long a key is remembered.
        window: Duration,
        /// Whether an error is remembered too, and answered again.
        replays_errors: bool,
    },
    /// Acts every time that it is asked, and can be asked whether a key landed.
    Askable,
    /// Writes key and fence in one transaction with its work.
    Store,
}

impl SinkKind {
    /// The sink that keeps just what a contract needs of it.
    pub fn of(contract: Contract) -> SinkKind {
        match contract {
            Contract::Transactional => SinkKind::Store,
            Contract::Idempotent { window, replays_errors } => {
                SinkKind::Deduplicating { window, replays_errors }
            }
            Contract::Probe { .. } => SinkKind::Askable,
            Contract::AtMostOnce | Contract::AtLeastOnce => SinkKind::Webhook,
        }
    }
}

/// How a sink behaves. Chances are in parts per million, tried in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkBehaviour {
    /// Refuses the connection: nothing left.
    pub refuse: u32,
    /// Answers an error without having acted.
    pub error_before: u32,
    /// Acts, then answers an error.
    pub error_after: u32,
    /// Neither acts nor answers.
    pub silent: u32,
    /// Acts and never answers.
    pub act_silent: u32,
    /// Acts so late that the caller has long given up; at most `late_max` after it was asked.
    pub late: u32,
    /// Says no for good: to this share of all keys, every time.
    pub permanent: u32,
    /// A gateway in front of it says no for good, and nobody has looked for the key.
    pub gateway: u32,
    /// The longest that a late act takes.
    pub late_max: Duration,
    /// No answer is faster than this.
    pub delay_min: Duration,
    /// The mean of what comes on top.
    pub delay_mean: Duration,
}

impl SinkBehaviour {
    /// Acts, and answers within a few milliseconds.
    pub const GOOD: SinkBehaviour = SinkBehaviour {
        refuse: 0,
        error_before: 0,
        error_after: 0,
        silent: 0,
        act_silent: 0,
        late: 0,
        permanent: 0,
        gateway: 0,
        late_max: Duration::ZERO,
        delay_min: Duration::from_micros(300),
        delay_mean: Duration::from_millis(1),
    };
}

/// Something that a sink really did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// When, in world time.
    pub at: Instant,
    /// The key that came with it.
    pub key: EffectKey,
    /// The effect that the caller named.
    pub effect: EffectId,
    /// The attempt that the caller named.
    pub number: AttemptNumber,
    /// The caller's fence.
    pub fence: Fence,
    /// The body.
    pub payload: Arc<[u8]>,
}

/// What a sink will do about a call that has just arrived.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Answer without acting.
    Answer(Duration, Ended),
    /// Nothing at all.
    Silence,
    /// Act after this long, and then.
    Act(Duration, Then),
}

/// What a sink does when it has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Answer,
    Error,
    Silence,
}

/// One sink.
#[derive(Debug)]
pub struct Sink {
    kind: SinkKind,
    behaviour: SinkBehaviour,
    prng: Prng,
    ledger: Vec<Act>,
    /// Calls that arrived, acting or not.
    arrivals: u64,
    by_key: BTreeMap<EffectKey, Vec<usize>>,
    /// Keys whose first call ended in an error, and when.
    errors: BTreeMap<EffectKey, Instant>,
    /// Keys that are being worked on.
    working: BTreeSet<EffectKey>,
    fence: Option<Fence>,
    /// Calls that were turned away for an older fence.
    fenced: u64,
}

impl Sink {
    pub(crate) fn new(kind: SinkKind, behaviour: SinkBehaviour, prng: Prng) -> Sink {
        Sink {
            kind,
            behaviour,
            prng,
            ledger: Vec::new(),
            arrivals: 0,
            by_key: BTreeMap::new(),
            errors: BTreeMap::new(),
            working: BTreeSet::new(),
            fence: None,
            fenced: 0,
        }
    }

    pub(crate) fn set_behaviour(&mut self, behaviour: SinkBehaviour) {
        self.behaviour = behaviour;
    }

    /// How it behaves now.
    pub fn behaviour(&self) -> SinkBehaviour {
        self.behaviour
    }

    /// Everything that it did, in order.
    pub fn ledger(&self) -> &[Act] {
        &self.ledger
    }

    /// What it did under one key.
    pub fn acts(&self, key: &EffectKey) -> impl Iterator<Item = &Act> {
        self.by_key.get(key).into_iter().flatten().map(|at| &self.ledger[*at])
    }

    /// How many calls arrived.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// How many calls were turned away for an older fence.
    pub fn fenced(&self) -> u64 {
        self.fenced
    }

    /// Whether the connection is refused before a byte leaves.
    pub(crate) fn refuses(&mut self) -> bool {
        self.chance(self.behaviour.refuse)
    }

    /// A call has arrived.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        attempt: &Attempt,
        outcome: impl FnOnce() -> Vec<u8>,
    ) -> Plan {
        self.arrivals += 1;
        let delay = self.behaviour.delay_min + exponential(&mut self.prng, self.behaviour.delay_mean);
        let through_a_gateway = self.kind != SinkKind::Store && attempt.kind == AttemptKind::Call;
        if through_a_gateway && self.chance(self.behaviour.gateway) && !self.replays_errors() {
            return Plan::Answer(
                delay,
                Ended::Permanent { freeze: false, evidence: evidence("403 from a gateway") },
            );
        }
        if attempt.kind == AttemptKind::Probe {
            if self.chance(self.behaviour.silent) {
                return Plan::Silence;
            }
            let found = self.by_key.contains_key(&attempt.key);
            let answer = if found {
                Ended::Delivered { outcome: outcome(), evidence: evidence("found") }
            } else {
                Ended::NotFound { evidence: evidence("no such key") }
            };
            return Plan::Answer(delay, answer);
        }
        if let SinkKind::Deduplicating { window, .. } = self.kind {
            if self.working.contains(&attempt.key) {
                return Plan::Answer(delay, Ended::InProgress { evidence: evidence("409") });
            }
            if self.acts(&attempt.key).any(|act| now.since(act.at) <= window) {
                return Plan::Answer(
                    delay,
                    Ended::Delivered { outcome: outcome(), evidence: evidence("200, known key") },
                );
            }
            if self.errors.get(&attempt.key).is_some_and(|at| now.since(*at) <= window.min(ERRORS_KEPT)) {
                return Plan::Answer(delay, Ended::Ambiguous { evidence: evidence("503, known key") });
            }
        }
        if self.kind == SinkKind::Store {
            if self.fence.is_some_and(|newest| attempt.fence() < newest) {
                self.fenced += 1;
                return Plan::Answer(
                    delay,
                    Ended::Definite { retry_after: None, evidence: evidence("older fence") },
                );
            }
            self.fence = Some(attempt.fence());
            if self.by_key.contains_key(&attempt.key) {
                return Plan::Answer(
                    delay,
                    Ended::Delivered { outcome: outcome(), evidence: evidence("row is there") },
                );
            }
        }
        if self.chance(self.behaviour.error_before) {
            if matches!(self.kind, SinkKind::Deduplicating { replays_errors: true, .. }) {
                self.errors.insert(attempt.key.clone(), now);
            }
            return Plan::Answer(delay, Ended::Ambiguous { evidence: evidence("503") });
        }
        // A firm no depends on what is asked, not on the hour: the same key hears it every time.
        let lot = crate::trace::salt_of(attempt.key.as_str().as_bytes()) % 1_000_000;
        if lot < u64::from(self.behaviour.permanent) {
            let ended = Ended::Permanent { freeze: false, evidence: evidence("422") };
            return Plan::Answer(delay, ended);
        }
        if self.chance(self.behaviour.silent) {
            return Plan::Silence;
        }
        let (after, then) = if self.chance(self.behaviour.error_after) {
            (delay, Then::Error)
        } else if self.chance(self.behaviour.act_silent) {
            (delay, Then::Silence)
        } else if self.chance(self.behaviour.late) {
            let late = u64::try_from(self.behaviour.late_max.as_nanos()).unwrap_or(u64::MAX).max(1);
            (Duration::from_nanos(self.prng.below(late)), Then::Answer)
        } else {
            (delay, Then::Answer)
        };
        if matches!(self.kind, SinkKind::Deduplicating { .. }) {
            self.working.insert(attempt.key.clone());
        }
        Plan::Act(after, then)
    }

    /// The moment of the deed. Returns whether it really acted: a store whose row appeared meanwhile does not.
    pub(crate) fn act(&mut self, now: Instant, attempt: &Attempt) -> bool {
        self.working.remove(&attempt.key);
        if self.kind == SinkKind::Store && self.by_key.contains_key(&attempt.key) {
            return false;
        }
        self.by_key.entry(attempt.key.clone()).or_default().push(self.ledger.len());
        self.ledger.push(Act {
            at: now,
            key: attempt.key.clone(),
            effect: attempt.effect,
            number: attempt.number,
            fence: attempt.fence(),
            payload: Arc::clone(&attempt.payload),
        });
        true
    }

    /// Whether it keeps its errors under the caller's key: then no gateway answers in its place.
    fn replays_errors(&self) -> bool {
        matches!(self.kind, SinkKind::Deduplicating { replays_errors: true, .. })
    }

    fn chance(&mut self, parts: u32) -> bool {
        parts != 0 && self.prng.chance(u64::from(parts), 1_000_000)
    }
}

pub(crate) fn evidence(text: &str) -> Evidence {
    Evidence(text.to_owned())
}
