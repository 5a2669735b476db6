//! Servers of object stores: moto for S3 and Azurite for Azure.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Peer, Port,
    process::{Process, Stop},
    require,
};

/// The right to make containers in Azurite, signed with its well-known key until 2100.
const AZURITE_RIGHTS: &str = "sv=2018-11-09&ss=b&srt=sco&sp=rwdlac&se=2100-01-01T00%3A00%3A00Z&\
    spr=https%2Chttp&sig=GC%2BChk%2Ffr2kGYxbx3ScPyFgz5bjf1gcFtmNtRsA6N6U%3D";

/// The bucket of all stores, which Azure calls a container.
pub(crate) const BUCKET: &str = "disks";

/// The time in which a request has to be answered.
const LIMIT: Duration = Duration::from_secs(60);

/// The kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S3,
    Gcs,
    Azure,
}

impl Kind {
    /// The URI of a prefix of the bucket.
    pub(crate) fn uri(self, prefix: &str) -> String {
        let scheme = match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        };
        format!("{scheme}://{BUCKET}/{prefix}")
    }

    /// The variables by which programs find a store at this address, and some credentials.
    pub(crate) fn variables(self, address: SocketAddr) -> Vec<(&'static str, String)> {
        match self {
            Self::S3 => vec![
                ("AWS_ENDPOINT", format!("http://{address}")),
                ("AWS_ALLOW_HTTP", "true".into()),
                ("AWS_REGION", "us-east-1".into()),
                ("AWS_ACCESS_KEY_ID", "test".into()),
                ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ],
            Self::Gcs => vec![(
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                format!(
                    r#"{{"gcs_base_url": "http://{address}", "disable_oauth": true,
                        "client_email": "", "private_key": "", "private_key_id": ""}}"#
                ),
            )],
            Self::Azure => vec![
                ("AZURE_STORAGE_USE_EMULATOR", "true".into()),
                ("AZURITE_BLOB_STORAGE_URL", format!("http://{address}")),
            ],
        }
    }
}

/// A store in the memory of a server of its own, with one bucket; dropping it stops the server.
#[derive(Debug)]
pub struct ObjectStoreServer {
    kind: Kind,
    process: Arc<Process>,
    /// Holds the log.
    _dir: TempDir,
    port: Port,
}

impl ObjectStoreServer {
    /// The bucket, which Azure calls a container.
    pub const BUCKET: &'static str = BUCKET;

    /// Starts moto, a store for the protocol of S3, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn s3() -> Option<Self> {
        Self::start(Kind::S3, Peer::Moto, |port| {
            ["-H".into(), "127.0.0.1".into(), "-p".into(), port].into()
        })
    }

    /// Starts Azurite, a store for the protocol of Azure, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn azure() -> Option<Self> {
        Self::start(Kind::Azure, Peer::Azurite, |port| {
            let fixed = [
                "--inMemoryPersistence",
                "--disableTelemetry",
                "--skipApiVersionCheck",
                "--blobHost=127.0.0.1",
                "--blobPort",
            ];
            fixed.map(str::to_owned).into_iter().chain([port]).collect()
        })
    }

    fn start(kind: Kind, peer: Peer, args: impl Fn(String) -> Vec<String>) -> Option<Self> {
        let program = require(peer)?;
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let port = Port::new(Ipv4Addr::LOCALHOST);
        let mut command = program.command();
        command
            .args(args(port.address().port().to_string()))
            .current_dir(dir.path());
        let process = Process::spawn(command, Stop::Kill, &dir.path().join("log"));
        let ready = process.wait_until(|| TcpStream::connect(port.address()).is_ok());
        if let Err(status) = ready {
            let (command, printed) = (process.command(), process.printed());
            panic!("{command} ended with {status} before it served\n{printed}");
        }
        let server = Self {
            kind,
            process,
            _dir: dir,
            port,
        };
        server.make_bucket();
        Some(server)
    }

    fn make_bucket(&self) {
        let bucket = Self::BUCKET;
        let path = match self.kind {
            Kind::S3 | Kind::Gcs => format!("/{bucket}"),
            Kind::Azure => {
                format!("/devstoreaccount1/{bucket}?restype=container&{AZURITE_RIGHTS}")
            }
        };
        let answer = put(self.address(), &path).expect("the store answers");
        assert!(
            answer.starts_with("HTTP/1.1 20"),
            "{answer}{}",
            self.process.printed()
        );
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The URI of a prefix of the bucket.
    pub fn uri(&self, prefix: &str) -> String {
        self.kind.uri(prefix)
    }

    /// The variables by which programs find the store, and their credentials.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        self.variables_by(self.address())
    }

    /// The same for programs that are to reach it by another address, as that of a
    /// [`LatencyProxy`](crate::LatencyProxy).
    pub fn variables_by(&self, address: SocketAddr) -> Vec<(&'static str, String)> {
        self.kind.variables(address)
    }
}

/// Sends a request without a body, and returns the answer.
fn put(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
