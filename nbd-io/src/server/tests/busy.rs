//! Clients that never pause.

#![expect(
    clippy::disallowed_types,
    reason = "the runtime of these tests has a clock, as every one has"
)]

use crate::{
    Export, Memory,
    runtime::{Runtime, Tasks},
    server::{Ending, Peer, Server},
    transport::Transport,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// A runtime for whoever polls all the time.
#[derive(Clone, Default)]
struct Spinning;

struct Until(Instant);

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if Instant::now() < self.0 {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Runtime for Spinning {
    type Sleep = Until;

    fn sleep(&self, time: Duration) -> Until {
        Until(Instant::now() + time)
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

impl Tasks for Spinning {
    fn spawn(&self, _: impl Future<Output = ()> + Send + 'static) {
        unreachable!("nobody listens")
    }
}

/// Has said all of `once`, and says `again` for ever. Whatever it is sent it takes.
struct Endless {
    once: &'static [u8],
    again: &'static [u8],
    at: usize,
}

impl Transport for Endless {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut n = 0;
        for byte in bufs.iter_mut().flat_map(|buf| buf.iter_mut()) {
            *byte = match self.at.checked_sub(self.once.len()) {
                None => self.once[self.at],
                Some(at) => self.again[at % self.again.len()],
            };
            self.at += 1;
            n += 1;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// A flush.
const FLUSH: &[u8] = b"\x25\x60\x95\x13\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0";

const GRACE: Duration = Duration::from_millis(200);

/// Serves the client; the server stops after a moment. Returns how it ended, if it did so in time,
/// and the longest time that it kept its thread.
fn serve(again: &'static [u8]) -> (Option<Ending>, Duration) {
    let disk: Arc<dyn Export> = Arc::new(Memory::new(4096));
    let server = Server::<Spinning>::single(disk).grace(GRACE);
    let stopper = server.stopper();
    let client = Endless {
        once: GO,
        again,
        at: 0,
    };
    let mut serving = pin!(server.serve_transport(client, Peer::Other));
    let cx = &mut Context::from_waker(Waker::noop());
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(5) {
        let before = Instant::now();
        let polled = serving.as_mut().poll(cx);
        longest = longest.max(before.elapsed());
        if let Poll::Ready(ending) = polled {
            return (Some(ending.unwrap()), longest);
        }
        if begin.elapsed() > GRACE {
            stopper.stop();
        }
    }
    (None, longest)
}

#[test]
fn a_client_that_never_pauses_cannot_keep_a_server_from_stopping() {
    // S-231
    let (ending, _) = serve(FLUSH);
    assert!(matches!(ending, Some(Ending::Stopped)), "{ending:?}");
}

#[test]
fn others_get_their_turn_while_garbage_is_thrown_away() {
    // H-062
    let (ending, longest) = serve(b"garbage");
    assert!(matches!(ending, Some(Ending::Protocol(_))), "{ending:?}");
    assert!(longest < GRACE, "{longest:?}");
}
