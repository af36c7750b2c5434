//! libFuzzer on the laws of `flannel_cni::laws`: `FUZZ_TARGET` names one. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::sync::OnceLock;

use flannel_cni::laws::{ALL, Law};
use libfuzzer_sys::fuzz_target;

static LAW: OnceLock<Law> = OnceLock::new();

fn law() -> Law {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let names = ALL.map(|(name, _)| name).join(", ");
    ALL.into_iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("FUZZ_TARGET must be one of {names}")).1
}

fuzz_target!(|input: &[u8]| LAW.get_or_init(law)(input));
