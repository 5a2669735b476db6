//! A server that runs for the time of a test, and deadlines.

use nbd_blocking::{
    Client, ConnectOptions,
    server::{Event, Serve, Server, Stopper},
};
use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    panic,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use tempfile::TempDir;

/// Runs a test that must not hang.
pub(crate) fn soon<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = test();
        let _ = done.send(());
        result
    });
    if let Err(mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_secs(60)) {
        panic!("the test did not end in time");
    }
    thread
        .join()
        .unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// A server that listens on a Unix socket and on TCP.
pub(crate) struct Running {
    pub(crate) stopper: Stopper,
    pub(crate) tcp: SocketAddr,
    pub(crate) unix: PathBuf,
    endings: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    _directory: TempDir,
}

impl Running {
    pub(crate) fn new(server: Server) -> Self {
        let endings = Arc::new(Mutex::new(Vec::new()));
        let log = endings.clone();
        let server = server.on_event(move |event| {
            if let Event::Closed { ending, .. } = event {
                log.lock().unwrap().push(ending.to_string());
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let unix = directory.path().join("socket");
        let tcp_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = tcp_listener.local_addr().unwrap();
        let unix_listener = UnixListener::bind(&unix).unwrap();
        let stopper = server.stopper();
        let other = server.clone();
        Self {
            stopper,
            tcp,
            unix,
            endings,
            threads: vec![
                thread::spawn(move || server.serve_tcp(tcp_listener)),
                thread::spawn(move || other.serve_unix(unix_listener)),
            ],
            _directory: directory,
        }
    }

    pub(crate) fn connect(&self, options: &ConnectOptions) -> Client {
        options.connect_unix(self.raw()).unwrap()
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
        while self.endings.lock().unwrap().len() < count {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops the server, waits for it, and returns how its connections ended.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stopper.stop();
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(self.stopper.connections(), 0);
        self.endings.lock().unwrap().clone()
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
