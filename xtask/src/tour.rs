//! `cargo xtask tour`: the outputs in `docs/tour.md`, made by the commands that stand above them.
//!
//! In a block ```` ```console ```` a line that begins with `$ ` is a command, and the lines below it are what it prints. All of them run
//! in order, in one network namespace of their own, with the release binary as `flannel`. [`plain`] leaves out what differs from
//! run to run.

mod plain;

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{output, program, root, say};
use crate::{binary, packages};
use plain::Plain;

const DOCUMENT: &str = "docs/tour.md";
/// What begins a block, a command in it, and ends the block.
const BLOCK: &str = "```console";
const PROMPT: &str = "$ ";
const END: &str = "```";
/// Divides the outputs of the commands.
const MARK: &str = "-- what the next command prints --";

/// Writes the document anew.
pub(crate) fn renew() -> Result<()> {
    say("tour: builds the release binary, takes the tour in a lab of its own, writes docs/tour.md; installs nothing");
    let current = current()?;
    fs::write(root().join(DOCUMENT), current).with_context(|| format!("cannot write {DOCUMENT}"))
}

/// Fails, with the difference, if the document says what the commands do not.
pub(crate) fn check() -> Result<()> {
    say("tour: builds the release binary, takes the tour in a lab of its own; installs nothing");
    let current = current()?;
    if current == document()? {
        return Ok(());
    }
    let beside = binary::target_folder()?.join("tour.md");
    fs::write(&beside, current).with_context(|| format!("cannot write {}", beside.display()))?;
    let _differs = program("diff", &["-u", DOCUMENT, &beside.display().to_string()]).status();
    bail!("{DOCUMENT} is out of date: `cargo xtask tour` writes it anew")
}

fn document() -> Result<String> {
    fs::read_to_string(root().join(DOCUMENT)).context(DOCUMENT)
}

/// The document as it should be.
fn current() -> Result<String> {
    let text = document()?;
    let commands: Vec<&str> = commands(&text).collect();
    let mut plain = Plain::default();
    let outputs = take(&commands)?;
    let outputs: Vec<String> =
        commands.iter().zip(&outputs).map(|(command, output)| plain.output(command, output)).collect();
    Ok(with_outputs(&text, &outputs))
}

/// The commands in the blocks of a text.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        inside = line == BLOCK || inside && line != END;
        line.strip_prefix(PROMPT).filter(|_| inside)
    })
}

/// The same text with an output below each command, in place of what stood there.
fn with_outputs(text: &str, outputs: &[String]) -> String {
    let (mut result, mut inside, mut outputs) = (String::new(), false, outputs.iter());
    for line in text.lines() {
        inside = line == BLOCK || inside && line != END;
        let command = inside && line.starts_with(PROMPT);
        if !inside || command || line == BLOCK {
            result.extend([line, "\n"]);
        }
        if command {
            result.extend(outputs.next().map(String::as_str));
        }
    }
    result
}

/// Runs the commands one after the other and returns what each prints.
fn take(commands: &[&str]) -> Result<Vec<String>> {
    ensure!(packages::user_namespaces(), "the tour needs user namespaces: `cargo verify` says how to allow them");
    let binary = binary::build()?;
    let folder = binary.parent().context("the release binary is in no folder")?;
    let steps = commands.iter().map(|command| format!("{command}\necho '{MARK}'\n"));
    let script = format!("exec 2>&1\n{}flannel lab down >/dev/null 2>&1; true\n", steps.collect::<String>());
    let mut tour = Command::new("unshare");
    tour.args(["--user", "--map-root-user", "--net", "sh", "-c", &script]).current_dir(root()).stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap_or_default();
    tour.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", folder.display()));
    let said = output(&mut tour)?;
    let outputs: Vec<String> = said.split(&format!("{MARK}\n")).map(str::to_owned).take(commands.len()).collect();
    ensure!(outputs.len() == commands.len(), "the tour ended early:\n{said}");
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "words\n```console\n$ one\nold\n$ two\n```\n$ not this\n```\n$ nor this\n```\n```console\n$ three\n```\n";

    #[test]
    fn commands_are_those_in_blocks() {
        assert_eq!(commands(TEXT).collect::<Vec<_>>(), ["one", "two", "three"]);
    }

    #[test]
    fn outputs_replace_what_stood_there() {
        let outputs = ["1\n", "2\n2\n", ""].map(str::to_owned);
        let expected = TEXT.replace("old\n$ two\n", "1\n$ two\n2\n2\n");
        assert_eq!(with_outputs(TEXT, &outputs), expected);
        assert_eq!(with_outputs(&expected, &outputs), expected);
    }
}
