//! Reading, and the place of each byte.
//!
//! Bytes are read into the inbox, many small replies at once. Payload of a long read goes straight
//! to its buffer instead. One vectored read does both: first the rest of a payload, then the bytes
//! behind it.
//!
//! If there is but one read in flight, the next bytes are most likely a header and all of its
//! payload. Then one read takes in all of it, each part in its place. If the bytes turn out to be
//! others, those in the wrong place are taken from there.

use super::{ABANDONED, Buffer, Done, Engine, Reply, Sink, Spill, Ticket};
use crate::client::Error;
use nbd_proto::{
    Command, Error as Violation,
    client::{Cookie, Event, Outcome, Payload, WholeReply},
};
use std::ops::Range;

/// Limit of bytes that one read takes into the inbox, beside payload that goes straight to its
/// place.
const INBOX: usize = 256 << 10;

/// Size of the inbox once a reply is waited for, in bytes: enough for a short one or two. It
/// doubles whenever a read fills it.
const SMALL_INBOX: usize = 16 << 10;

/// Payload of at least this length that has not come yet is read straight to its place, in bytes.
const DIRECT: usize = 16 << 10;

/// Reads of at least this length are kept out of the inbox altogether, in bytes. For shorter ones
/// it costs less to copy them than to ask the system for each.
pub const LARGE: usize = 128 << 10;

/// The payload of a lone read of at least this length is expected in its place, in bytes. To copy a
/// shorter one costs less.
const AHEAD: u64 = 2 << 10;

/// If more bytes than this have come to the wrong place, nothing is expected any more.
pub(super) const MISPLACED: usize = 512;

/// Limit of bytes taken in beside the payload of a large read, or before it: room for the next
/// header, and not for much of a next payload, which would have to be copied.
const INBOX_BESIDE_PAYLOAD: usize = 4 << 10;

/// Limit of bytes taken in while no reply is waited for. The end of the stream needs no space, and
/// anything else is too much.
const UNEXPECTED: usize = 16;

/// The space that a read takes in bytes to which nothing is known yet.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// As much space as one read may fill.
    #[inline]
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.bytes.len().max(SMALL_INBOX));
        if self.bytes.len() < len {
            self.renew(len);
        }
        &mut self.bytes[..len]
    }

    /// Has space of this length, without the bytes of before.
    #[cold]
    fn renew(&mut self, len: usize) {
        self.bytes = vec![0; len];
    }
}

/// The place of the next bytes from the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPlan {
    /// To the inbox.
    Inbox,
    /// To this part of the buffer that a request has handed over, and then to the inbox.
    Owned(Cookie, Range<usize>),
    /// To this part of the reader's own buffer, and then to the inbox.
    Lent(Range<usize>),
    /// So many bytes to the inbox, then to the buffer of this read, and then to the inbox again. The
    /// buffer is the one that was handed over if the reader has none, and else this part of the
    /// reader's own.
    Ahead {
        /// Number of bytes that come first.
        front: usize,
        /// The read.
        cookie: Cookie,
        /// The place in the buffer.
        range: Range<usize>,
    },
    /// This owner has to read on, because payload is for its own buffer.
    HandOver(usize),
}

impl ReadPlan {
    /// Number of bytes that go straight to their place.
    #[inline]
    #[must_use]
    pub fn direct(&self) -> usize {
        match self {
            Self::Owned(_, range) | Self::Lent(range) | Self::Ahead { range, .. } => range.len(),
            Self::Inbox | Self::HandOver(_) => 0,
        }
    }

    /// Number of bytes that go to the inbox before those.
    #[inline]
    #[must_use]
    pub const fn front(&self) -> usize {
        match self {
            Self::Ahead { front, .. } => *front,
            _ => 0,
        }
    }
}

/// The owner that reads, and its own buffer.
pub type Reader<'a> = (usize, &'a mut [u8]);

/// A reader without a buffer of its own. Nothing else may happen while it reads.
#[must_use]
pub const fn no_reader() -> Reader<'static> {
    (ABANDONED, &mut [])
}

impl<B: Buffer, T: Ticket, O: Default> Engine<B, T, O> {
    /// The place of the next bytes when this owner reads.
    #[inline]
    pub fn plan_read(&mut self, reader: usize) -> ReadPlan {
        let Some(Payload { cookie, range }) = self.transmission.next_payload() else {
            return self.plan_ahead(reader).unwrap_or(ReadPlan::Inbox);
        };
        if range.len() < DIRECT {
            return ReadPlan::Inbox;
        }
        let request = &self.in_flight[cookie.slot()];
        match request.sink {
            Sink::New(_) | Sink::Owned(_) => ReadPlan::Owned(cookie, range),
            Sink::Lent { at, .. } if request.owner == reader => {
                ReadPlan::Lent(at + range.start..at + range.end)
            }
            Sink::Lent { .. } => ReadPlan::HandOver(request.owner),
            Sink::None => ReadPlan::Inbox,
        }
    }

    #[inline]
    fn plan_ahead(&self, reader: usize) -> Option<ReadPlan> {
        if self.transmission.in_flight() != 1 || self.is_split {
            return None;
        }
        let request = self.in_flight.get(self.latest)?;
        let cookie = request.cookie?;
        if request.command != Command::Read || request.weight < AHEAD {
            return None;
        }
        let len = usize::try_from(request.weight).ok()?;
        let range = match request.sink {
            // The buffer must not go while it is read into.
            Sink::New(_) | Sink::Owned(_) if reader == ABANDONED => 0..len,
            Sink::Lent { at, .. } if request.owner == reader => at..at + len,
            _ => return None,
        };
        let front = self.transmission.before_payload(cookie)?;
        Some(ReadPlan::Ahead {
            front,
            cookie,
            range,
        })
    }

    /// Limit of bytes read into the inbox.
    #[inline]
    #[must_use]
    pub fn beside(&self) -> usize {
        match (self.in_flight(), self.large) {
            (0, _) => UNEXPECTED,
            (_, 0) => INBOX,
            _ => INBOX_BESIDE_PAYLOAD,
        }
    }

    /// The buffer of a request in flight, where it was handed over or is to be allocated.
    pub fn owned(&mut self, cookie: Cookie) -> Option<&mut B> {
        let request = self.in_flight.get_mut(cookie.slot())?;
        if request.cookie != Some(cookie) {
            return None;
        }
        request.sink.allocate(self.spare.as_deref());
        match &mut request.sink {
            Sink::Owned(buffer) => Some(buffer),
            Sink::None | Sink::New(_) | Sink::Lent { .. } => None,
        }
    }

    /// Takes in `n` bytes that were read as planned. `reader` is who has read them. Returns
    /// whether the connection goes on.
    pub fn received(
        &mut self,
        plan: &ReadPlan,
        n: usize,
        inbox: &mut Inbox,
        reader: Reader<'_>,
    ) -> bool {
        self.receipts += 1;
        let front = n.min(plan.front());
        let direct = (n - front).min(plan.direct());
        let staged = n - direct;
        let (front, rest) = inbox.bytes[..staged].split_at(front);
        let done = match plan {
            ReadPlan::Ahead { cookie, range, .. } => {
                self.take_ahead(front, (*cookie, range, direct), rest, reader)
            }
            _ => self.take_in(direct, rest, reader),
        };
        if staged == inbox.bytes.len() && staged < INBOX {
            inbox.renew(2 * staged);
        }
        #[cfg(feature = "tracing")]
        self.trace_tolerated();
        if let Err(violation) = done {
            self.lose(violation.into());
        }
        self.lost.is_none()
    }

    /// Reports the headers in received bytes, and passes over so much payload behind them.
    #[inline(always)]
    fn trace_replies(&mut self, bytes: &[u8], payload: usize) {
        #[cfg(feature = "tracing")]
        if let Some(replies) = &mut self.replies {
            replies.feed(bytes);
            replies.pass(payload);
        }
        let _ = (bytes, payload);
    }

    /// Reports deviations of the server's that were overlooked, each once.
    #[cfg(feature = "tracing")]
    fn trace_tolerated(&mut self) {
        let now = self.transmission.tolerated();
        if now != self.tolerated {
            let before = std::mem::replace(&mut self.tolerated, now);
            for deviation in now
                .names()
                .filter(|name| !before.names().any(|old| old == *name))
            {
                tracing::warn!(deviation, "a deviation of the server is overlooked");
            }
        }
    }

    /// Takes in bytes that were read as if they were the payload of a read, with a header in front.
    fn take_ahead(
        &mut self,
        front: &[u8],
        (cookie, range, direct): (Cookie, &Range<usize>, usize),
        rest: &[u8],
        (reader, lent): Reader<'_>,
    ) -> Result<(), Violation> {
        // A header ends where the front does, because the payload is expected behind it.
        let have_come = front.len() + direct;
        let whole = self
            .transmission
            .whole_reply(front, have_come, Some(cookie));
        if whole.is_some() {
            self.trace_replies(front, direct);
            self.complete(cookie, Reply::DONE);
            return self.take_in(0, rest, (reader, lent));
        }
        let expected = Payload {
            cookie,
            range: 0..range.len(),
        };
        if direct == 0 {
            let taken = self.take_in(0, front, (reader, lent));
            // There are streams that fill one buffer at a time.
            self.is_split = self.transmission.next_payload().is_some();
            return taken;
        }
        if self.transmission.announced(front) == Some(expected) {
            self.take_in(0, front, (reader, &mut *lent))?;
            return self.take_in(direct, rest, (reader, lent));
        }
        let misplaced = match &mut self.in_flight[cookie.slot()].sink {
            Sink::Owned(buffer) => &buffer.as_mut()[range.clone()],
            Sink::None | Sink::New(_) | Sink::Lent { .. } => &lent[range.clone()],
        };
        let wire = [front, &misplaced[..direct], rest].concat();
        self.is_split = direct > MISPLACED;
        self.take_in(0, &wire, (reader, lent))
    }

    fn take_in(
        &mut self,
        direct: usize,
        mut bytes: &[u8],
        mut reader: Reader<'_>,
    ) -> Result<(), Violation> {
        if direct > 0
            && let Some(event) = self.transmission.filled(direct)?
        {
            self.handle(event, &mut reader);
        }
        self.trace_replies(&[], direct);
        while !bytes.is_empty() {
            let whole = self.transmission.whole_reply(bytes, bytes.len(), None);
            if let Some(WholeReply {
                cookie,
                header,
                payload,
            }) = whole
            {
                let (reply, rest) = bytes.split_at(header + payload);
                bytes = rest;
                self.trace_replies(&reply[..header], payload);
                self.put(cookie, 0, &reply[header..], &mut reader);
                self.complete(cookie, Reply::DONE);
                continue;
            }
            let fed = self.transmission.feed(bytes)?;
            let (used, rest) = bytes.split_at(fed.used);
            bytes = rest;
            let payload = fed
                .payload
                .as_ref()
                .map_or(0, |payload| payload.range.len());
            let (header, payload) = used.split_at(used.len() - payload);
            self.trace_replies(header, payload.len());
            if let Some(Payload { cookie, range }) = fed.payload {
                self.put(cookie, range.start, payload, &mut reader);
            }
            if let Some(event) = fed.event {
                self.handle(event, &mut reader);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn handle(&mut self, event: Event, reader: &mut Reader<'_>) {
        match event {
            Event::Complete {
                cookie,
                outcome: Outcome::Done,
            } => self.complete(cookie, Reply::DONE),
            event => self.handle_other(event, reader),
        }
    }

    fn handle_other(&mut self, event: Event, reader: &mut Reader<'_>) {
        match event {
            Event::Hole {
                payload: Payload { cookie, range },
                done,
            } => {
                let sink = &mut self.in_flight[cookie.slot()].sink;
                let is_zero = sink.allocate(self.spare.as_deref());
                match self.place(cookie, &range, reader) {
                    Destination::Here(_) if is_zero => {}
                    Destination::Here(buffer) => buffer.fill(0),
                    Destination::Spill(spill) => spill.put_hole(range.start, range.len()),
                    Destination::Nowhere => {}
                }
                if done {
                    self.complete(cookie, Reply::DONE);
                }
            }
            Event::Complete {
                cookie,
                outcome: Outcome::Failed(source),
            } => {
                let command = self.in_flight[cookie.slot()].command;
                self.complete(cookie, Error::Failed { command, source }.into());
            }
            Event::Complete { cookie, outcome } => self.complete(cookie, Ok(outcome).into()),
        }
    }

    /// Puts a part of a read's payload where it goes.
    #[inline(always)]
    fn put(&mut self, cookie: Cookie, at: usize, payload: &[u8], reader: &mut Reader<'_>) {
        if self.in_flight[cookie.slot()].sink.take(payload) {
            return;
        }
        match self.place(cookie, &(at..at + payload.len()), reader) {
            Destination::Here(buffer) => buffer.copy_from_slice(payload),
            Destination::Spill(spill) => spill.put(at, payload),
            Destination::Nowhere => {}
        }
    }

    /// The place of a part of a read's payload.
    #[inline(always)]
    fn place<'a>(
        &'a mut self,
        cookie: Cookie,
        range: &Range<usize>,
        (reader, lent): &'a mut Reader<'_>,
    ) -> Destination<'a> {
        let request = &mut self.in_flight[cookie.slot()];
        if matches!(request.sink, Sink::New(_)) {
            request.sink.allocate(self.spare.as_deref());
        }
        match &mut request.sink {
            Sink::None | Sink::New(_) => Destination::Nowhere,
            Sink::Owned(buffer) => Destination::Here(&mut buffer.as_mut()[range.clone()]),
            Sink::Lent { at, .. } if request.owner == *reader => {
                Destination::Here(&mut lent[*at + range.start..*at + range.end])
            }
            Sink::Lent { spill, .. } => Destination::Spill(spill.get_or_insert_default()),
        }
    }
}

enum Destination<'a> {
    Nowhere,
    Here(&'a mut [u8]),
    Spill(&'a mut Spill),
}

impl<B> Done<B> {
    /// Copies bytes that others have received to their place in the owner's buffer.
    #[inline]
    pub fn settle(&mut self, lent: &mut [u8]) {
        if let Sink::Lent { at, spill } = &mut self.sink
            && let Some(spill) = spill.take()
        {
            spill.copy_to(&mut lent[*at..]);
        }
    }
}
