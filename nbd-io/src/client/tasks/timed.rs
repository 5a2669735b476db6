//! A deadline for a stream that negotiates.

use super::alarm::Alarm;
use crate::{
    runtime::Runtime,
    transport::{TlsSession, Transport},
};
use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// Time in which the server has to answer NBD_OPT_ABORT, or to close after NBD_CMD_DISC.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream that fails when a deadline has passed.
pub struct Timed<R: Runtime> {
    pub(super) stream: Box<dyn Transport + Send>,
    runtime: R,
    pub(super) deadline: Option<Duration>,
    pub(super) alarm: Alarm<R>,
    fails_instead_of_waiting: bool,
}

impl<R: Runtime> Timed<R> {
    pub(super) fn new(runtime: &R, stream: impl Transport + Send + 'static) -> Self {
        Self::boxed(runtime, Box::new(stream))
    }

    pub(super) fn boxed(runtime: &R, stream: Box<dyn Transport + Send>) -> Self {
        Self {
            stream,
            runtime: runtime.clone(),
            deadline: None,
            alarm: Alarm::default(),
            fails_instead_of_waiting: false,
        }
    }

    /// Fails a future that would wait past the deadline.
    fn in_time<O>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<O>>,
    ) -> Poll<io::Result<O>> {
        // No timer is set, since a value may be dropped where its runtime is not.
        if polled.is_pending() && self.fails_instead_of_waiting {
            return Poll::Ready(Err(io::ErrorKind::WouldBlock.into()));
        }
        if polled.is_pending()
            && let Some(deadline) = self.deadline
            && self.alarm.poll(&self.runtime, deadline, cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<R: Runtime> Transport for Timed<R> {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.stream.poll_read_ready(cx);
        self.in_time(cx, polled)
    }

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
        if polled.is_ready() {
            let last = self.runtime.now() + SHUTDOWN_TIMEOUT;
            self.deadline = Some(self.deadline.map_or(last, |deadline| deadline.min(last)));
        }
        self.in_time(cx, polled)
    }

    fn tls_session(&self) -> Option<TlsSession> {
        self.stream.tls_session()
    }

    fn fail_instead_of_waiting(&mut self) {
        self.fails_instead_of_waiting = true;
        self.stream.fail_instead_of_waiting();
    }
}

impl<R: Runtime> fmt::Debug for Timed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").finish_non_exhaustive()
    }
}

/// The output of `future`, if it is ready within `time`.
pub(super) async fn within<R: Runtime, O>(
    runtime: &R,
    time: Option<Duration>,
    future: impl Future<Output = O>,
) -> Option<O> {
    until::<R, _>(&mut time.map(|time| runtime.sleep(time)), future).await
}

/// The output of `future`, if it is ready before `deadline`.
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

#[cfg(test)]
mod tests {
    use super::super::tests::{
        pipe::pipe,
        sim::{Chance, Sim},
    };
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_stream_that_is_given_up_sets_no_timer() {
        let (silent, _peer) = pipe(&Chance::new(1));
        let mut stream = Timed::new(&Sim::new(1), silent);
        stream.deadline = Some(Duration::from_secs(1));
        stream.fail_instead_of_waiting();
        let cx = &mut Context::from_waker(Waker::noop());
        let read = stream.poll_read(cx, &mut [IoSliceMut::new(&mut [0])]);
        let Poll::Ready(Err(error)) = read else {
            panic!("{read:?}");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
