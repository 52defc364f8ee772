//! How what a replica wants kept reaches its disk, step by step.

use chronon_node::FrontInput;
use chronon_storage::{Job, JobId, Step, perform_step};
use chronon_vsr::Duration;

use super::{DISK_AGE_EVERY, EVIDENCE_AFTER, SCRUB_BYTES};
use crate::event::{Event, Fault};
use crate::process::Running;
use crate::trace::Who;
use crate::{Checker, Violation, World};

impl World {
    pub(super) fn start_jobs(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        if let Some(Job { id, steps }) = process.journal.next_job() {
            process.jobs.insert(id, Running { steps: steps.into(), since: self.now });
            let first = process.jobs[&id].steps.front().expect("a job has steps");
            let latency = machine.disk.latency(first);
            let (life, left) = (machine.life, process.jobs[&id].steps.len());
            self.schedule(latency, Event::DiskStep { at, life, job: id, left });
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

    pub(super) fn disk_step(&mut self, at: usize, job: JobId, left: usize) {
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        // A step that was waited for in a stall may be done already.
        let running = process.jobs.get_mut(&job).filter(|running| running.steps.len() == left);
        let Some(running) = running else { return };
        let step = running.steps.pop_front().expect("a step was under way");
        machine.steps += 1;
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
            let (life, left) = (machine.life, running.steps.len());
            return self.schedule(latency, Event::DiskStep { at, life, job, left });
        }
        process.jobs.remove(&job);
        let salt = match &step {
            Step::Write { position, .. } | Step::ReadBack { position, .. } => *position,
            Step::Flush { .. } => 1,
            Step::Reserve { .. } | Step::Truncate { .. } | Step::Punch { .. } | Step::Remove { .. } => 2,
        };
        let is_unwritten =
            |running: &Running| running.steps.iter().any(|step| matches!(step, Step::Write { .. }));
        let overtaken = process.jobs.range(..job).any(|(_, running)| is_unwritten(running));
        let reports = process.journal.done(job);
        self.trace
            .note(self.now, Who::Replica(self.machines[at].id), salt, || format!("durable: {reports:?}"));
        if std::mem::take(&mut self.process(at).disk_age_told) {
            self.tell_disk_age(at);
        }
        let id = self.machines[at].id;
        if overtaken && !reports.is_empty() {
            let what = format!("R{id}'s storage reports {reports:?} while an older write is under way");
            self.object(Violation::new(Checker::Promises, what));
        }
        for durable in reports {
            self.promises.on_durable(id, durable);
            self.give_front(at, FrontInput::Durable(durable));
        }
        self.start_jobs(at);
    }

    /// Changes how long every step takes. What waits for the end of a stall is done soon when it ends.
    pub(super) fn stall(&mut self, at: usize, stall: Duration) {
        let machine = &mut self.machines[at];
        machine.disk.set_stall(stall);
        let life = machine.life;
        let Some(process) = machine.process.as_ref().filter(|_| stall == Duration::ZERO) else { return };
        let jobs = process.jobs.iter().map(|(job, running)| (*job, running.steps.len()));
        let mut events: Vec<Event> =
            jobs.map(|(job, left)| Event::DiskStep { at, life, job, left }).collect();
        events.extend(process.store.job().map(|(job, left)| Event::VaultStep { at, life, job, left }));
        // What was to be read too.
        events.push(Event::Vault { at, life });
        for event in events {
            let late = self.late();
            self.schedule(late, event);
        }
    }

    /// Journal and store look at some of what they hold, and mend it.
    pub(super) fn scrub(&mut self, at: usize) {
        let Some(every) = self.config.pace.scrub else { return };
        let machine = &mut self.machines[at];
        let process = machine.process.as_mut().expect("the caller saw that it is alive");
        let wal = process.journal.scrub(&mut machine.disk, SCRUB_BYTES);
        let copies = process.journal.scrub_superblock(&mut machine.disk);
        let packs = process.store.scrub(&mut machine.disk, SCRUB_BYTES);
        process.scrubbed.0 |= wal.round;
        process.scrubbed.1 |= packs.round;
        if process.scrubbed == (true, true) {
            process.scrubbed = (false, false);
            machine.looks += 1;
        }
        let (groups, chunks) = (wal.damage.len(), packs.damage.len());
        if 0 < groups + chunks + copies {
            let salt = (groups + chunks + copies) as u64;
            self.trace.note(self.now, Who::Replica(self.machines[at].id), salt, || {
                format!("scrubs: {groups} groups, {chunks} chunks, {copies} superblock copies are damaged")
            });
        }
        if 0 < chunks {
            self.tell_damage(at);
        }
        self.start_jobs(at);
        let life = self.machines[at].life;
        self.schedule(every, Event::Scrub { at, life });
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

#[cfg(test)]
mod tests {
    use chronon_storage::{Disk as _, File};

    use super::*;
    use crate::world::index;
    use crate::{Cluster, R1};

    /// Seed 46: the flush of two copies of a superblock failed, and the other two were torn nevertheless.
    #[test]
    fn after_a_step_that_failed_the_next_one_never_begins() {
        for seed in 0..8 {
            let mut c = Cluster::new(3).seed(seed);
            c.submit(2).settle();
            let due = |world: &World| {
                let process = world.machines[index(R1)].process.as_ref()?;
                process.jobs.iter().find_map(|(job, running)| {
                    let steps = (running.steps.front()?, running.steps.get(1)?);
                    let (Step::Flush { file: File::Superblock }, Step::Write { position, bytes, .. }) = steps
                    else {
                        return None;
                    };
                    Some((*job, running.steps.len(), *position, bytes.len()))
                })
            };
            let primary = c.primary();
            c.replica(primary).step_down();
            c.until("two copies of a superblock are to be flushed", |world| due(world).is_some());
            let (job, left, position, size) = due(c.world()).expect("just waited for");
            let copies = |c: &mut Cluster| {
                let mut bytes = vec![0; size];
                let disk = &mut c.world().machines[index(R1)].disk;
                disk.read(File::Superblock, position, &mut bytes).expect("it is whole");
                bytes
            };
            let before = copies(&mut c);
            c.world().machines[index(R1)].disk.fail_next();
            c.world().disk_step(index(R1), job, left);
            assert!(c.world().replica(R1).is_none(), "it stops");
            assert!(before == copies(&mut c), "seed {seed}");
            c.settle();
        }
    }
}
