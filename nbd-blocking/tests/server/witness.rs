//! Requests of all kinds as bytes, and a client that must not be disturbed.

use crate::support::{Running, pattern};
use nbd_blocking::{Client, ConnectOptions, Server};
use nbd_io::Memory;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub(crate) fn memory() -> Server {
    Server::single(Arc::new(Memory::new(1 << 20)))
}

/// The header of a request of any kind, without flags.
pub(crate) fn request(command: u8, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    flagged(0, command, cookie, offset, len)
}

/// The same with flags.
pub(crate) fn flagged(flags: u16, command: u8, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut request = Vec::from(*b"\x25\x60\x95\x13");
    request.extend(flags.to_be_bytes());
    request.extend([0, command]);
    request.extend(cookie.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(len.to_be_bytes());
    request
}

/// A client that goes on working while others misbehave.
pub(crate) struct Witness {
    client: Client,
    enough: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Witness {
    /// Writes and reads at `offset`, where no other client does.
    pub(crate) fn new(running: &Running, offset: u64) -> Self {
        let client = running.connect(&ConnectOptions::new());
        let enough = Arc::new(AtomicBool::new(false));
        let (busy, until) = (client.clone(), enough.clone());
        let thread = thread::spawn(move || {
            let mut rounds = 0;
            while !until.load(Ordering::Relaxed) {
                check(&busy, offset, rounds);
                rounds += 1;
                thread::sleep(Duration::from_millis(1));
            }
            rounds
        });
        Self {
            client,
            enough,
            thread,
        }
    }

    /// Asserts that the client was served all the time, and still is. It ends its connection.
    pub(crate) fn testify(self) {
        self.enough.store(true, Ordering::Relaxed);
        let rounds = self.thread.join().unwrap();
        assert!(rounds > 0);
        check(&self.client, 0, rounds);
        self.client.disconnect().unwrap();
    }
}

fn check(client: &Client, offset: u64, seed: u32) {
    let data = pattern(4096, seed);
    client.write_all_at(&data, offset).unwrap();
    let mut read = vec![0; 4096];
    client.read_exact_at(&mut read, offset).unwrap();
    assert!(read == data, "the data read differs from the written data");
}
