//! `cargo xtask proto`: Rust types of the messages that the etcd store exchanges, written anew from their `.proto`.
//!
//! The result is checked in, so that a build needs neither `protoc` nor the generator. This needs both: it starts itself
//! again with the feature that has the generator.

use anyhow::Result;

/// Writes `crates/store/src/etcd/rpc.rs`.
#[cfg(not(feature = "proto"))]
pub(crate) fn proto() -> Result<()> {
    use crate::run::{cargo, run};
    run(&mut cargo(&["run", "--quiet", "--package", "xtask", "--features", "proto", "--", "proto"]))
}

/// Writes `crates/store/src/etcd/rpc.rs`.
#[cfg(feature = "proto")]
pub(crate) fn proto() -> Result<()> {
    use crate::run::{root, say};
    use anyhow::Context as _;

    const HEADER: &str =
        "//! Messages of etcd's v3 API. Written by `cargo xtask proto` from `proto/etcd.proto`: do not edit.\n\n";
    const WRITTEN: &str = "crates/store/src/etcd/rpc.rs";
    let folder = root().join("crates/store/proto");
    let output = root().join("target/proto");
    std::fs::create_dir_all(&output)?;
    prost_build::Config::new()
        .bytes(["."])
        .disable_comments(["."])
        .skip_debug(["AuthenticateRequest", "AuthenticateResponse"])
        .out_dir(&output)
        .compile_protos(&[folder.join("etcd.proto")], &[folder])
        .context("cannot compile crates/store/proto/etcd.proto (hint: apt-get install protobuf-compiler)")?;
    let text = std::fs::read_to_string(output.join("etcdserverpb.rs"))?;
    std::fs::write(root().join(WRITTEN), format!("{HEADER}{text}"))?;
    run_fmt(WRITTEN)?;
    say(&format!("wrote {WRITTEN}"));
    Ok(())
}

#[cfg(feature = "proto")]
fn run_fmt(file: &str) -> Result<()> {
    crate::run::run(&mut crate::run::program("rustfmt", &["--edition", "2024", file]))
}
