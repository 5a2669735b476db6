//! The common part of the tests: deadlines, randomness, and servers of two kinds.

pub(crate) mod bytes;
pub(crate) mod host;
pub(crate) mod model;
pub(crate) mod script;

use std::{
    error::Error,
    fmt::Write,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Factor by which a machine may be slower than expected. A deadline is there to find hangs.
const SLACK: u64 = 6;

/// Runs a test that should not take longer than this, in seconds.
pub(crate) fn within<T: Send + 'static>(
    seconds: u64,
    test: impl FnOnce() -> T + Send + 'static,
) -> T {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (done, finished) = mpsc::channel::<()>();
    let thread = thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let _done = done; // dropped when the test ends, however it does
            test()
        })
        .expect("threads can be started");
    match finished.recv_timeout(Duration::from_secs(SLACK * seconds)) {
        Err(RecvTimeoutError::Timeout) => panic!("{name} did not end within {seconds} s"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// Starts a thread that fails the test if it panics, once it is joined.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    thread::Builder::new()
        .name(name)
        .spawn(work)
        .expect("threads can be started")
}

pub(crate) fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// The text of an error and of all its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        write!(text, ": {source}").expect("strings can be written to");
        next = source.source();
    }
    text
}

/// Asserts that an error and its causes contain all of these texts.
pub(crate) fn says(error: &dyn Error, parts: &[&str]) {
    let text = chain(error);
    for part in parts {
        assert!(text.contains(part), "\"{text}\" does not say \"{part}\"");
    }
}

/// Numbers that look random and are the same every time.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * seed + 1))
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.max(1)).expect("a usize fits");
        usize::try_from((self.0 >> 11) % limit).expect("a remainder is small")
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.below(1);
            bytes.extend(self.0.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
