//! A recorder on the line between a client and a server.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// The timeout of a conversation's end.
const LIMIT: Duration = Duration::from_secs(20);

/// Forwards TCP connections to a server and records the bytes of both ends.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    recordings: Receiver<Recording>,
}

/// The bytes of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// By the client.
    pub client: Vec<u8>,
    /// By the server.
    pub server: Vec<u8>,
}

impl Tap {
    /// Listens on a free port of 127.0.0.1, for as long as the tests run.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.expect("the loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (sender, recordings) = mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                let sender = sender.clone();
                thread::spawn(move || sender.send(record(&client, &server)));
            }
        });
        Self {
            address,
            recordings,
        }
    }

    /// The address to connect to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next conversation that has ended.
    ///
    /// # Panics
    ///
    /// When none ends in time.
    pub fn recording(&self) -> Recording {
        self.recordings
            .recv_timeout(LIMIT)
            .expect("a conversation ends when the client is through")
    }
}

impl Recording {
    /// The options that the client asked for in the clear, and the bytes after them.
    ///
    /// # Panics
    ///
    /// When an option is not complete.
    pub fn options(&self) -> (Vec<(u32, Vec<u8>)>, &[u8]) {
        options(self.client.get(4..).unwrap_or_default())
    }
}

/// Takes options from the front of a client's bytes after its flags.
pub(crate) fn options(mut bytes: &[u8]) -> (Vec<(u32, Vec<u8>)>, &[u8]) {
    let mut options = Vec::new();
    while let Some(rest) = bytes.strip_prefix(b"IHAVEOPT") {
        let number = |bytes: &[u8]| {
            let bytes = bytes.first_chunk().expect("an option has a number");
            u32::from_be_bytes(*bytes)
        };
        let (code, len) = (number(rest), number(&rest[4..]));
        let len = usize::try_from(len).expect("an option fits into memory");
        let (data, rest) = rest[8..].split_at(len);
        options.push((code, data.to_vec()));
        bytes = rest;
    }
    (options, bytes)
}

fn record(client: &TcpStream, server: &TcpStream) -> Recording {
    thread::scope(|scope| {
        let backward = scope.spawn(|| forward(server, client));
        let client = forward(client, server);
        let server = backward.join().expect("forwarding does not panic");
        Recording { client, server }
    })
}

/// Forwards and records everything, to the end in one direction.
fn forward(mut from: &TcpStream, mut to: &TcpStream) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buf = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        kept.extend_from_slice(&buf[..n]);
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    // Either may be gone already.
    drop(to.shutdown(Shutdown::Write));
    kept
}
