//! TLS settings of a URI.

use bytes::Bytes;

use super::{
    Host,
    error::{ValueError, check_bytes},
};

/// The demands on TLS, for a URI that requires TLS.
///
/// Spec: [TLS parameters][NBD URI]. Carrying this out, or refusing features that its TLS
/// implementation lacks, is the adapter's part; it must fail rather than skip a verification that
/// is asked for here.
///
/// [NBD URI]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tls {
    kind: Option<TlsType>,
    hostname: Option<Host>,
    verify_peer: bool,
    certificates: Option<Bytes>,
    psk_file: Option<Bytes>,
}

impl Tls {
    /// TLS that verifies the server's identity, otherwise as the program decides.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kind: None,
            hostname: None,
            verify_peer: true,
            certificates: None,
            psk_file: None,
        }
    }

    /// Names the way in which the peers authenticate: `tls-type`.
    #[must_use]
    pub fn with_kind(self, kind: TlsType) -> Self {
        Self {
            kind: Some(kind),
            ..self
        }
    }

    /// Names the server to verify in place of the address's host: `tls-hostname`.
    #[must_use]
    pub fn with_hostname(self, hostname: Host) -> Self {
        Self {
            hostname: Some(hostname),
            ..self
        }
    }

    /// Demands or waives verification of the server's identity: `tls-verify-peer`.
    #[must_use]
    pub fn with_verify_peer(self, verify_peer: bool) -> Self {
        Self {
            verify_peer,
            ..self
        }
    }

    /// Names the directory of the certificates: `tls-certificates`.
    ///
    /// # Errors
    ///
    /// When `dir` is empty or contains NUL.
    pub fn with_certificates(self, dir: impl AsRef<[u8]>) -> Result<Self, ValueError> {
        Ok(Self {
            certificates: Some(local_path(dir.as_ref())?),
            ..self
        })
    }

    /// Names the file of the pre-shared keys: `tls-psk-file`.
    ///
    /// # Errors
    ///
    /// When `file` is empty or contains NUL.
    pub fn with_psk_file(self, file: impl AsRef<[u8]>) -> Result<Self, ValueError> {
        Ok(Self {
            psk_file: Some(local_path(file.as_ref())?),
            ..self
        })
    }

    /// The way in which the peers authenticate, if it is prescribed.
    #[must_use]
    pub fn kind(&self) -> Option<TlsType> {
        self.kind
    }

    /// The name for SNI and verification in place of the address's host; over a Unix domain socket
    /// or vsock there is no other.
    #[must_use]
    pub fn hostname(&self) -> Option<&Host> {
        self.hostname.as_ref()
    }

    /// Whether the server's identity must be verified; unless the URI says otherwise, it must.
    #[must_use]
    pub fn verify_peer(&self) -> bool {
        self.verify_peer
    }

    /// Path of the directory of PEM files: `ca-cert.pem`, and perhaps `ca-crl.pem`,
    /// `client-cert.pem` and `client-key.pem`.
    #[must_use]
    pub fn certificates(&self) -> Option<&[u8]> {
        self.certificates.as_deref()
    }

    /// Path of the file of pre-shared keys, whose lines are `identity:key` with the key in
    /// hexadecimal.
    #[must_use]
    pub fn psk_file(&self) -> Option<&[u8]> {
        self.psk_file.as_deref()
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::new()
    }
}

fn local_path(path: &[u8]) -> Result<Bytes, ValueError> {
    check_bytes(path)?;
    Ok(Bytes::copy_from_slice(path))
}

/// The way in which the peers of a TLS connection authenticate.
///
/// Spec: `tls-type` in [NBD URI].
///
/// [NBD URI]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsType {
    /// Not at all: `anon`.
    Anon,
    /// With a key that both know: `psk`.
    Psk,
    /// With certificates: `x509`.
    X509,
}

impl TlsType {
    /// The value of `tls-type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Psk => "psk",
            Self::X509 => "x509",
        }
    }
}
