//! Errors of TLS before it is up.

use super::client::unnamed;
use crate::client::{NegotiationError, causes};
use rustls::pki_types::{ServerName, pem};
use std::error::Error;

/// Reasons for which TLS could not be set up or started. The text says the cause, too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or a key cannot be read or understood.
    #[error("cannot take {what} from {place}: {}", causes(source))]
    Source {
        /// The kind of thing that was expected there.
        what: &'static str,
        /// The file, or memory.
        place: String,
        /// The reason.
        source: pem::Error,
    },
    /// There is nothing of the kind in the input.
    #[error("expected {what} in {place}, found {found}")]
    Missing {
        /// The kind of thing that was expected.
        what: &'static str,
        /// The file, or memory.
        place: String,
        /// The labels that were found.
        found: String,
    },
    /// The private key is protected by a password.
    #[error(
        "the private key in {place} is encrypted, which is not supported: decrypt it first, as by \
         `openssl pkey -in ENCRYPTED -out PLAIN`"
    )]
    EncryptedKey {
        /// The file, or memory.
        place: String,
    },
    /// A private key is that of another certificate.
    #[error("the private key in {key} is not that of the certificate in {certificate}")]
    KeyMismatch {
        /// Where the certificate was found.
        certificate: String,
        /// Where the key was found.
        key: String,
    },
    /// Clients have to show certificates, and nothing says which.
    #[error("client certificates are required, but no authority or pin was given to check them by")]
    NoAuthorities,
    /// The system's trusted certificates cannot be found.
    #[error("the system has no trusted certificates: {why}")]
    NoSystemRoots {
        /// The reason.
        why: String,
    },
    /// A certificate, a key or a list of revoked certificates cannot be used.
    #[error("cannot use {what}: {}", causes(&**source))]
    Unusable {
        /// The object.
        what: &'static str,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The certificate of a client cannot be understood.
    #[error("cannot read the names in a client's certificate: {0}")]
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
    #[error("the server's certificate for \"{name}\" is not accepted: {source}")]
    Certificate {
        /// The name that it was checked against.
        name: String,
        /// The reason.
        source: rustls::Error,
    },
    /// The handshake failed otherwise; an alert of the server's is among the reasons.
    #[error("the TLS handshake with \"{name}\" failed: {source}")]
    Handshake {
        /// The server's name.
        name: String,
        /// The reason.
        source: rustls::Error,
    },
    /// The connection broke during the handshake. A server that does not speak TLS, or does not
    /// like this side's certificate, may also just close it.
    #[error(
        "the connection broke during the TLS handshake with \"{name}\": {}",
        causes(source)
    )]
    Io {
        /// The server's name.
        name: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The handshake with a client failed; an alert of the client's is among the reasons.
    #[error("the TLS handshake with the client failed: {0}")]
    Client(#[source] rustls::Error),
    /// The connection broke during the handshake with a client.
    #[error("the connection broke during the TLS handshake with the client: {}", causes(.0))]
    ClientIo(#[source] std::io::Error),
}

impl TlsError {
    pub(super) fn unusable<E: Into<Box<dyn Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Unusable {
            what,
            source: source.into(),
        }
    }

    /// Sorts a failure of the handshake with the server `name`.
    #[must_use]
    pub fn handshake(name: &ServerName<'_>, source: rustls::Error) -> Self {
        let name = if *name == unnamed() {
            "(unnamed)".to_owned()
        } else {
            name.to_str().into_owned()
        };
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
