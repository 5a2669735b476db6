//! Checks of the peer's certificate.

use super::{Pin, TlsError, pin::Pins, source::Source};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{fmt, sync::Arc};
use x509_cert::{
    Certificate,
    der::{Decode, asn1::ObjectIdentifier},
    ext::pkix::SubjectAltName,
};

/// The certificates that a program trusts, as it has set them up.
#[derive(Clone, Default)]
pub(super) struct Trust {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    /// A certificate of an authority without a list is refused.
    pub(super) lists_required: bool,
    pub(super) pins: Vec<Pin>,
}

impl Trust {
    /// Whether it says anything about which certificates are accepted.
    pub(super) const fn asks(&self) -> bool {
        !self.roots.is_empty() || !self.pins.is_empty()
    }

    pub(super) fn add_roots(&mut self, source: &Source<'_>) -> Result<(), TlsError> {
        let found = source.all("certificates of authorities")?;
        self.roots.extend(found);
        Ok(())
    }

    pub(super) fn add_revoked(&mut self, source: &Source<'_>) -> Result<(), TlsError> {
        let found = source.all("lists of revoked certificates")?;
        self.revoked.extend(found);
        Ok(())
    }

    pub(super) fn store(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            let added = store.add(root.clone());
            added.map_err(TlsError::unusable("a certificate of an authority"))?;
        }
        Ok(store)
    }

    /// Checks servers, by a chain of certificates to one of `roots` if there are any.
    pub(super) fn server_verifier(
        &self,
        roots: Option<Arc<RootCertStore>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        let chain = roots.map(|roots| {
            let builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .with_crls(self.revoked.clone());
            if self.lists_required {
                builder.build()
            } else {
                builder.allow_unknown_revocation_status().build()
            }
        });
        let chain = chain.transpose();
        let chain = chain.map_err(TlsError::unusable("the certificates of authorities"))?;
        Ok(Arc::new(Verifier {
            known: self.known(chain.is_some()),
            chain,
            pins: Pins::new(&self.pins, provider)?,
            algorithms: provider.signature_verification_algorithms,
            required: true,
        }))
    }

    /// Checks clients, by a chain of certificates to a root if there are any.
    pub(super) fn client_verifier(
        &self,
        required: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let chain = if self.roots.is_empty() {
            None
        } else {
            let roots = Arc::new(self.store()?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
                .with_crls(self.revoked.clone());
            let built = if self.lists_required {
                builder.build()
            } else {
                builder.allow_unknown_revocation_status().build()
            };
            Some(built.map_err(TlsError::unusable("the certificates of authorities"))?)
        };
        Ok(Arc::new(Verifier {
            known: self.known(true),
            chain,
            pins: Pins::new(&self.pins, provider)?,
            algorithms: provider.signature_verification_algorithms,
            required,
        }))
    }

    /// The roots that vouch for themselves alone, and that a peer may show as its own, such as
    /// those that `openssl req -x509` makes for a server.
    fn known(&self, wanted: bool) -> Vec<CertificateDer<'static>> {
        let roots = self.roots.iter().filter(|_| wanted);
        let self_issued = |root: &&CertificateDer<'_>| {
            Certificate::from_der(root).is_ok_and(|certificate| {
                certificate.tbs_certificate.subject == certificate.tbs_certificate.issuer
            })
        };
        roots.filter(self_issued).cloned().collect()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("roots", &self.roots.len())
            .field("revoked", &self.revoked.len())
            .field("lists_required", &self.lists_required)
            .field("pins", &self.pins)
            .finish()
    }
}

/// Checks certificates; and in any case that the peer has the key of the one that it shows.
struct Verifier<C: ?Sized> {
    /// None if any certificate will do that is pinned, or any at all.
    chain: Option<Arc<C>>,
    /// Authorities that are accepted as peers, too. A chain must not end in one.
    known: Vec<CertificateDer<'static>>,
    pins: Pins,
    algorithms: WebPkiSupportedAlgorithms,
    required: bool,
}

impl<C: ?Sized> Verifier<C> {
    fn is_known(&self, certificate: &CertificateDer<'_>) -> bool {
        self.known.iter().any(|known| known == certificate)
    }
}

impl<C: ?Sized> fmt::Debug for Verifier<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("chain", &self.chain.is_some())
            .field("pinned", &!self.pins.is_empty())
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.pins.check(end_entity)?;
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.is_known(end_entity) {
            check_time(end_entity, now)?;
            check_name(end_entity, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        chain.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain
            .as_ref()
            .map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.pins.check(end_entity)?;
        let Some(chain) = &self.chain else {
            return Ok(ClientCertVerified::assertion());
        };
        if self.is_known(end_entity) {
            check_time(end_entity, now)?;
            return Ok(ClientCertVerified::assertion());
        }
        chain.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parsed(certificate: &CertificateDer<'_>) -> Result<Certificate, rustls::Error> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

fn check_time(certificate: &CertificateDer<'_>, time: UnixTime) -> Result<(), rustls::Error> {
    let validity = parsed(certificate)?.tbs_certificate.validity;
    let unix = |time: x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let (not_before, not_after) = (unix(validity.not_before), unix(validity.not_after));
    if time < not_before {
        return Err(CertificateError::NotValidYetContext { time, not_before }.into());
    }
    if not_after < time {
        return Err(CertificateError::ExpiredContext { time, not_after }.into());
    }
    Ok(())
}

/// Checks that a certificate is made out to `name`. One without a name as RFC 2818 wants it may
/// do so in its subject, because it was given as a whole.
fn check_name(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
) -> Result<(), rustls::Error> {
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

    let checked = verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    let subject = parsed(certificate)?.tbs_certificate;
    if checked.is_ok() || !matches!(subject.get::<SubjectAltName>(), Ok(None)) {
        return checked;
    }
    let mut attributes = subject.subject.0.iter().flat_map(|name| name.0.iter());
    let named = attributes.any(|attribute| {
        attribute.oid == COMMON_NAME
            && (attribute.value.value()).eq_ignore_ascii_case(name.to_str().as_bytes())
    });
    if named { Ok(()) } else { checked }
}
