//! SIGINT and SIGTERM while processes and data of ours are about.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// How often the removal of a directory is tried that somebody may be writing to.
const REMOVAL_TRIES: u32 = 50;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What becomes of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Remove,
    /// It was asked for.
    Keep,
}

/// From now on either signal ends this process, with the number by which a shell knows it. What we started ends with us.
/// On a thread of its own, because whoever fills a disk hears nothing.
pub(crate) fn end_when_interrupted(directories: Vec<PathBuf>, data: Data) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Here and not on the thread: nothing may begin before they are heard.
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("can't listen to SIGINT")?;
        (interrupt, signal(SignalKind::terminate()).context("can't listen to SIGTERM")?)
    };
    let watch = move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
        if data == Data::Remove && remove(&directories) {
            eprintln!("interrupted; the data is removed");
        } else {
            let kept: Vec<String> = directories.iter().map(|kept| kept.display().to_string()).collect();
            eprintln!("interrupted; data and logs are kept in {}", kept.join(", "));
        }
        std::process::exit(code);
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).context("can't start a thread")?;
    Ok(())
}

/// Removes directories of ours. Says whether they are gone.
pub(crate) fn remove(directories: &[PathBuf]) -> bool {
    let gone = |directory: &PathBuf| {
        let removed = std::fs::remove_dir_all(directory);
        let absent = removed.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        // Logs may just be on their way into it, and make it again: it is gone when it stays away.
        std::thread::sleep(Duration::from_millis(20));
        (removed.is_ok() || absent) && !directory.exists()
    };
    directories.iter().all(|directory| (0..REMOVAL_TRIES).any(|_| gone(directory)))
}

/// Returns if no signal came; waits for the end otherwise. A terminal sends its signal to our children too, and their end
/// is no news then.
pub(crate) fn give_way() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
