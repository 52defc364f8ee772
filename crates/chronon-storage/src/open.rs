//! Making a data directory, and opening one.

use std::io;
use std::path::PathBuf;

use chronon_vsr::{
    ClusterId, DiskId, EntryHeader, Incarnation, Mutation, Mutations, Op, OpRef, Recovered, ReplicaId, Ring,
    Verdict, VsrState,
};

use crate::buffer::Buffer;
use crate::group::{Layout, Sequence};
use crate::journal::Start;
use crate::scan::{Scan, scan};
use crate::superblock::{self, Chosen, FORMAT_VERSION, NotChosen, Superblock};
use crate::{Disk, File, Journal, Step, perform, perform_step};

/// Whose data a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// What `init` drew for the cluster.
    pub lineage: u128,
    /// The replica.
    pub replica: ReplicaId,
    /// This data directory: 128 random bits, drawn for this format and never again.
    pub disk: DiskId,
}

/// Whose data the caller means to open. None: whatever is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Expect {
    /// The cluster.
    pub cluster: Option<ClusterId>,
    /// The replica.
    pub replica: Option<ReplicaId>,
    /// A number drawn for this start, so that peers tell it from a start of a copy of this directory. 0 where there are
    /// no copies: in tests, and for looking.
    pub drawn: u32,
}

/// Why a data directory could not be made.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// There is something in the directory already; it is never overwritten.
    #[error("{path} is not empty: it holds {found}; a data directory is made in an empty or a new one", path = path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A file of the disk has bytes already; it is never overwritten.
    #[error("the {file} file has {size} bytes already; a format never overwrites one", file = file.name())]
    AlreadyFormatted {
        /// The file.
        file: File,
        /// Its size.
        size: u64,
    },
    /// Another process holds the directory.
    #[error("{path} is in use by another process", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The ring's sizes contradict one another.
    #[error("a log of {log} bytes with charges up to {charge_max} bytes has no layout", log = ring.log, charge_max = ring.charge_max)]
    RingUnusable {
        /// The ring.
        ring: Ring,
    },
    /// The operating system said no.
    #[error("{doing}: {source}")]
    Disk {
        /// What was tried.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

/// Why a data directory could not be opened.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no data directory.
    #[error("{path} holds no data of a replica: make it with `init` first", path = path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// One of the files is gone, others are there: this is damage, not a new directory.
    #[error("{path} is gone, though other files of this replica are there: bring back that file itself, never an older copy of it", path = path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// Something else lies where a file has to be.
    #[error("{path} is no file but {what}: bring back the file itself, never an older copy of it", path = path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The format of this directory was interrupted; nothing was ever kept in it.
    #[error("the data directory was never finished: remove it and make it again with `init`")]
    FormatUnfinished,
    /// The superblock has no bytes, and there is a log: the directory was in use.
    #[error(
        "the superblock is empty, and the wal is not: this directory was in use, and its superblock is lost"
    )]
    SuperblockLost,
    /// Another process holds the directory.
    #[error("{path} is in use by another process", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The data is of another cluster: opening it would mix two histories.
    #[error("the data is of cluster {found:032x}, not of {expected:032x}", found = found.value(), expected = expected.value())]
    WrongCluster {
        /// The cluster that was meant.
        expected: ClusterId,
        /// The cluster that the data is of.
        found: ClusterId,
    },
    /// The data is of another replica.
    #[error("the data is of replica {found}, not of {expected}")]
    WrongReplica {
        /// The replica that was meant.
        expected: ReplicaId,
        /// The replica that the data is of.
        found: ReplicaId,
    },
    /// The data was written in another format.
    #[error("the data has format {found}, this release reads format {supported}")]
    FormatVersion {
        /// The version found.
        found: u32,
        /// The version of this release.
        supported: u32,
    },
    /// Fewer than two copies of the superblock agree.
    #[error("the superblock can't be read: {copies_valid} of 4 copies are right, and no two agree")]
    SuperblockUnreadable {
        /// Copies whose checksum was right.
        copies_valid: u8,
    },
    /// The superblock is well formed and contradicts itself.
    #[error("the superblock says that the WAL has {wal_size} bytes, which its ring of {log} bytes never has", log = ring.log)]
    SuperblockInconsistent {
        /// The ring.
        ring: Ring,
        /// The size of the WAL.
        wal_size: u64,
    },
    /// The log was written by a later start than any that the superblock knows of.
    #[error(
        "the superblock is an older copy: it knows of {known} starts, and the wal was written by start {found}; bring back \
         the superblock that belongs to this wal"
    )]
    SuperblockOlder {
        /// The starts that the superblock knows of.
        known: Incarnation,
        /// The start that wrote the log last.
        found: u32,
    },
    /// A file was cut short, or grew.
    #[error("the {file} file has {found} bytes instead of {expected}: it was cut short, or is not the one that belongs here", file = file.name())]
    WrongSize {
        /// The file.
        file: File,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The only replica of a cluster has lost what nobody else holds.
    #[error("this is the only replica, and its log is damaged: {damage}")]
    OnlyCopyDamaged {
        /// What is lost.
        damage: Damage,
    },
    /// There is no room in the WAL for what has to be written before anything else.
    #[error("the WAL is full: {used} of {size} bytes are in use")]
    WalFull {
        /// Bytes in use.
        used: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// This data directory was opened more often than can be counted.
    #[error("incarnation {incarnation} is the last one that the log can name")]
    IncarnationsExhausted {
        /// The last incarnation.
        incarnation: Incarnation,
    },
    /// The operating system said no.
    #[error("{doing}: {source}")]
    Disk {
        /// What was tried.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

/// What a start-up scan found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Entries whose bytes are wrong, ascending.
    pub faulty: Vec<OpRef>,
    /// The op from which on nobody knows what the log held.
    pub uncertain_from: Option<Op>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.faulty.as_slice() {
            [] => {}
            [one] => write!(f, "op {} ({}) is unreadable", one.op, one.checksum)?,
            [first, .., last] => {
                write!(f, "{} ops from {} to {} are unreadable", self.faulty.len(), first.op, last.op)?;
            }
        }
        if let Some(op) = self.uncertain_from {
            let and = if self.faulty.is_empty() { "" } else { ", and " };
            write!(f, "{and}what it held from op {op} on is unknown")?;
        }
        write!(f, "; restore from a backup, or recover the disk")
    }
}

/// Makes a replica's files on an empty disk: the WAL zero-filled, then the superblock. Until the superblock is
/// durable nothing can be opened, so a crash in between leaves nothing that could be taken for data.
pub fn format(
    disk: &mut dyn Disk,
    identity: Identity,
    state: VsrState,
    ring: Ring,
) -> Result<(), FormatError> {
    const CHUNK: usize = 1024 * 1024;
    const CHUNKS_A_FLUSH: u64 = 32;
    let layout = Layout::new(&identity, &ring).ok_or(FormatError::RingUnusable { ring })?;
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |source| FormatError::Disk { doing, source }
    };
    for file in File::FIXED {
        let size = disk.size(file).map_err(failed("look at the files"))?;
        if size != 0 {
            return Err(FormatError::AlreadyFormatted { file, size });
        }
    }
    let zeros = Buffer::zeroed(CHUNK);
    let mut position = 0;
    while position < layout.size {
        let length = layout.size.saturating_sub(position).min(CHUNK as u64);
        let chunk = &zeros[..usize::try_from(length).expect("at most a chunk")];
        disk.write(File::Wal, position, chunk).map_err(failed("fill the WAL with zeros"))?;
        position += length;
        if position == layout.size || position.is_multiple_of(CHUNKS_A_FLUSH * CHUNK as u64) {
            disk.flush(File::Wal).map_err(failed("flush the WAL"))?;
        }
    }
    let superblock = Superblock {
        sequence: 1,
        parent: chronon_vsr::Checksum::from_bytes([0; 16]),
        identity,
        incarnation: Incarnation::new(0),
        ring,
        wal_size: layout.size,
        wal_durable: Sequence::default(),
        state: superblock::within_bounds(state),
    };
    let (steps, _) = superblock.steps();
    steps.iter().try_for_each(|step: &Step| perform_step(disk, step)).map_err(failed("write the superblock"))
}

/// Opens a replica's files: begins a new incarnation, scans the WAL, and makes durable again what was only read.
///
/// After an error nothing more is to be done with this disk by this process.
pub fn open(
    disk: &mut dyn Disk,
    expect: Expect,
    mutations: Mutations,
) -> Result<(Journal, Recovered), OpenError> {
    let Read { chosen, layout, mut scan, incarnation } = read(disk, expect, mutations)?;
    let Chosen { superblock, sequence_max, checksum, held_by, damaged } = chosen;
    let identity = superblock.identity;

    // The new incarnation is durable before anything is written in its name, and what the scan could not tell is
    // durable before a group may overwrite the place where it failed.
    let state = state_after(&superblock.state, &scan, mutations);
    let wal_durable = superblock.wal_durable.max(scan.durable_through);
    let (sequence, parent) = (sequence_max + 1, checksum);
    let next = Superblock { sequence, parent, incarnation, wal_durable, state, ..superblock };
    let (steps, checksum) = next.steps_of_opening(held_by);
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |source| OpenError::Disk { doing, source }
    };
    steps.iter().try_for_each(|step| perform_step(disk, step)).map_err(failed("write the superblock"))?;

    let unevidenced = std::mem::take(&mut scan.unevidenced);
    let recovered = recovered(identity, incarnation, next.state.clone(), &mut scan);
    let mut journal = Journal::start(Start {
        superblock: next,
        checksum,
        superblock_copies_damaged: damaged,
        layout,
        incarnation: incarnation.count(),
        scan,
        mutations,
    });
    // Read is not durable: a process that was killed between write and flush leaves pages that read well.
    if !mutations.breaks(Mutation::AckWhatWasOnlyRead) {
        journal.append_again(unevidenced);
        while let Some(job) = journal.next_job() {
            perform(disk, &job).map_err(failed("append entries without evidence again"))?;
            let reports = journal.done(job.id);
            assert!(reports.is_empty());
        }
        if !journal.idle() {
            return Err(OpenError::WalFull { used: journal.wal_used(), size: layout.size });
        }
    }
    Ok((journal, recovered))
}

/// What a data directory says, before anything is written to it.
pub(crate) struct Read {
    pub(crate) chosen: Chosen,
    pub(crate) layout: Layout,
    pub(crate) scan: Scan,
    /// The incarnation that an opening begins.
    pub(crate) incarnation: Incarnation,
}

/// Reads a replica's files, and refuses what can't be opened.
pub(crate) fn read(disk: &mut dyn Disk, expect: Expect, mutations: Mutations) -> Result<Read, OpenError> {
    let superblock_size = size_of(disk, File::Superblock)?;
    if superblock_size == 0 {
        let used = holds_anything(disk, File::Wal);
        return Err(if used { OpenError::SuperblockLost } else { OpenError::FormatUnfinished });
    }
    let chosen = choose_superblock(disk)?;
    let superblock = &chosen.superblock;
    let identity = superblock.identity;
    if let Some(expected) = expect.cluster.filter(|cluster| *cluster != identity.cluster) {
        return Err(OpenError::WrongCluster { expected, found: identity.cluster });
    }
    if let Some(expected) = expect.replica.filter(|replica| *replica != identity.replica) {
        return Err(OpenError::WrongReplica { expected, found: identity.replica });
    }
    let layout = layout_of(superblock)?;
    expect_size(disk, File::Superblock, (superblock::COPIES * superblock::COPY_SIZE) as u64)?;
    expect_size(disk, File::Wal, layout.size)?;
    let scan = scan(disk, &layout, superblock, mutations);
    // An incarnation is durable before its first group is written. Going on would use the names of groups twice.
    if superblock.incarnation.count() < scan.incarnation {
        return Err(OpenError::SuperblockOlder { known: superblock.incarnation, found: scan.incarnation });
    }
    refuse_damage_of_the_only_copy(&superblock.state, &scan)?;
    let incarnation = superblock
        .incarnation
        .next(expect.drawn)
        .ok_or(OpenError::IncarnationsExhausted { incarnation: superblock.incarnation })?;
    Ok(Read { chosen, layout, scan, incarnation })
}

/// The layout of the WAL that a superblock describes.
pub(crate) fn layout_of(superblock: &Superblock) -> Result<Layout, OpenError> {
    let Superblock { identity, ring, wal_size, .. } = superblock;
    Layout::new(identity, ring)
        .filter(|layout| layout.size == *wal_size)
        .ok_or(OpenError::SuperblockInconsistent { ring: *ring, wal_size: *wal_size })
}

/// The protocol's state as an opening keeps it: what the scan could not tell is not forgotten.
pub(crate) fn state_after(state: &VsrState, scan: &Scan, mutations: Mutations) -> VsrState {
    let mut state = state.clone();
    state.uncertain_from = match (state.uncertain_from, scan.uncertain_from) {
        (Some(known), Some(found)) => Some(known.min(found)),
        (known, found) => known.or(found),
    };
    // The same goes for what the suffix names and the scan did not find: once the damage is written over, a later scan
    // would be complete, and take it for never written.
    if !scan.complete && !mutations.breaks(Mutation::NackAfterIncompleteScan) {
        let is_intact = |name: OpRef| {
            let mut found = scan.entries.iter().filter(|found| found.header.op_ref() == name);
            found.any(|found| matches!(found.verdict, Verdict::Intact(_)))
        };
        let named = state.suffix.iter().map(EntryHeader::op_ref).filter(|name| state.commit_max.op < name.op);
        let lost: Vec<OpRef> = named.filter(|name| !is_intact(*name)).collect();
        state.faulty.extend(lost.into_iter().filter(|name| !state.faulty.contains(name)).collect::<Vec<_>>());
    }
    superblock::within_bounds(state)
}

/// What the replica goes on from. Takes the entries out of the scan.
pub(crate) fn recovered(
    identity: Identity,
    incarnation: Incarnation,
    state: VsrState,
    scan: &mut Scan,
) -> Recovered {
    Recovered {
        cluster: identity.cluster,
        lineage: identity.lineage,
        replica: identity.replica,
        disk: identity.disk,
        incarnation,
        state,
        entries: std::mem::take(&mut scan.entries),
        scan_complete: scan.complete,
        uncertain_from: scan.uncertain_from,
    }
}

fn choose_superblock(disk: &mut dyn Disk) -> Result<Chosen, OpenError> {
    Superblock::choose(disk).map_err(|not_chosen| match not_chosen {
        NotChosen::Unreadable { copies_valid } => OpenError::SuperblockUnreadable { copies_valid },
        NotChosen::FormatVersion { found } => OpenError::FormatVersion { found, supported: FORMAT_VERSION },
    })
}

fn size_of(disk: &mut dyn Disk, file: File) -> Result<u64, OpenError> {
    disk.size(file)
        .map_err(|source| OpenError::Disk { doing: format!("look at the {} file", file.name()), source })
}

/// Whether a file has a byte that is not zero, or one that can't be read: a format that was interrupted leaves neither.
fn holds_anything(disk: &mut dyn Disk, file: File) -> bool {
    const CHUNK: u64 = 1024 * 1024;
    let size = disk.size(file).unwrap_or(u64::MAX);
    let mut buffer = Buffer::zeroed(CHUNK as usize);
    let mut position = 0;
    while position < size {
        let length = usize::try_from(CHUNK.min(size - position)).expect("at most a chunk");
        let chunk = &mut buffer.as_mut()[..length];
        if disk.read(file, position, chunk).is_err() || chunk.iter().any(|byte| *byte != 0) {
            return true;
        }
        position += CHUNK;
    }
    false
}

fn expect_size(disk: &mut dyn Disk, file: File, expected: u64) -> Result<(), OpenError> {
    let found = size_of(disk, file)?;
    if found == expected { Ok(()) } else { Err(OpenError::WrongSize { file, expected, found }) }
}

/// Alone, a replica has nobody to repair from, and everything that it flushed may have been acknowledged (§7).
fn refuse_damage_of_the_only_copy(state: &VsrState, scan: &Scan) -> Result<(), OpenError> {
    if state.membership.voters.len() != 1 {
        return Ok(());
    }
    let scanned = scan.entries.iter().filter(|entry| entry.verdict == Verdict::Faulty);
    let mut faulty: Vec<OpRef> = scanned.map(|entry| entry.header.op_ref()).collect();
    faulty.retain(|entry| state.checkpoint.entry.op < entry.op);
    faulty.sort_unstable();
    if faulty.is_empty() && scan.uncertain_from.is_none() {
        return Ok(());
    }
    Err(OpenError::OnlyCopyDamaged { damage: Damage { faulty, uncertain_from: scan.uncertain_from } })
}

#[cfg(test)]
mod tests {
    use chronon_vsr::{Epoch, Member, Membership};

    use super::*;
    use crate::MemoryDisk;
    use crate::superblock::{COPIES, COPY_SIZE};

    /// A crash in the middle of a superblock left one new copy. The next write goes above it, or that copy and one
    /// of the next could be mistaken for each other.
    #[test]
    fn opening_writes_a_superblock_above_every_readable_copy() {
        let (cluster, disk_id) = (ClusterId::new(1), DiskId::new(2));
        let member = Member { replica: ReplicaId::new(0), disk: disk_id };
        let membership = Membership { epoch: Epoch::new(1), voters: vec![member], learners: vec![] };
        let root = membership.root(cluster, 3);
        let identity = Identity { cluster, lineage: 3, replica: member.replica, disk: disk_id };
        let ring = Ring::new(512 * 1024, 8000).unwrap();
        let mut disk = MemoryDisk::new();
        format(&mut disk, identity, VsrState::format(membership, root), ring).unwrap();

        let chosen = Superblock::choose(&mut disk).unwrap();
        let torn =
            Superblock { sequence: chosen.sequence_max + 1, parent: chosen.checksum, ..chosen.superblock };
        let mut copies = vec![0; COPIES * COPY_SIZE];
        torn.encode(&mut copies);
        disk.write(File::Superblock, 0, &copies[..COPY_SIZE]).unwrap();
        assert_eq!(Superblock::choose(&mut disk).unwrap().superblock.sequence, 1);

        open(&mut disk, Expect::default(), Mutations::NONE).unwrap();
        let chosen = Superblock::choose(&mut disk).unwrap();
        assert_eq!(chosen.superblock.sequence, 3);
        assert_eq!(chosen.superblock.incarnation, Incarnation::new(1));
    }
}
