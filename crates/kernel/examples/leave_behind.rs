//! Ends at once and leaves a process behind that waits on a FIFO and then writes down what it has open: for the tests of
//! `process::leave_behind`.
//!
//! `leave_behind FIFO FILE SECONDS`

use std::fs;
use std::time::Duration;

use flannel_kernel::process::leave_behind;

fn main() {
    let words: Vec<_> = std::env::args().collect();
    let [_, fifo, file, seconds] = words.as_slice() else { return };
    let limit = Duration::from_secs(seconds.parse().unwrap_or_default());
    leave_behind(limit, None, None, || {
        let _pid = fs::write(file, std::process::id().to_string());
        let _nothing = fs::read(fifo);
        let open = fs::read_dir("/proc/self/fd").into_iter().flatten().filter_map(Result::ok);
        let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        let cwd = std::env::current_dir().unwrap_or_default();
        let _done = fs::write(file, format!("{open:?} {}", cwd.display()));
    });
}
