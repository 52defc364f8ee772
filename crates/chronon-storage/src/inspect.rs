//! A look at a data directory: what is there, what is damaged, and what a start would make of it. Changes nothing.

use std::collections::BTreeMap;

use chronon_vsr::{
    Checksum, Incarnation, Mutations, Now, Op, OpRef, Options, Release, Replica, Ring, Standing, Status,
    Timing, VsrState,
};

use crate::group::{BLOCK, GroupHeader, RECORD};
use crate::open::{Read, layout_of, read, recovered, state_after};
use crate::pack::{self, HEADER, Kind, MAGIC, Place, RecordHeader};
use crate::scan::{DamagedGroup, Lost, Scan, Survey, scan};
use crate::superblock::{self, COPIES, Copy, Superblock};
use crate::{
    ChunkDamage, CopyFault, Disk, Expect, File, Found, Identity, OpenError, SECTOR_SIZE, Vault, VaultError,
    VaultUsage,
};

/// No group is shorter.
const FIRST_GROUP_MIN: u64 = BLOCK as u64;

/// A log that was cut is looked at as if the rest of it were damaged: up to so many bytes of it, or so many times what is left. A
/// superblock that tells of more is not believed, for memory and time are taken for all of it.
const CUT_SIZE_MAX: u64 = 4 * 1024 * 1024 * 1024;
const CUT_TIMES_MAX: u64 = 64;

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
    /// Packs with places where a record was written and none can be found any more.
    pub scarred: Vec<PackDamage>,
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

/// A pack in which headers of records are damaged. What is known of those records is known from elsewhere, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackDamage {
    /// The pack.
    pub file: File,
    /// The first block that begins a record and has no header that can be read.
    pub position: u64,
    /// How many such places there are; records that lay one behind another are one place.
    pub places: usize,
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
        scarred: Vec::new(),
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
            let wal_size = read.layout.size;
            inspection.chain = Some(ChainReport::of(&replica_of(read), wal_size));
        }
        // What can't be opened may still hold something.
        Err(refusal) => {
            inspection.refusal = Some(refusal);
            if let Some(chosen) = &chosen
                && let Ok(layout) = layout_of(&chosen.superblock)
                // Of a file without room for a group there is nothing to tell, and what is cut off is not bad bytes.
                && let Ok(size @ FIRST_GROUP_MIN..) = disk.size(File::Wal)
                && layout.size <= CUT_SIZE_MAX.max(size.saturating_mul(CUT_TIMES_MAX))
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
                let gaps = Gaps::of(disk, &superblock.identity);
                inspection.checkpoints = checkpoints(disk, &mut vault, &superblock, &gaps);
                inspection.scarred = gaps.scarred;
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
    gaps: &Gaps,
) -> Vec<CheckpointReport> {
    let current = superblock.state.checkpoint;
    let others: Vec<Checksum> = vault.roots().filter(|root| Some(*root) != current.root).collect();
    let reports = current.root.into_iter().chain(others).filter_map(|root| {
        let chunks = vault.list(disk, root).ok().map(|list| list.chunks.len());
        let mut damage = vault.missing(disk, root, usize::MAX);
        let op = (Some(root) == current.root).then_some(current.entry.op);
        if op.is_none() && !damage.is_empty() {
            // Nothing needs it, so its chunks may have been given up, and only its map is left: no damage.
            damage.retain(|damage| !gaps.may_be_given_up(root, damage));
            if damage.is_empty() {
                return None;
            }
        }
        Some(CheckpointReport { root, op, chunks, damage })
    });
    reports.collect()
}

/// What packs hold between their records.
#[derive(Debug, Default)]
struct Gaps {
    scarred: Vec<PackDamage>,
    /// Packs with room that was given back: nothing but zeros.
    hollow: Vec<File>,
    /// The pack with the newest map of each checkpoint. Its list was put right before.
    maps: BTreeMap<Checksum, File>,
}

impl Gaps {
    /// Hops from record to record as a start does, and looks at what lies between them.
    fn of(disk: &mut dyn Disk, identity: &Identity) -> Gaps {
        let mut gaps = Gaps::default();
        for number in disk.packs().unwrap_or_default() {
            let file = File::Pack(number);
            // One that can't be opened is told as a whole.
            let Ok(size) = disk.flush(file).and_then(|()| disk.size(file)) else { continue };
            gaps.look(disk, identity, number, size);
        }
        gaps
    }

    fn look(&mut self, disk: &mut dyn Disk, identity: &Identity, pack: u64, size: u64) {
        let file = File::Pack(pack);
        let mut block = vec![0; pack::BLOCK];
        // Of the gap that is being read: where it starts, whether it is all zeros, and its first damaged header.
        let mut gap: Option<(u64, bool, Option<u64>)> = None;
        let mut position = 0;
        loop {
            let ends = size < position + pack::BLOCK as u64;
            let read = !ends && disk.read(file, position, &mut block).is_ok();
            let header = block.first_chunk::<HEADER>().filter(|_| read);
            let header =
                header.and_then(|header| RecordHeader::decode(identity, Place { pack, position }, header));
            let whole = header.filter(|header| position + header.length() as u64 <= size);
            if ends || whole.is_some() {
                match gap.take() {
                    Some((_, true, _)) => self.hollow.push(file),
                    Some((_, false, Some(scar))) => self.scarred(file, scar),
                    Some((_, false, None)) | None => {}
                }
            }
            if ends {
                return;
            }
            if let Some(header) = whole {
                if let Kind::Map { root } = header.kind {
                    self.maps.insert(root, file);
                }
                position += header.length() as u64;
                continue;
            }
            let (start, zeros, scar) = gap.get_or_insert((position, true, None));
            // A crash leaves parts of what was being written: sectors as they were to be, and zeros. So behind a record there
            // is the header of another, even if that one's end is missing, or a sector of zeros.
            let begins = position == *start && block[..SECTOR_SIZE].iter().any(|byte| *byte != 0);
            let names_itself = block[16..16 + MAGIC.len()] == MAGIC;
            if !read || header.is_none() && (begins || names_itself) {
                scar.get_or_insert(position);
            }
            let zero = read && block.iter().all(|byte| *byte == 0);
            *zeros &= zero;
            position += pack::BLOCK as u64;
        }
    }

    fn scarred(&mut self, file: File, position: u64) {
        match self.scarred.last_mut().filter(|scarred| scarred.file == file) {
            Some(scarred) => scarred.places += 1,
            None => self.scarred.push(PackDamage { file, position, places: 1 }),
        }
    }

    fn is_scarred(&self, file: File) -> bool {
        self.scarred.iter().any(|scarred| scarred.file == file)
    }

    /// Whether this is missing because nothing needed the checkpoint any more, as far as can be known: its pack was removed,
    /// or its room within the pack was given back. Bytes that are there and wrong are damage.
    fn may_be_given_up(&self, root: Checksum, damage: &ChunkDamage) -> bool {
        match (damage.found, damage.file) {
            (Found::FileGone, _) => true,
            (Found::NoRecord, Some(file)) => self.hollow.contains(&file) && !self.is_scarred(file),
            (Found::NoRecord | Found::Nothing, _) => {
                self.maps.get(&root).is_none_or(|file| !self.is_scarred(*file))
            }
            (Found::Unreadable | Found::OtherBytes, _) => false,
        }
    }
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
    fn of(replica: &Replica, wal_size: u64) -> ChainReport {
        let (start, head) = (replica.log_start(), replica.head());
        // What lies further from both ends than a log can reach is not here, whatever a superblock says of its head.
        let reach = wal_size / RECORD as u64;
        let skips_from = Op::new(start.value().saturating_add(reach));
        let skips_to = Op::new(head.value().saturating_sub(reach)).max(skips_from);
        let mut report = ChainReport {
            status: replica.status(),
            start,
            commit_max: replica.commit_max(),
            head,
            linked: 0,
            missing: Vec::new(),
            unnamed: skips_to.value() - skips_from.value(),
            broken: None,
        };
        let mut before: Option<Checksum> = None;
        let mut op = start;
        while op <= head {
            if op == skips_from && skips_from < skips_to {
                (op, before) = (skips_to, None);
            }
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
