//! `flannel etcd`: for people who look after flannel's keys in etcd.
//!
//! What is checked, decided and written is [`Operator`]'s and [`EtcdStore`]'s; here are the command line, the words for people
//! ([`table`], [`config`]) and for programs ([`json`]). How to reach etcd is said as to `flanneld`, by the same flags and variables.

mod config;
mod json;
mod table;
mod watch;
mod words;

use std::ffi::OsString;
use std::io::{self, Read as _, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use flannel_core::lease::LeaseKey;
use flannel_daemon::flags::{self, StoreKind};
use flannel_daemon::log;
use flannel_store::Host;
#[cfg(doc)]
use flannel_store::etcd::EtcdStore;
use flannel_store::etcd::Options;
use flannel_store::etcd::operator::{Keeping, Listed, Operator, OperatorError};

use self::words::{Addresses, Subnets};
use crate::report;

/// Look after flannel's records and network config in etcd.
#[derive(Debug, Parser)]
#[command(name = "flannel etcd", bin_name = "flannel etcd", disable_version_flag = true)]
#[command(after_help = flags::usage_of(StoreKind::Etcd))]
struct Call {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the records: subnet, public IP, backend, how long it lasts, and which host wrote it.
    Ls {
        /// `wide` shows more, `json` all.
        #[arg(short, long, value_enum, value_name = "FORM")]
        output: Option<Form>,
    },
    /// Show all there is of the records that a word means, or the network config.
    Show {
        /// A subnet, an address of a host or of a pod, a host's name, a record's name; or `config`.
        what: String,
        /// `json`: as JSON.
        #[arg(short, long, value_enum, value_name = "FORM")]
        output: Option<Json>,
    },
    /// Keep a subnet for a host, for ever: a lease of that host becomes the reservation.
    Reserve {
        /// The subnet; of a network with both families both, separated by a comma.
        #[arg(value_parser = words::subnets)]
        subnet: Subnets,
        /// The address by which other nodes reach the host, of each family of the subnet.
        #[arg(value_parser = words::addresses)]
        public_ip: Addresses,
    },
    /// Delete a record, so that any host may have its subnet.
    Release {
        /// A subnet, or a record's name.
        subnet: String,
        /// Delete it also if it is the lease of another host that may be alive.
        #[arg(long)]
        force: bool,
    },
    /// Check a network config as flanneld does, and write it.
    SetConfig {
        /// The file; `-` is standard input.
        file: PathBuf,
        /// Write it also if hosts cannot keep their subnets then.
        #[arg(long)]
        force: bool,
    },
    /// Tell each change of the records and the network config, until it is interrupted.
    Watch {
        /// `json`: an object a line.
        #[arg(short, long, value_enum, value_name = "FORM")]
        output: Option<Json>,
    },
}

/// A form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Wide,
    Json,
}

/// The one form beside text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Json {
    Json,
}

/// Why the tool failed.
#[derive(Debug, thiserror::Error)]
enum EtcdError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("no record in etcd is of {0}")]
    Nothing(String),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
    #[error("cannot start")]
    Start(#[source] io::Error),
}

impl EtcdError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Operator(error) => error.hint(),
            Self::Nothing(_) => Some("`flannel etcd ls` lists the records there are".into()),
            Self::Read(..) | Self::Write(_) | Self::Start(_) => None,
        }
    }

    /// Whether it is only that nobody reads on.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs the tool.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let (options, words) = match flags::etcd_options(args.iter().cloned(), std::env::vars_os()) {
        Ok(read) => read,
        Err(error) => {
            report::error(&error, error.hint().as_deref());
            return ExitCode::from(error.exit_code());
        }
    };
    match Call::try_parse_from(std::iter::once("flannel etcd".into()).chain(words)) {
        Ok(Call { verb }) => end(run(verb, options)),
        Err(error) => report::usage(&error),
    }
}

fn end(result: Result<(), EtcdError>) -> ExitCode {
    match result {
        Err(error) if !error.is_broken_pipe() => {
            report::error(&error, error.hint().as_deref());
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn run(verb: Verb, options: Options) -> Result<(), EtcdError> {
    log::open(0).map_err(|error| EtcdError::Start(io::Error::other(error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(EtcdError::Start)?;
    let operator = Operator::new(options.clone());
    let mut out = stdout();
    runtime.block_on(async {
        match verb {
            Verb::Ls { output } => list(&operator, output, &mut out).await,
            Verb::Show { what, output } if what == "config" => show_config(&operator, output, &mut out).await,
            Verb::Show { what, output } => show(&operator, &what, output, &mut out).await,
            Verb::Reserve { subnet, public_ip } => reserve(&operator, &subnet, &public_ip, &mut out).await,
            Verb::Release { subnet, force } => release(&operator, &subnet, force, &mut out).await,
            Verb::SetConfig { file, force } => set_config(&operator, &file, force, &mut out).await,
            Verb::Watch { output } => watch::watch(&operator, options, output.is_some(), &mut out).await,
        }
    })
}

async fn list(operator: &Operator, form: Option<Form>, out: &mut impl Write) -> Result<(), EtcdError> {
    let census = operator.census().await?;
    let text = match form {
        Some(Form::Json) => json::census(&census),
        _ if census.records.is_empty() => format!("no records below {}\n", operator.records_prefix()),
        form => table::records(&census.records, form.is_some()),
    };
    Ok(out.write_all(text.as_bytes())?)
}

async fn show(operator: &Operator, what: &str, form: Option<Json>, out: &mut impl Write) -> Result<(), EtcdError> {
    let mut census = operator.census().await?;
    census.records.retain(|listed| words::means(what, listed));
    if census.records.is_empty() {
        return Err(EtcdError::Nothing(what.to_owned()));
    }
    let text = if form.is_some() { json::census(&census) } else { table::details(&census.records) };
    Ok(out.write_all(text.as_bytes())?)
}

async fn show_config(operator: &Operator, form: Option<Json>, out: &mut impl Write) -> Result<(), EtcdError> {
    let key = operator.config_key();
    let Some(found) = operator.config().await? else { return Err(OperatorError::NoConfig { key }.into()) };
    let text = if form.is_some() { json::config(&key, &found) } else { config::details(&key, &found) };
    out.write_all(text.as_bytes())?;
    found.read.map(drop).map_err(|cause| OperatorError::BadConfig { key, cause }.into())
}

async fn reserve(
    operator: &Operator,
    subnet: &Subnets,
    public_ip: &Addresses,
    out: &mut impl Write,
) -> Result<(), EtcdError> {
    let (name, before) = operator.reserve(&subnet.0, &public_ip.0).await?;
    let host = words::list(&public_ip.0);
    let was_reserved = |listed: &Listed| listed.keeping == Keeping::Reserved;
    match before {
        Some(listed) if was_reserved(&listed) && listed.record.lease.is_ok() => {
            writeln!(out, "{name} is reserved for {host} already")?;
        }
        Some(_) => writeln!(out, "reserved {name} for {host}, which holds it: its lease ends no more")?,
        None => writeln!(out, "reserved {name} for {host}: flanneld on that host takes it when it starts")?,
    }
    Ok(())
}

async fn release(operator: &Operator, what: &str, force: bool, out: &mut impl Write) -> Result<(), EtcdError> {
    let census = operator.census().await?;
    let found = census.records.iter().find(|listed| words::names(what, listed));
    let name = found.map_or_else(|| LeaseKey::new(what), |listed| listed.record.key.clone());
    let released = operator.release(&name, &Host::here(), force).await?;
    let (name, owner) = (report::plain(name.as_str()), report::plain(&released.owner()));
    writeln!(out, "released {name} of {owner}, {}", released.keeping)?;
    if released.record.lease.is_ok() {
        writeln!(out, "flanneld on that host, if it runs, takes it again at once, as a lease of 24 hours")?;
    }
    Ok(())
}

async fn set_config(operator: &Operator, file: &Path, force: bool, out: &mut impl Write) -> Result<(), EtcdError> {
    let text = read(file).map_err(|error| EtcdError::Read(file.into(), error))?;
    let change = operator.set_config(&text, force).await?;
    Ok(out.write_all(config::change(&operator.config_key(), &change).as_bytes())?)
}

fn read(file: &Path) -> io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}
