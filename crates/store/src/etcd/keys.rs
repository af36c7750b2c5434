//! The keys of etcd below flannel's prefix.
//!
//! ```text
//! PREFIX/config                  the network config
//! PREFIX/subnets/10.5.52.0-24    a lease record (compat §3)
//! PREFIX/holders/10.5.52.0-24    which host wrote that record; other flannels neither read nor write it
//! PREFIX/rivals/10.5.52.0-24     which other host claimed the same public IP and was refused; gone after a minute
//! PREFIX/starts                  how many daemons began to list together; gone after ten seconds
//! ```

use flannel_core::lease::LeaseKey;

/// The most of a record's name that is kept: a name of subnets has at most 64 letters.
const LONGEST_NAME: usize = 200;

/// A prefix, as `--etcd-prefix` gives it.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let trimmed = prefix.trim_end_matches('/');
        let is_relative = prefix.is_empty();
        Self { prefix: if is_relative { String::new() } else { format!("{trimmed}/") } }
    }

    /// The network config's.
    pub(super) fn config(&self) -> String {
        format!("{}config", self.prefix)
    }

    /// What all lease records begin with.
    pub(super) fn subnets(&self) -> String {
        format!("{}subnets/", self.prefix)
    }

    /// What all notes for holders begin with.
    pub(super) fn rivals(&self) -> String {
        format!("{}rivals/", self.prefix)
    }

    /// The one that daemons draw numbers by.
    pub(super) fn starts(&self) -> String {
        format!("{}starts", self.prefix)
    }

    /// What all signatures begin with.
    pub(super) fn holders(&self) -> String {
        format!("{}holders/", self.prefix)
    }

    /// The lease record's.
    pub(super) fn record(&self, key: &LeaseKey) -> String {
        format!("{}subnets/{}", self.prefix, key.as_str())
    }

    /// The holder's of a lease record.
    pub(super) fn holder(&self, key: &LeaseKey) -> String {
        format!("{}holders/{}", self.prefix, key.as_str())
    }

    /// The note's for the holder of a lease record.
    pub(super) fn rival(&self, key: &LeaseKey) -> String {
        format!("{}rivals/{}", self.prefix, key.as_str())
    }
}

/// The name of a lease below a key that such names follow. One that is no text, or too long, is told by a part of it.
pub(super) fn name_below(prefix: &str, key: &[u8]) -> LeaseKey {
    let name = key.strip_prefix(prefix.as_bytes()).unwrap_or(key);
    LeaseKey::new(String::from_utf8_lossy(&name[..name.len().min(LONGEST_NAME)]))
}

/// The first key after all that begin with `prefix`, which ends in `/`.
pub(super) fn end_of(prefix: &str) -> String {
    let mut end = prefix.trim_end_matches('/').to_owned();
    end.push('0');
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_prefix() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/a/", "/a/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(Keys::new(prefix).config(), config);
        }
        let (keys, key) = (Keys::new("/n"), LeaseKey::new("10.1.1.0-24"));
        assert_eq!(keys.record(&key), "/n/subnets/10.1.1.0-24");
        assert_eq!(keys.holder(&key), "/n/holders/10.1.1.0-24");
        assert_eq!(keys.rival(&key), "/n/rivals/10.1.1.0-24");
        assert_eq!(end_of(&keys.subnets()), "/n/subnets0");
    }

    #[test]
    fn names_are_bounded_text() {
        assert_eq!(name_below("/n/subnets/", b"/n/subnets/10.1.1.0-24"), LeaseKey::new("10.1.1.0-24"));
        assert_eq!(name_below("/n/subnets/", b"/n/subnets/\xff"), LeaseKey::new("\u{fffd}"));
        assert_eq!(name_below("/n/", &[b'a'; 5000]).as_str().len(), LONGEST_NAME);
    }
}
