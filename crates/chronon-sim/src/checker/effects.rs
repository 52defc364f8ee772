//! The effects' auditor: compares what the log ordered with what the sinks' own ledgers show.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronon_kernel::{
    Attempt, AttemptKind, AttemptNumber, Contract, DeskAct, EffectFilter, EffectId, EffectKey, EffectState,
    EffectView, Ended, Engine, Lineage, Parked, Request, RequestResult, SinkName, SinkSpec,
};
use chronon_vsr::{Duration, Instant, Op, Stamp, Timestamp};

use crate::{Checker, Commits, EffectTerms, Results, Sink, Violation, Workload};

/// An effect as its attempts show it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it goes.
    pub sink: SinkName,
    /// Under which contract.
    pub contract: Contract,
    /// The body.
    pub payload: Arc<[u8]>,
    /// The lane, if named.
    pub lane: Option<String>,
    /// Calls (not probes) that left a replica: when, which attempt, under which stamp.
    pub calls: Vec<(Instant, AttemptNumber, Stamp)>,
    /// How many of them their executors then knew not to have acted.
    pub proved_idle: usize,
}

/// The order of a lane: by when they are due. What falls due joins before what its op emits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    due: Timestamp,
    at_once: bool,
    effect: EffectId,
}

/// Where a replica is that hands an attempt out: what its clock says, and its newest op.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandedOut {
    pub(crate) wall: Timestamp,
    pub(crate) executed: Op,
}

/// What a person took upon themselves for an effect.
#[derive(Clone, Copy, Debug, Default)]
struct Excused {
    /// So many calls had left when it was opened again.
    calls: usize,
    /// So often its sink had acted when a duplicate was accepted.
    acts: usize,
}

/// What a replay of the log shows of effects on the way.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// When those that are parked were parked.
    parked: BTreeMap<EffectId, (Op, Timestamp)>,
    /// Those that were emitted for later.
    delayed: BTreeSet<EffectId>,
    /// How far apart the kernel allows clocks to be.
    clock_bound: Duration,
}

impl Replayed {
    pub(crate) fn new(clock_bound: Duration) -> Replayed {
        Replayed { parked: BTreeMap::new(), delayed: BTreeSet::new(), clock_bound }
    }

    /// An op was executed at this log time.
    pub(crate) fn on_executed(&mut self, op: Op, now: Timestamp, engine: &dyn Engine) {
        let status = engine.status();
        let all = |state| {
            let filter = EffectFilter { state: Some(state), ..EffectFilter::default() };
            engine.effects(&filter, None, usize::MAX).into_iter().map(|view| view.id)
        };
        if status.scheduled != 0 {
            self.delayed.extend(all(EffectState::Scheduled));
        }
        if status.parked == 0 {
            self.parked.clear();
            return;
        }
        let since = |id| self.parked.get(&id).copied().unwrap_or((op, now));
        self.parked = all(EffectState::Parked).map(|id| (id, since(id))).collect();
    }

    /// The op in which an effect was parked.
    pub(crate) fn parked_in(&self, effect: EffectId) -> Option<Op> {
        self.parked.get(&effect).map(|(op, _)| *op)
    }

    fn parked_since(&self, effect: EffectId) -> Option<Timestamp> {
        self.parked.get(&effect).map(|(_, since)| *since)
    }
}

/// Whether attempts ended for this effect, parked at that time, though its contract allows more: there is a limit to their
/// number, or the next one could not have started before the deadline. It waits for its back-off, of which the jitter adds
/// a fifth at most; a probe may wait until a "no" is proof.
fn may_be_given_up(
    view: &EffectView,
    spec: &SinkSpec,
    parked: Option<Timestamp>,
    clock_bound: Duration,
) -> bool {
    let proof = match view.contract {
        Contract::Probe { settle } => settle + spec.timeout + clock_bound,
        Contract::Transactional
        | Contract::Idempotent { .. }
        | Contract::AtMostOnce
        | Contract::AtLeastOnce => Duration::ZERO,
    };
    let pause = (spec.backoff.max + spec.backoff.max / 5).max(proof);
    let late = |deadline: Timestamp| parked.is_some_and(|parked| deadline <= parked + pause);
    spec.backoff.attempts_max != 0 || view.deadline.is_some_and(late)
}

/// Watches attempts and ledgers.
#[derive(Debug)]
pub struct Effects {
    lineage: Lineage,
    seen: BTreeMap<EffectId, Seen>,
    /// The newest effect of each lane that left, and under which stamp.
    lanes: BTreeMap<(SinkName, String), (Turn, Stamp)>,
    /// What left of lanes whose effects' terms nobody tells, in order: judged when a replay has shown who was delayed.
    untold: Vec<((SinkName, String), EffectId, Stamp)>,
    /// What people were asked to answer for.
    excused: BTreeMap<EffectId, Excused>,
}

impl Effects {
    pub(crate) fn new(lineage: Lineage) -> Effects {
        Effects {
            lineage,
            seen: BTreeMap::new(),
            lanes: BTreeMap::new(),
            untold: Vec::new(),
            excused: BTreeMap::new(),
        }
    }

    /// Every effect that was ever attempted.
    pub fn seen(&self) -> &BTreeMap<EffectId, Seen> {
        &self.seen
    }

    /// The key that an effect must bear.
    pub fn key(&self, effect: EffectId) -> EffectKey {
        EffectKey::draw(self.lineage, effect)
    }

    /// A person is about to act on an effect, upon which its sink acted so often.
    pub(crate) fn on_desk(&mut self, effect: EffectId, act: &DeskAct, acts: usize) {
        if let DeskAct::Retry { not_delivered, accept_duplicate, .. } = act
            && (*not_delivered || *accept_duplicate)
        {
            let calls = self.seen.get(&effect).map_or(0, |seen| seen.calls.len());
            self.excused.insert(effect, Excused { calls, acts });
        }
    }

    fn excused(&self, effect: EffectId) -> Excused {
        self.excused.get(&effect).copied().unwrap_or_default()
    }

    /// A replica's dispatcher hands an attempt to its executor.
    pub(crate) fn on_start(&mut self, executed: Op, attempt: &Attempt) -> Result<(), Violation> {
        let effect = attempt.effect;
        if executed < effect.op() {
            let what = format!("effect {effect} starts where only op {executed} is committed and executed");
            return Err(Violation::new(Checker::Effects, what));
        }
        if attempt.key != self.key(effect) {
            let what = format!("effect {effect} goes out under {}", attempt.key.as_str());
            return Err(Violation::new(Checker::Effects, what));
        }
        let seen = self.seen.entry(effect).or_insert_with(|| Seen {
            sink: attempt.sink.clone(),
            contract: attempt.spec.contract,
            payload: Arc::clone(&attempt.payload),
            lane: attempt.lane.clone(),
            calls: Vec::new(),
            proved_idle: 0,
        });
        if seen.payload != attempt.payload || seen.sink != attempt.sink {
            let what = format!("effect {effect} changes between attempts");
            return Err(Violation::new(Checker::Effects, what));
        }
        Ok(())
    }

    /// A replica's dispatcher hands an attempt to its executor: not before it is due, nor once its deadline has passed by
    /// its clock or by log time.
    pub(crate) fn on_handed_out(
        &self,
        commits: &Commits,
        results: &Results,
        attempt: &Attempt,
        terms: EffectTerms,
        HandedOut { wall, executed }: HandedOut,
    ) -> Result<(), Violation> {
        let id = attempt.effect;
        let (Some(emitted), Some(now)) = (time_of(commits, id.op()), time_of(commits, executed)) else {
            return Ok(());
        };
        let due = terms.due(emitted);
        if now < due {
            let what = format!("effect {id} starts at {now:?}, and is due at {due:?}");
            return Err(Violation::new(Checker::Effects, what));
        }
        // The start of what is claimed is decided with the claim.
        let is_claimed = attempt.spec.contract.claims() && attempt.kind == AttemptKind::Call;
        let in_time = |deadline| {
            if is_claimed { was_claimed(commits, attempt, deadline) } else { now.max(wall) < deadline }
        };
        if let Some(deadline) = terms.deadline(emitted)
            && !in_time(deadline)
            && !was_reopened(commits, results, id, deadline)
        {
            let what = format!(
                "effect {id} starts at {now:?}, on a clock {wall:?}, after its deadline {deadline:?}"
            );
            return Err(Violation::new(Checker::Effects, what));
        }
        Ok(())
    }

    /// Whether a person had an effect tried again when its deadline had passed. If that came while it waited in its lane,
    /// the lane has gone on without it.
    pub(crate) fn is_reopened(
        commits: &Commits,
        results: &Results,
        attempt: &Attempt,
        terms: EffectTerms,
    ) -> bool {
        let deadline = terms.deadline(attempt.emitted);
        deadline.is_some_and(|deadline| was_reopened(commits, results, attempt.effect, deadline))
    }

    /// An attempt leaves its replica: it passed the gate. `open`: there its effect is not settled yet; a call that was handed
    /// out before and leaves afterwards repeats what is known to have been done, and its lane has gone on.
    pub(crate) fn on_leave(
        &mut self,
        now: Instant,
        attempt: &Attempt,
        open: bool,
        terms: Option<EffectTerms>,
    ) -> Result<(), Violation> {
        let excused = self.excused(attempt.effect);
        let Some(seen) = self.seen.get_mut(&attempt.effect) else { return Ok(()) };
        if attempt.kind == AttemptKind::Probe {
            return Ok(());
        }
        if let Some((_, number, stamp)) =
            seen.calls.iter().find(|(_, number, stamp)| *number == attempt.number && *stamp == attempt.stamp)
        {
            let what =
                format!("attempt {} of effect {} leaves twice under {stamp}", number.0, attempt.effect);
            return Err(Violation::new(Checker::Effects, what));
        }
        if attempt.spec.contract == Contract::AtMostOnce
            && let Some((_, number, stamp)) = seen.calls.get(excused.calls)
        {
            let what = format!(
                "at most once, and effect {} leaves as attempt {} under {} after attempt {} under {stamp}",
                attempt.effect, attempt.number.0, attempt.stamp, number.0
            );
            return Err(Violation::new(Checker::Effects, what));
        }
        seen.calls.push((now, attempt.number, attempt.stamp));
        if let Some(lane) = seen.lane.as_ref().filter(|_| open) {
            let Some(terms) = terms else {
                if attempt.spec.parked_holds_lane {
                    let lane = (seen.sink.clone(), lane.clone());
                    self.untold.push((lane, attempt.effect, attempt.stamp));
                }
                return Ok(());
            };
            let (due, at_once) = (terms.due(attempt.emitted), terms.after.is_zero());
            let this = (Turn { due, at_once, effect: attempt.effect }, attempt.stamp);
            let newest = self.lanes.entry((seen.sink.clone(), lane.clone())).or_insert(this);
            // A primary that was replaced within the last D does not know how far its successor has come.
            if this.0 < newest.0 && newest.1 <= attempt.stamp && attempt.spec.parked_holds_lane {
                let what = format!("lane {lane}: effect {} leaves after {}", attempt.effect, newest.0.effect);
                return Err(Violation::new(Checker::Effects, what));
            }
            *newest = (*newest).max(this);
        }
        Ok(())
    }

    /// An executor knows how an attempt ended. One that never reached its sink leaves none.
    pub(crate) fn on_ended(&mut self, attempt: &Attempt, ended: &Ended) {
        let idle = matches!(ended, Ended::Definite { .. } | Ended::Permanent { .. });
        if idle
            && attempt.kind == AttemptKind::Call
            && let Some(seen) = self.seen.get_mut(&attempt.effect)
        {
            seen.proved_idle += 1;
        }
    }

    /// A sink has acted.
    pub(crate) fn on_act(&mut self, sink: &Sink, attempt: &Attempt) -> Result<(), Violation> {
        let acts = sink.acts(&attempt.key).count() - self.excused(attempt.effect).acts;
        let allowed = match attempt.spec.contract {
            Contract::AtLeastOnce => usize::MAX,
            Contract::Transactional
            | Contract::Idempotent { .. }
            | Contract::Probe { .. }
            | Contract::AtMostOnce => 1,
        };
        if allowed < acts {
            let what =
                format!("{:?}: effect {} was acted upon {acts} times", attempt.spec.contract, attempt.effect);
            return Err(Violation::new(Checker::Effects, what));
        }
        Ok(())
    }

    /// At the end, when all is quiet: log, results, outbox and ledgers tell one story. The engine is a replay of the log.
    pub(crate) fn check_end(
        &self,
        commits: &Commits,
        results: &Results,
        engine: &dyn Engine,
        sinks: &BTreeMap<SinkName, Sink>,
        workload: &dyn Workload,
        replayed: &Replayed,
    ) -> Result<(), Violation> {
        let object = |what: String| Err(Violation::new(Checker::Effects, what));
        let effects = engine.effects(&EffectFilter::default(), None, usize::MAX);
        let effects: BTreeMap<EffectId, EffectView> =
            effects.into_iter().map(|view| (view.id, view)).collect();
        for (at, result) in results.all() {
            let RequestResult::Replied { at: first, effects: emitted, .. } = result else { continue };
            if *first != at {
                continue;
            }
            for effect in emitted {
                if effect.op().value() != at.op {
                    return object(format!("{at:?} emitted {effect}, an id of another op"));
                }
                if !effects.contains_key(effect) {
                    return object(format!("effect {effect} is forgotten"));
                }
            }
        }
        let status = engine.status();
        let settled = status.delivered + status.failed + status.unknown + status.cancelled;
        let open = status.scheduled + status.ready + status.started + status.waiting + status.parked;
        if status.emitted != settled + open || status.emitted != effects.len() as u64 {
            return object(format!("{} emitted, {} shown: {status:?}", status.emitted, effects.len()));
        }
        for view in effects.values() {
            let acts = sinks.get(&view.sink).map_or(0, |sink| sink.acts(&view.key).count());
            if let Some(terms) = workload.terms(&view.payload)
                && let deadline = terms.deadline(view.emitted)
                && view.deadline != deadline
                && !deadline.is_some_and(|passed| was_reopened(commits, results, view.id, passed))
            {
                return object(format!(
                    "effect {} has the deadline {:?}, and {deadline:?} was asked for",
                    view.id, view.deadline
                ));
            }
            let spec = engine.sink(&view.sink).map(|sink| sink.spec);
            let since = replayed.parked_since(view.id);
            let given_up = spec.is_some_and(|spec| may_be_given_up(view, &spec, since, replayed.clock_bound));
            self.check_effect(view, acts, given_up, commits).or_else(object)?;
        }
        self.check_untold_lanes(replayed).or_else(object)?;
        // What the ledger has was emitted, by a committed op, in just these words.
        for (name, sink) in sinks {
            for act in sink.ledger() {
                let known = effects.get(&act.effect);
                let emitted = known.is_some_and(|view| {
                    view.key == act.key && view.sink == *name && *view.payload == *act.payload
                });
                if !emitted || commits.get(act.effect.op()).is_none() {
                    return object(format!(
                        "{name} did {} under {}, which nobody emitted",
                        act.effect,
                        act.key.as_str()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Lanes in which everybody is due at once keep the order of the log. Who was delayed joined at some other time.
    fn check_untold_lanes(&self, replayed: &Replayed) -> Result<(), String> {
        let mut newest: BTreeMap<&(SinkName, String), (EffectId, Stamp)> = BTreeMap::new();
        for (lane, effect, stamp) in self.untold.iter().filter(|(_, id, _)| !replayed.delayed.contains(id)) {
            let this = (*effect, *stamp);
            let newest = newest.entry(lane).or_insert(this);
            if this.0 < newest.0 && newest.1 <= this.1 {
                return Err(format!("lane {}: effect {effect} leaves after {}", lane.1, newest.0));
            }
            *newest = (*newest).max(this);
        }
        Ok(())
    }

    /// Whether somebody had reason to doubt: a call of unknown end left, or its primary was replaced before it was parked
    /// and may have taken the end of one with it.
    fn was_in_doubt(&self, view: &EffectView, commits: &Commits) -> bool {
        // What needs no claim may have been started as soon as it was released, and its window may end before its
        // primary tells that it did not.
        if !view.contract.claims() {
            return true;
        }
        let born = |op| commits.get(op).map(|committed| committed.entry.header().born);
        let unknown = self.seen.get(&view.id).is_some_and(|seen| seen.proved_idle < seen.calls.len());
        let decisive = view.attempts.iter().rev().find(|attempt| attempt.decisive);
        let parked = decisive.map_or(commits.head(), |last| {
            let log = commits.log();
            Op::new(log.partition_point(|it| it.entry.header().timestamp <= last.logged) as u64)
        });
        unknown || born(view.id.op()) != born(parked)
    }

    fn check_effect(
        &self,
        view: &EffectView,
        acts: usize,
        given_up: bool,
        commits: &Commits,
    ) -> Result<(), String> {
        let EffectView { id, contract, state, .. } = view;
        if view.key != self.key(*id) {
            return Err(format!("effect {id} has the key {}", view.key.as_str()));
        }
        // What a person accepted speaks of nothing that came after.
        let acts_since = acts - self.excused(*id).acts;
        match (&view.outcome, view.parked) {
            (Some(outcome), _) => {
                let right = match outcome.outcome {
                    "delivered" => 0 < acts,
                    "failed" => acts_since == 0,
                    // Nothing ever left for it, before or after.
                    "cancelled" => acts == 0 && self.seen.get(id).is_none_or(|seen| seen.calls.is_empty()),
                    _ => true,
                };
                if !right {
                    return Err(format!(
                        "effect {id} is settled as {}; its sink acted {acts} times",
                        outcome.outcome
                    ));
                }
            }
            (None, Some(Parked::InDoubt)) => {
                let may = match contract {
                    Contract::AtMostOnce | Contract::Idempotent { .. } => true,
                    // One of unknown end is the last only where attempts are limited or have a deadline, or the sink then said a
                    // firm no.
                    _ if view.attempts.iter().any(|attempt| attempt.ended == "permanent") => true,
                    Contract::Transactional | Contract::Probe { .. } | Contract::AtLeastOnce => given_up,
                };
                if !may {
                    return Err(format!("effect {id} is in doubt under {contract:?}"));
                }
                if !self.was_in_doubt(view, commits) {
                    return Err(format!("effect {id} is in doubt, and no call of unknown end ever left"));
                }
            }
            (None, Some(Parked::Exhausted)) if acts_since != 0 => {
                return Err(format!("nothing of effect {id} is in doubt; its sink acted {acts} times"));
            }
            (None, Some(Parked::Exhausted)) if !given_up => {
                return Err(format!("effect {id} is exhausted, and nothing limits its attempts"));
            }
            (None, Some(Parked::Exhausted)) => {}
            (None, None) => {
                if *state == EffectState::Settled {
                    return Err(format!("effect {id} is settled and has no outcome"));
                }
            }
        }
        Ok(())
    }
}

/// Log time of an op.
fn time_of(commits: &Commits, op: Op) -> Option<Timestamp> {
    commits.get(op).map(|committed| committed.entry.header().timestamp)
}

/// Whether an attempt was claimed before this time.
fn was_claimed(commits: &Commits, attempt: &Attempt, before: Timestamp) -> bool {
    let emitted = usize::try_from(attempt.effect.op().value()).unwrap_or(usize::MAX);
    let later = commits.log().get(emitted..).unwrap_or_default();
    let mut in_time = later.iter().take_while(|it| it.entry.header().timestamp < before);
    let claims = |request: &Request| matches!(request, Request::Claim { effect, attempt: number } if *effect == attempt.effect && *number == attempt.number);
    in_time.any(|committed| committed.requests.iter().any(claims))
}

/// Whether a person had an effect tried again when its deadline had passed: then it has none any more.
fn was_reopened(commits: &Commits, results: &Results, id: EffectId, deadline: Timestamp) -> bool {
    let log = commits.log();
    let first = log.partition_point(|it| it.entry.header().timestamp < deadline);
    log[first..].iter().any(|committed| {
        let done = results.get(committed.entry.op()).unwrap_or_default();
        let mut requests = committed.requests.iter().zip(done);
        requests.any(|(request, result)| {
            matches!(request, Request::Desk { effect, act: DeskAct::Retry { .. }, .. } if *effect == id)
                && !matches!(result, RequestResult::Refused(_))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_doubt(contract: Contract, deadline: Option<Timestamp>) -> EffectView {
        let id = EffectId::new(Op::new(4), 0);
        EffectView {
            id,
            key: EffectKey::draw(Lineage(7), id),
            sink: SinkName::new("out").expect("a name"),
            lane: None,
            state: EffectState::Parked,
            contract,
            emitted: Timestamp::ZERO,
            due: None,
            deadline,
            attempts_count: 1,
            attempts: Vec::new(),
            claim: None,
            parked: Some(Parked::InDoubt),
            outcome: None,
            acts: Vec::new(),
            payload: Arc::from([]),
        }
    }

    #[test]
    fn a_deadline_explains_a_doubt_only_if_the_next_attempt_would_have_come_too_late() {
        let second = Duration::from_secs(1);
        let parked = Timestamp::ZERO + Duration::from_secs(100);
        let settle = Duration::from_secs(10);
        for (contract, reach) in [
            (Contract::Transactional, second),
            (Contract::AtLeastOnce, second),
            (Contract::Probe { settle }, settle + second),
        ] {
            let mut spec = SinkSpec::new("sim", "{}", contract);
            spec.backoff.attempts_max = 0;
            spec.backoff.max = second;
            spec.timeout = second;
            let explained = |deadline| {
                let view = in_doubt(contract, deadline);
                may_be_given_up(&view, &spec, Some(parked), Duration::ZERO)
            };
            assert!(!explained(None), "{contract:?}");
            assert!(explained(Some(parked)), "{contract:?}");
            assert!(explained(Some(parked + reach)), "{contract:?}");
            assert!(!explained(Some(parked + reach + second)), "{contract:?}");
            spec.backoff.attempts_max = 1;
            let view = in_doubt(contract, None);
            assert!(may_be_given_up(&view, &spec, Some(parked), Duration::ZERO), "{contract:?}");
        }
    }
}
