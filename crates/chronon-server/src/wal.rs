//! The WAL thread: carries out what the journal decides, one job at a time, and reports what is durable. Now and then
//! it reads a little of the log back, and mends what has rotted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use chronon_storage::{DataDirectory, Disk, File, Journal, perform};
use chronon_vsr::{Durable, Write};
use tokio::sync::mpsc;
use tracing::warn;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::mailbox::{Mailbox, Waited};
use crate::stop::{Stop, StopReason};

/// How long the disk rests before the newest group gets its evidence.
const EVIDENCE_AFTER: Duration = Duration::from_millis(5);

/// The log is read back every so often.
const SCRUB_EVERY: Duration = Duration::from_secs(1);

/// How what is kept is read back, a little at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scrubbing {
    /// How much of it.
    pub(crate) bytes_per_second: u64,
    /// Drawn for this start: where it begins. Else the replicas of a cluster that was started at once would read the same
    /// parts at the same time, and starts in a row always the first ones.
    pub(crate) phase: u64,
}

/// What runs the WAL thread.
pub(crate) struct WalThread {
    pub(crate) journal: Journal,
    pub(crate) disk: Box<dyn Disk + Send>,
    /// Holds the lock of the data directory for as long as this thread may write.
    pub(crate) directory: Arc<DataDirectory>,
    pub(crate) mailbox: Mailbox<Write>,
    pub(crate) to_front: mpsc::Sender<Durable>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) scrub: Scrubbing,
    pub(crate) stop: Stop,
}

impl WalThread {
    /// Runs until the replica stops. A failed write or flush stops it: what was written may be gone, and asking again
    /// would be told a lie.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.work() {
            let doing = format!("write the log in {}", self.directory.path().display());
            self.stop.stop(StopReason::Disk { doing, error: error.to_string() });
        }
    }

    fn work(&mut self) -> io::Result<()> {
        self.counters.wal_bytes.set(self.disk.size(File::Wal)?);
        self.counters.wal_used_bytes.set(self.journal.wal_used());
        self.tell_damage_found();
        let mut writes = VecDeque::new();
        self.journal.scrub_from(self.scrub.phase);
        let mut scrub_at = Clock.monotonic() + SCRUB_EVERY;
        loop {
            if scrub_at <= Clock.monotonic() {
                self.scrub();
                scrub_at = Clock.monotonic() + SCRUB_EVERY;
            }
            while let Some(job) = self.journal.next_job() {
                perform(&mut *self.disk, &job)?;
                self.counters.wal_jobs.add();
                for durable in self.journal.done(job.id) {
                    // Front never waits for this thread, so waiting for Front ends. When it has gone, so do we.
                    if self.to_front.blocking_send(durable).is_err() {
                        return self.close();
                    }
                }
                // What came while the disk was busy becomes the next group.
                if self.mailbox.take(&mut writes, Some(Duration::ZERO)) == Waited::Closed {
                    return self.close();
                }
                writes.drain(..).for_each(|write| self.journal.submit(write));
            }
            let until_scrub = scrub_at.since(Clock.monotonic());
            let evidence = self.journal.wants_evidence().then_some(EVIDENCE_AFTER);
            let patience = evidence.unwrap_or(until_scrub);
            match self.mailbox.take(&mut writes, Some(patience)) {
                Waited::Closed => return self.close(),
                Waited::TimedOut if evidence.is_some() => self.journal.give_evidence(),
                Waited::TimedOut => {}
                Waited::Filled => writes.drain(..).for_each(|write| self.journal.submit(write)),
            }
        }
    }

    /// Where nothing is left to be written, the superblock says how far the log goes.
    fn close(&mut self) -> io::Result<()> {
        if self.journal.idle() {
            self.journal.close();
            if let Some(job) = self.journal.next_job() {
                perform(&mut *self.disk, &job)?;
            }
        }
        Ok(())
    }

    /// What the start found: nothing of it counts.
    fn tell_damage_found(&self) {
        let (groups, blocks) = self.journal.damaged();
        if 0 < groups + blocks {
            self.counters.wal_groups_damaged.add_many(groups);
            self.counters.wal_blots.add_many(blocks);
            // Alone, it has opened only because no op is lost.
            let mended = if self.journal.is_alone() {
                "no op is lost by it"
            } else {
                "what this replica needs of it is asked of the others"
            };
            warn!(groups, blocks, "the log was damaged while this replica did not run; {mended}");
        }
        let copies = self.journal.superblock_copies_damaged_at_start();
        if 0 < copies {
            self.counters.superblock_copies_damaged.add_many(copies);
            warn!(
                copies,
                "copies of the superblock were damaged while this replica did not run, or half written when it ended; all \
                 of them are written anew"
            );
        }
    }

    /// What has rotted is in memory: the journal writes it again.
    fn scrub(&mut self) {
        self.counters.wal_used_bytes.set(self.journal.wal_used());
        let copies = self.journal.scrub_superblock(&mut *self.disk);
        if 0 < copies {
            self.counters.superblock_copies_damaged.add_many(copies);
            warn!(copies, "copies of the superblock have rotted; they are written again");
        }
        let scrubbed = self.journal.scrub(&mut *self.disk, self.scrub.bytes_per_second);
        self.counters.wal_bytes_scrubbed.add_many(usize::try_from(scrubbed.bytes).unwrap_or(usize::MAX));
        let read = self.counters.wal_scrub_bytes.value() + scrubbed.bytes;
        self.counters.wal_scrub_bytes.set(if scrubbed.round { 0 } else { read });
        self.counters.wal_scrub_rounds.add_many(usize::from(scrubbed.round));
        for damage in scrubbed.damage {
            self.counters.wal_groups_damaged.add();
            let entries = damage.entries.len();
            warn!(position = damage.position, entries, "part of the log has rotted; it is written again");
        }
        if 0 < scrubbed.blots {
            self.counters.wal_blots.add_many(scrubbed.blots);
            let blocks = scrubbed.blots;
            warn!(
                blocks,
                "blocks of the log file that hold nothing can't be read; they are filled with zeros"
            );
        }
        // Others are told by their peers if their log ends early.
        if self.journal.is_alone() {
            self.journal.note_end();
        }
    }
}
