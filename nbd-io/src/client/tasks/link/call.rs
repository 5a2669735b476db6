//! One request, as a future.

use super::{Held, Link, Request, State, Stop};
use crate::client::{Error, engine::Reply};
use bytes::BytesMut;
use nbd_proto::client::Outcome;
use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// One request and its reply.
///
/// # Cancel safety
///
/// It can be dropped at any time. A request that was not put into the outbox yet is forgotten; any
/// other is sent and its reply thrown away.
#[must_use]
pub(crate) struct Call<'a> {
    link: &'a Link,
    stage: Stage,
    /// The attachment of the request, until it is begun.
    held: Option<Box<Held>>,
}

enum Stage {
    New(Request, BytesMut),
    Begun(usize),
    Over,
}

/// The outcome of a call.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) reply: Reply,
    /// The buffer that was handed over. Its contents are to be trusted only after success.
    pub(crate) sink: BytesMut,
}

impl Done {
    pub(crate) const fn new(reply: Reply, sink: BytesMut) -> Self {
        Self { reply, sink }
    }

    /// The outcome of a call that could not be made, with its buffer.
    pub(crate) fn failed(error: Error, sink: BytesMut) -> Self {
        Self::new(error.into(), sink)
    }

    /// The outcome without the buffer.
    pub(crate) fn result(self) -> Result<Outcome, Error> {
        self.reply.into_result()
    }

    /// The outcome of a read.
    pub(crate) fn into_read(self) -> Result<BytesMut, Error> {
        self.reply.into_result().map(|_| self.sink)
    }
}

impl<'a> Call<'a> {
    pub(super) const fn new(
        link: &'a Link,
        request: Request,
        sink: BytesMut,
        held: Option<Box<Held>>,
    ) -> Self {
        Self {
            link,
            stage: Stage::New(request, sink),
            held,
        }
    }

    #[inline]
    fn begin(&mut self, state: &mut State, waker: &Waker) -> (usize, Stop) {
        let Stage::New(request, sink) = mem::replace(&mut self.stage, Stage::Over) else {
            panic!("a call is not polled after its end");
        };
        let others_come = state.others_come();
        let key = state.begin(request, sink, &mut self.held);
        self.stage = Stage::Begun(key);
        let stop = if state.is_done(key) {
            Stop::Served
        } else if others_come {
            state.leave_to_poller(key)
        } else {
            state.poll_stream_for(key, waker)
        };
        (key, stop)
    }
}

impl Future for Call<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let link = self.link;
        let mut state = link.lock();
        let (key, stop) = match self.stage {
            Stage::Begun(key) => (key, state.resume(key, cx.waker())),
            Stage::New(..) | Stage::Over => self.begin(&mut state, cx.waker()),
        };
        if stop == Stop::Served
            && let Some(done) = state.take(key)
        {
            self.stage = Stage::Over;
            let old = state.release(key);
            link.unlock(state);
            drop(old);
            return Poll::Ready(done);
        }
        let old = state.set_waker(key, cx.waker());
        link.unlock(state);
        drop(old);
        if stop == Stop::Yield {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Stage::Begun(key) = self.stage {
            self.link.drop_call(key);
        }
    }
}
