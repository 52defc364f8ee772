//! The outside world: sinks that act, refuse, hang, answer late or never, each with a ledger of its own that no
//! replica can touch.

use std::collections::BTreeMap;
use std::sync::Arc;

use chronon_kernel::{
    Attempt, AttemptKind, AttemptNumber, Contract, EffectId, EffectKey, Ended, Evidence, Fence,
};
use chronon_vsr::{Duration, Instant, Prng};

use crate::network::exponential;

/// How long a sink that remembers errors remembers them: a run must come to an end.
const ERRORS_KEPT: Duration = Duration::from_secs(5);

/// The longest that a store which died stays away.
pub(crate) const DOWN_MAX: Duration = Duration::from_millis(300);

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
    /// Writes key and fence in one transaction with its work: all of it, or nothing.
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
    /// A store dies in the middle of a transaction. Of this one it keeps all or nothing, of the others under way
    /// nothing; it is back within 300 ms, and whoever waited was cut off.
    pub die: u32,
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
        die: 0,
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
    /// Act after this long.
    Act(Duration, Deed),
}

/// Something that a sink is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deed {
    then: Then,
    /// The sink's life in which it began: what a store has not committed dies with it.
    life: u32,
}

/// What a sink does when it has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Answer,
    Error,
    Silence,
    /// It dies before it has done it.
    Die,
    /// It dies right after, and nobody hears of it.
    CommitAndDie,
}

/// What became of something that a sink was about to do.
#[derive(Debug)]
pub(crate) struct Done {
    /// Whether it was done, now.
    pub(crate) acted: bool,
    /// What the caller hears, if it hears anything.
    pub(crate) answer: Option<Ended>,
    /// The same in words: what it does to the effect, and then.
    pub(crate) words: (&'static str, &'static str),
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
    /// Keys that are being worked on, and by how many calls.
    working: BTreeMap<EffectKey, u32>,
    fence: Option<Fence>,
    /// Calls that were turned away for an older fence.
    fenced: u64,
    /// Counts how often it was started.
    life: u32,
    /// It is dead until then.
    down_until: Instant,
    /// What it did to its callers, and how often.
    reached: BTreeMap<&'static str, u64>,
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
            working: BTreeMap::new(),
            fence: None,
            fenced: 0,
            life: 0,
            down_until: Instant::ZERO,
            reached: BTreeMap::new(),
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

    /// Whether a call under this key has arrived and not yet come to its end here.
    pub(crate) fn works_on(&self, key: &EffectKey) -> bool {
        self.working.contains_key(key)
    }

    /// How many calls arrived.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// How many calls were turned away for an older fence.
    pub fn fenced(&self) -> u64 {
        self.fenced
    }

    /// What it did to its callers that a batch of seeds should see, and how often.
    pub(crate) fn reached(&self) -> &BTreeMap<&'static str, u64> {
        &self.reached
    }

    /// Whether it knows keys for a shorter time than this.
    pub(crate) fn forgets_within(&self, time: Duration) -> bool {
        matches!(self.kind, SinkKind::Deduplicating { window, .. } if window < time)
    }

    /// Whether the connection is refused before a byte leaves.
    pub(crate) fn refuses(&mut self, now: Instant) -> bool {
        now < self.down_until || self.chance(self.behaviour.refuse)
    }

    /// A call has arrived.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        attempt: &Attempt,
        outcome: impl FnOnce() -> Vec<u8>,
    ) -> Plan {
        self.arrivals += 1;
        if now < self.down_until {
            return Plan::Answer(Duration::ZERO, reset());
        }
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
                if self.working.contains_key(&attempt.key) {
                    self.reach("ProbedTooEarly");
                }
                Ended::NotFound { evidence: evidence("no such key") }
            };
            return Plan::Answer(delay, answer);
        }
        if let SinkKind::Deduplicating { window, .. } = self.kind {
            if self.working.contains_key(&attempt.key) {
                return Plan::Answer(delay, Ended::InProgress { evidence: evidence("409") });
            }
            // Only a sink that stores its errors has any; it says what it said, whether it acted or not.
            if self.errors.get(&attempt.key).is_some_and(|at| now.since(*at) <= window.min(ERRORS_KEPT)) {
                self.reach("StoredErrorReplayed");
                return Plan::Answer(delay, Ended::Ambiguous { evidence: evidence("503, known key") });
            }
            if self.acts(&attempt.key).any(|act| now.since(act.at) <= window) {
                return Plan::Answer(
                    delay,
                    Ended::Delivered { outcome: outcome(), evidence: evidence("200, known key") },
                );
            }
        }
        if self.kind == SinkKind::Store {
            if self.fence.is_some_and(|newest| attempt.fence() < newest) {
                self.fenced += 1;
                return Plan::Answer(delay, fenced());
            }
            if self.by_key.contains_key(&attempt.key) {
                return Plan::Answer(
                    delay,
                    Ended::Delivered { outcome: outcome(), evidence: evidence("row is there") },
                );
            }
        }
        if self.chance(self.behaviour.error_before) {
            if self.replays_errors() {
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
        } else if self.kind == SinkKind::Store && self.chance(self.behaviour.die) {
            (delay, if self.prng.chance(1, 2) { Then::Die } else { Then::CommitAndDie })
        } else {
            (delay, Then::Answer)
        };
        *self.working.entry(attempt.key.clone()).or_default() += 1;
        Plan::Act(after, Deed { then, life: self.life })
    }

    /// The moment of the deed. A store looks at row and fence once more, for it commits only now.
    pub(crate) fn act(
        &mut self,
        now: Instant,
        attempt: &Attempt,
        Deed { then, life }: Deed,
        outcome: Vec<u8>,
    ) -> Done {
        if let Some(calls) = self.working.get_mut(&attempt.key) {
            *calls -= 1;
            if *calls == 0 {
                self.working.remove(&attempt.key);
            }
        }
        let store = self.kind == SinkKind::Store;
        if store && life != self.life {
            self.reach("RolledBack");
            return Done { acted: false, answer: Some(reset()), words: ("rolls back", "resets") };
        }
        if store && self.fence.is_some_and(|newest| attempt.fence() < newest) {
            self.fenced += 1;
            return Done { acted: false, answer: Some(fenced()), words: ("turns away", "says why") };
        }
        if then == Then::Die {
            self.die(now);
            return Done { acted: false, answer: Some(reset()), words: ("rolls back", "dies") };
        }
        let acted = !store || !self.by_key.contains_key(&attempt.key);
        if acted {
            self.by_key.entry(attempt.key.clone()).or_default().push(self.ledger.len());
            self.ledger.push(Act {
                at: now,
                key: attempt.key.clone(),
                effect: attempt.effect,
                number: attempt.number,
                fence: attempt.fence(),
                payload: Arc::clone(&attempt.payload),
            });
        }
        self.fence = self.fence.max(Some(attempt.fence()));
        let (answer, next) = match then {
            Then::Answer => (Some(Ended::Delivered { outcome, evidence: evidence("200") }), "answers"),
            Then::Error => {
                if self.replays_errors() {
                    self.errors.insert(attempt.key.clone(), now);
                }
                (Some(Ended::Ambiguous { evidence: evidence("500") }), "answers an error")
            }
            Then::Silence => (None, "says nothing"),
            Then::Die | Then::CommitAndDie => {
                self.reach("CommitAnswerLost");
                self.die(now);
                (Some(reset()), "dies")
            }
        };
        let words = (if acted { "acts on" } else { "knows" }, next);
        Done { acted, answer, words }
    }

    fn die(&mut self, now: Instant) {
        self.reach("SinkDied");
        self.life += 1;
        let down = u64::try_from(DOWN_MAX.as_nanos()).unwrap_or(u64::MAX);
        self.down_until = now + Duration::from_nanos(self.prng.below(down));
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// Whether it keeps its errors under the caller's key: then no gateway answers in its place.
    fn replays_errors(&self) -> bool {
        matches!(self.kind, SinkKind::Deduplicating { replays_errors: true, .. })
    }

    fn chance(&mut self, parts: u32) -> bool {
        parts != 0 && self.prng.chance(u64::from(parts), 1_000_000)
    }
}

fn reset() -> Ended {
    Ended::Ambiguous { evidence: evidence("connection reset") }
}

fn fenced() -> Ended {
    Ended::Definite { retry_after: None, evidence: evidence("older fence") }
}

pub(crate) fn evidence(text: &str) -> Evidence {
    Evidence(text.to_owned())
}
