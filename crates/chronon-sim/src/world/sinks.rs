//! How attempts leave a replica, what becomes of them outside, and how their ends come back.

use std::sync::Arc;

use chronon_kernel::{Attempt, AttemptEnd, Ended};
use chronon_node::BackInput;
use chronon_vsr::Op;

use crate::checker::HandedOut;
use crate::event::Event;
use crate::sink::{Deed, Plan, evidence};
use crate::trace::{Who, salt_of};
use crate::world::OutCall;
use crate::{EffectTerms, Effects, World};

impl World {
    /// The executor takes an attempt up: it asks the gate right before the first byte leaves.
    pub(crate) fn execute(&mut self, at: usize, attempt: Arc<Attempt>) {
        let machine = &self.machines[at];
        let (id, local) = (machine.id, machine.clock.now(self.now()).monotonic);
        let process = machine.process.as_ref().expect("the caller saw that it is alive");
        let frozen = process.back.engine().frozen_sinks().contains(&attempt.sink);
        if frozen || !process.gate.passes(attempt.stamp, attempt.key_known_until, local) {
            self.reach("GateRefused");
            return self.give_back(at, ended(&attempt, AttemptEnd::Abandoned));
        }
        self.note(Who::Replica(id), salt_of(attempt.key.as_str().as_bytes()), || {
            let Attempt { kind, number, effect, sink, stamp, .. } = &*attempt;
            format!("starts {kind:?} {} of {effect} at {sink} under {stamp}", number.0)
        });
        if 1 < attempt.number.0 {
            self.reach("EffectRetried");
        }
        let verdict = self.gate_watch.on_passed(self.now(), id, &attempt);
        self.judge(verdict);
        let verdict = self.promises.on_effect(id, attempt.stamp, self.commits.head());
        self.judge(verdict);
        let verdict = self.judge_start(at);
        self.judge(verdict);
        let Some(sink) = self.sinks.get_mut(&attempt.sink) else {
            let end = Ended::Definite { retry_after: None, evidence: evidence("no such host") };
            return self.give_back(at, ended(&attempt, AttemptEnd::Ended(end)));
        };
        if sink.refuses(self.now) {
            let end = Ended::Definite { retry_after: None, evidence: evidence("connection refused") };
            return self.give_back(at, ended(&attempt, AttemptEnd::Ended(end)));
        }
        let process = self.machines[at].process.as_ref().expect("the caller saw that it is alive");
        let open = process.back.engine().order(attempt.effect).is_some();
        let terms = self.workload.terms(&attempt.payload);
        let reopened =
            terms.is_some_and(|terms| Effects::is_reopened(&self.commits, &self.results, &attempt, terms));
        let in_lane = open && !reopened;
        let verdict = self.effects.on_leave(self.now(), &attempt, in_lane, terms);
        self.judge(verdict);
        let alive = self.out_calls.values().find(|other| {
            let earlier = &other.attempt;
            other.at == at && earlier.effect == attempt.effect && earlier.stamp == attempt.stamp
        });
        if let Some(alive) = alive {
            let (effect, number, earlier) = (attempt.effect, attempt.number.0, alive.attempt.number.0);
            let what =
                format!("R{id} starts attempt {number} of {effect} while its attempt {earlier} is alive");
            self.object(crate::Violation::new(crate::Checker::Effects, what));
        }
        // A call whose effect was settled meanwhile, by what an earlier primary heard, holds no place any more.
        let process = self.machines[at].process.as_ref().expect("the caller saw that it is alive");
        let engine = process.back.engine();
        let calls = self.out_calls.values().filter(|other| other.at == at).map(|other| &other.attempt);
        let of_reign = calls.filter(|other| other.stamp == attempt.stamp && other.sink == attempt.sink);
        let holds_place = |call: &&Arc<Attempt>| engine.order(call.effect).is_some();
        let count = of_reign.chain([&attempt]).filter(holds_place).count();
        let verdict = self.bounds.on_leave(id, &attempt, count);
        self.judge(verdict);
        let call = self.out_calls_made;
        self.out_calls_made += 1;
        let timeout = attempt.timeout();
        let life = self.machines[at].life;
        self.out_calls.insert(call, OutCall { at, life, attempt: Arc::clone(&attempt) });
        let delay = self.network.delay();
        // What has left is on its way, whatever becomes of its sender.
        self.schedule(delay, Event::SinkArrive { call, attempt });
        self.schedule(timeout, Event::AttemptTimeout { call });
    }

    /// A replica hands an attempt out: in the time that its command gave it.
    pub(super) fn judge_terms(&mut self, at: usize, executed: Op, attempt: &Attempt) {
        let Some(terms) = self.workload.terms(&attempt.payload) else { return };
        if terms == EffectTerms::default() {
            return;
        }
        let handed_out = HandedOut { wall: self.machines[at].clock.now(self.now()).wall, executed };
        let verdict = self.effects.on_handed_out(&self.commits, &self.results, attempt, terms, handed_out);
        self.judge(verdict);
        if !terms.after.is_zero() {
            self.reach("DelayedStarted");
        }
        if terms.deadline.is_some() {
            self.reach("StartedBeforeDeadline");
        }
    }

    pub(crate) fn sink_arrive(&mut self, call: u64, attempt: Arc<Attempt>) {
        let now = self.now();
        let Some(sink) = self.sinks.get_mut(&attempt.sink) else { return };
        let plan = sink.receive(now, &attempt, || self.workload.outcome(&attempt));
        match plan {
            Plan::Answer(after, ended) => self.schedule(after, Event::SinkAnswer { call, ended }),
            Plan::Silence => {}
            Plan::Act(after, deed) => self.schedule(after, Event::SinkAct { call, attempt, deed }),
        }
    }

    pub(crate) fn sink_act(&mut self, call: u64, attempt: &Attempt, deed: Deed) {
        let now = self.now();
        let outcome = self.workload.outcome(attempt);
        let Some(sink) = self.sinks.get_mut(&attempt.sink) else { return };
        let done = sink.act(now, attempt, deed, outcome);
        if done.acted {
            let verdict = self.effects.on_act(sink, attempt);
            self.judge(verdict);
        }
        self.trace.note(self.now, Who::Sink, salt_of(attempt.key.as_str().as_bytes()), || {
            let Attempt { sink, effect, number, payload, .. } = attempt;
            let what = self.workload.describe_effect(payload);
            let (did, then) = done.words;
            format!("{sink} {did} {effect} {what} (attempt {}), then {then}", number.0)
        });
        if let Some(ended) = done.answer {
            let delay = self.network.delay();
            self.schedule(delay, Event::SinkAnswer { call, ended });
        }
    }

    /// The executor knows how an attempt ended. Whatever comes later of it is ignored.
    pub(crate) fn end_attempt(&mut self, call: u64, end: Ended) {
        let Some(out_call) = self.out_calls.get(&call) else { return };
        let (at, life) = (out_call.at, out_call.life);
        let again = end.clone();
        if self.alive(at, life) && self.deferred(at, || Event::SinkAnswer { call, ended: again }) {
            return;
        }
        let Some(OutCall { attempt, .. }) = self.out_calls.remove(&call) else { return };
        if self.alive(at, life) {
            self.effects.on_ended(&attempt, &end);
            self.give_back(at, ended(&attempt, AttemptEnd::Ended(end)));
        }
    }
}

fn ended(attempt: &Attempt, end: AttemptEnd) -> BackInput {
    BackInput::AttemptEnded { effect: attempt.effect, number: attempt.number, stamp: attempt.stamp, end }
}

#[cfg(test)]
mod tests {
    use chronon_bank::WebhookOrder;
    use chronon_kernel::{AttemptNumber, Contract};
    use chronon_vsr::Duration;

    use super::*;
    use crate::world::index;
    use crate::{BankWorkload, Cluster};

    /// One effect was settled, and a call of the next one is under way, when a repeat of the first leaves that had been
    /// handed out before.
    fn a_repeat_leaves_after_its_effect_was_settled(concurrency: u32, order: WebhookOrder) {
        let window = Duration::from_secs(3_600);
        let mut workload = BankWorkload::new(Contract::Idempotent { window, replays_errors: false });
        workload.accounts = 2;
        workload.webhook.concurrency = concurrency;
        workload.order = order;
        let mut c = Cluster::of(1, Box::new(workload)).seed(1);
        c.submit(1).settle();
        c.start(8).until("a call is under way", |world| !world.out_calls.is_empty());
        let newest =
            |world: &World| world.out_calls.values().map(|call| Arc::clone(&call.attempt)).next_back();
        let first = newest(c.world()).expect("one is");
        let (sink, lane, effect) = (first.sink.clone(), first.lane.clone(), first.effect);
        c.until("the next one is", |world| {
            let next =
                newest(world).filter(|next| next.sink == sink && next.lane == lane && effect < next.effect);
            next.is_some()
        });
        let primary = c.primary();
        let process = c.world().machines[index(primary)].process.as_ref().expect("it leads");
        assert!(process.back.engine().order(effect).is_none(), "it is settled");
        let repeat = Attempt { number: AttemptNumber(first.number.0 + 1), ..(*first).clone() };
        let calls = c.world().out_calls.len();
        c.world().execute(index(primary), Arc::new(repeat));
        assert_eq!(c.world().violation(), None);
        assert_eq!(c.world().out_calls.len(), calls + 1, "it left");
        c.settle();
    }

    /// Seed 646003152928: the judge of bounds counted the call that was just leaving.
    #[test]
    fn a_call_whose_effect_was_settled_before_it_left_holds_no_place() {
        a_repeat_leaves_after_its_effect_was_settled(1, WebhookOrder::Any);
    }

    /// Seed 596344271299: the auditor took it for one that overtakes.
    #[test]
    fn a_lane_has_gone_on_when_its_settled_effects_last_repeat_leaves() {
        a_repeat_leaves_after_its_effect_was_settled(16, WebhookOrder::ByPayer);
    }
}
