//! A closed loop of clients: each has one request under way, and sends the next when it is answered.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::{Latencies, histogram, record};

/// One row: so many clients for so long.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) clients: usize,
    pub(super) connections: usize,
    /// Commands that a client submits together before it waits.
    pub(super) batch: usize,
    /// Commands, or reads.
    pub(super) per_second: u64,
    /// Of a command, or of a whole batch.
    pub(super) latency: Latencies,
}

impl Row {
    /// The heads of a table of rows; `rate` says of what.
    pub(super) fn heads(rate: &str) -> Vec<String> {
        ["clients", "connections", "batch", rate, "count", "p50 µs", "p99 µs", "max µs"]
            .map(str::to_owned)
            .to_vec()
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let mut cells: Vec<String> =
            [self.clients, self.connections, self.batch].map(|value| value.to_string()).to_vec();
        cells.push(self.per_second.to_string());
        cells.extend(self.latency.cells());
        cells
    }
}

/// Runs `clients` loops for `time`, spread over the connections. `request` carries out the nth request of a client and
/// is a whole batch.
pub(super) async fn closed_loop<C, F>(
    connections: &[C],
    clients: usize,
    batch: usize,
    time: Duration,
    request: impl Fn(C, usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<Row>
where
    C: Clone + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let began = Instant::now();
    let end = began + time;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let connection = connections[client % connections.len()].clone();
            let request = request.clone();
            tokio::spawn(async move {
                let mut latencies = histogram();
                while Instant::now() < end {
                    let began = Instant::now();
                    request(connection.clone(), client).await?;
                    record(&mut latencies, began.elapsed());
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut all = histogram();
    for task in tasks {
        all.add(task.await.context("a client panicked")??)?;
    }
    let commands = all.len() * batch as u64;
    let per_second = (commands as f64 / began.elapsed().as_secs_f64()).round() as u64;
    let connections = connections.len();
    Ok(Row { clients, connections, batch, per_second, latency: Latencies::of(&all) })
}
