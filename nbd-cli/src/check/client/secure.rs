//! TLS of a scripted server: certificates that clients have to trust, and others.

use crate::{
    check::{rule::Checked, talk::Talk},
    outcome::Result,
};

/// The certificate that a server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The right one, in a rule that is not about TLS, and may be checked without.
    Any,
    Right,
    /// The right one, and TLS 1.2 is the latest version.
    Tls12,
    /// Made out to another host.
    WrongName,
    Expired,
    /// Of an authority with the same name as the one that is trusted, and another key.
    OtherAuthority,
    SelfSigned,
    /// Made for clients.
    OfAClient,
}

impl Shown {
    /// Whether a client has to refuse it.
    pub(super) const fn is_flawed(self) -> bool {
        !matches!(self, Self::Any | Self::Right | Self::Tls12)
    }
}

#[cfg(feature = "tls-base")]
pub(super) use made::Authority;

#[cfg(feature = "tls-base")]
mod made {
    use super::{Checked, Result, Shown, Talk};
    use crate::{
        check::rule::Fault,
        interrupt::{Directory, remove_directories_when_interrupted},
        outcome::Error,
    };
    use nbd_tokio::nbd_io::tls::{
        ServerTls,
        rustls::{self, ServerConfig},
    };
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
    };
    use std::{fs, path::Path, sync::Arc};

    /// An authority, of which clients find `ca-cert.pem` in a directory, and configurations of a
    /// server.
    #[derive(Debug)]
    pub(in crate::check::client) struct Authority {
        dir: Directory,
        configs: Vec<(Shown, Arc<ServerConfig>)>,
    }

    impl Authority {
        /// Makes certificates for a server that is called `localhost`, or by this address.
        pub(in crate::check::client) fn new(address: Option<String>) -> Result<Self> {
            make(address).map_err(|error| Error::new(format!("cannot make certificates: {error}")))
        }

        pub(in crate::check::client) fn dir(&self) -> &Path {
            self.dir.path()
        }

        /// Does the handshake of a server.
        pub(in crate::check::client) fn secure(&self, talk: &mut Talk, shown: Shown) -> Checked {
            let shown = if shown == Shown::Any {
                Shown::Right
            } else {
                shown
            };
            match self.configs.iter().find(|(name, _)| *name == shown) {
                Some((_, config)) => talk.accept_tls(config.clone()),
                None => Err(Fault::Impossible("no such certificate".into())),
            }
        }
    }

    /// Anything that making certificates may fail with.
    type Made<T> = std::result::Result<T, Box<dyn std::error::Error>>;

    fn make(address: Option<String>) -> Made<Authority> {
        remove_directories_when_interrupted()?;
        let dir = Directory::new("nbd-check-")?;
        let authority = authority()?;
        fs::write(dir.path().join("ca-cert.pem"), authority.pem())?;
        let other = self::authority()?;
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let names: Vec<_> = names.into_iter().chain(address).collect();
        let mut configs = Vec::new();
        for shown in [
            Shown::Right,
            Shown::WrongName,
            Shown::Expired,
            Shown::OtherAuthority,
            Shown::SelfSigned,
            Shown::OfAClient,
        ] {
            let key = KeyPair::generate()?;
            let params = params(shown, &names)?;
            let certificate = match shown {
                Shown::SelfSigned => params.self_signed(&key)?,
                Shown::OtherAuthority => params.signed_by(&key, &other)?,
                _ => params.signed_by(&key, &authority)?,
            };
            let (chain, key) = (certificate.pem(), key.serialize_pem());
            let tls = ServerTls::from_pem(chain.as_bytes(), key.as_bytes())?;
            configs.push((shown, tls.server()?));
            if shown == Shown::Right {
                configs.push((Shown::Tls12, old(&*tls.server()?)?));
            }
        }
        Ok(Authority { dir, configs })
    }

    fn authority() -> Made<CertifiedIssuer<'static, KeyPair>> {
        let mut params = CertificateParams::default();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "authority of nbd check");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
    }

    fn params(shown: Shown, names: &[String]) -> Made<CertificateParams> {
        let names = match shown {
            Shown::WrongName => vec!["elsewhere.example".to_owned()],
            _ => names.to_vec(),
        };
        let mut params = CertificateParams::new(names)?;
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "server of nbd check");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match shown {
            Shown::OfAClient => ExtendedKeyUsagePurpose::ClientAuth,
            _ => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = match shown {
            Shown::Expired => date_time_ymd(2021, 1, 1),
            _ => date_time_ymd(2100, 1, 1),
        };
        Ok(params)
    }

    /// The same with TLS 1.2 alone.
    fn old(config: &ServerConfig) -> Made<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(config.crypto_provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS12])?;
        let builder = builder.with_no_client_auth();
        Ok(Arc::new(
            builder.with_cert_resolver(config.cert_resolver.clone()),
        ))
    }
}

#[cfg(not(feature = "tls-base"))]
pub(super) use none::Authority;

#[cfg(not(feature = "tls-base"))]
mod none {
    use super::{Checked, Result, Shown, Talk};
    use crate::outcome::Error;
    use std::{convert::Infallible, path::Path};

    /// There is none.
    #[derive(Debug)]
    pub(in crate::check::client) struct Authority(Infallible);

    impl Authority {
        pub(in crate::check::client) fn new(_: Option<String>) -> Result<Self> {
            Err(Error::new("this build of nbd has no TLS"))
        }

        pub(in crate::check::client) const fn dir(&self) -> &Path {
            match self.0 {}
        }

        pub(in crate::check::client) const fn secure(&self, _: &mut Talk, _: Shown) -> Checked {
            match self.0 {}
        }
    }
}
