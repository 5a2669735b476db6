//! The seam between this crate and a runtime: time, threads that may wait, tasks, and sockets.
//!
//! Code that is written once for all runtimes needs them, but reads no clock and starts nothing by
//! itself.

mod unblock;

pub(crate) use unblock::unblock;

use crate::{
    client::{DialOptions, ServerProcess},
    transport::Transport,
};
use nbd_proto::uri::Address;
use std::{io, time::Duration};

/// A runtime, as far as the shared code needs it. It is cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// A timer. It need not be polled before its time has come, nor after it is of no interest.
    type Sleep: Future<Output = ()> + Send + Unpin + 'static;

    /// Whether a timer that was polled wakes the task that polled it when its time has come, as it
    /// is with futures. Then it is not polled again before, however often its task is; if not, it
    /// is polled whenever its task is.
    const TIMERS_WAKE: bool = false;

    /// Ends when `time` has passed, and not much later. It need not have ended when it is polled
    /// for the first time, even if `time` is zero.
    fn sleep(&self, time: Duration) -> Self::Sleep;

    /// The time of a clock that only goes forward, from any start: the one that
    /// [`sleep`](Runtime::sleep) goes by.
    fn now(&self) -> Duration;

    /// Has `job` done on a thread that may wait for disks and the like. Jobs are begun in about
    /// the order in which they came, and none waits for another one that is not done yet for long.
    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static);

    /// The time of a clock that only goes forward, if the thread that polls serves a single
    /// connection: quick requests are then carried out there. `None` where other connections would
    /// have to wait.
    fn own_thread_clock(&self) -> Option<Duration> {
        None
    }

    /// Gives up resources that are kept for later, such as threads without work, because a server
    /// has stopped.
    fn release_idle(&self) {}
}

/// A way to wait for a future in the calling thread, with the event loop that the future needs.
pub trait BlockOn: Send + Sync + 'static {
    /// Waits until `future` is done. It is called on threads that may wait.
    fn block_on<F: Future>(&self, future: F) -> F::Output;
}

/// A runtime that carries on with tasks by itself.
pub trait Tasks: Runtime {
    /// Has `task` carried on until it ends. A task whose runtime is shut down is dropped.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}

/// A runtime that reaches servers.
pub trait Network: Tasks {
    /// A connected socket.
    type Stream: Transport + Send + 'static;

    /// Connects to an address: of a host with several, to the one that answers first.
    ///
    /// # Errors
    ///
    /// When nothing answers in time; of several addresses, the error names the failure of each.
    /// When this system has no such addresses, an error of the kind [`io::ErrorKind::Unsupported`].
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    fn connect(
        &self,
        address: &Address,
        options: &DialOptions,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Starts a server as a child process and connects to it.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, or this runtime starts none.
    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Self::Stream> {
        let _ = server;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "no servers are started on this runtime",
        ))
    }
}
