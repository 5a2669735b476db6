//! Moving the connection on, for everybody.

use super::{Phase, State};
use crate::client::{Error, Lost, SLICES};
use nbd_proto::{
    Error as Violation,
    client::{Cookie, Event, Fill, Outcome, Payload},
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    task::{Context, Poll, Waker, ready},
};

/// What one read from the stream takes in beside payload that goes straight to its place, in bytes.
pub(super) const INBOX: usize = 256 << 10;

/// Payload of at least this length that has not come yet is read straight to its place, in bytes.
const DIRECT: usize = 16 << 10;

/// Reads of at least this length are kept out of the inbox altogether, in bytes. For shorter ones
/// it costs less to copy them than to ask the system for each.
pub(super) const LARGE: usize = 128 << 10;

/// What is taken in beside the payload of a large read, or before it: the header of what comes
/// next, and not much of a next payload, which would have to be copied.
const BESIDE: usize = 4 << 10;

/// How often a task reads before it lets others run.
const TURNS: usize = 32;

/// Why driving stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The call that drives is done, or the connection is over.
    Served,
    /// Nothing more can be done; the stream will wake the driver.
    Quiet,
    /// There is more to do, after others had their turn.
    Tired,
}

impl State {
    /// Writes and reads until `current` is done or nothing more can be done without waiting.
    /// `waker` is the signal.
    pub(super) fn drive(&mut self, waker: &Waker, current: Option<usize>) -> Stop {
        self.signal.answer();
        self.drives = self.drives.wrapping_add(1);
        self.current = current;
        let mut context = Context::from_waker(waker);
        let stop = self.turns(&mut context, current);
        self.current = None;
        stop
    }

    fn turns(&mut self, cx: &mut Context<'_>, current: Option<usize>) -> Stop {
        let mut writable = true;
        for _ in 0..TURNS {
            if writable {
                match self.write(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => self.lose(self.how(error)),
                    Poll::Pending => writable = false,
                }
            }
            if self.stream.is_none() || current.is_some_and(|key| self.is_done(key)) {
                return Stop::Served;
            }
            match self.read(cx) {
                Poll::Ready(Ok(())) => self.pump(),
                Poll::Ready(Err(lost)) => self.lose(lost),
                Poll::Pending => return Stop::Quiet,
            }
        }
        Stop::Tired
    }

    /// Writes all that is in the outbox, and the end of the stream after a goodbye: at once,
    /// because the server may close its side as soon as it has read that.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.outbox.slices(&[], &mut slices);
            let n = ready!(stream.poll_write(cx, &slices[..count]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.advance(n);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(stream.poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.goodbye && !self.shut_down {
            ready!(stream.poll_shutdown(cx))?;
            self.shut_down = true;
        }
        Poll::Ready(Ok(()))
    }

    /// One read: the rest of a payload that is worth it, then whatever follows.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let target = self.target();
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        let staged = if self.large > 0 { BESIDE } else { INBOX };
        let staged = IoSliceMut::new(&mut self.inbox[..staged]);
        let (result, direct) = match target {
            None => (stream.poll_read(cx, &mut [staged]), 0),
            Some((key, range)) => {
                let direct = range.len();
                let place = IoSliceMut::new(&mut self.calls[key].sink[range]);
                (stream.poll_read(cx, &mut [place, staged]), direct)
            }
        };
        let n = match ready!(result) {
            Ok(0) if self.goodbye => return Poll::Ready(Err(Lost::Disconnected)),
            Ok(0) => return Poll::Ready(Err(Lost::Closed)),
            Ok(n) => n,
            Err(error) => return Poll::Ready(Err(self.how(error))),
        };
        Poll::Ready(self.took(n, direct).map_err(Lost::from))
    }

    /// How the connection ended when the stream failed.
    fn how(&self, error: io::Error) -> Lost {
        if self.goodbye {
            Lost::Disconnected // some servers end TLS by just closing
        } else {
            error.into()
        }
    }

    /// Where payload that has not come yet can be read to straight away.
    fn target(&mut self) -> Option<(usize, std::ops::Range<usize>)> {
        let Ok(Fill::Payload(Payload { cookie, range })) = self.transmission.fill() else {
            return None;
        };
        if range.len() < DIRECT {
            return None;
        }
        Some((self.slots[cookie.slot()].call?, range))
    }

    /// Takes in `n` bytes, of which up to `direct` are in their place and the others in the inbox.
    fn took(&mut self, n: usize, direct: usize) -> Result<(), Violation> {
        let direct = n.min(direct);
        if direct > 0
            && let Some(event) = self.transmission.filled(direct)?
        {
            self.handle(event);
        }
        let inbox = mem::take(&mut self.inbox);
        let consumed = self.consume(&inbox[..n - direct]);
        self.inbox = inbox;
        consumed
    }

    fn consume(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let fed = self.transmission.feed(bytes)?;
            let (used, rest) = bytes.split_at(fed.used);
            bytes = rest;
            if let Some(Payload { cookie, range }) = fed.payload
                && let Some(sink) = self.sink(cookie)
            {
                sink[range].copy_from_slice(used);
            }
            if let Some(event) = fed.event {
                self.handle(event);
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Hole {
                payload: Payload { cookie, range },
                done,
            } => {
                if let Some(sink) = self.sink(cookie) {
                    sink[range].fill(0);
                }
                if done {
                    self.complete(cookie, Ok(Outcome::Done));
                }
            }
            Event::Complete {
                cookie,
                outcome: Outcome::Failed(source),
            } => {
                let call = self.slots[cookie.slot()].call;
                // Of a request that was given up nobody asks what failed.
                let result = call.map_or(Ok(Outcome::Done), |key| {
                    let command = self.calls[key].command;
                    Err(Error::Failed { command, source })
                });
                self.complete(cookie, result);
            }
            Event::Complete { cookie, outcome } => self.complete(cookie, Ok(outcome)),
        }
    }

    /// The buffer of a read in flight, if somebody waits for it.
    fn sink(&mut self, cookie: Cookie) -> Option<&mut [u8]> {
        let key = self.slots[cookie.slot()].call?;
        debug_assert!(matches!(self.calls[key].phase, Phase::InFlight(_)));
        Some(&mut self.calls[key].sink)
    }
}
