//! A deadline for a stream that negotiates.

use crate::{runtime::Runtime, transport::Transport};
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

/// How long the answer to a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Ends a deadline. It is apart from the stream, because TLS and others lie over that.
#[derive(Clone, Debug, Default)]
pub(super) struct Release(Arc<AtomicBool>);

impl Release {
    pub(super) fn release(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream that fails when a deadline has passed, until it is [released](Release).
pub(super) struct Timed<R: Runtime, T> {
    stream: T,
    runtime: R,
    deadline: Option<R::Sleep>,
    released: Release,
    /// Nothing is waited for any more, perhaps by a thread that is none of the runtime's.
    hurried: bool,
}

impl<R: Runtime, T> Timed<R, T> {
    pub(super) fn new(stream: T, runtime: R, time: Option<Duration>, released: Release) -> Self {
        let deadline = time.map(|time| runtime.sleep(time));
        Self {
            stream,
            runtime,
            deadline,
            released,
            hurried: false,
        }
    }

    /// Fails what would have to be waited for past the deadline.
    fn in_time<O>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<O>>,
    ) -> Poll<io::Result<O>> {
        if polled.is_pending()
            && let Some(deadline) = &mut self.deadline
        {
            if self.released.0.load(Ordering::Relaxed) {
                self.deadline = None;
            } else if Pin::new(deadline).poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        polled
    }
}

impl<R: Runtime, T: Transport> Transport for Timed<R, T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream.poll_read(cx, bufs);
        self.in_time(cx, polled)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream.poll_write(cx, bufs);
        self.in_time(cx, polled)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.stream.poll_flush(cx);
        self.in_time(cx, polled)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.stream.poll_shutdown(cx);
        if polled.is_ready() && !self.hurried && !self.released.0.load(Ordering::Relaxed) {
            self.deadline = Some(self.runtime.sleep(FAREWELL));
        }
        self.in_time(cx, polled)
    }

    fn hurry(&mut self) {
        self.hurried = true;
        self.stream.hurry();
    }
}

/// What comes of `future` within `time`, if anything does.
pub(super) async fn within<R: Runtime, O>(
    runtime: &R,
    time: Option<Duration>,
    future: impl Future<Output = O>,
) -> Option<O> {
    until::<R, _>(&mut time.map(|time| runtime.sleep(time)), future).await
}

/// What comes of `future` before `deadline`, if anything does.
pub(super) async fn until<R: Runtime, O>(
    deadline: &mut Option<R::Sleep>,
    future: impl Future<Output = O>,
) -> Option<O> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        match deadline {
            Some(deadline) => Pin::new(deadline).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}
