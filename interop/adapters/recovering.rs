//! Asynchronous clients of a server that crashes and restarts.

use super::{
    on_runtime,
    recovery::{Session, Storage},
};
use nbd_io::{
    client::{ConnectOptions, Error, tasks::Client},
    runtime::{Network, Runtime as _, Tasks as _},
};
use nbd_proto::CommandFlags;
use std::{sync::mpsc, time::Duration};

impl<R: Network> Storage for Client<R> {
    async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Error> {
        Self::read(self, at, len).await.map(Vec::from)
    }

    async fn write(&self, at: u64, data: Vec<u8>, flags: CommandFlags) -> Result<(), Error> {
        self.write_with(data, at, flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        Self::write_zeroes(self, at, len, CommandFlags::NONE).await
    }

    async fn flush(&self) -> Result<(), Error> {
        Self::flush(self).await
    }
}

/// Has tasks use a server until the session ends, and compares its contents with the acknowledged
/// writes.
pub(crate) fn hold(session: Session) {
    on_runtime(async |network| {
        let options = ConnectOptions::with_runtime(network)
            .reconnect(Some(session.policy.clone()))
            .connections(session.connections);
        let network = options.runtime();
        let client = options.connect(&session.uri).await.unwrap();
        assert!(client.export().can_multi_conn(), "it is known to");
        assert_eq!(client.connections(), session.connections);
        for worker in session.workers(&client) {
            network.spawn(worker);
        }
        let expected = loop {
            match session.held.try_recv() {
                Ok(expected) => break expected,
                // The tasks may have no other thread than this one.
                Err(mpsc::TryRecvError::Empty) => network.sleep(Duration::from_millis(5)).await,
                Err(gone) => panic!("{gone}"),
            }
        };
        assert!(client.read(0, expected.len()).await.unwrap() == expected);
        client.disconnect().await.unwrap();
    });
}
