//! Another kernel for a test: user-mode Linux, a Debian kernel 6.1 that is a program, so that what this machine's kernel lacks can be
//! tested all the same. It needs no privilege and no virtualisation, and starts in a second or two.
//!
//! Surface: [`Guest`] (runs a shell script in there) and [`rerun_in_guest`] (a test that runs itself in there). The guest
//!
//! - sees the machine's files, read-only, and writes what is to stay to one folder, which has the same path inside and out;
//! - has `/run` in memory, no network but a loopback that is up, and root's rights over all of it;
//! - has IPv6, and loads modules as they are asked for: veth, bridge with VLAN filtering, vxlan, ipip, gre, tun, dummy, macvlan, netem, xfrm, ESP,
//!   iptables (`iptables` and its kin are the legacy ones there). It has neither wireguard nor nf_tables for IP. From a
//!   user namespace none can be loaded: a script whose programs make one loads them first;
//! - has one CPU and makes system calls ten times slower than this machine does.
//!
//! Packages: `user-mode-linux` (amd64 only), `kmod`, `busybox-static`. Nothing of the product uses this.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{EncloseError, Lifetime, enclose};

/// Where the package has the guest's modules, in a folder named by the kernel's version.
const MODULES: &str = "/usr/lib/uml/modules";
/// What a guest cannot do without, each with its Debian package.
const PROGRAMS: [(&str, &str); 3] =
    [("/usr/bin/linux.uml", "user-mode-linux"), ("/usr/sbin/modprobe", "kmod"), ("/usr/bin/busybox", "busybox-static")];
/// What `xtables-legacy-multi` is called as.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// Stands alone on the line before the script's output, and on the one after it.
const MARK: &str = "--- 8< ---";
/// How often a running guest is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A guest to be started.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its memory in MiB, of which the machine gives what is used.
    pub memory: u32,
    /// How long it may run.
    pub limit: Duration,
}

/// How a guest's script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The script's exit status.
    pub status: i32,
    /// What it printed, and complaints of the guest's kernel meanwhile.
    pub output: String,
}

/// A guest that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A program is missing.
    #[error("{program} is missing: run `apt-get install {package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// Its package.
        package: &'static str,
    },
    /// The folder cannot be used.
    #[error("{}: {cause}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The guest's process cannot be started.
    #[error("cannot start the guest kernel: {0}")]
    Start(#[from] EncloseError),
    /// The output cannot be read.
    #[error("cannot read what the guest prints: {0}")]
    Output(io::Error),
    /// It was still running after its time.
    #[error("the guest still ran after {} s; it has printed:\n{output}", limit.as_secs())]
    Late {
        /// The time it had.
        limit: Duration,
        /// What it has printed.
        output: String,
    },
    /// Its kernel ended before the script did.
    #[error("the guest ended without a verdict; it has printed:\n{0}")]
    NoVerdict(String),
}

impl Default for Guest {
    fn default() -> Self {
        Self { memory: 512, limit: Duration::from_mins(5) }
    }
}

impl Guest {
    /// Runs a script of `/bin/sh` in a guest, with this process' environment and working directory. It can write to `folder` and
    /// below. The guest's own files are in `folder/.guest`.
    pub fn run(&self, script: &str, folder: &Path) -> Result<Ended, GuestError> {
        let folder = &folder.canonicalize().map_err(at(folder))?;
        let own = &folder.join(".guest");
        prepare(own, folder, script)?;
        let (reader, writer) = io::pipe().map_err(GuestError::Output)?;
        let mut command = Command::new(PROGRAMS[0].0);
        command
            .arg(format!("mem={}M", self.memory))
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "con=null", "con0=fd:0,fd:1"])
            .arg(format!("init={}", own.join("init").display()))
            // Its memory is a file there; elsewhere it would be written to a disk.
            .env("TMPDIR", "/dev/shm")
            .stdin(std::process::Stdio::null())
            .stderr(writer.try_clone().map_err(GuestError::Output)?)
            .stdout(writer);
        let child = enclose(command, Lifetime::Caller)?;
        let (in_time, output) = self.wait(child, reader).map_err(GuestError::Output)?;
        let status = fs::read_to_string(own.join("status")).ok().and_then(|text| text.trim().parse().ok());
        match status {
            Some(status) => Ok(Ended { status, output }),
            None if in_time => Err(GuestError::NoVerdict(output)),
            None => Err(GuestError::Late { limit: self.limit, output }),
        }
    }

    /// Waits for the end, and makes one at the limit. Tells whether it came in time, and what was printed.
    fn wait(&self, mut child: Child, mut reader: PipeReader) -> io::Result<(bool, String)> {
        let begun = Instant::now();
        let reading = thread::spawn(move || {
            let mut output = Vec::new();
            reader.read_to_end(&mut output).map(|_| of_script(&String::from_utf8_lossy(&output)))
        });
        while child.try_wait()?.is_none() && begun.elapsed() < self.limit {
            thread::sleep(LOOK);
        }
        let in_time = child.try_wait()?.is_some();
        if !in_time {
            // All that runs in there ends with it.
            child.kill()?;
            child.wait()?;
        }
        let output = reading.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))?;
        Ok((in_time, output))
    }
}

/// The part of the guest's output that is the script's; all of it where the script never began.
fn of_script(output: &str) -> String {
    let output = output.replace('\r', "");
    let begun = output.split_once(&format!("{MARK}\n")).map_or(output.as_str(), |(_, rest)| rest);
    begun.split_once(&format!("{MARK}\n")).map_or(begun, |(text, _)| text).to_owned()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    move |cause| GuestError::Folder { path: path.into(), cause }
}

/// Makes the guest's own files: its first program, the script, the way to its modules, and programs that are others there.
fn prepare(own: &Path, folder: &Path, script: &str) -> Result<(), GuestError> {
    if let Some((program, package)) = PROGRAMS.into_iter().find(|(program, _)| !Path::new(program).exists()) {
        return Err(GuestError::Missing { program, package });
    }
    _ = fs::remove_dir_all(own);
    let write = |name: &str, text: &str| {
        let path = own.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    let make = || {
        fs::create_dir_all(own.join("bin"))?;
        fs::create_dir_all(own.join("lib"))?;
        symlink(MODULES, own.join("lib/modules"))?;
        for name in IPTABLES {
            symlink("/usr/sbin/xtables-legacy-multi", own.join("bin").join(name))?;
        }
        write("bin/modprobe", &format!("#!/bin/sh\nexec {} -d {} \"$@\"\n", PROGRAMS[1].0, quoted(own.as_os_str())))?;
        write("script", script)?;
        write("init", &init(own, folder))
    };
    make().map_err(at(own))
}

/// The guest's first program. A line that fails is told on the console, and the script runs all the same.
fn init(own: &Path, folder: &Path) -> String {
    let mut text = String::from("#!/bin/sh\n");
    for (name, value) in std::env::vars_os().filter(|(name, _)| is_shell_name(name)) {
        _ = writeln!(text, "export {}={}", name.display(), quoted(&value));
    }
    let (own, folder) = (quoted(own.as_os_str()), quoted(folder.as_os_str()));
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let here = quoted(here.as_os_str());
    _ = write!(
        text,
        "export PATH={own}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run/tmp\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t tmpfs tmp /run\n\
         mkdir -p /run/netns /run/lock /run/tmp {folder}\n\
         mount -t hostfs none {folder} -o {folder}\n\
         echo {own}/bin/modprobe > /proc/sys/kernel/modprobe\n\
         modprobe ipv6\n\
         ip link set lo up\n\
         cd {here}\n\
         echo '{MARK}'\n\
         sh {own}/script\n\
         echo $? > {own}/status\n\
         echo '{MARK}'\n\
         sync\n\
         exec {} poweroff -f\n",
        PROGRAMS[2].0
    );
    text
}

fn is_shell_name(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    bytes.iter().all(word) && bytes.first().is_some_and(|byte| !byte.is_ascii_digit())
}

/// A word of the shell that stands for itself.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

/// Whether this process already is the run of the calling test in a guest; if not, runs the test again, alone and in a guest, from
/// this very test executable, and fails as it fails.
///
/// `test` is the test's full name as the harness prints it:
///
/// ```ignore
/// if !flannel_kernel::guest::rerun_in_guest("vlans_are_kept_apart", &Guest::default()) { return; }
/// ```
pub fn rerun_in_guest(test: &str, guest: &Guest) -> bool {
    const INSIDE: &str = "FLANNEL_TEST_IN_GUEST";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap_or_else(|error| panic!("the test's executable: {error}"));
    let folder = std::env::temp_dir().join(format!("flannel-guest-{}-{}", std::process::id(), test.replace(':', "-")));
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let script = format!(
        "export {INSIDE}=1\nexec {} {} --exact --include-ignored --nocapture --test-threads=1 2>&1\n",
        quoted(program.as_os_str()),
        quoted(OsStr::new(test))
    );
    let ended = guest.run(&script, &folder);
    _ = fs::remove_dir_all(&folder);
    let Ended { status, output } = ended.unwrap_or_else(|error| panic!("{test} in a guest: {error}"));
    assert!(output.contains("running 1 test"), "no test of this executable is called {test}:\n{output}");
    assert!(status == 0, "{test} failed in its guest:\n{output}");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_talk_is_left_out() {
        assert_eq!(of_script("SELinux\r\n--- 8< ---\r\na\r\nb\r\n--- 8< ---\r\nreboot: halted\r\n"), "a\nb\n");
        assert_eq!(of_script("SELinux\n--- 8< ---\na\n"), "a\n");
        assert_eq!(of_script("panic\n"), "panic\n");
    }

    #[test]
    fn words_stand_for_themselves() {
        assert_eq!(quoted(OsStr::new("a b$c'd")), r"'a b$c'\''d'");
        assert!(is_shell_name(OsStr::new("CARGO_1")) && !is_shell_name(OsStr::new("1A")));
        assert!(!is_shell_name(OsStr::new("a.b")) && !is_shell_name(OsStr::new("")));
    }
}
