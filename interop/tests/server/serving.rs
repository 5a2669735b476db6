//! The server under test, in this process.

use std::{
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use interop::{Certificates, Endpoint, Listen, MIB};
use nbd_io::{
    Export, Memory, NamedExports,
    server::{Event, Stopper},
    tls::ServerTls,
};
use nbd_proto::{ExportName, HeaderStyle};
use nbd_socket::Listener;
use tempfile::TempDir;

use crate::runtime::{Server, serve};

pub(crate) fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

/// A server of one export, "disk".
pub(crate) fn server(export: Arc<dyn Export>) -> Server {
    Server::new(NamedExports::new().with(name("disk"), export))
}

/// A server of so many exports.
pub(crate) fn many(count: usize) -> Server {
    let disk: Arc<dyn Export> = Arc::new(Memory::new(MIB));
    Server::new((0..count).fold(NamedExports::new(), |exports, n| {
        exports.with(name(&format!("disk {n}")), Arc::clone(&disk))
    }))
}

/// Sends the server's certificate, and requires one of every client.
pub(crate) fn strict(certificates: &Certificates) -> ServerTls {
    tls(certificates).require_client_certificates(true)
}

/// Sends the server's certificate, and requires none.
pub(crate) fn tls(certificates: &Certificates) -> ServerTls {
    ServerTls::from_directory(certificates.dir()).unwrap()
}

/// A client has entered an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) export: String,
    pub(crate) mode: HeaderStyle,
    pub(crate) encrypted: bool,
}

/// The events of a server.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Every event, as text.
    lines: Vec<String>,
    pub(crate) entered: Vec<Entered>,
    /// The endings of connections that did not end with a disconnect.
    pub(crate) broken: Vec<String>,
}

impl Log {
    fn add(&mut self, event: &Event<'_>) {
        self.lines.push(format!("{event:?}"));
        match event {
            Event::Entered {
                export,
                mode,
                encrypted,
                ..
            } => self.entered.push(Entered {
                export: export.as_str().to_owned(),
                mode: *mode,
                encrypted: *encrypted,
            }),
            Event::Closed { ending, .. } if !ending.is_clean() => {
                self.broken.push(ending.to_string());
            }
            _ => {}
        }
    }

    /// The headers that each client used, in the order they came.
    pub(crate) fn modes(&self) -> Vec<HeaderStyle> {
        self.entered.iter().map(|entered| entered.mode).collect()
    }
}

/// A running server; dropping it stops it, and fails unless every client has left as it should.
pub(crate) struct Serving {
    endpoint: Endpoint,
    stopper: Stopper,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    log: Arc<Mutex<Log>>,
    /// Holds the socket.
    _dir: TempDir,
}

impl Serving {
    pub(crate) fn new(server: Server, listen: Listen) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let server = server.on_event({
            let log = Arc::clone(&log);
            move |event| log.lock().unwrap().add(event)
        });
        let stopper = server.stopper();
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
        let tcp = |listener: TcpListener| {
            let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
            (endpoint, Listener::new(listener).unwrap())
        };
        let (endpoint, listener) = match listen {
            Listen::Tcp4 => tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()),
            Listen::Tcp6 => tcp(TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap()),
            _ => {
                let path = dir.path().join("socket");
                let listener = Listener::bind_unix(&path).unwrap();
                (Endpoint::Unix(path), listener)
            }
        };
        let thread = thread::spawn(move || serve(&server, listener));
        Self {
            endpoint,
            stopper,
            thread: Some(thread),
            log,
            _dir: dir,
        }
    }

    /// Serves "disk" on a Unix socket, in the clear.
    pub(crate) fn disk(export: Arc<dyn Export>) -> Self {
        Self::new(server(export), Listen::Unix)
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The URI of an export in the clear.
    pub(crate) fn uri(&self, export: &str) -> String {
        self.endpoint.uri(export)
    }

    /// The URI of an export over TLS, with the client's certificates.
    pub(crate) fn tls_uri(&self, export: &str, certificates: &Certificates) -> String {
        self.endpoint.tls_uri(export, certificates)
    }

    /// The events since the last call.
    pub(crate) fn log(&self) -> Log {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Stops, and returns the events.
    pub(crate) fn stop(mut self) -> Log {
        self.join();
        self.log()
    }

    fn join(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log.lock();
            let log = log.unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("events of the server:\n{}", log.lines.join("\n"));
            self.stopper.stop();
            return;
        }
        self.join();
        let log = self.log.lock().unwrap();
        assert!(log.broken.is_empty(), "{:#?}", log.lines);
    }
}
