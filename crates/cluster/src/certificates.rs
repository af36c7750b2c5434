//! The authority of a cluster, and what it signs; made by `openssl`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{ClusterError, Doing};
use crate::place::Place;

/// Names that a server's certificate bears beside its addresses.
const SERVICE: &str = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc";

/// Files in PEM of somebody whom an authority vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// An authority in a folder of its own: `ca.crt`, `ca.key`.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes one.
    pub(crate) fn create(folder: &Path) -> Result<Self, ClusterError> {
        std::fs::create_dir_all(folder).on("make", folder)?;
        let authority = Self { folder: folder.to_owned() };
        authority.openssl(&format!("{NEW_KEY} -x509 -days 2 -subj /CN=ca -keyout ca.key -out ca.crt"))?;
        authority.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out accounts.key")?;
        authority.openssl("pkey -in accounts.key -pubout -out accounts.pub")?;
        Ok(authority)
    }

    /// A file of it: `ca.crt`, `ca.key`, or the keys that tokens of service accounts are signed and verified by, `accounts.key`
    /// and `accounts.pub`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server's certificate, in files of this name.
    pub(crate) fn server(&self, name: &str, addresses: &[IpAddr]) -> Result<Certificate, ClusterError> {
        let addresses = addresses.iter().map(|address| format!("IP:{address}"));
        let names: Vec<String> = std::iter::once(SERVICE.to_owned()).chain(addresses).collect();
        self.sign(name, &format!("/CN={name}"), &format!("subjectAltName={}\n", names.join(",")))
    }

    /// A client's: the name of a user, and its groups.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Certificate, ClusterError> {
        let file: String = user.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
        let subject = groups.iter().fold(format!("/CN={user}"), |subject, group| subject + "/O=" + group);
        self.sign(&file, &subject, "extendedKeyUsage=clientAuth\n")
    }

    fn sign(&self, file: &str, subject: &str, extensions: &str) -> Result<Certificate, ClusterError> {
        let extension_file = self.file(&format!("{file}.ext"));
        std::fs::write(&extension_file, extensions).on("write", &extension_file)?;
        self.openssl(&format!("{NEW_KEY} -new -subj {subject} -keyout {file}.key -out {file}.csr"))?;
        let signer = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2";
        self.openssl(&format!("x509 -req -in {file}.csr {signer} -extfile {file}.ext -out {file}.crt"))?;
        Ok(Certificate { certificate: self.file(&format!("{file}.crt")), key: self.file(&format!("{file}.key")) })
    }

    /// Runs `openssl` in the folder; its words have no blanks in them.
    fn openssl(&self, words: &str) -> Result<(), ClusterError> {
        let mut command = Command::new("openssl");
        command.args(words.split(' ')).current_dir(&self.folder);
        Place::here().run(command, "").map(drop)
    }
}

const NEW_KEY: &str = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
