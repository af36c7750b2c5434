//! What is logged while a test runs, as text.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::LevelFilter;

/// The log of this process.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Begins to log, down to a level.
    pub(crate) fn begin(level: LevelFilter) -> Self {
        let log = Self::default();
        let writer = log.clone();
        let writer = move || writer.clone();
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(writer).init();
        log
    }

    /// All since the beginning.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
