//! Credential plugins: programs that a kubeconfig names and that print a credential (`client.authentication.k8s.io`).

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// How long a plugin may take, and how often it is looked whether it is done.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// The most that a plugin may print, in bytes.
const LONGEST: u64 = 1 << 20;

/// A plugin, as the kubeconfig names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugin {
    pub(super) command: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    /// The `apiVersion` that it is to answer in.
    pub(super) version: String,
}

/// What a plugin answered.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

#[derive(Deserialize)]
struct ExecCredential {
    #[serde(default)]
    status: Status,
}

/// A credential.
pub(super) struct Found {
    pub(super) token: Option<String>,
    /// Certificate and key, in PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why a plugin gives none.
#[derive(Debug, thiserror::Error)]
#[error("credential plugin {}: {why}", command.display())]
pub(super) struct ExecError {
    command: PathBuf,
    why: String,
}

/// Runs a plugin, aside.
pub(super) async fn ask(plugin: Plugin) -> Result<Found, ExecError> {
    let command = plugin.command.clone();
    let fail = |why: String| ExecError { command, why };
    match tokio::task::spawn_blocking(move || run(&plugin)).await {
        Ok(answer) => answer.and_then(|text| read(&text)).map_err(fail),
        Err(error) => Err(fail(error.to_string())),
    }
}

fn run(plugin: &Plugin) -> Result<Vec<u8>, String> {
    let information =
        serde_json::json!({"apiVersion": plugin.version, "kind": "ExecCredential", "spec": {"interactive": false}});
    let mut command = Command::new(&plugin.command);
    command.args(&plugin.args).envs(plugin.env.iter().cloned()).env("KUBERNETES_EXEC_INFO", information.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let out = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        out.map(|out| out.take(LONGEST).read_to_end(&mut text)).transpose().map(|_| text)
    });
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            _ => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(format!("no answer in {} s", PATIENCE.as_secs()));
            }
        }
    };
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    reader.join().ok().and_then(Result::ok).ok_or_else(|| "what it printed cannot be read".to_owned())
}

fn read(text: &[u8]) -> Result<Found, String> {
    let credential: ExecCredential =
        serde_json::from_slice(text).map_err(|error| format!("it printed no ExecCredential: {error}"))?;
    let Status { token, client_certificate_data, client_key_data } = credential.status;
    let identity = client_certificate_data.zip(client_key_data);
    if token.is_none() && identity.is_none() {
        return Err("its ExecCredential holds neither a token nor a certificate with its key".to_owned());
    }
    Ok(Found { token, identity: identity.map(|(certificate, key)| (certificate.into_bytes(), key.into_bytes())) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(script: &str) -> Plugin {
        Plugin {
            command: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("A".into(), "b".into())],
            version: "client.authentication.k8s.io/v1".into(),
        }
    }

    fn answer(script: &str) -> Result<(Option<String>, bool), String> {
        let found = run(&plugin(script)).and_then(|text| read(&text))?;
        Ok((found.token, found.identity.is_some()))
    }

    #[test]
    fn plugins_are_asked() {
        let token = r#"echo "{\"status\": {\"token\": \"$A\"}}""#;
        assert_eq!(answer(token), Ok((Some("b".into()), false)));
        let certificate = r#"echo '{"status": {"clientCertificateData": "c", "clientKeyData": "k"}}'"#;
        assert_eq!(answer(certificate), Ok((None, true)));
        assert_eq!(answer("exit 3"), Err("it ended with exit status: 3".into()));
        let empty = "its ExecCredential holds neither a token nor a certificate with its key";
        assert_eq!(answer("echo '{}'"), Err(empty.into()));
        assert!(answer("echo x").unwrap_err().starts_with("it printed no ExecCredential: "));
        let asked =
            r#"case "$KUBERNETES_EXEC_INFO" in *'"kind":"ExecCredential"'*) echo '{"status": {"token": "t"}}';; esac"#;
        assert_eq!(answer(asked), Ok((Some("t".into()), false)));
    }
}
