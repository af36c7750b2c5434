//! What drops pods' packets, as real firewalls write it: found, named with a remedy that works, and nothing found where
//! packets get through.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use flannel_core::addr::{Family, LinkName};
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::netlink::link::{Kind, Settings};
use flannel_kernel::netlink::{Protocol, Socket, link};
use flannel_kernel::passage::{Lookout, Packet, Sight};

use crate::Test;
use crate::namespace::run;

pub(crate) const TESTS: &[Test] = &[
    (
        "passage::chains_that_drop_are_named_and_the_remedy_lets_through",
        chains_that_drop_are_named_and_the_remedy_lets_through,
    ),
    ("passage::chains_that_let_through_are_no_alarm", chains_that_let_through_are_no_alarm),
    ("passage::what_may_let_through_is_no_alarm", what_may_let_through_is_no_alarm),
    ("passage::nothing_is_followed_while_nothing_changes", nothing_is_followed_while_nothing_changes),
    ("passage::leftovers_in_iptables_legacy_are_seen", leftovers_in_iptables_legacy_are_seen),
];

/// A firewall: what writes it, what drops (none if pods' packets get through), and what the remedy is, if it is one that
/// can be run here.
struct Firewall {
    written: &'static str,
    drops: Option<&'static str>,
    remedy: Option<&'static str>,
}

const NETWORK: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];

/// Packets from this node's pods to another's, and back.
fn packets(family: Family) -> [Packet; 2] {
    let (own, peer) = match family {
        Family::V4 => ("10.244.1.0", "10.244.2.0"),
        Family::V6 => ("fd00:244:0:1::", "fd00:244:0:2::"),
    };
    let link = |name: &str| name.parse::<LinkName>().unwrap();
    let packet = |input, output, source: &str, destination: &str| Packet {
        input: link(input),
        output: link(output),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    [packet("cni0", "flannel.1", own, peer), packet("flannel.1", "cni0", peer, own)]
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn look(family: Family) -> Sight {
    Lookout::default().look(&packets(family)).unwrap().unwrap()
}

/// A node: a pod behind `cni0`, another node's pod behind `flannel.1`, and packets forwarded between the two.
struct Site {
    pod: NetNamespace,
    /// Of the other pod.
    _listener: TcpListener,
}

impl Site {
    fn new() -> Self {
        run("ip link set lo up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let [pod, peer] = [("cni0", 1), ("flannel.1", 2)].map(|(device, subnet)| {
            let namespace = NetNamespace::create().unwrap();
            let name = device.parse::<LinkName>().unwrap();
            let eth0 =
                Settings { name: Some("eth0".parse().unwrap()), netns: Some(namespace.as_fd()), ..Settings::default() };
            let mut socket = Socket::open(Protocol::Route).unwrap();
            let outside = Settings { name: Some(name), ..Settings::default() };
            socket.tell(&link::create(&outside, &Kind::Veth(eth0))).unwrap();
            run(&format!("ip addr add 10.244.{subnet}.1/24 dev {device}"));
            run(&format!("ip link set {device} up"));
            let inside = || {
                run("ip link set lo up");
                run(&format!("ip addr add 10.244.{subnet}.2/24 dev eth0"));
                run("ip link set eth0 up");
                run(&format!("ip route add default via 10.244.{subnet}.1"));
            };
            namespace.run(inside).unwrap();
            namespace
        });
        let listener = peer.run(|| TcpListener::bind(("10.244.2.2", 9)).unwrap()).unwrap();
        Self { pod, _listener: listener }
    }

    /// Whether the kernel lets a connection through; it has longer when that is expected.
    fn passes(&self, expected: bool) -> bool {
        let patience = Duration::from_millis(if expected { 5000 } else { 300 });
        self.pod.run(|| TcpStream::connect_timeout(&([10, 244, 2, 2], 9).into(), patience).is_ok()).unwrap()
    }
}

/// Runs each firewall in a fresh network namespace; for IPv4 the kernel itself is asked, too, what gets through.
fn each(firewalls: &[Firewall], family: Family) {
    for Firewall { written, drops, remedy } in firewalls {
        let work = || {
            let site = (family == Family::V4).then(Site::new);
            shell(written);
            let found: Vec<_> = look(family).blocks.iter().map(ToString::to_string).collect();
            assert_eq!(found, drops.iter().map(ToString::to_string).collect::<Vec<_>>(), "{written}");
            let passes =
                |expect: bool| assert!(site.as_ref().is_none_or(|site| site.passes(expect) == expect), "{written}");
            passes(drops.is_none());
            let Some(remedy) = remedy else { return };
            let network = NETWORK[usize::from(family == Family::V6)].parse().unwrap();
            assert_eq!(look(family).blocks[0].remedy(network), *remedy, "{written}");
            if !remedy.starts_with("ufw") && !remedy.starts_with("firewall-cmd") {
                shell(remedy);
                assert_eq!(look(family).blocks, [], "{written}: {remedy}");
                passes(true);
            }
        };
        NetNamespace::create().unwrap().run(work).unwrap();
    }
}

/// Docker's rules, as version 20.10 writes them.
const DOCKER: &str = "
    I=iptables-$V
    $I -P FORWARD DROP
    for chain in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do $I -N $chain; done
    $I -A FORWARD -j DOCKER-USER
    $I -A FORWARD -j DOCKER-ISOLATION-STAGE-1
    $I -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $I -A FORWARD -o docker0 -j DOCKER
    $I -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
    $I -A FORWARD -i docker0 -o docker0 -j ACCEPT
    $I -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
    $I -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
    $I -A DOCKER-ISOLATION-STAGE-1 -j RETURN
    $I -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
    $I -A DOCKER-ISOLATION-STAGE-2 -j RETURN
    $I -A DOCKER-USER -j RETURN
";

/// What ufw writes with DEFAULT_FORWARD_POLICY=REJECT, in part.
const UFW: &str = "
    I=iptables-$V
    for chain in before after reject; do $I -N ufw-$chain-forward; done
    $I -N ufw-user-forward
    $I -A FORWARD -j ufw-before-forward
    $I -A FORWARD -j ufw-after-forward
    $I -A FORWARD -j ufw-reject-forward
    $I -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $I -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
    $I -A ufw-before-forward -j ufw-user-forward
    $I -A ufw-user-forward -p tcp -m multiport --dports 80,443 -j ACCEPT
    $I -A ufw-after-forward -m limit --limit 3/min -j LOG
    $I -A ufw-reject-forward -j REJECT
";

/// What kube-proxy and flannel write in iptables mode, in part.
const KUBERNETES: &str = "
    I=iptables-$V
    for chain in KUBE-FORWARD KUBE-SERVICES KUBE-PROXY-FIREWALL FLANNEL-FWD; do $I -N $chain; done
    $I -A FORWARD -m conntrack --ctstate NEW -m comment --comment 'load balancer' -j KUBE-PROXY-FIREWALL
    $I -A FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD
    $I -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
    $I -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
    $I -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
    $I -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
    $I -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $I -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j REJECT
    $I -A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT
    $I -A FLANNEL-FWD -d 10.244.0.0/16 -j ACCEPT
";

/// What firewalld writes with its nftables backend, in part.
const FIREWALLD: &str = "nft -f - <<'END'
    table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname \"lo\" accept
            ct state invalid drop
            ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
            jump filter_FORWARD_ZONES
            reject with icmpx admin-prohibited
        }
        chain filter_FORWARD_ZONES {
            iifname \"eth0\" goto filter_FWD_public
            goto filter_FWD_public
        }
        chain filter_FWD_public {
            jump filter_FWD_public_allow
            reject with icmpx admin-prohibited
        }
        chain filter_FWD_public_allow { oifname \"eth0\" accept; }
    }
END
";

fn chains_that_drop_are_named_and_the_remedy_lets_through() {
    let of = |variant: &str, script: &str| &*Box::leak(format!("V={variant}\n{script}").into_boxed_str());
    each(
        &[
            Firewall {
                written: of("nft", DOCKER),
                drops: Some("table ip filter, chain FORWARD, policy drop"),
                remedy: Some("iptables-nft -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables-nft -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT"),
            },
            Firewall {
                written: of("legacy", DOCKER),
                drops: Some("iptables-legacy, table filter, chain FORWARD, policy drop"),
                remedy: Some("iptables-legacy -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables-legacy -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT"),
            },
            Firewall {
                written: of("nft", UFW),
                drops: Some("table ip filter, chain ufw-reject-forward, rule `counter xt target REJECT`"),
                remedy: Some("ufw route allow from 10.244.0.0/16; ufw route allow to 10.244.0.0/16"),
            },
            Firewall {
                written: of("legacy", UFW),
                drops: Some("iptables-legacy, table filter, chain ufw-reject-forward, rule `number 1`"),
                remedy: Some("ufw route allow from 10.244.0.0/16; ufw route allow to 10.244.0.0/16"),
            },
            Firewall {
                written: FIREWALLD,
                drops: Some("table inet firewalld, chain filter_FWD_public, rule `reject`"),
                remedy: Some("firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 && firewall-cmd --reload"),
            },
            Firewall {
                written: "nft add table inet mine; nft 'add chain inet mine way { type filter hook forward priority 0; policy drop; }'
                    nft add rule inet mine way ct state vmap { established : accept, related : accept, invalid : drop }
                    nft add rule inet mine way iifname { eth0, eth1 } accept
                    nft add rule inet mine way ip saddr 10.243.0.0-10.243.255.255 accept
                    nft add rule inet mine way tcp dport { 22, 1000-2000 } accept",
                drops: Some("table inet mine, chain way, policy drop"),
                remedy: Some("nft insert rule inet mine way ip saddr 10.244.0.0/16 accept; nft insert rule inet mine way ip daddr 10.244.0.0/16 accept"),
            },
            Firewall {
                written: "iptables-legacy -t mangle -A FORWARD -s 10.244.0.0/16 -j DROP",
                drops: Some("iptables-legacy, table mangle, chain FORWARD, rule `number 1`"),
                remedy: Some("iptables-legacy -t mangle -I FORWARD -s 10.244.0.0/16 -j ACCEPT; iptables-legacy -t mangle -I FORWARD -d 10.244.0.0/16 -j ACCEPT"),
            },
        ],
        Family::V4,
    );
    each(
        &[
            Firewall {
                written: "ip6tables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -i eth+ -j ACCEPT",
                drops: Some("table ip6 filter, chain FORWARD, policy drop"),
                remedy: Some(
                    "ip6tables-nft -I FORWARD -s fd00:244::/48 -j ACCEPT; ip6tables-nft -I FORWARD -d fd00:244::/48 -j ACCEPT",
                ),
            },
            Firewall {
                written: "ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -A FORWARD -i eth+ -p udp -j ACCEPT",
                drops: Some("ip6tables-legacy, table filter, chain FORWARD, policy drop"),
                remedy: Some(
                    "ip6tables-legacy -I FORWARD -s fd00:244::/48 -j ACCEPT; ip6tables-legacy -I FORWARD -d fd00:244::/48 -j ACCEPT",
                ),
            },
            Firewall {
                written: FIREWALLD,
                drops: Some("table inet firewalld, chain filter_FWD_public, rule `reject`"),
                remedy: Some(
                    "firewall-cmd --permanent --zone=trusted --add-source=fd00:244::/48 && firewall-cmd --reload",
                ),
            },
        ],
        Family::V6,
    );
}

fn chains_that_let_through_are_no_alarm() {
    let through = |script: String| Firewall { written: Box::leak(script.into_boxed_str()), drops: None, remedy: None };
    let mut firewalls = Vec::new();
    for variant in ["nft", "legacy"] {
        firewalls.push(through(format!("V={variant}\n{KUBERNETES}")));
        firewalls.push(through(format!("V={variant}\n{KUBERNETES}\niptables-{variant} -P FORWARD DROP")));
        firewalls.push(through(format!("V={variant}\n{DOCKER}\n{KUBERNETES}")));
        let allowed = ["-s 10.244.0.0/16", "-d 10.244.0.0/16"]
            .map(|end| format!("iptables-{variant} -A ufw-user-forward {end} -j ACCEPT"));
        firewalls.push(through(format!("V={variant}\n{UFW}\n{}", allowed.join("\n"))));
        firewalls.push(through(format!(
            "I=iptables-{variant}; $I -P FORWARD DROP; $I -N other; $I -A FORWARD ! -s 172.16.0.0/12 ! -i docker0 -g other
             $I -A other -p tcp -m tcp ! --dport 22 -j ACCEPT"
        )));
    }
    let trusted = "nft insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.244.0.0/16 accept";
    firewalls.push(through(format!("{FIREWALLD}\n{trusted}")));
    for table in [
        "add table inet mine { flags dormant; }; add chain inet mine way { type filter hook forward priority 0; policy drop; }",
        "table ip mine { chain way { type filter hook input priority 0; policy drop; }; }",
        "table ip6 mine { chain way { type filter hook forward priority 0; policy drop; }; }",
    ] {
        firewalls.push(through(format!("nft '{table}'")));
    }
    for rules in [
        "iif cni0 accept; oif cni0 accept",
        "iifname { cni0, flannel.1 } accept",
        "ip saddr { 10.0.0.0/8, 192.168.0.0/16 } accept",
        "ip saddr 10.244.0.0-10.244.255.255 accept",
        "meta nfproto ipv4 meta l4proto tcp accept",
        "ct state { new, established } accept",
        "ct state vmap { new : accept, established : accept, invalid : drop }",
        "iifname vmap { cni0 : jump yes, flannel.1 : goto yes }",
        "iifname \"eth*\" drop; oifname != eth0 accept",
        "tcp dport 1-1024 accept; tcp sport 1-1024 accept",
        "meta mark set 0x10; meta mark and 0x10 == 0x10 accept",
    ] {
        let way = "chain way { type filter hook forward priority 0; policy drop;";
        firewalls.push(through(format!("nft 'table inet mine {{ chain yes {{ accept; }}; {way} {rules}; }}; }}'")));
    }
    each(&firewalls, Family::V4);
}

fn what_may_let_through_is_no_alarm() {
    for written in [
        "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -m limit --limit 5/sec -j ACCEPT",
        "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m limit --limit 5/sec -j ACCEPT",
        "iptables-legacy -A FORWARD -m statistic --mode random --probability 0.5 -j DROP",
        "nft add table inet mine; nft add set inet mine nets '{ type ipv4_addr; flags interval; elements = { 10.244.0.0/16 }; }'
        nft add chain inet mine way '{ type filter hook forward priority 0; policy drop; }'
        nft add rule inet mine way ip saddr @nets accept",
    ] {
        let work = || {
            shell(written);
            assert_eq!(look(Family::V4).blocks, [], "{written}");
        };
        NetNamespace::create().unwrap().run(work).unwrap();
    }
}

fn nothing_is_followed_while_nothing_changes() {
    let mut lookout = Lookout::default();
    let packets = packets(Family::V4);
    assert_eq!(lookout.look(&packets).unwrap(), Some(Sight::default()));
    assert_eq!(lookout.look(&packets).unwrap(), None);
    for variant in ["nft", "legacy"] {
        run(&format!("iptables-{variant} -P FORWARD DROP"));
        assert_eq!(lookout.look(&packets).unwrap().unwrap().blocks.len(), 1, "{variant}");
        assert_eq!(lookout.look(&packets).unwrap(), None);
        run(&format!("iptables-{variant} -P FORWARD ACCEPT"));
        assert_eq!(lookout.look(&packets).unwrap(), Some(Sight::default()), "{variant}");
    }
    assert!(lookout.look(&packets[..1]).unwrap().is_some());
}

fn leftovers_in_iptables_legacy_are_seen() {
    run("iptables-legacy -t nat -N OTHER");
    run("ip6tables-legacy -N FLANNEL-FWD");
    assert_eq!(look(Family::V4).leftovers, [Family::V6]);
    run("iptables-legacy -t nat -N FLANNEL-POSTRTG");
    assert_eq!(look(Family::V4).leftovers, [Family::V4, Family::V6]);
    run("iptables-legacy -t nat -X FLANNEL-POSTRTG");
    run("ip6tables-legacy -X FLANNEL-FWD");
    assert_eq!(look(Family::V4).leftovers, []);
}
