//! Work that outlives its program.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leave-behind-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let made = Command::new("mkfifo").arg(path.join("fifo")).status().unwrap();
        assert!(made.success());
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("file")
    }

    /// Runs the example, which ends although what it leaves behind waits.
    fn start(&self, seconds: u32) {
        let deps = std::env::current_exe().unwrap();
        let program = deps.parent().and_then(Path::parent).unwrap().join("examples/leave_behind");
        let mut command = Command::new(program);
        command.arg(self.0.join("fifo")).arg(self.file()).arg(seconds.to_string());
        let output = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_caller_is_done_while_the_work_goes_on_with_nothing_of_its() {
    let folder = Folder::new("work");
    folder.start(20);
    fs::OpenOptions::new().write(true).open(folder.0.join("fifo")).unwrap().write_all(b"go").unwrap();
    let said = || fs::read_to_string(folder.file()).unwrap_or_default();
    wait_until("done", || said().contains(']'));
    let said = said();
    assert!(!said.contains("pipe:") && !said.contains("null") && said.ends_with("] /"), "{said}");
}

#[test]
fn the_work_ends_in_time() {
    let folder = Folder::new("limit");
    folder.start(1);
    let mut process = String::new();
    wait_until("begun", || {
        process = fs::read_to_string(folder.file()).unwrap_or_default();
        !process.is_empty()
    });
    let stat = format!("/proc/{process}/stat");
    // Who takes in orphans may take its time to bury them.
    wait_until("ended", || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")) || !Path::new(&stat).exists()
    });
}
