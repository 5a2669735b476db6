//! Clients that never pause.

use crate::{
    Export, Memory, NamedExports,
    runtime::{Runtime, Tasks},
    server::{CloseReason, Peer, Server},
    transport::Transport,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

/// A clock that is advanced by reads, and by nothing else.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn advance(&self) {
        self.0.fetch_add(100, Ordering::Relaxed);
    }
}

/// A runtime for a caller that polls all the time.
#[derive(Clone, Default)]
struct Spinning(Clock);

struct Until(Clock, Duration);

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0.now() < self.1 {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Runtime for Spinning {
    type Sleep = Until;

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn sleep(&self, time: Duration) -> Until {
        Until(self.0.clone(), self.0.now() + time)
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

impl Tasks for Spinning {
    fn spawn(&self, _: impl Future<Output = ()> + Send + 'static) {
        unreachable!("there is no listener")
    }
}

/// A client that sends all of `once`, and then `again` for ever, in short reads. It reads every
/// reply.
struct Endless {
    clock: Clock,
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
        self.clock.advance();
        let mut n = 0;
        for byte in bufs.iter_mut().flat_map(|buf| buf.iter_mut()).take(256) {
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
/// and the longest time that it kept its thread busy.
fn serve(again: &'static [u8]) -> (Option<CloseReason>, Duration) {
    let disk: Arc<dyn Export> = Arc::new(Memory::new(4096));
    let clock = Clock::default();
    let exports = Arc::new(NamedExports::single(disk));
    let server = Server::on_runtime(Spinning(clock.clone()), exports).grace(GRACE);
    let stopper = server.stopper();
    let client = Endless {
        clock: clock.clone(),
        once: GO,
        again,
        at: 0,
    };
    let mut serving = pin!(server.serve_one(client, Peer::Other));
    let cx = &mut Context::from_waker(Waker::noop());
    let mut longest = Duration::ZERO;
    while clock.now() < Duration::from_secs(5) {
        let before = clock.now();
        let polled = serving.as_mut().poll(cx);
        longest = longest.max(clock.now() - before);
        if let Poll::Ready(ending) = polled {
            return (Some(ending.unwrap()), longest);
        }
        if clock.now() > GRACE {
            stopper.stop();
        }
    }
    (None, longest)
}

#[test]
fn a_client_that_never_pauses_cannot_keep_a_server_from_stopping() {
    // S-231
    let (ending, _) = serve(FLUSH);
    assert!(matches!(ending, Some(CloseReason::Stopped)), "{ending:?}");
}

#[test]
fn others_get_their_turn_while_garbage_is_thrown_away() {
    // H-062
    let (ending, longest) = serve(b"garbage");
    assert!(
        matches!(ending, Some(CloseReason::Protocol(_))),
        "{ending:?}"
    );
    assert!(longest < GRACE, "{longest:?}");
}
