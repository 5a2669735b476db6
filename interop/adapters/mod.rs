//! The requirements for the adapter of every asynchronous runtime. The tests of each of them
//! include this file, and define `Socket`, `Listener` and `Cursor`, how a test is run
//! `on_runtime`, and which extension traits the runtime has for `streams`.

mod cancelling;
mod children;
mod client;
mod connecting;
mod cursor;
mod disks;
mod entering;
mod example;
mod recovering;
mod recovery;
mod sockets;
mod stalling;

use super::{Listener, Socket, on_runtime};
use interop::{
    Certificates, Flaw, Image, Listen, Nbdkit, Peer, QemuNbd, deadline, pattern, require,
};
use nbd_blocking::{Server, ServerTls};
use nbd_io::{
    Memory,
    client::{
        ConnectOptions, Connected, DialOptions, NegotiationConfig, NegotiationError, TlsPolicy,
        negotiate, tasks::Client,
    },
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
    sync::{Arc, Mutex, mpsc},
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

const SIZE: u64 = 1 << 20;

/// Runs the body of a test with a time limit.
fn limited(body: impl FnOnce() + Send + 'static) {
    deadline(Duration::from_secs(200), body);
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

async fn enter(socket: Socket, target: &NegotiationConfig, tls: &ClientTls) -> Entered {
    negotiate(Layered::Plain(socket), target, |plain| {
        let (config, name) = tls.client(Some("localhost")).unwrap();
        plain.start_tls(config, name)
    })
    .await
}

/// Enters the default export in the clear.
async fn enter_plain(network: &impl Network<Stream = Socket>, address: &str) {
    let socket = network
        .connect(uri(address).address(), &DialOptions::default())
        .await
        .unwrap();
    let target = NegotiationConfig::new(uri(address).export().clone());
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

/// Polls a future at most so many times, then drops it; its output if it was done.
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

/// Lets others have their turn.
async fn yielded() {
    let mut turns = 0;
    poll_fn(|cx| {
        turns += 1;
        cx.waker().wake_by_ref();
        if turns > 1 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// Spawns tasks on the runtime and waits for all of them.
async fn together<T: Future<Output = ()> + Send + 'static>(
    network: &impl Network,
    tasks: impl IntoIterator<Item = T>,
) {
    let state = Arc::<Mutex<Together>>::default();
    for task in tasks {
        state.lock().unwrap().running += 1;
        let running = Running(state.clone());
        network.spawn(async move {
            task.await;
            running.0.lock().unwrap().done += 1;
        });
    }
    let started = state.lock().unwrap().running;
    let done = poll_fn(|cx| {
        let mut state = state.lock().unwrap();
        state.waker = Some(cx.waker().clone());
        match state.running {
            0 => Poll::Ready(state.done),
            _ => Poll::Pending,
        }
    });
    assert_eq!(done.await, started, "a task failed");
}

#[derive(Default)]
struct Together {
    running: usize,
    done: usize,
    waker: Option<Waker>,
}

/// Held by a task until it ends, in whichever way.
struct Running(Arc<Mutex<Together>>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.lock().unwrap();
        state.running -= 1;
        state.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// Polls for a condition that sends no event.
async fn eventually(network: &impl Network, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "it did not come to that"
        );
        network.sleep(Duration::from_millis(2)).await;
    }
}

/// Requests that were sent and not answered, and calls that wait.
fn in_flight<R: Network>(client: &Client<R>) -> usize {
    let text = format!("{client:?}");
    let calls = text.split("calls: ").skip(1);
    let calls = calls.map(|text| text.split(',').next().unwrap().parse::<usize>().unwrap());
    let count = calls.sum::<usize>() + text.matches("busy: true").count();
    assert!(
        text.contains("calls: ") && text.contains("busy: "),
        "{text}"
    );
    count
}

/// Writes and reads back a part of an export that no other task uses, of 64 KiB.
async fn verify<R: Network>(client: &Client<R>, offset: u64, round: u64) {
    let len = 1 + (offset + round * 4099) % (64 << 10);
    let data = pattern(offset ^ round, len);
    client.write(data.clone(), offset).await.unwrap();
    let back = client.read(offset, data.len()).await.unwrap();
    assert!(back == data, "{len} at {offset} in round {round}");
}

/// Takes a connection that is made meanwhile.
fn accepted(listener: &UnixListener) -> UnixStream {
    listener.accept().unwrap().0
}

/// A connected pair, of which the other end is a plain socket.
fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Socket::from_std(ours).unwrap(), theirs)
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

            let (sender, receiver) = mpsc::channel();
            let (other, here) = (sender.clone(), thread::current().id());
            network.spawn(async move { sender.send("task").unwrap() });
            network.spawn_blocking(move || {
                thread::sleep(Duration::from_millis(10));
                assert_ne!(thread::current().id(), here);
                other.send("job").unwrap();
            });
            // The thread may be the only one that tasks have.
            let mut got = Vec::new();
            while got.len() < 2 {
                network.sleep(Duration::from_millis(1)).await;
                got.extend(receiver.try_iter());
            }
            got.sort_unstable();
            assert_eq!(got, ["job", "task"]);
        });
    });
}
