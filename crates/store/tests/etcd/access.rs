//! Who is let in: TLS in its kinds, users and their rights; and what is said to those who are not.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flannel_kernel::process::rerun_enclosed;
use flannel_store::etcd::{EtcdStore, Login, Options, TlsFiles};
use flannel_store::{Store, StoreEvent};
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::LevelFilter;

use crate::laws::{CONFIG, Told, claim, config, record};
use crate::log::Log;
use crate::server::{self, Server, run};
use crate::{host, in_runtime, options};

/// Makes an authority of this name below /run.
fn authority(name: &str) {
    let (key, certificate) = (format!("/run/{name}.key"), format!("/run/{name}.crt"));
    let subject = format!("/CN={name}");
    let make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    run("openssl", &[make.as_slice(), &["-subj", &subject, "-keyout", &key, "-out", &certificate]].concat());
}

/// Makes a key and its certificate below /run, signed by an authority, for `days` from now.
fn certificate(name: &str, by: &str, days: &str) {
    let [key, request, certificate] = ["key", "csr", "crt"].map(|kind| format!("/run/{name}.{kind}"));
    let [authority, signer] = ["crt", "key"].map(|kind| format!("/run/{by}.{kind}"));
    let make = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"];
    run("openssl", &[make.as_slice(), &[&format!("/CN={name}"), "-keyout", &key, "-out", &request]].concat());
    fs::write("/run/names", "subjectAltName = IP:127.0.0.1, DNS:localhost\n").unwrap();
    let sign = ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &signer, "-CAcreateserial"];
    run("openssl", &[sign.as_slice(), &["-days", days, "-extfile", "/run/names", "-out", &certificate]].concat());
}

fn files(authority: &str, identity: Option<(&str, &str)>) -> TlsFiles {
    let file = |name: &str| PathBuf::from(format!("/run/{name}"));
    TlsFiles { authority: Some(file(authority)), identity: identity.map(|(crt, key)| (file(crt), file(key))) }
}

fn with_tls(tls: TlsFiles) -> Options {
    Options { tls, ..options("https://127.0.0.1:2379", "/n") }
}

fn open(options: Options) -> EtcdStore {
    EtcdStore::new(options, host(1))
}

/// The first thing that is told of the config.
async fn first(options: Options) -> Result<String, String> {
    let mut events = open(options).watch();
    match timeout(Duration::from_secs(20), events.recv()).await.expect("nothing is told") {
        Some(StoreEvent::Config(config)) => config,
        other => panic!("{other:?}"),
    }
}

/// A server with certificates `server.*`; with an authority it wants certificates of its clients too.
fn secure(clients: Option<&str>) -> Server {
    let metrics = "--listen-metrics-urls=http://127.0.0.1:2381";
    let mut args = vec!["--cert-file=/run/server.crt", "--key-file=/run/server.key", metrics];
    let trusted = clients.map(|clients| format!("--trusted-ca-file=/run/{clients}.crt"));
    if let Some(trusted) = &trusted {
        args.extend(["--client-cert-auth", trusted]);
    }
    let mut server = Server::new(1, 1, true).with(&args);
    server.start();
    server.ctl(&["put", "/n/config", CONFIG]);
    server
}

#[test]
fn an_authority_alone_is_enough_and_is_read_anew() {
    if !rerun_enclosed("access::an_authority_alone_is_enough_and_is_read_anew") {
        return;
    }
    server::make_stage();
    authority("ca");
    certificate("server", "ca", "1");
    let mut server = secure(None);
    in_runtime(async {
        let store = open(with_tls(files("ca.crt", None)));
        let mut told = Told::by(&store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        server.kill();
        authority("ca");
        certificate("server", "ca", "1");
        server.start();
        server.ctl(&["put", "/n/subnets/10.1.0.0-24", &record(2, 1)]);
        told.until(&format!("10.1.0.0-24=2 {}=1", held.key)).await;
    });
}

#[test]
fn a_server_may_want_our_certificate() {
    if !rerun_enclosed("access::a_server_may_want_our_certificate") {
        return;
    }
    server::make_stage();
    for name in ["ca", "other"] {
        authority(name);
    }
    for (name, by) in [("server", "ca"), ("client", "ca"), ("second", "ca"), ("foreign", "other")] {
        certificate(name, by, "1");
    }
    let _server = secure(Some("ca"));
    in_runtime(async {
        let known = files("ca.crt", Some(("client.crt", "client.key")));
        assert_eq!(first(with_tls(known.clone())).await, Ok(CONFIG.to_owned()));
        open(with_tls(known)).hold(&config(CONFIG), &claim(1)).await.unwrap();
        for (files, cause, hint) in [
            (files("ca.crt", None), "", "give --etcd-certfile and --etcd-keyfile"),
            (files("ca.crt", Some(("foreign.crt", "foreign.key"))), "", "--etcd-certfile"),
            (
                files("ca.crt", Some(("client.crt", "second.key"))),
                "certificate /run/client.crt and key /run/second.key: ",
                "belong together",
            ),
            (files("ca.crt", Some(("client.crt", "client.crt"))), "key /run/client.crt holds none in PEM", ""),
            (
                files("ca.crt", Some(("absent.crt", "client.key"))),
                "cannot read client certificate /run/absent.crt: ",
                "",
            ),
            (files("other.crt", Some(("client.crt", "client.key"))), "UnknownIssuer", "--etcd-cafile"),
        ] {
            let told = first(with_tls(files)).await.unwrap_err();
            assert!(
                told.starts_with("etcd at https://127.0.0.1:2379 ") && told.contains(cause) && told.contains(hint),
                "{told}"
            );
        }
    });
}

#[test]
fn what_is_wrong_with_a_connection_is_said() {
    if !rerun_enclosed("access::what_is_wrong_with_a_connection_is_said") {
        return;
    }
    server::make_stage();
    authority("ca");
    certificate("server", "ca", "0");
    let _server = secure(None);
    in_runtime(async {
        sleep(Duration::from_secs(2)).await;
        let known = || files("ca.crt", None);
        for (tls, endpoint, cause, hint) in [
            (known(), "https://127.0.0.1:2379", "certificate expired", "give this server a new certificate"),
            (known(), "https://127.0.0.1:12379", "TLS", "http:// instead of https://"),
            (known(), "http://127.0.0.1:2379", "", "https://"),
            (known(), "http://127.0.0.1:9", "Connection refused", "--etcd-endpoints"),
            (known(), "http://127.0.0.1:2381", "", ""),
            (known(), "http://no-such-host.invalid", "", "--etcd-endpoints"),
        ] {
            let told = first(Options { tls, ..options(endpoint, "/n") }).await.unwrap_err();
            assert!(told.contains(cause) && told.contains(hint), "{told}");
        }
        let both = first(options("http://127.0.0.1:9,http://127.0.0.1:10", "/n")).await.unwrap_err();
        assert!(both.contains("http://127.0.0.1:9 ") && both.contains("http://127.0.0.1:10 "), "{both}");
    });
}

/// A server with users, of which `flannel` is granted something. It forgets tokens that are not used for a second.
pub(crate) fn with_users(grants: &[&[&str]]) -> Server {
    let mut server = server::alone_with(&["--auth-token-ttl=1"]);
    server.ctl(&["put", "/n/config", CONFIG]);
    server.ctl(&["user", "add", "root:root"]);
    server.ctl(&["user", "add", "flannel:s3cret"]);
    server.ctl(&["role", "add", "flannel"]);
    for grant in grants {
        server.ctl(&[["role", "grant-permission", "flannel"].as_slice(), grant].concat());
    }
    server.ctl(&["user", "grant-role", "root", "root"]);
    server.ctl(&["user", "grant-role", "flannel", "flannel"]);
    server.ctl(&["auth", "enable"]);
    server.credentials = vec!["--user=root:root".into()];
    server
}

pub(crate) fn as_user(name: &str, password: &str) -> Options {
    let login = Some(Login { name: name.into(), password: password.into() });
    Options { login, ..options("http://127.0.0.1:2379", "/n") }
}

#[test]
fn a_user_logs_in_and_again_when_the_token_is_not_known_any_more() {
    if !rerun_enclosed("access::a_user_logs_in_and_again_when_the_token_is_not_known_any_more") {
        return;
    }
    server::make_stage();
    let (mut server, log) = (with_users(&[&["--prefix=true", "readwrite", "/n/"]]), Log::begin(LevelFilter::TRACE));
    in_runtime(async {
        let store = open(as_user("flannel", "s3cret"));
        let mut told = Told::by(&store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        server.kill();
        server.start();
        server.ctl(&["put", "/n/subnets/10.1.0.0-24", &record(2, 1)]);
        told.until(&format!("10.1.0.0-24=2 {}=1", held.key)).await;
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(store.hold(&config(CONFIG), &claim(1)).await.unwrap(), held, "also when it has expired");
        // Any change of users or roles makes all tokens old.
        server.ctl(&["user", "add", "somebody:else"]);
        assert_eq!(store.hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
        for (options, cause, hint) in [
            (as_user("flannel", "wr0ng"), "authentication failed", "correct --etcd-username and --etcd-password"),
            (as_user("nobody", "s3cret"), "authentication failed", "correct --etcd-username and --etcd-password"),
            (as_user("somebody", "else"), "permission denied", "grant the user of --etcd-username readwrite"),
            (
                Options { login: None, ..as_user("", "") },
                "user name is empty",
                "give --etcd-username and --etcd-password",
            ),
        ] {
            let told = first(options).await.unwrap_err();
            assert!(told.contains(cause) && told.contains(hint), "{told}");
        }
        let shown = format!("{store:?}");
        for password in ["s3cret", "wr0ng", "else\""] {
            assert!(!log.text().contains(password) && !shown.contains(password), "{shown}");
        }
    });
}

#[test]
fn without_rights_on_more_than_the_records_all_but_rivals_works() {
    if !rerun_enclosed("access::without_rights_on_more_than_the_records_all_but_rivals_works") {
        return;
    }
    server::make_stage();
    let grants: [&[&str]; 2] = [&["--prefix=true", "readwrite", "/n/subnets/"], &["read", "/n/config"]];
    let (server, log) = (with_users(&grants), Log::begin(LevelFilter::TRACE));
    in_runtime(async {
        let store = open(as_user("flannel", "s3cret"));
        let mut told = Told::by(&store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        assert!(log.text().contains("without it two hosts with one public IP cannot be told apart"));
        assert_eq!(open(as_user("flannel", "s3cret")).hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
        server.ctl(&["put", "/n/subnets/10.1.0.0-24", &record(2, 1)]);
        told.until(&format!("10.1.0.0-24=2 {}=1", held.key)).await;
    });
}

#[test]
fn a_user_is_no_trouble_where_there_are_none() {
    if !rerun_enclosed("access::a_user_is_no_trouble_where_there_are_none") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    server.ctl(&["put", "/n/config", CONFIG]);
    in_runtime(async {
        assert_eq!(first(as_user("flannel", "s3cret")).await, Ok(CONFIG.to_owned()));
    });
}
