//! One call of a plugin that is another program: bounded in what it may say and, where the environment says so, in time.
//!
//! Surface: [`run`]. What it printed means nothing here.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::protocol::conf::LIMIT;

/// How much of standard error is kept, in bytes.
const SAID: usize = 4096;

/// How a program ended.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    /// Its standard output.
    pub(super) stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub(super) stderr: Vec<u8>,
}

/// Runs a program with these variables and this standard input to its end. One that says too much, or takes longer than the limit, is
/// killed with all it has started in its group.
pub(super) fn run(
    program: &Path,
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    input: &[u8],
    limit: Option<Duration>,
) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.env_clear().envs(variables).stdin(standard_input(input)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    if limit.is_some() {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let listened = listen(&mut child, limit);
    if listened.is_err() {
        _ = limit.and_then(|_| Pid::from_raw(child.id().cast_signed())).map(|id| kill_process_group(id, Signal::KILL));
        _ = child.kill();
    }
    let status = child.wait()?;
    let [stdout, stderr] = listened?;
    Ok(Output { status, stdout, stderr })
}

/// A file in memory: however long the configuration is, nobody waits for the other to read.
fn standard_input(input: &[u8]) -> io::Result<Stdio> {
    let mut file = File::from(memfd_create(c"conf", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

/// One of the two pipes from a program, and what came through it.
struct Pipe<R> {
    source: Option<R>,
    content: Vec<u8>,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(source: Option<R>) -> Self {
        Self { source, content: Vec::new() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// Takes what has come, keeping so much of it at most.
    fn take(&mut self, most: usize) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let Some(source) = &mut self.source else { return Ok(()) };
        match source.read(&mut buffer)? {
            0 => self.source = None,
            count => self.content.extend(&buffer[..count.min(most - self.content.len())]),
        }
        Ok(())
    }
}

/// Takes what a program says until it says no more, and with a limit until it has ended.
fn listen(child: &mut Child, limit: Option<Duration>) -> io::Result<[Vec<u8>; 2]> {
    let begun = Instant::now();
    let end: Option<OwnedFd> =
        limit.and(Pid::from_raw(child.id().cast_signed())).and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
    let (mut out, mut err) = (Pipe::new(child.stdout.take()), Pipe::new(child.stderr.take()));
    let mut ended = end.is_none();
    while out.source.is_some() || err.source.is_some() || !ended {
        let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        let waits = [out.fd(), err.fd(), end.as_ref().filter(|_| !ended).map(AsFd::as_fd)];
        let ready = ready(waits, left)?;
        if let Some(limit) = limit.filter(|_| ready == [false; 3]) {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("it did not end within {limit:?}")));
        }
        if ready[0] {
            out.take(LIMIT as usize + 1)?;
        }
        if ready[1] {
            err.take(SAID)?;
        }
        ended |= ready[2];
        if out.content.len() as u64 > LIMIT {
            return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it printed more than {LIMIT} bytes")));
        }
    }
    Ok([out.content, err.content])
}

/// Which of these have something to say, after a wait for the first.
fn ready(waits: [Option<BorrowedFd<'_>>; 3], left: Option<Duration>) -> io::Result<[bool; 3]> {
    let mut fds: Vec<_> = waits.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    retry_on_intr(|| poll(&mut fds, left.as_ref()))?;
    let mut told = fds.iter().map(|fd| !fd.revents().is_empty());
    Ok(waits.map(|wait| wait.is_some() && told.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Option<Duration>) -> Result<(String, String), String> {
        let variables = std::env::vars_os();
        let input = format!("{script}\n");
        let output =
            run(Path::new("/bin/sh"), variables, input.as_bytes(), limit).map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok((text(output.stdout), text(output.stderr)))
    }

    #[test]
    fn what_a_program_says_is_bounded() {
        assert_eq!(shell("printf out; printf err >&2", None).unwrap(), ("out".into(), "err".into()));
        assert_eq!(shell("head -c 9999 /dev/zero | tr '\\0' x >&2", None).unwrap().1.len(), SAID);
        assert_eq!(shell("yes", None).unwrap_err(), "it printed more than 1048576 bytes");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_it_started() {
        let limit = Some(Duration::from_millis(200));
        for script in ["sleep 1000", "sleep 1000 & wait", "exec >&- 2>&-; sleep 1000"] {
            assert_eq!(shell(script, limit).unwrap_err(), "it did not end within 200ms", "{script}");
        }
        assert_eq!(shell("printf out", Some(Duration::from_mins(1))).unwrap().0, "out");
        assert!(run(Path::new("/none"), [], b"", limit).is_err());
    }
}
