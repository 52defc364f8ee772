//! What is measured, and by whom: a cluster of real replica processes, and clients of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use chronon_client::{Client, ClientOptions, SubmitError, TypedClient};
use chronon_kernel::StateMachine;
use chronon_vsr::{BODY_SIZE_MAX, Ring};
use tokio::task::JoinSet;

use super::machine::Counter;
use crate::local::{Flavour, LocalCluster, Machine};
use crate::output::Progress;

/// Connections at most, however many clients there are.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Commands of one client under way at once, where speed is all that counts.
const UNDER_WAY: usize = 256;
/// Bytes of a command.
pub(super) const COMMAND_SIZE: usize = 128;
/// How long a cluster may take to begin, and a command to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much history replicas keep.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct LogArguments {
    /// Log of each replica, in MiB: held in memory too, and about half of it lies between two checkpoints
    #[arg(long, default_value_t = 512)]
    pub(super) log_mib: u64,
}

/// A cluster of one of our machines, its replicas running.
pub(super) fn cluster(
    directory: &Path,
    replicas: u8,
    log_mib: u64,
    machine: Machine,
    progress: &Progress,
) -> anyhow::Result<LocalCluster> {
    let ring = Ring::new(log_mib * 1024 * 1024, BODY_SIZE_MAX as u32)
        .context("--log-mib is too small for the pipeline")?;
    let flavour = Flavour { machine, ..Flavour::default() };
    progress.say(format!("filling {replicas} logs of {log_mib} MiB with zeros"));
    let mut cluster = LocalCluster::create(directory, replicas, ring, flavour, &mut |filled, all| {
        progress.filling(filled, all);
    })?;
    cluster.start_all()?;
    Ok(cluster)
}

/// Clients of the cluster, each with a connection and a session of its own.
pub(super) async fn connect<M: StateMachine>(
    addresses: Vec<String>,
    connections: usize,
) -> anyhow::Result<Vec<TypedClient<M>>> {
    let options = ClientOptions { timeout: PATIENCE, outstanding_max: 1_000, ..ClientOptions::default() };
    let mut connected = Vec::new();
    for _ in 0..connections {
        let client = Client::connect(addresses.clone(), options).await;
        connected.push(TypedClient::new(client.context("the cluster does not answer")?));
    }
    Ok(connected)
}

/// A command of the counter whose encoding, length included, has the size.
pub(super) fn command() -> Vec<u8> {
    const LENGTH_SIZE: usize = 2;
    vec![7; COMMAND_SIZE - LENGTH_SIZE]
}

/// Has so many commands of the counter carried out, many at once.
pub(super) async fn submit_many(clients: &[TypedClient<Counter>], count: u64) -> anyhow::Result<()> {
    submit_each(clients, count, |_| command()).await
}

/// Has commands carried out, many at once: what `make` makes of each number below `count`.
pub(super) async fn submit_each<M: StateMachine<Command: Sync>>(
    clients: &[TypedClient<M>],
    count: u64,
    make: impl Fn(u64) -> M::Command + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut together = JoinSet::new();
    for client in clients {
        for _ in 0..UNDER_WAY {
            let (client, next, make) = (client.clone(), Arc::clone(&next), make.clone());
            together.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if count <= number {
                        return anyhow::Ok(());
                    }
                    let mut result = client.submit(&make(number)).await;
                    while let Err(SubmitError::Indeterminate { ticket }) = result {
                        result = client.resume(ticket).await;
                    }
                    result.context("a command failed")?;
                }
            });
        }
    }
    while let Some(one) = together.join_next().await {
        one.context("a client panicked")??;
    }
    Ok(())
}
