//! Certificates that are known beforehand.

use super::TlsError;
use rustls::{
    CertificateError, OtherError,
    crypto::{
        CryptoProvider,
        hash::{Hash, HashAlgorithm},
    },
    pki_types::CertificateDer,
    server::ParsedCertificate,
};
use std::{fmt, str::FromStr, sync::Arc};

/// The SHA-256 hash of a certificate or a key that a peer has to show.
///
/// It is parsed from the 64 hexadecimal digits that `openssl x509 -noout -fingerprint -sha256`
/// prints for a certificate, with colons or without.
///
/// ```
/// use nbd_io::tls::Pin;
///
/// let hash = "AB".repeat(32);
/// assert_eq!(hash.parse::<Pin>(), Ok(Pin::Certificate([0xab; 32])));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pin {
    /// Of the whole certificate in DER.
    Certificate([u8; 32]),
    /// Of its `SubjectPublicKeyInfo` in DER, which stays the same when a certificate is renewed
    /// with the same key.
    PublicKey([u8; 32]),
}

/// Text that is no SHA-256 hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the 64 hexadecimal digits of a SHA-256 hash, found \"{found}\"")]
pub struct NoPin {
    found: String,
}

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        let no_pin = || NoPin {
            found: text.to_owned(),
        };
        let digits: Option<Vec<u32>> = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_digit(16))
            .collect();
        let digits = digits
            .filter(|digits| digits.len() == 64)
            .ok_or_else(no_pin)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::try_from(pair[0] << 4 | pair[1]).map_err(|_| no_pin())?;
        }
        Ok(Self::Certificate(hash))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Certificate(hash) | Self::PublicKey(hash)) = self;
        hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(_) => write!(f, "Certificate({self})"),
            Self::PublicKey(_) => write!(f, "PublicKey({self})"),
        }
    }
}

/// The certificate that came is none of those that were expected.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is none of those pinned: the SHA-256 hash of the certificate is {certificate}, of its \
     public key {public_key}"
)]
struct NotPinned {
    certificate: Pin,
    public_key: Pin,
}

/// The pins of a configuration.
pub(super) struct Pins {
    pins: Vec<Pin>,
    sha256: &'static dyn Hash,
}

impl Pins {
    pub(super) fn new(pins: &[Pin], provider: &CryptoProvider) -> Result<Self, TlsError> {
        let hashes = provider.cipher_suites.iter().map(|suite| match suite {
            rustls::SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
            rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
        });
        let mut sha256 = hashes.filter(|hash| hash.algorithm() == HashAlgorithm::SHA256);
        let no_sha256 = || "the cryptography of this program has no SHA-256";
        let sha256 = sha256.next().ok_or_else(no_sha256);
        Ok(Self {
            pins: pins.to_vec(),
            sha256: sha256.map_err(TlsError::unusable("pinned certificates"))?,
        })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    /// Whether a certificate is among them, if there are any.
    pub(super) fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let public_key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let shown = NotPinned {
            certificate: Pin::Certificate(self.hash(certificate)),
            public_key: Pin::PublicKey(self.hash(&public_key)),
        };
        if [shown.certificate, shown.public_key]
            .iter()
            .any(|pin| self.pins.contains(pin))
        {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(shown))).into())
    }

    fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.sha256.hash(bytes).as_ref());
        hash
    }
}
