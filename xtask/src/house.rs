//! The rules of the house that no lint knows, over the text of the Rust sources (see CONTRIBUTING.md).

use anyhow::{Context, Result, ensure};

use crate::run::{files, root};

/// The folders that may hold `unsafe`.
const UNSAFE_ROOMS: [&str; 2] = ["crates/kernel/", "crates/tunnel/"];
/// Names that say nothing of what a module is for.
const VAGUE_MODULES: [&str; 6] = ["common", "utils", "util", "shared", "helpers", "misc"];
/// Lines of a file before its tests.
const FILE_LINES: usize = 600;
/// Lines of a function.
const FUNCTION_LINES: usize = 80;

/// Checks every source file of the crates.
pub(crate) fn check() -> Result<()> {
    let mut found = Vec::new();
    for name in files(&[".rs"])? {
        let text = std::fs::read_to_string(root().join(&name)).with_context(|| name.clone())?;
        found.extend(breaches(&name, &text));
    }
    ensure!(found.is_empty(), "against the rules of CONTRIBUTING.md:\n  {}", found.join("\n  "));
    Ok(())
}

/// What a file breaks, each as `file:line: what`.
fn breaches(name: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = name.contains("/tests/") || name.ends_with("/tests.rs");
    let production = lines.iter().position(|line| *line == "#[cfg(test)]" || is_tests).unwrap_or(lines.len());
    let mut found = of_file(name, text, production);
    let code = lines[..production].iter().zip(1..);
    found.extend(code.filter_map(|(line, at)| Some(format!("{name}:{at}: {}", of_line(name, line)?))));
    let long = functions(&lines[..production]).into_iter().filter(|function| function.lines > FUNCTION_LINES);
    found.extend(long.map(|f| format!("{name}:{}: fn {} has {} lines of {FUNCTION_LINES}", f.at, f.name, f.lines)));
    found
}

fn of_file(name: &str, text: &str, production: usize) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{name}:1: does not open with `//!` and its one job"));
    }
    if production > FILE_LINES {
        found.push(format!("{name}: {production} lines before its tests, of {FILE_LINES}"));
    }
    let mut rooms = name.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
    if rooms.any(|room| VAGUE_MODULES.contains(&room)) {
        found.push(format!("{name}: its name says nothing of its job"));
    }
    found
}

fn of_line(name: &str, line: &str) -> Option<String> {
    let code = line.split("//").next().unwrap_or_default();
    let after = code.split_once("unsafe ").map_or("", |(_, after)| after);
    let is_unsafe = ["{", "fn ", "impl", "extern"].iter().any(|next| after.starts_with(next));
    if is_unsafe && !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
        return Some("unsafe outside kernel and tunnel".into());
    }
    let comment = line.split_once("//").map_or("", |(_, comment)| comment);
    let marker = ["TODO", "FIXME", "XXX"].into_iter().find(|marker| comment.contains(marker));
    if let Some(marker) = marker {
        return Some(format!("{marker} in a comment: write an issue"));
    }
    let function = function_name(line)?;
    function
        .split('_')
        .any(|word| matches!(word, "v4" | "v6" | "ipv4" | "ipv6"))
        .then(|| format!("fn {function} is for one address family: write it for both (`Family`, `Dual<T>`)"))
}

struct Function<'a> {
    name: &'a str,
    at: usize,
    lines: usize,
}

/// The functions of a formatted text: each ends at the closing brace under its first letter.
fn functions<'a>(lines: &[&'a str]) -> Vec<Function<'a>> {
    let starts = lines.iter().enumerate().filter_map(|(at, line)| Some((at, function_name(line)?)));
    let end_of = |at: usize| {
        let line = lines[at];
        let close = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        lines[at..].iter().position(|line| *line == close).filter(|_| !line.ends_with([';', '}']))
    };
    starts.map(|(at, name)| Function { name, at: at + 1, lines: end_of(at).map_or(1, |end| end + 1) }).collect()
}

/// The name of the function that a line begins to define.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    before.split_whitespace().all(|word| qualifiers.contains(&word)).then_some(())?;
    after.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_breaks_nothing() {
        assert_eq!(breaches("crates/core/src/a.rs", "//! Job.\nfn a() {\n}\n"), Vec::<String>::new());
        assert_eq!(breaches("crates/kernel/src/a.rs", "//! Job.\nunsafe { a() }\n"), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_told_with_its_place() {
        for (text, expected) in [
            ("fn a() {}\n", "a.rs:1: does not open with `//!` and its one job"),
            ("//! Job.\nunsafe { a() }\n", "a.rs:2: unsafe outside kernel and tunnel"),
            ("//! Job.\na(); // TODO: b\n", "a.rs:2: TODO in a comment: write an issue"),
            (
                "//! Job.\n    pub(crate) fn route_v6(a: u8) {\n    }\n",
                "a.rs:2: fn route_v6 is for one address family: write it for both (`Family`, `Dual<T>`)",
            ),
        ] {
            assert_eq!(breaches("a.rs", text), [expected]);
        }
        assert_eq!(breaches("src/utils.rs", "//! Job.\n"), ["src/utils.rs: its name says nothing of its job"]);
    }

    #[test]
    fn lengths_are_counted_before_the_tests() {
        let long = format!("//! Job.\nfn a() {{\n{}}}\n", "    b();\n".repeat(79));
        assert_eq!(breaches("a.rs", &long), ["a.rs:2: fn a has 81 lines of 80"]);
        let tested = format!("//! Job.\n#[cfg(test)]\n{}", "a();\n".repeat(700));
        assert_eq!(breaches("a.rs", &tested), Vec::<String>::new());
        assert_eq!(breaches("crates/a/tests/b.rs", &long), Vec::<String>::new(), "tables are long");
        let file = format!("//! Job.\n{}", "a();\n".repeat(600));
        assert_eq!(breaches("a.rs", &file), ["a.rs: 601 lines before its tests, of 600"]);
    }
}
