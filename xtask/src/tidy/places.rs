//! Nothing in the tree speaks of the machine that it was written on.

use super::Finding;
use crate::tree::Tree;

/// Folders of particular machines. Written in two halves, so that this file is not found itself.
const FOLDERS: [&str; 4] =
    [concat!("/tmp", "/wt"), concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// The one place that crates come from.
const REGISTRY: &str = "https://github.com/rust-lang/crates.io-index";

/// No paths of a machine in any file, and no registry but the public one.
pub(super) fn places(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        for (number, line) in file.lines() {
            for folder in FOLDERS {
                // A folder of the tree may be called like a folder of a machine: only what starts a path counts.
                let mut places = line.match_indices(folder);
                if places.any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~$}".contains(c))
                }) {
                    let what = format!("a path of one machine, `{folder}`");
                    findings.push(Finding::new(&file.path, number, what, "say it without the path"));
                }
            }
            if file.path == "Cargo.lock" && line.contains("://") && !line.contains(REGISTRY) {
                let what = format!("a crate from elsewhere: {}", line.trim());
                findings.push(Finding::new(&file.path, number, what, "take it from crates.io"));
            }
            let setting = line.trim_start();
            let redirects = setting.starts_with("[source") || setting.starts_with("[registr");
            if file.path.starts_with(".cargo/") && redirects {
                let remedy = "keep such settings in your own configuration";
                findings.push(Finding::new(&file.path, number, "a registry is set for everybody", remedy));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_path_is_found() {
        let line = format!("see {}project/x\n", FOLDERS[1]);
        assert_eq!(places(&Tree::of(&[("docs/a.md", &line)])).len(), 1);
        let ours = format!("see docs{}project/x\n", FOLDERS[1]);
        assert_eq!(places(&Tree::of(&[("docs/a.md", &ours)])), []);
    }

    #[test]
    fn another_registry_is_found() {
        let ours = format!("source = \"registry+{REGISTRY}\"\n");
        assert_eq!(places(&Tree::of(&[("Cargo.lock", &ours)])), []);
        let other = "source = \"registry+https://mirror.example/index\"\n";
        assert_eq!(places(&Tree::of(&[("Cargo.lock", other)])).len(), 1);
        assert_eq!(places(&Tree::of(&[(".cargo/config.toml", "[source.crates-io]\n")])).len(), 1);
    }
}
