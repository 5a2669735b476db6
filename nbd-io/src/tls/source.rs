//! PEM text, in memory or in a file.

use super::TlsError;
use rustls::pki_types::{
    PrivateKeyDer,
    pem::{self, PemObject},
};
use std::{borrow::Cow, fs, path::Path};

/// PEM text, and where it came from.
pub(super) struct Source<'a> {
    text: Cow<'a, [u8]>,
    place: String,
}

impl<'a> Source<'a> {
    pub(super) fn memory(text: &'a [u8]) -> Self {
        Self {
            text: text.into(),
            place: "memory".to_owned(),
        }
    }

    /// Reads a file in which `what` is expected.
    pub(super) fn file(path: &Path, what: &'static str) -> Result<Self, TlsError> {
        let place = path.display().to_string();
        match fs::read(path) {
            Ok(text) => Ok(Self {
                text: text.into(),
                place,
            }),
            Err(error) => Err(TlsError::Source {
                what,
                place,
                source: pem::Error::Io(error),
            }),
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// All objects of a kind, of which there has to be one.
    pub(super) fn all<T: PemObject>(&self, what: &'static str) -> Result<Vec<T>, TlsError> {
        let found: Result<Vec<T>, _> = T::pem_slice_iter(&self.text).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.missing(what)),
            Ok(found) => Ok(found),
            Err(source) => Err(self.unusable(what, source)),
        }
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let what = "a private key";
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|error| match error {
            // The parser passes over the one form of encrypted keys, and stumbles over the headers
            // of the other one.
            _ if self.is_encrypted() => TlsError::EncryptedKey {
                place: self.place.clone(),
            },
            pem::Error::NoItemsFound => self.missing(what),
            error => self.unusable(what, error),
        })
    }

    fn unusable(&self, what: &'static str, source: pem::Error) -> TlsError {
        TlsError::Source {
            what,
            place: self.place.clone(),
            source,
        }
    }

    fn missing(&self, what: &'static str) -> TlsError {
        let mut labels: Vec<_> = self.labels().collect();
        labels.dedup();
        labels.truncate(3);
        let found = if labels.is_empty() {
            "no PEM text at all".to_owned()
        } else {
            labels.join(", ")
        };
        TlsError::Missing {
            what,
            place: self.place.clone(),
            found,
        }
    }

    fn is_encrypted(&self) -> bool {
        // PKCS#8, and the header of older formats (RFC 1421).
        self.labels().any(|label| label.starts_with("ENCRYPTED"))
            || self
                .lines()
                .any(|line| line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED"))
    }

    /// The labels of the PEM blocks in the text.
    fn labels(&self) -> impl Iterator<Item = String> {
        self.lines().filter_map(|line| {
            let label = line.strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----")?;
            Some(String::from_utf8_lossy(label).into_owned())
        })
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii)
    }
}
