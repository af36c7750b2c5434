//! One call of a plugin, as a runtime makes it: executed with the environment and the conf on standard input, its result read.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_core::rules::RuleMode;
use flannel_kernel::process::wait_with_usage;
use serde_json::Value;

use super::contender::{Contender, Wish};
use super::stand::{Pod, Stand};
use crate::floor::Parts;

/// What calls have cost.
#[derive(Debug)]
pub struct Cost {
    /// From before the start to the end of each process.
    pub wall: Duration,
    /// User and system time of the processes and those that they waited for.
    pub cpu: Duration,
    /// What was returned last; null if nothing.
    pub result: Value,
}

impl Cost {
    /// Of the floor: its parts in nanoseconds.
    pub fn parts(&self) -> Parts {
        serde_json::from_value(self.result.clone()).unwrap_or_default()
    }

    fn and(self, next: Self) -> Self {
        Self { wall: self.wall + next.wall, cpu: self.cpu + next.cpu, result: next.result }
    }
}

/// Connects a pod as a runtime wants it: one plugin after the other.
pub fn add(contender: &Contender, wish: Wish, stand: &Stand, pod: &Pod) -> Result<Cost> {
    let linked = call(contender, "ADD", stand, pod)?;
    let Wish::Ports(mode) = wish else { return Ok(linked) };
    let published = publish(contender, "ADD", mode, pod, &linked.result)?;
    Ok(linked.and(published))
}

/// Disconnects a pod, the other way round. The plugins are told what the last one had returned.
pub fn del(contender: &Contender, wish: Wish, stand: &Stand, pod: &Pod, result: &Value) -> Result<Cost> {
    let Wish::Ports(mode) = wish else { return call(contender, "DEL", stand, pod) };
    let withdrawn = publish(contender, "DEL", mode, pod, result)?;
    Ok(withdrawn.and(call(contender, "DEL", stand, pod)?))
}

/// Calls the plugin for a pod's interface.
pub fn call(contender: &Contender, verb: &str, stand: &Stand, pod: &Pod) -> Result<Cost> {
    let (command, conf) = contender.call(verb, stand, pod);
    run(command, &conf).with_context(|| format!("{verb} of {} by {}", pod.name, contender.name))
}

/// Calls the plugin for a pod's ports.
pub fn publish(contender: &Contender, verb: &str, mode: RuleMode, pod: &Pod, result: &Value) -> Result<Cost> {
    let (command, conf) = contender.publish(verb, mode, pod, result);
    run(command, &conf).with_context(|| format!("{verb} of the ports of {} by {}", pod.name, contender.name))
}

fn run(mut command: Command, conf: &str) -> Result<Cost> {
    command.stdin(ready(conf)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| command.get_program().display().to_string())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let result = read(stdout)?;
    let usage = wait_with_usage(child)?;
    let wall = begun.elapsed();
    ensure!(usage.status.success(), "{} {}", result.trim(), read(stderr).unwrap_or_default().trim());
    Ok(Cost { wall, cpu: usage.cpu, result: serde_json::from_str(&result).unwrap_or_default() })
}

/// The largest memory of a process of a call, in bytes, measured by the floor's program, and what the call has returned.
pub fn peak(floor: &Path, (plugin, conf): (Command, String)) -> Result<(u64, Value)> {
    let mut command = Command::new(floor);
    command.arg("under").arg(plugin.get_program()).env_clear();
    command.envs(plugin.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.stdin(ready(&conf)?).output()?;
    let said = || format!("{}: {}", plugin.get_program().display(), String::from_utf8_lossy(&output.stderr));
    let (peak, result) = std::str::from_utf8(&output.stdout)?.split_once('\n').with_context(said)?;
    Ok((peak.parse().with_context(said)?, serde_json::from_str(result).unwrap_or_default()))
}

/// A pipe that holds the conf and its end already (a pipe takes 64 KiB without a reader).
fn ready(conf: &str) -> io::Result<Stdio> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(conf.as_bytes())?;
    Ok(reader.into())
}

fn read(from: Option<impl Read>) -> io::Result<String> {
    let mut text = String::new();
    from.map_or(Ok(0), |mut from| from.read_to_string(&mut text))?;
    Ok(text)
}
