//! The world: one heap of events, one clock, one source of chance, and everything that happens.

mod clients;
mod disks;
mod faults;
mod halves;
mod machines;
mod operator;
mod quarantine;
mod quiet;
mod sinks;
mod vaults;
mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use chronon_kernel::{Attempt, Ended, Halted, Lineage, Origin, SinkName};
use chronon_node::{FrontInput, FrontOutput, FrontStatus};
use chronon_vsr::{ClusterId, DiskId, Duration, Instant, Prng, ReplicaId, Role};

use crate::atlas::Atlas;
use crate::checker::{Bounds, Checkpoints, Commits, Effects, GateWatch, History, Promises, Results};
use crate::client::Client;
use crate::clock::MachineClock;
use crate::disk::SimDisk;
use crate::event::{Event, Scheduled};
use crate::network::Network;
use crate::process::{Machine, Process};
use crate::sink::evidence;
use crate::slip::Slip;
use crate::trace::Who;
use crate::{CallKind, Config, Sink, SinkKind, Trace, Violation, Workload};

use operator::Operator;
use quarantine::Slips;
pub(crate) use quiet::chunks_of;
pub(crate) use vaults::Store;

/// How soon an idle journal whose newest group lacks evidence writes it.
const EVIDENCE_AFTER: Duration = Duration::from_millis(5);

/// About so many bytes of WAL and packs are scrubbed at a time.
const SCRUB_BYTES: u64 = 128 * 1024;

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
    pub(crate) checkpoints: Checkpoints,
    pub(crate) atlas: Atlas,
    pub(crate) results: Results,
    pub(crate) history: History,
    pub(crate) effects: Effects,
    pub(crate) gate_watch: GateWatch,
    pub(crate) promises: Promises,
    pub(crate) bounds: Bounds,
    pub(crate) slips: Slips,
    operator: Operator,
    reached: BTreeMap<&'static str, u64>,
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
                clock: MachineClock::new(boot, config.wall_start, drift, skew),
                life: 0,
                process: None,
                paused: false,
                outputs_left: None,
                deferred: Vec::new(),
                failed: None,
                steps: 0,
                beyond: false,
                looks: 0,
                clean: true,
                forsaken: false,
                back_rests_until: Instant::ZERO,
                back_slow: Duration::ZERO,
                slip: Slip::default(),
                slips: false,
                diverged: false,
            });
        }
        let mut sinks = BTreeMap::new();
        for (name, spec) in workload.sinks() {
            let (mut kind, behaviour) = workload.sink(&name, &spec, config.sinks);
            if let SinkKind::Deduplicating { window, .. } = &mut kind {
                *window += config.window_slack;
            }
            sinks.insert(name, Sink::new(kind, behaviour, prng.fork()));
        }
        let mut clients = Vec::new();
        for number in 0..=config.clients.clients {
            let target = ReplicaId::new(prng.below(config.replicas as u64) as u8);
            let calls = if number == 0 { 0 } else { config.clients.calls };
            clients.push(Client::new(number, calls, target));
        }
        let specs = workload.sinks();
        let specs = specs.iter().map(|(_, spec)| spec);
        let bounds = Bounds::new(config.limits, config.engine, specs);
        let script = &mut clients[0].script;
        for (name, spec) in workload.sinks() {
            script.push_back(CallKind::SinkSet { name, spec: Box::new(spec), revision: 0 });
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
            checkpoints: Checkpoints::new(config.ring, config.replicas),
            atlas: Atlas::new(config.replicas),
            results: Results::default(),
            history: History::default(),
            effects: Effects::new(Lineage(lineage)),
            gate_watch: GateWatch::default(),
            promises: Promises::new(config.replicas),
            bounds,
            slips: Slips::default(),
            operator: Operator::default(),
            reached: BTreeMap::new(),
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

    /// What happened besides events of the protocol, and how often.
    pub fn reached(&self) -> &BTreeMap<&'static str, u64> {
        &self.reached
    }

    /// Something happened that a batch of seeds should reach.
    pub(crate) fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// The log, as the judge of commits saw it.
    pub fn commits(&self) -> &Commits {
        &self.commits
    }

    /// The checkpoints, as their judge saw them.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
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

    /// The protocol's part of a replica; none while its process does not run.
    pub fn replica(&self, replica: ReplicaId) -> Option<&chronon_vsr::Replica> {
        self.machines[index(replica)].process.as_ref().map(|process| process.front.replica())
    }

    /// A replica's engine; none while its process does not run.
    pub fn engine(&self, replica: ReplicaId) -> Option<&dyn chronon_kernel::Engine> {
        self.machines[index(replica)].process.as_ref().map(|process| process.back.engine())
    }

    /// Where a replica's execution has halted, if it waits for a skip.
    pub fn halted(&self, replica: ReplicaId) -> Option<&Halted> {
        self.machines[index(replica)].process.as_ref().and_then(|process| process.front.halted())
    }

    /// Whether a replica's process exists and is not paused.
    pub fn is_running(&self, replica: ReplicaId) -> bool {
        self.machines[index(replica)].is_running()
    }

    /// Steps that this replica's disk has carried out so far, of the journal and of the store of chunks.
    pub fn disk_steps(&self, replica: ReplicaId) -> u64 {
        self.machines[index(replica)].steps
    }

    /// Why a replica's process ended by itself or could not begin, if that was the last that happened to it.
    pub fn refusal(&self, replica: ReplicaId) -> Option<&str> {
        self.machines[index(replica)].failed.as_deref()
    }

    /// Whether somebody has said that it can't go on: a replica that does not open what is damaged, or a cluster that
    /// names an op of which no copy is left.
    pub fn has_refused(&self) -> bool {
        let refuses = |machine: &Machine| machine.process.is_none() && machine.failed.is_some();
        let names = |event: &chronon_vsr::Event| {
            matches!(event, chronon_vsr::Event::Unrecoverable(_) | chronon_vsr::Event::ForkDetected { .. })
        };
        self.machines.iter().any(refuses) || self.events.iter().any(|(_, _, event)| names(event))
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

    /// Declares a replica gone for good: nothing waits for it any more.
    pub fn forsake(&mut self, replica: ReplicaId) {
        self.machines[index(replica)].forsaken = true;
    }

    /// A replica that was declared gone belongs to the cluster again.
    pub(crate) fn welcome(&mut self, replica: ReplicaId) {
        self.machines[index(replica)].forsaken = false;
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

    /// The workload, to draw commands from.
    pub fn workload(&mut self) -> (&mut dyn Workload, &mut Prng) {
        (&mut *self.workload, &mut self.prng)
    }

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
            Event::DiskStep { at, life, job, left } => {
                if self.alive(at, life) && !self.deferred(at, || Event::DiskStep { at, life, job, left }) {
                    self.disk_step(at, job, left);
                }
            }
            Event::Vault { at, life } => {
                if self.alive(at, life) && !self.deferred(at, || Event::Vault { at, life }) {
                    self.run_vault(at);
                }
            }
            Event::VaultStep { at, life, job, left } => {
                if self.alive(at, life) && !self.deferred(at, || Event::VaultStep { at, life, job, left }) {
                    self.vault_step(at, job, left);
                }
            }
            Event::Scrub { at, life } => {
                if self.alive(at, life) && !self.deferred(at, || Event::Scrub { at, life }) {
                    self.scrub(at);
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
            Event::SinkAct { call, attempt, deed } => self.sink_act(call, &attempt, deed),
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
}

pub(crate) fn index(replica: ReplicaId) -> usize {
    usize::from(replica.value())
}

/// The name of a scripted command is drawn when its turn comes.
pub(crate) fn unnamed() -> Origin {
    Origin::Key { principal: String::new(), key: String::new() }
}
