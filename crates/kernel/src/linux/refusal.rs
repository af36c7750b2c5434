//! What the kernel's refusal of a VXLAN device means, and what a person can do about it.

use flannel_core::addr::Family;
use flannel_core::state::Vxlan;
use rustix::io::Errno;

use crate::netlink::Error;
use crate::netlink::link::Report;

/// Why a device could not be made or brought up; `links` are all there are.
pub(super) fn of_vxlan(error: &Error, want: &Vxlan, links: &[Report]) -> String {
    // Devices of the two families are in nobody's way.
    let family = |vxlan: &Vxlan| vxlan.local.map_or(Family::V4, Family::of);
    let another = |like: &dyn Fn(&Vxlan) -> bool| {
        let rival = |vxlan: &Vxlan| like(vxlan) && family(vxlan) == family(want);
        links.iter().find(|link| link.vxlan.as_ref().is_some_and(|(vxlan, _)| rival(vxlan))).map(|link| link.name)
    };
    if error.is_unsupported() {
        return format!("{error}: this kernel has no vxlan (hint: modprobe vxlan, or use backend host-gw)");
    }
    let rival = if error.errno() == Errno::EXIST {
        another(&|vxlan| (vxlan.vni, vxlan.port) == (want.vni, want.port)).map(|name| (name, "VNI and port"))
    } else {
        another(&|vxlan| vxlan.port == want.port).map(|name| (name, "port"))
    };
    match rival {
        Some((name, what)) if error.is_present() => format!(
            "{error}: device {name} has its {what} (hint: ip link delete {name}, or set another VNI or Port in the network \
             config's Backend)"
        ),
        None if error.errno() == Errno::EXIST => format!(
            "{error}: it was made here and moved to another network namespace (hint: find it by `ip -all netns exec ip link \
             show type vxlan` and delete it there, or set another VNI or Port in the network config's Backend)"
        ),
        None if error.is_present() => format!(
            "{error}: another program has UDP port {0} (hint: find it by `ss -ulpn sport = :{0}`, or set another Port in the \
             network config's Backend)",
            want.port
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::{Mtu, Vni};

    use super::*;

    fn vxlan(vni: u32, port: u16) -> Vxlan {
        let vni = Vni::new(vni).unwrap();
        Vxlan { vni, port, local: None, lower: None, learning: false, gbp: false, checksums: true }
    }

    fn text(errno: Errno, other: Option<Vxlan>) -> String {
        let report = |vxlan| Report {
            index: 7,
            name: "vx0".parse().unwrap(),
            flags: 0,
            mtu: Mtu(1450),
            mac: None,
            kind: "vxlan".into(),
            master: None,
            peer: None,
            bridge_port: false,
            blocked: false,
            isolated: false,
            accept_ra: false,
            vxlan: Some((vxlan, None)),
        };
        of_vxlan(&errno.into(), &vxlan(1, 8472), &other.map(report).into_iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_kernel_without_vxlan() {
        let text = text(Errno::OPNOTSUPP, None);
        let wanted = "Operation not supported: this kernel has no vxlan (hint: modprobe vxlan, or use backend host-gw)";
        assert_eq!(text, wanted);
    }

    #[test]
    fn who_is_in_the_way_is_named() {
        let starts = |text: String, wanted: &str| assert!(text.starts_with(wanted), "{text}");
        starts(text(Errno::EXIST, Some(vxlan(1, 8472))), "File exists: device vx0 has its VNI and port (hint: ");
        starts(text(Errno::ADDRINUSE, Some(vxlan(2, 8472))), "Address already in use: device vx0 has its port (hint: ");
        starts(
            text(Errno::ADDRINUSE, Some(vxlan(2, 4789))),
            "Address already in use: another program has UDP port 8472",
        );
        let moved = "File exists: it was made here and moved to another network namespace (hint: ";
        starts(text(Errno::EXIST, Some(vxlan(2, 8472))), moved);
        let twin = Vxlan { local: "2001:db8::1".parse().ok(), ..vxlan(1, 8472) };
        starts(text(Errno::EXIST, Some(twin)), moved);
        assert_eq!(text(Errno::INVAL, Some(vxlan(1, 8472))), "Invalid argument");
    }
}
