//! A lab on an etcd that somebody else runs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flannel_kernel::mount;

use crate::network::{enclosed, flannel};
use crate::said;
use crate::server::run;

/// An etcd of somebody else, on the loopback of the machine: plainly, and in TLS under the name `localhost`.
struct Yours(Child);

impl Drop for Yours {
    fn drop(&mut self) {
        let _gone_already = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Yours {
    const PLAIN: &str = "http://127.0.0.1:2379";
    const TLS: &str = "https://localhost:2378";

    fn start() -> Self {
        mount::tmpfs(Path::new("/mnt")).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=yours \
                     -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout /mnt/key -out /mnt/crt";
        run("openssl", &words.split_whitespace().collect::<Vec<_>>());
        let urls = format!("{},{}", Self::PLAIN, Self::TLS.replace("localhost", "127.0.0.1"));
        let mut command = Command::new(std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into()));
        command.args(["--data-dir=/mnt/data", "--cert-file=/mnt/crt", "--key-file=/mnt/key", "--log-level=error"]);
        command.args([format!("--listen-client-urls={urls}"), format!("--advertise-client-urls={urls}")]);
        let yours = Self(command.stdin(Stdio::null()).spawn().expect("etcd: apt-get install etcd-server"));
        Self::until("health", |_| true);
        yours
    }

    /// What `etcdctl` prints, which may fail.
    fn ctl(words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(std::env::var_os("ETCDCTL").unwrap_or_else(|| "etcdctl".into()));
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", Self::PLAIN)).args(words);
        let output = command.output().expect("etcdctl: apt-get install etcd-client");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Waits until the keys that begin with this are as they should be, and names them.
    fn until(prefix: &str, is: impl Fn(&[String]) -> bool) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let keys = Self::ctl(&["get", "--prefix", "--keys-only", prefix]);
            let keys = keys.map(|keys| keys.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            match keys {
                Ok(keys) if is(&keys) => return keys,
                other => assert!(begun.elapsed() < Duration::from_secs(20), "{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn an_etcd_of_somebody_else_holds_a_lab_and_nothing_of_it_stays() {
    if !enclosed("elsewhere::an_etcd_of_somebody_else_holds_a_lab_and_nothing_of_it_stays") {
        return;
    }
    let _yours = Yours::start();
    Yours::ctl(&["put", "/coreos.com/network/config", r#"{"Network": "10.1.0.0/16"}"#]).unwrap();
    let store = format!("--store=etcd={}", Yours::PLAIN);
    let up = ["lab", "up", &store, "--nodes=2", "--pods=1"];
    let (code, text) = said(&[&up[..], &["--etcd-prefix=/coreos.com/network"]].concat());
    assert!(code == Some(1) && text.contains("has another network at /coreos.com/network"), "{text}");
    let (code, text) = said(&up);
    assert_eq!(code, Some(0), "{text}");
    let names = ["/config", "/subnets/10.244.1.0-24", "/subnets/10.244.2.0-24"];
    let keys = Yours::until("/flannel-lab-", |keys| !keys.is_empty());
    assert!(names.iter().all(|name| keys.iter().any(|key| key.ends_with(name))), "{keys:?}");
    let (code, text) = said(&["lab", "prove"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(said(&["lab", "down"]).0, Some(0));
    Yours::until("/flannel-lab-", <[String]>::is_empty);
    Yours::until("/coreos.com/network/", |keys| keys == ["/coreos.com/network/config"]);
}

#[test]
fn an_etcd_of_somebody_else_may_have_tls_and_users() {
    if !enclosed("elsewhere::an_etcd_of_somebody_else_may_have_tls_and_users") {
        return;
    }
    let _yours = Yours::start();
    for words in [
        ["user", "add", "root:r00t"].as_slice(),
        &["user", "grant-role", "root", "root"],
        &["user", "add", "flannel:s3cret"],
        &["role", "add", "flannel"],
        &["role", "grant-permission", "flannel", "--prefix=true", "readwrite", "/p/"],
        &["user", "grant-role", "flannel", "flannel"],
        &["put", "/p/config", r#"{"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}"#],
        &["auth", "enable"],
    ] {
        Yours::ctl(words).unwrap();
    }
    std::fs::write("/mnt/config", r#"{"Backend": {"Type": "vxlan"}, "Network": "10.9.0.0/16"}"#).unwrap();
    let store = format!("--store=etcd={}", Yours::TLS);
    let words = ["--etcd-prefix=/p", "--etcd-cafile=/mnt/crt", "--etcd-username=flannel", "--config=/mnt/config"];
    let mut lab = flannel(&[&["lab", &store, "--nodes=2", "--pods=1"][..], &words].concat());
    let output = lab.env("FLANNELD_ETCD_PASSWORD", "s3cret").output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && !text.contains("s3cret"), "{text}");
    let root = ["--user=root:r00t", "get", "--prefix", "--keys-only", "/p/"];
    let keys = Yours::ctl(&root).unwrap();
    let records = keys.lines().filter(|key| key.starts_with("/p/subnets/10.9.")).count();
    assert!(records == 2 && keys.contains("/p/config"), "what was there before the lab stays: {keys}");
}
