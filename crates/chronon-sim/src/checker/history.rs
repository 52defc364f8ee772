//! What clients saw: every answer fits one order of all calls, and that order respects real time.
//!
//! Answers carry the op that they reflect, so the order need not be searched for: it is the log's. A command must lie
//! in the log after everything that anybody had been told of when it was called; a read must reflect that much. What
//! a read says is compared later with a replay of the log (`crate::World::check_quiet`).

use std::collections::BTreeMap;

use chronon_kernel::{Answer, Consistency, Origin, Refusal, RequestResult};
use chronon_vsr::{Instant, Op};

use crate::client::Call;
use crate::{CallId, CallKind, Checker, Results, Violation};

/// A call that has ended well.
#[derive(Clone, Debug)]
pub struct Completed {
    /// The call.
    pub call: CallId,
    /// What was asked.
    pub kind: CallKind,
    /// When it was asked, in world time.
    pub invoked: Instant,
    /// When the answer came, in world time.
    pub completed: Instant,
    /// How often it was sent.
    pub attempts: u32,
    /// The op that decided it or that the answer reflects.
    pub op: Op,
    /// The answer.
    pub answer: Answer,
}

/// A call whose end nobody heard.
#[derive(Clone, Debug)]
pub struct Begun {
    /// What was asked.
    pub kind: CallKind,
    /// When it was asked, in world time.
    pub invoked: Instant,
}

/// Watches the clients.
#[derive(Debug, Default)]
pub struct History {
    completed: Vec<Completed>,
    /// Calls that have not ended: under way, or given up without knowing.
    begun: BTreeMap<CallId, Begun>,
    answers: BTreeMap<CallId, RequestResult>,
    /// The newest op that anybody has been told of.
    floor: Op2,
    /// How many calls came under each Idempotency-Key: a second one rightly hears of what was applied before it began.
    keys: BTreeMap<(String, String), u32>,
    /// Calls that were told "not executed" on every attempt, and given up.
    never: Vec<Origin>,
}

#[derive(Debug)]
struct Op2(Op);

impl Default for Op2 {
    fn default() -> Op2 {
        Op2(Op::ROOT)
    }
}

impl History {
    /// The newest op that anybody has been told of.
    pub fn floor(&self) -> Op {
        self.floor.0
    }

    /// Every call that ended well, in the order of their answers.
    pub fn completed(&self) -> &[Completed] {
        &self.completed
    }

    /// Every call whose end nobody heard.
    pub fn unended(&self) -> impl Iterator<Item = &Begun> {
        self.begun.values()
    }

    /// A client begins a call.
    pub(crate) fn on_called(&mut self, now: Instant, id: CallId, kind: &CallKind) {
        self.begun.insert(id, Begun { kind: kind.clone(), invoked: now });
        if let CallKind::Command { origin: Origin::Key { principal, key }, .. } = kind {
            *self.keys.entry((principal.clone(), key.clone())).or_default() += 1;
        }
    }

    fn is_repeated(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Key { principal, key } => {
                self.keys.get(&(principal.clone(), key.clone())).is_some_and(|calls| 1 < *calls)
            }
            Origin::Session { .. } => false,
        }
    }

    /// An attempt of a call is answered by the log. The call may have ended before: duplicates answer too.
    pub(crate) fn on_decided(
        &mut self,
        results: &Results,
        id: CallId,
        kind: Option<&CallKind>,
        result: &RequestResult,
    ) -> Result<(), Violation> {
        if let (
            RequestResult::Refused(Refusal::SessionEvicted),
            Some(CallKind::Command { origin: Origin::Session { session, .. }, .. }),
        ) = (result, kind)
            && !results.is_evicted(*session)
        {
            let what = format!("call {id:?} is told that {session:?} is evicted; the log never said so");
            return Err(Violation::new(Checker::Sessions, what));
        }
        let (RequestResult::Replied { at, .. } | RequestResult::Aborted { at, .. }) = result else {
            return Ok(());
        };
        let first = results.get(Op::new(at.op)).and_then(|results| results.get(at.request as usize));
        if first != Some(result) {
            let what = format!("call {id:?} is told {result:?}; the log says {first:?}");
            return Err(Violation::new(Checker::Durability, what));
        }
        if let Some(CallKind::Command { origin, .. }) = kind
            && results.applied_at(origin) != Some(*at)
        {
            let what = format!("call {id:?} ({origin:?}) is told of {at:?}, which is another's");
            return Err(Violation::new(Checker::Sessions, what));
        }
        let known = self.answers.entry(id).or_insert_with(|| result.clone());
        if known != result {
            let what = format!("call {id:?} is told {known:?} and {result:?}");
            return Err(Violation::new(Checker::Sessions, what));
        }
        Ok(())
    }

    /// A call has ended well.
    pub(crate) fn on_completed(
        &mut self,
        now: Instant,
        call: &Call,
        op: Op,
        answer: Answer,
    ) -> Result<(), Violation> {
        let in_order = match &call.kind {
            CallKind::Register | CallKind::SinkSet { .. } | CallKind::Desk(..) | CallKind::Skip(_) => true,
            CallKind::Command { origin, .. } => call.floor < op || self.is_repeated(origin),
            CallKind::Query { consistency: Consistency::Linearizable, .. } => call.floor <= op,
            CallKind::Query { consistency: Consistency::AtLeast(least), .. } => *least <= op.value(),
            CallKind::Query { consistency: Consistency::Local, .. } => true,
        };
        if !in_order {
            let what = format!(
                "call {:?} began when op {} was known and was answered from op {op}: {:?}",
                call.id, call.floor, call.kind
            );
            return Err(Violation::new(Checker::Linearizability, what));
        }
        self.floor.0 = self.floor.0.max(op);
        self.begun.remove(&call.id);
        self.completed.push(Completed {
            attempts: call.attempts,
            call: call.id,
            kind: call.kind.clone(),
            invoked: call.invoked,
            completed: now,
            op,
            answer,
        });
        Ok(())
    }

    /// A client gave a call up because every attempt of it was "not executed".
    pub(crate) fn on_never(&mut self, call: &Call) {
        // It is known not to have happened.
        self.begun.remove(&call.id);
        if let CallKind::Command { origin, .. } = &call.kind {
            self.never.push(origin.clone());
        }
    }

    /// At the end: what was "not executed" is not in the log, and what was acknowledged is.
    pub(crate) fn check_end(&self, results: &Results) -> Result<(), Violation> {
        if let Some((origin, at)) =
            self.never.iter().find_map(|origin| results.applied_at(origin).map(|at| (origin, at)))
        {
            let what = format!("{origin:?} was told \"not executed\" and was applied at {at:?}");
            return Err(Violation::new(Checker::NotExecuted, what));
        }
        Ok(())
    }
}
