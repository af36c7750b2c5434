//! One `flanneld` process on a node: started, awaited, stopped, killed; its log and its subnet file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing, LabError};
use crate::place::Place;

/// Where every node's flanneld answers `/healthz` and `/readyz`, on the node's loopback.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// How long a flanneld may take until it is ready, and until it is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most bytes that are read of a line that a program says.
const LINE: usize = 1024;

/// A node's flanneld, running or not.
#[derive(Debug)]
pub struct Flanneld {
    place: Place,
    program: PathBuf,
    run: PathBuf,
    environment: Vec<(&'static str, &'static str)>,
    /// Where in the log the present run begins.
    log_from: u64,
    started: SystemTime,
    child: Option<Child>,
}

impl Flanneld {
    /// Not yet running; `run` is where the node's `/run` is seen by the lab.
    pub(crate) fn new(
        place: Place,
        program: PathBuf,
        run: PathBuf,
        environment: Vec<(&'static str, &'static str)>,
    ) -> Self {
        Self { place, program, run, environment, log_from: 0, started: SystemTime::UNIX_EPOCH, child: None }
    }

    /// Makes it another program, from its next start on.
    pub(crate) fn become_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// The version that the program names, within two seconds.
    pub fn version(&self) -> Option<String> {
        // What the program started may live on and hold the pipe: it is never read to its end.
        let (said, writer) = io::pipe().ok()?;
        rustix::io::ioctl_fionbio(&said, true).ok()?;
        let mut command = self.command();
        command.arg("--version").stdin(Stdio::null()).stdout(writer.try_clone().ok()?).stderr(writer);
        let mut child = self.place.spawn(command).ok()?;
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && child.try_wait().ok()?.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ended_already = child.kill();
        child.wait().ok().filter(ExitStatus::success)?;
        let mut line = [0; LINE];
        let length = (&said).read(&mut line).ok()?;
        Some(String::from_utf8_lossy(&line[..length]).lines().next()?.trim().to_owned())
    }

    /// The program under the name it must have: one executable may be several by the name it is called by.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0("flanneld").env_remove("NOTIFY_SOCKET").envs(self.environment.iter().copied());
        command
    }

    /// Starts it. Its output goes to the log.
    pub fn start(&mut self, arguments: &[String]) -> Result<(), LabError> {
        let path = self.log_path();
        let log = OpenOptions::new().create(true).append(true).open(&path).on("open", &path)?;
        let errors = log.try_clone().on("open", &path)?;
        self.log_from = log.metadata().on("read the size of", &path)?.len();
        let mut command = self.command();
        command
            .args(arguments)
            .args([format!("--healthz-ip={}", HEALTH.ip()), format!("--healthz-port={}", HEALTH.port())]);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.started = SystemTime::now();
        self.child = Some(self.place.spawn(command)?);
        Ok(())
    }

    /// Waits until `/readyz` says yes, or `subnet.env` is written by one that has no `/readyz`, as older flannels.
    pub fn wait_ready(&mut self) -> Result<(), LabError> {
        self.wait_ready_for(PATIENCE)
    }

    /// The same with a patience of one's own.
    pub(crate) fn wait_ready_for(&mut self, patience: Duration) -> Result<(), LabError> {
        let since = Instant::now();
        while !self.is_ready()? {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                self.child = None;
                return Err(self.failed(format!("ended with {status}")));
            }
            if since.elapsed() > patience {
                return Err(self.failed(format!("was not ready within {} s", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn is_ready(&self) -> Result<bool, LabError> {
        let ask = || -> io::Result<Option<u16>> {
            let mut stream = TcpStream::connect_timeout(&HEALTH, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.split_whitespace().nth(1).and_then(|status| status.parse().ok()))
        };
        Ok(match self.place.inside(ask)?.ok().flatten() {
            Some(200) => true,
            Some(404) => self.has_written_subnet_env(),
            _ => false,
        })
    }

    fn has_written_subnet_env(&self) -> bool {
        let written = fs::metadata(self.subnet_env()).and_then(|file| file.modified());
        written.is_ok_and(|written| written >= self.started)
    }

    fn subnet_env(&self) -> PathBuf {
        self.run.join("flannel/subnet.env")
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<(), LabError> {
        self.signal(Signal::TERM)
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.signal(Signal::KILL)
    }

    fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        kill_process(Pid::from_child(&child), signal).doing(|| format!("end flanneld on {}", self.place.name()))?;
        let since = Instant::now();
        while child.try_wait().doing(|| "wait for flanneld".into())?.is_none() {
            if since.elapsed() > PATIENCE {
                let _gone = child.kill().and_then(|()| child.wait());
                return Err(self.failed(format!("did not end within {} s", PATIENCE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Its process number inside the lab, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it has allocated and not given back, in KiB (`RssAnon` of proc(5)), while it runs.
    pub fn allocated_kib(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The value of a key of its subnet file.
    pub fn subnet_value(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.subnet_env()).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    }

    /// Where its log is seen by the lab; on the node it is `/run/flanneld.log`.
    pub fn log_path(&self) -> PathBuf {
        self.run.join("flanneld.log")
    }

    /// The last lines of its log since it was started, indented.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path(), self.log_from, 12)
    }

    fn failed(&self, why: String) -> LabError {
        LabError::Daemon { node: self.place.name().to_owned(), why, log: self.log_tail() }
    }
}

/// The last lines of a log from a place in it on, indented.
pub(crate) fn tail(path: &Path, from: u64, lines: usize) -> String {
    let mut text = Vec::new();
    let _absent = File::open(path).and_then(|mut file| {
        let (most, end) = ((lines * LINE) as u64, file.seek(SeekFrom::End(0))?);
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(most))))?;
        file.take(most).read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().flat_map(|line| ["    ", line, "\n"]).collect()
}
