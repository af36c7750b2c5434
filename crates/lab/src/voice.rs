//! How the lab says what it is doing while it works: one moving line on a terminal, plain lines elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::time;

/// Tells the steps of some work, each with its time once it is done.
pub(crate) struct Voice<'a> {
    lines: &'a mut dyn Write,
    spinner: Option<ProgressBar>,
    step: Option<(String, Instant)>,
}

impl<'a> Voice<'a> {
    /// A voice that writes to `lines`; with `terminal` the step at work also moves on standard error.
    pub(crate) fn new(lines: &'a mut dyn Write, terminal: bool) -> Self {
        let spinner = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::default_spinner().tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Self { lines, spinner, step: None }
    }

    /// Begins a step, which ends the one before.
    pub(crate) fn step(&mut self, text: &str) {
        self.end_step();
        if let Some(spinner) = &self.spinner {
            spinner.set_message(text.to_owned());
        }
        self.step = Some((text.to_owned(), Instant::now()));
    }

    /// Ends the step at work.
    pub(crate) fn end_step(&mut self) {
        if let Some((text, since)) = self.step.take() {
            self.say(&format!("· {text} ({})", time(since.elapsed())));
        }
    }

    /// Writes text on lines of its own.
    pub(crate) fn say(&mut self, text: &str) {
        let Self { lines, spinner, .. } = self;
        let mut write = || {
            // A reader that went away stops nobody from working on.
            let _ = writeln!(lines, "{}", text.trim_end());
            let _ = lines.flush();
        };
        match spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Voice<'_> {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
