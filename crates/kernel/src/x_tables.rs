//! Whether the tables of iptables-legacy changed, without a program: x_tables tells nobody of changes, but gives its tables
//! to whoever asks.
//!
//! Surface: [`digest`], and [`passage`], which follows a packet. Whether the rules are as wanted is not looked at; for that
//! `iptables-legacy-save` is run, when a digest is another than before. Layouts are those of
//! `linux/netfilter_ipv4/ip_tables.h` and `linux/netfilter_ipv6/ip6_tables.h` on 64 bits.

pub(crate) mod passage;

use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use flannel_core::addr::Family;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::iptables::legacy_tables;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of a table's name in a request, `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Bytes of `struct ipt_getinfo`, the last four of which are the size of the table's entries.
const INFO: usize = 84;
/// Where in it the offsets of the hooks' entries are, and how many; those of their policies follow.
const HOOKS_AT: usize = 36;
const HOOKS: usize = 5;
/// Bytes of `struct ipt_get_entries` before the entries: the table's name, their size, and up to the next multiple of eight.
const BEFORE_ENTRIES: usize = 40;
/// Bytes of `struct xt_counters`.
const COUNTERS: usize = 16;
/// A larger table is not read, in bytes.
const LARGEST: usize = 64 << 20;

/// Where in an entry is what.
struct Layout {
    level: libc::c_int,
    next_offset: usize,
    counters: usize,
}

impl Layout {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { level: libc::IPPROTO_IP, next_offset: 90, counters: 96 },
            Family::V6 => Self { level: libc::IPPROTO_IPV6, next_offset: 142, counters: 152 },
        }
    }
}

/// A digest of all rules of a family in this thread's network namespace, whatever they have counted. No table is made by it.
pub(crate) fn digest(family: Family) -> io::Result<u64> {
    digest_of(family, |_| true)
}

/// The same, but of tables whose rules do not matter only how large they are: to read them costs more.
fn digest_of(family: Family, matters: impl Fn(&str) -> bool) -> io::Result<u64> {
    let tables = Tables::open(family)?;
    let mut digest = DefaultHasher::new();
    for table in legacy_tables(family) {
        digest.write(table.as_bytes());
        if matters(&table) {
            digest.write(&tables.read(&table)?.entries);
        } else {
            digest.write(&tables.info(&table)?);
        }
    }
    Ok(digest.finish())
}

/// A table as the kernel gives it.
struct Table {
    /// Where in the entries the packets of each hook begin and where its policy is, `NF_INET_NUMHOOKS` each.
    hooks: Vec<u32>,
    policies: Vec<u32>,
    /// The entries, with their counters at zero.
    entries: Vec<u8>,
}

/// The tables of a family in the network namespace of the thread that opened them.
struct Tables {
    socket: OwnedFd,
    layout: Layout,
}

impl Tables {
    fn open(family: Family) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => AddressFamily::INET,
            Family::V6 => AddressFamily::INET6,
        };
        let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, layout: Layout::of(family) })
    }

    /// What the kernel says of a table: where its chains are, and how large it is.
    fn info(&self, table: &str) -> io::Result<[u8; INFO]> {
        if table.len() >= NAME {
            return Err(malformed(table));
        }
        let mut info = [0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        self.ask(GET_INFO, &mut info)?;
        Ok(info)
    }

    fn read(&self, table: &str) -> io::Result<Table> {
        let info = self.info(table)?;
        let number = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let offsets = |from: usize| (0..HOOKS).map(|hook| number(from + 4 * hook)).collect();
        let (hooks, policies) = (offsets(HOOKS_AT), offsets(HOOKS_AT + 4 * HOOKS));
        let size = number(INFO - 4);
        if size as usize > LARGEST {
            return Err(malformed(table));
        }
        let mut answer = vec![0; BEFORE_ENTRIES + size as usize];
        answer[..table.len()].copy_from_slice(table.as_bytes());
        answer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        self.ask(GET_ENTRIES, &mut answer)?;
        let mut entries = answer.split_off(BEFORE_ENTRIES);
        zero_counters(&self.layout, &mut entries).ok_or_else(|| malformed(table))?;
        Ok(Table { hooks, policies, entries })
    }

    /// Has the kernel answer a request in its place.
    fn ask(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let (socket, level) = (self.socket.as_raw_fd(), self.layout.level);
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the descriptor is open, and the kernel reads and writes at most `length` bytes of `buffer`, which outlives the
        // call as `length` does.
        let result = unsafe { libc::getsockopt(socket, level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn malformed(table: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("table {table} is not as expected"))
}

/// None if an entry does not say where the next one begins.
fn zero_counters(layout: &Layout, mut entries: &mut [u8]) -> Option<()> {
    while !entries.is_empty() {
        let next = entries.get(layout.next_offset..layout.next_offset + 2)?;
        let next = usize::from(u16::from_ne_bytes([next[0], next[1]]));
        entries.get_mut(layout.counters..layout.counters + COUNTERS)?.fill(0);
        entries = entries.get_mut(next..).filter(|_| next >= layout.counters + COUNTERS)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_entries_in_order_are_blanked_and_others_refused() {
        let layout = Layout::of(Family::V4);
        let entry = |length: u16| {
            let mut entry = vec![7; usize::from(length)];
            entry[90..92].copy_from_slice(&length.to_ne_bytes());
            entry
        };
        let mut two = [entry(112), entry(152)].concat();
        let mut expect = two.clone();
        expect[96..112].fill(0);
        expect[208..224].fill(0);
        assert!(zero_counters(&layout, &mut two).is_some());
        assert_eq!(two, expect);
        for next in [0, 111, 153, u16::MAX] {
            let mut broken = entry(152);
            broken[90..92].copy_from_slice(&next.to_ne_bytes());
            assert!(zero_counters(&layout, &mut broken).is_none(), "{next}");
        }
        assert!(zero_counters(&layout, &mut [0; 91]).is_none());
    }
}
