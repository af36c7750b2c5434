//! One call of a plugin, as a runtime makes it: executed with the environment and the conf on standard input, its result read.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_kernel::process::wait_with_usage;

use super::contender::Contender;
use super::stand::{Pod, Stand};
use crate::floor::Parts;

/// What a call has cost.
#[derive(Debug)]
pub struct Cost {
    /// From before the start to the end of the process.
    pub wall: Duration,
    /// User and system time of the process and those that it waited for.
    pub cpu: Duration,
    /// Of the floor: its parts in nanoseconds.
    pub parts: Parts,
}

/// Makes the call.
pub fn call(contender: &Contender, verb: &str, stand: &Stand, pod: &Pod) -> Result<Cost> {
    let (mut command, conf) = contender.call(verb, stand, pod);
    let failed = || format!("{verb} of {} by {}", pod.name, contender.name);
    command.stdin(ready(&conf).with_context(failed)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let result = read(stdout).with_context(failed)?;
    let usage = wait_with_usage(child).with_context(failed)?;
    let wall = begun.elapsed();
    let said = || format!("{}: {} {}", failed(), result.trim(), read(stderr).unwrap_or_default().trim());
    ensure!(usage.status.success(), "{}", said());
    Ok(Cost { wall, cpu: usage.cpu, parts: serde_json::from_str(&result).unwrap_or_default() })
}

/// The largest memory of a process of the call, in bytes, measured by the floor's program.
pub fn peak(floor: &std::path::Path, contender: &Contender, verb: &str, stand: &Stand, pod: &Pod) -> Result<u64> {
    let (plugin, conf) = contender.call(verb, stand, pod);
    let mut command = Command::new(floor);
    command.arg("under").arg(plugin.get_program()).env_clear();
    command.envs(plugin.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.stdin(ready(&conf)?).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{verb}: {}", String::from_utf8_lossy(&output.stderr)))
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
