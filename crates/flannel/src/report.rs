//! How people are told that something failed: once, in one line, and what to do in a second.

use std::error::Error;
use std::process::ExitCode;

/// Prints `error: what failed: why` and, if there is something to do, `hint: what`.
pub(crate) fn error(error: &dyn Error, hint: Option<&str>) {
    line("error", &chain(error));
    if let Some(hint) = hint {
        line("hint", hint);
    }
}

/// An error and its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Prints text as it is.
#[allow(clippy::print_stderr)]
pub(crate) fn text(text: &str) {
    eprint!("{text}");
}

/// Prints what is wrong with a command line, or the help it asks for, and answers with the status.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Without a terminal to print on there is nobody to tell.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Text from outside as a part of a line: control characters, which may make a terminal do anything, as escapes.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::new(), |mut plain, c| {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        plain
    })
}

/// Prints a label and what it is about, which stays on its line whatever it holds.
fn line(label: &str, what: &str) {
    let what: Vec<&str> = what.lines().map(str::trim).collect();
    text(&format!("{label}: {}\n", plain(&what.join(" "))));
}
