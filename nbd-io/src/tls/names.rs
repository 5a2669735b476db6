//! The names in a certificate.

use super::TlsError;
use std::net::IpAddr;
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// The names that a certificate is made out to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerNames {
    /// The distinguished name, written as in [RFC 4514]: `CN=backup,O=Example`. The last part in
    /// the certificate is the first here. Empty if the certificate has none.
    ///
    /// [RFC 4514]: https://www.rfc-editor.org/rfc/rfc4514
    pub subject: String,
    /// Host names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ip: Vec<IpAddr>,
    /// Mail addresses.
    pub email: Vec<String>,
    /// URIs, such as SPIFFE identities.
    pub uri: Vec<String>,
}

impl PeerNames {
    /// Reads the names of a certificate in DER.
    ///
    /// # Errors
    ///
    /// When it is none that can be understood.
    pub fn of(certificate: &[u8]) -> Result<Self, TlsError> {
        let certificate = Certificate::from_der(certificate).map_err(TlsError::Names)?;
        let subject = certificate.tbs_certificate;
        let mut names = Self {
            subject: subject.subject.to_string(),
            ..Self::default()
        };
        let Some((_, alternative)) = subject.get::<SubjectAltName>().map_err(TlsError::Names)?
        else {
            return Ok(names);
        };
        for name in alternative.0 {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                GeneralName::Rfc822Name(name) => names.email.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(name) => names.uri.push(name.to_string()),
                GeneralName::IpAddress(address) => names.ip.extend(ip(address.as_bytes())),
                // The others do not identify clients.
                _ => {}
            }
        }
        Ok(names)
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests;
