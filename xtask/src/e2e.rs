//! `cargo e2e`: real clusters on this machine, with our image and our manifests; what is walked is in `crates/cluster/src/bin/e2e`.

use anyhow::{Result, ensure};

use crate::run::{cargo, is_root, program, root, run, say, succeeds};
use crate::{binary, go_etcd, go_kube, image, packages};

/// How long the API server is away, in seconds: as long as whoever operates one takes, and what `cargo verify` has time for.
const AWAY: &str = "60";
const AWAY_BRIEFLY: &str = "10";

/// The walks named, or all, with an API server that is away for a minute.
pub(crate) fn e2e(walks: &[&str]) -> Result<()> {
    say(
        "e2e: builds the image and, the first time, Kubernetes (minutes), installs what is missing, makes clusters in namespaces",
    );
    packages::install()?;
    go_kube::build()?;
    go_etcd::build()?;
    walk(AWAY, walks)
}

/// All walks, the API server away for less. They are left out where nobody may make nodes, which is said; but not in CI.
pub(crate) fn briefly() -> Result<()> {
    if is_root() || succeeds("sudo", &["--non-interactive", "true"]) {
        return walk(AWAY_BRIEFLY, &[]);
    }
    let obstacle = "nodes with control groups are for root to make, and sudo asks for a password";
    ensure!(std::env::var_os("CI").is_none(), "no cluster: {obstacle}");
    say(&format!("  not tested: a real cluster with our image and manifests, as {obstacle}"));
    Ok(())
}

fn walk(away: &str, walks: &[&str]) -> Result<()> {
    let image = image::native()?;
    run(&mut cargo(&["build", "--locked", "--quiet", "--package", "flannel-cluster", "--bin", "e2e"]))?;
    let paths = [binary::target_folder()?.join("debug/e2e"), image, root().join("deploy")];
    let paths = paths.map(|path| path.display().to_string());
    let sudo = if is_root() { &[][..] } else { &["sudo", "--preserve-env"] };
    let words = [sudo, &paths.each_ref().map(String::as_str), &[away], walks].concat();
    run(&mut program(words[0], &words[1..]))
}
