//! Making, changing and deleting devices of ours, one at a time.
//!
//! A device of our name but of another kind belongs to somebody else: it is refused, never changed or deleted.

use flannel_core::addr::LinkName;
use flannel_core::state::{Link, LinkKind, Scope, Vxlan};

use super::{Event, KernelExecutor, refusal};
use crate::netlink::Error;
use crate::netlink::link::{self, Kind, Report, Settings};
use crate::sysctl;

impl KernelExecutor {
    /// Makes a device or changes the one there in place, then reads it back.
    pub(super) fn set_link(&mut self, name: LinkName, want: &Link) -> Result<(), String> {
        let found = self.find(name)?;
        let is_new = found.is_none();
        let index = match found {
            None => self.make_link(name, want)?,
            Some(found) if !Scope::owns_link(name.as_str(), &found.kind) || *found.kind != *want.kind.name() => {
                return Err(not_ours(&found));
            }
            Some(found) => self.change_link(&found, want)?,
        };
        if let Err(cause) = self.set_accept_ra(name, want.accept_ra).and_then(|()| self.bring_up(index, name, want)) {
            // Best effort: what matters is why it is of no use.
            let _ = is_new.then(|| self.socket.tell(&link::delete(index)));
            return Err(cause);
        }
        // Setting accept_ra has no echo, so the echoes before it must not come after what is read now.
        self.keep_up();
        let found = self.find(name)?.ok_or("it vanished while it was made")?;
        self.learn(&found);
        self.pending.push(Event::Link(found));
        Ok(())
    }

    /// Deletes a device, and with it all that lives on it.
    pub(super) fn remove_link(&mut self, name: LinkName) -> Result<(), String> {
        let Some(found) = self.find(name)? else { return Ok(()) };
        if !Scope::owns_link(name.as_str(), &found.kind) {
            return Err(not_ours(&found));
        }
        match self.socket.tell(&link::delete(found.index)) {
            Err(error) if !error.is_absent() => return Err(error.to_string()),
            _ => {}
        }
        self.links.forget(found.index);
        self.encoding.forget_link(found.index);
        self.nexthops.forget_link(found.index);
        Ok(())
    }

    /// A kernel without IPv6 has none to set. Where `/proc/sys` is read-only it stays as it is, and is read as what was wanted
    /// from then on: on a forwarding node 1, the kernel's default, means the same as 0.
    fn set_accept_ra(&mut self, name: LinkName, on: bool) -> Result<(), String> {
        match sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), if on { "1" } else { "0" }) {
            Err(error) if error.is_denied() => {
                if self.accept_ra.replace(on).is_none() {
                    tracing::warn!("{error}; going on without");
                }
                Ok(())
            }
            Err(error) if !error.is_absent() => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Remembers a link that no notice has told of yet. What is known already changes when its notice is taken in, for the
    /// difference tells what went with it.
    fn learn(&mut self, found: &Report) {
        if self.links.at(found.index).is_none() {
            self.links.note(found);
        }
    }

    fn find(&mut self, name: LinkName) -> Result<Option<Report>, String> {
        match self.socket.ask(&link::by_name(name), Report::read) {
            Ok(mut found) => Ok(found.pop()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn make_link(&mut self, name: LinkName, want: &Link) -> Result<u32, String> {
        let LinkKind::Vxlan(vxlan) = &want.kind else {
            return Err(format!("devices of kind {} are not made here", want.kind.name()));
        };
        let lower = self.lower(vxlan)?;
        let settings = Settings { name: Some(name), mac: Some(want.mac), mtu: Some(want.mtu), ..Settings::default() };
        let made = self.socket.tell(&link::create(&settings, &Kind::Vxlan(vxlan, lower)));
        made.map_err(|error| self.refusal(&error, name, want))?;
        let made = self.find(name)?.ok_or("it vanished while it was made")?;
        Ok(made.index)
    }

    /// The UDP port is taken only now.
    fn bring_up(&mut self, index: u32, name: LinkName, want: &Link) -> Result<(), String> {
        let settings = Settings { up: Some(want.up), ..Settings::default() };
        self.socket.tell(&link::change(index, &settings)).map_err(|error| self.refusal(&error, name, want))
    }

    /// Why the kernel refuses a device, with what is in its way.
    fn refusal(&mut self, error: &Error, name: LinkName, want: &Link) -> String {
        let LinkKind::Vxlan(vxlan) = &want.kind else { return error.to_string() };
        let mut links = self.socket.dump(&link::list(), Report::read).unwrap_or_default();
        links.retain(|link| link.name != name);
        refusal::of_vxlan(error, vxlan, &links)
    }

    fn change_link(&mut self, found: &Report, want: &Link) -> Result<u32, String> {
        if let (LinkKind::Vxlan(vxlan), Some((now, lower_now))) = (&want.kind, &found.vxlan) {
            if !LinkKind::Vxlan(now.clone()).can_become(&want.kind) {
                return Err("it must be made again".to_owned());
            }
            let lower = self.lower(vxlan)?;
            if (vxlan.local, vxlan.learning, lower) != (now.local, now.learning, *lower_now) {
                self.socket.tell(&link::change_vxlan(found.index, vxlan, lower)).map_err(|error| error.to_string())?;
            }
        }
        let mac = Some(want.mac).filter(|mac| Some(*mac) != found.mac);
        let mtu = Some(want.mtu).filter(|mtu| *mtu != found.mtu);
        if mac.is_some() || mtu.is_some() {
            self.tell_link(found.index, &Settings { mac, mtu, ..Settings::default() })?;
        }
        Ok(found.index)
    }

    /// The index of the device that outer packets leave by.
    fn lower(&mut self, vxlan: &Vxlan) -> Result<Option<u32>, String> {
        let Some(name) = vxlan.lower else { return Ok(None) };
        let found = self.find(name)?.ok_or_else(|| format!("there is no device {name} for its packets to leave by"))?;
        self.learn(&found);
        Ok(Some(found.index))
    }

    fn tell_link(&mut self, index: u32, settings: &Settings<'_>) -> Result<(), String> {
        self.socket.tell(&link::change(index, settings)).map_err(|error| error.to_string())
    }
}

fn not_ours(found: &Report) -> String {
    let kind = if found.kind.is_empty() { "hardware" } else { &*found.kind };
    let name = found.name;
    format!(
        "a device of that name but of kind {kind} is there and not flannel's (hint: rename it, or ip link delete {name})"
    )
}
