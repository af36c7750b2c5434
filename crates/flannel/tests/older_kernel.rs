//! The lab on a kernel that is older than this machine's: Linux 6.1, in a guest.

use std::fs;

use flannel_kernel::guest::Guest;

/// In the lab's user namespaces nothing can load a module.
const MODULES: &str = "br_netfilter iptable_filter iptable_nat ip6table_filter ip6table_nat \
    xt_MASQUERADE xt_comment xt_mark xt_tcpudp";

#[test]
fn the_lab_holds_on_linux_6_1() {
    let folder = std::env::temp_dir().join(format!("flannel-older-kernel-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let script = format!(
        "flannel={}\n\
         for module in {MODULES}; do modprobe $module; done\n\
         $flannel lab up --nodes 2 --pods 1 --iptables 2>&1 && $flannel lab prove 2>&1 || exit\n\
         $flannel lab exec node1 -- cat /run/flanneld.log\n\
         $flannel lab down\n",
        env!("CARGO_BIN_EXE_flannel")
    );
    let ended = Guest::default().run(&script, &folder);
    fs::remove_dir_all(&folder).unwrap();
    let ended = ended.unwrap();
    assert_eq!(ended.status, 0, "{}", ended.output);
    let says = |text| ended.output.contains(text);
    assert!(says("every pod pings every pod") && says("own lease: 10.244.1.0-24"), "{}", ended.output);
    // A kernel of this age tells twice of a forwarding entry that was set.
    assert!(!says("repaired"), "{}", ended.output);
}
