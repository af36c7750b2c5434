//! Runs one of the few programs that flannel cannot do without (iptables, modprobe), bounded in time.
//!
//! A [`Program`] is an absolute path found in `PATH`; [`Program::run`] gives it standard input and waits for its end, at
//! most a limit. No shell, no search at run time, nothing left running, not even when the caller is killed.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal};

/// Where system programs are when `PATH` does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An executable file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    path: PathBuf,
}

/// Why a program did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It could not be started or waited for.
    #[error("cannot run {}: {cause}", path.display())]
    Start { path: PathBuf, cause: io::Error },
    /// It was killed because it took longer than it may.
    #[error("{} did not end within {limit:?} and was killed", path.display())]
    Late { path: PathBuf, limit: Duration },
    /// It ended with a failure; `stderr` is what it said, on one line.
    #[error("{} failed ({status}): {stderr}", path.display())]
    Failed { path: PathBuf, status: ExitStatus, stderr: String },
}

impl Program {
    /// The first executable file of that name in `PATH` (or in the usual places if `PATH` is not set).
    pub(crate) fn find(name: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| USUAL_PATH.into());
        std::env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(name))
            .find(|file| is_executable(file))
            .map(|path| Self { path })
    }

    /// Runs the program to its end, with `input` as its standard input. Answers with its standard output, in which what is
    /// not UTF-8 is replaced.
    pub(crate) fn run(&self, arguments: &[&str], input: &str, limit: Duration) -> Result<String, RunError> {
        let start = |cause| RunError::Start { path: self.path.clone(), cause };
        let stdout = memory(b"").map_err(start)?;
        let stderr = memory(b"").map_err(start)?;
        let mut child = memory(input.as_bytes())
            .and_then(|stdin| spawn(&self.path, arguments, [&stdin, &stdout, &stderr]))
            .map_err(start)?;
        let ended = wait(&mut child, limit).map_err(start)?;
        let status = ended.ok_or_else(|| RunError::Late { path: self.path.clone(), limit })?;
        if status.success() {
            return contents(stdout).map_err(start);
        }
        Err(RunError::Failed { path: self.path.clone(), status, stderr: gist(&contents(stderr).map_err(start)?) })
    }
}

/// The first lines of what a program complained about, as one line. Warnings are not why it failed.
fn gist(stderr: &str) -> String {
    const LINES: usize = 4;
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Warning"));
    lines.take(LINES).collect::<Vec<_>>().join(" / ")
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A file in memory. Unlike a pipe it takes any amount, so that nobody has to read while the program runs.
fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("flannel", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

fn contents(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn spawn(path: &Path, arguments: &[&str], [stdin, stdout, stderr]: [&File; 3]) -> io::Result<Child> {
    let stdio = |file: &File| Ok::<_, io::Error>(Stdio::from(OwnedFd::from(file.try_clone()?)));
    let mut command = Command::new(path);
    command.args(arguments).stdin(stdio(stdin)?).stdout(stdio(stdout)?).stderr(stdio(stderr)?);
    let caller = getpid();
    // SAFETY: between fork and exec this makes two system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || end_with(caller)) };
    command.spawn()
}

/// The program is killed when its caller is: what it would write later, nobody would know of and take back.
fn end_with(caller: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(caller) { Ok(()) } else { Err(rustix::io::Errno::CANCELED.into()) }
}

/// Waits for the end; kills the child after `limit` and then answers `None`. The child is reaped in every case.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    match ends_within(child, limit) {
        Ok(true) => child.wait().map(Some),
        late_or_error => {
            child.kill()?;
            child.wait()?;
            late_or_error.map(|_| None)
        }
    }
}

fn ends_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn input_and_output_of_any_size_pass() {
        let input = "0123456789abcdef".repeat(100_000);
        let output = Program::find("cat").unwrap().run(&[], &input, LIMIT).unwrap();
        assert_eq!(output, input);
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = Program::find("cat").unwrap().run(&["/nowhere", "/none"], "", LIMIT).unwrap_err().to_string();
        assert!(error.contains("exit status: 1") && error.contains("/nowhere"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn many_complaints_become_a_few_on_one_line() {
        assert_eq!(gist("Warning: x\nfirst\n\n second\n3\n4\n5\n"), "first / second / 3 / 4");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let before = Instant::now();
        let error = Program::find("sleep").unwrap().run(&["600"], "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, RunError::Late { .. }), "{error}");
        assert!(before.elapsed() < LIMIT);
    }

    #[test]
    fn a_program_that_is_not_there_is_not_found() {
        assert_eq!(Program::find("no-such-program-anywhere"), None);
    }
}
