//! What the adapter of every asynchronous runtime has to do. The tests of each of them include this
//! file, and say what a `Socket`, a `Listener` and a `Cursor` are, how a test is run `on_runtime`, and
//! what the runtime's extension traits for `streams` are.

mod children;
mod client;
mod connecting;
mod cursor;
mod entering;
mod example;
mod recovery;
mod sockets;

use super::{Listener, Socket, on_runtime};
use interop::{Certificates, Flaw, Image, Listen, Nbdkit, Peer, QemuNbd, deadline, require};
use nbd_blocking::{
    ServerTls,
    server::{Serve, Server},
};
use nbd_io::{
    Memory,
    client::{Connected, NegotiationError, Target, TlsPolicy, negotiate},
    runtime::{Network, Runtime, Tasks},
    tls::{ClientTls, TlsError},
    transport::{Layered, Transport},
};
use nbd_proto::{ExportName, Uri};
use std::{
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

const SIZE: u64 = 1 << 20;

/// Runs the body of a test with a time limit.
fn limited(body: impl FnOnce() + Send + 'static) {
    deadline(Duration::from_secs(60), body);
}

fn server() -> Server {
    Server::single(Arc::new(Memory::new(SIZE)))
}

fn uri(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

fn unix_uri(path: &Path) -> Uri {
    uri(&format!("nbd+unix:///?socket={}", path.display()))
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

type Entered = Result<Connected<Layered<Socket>>, NegotiationError>;

async fn enter(socket: Socket, target: &Target, tls: &ClientTls) -> Entered {
    negotiate(Layered::Plain(socket), target, |plain| {
        plain.start_tls(tls, Some("localhost"))
    })
    .await
}

/// Enters the default export in the clear.
async fn enter_plain(network: &impl Network<Stream = Socket>, address: &str) {
    let socket = network.connect(uri(address).address()).await.unwrap();
    let target = Target::new(uri(address).export().clone());
    let connected = enter(socket, &target, &ClientTls::new()).await.unwrap();
    assert!(!connected.encrypted);
    assert_eq!(connected.transmission.export().size, SIZE);
}

async fn read(transport: &mut impl Transport, space: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| transport.poll_read(cx, &mut [IoSliceMut::new(space)])).await
}

async fn write(transport: &mut impl Transport, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = poll_fn(|cx| transport.poll_write(cx, &[IoSlice::new(rest)])).await;
        rest = &rest[n.unwrap()..];
    }
    poll_fn(|cx| transport.poll_flush(cx)).await.unwrap();
}

/// What comes of a future that is dropped after so many polls.
async fn some_polls<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}

/// Takes a connection that is made meanwhile.
fn accepted(listener: &UnixListener) -> UnixStream {
    listener.accept().unwrap().0
}

/// A connected pair, of which the other end is a plain socket.
fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = nbd_socket::Socket::new(ours.into()).unwrap();
    (Socket::new(socket).unwrap(), theirs)
}

#[test]
fn timers_tasks_and_jobs_run() {
    limited(|| {
        on_runtime(async |network| {
            let start = Instant::now();
            network.sleep(Duration::from_millis(30)).await;
            assert!(start.elapsed() >= Duration::from_millis(30));
            // It need not be polled to its end.
            drop(network.sleep(Duration::MAX));

            let (tell, told) = mpsc::channel();
            let (other, here) = (tell.clone(), thread::current().id());
            network.spawn(async move { tell.send("task").unwrap() });
            network.spawn_blocking(move || {
                thread::sleep(Duration::from_millis(10));
                assert_ne!(thread::current().id(), here);
                other.send("job").unwrap();
            });
            // The thread may be the only one that tasks have.
            let mut got = Vec::new();
            while got.len() < 2 {
                network.sleep(Duration::from_millis(1)).await;
                got.extend(told.try_iter());
            }
            got.sort_unstable();
            assert_eq!(got, ["job", "task"]);
        });
    });
}
