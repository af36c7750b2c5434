//! The file `subnet.env`: read at start for what we held before, replaced atomically when it changes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flannel_core::subnet_env::{SubnetEnv, SubnetEnvError};

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SubnetFileError {
    /// The file system refuses.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is there but says nothing of use.
    #[error(transparent)]
    Content(#[from] SubnetEnvError),
}

/// Reads the file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<SubnetEnv>, SubnetFileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(SubnetEnv::parse(&path.to_string_lossy(), &text)?)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(SubnetFileError::Io { action: "read", path: path.into(), cause }),
    }
}

/// Writes the file if it says something else: a temporary file beside it, mode 0644, then a rename. A missing directory
/// is made with mode 0755. Answers with whether it had to.
pub fn write(path: &Path, content: &SubnetEnv) -> Result<bool, SubnetFileError> {
    let text = content.to_string();
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    replace(path, &text).map_err(|cause| SubnetFileError::Io { action: "write", path: path.into(), cause })?;
    Ok(true)
}

/// What is wrong with pods that were made of older content, if anything: they keep their addresses and their MTU.
pub fn outdated(old: &SubnetEnv, new: &SubnetEnv) -> Option<String> {
    let lost = old.subnets.values().find(|subnet| !new.subnets.values().any(|kept| kept == *subnet));
    let missing = || new.subnets.iter().find(|(family, _)| old.subnets.get(*family).is_none());
    match (lost, missing()) {
        (Some(subnet), _) => Some(format!("have addresses of {subnet}, which is not this node's any more")),
        (None, Some((family, _))) => Some(format!("have no {family} address")),
        (None, None) if old.mtu > new.mtu => {
            Some(format!("send packets of up to {} bytes, of which {} pass", old.mtu, new.mtu))
        }
        (None, None) => None,
    }
}

/// Whether [`write()`] could write, tried before anything else is done on the host. A missing directory is made.
pub fn check(path: &Path) -> Result<(), SubnetFileError> {
    let tried = temporary(path).and_then(|temporary| {
        write_whole(&temporary, "")?;
        fs::remove_file(&temporary)
    });
    tried.map_err(|cause| SubnetFileError::Io { action: "write", path: path.into(), cause })
}

/// A file beside the one to be written, whose directory is made if it is missing.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().filter(|_| !path.is_dir()).ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    Ok(directory.join(format!(".{name}.{}", std::process::id())))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary(path)?;
    let written = write_whole(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: what matters is the first error.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::{Dual, Mtu};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("flannel-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn content() -> SubnetEnv {
        let text =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        SubnetEnv::parse("subnet.env", text).unwrap()
    }

    #[test]
    fn the_file_and_its_directory_are_made_with_their_modes_and_read_back() {
        let folder = folder("subnet-file");
        let path = folder.join("run/subnet.env");
        assert!(read(&path).unwrap().is_none());
        assert!(write(&path, &content()).unwrap());
        assert!(!write(&path, &content()).unwrap(), "it says so already");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder.join("run"))), (0o644, 0o755));
        assert_eq!(read(&path).unwrap(), Some(content()));
        assert_eq!(fs::read_dir(folder.join("run")).unwrap().count(), 1, "no temporary file stays");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_pods_of_before_lack_is_said() {
        let with = |subnets: &str, mtu: u32| {
            let subnets = Dual::of_nets(subnets.split(' ').map(|net| net.parse().unwrap()));
            SubnetEnv { subnets, mtu: Mtu(mtu), ..content() }
        };
        let (one, both) = ("10.244.1.0/24", "10.244.1.0/24 fd00::/64");
        for (old, new, expect) in [
            (with(one, 1450), with(one, 1450), None),
            (with(one, 1350), with(one, 1450), None),
            (with(one, 1450), with(one, 1350), Some("send packets of up to 1450 bytes, of which 1350 pass")),
            (with(one, 1450), with(both, 1430), Some("have no IPv6 address")),
            (with(both, 1430), with(one, 1450), Some("have addresses of fd00::/64, which is not this node's any more")),
            (
                with(one, 1450),
                with("10.9.1.0/24", 1350),
                Some("have addresses of 10.244.1.0/24, which is not this node's any more"),
            ),
        ] {
            assert_eq!(outdated(&old, &new).as_deref(), expect);
        }
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = folder("subnet-file-error");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let path = folder.join("file/subnet.env");
        let error = write(&path, &content()).unwrap_err().to_string();
        assert_eq!(check(&path).unwrap_err().to_string(), error);
        assert!(error.starts_with("cannot write ") && error.contains("file/subnet.env"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}
