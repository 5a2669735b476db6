//! What was changed and may not be on stable storage.

use super::{Error, Request};
use nbd_proto::Errno;
use std::collections::VecDeque;

/// Requests that changed the export, and whether they are on stable storage. A client that makes
/// lost connections anew knows by it what may be gone.
#[derive(Debug, Default)]
pub struct Changes {
    count: u64,
    /// The last one that may not be on stable storage.
    unflushed: u64,
    flushed: u64,
    tears: u64,
    kept: VecDeque<(u64, Request)>,
    kept_bytes: u64,
    torn: bool,
}

/// What a kept request counts for beside its payload, in bytes.
const OVERHEAD: u64 = 128;

impl Changes {
    /// How many requests were answered that changed something.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// How often some of them may have been lost.
    #[must_use]
    pub const fn tears(&self) -> u64 {
        self.tears
    }

    /// A request was answered, which was on stable storage with that if it was `forced`. It is kept
    /// if it is given.
    pub fn add(&mut self, forced: bool, kept: Option<Request>) {
        self.count += 1;
        if !forced {
            self.unflushed = self.count;
        }
        // One that is on stable storage is kept if an older one would overwrite it.
        if let Some(request) = kept
            && (!forced || !self.kept.is_empty())
        {
            self.kept_bytes += request.weight() + OVERHEAD;
            self.kept.push_back((self.count, request));
        }
    }

    /// Whether one more request with so much payload fits into what may be kept.
    #[must_use]
    pub fn has_room(&self, payload: u64, limit: u64) -> bool {
        self.kept.is_empty() || self.kept_bytes + payload + OVERHEAD <= limit
    }

    /// A flush was answered that was sent when there were `count`.
    pub fn flush(&mut self, count: u64) {
        self.flushed = self.flushed.max(count);
        while let Some((number, request)) = self.kept.front()
            && *number <= count
        {
            self.kept_bytes -= request.weight() + OVERHEAD;
            self.kept.pop_front();
        }
    }

    /// A connection was lost. With `keep`, what is kept will be sent again.
    pub fn tear(&mut self, keep: bool) {
        if keep {
            self.torn = !self.kept.is_empty();
        } else if self.unflushed > self.flushed {
            self.flushed = self.count;
            self.tears += 1;
        }
    }

    /// Whether what is kept has to be sent again before anything else.
    #[must_use]
    pub const fn is_torn(&self) -> bool {
        self.torn
    }

    /// What is kept was sent again.
    pub const fn mend(&mut self) {
        self.torn = false;
    }

    /// What is to be written again, in order.
    #[must_use]
    pub fn kept(&self) -> Vec<Request> {
        let requests = self.kept.iter().map(|(_, request)| request);
        requests.cloned().collect()
    }
}

/// Whether an answer to what is written again says that it will never be taken.
#[must_use]
pub fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Lost(_) | Error::Timeout { .. } => false,
        Error::Failed { source, .. } => source.errno != Errno::Shutdown,
        _ => true,
    }
}
