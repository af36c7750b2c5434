//! The plugins as one small program, by the name it is started under. Tests and benchmarks run it; the shipped executable is
//! another.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use flannel_cni::Applet;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(applet) = Applet::by_name(name) else { return ExitCode::from(2) };
    let reply = flannel_cni::run(applet, std::env::vars_os(), &mut std::io::stdin().lock());
    let written = std::io::stdout().write_all(&reply.stdout);
    let told = std::io::stderr().write_all(reply.stderr.as_bytes());
    reply.afterwards.do_apart();
    if written.and(told).is_err() { ExitCode::from(1) } else { ExitCode::from(reply.status) }
}
