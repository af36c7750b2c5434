//! Kernel parameters under `/proc/sys`: read and written by path, with errors in the words of `sysctl`.
//!
//! Those of `net` belong to the network namespace of the calling thread.

use std::fmt;
use std::io;
use std::path::Path;

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} sysctl {name}{}", hint(.source))]
pub struct SysctlError {
    action: Action,
    name: String,
    source: io::Error,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Read,
    Set,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Set => "set",
        })
    }
}

impl SysctlError {
    /// The kernel has no such parameter: the device is gone, or the module is not loaded.
    pub fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// This process may not write it: `/proc/sys` is read-only, as in containers that are not privileged, or belongs to root.
    pub fn is_denied(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
    }
}

/// What a person can do about it.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::ReadOnlyFilesystem => ": /proc/sys is mounted read-only (is the container privileged?)",
        io::ErrorKind::PermissionDenied => ": not permitted (CAP_NET_ADMIN is needed)",
        io::ErrorKind::NotFound => ": the kernel has none of that name",
        _ => "",
    }
}

/// Reads a parameter, without its final line break. The path is below `/proc/sys`: a device's name may hold dots, so
/// `net/ipv6/conf/flannel.1/accept_ra`.
pub fn read(path: &str) -> Result<String, SysctlError> {
    std::fs::read_to_string(file(path)).map(|text| text.trim_end().to_owned()).map_err(|source| SysctlError {
        action: Action::Read,
        name: path.replace('/', "."),
        source,
    })
}

/// Sets a parameter. One that has the value already is not written, so a read-only `/proc/sys` that is right is no error.
pub fn set(path: &str, value: &str) -> Result<(), SysctlError> {
    if has(path, value) { Ok(()) } else { write(path, value) }
}

/// Sets a parameter that most likely has another value, as those of a link just made. Like [`set`] it is content with a
/// read-only `/proc/sys` that is right, but looks only then.
pub fn set_anew(path: &str, value: &str) -> Result<(), SysctlError> {
    write(path, value).or_else(|error| if has(path, value) { Ok(()) } else { Err(error) })
}

fn has(path: &str, value: &str) -> bool {
    read(path).is_ok_and(|now| now == value)
}

fn write(path: &str, value: &str) -> Result<(), SysctlError> {
    std::fs::write(file(path), value).map_err(|source| SysctlError {
        action: Action::Set,
        name: format!("{}={value}", path.replace('/', ".")),
        source,
    })
}

fn file(path: &str) -> impl AsRef<Path> {
    format!("/proc/sys/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_parameter_is_named() {
        let error = read("net/ipv6/conf/no-such-device/accept_ra").unwrap_err();
        assert!(error.is_absent());
        let text = "cannot read sysctl net.ipv6.conf.no-such-device.accept_ra: the kernel has none of that name";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_parameter_reads_without_line_break() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
        for set in [set, set_anew] {
            assert!(set("kernel/ostype", "Linux").is_ok(), "what is right need not be written");
            assert!(set("kernel/ostype", "Hurd").unwrap_err().is_denied());
        }
    }
}
