//! `docs/scenarios.md`, `docs/guarantees.md` and the bugs in `docs/simulation.md` name only tests that exist.

use std::collections::BTreeSet;

use super::Finding;
use crate::rust::Code;
use crate::tree::{File, Tree};

/// How many stories there are.
const SCENARIOS: usize = 80;
const SCENARIOS_FILE: &str = "docs/scenarios.md";
const GUARANTEES_FILE: &str = "docs/guarantees.md";
const SIMULATION_FILE: &str = "docs/simulation.md";
const BUGS: &str = "## Bugs that seeds found";

/// Every scenario has a row; each row has a test that exists and what makes it fail, or says what it waits for.
pub(super) fn scenarios(tree: &Tree) -> Vec<Finding> {
    let Some(file) = tree.file(SCENARIOS_FILE) else {
        return vec![Finding::new(SCENARIOS_FILE, 1, "the list of scenarios is missing", "write it")];
    };
    let tests = tests(tree);
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, cells) in rows(file) {
        let number = cells[0].trim_end_matches(|c: char| c.is_ascii_lowercase());
        let Ok(number) = number.parse::<usize>() else { continue };
        seen.insert(number);
        let [_, story, proof, breaks] = cells[..] else {
            let what = format!("row {} has {} cells", cells[0], cells.len());
            findings.push(Finding::new(
                SCENARIOS_FILE,
                line,
                what,
                "write number, story, test, what makes it fail",
            ));
            continue;
        };
        if story.is_empty() {
            let what = format!("row {number} tells no story");
            findings.push(Finding::new(SCENARIOS_FILE, line, what, "tell it in a sentence"));
        }
        if let Some(reason) = proof.strip_prefix("later:") {
            if reason.trim().is_empty() {
                let what = format!("row {number} does not say what it waits for");
                findings.push(Finding::new(SCENARIOS_FILE, line, what, "write `later: why`"));
            }
            continue;
        }
        let names = code_spans(proof);
        if names.is_empty() {
            let what = format!("row {number} names no test");
            findings.push(Finding::new(
                SCENARIOS_FILE,
                line,
                what,
                "name one in backticks, or write `later: why`",
            ));
        }
        findings.extend(missing(SCENARIOS_FILE, line, &names, &tests));
        if breaks.is_empty() {
            let what = format!("row {number} does not say what makes its test fail");
            findings.push(Finding::new(SCENARIOS_FILE, line, what, "name the mutation or the removed guard"));
        }
    }
    for number in (1..=SCENARIOS).filter(|number| !seen.contains(number)) {
        let what = format!("scenario {number} has no row");
        findings.push(Finding::new(SCENARIOS_FILE, 1, what, "add it, if only with `later: why`"));
    }
    findings
}

/// Every guarantee names tests that exist, or says that it is not yet proven.
pub(super) fn guarantees(tree: &Tree) -> Vec<Finding> {
    let Some(file) = tree.file(GUARANTEES_FILE) else {
        return vec![Finding::new(GUARANTEES_FILE, 1, "the list of guarantees is missing", "write it")];
    };
    let tests = tests(tree);
    let mut findings = Vec::new();
    for (line, cells) in rows(file) {
        if cells[0].parse::<usize>().is_err() {
            continue;
        }
        let proof = cells.last().copied().unwrap_or_default();
        let names = code_spans(proof);
        if names.is_empty() && !proof.contains("not yet proven:") {
            let what = format!("guarantee {} names no test", cells[0]);
            let remedy = "name one in backticks, or write `not yet proven: why`";
            findings.push(Finding::new(GUARANTEES_FILE, line, what, remedy));
        }
        findings.extend(missing(GUARANTEES_FILE, line, &names, &tests));
    }
    findings
}

/// Every bug that a seed found names tests that exist.
pub(super) fn bugs(tree: &Tree) -> Vec<Finding> {
    let begin = tree.file(SIMULATION_FILE).and_then(|file| Some((file, begin_of(file, BUGS)?)));
    let Some((file, begin)) = begin else {
        return vec![Finding::new(SIMULATION_FILE, 1, "the list of bugs is missing", "write it")];
    };
    let end = file.lines().find(|(line, text)| begin < *line && text.starts_with("## "));
    let end = end.map_or(usize::MAX, |(line, _)| line);
    let tests = tests(tree);
    let mut findings = Vec::new();
    for (line, cells) in rows(file).filter(|(line, _)| (begin..end).contains(line)) {
        if !cells[0].starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let names = cells.get(3).map(|proof| code_spans(proof)).unwrap_or_default();
        if names.is_empty() {
            let what = format!("the bug of seed {} names no test", cells[0]);
            findings.push(Finding::new(SIMULATION_FILE, line, what, "name one in backticks"));
        }
        findings.extend(missing(SIMULATION_FILE, line, &names, &tests));
    }
    findings
}

/// The line of a heading.
fn begin_of(file: &File, heading: &str) -> Option<usize> {
    file.lines().find(|(_, text)| text.trim_end() == heading).map(|(line, _)| line)
}

fn missing(path: &str, line: usize, names: &[&str], tests: &BTreeSet<String>) -> Vec<Finding> {
    let gone = names.iter().filter(|name| !tests.contains(**name));
    let remedy = "mend the name, or write the test";
    gone.map(|name| Finding::new(path, line, format!("no test is called `{name}`"), remedy)).collect()
}

/// The names of all tests of the tree.
fn tests(tree: &Tree) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in tree.rust() {
        names.extend(Code::of(&file.text).tests().into_iter().map(str::to_owned));
    }
    names
}

/// The rows of a document's tables: line and trimmed cells.
fn rows(file: &File) -> impl Iterator<Item = (usize, Vec<&str>)> {
    file.lines().filter_map(|(line, text)| {
        let inside = text.trim().strip_prefix('|')?.strip_suffix('|')?;
        Some((line, inside.split('|').map(str::trim).collect()))
    })
}

/// What stands in backticks, without the path before the last `::`.
fn code_spans(text: &str) -> Vec<&str> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.map(|span| span.rsplit("::").next().unwrap_or(span)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = "#[test]\nfn the_story_ends_well() {}\nfn no_test() {}\n";

    fn table(first: &str) -> String {
        let later = (2..=SCENARIOS).map(|number| format!("| {number} | A story | later: it waits | |\n"));
        format!(
            "| # | story | test | fails |\n| --- | --- | --- | --- |\n{first}\n{}",
            later.collect::<String>()
        )
    }

    fn found(first: &str) -> Vec<Finding> {
        scenarios(&Tree::of(&[("a.rs", TEST), (SCENARIOS_FILE, &table(first))]))
    }

    #[test]
    fn a_row_with_an_existing_test_and_what_breaks_it_is_right() {
        assert_eq!(found("| 1 | A story | `a::the_story_ends_well` | `Mutation` |"), []);
        assert_eq!(found("| 1a | A story | later: checkpoints | |"), []);
    }

    #[test]
    fn a_test_that_does_not_exist_is_found() {
        assert_eq!(found("| 1 | A story | `the_story_ends` | `Mutation` |").len(), 1);
        assert_eq!(found("| 1 | A story | `no_test` | `Mutation` |").len(), 1);
    }

    #[test]
    fn a_row_that_proves_nothing_is_found() {
        assert_eq!(found("| 1 | A story | `the_story_ends_well` | |").len(), 1);
        assert_eq!(found("| 1 | A story | | a guard |").len(), 1);
        assert_eq!(found("| 1 | A story | later: | |").len(), 1);
        assert_eq!(found("| 1 | | later: it waits | |").len(), 1);
        assert_eq!(found("| 1 | A story | later: it waits |").len(), 1);
    }

    #[test]
    fn a_missing_row_is_found() {
        assert_eq!(found("").len(), 1);
        assert_eq!(scenarios(&Tree::of(&[])).len(), 1);
    }

    #[test]
    fn a_guarantee_without_proof_is_found() {
        let found = |proof: &str| {
            let text =
                format!("| # | guarantee | proved by |\n| --- | --- | --- |\n| 1 | It holds. | {proof} |\n");
            guarantees(&Tree::of(&[("a.rs", TEST), (GUARANTEES_FILE, &text)])).len()
        };
        assert_eq!(found("`the_story_ends_well`"), 0);
        assert_eq!(found("not yet proven: waits for checkpoints"), 0);
        assert_eq!(found("`the_story`"), 1);
        assert_eq!(found(""), 1);
    }

    #[test]
    fn a_bug_without_a_test_is_found() {
        let found = |proof: &str| {
            let heads = "| seed | what | mended in | test |\n| --- | --- | --- | --- |";
            let other = "## Figures\n| 1 | it | is | `of_no_interest` |";
            let text = format!("{BUGS}\n\n{heads}\n| 27, 46 | It failed | abc | {proof} |\n\n{other}\n");
            bugs(&Tree::of(&[("a.rs", TEST), (SIMULATION_FILE, &text)])).len()
        };
        assert_eq!(found("`the_story_ends_well`"), 0);
        assert_eq!(found("`the_story`"), 1);
        assert_eq!(found(""), 1);
        assert_eq!(bugs(&Tree::of(&[])).len(), 1);
    }
}
