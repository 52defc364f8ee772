//! What may be seen of the outbox.

use core::ops::Bound;
use std::sync::Arc;

use chronon_vsr::{Duration, Stamp, Timestamp};

use super::{Callback, Outbox, is_frozen};
use crate::delivery::Doubt;
use crate::effect::{Effect, Phase};
use crate::view::{
    ActView, Asked, ClaimState, EffectFilter, EffectState, EffectView, EngineStatus, Order, SinkView,
};
use crate::{Attempt, AttemptKind, AttemptNumber, Contract, EffectId, Lineage, SinkName};

impl Outbox {
    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// How many effects are open.
    pub(crate) fn len(&self) -> usize {
        self.effects.len()
    }

    /// The effect, if it is still parked for this time.
    pub(crate) fn parked_now(&self, id: EffectId, parking: u32) -> Option<Arc<Effect>> {
        let effect = self.effects.get(&id)?;
        let parked = matches!(effect.phase, Phase::Parked(_)) && effect.parkings == parking;
        parked.then(|| Arc::clone(effect))
    }

    /// The callback that is to be heard next, with its number.
    pub(crate) fn next_callback(&self) -> Option<(u64, Callback)> {
        self.books.callbacks.get_min().cloned()
    }

    pub(crate) fn remove_callback(&mut self, sequence: u64) {
        self.books.callbacks.remove(&sequence);
    }

    pub(crate) fn push_callback(&mut self, callback: Callback) {
        self.books.call_back(callback);
    }

    /// A digest of what changed since this was asked last.
    pub(crate) fn drain_fold(&mut self) -> u64 {
        core::mem::replace(&mut self.books.fold, crate::state::Fold::EMPTY).value()
    }

    pub(crate) fn view(&self, id: EffectId) -> Option<EffectView> {
        if let Some(effect) = self.effects.get(&id) {
            return Some(effect.view(self.books.place.reign, None));
        }
        let past = self.past.get(&id)?;
        Some(past.effect.view(self.books.place.reign, Some(past.outcome_view())))
    }

    pub(crate) fn views(
        &self,
        filter: &EffectFilter,
        after: Option<EffectId>,
        limit: usize,
    ) -> Vec<EffectView> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let passes = |effect: &Effect| {
            filter.sink.as_ref().is_none_or(|sink| *sink == effect.sink)
                && filter.lane.as_ref().is_none_or(|lane| Some(&**lane) == effect.lane.as_deref())
        };
        let reign = self.books.place.reign;
        let past = self.past.range::<_, EffectId>((from, Bound::Unbounded));
        let past = past
            .filter(|(_, past)| passes(&past.effect))
            .map(|(_, past)| past.effect.view(reign, Some(past.outcome_view())));
        let open = |effect: &Arc<Effect>| effect.view(reign, None);
        match filter.state {
            Some(EffectState::Settled) => past.take(limit).collect(),
            // The rare state has an index of its own.
            Some(EffectState::Parked) => {
                let parked = self.books.parked.range::<_, EffectId>((from, Bound::Unbounded));
                let parked = parked.filter_map(|id| self.effects.get(id)).filter(|effect| passes(effect));
                parked.take(limit).map(open).collect()
            }
            state => {
                let effects = self.effects.range::<_, EffectId>((from, Bound::Unbounded)).map(|(_, it)| it);
                let chosen = effects
                    .filter(|effect| state.is_none_or(|state| state == effect.state()) && passes(effect))
                    .take(limit)
                    .map(open);
                if state.is_some() {
                    return chosen.collect();
                }
                let mut views: Vec<EffectView> = chosen.chain(past.take(limit)).collect();
                views.sort_by_key(|view| view.id);
                views.truncate(limit);
                views
            }
        }
    }

    pub(crate) fn sink_view(&self, name: &SinkName) -> Option<SinkView> {
        let sink = self.books.sinks.get(name)?;
        Some(SinkView {
            name: name.clone(),
            revision: sink.revision,
            spec: (*sink.spec).clone(),
            open: sink.open,
            started: sink.started,
            parked: sink.parked,
        })
    }

    pub(crate) fn sink_views(&self) -> Vec<SinkView> {
        self.books.sinks.keys().filter_map(|name| self.sink_view(name)).collect()
    }

    pub(crate) fn act_views(&self, after: u64, limit: usize) -> Vec<(u64, ActView)> {
        let acts = self.acts.range::<_, u64>((Bound::Excluded(after), Bound::Unbounded));
        acts.take(limit).map(|(number, act)| (*number, act.clone())).collect()
    }

    /// The counts that the outbox knows.
    pub(crate) fn status(&self) -> EngineStatus {
        EngineStatus {
            outbox_bytes: self.bytes as u64,
            callbacks: self.books.callbacks.len() as u64,
            sinks: self.books.sinks.len() as u64,
            ..self.books.status
        }
    }

    // ---- for the dispatcher ----------------------------------------------------------------------------------------

    pub(crate) fn orders(&self, after: u64) -> Vec<Order> {
        let orders = self.books.orders.range::<_, u64>((Bound::Excluded(after), Bound::Unbounded));
        orders.filter_map(|(sequence, id)| self.order_under(*sequence, *id)).collect()
    }

    pub(crate) fn order(&self, id: EffectId) -> Option<Order> {
        let effect = self.effects.get(&id)?;
        let sequence = effect.order_sequence()?;
        self.order_under(sequence, id)
    }

    fn order_under(&self, sequence: u64, id: EffectId) -> Option<Order> {
        let effect = self.effects.get(&id)?;
        let start_before = match effect.claim_state() {
            // Its start was decided with the claim.
            ClaimState::Claimed(_) => Timestamp::MAX,
            ClaimState::NotNeeded | ClaimState::Needed => effect.start_before(self.books.margin_of(effect)),
        };
        // Whoever obeys compares it with a clock of its own, which may be behind log time.
        let is_over = start_before <= self.books.place.now;
        let start_before = if is_over { Timestamp::ZERO } else { start_before };
        Some(Order {
            sequence,
            effect: id,
            number: AttemptNumber(effect.ordered_number(self.books.place.reign)),
            kind: effect.kind(),
            claim: effect.claim_state(),
            start_before,
        })
    }

    pub(crate) fn asked(&self, id: EffectId) -> Option<Asked> {
        let effect = self.effects.get(&id)?;
        let (Some(claim), Contract::Probe { settle }, AttemptKind::Probe) =
            (effect.claim, effect.contract, effect.kind())
        else {
            return None;
        };
        // A call of an earlier primary may have started as late as this one's first op, and take as long as a call can.
        let lost = self.books.place.born != Some(claim.stamp);
        let call_max = if lost { self.books.margin_of(effect) } else { Duration::ZERO };
        Some(Asked { call: AttemptNumber(claim.attempt), firm_after: call_max + settle })
    }

    pub(crate) fn frozen_sinks(&self) -> Vec<SinkName> {
        let frozen = self.books.sinks.iter().filter(|(_, sink)| is_frozen(sink, self.mutations));
        frozen.map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn attempt(&self, order: &Order, stamp: Stamp) -> Option<Attempt> {
        let effect = self.effects.get(&order.effect)?;
        let sink = self.books.sinks.get(&effect.sink)?;
        if is_frozen(sink, self.mutations) {
            return None;
        }
        // The log has not seen this stamp yet, and an earlier primary may have started the attempt of this number.
        let ahead =
            order.claim == ClaimState::NotNeeded && self.books.place.born.is_some_and(|born| born < stamp);
        let repeats = ahead || effect.doubt(self.books.place.reign) == Doubt::Possible;
        let window_end = effect.window_end(self.books.margin(&sink.spec));
        Some(Attempt {
            effect: order.effect,
            key: effect.key.clone(),
            number: AttemptNumber(order.number.0 + u32::from(ahead)),
            kind: order.kind,
            stamp,
            key_known_until: (repeats && window_end < Timestamp::MAX).then_some(window_end),
            sink: effect.sink.clone(),
            spec: Arc::clone(&sink.spec),
            lane: effect.lane.as_deref().map(str::to_owned),
            emitted: effect.emitted,
            payload: Arc::clone(&effect.payload),
        })
    }

    pub(crate) fn holds_claims_older_than(&self, stamp: Stamp) -> bool {
        // A later stamp's first op puts older claims in doubt, so all that are left are the newest stamp's.
        !self.books.claimed.is_empty() && self.books.place.born.is_some_and(|born| born < stamp)
    }
}
