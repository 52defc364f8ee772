//! What the tests of storage share: a small replica's files, entries that chain, and a driver.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of what they share"
)]

use std::sync::Arc;

use chronon_storage::{Disk, Expect, Identity, Journal, MemoryDisk, UnflushedDisk, format, open, perform};
use chronon_vsr::{
    Checksum, ClusterId, DiskId, Durable, Entry, EntryHeader, Epoch, Member, Membership, Mutations, Op,
    OpRef, Recovered, Release, ReplicaId, Ring, Stamp, Timestamp, Verdict, View, VsrState, Write,
    WriteNumber, charge,
};

pub const CLUSTER: ClusterId = ClusterId::new(0xc1);
pub const LINEAGE: u128 = 0x11;
pub const BODY_MAX: u32 = 8000;

pub fn identity() -> Identity {
    Identity { cluster: CLUSTER, lineage: LINEAGE, replica: ReplicaId::new(0), disk: DiskId::new(0xd0) }
}

pub fn membership(voters: u8) -> Membership {
    let member = |replica: u8| Member {
        replica: ReplicaId::new(replica),
        disk: DiskId::new(0xd0 + u128::from(replica)),
    };
    Membership { epoch: Epoch::new(1), voters: (0..voters).map(member).collect(), learners: Vec::new() }
}

pub fn state(voters: u8) -> VsrState {
    let membership = membership(voters);
    let root = membership.root(CLUSTER, LINEAGE);
    VsrState::format(membership, root)
}

pub fn ring() -> Ring {
    Ring::new(512 * 1024, BODY_MAX).unwrap()
}

pub fn formatted(voters: u8) -> MemoryDisk {
    let mut disk = MemoryDisk::new();
    format(&mut disk, identity(), state(voters), ring()).unwrap();
    disk
}

pub fn reopen(disk: &mut dyn Disk) -> (Journal, Recovered) {
    open(disk, Expect::default(), Mutations::NONE).unwrap()
}

/// Makes entries, each the child of the one before.
#[derive(Clone)]
pub struct Chain {
    pub head: OpRef,
    pub offset: u64,
    pub born: Stamp,
}

impl Chain {
    pub fn new(voters: u8) -> Chain {
        let membership = membership(voters);
        let head = membership.root(CLUSTER, LINEAGE);
        Chain { head, offset: 0, born: Stamp::first(membership.epoch) }
    }

    pub fn view(&self, view: u64) -> Chain {
        Chain { born: Stamp { view: View::new(view), ..self.born }, ..self.clone() }
    }

    /// An entry whose body has this many bytes, all different from place to place.
    pub fn next(&mut self, size: usize) -> Entry {
        let op = self.head.op.next();
        let salt = op.value() * 7 + self.born.view.value();
        let byte = |index: usize| {
            (((index as u64 + 1) * (salt | 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1
        };
        let body: Arc<[u8]> = (0..size).map(byte).collect();
        let header = EntryHeader {
            cluster: CLUSTER,
            born: self.born,
            op,
            parent: self.head.checksum,
            offset: self.offset,
            timestamp: Timestamp::from_nanos(op.value()),
            commit: Op::ROOT,
            release: Release::new(1),
            body_size: size as u32,
            body_checksum: Checksum::of(&body),
        };
        self.offset += charge(size as u32);
        self.head = header.op_ref();
        Entry::new(header, body).unwrap()
    }

    pub fn take(&mut self, sizes: &[usize]) -> Vec<Entry> {
        sizes.iter().map(|size| self.next(*size)).collect()
    }
}

/// Numbers the writes of one incarnation.
pub struct Numbers(pub WriteNumber);

impl Numbers {
    pub fn new() -> Numbers {
        Numbers(WriteNumber::ZERO)
    }

    pub fn append(&mut self, entry: &Entry) -> Write {
        self.0 = self.0.next();
        Write::Append { number: self.0, entry: entry.clone(), keep_from: Op::ROOT }
    }
}

/// Submits the entries and carries out jobs until nothing is left: all of them go into one group if they fit.
pub fn append(disk: &mut dyn Disk, journal: &mut Journal, numbers: &mut Numbers, entries: &[Entry]) {
    for entry in entries {
        journal.submit(numbers.append(entry));
    }
    let reports = drain(disk, journal);
    assert_eq!(reports.last(), Some(&Durable::Appended(numbers.0)));
}

pub fn drain(disk: &mut dyn Disk, journal: &mut Journal) -> Vec<Durable> {
    let mut reports = Vec::new();
    while let Some(job) = journal.next_job() {
        perform(disk, &job).unwrap();
        reports.extend(journal.done(job.id));
    }
    assert!(journal.idle());
    reports
}

pub fn evidence(disk: &mut dyn Disk, journal: &mut Journal) {
    assert!(journal.wants_evidence());
    journal.give_evidence();
    assert_eq!(drain(disk, journal), []);
    assert!(!journal.wants_evidence());
}

pub fn intact(recovered: &Recovered) -> Vec<Entry> {
    let entries = recovered.entries.iter().filter_map(|entry| match &entry.verdict {
        Verdict::Intact(entry) => Some(entry.clone()),
        Verdict::Faulty => None,
    });
    entries.collect()
}

pub fn faulty(recovered: &Recovered) -> Vec<OpRef> {
    let faulty = recovered.entries.iter().filter(|entry| entry.verdict == Verdict::Faulty);
    faulty.map(|entry| entry.header.op_ref()).collect()
}

pub fn refs(entries: &[Entry]) -> Vec<OpRef> {
    entries.iter().map(Entry::op_ref).collect()
}

pub type PowerDisk = UnflushedDisk<MemoryDisk>;
