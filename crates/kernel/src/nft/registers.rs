//! The registers that a rule of nf_tables computes on, with bytes that may be unknown.
//!
//! Surface: [`Registers`], by the expressions that load, mask and compare them. Numbers of registers are those of `enum
//! nft_registers` of `linux/netfilter/nf_tables.h`: four of 16 bytes, or the same as sixteen of four.

use std::cmp::Ordering;

use super::passage::{Element, Said};
use super::{attr, number};
use crate::netlink::Attributes;

/// Bytes of all registers.
const SIZE: usize = 64;
/// Bytes of the registers 1 to 4.
const LARGE: usize = 16;
/// Bytes of the others.
const SMALL: usize = 4;
/// `NFT_REG32_00`.
const FIRST_SMALL: usize = 8;

/// The registers; at first nothing in them is known.
#[derive(Debug, Clone)]
pub(super) struct Registers([Option<u8>; SIZE]);

impl Default for Registers {
    fn default() -> Self {
        Self([None; SIZE])
    }
}

/// Where a register begins; none for the verdict's.
fn place(register: u32) -> Option<usize> {
    match register as usize {
        register @ 1..=4 => Some((register - 1) * LARGE),
        register => register.checked_sub(FIRST_SMALL).map(|small| small * SMALL).filter(|at| *at < SIZE),
    }
}

impl Registers {
    /// Loads a value, or what is not known, into the register that an attribute names. Loads are filled up with zeros.
    pub(super) fn load(&mut self, data: Attributes<'_>, register: u16, value: Option<&[u8]>) -> Said {
        if let Some(at) = number(data, register).and_then(place) {
            let end = SIZE.min(at + value.map_or(LARGE, |value| value.len().next_multiple_of(SMALL)));
            for (index, byte) in self.0[at..end].iter_mut().enumerate() {
                *byte = value.map(|value| value.get(index).copied().unwrap_or(0));
            }
        }
        Said::Holds
    }

    fn read(&self, register: u32, length: usize) -> Option<Vec<u8>> {
        let at = place(register)?;
        self.0.get(at..at.checked_add(length)?)?.iter().copied().collect()
    }

    /// The mark that is set from a register, if it is known.
    pub(super) fn mark(&self, data: Attributes<'_>) -> Option<Vec<u8>> {
        self.read(number(data, attr::META_SREG)?, SMALL)
    }

    /// `bitwise`: masks and turns bits. Shifts are not followed.
    pub(super) fn mask(&mut self, data: Attributes<'_>) -> Said {
        let value = || {
            let mask = data.inside(attr::BITWISE_MASK).find(attr::DATA_VALUE)?.0;
            let turn = data.inside(attr::BITWISE_XOR).find(attr::DATA_VALUE)?.0;
            let value = self.read(number(data, attr::BITWISE_SREG)?, number(data, attr::BITWISE_LEN)? as usize)?;
            let plain = number(data, attr::BITWISE_OP).unwrap_or(0) == 0 && mask.len() == value.len();
            let bits = value.iter().zip(mask.iter().zip(turn)).map(|(value, (mask, turn))| value & mask ^ turn);
            plain.then(|| bits.collect::<Vec<u8>>())
        };
        let value = value();
        self.load(data, attr::BITWISE_DREG, value.as_deref())
    }

    /// `cmp`: whether it holds, if that can be known.
    pub(super) fn compare(&self, data: Attributes<'_>) -> Option<bool> {
        let wanted = data.inside(attr::CMP_DATA).find(attr::DATA_VALUE)?.0;
        let order = self.read(number(data, attr::CMP_SREG)?, wanted.len())?.as_slice().cmp(wanted);
        Some(match number(data, attr::CMP_OP)?.cast_signed() {
            libc::NFT_CMP_EQ => order == Ordering::Equal,
            libc::NFT_CMP_NEQ => order != Ordering::Equal,
            libc::NFT_CMP_LT => order == Ordering::Less,
            libc::NFT_CMP_LTE => order != Ordering::Greater,
            libc::NFT_CMP_GT => order == Ordering::Greater,
            libc::NFT_CMP_GTE => order != Ordering::Less,
            _ => return None,
        })
    }

    /// `range`: likewise.
    pub(super) fn within(&self, data: Attributes<'_>) -> Option<bool> {
        let end = |kind| data.inside(kind).find(attr::DATA_VALUE).map(|value| value.0);
        let (from, to) = (end(attr::RANGE_FROM)?, end(attr::RANGE_TO)?);
        let value = self.read(number(data, attr::RANGE_SREG)?, from.len())?;
        let inside = (from..=to).contains(&value.as_slice());
        Some(inside == (number(data, attr::RANGE_OP)?.cast_signed() == libc::NFT_RANGE_EQ))
    }

    /// Which element of a set a register's value is in.
    pub(super) fn find<'a>(&self, register: Option<u32>, elements: &'a [Element]) -> Membership<'a> {
        let (catch_all, mut keyed): (Vec<_>, Vec<_>) = elements.iter().partition(|element| element.catches_all);
        let length = keyed.first().map_or(0, |element| element.key.len());
        let is_odd = keyed.iter().any(|element| element.is_range || element.key.len() != length);
        let Some(value) = register.filter(|_| !is_odd).and_then(|register| self.read(register, length)) else {
            return Membership::Unknown;
        };
        let found = if keyed.iter().any(|element| element.ends) {
            // Where one interval ends another may begin.
            keyed.sort_by(|a, b| a.key.cmp(&b.key).then(b.ends.cmp(&a.ends)));
            keyed.into_iter().rfind(|element| element.key <= value).filter(|element| !element.ends)
        } else {
            keyed.into_iter().find(|element| element.key == value)
        };
        found.or(catch_all.first().copied()).map_or(Membership::Outside, Membership::In)
    }
}

/// Whether a value is in a set.
pub(super) enum Membership<'a> {
    /// That cannot be known.
    Unknown,
    Outside,
    /// By this element.
    In(&'a Element),
}
