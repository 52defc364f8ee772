//! When all is quiet, and what must be true then.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use chronon_kernel::{
    Answer, Culprit, Engine, EngineOptions, Halted, Lineage, Put, QueryError, Request, RequestResult,
};
use chronon_vsr::{Checksum, Duration, Instant, Op, Role, Status, Timestamp};

use crate::checker::Replayed;
use crate::{CallKind, Checker, Violation, World};

/// Timers and delayed effects that are due later than this after the last thing that anybody asked for are not waited
/// for: a machine may have some that are due next year, or again every second.
const LATER: Duration = Duration::from_secs(15);

type QueryAnswer = Result<Vec<u8>, QueryError>;

impl World {
    /// Whether all is quiet: every call has ended, every replica is up and has executed everything, and every effect
    /// is settled or parked. Timers and effects that are due more than 15 seconds after the last command may wait.
    /// If it is not quiet, says what is still going on.
    pub fn is_quiet(&self) -> Result<(), String> {
        if let Some(halted) = self.anyone_halted() {
            return Err(halted);
        }
        if !self.clients_done() {
            let busy = self.clients.iter().find(|client| !client.is_done());
            return Err(format!("a client waits: {busy:?}"));
        }
        // A forsaken replica's attempt may never end: paused, it hears no answer.
        if self.out_calls.values().any(|out_call| !self.machines[out_call.at].forsaken) {
            return Err("an attempt is under way".to_owned());
        }
        let (head, later) = (self.commits.head(), self.later());
        for machine in &self.machines {
            let id = machine.id;
            if machine.forsaken || self.is_quarantined(id) {
                continue;
            }
            if machine.diverged {
                return Err(format!("nobody has found out that R{id} differs from the others"));
            }
            let Some(process) = machine.process.as_ref().filter(|_| !machine.paused) else {
                return Err(format!("R{id} does not run"));
            };
            let (status, engine) = (process.front.status(), process.back.engine().status());
            let follows = matches!(status.role, Role::Primary { serving: true, .. } | Role::Backup { .. });
            if status.status != Status::Normal || !follows {
                return Err(format!("R{id} is {status:?}"));
            }
            if status.applied != head || status.head != head || status.commit_max.op != head {
                return Err(format!("R{id} lags behind op {head}: {status:?}"));
            }
            // One of them may settle what is parked in doubt, and all that waits behind it in its lane.
            if 0 < process.back.unlogged_ends() {
                return Err(format!("R{id} knows ends of attempts that the log does not hold"));
            }
            // Behind a parked effect its lane waits, and rightly so.
            let ready = if engine.parked == 0 { engine.ready } else { 0 };
            if ready + engine.started + engine.waiting + engine.callbacks != 0 {
                return Err(format!("R{id} has open effects: {engine:?}"));
            }
            let due = process.back.engine().next_due().filter(|due| *due <= later);
            if due.is_some() && engine.scheduled + engine.timers != 0 {
                return Err(format!("R{id} has timers or effects that are due: {engine:?}"));
            }
        }
        Ok(())
    }

    /// Where execution has halted on a replica, in words.
    pub(crate) fn anyone_halted(&self) -> Option<String> {
        let halted = |machine: &crate::process::Machine| {
            let process = machine.process.as_ref().filter(|_| !self.is_quarantined(machine.id))?;
            let halted = process.front.halted()?;
            let (id, Halted { op, culprit, message, .. }) = (machine.id, halted);
            let what = match (culprit, self.commits.get(*op)) {
                (Culprit::Request(at), Some(committed)) => match committed.requests.get(*at as usize) {
                    Some(Request::Command { body, .. }) => self.workload.describe_command(body),
                    Some(_) | None => culprit.to_string(),
                },
                (Culprit::Settled(effect) | Culprit::Parked(effect), _) => {
                    let view = process.back.engine().effect(*effect);
                    let payload = view.map(|view| self.workload.describe_effect(&view.payload));
                    format!("{culprit}, {}", payload.unwrap_or_default())
                }
                (Culprit::Request(_) | Culprit::Timer(_), _) => culprit.to_string(),
            };
            Some(format!("R{id} has halted at op {op}, at {what}, for the machine panicked: {message}"))
        };
        self.machines.iter().find_map(halted)
    }

    /// By log time: what is due after this nobody waits for.
    fn later(&self) -> Timestamp {
        let asks = |request: &Request| match request {
            Request::Register { .. }
            | Request::Command { .. }
            | Request::SinkSet { .. }
            | Request::Desk { .. }
            | Request::Skip(_) => true,
            Request::Tick | Request::Claim { .. } | Request::Outcome(_) => false,
        };
        let newest = self.commits.log().iter().rev().find(|committed| committed.requests.iter().any(asks));
        newest.map_or(Timestamp::ZERO, |committed| committed.entry.header().timestamp) + LATER
    }

    /// Whether something is set for later, for which nobody waits.
    pub(crate) fn expects_something(&self) -> bool {
        self.machines.iter().filter_map(|machine| machine.process.as_ref()).any(|process| {
            let engine = process.back.engine().status();
            engine.scheduled + engine.timers != 0
        })
    }

    /// When the oldest of the calls under way began.
    pub(crate) fn oldest_call(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| client.call.as_ref()).map(|call| call.invoked).min()
    }

    /// How every replica's engine is made.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            lineage: Lineage(self.lineage),
            limits: self.config.engine,
            mutations: self.config.mutations,
        }
    }

    /// When all is quiet: a fresh engine that replays the log agrees with every replica and every read, the machine's
    /// own invariant holds, and log, results and ledgers tell one story.
    pub fn check_quiet(&self) -> Result<(), Violation> {
        self.history.check_end(&self.results)?;
        let unended: Vec<_> = self.history.unended().cloned().collect();
        self.workload
            .check_history(self.history.completed(), &unended)
            .map_err(|what| Violation::new(Checker::Linearizability, what))?;
        // The code under test, broken or not: a judge that had a sound copy of it would see what no judge can.
        let mut engine = self.workload.engine(self.engine_options());
        let mut reads: BTreeMap<Op, Vec<_>> = BTreeMap::new();
        for completed in self.history.completed() {
            if let (CallKind::Query { query, .. }, Answer::Answered { answer, .. }) =
                (&completed.kind, &completed.answer)
            {
                reads.entry(completed.op).or_default().push((
                    completed.call,
                    query.as_slice(),
                    answer.as_slice(),
                ));
            }
        }
        let (mut replayed, mut callbacks_aborted) =
            (Replayed::new(self.config.engine.clock_bound), Vec::new());
        for op in 0..=self.commits.head().value() {
            let op = Op::new(op);
            if let Some(committed) = self.commits.get(op) {
                let applied = self.commits.execute(&mut *engine, &committed.entry).map_err(|halted| {
                    let what = format!("a replay of the log halts where no replica does: {halted:?}");
                    Violation::new(Checker::Digest, what)
                })?;
                let known = self.results.digest(op);
                replayed.on_executed(op, committed.entry.header().timestamp, &*engine);
                let aborted = engine.status().callbacks_aborted;
                if callbacks_aborted.last().map_or(0, |(_, count)| *count) < aborted {
                    callbacks_aborted.push((op, aborted));
                }
                if known.is_some_and(|known| known != applied.digest) {
                    let what = format!("a replay of the log differs from the replicas at op {op}");
                    return Err(Violation::new(Checker::Digest, what));
                }
            }
            for (call, query, answer) in reads.remove(&op).unwrap_or_default() {
                let answered = engine.query(query);
                if answered.as_deref() != Ok(answer) {
                    let again = engine.query(query);
                    let what = self.misread(query, answer, &answered, &again);
                    let what =
                        format!("the read {call:?} at op {op} says what no state at that op says: {what}");
                    return Err(Violation::new(Checker::Linearizability, what));
                }
            }
        }
        let state = chunks_of(&*engine);
        for machine in &self.machines {
            let is_waited_for = !machine.forsaken && !self.is_quarantined(machine.id);
            let Some(process) = machine.process.as_ref().filter(|_| is_waited_for) else { continue };
            let own = process.back.engine();
            if own.applied() == engine.applied() && chunks_of(own) != state {
                let what = format!("R{} holds another state than a replay of the log", machine.id);
                return Err(Violation::new(Checker::Digest, what));
            }
        }
        self.effects.check_end(
            &self.commits,
            &self.results,
            &*engine,
            &self.sinks,
            &*self.workload,
            &replayed,
        )?;
        let (mut applied, mut aborted) = (Vec::new(), Vec::new());
        for (at, result) in self.results.all() {
            let committed = self.commits.get(Op::new(at.op)).map(|committed| &committed.requests);
            let request = committed.and_then(|requests| requests.get(at.request as usize));
            let Some(Request::Command { body, .. }) = request else { continue };
            match result {
                RequestResult::Replied { at: first, timestamp, reply, .. } if *first == at => {
                    applied.push(crate::Applied { at, log_time: *timestamp, command: body, reply });
                }
                RequestResult::Aborted { at: first, why } if *first == at => aborted.push((&**body, why)),
                _ => {}
            }
        }
        let callbacks_aborted = callbacks_aborted.into_iter().map(|(op, _)| op).collect();
        let quiet = crate::Quiet {
            engine: &*engine,
            applied,
            aborted,
            callbacks_aborted,
            replayed: &replayed,
            sinks: &self.sinks,
        };
        self.workload.check_quiet(&quiet).map_err(|what| Violation::new(Checker::Machine, what))
    }

    /// A read in words that a replay of the log, asked the same twice, answers otherwise.
    fn misread(&self, query: &[u8], answer: &[u8], one: &QueryAnswer, other: &QueryAnswer) -> String {
        let said = |answer: &QueryAnswer| match answer {
            Ok(answer) => self.workload.describe_answer(answer),
            Err(error) => error.to_string(),
        };
        let asked = self.workload.describe_query(query);
        let (seen, replayed) = (self.workload.describe_answer(answer), said(one));
        let hint = if one == other {
            ""
        } else {
            ". Of one state it says something else each time: query reads a clock, draws random numbers, or walks a HashMap"
        };
        format!("{asked} was answered {seen}, and a replay of the log answers {replayed}{hint}")
    }
}

/// The names of a state's chunks: the whole state in a few bytes.
pub(crate) fn chunks_of(engine: &dyn Engine) -> Vec<Checksum> {
    let mut chunks = Vec::new();
    let ended = engine.freeze().write(None, &mut |put| {
        match put {
            Put::New { id, .. } | Put::Kept(id) => chunks.push(id),
        }
        ControlFlow::Continue(())
    });
    assert_eq!(ended, ControlFlow::Continue(()));
    chunks
}
