//! What was seen, laid over the way that the tables give: the steps of the story, and where and why a packet died.
//!
//! Surface: [`tell_way`] and [`death`]. Pure.

use std::net::IpAddr;
use std::time::Duration;

use flannel_core::addr::Family;

use super::obstacle::Obstacle;
use super::rules::Hit;
use super::sight::{Sight, What};
use super::story::{Cause, Death, Direction, Point, Step, Way};
use super::terrain::{At, Daemon};
use super::watch::Seen;
use super::way::{Leg, Trail};

/// A packet's way as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The steps, up to where it was lost.
    pub(super) steps: Vec<Step>,
    /// The last point that saw it.
    pub(super) last: Option<Point>,
    /// The next point of the way, if there is one, which did not.
    pub(super) next: Option<Point>,
    /// The rule that dropped it.
    dropped: Option<Hit>,
}

/// Lays what was seen over a trail. `begin` is when the story begins.
pub(super) fn tell_way(way: Way, trail: &Trail, seen: &Seen, begin: Duration, name: impl Fn(At) -> String) -> Told {
    let mut told = Told::default();
    let own: Vec<&Sight> = seen.sights.iter().filter(|sight| is_own(sight, way)).collect();
    let sight = |point: &Point| own.iter().find(|sight| sight.point == *point).copied();
    let end = trail.legs.iter().rposition(|leg| matches!(leg, Leg::Pass { point, .. } if sight(point).is_some()));
    let begins = end.map_or(0, |end| end + 1);
    let mut hits: Vec<&Hit> = seen.traces.hits.iter().filter(|hit| hit.way == way).collect();
    for (index, leg) in trail.legs.iter().enumerate() {
        match leg {
            Leg::Step(step) => {
                let until = trail.legs[index..].iter().find_map(|leg| sight(&point(leg)?)).map(|sight| sight.at);
                told.steps.extend(resolutions(step, &seen.sights, begin, until));
                told.steps.push(step.clone());
            }
            Leg::Pass { point, wire } => match sight(point) {
                Some(sight) => {
                    told.steps.extend(seen_step(sight, *wire, begin));
                    told.last = Some(point.clone());
                }
                None if index >= begins && seen.watches(point) => {
                    told.steps.push(Step::Missing { point: point.clone() });
                    told.next = Some(point.clone());
                    return told;
                }
                // Nobody watched here, or a capture lost the frame; later ones saw it.
                None => {}
            },
            Leg::Rules { at, meets } => {
                let place = name(*at);
                let at_stage = |hit: &Hit| (hit.stage, hit.wrapped) == (meets.stage, meets.wrapped);
                let here = |hit: &&Hit| hit.place() == place && at_stage(hit);
                let (of_here, others) = hits.into_iter().partition::<Vec<&Hit>, _>(here);
                hits = others;
                told.steps.extend(of_here.iter().filter(|hit| !hit.silent).map(|hit| hit.step.clone()));
                if let Some(hit) = of_here.iter().find(|hit| hit.drops && index >= begins) {
                    told.dropped = Some((*hit).clone());
                    told.next = trail.legs[index..].iter().find_map(point);
                    return told;
                }
            }
        }
    }
    told
}

fn point(leg: &Leg) -> Option<Point> {
    if let Leg::Pass { point, .. } = leg { Some(point.clone()) } else { None }
}

fn is_own(sight: &Sight, way: Way) -> bool {
    matches!(&sight.what, What::Own(found, _) if *found == way)
}

fn seen_step(sight: &Sight, wire: bool, begin: Duration) -> Option<Step> {
    let What::Own(_, packet) = &sight.what else { return None };
    let at_ns = nanos(sight.at, begin);
    Some(Step::Seen { point: sight.point.clone(), at_ns, packet: packet.clone(), wire })
}

fn nanos(at: Duration, begin: Duration) -> u64 {
    u64::try_from(at.saturating_sub(begin).as_nanos()).unwrap_or(u64::MAX)
}

/// The questions and answers that a neighbour entry came from: ARP or ND on its device, about its address.
/// After the packet went on, what is asked and answered is another's matter.
fn resolutions(step: &Step, sights: &[Sight], begin: Duration, until: Option<Duration>) -> Vec<Step> {
    let Step::Neigh { place, text } = step else { return Vec::new() };
    let mut words = text.split([' ', ':']);
    let address = text.split(' ').next().and_then(|word| word.parse::<IpAddr>().ok());
    let device = words.by_ref().skip_while(|word| *word != "dev").nth(1);
    let in_time = sights.iter().filter(|sight| until.is_none_or(|until| sight.at <= until));
    let about = in_time.filter_map(|sight| match &sight.what {
        What::Resolution(target, text) if Some(*target) == address => Some((sight, text)),
        _ => None,
    });
    let here = about.filter(|(sight, text)| {
        let asks = text.contains("who has");
        let way = if asks { Direction::Out } else { Direction::In };
        sight.point.place == *place && Some(sight.point.device.as_str()) == device && sight.point.direction == way
    });
    here.map(|(sight, text)| Step::Resolution {
        point: sight.point.clone(),
        at_ns: nanos(sight.at, begin),
        text: text.clone(),
    })
    .collect()
}

/// The rule that dropped the packet of a way: where it was lost, or wherever the kernel said so.
pub(super) fn dropped<'a>(way: Way, told: &'a Told, seen: &'a Seen) -> Option<&'a Hit> {
    let told_so = |hit: &&Hit| hit.way == way && hit.drops && matches!(hit.step, Step::Rule { traced: true, .. });
    told.dropped.as_ref().or_else(|| seen.traces.hits.iter().find(told_so))
}

/// Where and why the packet of a way died: a rule that dropped it, else the obstacle that the tables show, else what an
/// ICMP error says, else unknown.
pub(super) fn death(
    way: Way,
    told: &Told,
    trail: &Trail,
    seen: &Seen,
    daemon: impl Fn(&str) -> Option<Daemon>,
    goal: &str,
) -> Death {
    let too_big = seen.sights.iter().find_map(|sight| match &sight.what {
        What::Error(of, text, Some(mtu)) if *of == way => Some((sight, text, *mtu)),
        _ => None,
    });
    let obstacle = match (dropped(way, told, seen), too_big, &trail.obstacle) {
        (Some(hit), ..) => hit.obstacle(),
        (None, _, Some(obstacle)) if told.next.is_none() || obstacle.missing == told.next => {
            obstacle.clone().explained_by(silenced(obstacle, trail, seen))
        }
        (None, Some((sight, text, mtu)), _) => Obstacle::told_too_big(&sight.point.place, text, mtu, family(seen)),
        _ => {
            let place = told.last.as_ref().or(told.next.as_ref()).map_or(goal, |point| &point.place);
            told_by_error(way, seen).map_or_else(|| Obstacle::unknown(place), |text| Obstacle::told(place, text))
        }
    };
    Death {
        way,
        place: obstacle.place.clone(),
        last: told.last.clone(),
        missing: told.next.clone().or_else(|| obstacle.missing.clone()),
        cause: obstacle.cause,
        why: obstacle.why.clone(),
        remedy: obstacle.advice(daemon),
        evidence: evidence(seen, told, trail, &obstacle),
    }
}

/// The rule that dropped the question for a neighbour that did not answer, or the answer.
fn silenced(obstacle: &Obstacle, trail: &Trail, seen: &Seen) -> Option<Obstacle> {
    let (hop, _) = trail.asked.as_ref().filter(|_| obstacle.cause == Cause::NeighbourUnanswered)?;
    seen.traces.silenced.iter().find(|silenced| silenced.is_about(*hop)).map(|silenced| silenced.obstacle(*hop))
}

/// An ICMP error about the packet of a way.
fn told_by_error(way: Way, seen: &Seen) -> Option<&str> {
    seen.sights.iter().find_map(|sight| match &sight.what {
        What::Error(of, text, _) if *of == way => Some(text.as_str()),
        _ => None,
    })
}

fn family(seen: &Seen) -> Family {
    let source = seen.sights.iter().find_map(|sight| match &sight.what {
        What::Own(_, packet) => Some(packet.source),
        _ => None,
    });
    source.map_or(Family::V4, Family::of)
}

/// What else says so: why the sender could not send, ICMP errors, counters that grew where it died.
fn evidence(seen: &Seen, told: &Told, trail: &Trail, obstacle: &Obstacle) -> Vec<String> {
    let refused = seen.refused.iter().map(|error| format!("the sender's kernel: {error}"));
    let mut all: Vec<String> = refused.collect();
    for sight in &seen.sights {
        if let What::Error(_, text, _) = &sight.what
            && !all.contains(text)
            && obstacle.why != *text
        {
            all.push(text.clone());
        }
    }
    let last = told.last.as_ref();
    let foreign = |sight: &&Sight| sight.foreign && Some(&sight.point) == last && matches!(sight.what, What::Own(..));
    if obstacle.cause == Cause::NeighbourWrong && seen.sights.iter().any(|sight| foreign(&sight)) {
        all.extend(last.map(|point| format!("{point} it was, by its MAC, for another host")));
    }
    all.extend(trail.asked.as_ref().and_then(|asked| question(asked, &seen.sights)));
    let near = [Some(obstacle.place.as_str()), last.map(|point| point.place.as_str())];
    let about = |place: &str, counter: &str| tells(place, counter, seen, told, obstacle);
    let counted = seen.counted.iter().filter(|(place, name, _)| near.contains(&Some(place)) && about(place, name));
    all.extend(counted.map(|(place, counter, by)| format!("{place} counted {counter} +{by}")));
    all
}

/// How far a question for a neighbour, or its answer, came: to the point at which its owner would have it.
fn question((hop, owner): &(IpAddr, Point), sights: &[Sight]) -> Option<String> {
    let about = |answers: bool| {
        sights.iter().filter(move |sight| {
            matches!(&sight.what, What::Resolution(target, text) if target == hop && text.contains("who has") != answers)
        })
    };
    let answered = about(true).any(|sight| sight.point.place == owner.place);
    let came = about(false).any(|sight| sight.point == *owner);
    let last = about(answered).max_by_key(|sight| sight.at)?;
    Some(match (came, answered) {
        (_, true) => format!("{} answered; the answer was seen last at {}", owner.place, last.point),
        (true, false) => format!("{} got the question for {hop} and did not answer", owner.place),
        (false, false) => format!("the question for {hop} was seen last at {}, never at {owner}", last.point),
    })
}

/// Whether a counter that grew has to do with the packet: it is of its family, or of a device that it was to pass.
fn tells(place: &str, counter: &str, seen: &Seen, told: &Told, obstacle: &Obstacle) -> bool {
    match counter.split_once('.') {
        Some((device, column)) if column.starts_with(['r', 't']) => {
            let ends = [&told.last, &told.next, &obstacle.missing].into_iter().flatten();
            let named = obstacle.why.contains(&format!("{device} of {place}"));
            named || ends.into_iter().any(|point| point.place == place && point.device == device)
        }
        // `net/snmp6` has names like `Ip6InDiscards`, `net/snmp` like `Ip.InDiscards`.
        None => family(seen) == Family::V6,
        Some((protocol, _)) => family(seen) == Family::V4 || protocol == "TcpExt",
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Traces;
    use super::super::story::Packet;
    use super::super::way::{Meets, Stage};
    use super::*;

    fn point(place: &str, device: &str, direction: Direction) -> Point {
        Point { place: place.into(), device: device.into(), direction }
    }

    fn packet() -> Packet {
        Packet {
            macs: None,
            outer: None,
            inner_macs: None,
            source: "10.244.1.2".parse().unwrap(),
            destination: "10.244.2.2".parse().unwrap(),
            ttl: 64,
            length: 84,
            message: "echo request".into(),
        }
    }

    fn sight(point: Point, at: u64, what: What) -> Sight {
        Sight { point, at: Duration::from_micros(at), foreign: false, what }
    }

    fn own(point: Point, at: u64) -> Sight {
        sight(point, at, What::Own(Way::Request, packet()))
    }

    fn seen(sights: Vec<Sight>, hits: Vec<Hit>) -> Seen {
        let counted = vec![
            ("node1".to_owned(), "Ip.InDiscards".to_owned(), 1),
            ("far".to_owned(), "Ip.InDiscards".to_owned(), 1),
        ];
        let traces = Traces { hits, ..Traces::default() };
        let watched = WATCHED.map(|(place, device)| (place.to_owned(), device.to_owned())).into();
        Seen { sights, traces, counted, taken: Vec::new(), refused: None, watched, round_trip: None }
    }

    const WATCHED: [(&str, &str); 3] = [("pod1-1", "eth0"), ("node1", "cni0"), ("node1", "flannel.1")];

    const NEIGH: &str = "10.244.1.1 dev eth0 lladdr 02:00:00:00:00:01 REACHABLE";

    /// Out of the pod, into the node, past its rules, out of the node.
    fn trail(obstacle: Option<Obstacle>) -> Trail {
        let pass = |place, device, direction| Leg::Pass { point: point(place, device, direction), wire: false };
        let neigh = Leg::Step(Step::Neigh { place: "pod1-1".into(), text: NEIGH.into() });
        let meets = Meets {
            stage: Stage::Course,
            hooks: &[],
            wrapped: false,
            source: None,
            destination: packet().destination,
            input: None,
            output: None,
        };
        let mut legs = vec![neigh, pass("pod1-1", "eth0", Direction::Out), pass("node1", "cni0", Direction::In)];
        legs.extend([Leg::Rules { at: 0, meets }, pass("node1", "flannel.1", Direction::Out)]);
        Trail { legs, obstacle, asked: None, end: 0 }
    }

    fn drop() -> Hit {
        let step = Step::Rule {
            place: "node1".into(),
            table: "ip t".into(),
            chain: "c".into(),
            handle: Some(7),
            text: "drop".into(),
            verdict: "drop".into(),
            traced: true,
        };
        Hit { way: Way::Request, stage: Stage::Course, wrapped: false, drops: true, silent: false, step }
    }

    fn lay(trail: &Trail, seen: &Seen) -> Told {
        tell_way(Way::Request, trail, seen, Duration::ZERO, |_| "node1".into())
    }

    fn die(trail: &Trail, seen: &Seen) -> Death {
        death(Way::Request, &lay(trail, seen), trail, seen, |_| Some(Daemon::Gone), "node1")
    }

    #[test]
    fn what_was_asked_for_stands_before_the_answer_and_later_questions_nowhere() {
        let eth0 = |direction| point("pod1-1", "eth0", direction);
        let asks = |at| {
            let what =
                What::Resolution("10.244.1.1".parse().unwrap(), "ARP who has 10.244.1.1? tell 10.244.1.2".into());
            sight(eth0(Direction::Out), at, what)
        };
        let sights =
            vec![asks(1), own(eth0(Direction::Out), 5), asks(9), own(point("node1", "cni0", Direction::In), 10)];
        let told = lay(&trail(None), &seen(sights, Vec::new()));
        let kinds: Vec<&str> = told
            .steps
            .iter()
            .map(|step| match step {
                Step::Resolution { at_ns: 1_000, .. } => "asked",
                Step::Neigh { .. } => "neigh",
                Step::Seen { .. } => "seen",
                Step::Missing { .. } => "missing",
                _ => "other",
            })
            .collect();
        assert_eq!(kinds, ["asked", "neigh", "seen", "seen", "missing"]);
        assert_eq!(told.next, Some(point("node1", "flannel.1", Direction::Out)));
    }

    #[test]
    fn a_capture_that_lost_the_frame_is_no_death() {
        let sights =
            vec![own(point("pod1-1", "eth0", Direction::Out), 0), own(point("node1", "flannel.1", Direction::Out), 9)];
        let told = lay(&trail(None), &seen(sights, vec![drop()]));
        assert_eq!((told.next, told.steps.len()), (None, 4));
    }

    #[test]
    fn what_nobody_watched_is_not_missed() {
        let mut seen = seen(vec![own(point("node1", "cni0", Direction::In), 3)], Vec::new());
        seen.watched.remove(&("node1".to_owned(), "flannel.1".to_owned()));
        let obstacle = Obstacle::no_forwarding("node1", "flannel.1", "02:00:00:00:00:01".parse().unwrap());
        let death = die(&trail(Some(obstacle)), &seen);
        assert_eq!((death.cause, death.missing), (Cause::FdbMissing, None));
    }

    #[test]
    fn a_rule_that_dropped_it_comes_before_what_the_tables_say() {
        let sights = || vec![own(point("node1", "cni0", Direction::In), 3)];
        let obstacle = Obstacle::no_forwarding("node1", "flannel.1", "02:00:00:00:00:01".parse().unwrap());
        let by_rule = die(&trail(Some(obstacle.clone())), &seen(sights(), vec![drop()]));
        assert_eq!((by_rule.cause, by_rule.missing), (Cause::Rule, Some(point("node1", "flannel.1", Direction::Out))));
        assert!(by_rule.why.ends_with("table ip t, chain c handle 7: `drop`"), "{}", by_rule.why);
        // The obstacle lies behind a device that the packet never came to.
        assert_eq!(die(&trail(Some(obstacle.clone())), &seen(sights(), Vec::new())).cause, Cause::Unknown);
        let further = vec![own(point("node1", "flannel.1", Direction::Out), 9)];
        let by_table = die(&trail(Some(obstacle)), &seen(further, Vec::new()));
        assert_eq!((by_table.cause, by_table.missing), (Cause::FdbMissing, None));
        assert!(by_table.remedy.starts_with("flanneld on node1 does not run"), "{}", by_table.remedy);
    }

    #[test]
    fn an_icmp_error_tells_of_an_mtu_that_the_tables_do_not_show() {
        let text = "192.0.2.1 tells 10.244.1.2: fragmentation needed, MTU 1300";
        let error = What::Error(Way::Request, text.into(), Some(1300));
        let sights = vec![
            own(point("node1", "cni0", Direction::In), 3),
            sight(point("node1", "cni0", Direction::Out), 4, error),
        ];
        let death = die(&trail(None), &seen(sights, Vec::new()));
        assert_eq!((death.cause, death.remedy.contains("at most 1272 bytes")), (Cause::TooBig, true), "{death:?}");
        assert_eq!(death.evidence, [text, "node1 counted Ip.InDiscards +1"]);
    }

    #[test]
    fn how_far_a_question_came_is_told_by_where_it_was_seen_last() {
        let hop = IpAddr::from([10, 244, 1, 3]);
        let owner = point("pod1-2", "eth0", Direction::In);
        let (asks, says) = ("ARP who has 10.244.1.3? tell 10.244.1.2", "ARP 10.244.1.3 is at 02:00:00:00:00:03");
        let saw = |point: &Point, at, text: &str| sight(point.clone(), at, What::Resolution(hop, text.into()));
        let left = saw(&point("pod1-1", "eth0", Direction::Out), 1, asks);
        let tell = |sights: &[Sight]| question(&(hop, owner.clone()), sights);
        assert_eq!(tell(&[]), None);
        let lost = tell(std::slice::from_ref(&left)).unwrap();
        assert_eq!(
            lost,
            "the question for 10.244.1.3 was seen last at pod1-1 going out by eth0, never at pod1-2 coming in by eth0"
        );
        let came = saw(&owner, 2, asks);
        assert_eq!(
            tell(&[left.clone(), came.clone()]).unwrap(),
            "pod1-2 got the question for 10.244.1.3 and did not answer"
        );
        let answered = saw(&point("pod1-2", "eth0", Direction::Out), 3, says);
        let answered = tell(&[left, came, answered]).unwrap();
        assert_eq!(answered, "pod1-2 answered; the answer was seen last at pod1-2 going out by eth0");
    }

    #[test]
    fn counters_of_another_family_or_device_are_no_evidence() {
        let told = lay(&trail(None), &seen(vec![own(point("node1", "cni0", Direction::In), 3)], Vec::new()));
        let ours = |counter| {
            tells(
                "node1",
                counter,
                &seen(vec![own(point("node1", "cni0", Direction::In), 3)], Vec::new()),
                &told,
                &Obstacle::unknown("node1"),
            )
        };
        assert!(ours("Ip.InDiscards") && ours("TcpExt.IPReversePathFilter") && ours("flannel.1.tx_dropped"));
        assert!(!ours("Ip6InDiscards") && !ours("eth0.tx_dropped"));
    }
}
