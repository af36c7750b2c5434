//! Leases as annotations of Kubernetes Nodes (compat §4): read from a Node, and what to change on our own.
//!
//! No Kubernetes types: the store hands in name, annotations and pod CIDRs, and sends what [`changes`] says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::addr::{Dual, Family};
use crate::json::shown;
use crate::lease::{Attributes, Claim, Flaw, Lease, LeaseKey, Record, Since};
use crate::record::{Field, Side, assemble, read_public_ip, write_vtep};

/// What the names of flannel's annotations begin with: `flannel.alpha.coreos.com/`, or `example.org/net-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(Box<str>);

impl Default for Prefix {
    fn default() -> Self {
        Self("flannel.alpha.coreos.com/".into())
    }
}

/// Why a prefix for annotations cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a prefix for annotations: {why}")]
pub struct BadPrefix {
    text: String,
    why: &'static str,
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    /// Reads `--kube-annotation-prefix`: a domain name, or one with `/` and the beginning of a name.
    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let bad = |why| BadPrefix { text: shown(text), why };
        let (domain, name) = text.split_once('/').unwrap_or((text, ""));
        let word = |text: &str| text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if name.contains('/') {
            return Err(bad("it may hold only one `/`"));
        }
        let labels = domain.split('.');
        if labels.clone().count() < 2 || !labels.clone().all(|label| !label.is_empty() && word(label)) {
            return Err(bad("it must begin with a domain name such as example.org, in lower case"));
        }
        if !word(name) {
            return Err(bad("after `/` only a-z, 0-9, `_` and `-` may follow"));
        }
        let dash = if name.is_empty() || name.ends_with('-') { "" } else { "-" };
        Ok(Self(format!("{domain}/{name}{dash}").into()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prefix {
    /// Whether an annotation of this name is flannel's.
    pub fn begins(&self, key: &str) -> bool {
        key.starts_with(&*self.0)
    }

    /// The full name of an annotation.
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";

const fn public_ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "public-ip",
        Family::V6 => "public-ipv6",
    }
}

const fn backend_data(family: Family) -> &'static str {
    match family {
        Family::V4 => "backend-data",
        Family::V6 => "backend-v6-data",
    }
}

/// The annotations of a Node.
pub type Annotations = BTreeMap<String, String>;

/// What flannel reads of a Node.
#[derive(Debug, Clone, Copy)]
pub struct KubeNode<'a> {
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.annotations`; those without flannel's prefix may be left out.
    pub annotations: &'a Annotations,
    /// What [`read_pod_cidrs`] says of `spec.podCIDRs`, or else of the only `spec.podCIDR`.
    pub pod_cidrs: &'a Result<Dual<IpNet>, Flaw>,
    /// `metadata.creationTimestamp` and `metadata.uid`.
    pub since: Since,
}

/// The record that a Node carries; none if flannel does not run on it.
pub fn read(prefix: &Prefix, node: &KubeNode<'_>) -> Option<Record> {
    let lease = || read_lease(prefix, node).map(|lease| Lease { since: node.since, ..lease });
    is_managed(prefix, node.annotations).then(|| Record::new(LeaseKey::new(node.name), lease()))
}

/// Whether flannel runs on the Node of these annotations.
pub fn is_managed(prefix: &Prefix, annotations: &Annotations) -> bool {
    annotations.get(&prefix.key(MANAGED)).is_some_and(|value| value == "true")
}

fn read_lease(prefix: &Prefix, node: &KubeNode<'_>) -> Result<Lease, Flaw> {
    let subnets = node.pod_cidrs.clone()?;
    let backend = node.annotations.get(&prefix.key(BACKEND_TYPE));
    let missing = |name: String| Flaw { field: name, why: "is missing".into() };
    let backend = backend.ok_or_else(|| missing(prefix.key(BACKEND_TYPE)))?;
    let field = |name: &str| {
        let name = prefix.key(name);
        Field { value: node.annotations.get(&name).cloned(), name }
    };
    let sides = Dual::from_fn(|family| {
        let subnet = *subnets.get(family)?;
        let side = Side { subnet, public_ip: field(public_ip(family)), data: field(backend_data(family)) };
        (!says_nothing(&side, family)).then_some(side)
    });
    if sides.is_empty() {
        return Err(missing(prefix.key(public_ip(subnets.families().next().unwrap_or(Family::V4)))));
    }
    assemble(backend, &sides)
}

/// Whether the annotations leave a family out: flannel need not run both families that a Node has pod CIDRs of.
fn says_nothing(side: &Side, family: Family) -> bool {
    let no_ip = side.public_ip.value.as_deref().is_none_or(|ip| ip == family.unspecified().to_string());
    no_ip && side.data.value.as_deref().is_none_or(|data| data == "null")
}

/// The subnets of a Node, at most one for each family.
pub fn read_pod_cidrs(cidrs: &[String]) -> Result<Dual<IpNet>, Flaw> {
    let flaw = |why: String| Flaw { field: "spec.podCIDRs".into(), why };
    let mut subnets = Dual::default();
    for text in cidrs {
        let cidr: IpNet = text.parse().map_err(|_| flaw(format!("`{}` is not a prefix", shown(text))))?;
        let family = Family::of_net(cidr);
        if subnets.get(family).is_some() {
            return Err(flaw(format!("holds more than one {family} prefix")));
        }
        subnets.set(family, cidr.trunc());
    }
    if subnets.is_empty() { Err(flaw("is empty".into())) } else { Ok(subnets) }
}

/// Public addresses that an operator sets on our own Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Published instead of our address (`public-ip-overwrite`, `public-ipv6-overwrite`).
    pub published: Dual<IpAddr>,
    /// Act as `--public-ip` and `--public-ipv6` and win over them (`node-public-ip`, `node-public-ipv6`).
    pub node: Dual<IpAddr>,
}

/// Reads the operator's annotations; an unusable one counts as absent and is named.
pub fn overrides(prefix: &Prefix, annotations: &Annotations) -> (Overrides, Vec<Flaw>) {
    let mut flaws = Vec::new();
    let mut read = |family, name: String| {
        let key = prefix.key(&name);
        let text = annotations.get(&key).filter(|text| !text.is_empty())?;
        read_public_ip(family, &key, text).map_err(|flaw| flaws.push(flaw)).ok()
    };
    let published = Dual::from_fn(|family| read(family, format!("{}-overwrite", public_ip(family))));
    let node = Dual::from_fn(|family| read(family, format!("node-{}", public_ip(family))));
    (Overrides { published, node }, flaws)
}

/// What has to change on our own Node so that it says our claim: new values, and `None` where an annotation of an
/// earlier claim has to go. Empty when all is as it should be.
pub fn changes(prefix: &Prefix, current: &Annotations, claim: &Claim) -> BTreeMap<String, Option<String>> {
    let wanted = wanted(prefix, claim);
    let data = Family::ALL.into_iter().flat_map(|family| [public_ip(family), backend_data(family)]);
    let stale = data.map(|name| prefix.key(name)).filter(|key| current.contains_key(key) && !wanted.contains_key(key));
    let stale: Vec<_> = stale.map(|key| (key, None)).collect();
    let new = wanted.into_iter().filter(|(key, value)| current.get(key) != Some(value));
    new.map(|(key, value)| (key, Some(value))).chain(stale).collect()
}

fn wanted(prefix: &Prefix, claim: &Claim) -> Annotations {
    let mut wanted = Annotations::new();
    let mut set = |name: &str, value: String| wanted.insert(prefix.key(name), value);
    set(MANAGED, "true".to_owned());
    set(BACKEND_TYPE, claim.attributes.backend_type().to_owned());
    for family in Family::ALL {
        if let Some(data) = published_data(claim, family) {
            let ip = claim.public_ip.get(family).copied().unwrap_or(family.unspecified());
            set(backend_data(family), data);
            set(public_ip(family), ip.to_string());
        }
    }
    wanted
}

/// The data to publish for a family; none where its annotations are left out: vxlan without a device of the family, other
/// backends without IPv6. (Flannel in Go leaves IPv6 out of alloc's annotations always, so that they do not say what it holds.)
fn published_data(claim: &Claim, family: Family) -> Option<String> {
    let null = || Some("null".to_owned());
    match (&claim.attributes, family) {
        (Attributes::Vxlan(vteps), _) => vteps.get(family).copied().map(write_vtep),
        (_, Family::V4) => null(),
        (_, Family::V6) => claim.public_ip.v6.and_then(|_| null()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Mac, Vni};
    use crate::lease::Vtep;
    use crate::record::SubnetKey;

    const DUAL: &str = r#"
flannel.alpha.coreos.com/backend-data {"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}
flannel.alpha.coreos.com/backend-type vxlan
flannel.alpha.coreos.com/backend-v6-data {"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:66"}
flannel.alpha.coreos.com/kube-subnet-manager true
flannel.alpha.coreos.com/public-ip 192.168.64.3
flannel.alpha.coreos.com/public-ipv6 2001:db8::3
"#;
    const CIDRS: [&str; 2] = ["10.244.1.0/24", "2001:cafe:42:1::/64"];

    fn annotations(text: &str) -> Annotations {
        let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.lines().filter_map(pair).collect()
    }

    fn text(annotations: &Annotations) -> String {
        annotations.iter().fold("\n".to_owned(), |text, (key, value)| format!("{text}{key} {value}\n"))
    }

    fn node_record(text: &str, cidrs: &[&str]) -> Option<Record> {
        let cidrs: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        let since = Since { at: 5, tie: 6 };
        let cidrs = read_pod_cidrs(&cidrs);
        let node = KubeNode { name: "n1", annotations: &annotations(text), pod_cidrs: &cidrs, since };
        read(&Prefix::default(), &node)
    }

    fn alloc() -> Attributes {
        Attributes::Other("".into())
    }

    fn vxlan_claim(families: &[Family]) -> Claim {
        let has = |family: &Family| families.contains(family);
        let vtep = |last| Vtep { vni: Vni::new(1).unwrap(), mac: Mac([0xc6, 0xd2, 0x32, 0x6f, 0x8f, last]) };
        let macs = Dual { v4: Some(vtep(0x44)), v6: Some(vtep(0x66)) };
        let ips = Dual { v4: "192.168.64.3".parse().ok(), v6: "2001:db8::3".parse().ok() };
        Claim {
            public_ip: Dual::from_fn(|family| ips.get(family).copied().filter(|_| has(&family))),
            attributes: Attributes::Vxlan(Dual::from_fn(|family| macs.get(family).copied().filter(|_| has(&family)))),
            previous: Dual::default(),
        }
    }

    #[test]
    fn prefixes() {
        let check = |text: &str, expect: Result<&str, &str>| {
            let prefix = text.parse::<Prefix>().map(|p| p.to_string()).map_err(|e| e.why.to_owned());
            assert_eq!(prefix, expect.map(ToOwned::to_owned).map_err(ToOwned::to_owned), "{text}");
        };
        let domain = Err("it must begin with a domain name such as example.org, in lower case");
        let name = Err("after `/` only a-z, 0-9, `_` and `-` may follow");
        check("flannel.alpha.coreos.com", Ok("flannel.alpha.coreos.com/"));
        check("flannel.alpha.coreos.com/", Ok("flannel.alpha.coreos.com/"));
        check("example.org/net", Ok("example.org/net-"));
        check("example.org/net-", Ok("example.org/net-"));
        check("example.org/a/b", Err("it may hold only one `/`"));
        check("", domain);
        check("/x", domain);
        check("localhost", domain);
        check("example..org", domain);
        check("Example.org", domain);
        check("example.org/Net", name);
        check("example.org/a.b", name);
    }

    #[test]
    fn a_node_is_read_and_written_the_same() {
        let record = node_record(DUAL, &CIDRS).unwrap();
        assert_eq!(record.key.as_str(), "n1");
        let lease = record.lease.unwrap();
        assert_eq!((lease.flaws.len(), lease.since), (0, Since { at: 5, tie: 6 }));
        assert_eq!(SubnetKey(lease.subnet).to_string(), "10.244.1.0-24&2001:cafe:42:1::-64");
        let claim = vxlan_claim(&Family::ALL);
        assert_eq!((lease.public_ip, &lease.attributes), (claim.public_ip, &claim.attributes));
        assert_eq!(text(&wanted(&Prefix::default(), &claim)), DUAL);
        assert!(changes(&Prefix::default(), &annotations(DUAL), &claim).is_empty());
    }

    #[test]
    fn nodes_without_flannel_are_no_leases() {
        assert_eq!(node_record("", &CIDRS), None);
        assert_eq!(node_record(&DUAL.replace("manager true", "manager false"), &CIDRS), None);
    }

    #[test]
    fn families_of_a_node() {
        let check = |from: &str, to: &str, cidrs: &[&str], expect: &str, flaws: &[&str]| {
            let record = node_record(&DUAL.replace(from, to), cidrs).unwrap();
            let lease = record.lease.unwrap_or_else(|flaw| panic!("{to}: {flaw}"));
            assert_eq!(SubnetKey(lease.subnet).to_string(), expect, "{to}");
            assert_eq!(lease.flaws.iter().map(ToString::to_string).collect::<Vec<_>>(), flaws, "{to}");
        };
        let (v4, v6) = ("10.244.1.0-24", "0.0.0.0-0&2001:cafe:42:1::-64");
        check("", "", &CIDRS[..1], v4, &[]);
        check("", "", &CIDRS[1..], v6, &[]);
        let only_v4 = DUAL.lines().filter(|line| !line.contains("v6")).collect::<Vec<_>>().join("\n");
        check(DUAL, &only_v4, &CIDRS, v4, &[]);
        check(
            "v6-data {\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:66\"}",
            "v6-data null",
            &CIDRS,
            v4,
            &["flannel.alpha.coreos.com/backend-v6-data: null is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}"],
        );
        check(
            "c6:d2:32:6f:8f:44",
            "01:00:5e:00:00:01",
            &CIDRS,
            v6,
            &["flannel.alpha.coreos.com/backend-data.VtepMAC: 01:00:5e:00:00:01 is not the MAC address of a host"],
        );
        check(
            "2001:db8::3",
            "::",
            &CIDRS,
            v4,
            &["flannel.alpha.coreos.com/public-ipv6: `::` is not an IPv6 address of a host"],
        );
    }

    #[test]
    fn unreadable_nodes() {
        let check = |from: &str, to: &str, cidrs: &[&str], expect: &str| {
            let record = node_record(&DUAL.replace(from, to), cidrs).unwrap();
            assert_eq!(record.lease.unwrap_err().to_string(), expect, "{to}");
        };
        let v4 = &CIDRS[..1];
        let ns = "flannel.alpha.coreos.com";
        check("", "", &[], "spec.podCIDRs: is empty");
        check("", "", &["x"], "spec.podCIDRs: `x` is not a prefix");
        check("", "", &[CIDRS[0], "10.244.2.0/24"], "spec.podCIDRs: holds more than one IPv4 prefix");
        check("backend-type", "type", v4, &format!("{ns}/backend-type: is missing"));
        check("public-ip 1", "ip 1", v4, &format!("{ns}/public-ip: is missing"));
        check("coreos.com/backend-data", "x", v4, &format!("{ns}/backend-data: is missing"));
        check(
            "{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}",
            "null",
            v4,
            &format!("{ns}/backend-data: null is not an object like {{\"VNI\":1,\"VtepMAC\":\"…\"}}"),
        );
        check(
            "c6:d2:32:6f:8f:44",
            "c6:d2:32:6f:8f:44:00:11",
            v4,
            &format!("{ns}/backend-data.VtepMAC: `c6:d2:32:6f:8f:44:00:11` is not a 6-byte MAC address"),
        );
    }

    #[test]
    fn which_annotations_a_backend_writes() {
        let check = |claim: &Claim, expect: &str| {
            let text = text(&wanted(&"example.org".parse().unwrap(), claim));
            assert_eq!(text.replace("example.org/", "").replace("kube-subnet-manager true\n", ""), expect);
        };
        check(
            &vxlan_claim(&[Family::V6]),
            "\nbackend-type vxlan\nbackend-v6-data {\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:66\"}\npublic-ipv6 2001:db8::3\n",
        );
        let host_gw = |families: &[Family]| Claim { attributes: Attributes::HostGw, ..vxlan_claim(families) };
        check(&host_gw(&[Family::V4]), "\nbackend-data null\nbackend-type host-gw\npublic-ip 192.168.64.3\n");
        check(
            &host_gw(&[Family::V6]),
            "\nbackend-data null\nbackend-type host-gw\nbackend-v6-data null\npublic-ip 0.0.0.0\npublic-ipv6 2001:db8::3\n",
        );
        let alloc = |families: &[Family]| Claim { attributes: alloc(), ..vxlan_claim(families) };
        check(&alloc(&[Family::V4]), "\nbackend-data null\nbackend-type \npublic-ip 192.168.64.3\n");
        check(
            &alloc(&Family::ALL),
            "\nbackend-data null\nbackend-type \nbackend-v6-data null\npublic-ip 192.168.64.3\npublic-ipv6 2001:db8::3\n",
        );
    }

    #[test]
    fn a_node_without_published_data_reads_back() {
        let claims = [(Attributes::HostGw, &[Family::V6][..]), (alloc(), &[Family::V6]), (alloc(), &Family::ALL)];
        for (attributes, families) in claims {
            let claim = Claim { attributes, ..vxlan_claim(families) };
            let record = node_record(&text(&wanted(&Prefix::default(), &claim)), &CIDRS).unwrap();
            let lease = record.lease.unwrap();
            assert_eq!(
                (lease.public_ip, &lease.attributes, &lease.flaws),
                (claim.public_ip, &claim.attributes, &vec![])
            );
            assert!(lease.subnet.families().eq(claim.public_ip.families()));
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let check = |current: &str, families: &[Family], expect: &[(&str, Option<&str>)]| {
            let changes = changes(&Prefix::default(), &annotations(current), &vxlan_claim(families));
            let key = |key: &str| format!("flannel.alpha.coreos.com/{key}");
            let expect: BTreeMap<_, _> = expect.iter().map(|(k, v)| (key(k), v.map(ToOwned::to_owned))).collect();
            assert_eq!(changes, expect, "{current}");
        };
        check(&format!("{DUAL}other.org/x y\n"), &Family::ALL, &[]);
        check(&DUAL.replace("64.3", "64.4"), &Family::ALL, &[("public-ip", Some("192.168.64.3"))]);
        check(&DUAL.replace("manager true", "manager false"), &Family::ALL, &[("kube-subnet-manager", Some("true"))]);
        check(DUAL, &[Family::V4], &[("backend-v6-data", None), ("public-ipv6", None)]);
    }

    #[test]
    fn the_operators_addresses() {
        let text = "
flannel.alpha.coreos.com/public-ip-overwrite 198.51.100.7
flannel.alpha.coreos.com/public-ipv6-overwrite nonsense
flannel.alpha.coreos.com/node-public-ip\x20
flannel.alpha.coreos.com/node-public-ipv6 2001:db8::7
";
        let (overrides, flaws) = overrides(&Prefix::default(), &annotations(text));
        assert_eq!(overrides.published, Dual { v4: "198.51.100.7".parse().ok(), v6: None });
        assert_eq!(overrides.node, Dual { v4: None, v6: "2001:db8::7".parse().ok() });
        let flaws: Vec<String> = flaws.iter().map(ToString::to_string).collect();
        let expect = "flannel.alpha.coreos.com/public-ipv6-overwrite: `nonsense` is not an IPv6 address of a host";
        assert_eq!(flaws, [expect]);
    }
}
