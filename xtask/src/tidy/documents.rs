//! Documents that must agree with the tree: links lead somewhere, examples are the files that they show.

use super::Finding;
use crate::tree::{File, Tree};

/// The most lines of an example that a document shows.
const EXAMPLE_LINES_MAX: usize = 100;

/// Relative links in documents lead to a file or folder, and their anchors to a heading.
pub(super) fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in documents(tree) {
        for (number, line) in prose(file) {
            for target in targets(line) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let Some(path) = resolve(&file.path, path) else {
                    let what = format!("the link `{target}` leads out of the tree");
                    findings.push(Finding::new(&file.path, number, what, "link to something in it"));
                    continue;
                };
                if !tree.has(&path) {
                    let what = format!("the link `{target}` leads nowhere");
                    findings.push(Finding::new(&file.path, number, what, "mend the path or remove the link"));
                    continue;
                }
                let document = tree.file(&path).filter(|_| path.ends_with(".md") && !anchor.is_empty());
                if document.is_some_and(|document| !anchors(document).iter().any(|found| found == anchor)) {
                    let what = format!("no heading of `{path}` has the anchor `{anchor}`");
                    findings.push(Finding::new(&file.path, number, what, "mend the anchor"));
                }
            }
        }
    }
    findings
}

/// A fenced block below `<!-- file: path -->` is that file, byte for byte.
pub(super) fn examples(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in documents(tree) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in file.lines() {
            let Some(path) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->"))
            else {
                continue;
            };
            let Some(shown) = tree.file(path) else {
                let what = format!("`{path}` is shown and does not exist");
                findings.push(Finding::new(&file.path, number, what, "mend the path"));
                continue;
            };
            let block = lines[number..].iter().skip_while(|line| line.is_empty());
            let mut block =
                block.skip_while(|line| line.starts_with("```")).take_while(|line| !line.starts_with("```"));
            let mut expected = shown.text.lines();
            if !shown.text.lines().all(|line| block.next() == Some(&line)) || block.next().is_some() {
                let what = format!("the block is not `{path}` as it is");
                findings.push(Finding::new(&file.path, number, what, "copy the file into the block again"));
            }
            if expected.nth(EXAMPLE_LINES_MAX).is_some() {
                let what = format!("`{path}` is shown and has more than {EXAMPLE_LINES_MAX} lines");
                findings.push(Finding::new(&file.path, number, what, "shorten the example"));
            }
        }
    }
    findings
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files().iter().filter(|file| file.path.ends_with(".md"))
}

/// The lines outside fenced blocks.
fn prose(file: &File) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    file.lines().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The targets of `[text](target)`, outside code spans.
fn targets(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find("](") {
        let code = rest[..at].matches('`').count() % 2 == 1;
        let after = &rest[at + 2..];
        let Some(end) = after.find(')') else { break };
        if !code {
            found.push(after[..end].split(' ').next().unwrap_or_default());
        }
        rest = &after[end..];
    }
    found
}

/// The path that a link in `from` names, from the workspace's folder. None when it leads out of it.
fn resolve(from: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(from.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop()?;
            }
            "" => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchors of a document's headings, made as forges make them.
fn anchors(file: &File) -> Vec<String> {
    let headings = prose(file).filter(|(_, line)| line.starts_with('#'));
    let text = headings.map(|(_, line)| line.trim_start_matches('#').trim().to_lowercase());
    let anchor = |text: String| {
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let tree = Tree::of(&[
            (
                "README.md",
                "[a](docs/a.md) [b](docs/b.md) [c](docs/) [d](https://x.org/) `[e](f)`\n```\n[g](h)\n```\n",
            ),
            ("docs/a.md", "# A\n[up](../README.md) [out](../../x)\n"),
        ]);
        let found = links(&tree);
        assert_eq!(found.len(), 2);
        assert!(found[0].what.contains("docs/b.md"));
        assert!(found[1].what.contains("out of the tree"));
    }

    #[test]
    fn an_anchor_without_a_heading_is_found() {
        let tree = Tree::of(&[("a.md", "## How it works, now\n[x](#how-it-works-now) [y](a.md#how)\n")]);
        let found = links(&tree);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("`how`"));
    }

    #[test]
    fn an_example_that_differs_from_its_file_is_found() {
        let code = "//! A.\n\nfn main() {}\n";
        let shown = |block: &str| format!("<!-- file: e/a.rs -->\n```rust\n{block}```\n");
        let findings =
            |block: &str| examples(&Tree::of(&[("README.md", &shown(block)), ("e/a.rs", code)])).len();
        assert_eq!(findings(code), 0);
        assert_eq!(findings("//! A.\n\nfn main() { }\n"), 1);
        assert_eq!(findings("//! A.\n"), 1);
        assert_eq!(findings(&format!("{code}// more\n")), 1);
        assert_eq!(examples(&Tree::of(&[("README.md", &shown(code))])).len(), 1);
    }

    #[test]
    fn a_long_example_is_found() {
        let code = "//\n".repeat(EXAMPLE_LINES_MAX + 1);
        let shown = format!("<!-- file: a.rs -->\n```rust\n{code}```\n");
        assert_eq!(examples(&Tree::of(&[("README.md", &shown), ("a.rs", &code)])).len(), 1);
    }
}
