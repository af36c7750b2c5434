//! What can go wrong with a netlink request, in classes that callers act on.

use std::fmt;

use rustix::io::Errno;

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    explanation: Option<Box<str>>,
}

impl Error {
    /// An error of the kernel: its number, and its extended acknowledgement if it sent one.
    pub(super) fn answered(errno: Errno, explanation: Option<&str>) -> Self {
        Self { errno, explanation: explanation.filter(|text| !text.is_empty()).map(Into::into) }
    }

    /// An error with a text of ours.
    pub fn new(errno: Errno, explanation: &str) -> Self {
        Self::answered(errno, Some(explanation))
    }

    /// The kernel's error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The object, or the device or namespace it is on, is not there: what a removal wanted.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno, Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL | Errno::NXIO)
    }

    /// Something is there under that name already.
    pub fn is_present(&self) -> bool {
        matches!(self.errno, Errno::EXIST | Errno::ADDRINUSE)
    }

    /// The same request may succeed when tried again.
    pub fn is_transient(&self) -> bool {
        matches!(self.errno, Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::NOMEM)
    }

    /// The kernel has no such object, attribute or operation built in or loaded.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT)
    }

    /// Notices were lost: what is known of the kernel must be read again.
    pub fn is_overrun(&self) -> bool {
        self.errno == Errno::NOBUFS
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.explanation {
            Some(text) => write!(f, "{} ({})", text.trim_end_matches('.'), words(self.errno)),
            None => f.write_str(&words(self.errno)),
        }
    }
}

/// The C library's words for an error number, without the number.
fn words(errno: Errno) -> String {
    let text = errno.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self { errno, explanation: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_the_kernel_said() {
        let told = Error::answered(Errno::INVAL, Some("Nexthop has invalid gateway."));
        assert_eq!(told.to_string(), "Nexthop has invalid gateway (Invalid argument)");
        assert_eq!(Error::from(Errno::NODEV).to_string(), "No such device");
    }

    #[test]
    fn classes_are_apart() {
        for errno in [Errno::NOENT, Errno::EXIST, Errno::BUSY, Errno::OPNOTSUPP, Errno::PERM] {
            let error = Error::from(errno);
            let classes = [error.is_absent(), error.is_present(), error.is_transient(), error.is_unsupported()];
            assert!(classes.iter().filter(|class| **class).count() <= 1, "{error}");
        }
    }
}
