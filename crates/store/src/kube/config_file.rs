//! The network config in kube mode: `net-conf.json`, a file that a ConfigMap is mounted as.
//!
//! Kubelet changes a ConfigMap by exchanging a link beside the file. inotify on the directory hastens what a look every 30 seconds
//! would find as well.

use std::path::PathBuf;

use flannel_core::config::{ConfigError, ConfigRules, NetworkConfig};

use crate::hints::{Hints, Place};

/// The longest config that is read, in bytes: a ConfigMap has at most a MiB.
const LONGEST: u64 = 1 << 20;

/// The file of the network config.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    hints: Hints,
    last: Option<Result<Text, String>>,
}

/// A network config, and its text.
pub(super) type Text = (String, NetworkConfig);

impl ConfigFile {
    /// Watches a file. Must be called within a tokio runtime.
    pub(super) fn new(path: PathBuf) -> Self {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(".".as_ref()).to_owned();
        Self { path, hints: Hints::new([(Place::Base, parent)]), last: None }
    }

    /// The config when it is another than before: at first at once. Or why there is none, with the file's name.
    pub(super) async fn next(&mut self) -> Result<Text, String> {
        loop {
            let _ = self.hints.next().await;
            let read = self.read();
            if read.is_err() {
                self.hints.look_again();
            }
            if self.last.as_ref() != Some(&read) {
                self.last = Some(read.clone());
                return read;
            }
        }
    }

    fn read(&self) -> Result<Text, String> {
        let path = self.path.display();
        let text = read_bounded(&self.path).map_err(|error| {
            format!(
                "cannot read {path}: {error} (hint: mount the ConfigMap kube-flannel-cfg there, with a key net-conf.json, or \
                 correct --net-config-path)"
            )
        })?;
        let named = |error: ConfigError| format!("{path}: {error} (hint: {})", error.hint());
        NetworkConfig::parse(&text, ConfigRules::Kube).map_err(named).map(|(config, _)| (text, config))
    }
}

fn read_bounded(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}
