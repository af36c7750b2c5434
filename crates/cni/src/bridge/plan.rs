//! What the container's end and the bridge get, from the configuration and the IPAM plugin's result.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mtu};
use flannel_core::subnet_env::bridge_address;
use flannel_kernel::pod_link::{Found, Links, PodRoute};
use ipnet::IpNet;

use super::BridgeError;
use super::conf::BridgeConf;
use crate::protocol::environment::Call;
use crate::protocol::failure::Failure;
use crate::protocol::result::{CniResult, Dns, Interface, IpConfig, Route};

/// Place of the container's end among the result's interfaces: bridge, host's end, container's end.
const CONTAINER: usize = 2;

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    ips: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
    gateways: Vec<IpNet>,
}

/// An address that a bridge lacks, and those it has that must go for it.
pub(super) type MissingGateway = (IpNet, Vec<IpNet>);

impl Plan {
    /// Completes what the IPAM plugin gave: gateways, and with `isDefaultGateway` the default routes.
    pub(super) fn new(keys: &BridgeConf, given: CniResult) -> Result<Self, BridgeError> {
        if keys.ipam.is_some() && given.ips.is_empty() {
            return Err(BridgeError::NoAddress);
        }
        if let (Some(mtu), Some(six)) = (keys.mtu, given.ips.iter().find(|ip| ip.address.addr().is_ipv6()))
            && mtu < Mtu::least(Family::V6)
        {
            return Err(BridgeError::SmallMtu { mtu, address: six.address });
        }
        let mut plan = Self { ips: given.ips, routes: given.routes, dns: given.dns, gateways: Vec::new() };
        for ip in &mut plan.ips {
            ip.interface = Some(CONTAINER);
            if !keys.is_gateway {
                continue;
            }
            let gateway = *ip.gateway.get_or_insert(bridge_address(ip.address.trunc()));
            plan.gateways.extend(IpNet::new(gateway, ip.address.prefix_len()));
        }
        if keys.is_default_gateway {
            plan.add_default_routes();
        }
        Ok(plan)
    }

    fn add_default_routes(&mut self) {
        for ip in &self.ips {
            let Ok(all) = IpNet::new(Family::of_net(ip.address).unspecified(), 0) else { continue };
            if !self.routes.iter().any(|route| route.dst == all && route.gw.is_some()) {
                self.routes.push(Route::new(all, ip.gateway));
            }
        }
    }

    /// The container's addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.ips.iter().map(|ip| ip.address)
    }

    /// The families that the bridge is a gateway for.
    pub(super) fn gateway_families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| self.gateways.iter().any(|net| Family::of_net(*net) == *family))
    }

    /// The container's routes; without a gateway of their own they take that of the first address of their family.
    pub(super) fn pod_routes(&self) -> Vec<PodRoute> {
        let routes = self.routes.iter();
        routes
            .map(|route| PodRoute {
                destination: route.dst,
                gateway: route.gw.or_else(|| self.gateway_of(Family::of_net(route.dst))),
                mtu: route.mtu,
                advmss: route.advmss,
                priority: route.priority,
                table: route.table,
                scope: route.scope,
            })
            .collect()
    }

    fn gateway_of(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().filter(|ip| Family::of_net(ip.address) == family).find_map(|ip| ip.gateway)
    }

    /// The gateways whose addresses the link lacks that is to have them: the bridge, or one of its VLAN. An address that conflicts is an error unless it may be replaced: any
    /// other IPv4 address, since a link has one, and an IPv6 address of an overlapping prefix.
    pub(super) fn missing_gateways(
        &self,
        host: &mut Links,
        bridge: &Found,
        gateway: &Found,
        keys: &BridgeConf,
        call: &Call<'_>,
    ) -> Result<Vec<MissingGateway>, Failure> {
        let mut missing = Vec::new();
        for family in self.gateway_families() {
            let have = host.addresses(gateway, family)?;
            let of_family = self.gateways.iter().filter(|net| Family::of_net(**net) == family);
            for want in of_family.filter(|want| !have.contains(want)) {
                let old = self.of_older_leases(host, bridge, call, &have)?;
                let conflicts: Vec<_> = have.iter().copied().filter(|have| conflict(*have, *want)).collect();
                match conflicts.first() {
                    _ if !old.is_empty() => missing.push((*want, old)),
                    Some(other) if !keys.force_address => {
                        let (bridge, have) = (gateway.link.name.to_string(), other.to_string());
                        return Err(BridgeError::OtherAddress { bridge, want: *want, have }.into());
                    }
                    _ => missing.push((*want, conflicts)),
                }
            }
        }
        Ok(missing)
    }

    /// The addresses that a bridge of flannel's has of leases that the node no longer has. As long as a container hangs on it there are
    /// none: they are still its gateways.
    fn of_older_leases(
        &self,
        host: &mut Links,
        bridge: &Found,
        call: &Call<'_>,
        have: &[IpNet],
    ) -> Result<Vec<IpNet>, Failure> {
        let is_old = |net: &&IpNet| !is_link_local(net.addr()) && !self.gateways.contains(net);
        let old: Vec<_> = have.iter().filter(is_old).copied().collect();
        let keep = old.is_empty() || !call.is_flannels || host.has_ports(bridge)?;
        Ok(if keep { Vec::new() } else { old })
    }

    /// The result.
    pub(super) fn result(self, interfaces: Vec<Interface>, dns: &Dns) -> CniResult {
        let dns = if *dns == Dns::default() { self.dns } else { dns.clone() };
        CniResult { interfaces, ips: self.ips, routes: self.routes, dns }
    }
}

fn conflict(have: IpNet, want: IpNet) -> bool {
    Family::of_net(have) == Family::V4 || have.contains(&want.addr()) || want.contains(&have.addr())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.is_unicast_link_local())
}
