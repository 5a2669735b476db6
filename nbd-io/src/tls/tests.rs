//! Certificates and settings that each side accepts, in handshakes in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod building;
mod inputs;
mod trust;

use super::{ClientTls, ServerTls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{ClientConnection, ConnectionCommon, HandshakeKind, ServerConnection, SideData};

type Authority = CertifiedIssuer<'static, KeyPair>;

const NAME: &str = "disks.example";

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn authority(name: &str) -> Authority {
    CertifiedIssuer::self_signed(ca(name), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(name: &str, issuer: &Authority) -> Authority {
    CertifiedIssuer::signed_by(ca(name), KeyPair::generate().unwrap(), issuer).unwrap()
}

/// A certificate and its key in PEM.
#[derive(Clone)]
struct Leaf {
    pem: String,
    key: String,
}

impl Leaf {
    /// With the intermediate certificates behind it.
    fn new(serial: u64, issuer: &Authority, between: &[&Authority]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        let mut pem = params.signed_by(&key, issuer).unwrap().pem();
        pem.extend(between.iter().map(|authority| authority.pem()));
        Self {
            pem,
            key: key.serialize_pem(),
        }
    }

    /// A certificate as of `openssl req -x509`: signed with its own key, and an authority.
    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca(NAME);
        params.key_usages = Vec::new();
        params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
        change(&mut params);
        let own = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            pem: own.pem(),
            key: own.key().serialize_pem(),
        }
    }

    fn server(&self) -> ServerTls {
        ServerTls::from_pem(self.pem.as_bytes(), self.key.as_bytes()).unwrap()
    }

    fn client(&self) -> ClientTls {
        ClientTls::new()
            .identity_pem(self.pem.as_bytes(), self.key.as_bytes())
            .unwrap()
    }
}

/// A revocation list of an authority with these serial numbers.
fn list(issuer: &Authority, revoked: &[u64]) -> String {
    let revoked_certs = revoked.iter().map(|&serial| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2044, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

/// A handshake with the server [`NAME`], and how it was done.
fn shake(client: &ClientTls, server: &ServerTls) -> Result<HandshakeKind, rustls::Error> {
    let (config, name) = client.client(Some(NAME)).unwrap();
    let mut server = ServerConnection::new(server.server().unwrap()).unwrap();
    exchange(
        &mut ClientConnection::new(config, name).unwrap(),
        &mut server,
    )
}

fn exchange(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<HandshakeKind, rustls::Error> {
    while client.wants_write() || server.wants_write() {
        carry(client, server)?;
        carry(server, client)?;
    }
    Ok(client.handshake_kind().unwrap())
}

fn carry<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = &*wire;
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// An error and everything behind it.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", causes(source)),
        None => error.to_string(),
    }
}
