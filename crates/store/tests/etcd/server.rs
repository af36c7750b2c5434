//! Real etcd servers in the namespaces of a test: Debian's, or those that `ETCD`, `ETCDCTL` and `ETCDUTL` name.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_kernel::mount;

/// The port that daemons use, and one that only the test does.
pub(crate) const PORT: u16 = 2379;
const BACK_DOOR: u16 = 12379;
const PEERS: u16 = 2380;

/// Sets the stage: call once, inside namespaces of the test's own. What is written below /run goes with them.
pub(crate) fn make_stage() {
    mount::tmpfs(Path::new("/run")).unwrap();
    run("ip", &["link", "set", "lo", "up"]);
}

/// A server, on its own address of the loopback network.
pub(crate) struct Server {
    number: u8,
    args: Vec<String>,
    child: Option<Child>,
    /// What `etcdctl` needs to be let in by the back door.
    pub(crate) credentials: Vec<String>,
}

/// A cluster of one that runs.
pub(crate) fn alone() -> Server {
    alone_with(&[])
}

/// The same with more arguments.
pub(crate) fn alone_with(args: &[&str]) -> Server {
    let mut server = Server::new(1, 1, false).with(args);
    server.start();
    server
}

/// A cluster of three that runs.
pub(crate) fn three() -> Vec<Server> {
    let mut servers: Vec<Server> = (1..=3).map(|number| Server::new(number, 3, false)).collect();
    servers.iter_mut().for_each(Server::spawn);
    servers.iter().for_each(Server::wait);
    servers
}

impl Server {
    /// A server that is not started yet, in a cluster of `size`.
    pub(crate) fn new(number: u8, size: u8, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.{number}:{PORT}");
        let peer = |number| format!("http://127.0.0.{number}:{PEERS}");
        let cluster: Vec<String> = (1..=size).map(|number| format!("m{number}={}", peer(number))).collect();
        let args = [
            ("--name", format!("m{number}")),
            ("--data-dir", data(number).display().to_string()),
            ("--listen-client-urls", format!("{client},http://127.0.0.{number}:{BACK_DOOR}")),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer(number)),
            ("--initial-advertise-peer-urls", peer(number)),
            ("--initial-cluster", cluster.join(",")),
            ("--heartbeat-interval", "50".into()),
            ("--election-timeout", "500".into()),
        ];
        let args = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        Self { number, args, child: None, credentials: Vec::new() }
    }

    /// The same with more arguments.
    pub(crate) fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    pub(crate) fn data(&self) -> PathBuf {
        data(self.number)
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait();
    }

    /// Starts it.
    pub(crate) fn spawn(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.data().with_extension("log")).unwrap();
        let program = std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
        let mut command = Command::new(&program);
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn();
        self.child =
            Some(child.unwrap_or_else(|error| panic!("{}: {error}: apt-get install etcd-server", program.display())));
    }

    /// Waits until it answers.
    pub(crate) fn wait(&self) {
        let begun = Instant::now();
        while self.try_ctl(&["get", "health"]).is_err() {
            let log = || fs::read_to_string(self.data().with_extension("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(30), "etcd does not start:\n{}", log());
            sleep(Duration::from_millis(20));
        }
    }

    /// How many requests it was sent since it was started, as its metrics say.
    pub(crate) fn requests(&self) -> u64 {
        let metrics = self.http("GET", "/metrics", "");
        let of_kind = metrics.lines().filter(|line| line.starts_with("grpc_server_started_total"));
        of_kind.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    /// What its JSON gateway answers to a request.
    pub(crate) fn post(&self, path: &str, body: &str) -> String {
        self.http("POST", path, body)
    }

    fn http(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(format!("127.0.0.{}:{BACK_DOOR}", self.number)).unwrap();
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        run("kill", &[&format!("-{name}"), &self.child.as_ref().unwrap().id().to_string()]);
    }

    /// What `etcdctl` prints, which has to succeed.
    pub(crate) fn ctl(&self, words: &[&str]) -> String {
        self.try_ctl(words).unwrap_or_else(|error| panic!("etcdctl {words:?}: {error}"))
    }

    fn try_ctl(&self, words: &[&str]) -> Result<String, String> {
        let program = std::env::var_os("ETCDCTL").unwrap_or_else(|| OsString::from("etcdctl"));
        let door = format!("--endpoints=http://127.0.0.{}:{BACK_DOOR}", self.number);
        let mut command = Command::new(program);
        command.env("ETCDCTL_API", "3").args([&door, "--dial-timeout=1s", "--command-timeout=5s"]);
        let output =
            command.args(&self.credentials).args(words).output().expect("etcdctl: apt-get install etcd-client");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

/// Works on the files of a server that does not run: with `etcdutl`, which `etcdctl` was in etcd 3.4.
pub(crate) fn util(words: &[&str]) {
    let program = ["ETCDUTL", "ETCDCTL"].into_iter().find_map(|name| std::env::var(name).ok());
    run(&program.unwrap_or_else(|| "etcdctl".into()), words);
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn data(number: u8) -> PathBuf {
    PathBuf::from(format!("/run/etcd-{number}"))
}

/// Refuses all connections to the daemons' ports, also those there are.
pub(crate) fn cut() {
    run("nft", &["add table inet cut; add chain inet cut in { type filter hook input priority 0; }"]);
    run("nft", &[&format!("add rule inet cut in tcp dport {PORT} reject with tcp reset")]);
}

/// Loses all packets to the daemons' ports, in silence.
pub(crate) fn lose() {
    run("nft", &["add table inet cut; add chain inet cut in { type filter hook input priority 0; }"]);
    run("nft", &[&format!("add rule inet cut in tcp dport {PORT} drop")]);
}

/// Ends [`cut`] and [`lose`].
pub(crate) fn mend() {
    run("nft", &["delete table inet cut"]);
}

/// Runs a program, which has to succeed, and answers with what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
