//! X.509 certificates under the names that GnuTLS programs look for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// The flaw of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// Its time is over.
    Expired,
    /// Signed by an authority other than the one in `ca-cert.pem`.
    OtherAuthority,
    /// Made out to another host.
    WrongName,
}

/// The group ffdhe2048 of RFC 7919. QEMU's programs search for a prime of their own at each start if there is
/// no file of this, which takes seconds.
const DH_PARAMS: &str = "-----BEGIN DH PARAMETERS-----
MIIBDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgICAQA=
-----END DH PARAMETERS-----
";

/// A directory with `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and
/// `client-key.pem`, and with `dh-params.pem` for QEMU, removed on drop.
///
/// Both ends may use the same directory. Keys are ECDSA on P-256, stored as PKCS#8. The server's
/// certificate is made out to `localhost`, `127.0.0.1` and `::1`.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// An authority of its own, and certificates without flaw.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    #[expect(
        clippy::new_without_default,
        reason = "making keys is no default value"
    )]
    pub fn new() -> Self {
        Self::with(None, None)
    }

    /// The server's certificate has a flaw.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    pub fn with_server(flaw: Flaw) -> Self {
        Self::with(Some(flaw), None)
    }

    /// The client's certificate has a flaw.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    pub fn with_client(flaw: Flaw) -> Self {
        Self::with(None, Some(flaw))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `ca-cert.pem`
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir().join("ca-cert.pem")
    }

    /// `server-cert.pem`
    pub fn server_certificate(&self) -> PathBuf {
        self.dir().join("server-cert.pem")
    }

    /// `server-key.pem`
    pub fn server_key(&self) -> PathBuf {
        self.dir().join("server-key.pem")
    }

    /// `client-cert.pem`
    pub fn client_certificate(&self) -> PathBuf {
        self.dir().join("client-cert.pem")
    }

    /// `client-key.pem`
    pub fn client_key(&self) -> PathBuf {
        self.dir().join("client-key.pem")
    }

    fn with(server_flaw: Option<Flaw>, client_flaw: Option<Flaw>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("nbd-certificates-")
            .tempdir();
        let certificates = Self {
            dir: dir.expect("a temporary directory can be made"),
        };
        let ca = authority();
        let (server, server_key) = leaf("localhost", true, &ca, server_flaw);
        let (client, client_key) = leaf("client", false, &ca, client_flaw);
        for (path, pem) in [
            (certificates.ca_certificate(), ca.pem()),
            (certificates.server_certificate(), server),
            (certificates.server_key(), server_key),
            (certificates.client_certificate(), client),
            (certificates.client_key(), client_key),
            (certificates.dir().join("dh-params.pem"), DH_PARAMS.into()),
        ] {
            fs::write(path, pem).expect("a file in our own directory can be written");
        }
        certificates
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a P-256 key can always be made")
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    CertifiedIssuer::self_signed(params, key()).expect("the parameters above are legal")
}

/// A certificate and its key, in PEM.
fn leaf(
    name: &str,
    server: bool,
    ca: &CertifiedIssuer<'_, KeyPair>,
    flaw: Option<Flaw>,
) -> (String, String) {
    let names: &[&str] = match (server, flaw) {
        (_, Some(Flaw::WrongName)) => &["elsewhere.example"],
        (true, _) => &["localhost", "127.0.0.1", "::1"],
        (false, _) => &["client.example"],
    };
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("the names above are legal");
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![if server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    params.not_before = date_time_ymd(2020, 1, 1);
    let last_year = if flaw == Some(Flaw::Expired) {
        2021
    } else {
        2045
    };
    params.not_after = date_time_ymd(last_year, 1, 1);

    let key = key();
    let certificate = if flaw == Some(Flaw::OtherAuthority) {
        params.signed_by(&key, &authority())
    } else {
        params.signed_by(&key, ca)
    };
    let certificate = certificate.expect("the parameters above are legal");
    (certificate.pem(), key.serialize_pem())
}
