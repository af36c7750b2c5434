//! Reserving a subnet for a host: a record that is attached to no lease of etcd.

use std::net::IpAddr;

use flannel_core::addr::{Dual, Family};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Attributes, LeaseKey, Since};
use flannel_core::record::{self, SubnetKey};
use ipnet::IpNet;

use super::super::transaction::Transaction;
use super::listed::list;
use super::{ATTEMPTS, Listed, Operator, OperatorError};

/// A reservation to be made.
#[derive(Debug)]
struct Wish<'a> {
    key: LeaseKey,
    subnet: &'a Dual<IpNet>,
    public_ip: &'a Dual<IpAddr>,
}

impl Operator {
    /// Reserves a subnet for the host with these public addresses, one for each family of the subnet. Its own lease of that
    /// subnet becomes the reservation, and keeps what it says. Answers with the record that was there before.
    pub async fn reserve(
        &self,
        subnet: &Dual<IpNet>,
        public_ip: &Dual<IpAddr>,
    ) -> Result<(LeaseKey, Option<Listed>), OperatorError> {
        let wish = Wish { key: LeaseKey::new(SubnetKey(*subnet).to_string()), subnet, public_ip };
        for _ in 0..ATTEMPTS {
            let (config, seen) = self.config_in_use().await?;
            wish.check_fit(&config)?;
            let census = self.look().await?;
            if let Some(other) = wish.obstacle(&census.records) {
                return Err(wish.refusal(&self.timed(other.clone()).await?));
            }
            let before = census.records.into_iter().find(|listed| listed.record.key == wish.key);
            let writing = Transaction::default().if_unchanged(&seen);
            let writing = writing.if_none_written_after(self.keys.subnets(), census.revision);
            if self.has_reserved(writing, &wish, before.as_ref()).await? {
                return Ok((wish.key, before));
            }
        }
        Err(OperatorError::Overtaken)
    }

    /// Writes the record, unless it is there already; false if somebody else was faster.
    async fn has_reserved(
        &self,
        writing: Transaction,
        wish: &Wish<'_>,
        before: Option<&Listed>,
    ) -> Result<bool, OperatorError> {
        if before.is_some_and(|listed| listed.keeping.lease().is_none() && listed.record.lease.is_ok()) {
            return Ok(true);
        }
        let (key, holder) = (self.keys.record(&wish.key), self.keys.holder(&wish.key));
        let action = format!("write {key}");
        let writing = match before.filter(|listed| listed.record.lease.is_ok()) {
            Some(listed) => writing.put(key, listed.kv.value.clone(), 0),
            None => writing.put(key, wish.text()?, 0),
        };
        // It would go with the lease of etcd that the record is not attached to any more.
        let signature = before.and_then(|listed| serde_json::to_string(listed.holder.as_ref()?).ok());
        let writing = match signature {
            Some(signature) => writing.sign(holder, signature, 0),
            None => writing,
        };
        let (done, _) = writing.send_signed(&self.client, &action).await?;
        Ok(done.succeeded)
    }
}

impl Wish<'_> {
    /// Whether a daemon would take the subnet: what it checks of a record of its own.
    fn check_fit(&self, config: &NetworkConfig) -> Result<(), OperatorError> {
        for family in Family::ALL {
            let unfit = |why: String, hint: String| {
                let subnet = list(self.subnet);
                Err(OperatorError::Unfit { subnet, why, hint })
            };
            match (self.subnet.get(family), self.public_ip.get(family)) {
                (Some(_), None) => {
                    return unfit(
                        format!("the host's public {family} address is missing"),
                        "give it too, behind a comma".into(),
                    );
                }
                (None, Some(ip)) => {
                    return unfit(
                        format!("it has no {family} subnet for {ip}"),
                        "give one, or leave the address out".into(),
                    );
                }
                (Some(subnet), Some(_)) if !config.fits_family(*subnet) => {
                    let (why, hint) = why_unfit(config, *subnet);
                    return unfit(why, hint);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The record that is in the way, if one is.
    fn obstacle<'a>(&self, records: &'a [Listed]) -> Option<&'a Listed> {
        records.iter().find(|listed| {
            let is_ours = listed.record.key == self.key && self.is_for(listed);
            !is_ours && (listed.overlaps(self.subnet) || self.names(listed))
        })
    }

    /// Whether a record names this host and no other.
    fn is_for(&self, listed: &Listed) -> bool {
        let of_record = |(family, ip): (Family, &IpAddr)| listed.public_ip.get(family) == Some(ip);
        self.public_ip.iter().all(of_record)
    }

    /// Whether a record names this host.
    fn names(&self, listed: &Listed) -> bool {
        self.public_ip.iter().any(|(family, ip)| listed.public_ip.get(family) == Some(ip))
    }

    fn refusal(&self, other: &Listed) -> OperatorError {
        let (name, keeping) = (other.record.key.clone(), other.keeping.to_string());
        if other.overlaps(self.subnet) {
            OperatorError::Taken { subnet: list(self.subnet), name, owner: other.owner(), keeping }
        } else {
            OperatorError::Elsewhere { public_ip: list(self.public_ip), name, keeping }
        }
    }

    /// The record's text, which a daemon can read.
    fn text(&self) -> Result<String, OperatorError> {
        let text = record::write(self.public_ip, &Attributes::Other("".into()), None);
        let flaws = match record::read(self.key.clone(), text.as_bytes(), Since::default()).lease {
            Ok(lease) => lease.flaws.clone(),
            Err(flaw) => vec![flaw.as_ref().clone()],
        };
        flaws.into_iter().next().map_or(Ok(text), |flaw| Err(OperatorError::Unreadable(flaw)))
    }
}

/// Why the config does not allow a subnet, and what to do.
fn why_unfit(config: &NetworkConfig, subnet: IpNet) -> (String, String) {
    let family = Family::of_net(subnet);
    match config.subnets.get(family) {
        Some(range) => (
            format!("the network config hands out /{} subnets from {} to {}", range.len, range.min, range.max),
            "give one of those".into(),
        ),
        None => (format!("the network config has no {family} network"), "leave that subnet and address out".into()),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::config::ConfigRules;

    use super::*;

    const DUAL: &str = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.7.0", "EnableIPv6": true, "IPv6Network": "fc00::/48",
        "Backend": {"Type": "vxlan"}}"#;

    fn wish<'a>(subnet: &'a Dual<IpNet>, public_ip: &'a Dual<IpAddr>) -> Wish<'a> {
        Wish { key: LeaseKey::new(SubnetKey(*subnet).to_string()), subnet, public_ip }
    }

    fn said(config: &str, subnets: &[&str], addresses: &[&str]) -> String {
        let (config, _) = NetworkConfig::parse(config, ConfigRules::Etcd).unwrap();
        let subnet = Dual::of_nets(subnets.iter().map(|text| text.parse().unwrap()));
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let public_ip = Dual::from_fn(|family| addresses.iter().copied().find(|ip| Family::of(*ip) == family));
        let wish = wish(&subnet, &public_ip);
        match wish.check_fit(&config).and_then(|()| wish.text()) {
            Ok(text) => format!("{} {text}", wish.key),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_a_daemon_would_not_take_is_refused() {
        let v4 = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        for (config, subnets, addresses, expect) in [
            (v4, &["10.5.7.0/24"][..], &["192.0.2.1"][..], r#"10.5.7.0-24 {"PublicIP":"192.0.2.1","PublicIPv6":null}"#),
            (
                DUAL,
                &["10.5.7.0/24", "fc00:0:0:5::/64"],
                &["192.0.2.1", "2001:db8::1"],
                r#"10.5.7.0-24&fc00:0:0:5::-64 {"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}"#,
            ),
            (
                DUAL,
                &["fc00:0:0:5::/64"],
                &["2001:db8::1"],
                r#"0.0.0.0-0&fc00:0:0:5::-64 {"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}"#,
            ),
            (
                DUAL,
                &["10.5.6.0/24"],
                &["192.0.2.1"],
                "10.5.6.0/24 cannot be reserved: the network config hands out /24 subnets from 10.5.7.0 to 10.5.255.0",
            ),
            (
                v4,
                &["10.5.7.0/25"],
                &["192.0.2.1"],
                "10.5.7.0/25 cannot be reserved: the network config hands out /24 subnets from 10.5.1.0 to 10.5.255.0",
            ),
            (
                v4,
                &["fc00:0:0:5::/64"],
                &["2001:db8::1"],
                "fc00:0:0:5::/64 cannot be reserved: the network config has no IPv6 network",
            ),
            (
                DUAL,
                &["10.5.7.0/24"],
                &["2001:db8::1"],
                "10.5.7.0/24 cannot be reserved: the host's public IPv4 address is missing",
            ),
            (
                v4,
                &["10.5.7.0/24"],
                &["192.0.2.1", "2001:db8::1"],
                "10.5.7.0/24 cannot be reserved: it has no IPv6 subnet for 2001:db8::1",
            ),
            (
                v4,
                &["10.5.7.0/24"],
                &["127.0.0.1"],
                "the record would be broken: PublicIP: `127.0.0.1` is not an IPv4 address of a host",
            ),
        ] {
            assert_eq!(said(config, subnets, addresses), expect);
        }
    }
}
