//! VLANs on a pod's bridge: whether it filters by them, and which of them a port is in.
//!
//! Surface: [`VlanId`], [`VlanFilter`] (a bridge's), [`PortVlans`] (what a port is to have), [`Links::set_port_vlans`] and
//! [`Links::port_vlans`].

use std::fmt;
use std::ops::RangeInclusive;

use super::{Found, LinkError, Links};
use crate::netlink::vlan::{self, Entry};
use crate::netlink::{Attributes, Payload};

/// A VLAN: 1 to 4094 (IEEE 802.1Q keeps 0 and 4095).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The VLAN that a bridge's ports are in unless told otherwise.
    pub const FIRST: Self = Self(1);
    /// The last one.
    pub const LAST: Self = Self(4094);

    /// The VLAN of a number, if there is one.
    pub fn new(number: u16) -> Option<Self> {
        (Self::FIRST.0..=Self::LAST.0).contains(&number).then_some(Self(number))
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a bridge does about VLANs, where the kernel was built with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanFilter {
    /// It passes frames within a VLAN only.
    pub on: bool,
    /// The VLAN that each new port gets.
    pub default: Option<VlanId>,
}

impl VlanFilter {
    /// Reads `IFLA_INFO_DATA` of a bridge. A kernel that cannot filter ignores a wish for it and tells no default VLAN.
    pub(super) fn read(bridge: Attributes<'_>) -> Option<Self> {
        let default = bridge.find(vlan::DEFAULT_PVID).and_then(Payload::u16)?;
        let on = bridge.find(vlan::FILTERING).and_then(Payload::u8)? != 0;
        Some(Self { on, default: VlanId::new(default) })
    }
}

/// The VLANs of a bridge's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlans {
    native: VlanId,
    /// Ascending, with gaps between.
    tagged: Vec<RangeInclusive<VlanId>>,
    keeps_default: bool,
}

impl PortVlans {
    /// `native` is the VLAN of frames without a tag, both ways, even where `tagged` has it too; frames of the others carry tags. With
    /// `keeps_default` the port stays in the VLAN that the bridge gives each new port, frames of which leave without a tag.
    pub fn new(native: VlanId, mut tagged: Vec<RangeInclusive<VlanId>>, keeps_default: bool) -> Self {
        tagged.sort_by_key(|ids| *ids.start());
        tagged.dedup_by(|next, last| {
            let meet = next.start().0 <= last.end().0 + 1;
            if meet {
                *last = *last.start()..=*last.end().max(next.end());
            }
            meet
        });
        Self { native, tagged, keeps_default }
    }

    fn has(&self, id: VlanId) -> bool {
        id == self.native || self.tagged.iter().any(|ids| ids.contains(&id))
    }

    /// What the port of a bridge with this filter has, as the kernel lists it.
    pub fn entries(&self, filter: VlanFilter) -> Vec<Entry> {
        let native = self.native.0;
        let entry = |ids, native, untagged| Entry { ids, native, untagged };
        let around = |ids: &RangeInclusive<VlanId>| {
            let (first, last) = (ids.start().0, ids.end().0);
            [first..=last.min(native - 1), first.max(native + 1)..=last]
        };
        let tagged = self.tagged.iter().flat_map(around).filter(|ids| !ids.is_empty());
        let mut entries: Vec<_> = tagged.map(|ids| entry(ids, false, false)).collect();
        let kept = filter.default.filter(|id| self.keeps_default && !self.has(*id));
        entries.extend(kept.map(|id| entry(id.0..=id.0, false, true)));
        entries.push(entry(native..=native, true, true));
        entries.sort_by_key(|entry| *entry.ids.start());
        entries
    }
}

impl Links {
    /// Puts a port of a bridge with this filter into its VLANs. Frames of those that it is in already pass meanwhile.
    pub fn set_port_vlans(&mut self, port: &Found, filter: VlanFilter, vlans: &PortVlans) -> Result<(), LinkError> {
        let index = port.link.index;
        let unwanted = filter.default.filter(|id| !vlans.keeps_default && !vlans.has(*id));
        let unwanted = unwanted.map(|id| Entry { ids: id.0..=id.0, native: false, untagged: false });
        let mut requests: Vec<_> = unwanted.map(|entry| vlan::delete(index, &[entry])).into_iter().collect();
        requests.push(vlan::set(index, &vlans.entries(filter)));
        let failure = self.socket.batch(&requests, || ()).into_iter().next();
        let failed = LinkError::new(format!("set VLANs of bridge port {}", port.link.name));
        failure.map_or(Ok(()), |failure| Err(failed(failure.error)))
    }

    /// The VLANs of a bridge's port.
    pub fn port_vlans(&mut self, port: &Found) -> Result<Vec<Entry>, LinkError> {
        let reports = self.socket.dump(&vlan::list(), vlan::Report::read);
        let reports = reports.map_err(LinkError::new(format!("list VLANs of bridge port {}", port.link.name)))?;
        let of_port = reports.into_iter().find(|report| report.index == port.link.index);
        Ok(of_port.map(|report| report.entries).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTER: VlanFilter = VlanFilter { on: true, default: Some(VlanId::FIRST) };

    fn vlans(native: u16, tagged: &[(u16, u16)], keeps_default: bool) -> String {
        let id = |number| VlanId::new(number).unwrap();
        let tagged = tagged.iter().map(|(first, last)| id(*first)..=id(*last)).collect();
        let entries = PortVlans::new(id(native), tagged, keeps_default).entries(FILTER);
        entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_port_has_each_vlan_once() {
        assert_eq!(vlans(7, &[], false), "7 native");
        assert_eq!(vlans(7, &[], true), "1 untagged 7 native");
        assert_eq!(vlans(1, &[], true), "1 native");
        assert_eq!(vlans(1, &[(10, 12), (13, 13), (11, 11), (20, 30), (25, 27)], false), "1 native 10-13 20-30");
        assert_eq!(vlans(12, &[(10, 4094)], false), "10-11 12 native 13-4094");
        assert_eq!(vlans(10, &[(10, 11)], true), "1 untagged 10 native 11");
        assert_eq!(vlans(4094, &[(1, 4094)], true), "1-4093 4094 native");
        assert_eq!(vlans(7, &[(7, 7)], false), "7 native");
        assert!(VlanId::new(0).is_none() && VlanId::new(4095).is_none());
    }
}
