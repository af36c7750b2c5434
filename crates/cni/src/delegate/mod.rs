//! How a plugin calls another: found by its type in `CNI_PATH`, run in this process if it is this very program, else executed.
//!
//! Surface: [`run`], [`run_ipam`], and [`check`] and [`check_ipam`], which only look whether that could begin. Executed programs get
//! the environment, the configuration on standard input and no shell. A program is "this very one" by device and inode, links resolved,
//! or as a copy of the same build, so that what lies in `CNI_PATH` decides and never a name alone.

mod program;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::protocol::conf::NetConf;
use crate::protocol::environment::{Call, DEPTH, TIME_LIMIT, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::key::{WrongKey, shown};
use crate::protocol::result::CniResult;
use crate::{Applet, Outcome};

use program::Output;

/// How many plugins may call each other in a row. Those of an honest configuration are three.
const DEEPEST: u8 = 8;

/// Runs the call's verb with a plugin that connects containers.
pub(crate) fn run(kind: &str, call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    run_target(find_delegate(kind, call)?, call, conf)
}

/// Runs the call's verb with a plugin that manages addresses. Only ADD has a result.
pub(crate) fn run_ipam(kind: &str, call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    run_target(find_ipam(kind, call)?, call, conf)
}

fn run_target(target: Target, call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    match target {
        Target::InProcess(applet) => crate::call_in_process(applet, call, conf),
        Target::Program(program) => Ok(Outcome { result: execute(&program, call, conf)?, ..Outcome::default() }),
    }
}

/// Looks for a plugin that connects containers, and has it read the configuration if it is one of ours.
pub(crate) fn check(kind: &str, call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    check_target(&find_delegate(kind, call)?, call, conf)
}

/// The same for a plugin that manages addresses.
pub(crate) fn check_ipam(kind: &str, call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    check_target(&find_ipam(kind, call)?, call, conf)
}

fn check_target(target: &Target, call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    match target {
        Target::InProcess(applet) => crate::check_in_process(*applet, call, conf),
        Target::Program(_) => Ok(()),
    }
}

/// The plugin of a type, which is not flannel, whoever's: it would delegate in turn.
fn find_delegate(kind: &str, call: &Call<'_>) -> Result<Target, DelegateError> {
    if kind == Applet::Flannel.name() { Err(DelegateError::Circle(kind.into())) } else { find(kind, &call.path) }
}

/// The plugin of a type, which is none of those that manage no addresses, whoever's: `bridge` would call itself without end.
fn find_ipam(kind: &str, call: &Call<'_>) -> Result<Target, DelegateError> {
    match Applet::by_name(kind) {
        None | Some(Applet::HostLocal) => find(kind, &call.path),
        Some(_) => Err(DelegateError::NotIpam(kind.into())),
    }
}

enum Target {
    InProcess(Applet),
    Program(PathBuf),
}

/// The first regular file of that name in the folders.
fn find(kind: &str, path: &[PathBuf]) -> Result<Target, DelegateError> {
    if kind.is_empty() || kind.contains('/') || matches!(kind, "." | "..") || kind.contains('\0') {
        return Err(DelegateError::BadType(shown(kind)));
    }
    let programs = path.iter().map(|dir| dir.join(kind));
    let found = programs.filter_map(|program| Some((fs::metadata(&program).ok()?, program)));
    let Some((status, program)) = found.into_iter().find(|(status, _)| status.is_file()) else {
        let path = path.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
        return Err(DelegateError::NotFound { kind: shown(kind), path });
    };
    if !is_this_program(&program, &status) {
        return Ok(Target::Program(program));
    }
    Applet::by_name(kind).map(Target::InProcess).ok_or(DelegateError::NoApplet(program))
}

fn is_this_program(program: &Path, status: &fs::Metadata) -> bool {
    let own_path = Path::new("/proc/self/exe");
    let Ok(own) = fs::metadata(own_path) else { return false };
    let is_same_file = (own.dev(), own.ino()) == (status.dev(), status.ino());
    let is_copy =
        || own.len() == status.len() && beginning(own_path).is_ok_and(|own| beginning(program).ok() == Some(own));
    is_same_file || is_copy()
}

/// The beginning of a program, with its build ID: the linker's digest of all that follows.
fn beginning(program: &Path) -> io::Result<[u8; 4096]> {
    let mut bytes = [0; 4096];
    File::open(program)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Has another program do the verb. It may call plugins in turn, this one too, but not without end.
fn execute(program: &Path, call: &Call<'_>, conf: &NetConf) -> Result<Option<CniResult>, Failure> {
    let env = call.environment;
    let depth = env.depth();
    if depth >= DEEPEST {
        return Err(DelegateError::Depth(program.into()).into());
    }
    let inherited = env.variables().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = [("CNI_COMMAND", call.verb.as_str().to_owned()), (DEPTH, (depth + 1).to_string())];
    let variables = inherited.chain(own.map(|(name, value)| (name.into(), value.into())));
    let output = program::run(program, variables, &conf.to_bytes(), env.time_limit()?);
    let output = output.map_err(|cause| DelegateError::Exec { program: program.into(), cause })?;
    if !output.status.success() {
        return Err(failure(program, &output));
    }
    if call.verb != Verb::Add {
        return Ok(None);
    }
    let bad = |cause| DelegateError::BadResult { program: program.into(), cause };
    Ok(Some(CniResult::parse(&output.stdout).map_err(bad)?))
}

/// The error that the program has printed, else what it said and how it ended.
fn failure(program: &Path, output: &Output) -> Failure {
    Failure::parse(&output.stdout).unwrap_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        DelegateError::NoError { program: program.into(), status: output.status, said: said.trim().into() }.into()
    })
}

/// A plugin cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// The type could not be a file name.
    #[error("{0:?} is not a plugin type")]
    BadType(String),
    /// No such file.
    #[error("failed to find plugin {kind:?} in path {path:?}")]
    NotFound {
        /// The type.
        kind: String,
        /// Where it was looked for.
        path: String,
    },
    /// A link to this program by a name that it does not go by.
    #[error("{} is a link to this program, which is no plugin of that name", .0.display())]
    NoApplet(PathBuf),
    /// A plugin would call itself.
    #[error("plugin {0:?} cannot be the delegate of flannel: it would call itself")]
    Circle(String),
    /// Another kind of plugin.
    #[error("plugin {0:?} does not manage addresses")]
    NotIpam(String),
    /// Plugins call each other without end.
    #[error("plugin {} was called by a plugin that a plugin called, {DEEPEST} times over", .0.display())]
    Depth(PathBuf),
    /// It could not be run to its end.
    #[error("cannot execute plugin {}: {cause}", program.display())]
    Exec {
        /// The file.
        program: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// What it printed is no result.
    #[error("plugin {} printed no CNI result: {cause}", program.display())]
    BadResult {
        /// The file.
        program: PathBuf,
        /// Why.
        cause: WrongKey,
    },
    /// It failed and printed no error.
    #[error("plugin {} failed ({status}) with no error message, on standard error: {said:?}", program.display())]
    NoError {
        /// The file.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its standard error.
        said: String,
    },
}

impl Explain for DelegateError {
    fn code(&self) -> u32 {
        match self {
            Self::BadType(_) | Self::Circle(_) | Self::NotIpam(_) | Self::Depth(_) => code::CONF,
            Self::BadResult { .. } => code::DECODING,
            _ => code::OTHER,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::NotFound { path, .. } if path.is_empty() => {
                "the container runtime sets CNI_PATH to the folders of plugins, as /opt/cni/bin".into()
            }
            Self::NotFound { kind, path } => format!("install the plugin {kind} in one of {path}"),
            Self::NoApplet(program) => format!("replace {} by the plugin of that name", program.display()),
            Self::BadType(_) | Self::Circle(_) | Self::NotIpam(_) | Self::Depth(_) => {
                "correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d".into()
            }
            Self::Exec { program, cause } if cause.kind() == ErrorKind::TimedOut => {
                format!(
                    "see what {} waits for; {TIME_LIMIT} in the runtime's environment sets the limit",
                    program.display()
                )
            }
            Self::Exec { program, .. } | Self::BadResult { program, .. } | Self::NoError { program, .. } => {
                format!("check that {} is a CNI plugin for this machine", program.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_lead_elsewhere_are_refused() {
        for kind in ["", ".", "..", "../bin/sh", "a/b", "a\0b"] {
            assert!(matches!(find(kind, &["/bin".into()]), Err(DelegateError::BadType(_))), "{kind:?}");
        }
        assert!(matches!(find("no-such-plugin", &["/bin".into()]), Err(DelegateError::NotFound { .. })));
        assert!(matches!(find("sh", &["/nowhere".into(), "/bin".into()]), Ok(Target::Program(_))));
    }

    #[test]
    fn a_link_to_this_program_is_run_here() {
        let dir = std::env::temp_dir().join(format!("delegate-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["bridge", "unknown"] {
            std::os::unix::fs::symlink(std::env::current_exe().unwrap(), dir.join(name)).unwrap();
        }
        let bridge = find("bridge", std::slice::from_ref(&dir));
        let unknown = find("unknown", std::slice::from_ref(&dir));
        fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(bridge, Ok(Target::InProcess(Applet::Bridge))));
        assert!(matches!(unknown, Err(DelegateError::NoApplet(_))));
    }
}
