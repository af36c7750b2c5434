//! `flannel etcd` as people meet it, on a real server, beside a real flanneld.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::network::{enclosed, flannel};
use crate::server::{self, PORT, Server, run};

const PREFIX: &str = "/coreos.com/network";
const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
const DUAL: &str =
    r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}"#;

/// A server in namespaces of the test's own, with a config.
fn begin(config: &str) -> Server {
    server::make_stage();
    let server = server::alone();
    server.ctl(&["put", &format!("{PREFIX}/config"), config]);
    server
}

fn put(server: &Server, name: &str, text: &str) {
    server.ctl(&["put", &format!("{PREFIX}/subnets/{name}"), text]);
}

/// Puts a record that lives for two hours.
fn lease(server: &Server, name: &str, text: &str) {
    let granted = server.ctl(&["lease", "grant", "7230"]);
    let id = granted.split(' ').nth(1).unwrap();
    server.ctl(&["put", &format!("--lease={id}"), &format!("{PREFIX}/subnets/{name}"), text]);
}

fn record(server: &Server, name: &str) -> String {
    server.ctl(&["get", "--print-value-only", &format!("{PREFIX}/subnets/{name}")])
}

/// What the tool prints, and its status where that is not 0.
fn said(words: &[&str]) -> String {
    said_with(words, &[], "")
}

fn said_with(words: &[&str], environment: &[(&str, &str)], input: &str) -> String {
    let mut command = flannel(&[&["etcd"], words].concat());
    command.envs(environment.iter().copied()).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    match output.status.code() {
        Some(0) => text,
        code => format!("{text}status {}\n", code.unwrap()),
    }
}

fn json(words: &[&str]) -> Value {
    let text = said(words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Asserts what the tool says.
fn check(words: &[&str], expect: &str) {
    assert_eq!(said(words), expect, "{words:?}");
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never comes that {what}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn records_are_listed_and_shown() {
    if !enclosed("tool::records_are_listed_and_shown") {
        return;
    }
    let server = begin(DUAL);
    check(&["ls"], "no records below /coreos.com/network/subnets/\n");
    assert_eq!(json(&["ls", "-o", "json"])["records"], Value::Array(Vec::new()));
    put(&server, "10.5.7.0-24", r#"{"PublicIP":"192.0.2.7"}"#);
    let vtep = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
    let v6 = r#""BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#;
    let both = format!(r#"{{"PublicIP":"192.0.2.12","PublicIPv6":"2001:db8::12",{vtep},{v6}}}"#);
    lease(&server, "10.5.12.0-24&fc00:0:0:c::-64", &both);
    put(&server, "garbage", "{");
    put(&server, "10.5.9.0-24", r#"{"PublicIP":"here"}"#);
    put(&server, "10.5.13.0-24", "\u{1b}[31m");
    check(
        &["ls"],
        "\
SUBNET                        PUBLIC IP                BACKEND  STATE             HOLDER
10.5.7.0/24                   192.0.2.7                -        reserved          -
10.5.9.0/24                   -                        -        reserved, broken  -
10.5.12.0/24,fc00:0:0:c::/64  192.0.2.12,2001:db8::12  vxlan    ends in 2h00m     -
10.5.13.0/24                  -                        -        reserved, broken  -
broken garbage: key: `garbage` is not an IPv4 subnet like 10.5.52.0-24
broken 10.5.9.0-24: PublicIP: `here` is not an IPv4 address of a host
broken 10.5.13.0-24: record: is not a JSON object: expected value at line 1 column 1
",
    );
    let wide = said(&["ls", "-o", "wide"]);
    let of_both = wide.lines().find(|line| line.starts_with("10.5.12.0/24")).unwrap();
    assert!(of_both.contains("vni=1/mac=02:00:00:00:00:01,vni=1/mac=02:00:00:00:00:02"), "{wide}");
    assert!(of_both.ends_with("/coreos.com/network/subnets/10.5.12.0-24&fc00:0:0:c::-64"), "{wide}");
    let listed = json(&["ls", "-o", "json"]);
    let listed = listed["records"].as_array().unwrap();
    let names: Vec<&str> = listed.iter().map(|record| record["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["garbage", "10.5.7.0-24", "10.5.9.0-24", "10.5.12.0-24&fc00:0:0:c::-64", "10.5.13.0-24"]);
    assert_eq!(listed[0]["broken"], "key: `garbage` is not an IPv4 subnet like 10.5.52.0-24");
    assert_eq!(
        (&listed[1]["reserved"], &listed[1]["lease"], &listed[1]["ends_in"]),
        (&true.into(), &Value::Null, &Value::Null)
    );
    let lease = &listed[3];
    assert_eq!(lease["text"], both.as_str());
    assert_eq!(
        (lease["vteps"][1]["mac"].as_str(), lease["vteps"][1]["vni"].as_u64()),
        (Some("02:00:00:00:00:02"), Some(1))
    );
    assert!((7200..=7230).contains(&lease["ends_in"].as_u64().unwrap()) && lease["lease"].as_str().unwrap().len() > 8);

    for what in ["10.5.12.0/24", "fc00:0:0:c::/64", "192.0.2.12", "10.5.12.9", "10.5.12.0-24&fc00:0:0:c::-64"] {
        let shown = said(&["show", what]);
        assert!(
            shown.starts_with("record     10.5.12.0-24&fc00:0:0:c::-64\n") && shown.contains(&both),
            "{what}: {shown}"
        );
        assert_eq!(shown.matches("record ").count(), 1, "{shown}");
    }
    let shown = said(&["show", "10.5.13.0/24"]);
    assert!(shown.contains(r"text       \u{1b}[31m") && shown.contains("broken     record: "), "{shown}");
    check(
        &["show", "192.0.2.99"],
        "error: no record in etcd is of 192.0.2.99\nhint: `flannel etcd ls` lists the records there are\nstatus 1\n",
    );
}

#[test]
fn subnets_are_reserved_and_released() {
    if !enclosed("tool::subnets_are_reserved_and_released") {
        return;
    }
    let server = begin(DUAL);
    check(
        &["reserve", "10.5.7.0/24,fc00:0:0:7::/64", "192.0.2.7,2001:db8::7"],
        "reserved 10.5.7.0-24&fc00:0:0:7::-64 for 192.0.2.7,2001:db8::7: flanneld on that host takes it when it starts\n",
    );
    let text = r#"{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7"}"#;
    assert_eq!(record(&server, "10.5.7.0-24&fc00:0:0:7::-64"), text);
    check(
        &["reserve", "10.5.7.0-24&fc00:0:0:7::-64", "192.0.2.7,2001:db8::7"],
        "10.5.7.0-24&fc00:0:0:7::-64 is reserved for 192.0.2.7,2001:db8::7 already\n",
    );
    lease(&server, "10.5.8.0-24", r#"{"PublicIP":"192.0.2.8","BackendType":"host-gw"}"#);
    for (subnet, public_ip, expect) in [
        (
            "10.5.7.0/24",
            "192.0.2.9",
            "10.5.7.0/24 is taken: record 10.5.7.0-24&fc00:0:0:7::-64 of 192.0.2.7,2001:db8::7, reserved\n\
             hint: choose another, or release that record first",
        ),
        (
            "10.5.8.0/24",
            "192.0.2.9",
            "10.5.8.0/24 is taken: record 10.5.8.0-24 of 192.0.2.8, ends in 2h00m\n\
             hint: choose another, or release that record first",
        ),
        (
            "10.5.9.0/24",
            "192.0.2.8",
            "192.0.2.8 has another subnet: record 10.5.8.0-24, ends in 2h00m\n\
             hint: reserve that subnet; or end flanneld on that host, release that record, and reserve this one then",
        ),
        (
            "10.6.0.0/24",
            "192.0.2.9",
            "10.6.0.0/24 cannot be reserved: the network config hands out /24 subnets from 10.5.1.0 to 10.5.255.0\n\
             hint: give one of those",
        ),
        (
            "10.5.9.0/24",
            "224.0.0.1",
            "the record would be broken: PublicIP: `224.0.0.1` is not an IPv4 address of a host\n\
             hint: give the address by which other nodes reach the host",
        ),
    ] {
        check(&["reserve", subnet, public_ip], &format!("error: {expect}\nstatus 1\n"));
    }
    check(
        &["release", "10.5.8.0/24"],
        "error: record 10.5.8.0-24 is the lease of 192.0.2.8, ends in 2h00m\n\
         hint: end flanneld on that host first, or it takes the subnet again at once; then release with --force\nstatus 1\n",
    );
    let again = "flanneld on that host, if it runs, takes it again at once, as a lease of 24 hours\n";
    check(
        &["reserve", "10.5.8.0/24", "192.0.2.8"],
        "reserved 10.5.8.0-24 for 192.0.2.8, which holds it: its lease ends no more\n",
    );
    assert_eq!(record(&server, "10.5.8.0-24"), r#"{"PublicIP":"192.0.2.8","BackendType":"host-gw"}"#);
    check(&["release", "10.5.8.0/24"], &format!("released 10.5.8.0-24 of 192.0.2.8, reserved\n{again}"));
    lease(&server, "10.5.10.0-24", r#"{"PublicIP":"192.0.2.10"}"#);
    check(
        &["release", "--force", "10.5.10.0/24"],
        &format!("released 10.5.10.0-24 of 192.0.2.10, ends in 2h00m\n{again}"),
    );
    put(&server, "garbage", "");
    check(&["release", "garbage"], "released garbage of a host that it does not name, reserved\n");
    check(
        &["release", "fc00:0:0:7::/64"],
        &format!("released 10.5.7.0-24&fc00:0:0:7::-64 of 192.0.2.7,2001:db8::7, reserved\n{again}"),
    );
    check(
        &["release", "10.5.7.0/24"],
        "error: etcd has no record 10.5.7.0/24 below /coreos.com/network/subnets/\n\
         hint: `flannel etcd ls` lists the records there are\nstatus 1\n",
    );
    check(&["ls"], "no records below /coreos.com/network/subnets/\n");
}

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_daemon_takes_what_is_reserved() {
    if !enclosed("tool::a_daemon_takes_what_is_reserved") {
        return;
    }
    let server = begin(CONFIG);
    for words in [
        "link add lan type veth peer name far",
        "link set far up",
        "link set lan up",
        "address add 192.0.2.21/24 dev lan",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>());
    }
    check(
        &["reserve", "10.5.77.0/24", "192.0.2.21"],
        "reserved 10.5.77.0-24 for 192.0.2.21: flanneld on that host takes it when it starts\n",
    );
    let log = fs::File::create("/run/flanneld.log").unwrap();
    let mut command = flannel(&["flanneld", "--iface=192.0.2.21"]);
    let mut daemon = Ended(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let env = || fs::read_to_string("/run/flannel/subnet.env").unwrap_or_default();
    until("flanneld is ready", || env().contains("FLANNEL_SUBNET="));
    assert!(env().contains("FLANNEL_SUBNET=10.5.77.1/24"), "{}", env());
    let shown = || json(&["show", "10.5.77.0/24", "-o", "json"])["records"][0].clone();
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let taken = shown();
    assert_eq!((&taken["reserved"], &taken["backend"]), (&true.into(), &"host-gw".into()), "{taken}");
    assert_eq!(taken["holder"]["name"], name.trim());
    assert_eq!(json(&["show", name.trim(), "-o", "json"])["records"][0], taken);

    said(&["release", "10.5.77.0/24"]);
    let again = || json(&["ls", "-o", "json"])["records"].as_array().is_some_and(|records| records.len() == 1);
    until("flanneld takes its subnet again", again);
    let leased = shown();
    assert!(leased["reserved"] == false && leased["ends_in"].as_u64() > Some(86_000), "{leased}");
    check(
        &["reserve", "10.5.77.0/24", "192.0.2.21"],
        "reserved 10.5.77.0-24 for 192.0.2.21, which holds it: its lease ends no more\n",
    );
    let kept = shown();
    assert_eq!((&kept["reserved"], &kept["text"], &kept["holder"]), (&true.into(), &leased["text"], &leased["holder"]));
    let granted = leased["lease"].as_str().unwrap();
    server.ctl(&["lease", "revoke", granted]);
    assert_eq!(shown()["holder"], leased["holder"], "the signature stays with the reservation");
    assert!(daemon.0.try_wait().unwrap().is_none(), "{}", fs::read_to_string("/run/flanneld.log").unwrap());
}

#[test]
fn a_config_is_checked_before_it_is_set() {
    if !enclosed("tool::a_config_is_checked_before_it_is_set") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let none = "error: etcd key /coreos.com/network/config does not exist: there is no network config\n\
                hint: `flannel etcd set-config FILE` writes one\nstatus 1\n";
    check(&["show", "config"], none);
    check(&["reserve", "10.5.7.0/24", "192.0.2.7"], none);
    let set = |text: &str, more: &[&str]| said_with(&[&["set-config", "-"], more].concat(), &[], text);
    assert_eq!(
        set(r#"{"Network": "10.5.0.0/30"}"#, &[]),
        "error: network config: Network 10.5.0.0/30 is too small to be divided among nodes\n\
         hint: use a network of at most /28\nstatus 1\n"
    );
    check(&["show", "config"], none);
    check(
        &["set-config", "/run/none"],
        "error: cannot read /run/none: No such file or directory (os error 2)\nstatus 1\n",
    );
    let summary = "network 10.5.0.0/16, subnets /24 from 10.5.1.0 to 10.5.255.0, backend host-gw, rules of iptables";
    let live = "flanneld takes it over while it runs, where its host can; flannel in Go when it is started again";
    fs::write("/run/config.json", CONFIG).unwrap();
    check(&["set-config", "/run/config.json"], &format!("/coreos.com/network/config is set: {summary}\n{live}\n"));
    assert_eq!(server.ctl(&["get", "--print-value-only", "/coreos.com/network/config"]), CONFIG);
    check(&["set-config", "/run/config.json"], &format!("/coreos.com/network/config is so already: {summary}\n"));
    lease(&server, "10.5.200.0-24", r#"{"PublicIP":"192.0.2.20"}"#);
    put(&server, "10.5.7.0-24", r#"{"PublicIP":"192.0.2.7"}"#);
    let smaller = CONFIG.replace("/16", "/17").replace("host-gw", "vxlan");
    assert_eq!(
        set(&smaller, &[]),
        "error: this config leaves no place for leases there are: 10.5.200.0-24 of 192.0.2.20\n\
         hint: leave them a place; or set it with --force, and make the pods of these hosts anew: they get other \
         subnets\nstatus 1\n"
    );
    let forced = set(&smaller, &["--force"]);
    let expect = ["10.5.200.0-24 of 192.0.2.20 has to go: make the pods of that host anew", "no packets pass between"];
    assert!(expect.iter().all(|line| forced.contains(line)), "{forced}");
    let v6 =
        smaller.replace(r#""Backend""#, r#""EnableIPv6": true, "IPv6Network": "fc00::/48", "Nettwork": 1, "Backend""#);
    let grown = set(&v6, &[]);
    let expect =
        ["warning: network config: key Nettwork is unknown", "hosts get IPv6 subnets", "10.5.0.0/17,fc00::/48"];
    assert!(expect.iter().all(|line| grown.contains(line)), "{grown}");
    let shown = said(&["show", "config"]);
    assert!(shown.contains("warning    network config: key Nettwork") && shown.contains("backend vxlan"), "{shown}");
    server.ctl(&["put", "/coreos.com/network/config", "{"]);
    let shown = said(&["show", "config"]);
    assert!(
        shown.contains("broken     network config is not a JSON object") && shown.ends_with("status 1\n"),
        "{shown}"
    );
    let refused = said(&["reserve", "10.5.9.0/24", "192.0.2.9"]);
    assert!(refused.starts_with("error: etcd key /coreos.com/network/config: network config is not"), "{refused}");
}

/// A `flannel etcd watch -o json`.
struct Watch {
    lines: BufReader<ChildStdout>,
    _log: BufReader<ChildStderr>,
    _process: Ended,
}

impl Watch {
    /// Begins, and waits until it watches.
    fn begin() -> Self {
        let mut child = flannel(&["etcd", "watch", "-o", "json"]).spawn().unwrap();
        let (mut begun, mut log) = (String::new(), BufReader::new(child.stderr.take().unwrap()));
        log.read_line(&mut begun).unwrap();
        assert_eq!(begun, "watching: 1 records\n");
        Self { lines: BufReader::new(child.stdout.take().unwrap()), _log: log, _process: Ended(child) }
    }

    /// The next event, with what it is about.
    fn next(&mut self) -> (String, Value) {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let what = event.get("name").or(event.get("text")).or(event.get("problem")).unwrap();
        (format!("{} {}", event["event"].as_str().unwrap(), what.as_str().unwrap()), event)
    }
}

#[test]
fn changes_are_told_also_after_a_lost_connection() {
    if !enclosed("tool::changes_are_told_also_after_a_lost_connection") {
        return;
    }
    let server = begin(CONFIG);
    put(&server, "10.5.7.0-24", r#"{"PublicIP":"192.0.2.7"}"#);
    let mut watch = Watch::begin();
    put(&server, "10.5.8.0-24", r#"{"PublicIP":"192.0.2.8"}"#);
    let (event, all) = watch.next();
    assert_eq!((event.as_str(), &all["public_ips"][0]), ("new 10.5.8.0-24", &"192.0.2.8".into()));
    put(&server, "10.5.8.0-24", r#"{"PublicIP":"192.0.2.8"}"#);
    assert_eq!(watch.next().0, "renewed 10.5.8.0-24");
    put(&server, "10.5.8.0-24", "{");
    let (event, all) = watch.next();
    assert!(event == "changed 10.5.8.0-24" && all["broken"].as_str().unwrap().starts_with("record: is not"), "{all}");
    server::cut();
    sleep(Duration::from_secs(1));
    server.ctl(&["del", &format!("{PREFIX}/subnets/10.5.7.0-24")]);
    server.ctl(&["put", &format!("{PREFIX}/config"), DUAL]);
    server::mend();
    let mut events = [watch.next().0, watch.next().0];
    events.sort();
    assert_eq!(events, [format!("config {DUAL}"), "removed 10.5.7.0-24".into()]);
}

#[test]
fn what_is_asked_wrongly_is_said() {
    if !enclosed("tool::what_is_asked_wrongly_is_said") {
        return;
    }
    server::make_stage();
    let nobody = said(&["ls", &format!("--etcd-endpoints=http://127.0.0.1:{PORT}")]);
    let refused = "error: etcd at http://127.0.0.1:2379 cannot be reached: Connection refused (os error 111)\n\
                   hint: start etcd there, or correct --etcd-endpoints\nstatus 1\n";
    assert_eq!(nobody, refused);
    let unknown = said(&["ls", "--etcd-pasword", "s3cret"]);
    assert_eq!(unknown, "error: unknown flag: `-etcd-pasword`\nhint: did you mean `-etcd-password`?\nstatus 2\n");
    for (words, expect) in [
        (&["ls", "--password=s3cret"][..], "error: unexpected argument '--password' found"),
        (
            &["ls", "-etcd-password=s3cret"],
            "error: bad value `(hidden)` for `-etcd-password`: a password needs -etcd-username",
        ),
        (&["ls", "-etcd-endpoints", "http://u:s3cret@a"], "error: bad value `http://(hidden)@a` for `-etcd-endpoints`"),
        (
            &["reserve", "10.5.7.1/24", "192.0.2.1"],
            "error: invalid value '10.5.7.1/24' for '<SUBNET>': `10.5.7.1/24` is not",
        ),
        (&["reserve", "10.5.7.0/24"], "error: the following required arguments were not provided"),
        (&["ls", "-o", "yaml"], "error: invalid value 'yaml' for '--output <FORM>'"),
        (&["lsof"], "error: unrecognized subcommand 'lsof'"),
    ] {
        let refused = said(words);
        let is_right = refused.starts_with(expect) && refused.ends_with("status 2\n") && !refused.contains("s3cret");
        assert!(is_right, "{words:?}: {refused}");
    }
    let bad = said_with(&["ls"], &[("FLANNELD_ETCD_ENDPOINTS", "ftp://a"), ("FLANNELD_V", "much")], "");
    assert!(bad.starts_with("error: bad value `ftp://a` for `FLANNELD_ETCD_ENDPOINTS`: "), "{bad}");
    for verb in ["ls", "show", "reserve", "release", "set-config", "watch"] {
        let help = said(&[verb, "--help"]);
        assert!(help.contains(&format!("Usage: flannel etcd {verb}")), "{help}");
    }
    let help = said(&["--help"]);
    assert!(
        help.contains("-etcd-password TEXT") && help.contains("set-config") && !help.contains("-ip-masq"),
        "{help}"
    );
}
