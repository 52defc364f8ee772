//! Decisions are numbered without gaps and have one form.

use super::Finding;
use crate::tree::Tree;

const FOLDER: &str = "docs/decisions/";

/// What each decision must have, in this order.
const SECTIONS: [&str; 4] =
    ["## Context", "## Decision", "## What it costs", "## What would change our mind"];

/// Numbers from 0001 upward, each once; the title and the sections are there.
pub(super) fn numbers(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut expected = 1;
    for file in tree.files() {
        let Some(name) = file.path.strip_prefix(FOLDER) else { continue };
        if name == "README.md" {
            continue;
        }
        let number = name.split_once('-').and_then(|(number, _)| (number.len() == 4).then_some(number));
        if number.and_then(|number| number.parse().ok()) != Some(expected) {
            let what = format!("decision {expected:04} should come here");
            findings.push(Finding::new(&file.path, 1, what, "number decisions from 0001 without gaps"));
        }
        expected += 1;
        let title = format!("# {}. ", number.unwrap_or_default());
        if !file.text.starts_with(&title) {
            let what = format!("the title does not begin with `{}`", title.trim_end());
            findings.push(Finding::new(&file.path, 1, what, "give it its number and its sentence"));
        }
        let found: Vec<&str> = file.text.lines().filter(|line| line.starts_with("## ")).collect();
        if found != SECTIONS {
            let remedy = "use the form of docs/decisions/README.md";
            findings.push(Finding::new(&file.path, 1, "the sections are not those of a decision", remedy));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(number: &str) -> String {
        format!("# {number}. Title\n\n{}\n", SECTIONS.join("\n\nText.\n\n"))
    }

    #[test]
    fn a_gap_is_found() {
        let (one, three) = (decision("0001"), decision("0003"));
        let tree = Tree::of(&[("docs/decisions/0001-a.md", &one), ("docs/decisions/0003-b.md", &three)]);
        assert_eq!(numbers(&tree).len(), 1);
        let tree = Tree::of(&[("docs/decisions/0001-a.md", &one), ("docs/decisions/README.md", "")]);
        assert_eq!(numbers(&tree), []);
    }

    #[test]
    fn a_number_used_twice_is_found() {
        let one = decision("0001");
        let tree = Tree::of(&[("docs/decisions/0001-a.md", &one), ("docs/decisions/0001-b.md", &one)]);
        assert_eq!(numbers(&tree).len(), 1);
    }

    #[test]
    fn another_form_is_found() {
        let tree = Tree::of(&[("docs/decisions/0001-a.md", "# Something\n\n## Decision\n")]);
        assert_eq!(numbers(&tree).len(), 2);
    }
}
