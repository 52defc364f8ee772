//! Under which licences the crates come that users build in.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::steps::{cargo, output};

/// What a program under MIT or Apache-2.0 may be built with, without asking its user for more than a notice.
const ALLOWED: [&str; 12] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates under a licence of their own that were decided on: the MPL asks only for changes to their own files, and the
/// CDLA only that its text stays with the data, which here is a list of authorities.
const DECIDED: [(&str, &str); 3] =
    [("imbl", "MPL-2.0+"), ("imbl-sized-chunks", "MPL-2.0+"), ("webpki-roots", "CDLA-Permissive-2.0")];

/// Asks cargo for the licences of everything that is built into a program.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = [
        "tree",
        "--locked",
        "--workspace",
        "--all-features",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
    ];
    Ok(look(&output(cargo(root, &tree))?))
}

/// Each line is `name version …|licence`, with ` (*)` behind what was shown before.
fn look(tree: &str) -> Vec<Finding> {
    let lines: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let mut findings = Vec::new();
    for line in lines {
        let Some((package, licence)) = line.split_once('|') else { continue };
        let name = package.split(' ').next().unwrap_or_default();
        if !allowed(licence) && !DECIDED.contains(&(name, licence)) {
            let licence = if licence.is_empty() { "no licence" } else { licence };
            let what = format!("`{package}` is under {licence}");
            let remedy = "do without it, or decide on it in xtask/src/tidy/licences.rs";
            findings.push(Finding::new("Cargo.lock", 1, what, remedy));
        }
    }
    findings
}

/// Whether one of the alternatives of a licence expression has only allowed parts. Parentheses group alternatives
/// within a list of parts, as in `(MIT OR Apache-2.0) AND Unicode-3.0`; no crate nests them deeper.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    if expression.contains('(') {
        return expression.split(" AND ").all(|part| allowed(part.trim_matches(['(', ')'])));
    }
    expression.split(" OR ").any(|choice| choice.split(" AND ").all(|part| ALLOWED.contains(&part.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_alternative_is_enough_and_every_part_must_be_allowed() {
        for licence in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0"] {
            assert!(allowed(licence), "{licence}");
        }
        for licence in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0"] {
            assert!(!allowed(licence), "{licence}");
        }
    }

    #[test]
    fn a_crate_under_another_licence_is_found_once() {
        let found =
            look("a v1.0.0|MIT\nb v1.0.0|GPL-3.0\nb v1.0.0|GPL-3.0 (*)\nc v2.0.0|\nimbl v7.0.0|MPL-2.0+\n");
        assert_eq!(found.len(), 2);
        assert!(found[0].what.contains("GPL-3.0"));
        assert!(found[1].what.contains("no licence"));
    }
}
