//! The repository's own commands: `cargo lab`, `cargo verify`, `cargo dist`, `cargo e2e` (aliases in `.cargo/config.toml`), and those
//! that are called `cargo xtask NAME`: `bench` (an alias of that name would be cargo's own command), `tour`, `fuzz`,
//! `image`, `deploy`, `go-plugins`, `go-etcd`, `go-kube`, `order` and `proto`.
//!
//! Each says what it is about to do before it does it, and ends with status 1 and a reason when it cannot. What the
//! project itself does is in the crates; here is only how it is built, checked and packed.

mod bench;
mod binary;
mod deploy;
mod dist;
mod e2e;
mod fuzz;
mod go_etcd;
mod go_kube;
mod go_plugins;
mod house;
mod image;
mod lab;
mod licences;
mod links;
mod ordered;
mod packages;
mod proto;
mod run;
mod spdx;
mod tour;
mod verify;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo lab [ARG]...      build the release binary and run `flannel lab` with it; installs nothing
cargo verify [--quick]  every check and test; --quick leaves out those in namespaces and of the release binary
cargo dist              pack the release binary, with links to its applets, into dist/bin
cargo e2e [WALK...]     real clusters from empty to pods that talk, with our image and manifests: dual-stack, ipv6
cargo xtask bench [NAME...] [--json FILE] [--markdown FILE] [--quick]
                        measure; all benches if none is named, --help lists them. BENCH_CNI_DIR: folders of
                        other plugins to compare with, BENCH_FLANNELD: another daemon
cargo xtask tour [--check]
                        make the outputs in docs/tour.md anew, or fail if they are out of date
cargo xtask fuzz [TARGET...] [--seconds N]
                        random input against the laws of what reads outside input, each target ten minutes unless told
cargo xtask image [amd64] [arm64]
                        pack the container image into dist, an OCI tar for each architecture; all if none is named
cargo xtask deploy      check that the manifest, the kustomization, the Helm chart and the image agree
cargo xtask go-plugins  build the Go plugins that the bench compares with, print their folder
cargo xtask go-etcd     build a current etcd to test on, print its folder
cargo xtask go-kube     build the programs of a Kubernetes cluster and Helm to test on, print their folders
cargo xtask order FILE...
                        print what functions callgrind saw run, for the lists in xtask/src
cargo xtask proto       write the types of etcd's messages anew; needs protoc";

fn main() -> ExitCode {
    if let Some(error) = ordered::link_if_called() {
        run::say(&format!("error: {error:#}"));
        return ExitCode::FAILURE;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["lab", rest @ ..] => lab::lab(rest),
        ["verify"] => verify::verify(verify::Extent::Whole),
        ["verify", "--quick"] => verify::verify(verify::Extent::Quick),
        ["dist"] => dist::dist(),
        ["e2e", walks @ ..] => e2e::e2e(walks),
        ["bench", rest @ ..] => bench::bench(rest),
        ["tour"] => tour::renew(),
        ["tour", "--check"] => tour::check(),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        ["deploy"] => deploy::check(),
        ["image", rest @ ..] => image::image(rest),
        ["go-plugins"] => go_plugins::go_plugins(),
        ["go-etcd"] => go_etcd::go_etcd(),
        ["go-kube"] => go_kube::go_kube(),
        ["order", profiles @ ..] => ordered::print_order(profiles),
        ["proto"] => proto::proto(),
        ["--help" | "-h" | "help"] | [] => {
            run::say(USAGE);
            Ok(())
        }
        _ => bail!("unknown: {}\n{USAGE}", words.join(" ")),
    }
}
