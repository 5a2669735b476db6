//! The blocking client of a server that crashes and restarts: each task is a thread.

use super::recovery::{Session, Storage};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, ConnectionState, Error};
use nbd_io::transport::block_on_ready;
use std::thread;

impl Storage for Client {
    async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; len];
        self.read_exact_at(&mut data, at)?;
        Ok(data)
    }

    async fn write(&self, at: u64, data: Vec<u8>, flags: CommandFlags) -> Result<(), Error> {
        self.write_all_at_with(&data, at, flags)
    }

    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        Self::write_zeroes(self, at, len, CommandFlags::NONE)
    }

    async fn flush(&self) -> Result<(), Error> {
        Self::flush(self)
    }
}

/// Has threads use a server until the session ends, and compares its contents with the acknowledged
/// writes.
pub(crate) fn hold(session: Session) {
    let options = ConnectOptions::new()
        .reconnect(Some(session.policy.clone()))
        .connections(session.connections);
    let client = options.connect(&session.uri).unwrap();
    assert!(client.export().can_multi_conn(), "it is known to");
    assert_eq!(client.connections(), session.connections);
    for worker in session.workers(&client) {
        thread::spawn(move || block_on_ready(worker));
    }
    let expected = session.held.recv().unwrap();
    let mut found = vec![0; expected.len()];
    client.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    assert!(matches!(client.state(), ConnectionState::Connected));
    client.disconnect().unwrap();
}
