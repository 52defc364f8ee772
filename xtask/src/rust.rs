//! Just enough of Rust's lexical structure to look at code without its comments and strings.

/// Code with comments, strings and characters blanked out: the same lines, the same columns.
pub(crate) struct Code {
    lines: Vec<String>,
    test: Vec<bool>,
}

impl Code {
    /// The code of a source file.
    pub(crate) fn of(source: &str) -> Code {
        let blanked = blank(source);
        let lines: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let test = test_lines(&lines);
        Code { lines, test }
    }

    /// Lines from 1, each with whether it is inside a `#[cfg(test)]` module.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        self.lines
            .iter()
            .zip(&self.test)
            .enumerate()
            .map(|(index, (line, test))| (index + 1, line.as_str(), *test))
    }

    /// The names of all functions that carry a test attribute.
    pub(crate) fn tests(&self) -> Vec<&str> {
        let mut names = Vec::new();
        let mut attribute = false;
        for line in &self.lines {
            let line = line.trim();
            if line.starts_with("#[") {
                // `#[test]`, `#[tokio::test]`, `#[tokio::test(flavor = "…")]`
                let inside = line.trim_start_matches("#[");
                let path: &str = inside.split(['(', ']', ' ']).next().unwrap_or_default();
                attribute |= path == "test" || path.ends_with("::test");
            } else if let Some(at) = find_word(line, "fn") {
                if attribute {
                    let name = line[at + 2..].trim_start();
                    names.push(name.split(['(', '<']).next().unwrap_or_default());
                }
                attribute = false;
            }
        }
        names
    }
}

/// Where `word` stands in `line` as a word of its own: no part of a longer name at either end.
pub(crate) fn find_word(line: &str, word: &str) -> Option<usize> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut from = 0;
    while let Some(found) = line[from..].find(word) {
        let at = from + found;
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joined_before = word.starts_with(is_name) && before.is_some_and(is_name);
        let joined_after = word.ends_with(is_name) && after.is_some_and(is_name);
        if !joined_before && !joined_after {
            return Some(at);
        }
        from = at + word.len();
    }
    None
}

fn test_lines(lines: &[String]) -> Vec<bool> {
    let mut test = vec![false; lines.len()];
    let mut index = 0;
    while index < lines.len() {
        let line = lines[index].trim_start();
        let only_in_tests =
            line.starts_with("#[cfg(") && !line.contains("not(") && find_word(line, "test").is_some();
        if !only_in_tests {
            index += 1;
            continue;
        }
        // To the end of the item that the attribute stands before: its matching brace, or a `;` before any.
        let mut depth = 0_i64;
        let mut end = index;
        'item: for (offset, line) in lines[index..].iter().enumerate() {
            end = index + offset;
            for c in line.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => {
                        depth -= 1;
                        if depth == 0 {
                            break 'item;
                        }
                    }
                    ';' if depth == 0 => break 'item,
                    _ => {}
                }
            }
        }
        test[index..=end].fill(true);
        index = end + 1;
    }
    test
}

fn blank(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let name_before = out.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let length = literal_length(rest, name_before);
        match length {
            Some(length) => {
                out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = &rest[length..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

/// How long the comment, string or character is that `rest` starts with.
fn literal_length(rest: &str, name_before: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_length(rest));
    }
    if rest.starts_with('"') {
        return Some(string_length(rest));
    }
    if rest.starts_with('\'') {
        return character_length(rest);
    }
    if name_before {
        return None;
    }
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let close = format!("\"{}", "#".repeat(hashes));
    let open = prefix.len() + hashes + 1;
    Some(rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len()))
}

fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// None for a lifetime.
fn character_length(rest: &str) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        let end = characters.skip(1).find(|(_, c)| *c == '\'')?;
        return Some(end.0 + 1);
    }
    let (end, second) = characters.next()?;
    (second == '\'').then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blanked_and_code_stays() {
        let source = "a /* b /* c */ d */ e \"f\\\"g\" h // i\nj r#\"k\"l\"# m 'n' '\\'' o<'p> b\"q\"\n";
        let code = blank(source);
        let words: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(words, ["a", "e", "h", "j", "m", "o<'p>", "b"]);
        assert_eq!(code.lines().count(), source.lines().count());
    }

    #[test]
    fn a_word_is_not_found_inside_a_longer_one() {
        assert_eq!(find_word("operand::x", "rand::"), None);
        assert_eq!(find_word("use rand::x", "rand::"), Some(4));
        assert_eq!(find_word("HashMapLike HashMap", "HashMap"), Some(12));
    }

    #[test]
    fn lines_of_a_test_module_are_told_apart() {
        let code = Code::of("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { if x {} }\n}\nfn c() {}\n");
        let test: Vec<bool> = code.lines().map(|(_, _, test)| test).collect();
        assert_eq!(test, [false, true, true, true, true, false]);
    }

    #[test]
    fn only_functions_with_a_test_attribute_are_tests() {
        let code = Code::of(
            "#[test]\nfn one() {}\nfn two() {}\n#[tokio::test(flavor = \"x\")]\nasync fn three() {}\n#[cfg(test)]\nfn four() {}\n// #[test]\nfn five() {}",
        );
        assert_eq!(code.tests(), ["one", "three"]);
    }
}
