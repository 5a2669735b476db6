//! The requests of a connection that are being carried out, on other threads or as futures.

use super::{
    Replies,
    in_flight::Futures,
    jobs::{Jobs, Panicked},
};
use crate::{Export, runtime::Runtime};
use std::{sync::Arc, task::Context};

/// An export, and the way in which its requests are carried out.
pub(super) enum Work<R: Runtime> {
    Jobs(Arc<dyn Export>, Jobs<R>),
    Futures(Futures),
}

/// Number and size of the requests that are not done. It is apart from [`Work`], because a session
/// asks for it many times for each request.
#[derive(Debug, Default)]
pub(super) struct Load {
    running: usize,
    /// Bytes of payload, both ways.
    bytes: u64,
    /// Whether the export is being asked whether a read is all zero, and no request may be taken
    /// meanwhile.
    pub(super) asking_for_zeroes: bool,
}

impl Load {
    /// Requests that are not done.
    pub(super) const fn running(&self) -> usize {
        self.running
    }

    /// Bytes of payload of those, both ways.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A request has begun that moves so many bytes.
    pub(super) const fn begin(&mut self, moves: u64) {
        self.running += 1;
        self.bytes += moves;
    }

    /// A request is done.
    pub(super) const fn end(&mut self, moves: u64) {
        self.running -= 1;
        self.bytes -= moves;
    }
}

impl<R: Runtime> Work<R> {
    /// Whether the export is asynchronous.
    pub(super) const fn is_async(&self) -> bool {
        matches!(self, Self::Futures(_))
    }

    /// Appends the replies of requests that are done, and has the connection woken when more are.
    /// Returns whether there were any.
    pub(super) fn collect(
        &mut self,
        load: &mut Load,
        cx: &mut Context<'_>,
        replies: &mut Replies,
    ) -> Result<bool, Panicked> {
        match self {
            Self::Jobs(_, jobs) => jobs.collect(load, cx, replies),
            Self::Futures(futures) => futures.collect(load, cx, replies),
        }
    }

    /// Gives up memory while nothing is going on.
    pub(super) fn shrink(&mut self) {
        if let Self::Jobs(_, jobs) = self {
            jobs.shrink();
        }
    }
}
