//! The clients and the servers of all runtimes, without TLS and with it.

use crate::{relay, waiting};
use interop::Certificates;
use nbd_async_std::AsyncStd;
use nbd_io::{
    Exports,
    client::Error,
    runtime::Tasks,
    server::{Server, Stopper},
    tls::ServerTls,
};
use nbd_proto::{Uri, client::ListEntry};
use nbd_socket::Listener;
use nbd_tokio::Tokio;
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, LazyLock},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Longer than an honest answer takes, and shorter than a test may.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OnTokio;

impl waiting::Driver for OnTokio {
    type Network = Tokio;

    fn network(&self) -> Tokio {
        Tokio::new(RUNTIME.handle().clone())
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        RUNTIME.block_on(future)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OnAsyncStd;

impl waiting::Driver for OnAsyncStd {
    type Network = AsyncStd;

    fn network(&self) -> AsyncStd {
        AsyncStd
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        async_std::task::block_on(future)
    }
}

/// Has the same code run with the options of each client.
macro_rules! each_client {
    (|$options:ident| $body:expr) => {{
        {
            let $options = nbd_blocking::ConnectOptions::new();
            $body
        }
        {
            let $options = $crate::waiting::ConnectOptions::on($crate::drivers::OnTokio);
            $body
        }
        {
            let $options = $crate::waiting::ConnectOptions::on($crate::drivers::OnAsyncStd);
            $body
        }
    }};
}
pub(crate) use each_client;

/// Has the same code run with the options of each client, without TLS and with it, and with a function
/// for the URI of a scripted server.
macro_rules! each_way {
    (|$options:ident, $uri:ident| $body:expr) => {{
        let certificates = interop::Certificates::new();
        let trust = nbd_io::tls::ClientTls::new();
        let trust = trust.roots_file(certificates.ca_certificate()).unwrap();
        $crate::drivers::each_client!(|options| {
            for secure in [false, true] {
                let $options = if secure {
                    options.clone().tls(trust.clone())
                } else {
                    options.clone()
                };
                let $uri = |server: &interop::Scripted| {
                    if secure {
                        $crate::relay::behind_tls(server, &certificates)
                    } else {
                        server.uri("")
                    }
                };
                $body
            }
        })
    }};
}
pub(crate) use each_way;

/// Whether a URI requires TLS.
fn is_secure(uri: &str) -> bool {
    uri.starts_with("nbds:")
}

/// Options of a client that lists exports.
pub(crate) trait List {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error>;
}

impl List for nbd_blocking::ConnectOptions {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error> {
        let parsed = Uri::parse(uri).unwrap();
        if is_secure(uri) {
            return self.start_secure(&parsed)?.list();
        }
        match self.start(&parsed)? {
            nbd_blocking::negotiation::Greeted::FixedNewstyle(mut options) => options.list(),
            _ => panic!("the server knows options"),
        }
    }
}

impl<D: waiting::Driver> List for waiting::ConnectOptions<D> {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error> {
        let parsed = Uri::parse(uri).unwrap();
        if is_secure(uri) {
            return self.start_secure(&parsed)?.list();
        }
        self.start(&parsed)?.negotiation().unwrap().list()
    }
}

/// A server under attack, and its settings.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) max_connections: usize,
    pub(crate) handshake_timeout: Option<Duration>,
    /// Only clients of this address are served, if any is given.
    pub(crate) only: Option<IpAddr>,
}

impl Setup {
    pub(crate) fn new(exports: impl Exports + 'static) -> Self {
        Self {
            exports: Arc::new(exports),
            tls: None,
            max_connections: 256,
            handshake_timeout: Some(LIMIT),
            only: None,
        }
    }

    fn server<R: Tasks>(&self, runtime: R) -> Server<R> {
        let mut server = Server::on_runtime(runtime, Arc::clone(&self.exports))
            .max_connections(self.max_connections)
            .handshake_timeout(self.handshake_timeout)
            .displace_idle(None)
            .grace(Duration::from_millis(500));
        if let Some(tls) = &self.tls {
            server = server.offer_tls(tls).unwrap();
        }
        if let Some(only) = self.only {
            server = server.authorize(move |client, _| {
                matches!(client.peer, nbd_io::server::Peer::Tcp(from) if from.ip() == only)
            });
        }
        server
    }

    /// Runs `attack` on the server of each runtime, which serves afterwards as before. If the attack is
    /// none on TLS itself, it is made without TLS and inside of it.
    pub(crate) fn attack(&self, attack: impl Fn(&Host)) {
        self.each_host(|_, host| {
            attack(&host);
            host.still_serves();
            host.stop();
        });
    }

    /// Starts the server of each runtime, without TLS and, unless it has its own, with it.
    pub(crate) fn each_host(&self, each: impl Fn(Driver, Host)) {
        let certificates = Certificates::new();
        let mut secure = self.clone();
        secure.tls = Some(ServerTls::from_directory(certificates.dir()).unwrap());
        for driver in [Driver::Blocking, Driver::Tokio, Driver::AsyncStd] {
            each(driver, Host::start(driver, self));
            if self.tls.is_none() {
                each(
                    driver,
                    Host::start(driver, &secure).inside_tls(&certificates),
                );
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Driver {
    Blocking,
    Tokio,
    AsyncStd,
}

/// A server that runs.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) stopper: Stopper,
    /// The address of honest clients.
    local: IpAddr,
    /// The listener of a relay, if clients are to be inside TLS.
    relay: Option<TcpListener>,
    thread: JoinHandle<()>,
}

/// A connection from an address of this machine.
pub(crate) fn connect_from(local: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(local, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

impl Host {
    pub(crate) fn start(driver: Driver, setup: &Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener).unwrap();
        let (stopper, thread) = match driver {
            Driver::Blocking => {
                let server = setup.server(nbd_blocking::Threads::default());
                let stopper = server.stopper();
                let server = nbd_blocking::Server::from(server);
                let listener = nbd_blocking::Listener::new(listener).unwrap();
                let thread = thread::spawn(move || server.serve(listener).unwrap());
                (stopper, thread)
            }
            Driver::Tokio => {
                let server = setup.server(Tokio::new(RUNTIME.handle().clone()));
                let stopper = server.stopper();
                let thread = thread::spawn(move || {
                    RUNTIME.block_on(async {
                        let listener = nbd_tokio::Listener::new(listener).unwrap();
                        server.serve(listener).await.unwrap();
                    });
                });
                (stopper, thread)
            }
            Driver::AsyncStd => {
                let server = setup.server(AsyncStd);
                let stopper = server.stopper();
                let thread = thread::spawn(move || {
                    async_std::task::block_on(async {
                        let listener = nbd_async_std::Listener::new(listener).unwrap();
                        server.serve(listener).await.unwrap();
                    });
                });
                (stopper, thread)
            }
        };
        Self {
            address,
            stopper,
            local: setup.only.unwrap_or(LOCALHOST),
            relay: None,
            thread,
        }
    }

    /// All that its clients say behind their flags goes to the server inside TLS.
    fn inside_tls(mut self, certificates: &Certificates) -> Self {
        let relay = relay::in_front_of(self.address, certificates);
        self.address = relay.local_addr().unwrap();
        self.relay = Some(relay);
        self
    }

    /// A connection without a client behind it.
    pub(crate) fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A connection from an address of this machine.
    pub(crate) fn from(&self, local: IpAddr) -> TcpStream {
        connect_from(local, self.address).unwrap()
    }

    /// A connection that the server has greeted.
    pub(crate) fn greeted(&self) -> TcpStream {
        let mut stream = self.raw();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// An honest client is served.
    pub(crate) fn still_serves(&self) {
        let options = nbd_blocking::ConnectOptions::new();
        let client = options.connect_over(self.from(self.local), None).unwrap();
        let mut block = [1; 512];
        client.read_exact_at(&mut block, 0).unwrap();
        client.disconnect().unwrap();
    }

    pub(crate) fn stop(self) {
        if let Some(relay) = self.relay {
            SockRef::from(&relay).shutdown(Shutdown::Both).unwrap();
        }
        self.stopper.stop();
        self.thread.join().unwrap();
    }
}
