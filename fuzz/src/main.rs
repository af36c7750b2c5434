//! libFuzzer on the laws of `flannel_cni::laws` and `flannel_core::laws`: `FUZZ_TARGET` names one. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::sync::OnceLock;

use flannel_core::laws::Law;
use libfuzzer_sys::fuzz_target;

static LAW: OnceLock<Law> = OnceLock::new();

fn law() -> Law {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let laws = [flannel_cni::laws::ALL.as_slice(), &flannel_core::laws::ALL].concat();
    let names: Vec<&str> = laws.iter().map(|(name, _)| *name).collect();
    let known = laws.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("FUZZ_TARGET must be one of {}", names.join(", "))).1
}

fuzz_target!(|input: &[u8]| LAW.get_or_init(law)(input));
