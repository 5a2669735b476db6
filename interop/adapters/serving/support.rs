//! A server that runs for the time of a test, and deadlines.

use super::{Server, on_runtime, serve};
use nbd_blocking::{
    Client, ConnectOptions,
    server::{Event, Stopper},
};
use nbd_socket::Listener;
use std::{
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Runs a test that must not hang.
pub(crate) fn soon<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    interop::deadline(Duration::from_secs(200), || on_runtime(test))
}

/// Polls for a condition that sends no event.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to that");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The events of a server.
#[derive(Default)]
struct Log {
    events: Mutex<Events>,
    more: Condvar,
}

#[derive(Default)]
struct Events {
    endings: Vec<String>,
    refused: usize,
    not_accepted: Vec<String>,
}

impl Log {
    fn note(&self, event: &Event<'_>) {
        let mut events = self.events.lock().unwrap();
        match event {
            Event::Closed { ending, .. } => events.endings.push(ending.to_string()),
            Event::Refused { .. } => events.refused += 1,
            Event::AcceptFailed { error } => events.not_accepted.push(error.to_string()),
            _ => return,
        }
        self.more.notify_all();
    }
}

/// A server that listens on a Unix socket and on TCP.
pub(crate) struct Running {
    pub(crate) stopper: Stopper,
    pub(crate) tcp: SocketAddr,
    pub(crate) unix: PathBuf,
    log: Arc<Log>,
    served: mpsc::Receiver<io::Result<()>>,
    _directory: TempDir,
}

impl Running {
    pub(crate) fn new(server: Server) -> Self {
        let log = Arc::new(Log::default());
        let events = log.clone();
        let server = server.on_event(move |event| events.note(event));
        let directory = tempfile::tempdir().unwrap();
        let unix = directory.path().join("socket");
        let tcp_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = tcp_listener.local_addr().unwrap();
        let unix_listener = UnixListener::bind(&unix).unwrap();
        let stopper = server.stopper();
        let listeners = vec![
            Listener::new(tcp_listener).unwrap(),
            Listener::new(unix_listener).unwrap(),
        ];
        Self {
            stopper,
            tcp,
            unix,
            log,
            served: serve(server, listeners),
            _directory: directory,
        }
    }

    pub(crate) fn connect(&self, options: &ConnectOptions) -> Client {
        options.connect_over(self.raw(), None).unwrap()
    }

    pub(crate) fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.unix).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    pub(crate) fn raw_tcp(&self) -> TcpStream {
        TcpStream::connect(self.tcp).unwrap()
    }

    /// Waits until so many connections have ended.
    pub(crate) fn wait_for_endings(&self, count: usize) {
        self.ending(count);
    }

    /// The reason why the `count`th connection to end has ended; it waits for that.
    pub(crate) fn ending(&self, count: usize) -> String {
        let events = self.log.events.lock().unwrap();
        let events = self
            .log
            .more
            .wait_while(events, |events| events.endings.len() < count);
        events.unwrap().endings[count - 1].clone()
    }

    /// The number of refused connections, and the errors of accepting others.
    pub(crate) fn refused(&self) -> (usize, Vec<String>) {
        let events = self.log.events.lock().unwrap();
        (events.refused, events.not_accepted.clone())
    }

    /// Stops the server, waits for it, and returns how its connections ended.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stopper.stop();
        self.served.recv().unwrap().unwrap();
        // With a short grace the server does not wait for a connection whose thread gets no
        // processor.
        eventually(|| self.stopper.connections() == 0);
        self.log.events.lock().unwrap().endings.clone()
    }
}

/// Options for each of the three layouts of replies.
pub(crate) fn modes() -> [ConnectOptions; 3] {
    let extended = ConnectOptions::new().context(nbd_blocking::ContextName::base_allocation());
    let structured = extended.clone().extended_headers(false);
    let simple = structured.clone().structured_replies(false);
    [simple, structured, extended]
}

/// Bytes that are different everywhere.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut bytes = Vec::with_capacity(len + 4);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The client's flags and NBD_OPT_GO for the default export.
pub(crate) const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// The header of a request for 512 bytes at the start of the export.
pub(crate) fn small(command: u8, cookie: u8) -> Vec<u8> {
    let mut request = Vec::from(*b"\x25\x60\x95\x13\0\0\0");
    request.push(command);
    request.extend([0, 0, 0, 0, 0, 0, 0, cookie]);
    request.extend(b"\0\0\0\0\0\0\0\0\0\0\x02\0");
    request
}

/// A simple reply to one.
pub(crate) fn reply(errno: u8, cookie: u8, data: &[u8]) -> Vec<u8> {
    let mut reply = Vec::from(*b"\x67\x44\x66\x98\0\0\0");
    reply.push(errno);
    reply.extend([0, 0, 0, 0, 0, 0, 0, cookie]);
    reply.extend(data);
    reply
}

pub(crate) fn expect(raw: &mut impl Read, expected: &[u8]) {
    let mut said = vec![0; expected.len()];
    raw.read_exact(&mut said).unwrap();
    assert_eq!(said, expected);
}

/// The length of the server's messages until the client may send requests.
pub(crate) const ENTERED: usize = 18 + 32 + 20;
