//! The world: one heap of events, one clock, one source of chance, and everything that happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use chronon_kernel::{
    Answer, Attempt, Ended, EngineOptions, Lineage, Origin, Request, RequestResult, SinkName,
};
use chronon_node::{
    Back, BackInput, BackOutput, Front, FrontInput, FrontOutput, FrontStatus, Gate, ToBack, ToFront,
};
use chronon_storage::{Expect, Identity, Job, JobId, Step, perform_step};
use chronon_vsr::{
    ClusterId, DiskId, Duration, Epoch, Instant, Member, Membership, Message, Op, Options, Prng, Recipients,
    Release, ReplicaId, Role, Status, VsrState,
};

use crate::checker::{Commits, Effects, GateWatch, History, Results};
use crate::client::Client;
use crate::clock::MachineClock;
use crate::disk::SimDisk;
use crate::event::{Event, Fault, Scheduled};
use crate::network::{Envelope, Network, exponential};
use crate::process::{Machine, Process, Running, Timer};
use crate::sink::evidence;
use crate::trace::{Who, salt_of};
use crate::{CallKind, Checker, Config, Sink, SinkKind, Trace, Violation, Workload};

/// How soon an idle journal whose newest group lacks evidence writes it.
const EVIDENCE_AFTER: Duration = Duration::from_millis(5);

/// How often Front is told of a write that takes long.
const DISK_AGE_EVERY: Duration = Duration::from_millis(50);

/// More inputs than this without any time passing are a loop.
const TICKS_IN_A_ROW_MAX: u32 = 10_000;

/// Messages that wait for a paused process; a socket buffer holds no more.
const DEFERRED_MAX: usize = 4_096;

/// An attempt that left a replica.
#[derive(Debug)]
pub(crate) struct OutCall {
    pub(crate) at: usize,
    pub(crate) life: u32,
    pub(crate) attempt: Arc<Attempt>,
}

/// A whole cluster with its disks, clocks, wires, clients and sinks.
pub struct World {
    config: Config,
    now: Instant,
    heap: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) prng: Prng,
    cluster: ClusterId,
    lineage: u128,
    pub(crate) machines: Vec<Machine>,
    pub(crate) network: Network,
    pub(crate) sinks: BTreeMap<SinkName, Sink>,
    pub(crate) workload: Box<dyn Workload>,
    pub(crate) clients: Vec<Client>,
    pub(crate) tokens: u64,
    pub(crate) calls: u64,
    pub(crate) out_calls: BTreeMap<u64, OutCall>,
    pub(crate) out_calls_made: u64,
    pub(crate) set_up: bool,
    trace: Trace,
    events: Vec<(Instant, ReplicaId, chronon_vsr::Event)>,
    pub(crate) commits: Commits,
    pub(crate) results: Results,
    pub(crate) history: History,
    pub(crate) effects: Effects,
    pub(crate) gate_watch: GateWatch,
    violation: Option<Violation>,
    front_outputs: Vec<FrontOutput>,
}

impl World {
    /// A new cluster, formatted and started, whose client 0 sets it up.
    pub fn new(config: Config, workload: Box<dyn Workload>) -> World {
        let mut prng = Prng::new(config.seed);
        let cluster = ClusterId::new(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64()));
        let lineage = u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64());
        let network = Network::new(config.network, prng.fork());
        let mut machines = Vec::new();
        for number in 0..config.replicas {
            let drift = i64::from(config.drift_ppm_max);
            let drift = prng.between(0, 2 * drift.unsigned_abs()) as i64 - drift;
            let skew_max = u64::try_from(config.skew_max.as_nanos()).expect("skews are short");
            let skew = prng.between(0, 2 * skew_max) as i64 - skew_max as i64;
            let boot = Duration::from_millis(prng.below(1_000_000));
            machines.push(Machine {
                id: ReplicaId::new(number as u8),
                disk_id: DiskId::new(u128::from(prng.next_u64()) << 8 | number as u128),
                disk: SimDisk::new(config.disk, prng.fork()),
                clock: MachineClock::new(boot, drift, skew),
                life: 0,
                process: None,
                paused: false,
                deferred: Vec::new(),
                failed: None,
                forsaken: false,
            });
        }
        let mut sinks = BTreeMap::new();
        for (name, spec) in workload.sinks() {
            sinks.insert(name, Sink::new(SinkKind::of(spec.contract), config.sinks, prng.fork()));
        }
        let mut clients = Vec::new();
        for number in 0..=config.clients.clients {
            let target = ReplicaId::new(prng.below(config.replicas as u64) as u8);
            let calls = if number == 0 { 0 } else { config.clients.calls };
            clients.push(Client::new(number, calls, target));
        }
        let script = &mut clients[0].script;
        for (name, spec) in workload.sinks() {
            script.push_back(CallKind::SinkSet(name, Box::new(spec)));
        }
        for body in workload.setup() {
            script.push_back(CallKind::Command { origin: unnamed(), body });
        }
        let mut world = World {
            config,
            now: Instant::ZERO,
            heap: BinaryHeap::new(),
            scheduled: 0,
            prng,
            cluster,
            lineage,
            machines,
            network,
            sinks,
            workload,
            clients,
            tokens: 0,
            calls: 0,
            out_calls: BTreeMap::new(),
            out_calls_made: 0,
            set_up: false,
            trace: Trace::new(config.trace),
            events: Vec::new(),
            commits: Commits::default(),
            results: Results::default(),
            history: History::default(),
            effects: Effects::new(Lineage(lineage)),
            gate_watch: GateWatch::default(),
            violation: None,
            front_outputs: Vec::new(),
        };
        world.format();
        for at in 0..config.replicas {
            world.start(at);
        }
        world.schedule(Duration::ZERO, Event::ClientWake { client: 0, life: 0 });
        world
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// World time: no clock in the cluster shows it.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Every replica's number.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.machines.iter().map(|machine| machine.id).collect()
    }

    /// What the run looked like so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Every protocol event of every replica so far, with its world time.
    pub fn events(&self) -> &[(Instant, ReplicaId, chronon_vsr::Event)] {
        &self.events
    }

    /// The log, as the judge of commits saw it.
    pub fn commits(&self) -> &Commits {
        &self.commits
    }

    /// The results, as the judge of results saw them.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// What the clients saw.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What the auditor of effects saw.
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// A sink and its ledger.
    pub fn sink(&self, name: &SinkName) -> Option<&Sink> {
        self.sinks.get(name)
    }

    /// Every sink.
    pub fn sinks(&self) -> &BTreeMap<SinkName, Sink> {
        &self.sinks
    }

    /// How many starts passed a gate.
    pub fn starts(&self) -> u64 {
        self.gate_watch.passed()
    }

    /// What the first judge to object said.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// What a replica says of itself; none while its process does not run.
    pub fn status(&self, replica: ReplicaId) -> Option<FrontStatus> {
        self.machines[index(replica)].process.as_ref().map(|process| process.front.status())
    }

    /// A replica's engine; none while its process does not run.
    pub fn engine(&self, replica: ReplicaId) -> Option<&dyn chronon_kernel::Engine> {
        self.machines[index(replica)].process.as_ref().map(|process| process.back.engine())
    }

    /// Whether a replica's process exists and is not paused.
    pub fn is_running(&self, replica: ReplicaId) -> bool {
        self.machines[index(replica)].is_running()
    }

    /// The replica that serves as the primary of the newest stamp, if any does.
    pub fn primary(&self) -> Option<ReplicaId> {
        let serving = self.machines.iter().filter(|machine| machine.is_running()).filter_map(|machine| {
            match machine.process.as_ref()?.role {
                Role::Primary { stamp, serving: true } => Some((stamp, machine.id)),
                Role::Primary { serving: false, .. } | Role::Backup { .. } | Role::Changing { .. } => None,
            }
        });
        serving.max().map(|(_, replica)| replica)
    }

    /// Whether the set-up is done and the clients' lives have begun.
    pub fn is_set_up(&self) -> bool {
        self.set_up
    }

    /// How many commands the set-up consists of.
    pub fn set_up_commands(&self) -> usize {
        self.workload.setup().len()
    }

    /// Whether every client has had its last answer.
    pub fn clients_done(&self) -> bool {
        self.set_up && self.clients.iter().all(Client::is_done)
    }

    /// Calls that are on their way to a sink or back.
    pub fn attempts_under_way(&self) -> usize {
        self.out_calls.len()
    }

    /// Whether all is quiet: every call has ended, every replica is up and has executed everything, and every effect
    /// is settled or parked. If not, says what is still going on.
    pub fn is_quiet(&self) -> Result<(), String> {
        if !self.clients_done() {
            let busy = self.clients.iter().find(|client| !client.is_done());
            return Err(format!("a client waits: {busy:?}"));
        }
        if !self.out_calls.is_empty() {
            return Err("an attempt is under way".to_owned());
        }
        let head = self.commits.head();
        for machine in &self.machines {
            let id = machine.id;
            let Some(process) = machine.process.as_ref().filter(|_| !machine.paused) else {
                if machine.forsaken {
                    continue;
                }
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
            // Behind a parked effect its lane waits, and rightly so.
            let ready = if engine.parked == 0 { engine.ready } else { 0 };
            if engine.scheduled + ready + engine.started + engine.waiting + engine.callbacks != 0 {
                return Err(format!("R{id} has open effects: {engine:?}"));
            }
        }
        Ok(())
    }

    /// Declares a replica gone for good: nothing waits for it any more.
    pub fn forsake(&mut self, replica: ReplicaId) {
        self.machines[index(replica)].forsaken = true;
    }

    /// Lets the next thing happen. False when nothing ever will, or a judge has objected.
    pub fn step(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some(Reverse(next)) = self.heap.pop() else { return false };
        assert!(self.now <= next.at);
        self.now = next.at;
        self.happen(next.event);
        self.violation.is_none()
    }

    /// Runs until this much world time has passed. False if a judge objected.
    pub fn run_for(&mut self, duration: Duration) -> bool {
        let end = self.now + duration;
        while self.heap.peek().is_some_and(|Reverse(next)| next.at <= end) {
            if !self.step() {
                return false;
            }
        }
        self.now = end;
        self.violation.is_none()
    }

    /// Does something to the world, now.
    pub fn inflict(&mut self, fault: Fault) {
        self.trace.note(self.now, Who::Fault, 0xfa, || format!("{fault:?}"));
        match fault {
            Fault::Kill(replica) => self.kill(index(replica)),
            Fault::PowerOff(replica) => {
                let at = index(replica);
                self.kill(at);
                self.machines[at].disk.power_cut();
                let boot = Duration::from_millis(self.prng.below(1_000_000));
                let since = self.now;
                // The monotonic clock starts somewhere else; it never shows less than zero.
                self.machines[at].clock.reboot(boot + since.since(Instant::ZERO));
            }
            Fault::Start(replica) => self.start(index(replica)),
            Fault::Pause(replica) => self.machines[index(replica)].paused = true,
            Fault::Resume(replica) => self.resume(index(replica)),
            Fault::Cut(from, to) => self.network.set_cut(from, to, true),
            Fault::Mend(from, to) => self.network.set_cut(from, to, false),
            Fault::MendAll => self.network.heal(),
            Fault::DiskStall(replica, stall) => self.machines[index(replica)].disk.set_stall(stall),
            Fault::DiskError(replica) => self.machines[index(replica)].disk.fail_next(),
            Fault::Rot(replica, page) => self.rot(index(replica), page),
            Fault::Clock(replica, skew) => self.machines[index(replica)].clock.set_skew(skew),
            Fault::StepDown(replica) => self.give_front(index(replica), FrontInput::StepDown),
        }
    }

    /// Does something to the world later.
    pub fn inflict_after(&mut self, after: Duration, fault: Fault) {
        self.schedule(after, Event::Fault(fault));
    }

    /// Changes how all wires behave.
    pub fn set_network(&mut self, config: crate::NetworkConfig) {
        self.config.network = config;
        self.network.set_config(config);
    }

    /// Changes how all disks behave, and ends their stalls.
    pub fn set_disks(&mut self, config: crate::DiskConfig) {
        self.config.disk = config;
        for machine in &mut self.machines {
            machine.disk.set_config(config);
        }
    }

    /// Changes how all sinks behave.
    pub fn set_sinks(&mut self, behaviour: crate::SinkBehaviour) {
        self.config.sinks = behaviour;
        for sink in self.sinks.values_mut() {
            sink.set_behaviour(behaviour);
        }
    }

    /// Changes what the clients do from their next call on.
    pub fn set_clients(&mut self, config: crate::ClientConfig) {
        self.config.clients = config;
    }

    /// Gives a client something to do after what it has to do already.
    pub fn ask(&mut self, client: u32, kind: CallKind) {
        let life = self.clients[client as usize].life;
        self.clients[client as usize].script.push_back(kind);
        self.schedule(Duration::ZERO, Event::ClientWake { client, life });
    }

    /// The workload, to draw commands from.
    pub fn workload(&mut self) -> (&mut dyn Workload, &mut Prng) {
        (&mut *self.workload, &mut self.prng)
    }

    /// When all is quiet: a fresh engine that replays the log agrees with every replica and every read, the machine's
    /// own invariant holds, and log, results and ledgers tell one story.
    pub fn check_quiet(&self) -> Result<(), Violation> {
        self.history.check_end(&self.results)?;
        let options = EngineOptions {
            lineage: Lineage(self.lineage),
            limits: self.config.engine,
            mutations: chronon_vsr::Mutations::NONE,
        };
        let mut engine = self.workload.engine(options);
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
        for op in 0..=self.commits.head().value() {
            let op = Op::new(op);
            if let Some(committed) = self.commits.get(op) {
                let header = committed.entry.header();
                let applied = engine.commit(chronon_kernel::CommittedOp {
                    op,
                    born: header.born,
                    timestamp: header.timestamp,
                    body: committed.entry.body(),
                });
                let known = self.results.digest(op);
                if known.is_some_and(|known| known != applied.digest) {
                    let what = format!("a replay of the log differs from the replicas at op {op}");
                    return Err(Violation::new(Checker::Digest, what));
                }
            }
            for (call, query, answer) in reads.remove(&op).unwrap_or_default() {
                if engine.query(query).as_deref() != Ok(answer) {
                    let what = format!("the read {call:?} at op {op} says what no state at that op says");
                    return Err(Violation::new(Checker::Linearizability, what));
                }
            }
        }
        self.effects.check_end(&self.commits, &self.results, &*engine, &self.sinks)?;
        let mut applied = Vec::new();
        for (at, result) in self.results.all() {
            let committed = self.commits.get(Op::new(at.op)).map(|committed| &committed.requests);
            if let RequestResult::Replied { at: first, reply, .. } = result
                && *first == at
                && let Some(Request::Command { body, .. }) =
                    committed.and_then(|requests| requests.get(at.request as usize))
            {
                applied.push(crate::Applied { at, command: body, reply });
            }
        }
        let quiet = crate::Quiet { engine: &*engine, applied, sinks: &self.sinks };
        self.workload.check_quiet(&quiet).map_err(|what| Violation::new(Checker::Machine, what))
    }

    // Machines

    fn format(&mut self) {
        let voters =
            self.machines.iter().map(|machine| Member { replica: machine.id, disk: machine.disk_id });
        let membership = Membership { epoch: Epoch::new(0), voters: voters.collect(), learners: Vec::new() };
        let root = membership.root(self.cluster, self.lineage);
        for machine in &mut self.machines {
            let identity = Identity {
                cluster: self.cluster,
                lineage: self.lineage,
                replica: machine.id,
                disk: machine.disk_id,
            };
            // Formatting is done before the world begins, on a disk that does not fail yet.
            machine.disk.set_config(crate::DiskConfig { error_chance: 0, ..self.config.disk });
            let state = VsrState::format(membership.clone(), root);
            chronon_storage::format(&mut machine.disk, identity, state, self.config.ring)
                .expect("an empty disk can be formatted");
            machine.disk.set_config(self.config.disk);
        }
    }

    fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.process.is_some() {
            return;
        }
        machine.life += 1;
        machine.paused = false;
        machine.deferred.clear();
        machine.failed = None;
        let expect = Expect { cluster: Some(self.cluster), replica: Some(machine.id) };
        let (journal, recovered) =
            match chronon_storage::open(&mut machine.disk, expect, self.config.mutations) {
                Ok(opened) => opened,
                Err(chronon_storage::OpenError::Disk { doing, source }) => {
                    // The world's doing: whoever starts replicas tries again.
                    machine.failed = Some(format!("{doing}: {source}"));
                    let fault = Fault::Start(machine.id);
                    self.inflict_after(Duration::from_millis(100), fault);
                    return;
                }
                Err(error) => {
                    let what = format!("R{at} can't open its data: {error}");
                    machine.failed = Some(what.clone());
                    return self.object(Violation::new(Checker::Open, what));
                }
            };
        let now = machine.clock.now(self.now);
        let options = Options {
            timing: self.config.timing,
            ring: self.config.ring,
            release: Release::new(1),
            seed: self.prng.next_u64(),
            mutations: self.config.mutations,
        };
        let engine = self.workload.engine(EngineOptions {
            lineage: Lineage(self.lineage),
            limits: self.config.engine,
            mutations: self.config.mutations,
        });
        let (id, incarnation) = (machine.id, recovered.incarnation);
        self.trace.note(self.now, Who::Replica(id), incarnation.value(), || {
            let entries = recovered.entries.len();
            let (stamp, log_stamp) = (recovered.state.stamp, recovered.state.log_stamp);
            format!("starts as incarnation {incarnation}: stamp {stamp}, log {log_stamp}, {entries} entries, complete {}, uncertain {:?}", recovered.scan_complete, recovered.uncertain_from)
        });
        self.commits.restarted(id);
        let front = Front::open(options, self.config.limits, recovered, now);
        let role = front.status().role;
        machine.process = Some(Box::new(Process {
            front,
            back: Back::new(engine, self.prng.next_u64(), self.config.mutations),
            journal,
            gate: Gate::CLOSED,
            front_inbox: VecDeque::new(),
            back_inbox: VecDeque::new(),
            front_timer: Timer::default(),
            back_timer: Timer::default(),
            front_blocked: false,
            jobs: BTreeMap::new(),
            disk_age_told: false,
            disk_age_due: false,
            evidence_due: false,
            role,
            tokens: BTreeMap::new(),
            ticks_in_a_row: 0,
        }));
        self.drain_front(at);
        self.drain_back(at);
    }

    fn kill(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = machine.process.take() else { return };
        machine.life += 1;
        machine.paused = false;
        machine.deferred.clear();
        for running in process.jobs.values() {
            if let Some(step) = running.steps.front() {
                machine.disk.interrupt(step);
            }
        }
        let id = machine.id;
        // What has left goes on outside; nobody waits for its end any more.
        self.out_calls.retain(|_, out_call| out_call.at != at);
        for (token, (client, call)) in process.tokens {
            // The connection is reset: the client knows that it does not know.
            let delay = self.network.delay();
            let answer = Answer::Indeterminate;
            self.schedule(delay, Event::ClientAnswer { client, call, token, answer });
        }
        if let Some(after) = self.config.reset_after {
            for peer in 0..self.machines.len() {
                if peer != at {
                    let delay = after + self.network.delay();
                    self.schedule(delay, Event::PeerGone { at: peer, peer: id });
                }
            }
        }
    }

    fn resume(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if !std::mem::take(&mut machine.paused) {
            return;
        }
        for event in std::mem::take(&mut machine.deferred) {
            self.schedule(Duration::ZERO, event);
        }
        self.wake_front(at, Duration::ZERO);
        self.wake_back(at, Duration::ZERO);
    }

    fn rot(&mut self, at: usize, page: u64) {
        let disk = &mut self.machines[at].disk;
        let pages = disk.written_pages(chronon_storage::File::Wal);
        if !pages.is_empty() {
            let place = pages[(page % pages.len() as u64) as usize] + self.prng.below(4096);
            disk.flip(chronon_storage::File::Wal, place, (page % 8) as u8);
        }
    }

    // The heap

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    pub(crate) fn note(&mut self, who: Who, salt: u64, line: impl FnOnce() -> String) {
        self.trace.note(self.now, who, salt, line);
    }

    fn schedule_at(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.heap.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    pub(crate) fn object(&mut self, violation: Violation) {
        if self.violation.is_none() {
            self.trace.note(self.now, Who::Fault, 0xbad, || format!("VIOLATION {violation}"));
            self.violation = Some(violation);
        }
    }

    pub(crate) fn judge(&mut self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.object(violation);
        }
    }

    pub(crate) fn alive(&self, at: usize, life: u32) -> bool {
        let machine = &self.machines[at];
        machine.life == life && machine.process.is_some()
    }

    /// Keeps an event for when the process goes on. True if it is kept.
    pub(crate) fn deferred(&mut self, at: usize, event: impl FnOnce() -> Event) -> bool {
        let machine = &mut self.machines[at];
        if !machine.paused {
            return false;
        }
        if machine.deferred.len() < DEFERRED_MAX {
            machine.deferred.push(event());
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(envelope) => self.deliver(envelope),
            Event::Front { at, life } => {
                let now = self.now;
                if self.alive(at, life) && self.process(at).front_timer.scheduled == Some(now) {
                    self.process(at).front_timer.scheduled = None;
                    self.run_front(at);
                }
            }
            Event::Back { at, life } => {
                let now = self.now;
                if self.alive(at, life) && self.process(at).back_timer.scheduled == Some(now) {
                    self.process(at).back_timer.scheduled = None;
                    self.run_back(at);
                }
            }
            Event::DiskStep { at, life, job } => {
                if self.alive(at, life) && !self.deferred(at, || Event::DiskStep { at, life, job }) {
                    self.disk_step(at, job);
                }
            }
            Event::DiskAge { at, life } => {
                if self.alive(at, life) && !self.deferred(at, || Event::DiskAge { at, life }) {
                    self.process(at).disk_age_due = false;
                    self.tell_disk_age(at);
                }
            }
            Event::Evidence { at, life } => {
                if self.alive(at, life) && !self.deferred(at, || Event::Evidence { at, life }) {
                    self.process(at).evidence_due = false;
                    if self.process(at).journal.wants_evidence() {
                        self.process(at).journal.give_evidence();
                    }
                    self.start_jobs(at);
                }
            }
            Event::PeerGone { at, peer } => {
                let back_again = self.machines[index(peer)].process.is_some();
                if !back_again && self.machines[at].process.is_some() {
                    self.give_front(at, FrontInput::PeerUnreachable(peer));
                }
            }
            Event::Execute { at, life, attempt } => {
                if self.alive(at, life) {
                    let again = Arc::clone(&attempt);
                    if !self.deferred(at, || Event::Execute { at, life, attempt: again }) {
                        self.execute(at, attempt);
                    }
                }
            }
            Event::SinkArrive { call, attempt } => self.sink_arrive(call, attempt),
            Event::SinkAct { call, attempt, then } => self.sink_act(call, &attempt, then),
            Event::SinkAnswer { call, ended } => self.end_attempt(call, ended),
            Event::AttemptTimeout { call } => {
                let ended = Ended::Ambiguous { evidence: evidence("timed out") };
                self.end_attempt(call, ended);
            }
            Event::ClientWake { client, life } => {
                if self.clients[client as usize].life == life {
                    self.client_wake(client);
                }
            }
            Event::ClientArrive { client, call, token, at } => self.client_arrive(client, call, token, at),
            Event::ClientAnswer { client, call, token, answer } => {
                self.client_answer(client, call, token, answer);
            }
            Event::ClientTimeout { client, call, token } => {
                self.client_attempt_lost(client, call, token);
            }
            Event::ClientRetry { client, call } => {
                let current = self.clients[client as usize].call.as_ref();
                if current.is_some_and(|current| current.id == call && current.tokens.is_empty()) {
                    self.client_send(client);
                }
            }
            Event::Fault(fault) => self.inflict(fault),
        }
    }

    pub(crate) fn process(&mut self, at: usize) -> &mut Process {
        self.machines[at].process.as_mut().expect("the caller saw that it is alive")
    }

    // Front and Back

    fn late(&mut self) -> Duration {
        let mean = self.config.pace.late_mean;
        exponential(&mut self.prng, mean)
    }

    pub(crate) fn give_front(&mut self, at: usize, input: FrontInput) {
        if self.machines[at].process.is_some() {
            self.process(at).front_inbox.push_back(input);
            let late = self.late();
            self.wake_front(at, late);
        }
    }

    pub(crate) fn give_back(&mut self, at: usize, input: BackInput) {
        if self.machines[at].process.is_some() {
            self.process(at).back_inbox.push_back(input);
            let late = self.late();
            self.wake_back(at, late);
        }
    }

    fn wake_front(&mut self, at: usize, after: Duration) {
        let when = self.now + after;
        let life = self.machines[at].life;
        let Some(process) = &mut self.machines[at].process else { return };
        if process.front_timer.scheduled.is_none_or(|scheduled| when < scheduled) {
            process.front_timer.scheduled = Some(when);
            self.schedule_at(when, Event::Front { at, life });
        }
    }

    fn wake_back(&mut self, at: usize, after: Duration) {
        let when = self.now + after;
        let life = self.machines[at].life;
        let Some(process) = &mut self.machines[at].process else { return };
        if process.back_timer.scheduled.is_none_or(|scheduled| when < scheduled) {
            process.back_timer.scheduled = Some(when);
            self.schedule_at(when, Event::Back { at, life });
        }
    }

    fn run_front(&mut self, at: usize) {
        let back_queue_max = self.config.pace.back_queue_max;
        let machine = &mut self.machines[at];
        // A paused process is woken again when it goes on.
        if machine.paused {
            return;
        }
        let now = machine.clock.now(self.now);
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        if back_queue_max <= process.back_inbox.len() {
            process.front_blocked = true;
            return;
        }
        let input = match process.front_inbox.pop_front() {
            Some(input) => {
                process.ticks_in_a_row = 0;
                input
            }
            None => {
                process.ticks_in_a_row += 1;
                FrontInput::Tick
            }
        };
        if TICKS_IN_A_ROW_MAX < process.ticks_in_a_row
            && process.front_timer.deadline.is_some_and(|deadline| deadline <= self.now)
        {
            let what = format!("R{at}'s Front asks to be woken at once, for ever");
            return self.object(Violation::new(Checker::Liveness, what));
        }
        process.front.handle(now, input);
        self.drain_front(at);
    }

    fn drain_front(&mut self, at: usize) {
        let mut outputs = std::mem::take(&mut self.front_outputs);
        let process = self.process(at);
        let deadline = loop {
            match process.front.poll_output() {
                FrontOutput::Wait(deadline) => break deadline,
                output => outputs.push(output),
            }
        };
        process.role = process.front.status().role;
        for output in outputs.drain(..) {
            self.on_front_output(at, output);
        }
        self.front_outputs = outputs;
        self.start_jobs(at);

        let machine = &mut self.machines[at];
        let deadline = machine.clock.world(deadline);
        let Some(process) = &mut machine.process else { return };
        process.front_timer.deadline = deadline;
        let busy_until = self.now + self.config.pace.front;
        if !process.front_inbox.is_empty() {
            self.wake_front(at, self.config.pace.front);
        } else if let Some(deadline) = deadline {
            let when = deadline.max(busy_until);
            self.wake_front(at, when.since(self.now));
        }
    }

    fn on_front_output(&mut self, at: usize, output: FrontOutput) {
        let id = self.machines[at].id;
        match output {
            FrontOutput::Send(to, message) => self.send(at, to, message),
            FrontOutput::Persist(write) => self.process(at).journal.submit(write),
            FrontOutput::Back(to_back) => {
                match &to_back {
                    ToBack::Commit(entry) => {
                        let salt = salt_of(&entry.checksum().to_bytes());
                        self.trace.note(self.now, Who::Replica(id), salt, || {
                            format!("commits {} {}", entry.op(), entry.checksum())
                        });
                        let verdict = self.commits.on_commit(self.now, id, entry);
                        self.judge(verdict);
                    }
                    ToBack::Serving(Some(stamp)) => {
                        self.trace.note(self.now, Who::Replica(id), stamp.view.value(), || {
                            format!("serves as the primary of {stamp}")
                        });
                        self.gate_watch.on_serving(self.now, *stamp);
                    }
                    ToBack::Serving(None) | ToBack::Query { .. } => {}
                }
                self.give_back(at, BackInput::Front(to_back));
            }
            FrontOutput::Answer(token, answer) => {
                let Some((client, call)) = self.process(at).tokens.remove(&token) else { return };
                let delay = self.network.delay();
                if !self.client_message_lost() {
                    self.schedule(delay, Event::ClientAnswer { client, call, token, answer });
                }
            }
            FrontOutput::GateConfirmed(round) => self.process(at).gate.confirm(round),
            FrontOutput::GateClosed => self.process(at).gate.close(),
            FrontOutput::Event(event) => {
                self.trace.note(self.now, Who::Replica(id), 0xe, || format!("{event:?}"));
                self.events.push((self.now, id, event));
            }
            FrontOutput::Wait(_) => unreachable!("it ends the drain"),
        }
    }

    fn run_back(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.paused {
            return;
        }
        let now = machine.clock.now(self.now);
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let input = process.back_inbox.pop_front().unwrap_or(BackInput::Tick);
        process.back.handle(now, input);
        let unblocked = std::mem::take(&mut process.front_blocked);
        self.drain_back(at);
        if unblocked {
            self.wake_front(at, Duration::ZERO);
        }
    }

    fn drain_back(&mut self, at: usize) {
        let deadline = loop {
            match self.process(at).back.poll_output() {
                BackOutput::Wait(deadline) => break deadline,
                BackOutput::Front(to_front) => {
                    if let ToFront::Executed { applied, results } = &to_front {
                        let id = self.machines[at].id;
                        self.trace.note(self.now, Who::Replica(id), applied.digest.0, || {
                            format!("executed {}: {results:?}", applied.op)
                        });
                        let verdict = self.results.on_executed(&self.commits, id, *applied, results);
                        self.judge(verdict);
                    }
                    self.give_front(at, FrontInput::Back(to_front));
                }
                BackOutput::Start(attempt) => {
                    let executed = self.process(at).back.engine().applied();
                    let committed = self.commits.head();
                    let verdict = self.effects.on_start(executed.min(committed), &attempt);
                    self.judge(verdict);
                    let late = self.late();
                    let life = self.machines[at].life;
                    self.schedule(late, Event::Execute { at, life, attempt: Arc::new(attempt) });
                }
            }
        };
        let machine = &mut self.machines[at];
        let deadline = machine.clock.world(deadline);
        let Some(process) = &mut machine.process else { return };
        process.back_timer.deadline = deadline;
        let busy_until = self.now + self.config.pace.back;
        if !process.back_inbox.is_empty() {
            self.wake_back(at, self.config.pace.back);
        } else if let Some(deadline) = deadline {
            self.wake_back(at, deadline.max(busy_until).since(self.now));
        }
    }

    // Wires

    fn send(&mut self, at: usize, to: Recipients, message: Message) {
        let from = self.machines[at].id;
        let bytes: Arc<[u8]> = message.encode(self.cluster).into();
        let message = Arc::new(message);
        // There are no learners yet: everybody else is a voter.
        let recipients = self.machines.iter().map(|machine| machine.id).filter(|id| match to {
            Recipients::One(one) => *id == one,
            Recipients::Voters | Recipients::All => *id != from,
        });
        for to in recipients.collect::<Vec<_>>() {
            let envelope = Envelope { from, to, message: Arc::clone(&message), bytes: Arc::clone(&bytes) };
            if !self.network.passes(from, to) {
                continue;
            }
            for (delay, envelope) in self.network.send(envelope) {
                self.schedule(delay, Event::Deliver(envelope));
            }
        }
    }

    /// Lets everything that a filter held go its way, in order.
    pub fn release_held(&mut self) {
        for envelope in self.network.take_held() {
            let delay = self.network.delay();
            self.schedule(delay, Event::Deliver(envelope));
        }
    }

    /// Delivers these messages now, whatever the wires think of it.
    pub fn deliver_now(&mut self, envelopes: impl IntoIterator<Item = Envelope>) {
        for envelope in envelopes {
            self.deliver(envelope);
        }
    }

    fn deliver(&mut self, envelope: Envelope) {
        let at = index(envelope.to);
        if self.machines[at].process.is_none() || !self.network.passes(envelope.from, envelope.to) {
            return;
        }
        if self.machines[at].paused {
            self.deferred(at, || Event::Deliver(envelope));
            return;
        }
        let (from, to) = (envelope.from, envelope.to);
        match Message::decode(&envelope.bytes, self.cluster) {
            Ok(message) => {
                let salt = salt_of(&envelope.bytes);
                self.trace.note(self.now, Who::Replica(to), salt, || {
                    format!("<- R{from} {} {}", message.stamp, summary(&message))
                });
                self.give_front(at, FrontInput::Message(message));
            }
            Err(error) => {
                let what = format!("R{to} can't read what R{from} sent: {error:?}: {:?}", envelope.message);
                self.object(Violation::new(Checker::Panic, what));
            }
        }
    }

    // Disks

    fn start_jobs(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        if let Some(Job { id, steps }) = process.journal.next_job() {
            process.jobs.insert(id, Running { steps: steps.into(), since: self.now });
            let first = process.jobs[&id].steps.front().expect("a job has steps");
            let latency = machine.disk.latency(first);
            let life = machine.life;
            self.schedule(latency, Event::DiskStep { at, life, job: id });
            return self.start_jobs(at);
        }
        let life = self.machines[at].life;
        let process = self.process(at);
        if process.journal.wants_evidence() && !std::mem::replace(&mut process.evidence_due, true) {
            self.schedule(EVIDENCE_AFTER, Event::Evidence { at, life });
        }
        let process = self.process(at);
        if !process.jobs.is_empty() && !std::mem::replace(&mut process.disk_age_due, true) {
            self.schedule(DISK_AGE_EVERY, Event::DiskAge { at, life });
        }
    }

    fn disk_step(&mut self, at: usize, job: JobId) {
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let running = process.jobs.get_mut(&job).expect("a step belongs to a job under way");
        let step = running.steps.pop_front().expect("a step was under way");
        if let Err(error) = perform_step(&mut machine.disk, &step) {
            // Fail-stop: the process ends, its supervisor starts it again.
            let what = error.to_string();
            self.trace
                .note(self.now, Who::Replica(self.machines[at].id), 0xdead, || format!("stops: {what}"));
            // The steps after the one that failed have not begun.
            self.process(at).jobs.clear();
            self.kill(at);
            self.machines[at].failed = Some(what);
            let fault = Fault::Start(self.machines[at].id);
            return self.inflict_after(Duration::from_millis(500), fault);
        }
        if let Some(next) = running.steps.front() {
            let latency = machine.disk.latency(next);
            let life = machine.life;
            return self.schedule(latency, Event::DiskStep { at, life, job });
        }
        process.jobs.remove(&job);
        let salt = match &step {
            Step::Write { position, .. } | Step::ReadBack { position, .. } => *position,
            Step::Flush { .. } => 1,
        };
        let reports = process.journal.done(job);
        self.trace
            .note(self.now, Who::Replica(self.machines[at].id), salt, || format!("durable: {reports:?}"));
        if std::mem::take(&mut self.process(at).disk_age_told) {
            self.tell_disk_age(at);
        }
        for durable in reports {
            self.give_front(at, FrontInput::Durable(durable));
        }
        self.start_jobs(at);
    }

    fn tell_disk_age(&mut self, at: usize) {
        let now = self.now;
        let life = self.machines[at].life;
        let process = self.process(at);
        let oldest = process.jobs.values().map(|running| running.since).min();
        let age = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
        if oldest.is_some() && !std::mem::replace(&mut process.disk_age_due, true) {
            self.schedule(DISK_AGE_EVERY, Event::DiskAge { at, life });
        }
        self.process(at).disk_age_told = age != Duration::ZERO;
        self.give_front(at, FrontInput::DiskAge(age));
    }
}

pub(crate) fn index(replica: ReplicaId) -> usize {
    usize::from(replica.value())
}

/// The name of a scripted command is drawn when its turn comes.
pub(crate) fn unnamed() -> Origin {
    Origin::Key { principal: String::new(), key: String::new() }
}

/// One line of a message for a trace.
fn summary(message: &Message) -> String {
    use chronon_vsr::Payload;
    match &message.payload {
        Payload::Prepare { commit_max, entry, .. } => {
            let (op, checksum, born) = (entry.op(), entry.checksum(), entry.header().born);
            format!("Prepare {op} {checksum} born {born}, commit {}", commit_max.op)
        }
        Payload::Repair { entry } => format!("Repair {} {}", entry.op(), entry.checksum()),
        Payload::DoViewChange { log_stamp, commit_max, uncertain_from, suffix, bits, .. } => {
            let head = suffix.last().map_or(commit_max.op, |header| header.op);
            format!(
                "DoViewChange log {log_stamp}, commit {}, head {head}, uncertain {uncertain_from:?}, {bits:?}",
                commit_max.op
            )
        }
        Payload::StartView { commit_max, suffix, nonce, .. } => {
            let head = suffix.last().map_or(commit_max.op, |header| header.op);
            format!("StartView commit {}, head {head}, nonce {nonce}", commit_max.op)
        }
        Payload::Headers { headers } => format!("Headers {}", headers.len()),
        Payload::Forward { body } => format!("Forward {} bytes", body.len()),
        other => format!("{other:?}"),
    }
}
