//! Processes in namespaces: a program enclosed in a world of its own, and programs started inside one.
//!
//! Surface: [`enclose`] (new user, PID, mount, network, IPC and UTS namespaces whose death ends all), [`enclose_with_power`] (the
//! same without the user namespace), [`Enclosed`] (the proof of being in there), [`spawn_in`] (a program in namespaces that exist),
//! [`rerun_enclosed`] and [`rerun_enclosed_with_power`] (a test that encloses itself), [`leave_behind`] (work that outlives its
//! program), [`wait_with_usage`] (what a program has cost), [`peer_user`] (who is at the other end of a socket). All starters return
//! an ordinary [`Child`] whose exit code is the program's (128 + signal where a signal ended it).
//!
//! ```text
//! caller ── watcher ┄ init (PID 1 in there: reaps) ── program      enclose; each dies when the one to its left does
//! caller ── watcher ┄ program                                      spawn_in another PID namespace
//! ```
//!
//! `watcher` and `init` are this executable, forked and never executed anew: they only wait.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, getegid, geteuid, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::mount;
use crate::namespace::Namespaces;

/// How long what [`enclose`] started may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is killed as soon as the calling thread ends, even by SIGKILL.
    Caller,
    /// It outlives the caller, in a session of its own.
    Detached,
}

/// Why a program could not be enclosed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct EncloseError {
    step: &'static str,
    hint: Option<&'static str>,
    #[source]
    cause: io::Error,
}

/// What may fail in the child before the program runs there, in order; told to the caller by number.
const STEPS: [(&str, Option<&str>); 6] = [
    (
        "make a user namespace",
        Some("run as root, or allow it: sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"),
    ),
    ("map the user into its namespace", Some("run as root, or outside a container that confines user namespaces")),
    ("make PID, mount and network namespaces", Some("run as root, or on a kernel with these namespaces")),
    ("start its first process", None),
    ("mount a private /proc", Some("in a container, run it with an unmasked /proc, as --privileged does")),
    ("execute the program", None),
];

/// Starts a program as the only child of the init of new user, PID, mount, network, IPC and UTS namespaces, with the
/// caller mapped to root, no device but a loopback that is down, private mounts and a `/proc` of its own.
///
/// Root too gets a user namespace, so that nothing in there has power outside; only where the kernel refuses it to root
/// does it go without. When the init dies, the kernel kills everything in there and takes the namespaces down.
pub fn enclose(command: Command, lifetime: Lifetime) -> Result<Child, EncloseError> {
    start_enclosed(command, lifetime, Power::Own)
}

/// The same for root, whose power over devices and control groups, which a user namespace would take away, is kept.
pub fn enclose_with_power(command: Command, lifetime: Lifetime) -> Result<Child, EncloseError> {
    start_enclosed(command, lifetime, Power::Callers)
}

/// Over what the program enclosed has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    /// What is in its own namespaces.
    Own,
    /// What the caller has.
    Callers,
}

fn start_enclosed(mut command: Command, lifetime: Lifetime, power: Power) -> Result<Child, EncloseError> {
    let failed = |step: usize| move |cause| EncloseError { step: STEPS[step].0, hint: STEPS[step].1, cause };
    let (report, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|cause| failed(3)(io::Error::from(cause)))?;
    let (caller, maps) = (rustix::process::getpid(), IdMaps::of_caller());
    let plan = Enclosure { lifetime, power, caller, maps, report: writer };
    // SAFETY: the closure runs in a forked child of a process that may have threads; it only makes system calls on
    // memory prepared beforehand, and neither allocates nor locks.
    unsafe { command.pre_exec(move || plan.set_up().map_err(io::Error::from)) };
    command.env(ENCLOSED, "1").spawn().map_err(|cause| {
        drop(command);
        let mut step = [5];
        let _none_on_exec_failure = File::from(report).read(&mut step);
        failed(usize::from(step[0]).min(5))(cause)
    })
}

/// Tells a program that [`enclose`] started it.
const ENCLOSED: &str = "FLANNEL_ENCLOSED";

/// Proof that this process was started by [`enclose`]: only it may mount over `/run` and the like.
#[derive(Debug, Clone, Copy)]
pub struct Enclosed(());

impl Enclosed {
    /// The proof, if it is so: the mark is in the environment and the parent is the init of a PID namespace.
    pub fn here() -> Option<Self> {
        let child_of_init = getppid().is_some_and(rustix::process::Pid::is_init);
        (std::env::var_os(ENCLOSED).is_some() && child_of_init).then_some(Self(()))
    }
}

/// What the forked child of [`enclose`] needs, all of it made before the fork.
struct Enclosure {
    lifetime: Lifetime,
    power: Power,
    caller: rustix::process::Pid,
    maps: IdMaps,
    report: OwnedFd,
}

impl Enclosure {
    /// Returns in the process that is to execute the program, or with an error anywhere on the way.
    fn set_up(&self) -> Result<(), Errno> {
        self.step(0, self.new_user())?;
        self.step(2, unshare_process(inner_namespaces()))?;
        self.step(3, self.bind_to_caller())?;
        let (alive, hold) = self.step(3, rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC))?;
        let (alive, hold) = (std::mem::ManuallyDrop::new(alive), std::mem::ManuallyDrop::new(hold));
        if let Fork::Parent(init) = self.step(3, fork())? {
            wait_as_watcher(init, Some(hold.as_fd()));
        }
        self.step(3, die_with_watcher(&alive, hold.as_raw_fd()))?;
        self.step(4, mount::private().and_then(|()| mount::proc_fs()))?;
        if let Fork::Parent(program) = self.step(3, fork())? {
            wait_as_init(program);
        }
        Ok(())
    }

    fn new_user(&self) -> Result<(), Errno> {
        if self.power == Power::Callers {
            return Ok(());
        }
        match unshare_process(UnshareFlags::NEWUSER) {
            Ok(()) => self.step(1, self.maps.write()),
            Err(_) if self.maps.is_root => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn bind_to_caller(&self) -> Result<(), Errno> {
        match self.lifetime {
            Lifetime::Detached => rustix::process::setsid().map(drop),
            Lifetime::Caller => {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() == Some(self.caller) { Ok(()) } else { Err(Errno::SRCH) }
            }
        }
    }

    /// Tells the caller which step failed; the first word counts.
    fn step<T>(&self, number: u8, result: Result<T, Errno>) -> Result<T, Errno> {
        if result.is_err() {
            let _caller_is_gone = rustix::io::write(&self.report, &[number]);
        }
        result
    }
}

fn inner_namespaces() -> UnshareFlags {
    UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS
}

/// The one user and the one group that exist in the new user namespace.
struct IdMaps {
    uid: CString,
    gid: CString,
    is_root: bool,
}

impl IdMaps {
    fn of_caller() -> Self {
        let map = |id: u32| CString::new(format!("0 {id} 1")).unwrap_or_default();
        Self { uid: map(geteuid().as_raw()), gid: map(getegid().as_raw()), is_root: geteuid().is_root() }
    }

    /// Without privilege over the parent namespace `setgroups` must be given up before the group map (user_namespaces(7)).
    fn write(&self) -> Result<(), Errno> {
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", self.uid.to_bytes())?;
        write_file(c"/proc/self/gid_map", self.gid.to_bytes())
    }
}

fn write_file(path: &std::ffi::CStr, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC, 0.into())?;
    rustix::io::write(&file, text).map(drop)
}

/// Starts a program in namespaces that exist, in the caller's working directory where that is to be seen there.
///
/// With a PID namespace the child returned is a watcher that ignores the terminal's signals (the program gets them itself)
/// and ends with the program's exit code.
pub fn spawn_in(mut command: Command, namespaces: Namespaces) -> io::Result<Child> {
    let directory = std::env::current_dir().ok().and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
    // SAFETY: as in `enclose`: system calls on prepared memory only.
    unsafe {
        command.pre_exec(move || {
            enter(&namespaces)?;
            if let Some(directory) = &directory {
                let _not_seen_there = rustix::process::chdir(directory.as_c_str());
            }
            if namespaces.pids.is_some()
                && let Fork::Parent(program) = fork()?
            {
                wait_as_watcher(program, None);
            }
            Ok(())
        })
    };
    command.spawn()
}

fn enter(namespaces: &Namespaces) -> Result<(), Errno> {
    let all = [
        (&namespaces.user, LinkNameSpaceType::User),
        (&namespaces.pids, LinkNameSpaceType::ProcessID),
        (&namespaces.net, LinkNameSpaceType::Network),
        (&namespaces.mounts, LinkNameSpaceType::Mount),
    ];
    for (namespace, kind) in all {
        if let Some(namespace) = namespace {
            move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        }
    }
    Ok(())
}

/// Whether this process already is the enclosed run of the calling test; if not, runs the test again, alone and enclosed,
/// from this very test executable, and fails as it fails.
///
/// A test harness has many threads and so cannot make a user namespace itself. `test` is the test's full name as the
/// harness prints it:
///
/// ```ignore
/// if !flannel_kernel::process::rerun_enclosed("route::tests::a_route_is_added") { return; }
/// ```
pub fn rerun_enclosed(test: &str) -> bool {
    rerun(test, enclose)
}

/// The same for a test that must be root's: with power over control groups (see [`enclose_with_power`]).
pub fn rerun_enclosed_with_power(test: &str) -> bool {
    rerun(test, enclose_with_power)
}

fn rerun(test: &str, enclose: fn(Command, Lifetime) -> Result<Child, EncloseError>) -> bool {
    const MARK: &str = "FLANNEL_TEST_ENCLOSED";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut command = Command::new("/proc/self/exe");
    command.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]).env(MARK, "1");
    command.stdout(std::process::Stdio::piped());
    let output = enclose(command, Lifetime::Caller).and_then(|child| {
        child.wait_with_output().map_err(|cause| EncloseError { step: STEPS[5].0, hint: None, cause })
    });
    let output = output.unwrap_or_else(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        panic!("{error}: {cause}")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("running 1 test"), "no test of this executable is called {test}");
    assert!(output.status.success(), "{test} failed in its namespaces:\n{text}");
    false
}

/// What a process that ended has used, the children it waited for included.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// How it ended.
    pub status: ExitStatus,
    /// User and system time.
    pub cpu: Duration,
    /// The largest resident memory of any of them, in bytes. Never less than the caller had when it started the process
    /// (`ru_maxrss` of getrusage(2)): only a small caller can measure a small program.
    pub peak: u64,
}

/// Waits for a process to end. Pipes to it that were not taken are closed before.
pub fn wait_with_usage(child: Child) -> io::Result<Usage> {
    let mut status = 0;
    // SAFETY: all of `rusage` are integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id().cast_signed();
    drop(child);
    // SAFETY: both are valid places for the answers.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Usage {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak: usage.ru_maxrss as u64 * 1024,
    })
}

/// The effective user at the other end of a Unix socket (`SO_PEERCRED`), as this process' user namespace numbers it. The peer
/// may be in another PID namespace, where it has no number here.
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is a valid place of `length` bytes for the answer.
    let result = unsafe {
        let place = (&raw mut peer).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length)
    };
    if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

/// Lets the work go on in a process of its own that outlives the caller, for so long at most: in a session of its own, in `/`, with
/// nothing of the caller's open. The caller must have one thread and be about to end: all of its descriptors but the one that the
/// work needs, `kept`, are closed, first of all, so that nobody who reads what it has written waits for the work, or for the fork. One whose
/// closing takes long, `slow`, is closed by that process. Where no process can be made the work is done at once.
pub fn leave_behind(limit: Duration, kept: Option<RawFd>, slow: Option<OwnedFd>, work: impl FnOnce()) {
    close_all_but(kept.into_iter().chain(slow.as_ref().map(AsRawFd::as_raw_fd)));
    // The pipe ends when the caller holds `slow` no more: who closes that last waits.
    let slow = slow.map(|slow| (slow, io::pipe()));
    match fork() {
        Err(_) => work(),
        Ok(Fork::Parent(_)) => drop(slow),
        Ok(Fork::Child) => {
            // What cannot be left does not stop the work.
            let _still_there = rustix::process::chdir("/");
            let _still_led = rustix::process::setsid();
            end_after(limit);
            work();
            if let Some((_slow, Ok((mut reader, writer)))) = slow {
                drop(writer);
                let _ended = reader.read(&mut [0]);
            }
            // SAFETY: ends the process without running anything that the caller has arranged for its own end.
            unsafe { libc::_exit(0) };
        }
    }
}

/// Has the kernel end this process, whatever it does by then.
fn end_after(limit: Duration) {
    let seconds = limit.as_secs().try_into().unwrap_or(libc::c_uint::MAX);
    // SAFETY: sets a disposition that runs no code, and a timer.
    unsafe {
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::alarm(seconds);
    }
}

/// The two sides of a fork.
enum Fork {
    Parent(libc::pid_t),
    Child,
}

fn fork() -> Result<Fork, Errno> {
    // SAFETY: called only in processes with one thread: the freshly forked children above, where both sides go on with system
    // calls only, and at the end of a program that has no other thread, whose locks nobody else can hold.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child)),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn unshare_process(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: CLONE_FILES is never among the flags, and the process has one thread.
    unsafe { unshare_unsafe(flags) }
}

/// Waits for the one child and ends as it ended. Holds no descriptor but `keep`, whose closing by
/// this process' death tells the child. The terminal's signals are the child's business.
fn wait_as_watcher(child: libc::pid_t, keep: Option<BorrowedFd<'_>>) -> ! {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
        // SAFETY: sets a disposition that runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    close_all_but(keep.map(|keep| keep.as_raw_fd()));
    wait_until_ended(child)
}

/// Reaps whatever is orphaned in the PID namespace until the program ends; then everything ends with this process.
fn wait_as_init(program: libc::pid_t) -> ! {
    close_all_but(None);
    wait_until_ended(program)
}

fn wait_until_ended(child: libc::pid_t) -> ! {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
        if ended == child {
            // SAFETY: ends the process without running anything of the program it was forked from.
            unsafe { libc::_exit(code) };
        }
        if ended == -1 && last_errno() != Errno::INTR {
            // SAFETY: as above.
            unsafe { libc::_exit(127) };
        }
    }
}

/// Ends with the watcher, also if that is gone already: then nobody holds the pipe's other end open.
fn die_with_watcher(alive: &OwnedFd, hold: RawFd) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: this process' copy of the pipe's other end, which nothing here uses again.
    drop(unsafe { OwnedFd::from_raw_fd(hold) });
    let mut poll = [rustix::event::PollFd::new(alive, rustix::event::PollFlags::empty())];
    let closed = rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if closed == 0 { Ok(()) } else { Err(Errno::SRCH) }
}

/// Closes every descriptor but those to be kept, the standard ones too: whoever reads what the program writes must not wait for this
/// process.
fn close_all_but(kept: impl IntoIterator<Item = RawFd>) {
    let mut kept: Vec<_> = kept.into_iter().map(i32::cast_unsigned).collect();
    kept.sort_unstable();
    let mut first = 0;
    for kept in kept {
        close_range(first, kept);
        first = kept + 1;
    }
    close_range(first, u32::MAX);
}

/// Closes the descriptors from `first` to before `end`. (The system call is there from kernel 5.9; older ones take them one by one.)
fn close_range(first: u32, end: u32) {
    if first >= end {
        return;
    }
    // SAFETY: nothing in this process uses a descriptor from here on but those that are kept.
    if unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) } == -1 {
        for descriptor in first..end.min(4096) {
            // SAFETY: as above.
            unsafe { libc::close(descriptor.cast_signed()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{MountNamespace, NamespaceError, NetNamespace};
    use std::path::Path;
    use std::process::Stdio;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command
    }

    #[test]
    fn the_enclosed_program_is_root_among_its_own() {
        let script = "id -u; ls -d /proc/[0-9]* | wc -l; tail -n +3 /proc/net/dev | wc -l; exit 7";
        let output = enclose(shell(script), Lifetime::Caller).unwrap().wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<u32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(output.status.code(), Some(7));
        assert!(matches!(words[..], [0, 2..=5, 1]), "user, processes, devices: {text}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named_as_the_failure() {
        let error = enclose(Command::new("/no/such/program"), Lifetime::Caller).unwrap_err();
        assert_eq!(error.to_string(), "cannot execute the program");
    }

    #[test]
    fn a_program_that_ended_has_used_time_and_memory() {
        let mut command = shell("i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; exit 3");
        let usage = wait_with_usage(command.spawn().unwrap()).unwrap();
        assert_eq!(usage.status.code(), Some(3));
        assert!(usage.cpu > Duration::ZERO && usage.peak > 100 << 10, "{usage:?}");
    }

    /// Whether the process holding the pipe's other end is gone within a second.
    fn ends_soon(mut pipe: impl Read + AsFd) -> bool {
        let mut poll = [rustix::event::PollFd::new(&pipe, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&second)).unwrap() == 1 && pipe.read(&mut [0]).unwrap() == 0
    }

    #[test]
    fn all_ends_with_the_watcher() {
        let mut child = enclose(shell("sleep 100 & sleep 100"), Lifetime::Detached).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ends_soon(child.stdout.take().unwrap()));
    }

    #[test]
    fn all_ends_with_the_calling_thread() {
        let start = || enclose(shell("sleep 100 & sleep 100"), Lifetime::Caller).unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        assert!(ends_soon(child.stdout.take().unwrap()));
        child.wait().unwrap();
    }

    #[test]
    fn a_process_starts_in_the_namespaces_given() {
        if !rerun_enclosed("process::tests::a_process_starts_in_the_namespaces_given") {
            assert!(Enclosed::here().is_none());
            return;
        }
        assert!(Enclosed::here().is_some());
        let net = NetNamespace::create().unwrap();
        let mounts = MountNamespace::create(|| -> Result<(), NamespaceError> {
            mount::tmpfs(Path::new("/run")).unwrap();
            std::fs::write("/run/here", "").unwrap();
            Ok(())
        })
        .unwrap();
        let wanted = net.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        let namespaces = Namespaces::of(&net, Some(&mounts)).unwrap();
        let output = spawn_in(shell("ls /run; readlink /proc/self/ns/net"), namespaces).unwrap();
        let text = String::from_utf8(output.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(text, format!("here\n{}\n", wanted.display()));
    }

    #[test]
    fn an_outsider_joins_an_enclosure() {
        let script = "hostname enclosed; echo; sleep 100";
        let mut child = enclose(shell(script), Lifetime::Caller).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let program = only_descendant(only_descendant(child.id()));
        let open = |name: &str| Some(OwnedFd::from(File::open(format!("/proc/{program}/ns/{name}")).unwrap()));
        let namespaces = Namespaces { user: open("user"), net: open("net"), mounts: open("mnt"), pids: open("pid") };
        let started = Instant::now();
        let joined = spawn_in(shell("id -u; test -d /proc/2; exit $?"), namespaces).unwrap();
        let output = joined.wait_with_output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"0\n"[..], Some(0)));
        assert!(started.elapsed() < Duration::from_secs(10));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn only_descendant(parent: u32) -> u32 {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        children.trim().parse().unwrap()
    }
}
