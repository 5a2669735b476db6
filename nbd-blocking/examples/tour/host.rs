//! A server of the tour's own: memory exports on a private Unix socket, with and without TLS.

use crate::walk::Outcome;
use nbd_blocking::{
    ClientTls, ConnectOptions, ExportName, ServerTls, Uri,
    server::{Serve, Server},
};
use nbd_io::{Memory, NamedExports};
use nbd_proto::uri::{Host as Hostname, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    os::unix::net::UnixListener,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// Size of the export that is walked, in bytes. It costs what is written to it.
const SIZE: u64 = 1 << 30;

/// A server that runs until it is stopped.
pub(crate) struct Host {
    uri: Uri,
    stop: Box<dyn FnOnce()>,
    thread: JoinHandle<std::io::Result<()>>,
}

/// The name in the server's certificate. A Unix socket has none of its own.
const NAME: &str = "localhost";

/// An authority of the tour's own, which is good for one server.
pub(crate) struct Certificates {
    authority: String,
    chain: String,
    key: String,
}

impl Certificates {
    pub(crate) fn new() -> Outcome<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &authority)?;
        Ok(Self {
            authority: authority.pem(),
            chain: server.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Options that trust the authority.
    pub(crate) fn trusted_by(&self, options: ConnectOptions) -> Outcome<ConnectOptions> {
        Ok(options.tls(ClientTls::new().roots_pem(self.authority.as_bytes())?))
    }
}

impl Host {
    /// Starts a server on a socket in `directory`, which serves nobody without TLS if there are
    /// certificates.
    pub(crate) fn start(
        directory: &tempfile::TempDir,
        certificates: Option<&Certificates>,
    ) -> Outcome<Self> {
        let disk = Memory::new(SIZE).with_description("a disk in memory");
        let scratch = Memory::new(1 << 20).with_description("another one");
        let exports = NamedExports::new()
            .with(ExportName::new("disk")?, Arc::new(disk))
            .with(ExportName::new("scratch")?, Arc::new(scratch));
        let mut server = Server::new(exports);
        if let Some(Certificates { chain, key, .. }) = certificates {
            server = server.require_tls(&ServerTls::from_pem(chain.as_bytes(), key.as_bytes())?)?;
        }
        let stopper = server.stopper();
        let name = if certificates.is_some() {
            "tls"
        } else {
            "plain"
        };
        let socket = directory.path().join(name);
        let listener = UnixListener::bind(&socket)?;
        let uri =
            Uri::unix(socket.as_os_str().as_encoded_bytes())?.with_export(ExportName::new("disk")?);
        let uri = match certificates {
            None => uri,
            Some(_) => uri.with_tls(Tls::new().with_hostname(Hostname::new(NAME)?)),
        };
        let thread = thread::spawn(move || server.serve_unix(listener));
        Ok(Self {
            uri,
            stop: Box::new(move || stopper.stop()),
            thread,
        })
    }

    /// The walked export.
    pub(crate) const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(self) -> Outcome<()> {
        (self.stop)();
        self.thread.join().map_err(|_| "the server panicked")??;
        Ok(())
    }
}
