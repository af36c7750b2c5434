//! What TLS needs: the files, read anew for each connection, so that certificates may be exchanged while we run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore, client::WantsClientCert};

/// Where distributions keep the certificates of public authorities, as one file (Debian, Fedora, SUSE, Alpine).
const PUBLIC_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The files of TLS, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign servers' certificates; else those that the system trusts.
    pub authority: Option<PathBuf>,
    /// Our own certificate and its chain, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {what} {}: {source}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: pem::Error },
    #[error("{what} {} holds none in PEM", path.display())]
    Empty { what: &'static str, path: PathBuf },
    #[error("certificate {} and key {}: {source}", certificate.display(), key.display())]
    Identity { certificate: PathBuf, key: PathBuf, source: tokio_rustls::rustls::Error },
    #[error("no certificate of an authority is given, and this system has none")]
    NoRoots,
    #[error("{0}")]
    Unusable(#[from] tokio_rustls::rustls::Error),
}

impl TlsFiles {
    /// Reads the files as they are now.
    pub(super) fn connector(&self) -> Result<TlsConnector, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(self.roots()?);
        let mut config = self.identify(builder)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let public = || PUBLIC_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file());
        let path = self.authority.clone().or_else(public).ok_or(TlsError::NoRoots)?;
        let mut roots = RootCertStore::empty();
        // A bundle may hold what this library does not know; nothing is trusted for it.
        let (taken, _) = roots.add_parsable_certificates(certificates("CA certificate", &path)?);
        if taken == 0 { Err(TlsError::Empty { what: "CA certificate", path }) } else { Ok(roots) }
    }

    fn identify(&self, builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> Result<ClientConfig, TlsError> {
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("client certificate", certificate)?;
        let key_found = PrivateKeyDer::from_pem_file(key).map_err(|source| refused("key", key, source))?;
        builder.with_client_auth_cert(chain, key_found).map_err(|source| TlsError::Identity {
            certificate: certificate.clone(),
            key: key.clone(),
            source,
        })
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Empty { what, path: path.to_owned() }),
        Ok(found) => Ok(found),
        Err(source) => Err(refused(what, path, source)),
    }
}

fn refused(what: &'static str, path: &Path, source: pem::Error) -> TlsError {
    let path = path.to_owned();
    match source {
        pem::Error::NoItemsFound => TlsError::Empty { what, path },
        source => TlsError::Unreadable { what, path, source },
    }
}
