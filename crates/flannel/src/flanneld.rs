//! `flanneld`, from the command line to the exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use flannel_daemon::flags::{self, Command, FlagError, Flags};
use flannel_daemon::{log, run};

use crate::report;

/// Runs the daemon until a signal ends it.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    match flags::parse(args.iter().cloned(), std::env::vars_os()) {
        Ok(Command::Run(flags)) => serve(&flags),
        Ok(Command::Help) => {
            report::text(&flags::usage());
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            report::text(concat!("v", env!("CARGO_PKG_VERSION"), "\n"));
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &FlagError) -> ExitCode {
    report::error(error, error.hint().as_deref());
    if error.wants_usage() {
        report::text(&flags::usage());
    }
    ExitCode::from(error.exit_code())
}

fn serve(flags: &Flags) -> ExitCode {
    if let Err(error) = log::start(flags) {
        report::error(&error, None);
        return ExitCode::FAILURE;
    }
    match run(flags, std::env::var_os("NOTIFY_SOCKET")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            report::error(&fatal, fatal.hint.as_deref());
            ExitCode::from(fatal.code)
        }
    }
}
