//! A long line to a server of HTTP.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// The size of the parts in which data is forwarded.
const PART: usize = 64 << 10;

/// The number of parts on their way, after which a server has to wait.
const PARTS: usize = 256;

/// Requests by their method.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Forwards TCP connections to a server of HTTP. All that it answers arrives later by the same time, so
/// that each request takes longer by that much and no transfer has less throughput.
///
/// Requests are counted, of clients that send one after the other over a connection.
#[derive(Debug)]
pub struct LatencyProxy {
    address: SocketAddr,
    counts: Counts,
}

impl LatencyProxy {
    /// Listens on a free port of 127.0.0.1, for as long as the process runs.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(server: SocketAddr, latency: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.expect("the loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let counts = Counts::default();
        let counted = Arc::clone(&counts);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                let counts = Arc::clone(&counted);
                // A connection that breaks is one to its both ends, too.
                thread::spawn(move || drop(forward(&client, &server, latency, &counts)));
            }
        });
        Self { address, counts }
    }

    /// The address to connect to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, by their method.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).clone()
    }

    /// Counts from zero.
    pub fn reset(&self) {
        lock(&self.counts).clear();
    }
}

/// Forwards in both directions until one end closes.
fn forward(
    client: &TcpStream,
    server: &TcpStream,
    latency: Duration,
    counts: &Counts,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (sender, parts) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PARTS);
    thread::scope(|scope| {
        scope.spawn(|| {
            for (due, part) in parts {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if { client }.write_all(&part).is_err() {
                    break;
                }
            }
            close(client, server);
        });
        scope.spawn(move || {
            each_part(server, |part| {
                let part = (Instant::now() + latency, part.to_vec());
                sender.send(part).map_err(io::Error::other)
            })
        });
        let requests = each_part(client, |part| {
            if let Some(method) = method(part) {
                *lock(counts).entry(method.to_owned()).or_default() += 1;
            }
            { server }.write_all(part)
        });
        // Its last replies are on their way.
        let _ = server.shutdown(Shutdown::Write);
        requests
    })
}

fn close(client: &TcpStream, server: &TcpStream) {
    // They may be closed.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Reads to the end.
fn each_part(
    mut stream: &TcpStream,
    mut then: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; PART];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => then(&buffer[..read])?,
        }
    }
}

/// The method, if a request begins here.
fn method(part: &[u8]) -> Option<&str> {
    let line = part.split(|byte| *byte == b'\r').next()?;
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    match words[..] {
        [method, _, b"HTTP/1.1"] => std::str::from_utf8(method).ok(),
        _ => None,
    }
}

/// A panic while a lock was held leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
