//! Kubeconfig files: the server, the authority and the credential of the current context.
//!
//! Read with every connection. What flannel cannot do is said, never passed over: a proxy, a password, an authentication provider of
//! old.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use yaml_rust2::{Yaml, YamlLoader};

use super::access::{AccessError, Credential, Server, Way};
use super::exec::{self, Plugin};
use crate::tls::{Pem, Tls};

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KubeconfigError {
    #[error("cannot read kubeconfig {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("kubeconfig {}: {why}", path.display())]
    Bad { path: PathBuf, why: String },
}

/// Reads a kubeconfig, and asks the plugin that it names for a credential.
pub(super) async fn open(path: &Path) -> Result<Way, AccessError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| KubeconfigError::Unreadable { path: path.to_owned(), source })?;
    let file = Kubeconfig::read(path, &text)?;
    let mut way = Way { servers: vec![file.server], tls: file.tls, credential: file.credential };
    if let Some(plugin) = file.plugin {
        let found = exec::ask(plugin).await?;
        way.tls.identity = found.identity.map(|(certificate, key)| (pem_of(path, certificate), pem_of(path, key)));
        if let Some(token) = found.token {
            way.credential = Credential::token(&token, path)?;
        }
    }
    Ok(way)
}

fn pem_of(path: &Path, text: impl Into<Arc<[u8]>>) -> Pem {
    Pem::Text { of: path.to_owned(), text: text.into() }
}

/// What the current context says.
#[derive(Debug)]
struct Kubeconfig {
    server: Server,
    tls: Tls,
    credential: Credential,
    plugin: Option<Plugin>,
}

/// A mapping of the file, with its place in it.
struct Part<'a> {
    file: &'a Path,
    place: String,
    yaml: &'a Yaml,
}

impl Kubeconfig {
    fn read(path: &Path, text: &str) -> Result<Self, AccessError> {
        let bad = |why: String| KubeconfigError::Bad { path: path.to_owned(), why };
        let documents = YamlLoader::load_from_str(text).map_err(|error| bad(format!("it is not YAML: {error}")))?;
        let yaml = documents.first().filter(|yaml| yaml.as_hash().is_some());
        let yaml = yaml.ok_or_else(|| bad("it is empty".to_owned()))?;
        let whole = Part { file: path, place: String::new(), yaml };
        let context = whole.text("current-context")?.ok_or_else(|| bad("it has no current-context".to_owned()))?;
        let context = whole.named("contexts", &context, "context")?;
        let cluster = context.text("cluster")?.ok_or_else(|| context.bad("has no cluster"))?;
        let cluster = whole.named("clusters", &cluster, "cluster")?;
        let user = match context.text("user")? {
            Some(user) => Some(whole.named("users", &user, "user")?),
            None => None,
        };
        cluster.refuse(&[("proxy-url", "names a proxy, which flanneld cannot use")])?;
        let url = cluster.text("server")?.ok_or_else(|| cluster.bad("has no server"))?;
        let server =
            Server::parse(&url).map_err(|error| cluster.bad(&format!("server `{}`: {}", error.text, error.why)))?;
        let mut tls = Tls {
            authority: cluster.pem("certificate-authority")?,
            identity: None,
            name: cluster.text("tls-server-name")?,
            trusts_all: cluster.yaml["insecure-skip-tls-verify"].as_bool() == Some(true),
        };
        let (mut credential, mut plugin) = (Credential::None, None);
        if let Some(user) = user {
            (tls.identity, credential, plugin) = (user.identity()?, user.credential()?, user.plugin()?);
        }
        Ok(Self { server, tls, credential, plugin })
    }
}

impl<'a> Part<'a> {
    fn bad(&self, why: &str) -> KubeconfigError {
        let place = if self.place.is_empty() { String::new() } else { format!("{} ", self.place) };
        KubeconfigError::Bad { path: self.file.to_owned(), why: format!("{place}{why}") }
    }

    /// A text; none if it is absent or empty.
    fn text(&self, key: &str) -> Result<Option<String>, KubeconfigError> {
        match &self.yaml[key] {
            Yaml::BadValue | Yaml::Null => Ok(None),
            Yaml::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Yaml::Integer(number) => Ok(Some(number.to_string())),
            _ => Err(self.bad(&format!("{key} is not a text"))),
        }
    }

    /// The element of a list that has a name, and in it what `inner` names.
    fn named(&self, list: &str, name: &str, inner: &str) -> Result<Part<'a>, KubeconfigError> {
        let place = format!("{inner} {name}");
        let elements = self.yaml[list].as_vec().map(Vec::as_slice).unwrap_or_default();
        let found = elements.iter().find(|element| element["name"].as_str() == Some(name));
        let yaml = found.map(|element| &element[inner]).filter(|yaml| yaml.as_hash().is_some());
        let yaml = yaml.ok_or_else(|| self.bad(&format!("has no {place} in {list}")))?;
        Ok(Part { file: self.file, place, yaml })
    }

    /// Says that flannel cannot do what some keys want.
    fn refuse(&self, keys: &[(&str, &str)]) -> Result<(), KubeconfigError> {
        let refused = keys.iter().find(|(key, _)| !self.yaml[*key].is_badvalue());
        refused.map_or(Ok(()), |(key, why)| Err(self.bad(&format!("{key} {why}"))))
    }

    /// A file by its path, which is relative to the kubeconfig.
    fn file(&self, key: &str) -> Result<Option<PathBuf>, KubeconfigError> {
        let base = self.file.parent().unwrap_or(Path::new("/"));
        Ok(self.text(key)?.map(|path| base.join(path)))
    }

    /// PEM in `KEY-data`, which goes before the file that `KEY` names.
    fn pem(&self, key: &str) -> Result<Option<Pem>, KubeconfigError> {
        let inline = format!("{key}-data");
        let Some(data) = self.text(&inline)? else { return Ok(self.file(key)?.map(Pem::File)) };
        let text = STANDARD.decode(data.trim()).map_err(|_| self.bad(&format!("{inline} is not base64")))?;
        Ok(Some(pem_of(self.file, text)))
    }

    fn identity(&self) -> Result<Option<(Pem, Pem)>, KubeconfigError> {
        match (self.pem("client-certificate")?, self.pem("client-key")?) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (None, None) => Ok(None),
            _ => Err(self.bad("has only one of client-certificate and client-key")),
        }
    }

    fn credential(&self) -> Result<Credential, AccessError> {
        self.refuse(&[
            ("username", "and a password are not taken by Kubernetes any more: use a token or a certificate"),
            ("auth-provider", "is not known to Kubernetes any more: use exec"),
        ])?;
        match (self.text("token")?, self.file("tokenFile")?) {
            (_, Some(path)) => Ok(Credential::File(path)),
            (Some(token), None) => Credential::token(&token, self.file),
            (None, None) => Ok(Credential::None),
        }
    }

    fn plugin(&self) -> Result<Option<Plugin>, KubeconfigError> {
        let yaml = &self.yaml["exec"];
        if yaml.as_hash().is_none() {
            return Ok(None);
        }
        let exec = Part { file: self.file, place: format!("{} exec", self.place), yaml };
        let command = exec.text("command")?.ok_or_else(|| exec.bad("has no command"))?;
        // A name without a slash is looked for in PATH; else it is relative to the kubeconfig.
        let base = self.file.parent().unwrap_or(Path::new("/"));
        let command = if command.contains('/') { base.join(command) } else { command.into() };
        let texts = |list: &Yaml| list.as_vec().map(Vec::as_slice).unwrap_or_default().to_vec();
        let args = texts(&yaml["args"]).iter().filter_map(Yaml::as_str).map(str::to_owned).collect();
        let pair = |entry: &Yaml| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_str()?.to_owned()));
        let env = texts(&yaml["env"]).iter().filter_map(pair).collect();
        let version = exec.text("apiVersion")?.ok_or_else(|| exec.bad("has no apiVersion"))?;
        Ok(Some(Plugin { command, args, env, version }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: c
contexts:
- name: c
  context: {cluster: k, user: u}
clusters:
- name: k
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority: ca.crt
users:
- name: u
  user:
    token: abc
";

    fn read(from: &str, to: &str) -> String {
        assert!(FILE.contains(from), "{from}");
        match Kubeconfig::read(Path::new("/etc/k/config"), &FILE.replace(from, to)) {
            Ok(Kubeconfig { server, tls, credential, plugin }) => {
                format!("{server} {:?} {:?} {:?} {credential:?} {plugin:?}", tls.authority, tls.identity, tls.name)
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_current_context_is_read() {
        let ca = r#"Some(File("/etc/k/ca.crt"))"#;
        assert_eq!(read("kind", "kind"), format!("https://10.0.0.1:6443 {ca} None None Token(hidden) None"));
        assert_eq!(read("token: abc", "tokenFile: /t"), format!("https://10.0.0.1:6443 {ca} None None File(/t) None"));
        assert_eq!(
            read("certificate-authority: ca.crt", "certificate-authority-data: YWI=\n    tls-server-name: api"),
            r#"https://10.0.0.1:6443 Some(Text { of: "/etc/k/config", text: [97, 98] }) None Some("api") Token(hidden) None"#
        );
        assert_eq!(
            read("token: abc", "client-certificate: /c\n    client-key: k"),
            format!("https://10.0.0.1:6443 {ca} Some((File(\"/c\"), File(\"/etc/k/k\"))) None None None")
        );
        assert!(
            read("token: abc", "exec: {apiVersion: v1, command: ./p, args: [a], env: [{name: A, value: b}]}")
                .ends_with(r#"Some(Plugin { command: "/etc/k/./p", args: ["a"], env: [("A", "b")], version: "v1" })"#)
        );
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let check =
            |from: &str, to: &str, why: &str| assert_eq!(read(from, to), format!("kubeconfig /etc/k/config: {why}"));
        check("current-context: c", "", "it has no current-context");
        check("current-context: c", "current-context: d", "has no context d in contexts");
        check("user: u", "user: v", "has no user v in users");
        check("server: https://10.0.0.1:6443", "", "cluster k has no server");
        check("https://10.0.0.1:6443", "ftp://a", "cluster k server `ftp://a`: the scheme is http or https");
        check("token: abc", "client-key: k", "user u has only one of client-certificate and client-key");
        check("token: abc", "client-key-data: '%'", "user u client-key-data is not base64");
        check(
            "certificate-authority: ca.crt",
            "proxy-url: http://p",
            "cluster k proxy-url names a proxy, which flanneld cannot use",
        );
        check(
            "token: abc",
            "username: a",
            "user u username and a password are not taken by Kubernetes any more: use a token or a certificate",
        );
        check(FILE, "", "it is empty");
        assert!(read("contexts:", "contexts: [").starts_with("kubeconfig /etc/k/config: it is not YAML: "));
    }
}
