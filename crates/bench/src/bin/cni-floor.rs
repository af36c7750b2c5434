//! `cni-floor`: the floor of CNI as a program, called as a plugin is ([`flannel_bench::floor`] says what it does).
//!
//! `cni-floor under PROGRAM` runs a program from a process smaller than most and prints the largest memory it had, and below that what
//! the program printed.

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use flannel_bench::floor::{ORDER, order};
use flannel_kernel::process::wait_with_usage;

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [under, program] if under == "under" => measure(program),
        _ => connect(),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cni-floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn connect() -> Result<String> {
    let verb = std::env::var("CNI_COMMAND").context("CNI_COMMAND")?;
    if verb == "VERSION" {
        return Ok(String::new());
    }
    let order = order(std::env::var_os(ORDER))?;
    let parts = match verb.as_str() {
        "ADD" => order.add()?,
        "DEL" => order.del()?,
        _ => bail!("CNI_COMMAND={verb}"),
    };
    Ok(serde_json::to_string(&parts)?)
}

/// The program's peak in bytes, and its output.
fn measure(program: &str) -> Result<String> {
    let mut child = Command::new(program).stdout(Stdio::piped()).spawn().context(program.to_owned())?;
    let mut printed = String::new();
    child.stdout.take().context("no pipe")?.read_to_string(&mut printed)?;
    let usage = wait_with_usage(child)?;
    ensure!(usage.status.success(), "{program} ended with {}: {printed}", usage.status);
    Ok(format!("{}\n{printed}", usage.peak))
}
