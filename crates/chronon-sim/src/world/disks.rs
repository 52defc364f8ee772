//! How what a replica wants kept reaches its disk, step by step.

use chronon_node::FrontInput;
use chronon_storage::{Job, JobId, Step, perform_step};
use chronon_vsr::Duration;

use super::{DISK_AGE_EVERY, EVIDENCE_AFTER};
use crate::World;
use crate::event::{Event, Fault};
use crate::process::Running;
use crate::trace::Who;

impl World {
    pub(super) fn start_jobs(&mut self, at: usize) {
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

    pub(super) fn disk_step(&mut self, at: usize, job: JobId) {
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
            Step::Reserve { .. } | Step::Truncate { .. } | Step::Remove { .. } => 2,
        };
        let reports = process.journal.done(job);
        self.trace
            .note(self.now, Who::Replica(self.machines[at].id), salt, || format!("durable: {reports:?}"));
        if std::mem::take(&mut self.process(at).disk_age_told) {
            self.tell_disk_age(at);
        }
        let id = self.machines[at].id;
        for durable in reports {
            self.promises.on_durable(id, durable);
            self.give_front(at, FrontInput::Durable(durable));
        }
        self.start_jobs(at);
    }

    pub(super) fn tell_disk_age(&mut self, at: usize) {
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
