//! Files that others may have written: read with a bound, and never waited for; and files of ours, made where nothing leads elsewhere.
//!
//! Surface: [`read`], [`create`]. What is in them is the caller's business.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a regular file of `limit` bytes at most.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // A pipe would keep its reader waiting for a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
    }
    Ok(content)
}

/// Reads a regular file of text.
pub(crate) fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not text");
    String::from_utf8(read(path, limit)?).map_err(not_text)
}

/// Makes an empty file for writing, or empties the one that is there. A symbolic link in its place is an error: who may plant one
/// may not choose what is overwritten.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options.open(path)
}

/// Opens a file for flock(2), with the same care; `make` makes it where it is absent.
pub(crate) fn open_lock(path: &Path, mode: u32, make: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(make)
        .truncate(false)
        .mode(mode)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options.open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_no_file_of_ours_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("file-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let (file, link) = (dir.join("file"), dir.join("link"));
        fs::write(&file, "abc").unwrap();
        symlink(&file, &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = |path: &Path, limit| read(path, limit).unwrap_err().to_string();
        let results = (
            read(&link, 3).unwrap(),
            [error(&file, 2), error(&dir, 9), error(&dir.join("pipe"), 9)],
            [create(&link).is_err(), open_lock(&link, 0o600, true).is_err(), create(&dir.join("new")).is_ok()],
        );
        let kept = fs::read(&file).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((results.0.as_slice(), kept.as_slice()), (&b"abc"[..], &b"abc"[..]));
        assert_eq!(results.1[..2], ["it is longer than 2 bytes", "it is not a regular file"]);
        assert_eq!((results.1[2].as_str(), results.2), ("it is not a regular file", [true; 3]));
    }
}
