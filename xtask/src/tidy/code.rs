//! What source files must and must not say.

use super::Finding;
use crate::rust::{Code, find_word};
use crate::tree::{File, Tree};

/// The longest that a file may be. Longer ones have two nouns.
const LINES_MAX: usize = 1200;

/// The world, in crates that must only hear of it through their inputs.
const WORLD: [&str; 13] = [
    "std::time",
    "Instant::now",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "HashMap",
    "HashSet",
    "RandomState",
    "rand::",
    "getrandom",
];

/// What makes two runs of one seed differ, in crates that the simulator runs but that may do I/O.
const ORDER: [&str; 5] = ["HashMap", "HashSet", "RandomState", "rand::", "getrandom"];

/// Modules of `std` that are reached through a group: `use std::{fs, io}`.
const WORLD_MODULES: [&str; 6] = ["time", "thread", "fs", "net", "env", "process"];

/// Which crates' sources must not name which words.
const DETERMINISTIC: [(&str, &[&str]); 6] = [
    ("crates/chronon-vsr/src/", &WORLD),
    ("crates/chronon-kernel/src/", &WORLD),
    ("crates/chronon-node/src/", &WORLD),
    ("crates/chronon-bank/src/", &WORLD),
    ("crates/chronon-storage/src/", &ORDER),
    ("crates/chronon-sim/src/", &ORDER),
];

/// Attributes that the root of a crate must have.
const ATTRIBUTES: [(&str, &[&str]); 4] = [
    ("crates/chronon-vsr/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("crates/chronon-kernel/src/lib.rs", &["#![forbid(unsafe_code)]"]),
    ("crates/chronon-node/src/lib.rs", &["#![forbid(unsafe_code)]"]),
    ("crates/chronon-sim/src/lib.rs", &["#![forbid(unsafe_code)]"]),
];

/// Deterministic crates name no clock, file, socket, thread, hash map or source of randomness. Their tests may: what
/// only a test sees changes no replica.
pub(super) fn deterministic_words(tree: &Tree) -> Vec<Finding> {
    const REMEDY: &str = "take it as an input, or use a BTreeMap or the seeded Prng";
    let mut findings = Vec::new();
    for file in tree.rust() {
        let Some((_, words)) = DETERMINISTIC.iter().find(|(folder, _)| file.path.starts_with(folder)) else {
            continue;
        };
        if is_test_file(file) {
            continue;
        }
        let code = Code::of(&file.text);
        for (number, line, _) in code.lines().filter(|(_, _, in_test_module)| !in_test_module) {
            for word in *words {
                if find_word(line, word).is_some() {
                    let what = format!("`{}` in a deterministic crate", word.trim_end_matches("::"));
                    findings.push(Finding::new(&file.path, number, what, REMEDY));
                }
            }
            let group = if words.len() == WORLD.len() { line.split_once("use std::{") } else { None };
            for module in group.iter().flat_map(|(_, group)| group.split([',', ' ', '{', '}', ':', ';'])) {
                if WORLD_MODULES.contains(&module) {
                    let what = format!("`std::{module}` in a deterministic crate");
                    findings.push(Finding::new(&file.path, number, what, REMEDY));
                }
            }
        }
    }
    findings
}

/// Nothing is left half done, no test is switched off, and no test waits by the clock without saying why.
pub(super) fn left_overs(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let code = Code::of(&file.text);
        let in_tests = is_test_file(file);
        let source: Vec<&str> = file.text.lines().collect();
        for (number, line, in_test_module) in code.lines() {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                if find_word(line, word).is_some() {
                    let what = format!("`{word}` is left in the code");
                    findings.push(Finding::new(&file.path, number, what, "finish it or remove it"));
                }
            }
            if line.contains("#[ignore")
                || (line.contains("#[cfg_attr") && find_word(line, "ignore").is_some())
            {
                let remedy = "mend the test or delete it: a test that does not run proves nothing";
                findings.push(Finding::new(&file.path, number, "an ignored test", remedy));
            }
            let sleeps = ["thread::sleep", "time::sleep"].iter().any(|word| find_word(line, word).is_some());
            // The reason stands on the line or on the one above.
            let reason =
                source[number.saturating_sub(2)..number].iter().any(|line| line.contains("// sleeps: "));
            if sleeps && (in_tests || in_test_module) && !reason {
                let remedy = "wait for the event, or say why not in a comment `// sleeps: …` above";
                findings.push(Finding::new(&file.path, number, "a test sleeps", remedy));
            }
        }
    }
    findings
}

/// Every source file says first what it is.
pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let undocumented = tree.rust().filter(|file| !file.text.starts_with("//! "));
    undocumented
        .map(|file| {
            let remedy = "say in its first line, `//! …`, what noun the file is";
            Finding::new(&file.path, 1, "no module doc at the top", remedy)
        })
        .collect()
}

/// No file grows without end.
pub(super) fn lengths(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let lines = file.text.lines().count();
        if lines > LINES_MAX {
            let what = format!("{lines} lines, {LINES_MAX} at most");
            findings.push(Finding::new(&file.path, LINES_MAX + 1, what, "split it where it has two nouns"));
        }
    }
    findings
}

/// The crates that must be pure have the compiler keep them so.
pub(super) fn crate_attributes(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, attributes) in ATTRIBUTES {
        let Some(file) = tree.file(path) else { continue };
        for attribute in attributes {
            if !file.text.lines().any(|line| line.trim() == *attribute) {
                let what = format!("`{attribute}` is missing");
                findings.push(Finding::new(path, 1, what, "put it below the crate's doc"));
            }
        }
    }
    findings
}

fn is_test_file(file: &File) -> bool {
    file.path.contains("/tests/") || file.path.ends_with("/tests.rs") || file.path.ends_with("_test.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VSR: &str = "crates/chronon-vsr/src/lib.rs";

    #[test]
    fn the_world_in_a_deterministic_crate_is_found() {
        for line in [
            "let now = Instant::now();",
            "use std::time::Instant;",
            "use std::{fmt, fs};",
            "let m: HashMap<u8, u8>;",
            "rand::random()",
            "use std::net::TcpStream;",
        ] {
            let tree = Tree::of(&[(VSR, line), ("crates/chronon-server/src/lib.rs", line)]);
            assert_eq!(deterministic_words(&tree).len(), 1, "{line}");
        }
    }

    #[test]
    fn words_in_comments_and_strings_and_longer_names_are_not_found() {
        let text = "//! no HashMap\nlet operand = \"SystemTime\"; /* std::fs */ use core::time::Duration;\n";
        assert_eq!(deterministic_words(&Tree::of(&[(VSR, text)])), []);
    }

    #[test]
    fn tests_of_a_deterministic_crate_may_see_the_world() {
        let module = "#[cfg(test)]\nmod tests {\n    use std::env;\n    use std::time::Instant;\n}\n";
        let file = "crates/chronon-vsr/src/choice/tests.rs";
        assert_eq!(deterministic_words(&Tree::of(&[(VSR, module), (file, "use std::env::var;")])), []);
    }

    #[test]
    fn the_simulator_may_use_threads_but_no_hash_map() {
        let sim = "crates/chronon-sim/src/world.rs";
        assert_eq!(deterministic_words(&Tree::of(&[(sim, "use std::thread;")])), []);
        assert_eq!(deterministic_words(&Tree::of(&[(sim, "use std::collections::HashMap;")])).len(), 1);
    }

    #[test]
    fn what_is_left_half_done_is_found() {
        for line in [
            "todo!()",
            "unimplemented!(\"x\")",
            "dbg!(x);",
            "#[ignore = \"slow\"]",
            "#[cfg_attr(miri, ignore)]",
        ] {
            assert_eq!(left_overs(&Tree::of(&[("a.rs", line)])).len(), 1, "{line}");
        }
        assert_eq!(left_overs(&Tree::of(&[("a.rs", "// todo!() and #[ignore]\nlet todo = \"dbg!(\";")])), []);
    }

    #[test]
    fn a_test_that_sleeps_must_say_why() {
        let sleep = "std::thread::sleep(d);";
        assert_eq!(left_overs(&Tree::of(&[("x/tests/a.rs", sleep)])).len(), 1);
        let module = format!("#[cfg(test)]\nmod tests {{\n    tokio::time::sleep(d).await;\n}}\n{sleep}");
        assert_eq!(left_overs(&Tree::of(&[("x/src/a.rs", &module)])).len(), 1);
        let reasoned = format!("// sleeps: the pause is what is tested\n{sleep}");
        assert_eq!(left_overs(&Tree::of(&[("x/tests/a.rs", &reasoned)])), []);
    }

    #[test]
    fn a_file_without_a_doc_is_found() {
        assert_eq!(
            module_docs(&Tree::of(&[("a.rs", "// A comment.\n"), ("b.rs", "//! A noun.\n")])).len(),
            1
        );
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(lengths(&Tree::of(&[("a.rs", &"\n".repeat(LINES_MAX))])), []);
        assert_eq!(lengths(&Tree::of(&[("a.rs", &"\n".repeat(LINES_MAX + 1))])).len(), 1);
    }

    #[test]
    fn a_missing_crate_attribute_is_found() {
        assert_eq!(crate_attributes(&Tree::of(&[(VSR, "//! A.\n#![no_std]\n")])).len(), 1);
        assert_eq!(crate_attributes(&Tree::of(&[(VSR, "#![no_std]\n#![forbid(unsafe_code)]\n")])), []);
    }
}
