//! What the tests need of the machine: Debian packages, and the right to make namespaces.

use anyhow::{Context, Result, bail, ensure};

use crate::run::{is_root, output, program, run, say, succeeds};

/// Packages whose programs the tests compare with or call.
const PACKAGES: [&str; 16] = [
    "nftables",
    "iptables",
    "containernetworking-plugins",
    "iproute2",
    "procps",
    "tshark",
    "etcd-server",
    "etcd-client",
    "openssl",
    "curl",
    "user-mode-linux",
    "kmod",
    "busybox-static",
    "containerd",
    "runc",
    "podman",
];
/// What packages start by themselves.
const SERVICES: [(&str, &[&str]); 3] = [
    ("etcd-server", &["etcd.service"]),
    ("containerd", &["containerd.service"]),
    (
        "podman",
        &[
            "podman.service",
            "podman.socket",
            "podman-restart.service",
            "podman-auto-update.service",
            "podman-auto-update.timer",
        ],
    ),
];
/// Those that the bench needs besides.
const FOR_BENCH: [&str; 1] = ["iperf3"];

/// Installs the packages that are missing for the tests, and says so before. `sudo` asks for a password at most once.
pub(crate) fn install() -> Result<()> {
    install_all(&PACKAGES)
}

/// The same for the bench.
pub(crate) fn install_for_bench() -> Result<()> {
    install_all(&[PACKAGES.as_slice(), &FOR_BENCH].concat())
}

fn install_all(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        say(&format!("  installs nothing: {} are here", packages.join(", ")));
        return Ok(());
    }
    say(&format!("  installs with apt-get: {}", missing.join(" ")));
    ensure!(
        succeeds("apt-get", &["--version"]),
        "no apt-get here to install {}: install them with this system's package manager and start again",
        missing.join(" ")
    );
    for (package, units) in SERVICES.iter().filter(|(package, _)| missing.contains(package)) {
        mask(package, units)?;
    }
    apt_get(&["update", "-qq"])?;
    apt_get(&[["install", "-qq", "--yes", "--no-install-recommends"].as_slice(), &missing].concat())
}

/// Keeps a package from starting servers on this machine: the tests start theirs in namespaces.
fn mask(package: &str, units: &[&str]) -> Result<()> {
    if !std::path::Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    say(&format!("  masks what {package} would start; if you want that: systemctl unmask {}", units.join(" ")));
    run_as_root(&[["systemctl", "mask", "--quiet"].as_slice(), units].concat())
}

fn is_installed(package: &str) -> bool {
    let asked =
        output(program("dpkg-query", &["-W", "-f=${db:Status-Status}", package]).stderr(std::process::Stdio::null()));
    asked.is_ok_and(|status| status == "installed")
}

fn apt_get(args: &[&str]) -> Result<()> {
    let quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
    run_as_root(&[quiet.as_slice(), args].concat())
}

fn run_as_root(words: &[&str]) -> Result<()> {
    if is_root() {
        return run(&mut program(words[0], &words[1..]));
    }
    run(program("sudo", words).stdin(std::process::Stdio::inherit()))
        .context("not root and sudo did not help: install the packages as root and start again")
}

/// Whether this user may make a user namespace, with a network of its own in it.
pub(crate) fn user_namespaces() -> bool {
    succeeds("unshare", &["--user", "--map-root-user", "--net", "--mount", "true"])
}

/// Fails, with the remedy, where tests cannot have namespaces of their own.
pub(crate) fn check_namespaces() -> Result<()> {
    if user_namespaces() {
        return Ok(());
    }
    if is_root() {
        bail!("cannot make a user namespace: allow it (sysctl user.max_user_namespaces), or leave the container");
    }
    bail!(
        "cannot make a user namespace: `sudo sysctl -w kernel.unprivileged_userns_clone=1` (or, with AppArmor, kernel.apparmor_restrict_unprivileged_userns=0) allows it"
    );
}
