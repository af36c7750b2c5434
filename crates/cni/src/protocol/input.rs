//! Standard input, for which a call waits no longer than it may.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A source that is read until a moment, if one is set.
#[derive(Debug)]
pub(crate) struct Input<'a, R> {
    source: &'a mut R,
    limit: Option<Duration>,
    begun: Instant,
}

impl<'a, R: Read + AsFd> Input<'a, R> {
    /// Begins to wait.
    pub(crate) fn new(source: &'a mut R, limit: Option<Duration>) -> Self {
        Self { source, limit, begun: Instant::now() }
    }
}

impl<R: Read + AsFd> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(limit) = self.limit {
            let left = limit.saturating_sub(self.begun.elapsed());
            let mut fds = [PollFd::new(&*self.source, PollFlags::IN)];
            if poll(&mut fds, Timespec::try_from(left).ok().as_ref())? == 0 {
                return Err(io::Error::new(ErrorKind::TimedOut, format!("it did not come whole within {limit:?}")));
            }
        }
        self.source.read(buffer)
    }
}
