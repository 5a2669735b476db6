//! What TLS connections trust and show, the same for every runtime.
//!
//! Everything that touches rustls is in this module, but the blocking driver's stream, which two
//! threads use.

use crate::client::NegotiationError;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

mod names;
mod received;
mod server;
mod transport;

pub use names::PeerNames;
pub use received::Received;
pub use rustls;
pub use server::ServerTls;
pub use transport::TlsTransport;

/// The bytes that rustls may hold back of what is to be sent. Larger than the default, because
/// payloads are.
pub const SEND_BUFFER: usize = 512 << 10;

/// Why TLS could not be set up or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file with a certificate or a key cannot be read or understood.
    #[error("cannot take {what} from {path}")]
    File {
        /// What was to be found in the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// A certificate or a key in memory cannot be understood.
    #[error("cannot take {what} from memory")]
    Memory {
        /// What was to be found.
        what: &'static str,
        /// Why not.
        source: pem::Error,
    },
    /// There is nothing of the kind in the input.
    #[error("there is no {what} in {place}")]
    Missing {
        /// What was to be found.
        what: &'static str,
        /// Where.
        place: String,
    },
    /// The system's trusted certificates cannot be found.
    #[error("the system has no trusted certificates: {why}")]
    NoSystemRoots {
        /// Why not.
        why: String,
    },
    /// A certificate, a key or a list of revoked certificates cannot be used.
    #[error("cannot use {what}")]
    Unusable {
        /// What.
        what: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate of a client cannot be understood.
    #[error("cannot read the names in a client's certificate")]
    Names(#[source] x509_cert::der::Error),
    /// No cryptography was compiled in, and the program has installed none.
    #[error("there is no cryptography: neither compiled in nor installed for the process")]
    NoCryptography,
    /// There is no name that the server's certificate could be checked against.
    #[error(
        "there is no name to check the server's certificate against: give one (`tls-hostname` in \
         a URI)"
    )]
    NoServerName,
    /// The name cannot be one of a server.
    #[error("\"{name}\" is no name of a TLS server")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The server's certificate was refused.
    #[error("the server's certificate for \"{name}\" is not accepted")]
    Certificate {
        /// The name that it was checked against.
        name: String,
        /// Why not.
        source: rustls::Error,
    },
    /// The handshake failed otherwise; an alert of the server's is among the reasons.
    #[error("the TLS handshake with \"{name}\" failed")]
    Handshake {
        /// The server's name.
        name: String,
        /// Why.
        source: rustls::Error,
    },
    /// The connection broke during the handshake. A server that does not speak TLS, or does not
    /// like this side's certificate, may also just close it.
    #[error("the connection broke during the TLS handshake with \"{name}\"")]
    Io {
        /// The server's name.
        name: String,
        /// How.
        source: std::io::Error,
    },
    /// The handshake with a client failed; an alert of the client's is among the reasons.
    #[error("the TLS handshake with the client failed")]
    Client(#[source] rustls::Error),
    /// The connection broke during the handshake with a client.
    #[error("the connection broke during the TLS handshake with the client")]
    ClientIo(#[source] std::io::Error),
}

impl TlsError {
    /// Sorts a failure of the handshake with the server `name`.
    #[must_use]
    pub fn handshake(name: &ServerName<'_>, source: rustls::Error) -> Self {
        let name = name.to_str().into_owned();
        match source {
            rustls::Error::InvalidCertificate(_) => Self::Certificate { name, source },
            source => Self::Handshake { name, source },
        }
    }
}

impl From<TlsError> for NegotiationError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error.into())
    }
}

/// Whom a client trusts, and whom it says it is.
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
    /// The system's if empty.
    roots: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    identity: Option<Arc<Identity>>,
    server_name: Option<String>,
    accepts_anything: bool,
}

/// A certificate and the certificates that lead to its authority, and its private key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = from_memory("certificates", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Memory {
            what: "a private key",
            source,
        })?;
        Ok(Self { chain, key })
    }

    fn from_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let what = "a private key";
        let (chain, path) = (from_file("certificates", chain)?, key.to_owned());
        let key = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
            what,
            path,
            source,
        })?;
        Ok(Self { chain, key })
    }
}

impl ClientTls {
    /// Trusts the system's certificate authorities, and shows no certificate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificate authorities in PEM text, instead of the system's. Can be repeated.
    ///
    /// # Errors
    ///
    /// When there is none in it.
    pub fn roots_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        let found = from_memory("certificates of authorities", pem)?;
        self.roots.extend(found);
        Ok(self)
    }

    /// Trusts the certificate authorities in a PEM file, instead of the system's.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or there is none in it.
    pub fn roots_file(mut self, path: impl AsRef<Path>) -> Result<Self, TlsError> {
        self.roots
            .extend(from_file("certificates of authorities", path.as_ref())?);
        Ok(self)
    }

    /// Refuses certificates that are in a list of revoked ones, in PEM text.
    ///
    /// # Errors
    ///
    /// When there is no list in it.
    pub fn revoked_pem(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        self.revoked
            .extend(from_memory("lists of revoked certificates", pem)?);
        Ok(self)
    }

    /// Shows a certificate to servers that ask for one; a chain and its private key as PEM text.
    ///
    /// # Errors
    ///
    /// When one of them is missing.
    pub fn identity_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        self.identity = Some(Arc::new(Identity::from_pem(chain, key)?));
        Ok(self)
    }

    /// Shows a certificate to servers that ask for one; a chain and its private key in PEM files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or one of them is missing.
    pub fn identity_files(
        mut self,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TlsError> {
        let identity = Identity::from_files(chain.as_ref(), key.as_ref())?;
        self.identity = Some(Arc::new(identity));
        Ok(self)
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
            tls.revoked
                .extend(from_file("lists of revoked certificates", &revoked)?);
        }
        Ok(tls)
    }

    /// Checks the server's certificate against this name, instead of the host that was connected
    /// to. Over Unix sockets, which have no host, there has to be one.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Accepts whatever certificate the server shows: nothing tells it from an impostor.
    #[must_use]
    pub const fn dangerous_accept_any_certificate(mut self) -> Self {
        self.accepts_anything = true;
        self
    }

    /// What a URI says in addition.
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
            use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
            self = self.directory(OsStr::from_bytes(directory))?;
        }
        if let Some(name) = uri.hostname() {
            self = self.server_name(name.as_str());
        }
        if !uri.verify_peer() {
            self = self.dangerous_accept_any_certificate();
        }
        Ok(self)
    }

    /// The configuration and the server's name for one connection to `host`.
    ///
    /// # Errors
    ///
    /// When what was given cannot be used, or there is no name to check.
    pub fn client(
        &self,
        host: Option<&str>,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let name = match self.server_name.as_deref().or(host) {
            Some(name) => {
                ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName {
                    name: name.to_owned(),
                })?
            }
            // Nothing is checked, and this name is never sent: it is reserved for such places.
            None if self.accepts_anything => {
                ServerName::try_from("unnamed.invalid").map_err(|_| TlsError::NoServerName)?
            }
            None => return Err(TlsError::NoServerName),
        };
        let provider = provider()?;
        let unusable = |what| {
            move |source: rustls::Error| TlsError::Unusable {
                what,
                source: source.into(),
            }
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable("TLS 1.2 and 1.3"))?;
        let builder = if self.accepts_anything {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAnything(provider)))
        } else {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(self.root_store()?), provider)
                    .with_crls(self.revoked.clone())
                    .build()
                    .map_err(|source| TlsError::Unusable {
                        what: "the certificates of authorities",
                        source: source.into(),
                    })?;
            builder.with_webpki_verifier(verifier)
        };
        let mut config = match &self.identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(unusable("this side's certificate and private key"))?,
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = host.is_some() || self.server_name.is_some();
        Ok((Arc::new(config), name))
    }

    fn root_store(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        if self.roots.is_empty() {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let why = found
                    .errors
                    .first()
                    .map_or_else(|| "none found".to_owned(), |e| e.to_string());
                return Err(TlsError::NoSystemRoots { why });
            }
        }
        for root in &self.roots {
            store
                .add(root.clone())
                .map_err(|source| TlsError::Unusable {
                    what: "a certificate of an authority",
                    source: source.into(),
                })?;
        }
        Ok(store)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("roots", &self.roots.len())
            .field("revoked", &self.revoked.len())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .field("accepts_anything", &self.accepts_anything)
            .finish()
    }
}

/// The cryptography that the features chose: aws-lc-rs, else ring, else what the program has
/// installed for the whole process.
///
/// # Errors
///
/// When there is none.
pub fn provider() -> Result<Arc<CryptoProvider>, TlsError> {
    #[cfg(feature = "aws-lc-rs")]
    return Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Ok(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
    CryptoProvider::get_default()
        .map(Arc::clone)
        .ok_or(TlsError::NoCryptography)
}

fn from_memory<T: PemObject>(what: &'static str, pem: &[u8]) -> Result<Vec<T>, TlsError> {
    let found: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    let found = found.map_err(|source| TlsError::Memory { what, source })?;
    non_empty(what, found, || "memory".to_owned())
}

fn from_file<T: PemObject>(what: &'static str, path: &Path) -> Result<Vec<T>, TlsError> {
    let failed = |source| TlsError::File {
        what,
        path: path.to_owned(),
        source,
    };
    let found: Result<Vec<T>, _> = T::pem_file_iter(path).map_err(failed)?.collect();
    non_empty(what, found.map_err(failed)?, || path.display().to_string())
}

fn non_empty<T>(
    what: &'static str,
    found: Vec<T>,
    place: impl FnOnce() -> String,
) -> Result<Vec<T>, TlsError> {
    if found.is_empty() {
        Err(TlsError::Missing {
            what,
            place: place(),
        })
    } else {
        Ok(found)
    }
}

/// Believes any certificate, but not that a server has a key that it does not have.
#[derive(Debug)]
struct AcceptAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
