//! Whom an ADD waits for: nobody but who picks an address at that moment, and with ports who writes down whose they are.

mod world;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, OURS, SUBNET_ENV, flannel_conf, make_node, make_pod};

const ADDRESSES: &str = "/run/files/networks/cbr0/lock";
const PORTS: &str = "/run/files/portmap/lock";
/// Nothing takes so long that waits for nobody.
const PATIENCE: Duration = Duration::from_secs(20);

fn portmap(given: &Value, port: u16) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "backend": "nftables",
        "dataDir": "/run/files/portmap", "prevResult": given,
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}})
}

fn call<'a>(plugin: &'a str, id: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir: OURS, plugin, id, netns, args: "" }
}

/// Every file and folder below this one.
fn all_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(all_below(&path)) } else { found.push(path) }
    }
    found
}

/// Locks all that plugins write, but these.
fn lock_all_but(free: &[&str]) -> Vec<File> {
    let all = ["/run/files", "/run/subnet.env"].map(Path::new);
    let all = all.into_iter().flat_map(|path| if path.is_dir() { all_below(path) } else { vec![path.to_owned()] });
    let held: Vec<_> = all.filter(|path| !free.iter().any(|free| path == Path::new(free))).collect();
    let lock = |path: &PathBuf| {
        let file = File::open(path).unwrap();
        file.try_lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file
    };
    held.iter().map(lock).collect()
}

/// The answer of a plugin that waits for nobody.
fn answer(mut child: Child) -> Value {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it waits for somebody: {}", fs::read_to_string("/proc/locks").unwrap());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns once a process waits for the lock of a file.
fn wait_until_waiting(file: &str) {
    let inode = format!(":{} ", fs::metadata(file).unwrap().ino());
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    let begun = Instant::now();
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        assert!(begun.elapsed() < PATIENCE, "nobody waits for {file}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_add_waits_for_the_lock_of_addresses_alone_and_with_ports_for_theirs() {
    if !rerun_enclosed("an_add_waits_for_the_lock_of_addresses_alone_and_with_ports_for_theirs") {
        return;
    }
    make_node();
    fs::write("/run/subnet.env", SUBNET_ENV).unwrap();
    let pods = [make_pod("a"), make_pod("b"), make_pod("c")];
    let add = |plugin: &str, n: usize, conf: &Value| {
        let id = format!("c{n}");
        call(plugin, &id, &pods[n]).start("ADD", conf.to_string().as_bytes())
    };
    let first = answer(add("flannel", 0, &flannel_conf()));
    answer(add("portmap", 0, &portmap(&first, 8000)));
    // As if another ADD were anywhere but at the addresses, and at the ports.
    let held = lock_all_but(&[ADDRESSES, PORTS, "/run/files/portmap/restore.lock"]);
    assert!(held.len() > 8, "{held:?}");
    let second = answer(add("flannel", 1, &flannel_conf()));
    answer(add("portmap", 1, &portmap(&second, 8001)));
    drop(held);
    // Plugins at work share the lock that keeps the daemon out.
    let shared = File::open("/run/files/portmap/restore.lock").unwrap();
    shared.lock_shared().unwrap();
    // And these are locks that would be seen.
    let held = File::open(ADDRESSES).unwrap();
    held.lock().unwrap();
    let waiting = add("flannel", 2, &flannel_conf());
    wait_until_waiting(ADDRESSES);
    drop(held);
    let third = answer(waiting);
    let held = File::open(PORTS).unwrap();
    held.lock().unwrap();
    let waiting = add("portmap", 2, &portmap(&third, 8002));
    wait_until_waiting(PORTS);
    drop(held);
    answer(waiting);
}
