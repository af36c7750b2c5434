//! `flannel lab`: the lab as a command.
//!
//! Surface: [`LabArgs`] (what the command line may say) and [`run`]. The command runs twice: outside, where it encloses
//! itself, and inside as the hidden subcommand `inside`, where it brings the lab up.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::{Args, Subcommand, ValueEnum};
use flannel_kernel::process::{Enclosed, Lifetime, enclose, spawn_in};
use serde::{Deserialize, Serialize};

use crate::build::{Build, seen_inside};
use crate::control::{self, Answer, Ask, Caller};
use crate::error::{Doing, LabError};
use crate::etcd::StoreChoice;
use crate::etcd::elsewhere::{Elsewhere, from_environment};
use crate::lab::Lab;
use crate::options::{FamilyName, LabOptions};
use crate::picture::Picture;
use crate::proof::Proof;
use crate::relay::{self, Line};
use crate::report;
use crate::swap::SwapArgs;
use crate::voice::Voice;
use crate::walk::WalkArgs;

/// Bring up a flannel network of several nodes on this machine, show that it works, and take it down.
///
/// Nodes and pods are network namespaces inside a private set of namespaces: nothing of the host is touched and nothing
/// stays. Root is not needed where user namespaces are allowed.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LabArgs {
    #[command(flatten)]
    shape: Shape,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring up a lab and keep it, to play with.
    Up(Shape),
    /// Draw the lab that is up: nodes, subnets, pods, addresses, devices.
    Ls {
        /// Draw it as SVG, into this file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Run a program on a node, in a pod, on the router or outside (`flannel lab exec pod1-1 -- ip route`).
    Exec {
        /// Where: a name that `flannel lab ls` shows.
        place: String,
        /// The program and its arguments; a shell if none is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Prove again that all packets pass.
    Prove,
    /// Damage a node's network state and show how flanneld repairs it; without arguments list the damages.
    Break(BreakArgs),
    /// Exchange the build of flannel that a node runs, under traffic, and show what was lost.
    Swap(SwapArgs),
    /// Follow one ping hop by hop: what every device saw, what sent it on, and where and why it died.
    Walk(WalkArgs),
    /// End the lab that is up.
    Down,
    /// Outside of the lab: what its nodes reach their etcd by.
    #[command(hide = true)]
    Relay {
        /// Delete what is below the prefix when the lab has ended.
        #[arg(long)]
        made: bool,
        /// The etcd as JSON.
        there: String,
    },
    /// The lab from inside its namespaces.
    #[command(hide = true)]
    Inside {
        /// Bring up, prove and end; else stay and answer on standard input.
        #[arg(long)]
        once: bool,
        /// The options as JSON.
        options: String,
    },
}

/// What a lab is like.
#[derive(Debug, Args)]
struct Shape {
    /// Number of nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Number of pods on each node.
    #[arg(long, default_value_t = 2)]
    pods: usize,
    /// Number of underlay segments (1 or 2) that the nodes are spread over, a router between them.
    #[arg(long, default_value_t = 1)]
    segments: usize,
    /// The backend.
    #[arg(long, default_value = "vxlan")]
    backend: Backend,
    /// IPv4 and IPv6.
    #[arg(long, conflicts_with = "ipv6")]
    dual: bool,
    /// IPv6 only.
    #[arg(long)]
    ipv6: bool,
    /// Packet rules in nf_tables (the default).
    #[arg(long, conflicts_with = "iptables")]
    nft: bool,
    /// Packet rules in iptables.
    #[arg(long)]
    iptables: bool,
    /// A network config (net-conf.json) of your own, instead of the one these options make.
    #[arg(long, value_name = "FILE", conflicts_with = "backend")]
    config: Option<PathBuf>,
    /// Where the nodes keep their leases: `local`, a directory; `etcd`, a server; `etcd:3`, three with TLS and users;
    /// `etcd=URL,URL`, your own, as this machine reaches it.
    #[arg(long, default_value = "local")]
    store: StoreChoice,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Another build of flanneld to run.
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// A directory with another build of the CNI plugins.
    #[arg(long, value_name = "DIR")]
    cni: Option<PathBuf>,
    /// Another build for one node: `2:flanneld=PATH,cni=DIR,args=WORDS`, each of them optional.
    #[arg(long = "node", value_name = "NODE:BUILD", value_parser = Build::of_node)]
    builds: Vec<(String, Build)>,
}

/// How to use an etcd of one's own: as flanneld does, also by its environment (`FLANNELD_ETCD_…`). The password is only taken
/// from there.
#[derive(Debug, Args)]
struct EtcdArgs {
    /// With `etcd=URL`: the prefix of flannel's keys; one of the lab's own if not given.
    #[arg(long = "etcd-prefix", value_name = "PREFIX")]
    prefix: Option<String>,
    /// With `etcd=URL`: the certificate of the authority that signed the servers' certificates.
    #[arg(long = "etcd-cafile", value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// With `etcd=URL`: the nodes' certificate.
    #[arg(long = "etcd-certfile", value_name = "FILE", requires = "keyfile")]
    certfile: Option<PathBuf>,
    /// With `etcd=URL`: its private key.
    #[arg(long = "etcd-keyfile", value_name = "FILE", requires = "certfile")]
    keyfile: Option<PathBuf>,
    /// With `etcd=URL`: the nodes' user. Its password is in the variable `FLANNELD_ETCD_PASSWORD`.
    #[arg(long = "etcd-username", value_name = "NAME")]
    username: Option<String>,
}

impl EtcdArgs {
    /// The store that was chosen, with what is said of it.
    fn applied_to(&self, store: &StoreChoice) -> Result<StoreChoice, LabError> {
        let StoreChoice::Elsewhere(there) = store else {
            let Self { prefix, cafile, certfile, keyfile, username } = self;
            let files = [cafile, certfile, keyfile];
            if prefix.is_some() || username.is_some() || files.iter().any(|file| file.is_some()) {
                return Err(LabError::Options("--etcd-… is for --store etcd=URL".into()));
            }
            return Ok(store.clone());
        };
        let text = |given: &Option<String>, name| given.clone().or_else(|| from_environment(name));
        let file = |given: &Option<PathBuf>, name| {
            let path = given.clone().or_else(|| from_environment(name).map(PathBuf::from));
            path.as_deref().map(seen_inside).transpose()
        };
        Ok(StoreChoice::Elsewhere(Box::new(Elsewhere {
            endpoints: there.endpoints.clone(),
            prefix: text(&self.prefix, "PREFIX").unwrap_or_else(|| there.prefix.clone()),
            authority: file(&self.cafile, "CAFILE")?,
            certificate: file(&self.certfile, "CERTFILE")?,
            key: file(&self.keyfile, "KEYFILE")?,
            user: text(&self.username, "USERNAME"),
        })))
    }
}

/// The backends that the lab knows.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    Vxlan,
    HostGw,
    /// None between nodes: the router carries their pods' packets.
    Alloc,
}

/// What to damage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args, Serialize, Deserialize)]
pub struct BreakArgs {
    /// Names of damages, as the list shows them.
    pub damages: Vec<String>,
    /// Every damage there is, one after another.
    #[arg(long)]
    pub all: bool,
    /// The node.
    #[arg(long, default_value = "node1")]
    pub node: String,
    /// How often each.
    #[arg(long, default_value_t = 1)]
    pub times: usize,
    /// Random damages on random nodes for so many minutes instead, watching flanneld's memory.
    #[arg(long, value_name = "MINUTES", conflicts_with_all = ["damages", "all"])]
    pub random: Option<u64>,
    /// Random faults of the servers of etcd for so many minutes instead (`lab up --store etcd:3`): killed, halted, cut off,
    /// full, … while nodes come and go, under a checker.
    #[arg(long, value_name = "MINUTES", conflicts_with_all = ["damages", "all", "random"])]
    pub servers: Option<u64>,
    /// What the schedule of `--servers` follows from; a random one if not given.
    #[arg(long, requires = "servers")]
    pub seed: Option<u64>,
}

impl Shape {
    fn options(&self) -> Result<LabOptions, LabError> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).on("read", path);
        let families: &[FamilyName] = match (self.dual, self.ipv6) {
            (true, _) => &[FamilyName::Ipv4, FamilyName::Ipv6],
            (false, true) => &[FamilyName::Ipv6],
            (false, false) => &[FamilyName::Ipv4],
        };
        let backend = match self.backend {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Alloc => "alloc",
        };
        let default = Build { flanneld: self.flanneld.clone(), cni: self.cni.clone(), ..Build::default() }.check()?;
        let options = LabOptions {
            nodes: self.nodes,
            pods: self.pods,
            segments: self.segments,
            backend: backend.into(),
            families: families.into(),
            nftables: !self.iptables,
            config: self.config.as_ref().map(read).transpose()?,
            store: self.etcd.applied_to(&self.store)?,
            flanneld: default.flanneld,
            cni: default.cni,
            builds: self.builds()?,
            ..LabOptions::default()
        };
        options.check().map(|()| options)
    }

    fn builds(&self) -> Result<BTreeMap<String, Build>, LabError> {
        let mut builds = BTreeMap::new();
        for (node, build) in &self.builds {
            if builds.insert(node.clone(), build.clone().check()?).is_some() {
                return Err(LabError::Options(format!("--node {node} is given twice")));
            }
        }
        Ok(builds)
    }
}

/// Does what the arguments say, writes to `out`, and answers with the exit code of the process.
pub fn run(args: &LabArgs, out: &mut dyn Write) -> Result<u8, LabError> {
    match &args.action {
        None => wait(enclosed(&args.shape.options()?, None, Lifetime::Caller)?),
        Some(Action::Up(shape)) => up(&shape.options()?, out),
        Some(Action::Ls { svg: None }) => control::ask(&Ask::Topology, out).map(|_| 0),
        Some(Action::Ls { svg: Some(file) }) => draw(file),
        Some(Action::Prove) => control::ask(&Ask::Prove, out).map(|_| 0),
        Some(Action::Break(what)) => control::ask(&Ask::Break(what.clone()), out).map(|_| 0),
        Some(Action::Swap(what)) => control::ask(&Ask::Swap(what.order()?), out).map(|_| 0),
        Some(Action::Walk(args)) => crate::walk::run(args, out),
        Some(Action::Down) => down(out),
        Some(Action::Exec { place, command }) => exec(place, command),
        Some(Action::Relay { made, there }) => {
            let there: Elsewhere =
                serde_json::from_str(there).map_err(io::Error::from).doing(|| "read the options".into())?;
            relay::run(&there, *made).map(|()| 0)
        }
        Some(Action::Inside { once, options }) => inside(*once, options, out),
    }
}

/// Starts this executable again, enclosed: at the service of callers, or without any to bring up, prove and end. Where leases are
/// in an etcd outside, a relay stands beside it.
fn enclosed(options: &LabOptions, callers: Option<UnixListener>, lifetime: Lifetime) -> Result<Child, LabError> {
    let once = callers.is_none();
    let input = match options.store.elsewhere() {
        Some(there) => relay::start(there, &options.network_config(), callers)?.into(),
        None => callers.map_or_else(Stdio::inherit, |callers| Stdio::from(OwnedFd::from(callers))),
    };
    let options = serde_json::to_string(options).map_err(io::Error::from).doing(|| "write the options".into())?;
    let mut command = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "flannel");
    command.args(["lab", "inside"]).args(once.then_some("--once")).arg(options).stdin(input).env_remove("CNI_COMMAND");
    Ok(enclose(command, lifetime)?)
}

fn wait(mut child: Child) -> Result<u8, LabError> {
    let status = child.wait().doing(|| "wait for the lab".into())?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn up(options: &LabOptions, out: &mut dyn Write) -> Result<u8, LabError> {
    let listener = control::listen()?;
    let child = enclosed(options, Some(listener), Lifetime::Detached)?;
    match control::ask(&Ask::Hello, out) {
        Ok(_) => Ok(0),
        Err(_said_by_itself) => wait(child).map(|code| code.max(1)),
    }
}

/// Writes the picture, once there is one.
fn draw(file: &Path) -> Result<u8, LabError> {
    let mut picture = Vec::new();
    control::ask(&Ask::Picture, &mut picture)?;
    std::fs::write(file, picture).on("write", file).map(|()| 0)
}

/// Ends the lab and waits until its name is free again.
fn down(out: &mut dyn Write) -> Result<u8, LabError> {
    control::ask(&Ask::Down, out)?;
    for _ in 0..500 {
        if control::listen().is_ok() {
            return Ok(0);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(LabError::Control("the lab does not end"))
}

fn exec(place: &str, command: &[String]) -> Result<u8, LabError> {
    let namespaces = control::ask(&Ask::Namespaces(place.to_owned()), &mut io::sink())?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let mut process = Command::new(command.first().unwrap_or(&shell));
    process.args(command.iter().skip(1)).env("PS1", format!("{place}# "));
    let namespaces = namespaces.ok_or(LabError::Control("the lab handed out no namespaces"))?;
    wait(spawn_in(process, namespaces).doing(|| format!("run {} on {place}", command.first().unwrap_or(&shell)))?)
}

/// The lab from inside: up, and then either proved and over, or at its callers' service.
fn inside(once: bool, options: &str, out: &mut dyn Write) -> Result<u8, LabError> {
    let enclosed = Enclosed::here().ok_or(LabError::Control("this is not the inside of a lab"))?;
    let options: LabOptions =
        serde_json::from_str(options).map_err(io::Error::from).doing(|| "read the options".into())?;
    let mut voice = Voice::new(out, io::stderr().is_terminal());
    voice.say(&options.to_string());
    let line = options.store.elsewhere().map(|_| Line::of_stdin()).transpose()?;
    let tell = &mut |step: &str| voice.step(step);
    let lab = Lab::start_by(enclosed, line.as_ref(), options, Path::new("/proc/self/exe"), tell);
    let mut lab = lab.inspect_err(|error| voice.say(error.log().unwrap_or_default()))?;
    if once {
        return demonstrate(&mut lab, voice).map(|()| 0);
    }
    voice.end_step();
    drop(voice);
    let listener = match &line {
        Some(line) => line.listener()?,
        None => io::stdin().as_fd().try_clone_to_owned().doing(|| "take the socket".into())?.into(),
    };
    serve(&mut lab, &listener, out).map(|()| 0)
}

/// The whole show: the drawing, the proofs, the tables.
fn demonstrate(lab: &mut Lab, mut voice: Voice<'_>) -> Result<(), LabError> {
    let mut proofs = lab.prove(&mut |step| voice.step(step))?;
    let last = lab.nodes().len() - 1;
    proofs.extend(lab.prove_unmasqueraded(last, &mut |step| voice.step(step))?);
    voice.end_step();
    let drawing = report::topology(lab)?;
    voice.say(&format!("\n{drawing}\n{}{}", report::matrix(lab, &proofs), report::proofs(&proofs)));
    verdict(lab, &proofs, &mut |text| voice.say(text))?;
    voice.say(
        "\nAll of it held, and all of it is gone now. `flannel lab up` keeps such a network, to look at and to break.",
    );
    Ok(())
}

/// Names what failed, with the log of the nodes it failed on, and makes it an error.
fn verdict(lab: &Lab, proofs: &[Proof], say: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    let failed: Vec<&Proof> = proofs.iter().filter(|proof| proof.outcome.is_err()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    say(&format!("\n{}", report::failures(proofs)));
    for node in lab.nodes() {
        let names: Vec<&str> = node.pods().iter().map(crate::lab::Pod::name).chain([node.place().name()]).collect();
        if failed.iter().any(|proof| names.contains(&proof.from.as_str()) || names.contains(&proof.to.as_str())) {
            say(&format!("the log of flanneld on {} ends with:\n{}", node.place().name(), node.flanneld.log_tail()));
        }
    }
    Err(LabError::Proofs { failed: failed.len(), all: proofs.len() })
}

/// Answers callers until one says down. From the first answer on nothing is written to the terminal any more.
fn serve(lab: &mut Lab, listener: &UnixListener, out: &mut dyn Write) -> Result<(), LabError> {
    let _reader_may_be_gone =
        writeln!(out, "the lab is up: try `flannel lab ls`, `exec pod1-1`, `prove`, `break`, `down`");
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null").doing(|| "open /dev/null".into())?;
    let _ = out.flush();
    rustix::stdio::dup2_stdout(&nowhere)
        .and_then(|()| rustix::stdio::dup2_stderr(&nowhere))
        .doing(|| "let go of the terminal".into())?;
    loop {
        let (mut caller, question) = Caller::accept(listener)?;
        if question == Ask::Down {
            return Ok(());
        }
        match reply(lab, &mut caller, &question) {
            Ok(()) => caller.answer(&Answer::Done),
            Err(error) => refuse(&mut caller, &error),
        }
    }
}

fn refuse(caller: &mut Caller, error: &LabError) {
    if let Some(log) = error.log().filter(|log| !log.is_empty()) {
        caller.answer(&Answer::Text(format!("the log of flanneld ends with:\n{log}")));
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    caller.answer(&Answer::Failed(format!("{error}{cause}"), error.hint().map(str::to_owned)));
}

fn reply(lab: &mut Lab, caller: &mut Caller, question: &Ask) -> Result<(), LabError> {
    match question {
        Ask::Hello | Ask::Down => Ok(()),
        Ask::Topology => write!(caller, "{}", report::topology(lab)?).doing(|| "answer".into()),
        Ask::Picture => write!(caller, "{}", Picture::of(lab)?).doing(|| "answer".into()),
        Ask::Prove => {
            let mut voice = Voice::new(caller, false);
            let proofs = lab.prove(&mut |_| ())?;
            voice.say(&format!("{}{}", report::matrix(lab, &proofs), report::proofs(&proofs)));
            verdict(lab, &proofs, &mut |text| voice.say(text))
        }
        Ask::Namespaces(name) => match lab.place(name).and_then(crate::place::Place::for_outsiders) {
            Ok(descriptors) => caller.hand_out(&descriptors).doing(|| format!("hand out the namespaces of {name}")),
            Err(error) => caller.hand_out(&[]).doing(|| "answer".into()).and(Err(error)),
        },
        Ask::Break(what) => crate::repair::show(lab, what, caller),
        Ask::Swap(order) => crate::swap::show(lab, order, caller),
        Ask::Walk(asked) => {
            let walked = serde_json::to_string(&lab.walk(asked)?).map_err(io::Error::from);
            walked.and_then(|text| caller.write_all(text.as_bytes())).doing(|| "answer".into())
        }
    }
}
