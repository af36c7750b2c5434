//! `flannel-bench`: runs benches, each in fresh namespaces, and prints their tables. `cargo xtask bench` builds all that it
//! needs and calls it.
//!
//! Exit code 1 when a bench could not run; a target that is missed is no failure.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Parser, Subcommand};
use flannel_bench::benches::{Bench, Part, Setting};
use flannel_bench::document::Document;
use flannel_bench::machine::Machine;
use flannel_bench::report::Report;
use flannel_kernel::process::{Enclosed, Lifetime, enclose};

/// Measure flannel beside what it is compared with.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// The benches to run; all if none is named.
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the tables into a document, between the marks `<!-- bench NAME -->` and `<!-- end of bench -->`.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only show that the benches run: few rounds, small sizes, figures of no worth.
    #[arg(long)]
    quick: bool,
    /// The flannel executable.
    #[arg(long, value_name = "FILE", default_value = "flannel")]
    flannel: PathBuf,
    /// The program cni-floor.
    #[arg(long, value_name = "FILE", default_value = "cni-floor")]
    floor: PathBuf,
    /// The folder of the Go plugins.
    #[arg(long, value_name = "DIR")]
    go: Option<PathBuf>,
    /// A folder of other plugins, several times if there are more.
    #[arg(long, value_name = "DIR")]
    cni: Vec<PathBuf>,
    /// Another flanneld, several times if there are more.
    #[arg(long, value_name = "FILE")]
    flanneld: Vec<PathBuf>,
    /// The date to be noted.
    #[arg(long, default_value = "")]
    date: String,
    /// The commit to be noted.
    #[arg(long, default_value = "")]
    commit: String,
    /// The command to be noted.
    #[arg(long, default_value = "flannel-bench")]
    command: String,
    #[command(subcommand)]
    inside: Option<Inside>,
}

#[derive(Debug, Subcommand)]
enum Inside {
    /// One part of a bench, inside its namespaces.
    #[command(hide = true)]
    Inside { bench: Bench, setting: String, part: String },
}

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.inside {
        Some(Inside::Inside { bench, setting, part }) => inside(*bench, setting, part),
        None => outside(&args),
    };
    done.map_or_else(
        |error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn outside(args: &Args) -> Result<()> {
    let setting = setting(args)?;
    let benches = if args.benches.is_empty() { Bench::ALL } else { &args.benches };
    let mut document = Document {
        machine: Machine::here(),
        date: args.date.clone(),
        commit: args.commit.clone(),
        command: args.command.clone(),
        benches: Vec::new(),
    };
    let mut failures = Vec::new();
    for bench in benches {
        eprintln!("bench {}", bench.name());
        match run(*bench, &setting) {
            Ok(report) => document.benches.push(report),
            Err(error) => failures.push(format!("bench {}: {error:#}", bench.name())),
        }
    }
    println!("{}", document.text());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&document)?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.markdown {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let unmarked = |name| anyhow!("{} has no marks for the bench {name}", path.display());
        fs::write(path, document.written_into(&text).map_err(unmarked)?)?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn setting(args: &Args) -> Result<Setting> {
    let absolute = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    Ok(Setting {
        flannel: absolute(&args.flannel)?,
        floor: absolute(&args.floor)?,
        go: args.go.as_ref().map(absolute).transpose()?,
        cni: args.cni.iter().map(absolute).collect::<Result<_>>()?,
        flanneld: args.flanneld.iter().map(absolute).collect::<Result<_>>()?,
        quick: args.quick,
    })
}

/// Runs all parts of a bench and puts their reports together. Another daemon may not be able to run; ours must be.
fn run(bench: Bench, setting: &Setting) -> Result<Report> {
    let mut whole: Option<Report> = None;
    for group in bench.parts(setting) {
        let children: Vec<Child> = group.iter().map(|part| start(bench, setting, part)).collect::<Result<_>>()?;
        for (part, child) in group.iter().zip(children) {
            let report = report(child).or_else(|error| match (&part.flanneld, &whole) {
                (Some(_), Some(whole)) => Ok(whole.without(&part.column)),
                _ => Err(error),
            })?;
            whole = Some(match whole {
                Some(whole) => whole.with(report),
                None => report,
            });
        }
    }
    whole.context("it has no parts")
}

/// What a part has told; why it could not be run it has said itself.
fn report(child: Child) -> Result<Report> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "it could not run ({})", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Starts this program again, enclosed, to report on one part.
fn start(bench: Bench, setting: &Setting, part: &Part) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["inside", bench.name(), &serde_json::to_string(setting)?, &serde_json::to_string(part)?]);
    command.env_remove("CNI_COMMAND").stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(enclose(command, Lifetime::Caller)?)
}

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn inside(bench: Bench, setting: &str, part: &str) -> Result<()> {
    let enclosed = Enclosed::here().context("this is not the inside of a bench")?;
    let (setting, part) = (serde_json::from_str(setting)?, serde_json::from_str(part)?);
    let report = bench.run(enclosed, &setting, &part, &|what| eprintln!("  {what}"))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
