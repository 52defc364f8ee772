//! The trace of a run, and what somebody wants to see of it.

use anyhow::{Result, bail};
use clap::builder::NonEmptyStringValueParser;

/// Which lines of a trace are printed. All that is given must hold.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only lines of these: R0, C3, sink, fault; commas between them. Implies --trace
    #[arg(long, value_name = "WHO", value_delimiter = ',', value_parser = who)]
    by: Vec<String>,
    /// Only lines that hold one of these words: Prepare, StartView, durable, commits, starts, calls, … Implies --trace
    #[arg(long, value_name = "WORD", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    kind: Vec<String>,
    /// Only lines that name this op. Implies --trace
    #[arg(long)]
    op: Option<u64>,
    /// Only lines from this world time on, in seconds. Implies --trace
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    after: Option<f64>,
    /// Only lines up to this world time, in seconds. Implies --trace
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
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

/// Somebody's name in a trace.
fn who(text: &str) -> Result<String> {
    let number = text.get(1..).is_some_and(|number| number.parse::<u32>().is_ok());
    if text != "sink" && text != "fault" && !(number && text.starts_with(['R', 'C'])) {
        bail!("nobody is called so: write R0 for a replica, C3 for a client, sink, or fault");
    }
    Ok(text.to_owned())
}

/// A time in the world.
fn seconds(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() => Ok(seconds),
        Ok(_) | Err(_) => bail!("that is no number of seconds"),
    }
}

impl Wanted {
    /// Somebody who is asked for and does not live in a world of so many replicas and clients.
    pub(super) fn stranger(&self, replicas: usize, clients: u32) -> Option<&str> {
        let lives = |who: &str| {
            let number = who.get(1..).and_then(|number| number.parse::<u32>().ok());
            match (who.get(..1), number) {
                (Some("R"), Some(number)) => (number as usize) < replicas,
                // The one called C0 sets up what the others need.
                (Some("C"), Some(number)) => number <= clients,
                _ => true,
            }
        };
        self.by.iter().map(String::as_str).find(|who| !lives(who))
    }

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
            && self.op.as_ref().is_none_or(|op| ops(what).any(|named| named == op))
    }
}

/// Words before a number that is no op's.
const OTHERS: [&str; 8] =
    ["attempt", "call", "Call", "CallId", "incarnation", "Probe", "request", "WriteNumber"];

/// The numbers of a line that may name an op: "Prepare 12", "Op(12)", the 12 of effect "12-0"; not the parts of a stamp or
/// a session, "0.3", nor what is said to be the number of something else.
fn ops(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '.' || c == '-';
    let words = text.split(move |c: char| !is_word(c)).filter(|word| !word.is_empty());
    let with_last = words.scan("", |last, word| Some((std::mem::replace(last, word), word)));
    with_last.filter(|(last, _)| !OTHERS.contains(last)).filter_map(|(_, word)| {
        let op = word.split_once('-').map_or(word, |(op, _)| op).trim_end_matches('.');
        (!op.is_empty() && op.bytes().all(|byte| byte.is_ascii_digit())).then_some(op)
    })
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

    const LINES: [&str; 6] = [
        "    0.000123    R0 <- R1 0.3 Prepare 12 abcd12ef born 0.3, commit 11",
        "    0.500000    R1 commits 12 abcd12ef",
        "    1.250000  sink psp acts on 12-0 (attempt 1), then Answer",
        "    2.000000    C3 hears of CallId(112): Decided(..)",
        "    2.100000    R0 Appended(WriteNumber(7)), born 0.9",
        "    2.200000    C3 call 8 calls Pay (18.5 request 1)",
    ];

    fn shown(filter: &Filter) -> Vec<usize> {
        let wanted = filter.compile().unwrap();
        (0..LINES.len()).filter(|at| wanted.wants(LINES[*at])).collect()
    }

    #[test]
    fn a_trace_is_filtered_by_who_what_which_op_and_when() {
        assert_eq!(shown(&Filter::default()), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(&Filter { by: vec!["R0".into(), "sink".into()], ..Filter::default() }), [0, 2, 4]);
        assert_eq!(shown(&Filter { kind: vec!["prepare".into()], ..Filter::default() }), [0]);
        assert_eq!(shown(&Filter { op: Some(12), ..Filter::default() }), [0, 1, 2]);
        assert_eq!(shown(&Filter { op: Some(11), ..Filter::default() }), [0]);
        for other in [0, 1, 3, 5, 7, 8, 9, 18, 112] {
            let filter = Filter { op: Some(other), ..Filter::default() };
            assert!(shown(&filter).is_empty(), "{other} names no op in them");
        }
        assert_eq!(shown(&Filter { after: Some(0.4), before: Some(1.3), ..Filter::default() }), [1, 2]);
    }

    #[test]
    fn a_filter_that_can_show_nothing_is_an_error() {
        assert!(who("primary").is_err());
        assert!(seconds("nan").is_err() && seconds("inf").is_err());
        let wanted = Filter { by: vec!["R1".into(), "C3".into(), "sink".into()], ..Filter::default() };
        let wanted = wanted.compile().unwrap();
        assert_eq!(wanted.stranger(2, 3), None);
        assert_eq!(wanted.stranger(1, 3), Some("R1"));
        assert_eq!(wanted.stranger(2, 2), Some("C3"));
        assert!(Filter { after: Some(2.0), before: Some(1.0), ..Filter::default() }.compile().is_err());
    }
}
