//! A log with one reader, for tests: it makes the ops, runs two kernels side by side, and checks after each op what must
//! always hold.

use std::collections::{BTreeMap, BTreeSet};

use chronon_kernel::{
    Batch, ClaimState, CommittedOp, Contract, EffectFilter, EffectId, EffectState, EffectView, Ended, Engine,
    EngineOptions, Evidence, Kernel, Limits, Lineage, Order, Origin, OutcomeReport, Request, RequestNumber,
    RequestResult, SessionId, SinkName, SinkSpec,
};
use chronon_vsr::{Duration, Epoch, Mutations, Op, Stamp, Timestamp, View};

use crate::probe_machine::{Act, Ending, Heard, Scribe};

pub(crate) const START: u64 = 1_700_000_000_000_000_000;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) struct Log {
    pub(crate) kernel: Kernel<Scribe>,
    /// Executes the same, and is looked at from outside only.
    pub(crate) twin: Box<dyn Engine>,
    op: u64,
    pub(crate) now: Timestamp,
    pub(crate) stamp: Stamp,
    requests: u64,
    session: Option<SessionId>,
    pub(crate) limits: Limits,
    /// Whether what must hold is checked: not while a guard is broken.
    pub(crate) checks: bool,
}

pub(crate) fn stamp(view: u64) -> Stamp {
    Stamp { epoch: Epoch::new(0), view: View::new(view) }
}

pub(crate) fn sink_name(name: &str) -> SinkName {
    SinkName::new(name).unwrap()
}

/// A sink whose attempts take 10 s at most; with the clock bound of 1.5 s its margin is 11.5 s.
pub(crate) fn spec(contract: Contract) -> SinkSpec {
    SinkSpec::new("test", "{}", contract)
}

pub(crate) fn emit_to(sink: &str) -> Act {
    Act::Emit { sink: sink.into(), lane: None, after: Duration::ZERO, deadline: None, body: vec![1] }
}

pub(crate) fn emit_in(sink: &str, lane: &str) -> Act {
    Act::Emit {
        sink: sink.into(),
        lane: Some(lane.into()),
        after: Duration::ZERO,
        deadline: None,
        body: vec![1],
    }
}

pub(crate) fn evidence() -> Evidence {
    Evidence("seen".into())
}

pub(crate) fn delivered(value: u64) -> Ended {
    Ended::Delivered { outcome: postcard::to_allocvec(&value).unwrap(), evidence: evidence() }
}

pub(crate) fn definite() -> Ended {
    Ended::Definite { retry_after: None, evidence: evidence() }
}

pub(crate) fn ambiguous() -> Ended {
    Ended::Ambiguous { evidence: evidence() }
}

pub(crate) fn permanent() -> Ended {
    Ended::Permanent { freeze: false, evidence: evidence() }
}

pub(crate) fn not_found() -> Ended {
    Ended::NotFound { evidence: evidence() }
}

impl Log {
    pub(crate) fn new() -> Log {
        Log::with(Limits::DEFAULT)
    }

    pub(crate) fn with(limits: Limits) -> Log {
        Log::with_mutations(limits, Mutations::NONE)
    }

    pub(crate) fn with_mutations(limits: Limits, mutations: Mutations) -> Log {
        let options = EngineOptions { lineage: Lineage(7), limits, mutations };
        Log {
            kernel: Kernel::new(options),
            twin: Box::new(Kernel::<Scribe>::new(options)),
            op: 0,
            now: Timestamp::from_nanos(START),
            stamp: stamp(1),
            requests: 0,
            session: None,
            limits,
            checks: true,
        }
    }

    /// A log with one sink, named `sink`.
    pub(crate) fn with_sink(spec: SinkSpec) -> Log {
        let mut log = Log::new();
        log.set_sink("sink", spec);
        log
    }

    pub(crate) fn set_sink(&mut self, name: &str, spec: SinkSpec) -> RequestResult {
        self.run(Request::SinkSet { name: sink_name(name), spec: Some(spec), expected_revision: None })
    }

    pub(crate) fn set_limited_sink(limits: Limits, spec: SinkSpec) -> Log {
        let mut log = Log::with(limits);
        log.set_sink("sink", spec);
        log
    }

    /// Executes an op of these requests, a millisecond after the last.
    pub(crate) fn batch(&mut self, requests: Vec<Request>) -> Vec<RequestResult> {
        let encoded: Vec<Vec<u8>> = requests.iter().map(Request::encode).collect();
        self.body(&Batch::join(&encoded))
    }

    pub(crate) fn body(&mut self, body: &[u8]) -> Vec<RequestResult> {
        self.op += 1;
        self.now = self.now + Duration::from_millis(1);
        let op =
            CommittedOp { op: Op::new(self.op), born: self.stamp, timestamp: self.now, body, skips: &[] };
        let applied = self.kernel.commit(op).unwrap();
        assert_eq!(Ok(&applied), self.twin.commit(op).as_ref(), "two kernels execute one op alike");
        if self.checks {
            self.check();
        }
        applied.results
    }

    pub(crate) fn run(&mut self, request: Request) -> RequestResult {
        self.batch(vec![request]).remove(0)
    }

    pub(crate) fn tick(&mut self) {
        self.run(Request::Tick);
    }

    /// Lets time pass, and an op look at what is due.
    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.tick();
    }

    /// A later primary, whose first op comes with the next request.
    pub(crate) fn fail_over(&mut self) {
        self.stamp = self.stamp.next_view();
    }

    pub(crate) fn session(&mut self) -> SessionId {
        if let Some(session) = self.session {
            return session;
        }
        let RequestResult::Registered { session } = self.run(Request::Register { nonce: 1 }) else {
            panic!("no session")
        };
        self.session = Some(session);
        session
    }

    pub(crate) fn command(&mut self, acts: Vec<Act>) -> Request {
        let session = self.session();
        self.requests += 1;
        let origin = Origin::Session { session, number: RequestNumber(self.requests) };
        Request::Command { origin, body: postcard::to_allocvec(&acts).unwrap() }
    }

    pub(crate) fn submit(&mut self, acts: Vec<Act>) -> RequestResult {
        let command = self.command(acts);
        self.run(command)
    }

    /// The effects of a command that must go well.
    pub(crate) fn emit(&mut self, acts: Vec<Act>) -> Vec<EffectId> {
        match self.submit(acts) {
            RequestResult::Replied { effects, .. } => effects,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn emit_one(&mut self) -> EffectId {
        self.emit(vec![emit_to("sink")])[0]
    }

    pub(crate) fn order(&self, id: EffectId) -> Option<Order> {
        self.kernel.order(id)
    }

    /// Claims the effect's order if it needs it; then it is under way.
    pub(crate) fn start(&mut self, id: EffectId) -> Order {
        let order = self.order(id).expect("it is released");
        if order.claim == ClaimState::Needed {
            self.run(Request::Claim { effect: id, attempt: order.number });
        }
        let order = self.order(id).expect("it is still released");
        assert_ne!(order.claim, ClaimState::Needed);
        order
    }

    pub(crate) fn report_of(&self, order: &Order, stamp: Stamp, ended: Ended) -> Request {
        Request::Outcome(OutcomeReport {
            effect: order.effect,
            attempt: order.number,
            epoch: stamp.epoch.value(),
            view: stamp.view.value(),
            ended,
        })
    }

    /// The attempt under way ends.
    pub(crate) fn end(&mut self, id: EffectId, ended: Ended) {
        let order = self.start(id);
        let report = self.report_of(&order, self.stamp, ended);
        self.run(report);
    }

    pub(crate) fn view(&self, id: EffectId) -> EffectView {
        self.kernel.effect(id).expect("it is known")
    }

    pub(crate) fn state(&self, id: EffectId) -> EffectState {
        self.view(id).state
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.kernel.machine().heard()
    }

    pub(crate) fn endings(&self, id: EffectId) -> Vec<Ending> {
        let of = |heard: Heard| match heard {
            Heard::Settled(effect, ending) if effect == id => Some(ending),
            _ => None,
        };
        self.heard().into_iter().filter_map(of).collect()
    }

    pub(crate) fn parkings(&self, id: EffectId) -> usize {
        self.heard().iter().filter(|heard| matches!(heard, Heard::Parked(effect, _) if *effect == id)).count()
    }

    /// What must hold after every op.
    fn check(&self) {
        let mut settled = BTreeSet::new();
        for heard in self.heard() {
            if let Heard::Settled(effect, _) = heard {
                assert!(settled.insert(effect), "{effect} was settled twice");
            }
        }
        let open: Vec<EffectView> = self
            .kernel
            .effects(&EffectFilter::default(), None, usize::MAX)
            .into_iter()
            .filter(|view| view.state != EffectState::Settled)
            .collect();
        assert!(open.len() <= self.limits.open_effects_max);
        let mut at_work: BTreeMap<_, Vec<EffectId>> = BTreeMap::new();
        for view in &open {
            assert!(!settled.contains(&view.id));
            if let (Some(lane), true) = (&view.lane, self.order(view.id).is_some()) {
                at_work.entry((view.sink.clone(), lane.clone())).or_default().push(view.id);
            }
        }
        for (lane, ids) in at_work {
            assert_eq!(ids.len(), 1, "{lane:?} has several at work: {ids:?}");
        }
        let status = self.kernel.status();
        let count = |state| open.iter().filter(|view| view.state == state).count() as u64;
        assert_eq!(status.scheduled, count(EffectState::Scheduled));
        assert_eq!(status.ready, count(EffectState::Ready));
        assert_eq!(status.started, count(EffectState::Started));
        assert_eq!(status.waiting, count(EffectState::Waiting));
        assert_eq!(status.parked, count(EffectState::Parked));
        for sink in self.kernel.sinks() {
            assert!(sink.started <= u64::from(sink.spec.concurrency), "{} has too many at work", sink.name);
            let of_sink = |view: &&EffectView| view.sink == sink.name;
            assert_eq!(sink.open, open.iter().filter(of_sink).count() as u64);
        }
    }
}
