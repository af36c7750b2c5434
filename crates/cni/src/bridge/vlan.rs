//! `vlan`, `vlanTrunk` and `preserveDefaultVlan`: the keys, the bridge's filter, the container's port, and the gateway's interface.
//!
//! Surface: [`Keys`] and [`VlanConf`] (the keys, checked), [`create_bridge`], [`check_filter`], [`set_port`], [`gateway`], [`check`]. A
//! VLAN separates nothing on a bridge that does not filter; so ADD fails there. The gateway's interface is made once for all containers of a VLAN and
//! stays, as the bridge does.

use std::ops::RangeInclusive;

use flannel_core::addr::LinkName;
use flannel_kernel::namespace::{NamespaceError, NetNamespace};
use flannel_kernel::pod_link::{Found, Links, PortVlans, VlanEntry, VlanFilter, VlanId};
use serde::Deserialize;

use super::BridgeError;
use super::conf::BridgeConf;
use super::port::{NewPort, random_mac};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::key::Object;
use crate::protocol::result::null_is_empty;

/// The keys as they are written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Keys {
    #[serde(default, deserialize_with = "null_is_empty")]
    vlan: i64,
    #[serde(default)]
    vlan_trunk: Option<Vec<Object<Trunk>>>,
    #[serde(default, deserialize_with = "null_is_empty")]
    preserve_default_vlan: bool,
}

/// One VLAN, a range of them, or both.
#[derive(Deserialize)]
struct Trunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

/// What a configuration says of VLANs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct VlanConf {
    /// A bridge that is made filters by VLAN.
    pub(super) filtering: bool,
    /// The container's port; none when its VLANs are the bridge's business.
    port: Option<PortVlans>,
    /// The interface with the gateway's addresses and the port that it leads to; none when that is the bridge itself.
    gateway: Option<(LinkName, PortVlans)>,
}

impl Keys {
    /// Checks the keys; `bridge` is the bridge, and the gateway for the containers if `is_gateway`.
    pub(super) fn read(self, bridge: LinkName, is_gateway: bool) -> Result<VlanConf, VlanConfError> {
        let keeps_default = self.preserve_default_vlan;
        let vlan = match self.vlan {
            0 => None,
            number => Some(vlan_id(number).ok_or(VlanConfError::Vlan(number))?),
        };
        let tagged = self.tagged()?;
        let native = vlan.or_else(|| (!tagged.is_empty()).then_some(VlanId::FIRST));
        let gateway = vlan.filter(|_| is_gateway).map(|vlan| {
            let name = gateway_name(bridge, vlan)?;
            Ok((name, PortVlans::new(vlan, Vec::new(), keeps_default)))
        });
        Ok(VlanConf {
            filtering: vlan.is_some() || self.vlan_trunk.is_some(),
            port: native.map(|native| PortVlans::new(native, tagged, keeps_default)),
            gateway: gateway.transpose()?,
        })
    }

    fn tagged(&self) -> Result<Vec<RangeInclusive<VlanId>>, VlanConfError> {
        let mut tagged = Vec::new();
        for (Object(trunk), place) in self.vlan_trunk.iter().flatten().zip(0..) {
            let bad = |(name, cause)| VlanConfError::Trunk { place, name, cause };
            tagged.extend(trunk.range().map_err(bad)?);
            tagged.extend(trunk.single().map_err(bad)?);
        }
        Ok(tagged)
    }
}

/// The Go plugin's name.
fn gateway_name(bridge: LinkName, vlan: VlanId) -> Result<LinkName, VlanConfError> {
    format!("{bridge}.{vlan}").parse().map_err(|_| VlanConfError::LongName { bridge, vlan })
}

impl Trunk {
    fn range(&self) -> Result<Option<RangeInclusive<VlanId>>, (&'static str, TrunkFault)> {
        let (min, max) = match (self.min, self.max) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(("minID", TrunkFault::Missing { other: "maxID" })),
            (Some(_), None) => return Err(("maxID", TrunkFault::Missing { other: "minID" })),
            (Some(min), Some(max)) => (number("minID", min)?, number("maxID", max)?),
        };
        if min > max {
            return Err(("minID", TrunkFault::Reversed { min, max }));
        }
        Ok(Some(min..=max))
    }

    fn single(&self) -> Result<Option<RangeInclusive<VlanId>>, (&'static str, TrunkFault)> {
        let id = self.id.map(|id| number("id", id)).transpose()?;
        Ok(id.map(|id| id..=id))
    }
}

fn number(name: &'static str, number: i64) -> Result<VlanId, (&'static str, TrunkFault)> {
    vlan_id(number).ok_or((name, TrunkFault::NotAVlan(number)))
}

fn vlan_id(number: i64) -> Option<VlanId> {
    u16::try_from(number).ok().and_then(VlanId::new)
}

/// Makes the bridge, with a filter if that is asked for.
pub(super) fn create_bridge(host: &mut Links, keys: &BridgeConf) -> Result<(), Failure> {
    let filtering = keys.vlan.filtering;
    match host.create_bridge(keys.bridge, random_mac()?, keys.mtu, keys.promisc, filtering) {
        Err(error) if filtering && error.is_unsupported() => Err(VlanError::NoFilter(keys.bridge).into()),
        made => Ok(made?),
    }
}

/// Fails on a bridge that would not keep the VLANs apart. One made for this ADD goes then, unless another one uses it already.
pub(super) fn check_filter(host: &mut Links, conf: &VlanConf, bridge: &Found, made: bool) -> Result<(), Failure> {
    let Err(error) = filter(conf, bridge) else { return Ok(()) };
    if made && !host.has_ports(bridge)? {
        host.delete(bridge)?;
    }
    Err(error.into())
}

/// The filter of the bridge, if ports are to be in VLANs.
fn filter<'a>(conf: &'a VlanConf, bridge: &Found) -> Result<Option<(VlanFilter, &'a PortVlans)>, VlanError> {
    let Some(vlans) = &conf.port else { return Ok(None) };
    match bridge.filter {
        Some(filter) if filter.on => Ok(Some((filter, vlans))),
        Some(_) => Err(VlanError::Off(bridge.link.name)),
        None => Err(VlanError::NoFilter(bridge.link.name)),
    }
}

/// Puts the container's port into its VLANs.
pub(super) fn set_port(host: &mut Links, conf: &VlanConf, bridge: &Found, port: LinkName) -> Result<(), Failure> {
    let Some((filter, vlans)) = filter(conf, bridge)? else { return Ok(()) };
    let port = host.find(port)?.ok_or(BridgeError::Vanished(port))?;
    Ok(host.set_port_vlans(&port, filter, vlans)?)
}

/// The link of this host that has the gateway's addresses: the bridge, or for containers in a VLAN one end of a pair whose other end is
/// a port of the bridge in that VLAN. What a killed ADD has left of it is completed.
pub(super) fn gateway(host: &mut Links, conf: &VlanConf, bridge: &Found) -> Result<Found, Failure> {
    let (Some((name, vlans)), Some(filter)) = (&conf.gateway, bridge.filter) else { return Ok(bridge.clone()) };
    if host.find(*name)?.is_none() {
        create_gateway(host, *name, bridge)?;
    }
    let gateway = host.find(*name)?.ok_or(BridgeError::Vanished(*name))?;
    if let Some(port) = port_of(host, &gateway, bridge)? {
        host.set_port_vlans(&port, filter, vlans)?;
    }
    if !gateway.link.is_up() {
        host.set_up(&gateway, true, false)?;
    }
    Ok(gateway)
}

fn create_gateway(host: &mut Links, name: LinkName, bridge: &Found) -> Result<(), Failure> {
    let netns = &NetNamespace::current().map_err(VlanError::Host)?;
    let mtu = Some(bridge.link.mtu);
    let port = NewPort { owner: name.as_str(), pod: name, pod_mac: None, netns, mtu, hairpin: false, isolated: false };
    match port.create(host, bridge) {
        // Another ADD was faster.
        Err(_) if host.find(name)?.is_some() => Ok(()),
        created => created.map(drop),
    }
}

/// The port of the bridge that a link of this host leads to. One that someone made otherwise under that name may lead to none.
fn port_of(host: &mut Links, gateway: &Found, bridge: &Found) -> Result<Option<Found>, Failure> {
    let Some(peer) = gateway.peer.filter(|_| gateway.is("veth") && gateway.peer_netns.is_none()) else {
        return Ok(None);
    };
    Ok(host.find_index(peer)?.filter(|port| port.link.master == Some(bridge.link.index)))
}

/// CHECK: the bridge filters, and the port has the VLANs of the configuration and no other; the gateway's interface is there, and its
/// port too has what it should.
pub(super) fn check(host: &mut Links, conf: &VlanConf, bridge: &Found, port: &Found) -> Result<(), Failure> {
    let Some((filter, vlans)) = filter(conf, bridge)? else { return Ok(()) };
    check_port(host, filter, vlans, port)?;
    let Some((name, vlans)) = &conf.gateway else { return Ok(()) };
    let gateway = host.find(*name)?.ok_or(VlanError::NoGateway(*name))?;
    let port = port_of(host, &gateway, bridge)?;
    port.map_or(Ok(()), |port| check_port(host, filter, vlans, &port))
}

fn check_port(host: &mut Links, filter: VlanFilter, vlans: &PortVlans, port: &Found) -> Result<(), Failure> {
    let (want, have) = (vlans.entries(filter), host.port_vlans(port)?);
    if want == have {
        return Ok(());
    }
    let list = |entries: &[VlanEntry]| entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(VlanError::Other { port: port.link.name, want: list(&want), have: list(&have) }.into())
}

/// What is wrong with the keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum VlanConfError {
    #[error("bridge: invalid VLAN ID {0} (must be between 0 and 4094)")]
    Vlan(i64),
    #[error("bridge: incorrect trunk {name} parameter in vlanTrunk[{place}]: {cause}")]
    Trunk { place: usize, name: &'static str, cause: TrunkFault },
    #[error("bridge: the gateway's interface cannot be called {bridge}.{vlan}: that is longer than 15 bytes")]
    LongName { bridge: LinkName, vlan: VlanId },
}

/// What is wrong with a part of `vlanTrunk`.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrunkFault {
    #[error("{0} is not a VLAN (1 to 4094)")]
    NotAVlan(i64),
    #[error("it is missing, though {other} is given")]
    Missing { other: &'static str },
    #[error("minID {min} is greater than maxID {max}")]
    Reversed { min: VlanId, max: VlanId },
}

impl Explain for VlanConfError {
    fn code(&self) -> u32 {
        code::CONF
    }

    fn hint(&self) -> String {
        match self {
            Self::Vlan(_) => "set `vlan` to the VLAN of the container, or leave it out".into(),
            Self::Trunk { .. } => {
                r#"`vlanTrunk` is a list of {"id": 7} and {"minID": 10, "maxID": 20}, of VLANs from 1 to 4094"#.into()
            }
            Self::LongName { .. } => "set a shorter name in `bridge`".into(),
        }
    }
}

/// The VLANs are not kept apart, or not as the configuration says.
#[derive(Debug, thiserror::Error)]
pub(super) enum VlanError {
    #[error("bridge: cannot put a port of {0} into a VLAN: this kernel's bridges do not filter by VLAN")]
    NoFilter(LinkName),
    #[error("bridge: cannot put a port of {0} into a VLAN: the bridge is there and does not filter by VLAN")]
    Off(LinkName),
    #[error("bridge: cannot name the host's network namespace: {0}")]
    Host(NamespaceError),
    #[error("bridge: interface {0} not found, which has the VLAN's gateway address")]
    NoGateway(LinkName),
    #[error("bridge: VLANs of port {port} are [{have}], the configuration says [{want}]")]
    Other { port: LinkName, want: String, have: String },
}

impl Explain for VlanError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        match self {
            Self::NoFilter(_) => {
                "remove `vlan` and `vlanTrunk`, or run a kernel with CONFIG_BRIDGE_VLAN_FILTERING, as distributions' are".into()
            }
            Self::Off(bridge) => format!(
                "`ip link set {bridge} type bridge vlan_filtering 1`; its ports then pass frames of the VLANs that `bridge vlan` shows only"
            ),
            Self::Host(_) => "the runtime may try again".into(),
            Self::NoGateway(_) | Self::Other { .. } => {
                "someone has changed the container's network since it was added: recreate the container".into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<VlanConf, String> {
        let keys: Keys = serde_json::from_str(json).map_err(|error| error.to_string())?;
        keys.read("cni0".parse().unwrap(), true).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_is_asked_for_makes_a_bridge_filter() {
        for nothing in ["{}", r#"{"vlan": 0, "vlanTrunk": null}"#, r#"{"preserveDefaultVlan": null}"#] {
            assert_eq!(read(nothing).unwrap(), VlanConf::default());
        }
        for filtering in [r#"{"vlanTrunk": []}"#, r#"{"vlanTrunk": [{}]}"#] {
            assert_eq!(read(filtering).unwrap(), VlanConf { filtering: true, ..VlanConf::default() });
        }
        let conf = read(r#"{"vlan": 100, "vlanTrunk": [{"id": 7, "minID": 10, "maxID": 20}]}"#).unwrap();
        assert!(conf.filtering && conf.port.is_some());
        assert_eq!(conf.gateway.unwrap().0.as_str(), "cni0.100");
        let trunk = read(r#"{"vlanTrunk": [{"id": 7}]}"#).unwrap();
        assert!(trunk.filtering && trunk.port.is_some() && trunk.gateway.is_none());
    }

    #[test]
    fn the_gateways_interface_has_a_name_that_fits() {
        let read = |is_gateway| {
            let keys: Keys = serde_json::from_str(r#"{"vlan": 100}"#).unwrap();
            keys.read("cni0-is-a-name".parse().unwrap(), is_gateway).map_err(|error| error.to_string())
        };
        assert!(read(false).is_ok());
        assert!(read(true).unwrap_err().contains("cannot be called cni0-is-a-name.100: that is longer than 15 bytes"));
    }

    #[test]
    fn what_is_no_vlan_is_named() {
        for (json, said) in [
            (r#"{"vlan": -1}"#, "invalid VLAN ID -1 (must be between 0 and 4094)"),
            (r#"{"vlan": 4095}"#, "invalid VLAN ID 4095"),
            (r#"{"vlan": 4096}"#, "invalid VLAN ID 4096"),
            (r#"{"vlan": 65543}"#, "invalid VLAN ID 65543"),
            (r#"{"vlan": "7"}"#, "invalid type: string \"7\""),
            (r#"{"vlan": 7.5}"#, "invalid type: floating point"),
            (r#"{"vlan": 18446744073709551616}"#, "invalid"),
            (r#"{"vlanTrunk": {"id": 7}}"#, "invalid type: map"),
            (r#"{"vlanTrunk": [null]}"#, "invalid type: null"),
            (r#"{"vlanTrunk": [{"id": 7}, {"id": 0}]}"#, "trunk id parameter in vlanTrunk[1]: 0 is not a VLAN"),
            (r#"{"vlanTrunk": [{"id": 4095}]}"#, "trunk id parameter in vlanTrunk[0]: 4095 is not"),
            (r#"{"vlanTrunk": [{"minID": 1}]}"#, "trunk maxID parameter in vlanTrunk[0]: it is missing"),
            (r#"{"vlanTrunk": [{"id": 1, "maxID": 1}]}"#, "trunk minID parameter in vlanTrunk[0]: it is missing"),
            (r#"{"vlanTrunk": [{"minID": 0, "maxID": 1}]}"#, "trunk minID parameter in vlanTrunk[0]: 0 is not"),
            (r#"{"vlanTrunk": [{"minID": 1, "maxID": -1}]}"#, "trunk maxID parameter in vlanTrunk[0]: -1 is not"),
            (r#"{"vlanTrunk": [{"minID": 9, "maxID": 7}]}"#, "minID 9 is greater than maxID 7"),
            (r#"{"preserveDefaultVlan": 1}"#, "invalid type: integer `1`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
    }
}
