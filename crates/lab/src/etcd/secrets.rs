//! Certificates, tokens and users of etcd servers that are run as in production; made by `openssl` and `etcdctl`.
//!
//! Surface: [`make`], [`rotate`], [`make_users`]. Servers show certificates of one authority, and want certificates of another
//! from their clients. A daemon shows one that names nobody, and logs in by a password for a token of short life. Between the
//! servers is neither.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Member, PREFIX, QUOTA};
use crate::error::{Doing, LabError};

/// The user that may do everything, and the one that the daemons are; both have the one password.
pub(super) const ROOT_USER: &str = "root";
const USER: &str = "flannel";
pub(super) const PASSWORD: &str = "s3cret";

/// The authorities of the servers' certificates and of the clients', and the file of those that clients trust.
const SERVERS: &str = "servers";
const CLIENTS: &str = "clients";
const TRUSTED: &str = "trusted.crt";
/// The daemons' certificate.
const CLIENT: &str = "client";

/// Makes the files in a directory; servers are known by name and address.
pub(super) fn make(root: &Path, servers: &[(String, IpAddr)]) -> Result<(), LabError> {
    authority(root, SERVERS)?;
    authority(root, CLIENTS)?;
    openssl(root, "genrsa -out tokens.key 2048")?;
    openssl(root, "rsa -in tokens.key -pubout -out tokens.pub")?;
    certify(root, servers)
}

/// Makes all certificates anew while the servers run: theirs come from a new authority, which clients trust beside the one
/// before.
pub(super) fn rotate(root: &Path, servers: &[(String, IpAddr)]) -> Result<(), LabError> {
    authority(root, SERVERS)?;
    certify(root, servers)
}

/// Makes a certificate for each server and one for the daemons, who trust the authority of before until they are made.
fn certify(root: &Path, servers: &[(String, IpAddr)]) -> Result<(), LabError> {
    let [trusted, unfinished, new] = [TRUSTED, "trusted.new", "servers.crt"].map(|name| root.join(name));
    let before = fs::read_to_string(&trusted).unwrap_or_default();
    let last = before.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default();
    let both = fs::read_to_string(&new).on("read", &new)? + last;
    fs::write(&unfinished, both).on("write", &unfinished)?;
    fs::rename(&unfinished, &trusted).on("write", &trusted)?;
    certificate(root, CLIENT, CLIENTS, "DNS:flannel")?;
    servers.iter().try_for_each(|(name, address)| certificate(root, name, SERVERS, &format!("IP:{address}")))
}

/// Makes an authority.
fn authority(root: &Path, name: &str) -> Result<(), LabError> {
    let subject = format!("-days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt");
    openssl(root, &format!("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes {subject}"))
}

/// Makes a key and its certificate, signed by an authority. It has no common name: etcd would take it for a user.
fn certificate(root: &Path, name: &str, by: &str, known_as: &str) -> Result<(), LabError> {
    let path = |end: &str| root.join(format!("{name}.{end}"));
    fs::write(path("names"), format!("subjectAltName = {known_as}\n")).on("write", &path("names"))?;
    let subject = format!("-subj /O={name} -keyout {name}.key.new -out {name}.csr");
    openssl(root, &format!("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes {subject}"))?;
    let signer = format!("-CA {by}.crt -CAkey {by}.key -CAcreateserial -days 2 -extfile {name}.names");
    openssl(root, &format!("x509 -req -in {name}.csr {signer} -out {name}.crt.new"))?;
    ["key", "crt"]
        .iter()
        .try_for_each(|kind| fs::rename(path(&format!("{kind}.new")), path(kind)).on("write", &path(kind)))
}

/// Runs `openssl` in a directory; its words have no blanks in them.
fn openssl(root: &Path, words: &str) -> Result<(), LabError> {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).current_dir(root).stdin(Stdio::null());
    let output = command.output().doing(|| "run openssl".into())?;
    if output.status.success() {
        return Ok(());
    }
    let cause = std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    Err(cause).doing(|| format!("do `openssl {words}`"))
}

/// The flags of a server. A token is good for three seconds, so that every daemon meets one that has expired.
pub(super) fn server_flags(root: &Path, name: &str) -> Vec<String> {
    let at = |file: &str| root.join(file).display().to_string();
    let tokens = format!("jwt,pub-key={},priv-key={},sign-method=RS256,ttl=3s", at("tokens.pub"), at("tokens.key"));
    vec![
        format!("--cert-file={}", at(&format!("{name}.crt"))),
        format!("--key-file={}", at(&format!("{name}.key"))),
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", at("clients.crt")),
        format!("--auth-token={tokens}"),
        format!("--quota-backend-bytes={QUOTA}"),
        "--bcrypt-cost=4".to_owned(),
    ]
}

/// The flags of a daemon, but for its password.
pub(super) fn flags(root: &Path) -> Vec<String> {
    let flag = |flag: &str, file: &str| format!("--etcd-{flag}={}", root.join(file).display());
    let user = format!("--etcd-username={USER}");
    vec![flag("cafile", TRUSTED), flag("certfile", "client.crt"), flag("keyfile", "client.key"), user]
}

/// Makes the users, with the rights that docs/etcd.md names, and lets in nobody else from then on.
pub(super) fn make_users(member: &Member) -> Result<(), LabError> {
    let prefix = format!("{PREFIX}/");
    let of = |user: &str| format!("{user}:{PASSWORD}");
    for words in [
        ["user", "add", &of(ROOT_USER)].as_slice(),
        &["user", "grant-role", ROOT_USER, "root"],
        &["user", "add", &of(USER)],
        &["role", "add", USER],
        &["role", "grant-permission", USER, "--prefix=true", "readwrite", &prefix],
        &["user", "grant-role", USER, USER],
        &["auth", "enable"],
    ] {
        member.ctl(words)?;
    }
    Ok(())
}
