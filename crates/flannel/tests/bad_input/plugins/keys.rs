//! Configurations with a key of a wrong type or value, plugin by plugin.
//!
//! A row is what the configuration holds besides `cniVersion`, `name` and `type`, and the whole message. Most begin and end alike:
//! of those that begin with `key` only the rest is told ([`whole`]).

use crate::{Case, refused};

/// What the plugin before portmap has answered.
const ADDED: &str = r#""prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/pod"}],"ips":[{"address":"10.1.0.2/24","interface":0}]}"#;

/// The rows of a plugin.
struct Plugin {
    name: &'static str,
    /// Shell commands before each.
    before: &'static str,
    /// What each row's configuration holds too.
    besides: &'static str,
    rows: &'static [(&'static str, &'static str)],
}

pub(in super::super) fn cases() -> Vec<Case> {
    PLUGINS.iter().flat_map(|plugin| plugin.rows.iter().map(|(keys, says)| case(plugin, keys, says))).collect()
}

fn case(plugin: &Plugin, keys: &'static str, says: &'static str) -> Case {
    let (name, before) = (plugin.name, plugin.before);
    let all = [keys, plugin.besides].into_iter().filter(|keys| !keys.is_empty());
    let more: String = all.flat_map(|keys| [",", keys]).collect();
    let conf = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"{name}"{more}}}"#);
    let command = format!("printf %s '{conf}' | {name}");
    refused(keys, before, command.leak(), whole(says))
}

fn whole(says: &'static str) -> &'static str {
    let Some(rest) = says.strip_prefix("key ") else { return says };
    let hint = "correct the file of network n in /etc/cni/net.d";
    format!("code 7: configuration of network n: key {rest}\nhint: {hint}").leak()
}

const PLUGINS: &[Plugin] = &[
    Plugin {
        name: "flannel",
        before: "pod; subnet_env",
        besides: "",
        rows: &[
            (r#""subnetFile":7"#, "key `subnetFile`: 7 is not text"),
            (r#""subnetFile":"a\u0000b""#, r#"key `subnetFile`: "a\0b" is not a path"#),
            (r#""dataDir":["x"]"#, "key `dataDir`: a list is not text"),
            (r#""delegate":"bridge""#, r#"key `delegate`: "bridge" is not an object"#),
            (r#""delegate":["bridge"]"#, "key `delegate`: a list is not an object"),
            (
                r#""delegate":{"type":7}"#,
                "code 7: flannel: 'delegate' dictionary, if present, must have (string) 'type' field\n\
         hint: correct the network's file in /etc/cni/net.d, usually 10-flannel.conflist",
            ),
            (
                r#""delegate":{"name":"x"}"#,
                "code 7: flannel: 'delegate' dictionary must not have 'name' field, it'll be set by flannel\n\
         hint: correct the network's file in /etc/cni/net.d, usually 10-flannel.conflist",
            ),
            (
                r#""delegate":{"ipam":{}}"#,
                "code 7: flannel: 'delegate' dictionary must not have 'ipam' field, it'll be set by flannel\n\
         hint: keys for the IPAM plugin stand in 'ipam' beside 'delegate'",
            ),
            (r#""ipam":7"#, "key `ipam`: 7 is not an object"),
            (r#""ipam":{"type":7}"#, "key `ipam.type`: it is not text"),
            (r#""ipam":{"routes":"0.0.0.0/0"}"#, "key `ipam.routes`: it is not a list"),
            (
                r#""ipam":{"routes":[{"dst":"10.9.0.0"}]}"#,
                r#"key `ipam.routes[0].dst`: "10.9.0.0" is not a prefix such as 10.244.1.0/24"#,
            ),
            (r#""ipam":{"dataDir":7}"#, "key `ipam.dataDir`: 7 is not text"),
            (
                r#""ipam":{"type":"bridge"}"#,
                "code 7: plugin \"bridge\" does not manage addresses\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (
                r#""runtimeConfig":[]"#,
                "code 7: configuration of network n: key `runtimeConfig`: a list is not an object\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"ips":"10.244.1.7"}"#,
                "code 7: configuration of network n: key `runtimeConfig.ips`: \"10.244.1.7\" is not a list\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""delegate":{"type":"flannel"}"#,
                "code 7: plugin \"flannel\" cannot be the delegate of flannel: it would call itself\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (
                r#""delegate":{"type":""}"#,
                "code 7: \"\" is not a plugin type\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (
                r#""delegate":{"type":"../bridge"}"#,
                "code 7: \"../bridge\" is not a plugin type\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (
                r#""delegate":{"type":"a\u0000b"}"#,
                "code 7: \"a\\0b\" is not a plugin type\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (r#""delegate":{"isGateway":"yes"}"#, r#"key `isGateway`: "yes" is not true or false"#),
            (r#""delegate":{"mtu":"1500"}"#, r#"key `mtu`: "1500" is not a number from 0 to 4294967295"#),
            (
                r#""delegate":{"mtu":67}"#,
                "code 7: bridge: MTU 67 is not between 68 and 65535\n\
         hint: set `mtu` to that of the node's network, or leave it out for the kernel's 1500",
            ),
            (
                r#""delegate":{"ipMasqBackend":"ipfw"}"#,
                "code 7: bridge: unknown ipmasq backend \"ipfw\"\n\
         hint: set `ipMasqBackend` to \"iptables\" or \"nftables\", or leave it out",
            ),
            (
                r#""delegate":{"bridge":"a/b"}"#,
                r#"key `bridge`: "a/b" is not the name of an interface (1 to 15 bytes, no `/`, `:` or blank)"#,
            ),
        ],
    },
    Plugin {
        name: "bridge",
        before: "pod",
        besides: "",
        rows: &[
            (r#""bridge":7"#, "key `bridge`: 7 is not text"),
            (
                r#""bridge":"a/b""#,
                r#"key `bridge`: "a/b" is not the name of an interface (1 to 15 bytes, no `/`, `:` or blank)"#,
            ),
            (
                r#""bridge":"..""#,
                r#"key `bridge`: ".." is not the name of an interface (1 to 15 bytes, no `/`, `:` or blank)"#,
            ),
            (
                r#""bridge":"sixteen-bytes-xx""#,
                r#"key `bridge`: "sixteen-bytes-xx" is not the name of an interface (1 to 15 bytes, no `/`, `:` or blank)"#,
            ),
            (
                r#""bridge":"a\u0000b""#,
                r#"key `bridge`: "a\0b" is not the name of an interface (1 to 15 bytes, no `/`, `:` or blank)"#,
            ),
            (r#""isGateway":"yes""#, r#"key `isGateway`: "yes" is not true or false"#),
            (r#""isDefaultGateway":1"#, "key `isDefaultGateway`: 1 is not true or false"),
            (r#""forceAddress":[]"#, "key `forceAddress`: a list is not true or false"),
            (r#""mtu":"big""#, r#"key `mtu`: "big" is not a number from 0 to 4294967295"#),
            (r#""mtu":-1"#, "key `mtu`: -1 is not a number from 0 to 4294967295"),
            (r#""mtu":1500.5"#, "key `mtu`: 1500.5 is not a number from 0 to 4294967295"),
            (
                r#""mtu":67"#,
                "code 7: bridge: MTU 67 is not between 68 and 65535\n\
         hint: set `mtu` to that of the node's network, or leave it out for the kernel's 1500",
            ),
            (
                r#""mtu":65536"#,
                "code 7: bridge: MTU 65536 is not between 68 and 65535\n\
         hint: set `mtu` to that of the node's network, or leave it out for the kernel's 1500",
            ),
            (r#""hairpinMode":{}"#, "key `hairpinMode`: an object is not true or false"),
            (r#""promiscMode":"on""#, r#"key `promiscMode`: "on" is not true or false"#),
            (
                r#""hairpinMode":true,"promiscMode":true"#,
                "code 7: bridge: cannot set hairpin mode and promiscuous mode at the same time\n\
         hint: promiscuous mode on the bridge does what hairpin mode does: set one of them",
            ),
            (r#""portIsolation":7"#, "key `portIsolation`: 7 is not true or false"),
            (r#""ipMasq":"yes""#, r#"key `ipMasq`: "yes" is not true or false"#),
            (r#""ipMasqBackend":7"#, "key `ipMasqBackend`: 7 is not text"),
            (
                r#""ipMasqBackend":"ipfw""#,
                "code 7: bridge: unknown ipmasq backend \"ipfw\"\n\
         hint: set `ipMasqBackend` to \"iptables\" or \"nftables\", or leave it out",
            ),
            (r#""macspoofchk":1"#, "key `macspoofchk`: 1 is not true or false"),
            (r#""enabledad":"no""#, r#"key `enabledad`: "no" is not true or false"#),
            (r#""disableContainerInterface":0"#, "key `disableContainerInterface`: 0 is not true or false"),
            (r#""dns":[]"#, "key `dns`: a list is not an object"),
            (r#""dns":{"nameservers":"10.0.0.53"}"#, r#"key `dns.nameservers`: "10.0.0.53" is not a list"#),
            (r#""args":7"#, "key `args`: 7 is not an object"),
            (r#""args":{"cni":[]}"#, "key `args.cni`: a list is not an object"),
            (r#""args":{"cni":{"mac":7}}"#, "key `args.cni.mac`: 7 is not text"),
            (
                r#""args":{"cni":{"mac":"02:00"}}"#,
                r#"key `args.cni.mac`: "02:00" is not a MAC address such as c2:11:22:33:44:55"#,
            ),
            (
                r#""runtimeConfig":7"#,
                "code 7: configuration of network n: key `runtimeConfig`: 7 is not an object\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"mac":"02:00"}"#,
                "code 7: configuration of network n: key `runtimeConfig.mac`: \"02:00\" is not a MAC address such as c2:11:22:33:44:55\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (r#""ipam":7"#, "key `ipam`: it is not an object"),
            (r#""ipam":{"type":7}"#, "key `ipam.type`: it is not text"),
            (
                r#""ipam":{"type":"bridge"}"#,
                "code 7: plugin \"bridge\" does not manage addresses\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (
                r#""ipam":{"type":"none"}"#,
                "code 999: failed to find plugin \"none\" in path \"WORLD/work/../bin\"\n\
         hint: install the plugin none in one of WORLD/work/../bin",
            ),
            (
                r#""ipam":{"type":"../x"}"#,
                "code 7: \"../x\" is not a plugin type\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
            ),
            (r#""vlan":"7""#, r#"key `vlan`: "7" is not a whole number"#),
            (
                r#""vlan":-1"#,
                "code 7: bridge: invalid VLAN ID -1 (must be between 0 and 4094)\n\
         hint: set `vlan` to the VLAN of the container, or leave it out",
            ),
            (
                r#""vlan":4095"#,
                "code 7: bridge: invalid VLAN ID 4095 (must be between 0 and 4094)\n\
         hint: set `vlan` to the VLAN of the container, or leave it out",
            ),
            (
                r#""vlan":7,"isGateway":true,"bridge":"cni0-is-a-name","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}"#,
                "code 7: bridge: the gateway's interface cannot be called cni0-is-a-name.7: that is longer than 15 bytes\n\
         hint: set a shorter name in `bridge`",
            ),
            (r#""vlanTrunk":7"#, "key `vlanTrunk`: 7 is not a list"),
            (r#""vlanTrunk":[7]"#, "key `vlanTrunk[0]`: 7 is not an object"),
            (r#""vlanTrunk":[[7]]"#, "key `vlanTrunk[0]`: a list is not an object"),
            (r#""vlanTrunk":[{"id":"7"}]"#, r#"key `vlanTrunk[0].id`: "7" is not a whole number"#),
            (
                r#""vlanTrunk":[{"id":7},{"id":4095}]"#,
                "code 7: bridge: incorrect trunk id parameter in vlanTrunk[1]: 4095 is not a VLAN (1 to 4094)\n\
         hint: `vlanTrunk` is a list of {\"id\": 7} and {\"minID\": 10, \"maxID\": 20}, of VLANs from 1 to 4094",
            ),
            (
                r#""vlanTrunk":[{"minID":9,"maxID":7}]"#,
                "code 7: bridge: incorrect trunk minID parameter in vlanTrunk[0]: minID 9 is greater than maxID 7\n\
         hint: `vlanTrunk` is a list of {\"id\": 7} and {\"minID\": 10, \"maxID\": 20}, of VLANs from 1 to 4094",
            ),
            (
                r#""vlan":7,"vlanTrunk":[{"minID":9}]"#,
                "code 7: bridge: incorrect trunk maxID parameter in vlanTrunk[0]: it is missing, though minID is given\n\
         hint: `vlanTrunk` is a list of {\"id\": 7} and {\"minID\": 10, \"maxID\": 20}, of VLANs from 1 to 4094",
            ),
            (r#""preserveDefaultVlan":7"#, "key `preserveDefaultVlan`: 7 is not true or false"),
            (
                r#""disableContainerInterface":true,"ipam":{"type":"host-local","subnet":"10.0.0.0/29"}"#,
                "code 7: bridge: cannot use IPAM when DisableContainerInterface flag is set\n\
         hint: an interface that is down has no use for addresses: remove `ipam` or `disableContainerInterface`",
            ),
            (
                r#""mtu":1279,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"fd00::/64"}]]}"#,
                "code 7: bridge: MTU 1279 is less than the address fd00::2/64 needs (1280)\n\
         hint: raise `mtu`, or take the IPv6 range out of `ipam`",
            ),
        ],
    },
    Plugin {
        name: "host-local",
        before: "pod",
        besides: "",
        rows: &[
            (
                "",
                "code 7: host-local: IPAM config missing 'ipam' key\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":null"#,
                "code 7: host-local: IPAM config missing 'ipam' key\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (r#""ipam":7"#, "key `ipam`: 7 is not an object"),
            (r#""ipam":[]"#, "key `ipam`: a list is not an object"),
            (
                r#""ipam":{}"#,
                "code 7: host-local: no IP ranges specified in `ipam.ranges`\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (r#""ipam":{"dataDir":7}"#, "key `ipam.dataDir`: 7 is not text"),
            (r#""ipam":{"dataDir":"a\u0000b"}"#, r#"key `ipam.dataDir`: "a\0b" is not a path"#),
            (r#""ipam":{"resolvConf":7,"subnet":"10.0.0.0/29"}"#, "key `ipam.resolvConf`: 7 is not text"),
            (
                r#""ipam":{"resolvConf":"/none","subnet":"10.0.0.0/29"}"#,
                "code 7: host-local: cannot read `ipam.resolvConf` /none: No such file or directory\n\
         hint: it is the file of name servers for containers: correct its name, or leave it out",
            ),
            (
                r#""ipam":{"resolvConf":"/dev/zero","subnet":"10.0.0.0/29"}"#,
                "code 7: host-local: cannot read `ipam.resolvConf` /dev/zero: it is not a regular file\n\
         hint: it is the file of name servers for containers: correct its name, or leave it out",
            ),
            (r#""ipam":{"ranges":{}}"#, "key `ipam.ranges`: an object is not a list"),
            (
                r#""ipam":{"ranges":[]}"#,
                "code 7: host-local: no IP ranges specified in `ipam.ranges`\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (r#""ipam":{"ranges":[{}]}"#, "key `ipam.ranges[0]`: an object is not a list"),
            (
                r#""ipam":{"ranges":[[]]}"#,
                "code 7: host-local: invalid range set 0: empty range set\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (r#""ipam":{"ranges":[["10.0.0.0/29"]]}"#, r#"key `ipam.ranges[0][0]`: "10.0.0.0/29" is not an object"#),
            (r#""ipam":{"ranges":[[["10.0.0.0/29"]]]}"#, "key `ipam.ranges[0][0]`: a list is not an object"),
            (r#""ipam":{"ranges":[[{}]]}"#, "key `ipam.ranges[0][0]`: `subnet` is missing"),
            (r#""ipam":{"ranges":[[{"subnet":7}]]}"#, "key `ipam.ranges[0][0].subnet`: 7 is not text"),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0"}]]}"#,
                r#"key `ipam.ranges[0][0].subnet`: "10.0.0.0" is not a prefix such as 10.244.1.0/24"#,
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/33"}]]}"#,
                r#"key `ipam.ranges[0][0].subnet`: "10.0.0.0/33" is not a prefix such as 10.244.1.0/24"#,
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.5/29"}]]}"#,
                "code 7: host-local: invalid range set 0: network 10.0.0.5/29 has host bits set, did you mean 10.0.0.0/29?\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/31"}]]}"#,
                "code 7: host-local: invalid range set 0: network 10.0.0.0/31 too small to allocate from\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"fd00::/127"}]]}"#,
                "code 7: host-local: invalid range set 0: network fd00::/127 too small to allocate from\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","rangeStart":7}]]}"#,
                "key `ipam.ranges[0][0].rangeStart`: 7 is not text",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.1.1"}]]}"#,
                "code 7: host-local: invalid range set 0: rangeStart 10.0.1.1 not in network 10.0.0.0/29\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","rangeEnd":"fd00::1"}]]}"#,
                "code 7: host-local: invalid range set 0: rangeEnd fd00::1 not in network 10.0.0.0/29\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.5","rangeEnd":"10.0.0.4"}]]}"#,
                "code 7: host-local: invalid range set 0: rangeStart 10.0.0.5 is behind rangeEnd 10.0.0.4\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","gateway":"gw"}]]}"#,
                r#"key `ipam.ranges[0][0].gateway`: "gw" is not an IP address"#,
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29","gateway":"fd00::1"}]]}"#,
                "code 7: host-local: invalid range set 0: gateway fd00::1 is not of the family of network 10.0.0.0/29\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29"},{"subnet":"10.0.0.0/24"}]]}"#,
                "code 7: host-local: invalid range set 0: ranges 10.0.0.1-10.0.0.6 and 10.0.0.1-10.0.0.254 overlap\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"10.0.0.0/24"}]]}"#,
                "code 7: host-local: range set 0 overlaps with 1\n\
         hint: a container gets an address of each range set: each needs addresses of its own",
            ),
            (
                r#""ipam":{"ranges":[[{"subnet":"10.0.0.0/29"},{"subnet":"fd00::/64"}]]}"#,
                "code 7: host-local: invalid range set 0: mixed address families in one range set\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
            ),
            (r#""ipam":{"subnet":"10.0.0.0/29","rangeStart":7}"#, "key `ipam.rangeStart`: 7 is not text"),
            (r#""ipam":{"subnet":"10.0.0.0/29","rangeEnd":"x"}"#, r#"key `ipam.rangeEnd`: "x" is not an IP address"#),
            (r#""ipam":{"subnet":"10.0.0.0/29","gateway":"x"}"#, r#"key `ipam.gateway`: "x" is not an IP address"#),
            (r#""ipam":{"subnet":7}"#, "key `ipam.subnet`: 7 is not text"),
            (r#""ipam":{"subnet":"10.0.0.0/29","routes":{}}"#, "key `ipam.routes`: an object is not a list"),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","routes":[{"dst":"default"}]}"#,
                r#"key `ipam.routes[0].dst`: "default" is not a prefix such as 10.244.1.0/24"#,
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","routes":[{"gw":"10.0.0.1"}]}"#,
                "key `ipam.routes[0]`: `dst` is missing",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","routes":[{"dst":"0.0.0.0/0","gw":7}]}"#,
                "key `ipam.routes[0].gw`: 7 is not text",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","routes":[{"dst":"0.0.0.0/0","mtu":-1}]}"#,
                "key `ipam.routes[0].mtu`: -1 is not a number from 0 to 4294967295",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","routes":[{"dst":"0.0.0.0/0","scope":256}]}"#,
                "key `ipam.routes[0].scope`: 256 is not a number from 0 to 255",
            ),
            (r#""ipam":{"subnet":"10.0.0.0/29"},"args":{"cni":{"ips":7}}"#, "key `args.cni.ips`: 7 is not a list"),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"args":{"cni":{"ips":["10.0.0"]}}"#,
                "code 4: host-local: cannot understand requested IP \"10.0.0\"\n\
         hint: requests stand in CNI_ARGS `IP`, `args.cni.ips` and `runtimeConfig.ips`",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"runtimeConfig":{"ips":[7]}"#,
                "code 7: configuration of network n: key `runtimeConfig.ips[0]`: 7 is not text\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"runtimeConfig":{"ips":["10.0.0.300"]}"#,
                "code 4: host-local: cannot understand requested IP \"10.0.0.300\"\n\
         hint: requests stand in CNI_ARGS `IP`, `args.cni.ips` and `runtimeConfig.ips`",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"runtimeConfig":{"ipRanges":[{}]}"#,
                "code 7: configuration of network n: key `runtimeConfig.ipRanges[0]`: an object is not a list\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"runtimeConfig":{"ips":["10.0.0.1"]}"#,
                "code 999: host-local: requested IP address 10.0.0.1 is the subnet's gateway\n\
         hint: ask for an address inside `ipam.ranges` of the network configuration, and not a gateway",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29"},"runtimeConfig":{"ips":["10.0.0.9"]}"#,
                "code 999: host-local: failed to allocate all requested IPs: 10.0.0.9 not in any range set\n\
         hint: ask for an address inside `ipam.ranges` of the network configuration, and not a gateway",
            ),
            (
                r#""ipam":{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.3","rangeEnd":"10.0.0.3","gateway":"10.0.0.3"}"#,
                "code 999: host-local: no IP addresses available in range set: 10.0.0.3-10.0.0.3\n\
         hint: each file in /var/lib/cni/networks/n is an address and names its container: delete those whose container is gone, or use a larger subnet",
            ),
        ],
    },
    Plugin {
        name: "portmap",
        before: "pod",
        besides: ADDED,
        rows: &[
            (r#""backend":7"#, "key `backend`: 7 is not text"),
            (
                r#""backend":"ipfw""#,
                "code 7: portmap: unrecognized backend \"ipfw\"\n\
         hint: `backend` is iptables or nftables, or absent",
            ),
            (r#""snat":"yes""#, r#"key `snat`: "yes" is not true or false"#),
            (r#""masqAll":7"#, "key `masqAll`: 7 is not true or false"),
            (r#""markMasqBit":"a""#, r#"key `markMasqBit`: "a" is not a whole number"#),
            (
                r#""markMasqBit":32"#,
                "code 7: portmap: markMasqBit must be between 0 and 31: it is 32\n\
         hint: Kubernetes uses 14 and 15; without the key it is 13",
            ),
            (
                r#""markMasqBit":-1"#,
                "code 7: portmap: markMasqBit must be between 0 and 31: it is -1\n\
         hint: Kubernetes uses 14 and 15; without the key it is 13",
            ),
            (
                r#""markMasqBit":1,"externalSetMarkChain":"A""#,
                "code 7: portmap: cannot specify externalSetMarkChain and markMasqBit\n\
         hint: remove one of them: a chain of others sets the mark, or a bit of our own",
            ),
            (r#""externalSetMarkChain":7"#, "key `externalSetMarkChain`: 7 is not text"),
            (
                r#""externalSetMarkChain":"A B""#,
                "code 7: portmap: externalSetMarkChain \"A B\" is not the name of a chain\n\
         hint: it is the name of a chain in table nat that marks packets, as KUBE-MARK-MASQ",
            ),
            (
                r#""backend":"nftables","externalSetMarkChain":"A""#,
                "code 7: portmap: `externalSetMarkChain` is not in the words of the backend, which is nftables\n\
         hint: remove `externalSetMarkChain`, or set `backend` to the system it belongs to",
            ),
            (r#""conditionsV4":"-d""#, r#"key `conditionsV4`: "-d" is not a list"#),
            (r#""conditionsV4":[7]"#, "key `conditionsV4[0]`: 7 is not text"),
            (
                r#""conditionsV6":["-d","a;b"]"#,
                "code 7: portmap: `conditionsV6` holds \"a;b\", which cannot be part of a rule\n\
         hint: each entry is one word of a match, without line breaks, `;` and `#`",
            ),
            (
                r#""backend":"nftables","conditionsV4":["-d","10.0.0.1"]"#,
                "code 7: portmap: `conditionsV4` is not in the words of the backend, which is nftables\n\
         hint: remove `conditionsV4`, or set `backend` to the system it belongs to",
            ),
            (r#""dataDir":7"#, "key `dataDir`: 7 is not text"),
            (
                r#""runtimeConfig":"x""#,
                "code 7: configuration of network n: key `runtimeConfig`: \"x\" is not an object\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"portMappings":{}}"#,
                "code 7: configuration of network n: key `runtimeConfig.portMappings`: an object is not a list\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"portMappings":[80]}"#,
                "code 7: configuration of network n: key `runtimeConfig.portMappings[0]`: 80 is not an object\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":"80","containerPort":80,"protocol":"tcp"}]}"#,
                "code 7: configuration of network n: key `runtimeConfig.portMappings[0].hostPort`: \"80\" is not a whole number\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80.5,"containerPort":80,"protocol":"tcp"}]}"#,
                "code 7: configuration of network n: key `runtimeConfig.portMappings[0].hostPort`: 80.5 is not a whole number\n\
         hint: the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]}"#,
                "code 7: portmap: invalid host port number: 0\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":65536,"containerPort":80,"protocol":"tcp"}]}"#,
                "code 7: portmap: invalid host port number: 65536\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":0,"protocol":"tcp"}]}"#,
                "code 7: portmap: invalid container port number: 0\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":65536,"protocol":"tcp"}]}"#,
                "code 7: portmap: invalid container port number: 65536\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]}"#,
                "code 7: portmap: invalid protocol \"icmp\": it must be tcp, udp or sctp\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80}]}"#,
                "code 7: portmap: invalid protocol \"\": it must be tcp, udp or sctp\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"localhost"}]}"#,
                "code 7: portmap: invalid host IP \"localhost\"\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"2001:db8::1"}]}"#,
                "code 7: portmap: port [2001:db8::1]:80/tcp is to be published on an address of a family that the container has no address of\n\
         hint: publish it on an address of the other family, or on none for all",
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"},{"hostPort":80,"containerPort":81,"protocol":"tcp"}]}"#,
                "code 7: portmap: host port 80/tcp is to lead to two ports of the container\n\
         hint: the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published",
            ),
        ],
    },
    Plugin {
        name: "portmap",
        before: "pod",
        besides: "",
        rows: &[
            (
                "",
                "code 7: portmap: must be called as chained plugin\n\
         hint: list it in `plugins` of the network configuration behind one that gives the container its address",
            ),
            (
                r#""prevResult":7"#,
                "code 6: configuration of network n: key `prevResult`: 7 is not an object\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"cniVersion":"9.9.9"}"#,
                "code 6: configuration of network n: key `prevResult.cniVersion`: \"9.9.9\" is no version of CNI that this plugin knows\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"ips":[{"address":"10.1.0.2"}]}"#,
                "code 6: configuration of network n: key `prevResult.ips[0].address`: \"10.1.0.2\" is not a prefix such as 10.244.1.0/24\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"ips":[["10.1.0.2/24"]]}"#,
                "code 6: configuration of network n: key `prevResult.ips[0]`: a list is not an object\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"interfaces":[{"name":7}]}"#,
                "code 6: configuration of network n: key `prevResult.interfaces[0].name`: 7 is not text\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
        ],
    },
    Plugin {
        name: "loopback",
        before: "pod",
        besides: "",
        rows: &[
            (
                r#""prevResult":7"#,
                "code 6: configuration of network n: key `prevResult`: 7 is not an object\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"ips":{}}"#,
                "code 6: configuration of network n: key `prevResult.ips`: an object is not a list\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"ip4":{"ip":"x"}}"#,
                "code 6: configuration of network n: key `prevResult.ip4.ip`: \"x\" is not a prefix such as 10.244.1.0/24\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"routes":[{"dst":"x"}]}"#,
                "code 6: configuration of network n: key `prevResult.routes[0].dst`: \"x\" is not a prefix such as 10.244.1.0/24\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
            (
                r#""prevResult":{"dns":7}"#,
                "code 6: configuration of network n: key `prevResult.dns`: 7 is not an object\n\
         hint: it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly",
            ),
        ],
    },
];
