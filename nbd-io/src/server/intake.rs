//! From a client's bytes to its requests.

use super::buffers::Buffers;
use crate::transport::Transport;
use bytes::Bytes;
use nbd_proto::{
    Error,
    server::{Event, Fill, Transmission},
};
use std::{
    io::{self, IoSliceMut},
    mem,
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Bytes of requests that are taken from the transport at once, and how many at first.
const STAGED: usize = 128 << 10;
const STAGED_FIRST: usize = 16 << 10;

/// Buffers that are longer than this are not kept by a connection that does not use them, in bytes.
const LONG: usize = 1 << 20;

/// Payloads shorter than this are copied to be shared, in bytes.
const SHARED: usize = 16 << 10;

/// A buffer that is shared, and goes back when it is not any more.
struct Shared {
    buffer: Vec<u8>,
    len: usize,
    buffers: Arc<Buffers>,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.buffers.keep(mem::take(&mut self.buffer));
    }
}

/// Takes bytes from the transport, many requests to a system call, and long payloads straight to
/// their buffers.
pub(super) struct Intake {
    pub(super) transmission: Transmission,
    /// Bytes that have come, of which those from `start` to `end` are not used up. Without memory
    /// while the client has nothing to say.
    staged: Vec<u8>,
    start: usize,
    end: usize,
    /// Holds the payload of a write that does not come all at once.
    payload: Vec<u8>,
    /// The payload is complete, and this is the request that it belongs to.
    complete: Option<(Event, usize)>,
    place: PayloadAt,
    /// The first bytes of a payload among those that have come, while there is no place for it.
    parked: Option<Range<usize>>,
    /// There is no memory for the payload that is coming, which is thrown away.
    discards: bool,
}

/// The bytes of a client that are to be taken from the transport next.
pub(super) enum Coming {
    /// None for now.
    Nothing,
    /// Those of requests, and those that are thrown away.
    Requests,
    /// These first, of a payload of so many bytes.
    Payload(Range<usize>, usize),
}

/// The place of the payload of the last request.
#[derive(Clone)]
enum PayloadAt {
    Nowhere,
    /// There was no memory for it.
    Missing,
    /// The first bytes of its buffer, so many.
    Buffer(usize),
    Staged(Range<usize>),
}

impl Intake {
    pub(super) const fn new(transmission: Transmission) -> Self {
        Self {
            transmission,
            staged: Vec::new(),
            start: 0,
            end: 0,
            payload: Vec::new(),
            complete: None,
            place: PayloadAt::Nowhere,
            parked: None,
            discards: false,
        }
    }

    /// Whether bytes that have come are not used up.
    pub(super) const fn has_bytes(&self) -> bool {
        self.start < self.end || self.complete.is_some() || self.parked.is_some()
    }

    /// The client's next request, if all bytes of it have come and it can be taken now. The
    /// [payload](Self::payload) of a request is there until the next call.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Event>, Error> {
        self.place = PayloadAt::Nowhere;
        if self.complete.is_some()
            && let Some((event, len)) = self.complete.take()
        {
            self.place = PayloadAt::Buffer(len);
            return Ok(Some(event));
        }
        while self.start < self.end && self.parked.is_none() {
            let bytes = &self.staged[self.start..self.end];
            let fed = self.transmission.feed(bytes)?;
            let used = self.start..self.start + fed.used;
            self.start = used.end;
            if let Some(range) = fed.payload {
                self.place_payload(range, used, fed.event.is_some());
            } else if used.is_empty() {
                // Replies have to be written first.
                break;
            }
            if fed.event.is_some() {
                return Ok(fed.event);
            }
        }
        Ok(None)
    }

    /// Sees to a payload of which bytes were among others: those of `range`, which are the last ones
    /// if it `is_complete`.
    fn place_payload(&mut self, range: Range<usize>, used: Range<usize>, is_complete: bool) {
        let missing = is_complete && mem::take(&mut self.discards);
        self.place = match range.start {
            // It has come all at once and need not be copied.
            0 if is_complete => PayloadAt::Staged(used),
            0 => {
                self.parked = Some(used);
                PayloadAt::Nowhere
            }
            _ if missing => PayloadAt::Missing,
            _ => {
                let end = range.end;
                if !self.discards {
                    self.payload[range].copy_from_slice(&self.staged[used]);
                }
                PayloadAt::Buffer(end)
            }
        };
    }

    /// Whether there was no memory for the payload of the request that was taken last.
    pub(super) const fn lacks_payload(&self) -> bool {
        matches!(self.place, PayloadAt::Missing)
    }

    /// The payload of the request that was taken last: of a write that is, others have none.
    #[inline]
    pub(super) fn payload(&self) -> &[u8] {
        match &self.place {
            PayloadAt::Nowhere | PayloadAt::Missing => &[],
            PayloadAt::Buffer(len) => &self.payload[..*len],
            PayloadAt::Staged(range) => &self.staged[range.clone()],
        }
    }

    /// Puts the payload of the request that was taken last at the beginning of `buffer`, which
    /// becomes as long as need be. Returns how long it is, or that there is no memory for that.
    pub(super) fn move_payload(
        &mut self,
        buffer: &mut Vec<u8>,
        buffers: &Buffers,
    ) -> Option<usize> {
        if let PayloadAt::Buffer(len) = self.place {
            mem::swap(buffer, &mut self.payload);
            self.place = PayloadAt::Nowhere;
            return Some(len);
        }
        let bytes = self.payload();
        if buffer.len() < bytes.len() {
            buffers.keep(mem::replace(buffer, buffers.take(bytes.len())?));
        }
        buffer[..bytes.len()].copy_from_slice(bytes);
        Some(bytes.len())
    }

    /// The payload of the request that was taken last, as shared memory: a copy, unless it is in a
    /// buffer of its own, which then goes back to `buffers` when it is not used any more. `None` if
    /// there is no memory for that.
    pub(super) fn share_payload(&mut self, buffers: &Arc<Buffers>) -> Option<Bytes> {
        if self.payload().len() < SHARED {
            return Some(Bytes::copy_from_slice(self.payload()));
        }
        let mut buffer = Vec::new();
        let len = self.move_payload(&mut buffer, buffers)?;
        Some(Bytes::from_owner(Shared {
            buffer,
            len,
            buffers: Arc::clone(buffers),
        }))
    }

    /// The bytes that may be taken from the transport now.
    pub(super) fn coming(&mut self) -> Coming {
        if self.has_bytes() {
            return Coming::Nothing;
        }
        match self.transmission.fill() {
            Fill::Blocked | Fill::Finished => Coming::Nothing,
            Fill::Payload { range, len } if !self.discards => Coming::Payload(range, len),
            Fill::Payload { .. } | Fill::Control(_) | Fill::Discard(_) => Coming::Requests,
        }
    }

    /// Takes more bytes from the transport: first those of a payload, then those behind it. 0 bytes
    /// are the end.
    pub(super) fn poll_read<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut T,
        buffers: &Buffers,
        coming: Coming,
    ) -> Poll<io::Result<Result<usize, Error>>> {
        // A client that filled it the last time may go on like that.
        let full = self.end == self.staged.len() && self.end < STAGED;
        (self.start, self.end) = (0, 0);
        if full {
            self.make_stage(buffers)?;
        }
        let range = match coming {
            Coming::Payload(range, len) if self.make_room(len, buffers) => range,
            _ => {
                let staged = &mut [IoSliceMut::new(&mut self.staged)];
                self.end = ready!(transport.poll_read(cx, staged))?;
                return Poll::Ready(Ok(Ok(self.end)));
            }
        };
        let direct = range.len();
        let bufs = &mut [
            IoSliceMut::new(&mut self.payload[range.clone()]),
            IoSliceMut::new(&mut self.staged),
        ];
        let n = ready!(transport.poll_read(cx, bufs))?;
        let of_payload = n.min(direct);
        self.end = n - of_payload;
        if of_payload > 0 {
            match self.transmission.filled(of_payload) {
                Ok(event) => {
                    self.complete = event.map(|event| (event, range.start + of_payload));
                }
                Err(error) => return Poll::Ready(Ok(Err(error))),
            }
        }
        Poll::Ready(Ok(Ok(n)))
    }

    /// Throws away bytes that the client still sends. 0 bytes are the end.
    pub(super) fn poll_drain<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut T,
        buffers: &Buffers,
    ) -> Poll<io::Result<usize>> {
        if self.staged.is_empty() {
            self.make_stage(buffers)?;
        }
        transport.poll_read(cx, &mut [IoSliceMut::new(&mut self.staged)])
    }

    /// Makes a longer space for bytes that come, none of which are in it.
    fn make_stage(&mut self, buffers: &Buffers) -> io::Result<()> {
        let len = if self.staged.is_empty() {
            STAGED_FIRST
        } else {
            STAGED
        };
        match buffers.take(len) {
            Some(staged) => buffers.keep(mem::replace(&mut self.staged, staged)),
            // A short one will do.
            None if !self.staged.is_empty() => {}
            None => return Err(io::ErrorKind::OutOfMemory.into()),
        }
        Ok(())
    }

    /// Whether there is any memory to be given up.
    pub(super) const fn has_memory(&self) -> bool {
        !self.staged.is_empty() || !self.payload.is_empty()
    }

    /// Gives up memory while nothing is coming.
    pub(super) fn shrink(&mut self, buffers: &Buffers) {
        if !self.has_bytes() && self.transmission.is_idle() {
            self.give_up(buffers);
        }
    }

    /// Gives up all memory, of which no bytes are in use.
    pub(super) fn give_up(&mut self, buffers: &Buffers) {
        (self.start, self.end) = (0, 0);
        buffers.keep(mem::take(&mut self.staged));
        buffers.keep(mem::take(&mut self.payload));
    }

    /// Length in bytes of the payload that is coming or has come.
    pub(super) fn payload_len(&mut self) -> u64 {
        match (&self.complete, self.transmission.fill()) {
            (Some((_, len)), _) => *len as u64,
            (None, Fill::Payload { len, .. }) if !self.discards => len as u64,
            _ => 0,
        }
    }

    /// Whether the first bytes of a payload wait for a place.
    pub(super) const fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Length in bytes of the payload that is coming and has no place yet.
    pub(super) fn wants_room(&mut self) -> Option<u64> {
        match self.transmission.fill() {
            Fill::Payload { len, range } if self.parked.is_some() || range.start == 0 => {
                (!self.discards).then_some(len as u64)
            }
            _ => None,
        }
    }

    /// Makes a place for the payload that is coming, if its first bytes wait for one.
    pub(super) fn unpark(&mut self, buffers: &Buffers) {
        if let Some(parked) = self.parked.take() {
            let len = match self.transmission.fill() {
                Fill::Payload { len, .. } => len,
                _ => parked.len(),
            };
            if self.make_room(len, buffers) {
                self.payload[..parked.len()].copy_from_slice(&self.staged[parked]);
            }
        }
    }

    /// Throws away the payload that is coming, for which there is no memory.
    pub(super) fn discard(&mut self) {
        self.discards = matches!(self.transmission.fill(), Fill::Payload { .. });
        self.parked = None;
    }

    /// Gives a long buffer away that is not in use, although requests are coming.
    #[inline]
    pub(super) fn release(&mut self, buffers: &Buffers) {
        if self.payload.len() > LONG && self.payload_len() == 0 {
            buffers.keep(mem::take(&mut self.payload));
        }
    }

    /// Makes sure that a payload of `len` bytes that is coming fits into its buffer, or is thrown
    /// away. Returns whether there is room.
    fn make_room(&mut self, len: usize, buffers: &Buffers) -> bool {
        if self.payload.len() < len {
            match buffers.take(len) {
                Some(buffer) => buffers.keep(mem::replace(&mut self.payload, buffer)),
                None => self.discards = true,
            }
        }
        !self.discards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use nbd_proto::{
        ExportInfo, TransmissionFlags,
        server::{Config, oldstyle},
        wire::{Command, CommandFlags, HeaderStyle, RequestHeader},
    };

    impl Intake {
        fn take(&mut self, bytes: &[u8]) -> Option<Event> {
            self.staged = bytes.to_vec();
            (self.start, self.end) = (0, bytes.len());
            self.next().unwrap()
        }
    }

    fn write(payload: &[u8]) -> Vec<u8> {
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command: Command::Write,
            cookie: 1,
            offset: 0,
            len: payload.len() as u64,
        };
        [header.encode(HeaderStyle::Simple).as_bytes(), payload].concat()
    }

    #[test]
    fn only_the_payload_for_which_there_is_no_memory_is_thrown_away() {
        let info = ExportInfo::new(1 << 20, TransmissionFlags::NONE);
        let mut out = BytesMut::new();
        let mut intake = Intake::new(oldstyle(&Config::default(), &info, &mut out));
        let buffers = Buffers::default();
        let request = write(b"0123456789");

        // It comes whole after all, among other bytes.
        assert!(intake.take(&request[..28]).is_none());
        intake.discard();
        assert!(intake.take(&request[28..]).is_some());
        assert!(!intake.lacks_payload() && intake.payload() == b"0123456789");

        // The next one in two pieces.
        assert!(intake.take(&request[..33]).is_none());
        assert!(intake.is_parked());
        intake.unpark(&buffers);
        assert!(intake.take(&request[33..]).is_some());
        assert!(!intake.lacks_payload() && intake.payload() == b"0123456789");

        // And one whose first bytes are there.
        assert!(intake.take(&request[..33]).is_none());
        intake.discard();
        assert!(intake.take(&request[33..]).is_some());
        assert!(intake.lacks_payload());
    }
}
