//! What servers of etcd suffer: each fault by its name, how it begins, and how all of them end.
//!
//! Surface: [`Fault`] and [`heal`]. Faults may be done on top of each other.

use std::process::Stdio;
use std::time::Duration;

use super::Dice;
use crate::error::{Doing, LabError};
use crate::etcd::{Etcd, Member, PORT, QUOTA};
use crate::lab::Lab;
use crate::layout::EXTERNAL;
use crate::wire::{Wire, lay};

/// How long servers may take to be a cluster again.
const PATIENCE: Duration = Duration::from_mins(1);
/// Where the disk is filled, and with how much at once.
const JUNK: &str = "/junk/";
const PIECE: usize = 1 << 20;

/// One way to besiege the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is described by its name")]
pub(super) enum Fault {
    LeaderKilled,
    MajorityKilled,
    AllKilled,
    LeaderHalted,
    MajorityHalted,
    AllHalted,
    LeaderCutOff,
    AllCutOff,
    ClientsRefused,
    ClientsUnheard,
    CompactedWhileAway,
    CompactedWhileWatched,
    DiskFull,
    TokensRevoked,
    CertificatesRotated,
}

impl Fault {
    pub(super) const ALL: [Self; 15] = [
        Self::LeaderKilled,
        Self::MajorityKilled,
        Self::AllKilled,
        Self::LeaderHalted,
        Self::MajorityHalted,
        Self::AllHalted,
        Self::LeaderCutOff,
        Self::AllCutOff,
        Self::ClientsRefused,
        Self::ClientsUnheard,
        Self::CompactedWhileAway,
        Self::CompactedWhileWatched,
        Self::DiskFull,
        Self::TokensRevoked,
        Self::CertificatesRotated,
    ];

    /// The fault in words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader killed",
            Self::MajorityKilled => "majority killed, leader first",
            Self::AllKilled => "all killed",
            Self::LeaderHalted => "leader halted",
            Self::MajorityHalted => "majority halted, leader first",
            Self::AllHalted => "all halted",
            Self::LeaderCutOff => "leader's link down",
            Self::AllCutOff => "all links down",
            Self::ClientsRefused => "clients refused",
            Self::ClientsUnheard => "clients' packets lost",
            Self::CompactedWhileAway => "compacted and defragmented while clients are away",
            Self::CompactedWhileWatched => "compacted and defragmented",
            Self::DiskFull => "no space left",
            Self::TokensRevoked => "all tokens made old",
            Self::CertificatesRotated => "certificates rotated, leader killed",
        }
    }

    /// Does it, to servers that are well.
    pub(super) fn begin(self, lab: &mut Lab, dice: &mut Dice) -> Result<(), LabError> {
        let order = leader_first(lab)?;
        let some = &order[..match self {
            Self::LeaderKilled | Self::LeaderHalted | Self::LeaderCutOff | Self::CertificatesRotated => 1,
            Self::MajorityKilled | Self::MajorityHalted => order.len() / 2 + 1,
            _ => order.len(),
        }];
        match self {
            Self::LeaderKilled | Self::MajorityKilled | Self::AllKilled => kill(lab, some),
            Self::LeaderHalted | Self::MajorityHalted | Self::AllHalted => {
                some.iter().try_for_each(|at| members(lab)[*at].halt(true))
            }
            Self::LeaderCutOff | Self::AllCutOff => some.iter().try_for_each(|at| link(lab, *at, false)),
            // Those who were away when all is compacted miss what was written before that.
            Self::ClientsRefused | Self::CompactedWhileAway => filter(lab, "reject with tcp reset"),
            Self::ClientsUnheard => filter(lab, "drop"),
            Self::CompactedWhileWatched => compact(lab),
            Self::DiskFull => fill(lab),
            Self::TokensRevoked => {
                let user = format!("user{}:x", dice.next());
                etcd(lab)?.ctl(&["user", "add", &user]).map(drop)
            }
            Self::CertificatesRotated => etcd(lab)?.rotate_certificates().and_then(|()| kill(lab, some)),
        }
    }
}

fn etcd(lab: &Lab) -> Result<&Etcd, LabError> {
    lab.etcd().ok_or(LabError::Control("the lab has no etcd"))
}

fn members(lab: &Lab) -> &[Member] {
    lab.etcd().map(Etcd::members).unwrap_or_default()
}

/// The servers by their places in the order, the one that leads first.
fn leader_first(lab: &Lab) -> Result<Vec<usize>, LabError> {
    let mut order: Vec<usize> = (0..members(lab).len()).collect();
    for (at, member) in members(lab).iter().enumerate() {
        if member.leads()? {
            order.swap(0, at);
        }
    }
    Ok(order)
}

fn kill(lab: &mut Lab, some: &[usize]) -> Result<(), LabError> {
    let Some(etcd) = lab.etcd_mut() else { return Ok(()) };
    some.iter().try_for_each(|at| etcd.member_mut(*at).kill())
}

fn link(lab: &Lab, at: usize, up: bool) -> Result<(), LabError> {
    let name = members(lab)[at].place().name().to_owned();
    lay(lab.router(), &[Wire::Up(name, up)])
}

/// Does something to the packets of clients, but not of those that are at the server itself.
fn filter(lab: &Lab, verdict: &str) -> Result<(), LabError> {
    let rule = format!("iifname {EXTERNAL} tcp dport {PORT} {verdict}");
    let rules = format!("table inet siege {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}");
    members(lab).iter().try_for_each(|member| nft(member, &rules))
}

fn nft(member: &Member, rules: &str) -> Result<(), LabError> {
    let output = member.place().exec("nft", &[rules])?;
    if output.status.success() {
        return Ok(());
    }
    let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Kernel { action: format!("filter packets on {}", member.place().name()), cause })
}

/// Forgets all revisions but the last, and gives the space back.
fn compact(lab: &Lab) -> Result<(), LabError> {
    let revision = members(lab)[0].revision()?.to_string();
    // Nothing may have been written since the last time.
    let _compacted_already = etcd(lab)?.ctl(&["compact", &revision]);
    members(lab).iter().try_for_each(|member| member.ctl(&["defrag"]).map(drop))
}

/// Writes until the servers raise the alarm `NOSPACE`.
fn fill(lab: &Lab) -> Result<(), LabError> {
    let piece = members(lab)[0].data().with_file_name("junk");
    std::fs::write(&piece, vec![b'x'; PIECE]).on("write", &piece)?;
    for number in 0..2 * QUOTA / PIECE {
        let input = Stdio::from(std::fs::File::open(&piece).on("open", &piece)?);
        if members(lab)[0].ctl_reading(&["put", &format!("{JUNK}{number}")], input).is_err() {
            break;
        }
    }
    let alarm = etcd(lab)?.ctl(&["alarm", "list"])?;
    if alarm.contains("NOSPACE") { Ok(()) } else { Err(LabError::Control("the servers' disk cannot be filled")) }
}

/// Ends whatever was done to the servers.
pub(super) fn heal(lab: &mut Lab, fault: Fault) -> Result<(), LabError> {
    if fault == Fault::CompactedWhileAway {
        compact(lab)?;
    }
    for at in 0..members(lab).len() {
        link(lab, at, true)?;
        let member = &members(lab)[at];
        member.halt(false)?;
        nft(member, "add table inet siege; delete table inet siege")?;
    }
    let Some(servers) = lab.etcd_mut() else { return Ok(()) };
    servers.restart_dead()?;
    members(lab).iter().try_for_each(|member| member.wait(PATIENCE))?;
    if fault == Fault::DiskFull {
        etcd(lab)?.ctl(&["del", "--prefix", JUNK])?;
        compact(lab)?;
        etcd(lab)?.ctl(&["alarm", "disarm"])?;
    }
    Ok(())
}
