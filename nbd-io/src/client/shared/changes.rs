//! What was changed and may not be on stable storage.

use super::link::Request;
use nbd_proto::CommandFlags;
use std::collections::VecDeque;

/// Requests that changed the export, and whether they are on stable storage.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// How many were answered.
    pub(super) count: u64,
    /// The last one that may not be on stable storage.
    unflushed: u64,
    flushed: u64,
    /// How often some of them may have been lost.
    pub(super) tears: u64,
    kept: VecDeque<(u64, Request)>,
    kept_bytes: u64,
    /// What is kept has to be sent again before anything else.
    pub(super) torn: bool,
    /// The connection over which this is being done.
    pub(super) repairer: Option<usize>,
}

/// What a kept request counts for beside its payload, in bytes.
const OVERHEAD: u64 = 128;

fn size(request: &Request) -> u64 {
    match request {
        Request::Write { payload, .. } => payload.len() as u64 + OVERHEAD,
        _ => OVERHEAD,
    }
}

impl Changes {
    /// A request was answered.
    pub(super) fn add(&mut self, request: &Request, keep: bool) {
        self.count += 1;
        if !request.has(CommandFlags::FUA) {
            self.unflushed = self.count;
        }
        // One that is on stable storage is kept if an older one would overwrite it.
        if keep && (self.unflushed == self.count || !self.kept.is_empty()) {
            self.kept_bytes += size(request);
            self.kept.push_back((self.count, request.clone()));
        }
    }

    /// Whether one more request fits into what may be kept.
    pub(super) fn has_room(&self, request: &Request, limit: u64) -> bool {
        self.kept.is_empty() || self.kept_bytes + size(request) <= limit
    }

    /// A flush was answered that was sent when there were `count`.
    pub(super) fn flush(&mut self, count: u64) {
        self.flushed = self.flushed.max(count);
        while let Some((number, request)) = self.kept.front()
            && *number <= count
        {
            self.kept_bytes -= size(request);
            self.kept.pop_front();
        }
    }

    /// A connection was lost.
    pub(super) fn tear(&mut self, keep: bool) {
        if keep {
            self.torn = !self.kept.is_empty();
            self.repairer = None;
        } else if self.unflushed > self.flushed {
            self.flushed = self.count;
            self.tears += 1;
        }
    }

    /// What is to be written again, in order.
    pub(super) fn kept(&self) -> Vec<Request> {
        let requests = self.kept.iter().map(|(_, request)| request);
        requests.cloned().collect()
    }
}
