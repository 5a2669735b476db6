//! Trust and credentials of a client's TLS connections.

use super::{Pin, TlsError, identity::Identity, source::Source, verify::Trust, warm_provider};
use crate::runtime::{Runtime, unblock};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// The authorities that a client trusts, and its own certificate.
///
/// Certificates are read once. All connections by this and its clones share a configuration, so
/// that those to a server that was connected to before resume its TLS session.
///
/// ```
/// # fn f() -> Result<(), nbd_io::tls::TlsError> {
/// use nbd_io::tls::ClientTls;
///
/// let tls = ClientTls::new()
///     .roots_file("/etc/nbd/ca-cert.pem")?
///     .identity_files("/etc/nbd/client-cert.pem", "/etc/nbd/client-key.pem")?
///     .server_name("disks.example.org");
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct ClientTls {
    /// The system's roots if it has neither roots nor pins.
    trust: Trust,
    identity: Option<Arc<Identity>>,
    server_name: Option<String>,
    accepts_anything: bool,
    built: Arc<Built>,
}

/// The configuration made of the certificates, for all clones until one of them is changed.
#[derive(Default)]
struct Built {
    config: OnceLock<Arc<ClientConfig>>,
    /// Held by the one that builds, so that others wait for it instead of doing the same.
    building: Mutex<()>,
}

impl ClientTls {
    /// Trusts the system's certificate authorities, and shows no certificate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificate authorities in PEM text, instead of the system's. Can be repeated.
    ///
    /// A certificate that is signed with its own key may also be that of the server itself, as made
    /// by `openssl req -x509`.
    ///
    /// # Errors
    ///
    /// When there is none in it.
    pub fn roots_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.trust.add_roots(&Source::memory(pem))?;
        Ok(self.changed())
    }

    /// Trusts the certificate authorities in a PEM file, instead of the system's, like
    /// [`roots_pem`](Self::roots_pem).
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or there is none in it.
    pub fn roots_file(mut self, path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let source = Source::file(path.as_ref(), "certificates of authorities")?;
        self.trust.add_roots(&source)?;
        Ok(self.changed())
    }

    /// Refuses certificates that are in a list of revoked ones, in PEM text. Can be repeated.
    ///
    /// # Errors
    ///
    /// When there is no list in it.
    pub fn revoked_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.trust.add_revoked(&Source::memory(pem))?;
        Ok(self.changed())
    }

    /// Whether there has to be a list of revoked certificates of each authority that leads to the
    /// server's certificate, once there is one at all. By default, certificates of an authority
    /// without a list count as not revoked.
    #[must_use]
    pub fn require_revocation_lists(mut self, required: bool) -> Self {
        self.trust.lists_required = required;
        self.changed()
    }

    /// Accepts this certificate or key of a server and no other one. Can be repeated: one of them
    /// has to match.
    ///
    /// If authorities are given, too, the certificate has to be right in every other respect. If
    /// they are not, the match is enough: neither its name nor its time is looked at (as with
    /// `DANE-EE` in [RFC 7671](https://www.rfc-editor.org/rfc/rfc7671#section-5.1)).
    #[must_use]
    pub fn pin(mut self, pin: Pin) -> Self {
        self.trust.pins.push(pin);
        self.changed()
    }

    /// Shows a certificate to servers that ask for one; a chain and its private key as PEM text.
    ///
    /// # Errors
    ///
    /// When one of them is missing, the key is encrypted, or they do not fit each other.
    pub fn identity_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        self.identity = Some(Arc::new(Identity::from_pem(chain, key)?));
        Ok(self.changed())
    }

    /// Shows a certificate to servers that ask for one; a chain and its private key in PEM files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, one of them is missing, the key is encrypted, or they do not fit
    /// each other.
    pub fn identity_files(
        mut self,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TlsError> {
        let identity = Identity::from_files(chain.as_ref(), key.as_ref())?;
        self.identity = Some(Arc::new(identity));
        Ok(self.changed())
    }

    /// Takes everything from a directory of the layout that GnuTLS programs share:
    /// `ca-cert.pem`, and if they exist `client-cert.pem` with `client-key.pem`, and `ca-crl.pem`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or understood.
    pub fn directory(self, path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let path = path.as_ref();
        let mut tls = self.roots_file(path.join("ca-cert.pem"))?;
        let (chain, key) = (path.join("client-cert.pem"), path.join("client-key.pem"));
        if chain.exists() || key.exists() {
            tls = tls.identity_files(chain, key)?;
        }
        let revoked = path.join("ca-crl.pem");
        if revoked.exists() {
            let source = Source::file(&revoked, "lists of revoked certificates")?;
            tls.trust.add_revoked(&source)?;
        }
        Ok(tls.changed())
    }

    /// Checks the server's certificate against this name, instead of the host that was connected
    /// to. Over Unix sockets, which have no host, there has to be one.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Accepts any certificate that the server shows: an impostor's certificate is accepted as
    /// well, unless certificates are [pinned](Self::pin).
    #[must_use]
    pub fn dangerous_accept_any_certificate(mut self) -> Self {
        self.accepts_anything = true;
        self.changed()
    }

    /// Adds the settings of a URI. It may name files, which are read here.
    ///
    /// # Errors
    ///
    /// When it wants TLS without certificates, or its files cannot be used.
    pub fn with_uri(mut self, uri: &nbd_proto::uri::Tls) -> Result<Self, crate::client::Error> {
        use crate::client::Error;
        use nbd_proto::uri::TlsType;
        match uri.kind() {
            None | Some(TlsType::X509) if uri.psk_file().is_none() => {}
            Some(TlsType::Anon) => {
                return Err(Error::Unsupported {
                    what: "TLS without certificates is not supported",
                });
            }
            _ => {
                return Err(Error::Unsupported {
                    what: "TLS by pre-shared keys is not supported",
                });
            }
        }
        if let Some(directory) = uri.certificates() {
            self = self.directory(path(directory)?)?;
        }
        if let Some(name) = uri.hostname() {
            self = self.server_name(name.as_str());
        }
        if !uri.verify_peer() && !self.accepts_anything {
            self = self.dangerous_accept_any_certificate();
        }
        Ok(self)
    }

    /// Does the same for a task: files are read on a thread that may wait.
    ///
    /// # Errors
    ///
    /// Like [`with_uri`](Self::with_uri).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost with a future that is dropped.
    pub async fn with_uri_on(
        self,
        runtime: &impl Runtime,
        uri: &nbd_proto::uri::Tls,
    ) -> Result<Self, crate::client::Error> {
        if uri.certificates().is_some() {
            let (tls, uri) = (self.clone(), uri.clone());
            if let Ok(read) = unblock(runtime, move || tls.with_uri(&uri)).await {
                return read;
            }
        }
        self.with_uri(uri)
    }

    /// The configuration and the server's name for one connection to `host`.
    ///
    /// The configuration is built when this is called for the first time, which may read files and
    /// take some tenths of a second. See [`client_on`](Self::client_on) for tasks.
    ///
    /// # Errors
    ///
    /// When a given certificate or key cannot be used, or there is no name to check.
    pub fn client(
        &self,
        host: Option<&str>,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let name = self.name(host)?;
        Ok((self.config()?, name))
    }

    /// Does the same for a task: slow steps are done on a thread that may wait.
    ///
    /// # Errors
    ///
    /// Like [`client`](Self::client).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost with a future that is dropped.
    pub async fn client_on(
        &self,
        runtime: &impl Runtime,
        host: Option<&str>,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        if self.built.config.get().is_none() {
            let tls = self.clone();
            if let Ok(built) = unblock(runtime, move || tls.config()).await {
                built?;
            }
        }
        self.client(host)
    }

    fn name(&self, host: Option<&str>) -> Result<ServerName<'static>, TlsError> {
        match self.server_name.as_deref().or(host) {
            Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName {
                name: name.to_owned(),
            }),
            None if !self.checks_chain() => Ok(unnamed()),
            None => Err(TlsError::NoServerName),
        }
    }

    /// Whether the server's certificate has to be made out to its name by an authority.
    fn checks_chain(&self) -> bool {
        !self.accepts_anything && (self.trust.pins.is_empty() || !self.trust.roots.is_empty())
    }

    /// Drops the configuration that was built before a setting changed.
    fn changed(mut self) -> Self {
        self.built = Arc::default();
        self
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let built = &*self.built;
        if let Some(config) = built.config.get() {
            return Ok(config.clone());
        }
        let _building = built
            .building
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = built.config.get() {
            return Ok(config.clone());
        }
        let config = self.build()?;
        Ok(built.config.get_or_init(|| config).clone())
    }

    fn build(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = warm_provider()?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::unusable("TLS 1.2 and 1.3"))?;
        let roots = if !self.checks_chain() {
            None
        } else if self.trust.roots.is_empty() {
            Some(system_roots()?)
        } else {
            Some(self.trust.store()?)
        };
        let verifier = self.trust.server_verifier(roots.map(Arc::new), &provider)?;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &self.identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(TlsError::unusable(
                    "this side's certificate and private key",
                ))?,
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

/// Stands for a server without a name, against which nothing is checked. Addresses are never sent.
pub(super) fn unnamed() -> ServerName<'static> {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TlsError::NoSystemRoots { why });
    }
    Ok(store)
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("trust", &self.trust)
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .field("accepts_anything", &self.accepts_anything)
            .finish_non_exhaustive()
    }
}

/// The name of a file in a URI, which is bytes.
#[cfg(unix)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "elsewhere not all bytes are a name"
)]
fn path(bytes: &[u8]) -> Result<&Path, crate::client::Error> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn path(bytes: &[u8]) -> Result<&Path, crate::client::Error> {
    let what = "expected the name of a directory in UTF-8, and this URI has another one";
    let name = std::str::from_utf8(bytes);
    Ok(Path::new(
        name.map_err(|_| crate::client::Error::Unsupported { what })?,
    ))
}
