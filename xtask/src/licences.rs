//! The policy of `deny.toml` over every crate that is built: licences, bans, sources.
//!
//! `cargo deny check licenses bans sources` says the same and more, where it is installed. Compiling it takes minutes, and
//! these three rules are a page, so `cargo verify` needs nothing but cargo.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run::{cargo, output, root, say};
use crate::spdx;

struct Policy {
    allowed: Vec<String>,
    banned: Vec<String>,
}

/// Checks every package of the build.
pub(crate) fn check() -> Result<()> {
    let policy = Policy::read(&std::fs::read_to_string(root().join("deny.toml")).context("deny.toml")?)?;
    let host = ["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)];
    let text = output(&mut cargo(&[["metadata", "--locked", "--format-version", "1"].as_slice(), &host].concat()))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let refused: Vec<String> = packages.iter().filter_map(|package| policy.refuses(package)).collect();
    say(&format!("  {} packages against deny.toml", packages.len()));
    ensure!(refused.is_empty(), "refused by deny.toml:\n  {}", refused.join("\n  "));
    Ok(())
}

impl Policy {
    fn read(toml: &str) -> Result<Self> {
        let policy = Self { allowed: strings(toml, "licenses", "allow"), banned: strings(toml, "bans", "deny") };
        if policy.allowed.is_empty() || policy.banned.is_empty() {
            bail!("deny.toml has no `allow` under [licenses] or no `deny` under [bans]");
        }
        Ok(policy)
    }

    /// Why a package, as `cargo metadata` describes it, may not be used.
    fn refuses(&self, package: &Value) -> Option<String> {
        let text = |key: &str| package[key].as_str();
        let name = text("name").unwrap_or("?");
        let licence = text("license").unwrap_or("none given");
        let reason = if self.banned.iter().any(|banned| banned == name) {
            "is banned".to_owned()
        } else if !spdx::is_met(licence, &self.allowed) {
            format!("has the licence {licence}")
        } else if !text("source").is_none_or(|source| source.starts_with("registry+")) {
            "comes from no registry".to_owned()
        } else if package["dependencies"].as_array()?.iter().any(|dependency| !dependency["registry"].is_null()) {
            "uses a registry of its own".to_owned()
        } else {
            return None;
        };
        Some(format!("{name} {} {reason}", text("version").unwrap_or("?")))
    }
}

/// The strings of an array of `deny.toml`: quoted words between `key = [` under `[section]` and the closing bracket.
fn strings(toml: &str, section: &str, key: &str) -> Vec<String> {
    let header = format!("[{section}]");
    let start = format!("{key} = [");
    let body = toml.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('['));
    let array = body.skip_while(|line| *line != start).skip(1).take_while(|line| *line != "]");
    let code = array.map(|line| line.split('#').next().unwrap_or_default());
    code.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str =
        "[licenses]\nallow = [\n    \"MIT\", # ours\n    # \"GPL\",\n]\n[bans]\ndeny = [\n    \"bad\",\n]\n";

    fn refused(package: &str) -> Option<String> {
        Policy::read(TOML).unwrap().refuses(&serde_json::from_str(package).unwrap())
    }

    #[test]
    fn the_policy_is_read() {
        let policy = Policy::read(TOML).unwrap();
        assert_eq!((policy.allowed, policy.banned), (vec!["MIT".to_owned()], vec!["bad".to_owned()]));
        assert!(Policy::read("").is_err());
    }

    #[test]
    fn packages_are_refused_by_name_and_reason() {
        let package = |name: &str, licence: &str, source: &str, registry: &str| {
            let dependency = format!(r#"{{"registry":{registry}}}"#);
            format!(
                r#"{{"name":"{name}","version":"1.0.0","license":"{licence}","source":{source},"dependencies":[{dependency}]}}"#
            )
        };
        let registry = r#""registry+https://index.example""#;
        assert_eq!(refused(&package("a", "MIT", registry, "null")), None);
        assert_eq!(refused(&package("a", "MIT", "null", "null")), None);
        assert_eq!(refused(&package("bad", "MIT", registry, "null")).unwrap(), "bad 1.0.0 is banned");
        assert_eq!(refused(&package("a", "GPL", registry, "null")).unwrap(), "a 1.0.0 has the licence GPL");
        let git = refused(&package("a", "MIT", r#""git+https://git.example""#, "null")).unwrap();
        assert_eq!(git, "a 1.0.0 comes from no registry");
        let own = refused(&package("a", "MIT", registry, r#""https://other.example""#)).unwrap();
        assert_eq!(own, "a 1.0.0 uses a registry of its own");
    }
}
