//! A program that runs on: started, halted, ended, and what it said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{ClusterError, Doing};
use crate::place::Place;

/// How many lines of a log an error quotes.
const LAST_WORDS: usize = 8;

/// A program with its arguments, running or not. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    place: Place,
    log: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Not yet running; what it says goes to `NAME.log` in the folder.
    pub(crate) fn new(
        name: &'static str,
        program: PathBuf,
        place: Place,
        folder: &Path,
        arguments: Vec<String>,
    ) -> Self {
        Self { name, program, arguments, place, log: folder.join(format!("{name}.log")), child: None }
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self) -> Result<(), ClusterError> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log).on("open", &self.log)?;
        let errors = log.try_clone().on("open", &self.log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
        self.child = Some(self.place.spawn(command)?);
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    pub(crate) fn kill(&mut self) -> Result<(), ClusterError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).doing(|| format!("end {}", self.name)).map(drop)
    }

    /// Halts it (SIGSTOP), or lets it go on (SIGCONT).
    pub(crate) fn halt(&self, halted: bool) -> Result<(), ClusterError> {
        let signal = if halted { Signal::STOP } else { Signal::CONT };
        let Some(child) = &self.child else { return Ok(()) };
        kill_process(Pid::from_child(child), signal).doing(|| format!("signal {}", self.name))
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// An error that quotes its last words.
    pub(crate) fn failed(&self, why: impl Into<String>) -> ClusterError {
        ClusterError::Program { program: self.name.to_owned(), why: why.into(), log: self.last_words() }
    }

    /// The end of what it said.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().rev().take(LAST_WORDS).collect();
        lines.reverse();
        lines.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.kill();
    }
}
