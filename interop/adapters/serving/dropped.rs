//! Connections that clients drop at random points.

use super::{
    programs::Program,
    support::{GO, eventually, pattern, small},
};
use interop::deadline;
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

const CONNECTIONS: usize = 10_000;

/// Clients at the same time.
const CLIENTS: usize = 8;

const READ: u8 = 0;
const WRITE: u8 = 1;
const DISCONNECT: u8 = 2;
const FLUSH: u8 = 3;

/// A session from the client's flags to the disconnect.
fn session() -> Vec<u8> {
    let mut session = GO.to_vec();
    for cookie in 0..8 {
        session.extend(small(READ, cookie));
        session.extend(small(WRITE, cookie + 8));
        session.extend([7; 512]);
        session.extend(flush(cookie + 16));
    }
    session.extend(small(DISCONNECT, 0));
    session
}

fn flush(cookie: u8) -> Vec<u8> {
    let mut request = small(FLUSH, cookie);
    let len = request.len();
    request[len - 4..].fill(0);
    request
}

/// Sends a part of a session, takes a part of the answers or none, and drops the connection.
fn drop_somewhere(socket: &Path, session: &[u8], seed: usize) {
    let chance = pattern(8, u32::try_from(seed).unwrap());
    let below =
        |at: usize, end: usize| usize::from(u16::from_le_bytes([chance[at], chance[at + 1]])) % end;
    let mut client = UnixStream::connect(socket).unwrap();
    // One half of the sent bytes waits for answers to the other half.
    let sent = &session[..below(0, session.len() + 1)];
    let (first, second) = sent.split_at(below(2, sent.len() + 1));
    let mut answers = vec![0; below(4, 256)];
    client
        .set_read_timeout(Some(Duration::from_millis(5)))
        .unwrap();
    // A server that has refused the bytes is gone already.
    let _ = client
        .write_all(first)
        .and_then(|()| client.read(&mut answers));
    let _ = client.write_all(second);
}

fn drop_many(socket: &Path, connections: usize) {
    let session = session();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let session = &session;
            scope.spawn(move || {
                for seed in (client..connections).step_by(CLIENTS) {
                    drop_somewhere(socket, session, seed);
                }
            });
        }
    });
}

/// Descriptors, threads, and memory in KiB of a process.
fn held(process: u32) -> (usize, usize, usize) {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    };
    (descriptors, number("Threads:"), number("VmRSS:"))
}

#[test]
fn connections_dropped_at_any_point_leave_nothing_behind() {
    // H-040, H-063
    let directory = tempfile::tempdir().unwrap();
    let program = super::example::program(env!("CARGO_PKG_NAME"), &directory);
    deadline(Duration::from_secs(200), move || {
        let serving = Program::start(&program, &directory, &["--size", "1048576", "--quiet"]);
        let process = serving.id();
        // The first ones make threads and buffers that the next ones use again.
        drop_many(&serving.socket, 200);
        let before = held(process);
        drop_many(&serving.socket, CONNECTIONS);
        eventually(|| {
            let (descriptors, threads, _) = held(process);
            // Threads that wait for the next client have a descriptor each.
            descriptors <= before.0 + CLIENTS && threads <= before.1 + CLIENTS
        });
        let after = held(process);
        assert!(
            after.2 <= before.2 + (8 << 10),
            "{before:?}, then {after:?} KiB"
        );
        eprintln!("{before:?}, then {after:?}");
        let client = serving.connect();
        let mut sector = [0; 512];
        client.read_exact_at(&mut sector, 0).unwrap();
        assert!(sector == [0; 512] || sector == [7; 512]);
        client.disconnect().unwrap();
    });
}
