//! The requests of a connection that are being carried out, on other threads or as futures.

use super::{
    Replies,
    in_flight::Futures,
    jobs::{Jobs, Panicked},
};
use crate::{Export, runtime::Runtime};
use nbd_proto::server::Request;
use std::{sync::Arc, task::Context};

/// An export, and its requests that are not done.
pub(super) enum Work<R: Runtime> {
    Jobs(Arc<dyn Export>, Jobs<R>),
    Futures(Futures),
}

impl<R: Runtime> Work<R> {
    /// Requests that are not done.
    #[inline]
    pub(super) const fn running(&self) -> usize {
        match self {
            Self::Jobs(_, jobs) => jobs.running(),
            Self::Futures(futures) => futures.running(),
        }
    }

    /// Bytes of payload of those, both ways.
    #[inline]
    pub(super) const fn bytes(&self) -> u64 {
        match self {
            Self::Jobs(_, jobs) => jobs.bytes(),
            Self::Futures(futures) => futures.bytes(),
        }
    }

    /// Appends the replies of requests that are done, and has the connection woken when more are.
    /// Returns whether there were any.
    #[inline]
    pub(super) fn collect(
        &mut self,
        cx: &mut Context<'_>,
        replies: &mut Replies,
    ) -> Result<bool, Panicked> {
        match self {
            Self::Jobs(_, jobs) => jobs.collect(cx, replies),
            Self::Futures(futures) => futures.collect(cx, replies),
        }
    }

    /// Whether no request may be taken before the export has answered a question.
    #[inline]
    pub(super) const fn is_asking_for_zeroes(&self) -> bool {
        match self {
            Self::Jobs(_, jobs) => jobs.is_asking_for_zeroes(),
            Self::Futures(_) => false,
        }
    }

    /// See [`Jobs::take_not_zero`].
    #[inline]
    pub(super) const fn take_not_zero(&mut self) -> Option<Request> {
        match self {
            Self::Jobs(_, jobs) => jobs.take_not_zero(),
            Self::Futures(_) => None,
        }
    }

    /// See [`Jobs::poll_tick`].
    #[inline]
    pub(super) fn poll_tick(&mut self, cx: &mut Context<'_>) {
        if let Self::Jobs(_, jobs) = self {
            jobs.poll_tick(cx);
        }
    }

    /// Gives up memory while nothing is going on.
    pub(super) fn shrink(&mut self) {
        if let Self::Jobs(_, jobs) = self {
            jobs.shrink();
        }
    }
}
