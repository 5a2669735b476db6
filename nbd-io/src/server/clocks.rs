//! What a session waits for besides its client and its export.

use crate::runtime::Runtime;
use std::{pin::Pin, task::Context, time::Duration};

/// What is waited for besides the client and the export.
pub(super) struct Clocks<S> {
    /// The bytes moved when it was set.
    pub(super) idle: Option<(S, u64)>,
    pub(super) rest: Option<(S, u64)>,
    /// Until a request is refused for which there is no memory.
    pub(super) shortage: Option<(S, u64)>,
    /// While the server stops: until the client is taken to have no more requests.
    pub(super) lull: Option<(S, u64)>,
    /// While the server stops: until it is done in any case.
    pub(super) last_call: Option<S>,
    /// Until a client that has left and does not take its replies is given up.
    pub(super) farewell: Option<(S, u64)>,
}

impl<S> Clocks<S> {
    pub(super) const fn new() -> Self {
        Self {
            idle: None,
            rest: None,
            shortage: None,
            lull: None,
            last_call: None,
            farewell: None,
        }
    }
}

/// Whether nothing was moved for at least `time`, and at most twice as long.
pub(super) fn elapsed<R: Runtime>(
    clock: &mut Option<(R::Sleep, u64)>,
    cx: &mut Context<'_>,
    runtime: &R,
    time: Duration,
    moved: u64,
) -> bool {
    loop {
        let (sleep, since) = clock.get_or_insert_with(|| (runtime.sleep(time), moved));
        if Pin::new(sleep).poll(cx).is_pending() {
            return false;
        }
        let unmoved = *since == moved;
        *clock = None;
        if unmoved {
            return true;
        }
    }
}
