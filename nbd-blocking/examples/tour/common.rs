//! The common part of the examples called `tour` of all runtimes: their arguments, and the exports
//! of their own servers.

use clap::Parser;
use nbd_io::{
    Memory, NamedExports,
    tls::{ClientTls, ServerTls},
};
use nbd_proto::{
    ExportName, Uri,
    uri::{Host, Permissions, Tls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// The server to visit; one is started if none is given.
    uri: Option<String>,
    /// Overwrites the beginning of the export.
    #[arg(long)]
    pub(crate) write: bool,
    /// Lets the URI name files of this machine (`tls-certificates`).
    #[arg(long)]
    pub(crate) local_files: bool,
}

impl Arguments {
    /// The server to visit.
    pub(crate) fn uri(&self) -> Outcome<Option<Uri>> {
        let mut permissions = Permissions::default();
        if self.local_files {
            permissions = permissions.local_files();
        }
        let Some(uri) = &self.uri else {
            return Ok(None);
        };
        Ok(Some(Uri::parse_with(uri, permissions)?))
    }
}

/// Size of the export that is walked, in bytes. It takes memory only for written data.
const SIZE: u64 = 1 << 30;

/// The name in the server's certificate. A Unix socket has none of its own.
const NAME: &str = "localhost";

/// The exports of the tour's own server, in memory.
pub(crate) fn exports() -> Outcome<NamedExports> {
    let disk = Memory::new(SIZE).with_description("a disk in memory");
    let scratch = Memory::new(1 << 20).with_description("another one");
    Ok(NamedExports::new()
        .with(ExportName::new("disk")?, Arc::new(disk))
        .with(ExportName::new("scratch")?, Arc::new(scratch)))
}

/// The address of the tour's own server.
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    /// The export to walk.
    pub(crate) uri: Uri,
}

impl Place {
    pub(crate) fn new(directory: &Path, encrypted: bool) -> Outcome<Self> {
        let socket = directory.join(if encrypted { "tls" } else { "plain" });
        let uri = Uri::unix(socket.as_os_str().as_encoded_bytes())?;
        let mut uri = uri.with_export(ExportName::new("disk")?);
        if encrypted {
            uri = uri.with_tls(Tls::new().with_hostname(Host::new(NAME)?));
        }
        Ok(Self { socket, uri })
    }
}

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

    /// For a client that trusts the authority.
    pub(crate) fn client(&self) -> Outcome<ClientTls> {
        Ok(ClientTls::new().roots_pem(self.authority.as_bytes())?)
    }

    pub(crate) fn server(&self) -> Outcome<ServerTls> {
        let (chain, key) = (self.chain.as_bytes(), self.key.as_bytes());
        Ok(ServerTls::from_pem(chain, key)?)
    }
}
