//! A Kubernetes API server with an etcd of its own.
//!
//! Surface: [`ApiServer`], [`Options`], [`Identity`]. Who may do what is decided as in a real cluster (`Node`, `RBAC`,
//! `NodeRestriction`); nothing but the API is there: no controller makes a service account or deletes what belongs to what is gone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::certificates::{Authority, Certificate};
use crate::error::{ClusterError, Doing};
use crate::place::Place;
use crate::programs;
use crate::server::Server;

/// Where its etcd listens, on the loopback.
const ETCD: u16 = 22379;
const ETCD_PEERS: u16 = 22380;
/// Where roles are, and who has them.
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// What becomes part of the audit log: every request once, when it is answered; what was written too.
const AUDIT: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[
{"level":"Metadata","verbs":["get","list","watch"]},
{"level":"Metadata","resources":[{"group":"","resources":["secrets","serviceaccounts/token"]}]},
{"level":"Request"}]}"#;

/// How an API server is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it and its etcd run.
    pub place: Place,
    /// The folder of its files, which is made; in memory (tmpfs), as etcd waits for a disk.
    pub folder: PathBuf,
    /// Where it listens; it is reached by any address of its place.
    pub address: SocketAddr,
    /// Further addresses that its certificate is for.
    pub also_known_as: Vec<IpAddr>,
    /// The networks of Service addresses, as `--service-cluster-ip-range` takes them; the first is its own family.
    pub services: String,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Options {
    /// On the loopback of the caller's own network namespace, which must be up.
    pub fn here(folder: &Path) -> Self {
        Self {
            place: Place::here(),
            folder: folder.to_owned(),
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 6443),
            also_known_as: Vec::new(),
            services: "10.96.0.0/16".into(),
            arguments: Vec::new(),
        }
    }
}

/// As whom a client speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Who a certificate says.
    Certificate(Certificate),
    /// Who a bearer token says.
    Token(String),
}

/// An API server, running or not. Both it and its etcd are killed when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    options: Options,
    authority: Authority,
    admin: Certificate,
    etcd: Server,
    server: Server,
}

impl ApiServer {
    /// Starts one, and waits until it answers and its own roles are there.
    pub fn start(options: Options) -> Result<Self, ClusterError> {
        fs::create_dir_all(&options.folder).on("make", &options.folder)?;
        let authority = Authority::create(&options.folder.join("pki"))?;
        let addresses =
            [&[options.address.ip(), first_service(&options.services)], &options.also_known_as[..]].concat();
        let serving = authority.server("kube-apiserver", &addresses)?;
        let admin = authority.client("admin", &["system:masters"])?;
        let policy = options.folder.join("audit-policy.json");
        fs::write(&policy, AUDIT).on("write", &policy)?;
        let server =
            |name, program, arguments| Server::new(name, program, options.place.clone(), &options.folder, arguments);
        let etcd = server("etcd", programs::etcd()?, etcd_arguments(&options));
        let program = programs::kubernetes("kube-apiserver")?;
        let server = server("kube-apiserver", program, arguments(&options, &authority, &serving, &admin));
        let mut started = Self { options, authority, admin, etcd, server };
        started.resume()?;
        Ok(started)
    }

    /// Starts what does not run of it, and waits until it answers.
    pub fn resume(&mut self) -> Result<(), ClusterError> {
        self.etcd.start()?;
        self.server.start()?;
        self.wait()
    }

    /// Waits until it answers.
    fn wait(&mut self) -> Result<(), ClusterError> {
        let begun = Instant::now();
        while let Err(error) = self.text("/readyz") {
            let ended = self.etcd.has_ended().then_some(&self.etcd).or(self.server.has_ended().then_some(&self.server));
            if let Some(ended) = ended {
                return Err(ended.failed("ended"));
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.server.failed(format!("does not become ready: {error}")));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends the server at once (SIGKILL). Its etcd goes on.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        self.server.kill()
    }

    /// Halts the server (SIGSTOP), or lets it go on (SIGCONT): connections stay, and nobody answers.
    pub fn halt(&self, halted: bool) -> Result<(), ClusterError> {
        self.server.halt(halted)
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("https://{}", self.options.address)
    }

    /// The authority that vouches for it, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.authority.file("ca.crt")
    }

    /// The key that tokens of service accounts are signed by.
    pub fn accounts_key(&self) -> PathBuf {
        self.authority.file("accounts.key")
    }

    /// Who may do anything.
    pub fn admin(&self) -> Identity {
        Identity::Certificate(self.admin.clone())
    }

    /// A user by certificate: its name, and its groups.
    pub fn user(&self, name: &str, groups: &[&str]) -> Result<Identity, ClusterError> {
        self.authority.client(name, groups).map(Identity::Certificate)
    }

    /// The kubelet of a node.
    pub fn node(&self, name: &str) -> Result<Identity, ClusterError> {
        self.user(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// A service account by a token that holds an hour. The account is made where it is absent.
    pub fn account(&self, namespace: &str, name: &str) -> Result<Identity, ClusterError> {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        let made = self.request("POST", &accounts, Some(&account));
        made.map(drop).or_else(|error| if error.is_conflict() { Ok(()) } else { Err(error) })?;
        let wish = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let made = self.request("POST", &format!("{accounts}/{name}/token"), Some(&wish))?;
        let token = made["status"]["token"].as_str().unwrap_or_default();
        Ok(Identity::Token(token.to_owned()))
    }

    /// Gives a service account rights in the whole cluster, in place of those that this gave it before: resources of the core group,
    /// and the verbs of each. The role and its binding are named as the account is.
    pub fn grant(&self, namespace: &str, name: &str, rights: &[(&str, &[&str])]) -> Result<(), ClusterError> {
        let rule =
            |(resource, verbs): &(&str, &[&str])| json!({ "apiGroups": [""], "resources": [resource], "verbs": verbs });
        let rules: Vec<Value> = rights.iter().map(rule).collect();
        let role = json!({ "metadata": { "name": name }, "rules": rules });
        if self.request("PATCH", &format!("{RBAC}/clusterroles/{name}"), Some(&role)).is_ok() {
            return Ok(());
        }
        self.request("POST", &format!("{RBAC}/clusterroles"), Some(&role))?;
        let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name });
        let subject = json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name });
        let binding = json!({ "metadata": { "name": name }, "roleRef": role, "subjects": [subject] });
        self.request("POST", &format!("{RBAC}/clusterrolebindings"), Some(&binding)).map(drop)
    }

    /// A kubeconfig of this name in its folder, for somebody.
    pub fn kubeconfig(&self, name: &str, identity: &Identity) -> Result<PathBuf, ClusterError> {
        let path = self.options.folder.join(format!("{name}.kubeconfig"));
        let text = kubeconfig(&self.url(), &self.authority(), identity);
        fs::write(&path, text).on("write", &path)?;
        Ok(path)
    }

    /// What a request of the admin is answered with: JSON of the API, or null where the answer is none. A patch is a merge patch.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClusterError> {
        self.request_as(&self.admin(), method, path, body)
    }

    /// The same by somebody else.
    pub fn request_as(
        &self,
        identity: &Identity,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        let answer = self.send(identity, method, path, &body.map(Value::to_string).unwrap_or_default())?;
        Ok(serde_json::from_str(&answer).unwrap_or_default())
    }

    /// The same for what is read as text: `/readyz`, `/metrics`.
    pub fn text(&self, path: &str) -> Result<String, ClusterError> {
        self.send(&self.admin(), "GET", path, "")
    }

    fn send(&self, identity: &Identity, method: &str, path: &str, body: &str) -> Result<String, ClusterError> {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
            "--request",
            method,
        ]);
        curl.arg("--cacert").arg(self.authority());
        match identity {
            Identity::Certificate(own) => curl.arg("--cert").arg(&own.certificate).arg("--key").arg(&own.key),
            Identity::Token(token) => curl.args(["--header", &format!("Authorization: Bearer {token}")]),
        };
        if !body.is_empty() {
            let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
            curl.args(["--data-binary", "@-", "--header", &format!("Content-Type: application/{kind}")]);
        }
        curl.arg(format!("{}{path}", self.url()));
        let request = || format!("{method} {path}");
        let said = self.options.place.run(curl, body);
        let said =
            said.map_err(|error| ClusterError::Refused { request: request(), status: 0, message: error.to_string() })?;
        let (answer, status) = said.rsplit_once('\n').unwrap_or(("", &said));
        let status: u16 = status.parse().unwrap_or_default();
        if (200..300).contains(&status) {
            return Ok(answer.to_owned());
        }
        let refusal: Value = serde_json::from_str(answer).unwrap_or_default();
        let message = refusal["message"].as_str().unwrap_or(answer).to_owned();
        Err(ClusterError::Refused { request: request(), status, message })
    }

    /// What `kubectl` prints for the admin, with this to read.
    pub fn kubectl(&self, words: &[&str], input: &str) -> Result<String, ClusterError> {
        let mut command = Command::new(programs::kubernetes("kubectl")?);
        command.arg("--kubeconfig").arg(self.kubeconfig("admin", &self.admin())?);
        command.arg(format!("--cache-dir={}", self.options.folder.join("kubectl").display())).args(words);
        self.options.place.run(command, input)
    }

    /// All requests that were answered since it was first started, in order, as events of `audit.k8s.io/v1`: who (`user.username`,
    /// `userAgent`), what (`verb`, `requestURI`, `objectRef`), of what was written the object itself (`requestObject`), and
    /// how it was answered (`responseStatus.code`).
    pub fn audit(&self) -> Result<Vec<Value>, ClusterError> {
        let path = audit_log(&self.options);
        let text = fs::read_to_string(&path).on("read", &path)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

fn audit_log(options: &Options) -> PathBuf {
    options.folder.join("audit.log")
}

/// The address of the service `kubernetes`: the first after that of the network.
fn first_service(services: &str) -> IpAddr {
    let network = services.split(['/', ',']).next().and_then(|address| address.parse().ok());
    match network.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) | 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) | 1).into()),
    }
}

fn etcd_arguments(options: &Options) -> Vec<String> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let pairs = [
        ("data-dir", options.folder.join("etcd").display().to_string()),
        ("listen-client-urls", url(ETCD)),
        ("advertise-client-urls", url(ETCD)),
        ("listen-peer-urls", url(ETCD_PEERS)),
        ("initial-advertise-peer-urls", url(ETCD_PEERS)),
        ("initial-cluster", format!("default={}", url(ETCD_PEERS))),
    ];
    pairs.map(|(name, value)| format!("--{name}={value}")).to_vec()
}

fn arguments(options: &Options, authority: &Authority, serving: &Certificate, admin: &Certificate) -> Vec<String> {
    let file = |name| authority.file(name).display().to_string();
    let address = options.address.ip().to_string();
    let pairs = [
        ("etcd-servers", format!("http://127.0.0.1:{ETCD}")),
        ("advertise-address", address),
        ("secure-port", options.address.port().to_string()),
        ("tls-cert-file", serving.certificate.display().to_string()),
        ("tls-private-key-file", serving.key.display().to_string()),
        ("client-ca-file", file("ca.crt")),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("allow-privileged", "true".into()),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", file("accounts.pub")),
        ("service-account-signing-key-file", file("accounts.key")),
        ("service-cluster-ip-range", options.services.clone()),
        ("endpoint-reconciler-type", "master-count".into()),
        ("kubelet-client-certificate", admin.certificate.display().to_string()),
        ("kubelet-client-key", admin.key.display().to_string()),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("audit-policy-file", options.folder.join("audit-policy.json").display().to_string()),
        ("audit-log-path", audit_log(options).display().to_string()),
    ];
    let own = pairs.map(|(name, value)| format!("--{name}={value}"));
    own.into_iter().chain(options.arguments.iter().cloned()).collect()
}

/// In the form that `kubectl config` writes.
fn kubeconfig(url: &str, authority: &Path, identity: &Identity) -> String {
    let who = match identity {
        Identity::Certificate(Certificate { certificate, key }) => {
            format!("    client-certificate: {}\n    client-key: {}\n", certificate.display(), key.display())
        }
        Identity::Token(token) => format!("    token: {token}\n"),
    };
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster:
    certificate-authority: {}
    server: {url}
contexts:
- name: context
  context:
    cluster: cluster
    user: user
current-context: context
preferences: {{}}
users:
- name: user
  user:
{who}",
        authority.display()
    )
}
