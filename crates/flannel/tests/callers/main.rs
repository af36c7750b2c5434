//! Test ring 4: the plugins as container runtimes call them, on a node of the lab that is furnished as a machine of its own.
//!
//! containerd and podman are Debian's; what they do not do is called by hand as other runtimes do it ([`by_hand`]). Nothing of this
//! machine is touched but two control groups, which are removed again.
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

mod by_hand;
mod containerd;
mod installing;
mod machine;
#[path = "../network/mod.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod network;
mod podman;
mod upgrade;
