//! Making a cluster: all identities at once, a data directory and a `chronon.toml` for each replica.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use chronon_bank::Bank;
use chronon_server::{CHECKPOINT_ROOM_MIN, Founding, Node};
use chronon_vsr::ReplicaId;

use crate::config::Config;

/// One replica to be made.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) replica: u8,
    /// Holds `chronon.toml` and the data.
    pub(crate) directory: PathBuf,
    /// Its configuration; the cluster is filled in.
    pub(crate) config: Config,
}

/// What a replica takes beside log and state: the superblock, the configuration, the directories.
const SMALL_FILES: u64 = 256 * 1024;

/// Makes the data directory of one replica.
pub(crate) type Format<'a> = &'a (dyn Fn(&Path, &Founding, ReplicaId) -> anyhow::Result<()> + Sync);

/// One that holds nothing.
pub(crate) fn format_empty(data: &Path, founding: &Founding, replica: ReplicaId) -> anyhow::Result<()> {
    // The identity does not depend on the machine that will run on it.
    Ok(Node::<Bank>::format(data, founding, replica)?)
}

/// Makes every replica of a cluster, each with a state of at most so many bytes. Says where their configurations are.
pub(crate) fn found(
    planned: Vec<Planned>,
    founding: &Founding,
    format: Format<'_>,
    state_size: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Vec<PathBuf>> {
    let count = u8::try_from(planned.len()).context("too many replicas")?;
    // A log that no file could hold needs more than there is.
    let log = chronon_storage::wal_size(&founding.ring).unwrap_or(u64::MAX);
    let each = log.saturating_add(state_size).saturating_add(SMALL_FILES);
    // Without room for its first checkpoint a replica would refuse every command.
    let with_checkpoint = each.saturating_add(state_size).saturating_add(CHECKPOINT_ROOM_MIN);
    if let Some(one) = planned.first() {
        room(&one.directory, with_checkpoint.saturating_mul(u64::from(count)))?;
    }
    let all = each.saturating_mul(u64::from(count));
    let data: Vec<PathBuf> = planned.iter().map(|one| one.directory.join(&one.config.data)).collect();
    // All at once: a disk is kept busy better, and nobody waits for three fillings in a row.
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let formats: Vec<_> = planned
            .iter()
            .zip(&data)
            .map(|(one, data)| {
                scope.spawn(move || {
                    std::fs::create_dir_all(&one.directory)
                        .with_context(|| format!("can't make {}", one.directory.display()))?;
                    format(data, founding, ReplicaId::new(one.replica))
                        .with_context(|| format!("can't make the data directory {}", data.display()))
                })
            })
            .collect();
        while !formats.iter().all(|format| format.is_finished()) {
            let filled = data.iter().map(|data| bytes_in(data)).sum();
            progress(filled, all.max(filled));
            std::thread::sleep(Duration::from_millis(50));
        }
        for format in formats {
            format.join().map_err(|_| anyhow::anyhow!("making a data directory panicked"))??;
        }
        Ok(())
    })?;
    let cluster = format!("{:032x}", founding.cluster.value());
    planned
        .into_iter()
        .map(|one| write_config(&one.directory, Config { cluster: Some(cluster.clone()), ..one.config }))
        .collect()
}

/// Whether so much can be written there. It is asked before anything is: a disk that was filled to the brim harms all
/// others that use it.
fn room(directory: &Path, needed: u64) -> anyhow::Result<()> {
    let absolute = std::path::absolute(directory)?;
    let Some(existing) = absolute.ancestors().find(|ancestor| ancestor.exists()) else { return Ok(()) };
    let filesystem = rustix::fs::statvfs(existing)
        .with_context(|| format!("can't look at the filesystem of {}", existing.display()))?;
    let free = filesystem.f_bavail.saturating_mul(filesystem.f_frsize);
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    anyhow::ensure!(
        needed <= free,
        "the replicas need {} MiB, and the filesystem of {} has {} MiB free: make room, or ask for smaller logs",
        mib(needed),
        existing.display(),
        free / (1024 * 1024)
    );
    Ok(())
}

fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn write_config(directory: &Path, config: Config) -> anyhow::Result<PathBuf> {
    let path = directory.join("chronon.toml");
    let mut text = String::new();
    let replica = config.replica.unwrap_or_default();
    writeln!(
        text,
        "# Replica {replica}. Variables like CHRONON__LISTEN__HTTP override this file; --set does, too."
    )?;
    text.push_str(&toml::to_string(&config)?);
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]
mod tests {
    use super::*;
    use crate::config::{CheckpointsConfig, ListenConfig, TimingConfig};

    #[test]
    fn room_is_asked_for_the_state_of_each_replica_before_anything_is_written() {
        let directory = std::env::temp_dir();
        let filesystem = rustix::fs::statvfs(&directory).unwrap();
        let half = filesystem.f_bavail * filesystem.f_frsize / 2;
        let listen = "127.0.0.1:1".parse().unwrap();
        let planned = |replica| Planned {
            replica,
            directory: directory.join(format!("chronon-never-made-{}", std::process::id())),
            config: Config {
                cluster: None,
                replica: Some(replica),
                data: PathBuf::from("data"),
                listen: ListenConfig { peer: listen, client: listen, http: None },
                replicas: std::collections::BTreeMap::new(),
                timing: TimingConfig::default(),
                checkpoints: CheckpointsConfig::default(),
            },
        };
        let founding = Founding::draw(3).unwrap().log_size(16 << 20);
        let format = |_: &Path, _: &Founding, _| panic!("nothing is written");
        let refused = found((0..3).map(planned).collect(), &founding, &format, half, &mut |_, _| ());
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("the replicas need"), "{error}");
    }
}
