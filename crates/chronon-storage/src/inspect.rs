//! A look at a data directory: what is there, what is damaged, and what a start would make of it. Changes nothing.

use chronon_vsr::{
    Checksum, Incarnation, Mutations, Now, Op, OpRef, Options, Release, Replica, Ring, Standing, Status,
    Timing, VsrState,
};

use crate::group::{BLOCK, GroupHeader};
use crate::open::{Read, layout_of, read, recovered, state_after};
use crate::scan::{DamagedGroup, Lost, Scan, Survey, scan};
use crate::superblock::{self, COPIES, Copy, Superblock};
use crate::{
    ChunkDamage, CopyFault, Disk, Expect, File, Found, Identity, OpenError, Vault, VaultError, VaultUsage,
};

/// No group is shorter.
const FIRST_GROUP_MIN: u64 = BLOCK as u64;

/// What a data directory holds. Made by the code that opens one.
#[derive(Debug)]
pub struct Inspection {
    /// Each copy of the superblock.
    pub copies: [CopyReport; COPIES],
    /// The superblock that counts, if two copies agree on one.
    pub superblock: Option<SuperblockReport>,
    /// Bytes of the superblock's file and of the WAL's; none: the file is gone, or can't be looked at.
    pub sizes: [(File, Option<u64>); 2],
    /// What the WAL holds. None if no superblock says how to read it.
    pub log: Option<LogReport>,
    /// What a start would find the log to be. None if it would refuse before.
    pub chain: Option<ChainReport>,
    /// The checkpoint that the superblock names first, then others that were finished here and not let go since.
    pub checkpoints: Vec<CheckpointReport>,
    /// How much room packs take.
    pub packs: VaultUsage,
    /// Packs that can't be opened, and why. A start passes over them: what they hold is missing.
    pub unreadable: Vec<(File, String)>,
    /// Why a start would refuse, if it would.
    pub refusal: Option<OpenError>,
}

/// One copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyReport {
    /// It is the superblock that counts.
    Chosen {
        /// Its sequence.
        sequence: u64,
    },
    /// It is good, and older or newer: a crash interrupted a write.
    Other {
        /// Its sequence.
        sequence: u64,
    },
    /// It is good, in another format.
    OtherVersion {
        /// The format's version.
        found: u32,
    },
    /// It can't be used.
    Damaged(CopyFault),
}

/// The superblock that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockReport {
    /// Rises with every write.
    pub sequence: u64,
    /// Whose data this is.
    pub identity: Identity,
    /// How often the directory was opened.
    pub incarnation: Incarnation,
    /// The sizes of the WAL.
    pub ring: Ring,
    /// Bytes that the WAL must have.
    pub wal_size: u64,
    /// The protocol's state.
    pub state: VsrState,
}

/// What the WAL holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogReport {
    /// Groups that are needed.
    pub groups: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Entries that they name, each once.
    pub entries: usize,
    /// The lowest and the highest op of them.
    pub ops: Option<(Op, Op)>,
    /// Of them, those whose bytes are damaged in every copy.
    pub faulty: Vec<OpRef>,
    /// Entries without proof that they were flushed: a start flushes them again.
    pub unevidenced: usize,
    /// Where groups are not whole, in the order in which they were written.
    pub damage: Vec<LogDamage>,
    /// Where writes were interrupted by a crash. They were never acknowledged, and this is no damage.
    pub torn: Vec<u64>,
    /// Where there is something that may have been the newest group.
    pub unreadable_tail: Option<u64>,
    /// Groups that the superblock knows to have been durable are not here: the WAL is an older copy, or the disk lost what
    /// it had flushed.
    pub ends_early: bool,
    /// Where damage begins in parts that are not needed, and how many units of 512 bytes are bad.
    pub stray: Option<(u64, usize)>,
    /// Where a group lies that is whole, and was written into the WAL of another data directory: this superblock and this
    /// WAL do not belong together.
    pub foreign: Option<u64>,
    /// Every group was found, and none is unknown.
    pub complete: bool,
    /// From here up nobody can tell what the log held.
    pub uncertain_from: Option<Op>,
}

/// A group of the WAL that is not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDamage {
    /// Where the group starts in the file.
    pub position: u64,
    /// Its bytes.
    pub length: u64,
    /// Where the first bad unit starts in the file.
    pub first_bad: u64,
    /// The entries that it cost; none: nobody knows which they were.
    pub lost: Option<Vec<OpRef>>,
}

/// The log as a start would find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainReport {
    /// What the replica would be doing.
    pub status: Status,
    /// The lowest op that the log holds.
    pub start: Op,
    /// The newest op known committed.
    pub commit_max: OpRef,
    /// The newest op.
    pub head: Op,
    /// Entries that are here, each linked to the one before by its checksum.
    pub linked: u64,
    /// Ops that the hash chain names and that are damaged or not here: peers are asked for them.
    pub missing: Vec<OpRef>,
    /// Ops of which not even the name is known: peers are asked for it.
    pub unnamed: u64,
    /// The first op that is not the child of the one before. There is none unless two logs were mixed.
    pub broken: Option<Op>,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Its name.
    pub root: Checksum,
    /// The op whose execution it follows, if it is the one that the superblock names.
    pub op: Option<Op>,
    /// Chunks; none if the list of them can't be read.
    pub chunks: Option<usize>,
    /// What of it is missing or damaged.
    pub damage: Vec<ChunkDamage>,
}

/// Looks at the files of a data directory, reads every byte that counts, and checks it.
pub fn inspect(disk: &mut dyn Disk) -> Inspection {
    let copies = superblock::read_copies(disk);
    let found = copies.each_ref().map(CopyReport::of);
    let sizes = File::FIXED.map(|file| (file, disk.size(file).ok().filter(|size| 0 < *size)));
    let mut inspection = Inspection {
        copies: found,
        superblock: None,
        sizes,
        log: None,
        chain: None,
        checkpoints: Vec::new(),
        packs: VaultUsage::default(),
        unreadable: Vec::new(),
        refusal: None,
    };
    let chosen = superblock::choose(copies).ok();
    if let Some(chosen) = &chosen {
        for (copy, held) in inspection.copies.iter_mut().zip(chosen.held_by) {
            if held {
                *copy = CopyReport::Chosen { sequence: chosen.superblock.sequence };
            }
        }
    }
    match read(disk, Expect::default(), Mutations::NONE) {
        Ok(read) => {
            inspection.log = Some(LogReport::of(&read.scan, disk));
            inspection.chain = Some(ChainReport::of(&replica_of(read)));
        }
        // What can't be opened may still hold something.
        Err(refusal) => {
            inspection.refusal = Some(refusal);
            if let Some(chosen) = &chosen
                && let Ok(layout) = layout_of(&chosen.superblock)
                // Of a file without room for a group there is nothing to tell, and what is cut off is not bad bytes.
                && let Ok(size @ FIRST_GROUP_MIN..) = disk.size(File::Wal)
            {
                let mut scan = scan(disk, &layout, &chosen.superblock, Mutations::NONE);
                scan.survey.stray = scan.survey.stray.filter(|_| layout.size <= size);
                inspection.log = Some(LogReport::of(&scan, disk));
            }
        }
    }
    if let Some(chosen) = chosen {
        let superblock = SuperblockReport::of(chosen.superblock);
        match Vault::open(disk, superblock.identity) {
            Ok(mut vault) => {
                inspection.packs = vault.usage();
                let unreadable = vault.unreadable().map(|(file, why)| (file, why.to_owned()));
                inspection.unreadable = unreadable.collect();
                inspection.checkpoints = checkpoints(disk, &mut vault, &superblock);
            }
            Err(VaultError::Disk { doing, source }) => {
                inspection.refusal.get_or_insert(OpenError::Disk { doing, source });
            }
        }
        inspection.superblock = Some(superblock);
    }
    inspection
}

/// The replica that a start would make of a data directory, without starting: its log can be looked at.
pub fn replica_at_rest(disk: &mut dyn Disk) -> Result<Replica, OpenError> {
    read(disk, Expect::default(), Mutations::NONE).map(replica_of)
}

fn replica_of(read: Read) -> Replica {
    let Read { chosen, mut scan, incarnation, layout: _ } = read;
    let superblock = chosen.superblock;
    let state = state_after(&superblock.state, &scan, Mutations::NONE);
    let recovered = recovered(superblock.identity, incarnation, state, &mut scan);
    let options = Options {
        timing: Timing::default(),
        ring: superblock.ring,
        release: Release::new(0),
        seed: 0,
        mutations: Mutations::NONE,
    };
    let now = Now { monotonic: chronon_vsr::Instant::ZERO, wall: chronon_vsr::Timestamp::ZERO };
    Replica::open(options, recovered, now)
}

/// Reads every chunk of every checkpoint.
fn checkpoints(
    disk: &mut dyn Disk,
    vault: &mut Vault,
    superblock: &SuperblockReport,
) -> Vec<CheckpointReport> {
    let current = superblock.state.checkpoint;
    let others: Vec<Checksum> = vault.roots().filter(|root| Some(*root) != current.root).collect();
    let reports = current.root.into_iter().chain(others).filter_map(|root| {
        let chunks = vault.list(disk, root).ok().map(|list| list.chunks.len());
        let mut damage = vault.missing(disk, root, usize::MAX);
        let op = (Some(root) == current.root).then_some(current.entry.op);
        if op.is_none() && !damage.is_empty() {
            // Nothing needs it, so its chunks may have gone with their packs, and only its map is left: no damage. Bytes that
            // are there and wrong are.
            damage.retain(|damage| matches!(damage.found, Found::Unreadable | Found::OtherBytes));
            if damage.is_empty() {
                return None;
            }
        }
        Some(CheckpointReport { root, op, chunks, damage })
    });
    reports.collect()
}

impl CopyReport {
    fn of(copy: &Copy) -> CopyReport {
        match copy {
            Copy::Valid { superblock, .. } => CopyReport::Other { sequence: superblock.sequence },
            Copy::OtherVersion { found } => CopyReport::OtherVersion { found: *found },
            Copy::Damaged(fault) => CopyReport::Damaged(*fault),
        }
    }
}

impl SuperblockReport {
    fn of(superblock: Superblock) -> SuperblockReport {
        let Superblock { sequence, identity, incarnation, ring, wal_size, state, parent: _, wal_durable: _ } =
            superblock;
        SuperblockReport { sequence, identity, incarnation, ring, wal_size, state }
    }
}

impl LogReport {
    fn of(scan: &Scan, disk: &mut dyn Disk) -> LogReport {
        let Survey { damaged, torn, unreadable_tail, ends_early, stray } = &scan.survey;
        let ops = scan.entries.iter().map(|entry| entry.header.op);
        let faulty = scan.entries.iter().filter(|entry| entry.verdict == chronon_vsr::Verdict::Faulty);
        LogReport {
            groups: scan.groups.len(),
            bytes: scan.groups.iter().map(|group| group.link.length()).sum(),
            entries: scan.entries.len(),
            ops: ops.clone().min().zip(ops.max()),
            faulty: faulty.map(|entry| entry.header.op_ref()).collect(),
            unevidenced: scan.unevidenced.len(),
            damage: damaged.iter().map(LogDamage::of).collect(),
            torn: torn.clone(),
            unreadable_tail: *unreadable_tail,
            ends_early: *ends_early,
            stray: *stray,
            foreign: stray.and_then(|(position, _)| foreign_group(disk, position)),
            complete: scan.complete,
            uncertain_from: scan.uncertain_from,
        }
    }
}

/// Whether a bad unit begins a group that is another file's: its header is whole, and names the place where it stands.
fn foreign_group(disk: &mut dyn Disk, position: u64) -> Option<u64> {
    let mut block = vec![0; BLOCK];
    disk.read(File::Wal, position / BLOCK as u64 * BLOCK as u64, &mut block).ok()?;
    let header = GroupHeader::decode(block.first_chunk()?)?;
    (header.link.position == position).then_some(position)
}

impl LogDamage {
    fn of(damaged: &DamagedGroup) -> LogDamage {
        let DamagedGroup { link, first_bad, lost } = damaged;
        let lost = match lost {
            Lost::Nothing => Some(Vec::new()),
            Lost::Named(entries) => {
                Some(entries.iter().map(|(op, checksum)| OpRef { op: *op, checksum: *checksum }).collect())
            }
            Lost::Unknown => None,
        };
        LogDamage { position: link.position, length: link.length(), first_bad: *first_bad, lost }
    }
}

impl ChainReport {
    fn of(replica: &Replica) -> ChainReport {
        let (start, head) = (replica.log_start(), replica.head());
        let mut report = ChainReport {
            status: replica.status(),
            start,
            commit_max: replica.commit_max(),
            head,
            linked: 0,
            missing: Vec::new(),
            unnamed: 0,
            broken: None,
        };
        let mut before: Option<Checksum> = None;
        let mut op = start;
        while op <= head {
            before = match replica.standing(op) {
                Standing::Held(entry) => {
                    if before.is_some_and(|before| before != entry.header().parent) {
                        report.broken.get_or_insert(op);
                    }
                    report.linked += 1;
                    Some(entry.checksum())
                }
                Standing::Named(name) => {
                    report.missing.push(name);
                    Some(name.checksum)
                }
                Standing::Unknown => {
                    report.unnamed += 1;
                    None
                }
            };
            op = op.next();
        }
        report
    }
}
