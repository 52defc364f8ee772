//! Processes of our own: started from our own binary, ended by us, never outliving us.

use std::fs::OpenOptions;
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
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        Ok(OwnChild { child })
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

impl Drop for OwnChild {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = self.end();
    }
}
