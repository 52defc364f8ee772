//! What ops did: the same on every replica; each request applied once; each repeat answered like the first.

use std::collections::{BTreeMap, BTreeSet};

use chronon_kernel::{Origin, Refusal, Request, RequestId, RequestResult, SessionId};
use chronon_vsr::{Applied, Digest, Op, ReplicaId};

use crate::{Checker, Commits, Violation};

/// Watches every execution of every op.
#[derive(Debug, Default)]
pub struct Results {
    ops: Vec<Executed>,
    /// Where each name was applied.
    origins: BTreeMap<OriginKey, RequestId>,
    /// Sessions whose eviction the log has told somebody of.
    evicted: BTreeSet<SessionId>,
}

#[derive(Debug)]
struct Executed {
    digest: Digest,
    results: Vec<RequestResult>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OriginKey {
    Session(SessionId, u64),
    Key(String, String),
}

impl OriginKey {
    fn of(origin: &Origin) -> OriginKey {
        match origin {
            Origin::Session { session, number } => OriginKey::Session(*session, number.0),
            Origin::Key { principal, key } => OriginKey::Key(principal.clone(), key.clone()),
        }
    }
}

impl Results {
    /// The results of an op, if any replica has executed it.
    pub fn get(&self, op: Op) -> Option<&[RequestResult]> {
        self.executed(op).map(|executed| executed.results.as_slice())
    }

    /// The digest after an op, if any replica has executed it.
    pub fn digest(&self, op: Op) -> Option<Digest> {
        self.executed(op).map(|executed| executed.digest)
    }

    /// Where a name was applied, if it was.
    pub fn applied_at(&self, origin: &Origin) -> Option<RequestId> {
        self.origins.get(&OriginKey::of(origin)).copied()
    }

    /// Whether the log ever said that this session is evicted.
    pub fn is_evicted(&self, session: SessionId) -> bool {
        self.evicted.contains(&session)
    }

    /// How many commands were applied, repeats not counted.
    pub fn commands_applied(&self) -> usize {
        self.origins.len()
    }

    /// How many commands were applied under an Idempotency-Key.
    pub fn keys_applied(&self) -> usize {
        self.origins.keys().filter(|origin| matches!(origin, OriginKey::Key(..))).count()
    }

    /// Every result of every op, in order.
    pub fn all(&self) -> impl Iterator<Item = (RequestId, &RequestResult)> {
        self.ops.iter().enumerate().flat_map(|(at, executed)| {
            let op = at as u64 + 1;
            let results = executed.results.iter().enumerate();
            results.map(move |(request, result)| (RequestId { op, request: request as u32 }, result))
        })
    }

    fn executed(&self, op: Op) -> Option<&Executed> {
        self.ops.get(usize::try_from(op.value().checked_sub(1)?).ok()?)
    }

    /// A replica executed an op.
    pub(crate) fn on_executed(
        &mut self,
        commits: &Commits,
        replica: ReplicaId,
        applied: Applied,
        results: &[RequestResult],
    ) -> Result<(), Violation> {
        if let Some(known) = self.executed(applied.op) {
            if known.results != results {
                let what = format!(
                    "R{replica} answers op {} with {results:?}, another replica with {:?}",
                    applied.op, known.results
                );
                return Err(Violation::new(Checker::Digest, what));
            }
            if known.digest != applied.digest {
                let what = format!("R{replica} has another digest after op {}", applied.op);
                return Err(Violation::new(Checker::Digest, what));
            }
            return Ok(());
        }
        let committed = commits.get(applied.op).expect("an op is handed out before it is executed");
        if applied.op.value() != self.ops.len() as u64 + 1 {
            let what = format!("R{replica} executed op {} before the one before it", applied.op);
            return Err(Violation::new(Checker::Digest, what));
        }
        if committed.requests.len() != results.len() {
            let (requests, results) = (committed.requests.len(), results.len());
            let what = format!("op {} has {requests} requests and {results} results", applied.op);
            return Err(Violation::new(Checker::Sessions, what));
        }
        for (number, (request, result)) in committed.requests.iter().zip(results).enumerate() {
            let here = RequestId { op: applied.op.value(), request: number as u32 };
            self.on_result(here, request, result, results)?;
        }
        self.ops.push(Executed { digest: applied.digest, results: results.to_vec() });
        Ok(())
    }

    fn on_result(
        &mut self,
        here: RequestId,
        request: &Request,
        result: &RequestResult,
        this_op: &[RequestResult],
    ) -> Result<(), Violation> {
        let Request::Command { origin, .. } = request else { return Ok(()) };
        if let (Origin::Session { session, .. }, RequestResult::Refused(Refusal::SessionEvicted)) =
            (origin, result)
        {
            self.evicted.insert(*session);
        }
        let (RequestResult::Replied { at, .. } | RequestResult::Aborted { at, .. }) = result else {
            return Ok(());
        };
        let name = OriginKey::of(origin);
        if *at == here {
            if let Some(first) = self.origins.insert(name.clone(), here) {
                let what = format!("{name:?} was applied at {first:?} and again at {here:?}");
                return Err(Violation::new(Checker::Sessions, what));
            }
            return Ok(());
        }
        let first_op = if at.op == here.op { Some(this_op) } else { self.get(Op::new(at.op)) };
        let first = first_op.and_then(|results| results.get(at.request as usize));
        if self.origins.get(&name) != Some(at) || first != Some(result) {
            let what = format!(
                "the repeat of {name:?} at {here:?} is answered with {result:?}, first was {first:?}"
            );
            return Err(Violation::new(Checker::Sessions, what));
        }
        Ok(())
    }
}
