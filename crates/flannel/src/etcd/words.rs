//! Words of the command line that mean subnets, addresses and records.

use std::fmt;
use std::net::IpAddr;

use flannel_core::addr::{Dual, Family};
use flannel_core::record::SubnetKey;
use flannel_store::etcd::operator::Listed;
use ipnet::IpNet;

/// Subnets, one at most of each family.
#[derive(Debug, Clone)]
pub(super) struct Subnets(pub(super) Dual<IpNet>);

/// Addresses, one at most of each family.
#[derive(Debug, Clone)]
pub(super) struct Addresses(pub(super) Dual<IpAddr>);

/// Reads `10.5.7.0/24`, `10.5.7.0/24,fc00::/64`, or the name of a record.
pub(super) fn subnets(text: &str) -> Result<Subnets, String> {
    if let Ok(SubnetKey(subnets)) = text.parse() {
        return Ok(Subnets(subnets));
    }
    let subnet = |word: &str| {
        let subnet: IpNet = word.parse().map_err(|_| format!("`{word}` is not a subnet like 10.5.7.0/24"))?;
        let start = subnet.trunc();
        if subnet == start { Ok(subnet) } else { Err(format!("`{word}` is not the start of a subnet: {start} is")) }
    };
    each(text, subnet, |subnet| Family::of_net(*subnet)).map(Subnets)
}

/// Reads `192.0.2.1`, or `192.0.2.1,2001:db8::1`.
pub(super) fn addresses(text: &str) -> Result<Addresses, String> {
    let address = |word: &str| word.parse().map_err(|_| format!("`{word}` is not an IP address"));
    each(text, address, |address| Family::of(*address)).map(Addresses)
}

fn each<T>(
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
    family: impl Fn(&T) -> Family,
) -> Result<Dual<T>, String> {
    let mut all = Dual::default();
    for word in text.split(',') {
        let value = read(word)?;
        let family = family(&value);
        if all.slot(family).replace(value).is_some() {
            return Err(format!("{family} is given twice"));
        }
    }
    Ok(all)
}

/// Whether a word is the name of a record, or a subnet that it has.
pub(super) fn names(word: &str, listed: &Listed) -> bool {
    let has = |Subnets(subnets): &Subnets| {
        let mut of_word = subnets.iter();
        of_word.all(|(family, subnet)| listed.subnet.get(family) == Some(subnet))
    };
    listed.record.key.as_str() == word || subnets(word).is_ok_and(|subnets| has(&subnets))
}

/// Whether a word means a record: by its name, its subnet, its host's public address or name, or an address in its subnet.
pub(super) fn means(word: &str, listed: &Listed) -> bool {
    let is_of = |address: IpAddr| {
        let is_in = |subnet: &IpNet| subnet.contains(&address);
        listed.public_ip.values().any(|ip| *ip == address) || listed.subnet.values().any(is_in)
    };
    let is_holder = listed.holder.as_ref().is_some_and(|host| host.name == word);
    is_holder || names(word, listed) || word.parse().is_ok_and(is_of)
}

/// Values separated by commas; `-` if there are none.
pub(super) fn list<T: fmt::Display>(values: &Dual<T>) -> String {
    let values: Vec<String> = values.values().map(ToString::to_string).collect();
    if values.is_empty() { "-".into() } else { values.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_addresses_are_read() {
        let read = |text: &str| match subnets(text) {
            Ok(Subnets(subnets)) => list(&subnets),
            Err(error) => error,
        };
        for (text, expect) in [
            ("10.5.7.0/24", "10.5.7.0/24"),
            ("fc00:0:0:5::/64,10.5.7.0/24", "10.5.7.0/24,fc00:0:0:5::/64"),
            ("10.5.7.0-24&fc00:0:0:5::-64", "10.5.7.0/24,fc00:0:0:5::/64"),
            ("0.0.0.0-0&fc00:0:0:5::-64", "fc00:0:0:5::/64"),
            ("10.5.7.0", "`10.5.7.0` is not a subnet like 10.5.7.0/24"),
            ("10.5.7.1/24", "`10.5.7.1/24` is not the start of a subnet: 10.5.7.0/24 is"),
            ("10.5.7.0/24,10.5.8.0/24", "IPv4 is given twice"),
            ("", "`` is not a subnet like 10.5.7.0/24"),
        ] {
            assert_eq!(read(text), expect);
        }
        let read = |text: &str| addresses(text).map(|Addresses(addresses)| list(&addresses));
        assert_eq!(read("2001:db8::1,192.0.2.1").as_deref(), Ok("192.0.2.1,2001:db8::1"));
        assert_eq!(read("host").unwrap_err(), "`host` is not an IP address");
    }
}
