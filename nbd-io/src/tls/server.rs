//! What a server's TLS connections show and trust.

use super::{Identity, TlsError, from_file, from_memory, provider};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer},
    server::WebPkiClientVerifier,
};
use std::{fmt, path::Path, sync::Arc};

/// Who a server says it is, and whom it lets in.
///
/// ```
/// # fn f() -> Result<(), nbd_io::tls::TlsError> {
/// use nbd_io::tls::ServerTls;
///
/// let tls = ServerTls::from_files("/etc/nbd/server-cert.pem", "/etc/nbd/server-key.pem")?
///     .client_roots_file("/etc/nbd/ca-cert.pem")?
///     .require_client_certificates(true);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ServerTls {
    identity: Arc<Identity>,
    client_roots: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    required: bool,
}

impl ServerTls {
    /// Shows a certificate, a chain and its private key as PEM text, to everybody.
    ///
    /// # Errors
    ///
    /// When one of them is missing.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self::new(Identity::from_pem(chain, key)?))
    }

    /// Shows a certificate, a chain and its private key in PEM files, to everybody.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or one of them is missing.
    pub fn from_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        Ok(Self::new(Identity::from_files(
            chain.as_ref(),
            key.as_ref(),
        )?))
    }

    /// Takes everything from a directory of the layout that GnuTLS programs share:
    /// `server-cert.pem` with `server-key.pem`, and if they exist `ca-cert.pem` and `ca-crl.pem`.
    ///
    /// Client certificates are checked if clients show them, and not
    /// [required](Self::require_client_certificates).
    ///
    /// # Errors
    ///
    /// When a file cannot be read or understood.
    pub fn from_directory(path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let path = path.as_ref();
        let mut tls = Self::from_files(path.join("server-cert.pem"), path.join("server-key.pem"))?;
        let roots = path.join("ca-cert.pem");
        if roots.exists() {
            tls = tls.client_roots_file(roots)?;
        }
        let revoked = path.join("ca-crl.pem");
        if revoked.exists() {
            tls.revoked = from_file("lists of revoked certificates", &revoked)?;
        }
        Ok(tls)
    }

    fn new(identity: Identity) -> Self {
        Self {
            identity: Arc::new(identity),
            client_roots: Vec::new(),
            revoked: Vec::new(),
            required: false,
        }
    }

    /// Asks clients for certificates, which have to be of the authorities in PEM text. Can be
    /// repeated.
    ///
    /// # Errors
    ///
    /// When there is none in it.
    pub fn client_roots_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.client_roots
            .extend(from_memory("certificates of authorities", pem)?);
        Ok(self)
    }

    /// Asks clients for certificates, which have to be of the authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or there is none in it.
    pub fn client_roots_file(mut self, path: impl AsRef<Path>) -> Result<Self, TlsError> {
        self.client_roots
            .extend(from_file("certificates of authorities", path.as_ref())?);
        Ok(self)
    }

    /// Refuses client certificates that are in a list of revoked ones, in PEM text.
    ///
    /// # Errors
    ///
    /// When there is no list in it.
    pub fn revoked_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.revoked
            .extend(from_memory("lists of revoked certificates", pem)?);
        Ok(self)
    }

    /// Whether a client has to show a certificate to be let in. Off by default, so that a
    /// certificate is checked only if the client shows one.
    #[must_use]
    pub const fn require_client_certificates(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    /// The configuration for all connections.
    ///
    /// # Errors
    ///
    /// When what was given cannot be used, or client certificates are required and no authority
    /// is known.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = provider()?;
        let unusable = |what| {
            move |source: rustls::Error| TlsError::Unusable {
                what,
                source: source.into(),
            }
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable("TLS 1.2 and 1.3"))?;
        let builder = if self.client_roots.is_empty() {
            if self.required {
                return Err(TlsError::Missing {
                    what: "certificates of authorities",
                    place: "what is given to check client certificates with".to_owned(),
                });
            }
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for root in &self.client_roots {
                roots
                    .add(root.clone())
                    .map_err(unusable("a certificate of an authority"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(self.revoked.clone());
            let verifier = if self.required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier = verifier.build().map_err(|source| TlsError::Unusable {
                what: "the certificates of authorities",
                source: source.into(),
            })?;
            builder.with_client_cert_verifier(verifier)
        };
        let Identity { chain, key } = &*self.identity;
        let config = builder
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable("this side's certificate and private key"))?;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("client_roots", &self.client_roots.len())
            .field("revoked", &self.revoked.len())
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}
