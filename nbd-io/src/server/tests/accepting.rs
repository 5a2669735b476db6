//! Failures of accept, and the server's reactions.

use super::clock::Clock;
use crate::runtime::Runtime as _;
use crate::{
    NamedExports,
    server::{Event, Listener, Peer, Server},
    transport::Transport,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

/// A listener on which accept fails for ever, and that counts the attempts.
struct FailingListener(i32, Arc<AtomicU32>);

impl Listener for FailingListener {
    type Stream = Never;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>> {
        let tried = self.1.fetch_add(1, Ordering::Relaxed);
        assert!(tried < 100_000, "the server spins");
        Poll::Ready(Err(io::Error::from_raw_os_error(self.0)))
    }
}

/// A stream that never exists.
enum Never {}

impl Transport for Never {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}

/// Serves for three seconds. Returns the number of attempts to accept, the number of reported
/// failures, and the result of the server if it ended.
fn serve(errno: i32) -> (u32, u32, Option<io::Result<()>>) {
    let clock = Clock::default();
    let (tried, reported) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let count = Arc::clone(&reported);
    let server = Server::on_runtime(clock.clone(), Arc::new(NamedExports::new()));
    let server = server.on_event(move |event| {
        assert!(matches!(event, Event::AcceptFailed { .. }), "{event:?}");
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut serving = pin!(server.accept_from(FailingListener(errno, Arc::clone(&tried))));
    let cx = &mut Context::from_waker(Waker::noop());
    let mut ended = None;
    while ended.is_none() && clock.now() < Duration::from_secs(3) {
        if let Poll::Ready(served) = serving.as_mut().poll(cx) {
            ended = Some(served);
        }
        clock.advance(Duration::from_millis(10));
    }
    let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    (count(&tried), count(&reported), ended)
}

#[cfg(target_os = "linux")]
#[test]
fn an_accept_error_that_lasts_does_not_keep_the_processor_busy() {
    use rustix::io::Errno;
    // A transient error may be followed by others, so that a few attempts are made at once.
    for (errno, most) in [
        (Errno::PERM, 16),
        (Errno::CONNABORTED, 16),
        (Errno::MFILE, 1),
    ] {
        let (tried, reported, ended) = serve(errno.raw_os_error());
        assert!(ended.is_none(), "{errno}: {ended:?}");
        assert!(tried <= 31 * most, "{errno}: {tried}");
        assert_eq!(reported, tried.div_ceil(most), "{errno}");
    }
    let (tried, _, ended) = serve(Errno::INVAL.raw_os_error());
    assert!(tried == 1 && ended.is_some_and(|ended| ended.is_err()));
}
