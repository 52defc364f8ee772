//! Random histories: writes, crashes, power cuts, repairs, recycling. What was reported durable is there, what was
//! not may be, and nothing else ever is.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod support;

use std::collections::BTreeMap;

use chronon_storage::{File, Journal, MemoryDisk, Operation, SECTOR_SIZE, UnflushedDisk, open, perform_step};
use chronon_vsr::{
    Durable, Entry, LogStamp, Mutations, Op, OpRef, Prng, Recovered, Verdict, VsrState, Write, WriteNumber,
    charge,
};
use support::*;

/// One replica's disk, and what may and must be found on it.
struct History {
    prng: Prng,
    disk: UnflushedDisk<MemoryDisk>,
    journal: Journal,
    mutations: Mutations,
    chain: Chain,
    /// Every entry ever submitted.
    ever: BTreeMap<OpRef, Entry>,
    /// Those of them that may still be found: what one start-up did not find, none after it finds.
    submitted: BTreeMap<OpRef, Entry>,
    /// Entries reported durable, in this incarnation or an earlier one.
    durable: BTreeMap<OpRef, Entry>,
    waiting: Vec<(WriteNumber, Entry)>,
    appended: WriteNumber,
    keep_from: Op,
    state: VsrState,
    durable_state: VsrState,
    states_waiting: Vec<(WriteNumber, VsrState)>,
    superblocks: WriteNumber,
    recycles: bool,
}

/// What is wrong with what was found.
type Wrong = String;

impl History {
    fn new(seed: u64, recycles: bool, mutations: Mutations) -> History {
        let mut disk = UnflushedDisk::new(formatted(3));
        let (journal, recovered) = open(&mut disk, chronon_storage::Expect::default(), mutations).unwrap();
        History {
            prng: Prng::new(seed),
            disk,
            journal,
            mutations,
            chain: Chain::new(3),
            ever: BTreeMap::new(),
            submitted: BTreeMap::new(),
            durable: BTreeMap::new(),
            waiting: Vec::new(),
            appended: WriteNumber::ZERO,
            keep_from: Op::ROOT,
            durable_state: recovered.state.clone(),
            state: recovered.state,
            states_waiting: Vec::new(),
            superblocks: WriteNumber::ZERO,
            recycles,
        }
    }

    fn run(mut self, steps: usize) -> Result<(), Wrong> {
        for _ in 0..steps {
            match self.prng.below(20) {
                0..9 => self.append(),
                9 => self.repair(),
                10 => self.promise(),
                11..16 => self.work(),
                16 | 17 => {
                    if self.journal.wants_evidence() {
                        self.journal.give_evidence();
                    }
                }
                18 => self.crash(Crash::Kill)?,
                _ => self.crash(Crash::PowerCut)?,
            }
        }
        self.crash(Crash::PowerCut)
    }

    fn append(&mut self) {
        let size = match self.prng.below(4) {
            0 => 0,
            1 => self.prng.below(600),
            2 => self.prng.below(8001),
            _ => 3968 * self.prng.between(1, 2) - 256 + self.prng.below(3) - 1,
        };
        let used: u64 = self
            .submitted
            .values()
            .filter(|entry| self.keep_from <= entry.op())
            .map(|entry| charge(entry.header().body_size))
            .sum();
        if ring().log < used + charge(size as u32) {
            if !self.recycles {
                return;
            }
            // Let go of the older half of what is durable.
            let head = self.durable.keys().map(|entry| entry.op).max().unwrap_or(Op::ROOT);
            let half = (head.value().max(self.keep_from.value()) + self.keep_from.value()) / 2;
            self.keep_from = self.keep_from.max(Op::new(half));
            return;
        }
        let entry = self.chain.next(size as usize);
        self.submit(entry);
    }

    fn repair(&mut self) {
        let live: Vec<Entry> = self
            .submitted
            .range(OpRef { op: self.keep_from, ..self.state.commit_max }..)
            .map(|(_, e)| e.clone())
            .collect();
        if !live.is_empty() {
            let entry = live[self.prng.below(live.len() as u64) as usize].clone();
            self.submit(entry);
        }
    }

    fn submit(&mut self, entry: Entry) {
        self.appended = self.appended.next();
        let (number, keep_from) = (self.appended, self.keep_from);
        self.ever.insert(entry.op_ref(), entry.clone());
        self.submitted.insert(entry.op_ref(), entry.clone());
        self.waiting.push((number, entry.clone()));
        self.journal.submit(Write::Append { number, entry, keep_from });
    }

    fn promise(&mut self) {
        self.state.stamp = self.state.stamp.next_view();
        if self.prng.chance(1, 2) {
            self.state.log_stamp = LogStamp::adopted(self.state.stamp);
        }
        self.superblocks = self.superblocks.next();
        self.states_waiting.push((self.superblocks, self.state.clone()));
        self.journal.submit(Write::Superblock { number: self.superblocks, state: self.state.clone() });
    }

    /// Takes every job that there is, carries them out newest first (only a broken journal gives two), and reports.
    fn work(&mut self) {
        let mut jobs: Vec<_> = std::iter::from_fn(|| self.journal.next_job()).collect();
        while let Some(job) = jobs.pop() {
            job.steps.iter().for_each(|step| perform_step(&mut self.disk, step).unwrap());
            let reports = self.journal.done(job.id);
            self.hear(reports);
            if !jobs.is_empty() && self.prng.chance(1, 2) {
                return;
            }
        }
    }

    fn hear(&mut self, reports: Vec<Durable>) {
        for report in reports {
            match report {
                Durable::Appended(through) => {
                    let waiting = std::mem::take(&mut self.waiting);
                    let (done, waiting) = waiting.into_iter().partition(|(number, _)| *number <= through);
                    self.waiting = waiting;
                    let done: Vec<(WriteNumber, Entry)> = done;
                    self.durable.extend(done.into_iter().map(|(_, entry)| (entry.op_ref(), entry)));
                }
                Durable::Superblock(through) => {
                    let done = self.states_waiting.iter().rfind(|(number, _)| *number <= through);
                    self.durable_state = done.unwrap().1.clone();
                    self.states_waiting.retain(|(number, _)| through < *number);
                }
            }
        }
    }

    /// The process dies, perhaps in the middle of a job; with the power, sectors in flight are lost at random.
    fn crash(&mut self, crash: Crash) -> Result<(), Wrong> {
        if let Some(job) = self.journal.next_job() {
            let steps = self.prng.below(job.steps.len() as u64) as usize;
            job.steps[..steps].iter().for_each(|step| perform_step(&mut self.disk, step).unwrap());
        }
        if let Crash::PowerCut = crash {
            let disk = std::mem::replace(&mut self.disk, UnflushedDisk::new(MemoryDisk::new()));
            let kept = self.prng.below(101);
            let prng = &mut self.prng;
            self.disk = UnflushedDisk::new(disk.power_cut(|_, _| prng.chance(kept, 100)).unwrap());
        }
        while self.prng.chance(1, 4) {
            self.power_fails_during_an_opening();
        }
        let opened = open(&mut self.disk, chronon_storage::Expect::default(), self.mutations);
        let (journal, recovered) = opened.map_err(|error| error.to_string())?;
        self.journal = journal;
        self.check(&recovered)?;

        // What was found is durable now; the chain goes on above it.
        self.durable = intact(&recovered).into_iter().map(|entry| (entry.op_ref(), entry)).collect();
        self.submitted.retain(|entry, _| self.durable.contains_key(entry));
        let head = self.durable.values().max_by_key(|entry| (entry.op(), entry.header().born));
        let mut chain = Chain::new(3).view(recovered.incarnation.value());
        if let Some(head) = head {
            chain.head = head.op_ref();
            chain.offset = head.header().offset + charge(head.header().body_size);
        }
        self.chain = chain;
        self.durable_state = recovered.state.clone();
        self.state = recovered.state;
        self.waiting.clear();
        self.states_waiting.clear();
        self.appended = WriteNumber::ZERO;
        self.superblocks = WriteNumber::ZERO;
        Ok(())
    }

    /// After so many writes and flushes of an opening there is no power, and what is in flight is lost at random.
    fn power_fails_during_an_opening(&mut self) {
        let mut left = self.prng.below(12);
        let disk = std::mem::replace(&mut self.disk, UnflushedDisk::new(MemoryDisk::new()));
        let mut disk = disk.with_hook(Box::new(move |operation| match operation {
            Operation::Read { .. } => Ok(()),
            _ => {
                left = left.checked_sub(1).ok_or(std::io::ErrorKind::BrokenPipe)?;
                Ok(())
            }
        }));
        // Whether it got through or not, nobody acted on it.
        let _ = open(&mut disk, chronon_storage::Expect::default(), self.mutations);
        let prng = &mut self.prng;
        self.disk = UnflushedDisk::new(disk.power_cut(|_, _| prng.chance(1, 2)).unwrap());
    }

    fn check(&self, recovered: &Recovered) -> Result<(), Wrong> {
        let mut found = BTreeMap::new();
        for entry in &recovered.entries {
            match &entry.verdict {
                Verdict::Intact(entry) => found.insert(entry.op_ref(), entry.clone()),
                Verdict::Faulty => return Err(format!("op {} is faulty without any rot", entry.header.op)),
            };
        }
        for (name, entry) in &self.durable {
            if self.keep_from <= name.op && found.get(name) != Some(entry) {
                return Err(format!("op {} was durable and is gone", name.op));
            }
        }
        for (name, entry) in &found {
            // What was let go of may show up again, when the group that moved the tail past it is lost.
            let may_be = if name.op < self.keep_from { &self.ever } else { &self.submitted };
            if may_be.get(name) != Some(entry) {
                return Err(format!("op {} was never submitted like this", name.op));
            }
        }
        if !recovered.scan_complete || recovered.uncertain_from.is_some() {
            return Err("a tear looks like rot".to_owned());
        }
        let mut states = self.states_waiting.iter().map(|(_, state)| state).chain([&self.durable_state]);
        if !states.any(|state| *state == recovered.state) {
            return Err(format!(
                "the superblock of stamp {} is neither durable nor new",
                recovered.state.stamp
            ));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Crash {
    Kill,
    PowerCut,
}

#[test]
fn whatever_happens_what_was_reported_durable_is_found_again() {
    for seed in 0..40 {
        let history = History::new(seed, false, Mutations::NONE);
        history.run(200).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn a_ring_that_turns_many_times_keeps_what_it_must() {
    for seed in 100..108 {
        let history = History::new(seed, true, Mutations::NONE);
        history.run(1000).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// Restarts write twice what had no evidence. A log as full as a replica may make it still takes every entry.
#[test]
fn a_full_log_survives_any_number_of_restarts() {
    let mut disk = formatted(3);
    let mut chain = Chain::new(3);
    let mut all = Vec::new();
    while chain.offset + charge(8000) <= ring().log {
        let (mut journal, _) = reopen(&mut disk);
        let entries = chain.take(&[8000]);
        append(&mut disk, &mut journal, &mut Numbers::new(), &entries);
        all.extend(entries);
    }
    for _ in 0..200 {
        let (mut journal, recovered) = reopen(&mut disk);
        assert_eq!(intact(&recovered).len(), all.len());
        let mut numbers = Numbers::new();
        append(&mut disk, &mut journal, &mut numbers, &all[..3]);
        append(&mut disk, &mut journal, &mut numbers, &all[10..11]);
    }
    let (_, recovered) = reopen(&mut disk);
    let mut found = refs(&intact(&recovered));
    found.sort_unstable();
    assert_eq!(found, refs(&all));
}

#[cfg(feature = "mutations")]
mod mutations {
    use chronon_vsr::{Mutation, Mutations};

    use super::History;

    fn caught_within(mutation: Mutation, seeds: u64) {
        let wrong = (0..seeds).find_map(|seed| {
            let history = History::new(seed, false, Mutations::broken(mutation));
            history.run(200).err().map(|wrong| (seed, wrong))
        });
        assert!(wrong.is_some(), "{mutation:?} was not caught in {seeds} seeds");
    }

    #[test]
    fn a_journal_that_acks_before_its_flush_is_caught() {
        caught_within(Mutation::AckBeforeFlush, 5);
    }

    #[test]
    fn a_journal_that_reports_out_of_order_is_caught() {
        caught_within(Mutation::DurableOutOfOrder, 20);
    }

    #[test]
    fn a_start_up_that_acks_what_it_only_read_is_caught() {
        caught_within(Mutation::AckWhatWasOnlyRead, 20);
    }
}

/// Entries beyond what the ring is for: the journal waits, and a start-up that finds no room to append again what
/// has no evidence says so, without losing anything.
#[test]
fn an_overfull_log_waits_and_at_last_refuses_to_open() {
    let mut disk = formatted(3);
    let (mut journal, _) = reopen(&mut disk);
    let (mut numbers, mut chain) = (Numbers::new(), Chain::new(3));
    let mut all = Vec::new();
    while journal.idle() {
        let entries = chain.take(&[8000; 3]);
        entries.iter().for_each(|entry| journal.submit(numbers.append(entry)));
        while let Some(job) = journal.next_job() {
            chronon_storage::perform(&mut disk, &job).unwrap();
            journal.done(job.id);
        }
        all.extend(entries);
    }
    assert!(ring().log < chain.offset);
    let mut opened = 0;
    let error = loop {
        match open(&mut disk, chronon_storage::Expect::default(), Mutations::NONE) {
            Ok((journal, recovered)) => {
                assert!(journal.idle());
                assert!(all.len() - 3 <= intact(&recovered).len());
            }
            Err(error) => break error,
        }
        opened += 1;
    };
    assert!(0 < opened);
    assert!(matches!(&error, chronon_storage::OpenError::WalFull { used, size } if used <= size), "{error}");
}

/// Rot, lost writes, misdirected writes, several at once: more than can be promised to be told apart. Whatever a
/// start-up makes of it, it does not panic, and no entry is there that never was.
#[test]
fn no_damage_makes_a_start_up_panic_or_invent_an_entry() {
    const BLOCK: usize = 4096;
    for seed in 0..60 {
        let mut history = History::new(seed, true, Mutations::NONE);
        for _ in 0..40 {
            history.append();
            history.work();
        }
        let earlier = history.disk.inner().bytes(File::Wal).to_vec();
        for _ in 0..60 {
            history.append();
            history.work();
        }
        let History { mut prng, disk, ever, .. } = history;
        let mut disk = disk.power_cut(|_, _| false).unwrap();
        let wal = disk.bytes_mut(File::Wal);
        let used = wal.iter().rposition(|byte| *byte != 0).unwrap() / BLOCK + 1;
        for _ in 0..=prng.below(12) {
            let (here, there) =
                (prng.below(used as u64) as usize * BLOCK, prng.below(used as u64) as usize * BLOCK);
            let unit = here + prng.below(8) as usize * SECTOR_SIZE;
            match prng.below(6) {
                0 => wal[unit + prng.below(512) as usize] ^= 1 << prng.below(8),
                1 => wal[unit..unit + SECTOR_SIZE].fill(0),
                2 => wal[here..here + BLOCK].fill(prng.next_u64() as u8),
                3 => wal.copy_within(here..here + BLOCK, there),
                4 => wal[here..here + BLOCK].copy_from_slice(&earlier[here..here + BLOCK]),
                _ => wal[unit..unit + SECTOR_SIZE].copy_from_slice(&earlier[unit..unit + SECTOR_SIZE]),
            }
        }
        for _ in 0..3 {
            let (mut journal, recovered) = reopen(&mut disk);
            for entry in &recovered.entries {
                let known = ever.get(&entry.header.op_ref());
                assert!(known.is_some(), "seed {seed}: op {} was invented", entry.header.op);
                if let Verdict::Intact(entry) = &entry.verdict {
                    assert_eq!(known, Some(entry), "seed {seed}");
                }
            }
            let mut numbers = Numbers::new();
            for entry in ever.values().rev().take(3) {
                journal.submit(numbers.append(entry));
            }
            while let Some(job) = journal.next_job() {
                job.steps.iter().for_each(|step| perform_step(&mut disk, step).unwrap());
                journal.done(job.id);
            }
        }
    }
}
