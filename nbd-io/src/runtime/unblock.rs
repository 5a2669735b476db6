//! Waiting for a thread that may wait, without keeping one's own.

use super::Runtime;
use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    thread,
};

/// The result that a thread leaves behind for the task that waits for it.
struct Promise<T>(Mutex<State<T>>);

struct State<T> {
    result: Option<thread::Result<T>>,
    /// No result will come.
    dropped: bool,
    waker: Option<Waker>,
}

impl<T> Promise<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's side of a promise, which is dropped with the job whether it was done or not.
struct Promised<T>(Arc<Promise<T>>);

impl<T> Drop for Promised<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.dropped = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Has `job` done on a thread that may wait, and returns its result.
///
/// If the job panics, so does this.
///
/// # Errors
///
/// When the runtime drops the job without having begun it.
///
/// # Cancel safety
///
/// The job is done, or goes on, and its result is dropped.
pub(crate) async fn unblock<R: Runtime, T: Send + 'static>(
    runtime: &R,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let promise = Arc::new(Promise(Mutex::new(State {
        result: None,
        dropped: false,
        waker: None,
    })));
    let promised = Promised(Arc::clone(&promise));
    runtime.spawn_blocking(move || {
        let result = catch_unwind(AssertUnwindSafe(job));
        promised.0.lock().result = Some(result);
    });
    poll_fn(|cx| {
        let mut state = promise.lock();
        if let Some(result) = state.result.take() {
            drop(state);
            return Poll::Ready(Ok(result.unwrap_or_else(|panic| resume_unwind(panic))));
        }
        if state.dropped {
            let error = "the runtime has no thread for blocking work";
            return Poll::Ready(Err(io::Error::other(error)));
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    })
    .await
}
