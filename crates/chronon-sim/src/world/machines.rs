//! How machines are formatted, started, killed, paused and resumed.

use std::collections::{BTreeMap, VecDeque};

use chronon_kernel::{Answer, EngineOptions, Lineage};
use chronon_node::{Back, Front, Gate};
use chronon_storage::{Expect, File, Identity, Step, Vault};
use chronon_vsr::{Duration, Member, Membership, Options, RecoveredEntry, Release, Verdict, VsrState};

use crate::atlas::LOOKS_OF_A_START;
use crate::event::{Event, Fault};
use crate::process::{Process, Timer};
use crate::trace::Who;
use crate::world::Store;
use crate::{Checker, Violation, World};

impl World {
    pub(super) fn format(&mut self) {
        let voters =
            self.machines.iter().map(|machine| Member { replica: machine.id, disk: machine.disk_id });
        let membership =
            Membership { epoch: self.config.stamp.epoch, voters: voters.collect(), learners: Vec::new() };
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
            let mut state = VsrState::format(membership.clone(), root);
            state.stamp = self.config.stamp;
            chronon_storage::format(&mut machine.disk, identity, state, self.config.ring)
                .expect("an empty disk can be formatted");
            machine.disk.set_config(self.config.disk);
        }
    }

    pub(super) fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.process.is_some() {
            return;
        }
        machine.life += 1;
        machine.paused = false;
        machine.deferred.clear();
        machine.failed = None;
        let expect = Expect { cluster: Some(self.cluster), replica: Some(machine.id), drawn: machine.life };
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
                    // Damage beyond what the protocol promises to survive: to refuse is right.
                    if machine.beyond {
                        return self.trace.note(self.now, Who::Replica(machine.id), 0xdead, || what);
                    }
                    return self.object(Violation::new(Checker::Open, what));
                }
            };
        let vault = match Vault::open(&mut machine.disk, journal.identity()) {
            Ok(vault) => vault,
            Err(error) => {
                machine.failed = Some(error.to_string());
                let fault = Fault::Start(machine.id);
                self.inflict_after(Duration::from_millis(100), fault);
                return;
            }
        };
        machine.looks += LOOKS_OF_A_START;
        let is_intact = |found: &RecoveredEntry| matches!(found.verdict, Verdict::Intact(_));
        machine.clean = recovered.scan_complete
            && recovered.uncertain_from.is_none()
            && recovered.entries.iter().all(is_intact);
        let store = Store::new(vault, recovered.state.checkpoint.root);
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
        let engine = machine.slip.engine(engine, 1 + at as u64);
        machine.diverged = false;
        let (id, incarnation) = (machine.id, recovered.incarnation);
        self.trace.note(self.now, Who::Replica(id), incarnation.value(), || {
            let (stamp, log_stamp) = (recovered.state.stamp, recovered.state.log_stamp);
            let known = &recovered.state;
            let unclear = (&known.faulty, known.uncertain_from);
            let entries = recovered.entries.iter().map(|found| {
                let intact = matches!(found.verdict, Verdict::Intact(_));
                format!("{}{}", found.header.op, if intact { "" } else { "!" })
            });
            let entries = entries.collect::<Vec<_>>().join(" ");
            format!(
                "starts as incarnation {incarnation}: stamp {stamp}, log {log_stamp}, commit {} head {}, unclear {unclear:?}; complete {}, uncertain {:?}, entries {entries}",
                known.commit_max.op,
                known.head().op,
                recovered.scan_complete,
                recovered.uncertain_from
            )
        });
        self.commits.restarted(id);
        self.checkpoints.restarted(id);
        let verdict = self.checkpoints.on_durable(&self.commits, id, &recovered.state.checkpoint);
        let front = Front::open(options, self.config.limits, recovered.clone(), now);
        let kept = self.promises.on_opened(id, &recovered, front.replica());
        if !machine.clean {
            self.checkpoints.on_lost(id, front.replica().log_start());
        }
        let role = front.status().role;
        machine.process = Some(Box::new(Process {
            front,
            back: Back::new(engine, self.prng.next_u64(), self.config.mutations),
            journal,
            store,
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
            fetching: None,
            scrubbed: (false, false),
            tokens: BTreeMap::new(),
            ticks_in_a_row: 0,
        }));
        self.judge(verdict);
        self.judge(kept);
        if recovered.entries.iter().any(|found| found.verdict == Verdict::Faulty) {
            self.reach("DamagedEntryFound");
        }
        if recovered.uncertain_from.is_some() {
            self.reach("HeadUncertain");
        }
        self.drain_front(at);
        self.drain_back(at);
        if let Some(every) = self.config.pace.scrub {
            let life = self.machines[at].life;
            self.schedule(every, Event::Scrub { at, life });
        }
    }

    pub(super) fn kill(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = machine.process.take() else { return };
        machine.life += 1;
        machine.paused = false;
        machine.outputs_left = None;
        machine.deferred.clear();
        let mut torn = false;
        for running in process.jobs.values() {
            if let Some(step) = running.steps.front() {
                torn |= matches!(step, Step::Write { file: File::Wal, .. });
                machine.disk.interrupt(step);
            }
        }
        if let Some(step) = process.store.step_under_way() {
            machine.disk.interrupt(step);
        }
        let id = machine.id;
        if torn {
            self.reach("TornTail");
        }
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

    /// Whether the process lives to carry out one more output.
    pub(super) fn lives_on(&mut self, at: usize) -> bool {
        match &mut self.machines[at].outputs_left {
            Some(0) => {
                // What it gave to its disk before may be on its way there.
                self.start_jobs(at);
                self.kill(at);
                self.reach("KilledBetweenOutputs");
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.machines[at].process.is_some()
    }

    pub(super) fn resume(&mut self, at: usize) {
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

    pub(super) fn rot(&mut self, at: usize, page: u64) {
        let disk = &mut self.machines[at].disk;
        let pages = disk.written_pages(chronon_storage::File::Wal);
        if !pages.is_empty() {
            self.promises.on_damage(self.machines[at].id);
            let disk = &mut self.machines[at].disk;
            let place = pages[(page % pages.len() as u64) as usize] + self.prng.below(4096);
            disk.flip(chronon_storage::File::Wal, place, (page % 8) as u8);
        }
    }
}
