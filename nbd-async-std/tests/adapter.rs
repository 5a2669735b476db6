//! async-std as a runtime.

#![cfg(feature = "tls-base")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../interop/adapters/mod.rs"]
mod suite;

use interop::deadline;
use nbd_async_std::{AsyncStd, Cursor, Listener, Socket, Stream};
use nbd_blocking::Server;
use nbd_io::{
    Memory,
    client::{NegotiationConfig, negotiate},
    transport::Transport,
};
use nbd_proto::ExportName;
use std::{future::pending, os::unix::net::UnixStream, sync::Arc, thread, time::Duration};

mod streams {
    use super::Cursor;
    use async_std::io::{self, BufReader, BufWriter};
    pub(crate) use async_std::io::{
        ReadExt as AsyncReadExt, SeekExt as AsyncSeekExt, WriteExt as AsyncWriteExt,
    };
    use futures_io::AsyncWrite as _;
    use std::{future::poll_fn, pin::Pin};

    pub(crate) async fn copy(from: Cursor, to: &mut Cursor) -> io::Result<u64> {
        let mut from = BufReader::with_capacity(1 << 20, from);
        let mut to = BufWriter::with_capacity(1 << 20, to);
        io::copy(&mut from, &mut to).await
    }

    pub(crate) async fn close(cursor: &mut Cursor) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut *cursor).poll_close(cx)).await
    }
}

/// Runs a test on the runtime of the process.
fn on_runtime(test: impl AsyncFnOnce(AsyncStd)) {
    async_std::task::block_on(test(AsyncStd));
}

/// Enters an export over one half of a pair of Unix sockets.
fn is_a_transport<T: Transport>(stream: impl FnOnce(UnixStream) -> T + Send + 'static) {
    deadline(Duration::from_secs(60), || {
        on_runtime(async |_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = Server::single(Arc::new(Memory::new(4096)));
            let serving = thread::spawn(move || server.serve_over(theirs));
            let target = NegotiationConfig::new(ExportName::default());
            let upgrade = |_| pending();
            let connected = negotiate(stream(ours), &target, upgrade).await.unwrap();
            assert_eq!(connected.transmission.export().size, 4096);
            drop(connected);
            serving.join().unwrap().unwrap();
        });
    });
}

#[test]
fn a_stream_of_async_std_is_a_transport() {
    is_a_transport(|stream| Stream::new(async_std::os::unix::net::UnixStream::from(stream)));
}

#[test]
fn a_stream_of_smol_is_a_transport() {
    is_a_transport(|stream| Stream::new(async_io::Async::new(stream).unwrap()));
}
