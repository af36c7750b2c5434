//! The guest kernel of other tests: what it sees, what it gives back, and that it ends in time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flannel_kernel::guest::{Ended, Guest, GuestError};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("flannel-guest-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// Each of these is what this machine's kernel may lack.
const SCRIPT: &str = "\
    set -e\n\
    ip link add br0 up type bridge vlan_filtering 1\n\
    for link in 'vxlan id 7 dstport 4789' 'ipip local 192.0.2.1' 'gre local 192.0.2.1' dummy; do\n\
      ip link add \"d-${link%% *}\" type $link\n\
    done\n\
    tc qdisc add dev br0 root netem delay 1ms\n\
    iptables -t nat -A POSTROUTING -m comment --comment here -j MASQUERADE\n\
    ip -o link | grep -c ' d-'\n\
    ! touch /etc/here 2>/dev/null\n\
    touch here && cat given > \"$(cat given)\"\n\
    exit 7\n";

#[test]
fn a_guest_has_its_own_kernel_and_the_files_of_the_machine() {
    let folder = folder("script");
    fs::write(folder.join("given"), "re'sult\n").unwrap();
    let script = format!("cd {}\n{SCRIPT}", folder.display());
    let Ended { status, output } = Guest::default().run(&script, &folder).unwrap();
    assert_eq!((status, output.as_str()), (7, "4\n"));
    assert_eq!(fs::read_to_string(folder.join("re'sult")).unwrap(), "re'sult\n");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_guest_that_does_not_end_is_ended() {
    let folder = folder("late");
    let guest = Guest { limit: Duration::from_secs(3), ..Guest::default() };
    let ended = guest.run("sleep 1000", &folder);
    assert!(matches!(ended, Err(GuestError::Late { .. })), "{ended:?}");
    fs::remove_dir_all(folder).unwrap();
}
