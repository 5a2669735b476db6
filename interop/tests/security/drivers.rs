//! The clients and the servers of all runtimes.

use crate::waiting;
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
use socket2::{Domain, Socket, Type};
use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
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

/// Options of a client that lists exports.
pub(crate) trait List {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error>;
}

impl List for nbd_blocking::ConnectOptions {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error> {
        match self.start(&Uri::parse(uri).unwrap())? {
            nbd_blocking::negotiation::Greeted::FixedNewstyle(mut options) => options.list(),
            _ => panic!("the server knows options"),
        }
    }
}

impl<D: waiting::Driver> List for waiting::ConnectOptions<D> {
    fn list(&self, uri: &str) -> Result<Vec<ListEntry>, Error> {
        let negotiation = self.start(&Uri::parse(uri).unwrap())?.negotiation();
        negotiation.unwrap().list()
    }
}

/// A server under attack, and its settings.
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

    /// Runs `attack` on the server of each runtime, which serves afterwards as before.
    pub(crate) fn attack(&self, attack: impl Fn(&Host)) {
        for driver in [Driver::Blocking, Driver::Tokio, Driver::AsyncStd] {
            let host = Host::start(driver, self);
            attack(&host);
            host.still_serves();
            host.stop();
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
    thread: JoinHandle<()>,
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
            thread,
        }
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
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(local, 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.into()
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
        self.stopper.stop();
        self.thread.join().unwrap();
    }
}
