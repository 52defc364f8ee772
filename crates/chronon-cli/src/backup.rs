//! `chronon backup`: carries a state away. `chronon restore`: makes a new cluster that begins with it.

use std::collections::BTreeSet;
use std::fs::{self, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use chronon_kernel::StateMachine;
use chronon_server::{
    CHUNKS, Founding, MANIFEST, Manifest, RestoredState, chunk_bytes, chunk_of_name, manifest_bytes,
};
use chronon_vsr::Checksum;
use hyper::Method;
use serde_json::json;

use crate::api::{ADDRESS_DEFAULT, ADDRESS_VARIABLE, Api, Call};
use crate::init::{self, ClusterArguments};
use crate::output::Progress;

/// Held as long as a backup is being carried there.
const LOCK: &str = "lock";

/// How the name of a file ends that is not whole yet.
const PART: &str = ".part";

/// How often a backup begins again because a chunk was not to be had any more.
const TRIES: usize = 3;

/// Carry the state of a running cluster away, from any replica
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BackupArguments {
    /// Where to: a new or empty directory, or one that holds an earlier backup, of which only what changed is fetched
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// HTTP APIs of replicas, separated by commas; the first that is reached answers
    #[arg(long, env = ADDRESS_VARIABLE, default_value = ADDRESS_DEFAULT)]
    api: String,
    /// How long one answer may take, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Make a new cluster that begins with the state of a backup: sinks frozen, open effects in doubt
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestoreArguments {
    /// A directory that `chronon backup` made
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// Takes a backup.
pub(crate) fn back_up(arguments: &BackupArguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (manifest, fetched) = runtime.block_on(carry_away(arguments))?;
    let (op, chunks, bytes) = (manifest.op, manifest.chunks.len(), manifest.size());
    let to = arguments.to.display();
    if arguments.json {
        let cluster = &manifest.cluster;
        let told = json!({
            "cluster": cluster, "op": op, "chunks": chunks, "bytes": bytes, "fetched": fetched, "to": to.to_string(),
        });
        println!("{told}");
    } else {
        println!(
            "the state of op {op} is in {to}: {chunks} chunks, {bytes} bytes; {fetched} chunks were fetched"
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn carry_away(arguments: &BackupArguments) -> anyhow::Result<(Manifest, u64)> {
    let to = &arguments.to;
    // Before anything is made there, and once more when nobody else can write.
    refuse_other_files(to)?;
    earlier(to)?;
    let chunks = to.join(CHUNKS);
    fs::create_dir_all(&chunks).with_context(|| format!("can't make {}", chunks.display()))?;
    let _lock = hold(to)?;
    let earlier = earlier(to)?;
    let api = Api::new(&arguments.api, Duration::from_secs(arguments.timeout)).reached().await?;
    let mut fetched = 0;
    for tries_left in (0..TRIES).rev() {
        let call = Call { method: Method::POST, ..Call::get("/v1/backups") };
        let manifest: Manifest = serde_json::from_value(api.call(call).await?)
            .context("the replica answered with another kind of backup")?;
        if let Some(earlier) = earlier.as_ref().filter(|earlier| earlier.cluster != manifest.cluster) {
            end(&api, &manifest).await;
            anyhow::bail!(
                "{} holds a backup of cluster {}, and this is cluster {}; name another directory",
                to.display(),
                earlier.cluster,
                manifest.cluster
            );
        }
        let carried = fetch_all(&api, &chunks, &manifest, &mut fetched).await;
        end(&api, &manifest).await;
        match carried {
            Ok(()) => {
                finish(to, &manifest)?;
                return Ok((manifest, fetched));
            }
            Err(error) if tries_left == 0 => return Err(error),
            // The replica was restarted, perhaps: what is here already stays.
            Err(_) => {}
        }
    }
    unreachable!("the last try returns")
}

async fn fetch_all(api: &Api, chunks: &Path, manifest: &Manifest, fetched: &mut u64) -> anyhow::Result<()> {
    let progress = Progress::new(manifest.chunks.len() as u64);
    for (done, (name, _)) in (1..).zip(&manifest.chunks) {
        *fetched += u64::from(fetch(api, chunks, name).await?);
        progress.acknowledged(done);
    }
    Ok(())
}

/// The replica need not keep the state any more. If it does not hear of it, it waits for a minute.
async fn end(api: &Api, manifest: &Manifest) {
    let path = format!("/v1/backups/{}", manifest.root);
    drop(api.call(Call { method: Method::DELETE, ..Call::get(path) }).await);
}

/// A directory of something else is not made a backup of: what is no part of the new one is removed in the end.
fn refuse_other_files(to: &Path) -> anyhow::Result<()> {
    let part = part_of(MANIFEST);
    refuse_others(to, |name| [MANIFEST, CHUNKS, LOCK, &part].contains(&name))?;
    let is_chunk = |name: &str| chunk_of_name(name.strip_suffix(PART).unwrap_or(name)).is_some();
    refuse_others(&to.join(CHUNKS), is_chunk)
}

fn refuse_others(directory: &Path, is_ours: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name();
        anyhow::ensure!(
            name.to_str().is_some_and(&is_ours),
            "{} holds {}, which is no part of a backup; name another directory",
            directory.display(),
            name.display()
        );
    }
    Ok(())
}

/// A second backup into the same directory would remove what the first one is about to name.
fn hold(to: &Path) -> anyhow::Result<fs::File> {
    let path = to.join(LOCK);
    let failed = || format!("can't lock {}", path.display());
    // Whoever opens a pipe waits for somebody at its other end.
    anyhow::ensure!(fs::metadata(&path).map_or(true, |found| found.is_file()), "{}: it is no file", failed());
    let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let lock = lock.with_context(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => anyhow::bail!("another backup into {} is under way", to.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

/// The backup that is in the directory already.
fn earlier(to: &Path) -> anyhow::Result<Option<Manifest>> {
    let path = to.join(MANIFEST);
    let text = match manifest_bytes(to) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    let manifest = serde_json::from_slice(&text);
    let no_manifest =
        || format!("{} is no manifest of a backup; name another directory, or remove it", path.display());
    manifest.map(Some).with_context(no_manifest)
}

/// Fetches a chunk, unless it is here and whole.
async fn fetch(api: &Api, chunks: &Path, name: &str) -> anyhow::Result<bool> {
    let id = chunk_of_name(name).with_context(|| format!("{name:?} is no chunk's name"))?;
    let path = chunks.join(name);
    if chunk_bytes(&path).is_ok_and(|bytes| Checksum::of_chunk(&bytes) == id) {
        return Ok(false);
    }
    let bytes = api.bytes(&format!("/v1/chunks/{name}")).await?;
    anyhow::ensure!(Checksum::of_chunk(&bytes) == id, "chunk {name} was damaged on its way");
    write(chunks, name, &bytes)?;
    Ok(true)
}

fn part_of(name: &str) -> String {
    format!("{name}{PART}")
}

/// Puts a file there as a whole, durably.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let (part, path) = (directory.join(part_of(name)), directory.join(name));
    let put = || -> io::Result<()> {
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    put().with_context(|| format!("can't write {}", path.display()))
}

/// All chunks are there: says so, and removes those of an earlier backup that this one does not need.
fn finish(to: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let sync = |directory: &Path| {
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.with_context(|| format!("can't flush {}", directory.display()))
    };
    let chunks = to.join(CHUNKS);
    sync(&chunks)?;
    write(to, MANIFEST, &serde_json::to_vec_pretty(manifest)?)?;
    sync(to)?;
    let needed: BTreeSet<&str> = manifest.chunks.iter().map(|(name, _)| name.as_str()).collect();
    for entry in fs::read_dir(&chunks)? {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| !needed.contains(name)) {
            fs::remove_file(entry.path())
                .with_context(|| format!("can't remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Makes a cluster from a backup.
pub(crate) fn restore<M: StateMachine>(arguments: &RestoreArguments) -> anyhow::Result<ExitCode> {
    let from = arguments.from.display();
    let state = RestoredState::read::<M>(&arguments.from)
        .with_context(|| format!("nothing is restored from {from}"))?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is wrong")?;
    let seconds = u32::try_from(since.as_secs()).context("the clock is wrong")?;
    let epoch =
        state.epoch_above(seconds).context("the backup's epoch, or its log time, is the last there is")?;
    let founding = |count| Founding::draw(count).map(|founding| founding.in_epoch(epoch));
    let format = |data: &Path, founding: &Founding, replica| Ok(state.format(data, founding, replica)?);
    let code = init::make(&arguments.cluster, &founding, &format, state.size_max())?;
    if !arguments.cluster.json {
        let (doubt, sinks) = state.in_doubt();
        println!(
            "it begins with the state of op {}. {doubt} effects are in doubt; {sinks} sinks are frozen:",
            state.op()
        );
        println!(
            "look with `chronon effects list --state parked`; resolve or retry each, then thaw the sinks, over the API"
        );
    }
    Ok(code)
}
