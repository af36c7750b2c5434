//! The daemon's log: where it goes, how much of it there is, and a bound on lines about changes.
//!
//! A line is `TIME LEVEL message` on standard error, the time in UTC as RFC 3339 writes it. `-v=0` logs what changes and
//! what is wrong, `-v=1` adds why (debug), `-v=2` and up everything (trace).

use std::io;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use crate::flags::Flags;

/// Sends the process's log to standard error from now on, and begins it with the flags given. Fails if the log goes
/// somewhere already.
pub fn start(flags: &Flags) -> Result<(), SetGlobalDefaultError> {
    open(flags.verbosity)?;
    tracing::info!("flanneld {} starts with {}", env!("CARGO_PKG_VERSION"), flags.given);
    if let Some(position) = flags.ignored_from {
        let hint = "flags end at the first word that is none; to switch one off, write `-flag=false`";
        tracing::warn!("word {position} of the command line and all after it have no effect: {hint}");
    }
    Ok(())
}

/// Sends the process's log to standard error from now on. Fails if the log goes somewhere already.
pub fn open(verbosity: u32) -> Result<(), SetGlobalDefaultError> {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level(verbosity))
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .finish();
    tracing::subscriber::set_global_default(subscriber)
}

/// The time as the log writes it.
pub fn now() -> String {
    let mut text = String::new();
    // It writes to a string, which takes everything.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Lines about changes that are written within one second; the rest is counted.
const LINES: u32 = 10;

/// Keeps the log short when very much changes at once: ten lines a second, then a count.
///
/// Ask [`Changes::admit`] before each line, and write the number that [`Changes::withheld`] gives, asked at
/// [`Changes::due`] or at any later time.
#[derive(Debug, Default)]
pub struct Changes {
    since: Option<Instant>,
    written: u32,
    held: u64,
}

impl Changes {
    /// Whether a line may be written now. If not, it is counted.
    pub fn admit(&mut self, now: Instant) -> bool {
        if self.held == 0 && self.due().is_none_or(|due| due <= now) {
            *self = Self { since: Some(now), written: 0, held: 0 };
        }
        let admitted = self.written < LINES;
        if admitted {
            self.written += 1;
        } else {
            self.held += 1;
        }
        admitted
    }

    /// Logs a change if a line may be written now.
    pub fn line(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if self.admit(now) {
            tracing::info!("{}", text());
        }
    }

    /// Logs something wrong if a line may be written now.
    pub fn warn(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if self.admit(now) {
            tracing::warn!("{}", text());
        }
    }

    /// Logs how many lines were held back, once their second is over.
    pub fn flush(&mut self, now: Instant) {
        if let Some(held) = self.withheld(now) {
            tracing::info!("{held} more changes within a second, not shown");
        }
    }

    /// When to call [`Changes::flush`], if lines are held back.
    pub fn pending(&self) -> Option<Instant> {
        self.due().filter(|_| self.held > 0)
    }

    /// How many lines were held back, once their second is over. The next second then begins.
    pub fn withheld(&mut self, now: Instant) -> Option<u64> {
        (self.held > 0 && self.due()? <= now).then(|| std::mem::take(self).held)
    }

    /// When the second of the last line ends.
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_then_a_count() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut changes = Changes::default();
        let written = (0..5_000).filter(|n| changes.admit(at(n / 10))).count();
        assert_eq!(written, 10);
        assert_eq!(changes.withheld(at(999)), None, "its second is not over");
        assert_eq!(changes.due(), Some(at(1000)));
        assert_eq!(changes.withheld(at(1000)), Some(4_990));
        assert_eq!(changes.withheld(at(1001)), None, "told once");
        assert!(changes.admit(at(1001)));
    }

    #[test]
    fn slow_changes_are_all_written() {
        let start = Instant::now();
        let mut changes = Changes::default();
        for n in 0..100 {
            assert!(changes.admit(start + Duration::from_millis(100 * n)), "line {n}");
        }
        assert_eq!(changes.withheld(start + Duration::from_mins(1)), None);
    }

    #[test]
    fn a_count_is_not_lost_when_nobody_asked_in_time() {
        let start = Instant::now();
        let mut changes = Changes::default();
        (0..20).for_each(|_| {
            changes.admit(start);
        });
        let late = start + Duration::from_secs(5);
        assert!(!changes.admit(late), "the count comes before new lines");
        assert_eq!(changes.withheld(late), Some(11));
        assert!(changes.admit(late));
    }

    #[test]
    fn v_raises_the_level() {
        assert_eq!([0, 1, 2, 10].map(level), {
            use LevelFilter as Level;
            [Level::INFO, Level::DEBUG, Level::TRACE, Level::TRACE]
        });
    }
}
