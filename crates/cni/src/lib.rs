//! The CNI plugins: one small, synchronous program a call, as the CNI specification 1.1.0 wants it.
//!
//! [`run`] is the whole surface: it takes an applet, the environment and standard input, and gives back what the binary
//! is to print and the status to exit with. Nothing here prints, exits, logs or starts a runtime. The rooms: [`protocol`]
//! (what every plugin shares), [`flannel`], [`bridge`], [`host_local`], [`portmap`], [`loopback`] (one plugin each) and [`delegate`]
//! (how a plugin calls another).

mod afterwards;
pub mod bridge;
pub mod delegate;
pub mod flannel;
pub mod host_local;
#[cfg(any(test, feature = "laws"))]
pub mod laws;
pub mod loopback;
mod netns;
pub mod portmap;
pub mod protocol;

use std::io::Read;
use std::os::fd::AsFd;

use flannel_kernel::pod_link::Retired;

pub use afterwards::Afterwards;
use protocol::conf::NetConf;
use protocol::environment::{Environment, Verb};
use protocol::failure::Failure;
use protocol::input::Input;
use protocol::result::CniResult;
use protocol::version::Version;

/// A plugin of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applet {
    /// Builds the delegate's configuration from `subnet.env` and calls it.
    Flannel,
    /// Connects a container to a Linux bridge.
    Bridge,
    /// Hands out addresses from ranges, remembered in files.
    HostLocal,
    /// Publishes ports of a container on the node.
    Portmap,
    /// Brings up `lo`.
    Loopback,
}

impl Applet {
    /// Every plugin.
    pub const ALL: [Self; 5] = [Self::Flannel, Self::Bridge, Self::HostLocal, Self::Portmap, Self::Loopback];

    /// The plugin's name: the file name in `CNI_PATH`, and `type` in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Portmap => "portmap",
            Self::Loopback => "loopback",
        }
    }

    /// The plugin of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|applet| applet.name() == name)
    }
}

/// What the process is to do when the plugin is done.
#[derive(Debug, Default)]
pub struct Reply {
    /// For standard output: a result, an error or nothing.
    pub stdout: Vec<u8>,
    /// For standard error: only for a person who starts a plugin by hand.
    pub stderr: String,
    /// The exit status: 0, or 1 after an error.
    pub status: u8,
    /// What a DEL leaves to be done when all of this is said.
    pub afterwards: Afterwards,
}

/// What a plugin has done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The result; only ADD has one.
    pub(crate) result: Option<CniResult>,
    /// What a DEL leaves to be done.
    pub(crate) afterwards: Afterwards,
}

impl From<CniResult> for Outcome {
    fn from(result: CniResult) -> Self {
        Self { result: Some(result), ..Self::default() }
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Afterwards> for Outcome {
    fn from(afterwards: Afterwards) -> Self {
        Self { afterwards, ..Self::default() }
    }
}

impl From<Retired> for Outcome {
    fn from(retired: Retired) -> Self {
        Afterwards::from(retired).into()
    }
}

/// Runs one call of a plugin. `env` is the process's whole environment; executed delegates inherit it.
pub fn run(applet: Applet, env: impl IntoIterator<Item = Variable>, stdin: &mut (impl Read + AsFd)) -> Reply {
    let env = Environment::new(env);
    let mut version = None;
    match answer(applet, &env, stdin, &mut version) {
        Ok((stdout, afterwards)) => Reply { stdout, afterwards, ..Reply::default() },
        Err(Refusal::NoCommand) => about(applet),
        Err(Refusal::Failed(failure)) => {
            Reply { stdout: failure.render(version.unwrap_or(Version::LATEST)), status: 1, ..Reply::default() }
        }
    }
}

/// A variable of the environment: name and value.
pub type Variable = (std::ffi::OsString, std::ffi::OsString);

enum Refusal {
    NoCommand,
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn about(applet: Applet) -> Reply {
    let stderr = format!(
        "CNI plugin {}: a container runtime calls it with CNI_COMMAND set and a network configuration on standard input\n\
         CNI protocol versions supported: {}\n",
        applet.name(),
        Version::ALL.map(Version::as_str).join(", ")
    );
    Reply { stderr, ..Reply::default() }
}

/// Reads the call, runs it, and renders the result, with what is left to do; leaves the configuration's version in `spoken`
/// once it is known.
fn answer(
    applet: Applet,
    env: &Environment,
    stdin: &mut (impl Read + AsFd),
    spoken: &mut Option<Version>,
) -> Result<(Vec<u8>, Afterwards), Refusal> {
    let verb = env.verb()?.ok_or(Refusal::NoCommand)?;
    if verb == Verb::Version {
        return Ok((Version::listing(), Afterwards::default()));
    }
    let call = env.call(verb)?;
    let conf = NetConf::read(&mut Input::new(stdin, env.time_limit()?))?;
    *spoken = Some(conf.version);
    conf.version.allows(verb)?;
    let Outcome { result, afterwards } = call_in_process(applet, &call, &conf)?;
    Ok((result.map(|result| result.render(conf.version)).unwrap_or_default(), afterwards))
}

/// Reads all that a plugin reads of a call and its configuration, and does nothing.
pub(crate) fn check_in_process(
    applet: Applet,
    call: &protocol::environment::Call<'_>,
    conf: &NetConf,
) -> Result<(), Failure> {
    match applet {
        Applet::Flannel => flannel::read(conf),
        Applet::Bridge => bridge::read(call, conf),
        Applet::HostLocal => host_local::read(call, conf),
        Applet::Portmap => portmap::read(conf),
        Applet::Loopback => loopback::read(conf),
    }
}

/// Runs one verb of a plugin in this process.
pub(crate) fn call_in_process(
    applet: Applet,
    call: &protocol::environment::Call<'_>,
    conf: &NetConf,
) -> Result<Outcome, Failure> {
    match applet {
        Applet::Flannel => flannel::call(call, conf),
        Applet::Bridge => bridge::call(call, conf),
        Applet::HostLocal => host_local::call(call, conf),
        Applet::Portmap => portmap::call(call, conf),
        Applet::Loopback => loopback::call(call, conf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_who_starts_a_plugin_is_told_what_it_is() {
        for applet in Applet::ALL {
            let reply = run(applet, [], &mut std::fs::File::open("/dev/null").unwrap());
            assert!(reply.status == 0 && reply.stdout.is_empty());
            let expect = format!("CNI plugin {}: a container runtime calls it", applet.name());
            assert!(reply.stderr.starts_with(&expect), "{}", reply.stderr);
        }
    }
}
