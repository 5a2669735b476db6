//! A time limit for tests that talk to other processes.

use std::{
    panic,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::process;

/// Ample even for a loaded machine: a test that reaches it hangs.
const LIMIT: Duration = Duration::from_secs(250);

/// Runs a test's body with an ample [`deadline`].
///
/// # Panics
///
/// Like [`deadline`].
pub fn run(body: impl FnOnce() + Send + 'static) {
    deadline(LIMIT, body);
}

/// Runs a test's body, and fails the test if that has not ended in time.
///
/// The servers that the body started are stopped then, and their output is printed, so that a body
/// waiting for one of them ends as well and leaves nothing behind.
///
/// # Panics
///
/// When the body panics, with its panic; and when it takes longer than `limit`.
pub fn deadline<T: Send + 'static>(
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let (ended, end) = mpsc::channel::<()>();
    let worker = thread::Builder::new()
        .name(test.clone())
        .spawn(move || {
            // Dropped at the end, even by a panic.
            let _ended = ended;
            body()
        })
        .expect("a thread can be started");

    if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        process::kill_started_by(worker.thread().id());
        panic!("{test} did not end within {limit:?}");
    }
    worker
        .join()
        .unwrap_or_else(|cause| panic::resume_unwind(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_body_that_ends_gives_its_value() {
        assert_eq!(deadline(LONG, || 7), 7);
    }

    #[test]
    #[should_panic(expected = "the body's own words")]
    fn a_panic_in_the_body_is_the_tests_panic() {
        deadline(LONG, || panic!("the body's own words"));
    }

    #[test]
    #[should_panic(expected = "a_body_that_hangs_fails_by_its_tests_name did not end within 10ms")]
    fn a_body_that_hangs_fails_by_its_tests_name() {
        let (_never, receiver) = mpsc::channel::<()>();
        deadline(Duration::from_millis(10), move || receiver.recv().is_ok());
    }

    #[test]
    fn a_hanging_body_takes_its_servers_with_it() {
        if crate::require(crate::Peer::Nbdkit).is_none() {
            return;
        }
        let (sender, receiver) = mpsc::channel();
        let hang = move || {
            let server = crate::Nbdkit::new("memory").param("1M").start();
            while server
                .as_ref()
                .is_some_and(|server| server.ended().is_none())
            {
                thread::sleep(process::POLL);
            }
            sender.send(server.is_some()).unwrap();
        };
        // Time enough to start it.
        let limit = Duration::from_secs(4);
        let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| deadline(limit, hang)));
        assert!(outcome.is_err());
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(true));
    }
}
