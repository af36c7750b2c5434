//! Network namespaces for tests, and the tools that look into them.

use std::process::Command;

use flannel_kernel::namespace::NetNamespace;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Makes this process root of a user namespace of its own unless it is root already. Must run before threads exist.
pub(crate) fn become_root() -> std::io::Result<()> {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    if user.is_root() {
        return Ok(());
    }
    // SAFETY: the process has one thread and shares no descriptor table; a new user namespace affects credentials only.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))?;
    let lock = std::env::temp_dir().join(format!("xtables-{}.lock", std::process::id()));
    // SAFETY: the process has one thread. Programs of iptables-legacy lock this file; the usual one is the real root's.
    unsafe { std::env::set_var("XTABLES_LOCKFILE", lock) };
    Ok(())
}

/// Runs `body` on a thread of its own in a new network namespace.
pub(crate) fn in_new_namespace(body: fn()) -> std::thread::Result<()> {
    let thread = std::thread::spawn(move || {
        enter_new();
        body();
    });
    thread.join()
}

/// Moves this thread into a new network namespace with loopback up.
pub(crate) fn enter_new() {
    // SAFETY: a new network namespace for this thread shares no memory or descriptors differently than before.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a new network namespace");
    run("ip link set lo up");
}

/// Moves a device to another namespace, which has no name: by a process that lives there.
pub(crate) fn give(to: &NetNamespace, device: &str) {
    let mut child = to.run(|| std::process::Command::new("sleep").arg("600").spawn().unwrap()).unwrap();
    run(&format!("ip link set {device} netns {}", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Runs a command line without quoting, and answers with what it printed. Fails the test if the command fails.
pub(crate) fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|printed| panic!("`{line}` failed: {printed}"))
}

/// Like [`run`], but hands a failure's messages back.
pub(crate) fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("`{program}`: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
