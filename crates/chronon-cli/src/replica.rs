//! `chronon start`: one replica, until it is asked to stop or must.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use chronon_bank::Bank;
use chronon_kernel::StateMachine;
use chronon_server::{DiskKind, Node, ServerConfig, StartError, StopReason};
use chronon_storage::OpenError;
use tokio::signal::unix::{SignalKind, signal};

use crate::bench::{Counter, Registers};
use crate::config::Config;
use crate::local::{Machine, Sabotage};

/// Run one replica
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StartArguments {
    /// The replica's configuration, which `chronon init` wrote
    #[arg(long, default_value = "chronon.toml")]
    config: PathBuf,
    /// Override one key: --set listen.http=0.0.0.0:7102
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A replica of the demo, of a benchmark or of a test.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InternalArguments {
    #[arg(long)]
    config: PathBuf,
    /// What is not flushed lives in memory only.
    #[arg(long)]
    unflushed: bool,
    #[arg(long)]
    sabotage: Option<Sabotage>,
    #[arg(long, default_value = "bank")]
    machine: Machine,
}

/// Runs a replica of `M`.
pub(crate) fn start<M: StateMachine>(arguments: &StartArguments) -> anyhow::Result<ExitCode> {
    let config = Config::load(&arguments.config, std::env::vars(), &arguments.set)?;
    let server = config.server(&arguments.config)?;
    serve::<M>(&config.data, server)
}

/// Runs a replica as the demo or a benchmark wants it.
pub(crate) fn start_internal(arguments: &InternalArguments) -> anyhow::Result<ExitCode> {
    let config = Config::load(&arguments.config, [], &[])?;
    let mut server = config.server(&arguments.config)?;
    if arguments.unflushed {
        server.disk = DiskKind::Unflushed;
    }
    if let Some(sabotage) = arguments.sabotage {
        break_guard(&mut server, sabotage)?;
    }
    match arguments.machine {
        Machine::Bank => serve::<Bank>(&config.data, server),
        Machine::Counter => serve::<Counter>(&config.data, server),
        Machine::Registers => serve::<Registers>(&config.data, server),
    }
}

#[cfg(feature = "mutations")]
fn break_guard(server: &mut ServerConfig, sabotage: Sabotage) -> anyhow::Result<()> {
    use chronon_vsr::{Mutation, Mutations};
    server.mutations = Mutations::broken(match sabotage {
        Sabotage::NewKeyPerAttempt => Mutation::NewKeyPerAttempt,
        Sabotage::AckBeforeFlush => Mutation::AckBeforeFlush,
        Sabotage::ForgetOutbox => Mutation::ForgetOutbox,
    });
    Ok(())
}

#[cfg(not(feature = "mutations"))]
fn break_guard(_server: &mut ServerConfig, sabotage: Sabotage) -> anyhow::Result<()> {
    anyhow::bail!("{sabotage:?} needs a test build: --features mutations")
}

/// Why the replica did not start, and where there is more to know.
fn refused(error: StartError, data: &Path) -> anyhow::Error {
    let there = data.display();
    let looks_further = match &error {
        StartError::Data(OpenError::Missing { .. } | OpenError::Locked { .. }) => false,
        StartError::Data(_) => true,
        _ => false,
    };
    let error = anyhow::Error::new(error).context(format!("can't start the replica in {there}"));
    if looks_further {
        anyhow::anyhow!(
            "{error:#} (what is left, what it means and what to do: chronon inspect --data {there})"
        )
    } else {
        error
    }
}

fn serve<M: StateMachine>(data: &Path, server: ServerConfig) -> anyhow::Result<ExitCode> {
    // The replica brings its own threads; this one waits for signals.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("can't listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen to SIGINT")?;
        let started = tokio::select! {
            started = Node::<M>::open(data).config(server).start() => started,
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        };
        let node = started.map_err(|error| refused(error, data))?;
        let addresses = node.addresses();
        let http = addresses.http.map_or("none".to_owned(), |http| format!("http://{http}"));
        println!("peers {}  clients {}  api {http}", addresses.peer, addresses.client);
        let reason = tokio::select! {
            reason = node.stopped() => reason,
            _ = terminate.recv() => node.shutdown().await,
            _ = interrupt.recv() => node.shutdown().await,
        };
        match reason {
            StopReason::Requested => Ok(ExitCode::SUCCESS),
            reason => Err(anyhow::anyhow!("the replica stopped: {reason}")),
        }
    })
}
