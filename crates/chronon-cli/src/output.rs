//! What people see while they wait, and tables.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

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
