//! The `chronon` command. [`run`] gives an embedder the same commands for their own machine.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod api;
mod backup;
mod bench;
mod children;
mod config;
mod demo;
mod desk;
mod founding;
mod init;
mod inspect;
mod interrupt;
mod local;
mod log;
mod operate;
mod replica;
mod sim;

use std::process::ExitCode;

use chronon_kernel::StateMachine;
use clap::Parser as _;

/// A replicated deterministic state machine with exactly-once side effects
#[derive(Debug, clap::Parser)]
#[command(name = "chronon", version, propagate_version = true, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Demo(demo::DemoArguments),
    Init(init::InitArguments),
    Backup(backup::BackupArguments),
    Restore(backup::RestoreArguments),
    Start(replica::StartArguments),
    Status(operate::StatusArguments),
    Submit(operate::SubmitArguments),
    Query(operate::QueryArguments),
    #[command(subcommand)]
    Effects(operate::EffectsCommand),
    #[command(subcommand)]
    Sinks(operate::SinksCommand),
    Skip(desk::SkipArguments),
    Inspect(inspect::InspectArguments),
    #[command(subcommand)]
    Log(log::LogCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    #[command(subcommand)]
    Sim(sim::SimCommand),
    #[command(hide = true)]
    InternalReplica(replica::InternalArguments),
    #[command(hide = true)]
    InternalReceiver(demo::ReceiverArguments),
    #[command(hide = true)]
    InternalEcho(bench::EchoArguments),
    #[command(hide = true)]
    InternalEtcd(bench::EtcdArguments),
}

/// Runs the command line for a machine: what `start` runs. The demo and the benchmarks run the bank.
pub fn run<M: StateMachine>() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    let code = match carry_out::<M>(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chronon: {}", in_words(&error));
            ExitCode::FAILURE
        }
    };
    match output::failure() {
        Some(error) => {
            eprintln!("chronon: standard output can't be written: {error}");
            ExitCode::FAILURE
        }
        None => code,
    }
}

fn carry_out<M: StateMachine>(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Backup(arguments) => backup::back_up(&arguments),
        Command::Restore(arguments) => backup::restore::<M>(&arguments),
        Command::Start(arguments) => replica::start::<M>(&arguments),
        Command::Status(arguments) => operate::status(&arguments),
        Command::Submit(arguments) => operate::submit(&arguments),
        Command::Query(arguments) => operate::query(&arguments),
        Command::Effects(command) => operate::effects(&command),
        Command::Sinks(command) => operate::sinks(&command),
        Command::Skip(arguments) => desk::skip(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Log(command) => log::run(&command),
        Command::Bench(command) => bench::run(&command),
        Command::Sim(command) => sim::run(&command),
        Command::InternalReplica(arguments) => {
            children::end_with_parent()?;
            replica::start_internal(&arguments)
        }
        Command::InternalReceiver(arguments) => {
            children::end_with_parent()?;
            demo::run_receiver(arguments)
        }
        Command::InternalEcho(arguments) => {
            children::end_with_parent()?;
            bench::run_echo(&arguments).map(|()| ExitCode::SUCCESS)
        }
        Command::InternalEtcd(arguments) => Err(bench::run_etcd(&arguments)),
    }
}

/// An error with its causes. Many say their cause themselves, for whoever shows one without the other: it is said once.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !words.ends_with(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

/// `RUST_LOG` says how much; what a person must look at is always there.
fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,chronon_server=info"));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    // It would complain to standard error with a panic, and whoever reads the log going away must not stop a replica.
    let subscriber = subscriber.log_internal_errors(false);
    // An embedding program may have a subscriber of its own; then that one stays.
    let _ = subscriber.with_writer(std::io::stderr).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_error_says_each_cause_once() {
        let source = std::io::Error::other("no such luck");
        let path = std::path::PathBuf::from("manifest.json");
        let error = anyhow::Error::new(chronon_server::BackupError::Unreadable { path, source });
        let error = error.context("nothing is restored");
        assert_eq!(in_words(&error), "nothing is restored: can't read manifest.json: no such luck");
        assert_eq!(in_words(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
