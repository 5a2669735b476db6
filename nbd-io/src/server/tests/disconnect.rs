//! The end of a connection after the client's `NBD_CMD_DISC`.

use super::clock::Clock;
use crate::{
    Memory, NamedExports,
    server::{CloseReason, Peer, Server},
    transport::Transport,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

pub(super) const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

pub(super) const DISC: &[u8] =
    b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0";

/// A client that sends all its bytes, and then nothing.
struct Client<'a> {
    says: &'a [u8],
    closes_gracefully_on_drop: bool,
    /// Calls of the server since the client had nothing more to send.
    since: &'a mut Vec<&'static str>,
}

impl Transport for Client<'_> {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.says.is_empty() {
            self.since.push("read");
            return Poll::Pending;
        }
        let buf = bufs.iter_mut().find(|buf| !buf.is_empty()).unwrap();
        let n = buf.len().min(self.says.len());
        let (now, later) = self.says.split_at(n);
        buf[..n].copy_from_slice(now);
        self.says = later;
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.since.push("shutdown");
        Poll::Ready(Ok(()))
    }

    fn closes_gracefully_on_drop(&self) -> bool {
        self.closes_gracefully_on_drop
    }
}

/// Serves the client once, without ever waiting. Returns how the connection ended, if it did, and
/// the server's calls after the last byte.
fn serve(
    says: &[&[u8]],
    closes_gracefully_on_drop: bool,
) -> (Option<CloseReason>, Vec<&'static str>) {
    serve_export(Arc::new(Memory::new(4096)), says, closes_gracefully_on_drop)
}

/// The same with an export of the test.
pub(super) fn serve_export(
    export: Arc<Memory>,
    says: &[&[u8]],
    closes_gracefully_on_drop: bool,
) -> (Option<CloseReason>, Vec<&'static str>) {
    let exports = NamedExports::single(export);
    let server = Server::on_runtime(Clock::default(), Arc::new(exports));
    let mut since = Vec::new();
    let client = Client {
        says: &says.concat(),
        closes_gracefully_on_drop,
        since: &mut since,
    };
    let ending = {
        let serving = pin!(server.serve_one(client, Peer::Other));
        match serving.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ending) => Some(ending.unwrap()),
            Poll::Pending => None,
        }
    };
    (ending, since)
}

#[test]
fn a_client_on_a_socket_that_disconnects_is_left_at_once() {
    let (ending, since) = serve(&[GO, DISC], true);
    assert!(
        matches!(ending, Some(CloseReason::Disconnected)),
        "{ending:?}"
    );
    assert!(since.is_empty(), "{since:?}");
}

#[test]
fn bytes_that_may_still_come_are_waited_for() {
    // On a stream of another kind, and where the client sends more after `NBD_CMD_DISC`: closing a
    // socket with unread bytes might cost the client its last replies.
    for (says, closes_gracefully_on_drop) in [(&[GO, DISC][..], false), (&[GO, DISC, DISC], true)] {
        let (ending, since) = serve(says, closes_gracefully_on_drop);
        assert!(ending.is_none());
        assert!(since.starts_with(&["shutdown", "read"]), "{since:?}");
    }
}
