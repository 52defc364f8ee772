//! The memory of replicas: how much they hold when they have begun, and along the way to a million commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chronon_kernel::{COMMAND_SIZE_MAX, Limits};
use chronon_vsr::{BODY_SIZE_MAX, PIPELINE_MAX};
use serde::Serialize;

use super::machine::Counter;
use super::rig::{COMMAND_SIZE, CONNECTIONS_MAX, LogArguments, cluster, connect, submit_many};
use super::{Printing, conclude};
use crate::local::{LocalCluster, Machine};
use crate::output::{Progress, table};

/// Looks at the replicas along the way, besides the one at the beginning.
const LOOKS: u64 = 4;
/// How long the last replica may need to execute everything.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MemoryArguments {
    /// Where the data goes
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    replicas: u8,
    /// Commands, in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    commands: u64,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    replicas: u8,
    command_bytes: usize,
    log_mib: u64,
    looks: Vec<Look>,
    /// The most that any replica held at any time, in KiB.
    peak_kib: u64,
    /// What bounds a replica's memory, by the name of the limit.
    limits: Vec<Limit>,
}

/// All replicas after so many commands.
#[derive(Clone, Debug, Serialize)]
struct Look {
    commands: u64,
    resident: Vec<Resident>,
}

/// A process, as the system sees it, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Resident {
    now_kib: u64,
    peak_kib: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    unit: &'static str,
}

pub(super) fn run(arguments: &MemoryArguments) -> anyhow::Result<ExitCode> {
    let figures = super::in_directory(&arguments.dir, |directory| measure(arguments, directory))?;
    conclude(&figures, figures.text(), &[], &arguments.printing)
}

impl Figures {
    fn text(&self) -> String {
        let mut heads = vec!["commands".to_owned()];
        for replica in 0..self.replicas {
            heads.extend([format!("replica {replica} MiB"), "peak MiB".to_owned()]);
        }
        let mut lines = vec![heads];
        for look in &self.looks {
            let mut line = vec![look.commands.to_string()];
            for Resident { now_kib, peak_kib } in &look.resident {
                line.extend([now_kib / 1024, peak_kib / 1024].map(|mib| mib.to_string()));
            }
            lines.push(line);
        }
        let mut limits = vec![["limit", "value", ""].map(str::to_owned).to_vec()];
        for Limit { name, value, unit } in &self.limits {
            limits.push(vec![(*name).to_owned(), value.to_string(), (*unit).to_owned()]);
        }
        format!("{}\npeak: {} MiB\n\n{}", table(&lines), self.peak_kib / 1024, table(&limits))
    }
}

fn measure(arguments: &MemoryArguments, directory: &Path) -> anyhow::Result<Figures> {
    let MemoryArguments { replicas, commands, log: LogArguments { log_mib }, .. } = *arguments;
    let progress = Progress::new(commands);
    let mut cluster = cluster(directory, replicas, log_mib, Machine::Counter, &progress)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let looks = runtime.block_on(async {
        let clients = connect::<Counter>(cluster.client_addresses(), CONNECTIONS_MAX).await?;
        cluster.lead().await?;
        let mut looks = vec![look(&cluster, 0)?];
        for number in 1..=LOOKS {
            let before = commands * (number - 1) / LOOKS;
            let until = commands * number / LOOKS;
            submit_many(&clients, until - before).await?;
            let (_, status) = cluster.lead().await?;
            for replica in 0..cluster.len() {
                cluster.has_applied(replica, status.commit, PATIENCE).await?;
            }
            looks.push(look(&cluster, until)?);
            progress.acknowledged(until);
            progress.say(format!("{until} of {commands} commands"));
        }
        anyhow::Ok(looks)
    })?;
    let all = looks.iter().flat_map(|look| &look.resident);
    let peak_kib = all.map(|resident| resident.peak_kib).max().unwrap_or(0);
    Ok(Figures { replicas, command_bytes: COMMAND_SIZE, log_mib, looks, peak_kib, limits: limits(log_mib) })
}

fn look(cluster: &LocalCluster, commands: u64) -> anyhow::Result<Look> {
    let resident = (0..cluster.len())
        .map(|replica| {
            let process = cluster.process(replica).context("a replica is not running")?;
            let path = format!("/proc/{process}/status");
            let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
            Resident::parse(&text).with_context(|| format!("{path} says nothing of memory"))
        })
        .collect::<anyhow::Result<Vec<Resident>>>()?;
    Ok(Look { commands, resident })
}

impl Resident {
    /// Reads `/proc/PID/status`.
    fn parse(text: &str) -> Option<Resident> {
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        Some(Resident { now_kib: kib("VmRSS:")?, peak_kib: kib("VmHWM:")? })
    }
}

/// The named limits that decide how much a replica may come to hold. The log is held in memory as far as the ring keeps
/// it; the rest is bounded by what it is.
fn limits(log_mib: u64) -> Vec<Limit> {
    const LIMITS: Limits = Limits::DEFAULT;
    let limit = |name, value: usize, unit| Limit { name, value: value as u64, unit };
    vec![
        limit("the log (--log-mib)", log_mib as usize * 1024 * 1024, "bytes"),
        limit("COMMAND_SIZE_MAX", COMMAND_SIZE_MAX, "bytes"),
        limit("BODY_SIZE_MAX", BODY_SIZE_MAX, "bytes"),
        limit("PIPELINE_MAX", PIPELINE_MAX as usize, "ops"),
        limit("sessions_max", LIMITS.sessions_max, "sessions"),
        limit("sessions_bytes_max", LIMITS.sessions_bytes_max, "bytes"),
        limit("session_replies_max", LIMITS.session_replies_max, "replies of a session"),
        limit("session_reply_bytes_max", LIMITS.session_reply_bytes_max, "bytes of a session"),
        limit("keys_max", LIMITS.keys_max, "idempotency keys"),
        limit("keys_bytes_max", LIMITS.keys_bytes_max, "bytes"),
        limit("open_effects_max", LIMITS.open_effects_max, "effects"),
        limit("open_bytes_max", LIMITS.open_bytes_max, "bytes"),
        limit("timers_max", LIMITS.timers_max, "timers"),
        limit("history_max", LIMITS.history_max, "settled effects"),
        limit("history_bytes_max", LIMITS.history_bytes_max, "bytes"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_as_the_system_tells_it() {
        let text = "Name:\tchronon\nVmHWM:\t  123456 kB\nVmRSS:\t   99 kB\nThreads:\t9\n";
        assert_eq!(Resident::parse(text), Some(Resident { now_kib: 99, peak_kib: 123_456 }));
        assert_eq!(Resident::parse("Name:\tchronon\n"), None);
    }
}
