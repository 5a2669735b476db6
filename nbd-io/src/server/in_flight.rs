//! The requests of a connection to an asynchronous export: futures that the connection's task polls.

use super::{
    Replies,
    execute_async::{Answer, answer, answer_read, in_memory},
    future_set::FutureSet,
    jobs::{Panicked, guard},
    report::{Begun, Report, payload_len},
    work::Load,
};
use crate::{AsyncExport, ReadData};
use bytes::Bytes;
use nbd_proto::{Failure, server::Request};
use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

/// A request that has been carried out.
pub(crate) struct Done {
    answer: Result<Answer, Panicked>,
    /// Bytes of payload, both ways.
    moves: u64,
}

/// The requests of one connection that are being carried out, by an export of some type.
pub(crate) trait InFlight: Send {
    /// See [`AsyncExport::read_now`].
    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>>;

    fn minimum_block(&self) -> u32;

    /// Takes up a request, which is carried out when it is polled.
    fn push(&mut self, request: Request, payload: Bytes);

    /// The next request that is done. Only those are polled that have been woken.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Done>;
}

/// No requests to an export yet.
pub(crate) fn in_flight<E: AsyncExport>(export: Arc<E>, report: Report) -> Box<dyn InFlight> {
    Box::new(OfExport {
        export,
        report,
        carry_out: carry_out::<E>,
        futures: FutureSet::new(),
    })
}

/// Carries out a request, to which there is no answer if the export panics.
async fn carry_out<E: AsyncExport>(
    export: Arc<E>,
    report: Report,
    request: Request,
    payload: Bytes,
) -> Done {
    let moves = payload_len(&request);
    let begun = report.begin(&request);
    let mut answering = pin!(answer(&*export, request, payload));
    let answered = poll_fn(|cx| match guard(|| answering.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(answered)) => Poll::Ready(Ok(answered)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    });
    let answer = answered
        .await
        .and_then(|(answer, result)| end(&report, begun, &result).map(|()| answer));
    Done { answer, moves }
}

/// Reports a request. The program's function may panic, too.
fn end(
    report: &Report,
    begun: Option<Begun>,
    result: &Result<(), Failure>,
) -> Result<(), Panicked> {
    match begun {
        Some(begun) => guard(|| report.end(begun, result)),
        None => Ok(()),
    }
}

struct OfExport<E, C, F> {
    export: Arc<E>,
    report: Report,
    carry_out: C,
    futures: FutureSet<F>,
}

impl<E, C, F> InFlight for OfExport<E, C, F>
where
    E: AsyncExport,
    C: Fn(Arc<E>, Report, Request, Bytes) -> F + Send,
    F: Future<Output = Done> + Send,
{
    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        self.export.read_now(offset, len)
    }

    fn minimum_block(&self) -> u32 {
        self.export.block_sizes().minimum()
    }

    fn push(&mut self, request: Request, payload: Bytes) {
        let (export, report) = (Arc::clone(&self.export), self.report.clone());
        let future = (self.carry_out)(export, report, request, payload);
        self.futures.push(future);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        self.futures.poll_next(cx)
    }
}

/// The requests of one connection to an asynchronous export.
pub(super) struct Futures {
    in_flight: Box<dyn InFlight>,
}

impl Futures {
    pub(super) const fn new(in_flight: Box<dyn InFlight>) -> Self {
        Self { in_flight }
    }

    pub(super) fn push(&mut self, load: &mut Load, request: Request, payload: Bytes) {
        load.begin(payload_len(&request));
        self.in_flight.push(request, payload);
    }

    /// Answers a read from the export's cache. Returns the request where that is not possible, or
    /// where it is another one.
    pub(super) fn answer_now(
        &self,
        request: Request,
        zeroes_only: bool,
        replies: &mut Replies,
        report: &Report,
    ) -> Option<Request> {
        let Request::Read { offset, len, .. } = request else {
            return Some(request);
        };
        let within_block = u64::from(self.in_flight.minimum_block() - 1);
        if (offset | u64::from(len)) & within_block != 0 {
            return Some(request);
        }
        let begun = report.begin(&request);
        let read = self.in_flight.read_now(offset, in_memory(len));
        let is_wanted = |read: &Result<ReadData, Failure>| {
            !zeroes_only || read.as_ref().is_ok_and(ReadData::is_all_zero)
        };
        let Some(read) = read.filter(is_wanted) else {
            return Some(request);
        };
        let Request::Read { ticket, .. } = request else {
            return Some(request);
        };
        let (answer, result) = answer_read(read, len, ticket);
        if let Some(begun) = begun {
            report.end(begun, &result);
        }
        answer.send(replies);
        None
    }

    /// Appends the replies of requests that are done, and has the connection woken when more are.
    /// Returns whether there were any.
    pub(super) fn collect(
        &mut self,
        load: &mut Load,
        cx: &mut Context<'_>,
        replies: &mut Replies,
    ) -> Result<bool, Panicked> {
        let mut any = false;
        while load.running() > 0 {
            let Poll::Ready(done) = self.in_flight.poll_next(cx) else {
                break;
            };
            load.end(done.moves);
            done.answer?.send(replies);
            any = true;
        }
        Ok(any)
    }
}
