//! An etcd that somebody else runs: what the lab has there, and how its nodes find it.
//!
//! Surface: [`Elsewhere`]. The lab keeps to one prefix. Where that is empty it writes its network config there, and empties it at
//! its end; where the config is that already, it joins; anything else there is refused and stays as it is. All of it is asked
//! with `etcdctl` from outside of the lab. Nodes use the very URLs that the user gave: on each of them
//! [`crate::relay`] stands at these addresses.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use flannel_store::etcd::Endpoint;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::program;
use crate::echo::fresh_token;
use crate::error::{Doing, LabError};
use crate::options::LabOptions;
use crate::place::Place;
use crate::relay::Line;
use crate::wire::{Wire, lay};

/// How long a server has to take a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// An etcd elsewhere, and what it is told. The password is not here: it stays in the environment, which daemons and `etcdctl`
/// inherit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its servers, as `--etcd-endpoints` of flanneld takes them.
    pub endpoints: String,
    /// What flannel's keys begin with.
    pub prefix: String,
    /// The authority of its certificates.
    pub authority: Option<PathBuf>,
    /// The daemons' certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The daemons' user.
    pub user: Option<String>,
}

/// Where the daemons' password is, and nowhere else.
const PASSWORD: &str = "FLANNELD_ETCD_PASSWORD";

impl Elsewhere {
    /// Servers, if they can be read; below a prefix that nobody else has.
    pub(crate) fn at(endpoints: &str) -> Result<Self, String> {
        Endpoint::parse_list(endpoints, false).map_err(|error| error.to_string())?;
        let prefix = format!("/flannel-lab-{:08x}", fresh_token() >> 32);
        Ok(Self { endpoints: endpoints.to_owned(), prefix, ..Self::default() })
    }

    fn has_tls(&self) -> bool {
        self.authority.is_some() || self.certificate.is_some()
    }

    /// The servers in order.
    pub(crate) fn servers(&self) -> Result<Vec<Endpoint>, LabError> {
        Endpoint::parse_list(&self.endpoints, self.has_tls()).map_err(|error| LabError::Options(error.to_string()))
    }

    /// Refuses servers at addresses that nodes know as something else.
    pub(crate) fn check(&self, options: &LabOptions) -> Result<(), LabError> {
        let own = options.own_prefixes();
        for server in self.servers()? {
            let Ok(address) = server.host().parse::<IpAddr>() else { continue };
            let is_own = |net: &&IpNet| net.contains(&address);
            if let Some(net) = own.iter().find(is_own) {
                let why = format!("--store etcd={}: {address} is in {net}, which the lab has itself", self.endpoints);
                return Err(LabError::Options(why));
            }
        }
        Ok(())
    }

    /// The flags of a daemon.
    pub(crate) fn flags(&self) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let given = [
            ("endpoints", Some(self.endpoints.clone())),
            ("prefix", Some(self.prefix.clone())),
            ("cafile", path(&self.authority)),
            ("certfile", path(&self.certificate)),
            ("keyfile", path(&self.key)),
            ("username", self.user.clone()),
        ];
        given.into_iter().filter_map(|(name, value)| Some(format!("--etcd-{name}={}", value?))).collect()
    }

    /// Has the network config below the prefix, or refuses; true if it is of this lab's making.
    pub(crate) fn adopt(&self, config: &str) -> Result<bool, LabError> {
        self.reach()?;
        let key = self.config_key();
        let found = self.ctl(&["get", "--print-value-only", &key], "")?;
        if found.is_empty() {
            let others = self.ctl(&["get", "--keys-only", "--limit=1", "--prefix", &self.below()], "")?;
            if !others.is_empty() {
                return Err(self.failed(format!("has keys below {} but no config there", self.prefix)));
            }
            return self.write_config(&key, config).map(|()| true);
        }
        let same = |a: &str, b: &str| serde_json::from_str::<Value>(a).ok() == serde_json::from_str::<Value>(b).ok();
        let other = || format!("has another network at {}: {}", self.prefix, found.trim_end());
        if same(&found, config) { Ok(false) } else { Err(self.failed(other())) }
    }

    /// Writes the config, unless somebody else has meanwhile.
    fn write_config(&self, key: &str, config: &str) -> Result<(), LabError> {
        // In quotes for etcdctl, which has those of Go: those of JSON are among them.
        let text = Value::from(config);
        let script = format!("create(\"{key}\") = \"0\"\n\nput {key} {text}\n\n\n");
        let said = self.ctl(&["txn"], &script)?;
        if said.contains("SUCCESS") { Ok(()) } else { Err(self.failed(format!("has a config at {key} by now"))) }
    }

    /// Deletes all that is below the prefix.
    pub(crate) fn empty(&self) -> Result<(), LabError> {
        self.ctl(&["del", "--prefix", &self.below()], "").map(drop)
    }

    fn below(&self) -> String {
        format!("{}/", self.prefix.trim_end_matches('/'))
    }

    fn config_key(&self) -> String {
        format!("{}config", self.below())
    }

    /// Whether one of the servers takes connections from here.
    fn reach(&self) -> Result<(), LabError> {
        let mut causes = Vec::new();
        for server in self.servers()? {
            match connect(&server) {
                Ok(_) => return Ok(()),
                Err(error) => causes.push(format!("{server}: {error}")),
            }
        }
        Err(self.failed(format!("cannot be reached: {}", causes.join("; "))))
    }

    fn ctl(&self, words: &[&str], input: &str) -> Result<String, LabError> {
        let failed = |why: String| self.failed(format!("refused `etcdctl {}`: {why}", words.join(" ")));
        let mut command = self.etcdctl()?;
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        if let Some(mut pipe) = child.stdin.take() {
            let _it_says_itself_why = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().doing(|| "wait for etcdctl".into())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(failed(said(&output.stderr))) }
    }

    /// `etcdctl` with servers, files and user. What it is told stands in its environment, which `ps` shows to nobody else.
    fn etcdctl(&self) -> Result<Command, LabError> {
        let servers: Vec<String> = self.servers()?.iter().map(ToString::to_string).collect();
        let mut command = Command::new(program("ETCDCTL", "etcdctl"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_")) {
            command.env_remove(name);
        }
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", servers.join(","));
        command.args(["--dial-timeout=2s", "--command-timeout=5s"]);
        let files = [("CACERT", &self.authority), ("CERT", &self.certificate), ("KEY", &self.key)];
        for (name, file) in files {
            command.envs(file.iter().map(|file| (format!("ETCDCTL_{name}"), file)));
        }
        if let Some(user) = &self.user {
            let password = std::env::var(PASSWORD).unwrap_or_default();
            command.env("ETCDCTL_USER", format!("{user}:{password}"));
        }
        Ok(command)
    }

    fn failed(&self, why: String) -> LabError {
        LabError::Elsewhere { endpoints: self.endpoints.clone(), why }
    }

    /// Makes each server be found on a node by its URL: a relay takes the connections there.
    pub(crate) fn open_doors(&self, place: &Place, line: &Line) -> Result<(), LabError> {
        let servers = self.servers()?;
        for (number, server) in servers.iter().enumerate() {
            let door = SocketAddr::new(door(&servers, number), server.port());
            if !door.ip().is_loopback() {
                lay(place, &[Wire::Address("lo".into(), IpNet::from(door.ip()))])?;
            }
            let listener = place.inside(|| TcpListener::bind(door))?;
            let listener = listener.doing(|| format!("listen at {door} on {} for {server}", place.name()))?;
            line.hand_over(number, &listener)?;
        }
        Ok(())
    }

    /// The file `hosts` of the nodes: this machine's, with the servers' names first. None if no server goes by a name.
    pub(crate) fn hosts(&self) -> Result<Option<String>, LabError> {
        let servers = self.servers()?;
        let named = (0..servers.len()).filter(|number| servers[*number].host().parse::<IpAddr>().is_err());
        let lines: BTreeSet<String> =
            named.map(|number| format!("{} {}\n", door(&servers, number), servers[number].host())).collect();
        if lines.is_empty() {
            return Ok(None);
        }
        let own = fs::read_to_string(HOSTS).on("read", Path::new(HOSTS))?;
        Ok(Some(lines.into_iter().chain([own]).collect()))
    }
}

/// Where names of hosts are looked up first.
pub(crate) const HOSTS: &str = "/etc/hosts";

/// The address at which a node finds a server: its own, or for a name one of the node's loopback network.
fn door(servers: &[Endpoint], number: usize) -> IpAddr {
    let host = servers[number].host();
    let first = servers.iter().position(|server| server.host() == host).unwrap_or(number);
    let named = || Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + first as u32).into();
    host.parse().unwrap_or_else(|_| named())
}

/// A connection to a server from here.
pub(crate) fn connect(server: &Endpoint) -> std::io::Result<TcpStream> {
    let none = || std::io::Error::other("its name has no address");
    let mut last = Err(none());
    for address in (server.host(), server.port()).to_socket_addrs()? {
        last = TcpStream::connect_timeout(&address, PATIENCE);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// What the environment says of a daemon's flag `etcd-…`.
pub(crate) fn from_environment(name: &str) -> Option<String> {
    let variable = format!("FLANNELD_ETCD_{name}");
    std::env::var_os(variable).filter(|value| value != OsStr::new("")).map(|value| value.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(endpoints: &str) -> Elsewhere {
        Elsewhere { endpoints: endpoints.into(), prefix: "/p".into(), ..Elsewhere::default() }
    }

    #[test]
    fn nodes_find_servers_by_their_urls() {
        let servers = there("http://10.1.1.1:1,https://a:1,http://[::1],https://b,https://a:2").servers().unwrap();
        let doors: Vec<String> = (0..servers.len()).map(|number| door(&servers, number).to_string()).collect();
        assert_eq!(doors, ["10.1.1.1", "127.0.1.2", "::1", "127.0.1.4", "127.0.1.2"]);
        let hosts = there("https://b:1,https://a,https://b:2").hosts().unwrap().unwrap();
        assert!(hosts.starts_with("127.0.1.1 b\n127.0.1.2 a\n") && hosts.lines().count() > 2, "{hosts}");
        assert_eq!(there("http://127.0.0.1:1").hosts().unwrap(), None);
    }

    #[test]
    fn a_daemon_is_told_what_was_given() {
        let with_files = Elsewhere {
            authority: Some("/ca".into()),
            certificate: Some("/crt".into()),
            key: Some("/key".into()),
            user: Some("u".into()),
            ..there("a:1")
        };
        assert_eq!(with_files.servers().unwrap()[0].to_string(), "https://a:1");
        assert_eq!(there("a:1").flags(), ["--etcd-endpoints=a:1", "--etcd-prefix=/p"]);
        let flags = "--etcd-cafile=/ca --etcd-certfile=/crt --etcd-keyfile=/key --etcd-username=u";
        assert_eq!(with_files.flags()[2..].join(" "), flags);
    }

    #[test]
    fn servers_where_the_lab_is_are_refused() {
        let refused = |endpoints| there(endpoints).check(&LabOptions::default()).unwrap_err().to_string();
        assert_eq!(
            refused("http://192.0.2.9:1"),
            "--store etcd=http://192.0.2.9:1: 192.0.2.9 is in 192.0.2.0/24, which the lab has itself"
        );
        assert!(refused("http://10.244.1.1").contains("10.244.0.0/16"));
        there("http://127.0.0.1:2379,http://10.0.0.1").check(&LabOptions::default()).unwrap();
    }
}
