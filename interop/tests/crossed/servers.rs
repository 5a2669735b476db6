//! The servers, all with the same exports.

use crate::{
    census::{Counting, TIMEOUT},
    exports::{Bare, Spy},
    runtimes::{OnAsyncStd, Own, OwnTokio},
};
use interop::{Certificates, Endpoint, MIB};

use nbd_io::{
    Faults, Faulty, Memory, NamedExports,
    runtime::Tasks,
    server::{Event, Peer, Server, Stopper},
    tls::ServerTls,
};
use nbd_proto::{Command, ExportName, Uri, uri::Permissions};
use nbd_socket::Listener;
use std::{
    io,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::Instant,
};
use tempfile::TempDir;

/// The size of "disk" and "quick".
pub(crate) const SIZE: u64 = 8 * MIB;

/// The runtime of a server.
pub(crate) trait Host: Send + 'static {
    type Runtime: Tasks;

    fn runtime(&self) -> Self::Runtime;

    /// Serves in this thread until the server is stopped, and then until none of its tasks is left.
    fn serve(self, server: Server<Self::Runtime>, listener: Listener) -> io::Result<()>;
}

/// Plain threads.
#[derive(Default)]
pub(crate) struct Plain(nbd_blocking::Threads);

impl Host for Plain {
    type Runtime = nbd_blocking::Threads;

    fn runtime(&self) -> Self::Runtime {
        self.0.clone()
    }

    fn serve(self, server: Server<Self::Runtime>, listener: Listener) -> io::Result<()> {
        let server = nbd_blocking::Server::from(server);
        server.serve(nbd_blocking::Listener::new(listener)?)?;
        drop((self, server));
        let start = Instant::now();
        while threads_of_servers() > 0 {
            assert!(start.elapsed() < TIMEOUT, "threads are left");
            thread::yield_now();
        }
        Ok(())
    }
}

/// Threads of this process that serve connections or carry out requests.
fn threads_of_servers() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.filter_map(|thread| std::fs::read(thread.path().join("comm")).ok());
    names
        .filter(|name| matches!(&**name, b"nbd\n" | b"nbd-worker\n"))
        .count()
}

macro_rules! host {
    ($own:ty, $listener:path) => {
        impl Host for $own {
            type Runtime = Counting<<Self as Own>::Inner>;

            fn runtime(&self) -> Self::Runtime {
                self.network()
            }

            fn serve(self, server: Server<Self::Runtime>, listener: Listener) -> io::Result<()> {
                self.block_on(async { server.serve($listener(listener)?).await })?;
                drop(server);
                self.end();
                Ok(())
            }
        }
    };
}

host!(OwnTokio, nbd_tokio::Listener::new);
host!(OnAsyncStd, nbd_async_std::Listener::new);

/// The way of a client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
    /// Over TCP.
    Tls,
    Vsock,
    /// TLS over vsock.
    VsockTls,
}

impl Transport {
    const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::VsockTls)
    }

    /// Whether it is tried in an emulated machine only.
    pub(crate) const fn is_slow(self) -> bool {
        matches!(self, Self::Vsock | Self::VsockTls)
    }

    /// Whether a client may have come from there.
    fn brings(self, peer: Peer) -> bool {
        match self {
            Self::Unix => peer == Peer::Unix,
            Self::Tcp | Self::Tls => {
                matches!(peer, Peer::Tcp(address) if address.ip().is_loopback())
            }
            Self::Vsock | Self::VsockTls => {
                matches!(peer, Peer::Vsock { cid: 1, port } if port != u32::MAX)
            }
        }
    }
}

/// A server that runs. It has the exports "disk", which is watched and has faults on demand,
/// "quick", which never waits, and "bare", which can only be read.
pub(crate) struct Serving {
    pub(crate) spy: Arc<Spy>,
    pub(crate) faults: Faults,
    pub(crate) certificates: Option<Certificates>,
    endpoint: Endpoint,
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
    log: Arc<Mutex<Log>>,
    /// The offsets of writes that were reported as done.
    written: Arc<Mutex<Vec<u64>>>,
    quick: Weak<Memory>,
    _dir: TempDir,
}

#[derive(Debug, Default)]
struct Log {
    connected: usize,
    endings: Vec<String>,
    broken: Vec<String>,
}

impl Serving {
    pub(crate) fn new<H: Host>(host: H, transport: Transport) -> Self {
        let (spy, faults) = (Spy::new(SIZE), Faults::new());
        let quick = Arc::new(Memory::new(SIZE));
        let weak = Arc::downgrade(&quick);
        let exports = NamedExports::new()
            .with(
                name("disk"),
                Arc::new(Faulty::new(spy.clone(), faults.clone())),
            )
            .with(name("quick"), quick)
            .with(name("bare"), Arc::new(Bare));
        let log = Arc::new(Mutex::new(Log::default()));
        let events = log.clone();
        let written = Arc::<Mutex<Vec<u64>>>::default();
        let writes = written.clone();
        let mut server = Server::on_runtime(host.runtime(), Arc::new(exports)).on_event(
            move |event| match event {
                Event::Connected { peer, .. } => {
                    let mut log = events.lock().unwrap();
                    log.connected += 1;
                    if !transport.brings(**peer) {
                        log.broken.push(format!("from {peer}"));
                    }
                }
                Event::Closed { ending, .. } => {
                    let mut log = events.lock().unwrap();
                    log.endings.push(ending.to_string());
                    if !ending.is_clean() {
                        log.broken.push(ending.to_string());
                    }
                }
                _ => {}
            },
        );
        server = server.on_request(move |outcome| {
            if outcome.command == Command::Write && outcome.failure.is_none() {
                writes.lock().unwrap().push(outcome.offset);
            }
        });
        let certificates = transport.is_encrypted().then(Certificates::new);
        if let Some(certificates) = &certificates {
            let tls = ServerTls::from_directory(certificates.dir()).unwrap();
            server = server.require_tls(&tls).unwrap();
        }
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
        let (endpoint, listener) = listen(transport, dir.path());
        Self {
            spy,
            faults,
            certificates,
            endpoint,
            stopper: server.stopper(),
            thread: Some(thread::spawn(move || host.serve(server, listener))),
            log,
            written,
            quick: weak,
            _dir: dir,
        }
    }

    /// The URI of an export, over TLS if there is any.
    pub(crate) fn uri(&self, export: &str) -> String {
        match &self.certificates {
            Some(certificates) => {
                let uri = self.endpoint.tls_uri(export, certificates);
                match self.endpoint {
                    Endpoint::Vsock(_) => format!("{uri}&tls-hostname=localhost"),
                    _ => uri,
                }
            }
            None => self.endpoint.uri(export),
        }
    }

    pub(crate) fn parsed_uri(&self, export: &str) -> Uri {
        Uri::parse_with(&self.uri(export), Permissions::default().local_files()).unwrap()
    }

    /// The URI of an export without TLS from the start.
    pub(crate) fn plain_uri(&self, export: &str) -> Uri {
        Uri::parse(&self.endpoint.uri(export)).unwrap()
    }

    /// The offsets of writes that were done since the last call, in ascending order.
    pub(crate) fn written(&self) -> Vec<u64> {
        let mut written = std::mem::take(&mut *self.written.lock().unwrap());
        written.sort_unstable();
        written
    }

    /// Begins to stop.
    pub(crate) fn stop(&self) {
        self.stopper.stop();
    }

    /// Waits for the end of all tasks, and returns how connections ended.
    pub(crate) fn end(mut self) -> Vec<String> {
        self.stop();
        let thread = self.thread.take().expect("it is taken here only");
        thread.join().unwrap().unwrap();
        assert_eq!(self.stopper.connections(), 0);
        // Every connection has dropped its export.
        assert_eq!(self.quick.strong_count(), 0);
        assert_eq!(Arc::strong_count(&self.spy), 1);
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        assert!(log.broken.is_empty(), "{:?}", log.broken);
        assert_eq!(log.connected, log.endings.len());
        log.endings
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // After a failure no thread may wait for this server, nor for its faults.
        self.faults.clear();
        self.stop();
        if thread::panicking() {
            let log = self.log.lock();
            let log = log.unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("the server: {log:?}");
        }
    }
}

fn listen(transport: Transport, dir: &Path) -> (Endpoint, Listener) {
    match transport {
        Transport::Unix => {
            let path = dir.join("socket");
            let listener = Listener::bind_unix(&path).unwrap();
            (Endpoint::Unix(path), listener)
        }
        Transport::Tcp | Transport::Tls => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
            (endpoint, Listener::new(listener).unwrap())
        }
        Transport::Vsock | Transport::VsockTls => {
            let endpoint = Endpoint::unused_vsock();
            let Endpoint::Vsock(port) = endpoint else {
                unreachable!("it is one of these");
            };
            (endpoint, Listener::bind_vsock(None, port).unwrap())
        }
    }
}

pub(crate) fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}
