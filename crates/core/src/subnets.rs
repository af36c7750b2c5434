//! The subnets that may be leased from a network: which fit, which are free, and which to take.
//!
//! Pure arithmetic over both families; a draw gets its randomness as a parameter.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::Family;

/// From how many of the first free subnets one is drawn (compat §3).
const CHOICES: usize = 100;

/// The subnets of one family that may be leased: of one length, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange {
    /// Prefix length of each subnet (`SubnetLen`).
    pub len: u8,
    /// Address of the first subnet (`SubnetMin`).
    pub min: IpAddr,
    /// Address of the last subnet (`SubnetMax`).
    pub max: IpAddr,
}

impl SubnetRange {
    /// All of a network but its first subnet, whose address would be the network's own.
    ///
    /// `len` is longer than the network's prefix.
    pub fn whole(network: IpNet, len: u8) -> Self {
        let family = Family::of_net(network);
        let step = step(family, len);
        let min = address(family, number(network.network()) + step);
        let max = address(family, number(network.broadcast()) & !(step - 1));
        Self { len, min, max }
    }

    /// Whether an address is the first of a subnet of this range's length.
    pub fn is_aligned(&self, start: IpAddr) -> bool {
        number(start) & (step(Family::of(start), self.len) - 1) == 0
    }

    /// Whether a subnet is one of the range.
    pub fn contains(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.len
            && Family::of(self.min) == Family::of_net(subnet)
            && (self.min..=self.max).contains(&subnet.addr())
            && self.is_aligned(subnet.addr())
    }

    /// The subnets of the range in order, those left out that overlap one of `taken`.
    pub fn free(&self, taken: &[IpNet]) -> impl Iterator<Item = IpNet> + use<> {
        let (family, len, max) = (Family::of(self.min), self.len, number(self.max));
        let step = step(family, len);
        let same = taken.iter().filter(|net| Family::of_net(**net) == family).copied();
        let mut taken = IpNet::aggregate(&same.collect()).into_iter().map(ends).peekable();
        let mut next = Some(number(self.min));
        std::iter::from_fn(move || {
            loop {
                let start = next.filter(|start| *start <= max)?;
                while taken.next_if(|(_, last)| *last < start).is_some() {}
                let end = start + (step - 1);
                match taken.peek() {
                    Some((first, last)) if *first <= end => next = last.max(&end).checked_add(1).map(|n| up(n, step)),
                    _ => {
                        next = end.checked_add(1);
                        return IpNet::new(address(family, start), len).ok();
                    }
                }
            }
        })
    }

    /// One of the first 100 free subnets, which one by a random number.
    pub fn draw(&self, taken: &[IpNet], random: u64) -> Option<IpNet> {
        let choices: Vec<IpNet> = self.free(taken).take(CHOICES).collect();
        let index = random.checked_rem(choices.len() as u64)?;
        choices.get(usize::try_from(index).ok()?).copied()
    }
}

/// The first and the last address of a prefix, as numbers.
fn ends(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

/// The distance between subnets; `len` is at least 1.
fn step(family: Family, len: u8) -> u128 {
    1 << family.bits().saturating_sub(len).min(127)
}

/// The next multiple of `step`, or a number past every range.
fn up(n: u128, step: u128) -> u128 {
    n.checked_next_multiple_of(step).unwrap_or(u128::MAX)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::overlap;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn range(network: &str, len: u8) -> SubnetRange {
        SubnetRange::whole(net(network), len)
    }

    #[test]
    fn the_first_subnet_is_left_out() {
        let check = |network, len, min: &str, max: &str| {
            let range = range(network, len);
            assert_eq!((range.min.to_string(), range.max.to_string()), (min.to_owned(), max.to_owned()), "{network}");
        };
        check("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0");
        check("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0");
        check("2001:cafe:42::/56", 64, "2001:cafe:42:1::", "2001:cafe:42:ff::");
        check("::/0", 2, "4000::", "c000::");
    }

    #[test]
    fn free_subnets_come_in_order_around_those_taken() {
        let check = |network, len, taken: &[&str], expect: &[&str]| {
            let taken: Vec<IpNet> = taken.iter().map(|text| net(text)).collect();
            let free: Vec<String> = range(network, len).free(&taken).take(3).map(|net| net.to_string()).collect();
            assert_eq!(free, expect, "{taken:?}");
        };
        check("10.0.0.0/16", 24, &[], &["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]);
        check("10.0.0.0/16", 24, &["10.0.2.0/24", "fc00::/7"], &["10.0.1.0/24", "10.0.3.0/24", "10.0.4.0/24"]);
        check("10.0.0.0/16", 24, &["10.0.2.128/25"], &["10.0.1.0/24", "10.0.3.0/24", "10.0.4.0/24"]);
        check("10.0.0.0/16", 24, &["10.0.0.0/17"], &["10.0.128.0/24", "10.0.129.0/24", "10.0.130.0/24"]);
        check("10.0.0.0/30", 32, &["10.0.0.2/32"], &["10.0.0.1/32", "10.0.0.3/32"]);
        check("0.0.0.0/0", 2, &[], &["64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"]);
        check("::/0", 2, &["c000::/3"], &["4000::/2", "8000::/2"]);
        check("::/0", 64, &["::/1"], &["8000::/64", "8000:0:0:1::/64", "8000:0:0:2::/64"]);
        check("::/0", 64, &["::/0"], &[]);
    }

    #[test]
    fn a_draw_stays_among_the_first_hundred() {
        let range = range("10.0.0.0/16", 24);
        assert_eq!(range.draw(&[], 0), Some(net("10.0.1.0/24")));
        assert_eq!(range.draw(&[], 99), Some(net("10.0.100.0/24")));
        assert_eq!(range.draw(&[], 100), Some(net("10.0.1.0/24")));
        assert_eq!(range.draw(&[net("10.0.0.0/16")], 7), None);
    }

    proptest! {
        #[test]
        fn what_is_free_fits_and_overlaps_nothing(
            taken in prop::collection::vec((any::<u16>(), 10u8..=32), 0..40),
            random in any::<u64>(),
        ) {
            let range = range("10.0.0.0/16", 22);
            let taken: Vec<IpNet> = taken
                .into_iter()
                .map(|(low, len)| IpNet::new(address(Family::V4, 0x0a00_0000 + u128::from(low)), len).unwrap().trunc())
                .collect();
            let is_free = |subnet: &IpNet| !taken.iter().any(|other| overlap(*other, *subnet));
            let expect: Vec<IpNet> = range.free(&[]).filter(is_free).collect();
            prop_assert!(expect.iter().all(|subnet| range.contains(*subnet)));
            prop_assert_eq!(range.free(&taken).collect::<Vec<_>>(), expect.clone());
            let drawn = range.draw(&taken, random);
            prop_assert_eq!(drawn.is_none(), expect.is_empty());
            prop_assert!(drawn.is_none_or(|subnet| expect.contains(&subnet)));
        }
    }
}
