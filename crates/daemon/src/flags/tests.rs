//! The syntax in every form, what wins over what, and each refusal as the text a person reads.

use super::*;
use flannel_store::kube;

const LOCAL: &str = "--local-store=/leases";

fn given(args: &[&str], environment: &[(&str, &str)]) -> Result<Command, FlagError> {
    parse(args.iter().map(OsString::from), environment.iter().map(|(name, value)| (name.into(), value.into())))
}

fn flags(args: &[&str], environment: &[(&str, &str)]) -> Flags {
    let args: Vec<&str> = std::iter::once(LOCAL).chain(args.iter().copied()).collect();
    match given(&args, environment) {
        Ok(Command::Run(flags)) => *flags,
        other => panic!("{args:?} {environment:?}: {other:?}"),
    }
}

fn error(args: &[&str], environment: &[(&str, &str)]) -> String {
    let error = given(args, environment).expect_err(&format!("{args:?}"));
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{} {error}{hint}", error.exit_code())
}

#[test]
fn defaults_are_the_documented_ones() {
    let flags = flags(&[], &[]);
    assert_eq!(flags.store, StoreChoice::Local("/leases".into()));
    assert_eq!(flags.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
    assert_eq!(flags.renew_margin, Duration::from_hours(1));
    assert_eq!(flags.node.rules, RuleSwitches { masquerade: None, forward: true, blackhole: false });
    assert_eq!((flags.resync, flags.health, flags.verbosity), (Duration::from_secs(5), None, 0));
    assert!(flags.node.external.interfaces.is_empty() && flags.node.external.patterns.is_empty());
    assert_eq!((flags.node.external.can_reach, flags.node.external.public), (None, Dual::default()));
    assert_eq!(flags.ignored_from, None);
    assert!(flags.restore_ports);
}

#[test]
fn every_form_of_a_switch() {
    for (words, on) in [
        (vec!["-ip-masq"], true),
        (vec!["--ip-masq"], true),
        (vec!["-ip-masq=true"], true),
        (vec!["--ip-masq=T"], true),
        (vec!["--ip-masq=1"], true),
        (vec!["--ip-masq=True"], true),
        (vec!["--ip-masq=TRUE"], true),
        (vec!["--ip-masq=t"], true),
        (vec!["--ip-masq=0"], false),
        (vec!["--ip-masq=f"], false),
        (vec!["--ip-masq=F"], false),
        (vec!["--ip-masq=false"], false),
        (vec!["--ip-masq=False"], false),
        (vec!["--ip-masq=FALSE"], false),
        (vec!["--ip-masq", "--ip-masq=false"], false),
        (vec!["--ip-masq=false", "--ip-masq"], true),
    ] {
        assert_eq!(flags(&words, &[]).node.rules.masquerade.is_some(), on, "{words:?}");
    }
}

#[test]
fn every_form_of_a_value() {
    for (words, path) in [
        (vec!["-subnet-file", "/a"], "/a"),
        (vec!["--subnet-file", "/a"], "/a"),
        (vec!["-subnet-file=/a"], "/a"),
        (vec!["--subnet-file=/a=b"], "/a=b"),
        (vec!["--subnet-file", "--ip-masq"], "--ip-masq"),
        (vec!["--subnet-file=/a", "--subnet-file=/b"], "/b"),
    ] {
        assert_eq!(flags(&words, &[]).subnet_file, PathBuf::from(path), "{words:?}");
    }
    for (word, port) in [("8081", 8081), ("0x1f91", 8081), ("0o17621", 8081), ("017621", 8081), ("0b11", 3), ("+5", 5)]
    {
        assert_eq!(flags(&["--healthz-port", word], &[]).health.unwrap().port(), port, "{word}");
    }
}

#[test]
fn flags_end_at_the_first_word_that_is_none() {
    for (words, from) in [
        (vec!["--ip-masq", "false", "--ip-blackhole-route"], Some(3)),
        (vec!["--ip-masq", "--", "--ip-blackhole-route"], Some(4)),
        (vec!["--ip-masq", "-", "--ip-blackhole-route"], Some(3)),
        (vec!["--ip-masq", "", "--ip-blackhole-route"], Some(3)),
        (vec!["--ip-masq", "--"], None),
    ] {
        let flags = flags(&words, &[]);
        assert_eq!(
            (flags.ignored_from, flags.node.rules.masquerade.is_some(), flags.node.rules.blackhole),
            (from, true, false)
        );
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_default() {
    let shown = |flags: &Flags| flags.node.external.interfaces.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&flags(&[], &[("FLANNELD_IFACE", "eth0,eth1")])), ["eth0,eth1"], "one entry, not two");
    let environment = [("FLANNELD_SUBNET_FILE", "/e"), ("FLANNELD_IP_MASQ", "true"), ("FLANNELD_IFACE", "eth0")];
    let flags = flags(&["--subnet-file=/f", "--iface=eth7", "--iface=192.0.2.1"], &environment);
    assert_eq!(flags.subnet_file, PathBuf::from("/f"));
    assert!(flags.node.rules.masquerade.is_some());
    assert_eq!(shown(&flags), ["eth7", "192.0.2.1"]);
}

#[test]
fn an_empty_variable_is_unset_and_a_shadowed_one_unread() {
    assert_eq!(flags(&[], &[("FLANNELD_HEALTHZ_PORT", ""), ("FLANNELD_OTHER", "x")]).health, None);
    assert!(flags(&["--healthz-port=1"], &[("FLANNELD_HEALTHZ_PORT", "x")]).health.is_some());
    assert!(matches!(given(&[LOCAL], &[("FLANNELD_VERSION", "true")]), Ok(Command::Run(_))));
    assert!(matches!(given(&[], &[("FLANNELD_LOCAL_STORE", "/l")]), Ok(Command::Run(_))));
}

#[test]
fn every_flag_of_the_field_is_known() {
    let all = "etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password iface \
        iface-regex iface-can-reach subnet-file public-ip public-ipv6 subnet-lease-renew-margin ip-masq \
        ip-masq-fully-random-disable kube-subnet-mgr kube-api-url kubeconfig-file kube-annotation-prefix version \
        healthz-ip healthz-port iptables-resync iptables-forward-rules ip-blackhole-route net-config-path \
        set-node-network-unavailable v vmodule log_backtrace_at local-store restore-ports";
    let mut all: Vec<&str> = all.split_whitespace().collect();
    let mut known: Vec<&str> = table::FLAGS.iter().map(|flag| flag.name).collect();
    all.sort_unstable();
    known.sort_unstable();
    assert_eq!(known, all);
    assert!(all.iter().all(|name| usage().contains(&format!("\n  -{name}"))));
}

#[test]
fn help_and_version_end_the_reading() {
    for word in ["-h", "--h", "-help", "--help"] {
        assert!(matches!(given(&[word, "--bogus"], &[("FLANNELD_V", "x")]), Ok(Command::Help)), "{word}");
    }
    assert!(matches!(given(&["--version"], &[("FLANNELD_V", "x")]), Ok(Command::Version)));
    assert_eq!(error(&["--version", "--bogus"], &[]), "2 unknown flag: `-bogus`");
}

#[test]
fn what_is_wrong_is_said() {
    let table: &[(&[&str], &str)] = &[
        (&["---x=secret"], "2 bad flag syntax: `---x`"),
        (&["-=x"], "2 bad flag syntax: `-`"),
        (&["--ipmasq"], "2 unknown flag: `-ipmasq`; did you mean `-ip-masq`?"),
        (&["--etcd-pasword=secret"], "2 unknown flag: `-etcd-pasword`; did you mean `-etcd-password`?"),
        (&["--subnet-file"], "2 flag `-subnet-file` needs a value"),
        (&["--subnet-file="], "2 bad value `` for `-subnet-file`: a path is needed"),
        (&["--ip-masq=yes"], "2 bad value `yes` for `-ip-masq`: a switch is `true` or `false`, written `-flag=false`"),
        (&["--healthz-port=http"], "2 bad value `http` for `-healthz-port`: not a whole number"),
        (&["--healthz-port="], "2 bad value `` for `-healthz-port`: not a whole number"),
        (&["--healthz-port=0x"], "2 bad value `0x` for `-healthz-port`: not a whole number"),
        (&["--healthz-port=--5"], "2 bad value `--5` for `-healthz-port`: not a whole number"),
        (&["--healthz-port=65536"], "2 bad value `65536` for `-healthz-port`: must be 0 to 65535"),
        (&["--iptables-resync=0"], "2 bad value `0` for `-iptables-resync`: must be 1 to 4294967295"),
        (&["--healthz-ip=here"], "2 bad value `here` for `-healthz-ip`: not an IP address"),
        (&["--public-ip=2001:db8::1"], "2 bad value `2001:db8::1` for `-public-ip`: not an IPv4 address"),
        (&["--public-ipv6=192.0.2.1"], "2 bad value `192.0.2.1` for `-public-ipv6`: not an IPv6 address"),
        (&["--iface-can-reach=gw"], "2 bad value `gw` for `-iface-can-reach`: not an IP address"),
        (&["--iface=no such"], "2 bad value `no such` for `-iface`: neither an address nor the name of an interface"),
        (
            &["--subnet-lease-renew-margin=0"],
            "1 bad value `0` for `-subnet-lease-renew-margin`: the margin must be 1 to 1439 minutes",
        ),
        (
            &["--subnet-lease-renew-margin", "1440"],
            "1 bad value `1440` for `-subnet-lease-renew-margin`: the margin must be 1 to 1439 minutes",
        ),
    ];
    for (args, expected) in table {
        assert_eq!(error(args, &[]), *expected, "{args:?}");
    }
    assert!(error(&["--iface-regex=("], &[]).starts_with("2 bad value `(` for `-iface-regex`: "));
    assert_eq!(
        error(&[LOCAL], &[("FLANNELD_HEALTHZ_PORT", "x")]),
        "2 bad value `x` for `FLANNELD_HEALTHZ_PORT`: not a whole number"
    );
}

#[test]
fn one_store_is_asked_for() {
    let both = "2 `-local-store` and `-kube-subnet-mgr` exclude each other: leases are kept in one place; \
        give --local-store alone, or the flags of one other store";
    assert_eq!(error(&[LOCAL, "--kube-subnet-mgr"], &[]), both);
    let both = both.replace("-kube-subnet-mgr", "FLANNELD_ETCD_PREFIX");
    assert_eq!(error(&[LOCAL], &[("FLANNELD_ETCD_PREFIX", "/p")]), both);
    assert!(given(&[LOCAL, "--kube-subnet-mgr=false", "--etcd-username="], &[]).is_ok());
}

fn kube_options(args: &[&str], environment: &[(&str, &str)]) -> String {
    let args = ["--kube-subnet-mgr"].iter().chain(args).copied().collect::<Vec<_>>();
    match given(&args, environment) {
        Ok(Command::Run(flags)) => match flags.store {
            StoreChoice::Kube(options) => {
                let kube::Options { access, node, prefix, config, sets_condition } = *options;
                let servers: Vec<_> =
                    access.servers.iter().chain(&access.in_cluster).map(ToString::to_string).collect();
                let file = access.kubeconfig.map(|path| path.display().to_string()).unwrap_or_default();
                format!("{} {file} {node:?} {prefix} {} {sets_condition}", servers.join(" "), config.display())
            }
            other => panic!("{other:?}"),
        },
        Ok(_) => panic!("{args:?}"),
        Err(error) => format!("{} {error}", error.exit_code()),
    }
}

#[test]
fn where_kubernetes_is_and_which_node_this_is() {
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443"), ("NODE_NAME", "n1")];
    let rest = "flannel.alpha.coreos.com/ /etc/kube-flannel/net-conf.json true";
    assert_eq!(kube_options(&[], &pod), format!("https://10.96.0.1:443  Given(\"n1\") {rest}"));
    let six = [("KUBERNETES_SERVICE_HOST", "fd00::1"), pod[1], pod[2]];
    assert_eq!(kube_options(&[], &six), format!("https://[fd00::1]:443  Given(\"n1\") {rest}"));
    let names = [("POD_NAME", "p"), ("POD_NAMESPACE", "ns"), ("NODE_NAME", "")];
    assert_eq!(
        kube_options(&["--kube-api-url=https://a:6443,https://b:6443"], &names),
        format!("https://a:6443 https://b:6443  OfPod {{ namespace: \"ns\", name: \"p\" }} {rest}")
    );
    let words = [
        "--kubeconfig-file=/k",
        "--net-config-path=/c",
        "--set-node-network-unavailable=false",
        "--kube-annotation-prefix=a.b/c",
    ];
    assert_eq!(kube_options(&words, &pod[2..]), " /k Given(\"n1\") a.b/c- /c false");
    let nowhere =
        "1 where the Kubernetes API is cannot be told: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set";
    assert_eq!(kube_options(&[], &pod[2..]), nowhere);
    let nobody = "1 which Node this is cannot be told: neither NODE_NAME is set, nor POD_NAME and POD_NAMESPACE";
    assert_eq!(kube_options(&[], &pod[..2]), nobody);
    assert_eq!(
        kube_options(&["--kube-api-url=ftp://a"], &pod),
        "2 bad value `ftp://a` for `-kube-api-url`: the scheme is http or https"
    );
    assert_eq!(
        kube_options(&["--kube-annotation-prefix=x"], &pod),
        "2 bad value `x` for `-kube-annotation-prefix`: `x` is not a prefix for annotations: it must begin with a domain name \
         such as example.org, in lower case"
    );
}

fn etcd_options(args: &[&str], environment: &[(&str, &str)]) -> etcd::Options {
    match given(args, environment) {
        Ok(Command::Run(flags)) => match flags.store {
            StoreChoice::Etcd(options) => *options,
            other => panic!("{other:?}"),
        },
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn etcd_is_the_default() {
    let options = etcd_options(&[], &[]);
    let endpoints = |options: &etcd::Options| options.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(endpoints(&options), ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!((options.prefix.as_str(), options.login), ("/coreos.com/network", None));
    assert_eq!((options.tls, options.ttl), (TlsFiles::default(), Duration::from_hours(24)));
    let all = [
        ("FLANNELD_ETCD_ENDPOINTS", "https://a:1,b"),
        ("FLANNELD_ETCD_PREFIX", "/p"),
        ("FLANNELD_ETCD_CAFILE", "/ca"),
        ("FLANNELD_ETCD_CERTFILE", "/crt"),
        ("FLANNELD_ETCD_KEYFILE", "/key"),
        ("FLANNELD_ETCD_USERNAME", "u"),
        ("FLANNELD_ETCD_PASSWORD", "s3cret"),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "5"),
    ];
    let options = etcd_options(&[], &all);
    assert_eq!(
        (endpoints(&options), options.prefix.as_str()),
        (vec!["https://a:1".into(), "https://b:2379".into()], "/p")
    );
    assert_eq!(options.tls.authority, Some("/ca".into()));
    assert_eq!(options.tls.identity, Some(("/crt".into(), "/key".into())));
    assert_eq!(options.login, Some(Login { name: "u".into(), password: "s3cret".into() }));
    assert_eq!(options.renew_margin, Duration::from_mins(5));
    assert!(!format!("{options:?}").contains("s3cret"));
    assert_eq!(etcd_options(&["--etcd-cafile=/ca"], &[]).tls.identity, None, "an authority alone counts");
}

#[test]
fn what_is_wrong_with_etcd_is_said() {
    let table: &[(&[&str], &str)] = &[
        (&["--etcd-endpoints=ftp://a"], "2 bad value `ftp://a` for `-etcd-endpoints`: the scheme is http or https"),
        (&["--etcd-endpoints=http://a,"], "2 bad value `` for `-etcd-endpoints`: the host is missing"),
        (
            &["--etcd-endpoints=http://u:s3cret@a"],
            "2 bad value `http://(hidden)@a` for `-etcd-endpoints`: only a host and a port may follow the scheme",
        ),
        (
            &["--etcd-certfile=/crt"],
            "2 bad value `/crt` for `-etcd-certfile`: a certificate needs its key: give -etcd-keyfile too",
        ),
        (
            &["--etcd-keyfile=/key"],
            "2 bad value `/key` for `-etcd-keyfile`: a key needs its certificate: give -etcd-certfile too",
        ),
        (&["--etcd-password=s3cret"], "2 bad value `(hidden)` for `-etcd-password`: a password needs -etcd-username"),
    ];
    for (args, expected) in table {
        assert_eq!(error(args, &[]), *expected, "{args:?}");
    }
}

#[test]
fn secrets_are_hidden() {
    let raw = Raw::of_args(["--etcd-password", "s3cret", "--iface=a", "--iface=b"].map(OsString::from)).unwrap();
    assert_eq!(raw.to_string(), "-etcd-password=(hidden) -iface=a -iface=b");
    assert!(!error(&["--etcd-password=s3cret"], &[]).contains("s3cret"));
    assert!(!error(&[], &[("FLANNELD_ETCD_PASSWORD", "s3cret")]).contains("s3cret"));
}

#[test]
fn a_tool_takes_the_flags_of_etcd_from_anywhere() {
    let read = |args: &[&str], environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        super::etcd_options(args.iter().map(OsString::from), environment)
    };
    let args = ["ls", "-etcd-prefix=/a", "-o", "json", "--etcd-endpoints", "http://a:1", "--", "-etcd-x"];
    let environment = [("FLANNELD_ETCD_PREFIX", "/b"), ("FLANNELD_ETCD_USERNAME", "u"), ("FLANNELD_IP_MASQ", "maybe")];
    let (options, words) = read(&args, &environment).unwrap();
    assert_eq!(words, ["ls", "-o", "json", "--", "-etcd-x"]);
    assert_eq!((options.prefix.as_str(), options.endpoints[0].to_string().as_str()), ("/a", "http://a:1"));
    assert_eq!(options.login, Some(Login { name: "u".into(), password: String::new() }));
    let refused = |args: &[&str]| read(args, &[]).unwrap_err().to_string();
    assert_eq!(refused(&["ls", "-etcd-prefix"]), "flag `-etcd-prefix` needs a value");
    assert_eq!(
        refused(&["--etcd-password=s3cret"]),
        "bad value `(hidden)` for `-etcd-password`: a password needs -etcd-username"
    );
    assert_eq!(refused(&["--etcd-passwort=s3cret"]), "unknown flag: `-etcd-passwort`");
}
