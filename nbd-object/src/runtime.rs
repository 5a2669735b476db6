//! The runtime of a disk, without a type parameter.

use crate::Error;
use futures_util::future::BoxFuture;
use nbd_io::runtime::Tasks;
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The tasks and timers that disks use: those of any runtime that a driver has, such as
/// `nbd_tokio::Tokio`.
#[derive(Clone)]
pub(crate) struct Runtime(Arc<dyn Dynamic>);

trait Dynamic: Send + Sync {
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
    fn now(&self) -> Duration;
    fn spawn_blocking(&self, job: Box<dyn FnOnce() + Send>);
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

impl<T: Tasks> Dynamic for T {
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(nbd_io::runtime::Runtime::sleep(self, time))
    }

    fn now(&self) -> Duration {
        nbd_io::runtime::Runtime::now(self)
    }

    fn spawn_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        nbd_io::runtime::Runtime::spawn_blocking(self, job);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        Tasks::spawn(self, task);
    }
}

impl Runtime {
    pub(crate) fn new(runtime: impl Tasks) -> Self {
        Self(Arc::new(runtime))
    }

    pub(crate) fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(time)
    }

    pub(crate) fn now(&self) -> Duration {
        self.0.now()
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(task));
    }

    /// Has a job done on a thread that may take its time, and waits for it.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = oneshot::channel();
        self.0.spawn_blocking(Box::new(move || {
            let _ = done.send(job());
        }));
        result.await.map_err(|_| Error::Aborted)
    }

    /// Has `work` done by a task of its own, and waits for it.
    ///
    /// So it goes on when the caller is dropped, or is not polled for a while, and other callers that
    /// wait for the same are not held up. And it runs where the store's runtime is.
    pub(crate) async fn join<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = oneshot::channel();
        self.spawn(async move {
            let _ = done.send(work.await);
        });
        result.await.map_err(|_| Error::Aborted)?
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}
