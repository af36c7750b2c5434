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
        let Step::Rule { place, table, chain, handle, text, .. } = &self.step else { return Obstacle::unknown("") };
        let handle = handle.map_or_else(String::new, |handle| format!(" handle {handle}"));
        let flannels = table.contains(" flannel-") || chain.starts_with("FLANNEL-");
        Obstacle::rule(place, &format!("table {table}, chain {chain}{handle}: `{text}`"), flannels)
    }
}

/// Traces in several places.
#[derive(Debug)]
pub(super) struct Tracer {
    traces: Vec<(Place, Option<Trace>)>,
    requesters: Vec<IpAddr>,
}

impl Tracer {
    /// Begins to trace. What is wrapped is the request if one of the requesters sends it.
    pub(super) fn start(places: &[&Place], patterns: &[Pattern], requesters: Vec<IpAddr>) -> Result<Self, LabError> {
        let start = |place: &&Place| {
            let trace = place.inside(|| Trace::start(patterns))?;
            Ok(((*place).clone(), trace.map_err(|error| failed(place, "trace packet rules", &error))?))
        };
        let traces = places.iter().map(start).collect::<Result<_, LabError>>()?;
        Ok(Self { traces, requesters })
    }

    /// What was traced, and what could not be.
    pub(super) fn finish(self) -> Result<(Vec<Hit>, Vec<String>), LabError> {
        let (mut hits, mut remarks) = (Vec::new(), Vec::new());
        for (place, trace) in self.traces {
            let Some(mut trace) = trace else {
                remarks.push(format!("{} has no nf_tables: its packet rules are not traced", place.name()));
                continue;
            };
            let events = trace.events().map_err(|error| failed(&place, "read the trace of packet rules", &error))?;
            if trace.lost() {
                remarks.push(format!("some of what was traced in {} was lost", place.name()));
            }
            trace.stop().map_err(|error| failed(&place, "end the trace of packet rules", &error))?;
            if !events.is_empty() {
                hits.extend(read(&place, &events, &self.requesters)?);
            }
        }
        Ok((hits, remarks))
    }
}

fn failed(place: &Place, action: &str, error: &Error) -> LabError {
    LabError::Kernel { action: format!("{action} in {}", place.name()), cause: error.to_string() }
}

/// What is known of a packet from its first events.
#[derive(Debug, Clone, Copy)]
struct Traced {
    way: Way,
    wrapped: bool,
    stage: Stage,
}

/// Makes hits of a place's events, in order.
fn read(place: &Place, events: &[Event], requesters: &[IpAddr]) -> Result<Vec<Hit>, LabError> {
    let work = || -> Result<Vec<Hit>, Error> {
        let Some(mut listing) = Listing::open()? else { return Ok(Vec::new()) };
        let mut packets: HashMap<u32, Traced> = HashMap::new();
        let mut hits = Vec::new();
        for event in events {
            if let Some((way, wrapped)) = whose(event, requesters) {
                packets.insert(event.packet, Traced { way, wrapped, stage: Stage::Entry });
            }
            let Some(traced) = packets.get_mut(&event.packet) else { continue };
            if let Some(base) = listing.base_chain(event.family, &event.table, &event.chain)? {
                traced.stage = if base.hook == "prerouting" { Stage::Entry } else { Stage::Course };
            }
            hits.extend(hit(place.name(), event, *traced, &mut listing)?);
        }
        Ok(hits)
    };
    place.inside(work)?.map_err(|error| failed(place, "look up packet rules", &error))
}

/// Whose packet the headers show: ours by its ICMP type (RFC 792, RFC 4443), a tunnel's by who sends it; none where there
/// are no headers, or others.
fn whose(event: &Event, requesters: &[IpAddr]) -> Option<(Way, bool)> {
    let network = &event.network;
    let (source, protocol) = match network.first()? >> 4 {
        4 => (IpAddr::from(<[u8; 4]>::try_from(network.get(12..16)?).ok()?), *network.get(9)?),
        _ => (IpAddr::from(<[u8; 16]>::try_from(network.get(8..24)?).ok()?), *network.get(6)?),
    };
    match (protocol, *event.transport.first()?) {
        (1, 8) | (58, 128) => Some((Way::Request, false)),
        (1, 0) | (58, 129) => Some((Way::Reply, false)),
        (17, _) => Some((if requesters.contains(&source) { Way::Request } else { Way::Reply }, true)),
        _ => None,
    }
}

fn hit(place: &str, event: &Event, traced: Traced, listing: &mut Listing) -> Result<Option<Hit>, Error> {
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
    let step = Step::Rule {
        place: place.to_owned(),
        table: format!("{} {}", event.family, event.table),
        chain: event.chain.to_string(),
        handle,
        verdict: if translates { "masquerade".into() } else { verdict.to_string() },
        text,
        traced: true,
    };
    let Traced { way, wrapped, stage } = traced;
    let drops = *verdict == Verdict::Drop;
    Ok(Some(Hit { way, stage, wrapped, drops, silent: policy && !drops, step }))
}
