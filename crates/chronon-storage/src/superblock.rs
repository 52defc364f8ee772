//! The superblock: who this data directory is, and the protocol's durable state. Four copies; see `docs/format.md`.
//!
//! Two copies are written and flushed, then the other two: whatever tears, two identical ones with the highest
//! sequence that was ever reported are left.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chronon_vsr::{
    Checkpoint, Checksum, ClusterId, Digest, DiskId, ENTRY_HEADER_SIZE, EntryHeader, Epoch, Incarnation,
    LogStamp, Member, Membership, Op, OpRef, PeerMemory, Release, ReplicaId, Ring, SUFFIX_MAX, Stamp,
    Timestamp, VOTERS_MAX, View, VsrState,
};

use crate::buffer::Buffer;
use crate::bytes::{Reader, Writer};
use crate::group::Sequence;
use crate::{Bytes, Disk, File, Identity, Step};

/// Bytes of one copy.
pub(crate) const COPY_SIZE: usize = 16 * 1024;

/// How many copies there are, how many must read back right, and how many must agree for the data to open.
pub(crate) const COPIES: usize = 4;
const COPIES_TO_WRITE: usize = 3;
const COPIES_TO_OPEN: usize = 2;

// Copies that a write left right and copies that an older write left right can't both be enough to open.
const _: () = assert!(COPIES < COPIES_TO_WRITE + COPIES_TO_OPEN);

/// The version of everything in a data directory.
pub(crate) const FORMAT_VERSION: u32 = 3;

const MAGIC: [u8; 8] = *b"CHRONSUP";

/// From here on the copies of one superblock are the same bytes.
const SHARED_START: usize = 32;

/// The most members that a configuration encodes.
const MEMBERS_MAX: usize = 12;

/// The most peers remembered.
const PEERS_MAX: usize = 32;

/// The most damaged entries that are named. Damage beyond it is kept as uncertainty: see [`within_bounds`].
pub(crate) const FAULTY_MAX: usize = 400;

const HEAD_SIZE: usize = 192;
const MEMBERSHIP_SIZE_MAX: usize = 8 + 2 + MEMBERS_MAX * 17;
const CHECKPOINT_SIZE: usize = 24 + 3 * 8 + 4 + 1 + 16;
const STATE_SIZE_MAX: usize = MEMBERSHIP_SIZE_MAX
    + 2 * 16
    + (1 + SUFFIX_MAX * ENTRY_HEADER_SIZE)
    + (2 + FAULTY_MAX * 24)
    + 9
    + 24
    + CHECKPOINT_SIZE
    + (1 + PEERS_MAX * 49);
const _: () = assert!(HEAD_SIZE + STATE_SIZE_MAX <= COPY_SIZE);
const _: () = assert!(VOTERS_MAX <= MEMBERS_MAX);

/// A superblock, as read from verified copies or about to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Rises with every write.
    pub(crate) sequence: u64,
    /// The checksum of the superblock before this one; zeros for the first.
    pub(crate) parent: Checksum,
    pub(crate) identity: Identity,
    pub(crate) incarnation: Incarnation,
    pub(crate) ring: Ring,
    /// Bytes of the WAL file.
    pub(crate) wal_size: u64,
    /// Every group of the WAL through this one was durable when this superblock was written: a WAL that ends before it
    /// is an older copy, or lost what it had flushed.
    pub(crate) wal_durable: Sequence,
    pub(crate) state: VsrState,
}

/// What the copies on a disk say together.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) superblock: Superblock,
    /// The highest sequence of any readable copy: what is written next goes above it.
    pub(crate) sequence_max: u64,
    /// The checksum of the chosen superblock.
    pub(crate) checksum: Checksum,
    /// Which copies hold it.
    pub(crate) held_by: [bool; COPIES],
    /// How many copies are no superblock at all.
    pub(crate) damaged: usize,
}

/// Why no superblock could be chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotChosen {
    /// Too few copies agree.
    Unreadable { copies_valid: u8 },
    /// Good copies, of another format.
    FormatVersion { found: u32 },
}

impl Superblock {
    /// The four copies, one after another, and the checksum of what they share.
    pub(crate) fn encode(&self, buffer: &mut [u8]) -> Checksum {
        assert_eq!(buffer.len(), COPIES * COPY_SIZE);
        let (first, others) = buffer.split_at_mut(COPY_SIZE);
        self.encode_shared(&mut first[SHARED_START..]);
        let shared = Checksum::of(&first[SHARED_START..]);
        for other in others.chunks_exact_mut(COPY_SIZE) {
            other[SHARED_START..].copy_from_slice(&first[SHARED_START..]);
        }
        for (index, copy) in buffer.chunks_exact_mut(COPY_SIZE).enumerate() {
            let mut head = Writer::new(&mut copy[16..SHARED_START]);
            head.put(&MAGIC);
            head.u32(FORMAT_VERSION);
            head.u8(u8::try_from(index).expect("there are four copies"));
            head.finish();
            let checksum = Checksum::of(&copy[16..]);
            copy[..16].copy_from_slice(&checksum.to_bytes());
        }
        shared
    }

    fn encode_shared(&self, bytes: &mut [u8]) {
        // Rather no superblock than one that no start takes.
        assert!(is_consistent(&self.ring, &self.state), "{:?}", self.state);
        let mut w = Writer::new(bytes);
        w.u64(self.sequence);
        w.put(&self.parent.to_bytes());
        w.u128(self.identity.cluster.value());
        w.u128(self.identity.lineage);
        w.u128(self.identity.disk.value());
        w.u8(self.identity.replica.value());
        w.zeros(7);
        w.u64(self.incarnation.value());
        w.u64(self.ring.log);
        w.u64(self.ring.checkpoint_interval);
        w.u64(self.ring.slack);
        w.u64(self.ring.charge_max);
        w.u64(self.wal_size);
        w.u32(self.wal_durable.incarnation);
        w.u64(self.wal_durable.count);
        w.zeros(HEAD_SIZE - SHARED_START - 140);
        encode_state(&mut w, &self.state);
        w.finish();
    }

    fn decode_shared(bytes: &[u8]) -> Option<Superblock> {
        let mut r = Reader::new(bytes);
        let sequence = r.u64()?;
        let parent = Checksum::from_bytes(r.array()?);
        let cluster = ClusterId::new(r.u128()?);
        let lineage = r.u128()?;
        let disk = DiskId::new(r.u128()?);
        let replica = ReplicaId::new(r.u8()?);
        r.zeros(7)?;
        let incarnation = Incarnation::new(r.u64()?);
        let ring =
            Ring { log: r.u64()?, checkpoint_interval: r.u64()?, slack: r.u64()?, charge_max: r.u64()? };
        let wal_size = r.u64()?;
        let wal_durable = Sequence { incarnation: r.u32()?, count: r.u64()? };
        r.zeros(HEAD_SIZE - SHARED_START - 140)?;
        let state = decode_state(&mut r)?;
        let identity = Identity { cluster, lineage, replica, disk };
        (r.only_zeros_left() && is_consistent(&ring, &state)).then_some(Superblock {
            sequence,
            parent,
            identity,
            incarnation,
            ring,
            wal_size,
            wal_durable,
            state,
        })
    }

    /// The steps that make this superblock durable where all copies are of the one before, and its checksum.
    pub(crate) fn steps(&self) -> (Vec<Step>, Checksum) {
        self.steps_sparing([true; COPIES])
    }

    /// The steps of an opening, where only these copies were read as good. What was only read need not be durable: a
    /// process that was killed before its flush leaves copies that read well and are gone after a power cut. They are
    /// flushed before any other copy is written over.
    pub(crate) fn steps_of_opening(&self, held_by: [bool; COPIES]) -> (Vec<Step>, Checksum) {
        let (mut steps, checksum) = self.steps_sparing(held_by);
        steps.insert(0, Step::Flush { file: File::Superblock });
        (steps, checksum)
    }

    /// Its four copies, as they are written.
    pub(crate) fn encoded(&self) -> Buffer {
        let mut written = Buffer::zeroed(COPIES * COPY_SIZE);
        self.encode(written.as_mut());
        written
    }

    /// The steps that make this superblock durable where only these copies hold the one before. Two copies are
    /// written, then the other two: the two that are written first must leave two good ones alone, or a second power
    /// cut, right after one that tore half of the copies, would leave none.
    pub(crate) fn steps_sparing(&self, good: [bool; COPIES]) -> (Vec<Step>, Checksum) {
        let mut buffer = Buffer::zeroed(COPIES * COPY_SIZE);
        let checksum = self.encode(buffer.as_mut());
        let buffer = Arc::new(buffer);
        let write = |copy: usize, copies: usize| Step::Write {
            file: File::Superblock,
            position: (copy * COPY_SIZE) as u64,
            bytes: Bytes::new(Arc::clone(&buffer), copy * COPY_SIZE..(copy + copies) * COPY_SIZE),
        };
        let mut order: [usize; COPIES] = std::array::from_fn(|copy| copy);
        order.sort_by_key(|copy| good[*copy]);
        let mut steps = Vec::new();
        for pair in order.chunks_exact(COPIES / 2) {
            match pair {
                [first, second] if first + 1 == *second => steps.push(write(*first, 2)),
                pair => steps.extend(pair.iter().map(|copy| write(*copy, 1))),
            }
            steps.push(Step::Flush { file: File::Superblock });
        }
        steps.push(Step::ReadBack {
            file: File::Superblock,
            position: 0,
            bytes: Bytes::new(Arc::clone(&buffer), 0..COPIES * COPY_SIZE),
            copy_size: COPY_SIZE,
            copies_required: COPIES_TO_WRITE,
        });
        (steps, checksum)
    }

    /// Reads the copies and chooses the newest superblock that two of them hold.
    pub(crate) fn choose(disk: &mut dyn Disk) -> Result<Chosen, NotChosen> {
        choose(read_copies(disk))
    }
}

/// Which copies on the disk are as they were written.
pub(crate) fn copies_as_written(written: &[u8], disk: &mut dyn Disk, scratch: &mut Buffer) -> [bool; COPIES] {
    let found = scratch.resized(COPY_SIZE);
    std::array::from_fn(|copy| {
        let position = copy * COPY_SIZE;
        let read = disk.read(File::Superblock, position as u64, found);
        read.is_ok() && *found == written[position..position + COPY_SIZE]
    })
}

/// Chooses the newest superblock that two of the copies hold.
pub(crate) fn choose(copies: [Copy; COPIES]) -> Result<Chosen, NotChosen> {
    let mut valid: BTreeMap<(u64, Checksum), ([bool; COPIES], Box<Superblock>)> = BTreeMap::new();
    let (mut copies_valid, mut damaged) = (0, 0);
    let mut other_version = None;
    for (index, copy) in copies.into_iter().enumerate() {
        match copy {
            Copy::Valid { superblock, checksum } => {
                copies_valid += 1;
                let key = (superblock.sequence, checksum);
                valid.entry(key).or_insert(([false; COPIES], superblock)).0[index] = true;
            }
            Copy::OtherVersion { found } => other_version = Some(found),
            Copy::Damaged(_) => damaged += 1,
        }
    }
    let sequence_max = valid.keys().map(|(sequence, _)| *sequence).max();
    let enough = |held_by: &[bool; COPIES]| COPIES_TO_OPEN <= held_by.iter().filter(|held| **held).count();
    let newest = valid.into_iter().rev().find(|(_, (held_by, _))| enough(held_by));
    match (newest, sequence_max, other_version) {
        (Some(((_, checksum), (held_by, superblock))), Some(sequence_max), _) => {
            Ok(Chosen { superblock: *superblock, sequence_max, checksum, held_by, damaged })
        }
        (_, _, Some(found)) => Err(NotChosen::FormatVersion { found }),
        (_, _, None) => Err(NotChosen::Unreadable { copies_valid }),
    }
}

/// One copy, as found.
pub(crate) enum Copy {
    Valid { superblock: Box<Superblock>, checksum: Checksum },
    OtherVersion { found: u32 },
    Damaged(CopyFault),
}

/// What is wrong with a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFault {
    /// The file ends before it does, or the disk does not give it.
    Unreadable,
    /// Zeros: it was never written.
    Blank,
    /// Not every byte is what was written.
    ChecksumWrong,
    /// A good copy that belongs to another place: a write went astray.
    Misplaced {
        /// The number of the copy that it is.
        copy: u8,
    },
    /// Good bytes that are no superblock.
    Malformed,
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyFault::Unreadable => write!(f, "can't be read"),
            CopyFault::Blank => write!(f, "was never written"),
            CopyFault::ChecksumWrong => write!(f, "is not what was written: its checksum is wrong"),
            CopyFault::Misplaced { copy } => write!(f, "is copy {copy}, in the wrong place"),
            CopyFault::Malformed => write!(f, "is no superblock, though its checksum is right"),
        }
    }
}

/// Reads every copy. One that can't be read is a damaged one.
pub(crate) fn read_copies(disk: &mut dyn Disk) -> [Copy; COPIES] {
    let mut buffer = Buffer::zeroed(COPY_SIZE);
    std::array::from_fn(|index| {
        let position = (index * COPY_SIZE) as u64;
        match disk.read(File::Superblock, position, buffer.as_mut()) {
            Ok(()) => decode_copy(&buffer, index).unwrap_or_else(Copy::Damaged),
            Err(_) => Copy::Damaged(CopyFault::Unreadable),
        }
    })
}

fn decode_copy(copy: &[u8], index: usize) -> Result<Copy, CopyFault> {
    let fields = || {
        let mut r = Reader::new(copy);
        let checksum = Checksum::from_bytes(r.array()?);
        let magic: [u8; 8] = r.array()?;
        let (version, found_index, zeros) = (r.u32()?, r.u8()?, r.zeros(3).is_some());
        Some((checksum, magic == MAGIC && zeros, version, found_index))
    };
    let (checksum, right, version, found_index) = fields().ok_or(CopyFault::Malformed)?;
    if copy.iter().all(|byte| *byte == 0) {
        return Err(CopyFault::Blank);
    }
    if checksum != Checksum::of(&copy[16..]) {
        return Err(CopyFault::ChecksumWrong);
    }
    if !right {
        return Err(CopyFault::Malformed);
    }
    if usize::from(found_index) != index {
        return Err(CopyFault::Misplaced { copy: found_index });
    }
    if version != FORMAT_VERSION {
        return Ok(Copy::OtherVersion { found: version });
    }
    let shared = &copy[SHARED_START..];
    let superblock = Superblock::decode_shared(shared).ok_or(CopyFault::Malformed)?;
    Ok(Copy::Valid { superblock: Box::new(superblock), checksum: Checksum::of(shared) })
}

/// The state with no more faulty markers than the superblock holds. Beyond that many, uncertainty from the lowest
/// one that is left out says the same more coarsely: neither acked nor nacked from there up.
pub(crate) fn within_bounds(mut state: VsrState) -> VsrState {
    assert!(state.suffix.len() <= SUFFIX_MAX);
    assert!(state.membership.voters.len() + state.membership.learners.len() <= MEMBERS_MAX);
    assert!(state.peers.len() <= PEERS_MAX);
    if FAULTY_MAX < state.faulty.len() {
        state.faulty.sort_unstable();
        let lowest_left_out = state.faulty[FAULTY_MAX].op;
        state.faulty.truncate(FAULTY_MAX);
        state.uncertain_from =
            Some(state.uncertain_from.map_or(lowest_left_out, |from| from.min(lowest_left_out)));
    }
    state
}

fn encode_state(w: &mut Writer<'_>, state: &VsrState) {
    let count = |length: usize| u8::try_from(length).expect("within_bounds has counted");
    w.u64(state.membership.epoch.value());
    for members in [&state.membership.voters, &state.membership.learners] {
        w.u8(count(members.len()));
        for member in members {
            w.u8(member.replica.value());
            w.u128(member.disk.value());
        }
    }
    encode_stamp(w, state.stamp);
    encode_stamp(w, state.log_stamp.stamp());
    w.u8(count(state.suffix.len()));
    for header in &state.suffix {
        w.put(&header.encode());
    }
    w.u16(u16::try_from(state.faulty.len()).expect("within_bounds has counted"));
    for faulty in &state.faulty {
        encode_op_ref(w, *faulty);
    }
    w.u8(u8::from(state.uncertain_from.is_some()));
    w.u64(state.uncertain_from.map_or(0, Op::value));
    encode_op_ref(w, state.commit_max);
    encode_checkpoint(w, &state.checkpoint);
    w.u8(count(state.peers.len()));
    for peer in &state.peers {
        w.u8(peer.replica.value());
        w.u128(peer.disk.value());
        w.u64(peer.incarnation.value());
        encode_stamp(w, peer.stamp);
        w.u64(peer.acked.value());
    }
}

/// What every replica takes for granted: a divisor is none that is zero, it speaks in its own epoch of a log that it has
/// taken in, and its suffix rises from the commit point, no further than a pipeline.
fn is_consistent(ring: &Ring, state: &VsrState) -> bool {
    let VsrState { membership, stamp, log_stamp, suffix, commit_max, .. } = state;
    let log_stamp = log_stamp.stamp();
    let epochs_agree = [stamp.epoch, log_stamp.epoch].iter().all(|epoch| *epoch == membership.epoch);
    let is_near = |header: &EntryHeader| {
        commit_max.op <= header.op && header.op.since(commit_max.op) <= chronon_vsr::PIPELINE_MAX
    };
    let ascends = suffix.windows(2).all(|pair| pair[0].op < pair[1].op);
    let is_sane = |number: u64| number <= u64::MAX / 2;
    0 < ring.checkpoint_interval
        && epochs_agree
        && log_stamp <= *stamp
        && suffix.iter().all(is_near)
        && ascends
        && is_sane(commit_max.op.value())
        && is_sane(stamp.view.value())
}

fn decode_state(r: &mut Reader<'_>) -> Option<VsrState> {
    let epoch = Epoch::new(r.u64()?);
    let voters = decode_members(r)?;
    let learners = decode_members(r)?;
    if voters.is_empty() || VOTERS_MAX < voters.len() || MEMBERS_MAX < voters.len() + learners.len() {
        return None;
    }
    let stamp = decode_stamp(r)?;
    let log_stamp = LogStamp::adopted(decode_stamp(r)?);
    let suffix_length = usize::from(r.u8()?);
    if SUFFIX_MAX < suffix_length {
        return None;
    }
    let suffix = (0..suffix_length)
        .map(|_| EntryHeader::decode(&r.array::<ENTRY_HEADER_SIZE>()?))
        .collect::<Option<Vec<_>>>()?;
    let faulty_length = usize::from(r.u16()?);
    if FAULTY_MAX < faulty_length {
        return None;
    }
    let faulty = (0..faulty_length).map(|_| decode_op_ref(r)).collect::<Option<Vec<_>>>()?;
    let uncertain_from = match (r.u8()?, r.u64()?) {
        (0, 0) => None,
        (1, op) => Some(Op::new(op)),
        _ => return None,
    };
    let commit_max = decode_op_ref(r)?;
    let checkpoint = decode_checkpoint(r)?;
    let peers_length = usize::from(r.u8()?);
    if PEERS_MAX < peers_length {
        return None;
    }
    let peers = (0..peers_length)
        .map(|_| {
            Some(PeerMemory {
                replica: ReplicaId::new(r.u8()?),
                disk: DiskId::new(r.u128()?),
                incarnation: Incarnation::new(r.u64()?),
                stamp: decode_stamp(r)?,
                acked: Op::new(r.u64()?),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let membership = Membership { epoch, voters, learners };
    Some(VsrState {
        membership,
        stamp,
        log_stamp,
        suffix,
        faulty,
        uncertain_from,
        commit_max,
        checkpoint,
        peers,
    })
}

fn decode_members(r: &mut Reader<'_>) -> Option<Vec<Member>> {
    let length = usize::from(r.u8()?);
    if MEMBERS_MAX < length {
        return None;
    }
    (0..length)
        .map(|_| Some(Member { replica: ReplicaId::new(r.u8()?), disk: DiskId::new(r.u128()?) }))
        .collect()
}

fn encode_stamp(w: &mut Writer<'_>, stamp: Stamp) {
    w.u64(stamp.epoch.value());
    w.u64(stamp.view.value());
}

fn decode_stamp(r: &mut Reader<'_>) -> Option<Stamp> {
    Some(Stamp { epoch: Epoch::new(r.u64()?), view: View::new(r.u64()?) })
}

fn encode_checkpoint(w: &mut Writer<'_>, checkpoint: &Checkpoint) {
    encode_op_ref(w, checkpoint.entry);
    w.u64(checkpoint.end);
    w.u64(checkpoint.timestamp.nanos());
    w.u64(checkpoint.digest.0);
    w.u32(checkpoint.release.value());
    w.u8(u8::from(checkpoint.root.is_some()));
    w.put(&checkpoint.root.map_or([0; 16], Checksum::to_bytes));
}

fn decode_checkpoint(r: &mut Reader<'_>) -> Option<Checkpoint> {
    let entry = decode_op_ref(r)?;
    let (end, timestamp, digest) = (r.u64()?, Timestamp::from_nanos(r.u64()?), Digest(r.u64()?));
    let release = Release::new(r.u32()?);
    let root = match (r.u8()?, r.array()?) {
        (0, bytes) if bytes == [0; 16] => None,
        (1, bytes) => Some(Checksum::from_bytes(bytes)),
        _ => return None,
    };
    Some(Checkpoint { entry, end, timestamp, digest, release, root })
}

fn encode_op_ref(w: &mut Writer<'_>, entry: OpRef) {
    w.u64(entry.op.value());
    w.put(&entry.checksum.to_bytes());
}

fn decode_op_ref(r: &mut Reader<'_>) -> Option<OpRef> {
    Some(OpRef { op: Op::new(r.u64()?), checksum: Checksum::from_bytes(r.array()?) })
}

#[cfg(test)]
mod tests {
    use chronon_vsr::Prng;

    use super::*;
    use crate::{MemoryDisk, UnflushedDisk, perform_step};

    fn superblock(sequence: u64) -> Superblock {
        let member = |replica: u8| Member {
            replica: ReplicaId::new(replica),
            disk: DiskId::new(7 + u128::from(replica)),
        };
        let membership = Membership {
            epoch: Epoch::new(2),
            voters: (0..3).map(member).collect(),
            learners: vec![member(9)],
        };
        let cluster = ClusterId::new(0x0102_0304);
        let root = membership.root(cluster, 5);
        let mut state = VsrState::format(membership, root);
        let stamp = Stamp { epoch: Epoch::new(2), view: View::new(4) };
        state.stamp = stamp.next_view();
        state.log_stamp = LogStamp::adopted(stamp);
        let header = EntryHeader {
            cluster,
            born: stamp,
            op: Op::new(1),
            parent: root.checksum,
            offset: 0,
            timestamp: Timestamp::from_nanos(74 + sequence),
            commit: Op::ROOT,
            release: Release::new(1),
            body_size: 3,
            body_checksum: Checksum::of(b"abc"),
        };
        state.faulty = vec![header.op_ref()];
        state.suffix = vec![header];
        state.uncertain_from = Some(Op::new(9));
        state.checkpoint = Checkpoint {
            entry: OpRef { op: Op::new(0x11), checksum: Checksum::of(b"checkpoint") },
            end: 0x2222,
            timestamp: Timestamp::from_nanos(0x3333),
            digest: Digest(0x4444),
            release: Release::new(0x55),
            root: Some(Checksum::of(b"chunk list")),
        };
        state.peers = vec![PeerMemory {
            replica: ReplicaId::new(1),
            disk: DiskId::new(8),
            incarnation: Incarnation::new(3),
            stamp,
            acked: Op::new(1),
        }];
        Superblock {
            sequence,
            parent: Checksum::from_bytes([9; 16]),
            identity: Identity { cluster, lineage: 5, replica: ReplicaId::new(0), disk: DiskId::new(7) },
            incarnation: Incarnation::new(6),
            ring: Ring { log: 1, checkpoint_interval: 2, slack: 3, charge_max: 4 },
            wal_size: 8192,
            wal_durable: Sequence { incarnation: 5, count: 0x0102_0304_0506 },
            state,
        }
    }

    fn write(disk: &mut dyn Disk, superblock: &Superblock) {
        superblock.steps().0.iter().for_each(|step| perform_step(disk, step).unwrap());
    }

    fn chosen(disk: &mut dyn Disk) -> Superblock {
        Superblock::choose(disk).unwrap().superblock
    }

    #[test]
    fn the_bytes_of_a_superblock_never_change() {
        let mut bytes = vec![0; COPIES * COPY_SIZE];
        superblock(3).encode(&mut bytes);
        assert_eq!(bytes[16..32], *b"CHRONSUP\x03\0\0\0\0\0\0\0");
        assert_eq!(bytes[2 * COPY_SIZE + 16..2 * COPY_SIZE + 32], *b"CHRONSUP\x03\0\0\0\x02\0\0\0");
        assert_eq!(Checksum::of(&bytes).to_string(), "12363944");
    }

    #[test]
    fn a_superblock_survives_the_round_trip() {
        let mut disk = MemoryDisk::new();
        write(&mut disk, &superblock(3));
        assert_eq!(chosen(&mut disk), superblock(3));
    }

    #[test]
    fn a_state_that_no_replica_can_have_is_told_from_others() {
        let Superblock { ring, state, .. } = superblock(3);
        assert!(is_consistent(&ring, &state));
        let header = state.suffix[0].clone();
        let far = EntryHeader { op: Op::new(1 + chronon_vsr::PIPELINE_MAX), ..header.clone() };
        let later = Stamp { view: View::new(9), ..state.stamp };
        let elsewhere = Stamp { epoch: Epoch::new(1), ..state.stamp };
        let last = Stamp { view: View::new(u64::MAX), ..state.stamp };
        let at = |op| OpRef { op: Op::new(op), ..state.commit_max };
        for odd in [
            VsrState { commit_max: at(2), ..state.clone() },
            VsrState { commit_max: at(u64::MAX), suffix: Vec::new(), ..state.clone() },
            VsrState { suffix: vec![header.clone(), header], ..state.clone() },
            VsrState { suffix: vec![far], ..state.clone() },
            VsrState { log_stamp: LogStamp::adopted(later), ..state.clone() },
            VsrState { stamp: elsewhere, ..state.clone() },
            VsrState { stamp: last, ..state.clone() },
        ] {
            assert!(!is_consistent(&ring, &odd), "{odd:?}");
        }
        assert!(!is_consistent(&Ring { checkpoint_interval: 0, ..ring }, &state));
    }

    #[test]
    fn the_largest_state_fits_and_more_faulty_entries_become_uncertainty() {
        let mut full = superblock(1);
        let header = full.state.suffix[0].clone();
        let at = |op| EntryHeader { op: Op::new(op), ..header.clone() };
        full.state.suffix = (0..SUFFIX_MAX as u64).map(at).collect();
        let peer = full.state.peers[0];
        full.state.peers = vec![peer; PEERS_MAX];
        let member = full.state.membership.voters[0];
        full.state.membership.voters = vec![member; VOTERS_MAX];
        full.state.membership.learners = vec![member; MEMBERS_MAX - VOTERS_MAX];
        let faulty = |op| OpRef { op: Op::new(op), checksum: Checksum::of(b"") };
        full.state.faulty = (1..=FAULTY_MAX as u64 + 7).rev().map(faulty).collect();
        full.state.uncertain_from = None;
        full.state = within_bounds(full.state);
        assert_eq!(full.state.uncertain_from, Some(Op::new(FAULTY_MAX as u64 + 1)));
        let mut disk = MemoryDisk::new();
        write(&mut disk, &full);
        assert_eq!(chosen(&mut disk), full);
    }

    #[test]
    fn damaged_copies_are_outvoted_as_long_as_two_agree() {
        for damaged in 0..1_u32 << COPIES {
            let mut disk = MemoryDisk::new();
            write(&mut disk, &superblock(3));
            for copy in (0..COPIES).filter(|copy| damaged & (1 << copy) != 0) {
                disk.bytes_mut(File::Superblock)[copy * COPY_SIZE + 300] ^= 1;
            }
            let valid = COPIES - damaged.count_ones() as usize;
            match Superblock::choose(&mut disk) {
                Ok(chosen) => assert!(COPIES_TO_OPEN <= valid && chosen.superblock == superblock(3)),
                Err(error) => {
                    assert!(valid < COPIES_TO_OPEN);
                    assert_eq!(error, NotChosen::Unreadable { copies_valid: valid as u8 });
                }
            }
        }
    }

    /// 18: every byte of a copy is covered.
    #[test]
    fn no_flipped_byte_goes_unseen() {
        let mut bytes = vec![0; COPIES * COPY_SIZE];
        superblock(3).encode(&mut bytes);
        let used = HEAD_SIZE + STATE_SIZE_MAX;
        for byte in (0..1000).chain((1000..used).step_by(97)).chain([COPY_SIZE - 1]) {
            let mut copy = bytes[..COPY_SIZE].to_vec();
            copy[byte] ^= 0x20;
            assert!(decode_copy(&copy, 0).is_err(), "byte {byte}");
        }
        // A copy in the wrong place was misdirected.
        assert!(matches!(decode_copy(&bytes[..COPY_SIZE], 1), Err(CopyFault::Misplaced { copy: 0 })));
    }

    #[test]
    fn good_copies_of_another_format_are_named_as_such() {
        let mut disk = MemoryDisk::new();
        write(&mut disk, &superblock(3));
        for copy in disk.bytes_mut(File::Superblock).chunks_exact_mut(COPY_SIZE) {
            copy[24..28].copy_from_slice(&9_u32.to_le_bytes());
            let checksum = Checksum::of(&copy[16..]);
            copy[..16].copy_from_slice(&checksum.to_bytes());
        }
        assert_eq!(Superblock::choose(&mut disk).unwrap_err(), NotChosen::FormatVersion { found: 9 });
    }

    /// Power cuts after every step, with any sectors lost: what was durable, or what was being written, is chosen.
    #[test]
    fn a_torn_write_leaves_the_old_superblock_or_the_new_one() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let mut disk = MemoryDisk::new();
            let mut durable = 1;
            write(&mut disk, &superblock(1));
            for sequence in 2..6 {
                let mut unflushed = UnflushedDisk::new(disk);
                let (steps, _) = superblock(sequence).steps();
                let done = prng.below(steps.len() as u64 + 1) as usize;
                steps[..done].iter().for_each(|step| perform_step(&mut unflushed, step).unwrap());
                disk = unflushed.power_cut(|_, _| prng.chance(1, 2)).unwrap();
                let found = chosen(&mut disk);
                assert!(durable <= found.sequence && found.sequence <= sequence, "seed {seed}");
                assert!(done < steps.len() || found.sequence == sequence, "seed {seed}");
                assert_eq!(found, superblock(found.sequence));
                // Opening writes it anew, above everything readable, before anything else is done.
                let sequence_max = Superblock::choose(&mut disk).unwrap().sequence_max;
                assert!(found.sequence <= sequence_max);
                write(&mut disk, &superblock(sequence));
                durable = sequence;
            }
        }
    }

    /// The process is killed, or the power fails, again and again before an opening is done: each opening finds two
    /// good copies to go on from.
    #[test]
    fn openings_that_are_cut_one_after_another_leave_a_superblock() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let mut formatted = MemoryDisk::new();
            write(&mut formatted, &superblock(1));
            let mut disk = UnflushedDisk::new(formatted);
            for _ in 0..20 {
                let Chosen { superblock: found, sequence_max, held_by, .. } =
                    Superblock::choose(&mut disk).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
                let next = Superblock { sequence: sequence_max + 1, ..found };
                let (steps, _) = next.steps_of_opening(held_by);
                let done = prng.below(steps.len() as u64 + 1) as usize;
                steps[..done].iter().for_each(|step| perform_step(&mut disk, step).unwrap());
                if prng.chance(1, 2) {
                    disk = UnflushedDisk::new(disk.power_cut(|_, _| prng.chance(1, 2)).unwrap());
                }
            }
        }
    }

    #[test]
    fn reading_back_fewer_than_three_good_copies_fails_the_job() {
        let mut disk = MemoryDisk::new();
        write(&mut disk, &superblock(1));
        let (steps, _) = superblock(1).steps();
        let read_back = steps.last().unwrap();
        perform_step(&mut disk, read_back).unwrap();
        disk.bytes_mut(File::Superblock)[0] ^= 1;
        perform_step(&mut disk, read_back).unwrap();
        disk.bytes_mut(File::Superblock)[COPY_SIZE] ^= 1;
        assert!(perform_step(&mut disk, read_back).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let mut bytes = vec![0; COPIES * COPY_SIZE];
        superblock(3).encode(&mut bytes);
        let mut prng = Prng::new(4);
        for _ in 0..3000 {
            let mut shared = bytes[SHARED_START..COPY_SIZE].to_vec();
            for _ in 0..=prng.below(4) {
                let place = prng.below(600) as usize;
                shared[place] = prng.next_u64() as u8;
            }
            shared.truncate(prng.below(shared.len() as u64 + 1) as usize);
            if let Some(decoded) = Superblock::decode_shared(&shared) {
                decoded.encode(&mut vec![0; COPIES * COPY_SIZE]);
            }
        }
    }
}
