//! The end that the server announces, and requests after it.

use std::time::{Duration, Instant};

/// Time in which a client that has several requests in flight may send more, because it has not
/// received the announcement yet.
const GRACE: Duration = Duration::from_secs(1);

/// The announcement of the end, if it was sent.
#[derive(Default)]
pub(super) struct LastWords {
    sent: Option<Instant>,
    overlaps: bool,
}

impl LastWords {
    pub(super) fn say(&mut self) {
        self.sent = Some(Instant::now());
    }

    /// The client sends a request before the previous one was answered.
    pub(super) const fn overlap(&mut self) {
        self.overlaps = true;
    }

    /// Whether a message that comes now was sent after the announcement was received. A client that
    /// never had two requests in flight has received every reply.
    pub(super) fn are_known(&self) -> bool {
        let Some(sent) = self.sent else { return false };
        !self.overlaps || sent.elapsed() > GRACE
    }
}
