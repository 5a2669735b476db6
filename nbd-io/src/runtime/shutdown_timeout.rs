//! The end of a connection whose peer does not answer.

use super::Runtime;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// Time in which the peer has to answer NBD_OPT_ABORT, or to close after NBD_CMD_DISC.
const AFTER_SHUTDOWN: Duration = Duration::from_secs(2);

/// Keeps the promise of [`Transport::poll_shutdown`](crate::transport::Transport::poll_shutdown)
/// that later reads do not wait long, for transports that have no clock of their own.
pub struct ShutdownTimeout<R: Runtime> {
    runtime: R,
    said: Option<R::Sleep>,
}

impl<R: Runtime> ShutdownTimeout<R> {
    /// For a transport that was not shut down.
    pub const fn new(runtime: R) -> Self {
        let said = None;
        Self { runtime, said }
    }

    /// The transport is shut down: from now on, 2 s are left for reads.
    pub fn start(&mut self) {
        self.said
            .get_or_insert_with(|| self.runtime.sleep(AFTER_SHUTDOWN));
    }

    /// Limits the time of a read: one that pends fails when the time is over.
    #[inline]
    pub fn limit<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let is_in_time = match &mut self.said {
            Some(said) if read.is_pending() => Pin::new(said).poll(cx).is_pending(),
            _ => true,
        };
        if is_in_time {
            return read;
        }
        // A timer that has ended must not be polled again.
        self.said = Some(self.runtime.sleep(Duration::ZERO));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<R: Runtime> fmt::Debug for ShutdownTimeout<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownTimeout")
            .field("said", &self.said.is_some())
            .finish_non_exhaustive()
    }
}
