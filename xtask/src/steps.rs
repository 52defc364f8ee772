//! Steps of a task: each is announced, run and timed; the first that fails ends the task.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The steps done so far, with their times.
pub(crate) struct Steps {
    total: usize,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Before the first of `total` steps.
    pub(crate) fn new(total: usize) -> Steps {
        Steps { total, done: Vec::new() }
    }

    /// Announces, runs and times one step.
    pub(crate) fn step(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("[{}/{}] {name}", self.done.len() + 1, self.total);
        // A child writes to the same terminal or file: our line must be there first.
        std::io::stdout().flush().context("writing to the standard output")?;
        let started = Instant::now();
        run().with_context(|| format!("step `{name}`"))?;
        let took = started.elapsed();
        println!("[{}/{}] {name}: ok, {:.1} s", self.done.len() + 1, self.total, took.as_secs_f64());
        self.done.push((name, took));
        Ok(())
    }

    /// Says how long each step took.
    pub(crate) fn finish(self) {
        assert!(self.done.len() == self.total);
        println!();
        for (name, took) in &self.done {
            println!("{:>8.1} s  {name}", took.as_secs_f64());
        }
        let all: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("{:>8.1} s  in all", all.as_secs_f64());
    }
}

/// A `cargo` command in the workspace: the very cargo that runs us.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root);
    command
}

/// Runs a command with our own standard output and error.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = shown(&command);
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs a command and returns what it wrote to its standard output.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let shown = shown(&command);
    let output = command.output().with_context(|| format!("starting `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("what `{shown}` wrote"))
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_is_named_and_ends_the_task() {
        let mut steps = Steps::new(2);
        steps.step("first", || Ok(())).unwrap();
        let error = steps.step("second", || bail!("no")).unwrap_err();
        assert_eq!(format!("{error:#}"), "step `second`: no");
        assert_eq!(steps.done.len(), 1);
    }

    #[test]
    fn a_command_that_fails_says_which_and_how() {
        let error = output(cargo(Path::new("."), &["no-such-subcommand-of-cargo", "--quiet"])).unwrap_err();
        assert!(
            error.to_string().contains("cargo no-such-subcommand-of-cargo --quiet` ended with"),
            "{error}"
        );
    }
}
