//! TLS, and the permission of clients to use the server.

use crate::outcome::{Error, Result};
use clap::{Args, ValueEnum};
use nbd_blocking::nbd_io::{runtime::Tasks, server::Server};
use std::path::PathBuf;

/// Credentials of the server, and the clients that it lets in.
#[derive(Args, Debug)]
#[command(next_help_heading = "Addresses and TLS")]
pub(super) struct Tls {
    /// TLS: required, offered or off.
    ///
    /// `required` as soon as there is a certificate, unless some disks are for TLS only: then it is
    /// `offered`.
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    tls: Option<When>,
    /// Certificate of the server, and its chain (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Directory of server-cert.pem and others.
    ///
    /// server-cert.pem, server-key.pem and ca-cert.pem are taken from there.
    #[arg(long, value_name = "DIR", conflicts_with = "tls_cert")]
    tls_dir: Option<PathBuf>,
    /// Authorities of clients' certificates (PEM).
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Let in clients with a certificate only.
    #[arg(long)]
    tls_verify_clients: bool,
    /// Let in clients with this name only.
    ///
    /// The name in the certificate: a host, a part of the subject as CN=backup, an address, a URI.
    #[arg(long, value_name = "NAME")]
    allow_name: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Required,
    Offered,
    Off,
}

impl Tls {
    fn has_identity(&self) -> bool {
        self.tls_cert.is_some() || self.tls_dir.is_some()
    }

    fn when(&self, has_secrets: bool) -> When {
        match self.tls {
            Some(when) => when,
            // The other disks are for clients without.
            None if has_secrets => When::Offered,
            None if self.has_identity() => When::Required,
            None => When::Off,
        }
    }

    /// Whether there are no clients without TLS.
    pub(super) fn is_required(&self, has_secrets: bool) -> bool {
        self.when(has_secrets) == When::Required
    }

    /// Sets a server up. Some disks are `secrets`, which clients without TLS do not get.
    pub(super) fn apply<R: Tasks>(
        &self,
        server: Server<R>,
        has_secrets: bool,
    ) -> Result<Server<R>> {
        let when = self.when(has_secrets);
        if when == When::Off {
            let option = if has_secrets {
                "--tls-only"
            } else if self.tls_verify_clients || self.tls_client_ca.is_some() {
                "to check clients' certificates"
            } else if !self.allow_name.is_empty() {
                "--allow-name"
            } else {
                return Ok(server);
            };
            return Err(Error::new(format!(
                "{option} makes no sense without TLS: give --tls-cert and --tls-key, or --tls-dir"
            )));
        }
        if !self.has_identity() {
            return Err(Error::new(
                "TLS needs a certificate: give --tls-cert and --tls-key, or --tls-dir",
            ));
        }
        self.set_up(server, when)
    }

    #[cfg(feature = "tls-base")]
    fn set_up<R: Tasks>(&self, server: Server<R>, when: When) -> Result<Server<R>> {
        use crate::outcome::Context;
        use nbd_blocking::ServerTls;
        let unusable = || "cannot use the server's certificate and key";
        let mut tls = match (&self.tls_dir, &self.tls_cert, &self.tls_key) {
            (Some(directory), ..) => ServerTls::from_directory(directory).step(unusable)?,
            (None, Some(chain), Some(key)) => ServerTls::from_files(chain, key).step(unusable)?,
            _ => return Err(Error::new("--tls-cert needs --tls-key")),
        };
        if let Some(authorities) = &self.tls_client_ca {
            tls = tls
                .client_roots_file(authorities)
                .step(|| "--tls-client-ca")?;
        }
        let verifies = self.tls_verify_clients || !self.allow_name.is_empty();
        let tls = tls.require_client_certificates(verifies);
        let server = match when {
            When::Required => server.require_tls(&tls),
            When::Offered | When::Off => server.offer_tls(&tls),
        };
        let server = server.step(|| "cannot set TLS up")?;
        if self.allow_name.is_empty() {
            return Ok(server);
        }
        let allowed = self.allow_name.clone();
        Ok(server.authorize(move |client, _| match client.names() {
            Ok(names) => allowed.iter().any(|name| has_name(&names, name)),
            Err(error) => {
                tracing::warn!("a client's certificate cannot be understood: {error}");
                false
            }
        }))
    }

    #[cfg(not(feature = "tls-base"))]
    fn set_up<R: Tasks>(&self, _: Server<R>, _: When) -> Result<Server<R>> {
        Err(Error::new("this build of nbd has no TLS"))
    }
}

/// Whether a certificate is made out to this name.
#[cfg(feature = "tls-base")]
fn has_name(names: &nbd_blocking::PeerNames, name: &str) -> bool {
    let is = |other: &String| other.eq_ignore_ascii_case(name);
    let is_exactly = |other: &String| other == name;
    names.subject == name
        || names.subject.split(',').any(|part| part == name)
        || names.dns.iter().any(is)
        || names.email.iter().any(is_exactly)
        || names.uri.iter().any(is_exactly)
        || name
            .parse()
            .is_ok_and(|address| names.ip.contains(&address))
}

#[cfg(all(test, feature = "tls-base"))]
mod tests {
    use super::*;
    use nbd_blocking::PeerNames;

    #[test]
    fn names_of_all_kinds_are_compared_as_a_whole() {
        let mut names = PeerNames::default();
        names.subject = "CN=backup,O=Example".into();
        names.dns = vec!["Client.example".into()];
        names.uri = vec!["spiffe://example/backup".into()];
        names.ip = vec!["::1".parse().unwrap()];
        for name in [
            "CN=backup",
            "CN=backup,O=Example",
            "client.example",
            "spiffe://example/backup",
            "0:0:0:0:0:0:0:1",
        ] {
            assert!(has_name(&names, name), "{name}");
        }
        for name in [
            "",
            "backup",
            "CN=back",
            "example",
            "spiffe://example/backup2",
            "127.0.0.1",
        ] {
            assert!(!has_name(&names, name), "{name}");
        }
        assert!(!has_name(&PeerNames::default(), "client.example"));
    }
}
