//! Test ring 3: several builds of flannel in one network, and one exchanged for another under traffic.
//!
//! Another daemon is here the same code in another file, or one that a script spoils first; truly different plugins are those
//! of Debian's `containernetworking-plugins`.
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

mod network;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::addr::Family;
use flannel_lab::build::Build;
use flannel_lab::lab::Lab;
use flannel_lab::options::LabOptions;
use flannel_lab::report;
use flannel_lab::swap::Swapped;
use network::{DUAL, FLANNEL, IPV4, assert_all_proofs, enclosed, flannel, options, start, text};

/// Where `containernetworking-plugins` puts bridge, host-local and loopback.
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
/// Enough for every build that becomes ready at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A new file in a folder of the test.
fn file(test: &str, name: &str, content: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("builds").join(test);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The built daemon in another file, which ends differently too.
fn other_build(test: &str) -> Build {
    let mut content = fs::read(FLANNEL).unwrap();
    content.extend(b"another build");
    Build { flanneld: Some(file(test, "other", &content)), ..Build::default() }
}

/// A daemon that does something before it is one.
fn spoilt(test: &str, script: &str) -> Build {
    let text = format!("#!/bin/sh\n[ \"$1\" = --version ] || {{ {script}; }}\nexec {FLANNEL} flanneld \"$@\"\n");
    Build { flanneld: Some(file(test, "spoilt", text.as_bytes())), ..Build::default() }
}

fn debians_plugins() -> Build {
    let bridge = Path::new(DEBIAN_PLUGINS).join("bridge");
    assert!(bridge.exists(), "{} is missing: install containernetworking-plugins", bridge.display());
    Build { cni: Some(DEBIAN_PLUGINS.into()), ..Build::default() }
}

fn swap(lab: &mut Lab, node: usize, build: &Build) -> Swapped {
    lab.swap(node, build.clone(), PATIENCE)
        .unwrap_or_else(|error| panic!("{error}\n{}", error.log().unwrap_or_default()))
}

/// The build came up, nothing was lost on the way, and nothing was touched that agreed.
fn assert_unnoticed(swapped: &Swapped) {
    assert!(swapped.ready_us.is_some() && swapped.failure.is_none(), "{swapped:?}");
    assert!(swapped.pings.iter().all(|pings| pings.sent > 100), "{swapped:?}");
    assert!(swapped.is_lossless(), "{swapped:?}");
    assert_eq!(swapped.changes, Vec::<String>::new());
}

#[test]
fn a_mixed_cluster_connects_all_pods() {
    if !enclosed("a_mixed_cluster_connects_all_pods") {
        return;
    }
    let other = Build { arguments: vec!["--iptables-resync=3".into()], ..other_build("mixed") };
    let builds = [("node2".to_owned(), other.clone()), ("node3".to_owned(), debians_plugins())].into();
    let mut lab = start(LabOptions { builds, ..options(DUAL) });
    assert_all_proofs(&mut lab);
    let program = fs::read_link(format!("/proc/{}/exe", lab.node(1).flanneld.pid().unwrap())).unwrap();
    assert_eq!(Some(program), other.flanneld);
    let drawing = report::topology(&lab).unwrap();
    let line = |node: &str| drawing.lines().find(|line| line.contains(node)).unwrap();
    assert!(!line(" node1 ").contains(": ") && !line(" node1 ").contains("plugins"), "{drawing}");
    assert!(line(" node2 ").contains(": /") && line(" node2 ").contains("/other v"), "{drawing}");
    assert!(line(" node2 ").contains("with --iptables-resync=3"), "{drawing}");
    assert!(line(" node3 ").contains("plugins of /usr/lib/cni but for flannel"), "{drawing}");
}

/// `--version` of what leaves a process behind that holds its output open.
#[test]
fn a_version_is_told_though_the_output_stays_open() {
    if !enclosed("a_version_is_told_though_the_output_stays_open") {
        return;
    }
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && {{ sleep 1000 & echo lingering v7; exit 0; }}\nexec {FLANNEL} flanneld \"$@\"\n"
    );
    let build = Build { flanneld: Some(file("lingering", "lingering", script.as_bytes())), ..Build::default() };
    let lab = start(LabOptions { builds: [("node2".to_owned(), build)].into(), ..options(IPV4) });
    assert_eq!(lab.node(1).flanneld.version().unwrap(), "lingering v7");
}

#[test]
fn upgrade_and_downgrade_are_not_noticed() {
    if !enclosed("upgrade_and_downgrade_are_not_noticed") {
        return;
    }
    let mut lab = start(options(DUAL));
    let other = other_build("upgrade");
    let up = swap(&mut lab, 0, &other);
    assert_unnoticed(&up);
    assert_eq!((&up.before.flanneld, &up.after.flanneld), (&None, &other.flanneld));
    let ways = |family: &str| up.pings.iter().filter(|pings| pings.family == family).count();
    assert_eq!((ways("IPv4"), ways("IPv6"), up.flows.len()), (5, 5, 2));
    let down = swap(&mut lab, 0, &Build::default());
    assert_unnoticed(&down);
    assert_eq!((&down.before.flanneld, &down.after.flanneld), (&other.flanneld, &None));
    assert_all_proofs(&mut lab);
}

/// `0 lost` says something only of a lab that can see losses.
#[test]
fn what_an_exchange_breaks_is_told() {
    if !enclosed("what_an_exchange_breaks_is_told") {
        return;
    }
    let mut lab = start(options(IPV4));
    let breaking = spoilt("told", "ip route del 10.244.2.0/24; nft delete table flannel-ipv4; sleep 0.5");
    let swapped = swap(&mut lab, 0, &breaking);
    assert!(swapped.ready_us.is_some() && !swapped.is_lossless(), "{swapped:?}");
    let lost = |from: &str, to: &str| {
        let pings = swapped.pings.iter().find(|pings| (pings.from.as_str(), pings.to.as_str()) == (from, to)).unwrap();
        pings.lost_at_ms.len()
    };
    assert!(lost("pod1-1", "pod2-1") > 20 && lost("pod2-1", "pod1-1") > 20, "{swapped:?}");
    assert_eq!(lost("pod1-1", "pod3-1") + lost("pod1-1", "pod1-2"), 0, "{swapped:?}");
    assert!(swapped.flows[0].unmasqueraded > 20, "{swapped:?}");
    for change in ["removed route 10.244.2.0/24", "set route 10.244.2.0/24", "changed nf_tables rules"] {
        assert!(swapped.changes.iter().any(|told| told == change), "{swapped:?}");
    }
    assert_all_proofs(&mut lab);
}

#[test]
fn a_build_that_fails_is_taken_out_again() {
    if !enclosed("a_build_that_fails_is_taken_out_again") {
        return;
    }
    let mut lab = start(options(IPV4));
    let build =
        |name, script: &str| Build { flanneld: Some(file("fails", name, script.as_bytes())), ..Build::default() };
    let failing = [
        (build("ends", "#!/bin/sh\necho no such store; exit 3\n"), "ended with exit status: 3", "    no such store\n"),
        (build("waits", "#!/bin/sh\necho waiting; exec sleep 100\n"), "was not ready within 2 s", "    waiting\n"),
        (build("absent", "#!/nowhere\n"), "cannot run ", ""),
    ];
    for (build, why, log) in failing {
        let swapped = lab.swap(0, build, Duration::from_secs(2)).unwrap();
        let failure = swapped.failure.as_ref().unwrap_or_else(|| panic!("{swapped:?}"));
        assert!(failure.why.contains(why) && failure.log == log, "{failure:?}");
        assert!(swapped.ready_us.is_none() && swapped.is_lossless(), "{swapped:?}");
        assert_eq!(swapped.changes, Vec::<String>::new());
        assert_eq!(lab.node(0).build(), &Build::default());
    }
    assert_all_proofs(&mut lab);
}

#[test]
fn pods_of_one_build_of_plugins_are_deleted_by_another() {
    if !enclosed("pods_of_one_build_of_plugins_are_deleted_by_another") {
        return;
    }
    let mut lab = start(LabOptions { builds: [("node1".to_owned(), debians_plugins())].into(), ..options(DUAL) });
    let pingers: Vec<_> = Family::ALL
        .map(|family| {
            let (stays, far) = (&lab.node(0).pods()[1], &lab.node(1).pods()[0]);
            [lab.pinger(stays, far, family).unwrap(), lab.pinger(far, stays, family).unwrap()]
        })
        .into_iter()
        .flatten()
        .collect();
    let reserved =
        |lab: &Lab| text(lab, 0, "ls /run/cni/networks/cbr0").lines().filter(|line| line.starts_with("10.")).count();
    let ports = |lab: &Lab| text(lab, 0, "ip -o link show master cni0").lines().count();
    for (replaced, by) in [("pod1-1", Build::default()), ("pod1-1", debians_plugins()), ("pod1-1", Build::default())] {
        let old = lab.install(0, by);
        lab.node_mut(0).remove_pod(replaced).unwrap();
        assert_eq!((reserved(&lab), ports(&lab)), (1, 1), "after DEL by another build than {old:?}");
        lab.node_mut(0).add_pod(replaced).unwrap();
        assert_eq!((reserved(&lab), ports(&lab)), (2, 2));
        assert_all_proofs(&mut lab);
    }
    for pinger in pingers {
        let pings = pinger.finish().unwrap();
        assert!(pings.sent > 100 && pings.lost.is_empty(), "{} of {} lost", pings.lost.len(), pings.sent);
    }
}

fn said(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = flannel(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_command_swaps_all_nodes_and_says_what_failed() {
    if !enclosed("the_command_swaps_all_nodes_and_says_what_failed") {
        return;
    }
    let other = other_build("command").flanneld.unwrap().display().to_string();
    let failing = file("command", "failing", b"#!/bin/sh\necho no such store\nexit 3\n").display().to_string();
    let (code, _, complained) = said(&["lab", "up", "--node", "4:cni=/usr/lib/cni"]);
    assert_eq!((code, complained.as_str()), (Some(1), "error: --node node4: the lab has the nodes 1 to 3\n"));
    let (code, _, complained) = said(&["lab", "up", "--node", "2:flanneld=/etc/passwd"]);
    assert_eq!((code, complained.as_str()), (Some(1), "error: flanneld /etc/passwd is not executable\n"));
    let (code, text, complained) =
        said(&["lab", "up", "--nodes", "2", "--pods", "1", "--node", &format!("2:flanneld={other}")]);
    assert_eq!(code, Some(0), "{text}{complained}");
    let (code, text, complained) = said(&["lab", "swap", "--all", "--flanneld", &other]);
    assert!(code == Some(0) && text.contains("node1: the lab's own v"), "{text}{complained}");
    assert_eq!(text.lines().filter(|line| line.contains(" 0 of ") && line.contains(" IPv4 ")).count(), 2, "{text}");
    let (code, text, complained) = said(&["lab", "swap", "node1", "-o", "json"]);
    let swaps: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &swaps[0]["before"]["flanneld"]), (Some(0), &other.clone().into()), "{text}{complained}");
    assert!(swaps[0]["after"]["flanneld"].is_null() && swaps[0]["failure"].is_null(), "{text}");
    let (code, text, complained) = said(&["lab", "swap", "node2", "--flanneld", &failing]);
    assert!(code == Some(1) && text.contains("✗ never") && text.contains("    no such store\n"), "{text}");
    let expected = "error: the new build did not come up: flanneld on node2 ended with exit status: 3\n\
                    hint: the build before it runs again\n";
    assert_eq!(complained, expected);
    let (code, text, _) = said(&["lab", "ls"]);
    assert!(code == Some(0) && text.contains(&format!("{other} v")), "{text}");
    assert_eq!(said(&["lab", "down"]).0, Some(0));
}
