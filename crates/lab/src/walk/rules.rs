//! What packet rules did to our ping in each place: traced by nf_tables, or worked out where rules are of iptables-legacy.
//!
//! Surface: [`Tracer`] and [`Hit`].

use std::collections::HashMap;
use std::net::IpAddr;

use flannel_kernel::netlink::Error;
use flannel_kernel::nft::listing::Listing;
use flannel_kernel::nft::trace::{Event, Pattern, Step as Happening, Trace, Verdict};

use super::obstacle::Obstacle;
use super::story::{Step, Way};
use super::way::Stage;
use crate::error::LabError;
use crate::place::Place;

/// A rule, or a chain's policy, that had its say on our packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    /// On which way.
    pub(super) way: Way,
    /// Where in the place's course.
    pub(super) stage: Stage,
    /// It was said of the tunnel's packet.
    pub(super) wrapped: bool,
    /// The packet ends here.
    pub(super) drops: bool,
    /// A policy that accepts: said of every packet.
    pub(super) silent: bool,
    /// The step of the story.
    pub(super) step: Step,
}

impl Hit {
    /// Where it was.
    pub(super) fn place(&self) -> &str {
        match &self.step {
            Step::Rule { place, .. } => place,
            _ => "",
        }
    }

    /// What it is to a packet that it drops.
    pub(super) fn obstacle(&self) -> Obstacle {
        dropped_by(&self.step, "it")
    }
}

/// A rule that drops something.
fn dropped_by(rule: &Step, what: &str) -> Obstacle {
    let Step::Rule { place, table, chain, handle, text, .. } = rule else { return Obstacle::unknown("") };
    let handle = handle.map_or_else(String::new, |handle| format!(" handle {handle}"));
    let flannels = table.contains(" flannel-") || chain.starts_with("FLANNEL-");
    Obstacle::rule(place, what, &format!("table {table}, chain {chain}{handle}: `{text}`"), flannels)
}

/// A rule, or a chain's policy, that dropped a question for a neighbour or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silenced {
    /// ARP, or the IP header.
    network: Box<[u8]>,
    /// The first 20 bytes of ND.
    transport: Box<[u8]>,
    /// The rule, as a step.
    rule: Step,
}

impl Silenced {
    /// What it is to a packet that waits for the address.
    pub(super) fn obstacle(&self, address: IpAddr) -> Obstacle {
        let asks = if address.is_ipv4() { "ARP" } else { "ND" };
        dropped_by(&self.rule, &format!("{asks} for {address}"))
    }

    /// Whether it was about an address: a question for it, or its owner's answer (RFC 826; RFC 4861 §4.3, §4.4 and §7.2). Of ND's
    /// target the trace has 12 bytes; the rest is in the address that it was sent to, or came from.
    pub(super) fn is_about(&self, address: IpAddr) -> bool {
        let (network, transport) = (&self.network, &self.transport);
        match address {
            IpAddr::V4(address) => [14..18, 24..28].into_iter().any(|at| network.get(at) == Some(&address.octets())),
            IpAddr::V6(address) => {
                let octets = address.octets();
                let ends = [8..24, 24..40].into_iter().filter_map(|at| network.get(at));
                let asked = network.get(24..26) == Some(&[0xff, 0x02]) && network.get(37..40) == Some(&octets[13..]);
                transport.get(8..20) == Some(&octets[..12]) && (asked || ends.into_iter().any(|end| end == octets))
            }
        }
    }
}

/// What was traced.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Of our packets, in each place as they came.
    pub(super) hits: Vec<Hit>,
    /// Of ARP and ND.
    pub(super) silenced: Vec<Silenced>,
    /// What could not be traced.
    pub(super) remarks: Vec<String>,
}

/// Traces in several places.
#[derive(Debug)]
pub(super) struct Tracer {
    traces: Vec<(Place, Option<Trace>)>,
    requesters: Vec<IpAddr>,
}

impl Tracer {
    /// Begins to trace: what has the patterns, and ARP and ND (RFC 4861). What is wrapped is the request if one of the requesters sends it.
    pub(super) fn start(places: &[&Place], patterns: &[Pattern], requesters: Vec<IpAddr>) -> Result<Self, LabError> {
        let resolution = [135, 136].map(|kind| Pattern::Behind { protocol: 58, offset: 0, bytes: vec![kind] });
        let patterns = [patterns, &resolution, &[Pattern::Arp]].concat();
        let start = |place: &&Place| {
            let trace = place.inside(|| Trace::start(&patterns))?;
            Ok(((*place).clone(), trace.map_err(|error| failed(place, "trace packet rules", &error))?))
        };
        let traces = places.iter().map(start).collect::<Result<_, LabError>>()?;
        Ok(Self { traces, requesters })
    }

    /// What was traced, and what could not be.
    pub(super) fn finish(self) -> Result<Traces, LabError> {
        let mut traces = Traces::default();
        for (place, trace) in self.traces {
            let Some(mut trace) = trace else {
                traces.remarks.push(format!("{} has no nf_tables: its packet rules are not traced", place.name()));
                continue;
            };
            let events = trace.events().map_err(|error| failed(&place, "read the trace of packet rules", &error))?;
            if trace.lost() {
                traces.remarks.push(format!("some of what was traced in {} was lost", place.name()));
            }
            trace.stop().map_err(|error| failed(&place, "end the trace of packet rules", &error))?;
            if !events.is_empty() {
                traces.read(&place, &events, &self.requesters)?;
            }
        }
        Ok(traces)
    }
}

fn failed(place: &Place, action: &str, error: &Error) -> LabError {
    LabError::Kernel { action: format!("{action} in {}", place.name()), cause: error.to_string() }
}

/// What is known of a packet from its first events.
#[derive(Debug, Clone, Copy)]
struct Traced<'a> {
    whose: Whose,
    stage: Stage,
    /// The event that told its headers.
    first: &'a Event,
}

/// Whose packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Ours, or a tunnel's with ours in it.
    Own { way: Way, wrapped: bool },
    /// ARP or ND.
    Resolution,
}

impl Traces {
    /// Adds what a place's events say, in order.
    fn read(&mut self, place: &Place, events: &[Event], requesters: &[IpAddr]) -> Result<(), LabError> {
        let work = || -> Result<(), Error> {
            let Some(mut listing) = Listing::open()? else { return Ok(()) };
            let mut packets: HashMap<u32, Traced<'_>> = HashMap::new();
            for event in events {
                if let Some(whose) = whose(event, requesters) {
                    packets.insert(event.packet, Traced { whose, stage: Stage::Entry, first: event });
                }
                let Some(traced) = packets.get_mut(&event.packet) else { continue };
                if let Some(base) = listing.base_chain(event.family, &event.table, &event.chain)? {
                    traced.stage = if base.hook == "prerouting" { Stage::Entry } else { Stage::Course };
                }
                if let Some(said) = said(place.name(), event, &mut listing)? {
                    self.add(*traced, said);
                }
            }
            Ok(())
        };
        place.inside(work)?.map_err(|error| failed(place, "look up packet rules", &error))
    }

    fn add(&mut self, Traced { whose, stage, first }: Traced<'_>, Said { rule, drops, silent }: Said) {
        match whose {
            Whose::Own { way, wrapped } => self.hits.push(Hit { way, stage, wrapped, drops, silent, step: rule }),
            Whose::Resolution if drops => {
                let (network, transport) = (first.network.clone(), first.transport.clone());
                self.silenced.push(Silenced { network, transport, rule });
            }
            Whose::Resolution => {}
        }
    }
}

/// Whose packet the headers show: ours by its ICMP type (RFC 792, RFC 4443), a tunnel's by who sends it; none where there
/// are no headers, or others. ARP begins with the number of Ethernet, 1, in 16 bits.
fn whose(event: &Event, requesters: &[IpAddr]) -> Option<Whose> {
    let network = &event.network;
    let own = |way, wrapped| Some(Whose::Own { way, wrapped });
    let (source, protocol) = match network.first()? >> 4 {
        4 => (IpAddr::from(<[u8; 4]>::try_from(network.get(12..16)?).ok()?), *network.get(9)?),
        6 => (IpAddr::from(<[u8; 16]>::try_from(network.get(8..24)?).ok()?), *network.get(6)?),
        _ => return (network.get(..2) == Some(&[0, 1])).then_some(Whose::Resolution),
    };
    match (protocol, *event.transport.first()?) {
        (1, 8) | (58, 128) => own(Way::Request, false),
        (1, 0) | (58, 129) => own(Way::Reply, false),
        (58, 135 | 136) => Some(Whose::Resolution),
        (17, _) => own(if requesters.contains(&source) { Way::Request } else { Way::Reply }, true),
        _ => None,
    }
}

/// What an event says of a packet.
struct Said {
    rule: Step,
    drops: bool,
    /// A policy that accepts.
    silent: bool,
}

fn said(place: &str, event: &Event, listing: &mut Listing) -> Result<Option<Said>, Error> {
    let (handle, verdict, text, policy) = match &event.step {
        Happening::End => return Ok(None),
        Happening::Policy(verdict) => (None, verdict, format!("policy {verdict}"), true),
        Happening::Rule { handle, verdict } => {
            let rule = listing.rule(event.family, &event.table, &event.chain, *handle)?;
            let text = rule.map_or_else(|| "a rule that is gone".to_owned(), |rule| rule.text);
            (Some(*handle), verdict, text, false)
        }
    };
    let translates = text.contains("masquerade") || text.contains("MASQUERADE");
    let rule = Step::Rule {
        place: place.to_owned(),
        table: format!("{} {}", event.family, event.table),
        chain: event.chain.to_string(),
        handle,
        verdict: if translates { "masquerade".into() } else { verdict.to_string() },
        text,
        traced: true,
    };
    let drops = *verdict == Verdict::Drop;
    Ok(Some(Said { rule, drops, silent: policy && !drops }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silenced(network: &[u8], transport: &[u8]) -> Silenced {
        let rule = Step::Neigh { place: String::new(), text: String::new() };
        Silenced { network: network.into(), transport: transport.into(), rule }
    }

    #[test]
    fn questions_and_answers_are_about_one_address() {
        let [asker, own, other]: [IpAddr; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"].map(|text| text.parse().unwrap());
        let arp = [&[0; 14][..], &[10, 1, 0, 1], &[0; 6], &[10, 1, 0, 2]].concat();
        let arp = silenced(&arp, &[]);
        assert!(arp.is_about(own) && arp.is_about(asker) && !arp.is_about(other));

        let [asker, own, other] =
            ["fd00::1", "fd00::2", "fd00::3"].map(|text| text.parse::<std::net::Ipv6Addr>().unwrap());
        let group = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
        let ip =
            |from: std::net::Ipv6Addr, to: std::net::Ipv6Addr| [&[0; 8][..], &from.octets(), &to.octets()].concat();
        let target = [&[0; 8][..], &own.octets()[..12]].concat();
        for nd in [ip(asker, group), ip(asker, own), ip(own, asker)] {
            let nd = silenced(&nd, &target);
            assert!(nd.is_about(own.into()) && !nd.is_about(other.into()));
        }
    }
}
