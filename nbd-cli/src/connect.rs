//! Options by which commands connect.

use crate::{
    embedded::Embedded,
    outcome::{Error, Result},
    target::Target,
};
use clap::{Args, ValueEnum};
use nbd_tokio::{
    TlsPolicy, Uri,
    nbd_io::client::{ConnectOptions, Driver},
};
use std::{path::PathBuf, time::Duration};

/// Settings of connections to servers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connecting")]
pub(crate) struct Connect {
    /// TLS: never, if-offered or always.
    ///
    /// With a server whose URI is nbds://, TLS is always started. Otherwise it is started `never`,
    /// `if-offered` by the server, or `always`, so that a server without TLS is not used.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "never",
        hide_possible_values = true
    )]
    tls: Tls,
    /// Authorities to trust (PEM).
    ///
    /// The server's certificate has to be signed by one of these authorities, instead of those that
    /// the system trusts.
    #[arg(long, value_name = "FILE", env = "NBD_TLS_CA", hide_env_values = true)]
    tls_ca: Option<PathBuf>,
    /// Own certificate (PEM).
    ///
    /// It is shown to servers that ask for one.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    #[arg(env = "NBD_TLS_CERT", hide_env_values = true)]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    #[arg(env = "NBD_TLS_KEY", hide_env_values = true)]
    tls_key: Option<PathBuf>,
    /// Name in the server's certificate.
    ///
    /// The certificate must have this name, instead of the URI's host.
    #[arg(long, value_name = "NAME")]
    tls_hostname: Option<String>,
    /// Take any certificate, even an attacker's.
    ///
    /// An attacker may pretend to be the server then.
    #[arg(long)]
    tls_insecure: bool,
    /// Seconds to connect.
    ///
    /// Connecting is given up after them.
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    connect_timeout: Duration,
    /// Seconds for a request.
    ///
    /// A request is given up after them, and with it the connection.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    request_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    Never,
    IfOffered,
    Always,
}

/// The URI that an argument has led to, and the server in this process if it is there.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The URI to connect to.
    pub(crate) uri: Uri,
    /// Keeps the server.
    pub(crate) embedded: Option<Embedded>,
}

impl Connect {
    /// Options of either driver.
    pub(crate) fn options<D: Driver + Default, O: From<ConnectOptions<D>>>(&self) -> Result<O> {
        let options = ConnectOptions::new()
            .local_files(true)
            .connect_timeout(Some(self.connect_timeout))
            .request_timeout(Some(self.request_timeout))
            .tls_policy(self.policy());
        self.trust(options).map(O::from)
    }

    /// Whether TLS is to be started where the URI does not demand it.
    pub(crate) fn policy(&self) -> TlsPolicy {
        match self.tls {
            Tls::Never => TlsPolicy::Never,
            Tls::IfOffered => TlsPolicy::IfOffered,
            Tls::Always => TlsPolicy::Always,
        }
    }

    #[cfg(feature = "tls-base")]
    fn trust<D: Driver>(&self, options: ConnectOptions<D>) -> Result<ConnectOptions<D>> {
        Ok(options.tls(self.client_tls()?))
    }

    /// The authorities that are trusted, and the credentials of this client.
    #[cfg(feature = "tls-base")]
    pub(crate) fn client_tls(&self) -> Result<nbd_tokio::ClientTls> {
        use crate::outcome::Context;
        let mut tls = nbd_tokio::ClientTls::new();
        if let Some(file) = &self.tls_ca {
            tls = tls.roots_file(file).step(|| "--tls-ca")?;
        }
        if let (Some(chain), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let identity = tls.identity_files(chain, key);
            tls = identity.step(|| "--tls-cert and --tls-key")?;
        }
        if let Some(name) = &self.tls_hostname {
            tls = tls.server_name(name);
        }
        if self.tls_insecure {
            tls = tls.dangerous_accept_any_certificate();
        }
        Ok(tls)
    }

    #[cfg(not(feature = "tls-base"))]
    fn trust<D: Driver>(&self, options: ConnectOptions<D>) -> Result<ConnectOptions<D>> {
        let asked = self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_key.is_some();
        if asked || self.tls_hostname.is_some() || self.tls_insecure || self.tls != Tls::Never {
            return Err(Error::new("this build of nbd has no TLS"));
        }
        Ok(options)
    }

    /// Makes a server if there is none: a file or a disk on object storage is served read-only by
    /// this process, and without an argument there is a disk to try things with.
    pub(crate) fn open(target: Option<&Target>) -> Result<Opened> {
        let embedded = match target {
            Some(Target::Server(uri)) => {
                return Ok(Opened {
                    uri: uri.clone(),
                    embedded: None,
                });
            }
            Some(Target::Path(path)) => Embedded::file(path, false)?,
            Some(Target::Object(address)) => Embedded::object(address, false, None)?,
            Some(Target::Stdio) => {
                return Err(Error::new(
                    "expected a URI, a file or a block device, got \"-\" for standard input",
                ));
            }
            None => Embedded::sample()?,
        };
        Ok(Opened::embedded(embedded))
    }
}

impl Opened {
    /// The server in this process.
    pub(crate) fn embedded(server: Embedded) -> Self {
        Self {
            uri: server.uri().clone(),
            embedded: Some(server),
        }
    }
}

/// A duration in seconds, which may have a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a positive number of seconds".to_owned()),
    }
}
