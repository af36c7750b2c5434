//! Published ports in nf_tables: written in one transaction whatever is there already, found again by the container's name.
//!
//! Surface: methods of [`Nft`]. The layout is [`flannel_core::port_map::nft`]'s, which is the Go plugin's.

use std::collections::HashMap;

use flannel_core::addr::{Dual, Family};
use flannel_core::port_map::PortMap;
use flannel_core::port_map::nft::{COMMENT, Chain, Extent, OF_CONTAINERS, Step, TABLE, rules, steps};
use flannel_core::rules::{Match, Rule, Verdict};

use super::summary::user_comment;
use super::{APPEND, BaseChain, CREATE, HEADER, Nft, attr, attributes, comment, expr, request, text};
use crate::netlink::{Attributes, Error, Message, Request, family_number};

const ECHO: u16 = libc::NLM_F_ECHO as u16;
/// How often rules are looked for again because others removed some of them meanwhile.
const TRIES: usize = 8;

/// A container that lacks a rule.
pub(crate) struct Incomplete<'a> {
    pub(crate) map: &'a PortMap,
    /// It has other rules.
    pub(crate) has_some: bool,
    /// The hooks lead to the rules of containers.
    pub(crate) is_led_to: bool,
}

/// A container's rule as found.
struct Owned {
    chain: Chain,
    rule: Rule,
    deletion: Request,
}

impl Nft {
    /// Publishes a container's ports in both families at once. With `anew` what is there of the container's is replaced. Answers with the
    /// handles of its rules.
    ///
    /// What is nobody's is left alone where it is right: once anything was deleted, closing this waits until no packet can be at it any
    /// more, and whoever changes rules next waits too.
    pub fn publish(&mut self, map: &PortMap, anew: bool) -> Result<Dual<Vec<u64>>, Error> {
        self.again(|nft| {
            let mut requests = Vec::new();
            for family in map.addresses.families() {
                if anew {
                    requests.extend(nft.owned(family, &map.container)?.into_iter().map(|owned| owned.deletion));
                }
                let mut steps = steps(map, family);
                if nft.stands(family, &steps)? {
                    steps.retain(|step| matches!(step, Step::Rule { container: Some(_), .. }));
                }
                requests.extend(steps.iter().map(|step| write(family, step)));
            }
            let mut handles = Dual::default();
            if !requests.is_empty() {
                nft.transact_telling(requests, |message| _ = note_handle(message, &map.container, &mut handles))?;
            }
            Ok(handles)
        })
    }

    /// Removes a container's rules by their handles, which takes no longer when there are many of others. Answers with false, and has done
    /// nothing, if they are not known or not its rules any more, as after somebody has made the rules again.
    pub fn unpublish_noted(&mut self, map: &PortMap) -> Result<bool, Error> {
        let mut requests = Vec::new();
        for family in map.addresses.families() {
            let (rules, handles) = (rules(map, family, Extent::Ours), map.handles.get(family).map_or(0, Vec::len));
            if handles != rules.len() {
                return Ok(false);
            }
            for ((chain, _), handle) in rules.iter().zip(map.handles.get(family).into_iter().flatten()) {
                let about = |kind| place(kind, family, *chain).attr(attr::RULE_HANDLE, handle.to_be_bytes());
                let is_its_own =
                    |rule: Attributes<'_>| user_comment(rule).is_some_and(|comment| *comment == map.container);
                if self.find(&about(libc::NFT_MSG_GETRULE), is_its_own)? != Some(true) {
                    return Ok(false);
                }
                requests.push(about(libc::NFT_MSG_DELRULE));
            }
        }
        match self.transact(requests) {
            Err(error) if error.is_absent() || error.is_transient() => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Removes a container's rules from both families. Succeeds when there are none.
    pub fn unpublish(&mut self, container: &str) -> Result<(), Error> {
        self.again(|nft| {
            let mut requests = Vec::new();
            for family in Family::ALL {
                requests.extend(nft.owned(family, container)?.into_iter().map(|owned| owned.deletion));
            }
            if requests.is_empty() { Ok(()) } else { nft.transact(requests) }
        })
    }

    /// The first rule that a container should have and has not, in words; none if all are there.
    pub fn unpublished(&mut self, map: &PortMap, extent: Extent) -> Result<Option<String>, Error> {
        for family in map.addresses.families() {
            let found = self.owned(family, &map.container)?;
            if let Some((chain, rule)) = missing(map, family, extent, &found) {
                return Ok(Some(format!("{rule} in chain {} of table {TABLE}", chain.name())));
            }
            if !self.leads_to_containers(family)? {
                return Ok(Some(format!("jump {} in chain prerouting of table {TABLE}", Chain::All.name())));
            }
        }
        Ok(None)
    }

    /// Which of these containers lack a rule. All is read at once, however many they are.
    pub(crate) fn incomplete<'a>(&mut self, maps: &[&'a PortMap]) -> Result<Vec<Incomplete<'a>>, Error> {
        let mut incomplete = Vec::new();
        let (mut rules, mut led) = (Dual::default(), Dual::default());
        for family in Family::ALL {
            rules.set(family, self.by_container(family)?);
            led.set(family, self.leads_to_containers(family)?);
        }
        for &map in maps {
            let of =
                |family| rules.get(family).and_then(|rules| rules.get(&map.container)).map_or(&[][..], Vec::as_slice);
            let is_led_to = map.addresses.families().all(|family| led.get(family) == Some(&true));
            let lacks = |family| missing(map, family, Extent::Ours, of(family)).is_some();
            if !is_led_to || map.addresses.families().any(lacks) {
                let has_some = Family::ALL.into_iter().any(|family| !of(family).is_empty());
                incomplete.push(Incomplete { map, has_some, is_led_to });
            }
        }
        Ok(incomplete)
    }

    /// Whether a container has rules.
    pub fn publishes(&mut self, container: &str) -> Result<bool, Error> {
        let mut of = |family| Ok::<_, Error>(!self.owned(family, container)?.is_empty());
        Ok(of(Family::V4)? || of(Family::V6)?)
    }

    /// Whether all that is nobody's is there as the steps would write it.
    fn stands(&mut self, family: Family, steps: &[Step<'_>]) -> Result<bool, Error> {
        for step in steps {
            let stands = match step {
                Step::Chain(chain) => self.has_chain(family, *chain)?,
                Step::Flush(chain) => {
                    let shared = steps.iter().filter_map(|step| step.shared_rule(*chain));
                    let found = super::absent_is_empty(self.rules(family, TABLE, chain.name()))?;
                    found.iter().eq(shared)
                }
                Step::Table | Step::Rule { .. } => true,
            };
            if !stands {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_chain(&mut self, family: Family, chain: Chain) -> Result<bool, Error> {
        let wanted = super::chain_request(family, TABLE, chain.name());
        let is = |found: Attributes<'_>| base(chain).is_none_or(|base| base.is(found));
        Ok(self.find(&wanted, is)? == Some(true))
    }

    /// Whether both hooks lead to the rules of containers.
    fn leads_to_containers(&mut self, family: Family) -> Result<bool, Error> {
        let mut leads = |from: Chain, to: Chain| {
            let rules = super::absent_is_empty(self.rules(family, TABLE, from.name()))?;
            let wanted = Verdict::Jump(to.name().into());
            Ok::<_, Error>(rules.iter().any(|rule| rule.verdict == wanted))
        };
        Ok(leads(Chain::Prerouting, Chain::All)?
            && leads(Chain::Output, Chain::All)?
            && leads(Chain::All, Chain::HostPorts)?)
    }

    /// The rules of one family that are commented with a container's name.
    fn owned(&mut self, family: Family, container: &str) -> Result<Vec<Owned>, Error> {
        self.commented(family, |comment| (comment == container).then_some(()))
            .map(|found| found.into_iter().map(|((), owned)| owned).collect())
    }

    /// The rules of one family by what they are commented with.
    fn by_container(&mut self, family: Family) -> Result<HashMap<String, Vec<Owned>>, Error> {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        for (container, owned) in self.commented(family, |comment| Some(comment.to_owned()))? {
            all.entry(container).or_default().push(owned);
        }
        Ok(all)
    }

    /// The rules of one family, as far as somebody wants those with their comment.
    fn commented<T>(&mut self, family: Family, want: impl Fn(&str) -> Option<T>) -> Result<Vec<(T, Owned)>, Error> {
        let mut found = Vec::new();
        for chain in OF_CONTAINERS {
            let rules = self.socket.dump(&place(libc::NFT_MSG_GETRULE, family, chain), |message| {
                let rule = attributes(message)?;
                let here = text(rule, attr::TABLE) == Some(TABLE) && text(rule, attr::RULE_CHAIN) == Some(chain.name());
                let wanted = want(&user_comment(rule).filter(|_| here)?)?;
                let deletion = place(libc::NFT_MSG_DELRULE, family, chain)
                    .attr(attr::RULE_HANDLE, rule.find(attr::RULE_HANDLE)?.0);
                Some((wanted, Owned { chain, rule: expr::read(rule, family), deletion }))
            });
            found.extend(super::absent_is_empty(rules)?);
        }
        Ok(found)
    }

    /// Does it again while rules that it found are gone when it wants to change them.
    fn again<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        for _ in 1..TRIES {
            match work(self) {
                Err(error) if error.is_absent() || error.is_transient() => {}
                done => return done,
            }
        }
        work(self)
    }
}

/// A request about rules of a chain.
fn place(kind: i32, family: Family, chain: Chain) -> Request {
    request(kind, 0, family_number(family)).attr(attr::TABLE, TABLE).attr(attr::RULE_CHAIN, chain.name())
}

/// Notes the handle of a container's rule that the kernel tells of.
fn note_handle(message: Message<'_>, container: &str, handles: &mut Dual<Vec<u64>>) -> Option<()> {
    let (header, rule) = message.split(HEADER)?;
    let family = Family::ALL.into_iter().find(|family| header.first() == Some(&family_number(*family)))?;
    let handle = rule.find(attr::RULE_HANDLE)?.be64()?;
    (user_comment(rule)? == container).then(|| handles.slot(family).get_or_insert_default().push(handle))
}

/// The first rule of one family that is not among those found.
fn missing(map: &PortMap, family: Family, extent: Extent, found: &[Owned]) -> Option<(Chain, Rule)> {
    let mut found: Vec<_> = found.iter().collect();
    rules(map, family, extent).into_iter().find(|(chain, rule)| {
        let same = |owned: &&Owned| owned.chain == *chain && (owned.rule == *rule || owned.is_unknown());
        found.iter().position(same).map(|index| found.swap_remove(index)).is_none()
    })
}

impl Owned {
    /// Another `nft` may write a rule in a form that is not read here: it stands for the one looked for.
    fn is_unknown(&self) -> bool {
        matches!(self.rule.verdict, Verdict::Other(_)) || self.rule.matches.iter().any(|m| matches!(m, Match::Other(_)))
    }
}

fn write(family: Family, step: &Step<'_>) -> Request {
    let about = |kind, flags| request(kind, flags, family_number(family)).attr(attr::TABLE, TABLE);
    match step {
        Step::Table => about(libc::NFT_MSG_NEWTABLE, CREATE).attr(attr::TABLE_USERDATA, comment(COMMENT).as_slice()),
        Step::Chain(chain) => {
            let made = about(libc::NFT_MSG_NEWCHAIN, CREATE);
            base(*chain)
                .map_or_else(|| made.clone().attr(attr::CHAIN_NAME, chain.name()), |base| base.write(made.clone()))
        }
        Step::Flush(chain) => about(libc::NFT_MSG_DELRULE, 0).attr(attr::RULE_CHAIN, chain.name()),
        Step::Rule { chain, rule, container, .. } => {
            let echo = container.map_or(0, |_| ECHO);
            let made = about(libc::NFT_MSG_NEWRULE, CREATE | APPEND | echo).attr(attr::RULE_CHAIN, chain.name());
            expr::write(made, rule).maybe(attr::RULE_USERDATA, container.map(comment).as_deref())
        }
    }
}

fn base(chain: Chain) -> Option<BaseChain> {
    let (_, priority) = chain.hook()?;
    let hook = match chain {
        Chain::Prerouting => libc::NF_INET_PRE_ROUTING,
        Chain::Output => libc::NF_INET_LOCAL_OUT,
        _ => libc::NF_INET_POST_ROUTING,
    };
    Some(BaseChain { name: chain.name(), kind: "nat", hook: hook as u32, priority, comment: None })
}
