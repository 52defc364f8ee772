//! Backups: a state as a manifest and chunks, and the data directories of a cluster that is restored from one.

use std::fs;
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use chronon_kernel::{EngineOptions, Frozen, Lineage, Put, RestoreError, StateMachine};
use chronon_storage::{ChunkList, DataDirectory, Disk, FormatError, ListError, Vault, VaultError, perform};
use chronon_vsr::{
    CHUNK_SIZE_MAX, Checkpoint, Checksum, DiskId, Epoch, Mutations, OpRef, ReplicaId, Timestamp, VsrState,
};
use serde::{Deserialize, Serialize};

use crate::node::{Founding, RELEASE};

/// The format of a backup that this release writes and reads. 2 has a seal.
const FORMAT: u32 = 2;

/// What a chunk takes in a pack beside its bytes, at most: a header, and what is left of a block.
const RECORD_ROOM: u64 = 8 * 1024;

/// The most bytes that a manifest is read of: those of a state with as many chunks as there can be are fewer.
const MANIFEST_SIZE_MAX: usize = 16 * 1024 * 1024;

/// The file that says what a backup is. It is written last.
pub const MANIFEST: &str = "manifest.json";

/// The directory of a backup's chunks: one file each, by its name.
pub const CHUNKS: &str = "chunks";

/// What a backup is: one state of a cluster, and the chunks that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of the backup.
    pub format: u32,
    /// The cluster, 32 hex digits.
    pub cluster: String,
    /// The newest op that the state reflects.
    pub op: u64,
    /// Log time of that op, in nanoseconds since 1970.
    pub timestamp: u64,
    /// The chained digest after that op.
    pub digest: u64,
    /// The name of the list of chunks, 32 hex digits.
    pub root: String,
    /// The name and the size of each chunk, in order.
    pub chunks: Vec<(String, u32)>,
    /// Checksum of everything above, 32 hex digits.
    pub seal: String,
}

/// As much of a manifest as every format has.
#[derive(Deserialize)]
struct OfAnyFormat {
    format: u32,
}

/// A chunk's name as text.
pub fn chunk_name(id: Checksum) -> String {
    format!("{:032x}", u128::from_be_bytes(id.to_bytes()))
}

/// The chunk of this name.
pub fn chunk_of_name(name: &str) -> Option<Checksum> {
    let id = u128::from_str_radix(name, 16).ok().filter(|_| name.len() == 32)?;
    Some(Checksum::from_bytes(id.to_be_bytes()))
}

impl Manifest {
    /// Of a state that is kept as these chunks.
    pub(crate) fn new(cluster: u128, frozen: &dyn Frozen, root: Checksum, list: &ChunkList) -> Manifest {
        let unsealed = Manifest {
            format: FORMAT,
            cluster: format!("{cluster:032x}"),
            op: frozen.op().value(),
            timestamp: frozen.timestamp().nanos(),
            digest: frozen.digest().0,
            root: chunk_name(root),
            chunks: list.chunks.iter().map(|(id, size)| (chunk_name(*id), *size)).collect(),
            seal: String::new(),
        };
        Manifest { seal: unsealed.sealed(), ..unsealed }
    }

    /// The manifest of the backup in this directory, if there is one: every byte of it is as it was written.
    pub fn read(directory: &Path) -> Result<Option<Manifest>, BackupError> {
        let path = directory.join(MANIFEST);
        let text = match manifest_bytes(directory) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(BackupError::Unreadable { path, source }),
        };
        let no_manifest = |why: serde_json::Error| BackupError::NoManifest { path: path.clone(), why };
        let OfAnyFormat { format } = serde_json::from_slice(&text).map_err(no_manifest)?;
        if format != FORMAT {
            return Err(BackupError::Format { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(no_manifest)?;
        if manifest.seal != manifest.sealed() {
            return Err(BackupError::ManifestDamaged { path });
        }
        Ok(Some(manifest))
    }

    /// What the seal has to be.
    fn sealed(&self) -> String {
        let Manifest { format, cluster, op, timestamp, digest, root, chunks, seal: _ } = self;
        let all = serde_json::json!([format, cluster, op, timestamp, digest, root, chunks]);
        chunk_name(Checksum::of_pieces(&[b"chronon backup", all.to_string().as_bytes()]))
    }

    /// Bytes of the state.
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|(_, size)| u64::from(*size)).sum()
    }
}

/// Why nothing can be restored from a backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file of the backup can't be read.
    #[error("can't read {path}: {source}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The manifest is none.
    #[error("{path} is no manifest of a backup: {why}", path = path.display())]
    NoManifest {
        /// The file.
        path: PathBuf,
        /// Why.
        why: serde_json::Error,
    },
    /// The manifest is not what was written.
    #[error("{path} is damaged: its fields and its seal do not agree", path = path.display())]
    ManifestDamaged {
        /// The file.
        path: PathBuf,
    },
    /// There is no backup.
    #[error("{path} is missing: it is what makes a directory a backup, and a backup writes it last", path = path.display())]
    NoBackup {
        /// The manifest's path.
        path: PathBuf,
    },
    /// The backup was written in another format.
    #[error("the backup has format {found}, this release reads format {FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
    /// A chunk is not what its name says.
    #[error("{path} is damaged: it is not the chunk that its name says", path = path.display())]
    ChunkDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The chunks are no state of this machine.
    #[error("the state can't be restored: {0}")]
    State(#[from] RestoreError),
    /// The state is another than the manifest says.
    #[error(
        "the chunks hold a state of op {found}, and not the one of op {expected} that the manifest tells of"
    )]
    OtherState {
        /// By the manifest.
        expected: u64,
        /// By the chunks.
        found: u64,
    },
    /// The data directory can't be made.
    #[error(transparent)]
    Directory(#[from] FormatError),
    /// The state is too large.
    #[error(transparent)]
    TooLarge(#[from] ListError),
    /// The checkpoint can't be written.
    #[error("write the checkpoint: {0}")]
    Disk(io::Error),
}

impl From<VaultError> for BackupError {
    fn from(error: VaultError) -> BackupError {
        BackupError::Disk(io::Error::other(error))
    }
}

/// A state from a backup, made ready for another life: its sinks are frozen, and every effect that was open is parked in
/// doubt.
pub struct RestoredState {
    frozen: Box<dyn Frozen>,
    timestamp: Timestamp,
    size_max: u64,
}

impl std::fmt::Debug for RestoredState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoredState").field("op", &self.frozen.op()).finish_non_exhaustive()
    }
}

impl RestoredState {
    /// Reads a backup of a cluster that ran this machine, and checks every byte of it.
    pub fn read<M: StateMachine>(directory: &Path) -> Result<RestoredState, BackupError> {
        let manifest = Manifest::read(directory)?
            .ok_or_else(|| BackupError::NoBackup { path: directory.join(MANIFEST) })?;
        let mut failure = None;
        let mut names = manifest.chunks.iter();
        let mut chunks = std::iter::from_fn(|| {
            let (name, _) = names.next()?;
            match read_chunk(directory, name) {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        });
        // What it emits in its next life has keys of that life's lineage: the one that its replicas are opened with.
        let lineage = Lineage(0);
        let limits = chronon_kernel::Limits::DEFAULT;
        let empty =
            chronon_kernel::engine::<M>(EngineOptions { lineage, limits, mutations: Mutations::NONE });
        let restored = empty.restore(&mut chunks);
        if let Some(error) = failure {
            return Err(error);
        }
        let mut engine = restored?;
        let found = engine.freeze();
        let told = (manifest.op, manifest.timestamp, manifest.digest);
        if (found.op().value(), found.timestamp().nanos(), found.digest().0) != told {
            let (expected, found) = (manifest.op, found.op().value());
            return Err(BackupError::OtherState { expected, found });
        }
        engine.distrust();
        let frozen = engine.freeze();
        let size_max = manifest.size() + manifest.chunks.len() as u64 * RECORD_ROOM;
        Ok(RestoredState { timestamp: frozen.timestamp(), frozen, size_max })
    }

    /// An epoch above all that came before, and so is every fence in it: it has seconds since 1970 in its upper half,
    /// those of now, or, where the clock is behind, one more than what the state knows of. None at the end of 32 bits.
    pub fn epoch_above(&self, now: u32) -> Option<Epoch> {
        let known = self.frozen.engine().newest_born().map_or(0, |born| born.epoch.value() >> 32);
        let log_time = self.timestamp.nanos() / 1_000_000_000;
        let seconds = u64::from(now).max(known.max(log_time) + 1);
        u32::try_from(seconds).is_ok().then(|| Epoch::new(seconds << 32))
    }

    /// The most bytes that the state takes in a replica's packs.
    pub fn size_max(&self) -> u64 {
        self.size_max
    }

    /// The newest op that the state reflects.
    pub fn op(&self) -> u64 {
        self.frozen.op().value()
    }

    /// How many effects are in doubt, and how many sinks are frozen.
    pub fn in_doubt(&self) -> (u64, u64) {
        let status = self.frozen.engine().status();
        (status.parked, status.sinks)
    }

    /// Makes the data directory of one replica of a new cluster that begins with this state. The directory must be new or
    /// empty.
    pub fn format(&self, path: &Path, founding: &Founding, replica: ReplicaId) -> Result<(), BackupError> {
        let Founding { cluster, lineage, membership, ring } = founding;
        let own_disk = membership.member(replica).map_or(DiskId::new(0), |member| member.disk);
        let identity =
            chronon_storage::Identity { cluster: *cluster, lineage: *lineage, replica, disk: own_disk };
        let directory = DataDirectory::create(path)?;
        let mut disk = directory.disk().map_err(BackupError::Disk)?;
        let mut vault = Vault::open(&mut disk, identity)?;
        let root = write(&mut *self.frozen.engine().freeze(), &mut vault, &mut disk)?;
        // Bound to the new cluster: no entry of the old one's log can follow.
        let name = membership.root(*cluster, *lineage).checksum;
        let entry = OpRef { op: self.frozen.op(), checksum: name };
        let mut state = VsrState::format(membership.clone(), entry);
        let (timestamp, digest) = (self.timestamp, self.frozen.digest());
        state.checkpoint =
            Checkpoint { entry, end: 0, timestamp, digest, release: RELEASE, root: Some(root) };
        Ok(chronon_storage::format(&mut disk, identity, state, *ring)?)
    }
}

/// The bytes of the manifest in this directory, whatever they are.
pub fn manifest_bytes(directory: &Path) -> io::Result<Vec<u8>> {
    bytes_of(&directory.join(MANIFEST), MANIFEST_SIZE_MAX)
}

/// The bytes of a chunk's file, whatever they are.
pub fn chunk_bytes(path: &Path) -> io::Result<Vec<u8>> {
    bytes_of(path, CHUNK_SIZE_MAX)
}

/// A pipe would be waited for, a device has no end, and of a file that is too long nobody needs the rest.
fn bytes_of(path: &Path, size_max: usize) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(size_max as u64 + 1).read_to_end(&mut bytes)?;
    if size_max < bytes.len() {
        return Err(io::Error::other(format!("it has more than {size_max} bytes")));
    }
    Ok(bytes)
}

fn read_chunk(directory: &Path, name: &str) -> Result<Vec<u8>, BackupError> {
    let path = directory.join(CHUNKS).join(name);
    let id = chunk_of_name(name).ok_or_else(|| BackupError::ChunkDamaged { path: path.clone() })?;
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(BackupError::ChunkDamaged { path });
    }
    match chunk_bytes(&path) {
        Ok(bytes) if Checksum::of_chunk(&bytes) == id => Ok(bytes),
        Ok(_) => Err(BackupError::ChunkDamaged { path }),
        Err(source) => Err(BackupError::Unreadable { path, source }),
    }
}

/// Writes a state as a checkpoint, and returns its root.
fn write(frozen: &mut dyn Frozen, vault: &mut Vault, disk: &mut dyn Disk) -> Result<Checksum, BackupError> {
    let mut list = ChunkList::default();
    let mut failure = None;
    let flow = frozen.write(None, &mut |put| {
        let Put::New { id, bytes } = put else { return ControlFlow::Continue(()) };
        list.chunks.push((id, u32::try_from(bytes.len()).expect("chunks are small")));
        vault.put(id, bytes);
        match carry_out(vault, disk) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(error) = failure {
        return Err(BackupError::Disk(error));
    }
    assert!(flow.is_continue());
    let root = vault.put_list(list)?;
    vault.finish(root);
    carry_out(vault, disk).map_err(BackupError::Disk)?;
    assert!(vault.is_complete(root));
    Ok(root)
}

fn carry_out(vault: &mut Vault, disk: &mut dyn Disk) -> io::Result<()> {
    while let Some(job) = vault.next_job() {
        perform(disk, &job)?;
        vault.done(job.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_name_is_read_back_and_nothing_else_is_one() {
        let id = Checksum::of_chunk(b"a chunk");
        assert_eq!(chunk_of_name(&chunk_name(id)), Some(id));
        for wrong in ["", "0", "../manifest.json", &chunk_name(id)[1..], &format!("{}0", chunk_name(id))] {
            assert_eq!(chunk_of_name(wrong), None, "{wrong:?}");
        }
    }
}
