//! How many crates an embedded node brings into its user's build.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::Finding;
use crate::steps::{cargo, output};

/// The most crates in the tree of the facade with a node and no sinks, our own included.
const CRATES_MAX: usize = 120;

/// Asks cargo for the tree and counts it.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = [
        "tree",
        "--locked",
        "--package",
        "chronon-sdk",
        "--no-default-features",
        "--features",
        "node",
        "--edges",
        "no-dev",
        "--prefix",
        "none",
    ];
    Ok(count(&output(cargo(root, &tree))?))
}

/// Each line of cargo's tree begins with name and version; a crate stands there as often as it is used.
fn count(tree: &str) -> Vec<Finding> {
    let crates: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    if crates.len() <= CRATES_MAX {
        return Vec::new();
    }
    let what = format!("an embedded node brings {} crates, {CRATES_MAX} at most", crates.len());
    let remedy =
        "look at `cargo tree -p chronon-sdk --no-default-features --features node`, and do without some";
    vec![Finding::new("crates/chronon/Cargo.toml", 1, what, remedy)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_crates_are_found_and_a_repeated_one_counts_once() {
        let tree = |crates: usize| (0..crates).map(|n| format!("crate{n} v1.0.0\n")).collect::<String>();
        assert_eq!(count(&format!("{0}{0}", tree(CRATES_MAX))), []);
        assert_eq!(count(&tree(CRATES_MAX + 1)).len(), 1);
    }
}
