//! The seam between this crate and a runtime: time, threads that may wait, and tasks.
//!
//! What has to be written once for all runtimes needs them, but reads no clock and starts nothing
//! by itself.

use std::time::Duration;

/// What the shared code wants of a runtime. It is cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// A timer. It need not be polled before its time has come, nor after it is of no interest.
    type Sleep: Future<Output = ()> + Send + Unpin + 'static;

    /// Ends when `time` has passed, and not much later.
    fn sleep(&self, time: Duration) -> Self::Sleep;

    /// Has `job` done on a thread that may wait for disks and the like. Jobs are begun in about
    /// the order in which they came, and none waits for another one that is not done yet for long.
    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static);
}

/// A runtime that carries on with tasks by itself.
pub trait Tasks: Runtime {
    /// Has `task` carried on until it ends. A task whose runtime is shut down is dropped.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}
