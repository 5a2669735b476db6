//! Credentials by which one side of a connection proves its identity.

use super::{TlsError, provider, source::Source};
use rustls::{
    InconsistentKeys,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use std::path::Path;

/// A certificate and the certificates that lead to its authority, and its private key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    pub(super) fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Self::new(&Source::memory(chain), &Source::memory(key))
    }

    pub(super) fn from_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = Source::file(chain, "certificates")?;
        Self::new(&chain, &Source::file(key, "a private key")?)
    }

    fn new(chain: &Source<'_>, key: &Source<'_>) -> Result<Self, TlsError> {
        let identity = Self {
            chain: chain.all("certificates")?,
            key: key.key()?,
        };
        // A program that brings its own cryptography may do so later, and learns it then.
        let Ok(provider) = provider() else {
            return Ok(identity);
        };
        let tried =
            CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider);
        match tried {
            Ok(_) => Ok(identity),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(TlsError::KeyMismatch {
                    certificate: chain.place().to_owned(),
                    key: key.place().to_owned(),
                })
            }
            Err(error) => Err(TlsError::unusable("the certificate and its private key")(
                error,
            )),
        }
    }
}
