//! The trace of a run, and what somebody wants to see of it.

use anyhow::{Result, bail};

/// Which lines of a trace are printed. All that is given must hold.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only lines of these: R0, C3, sink, fault; commas between them. Implies --trace
    #[arg(long, value_name = "WHO", value_delimiter = ',')]
    by: Vec<String>,
    /// Only lines that hold one of these words: Prepare, StartView, durable, commits, starts, calls, … Implies --trace
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only lines that name this op. Implies --trace
    #[arg(long)]
    op: Option<u64>,
    /// Only lines from this world time on, in seconds. Implies --trace
    #[arg(long, value_name = "SECONDS")]
    after: Option<f64>,
    /// Only lines up to this world time, in seconds. Implies --trace
    #[arg(long, value_name = "SECONDS")]
    before: Option<f64>,
}

/// A filter whose words were found to mean something.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    by: Vec<String>,
    kind: Vec<String>,
    op: Option<String>,
    after: Option<f64>,
    before: Option<f64>,
}

impl Filter {
    /// Whether anything is asked for.
    pub(super) fn is_given(&self) -> bool {
        let Filter { by, kind, op, after, before } = self;
        !by.is_empty() || !kind.is_empty() || op.is_some() || after.is_some() || before.is_some()
    }

    pub(super) fn compile(&self) -> Result<Wanted> {
        for who in &self.by {
            let number = who.get(1..).is_some_and(|number| number.parse::<u32>().is_ok());
            let known = who == "sink" || who == "fault" || (number && (who.starts_with(['R', 'C'])));
            if !known {
                bail!("nobody is called {who:?}: write R0 for a replica, C3 for a client, sink, or fault");
            }
        }
        if let (Some(after), Some(before)) = (self.after, self.before)
            && before < after
        {
            bail!("nothing is after {after} s and before {before} s");
        }
        Ok(Wanted {
            by: self.by.clone(),
            kind: self.kind.iter().map(|word| word.to_lowercase()).collect(),
            op: self.op.map(|op| op.to_string()),
            after: self.after,
            before: self.before,
        })
    }
}

impl Wanted {
    /// Whether a line of a trace is wanted: "    1.234567    R0 <- R1 …".
    fn wants(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let time = words.next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default();
        let who = words.next().unwrap_or_default();
        let what = line.split_once(who).map_or("", |(_, what)| what);
        let lower = what.to_lowercase();
        self.after.is_none_or(|after| after <= time)
            && self.before.is_none_or(|before| time <= before)
            && (self.by.is_empty() || self.by.iter().any(|wanted| wanted == who))
            && (self.kind.is_empty() || self.kind.iter().any(|kind| lower.contains(kind)))
            && self.op.as_ref().is_none_or(|op| numbers(what).any(|number| number == op))
    }
}

/// The numbers that stand alone in a line: the op of "Prepare 12", of "Op(12)", of effect "12-0".
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts.filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Prints the lines that are wanted.
pub(super) fn print(lines: &[String], wanted: &Wanted) {
    for line in lines.iter().filter(|line| wanted.wants(line)) {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 4] = [
        "    0.000123    R0 <- R1 0.3 Prepare 12 abcd12ef born 0.3, commit 11",
        "    0.500000    R1 commits 12 abcd12ef",
        "    1.250000  sink psp acts on 12-0 (attempt 1), then Answer",
        "    2.000000    C3 hears of CallId(112): Decided(..)",
    ];

    fn shown(filter: &Filter) -> Vec<usize> {
        let wanted = filter.compile().unwrap();
        (0..LINES.len()).filter(|at| wanted.wants(LINES[*at])).collect()
    }

    #[test]
    fn a_trace_is_filtered_by_who_what_which_op_and_when() {
        assert_eq!(shown(&Filter::default()), [0, 1, 2, 3]);
        assert_eq!(shown(&Filter { by: vec!["R0".into(), "sink".into()], ..Filter::default() }), [0, 2]);
        assert_eq!(shown(&Filter { kind: vec!["prepare".into()], ..Filter::default() }), [0]);
        assert_eq!(shown(&Filter { op: Some(12), ..Filter::default() }), [0, 1, 2]);
        assert_eq!(shown(&Filter { op: Some(11), ..Filter::default() }), [0]);
        assert_eq!(shown(&Filter { op: Some(1), ..Filter::default() }), [2], "R1 and CallId(112) are no ops");
        assert_eq!(shown(&Filter { after: Some(0.4), before: Some(1.3), ..Filter::default() }), [1, 2]);
    }

    #[test]
    fn a_filter_that_can_show_nothing_is_an_error() {
        assert!(Filter { by: vec!["primary".into()], ..Filter::default() }.compile().is_err());
        assert!(Filter { after: Some(2.0), before: Some(1.0), ..Filter::default() }.compile().is_err());
    }
}
