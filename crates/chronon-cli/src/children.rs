//! Processes of our own: started from our own binary, ended by us, never outliving us.
//!
//! A child's standard input is a pipe that its parent holds and never writes to. When the parent is gone, however it
//! went, the system closes the pipe, and the child ends itself.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// A process that ends, by SIGKILL, when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnChild {
    child: Child,
}

impl OwnChild {
    /// Starts our own binary with these arguments; what it prints is appended to `log`.
    pub(crate) fn start(arguments: &[&str], log: &Path) -> anyhow::Result<OwnChild> {
        let program = std::env::current_exe().context("can't find our own binary")?;
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let out = open().and_then(|out| Ok((open()?, out)));
        let (err, out) = out.with_context(|| format!("can't write {}", log.display()))?;
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        Ok(OwnChild { child })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.end().context("can't end a process of ours")
    }

    /// Whether it ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }
}

/// Ends this process when the one that started it is gone. For the commands that [`OwnChild`] starts.
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    let watch = || {
        let mut scrap = [0; 64];
        // Nothing is ever written: whatever is not an interruption is the end.
        while matches!(std::io::stdin().read(&mut scrap), Ok(1..)) {}
        eprintln!("the process that started this one is gone");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("parent".into()).spawn(watch).context("can't start a thread")?;
    Ok(())
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = self.end();
    }
}
