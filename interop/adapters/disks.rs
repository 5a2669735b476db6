//! Exports that are there for the time of a test.

use super::*;
use nbd_blocking::server::Stopper;

/// The way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Unix,
    Tcp,
    Tls,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Unix, Self::Tcp, Self::Tls];
}

/// An export in memory, with a server of its own.
pub(super) struct Disk {
    pub(super) memory: Arc<Memory>,
    pub(super) uri: String,
    pub(super) stopper: Stopper,
    serving: thread::JoinHandle<io::Result<()>>,
    _directory: tempfile::TempDir,
}

impl Disk {
    pub(super) fn new(way: Way, certificates: &Certificates, len: u64) -> Self {
        let directory = scratch();
        let memory = Arc::new(Memory::new(len));
        let mut server = Server::single(memory.clone());
        if way == Way::Tls {
            let tls = ServerTls::from_directory(certificates.dir()).unwrap();
            server = server.require_tls(&tls).unwrap();
        }
        let stopper = server.stopper();
        let (uri, serving) = if way == Way::Unix {
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            let serving = thread::spawn(move || {
                server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
            });
            (format!("nbd+unix:///?socket={}", path.display()), serving)
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let scheme = if way == Way::Tls { "nbds" } else { "nbd" };
            let serving = thread::spawn(move || {
                server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
            });
            (format!("{scheme}://{address}"), serving)
        };
        Self {
            memory,
            uri,
            stopper,
            serving,
            _directory: directory,
        }
    }

    pub(super) fn stop(self) {
        self.stopper.stop();
        self.serving.join().unwrap().unwrap();
    }
}

/// QEMU's server for as many clients, and its URI, if it is installed.
pub(super) fn qemu(
    way: Way,
    certificates: &Certificates,
    len: u64,
    clients: u32,
) -> Option<(interop::Server, String)> {
    let server = QemuNbd::new(Image::raw(len)).shared(clients);
    let server = match way {
        Way::Unix => server,
        Way::Tcp => server.listen(Listen::Tcp4),
        Way::Tls => server.listen(Listen::Tcp4).tls_required(certificates),
    };
    let server = server.start()?;
    let uri = match way {
        Way::Tls => format!("nbds://{}", server.address()),
        _ => server.uri(""),
    };
    Some((server, uri))
}

pub(super) fn options<R: Network>(network: &R, certificates: &Certificates) -> ConnectOptions<R> {
    let tls = ClientTls::new().directory(certificates.dir()).unwrap();
    ConnectOptions::with_runtime(network.clone()).tls(tls)
}
