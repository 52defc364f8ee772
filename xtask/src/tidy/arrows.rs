//! Which crate may know of which: one way, as `ARCHITECTURE.md` draws it.

use toml::{Table, Value};

use super::Finding;
use crate::tree::{File, Tree};

/// Each crate and what it may depend on directly. What those depend on it may depend on too.
const ARROWS: [(&str, &[&str]); 13] = [
    ("chronon-vsr", &[]),
    ("chronon-derive", &[]),
    ("chronon-kernel", &["chronon-vsr", "chronon-derive"]),
    ("chronon-storage", &["chronon-vsr"]),
    ("chronon-node", &["chronon-kernel"]),
    ("chronon-sinks", &["chronon-kernel"]),
    ("chronon-client", &["chronon-kernel"]),
    ("chronon-bank", &["chronon-kernel"]),
    ("chronon-sim", &["chronon-node", "chronon-storage", "chronon-bank"]),
    ("chronon-server", &["chronon-node", "chronon-storage", "chronon-sinks", "chronon-client"]),
    ("chronon-sdk", &["chronon-kernel", "chronon-client", "chronon-server", "chronon-sinks", "chronon-sim"]),
    ("chronon-cli", &["chronon-server", "chronon-client", "chronon-sim", "chronon-bank"]),
    ("xtask", &[]),
];

/// What else the crates that must stay pure may use: each of these was looked at for clocks, I/O and randomness.
const PURE: [(&str, &[&str]); 4] = [
    ("chronon-vsr", &["blake3"]),
    ("chronon-kernel", &["blake3", "imbl", "postcard", "serde", "serde_json", "thiserror"]),
    ("chronon-node", &[]),
    ("chronon-bank", &["serde"]),
];

/// A dependency as a manifest names it.
struct Dependency {
    name: String,
    line: usize,
    kind: Kind,
}

#[derive(PartialEq, Eq)]
enum Kind {
    Normal,
    Development,
}

/// Dependencies between our crates follow the arrows.
pub(super) fn arrows(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, manifest) in manifests(tree) {
        let package = package(&manifest);
        if !ARROWS.iter().any(|(name, _)| *name == package) {
            findings.push(Finding::new(
                &file.path,
                1,
                format!("the crate `{package}` has no place among the arrows"),
                "give it one in ARCHITECTURE.md and in xtask/src/tidy/arrows.rs",
            ));
            continue;
        }
        for dependency in dependencies(file, &manifest) {
            if !ARROWS.iter().any(|(name, _)| *name == dependency.name) {
                continue;
            }
            match dependency.kind {
                Kind::Normal if !reaches(&package, &dependency.name) => findings.push(Finding::new(
                    &file.path,
                    dependency.line,
                    format!("`{package}` must not know of `{}`", dependency.name),
                    "turn the dependency round, or move the word to where its meaning is decided",
                )),
                // Tests may look further, but never back: a crate and its user would need one another.
                Kind::Development if reaches(&dependency.name, &package) => findings.push(Finding::new(
                    &file.path,
                    dependency.line,
                    format!("tests of `{package}` use `{}`, which depends on it", dependency.name),
                    "move the test up to the crate that sees both",
                )),
                Kind::Normal | Kind::Development => {}
            }
        }
    }
    findings
}

/// Pure crates use only what was looked at.
pub(super) fn pure_crates(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, manifest) in manifests(tree) {
        let package = package(&manifest);
        let Some((_, allowed)) = PURE.iter().find(|(name, _)| *name == package) else { continue };
        for dependency in dependencies(file, &manifest) {
            let ours = ARROWS.iter().any(|(name, _)| *name == dependency.name);
            if dependency.kind == Kind::Normal && !ours && !allowed.contains(&dependency.name.as_str()) {
                findings.push(Finding::new(
                    &file.path,
                    dependency.line,
                    format!("`{package}` is deterministic, and `{}` is not known to be", dependency.name),
                    "do without it, or check it and add it in xtask/src/tidy/arrows.rs",
                ));
            }
        }
    }
    findings
}

/// Every crate takes its lints, edition, MSRV and licence from the workspace.
pub(super) fn workspace_rules(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, manifest) in manifests(tree) {
        let inherits = |section: &str, key: &str| {
            let mut value = manifest.get(section);
            if !key.is_empty() {
                value = value.and_then(|section| section.get(key));
            }
            value.and_then(|value| value.get("workspace")) == Some(&Value::Boolean(true))
        };
        let wanted = [
            ("lints", ""),
            ("package", "edition"),
            ("package", "rust-version"),
            ("package", "license"),
            ("package", "version"),
        ];
        for (section, key) in wanted {
            if !inherits(section, key) {
                let name = if key.is_empty() { section } else { key };
                findings.push(Finding::new(
                    &file.path,
                    1,
                    format!("`{name}` is not the workspace's"),
                    "write `workspace = true` for it",
                ));
            }
        }
    }
    findings
}

fn manifests(tree: &Tree) -> impl Iterator<Item = (&File, Table)> {
    // The fuzz targets are a workspace of their own: they need tools that the tests do not.
    let ours = |file: &&File| file.path.ends_with("/Cargo.toml") && !file.path.starts_with("fuzz/");
    let manifests = tree.files().iter().filter(ours);
    manifests.filter_map(|file| file.text.parse().ok().map(|manifest| (file, manifest)))
}

fn package(manifest: &Table) -> String {
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}

fn dependencies(file: &File, manifest: &Table) -> Vec<Dependency> {
    let mut found = Vec::new();
    let targets = manifest.get("target").and_then(Value::as_table);
    let tables = targets.into_iter().flat_map(|targets| targets.values().filter_map(Value::as_table));
    for table in std::iter::once(manifest).chain(tables) {
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let kind = || if section == "dev-dependencies" { Kind::Development } else { Kind::Normal };
            let Some(entries) = table.get(section).and_then(Value::as_table) else { continue };
            for (key, value) in entries {
                // A renamed dependency is what it is, not what it is called.
                let name = value.get("package").and_then(Value::as_str).unwrap_or(key);
                let line = file.lines().find(|(_, line)| line.trim_start().starts_with(key.as_str()));
                found.push(Dependency {
                    name: name.to_owned(),
                    line: line.map_or(1, |(line, _)| line),
                    kind: kind(),
                });
            }
        }
    }
    found
}

/// Whether the arrows lead from one crate to another.
fn reaches(from: &str, to: &str) -> bool {
    let direct = ARROWS.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, direct)| direct);
    direct.iter().any(|next| *next == to || reaches(next, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(package: &str, rest: &str) -> Tree {
        let text = format!("[package]\nname = \"{package}\"\n{rest}");
        Tree::of(&[("crates/x/Cargo.toml", &text)])
    }

    #[test]
    fn a_dependency_against_the_arrows_is_found() {
        let found = arrows(&manifest("chronon-vsr", "[dependencies]\nchronon-kernel.workspace = true\n"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 4);
        let renamed =
            "[target.'cfg(unix)'.dependencies]\nvr = { package = \"chronon-kernel\", path = \"..\" }\n";
        assert_eq!(arrows(&manifest("chronon-vsr", renamed)).len(), 1);
    }

    #[test]
    fn a_dependency_along_the_arrows_is_not_found() {
        assert_eq!(arrows(&manifest("chronon-cli", "[dependencies]\nchronon-vsr.workspace = true\n")), []);
        assert_eq!(
            arrows(&manifest("chronon-server", "[dev-dependencies]\nchronon-bank.workspace = true\n")),
            []
        );
    }

    #[test]
    fn a_test_that_depends_on_its_user_is_found() {
        let found =
            arrows(&manifest("chronon-kernel", "[dev-dependencies]\nchronon-bank.workspace = true\n"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert_eq!(arrows(&manifest("chronon-utils", "")).len(), 1);
    }

    #[test]
    fn a_pure_crate_that_takes_in_the_world_is_found() {
        let found = pure_crates(&manifest(
            "chronon-kernel",
            "[dependencies]\ntokio.workspace = true\nserde = \"1\"\n",
        ));
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("tokio"));
    }

    #[test]
    fn a_crate_with_rules_of_its_own_is_found() {
        assert_eq!(workspace_rules(&manifest("chronon-vsr", "edition = \"2021\"\n[lints.rust]\n")).len(), 5);
        let inherits = "version.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
                        license.workspace = true\n[lints]\nworkspace = true\n";
        assert_eq!(workspace_rules(&manifest("chronon-vsr", inherits)), []);
    }

    #[test]
    fn the_arrows_have_no_circle() {
        for (name, _) in ARROWS {
            assert!(!reaches(name, name), "{name}");
        }
    }
}
