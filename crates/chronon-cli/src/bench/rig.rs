//! What is measured, and by whom: a cluster of real replica processes, and clients of it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use chronon_client::{Client, ClientOptions, TypedClient};
use chronon_kernel::StateMachine;
use chronon_vsr::{BODY_SIZE_MAX, Ring};

use crate::local::{Flavour, LocalCluster, Machine};
use crate::output::Progress;

/// Connections at most, however many clients there are.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Bytes of a command.
pub(super) const COMMAND_SIZE: usize = 128;
/// How long a cluster may take to begin, and a command to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of the benchmarks' machine, its replicas running.
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
