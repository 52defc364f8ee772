//! A person who freezes and thaws sinks, and works at the desk: what they see is what the primary shows, and what they
//! know for certain is what a sink's own ledger says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronon_kernel::{
    Attempt, AttemptKind, AttemptNumber, DeskAct, EffectFilter, EffectId, EffectState, EffectView, SettleAs,
    SinkName,
};
use chronon_node::Gate;
use chronon_vsr::{Duration, Instant, Prng};

use super::index;
use crate::swarm::why_parked;
use crate::{CallKind, World};

/// The client who sets the cluster up, and looks after it from then on.
const OPERATOR: u32 = 0;

/// How many effects are looked at.
const LOOKED_AT: usize = 64;

/// What the operator remembers.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    /// The newest revision of each sink that the operator was told of. Nobody else changes sinks.
    revisions: BTreeMap<SinkName, u64>,
    /// Sinks that the operator asked to have frozen, and not yet thawed.
    frozen: BTreeSet<SinkName>,
    /// When the next freeze, or its end, is due.
    next_freeze: Option<Instant>,
    /// Effects that were parked at every look, and since when.
    parked: BTreeMap<EffectId, Instant>,
}

impl Operator {
    /// The revision to expect of a sink; 0 if none is known.
    pub(crate) fn revision(&self, sink: &SinkName) -> u64 {
        self.revisions.get(sink).copied().unwrap_or_default()
    }

    /// The log has set a sink, or says at which revision it is.
    pub(crate) fn on_revision(&mut self, sink: &SinkName, revision: u64) {
        self.revisions.insert(sink.clone(), revision);
    }
}

impl World {
    /// The operator looks, and does the next thing if the last one has ended.
    pub(crate) fn operate(&mut self, prng: &mut Prng, at_desk: bool) {
        if !self.is_set_up() || !self.clients[OPERATOR as usize].is_done() {
            return;
        }
        if self.operator.next_freeze.is_none_or(|due| due <= self.now) {
            let names = self.sinks.len() as u64;
            if self.operator.frozen.is_empty() && names != 0 {
                let length = Duration::from_millis(prng.between(100, 3_000));
                self.operator.next_freeze = Some(self.now + length);
                let name = self.sinks.keys().nth(prng.below(names) as usize).expect("it is one of them");
                return self.set_frozen(&name.clone(), true);
            }
            self.operator.next_freeze = Some(self.now + Duration::from_millis(prng.between(500, 6_000)));
            return self.thaw_all();
        }
        if at_desk {
            self.work_at_desk(prng);
        }
    }

    /// Every sink that was frozen is to go on.
    pub(crate) fn thaw_all(&mut self) {
        while let Some(name) = self.operator.frozen.first().cloned() {
            self.set_frozen(&name, false);
        }
    }

    /// A sink is to be frozen, or to go on.
    pub(crate) fn set_frozen(&mut self, name: &SinkName, frozen: bool) {
        if frozen {
            self.operator.frozen.insert(name.clone());
        } else {
            self.operator.frozen.remove(name);
        }
        let spec = self.workload.sinks().into_iter().find(|(known, _)| known == name);
        let (_, mut spec) = spec.expect("only sinks of the workload are frozen");
        spec.frozen = frozen;
        self.ask(OPERATOR, CallKind::SinkSet { name: name.clone(), spec: Box::new(spec), revision: 0 });
    }

    /// Whether the primary shows an effect that is parked.
    pub(crate) fn holds_parked(&self) -> bool {
        self.look(EffectState::Parked).is_some_and(|parked| !parked.is_empty())
    }

    /// Acts on an effect that has long been parked, or tries to cancel one that has not.
    pub(crate) fn work_at_desk(&mut self, prng: &mut Prng) {
        let Some(parked) = self.look(EffectState::Parked) else { return };
        let now = self.now;
        self.operator.parked.retain(|id, _| parked.iter().any(|view| view.id == *id));
        for view in &parked {
            self.operator.parked.entry(view.id).or_insert(now);
        }
        // An attempt of an earlier primary may have left until the gate closed for it, and a request of the operator's
        // own that nobody answered may still be taken in until its time is over.
        let wait = 2 * Gate::FREEZE_HOLDS_AFTER + 2 * self.config.clients.patience;
        let mut long_parked = parked.iter().filter(|view| self.operator.parked[&view.id] + wait <= now);
        if let Some(view) = long_parked.next() {
            if let Some(act) = self.choose(prng, view) {
                // At the end it may be parked no more.
                if let Some(why) = why_parked(view) {
                    self.reach(why);
                }
                self.operator.parked.remove(&view.id);
                self.ask(OPERATOR, CallKind::Desk(view.id, act));
            }
            return;
        }
        let states = [EffectState::Ready, EffectState::Started, EffectState::Waiting];
        let state = states[prng.below(3) as usize];
        let open = self.look(state).unwrap_or_default();
        if !open.is_empty() && prng.chance(1, 4) {
            let id = open[prng.below(open.len() as u64) as usize].id;
            self.ask(OPERATOR, CallKind::Desk(id, DeskAct::Cancel { reason: "not wanted".to_owned() }));
        }
    }

    /// The open effects in this state, as the primary shows them.
    fn look(&self, state: EffectState) -> Option<Vec<EffectView>> {
        let primary = self.primary()?;
        if self.is_quarantined(primary) || self.machines[index(primary)].diverged {
            return None;
        }
        let filter = EffectFilter { state: Some(state), ..EffectFilter::default() };
        self.engine(primary).map(|engine| engine.effects(&filter, None, LOOKED_AT))
    }

    /// What to do with a parked effect. None while its sink is still at it: then the ledger does not say all.
    fn choose(&self, prng: &mut Prng, view: &EffectView) -> Option<DeskAct> {
        let sink = self.sinks.get(&view.sink).filter(|sink| !sink.works_on(&view.key))?;
        let landed = sink.acts(&view.key).next().is_some();
        let reason = "as the ledger says".to_owned();
        let resolve = |settle| DeskAct::Resolve { settle, reason: reason.clone() };
        Some(match prng.below(4) {
            // Refused if it is in doubt.
            0 => DeskAct::Retry { not_delivered: false, accept_duplicate: false, reason },
            1 => DeskAct::Retry { not_delivered: !landed, accept_duplicate: landed, reason },
            2 => resolve(SettleAs::Unknown),
            _ if landed => resolve(SettleAs::Delivered { outcome: self.outcome_of(view)? }),
            _ => resolve(SettleAs::Failed),
        })
    }

    /// What a sink answers to an effect that it acted upon.
    fn outcome_of(&self, view: &EffectView) -> Option<Vec<u8>> {
        let (_, spec) = self.workload.sinks().into_iter().find(|(name, _)| *name == view.sink)?;
        Some(self.workload.outcome(&Attempt {
            effect: view.id,
            key: view.key.clone(),
            number: AttemptNumber(view.attempts_count),
            kind: AttemptKind::Call,
            stamp: self.config.stamp,
            key_known_until: None,
            sink: view.sink.clone(),
            spec: Arc::new(spec),
            lane: view.lane.clone(),
            emitted: view.emitted,
            payload: Arc::clone(&view.payload),
        }))
    }
}
