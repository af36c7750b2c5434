//! What TLS needs: read anew for each connection, so that certificates may be exchanged while we run.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

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

/// Something in PEM, for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pem {
    /// In a file.
    File(PathBuf),
    /// The text itself, which something else holds.
    Text {
        /// What holds it.
        of: PathBuf,
        /// The text.
        text: Arc<[u8]>,
    },
}

impl Pem {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Text { of: path, .. } => path,
        }
    }

    fn text(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::File(path) => fs::read(path).map(Cow::Owned),
            Self::Text { text, .. } => Ok(Cow::Borrowed(text)),
        }
    }
}

/// What TLS with a server takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates of the authorities that sign servers' certificates; else those that the system trusts.
    pub(crate) authority: Option<Pem>,
    /// Our own certificate and its chain, and its key.
    pub(crate) identity: Option<(Pem, Pem)>,
    /// The name that a server's certificate has to have; else the one it is reached by.
    pub(crate) name: Option<String>,
    /// Trust any server.
    pub(crate) trusts_all: bool,
}

impl From<TlsFiles> for Tls {
    fn from(TlsFiles { authority, identity }: TlsFiles) -> Self {
        let identity = identity.map(|(certificate, key)| (Pem::File(certificate), Pem::File(key)));
        Self { authority: authority.map(Pem::File), identity, ..Self::default() }
    }
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {what} {}: {source}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: pem::Error },
    #[error("{what} {} holds none in PEM", path.display())]
    Empty { what: &'static str, path: PathBuf },
    #[error("certificate {} and key {}: {source}", certificate.display(), key.display())]
    Identity { certificate: PathBuf, key: PathBuf, source: Error },
    #[error("no certificate of an authority is given, and this system has none")]
    NoRoots,
    #[error("{0}")]
    Unusable(#[from] Error),
}

impl Tls {
    /// Reads everything as it is now.
    pub(crate) fn connector(&self) -> Result<TlsConnector, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = if self.trusts_all {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustsAll(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = self.identify(builder)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let public = || PUBLIC_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file());
        let given = self.authority.clone().or_else(|| public().map(Pem::File)).ok_or(TlsError::NoRoots)?;
        let mut roots = RootCertStore::empty();
        // A bundle may hold what this library does not know; nothing is trusted for it.
        let (taken, _) = roots.add_parsable_certificates(certificates("CA certificate", &given)?);
        let empty = || TlsError::Empty { what: "CA certificate", path: given.path().to_owned() };
        if taken == 0 { Err(empty()) } else { Ok(roots) }
    }

    fn identify(&self, builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> Result<ClientConfig, TlsError> {
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("client certificate", certificate)?;
        let found = read("key", key)?;
        let found = PrivateKeyDer::from_pem_slice(&found).map_err(|source| refused("key", key, source))?;
        builder.with_client_auth_cert(chain, found).map_err(|source| TlsError::Identity {
            certificate: certificate.path().to_owned(),
            key: key.path().to_owned(),
            source,
        })
    }
}

fn read<'a>(what: &'static str, pem: &'a Pem) -> Result<Cow<'a, [u8]>, TlsError> {
    pem.text().map_err(|source| refused(what, pem, pem::Error::Io(source)))
}

fn certificates(what: &'static str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, pem)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Empty { what, path: pem.path().to_owned() }),
        Ok(found) => Ok(found),
        Err(source) => Err(refused(what, pem, source)),
    }
}

fn refused(what: &'static str, pem: &Pem, source: pem::Error) -> TlsError {
    let path = pem.path().to_owned();
    match source {
        pem::Error::NoItemsFound => TlsError::Empty { what, path },
        source => TlsError::Unreadable { what, path, source },
    }
}

/// Takes any certificate; the server still has to prove that it has its key.
#[derive(Debug)]
struct TrustsAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
