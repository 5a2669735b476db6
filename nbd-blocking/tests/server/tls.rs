//! Certificates that are made on the spot.

use nbd_blocking::{ClientTls, ConnectOptions, ServerTls, TlsPolicy};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            ca: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn server(&self) -> ServerTls {
        let (chain, key) = self.leaf("localhost");
        ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    pub(crate) fn client(&self) -> ClientTls {
        ClientTls::new()
            .roots_pem(self.ca.pem().as_bytes())
            .unwrap()
            .server_name("localhost")
    }
}

pub(crate) fn secure(options: ConnectOptions, tls: ClientTls) -> ConnectOptions {
    options.tls(tls).tls_policy(TlsPolicy::Always)
}
