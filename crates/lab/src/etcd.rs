//! etcd in the lab: one server, or three as in production, each at a place of its own on the nodes' first segment; or one that
//! somebody else runs, see [`elsewhere`].
//!
//! Surface: [`Etcd`], [`Member`], [`StoreChoice`]. One server speaks plainly and knows no users. Three have TLS on both sides,
//! a user with a password, and the quota that fills; [`secrets`] says how. By a back door on its loopback each server is asked
//! with `etcdctl`, also while its links are down. What servers suffer is in [`crate::siege`].

pub mod elsewhere;
pub mod secrets;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::elsewhere::Elsewhere;
use crate::error::{Doing, LabError};
use crate::flanneld::tail;
use crate::lab::ROOT;
use crate::layout::Seat;
use crate::place::Place;

/// What flannel's keys begin with: the default of `--etcd-prefix`.
pub const PREFIX: &str = "/coreos.com/network";
/// The port of etcd's clients, of its servers among each other, and of the back door.
pub(crate) const PORT: u16 = 2379;
const PEERS: u16 = 2380;
const BACK_DOOR: u16 = 12379;
/// How many bytes a server that is run as in production keeps before it raises the alarm `NOSPACE`.
pub(crate) const QUOTA: usize = 8 << 20;
/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the nodes keep their leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreChoice {
    /// In a directory that all nodes share.
    Local,
    /// In etcd, with so many servers.
    Etcd(usize),
    /// In an etcd that somebody else runs.
    Elsewhere(Box<Elsewhere>),
}

impl FromStr for StoreChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "local" => Ok(Self::Local),
            "etcd" => Ok(Self::Etcd(1)),
            "etcd:3" => Ok(Self::Etcd(3)),
            _ => match text.strip_prefix("etcd=") {
                Some(endpoints) => Ok(Self::Elsewhere(Box::new(Elsewhere::at(endpoints)?))),
                None => Err(
                    "there are local, etcd (one server), etcd:3 (three, with TLS and users) and etcd=URL,URL (yours)"
                        .to_owned(),
                ),
            },
        }
    }
}

impl StoreChoice {
    /// How many servers it takes.
    pub(crate) fn members(&self) -> usize {
        match self {
            Self::Local | Self::Elsewhere(_) => 0,
            Self::Etcd(members) => *members,
        }
    }

    /// The etcd that somebody else runs, if it is that.
    pub(crate) fn elsewhere(&self) -> Option<&Elsewhere> {
        match self {
            Self::Elsewhere(there) => Some(there),
            Self::Local | Self::Etcd(_) => None,
        }
    }
}

/// A cluster of etcd servers.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

/// One of its servers, running or not.
#[derive(Debug)]
pub struct Member {
    place: Place,
    address: IpAddr,
    arguments: Vec<String>,
    /// Whether it has TLS, and whether it lets in users only.
    tls: bool,
    secured: bool,
    child: Option<Child>,
}

impl Etcd {
    /// Starts the servers, makes the user where they are secured, and writes the network config.
    pub(crate) fn start(places: Vec<(Place, &Seat)>, config: &str) -> Result<Self, LabError> {
        let root = root();
        fs::create_dir_all(&root).on("make directory", &root)?;
        let addresses = places.iter().map(|(place, seat)| Ok((place.name().to_owned(), first(seat)?)));
        let addresses = addresses.collect::<Result<Vec<_>, LabError>>()?;
        let secured = places.len() > 1;
        if secured {
            secrets::make(&root, &addresses)?;
        }
        let member = |place: Place, address| {
            let arguments = arguments(place.name(), address, &addresses, secured);
            Member { place, address, arguments, tls: secured, secured: false, child: None }
        };
        let mut members: Vec<Member> =
            places.into_iter().zip(&addresses).map(|((place, _), (_, address))| member(place, *address)).collect();
        members.iter_mut().try_for_each(Member::spawn)?;
        members.iter().try_for_each(|member| member.wait(PATIENCE))?;
        if secured {
            secrets::make_users(&members[0])?;
            for member in &mut members {
                member.secured = true;
            }
        }
        members[0].ctl(&["put", &format!("{PREFIX}/config"), config])?;
        Ok(Self { members })
    }

    /// The servers in order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A server by its place in the order, from 0, to be changed. Panics beyond the last.
    pub fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    fn secured(&self) -> bool {
        self.members.iter().any(|member| member.secured)
    }

    /// The flags by which a flanneld, or `flannel etcd`, finds it.
    pub fn flags(&self) -> Vec<String> {
        let endpoints: Vec<String> = self.members.iter().map(Member::endpoint).collect();
        let mut flags = vec![format!("--etcd-endpoints={}", endpoints.join(",")), format!("--etcd-prefix={PREFIX}")];
        if self.secured() {
            flags.extend(secrets::flags(&root()));
        }
        flags
    }

    /// What they find in their environment: passwords are not for command lines.
    pub fn environment(&self) -> Vec<(&'static str, &'static str)> {
        if self.secured() { vec![("FLANNELD_ETCD_PASSWORD", secrets::PASSWORD)] } else { Vec::new() }
    }

    /// The keys below flannel's prefix with their values, as most of the servers agree on them; asked of the first server that
    /// answers.
    pub fn content(&self) -> Result<Vec<(String, String)>, LabError> {
        let listed = self.ctl(&["get", "--prefix", &format!("{PREFIX}/")])?;
        let lines: Vec<&str> = listed.lines().collect();
        Ok(lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect())
    }

    /// Starts the servers that do not run.
    pub(crate) fn restart_dead(&mut self) -> Result<(), LabError> {
        self.members.iter_mut().filter(|member| member.child.is_none()).try_for_each(Member::spawn)
    }

    /// Gives everybody new certificates, the servers from a new authority. They are shown and wanted on new connections.
    pub(crate) fn rotate_certificates(&self) -> Result<(), LabError> {
        let servers = self.members.iter().map(|member| (member.place.name().to_owned(), member.address));
        secrets::rotate(&root(), &servers.collect::<Vec<_>>())
    }

    /// Has the first server that does it do something.
    pub fn ctl(&self, words: &[&str]) -> Result<String, LabError> {
        let mut last = Err(LabError::Control("no etcd server runs"));
        for member in self.members.iter().filter(|member| member.pid().is_some()) {
            last = member.ctl(words);
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

/// Where the servers' files are.
fn root() -> PathBuf {
    Path::new(ROOT).join("etcd")
}

fn first(seat: &Seat) -> Result<IpAddr, LabError> {
    let none = || LabError::Options(format!("{} has no address", seat.name));
    seat.address.values().next().map(IpNet::addr).ok_or_else(none)
}

fn url(scheme: &str, address: IpAddr, port: u16) -> String {
    format!("{scheme}://{}", SocketAddr::new(address, port))
}

/// What a server is told.
fn arguments(name: &str, address: IpAddr, cluster: &[(String, IpAddr)], secured: bool) -> Vec<String> {
    let scheme = if secured { "https" } else { "http" };
    let (client, peer) = (url(scheme, address, PORT), url("http", address, PEERS));
    let cluster: Vec<String> =
        cluster.iter().map(|(name, address)| format!("{name}={}", url("http", *address, PEERS))).collect();
    let pairs = [
        ("name", name.to_owned()),
        ("data-dir", root().join(name).display().to_string()),
        ("listen-client-urls", format!("{client},http://127.0.0.1:{BACK_DOOR}")),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", cluster.join(",")),
    ];
    let flags = pairs.into_iter().map(|(name, value)| format!("--{name}={value}"));
    flags.chain(secured.then(|| secrets::server_flags(&root(), name)).into_iter().flatten()).collect()
}

impl Member {
    /// Its place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where its clients find it.
    pub fn endpoint(&self) -> String {
        url(if self.tls { "https" } else { "http" }, self.address, PORT)
    }

    /// Its process number inside the lab, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where its data is; its log and its certificates lie beside that.
    pub(crate) fn data(&self) -> PathBuf {
        root().join(self.place.name())
    }

    /// Starts it. Its output goes to a log beside its data.
    pub fn spawn(&mut self) -> Result<(), LabError> {
        let path = self.data().with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(&path).on("open", &path)?;
        let errors = log.try_clone().on("open", &path)?;
        let mut command = Command::new(program("ETCD", "etcd"));
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
        self.child =
            Some(self.place.spawn(command).map_err(|error| self.failed(format!("does not run: {}", cause(&error))))?);
        Ok(())
    }

    /// Waits until it answers, with most of the others behind it.
    pub fn wait(&self, patience: Duration) -> Result<(), LabError> {
        let since = Instant::now();
        while let Err(error) = self.ctl(&["get", "health"]) {
            if since.elapsed() > patience {
                return Err(self.failed(format!("does not answer within {} s: {error}", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) -> Result<(), LabError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).doing(|| format!("end {}", self.place.name())).map(drop)
    }

    /// Halts it (SIGSTOP), or lets it go on (SIGCONT).
    pub fn halt(&self, halted: bool) -> Result<(), LabError> {
        let signal = if halted { Signal::STOP } else { Signal::CONT };
        let Some(child) = &self.child else { return Ok(()) };
        kill_process(Pid::from_child(child), signal).doing(|| format!("signal {}", self.place.name()))
    }

    /// Whether it leads the others; a server that does not run does not.
    pub(crate) fn leads(&self) -> Result<bool, LabError> {
        let status = self.status()?;
        Ok(status["leader"] == status["header"]["member_id"])
    }

    /// The revision that it is at.
    pub(crate) fn revision(&self) -> Result<u64, LabError> {
        let revision = self.status()?["header"]["revision"].as_u64();
        revision.ok_or_else(|| self.failed("names no revision".into()))
    }

    fn status(&self) -> Result<Value, LabError> {
        let text = self.ctl(&["endpoint", "status", "--write-out=json"])?;
        let mut all: Value =
            serde_json::from_str(&text).map_err(std::io::Error::from).doing(|| "read etcd's status".into())?;
        Ok(all[0]["Status"].take())
    }

    /// What `etcdctl` prints by the back door.
    pub fn ctl(&self, words: &[&str]) -> Result<String, LabError> {
        self.ctl_reading(words, Stdio::null())
    }

    /// The same for one that reads.
    pub(crate) fn ctl_reading(&self, words: &[&str], input: Stdio) -> Result<String, LabError> {
        let mut command = Command::new(program("ETCDCTL", "etcdctl"));
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://127.0.0.1:{BACK_DOOR}"));
        command.args(["--dial-timeout=1s", "--command-timeout=4s"]);
        if self.secured {
            command.arg(format!("--user={}:{}", secrets::ROOT_USER, secrets::PASSWORD));
        }
        command.args(words).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |why: String| self.failed(format!("refused `etcdctl {}`: {why}", words.join(" ")));
        let child = self.place.spawn(command).map_err(|error| failed(cause(&error)))?;
        let output = child.wait_with_output().doing(|| "wait for etcdctl".into())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(failed(said(&output.stderr))) }
    }

    fn failed(&self, why: String) -> LabError {
        let log = tail(&self.data().with_extension("log"), 0, 12);
        LabError::Etcd { member: self.place.name().to_owned(), why, log }
    }
}

fn cause(error: &LabError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A program of etcd's: what the environment names, else that of `PATH`.
fn program(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read() {
        let read = |text: &str| text.parse::<StoreChoice>();
        assert_eq!(
            (read("local"), read("etcd"), read("etcd:3")),
            (Ok(StoreChoice::Local), Ok(StoreChoice::Etcd(1)), Ok(StoreChoice::Etcd(3)))
        );
        assert!(read("etcd:2").unwrap_err().contains("etcd:3"));
        let there = read("etcd=http://a:1,b").unwrap();
        assert_eq!(there.elsewhere().unwrap().endpoints, "http://a:1,b");
        assert_ne!(there, read("etcd=http://a:1,b").unwrap(), "each lab has a prefix of its own");
        assert!(read("etcd=ftp://a").unwrap_err().contains("the scheme is http or https"));
    }

    #[test]
    fn a_server_is_told_of_all() {
        let cluster =
            [("etcd1".to_owned(), "192.0.2.2".parse().unwrap()), ("etcd2".to_owned(), "2001:db8::2".parse().unwrap())];
        let told = arguments("etcd2", cluster[1].1, &cluster, false);
        for flag in [
            "--listen-client-urls=http://[2001:db8::2]:2379,http://127.0.0.1:12379",
            "--initial-cluster=etcd1=http://192.0.2.2:2380,etcd2=http://[2001:db8::2]:2380",
        ] {
            assert!(told.iter().any(|word| word == flag), "{told:?}");
        }
    }
}
