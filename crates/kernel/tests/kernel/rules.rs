//! Packet rules: what we write as `nft` and `iptables-save` print it, what others wrote as we read it, and repair after
//! every kind of damage, in both variants of iptables.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flannel_core::addr::Family;
use flannel_core::diff::{Owner, Want, Wanted, diff};
use flannel_core::rules::iptables::Saved;
use flannel_core::rules::{PodNetworks, RuleMode, RuleOptions, Ruleset, Verdict, ruleset};
use flannel_core::state::{Key, Scope, State, Value};
use flannel_kernel::executor::Executor;
use flannel_kernel::iptables::legacy_removal;
use flannel_kernel::linux::KernelExecutor;
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::rules::RulesExecutor;

use crate::Test;
use crate::namespace::run;
use Family::{V4, V6};
use RuleMode::{Iptables, Nftables};

pub(crate) const TESTS: &[Test] = &[
    ("rules::nft_prints_the_tables_of_the_contract", nft_prints_the_tables_of_the_contract),
    ("rules::rules_written_by_nft_are_read_as_equal", rules_written_by_nft_are_read_as_equal),
    ("rules::rules_of_the_go_daemon_are_read_and_replaced", rules_of_the_go_daemon_are_read_and_replaced),
    ("rules::a_family_that_is_not_enabled_has_an_empty_table", a_family_that_is_not_enabled_has_an_empty_table),
    ("rules::any_prefix_length_is_read_back_and_printed_as_such", any_prefix_length_is_read_back_and_printed_as_such),
    ("rules::damage_to_nft_rules_is_told_seen_and_repaired", damage_to_nft_rules_is_told_seen_and_repaired),
    ("rules::rules_that_agree_are_not_written_again", rules_that_agree_are_not_written_again),
    ("rules::a_refused_transaction_changes_nothing", a_refused_transaction_changes_nothing),
    ("rules::the_executor_sees_and_repairs_rules_with_the_rest", the_executor_sees_and_repairs_rules_with_the_rest),
    ("rules::a_switch_to_nftables_leaves_nothing_of_iptables", a_switch_to_nftables_leaves_nothing_of_iptables),
    ("rules::rules_that_cannot_be_read_hide_nothing_else", rules_that_cannot_be_read_hide_nothing_else),
    ("rules::removing_takes_our_table_only_and_nothing_twice", removing_takes_our_table_only_and_nothing_twice),
    ("rules::leftovers_in_iptables_nft_go_without_a_program", leftovers_in_iptables_nft_go_without_a_program),
    (
        "rules::iptables_rules_are_those_of_the_contract_in_each_variant",
        iptables_rules_are_those_of_the_contract_in_each_variant,
    ),
    ("rules::damage_to_iptables_rules_is_seen_and_repaired", damage_to_iptables_rules_is_seen_and_repaired),
    (
        "rules::on_iptables_nft_no_program_runs_while_the_generation_stands_still",
        on_iptables_nft_no_program_runs_while_the_generation_stands_still,
    ),
    (
        "rules::on_iptables_legacy_no_program_runs_while_the_tables_stay_as_they_are",
        on_iptables_legacy_no_program_runs_while_the_tables_stay_as_they_are,
    ),
    ("rules::in_nftables_mode_no_program_runs", in_nftables_mode_no_program_runs),
    ("rules::without_programs_the_error_says_what_to_install", without_programs_the_error_says_what_to_install),
    ("rules::a_table_that_iptables_cannot_show_is_named", a_table_that_iptables_cannot_show_is_named),
    (
        "rules::what_legacy_may_hold_is_told_with_the_command_that_removes_it",
        what_legacy_may_hold_is_told_with_the_command_that_removes_it,
    ),
];

const NFT_TABLES: &str = r#"table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return
		ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return
		ip saddr != 10.42.0.0/16 ip daddr 10.42.1.0/24 return
		ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random
	}

	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.42.0.0/16 accept
		ip daddr 10.42.0.0/16 accept
	}
}
table ip6 flannel-ipv6 {
	comment "rules for flannel-ipv6"
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip6 saddr 2001:cafe:42:1::/64 ip6 daddr 2001:cafe:42::/52 return
		ip6 saddr 2001:cafe:42::/52 ip6 daddr 2001:cafe:42:1::/64 return
		ip6 saddr != 2001:cafe:42::/52 ip6 daddr 2001:cafe:42:1::/64 return
		ip6 saddr 2001:cafe:42::/52 ip6 daddr != ff00::/8 masquerade fully-random
		ip6 saddr != 2001:cafe:42::/52 ip6 daddr 2001:cafe:42::/52 masquerade fully-random
	}

	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip6 saddr 2001:cafe:42::/52 accept
		ip6 daddr 2001:cafe:42::/52 accept
	}
}
"#;

/// A rule in our chain that iptables has no words for.
const FOREIGN_TO_IPTABLES: &str = "add chain ip nat theirs { type nat hook output priority -50; }
    add rule ip nat FLANNEL-POSTRTG fib saddr type local meta mark set ct mark";

/// Runs the work in a fresh network namespace.
fn isolated(work: impl FnOnce() + Send) {
    NetNamespace::create().unwrap().run(work).unwrap();
}

/// Like [`run`], with standard input.
fn feed(line: &str, input: &str) -> String {
    let mut words = line.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

fn wanted_by(mode: RuleMode, family: Family) -> Ruleset {
    let (network, pod_subnet) = match family {
        V4 => ("10.42.0.0/16", "10.42.1.0/24"),
        V6 => ("2001:cafe:42::/52", "2001:cafe:42:1::/64"),
    };
    let networks = PodNetworks { network: network.parse().unwrap(), pod_subnet: pod_subnet.parse().unwrap() };
    ruleset(Some(networks), RuleOptions { mode, ip_masq: true, fully_random: true, forward: true }).unwrap()
}

fn executor_with_rules(mode: RuleMode) -> RulesExecutor {
    let mut rules = RulesExecutor::open(mode).unwrap();
    for family in Family::ALL {
        rules.set(mode, family, &wanted_by(mode, family)).unwrap();
        assert_eq!(rules.observe(mode, family).unwrap(), Some(wanted_by(mode, family)));
    }
    rules
}

fn nft_prints_the_tables_of_the_contract() {
    executor_with_rules(Nftables);
    assert_eq!(run("nft list ruleset"), NFT_TABLES);
}

fn rules_written_by_nft_are_read_as_equal() {
    feed("nft -f -", NFT_TABLES);
    let mut rules = RulesExecutor::open(Nftables).unwrap();
    for family in Family::ALL {
        assert_eq!(rules.observe(Nftables, family).unwrap(), Some(wanted_by(Nftables, family)));
    }
}

fn rules_of_the_go_daemon_are_read_and_replaced() {
    let theirs = "table ip flannel-ipv4 {
        comment \"rules for flannel-ipv4\"
        chain postrtg {
            type nat hook postrouting priority srcnat; policy accept;
            meta mark 0x4000 return
            ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return
            ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return
            ip saddr != 10.42.1.0/24 ip daddr 10.42.0.0/16 return
            ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
            ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random
        }
    }
    table ip6 flannel-ipv6 { comment \"rules for flannel-ipv6\"; }";
    feed("nft -f -", theirs);
    let mut rules = RulesExecutor::open(Nftables).unwrap();
    let read = rules.observe(Nftables, V4).unwrap().unwrap();
    let ours = wanted_by(Nftables, V4).postrouting.unwrap().rules;
    let read_rules = read.postrouting.unwrap().rules;
    let same = ours.iter().zip(&read_rules).map(|(ours, theirs)| ours == theirs).collect::<Vec<_>>();
    assert_eq!(same, [false, true, true, false, true, true]);
    assert_eq!(read.forward, None);
    assert_eq!(rules.observe(Nftables, V6).unwrap(), Some(Ruleset::default()));
    rules.set(Nftables, V4, &wanted_by(Nftables, V4)).unwrap();
    assert_eq!(rules.observe(Nftables, V4).unwrap(), Some(wanted_by(Nftables, V4)));
}

fn a_family_that_is_not_enabled_has_an_empty_table() {
    let mut rules = RulesExecutor::open(Nftables).unwrap();
    assert_eq!(rules.observe(Nftables, V6).unwrap(), None);
    rules.set(Nftables, V6, &Ruleset::default()).unwrap();
    assert_eq!(rules.observe(Nftables, V6).unwrap(), Some(Ruleset::default()));
    assert_eq!(run("nft list ruleset"), "table ip6 flannel-ipv6 {\n\tcomment \"rules for flannel-ipv6\"\n}\n");
}

fn any_prefix_length_is_read_back_and_printed_as_such() {
    let mut rules = RulesExecutor::open(Nftables).unwrap();
    for (family, network, lengths) in [(V4, "10.255.255.255", 1..=30), (V6, "2001:dead:beef:ffff::", 3..=126)] {
        for length in lengths.step_by(7) {
            let network = format!("{network}/{length}").parse().unwrap();
            let options = RuleOptions { mode: Nftables, ip_masq: true, fully_random: false, forward: true };
            let wanted = ruleset(Some(PodNetworks { network, pod_subnet: network }), options).unwrap();
            rules.set(Nftables, family, &wanted).unwrap();
            assert_eq!(rules.observe(Nftables, family).unwrap().as_ref(), Some(&wanted));
            let printed = run("nft list ruleset");
            let prefix = format!("addr {} ", network.trunc());
            assert!(printed.contains(&prefix), "{prefix} is not in {printed}");
        }
    }
}

fn damage_to_nft_rules_is_told_seen_and_repaired() {
    let damages = [
        "flush chain ip flannel-ipv4 postrtg",
        "flush table ip flannel-ipv4",
        "delete table ip flannel-ipv4",
        "flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 forward",
        "insert rule ip flannel-ipv4 forward ip daddr 10.42.0.0/16 drop",
        "add rule ip flannel-ipv4 postrtg counter",
        "add chain ip flannel-ipv4 forward { type filter hook forward priority filter; policy drop; }",
        "add table ip flannel-ipv4 { flags dormant; }",
        "delete table ip flannel-ipv4; add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg",
        "flush ruleset",
    ];
    for damage in damages {
        isolated(|| {
            feed("nft -f -", "table ip theirs { chain c { ip saddr 1.2.3.4 counter accept; }; }");
            let mut rules = executor_with_rules(Nftables);
            rules.changed().unwrap();
            assert!(!rules.changed().unwrap());
            feed("nft -f -", damage);
            assert!(rules.changed().unwrap(), "{damage}");
            let wanted = wanted_by(Nftables, V4);
            assert_ne!(rules.observe(Nftables, V4).unwrap().as_ref(), Some(&wanted), "{damage}");
            for family in Family::ALL {
                rules.set(Nftables, family, &wanted_by(Nftables, family)).unwrap();
            }
            assert_eq!(rules.observe(Nftables, V4).unwrap(), Some(wanted), "{damage}");
            let [ours, theirs] = [run("nft list table ip flannel-ipv4"), run("nft list ruleset")];
            assert!(NFT_TABLES.starts_with(&ours), "{damage}: {ours}");
            assert_eq!(theirs.contains("1.2.3.4"), damage != "flush ruleset", "{damage}");
        });
    }
}

fn rules_that_agree_are_not_written_again() {
    let mut rules = executor_with_rules(Nftables);
    rules.changed().unwrap();
    rules.set(Nftables, V4, &wanted_by(Nftables, V4)).unwrap();
    assert!(!rules.changed().unwrap(), "the second set wrote rules");
    feed("nft -f -", "table ip theirs { chain c { }; }");
    assert!(!rules.changed().unwrap(), "a foreign table concerned us");
}

fn a_refused_transaction_changes_nothing() {
    let mut rules = executor_with_rules(Nftables);
    let mut impossible = wanted_by(Nftables, V4);
    impossible.forward.as_mut().unwrap().rules[1].verdict = Verdict::Other("no-such-expression".into());
    let error = rules.set(Nftables, V4, &impossible).unwrap_err().to_string();
    assert!(error.starts_with("nf_tables: No such file or directory"), "{error}");
    assert_eq!(run("nft list ruleset"), NFT_TABLES);
}

/// The executor of the whole kernel, its rules in one mode, and what it is to want.
fn whole_executor(mode: RuleMode) -> (KernelExecutor, Want) {
    let executor = KernelExecutor::open(Some(RulesExecutor::open(mode).unwrap())).unwrap();
    let wanted = |family| Wanted { value: Value::Rules(Box::new(wanted_by(mode, family))), owner: Owner::Node };
    (executor, Family::ALL.map(|family| (Key::Rules(mode, family), wanted(family))).into())
}

/// Both rule systems in view, and nothing else but flannel's devices.
fn scope() -> Scope {
    Scope { iptables: true, ..Scope::default() }
}

fn the_executor_sees_and_repairs_rules_with_the_rest() {
    for (mode, damage) in
        [(Nftables, "nft delete table ip flannel-ipv4"), (Iptables, "iptables-nft -t nat -F FLANNEL-POSTRTG")]
    {
        isolated(|| {
            let (mut executor, want) = whole_executor(mode);
            let mut have = executor.observe(&scope()).unwrap();
            assert!(executor.apply(&diff(&want, &have)).is_empty());
            executor.notices(&scope(), &mut have).unwrap();
            assert_eq!(diff(&want, &have), []);
            run(damage);
            executor.notices(&scope(), &mut have).unwrap();
            let ops = diff(&want, &have);
            assert_eq!(ops.iter().map(|op| *op.change.key()).collect::<Vec<_>>(), [Key::Rules(mode, V4)]);
            assert!(executor.apply(&ops).is_empty());
            executor.notices(&scope(), &mut have).unwrap();
            assert_eq!(diff(&want, &have), []);
            assert_eq!(diff(&want, &executor.observe(&scope()).unwrap()), []);
        });
    }
}

fn a_switch_to_nftables_leaves_nothing_of_iptables() {
    for (mode, other) in [(Nftables, Iptables), (Iptables, Nftables)] {
        isolated(|| {
            executor_with_rules(other);
            let (mut executor, want) = whole_executor(mode);
            let have = executor.observe(&scope()).unwrap();
            assert_eq!(have.objects.keys().copied().collect::<Vec<_>>(), Family::ALL.map(|f| Key::Rules(other, f)));
            assert!(executor.apply(&diff(&want, &have)).is_empty());
            let have = executor.observe(&scope()).unwrap();
            assert_eq!(have.objects.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
            assert_eq!(diff(&want, &have), []);
        });
    }
}

fn rules_that_cannot_be_read_hide_nothing_else() {
    let (mut executor, want) = whole_executor(Iptables);
    assert!(executor.apply(&diff(&want, &State::default())).is_empty());
    feed("nft -f -", FOREIGN_TO_IPTABLES);
    run("ip link add flannel.1 type vxlan id 1 dstport 8472");
    let have = executor.observe(&scope()).unwrap();
    assert!(have.link("flannel.1".parse().unwrap()).is_some());
    let failed = executor.apply(&diff(&want, &have));
    assert_eq!(failed.len(), 1);
    let [change, cause] = [&failed[0].change, &failed[0].cause];
    assert!(change.starts_with("set iptables chains") && cause.starts_with("table nat holds rules"), "{}", failed[0]);
}

fn removing_takes_our_table_only_and_nothing_twice() {
    feed("nft -f -", "table ip theirs { }");
    let mut rules = executor_with_rules(Nftables);
    for _ in 0..2 {
        for family in Family::ALL {
            rules.remove(Nftables, family).unwrap();
            assert_eq!(rules.observe(Nftables, family).unwrap(), None);
        }
    }
    assert_eq!(run("nft list ruleset"), "table ip theirs {\n}\n");
}

/// A rule and a chain of the user's in the places where flannel's are.
fn add_foreign_rules(iptables: &str) {
    run(&format!("{iptables} -t nat -A POSTROUTING -o theirs -m comment --comment theirs -j MASQUERADE"));
    run(&format!("{iptables} -N THEIRS"));
    run(&format!("{iptables} -A THEIRS -p tcp -j DROP"));
    run(&format!("{iptables} -A FORWARD -j THEIRS"));
}

/// The saved rules without the lines that change with time.
fn saved(iptables: &str) -> Vec<String> {
    run(&format!("{iptables}-save")).lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

const COMMANDS: [(Family, &str, &str); 4] = [
    (V4, "nft", "iptables-nft"),
    (V6, "nft", "ip6tables-nft"),
    (V4, "legacy", "iptables-legacy"),
    (V6, "legacy", "ip6tables-legacy"),
];

fn leftovers_in_iptables_nft_go_without_a_program() {
    let commands = [(V4, "iptables-nft"), (V6, "ip6tables-nft")];
    for (family, command) in commands {
        run(&format!("{command} -N KUBE-FORWARD"));
        RulesExecutor::open(Iptables).unwrap().set(Iptables, family, &wanted_by(Iptables, family)).unwrap();
        run(&format!("{command} -t nat -I POSTROUTING -s fe80::1 -j FLANNEL-POSTRTG")
            .replace("fe80::1", if family == V4 { "1.2.3.4" } else { "fe80::1" }));
    }
    let mut rules = RulesExecutor::open(Nftables).unwrap();
    for (family, command) in commands {
        add_foreign_rules(command);
        let left = rules.observe(Iptables, family).unwrap().unwrap();
        assert_eq!((left.postrouting.unwrap().rules.len(), left.forward.unwrap().rules.len()), (6, 2));
        rules.remove(Iptables, family).unwrap();
        rules.remove(Iptables, family).unwrap();
        assert_eq!(rules.observe(Iptables, family).unwrap(), None);
        let all = run(&format!("{command}-save"));
        assert!(!all.contains("FLANNEL") && all.contains("KUBE-FORWARD"), "{all}");
        assert_eq!(saved(command).len(), 3, "{all}");
    }
}

fn iptables_rules_are_those_of_the_contract_in_each_variant() {
    for (family, _, command) in COMMANDS {
        isolated(|| {
            run(&format!("{command} -N KUBE-FORWARD"));
            add_foreign_rules(command);
            let before = saved(command);
            let mut rules = RulesExecutor::open(Iptables).unwrap();
            assert_eq!(rules.observe(Iptables, family).unwrap(), None);
            rules.set(Iptables, family, &wanted_by(Iptables, family)).unwrap();
            let after = saved(command);
            assert_eq!(after.len(), before.len() + 10, "{command}: {after:#?}");
            assert!(before.iter().all(|line| after.contains(line)), "{command}: {after:#?}");
            let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
            let last = after.iter().rfind(|line| line.starts_with("-A POSTROUTING"));
            assert_eq!(last.map(String::as_str), Some(jump), "{command}");
            rules.remove(Iptables, family).unwrap();
            assert_eq!(saved(command), before, "{command}");
            rules.remove(Iptables, family).unwrap();
        });
    }
}

fn damage_to_iptables_rules_is_seen_and_repaired() {
    let damages = [
        "-t nat -F FLANNEL-POSTRTG",
        "-F FLANNEL-FWD",
        "-t nat -D FLANNEL-POSTRTG 4",
        "-D FORWARD -m comment --comment FWD -j FLANNEL-FWD",
        "-A FORWARD -j FLANNEL-FWD",
        "-I FLANNEL-FWD -p udp -j DROP",
        "-F",
    ];
    for (family, variant, command) in COMMANDS {
        isolated(|| {
            run(&format!("{command} -t mangle -N KUBE-KUBELET-CANARY"));
            let mut rules = RulesExecutor::open(Iptables).unwrap();
            let wanted = wanted_by(Iptables, family);
            for damage in damages {
                rules.set(Iptables, family, &wanted).unwrap();
                let right = saved(command);
                rules.changed().unwrap();
                let comment = "flanneld forward";
                let mut words = damage.split(' ').map(|word| if word == "FWD" { comment } else { word });
                let status = Command::new(command).args(&mut words).status().unwrap();
                assert!(status.success(), "{command} {damage}");
                assert_eq!(rules.changed().unwrap(), variant == "nft", "{command} {damage}");
                rules.resync();
                assert_ne!(rules.observe(Iptables, family).unwrap().as_ref(), Some(&wanted), "{command} {damage}");
                rules.set(Iptables, family, &wanted).unwrap();
                assert_eq!(rules.observe(Iptables, family).unwrap().as_ref(), Some(&wanted), "{command} {damage}");
                assert_eq!(saved(command), right, "{command} {damage}");
            }
        });
    }
}

/// Runs a test's work in a process of its own that finds only these programs. `PATH` belongs to the whole process, so the
/// test is run once more.
fn with_programs_only(test: &str, names: &[&str], work: impl FnOnce()) {
    const MARK: &str = "FLANNEL_TEST_PATH_IS_SET";
    if std::env::var_os(MARK).is_some() {
        return work();
    }
    let folder = std::env::temp_dir().join(format!("flannel-{test}-{}", std::process::id()));
    fill_with_programs(&folder, names);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.arg(test).env(MARK, "1").env("PATH", &folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("running 1 tests"), "{text}");
    fs::remove_dir_all(folder).unwrap();
}

/// Programs that note in the file `log` beside them that they were run, and then are the programs of that name; and `ip`.
fn fill_with_programs(folder: &Path, names: &[&str]) {
    fs::create_dir(folder).unwrap();
    std::os::unix::fs::symlink("/sbin/ip", folder.join("ip")).unwrap();
    for name in names {
        let text = format!("#!/bin/sh\necho {name} >>{}/log\nexec /usr/sbin/{name} \"$@\"\n", folder.display());
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Which of these programs were run since the last call.
fn noted() -> Vec<String> {
    let log = PathBuf::from(std::env::var_os("PATH").unwrap()).join("log");
    let text = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(log);
    text.lines().map(str::to_owned).collect()
}

fn on_iptables_nft_no_program_runs_while_the_generation_stands_still() {
    let names = ["iptables", "iptables-nft-save", "iptables-nft-restore"];
    with_programs_only("on_iptables_nft_no_program_runs_while_the_generation_stands_still", &names, || {
        let mut rules = RulesExecutor::open(Iptables).unwrap();
        assert_eq!(rules.observe(Iptables, V4).unwrap(), None);
        assert_eq!(noted(), [""; 0], "there was nothing to read");
        rules.set(Iptables, V4, &wanted_by(Iptables, V4)).unwrap();
        assert_eq!(noted(), ["iptables", "iptables-nft-restore"]);
        for _ in 0..3 {
            rules.resync();
            assert_eq!(rules.observe(Iptables, V4).unwrap(), Some(wanted_by(Iptables, V4)));
        }
        assert_eq!(noted(), ["iptables-nft-save"]);
        rules.set(Iptables, V4, &wanted_by(Iptables, V4)).unwrap();
        assert_eq!(noted(), [""; 0], "rules that agree were written again");
        run("/usr/sbin/iptables-nft -t nat -F FLANNEL-POSTRTG");
        rules.set(Iptables, V4, &wanted_by(Iptables, V4)).unwrap();
        assert_eq!(noted(), ["iptables-nft-save", "iptables-nft-restore"]);
    });
}

fn on_iptables_legacy_no_program_runs_while_the_tables_stay_as_they_are() {
    let names = ["iptables", "ip6tables"]
        .map(|name| [name.into(), format!("{name}-legacy-save"), format!("{name}-legacy-restore")]);
    let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    with_programs_only("on_iptables_legacy_no_program_runs_while_the_tables_stay_as_they_are", &names, || {
        for (family, command) in [(V4, "iptables"), (V6, "ip6tables")] {
            let (wanted, save) = (wanted_by(Iptables, family), format!("{command}-legacy-save"));
            run(&format!("/usr/sbin/{command}-legacy -N KUBE-FORWARD"));
            let mut rules = RulesExecutor::open(Iptables).unwrap();
            rules.set(Iptables, family, &wanted).unwrap();
            noted();
            let mut seen = |expect: Option<&Ruleset>, programs: &[&str]| {
                rules.resync();
                for _ in 0..3 {
                    assert_eq!(rules.observe(Iptables, family).unwrap().as_ref(), expect);
                }
                assert_eq!(noted(), programs);
            };
            seen(Some(&wanted), &[&save]);
            seen(Some(&wanted), &[]);
            run(&format!("/usr/sbin/{command}-legacy -A OUTPUT -o lo -j ACCEPT"));
            run("ip link set lo up");
            seen(Some(&wanted), &[&save]);
            let localhost = if family == V4 { "127.0.0.1" } else { "::1" };
            assert!(std::net::TcpStream::connect((localhost, 9)).is_err(), "nobody listens, but packets are counted");
            assert!(
                !run(&format!("/usr/sbin/{command}-legacy-save -c")).contains("[0:0] -A OUTPUT"),
                "nothing was counted"
            );
            seen(Some(&wanted), &[]);
            run(&format!("/usr/sbin/{command}-legacy -t nat -F FLANNEL-POSTRTG"));
            let flushed = Saved::parse(&run(&format!("/usr/sbin/{command}-legacy-save"))).ruleset();
            assert_ne!(flushed.as_ref(), Some(&wanted));
            seen(flushed.as_ref(), &[&save]);
        }
    });
}

fn in_nftables_mode_no_program_runs() {
    with_programs_only("in_nftables_mode_no_program_runs", &[], || {
        let mut rules = executor_with_rules(Nftables);
        run("/usr/sbin/iptables-nft -t nat -N FLANNEL-POSTRTG");
        for family in Family::ALL {
            rules.observe(Iptables, family).unwrap();
            rules.remove(Iptables, family).unwrap();
            assert_eq!(rules.observe(Iptables, family).unwrap(), None);
        }
    });
}

fn without_programs_the_error_says_what_to_install() {
    with_programs_only("without_programs_the_error_says_what_to_install", &[], || {
        let mut rules = RulesExecutor::open(Iptables).unwrap();
        assert_eq!(rules.observe(Iptables, V4).unwrap(), None);
        rules.remove(Iptables, V4).unwrap();
        let error = rules.set(Iptables, V4, &wanted_by(Iptables, V4)).unwrap_err().to_string();
        assert_eq!(
            error,
            "neither `iptables` nor `iptables-nft` is in PATH (hint: install the package iptables, or set EnableNFTables in the \
             network config)"
        );
    });
}

fn a_table_that_iptables_cannot_show_is_named() {
    let mut rules = executor_with_rules(Iptables);
    feed("nft -f -", FOREIGN_TO_IPTABLES);
    let error = rules.observe(Iptables, V4).unwrap_err().to_string();
    assert!(error.starts_with("table nat holds rules that iptables cannot show"), "{error}");
}

fn what_legacy_may_hold_is_told_with_the_command_that_removes_it() {
    assert_eq!(legacy_removal(V4), None);
    run("iptables-legacy -N KUBE-FORWARD");
    RulesExecutor::open(Iptables).unwrap().set(Iptables, V4, &wanted_by(Iptables, V4)).unwrap();
    assert_eq!(legacy_removal(V6), None);
    assert_eq!(saved("iptables-legacy").len(), 10);
    feed("sh -es", &legacy_removal(V4).unwrap());
    assert_eq!(run("iptables-legacy-save").matches("FLANNEL").count(), 0);
}
