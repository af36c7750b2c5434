//! How people are told that something failed: once, in one line, and what to do in a second.

use std::error::Error;

/// Prints `error: what failed: why` and, if there is something to do, `hint: what`.
pub(crate) fn error(error: &dyn Error, hint: Option<&str>) {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    line("error", &chain.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    if let Some(hint) = hint {
        line("hint", hint);
    }
}

/// Prints text as it is.
#[allow(clippy::print_stderr)]
pub(crate) fn text(text: &str) {
    eprint!("{text}");
}

/// Prints a label and what it is about, which stays on its line whatever it holds.
fn line(label: &str, what: &str) {
    let what: Vec<&str> = what.lines().map(str::trim).collect();
    text(&format!("{label}: {}\n", what.join(" ")));
}
