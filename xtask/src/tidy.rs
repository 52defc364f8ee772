//! What neither the compiler nor clippy can check. Every check is a function from the tree to findings, and has a
//! test of its own that shows it finding something.

mod arrows;
mod code;
mod decisions;
mod documents;
pub(crate) mod licences;
mod places;
mod scenarios;
pub(crate) mod weight;

use std::fmt;

use crate::tree::Tree;

/// Something untidy: where it is, what is wrong, what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    what: String,
    remedy: &'static str,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>, remedy: &'static str) -> Finding {
        Finding { path: path.to_owned(), line, what: what.into(), remedy }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line, self.what, self.remedy)
    }
}

/// Everything that can be found by reading.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let checks: [fn(&Tree) -> Vec<Finding>; 13] = [
        arrows::arrows,
        arrows::pure_crates,
        arrows::workspace_rules,
        code::deterministic_words,
        code::left_overs,
        code::module_docs,
        code::lengths,
        code::crate_attributes,
        decisions::numbers,
        documents::links,
        documents::examples,
        places::places,
        scenarios::scenarios,
    ];
    let mut findings: Vec<Finding> = checks.iter().flat_map(|check| check(tree)).collect();
    findings.extend(scenarios::guarantees(tree));
    findings.extend(scenarios::bugs(tree));
    findings
}
