//! What people see: the standard streams, progress while they wait, and tables.

use std::fmt::Arguments;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

// The macros of the standard library panic when nobody reads any more, and `chronon status | head -1` is no reason for that.
// These stand in their place in the whole crate, so that none of them is forgotten.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!($($text)*)) };
}
macro_rules! println {
    () => { $crate::output::to_stdout(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

/// Why the output is not whole, if it is not.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// What goes to standard output. A reader who has gone wants no more; any other failure is remembered.
pub(crate) fn to_stdout(text: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        Ok(()) | Err(_) => {}
    }
}

/// What goes to standard error: if it can't, there is nobody to tell.
pub(crate) fn to_stderr(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// Why the output is not whole, if it is not.
pub(crate) fn failure() -> Option<io::Error> {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Progress of the demo and of `init`: a bar on a terminal, plain lines elsewhere. Goes to stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
}

impl Progress {
    pub(crate) fn new(total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            let bar = ProgressBar::new(total);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { bar, total }
    }

    /// Something happened.
    pub(crate) fn say(&self, what: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{what}")),
            None => eprintln!("{what}"),
        }
    }

    /// So many bytes of all are filled.
    pub(crate) fn filling(&self, filled: u64, all: u64) {
        if let Some(bar) = &self.bar {
            let percent = filled.saturating_mul(100).checked_div(all).unwrap_or(100);
            bar.set_message(format!("filling the logs with zeros: {percent} %"));
        }
    }

    /// So many bytes of all are read.
    pub(crate) fn reading(&self, read: u64, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message("% read");
            bar.set_position(read.saturating_mul(100).checked_div(all).unwrap_or(100));
        }
    }

    /// So much is done.
    pub(crate) fn acknowledged(&self, count: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message("");
            bar.set_position(count.min(self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Lines in columns, the first line being the heads. Numbers go to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    let right: Vec<bool> =
        (0..columns).map(|column| rows.iter().skip(1).all(|row| is_number(&cell(row, column)))).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(row, column);
            let gap = " ".repeat(width - cell.chars().count());
            line.push_str(&if right[column] { format!("{gap}{cell}  ") } else { format!("{cell}{gap}  ") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains(':') || cell == "-" || cell.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_its_columns_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["name", "open"]), row(["psp", "7"]), row(["a-longer-one", "1234"])]);
        assert_eq!(text, "name          open\npsp              7\na-longer-one  1234\n");
    }
}
