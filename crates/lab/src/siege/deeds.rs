//! What goes on in a network while its servers are besieged: peers come, change and go, daemons are killed, records deleted.
//!
//! Surface: [`Deed`]. What only a server can do is not done while none does it.

use std::fmt::Write;
use std::fs;

use flannel_core::addr::Family;

use super::Dice;
use crate::error::LabError;
use crate::etcd::PREFIX;
use crate::lab::Lab;

/// The number of the first peer that is only a record, and how many there are.
const FIRST: u64 = 200;
const PEERS: u64 = 20;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// A peer that is only a record comes or changes.
    PeerWritten,
    /// One goes.
    PeerRemoved,
    /// A node's daemon is killed and started again.
    DaemonKilled(usize),
    /// An operator deletes the record of a node, whose pods nobody reaches until it is written again.
    RecordDeleted(usize),
    /// A node leaves for good, and another comes in its place.
    NodeReplaced(usize),
}

impl Deed {
    /// One to three; pods stay and are reached on the first nodes, but not on others.
    pub(super) fn some(lab: &Lab, staying: usize, dice: &mut Dice) -> Vec<Self> {
        let nodes = lab.nodes().len();
        let other = staying + dice.below((nodes - staying).max(1) as u64) as usize;
        let draw = |dice: &mut Dice| match dice.below(8) {
            3 => Self::PeerRemoved,
            4 | 5 => Self::DaemonKilled(dice.below(nodes as u64) as usize),
            6 if other < nodes => Self::RecordDeleted(other),
            7 if other < nodes => Self::NodeReplaced(other),
            _ => Self::PeerWritten,
        };
        (0..=dice.below(3)).map(|_| draw(dice)).collect()
    }

    /// Does it, and says what was done.
    pub(super) fn perform(self, lab: &mut Lab, dice: &mut Dice) -> Result<String, LabError> {
        let number = FIRST + dice.below(PEERS);
        let told = |what: String, done: bool| if done { what } else { format!("({what}: not now)") };
        Ok(match self {
            Self::PeerWritten => {
                let (key, text) = (peer_key(lab, number), peer_record(lab, number, dice));
                told(format!("peer {number} written"), ctl(lab, &["put", &key, &text]))
            }
            Self::PeerRemoved => {
                let key = peer_key(lab, number);
                told(format!("peer {number} removed"), ctl(lab, &["del", &key]))
            }
            Self::DaemonKilled(at) => {
                start_anew(lab, at)?;
                format!("flanneld of {} killed", name(lab, at))
            }
            Self::RecordDeleted(at) => {
                let done = delete_record(lab, at);
                told(format!("record of {} deleted", name(lab, at)), done)
            }
            Self::NodeReplaced(at) => {
                let done = replace(lab, at)?;
                told(format!("{} replaced", name(lab, at)), done)
            }
        })
    }
}

fn name(lab: &Lab, at: usize) -> String {
    lab.node(at).place().name().to_owned()
}

/// Whether the servers do it.
fn ctl(lab: &Lab, words: &[&str]) -> bool {
    lab.etcd().is_some_and(|etcd| etcd.ctl(words).is_ok())
}

/// The subnet's part of the key of a record, as `10.244.200.0-24`.
fn subnet_key(lab: &Lab, number: u64) -> String {
    let v4 = if lab.options().speaks(Family::V4) { format!("10.244.{number}.0-24") } else { "0.0.0.0-0".into() };
    if lab.options().speaks(Family::V6) { format!("{v4}&fd00:10:244:{number:x}::-64") } else { v4 }
}

fn peer_key(lab: &Lab, number: u64) -> String {
    format!("{PREFIX}/subnets/{}", subnet_key(lab, number))
}

/// The record of a peer whose address nobody has, with MACs that change.
fn peer_record(lab: &Lab, number: u64, dice: &mut Dice) -> String {
    let speaks = |family| lab.options().speaks(family);
    let v4 = if speaks(Family::V4) { format!("192.0.2.{number}") } else { "0.0.0.0".into() };
    let v6 = if speaks(Family::V6) { format!("\"2001:db8:0:1::{number:x}\"") } else { "null".into() };
    let mut text = format!(r#"{{"PublicIP":"{v4}","PublicIPv6":{v6},"BackendType":"{}""#, lab.options().backend);
    let fields = [(Family::V4, "BackendData", 4), (Family::V6, "BackendV6Data", 6)];
    for (_, field, kind) in fields.iter().filter(|(family, ..)| speaks(*family) && lab.options().backend == "vxlan") {
        let mac = format!("02:00:00:{kind:02x}:{:02x}:{number:02x}", dice.below(256));
        let _ = write!(text, r#","{field}":{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    }
    text + "}"
}

/// Kills a daemon and starts it again. Whether it becomes ready shows later.
fn start_anew(lab: &mut Lab, at: usize) -> Result<(), LabError> {
    let node = lab.node_mut(at);
    let arguments = node.arguments().to_vec();
    node.flanneld.kill()?;
    node.flanneld.start(&arguments)
}

/// Deletes the record that is under the subnets of a node's subnet file.
fn delete_record(lab: &Lab, at: usize) -> bool {
    let subnets = lab.node(at).subnets();
    let v4 = subnets.v4.map_or_else(|| "0.0.0.0-0".to_owned(), |net| net.to_string().replace('/', "-"));
    let v6 = subnets.v6.map(|net| format!("&{}", net.to_string().replace('/', "-"))).unwrap_or_default();
    ctl(lab, &["del", &format!("{PREFIX}/subnets/{v4}{v6}")])
}

/// Has a node leave for good, if its record can be deleted, and come again without a memory.
fn replace(lab: &mut Lab, at: usize) -> Result<bool, LabError> {
    lab.node_mut(at).flanneld.kill()?;
    let gone = delete_record(lab, at);
    if gone {
        let _absent = fs::remove_file(lab.node(at).run().join("flannel/subnet.env"));
    }
    start_anew(lab, at).map(|()| gone)
}
