//! Credentials and trust of a server's TLS connections.

use super::{Pin, TlsError, identity::Identity, source::Source, verify::Trust, warm_provider};
use rustls::ServerConfig;
use std::{fmt, path::Path, sync::Arc};

/// The certificate of a server, and the clients that it lets in.
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
    trust: Trust,
    required: bool,
}

impl ServerTls {
    /// Shows a certificate, a chain and its private key as PEM text, to every client.
    ///
    /// # Errors
    ///
    /// When one of them is missing, the key is encrypted, or they do not fit each other.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self::new(Identity::from_pem(chain, key)?))
    }

    /// Shows a certificate, a chain and its private key in PEM files, to every client.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, one of them is missing, the key is encrypted, or they do not fit
    /// each other.
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
            let source = Source::file(&revoked, "lists of revoked certificates")?;
            tls.trust.add_revoked(&source)?;
        }
        Ok(tls)
    }

    fn new(identity: Identity) -> Self {
        Self {
            identity: Arc::new(identity),
            trust: Trust::default(),
            required: false,
        }
    }

    /// Asks clients for certificates, which have to be of the authorities in PEM text. Can be
    /// repeated.
    ///
    /// A certificate that is signed with its own key may also be that of the client itself.
    ///
    /// # Errors
    ///
    /// When there is none in it.
    pub fn client_roots_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.trust.add_roots(&Source::memory(pem))?;
        Ok(self)
    }

    /// Asks clients for certificates, which have to be of the authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or there is none in it.
    pub fn client_roots_file(mut self, path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let source = Source::file(path.as_ref(), "certificates of authorities")?;
        self.trust.add_roots(&source)?;
        Ok(self)
    }

    /// Refuses client certificates that are in a list of revoked ones, in PEM text.
    ///
    /// # Errors
    ///
    /// When there is no list in it.
    pub fn revoked_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.trust.add_revoked(&Source::memory(pem))?;
        Ok(self)
    }

    /// Whether there has to be a list of revoked certificates of each authority that leads to a
    /// client's certificate, once there is one at all. By default, certificates of an authority
    /// without a list count as not revoked.
    #[must_use]
    pub const fn require_revocation_lists(mut self, required: bool) -> Self {
        self.trust.lists_required = required;
        self
    }

    /// Asks clients for certificates, and accepts this certificate or key and no other one. Can be
    /// repeated: one of them has to match.
    ///
    /// If authorities are given, too, a certificate has to be right in every other respect. If they
    /// are not, the match is enough.
    #[must_use]
    pub fn pin_client(mut self, pin: Pin) -> Self {
        self.trust.pins.push(pin);
        self
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
    /// When a given certificate or key cannot be used, or client certificates are required and no
    /// authority is known.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = warm_provider()?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::unusable("TLS 1.2 and 1.3"))?;
        let builder = if self.trust.asks() {
            builder.with_client_cert_verifier(self.trust.client_verifier(self.required, &provider)?)
        } else if self.required {
            return Err(TlsError::NoAuthorities);
        } else {
            builder.with_no_client_auth()
        };
        let Identity { chain, key } = &*self.identity;
        let config = builder
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::unusable(
                "this side's certificate and private key",
            ))?;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("trust", &self.trust)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}
