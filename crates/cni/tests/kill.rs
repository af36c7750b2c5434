//! Plugins killed at random instants, and many at once: no address is lost, none has two owners.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{
    Call, DUAL_SUBNET_ENV, OURS, end_pod, files, flannel_conf, ip, make_node, make_pod, oracle, state, tool,
    wait_destroyed,
};

/// How often a plugin is killed.
const RUNS: u32 = 150;

fn prepare() {
    make_node();
    fs::write("/run/subnet.env", DUAL_SUBNET_ENV).unwrap();
}

fn flannel<'a>(dir: &'a str, id: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir, plugin: "flannel", id, netns, args: "" }
}

fn random(below: Duration) -> Duration {
    let random: [u8; 8] = flannel_kernel::random::bytes().unwrap();
    Duration::from_nanos(u64::from_ne_bytes(random) % u64::try_from(below.as_nanos()).unwrap())
}

fn time_of_add(call: &Call<'_>, conf: &Value) -> Duration {
    let start = Instant::now();
    call.run("ADD", conf).good();
    let usual = start.elapsed();
    call.run("DEL", conf).good();
    usual
}

/// Starts a call and kills it at an instant before it would end. Tells whether it was still at work.
fn kill(call: &Call<'_>, verb: &str, conf: &Value, usual: Duration) -> bool {
    kill_at(call, verb, conf, random(usual))
}

fn kill_at(call: &Call<'_>, verb: &str, conf: &Value, after: Duration) -> bool {
    let mut child = call.start(verb, conf.to_string().as_bytes());
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap().signal().is_some()
}

/// Whether the host has a link of a container.
fn has_veths() -> bool {
    ip(None, &["link"]).iter().any(|link| link["ifname"].as_str().unwrap().starts_with("veth"))
}

fn assert_nothing_left(pod: &str, run: u32) {
    let left = files(Path::new("/run/files"));
    let names: BTreeSet<_> =
        left["networks"]["cbr0"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let expected = BTreeSet::from(["lock", "last_reserved_ip.0", "last_reserved_ip.1"]);
    assert!(names.is_subset(&expected), "run {run}: {left}");
    assert!(left["flannel"].as_object().is_none_or(serde_json::Map::is_empty), "run {run}: {left}");
    assert_eq!(ip(Some(pod), &["link"]).len(), 1, "run {run}");
    assert_eq!(state(&[])["host"]["rules"], json!([]), "run {run}");
    assert!(!has_veths(), "run {run}");
}

#[test]
fn a_killed_add_leaves_nothing_that_del_does_not_clean() {
    if !rerun_enclosed("a_killed_add_leaves_nothing_that_del_does_not_clean") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let call = flannel(OURS, "c1", &pod);
    let usual = (0..5).map(|_| time_of_add(&call, &flannel_conf())).min().unwrap();
    let (mut at_work, mut half_done) = (0, 0);
    for run in 0.. {
        if at_work >= RUNS {
            break;
        }
        assert!(run < RUNS * 10, "only {at_work} of {run} were killed at work");
        let killed = kill(&call, "ADD", &flannel_conf(), usual);
        at_work += u32::from(killed);
        half_done += u32::from(killed && files(Path::new("/run/files")).to_string().contains("c1"));
        call.run("DEL", &flannel_conf()).good();
        assert_nothing_left(&pod, run);
        // Now and then without the bridge, which the killed one may have left half made.
        if run % 10 == 0 {
            _ = std::process::Command::new("ip").args(["link", "del", "cni0"]).output();
        }
        if run % 3 == 0 {
            let result = call.run("ADD", &flannel_conf()).good();
            call.run_after("CHECK", &flannel_conf(), &result).good();
            kill(&call, "DEL", &flannel_conf(), usual * 3);
            call.run("DEL", &flannel_conf()).good();
            assert_nothing_left(&pod, run);
        }
    }
    assert!(half_done > 0, "no ADD was killed between its first and its last step");
}

#[test]
fn a_killed_add_leaves_no_rules() {
    if !rerun_enclosed("a_killed_add_leaves_no_rules") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let mut conf = flannel_conf();
    conf["delegate"] = json!({"ipMasq": true});
    let call = flannel(OURS, "c1", &pod);
    let usual = (0..3).map(|_| time_of_add(&call, &conf)).min().unwrap();
    for run in 0..RUNS / 2 {
        kill(&call, "ADD", &conf, usual);
        call.run("DEL", &conf).good();
        assert_nothing_left(&pod, run);
    }
}

/// The whole chain as a runtime calls it: `flannel`, which runs `bridge` and `host-local`, then `portmap`.
struct Chain<'a> {
    id: &'a str,
    pod: &'a str,
    /// First host port.
    port: u16,
    backend: &'a str,
}

impl Chain<'_> {
    fn flannel(&self) -> (Call<'_>, Value) {
        let mut conf = flannel_conf();
        conf["cniVersion"] = json!("1.1.0");
        (flannel(OURS, self.id, self.pod), conf)
    }

    fn portmap(&self, given: &Value) -> (Call<'_>, Value) {
        let ports: Vec<_> = (self.port..self.port + 4)
            .map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": if port % 2 == 0 { "tcp" } else { "udp" }}))
            .collect();
        let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "backend": self.backend,
            "dataDir": "/run/files/portmap", "runtimeConfig": {"portMappings": ports}});
        if !given.is_null() {
            conf["prevResult"] = given.clone();
        }
        (Call { plugin: "portmap", ..flannel(OURS, self.id, self.pod) }, conf)
    }

    /// How long each plugin takes for an ADD.
    fn usual(&self) -> [Duration; 2] {
        let (flannel, conf) = self.flannel();
        let start = Instant::now();
        let given = flannel.run("ADD", &conf).good();
        let first = start.elapsed();
        let (portmap, conf) = self.portmap(&given);
        portmap.run("ADD", &conf).good();
        let second = start.elapsed().saturating_sub(first);
        self.del();
        [first, second]
    }

    /// ADD, until it fails.
    fn add(&self) -> Result<Value, world::Answer> {
        let succeeded = |answer: world::Answer| if answer.ok { Ok(answer.json) } else { Err(answer) };
        let (flannel, conf) = self.flannel();
        let given = succeeded(flannel.run("ADD", &conf))?;
        let (portmap, conf) = self.portmap(&given);
        succeeded(portmap.run("ADD", &conf))
    }

    /// ADD, killed at an instant. Tells whether the plugin was still at work.
    fn add_killed(&self, [first, second]: [Duration; 2]) -> bool {
        let at = random(first + second);
        let (flannel, conf) = self.flannel();
        if at < first {
            return kill_at(&flannel, "ADD", &conf, at);
        }
        let given = flannel.run("ADD", &conf).good();
        let (portmap, conf) = self.portmap(&given);
        kill_at(&portmap, "ADD", &conf, at.saturating_sub(first))
    }

    fn del(&self) {
        for output in self.try_del() {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        wait_destroyed(self.pod);
    }

    fn try_del(&self) -> [Output; 2] {
        [self.portmap(&Value::Null), self.flannel()]
            .map(|(call, conf)| call.start("DEL", conf.to_string().as_bytes()).wait_with_output().unwrap())
    }

    /// DEL, killed at an instant, told as [`Chain::add_killed`] does.
    fn del_killed(&self, [first, second]: [Duration; 2]) -> bool {
        let at = random(first + second);
        let ((portmap, conf), (flannel, flannel_conf)) = (self.portmap(&Value::Null), self.flannel());
        if at < second {
            return kill_at(&portmap, "DEL", &conf, at);
        }
        portmap.run("DEL", &conf).good();
        kill_at(&flannel, "DEL", &flannel_conf, at.saturating_sub(second))
    }

    /// Has the kernel remember connections to the UDP ports that are published.
    fn ask(&self) {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in (self.port..self.port + 4).filter(|port| port % 2 == 1) {
            // Without an ADD that came so far there is nobody and no way.
            _ = client.send_to(b"?", ("10.244.1.1", port));
        }
    }

    fn gc(&self) {
        for (call, mut conf) in [self.portmap(&Value::Null), self.flannel()] {
            conf["cni.dev/valid-attachments"] = json!([]);
            call.run("GC", &conf).good();
        }
    }
}

/// What the kernel remembers of UDP; a published port's is answered from port 80.
fn connections() -> String {
    tool(&["conntrack", "-L", "-p", "udp"])
}

/// Nothing of any container is left: no link, address or rule, and of files those that are everybody's.
fn assert_chain_left_nothing(when: &str) {
    assert!(!has_veths(), "{when}");
    let saved = ["iptables-save", "ip6tables-save"].map(|program| tool(&[program, "-t", "nat"])).concat();
    let rules = saved + &tool(&["nft", "list", "ruleset"]);
    let left: Vec<_> = rules.lines().filter(|line| line.contains("10.244.1.") || line.contains("CNI-DN")).collect();
    assert!(left.is_empty(), "{when}: {left:?}");
    assert!(!connections().contains("sport=80 "), "{when}: {}", connections());
    let left = files(Path::new("/run/files"));
    let names = |dir: &Value| dir.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let mut found = names(&left["networks"]["cbr0"]);
    found.extend(
        [&left["flannel"], &left["portmap"]["containers"]["cbr0"], &left["portmap"]["ports"]].map(names).concat(),
    );
    found.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
    assert!(found.is_empty(), "{when}: {found:?}");
}

#[test]
fn a_killed_chain_leaves_nothing_that_is_not_cleaned() {
    if !rerun_enclosed("a_killed_chain_leaves_nothing_that_is_not_cleaned") {
        return;
    }
    prepare();
    for backend in ["nftables", "iptables"] {
        let pod = make_pod(&format!("next-{backend}"));
        let next = Chain { id: "next", pod: &pod, port: 9000, backend };
        let least = |one: [Duration; 2], other: [Duration; 2]| [one[0].min(other[0]), one[1].min(other[1])];
        let usual = (0..3).map(|_| next.usual()).reduce(least).unwrap();
        let (mut adds, mut dels) = (0, 0);
        for run in 0..RUNS / 3 {
            let when = format!("{backend} run {run}");
            let pod = make_pod("a");
            let chain = Chain { id: "c1", pod: &pod, port: 8000, backend };
            adds += u32::from(chain.add_killed(usual));
            chain.ask();
            match run % 5 {
                0 => {
                    next.add().unwrap();
                    next.del();
                    chain.del();
                }
                1 => {
                    dels += u32::from(chain.del_killed(usual));
                    chain.del();
                    chain.add().unwrap();
                    chain.ask();
                    assert!(connections().contains("sport=80 "), "{when}: {}", connections());
                    dels += u32::from(chain.del_killed(usual));
                    chain.del();
                }
                2 => chain.del(),
                // A runtime collects what is left of containers that it does not know, whether they are gone or not.
                3 => chain.gc(),
                _ => {
                    end_pod(&pod);
                    chain.gc();
                }
            }
            if run % 5 != 4 {
                wait_destroyed(&pod);
                assert_eq!(ip(Some(&pod), &["link"]).len(), 1, "{when}");
                end_pod(&pod);
            }
            fs::remove_file(&pod).unwrap();
            wait_for_links();
            assert_chain_left_nothing(&when);
        }
        assert!(adds > 0 && dels > 0, "{backend}: {adds} ADDs and {dels} DELs were killed at work");
    }
}

/// Waits until the kernel has destroyed the links of a namespace that has ended.
fn wait_for_links() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while has_veths() {
        assert!(Instant::now() < deadline, "links are left");
    }
}

/// Every step that needs an inode, then every step that needs a page, fails in its turn.
#[test]
fn a_full_disk_leaves_nothing() {
    if !rerun_enclosed("a_full_disk_leaves_nothing") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    for (backend, limit) in
        [("nftables", "nr_inodes"), ("iptables", "nr_inodes"), ("nftables", "size"), ("iptables", "size")]
    {
        let chain = Chain { id: "c1", pod: &pod, port: 8000, backend };
        let mut failed = 0;
        for step in 1.. {
            let room = if limit == "size" { step * 4096 } else { step };
            tool(&["mount", "-t", "tmpfs", "-o", &format!("{limit}={room}"), "none", "/run/files"]);
            let added = chain.add();
            let when = format!("{backend}, {limit} {step}: {added:?}");
            chain.del();
            wait_destroyed(&pod);
            assert_chain_left_nothing(&when);
            tool(&["umount", "/run/files"]);
            let Err(answer) = added else { break };
            let (_, msg, details) = answer.failure();
            let told = format!("{msg}: {details}");
            assert!(told.contains("/run/files") && told.contains("No space left on device"), "{when}");
            assert!(!details.is_empty(), "{when}");
            failed += 1;
        }
        assert!(failed > 5, "{backend} {limit}: {failed}");
    }
}

#[test]
fn a_read_only_folder_is_named_and_leaves_nothing() {
    if !rerun_enclosed("a_read_only_folder_is_named_and_leaves_nothing") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    for (backend, folder) in
        ["nftables", "iptables"].iter().flat_map(|b| ["networks", "flannel", "portmap"].map(|f| (b, f)))
    {
        let chain = Chain { id: "c1", pod: &pod, port: 8000, backend };
        let dir = format!("/run/files/{folder}");
        fs::create_dir_all(&dir).unwrap();
        let read_only = || {
            tool(&["mount", "--bind", &dir, &dir]);
            tool(&["mount", "-o", "remount,bind,ro", &dir]);
        };
        // At ADD, and at DEL: what cannot be done now is done when it can.
        read_only();
        let (_, msg, details) = chain.add().unwrap_err().failure();
        assert!(format!("{msg}: {details}").contains(&dir) && !details.is_empty(), "{msg}: {details}");
        assert!(format!("{msg}: {details}").contains("Read-only file system"), "{msg}: {details}");
        tool(&["umount", &dir]);
        chain.del();
        assert_chain_left_nothing(&dir);
        chain.add().unwrap();
        read_only();
        let dels = chain.try_del();
        let failed: Vec<_> = dels.iter().filter(|output| !output.status.success()).collect();
        assert!(
            matches!(&failed[..], [output] if String::from_utf8_lossy(&output.stdout).contains(&dir)),
            "{dir}: {failed:?}"
        );
        tool(&["umount", &dir]);
        chain.del();
        assert_chain_left_nothing(&dir);
    }
}

#[test]
fn programs_die_with_the_plugin() {
    if !rerun_enclosed("programs_die_with_the_plugin") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    fs::create_dir("/run/bin").unwrap();
    let text = "#!/bin/sh\n: > /run/started; until [ -e /run/killed ]; do sleep 0.02; done; : > /run/late\n";
    fs::write("/run/bin/iptables-restore", text).unwrap();
    fs::set_permissions("/run/bin/iptables-restore", fs::Permissions::from_mode(0o755)).unwrap();
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipMasq": true,
        "ipam": {"type": "host-local", "dataDir": "/run/files", "subnet": "10.1.0.0/24"}});
    let call = Call { dir: OURS, plugin: "bridge", id: "c1", netns: &pod, args: "" };
    let mut child = call.start_with_path("/run/bin:/usr/bin:/bin", conf.to_string().as_bytes());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !Path::new("/run/started").exists() {
        assert!(Instant::now() < deadline, "the program was not started");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::write("/run/killed", "").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert!(!Path::new("/run/late").exists(), "the program went on alone");
}

#[test]
fn an_address_whose_writer_was_killed_is_given_again() {
    if !rerun_enclosed("an_address_whose_writer_was_killed_is_given_again") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "host-local", "dataDir": "/run/files",
        "subnet": "10.1.0.0/29"}});
    // Killed without a DEL, under ever new names as containers that never start have: five addresses serve them all, since an
    // owner is written down whole or not at all and those that were can be freed.
    for run in 0..RUNS {
        let id = format!("c{run}");
        let call = Call { dir: OURS, plugin: "host-local", id: &id, netns: &pod, args: "" };
        let mut child = call.start("ADD", conf.to_string().as_bytes());
        std::thread::sleep(random(Duration::from_millis(3)));
        child.kill().unwrap();
        child.wait().unwrap();
        for (name, text) in files(Path::new("/run/files/n")).as_object().into_iter().flatten() {
            let whole = name.starts_with(['l', '.']) || *text == json!(format!("{id}\r\neth0"));
            assert!(whole, "run {run}: {name} holds {text}");
        }
        call.run("DEL", &conf).good();
    }
}

#[test]
fn many_at_once_get_addresses_of_their_own() {
    if !rerun_enclosed("many_at_once_get_addresses_of_their_own") {
        return;
    }
    prepare();
    let go = oracle();
    let mixed = "/run/mixed";
    fs::create_dir(mixed).unwrap();
    for (name, dir) in [("flannel", OURS), ("bridge", OURS), ("host-local", go.as_str())] {
        std::os::unix::fs::symlink(Path::new(dir).join(name), Path::new(mixed).join(name)).unwrap();
    }
    let pods: Vec<_> = (0..64).map(|n| (format!("c{n}"), make_pod(&format!("p{n}")))).collect();
    let mut owners = BTreeMap::new();
    // Sixteen at a time; of every four, one has its addresses from the Go plugin.
    for batch in pods.chunks(16) {
        let started: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(n, (id, pod))| {
                flannel(if n % 4 == 0 { mixed } else { OURS }, id, pod)
                    .start("ADD", flannel_conf().to_string().as_bytes())
            })
            .collect();
        for (child, (id, _)) in started.into_iter().zip(batch) {
            let output = child.wait_with_output().unwrap();
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(output.status.success(), "{id}: {result}");
            for ip in result["ips"].as_array().unwrap() {
                let other = owners.insert(ip["address"].to_string(), id.clone());
                assert_eq!(other, None, "{ip} of {id}");
            }
        }
    }
    assert_eq!(owners.len(), 128);
    for (id, pod) in &pods {
        flannel(OURS, id, pod).run("DEL", &flannel_conf()).good();
    }
    assert_nothing_left(&pods[0].1, 0);
}

#[test]
fn many_at_once_of_which_some_are_killed_share_no_address() {
    if !rerun_enclosed("many_at_once_of_which_some_are_killed_share_no_address") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "host-local", "dataDir": "/run/files",
        "subnet": "10.1.0.0/27"}});
    let held = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (held, conf, pod) = (&held, &conf, &pod);
            scope.spawn(move || {
                for turn in 0..20 {
                    let id = format!("c{thread}-{turn}");
                    let call = Call { dir: OURS, plugin: "host-local", id: &id, netns: pod, args: "" };
                    if turn % 3 == 0 {
                        kill_at(&call, "ADD", conf, random(Duration::from_millis(6)));
                    } else {
                        let address = call.run("ADD", conf).good()["ips"][0]["address"].to_string();
                        let other = held.lock().unwrap().insert(address.clone(), id.clone());
                        assert_eq!(other, None, "{address} is given to {id} too");
                        std::thread::sleep(random(Duration::from_millis(6)));
                        held.lock().unwrap().remove(&address);
                    }
                    call.run("DEL", conf).good();
                }
            });
        }
    });
    let left = files(Path::new("/run/files/n"));
    let names: Vec<_> = left.as_object().unwrap().keys().collect();
    assert_eq!(names, ["last_reserved_ip.0", "lock"], "{left}");
}
