//! A client uses an export: from its first request to its last reply.

mod carrying;
mod ending;

pub(super) use carrying::is_quick;
pub(super) use ending::is_end;

use super::{
    CloseReason, Peer, Replies, Settings,
    budget::Share,
    buffers::Buffers,
    clocks::Clocks,
    in_flight::Futures,
    intake::{Coming, Intake},
    jobs::{Jobs, Panicked, guard},
    negotiation::Entered,
    rate::RateLimiter,
    registry::Registration,
    replies::no_memory,
    report::{Report, payload_len},
    work::{Load, Work},
};
use crate::{Kind, runtime::Runtime, transport::Transport};
use nbd_proto::{
    Error,
    server::{Event, Request},
};
use std::{
    future::poll_fn,
    io::{self, IoSlice},
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// Replies that are not held back any more for others to join them, in bytes.
const REPLIES_AT_ONCE: usize = 256 << 10;

/// Slices that one write takes at most.
const SLICES: usize = 64;

/// Limit of steps that a connection takes before others of its thread run.
const TURNS: usize = 256;

/// Time for which a client has to be quiet to be taken to have no more requests when the server
/// stops.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// Time that a client that has left has for its last replies, and time that it is waited for at the
/// end.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Memory is given up, and the place if another client needs it, when nothing has come for so long.
const IDLE_SHRINK: Duration = Duration::from_secs(2);

/// Time for which a request that needs much memory waits for it.
const SHORTAGE: Duration = Duration::from_secs(10);

/// A client's use of an export.
pub(super) struct Session<'a, T, R: Runtime> {
    settings: &'a Settings,
    runtime: &'a R,
    place: &'a Registration,
    transport: T,
    buffers: Arc<Buffers>,
    intake: Intake,
    replies: Replies,
    work: Work<R>,
    load: Load,
    report: Report,
    share: Share,
    /// Charges requests, if there is a limit of their rate.
    rate_limiter: Option<RateLimiter>,
    /// A read for which there is no memory yet.
    held: Option<Request>,
    /// Whether the export was asked whether the read that is held is all zero. It is not, and needs
    /// memory.
    asked_for_zeroes: bool,
    /// Memory is waited for.
    short: bool,
    /// Every request is carried out in place.
    in_place: bool,
    unflushed: bool,
    /// Bytes that were moved in either direction.
    moved: u64,
    /// The place is noted as one that could be given away.
    spare: bool,
    /// The reason for which no more requests are taken.
    ending: Option<CloseReason>,
    clocks: Clocks<R::Sleep>,
}

impl<'a, T: Transport, R: Runtime> Session<'a, T, R> {
    pub(super) fn new(
        settings: &'a Settings,
        runtime: &'a R,
        place: &'a Registration,
        peer: &Peer,
        entered: Entered<T>,
    ) -> Self {
        let buffers = Arc::clone(&settings.buffers);
        let on_request = settings.on_request.as_ref();
        let report = Report::new(on_request, runtime, place.id(), peer, &entered.name);
        let mut in_place = entered.transport.is_blocking();
        let work = match entered.export.0 {
            Kind::Sync(export) => {
                in_place |= !export.may_block();
                let jobs = Jobs::new(
                    runtime.clone(),
                    Arc::clone(&export),
                    report.clone(),
                    Arc::clone(&buffers),
                    settings.concurrency,
                );
                Work::Jobs(export, jobs)
            }
            Kind::Async(export) => Work::Futures(Futures::new(export.in_flight(report.clone()))),
        };
        Self {
            settings,
            runtime,
            place,
            in_place,
            transport: entered.transport,
            intake: Intake::new(entered.transmission),
            replies: Replies::sharing(Arc::clone(&buffers)),
            buffers,
            work,
            load: Load::default(),
            report,
            share: Share::new(Arc::clone(&settings.budget)),
            rate_limiter: settings.rates.enter(peer, runtime),
            held: None,
            asked_for_zeroes: false,
            short: false,
            unflushed: false,
            moved: 0,
            spare: true,
            ending: None,
            clocks: Clocks::new(place),
        }
    }

    /// Serves the client until it leaves.
    pub(super) async fn run(&mut self) -> CloseReason {
        let ending = poll_fn(|cx| self.poll(cx)).await;
        let has_parted = matches!(ending, CloseReason::Disconnected)
            && !self.intake.has_bytes()
            && self.transport.closes_gracefully_on_drop();
        if !has_parted && !matches!(ending, CloseReason::Io(_)) {
            self.close().await;
        }
        self.intake.give_up(&self.buffers);
        ending
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        for _ in 0..TURNS {
            match self.step(cx) {
                Ok(true) => {}
                Ok(false) => match self.poll_clocks(cx) {
                    Poll::Ready(Some(ending)) => return Poll::Ready(ending),
                    Poll::Ready(None) => {}
                    Poll::Pending => return Poll::Pending,
                },
                Err(ending) => return Poll::Ready(ending),
            }
        }
        // A client that never pauses is no reason to forget the time.
        if let Poll::Ready(Some(ending)) = self.poll_clocks(cx) {
            return Poll::Ready(ending);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes every step that is possible now. Returns whether there was any, or the reason for the
    /// end.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, CloseReason> {
        let mut any = self.load.running() > 0 && self.collect(cx);
        if self.ending.is_none() && (self.intake.has_bytes() || self.held.is_some()) {
            any |= match guard(|| self.consume(cx)) {
                Ok(Ok(any)) => any,
                Ok(Err(error)) => self.end(CloseReason::Protocol(error)),
                Err(Panicked) => self.end(CloseReason::Panicked),
            };
        }
        // Futures that were begun just now, so that their replies go with the others.
        any |= self.load.running() > 0 && self.work.is_async() && self.collect(cx);
        match self.poll_write(cx) {
            Poll::Ready(Ok(0)) | Poll::Pending => {}
            Poll::Ready(Ok(_)) => any = true,
            Poll::Ready(Err(error)) => return Err(self.broken(error)),
        }
        if !self.share.is_empty() {
            let used = self.used() + self.intake.payload_len();
            self.share.settle(used);
        }
        if self.ending.is_some() {
            if self.load.running() == 0 && self.replies.is_empty() && !self.unflushed {
                return Err(self.ending.take().expect("there is one"));
            }
            return Ok(any);
        }
        let is_ready = self.held.is_none() && !self.is_throttled() && !self.load.asking_for_zeroes;
        // A transport that waits in place would keep futures from being polled.
        let is_busy = self.load.running() > 0 && self.transport.is_blocking();
        if !is_ready || is_busy || !self.has_room() || self.intake.has_bytes() {
            return Ok(any);
        }
        if self.transport.poll_read_ready(cx).is_pending() {
            // Every later event wakes this task, except for the end of a job that was begun just
            // now: only the next step has that report its end.
            return Ok(any && self.load.running() > 0);
        }
        let coming = self.intake.coming();
        let may_come = match coming {
            Coming::Nothing => false,
            Coming::Payload(Range { start: 0, .. }, len) => self.covers(len as u64, cx),
            Coming::Requests | Coming::Payload(..) => true,
        };
        if may_come {
            let alone = self.is_exclusive() && self.replies.is_empty() && !self.unflushed;
            self.transport.set_exclusive(alone);
            let Self {
                intake,
                transport,
                buffers,
                ..
            } = self;
            let read = match intake.poll_read(cx, transport, buffers, coming) {
                Poll::Pending => return Ok(any && self.load.running() > 0),
                Poll::Ready(read) => read,
            };
            any = true;
            match read {
                Err(error) if is_end(&error) => {
                    self.end_of_requests();
                    // No reply gets to a client whose connection broke.
                    let is_broken = error.kind() != io::ErrorKind::UnexpectedEof;
                    if is_broken && self.work.is_async() {
                        return Err(self.ending.take().expect("it was just set"));
                    }
                }
                Err(error) => return Err(self.broken(error)),
                Ok(Ok(0)) => self.end_of_requests(),
                Ok(Ok(n)) => self.has_moved(n),
                Ok(Err(error)) => self.ending = Some(CloseReason::Protocol(error)),
            }
        }
        Ok(any)
    }

    fn has_moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        if self.spare {
            self.spare = false;
            self.place.busy();
        }
    }

    /// Whether the client is the only one to be waited for.
    fn is_exclusive(&self) -> bool {
        self.load.running() == 0 && self.ending.is_none() && self.clocks.stop_deadline.is_none()
    }

    /// Whether one more request may be taken: the limit may be exceeded by one.
    fn has_room(&self) -> bool {
        self.used() < self.settings.in_flight
    }

    /// Bytes of payload in memory, beside one that is coming.
    fn used(&self) -> u64 {
        self.load
            .bytes()
            .saturating_add(self.replies.memory() as u64)
    }

    /// Whether the server has memory for `more`; otherwise it is waited for.
    fn covers(&mut self, more: u64, cx: &Context<'_>) -> bool {
        let covers = self.share.cover(self.used().saturating_add(more), cx);
        self.short = !covers;
        covers
    }

    /// Whether there is memory for a payload that is coming, if one is.
    fn has_payload_room(&mut self, cx: &Context<'_>) -> bool {
        let wanted = self.intake.wants_room();
        wanted.is_none_or(|len| self.covers(len, cx))
    }

    /// Refuses the request for which memory was waited for too long.
    fn refuse_for_memory(&mut self) {
        (self.short, self.asked_for_zeroes) = (false, false);
        match self.held.take() {
            Some(request) => self.refuse(request),
            None => self.intake.discard(),
        }
    }

    fn refuse(&mut self, request: Request) {
        let failure = no_memory();
        let begun = self.report.begin(&request);
        let words = failure.message.as_str().to_owned();
        self.replies.push(request.fail(failure.errno, words));
        if let Some(begun) = begun {
            self.report.end(begun, &Err(failure));
        }
    }

    /// Whether the client has to wait, because it has done more than its rate allows.
    const fn is_throttled(&self) -> bool {
        self.clocks.deficit.is_some()
    }

    /// Has the client pay for a request, if there is a limit of its rate.
    #[inline]
    fn charge(&mut self, request: &Request) {
        if let Some(rate_limiter) = &self.rate_limiter {
            let deficit = rate_limiter.pay(request, self.runtime);
            self.clocks.deficit = deficit.map(|deficit| self.runtime.sleep(deficit));
        }
    }

    /// Takes the requests that have come, as far as their replies may wait to be sent. Returns
    /// whether there were any.
    fn consume(&mut self, cx: &Context<'_>) -> Result<bool, Error> {
        let mut any = false;
        if self.place.is_stopping() {
            self.intake.transmission.shut_down();
        }
        while self.replies.len() < REPLIES_AT_ONCE
            && self.has_room()
            && !self.load.asking_for_zeroes
        {
            if self.is_throttled() && self.held.is_none() {
                break;
            }
            if self.intake.is_parked() {
                if !self.has_payload_room(cx) {
                    break;
                }
                self.intake.unpark(&self.buffers);
            }
            let is_new = self.held.is_none();
            let held = if is_new { None } else { self.held.take() };
            let event = match held {
                Some(request) => Some(Event::Request(request)),
                None => self.intake.next()?,
            };
            let request = match event {
                Some(Event::Request(request)) => request,
                Some(Event::Answered(reply)) => {
                    self.replies.push(*reply);
                    any = true;
                    continue;
                }
                Some(Event::Disconnect) => {
                    self.ending = Some(CloseReason::Disconnected);
                    any = true;
                    break;
                }
                // Nothing wakes this task for bytes that have come already.
                None if self.intake.is_parked() => continue,
                None => break,
            };
            if is_new {
                self.charge(&request);
            }
            if self.intake.lacks_payload() {
                self.refuse(request);
                any = true;
                continue;
            }
            // A payload has its memory already, and lets no long request in until it is covered.
            let moves = payload_len(&request);
            if self.intake.payload().is_empty() {
                self.short = !self.share.cover(self.used() + moves, cx);
                if self.short {
                    match self.answer_without_memory(request) {
                        None => any = true,
                        held => self.held = held,
                    }
                    if self.short {
                        break;
                    }
                    continue;
                }
                self.asked_for_zeroes = false;
            }
            any = true;
            if !self.carry_out(request, moves) {
                break;
            }
        }
        Ok(any)
    }

    /// Writes replies as far as the client takes them. Returns how many bytes it took.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.replies.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(0));
        }
        let mut written = 0;
        self.transport.set_exclusive(self.is_exclusive());
        while !self.replies.is_empty() {
            let sent = if let Some(bytes) = self.replies.contiguous() {
                self.transport.poll_write(cx, &[IoSlice::new(bytes)])?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.replies.slices(&mut slices);
                self.transport.poll_write(cx, &slices[..count])?
            };
            match sent {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(n) => {
                    self.replies.advance(n);
                    self.unflushed = true;
                    written += n;
                }
                Poll::Pending => break,
            }
        }
        if written > 0 {
            self.has_moved(written);
        }
        if self.unflushed && self.replies.is_empty() && self.transport.poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        self.replies.retire(&mut self.intake.transmission);
        Poll::Ready(Ok(written))
    }
}
