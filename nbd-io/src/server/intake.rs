//! From a client's bytes to its requests.

use super::buffers::Buffers;
use crate::transport::Transport;
use bytes::Bytes;
use nbd_proto::{
    Error,
    server::{Event, Fill, Reply, Request, Transmission},
};
use std::{
    io::{self, IoSliceMut},
    mem,
    task::{Context, Poll, ready},
};

/// Bytes of requests that are taken from the transport at once.
const STAGED: usize = 128 << 10;

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
}

/// What a client wants.
pub(super) enum Taken<'a> {
    /// To have a request carried out.
    Request(Request, Payload<'a>),
    /// Nothing that was not answered already.
    Answered(Reply<Bytes>),
    /// To leave.
    Disconnect,
}

/// The payload of a request: of a write that is, others have none.
pub(super) enum Payload<'a> {
    /// It came whole and stands among other bytes.
    Staged(&'a [u8]),
    /// The first bytes of a buffer, so many.
    Buffer(&'a mut Vec<u8>, usize),
}

impl Payload<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Staged(bytes) => bytes,
            Self::Buffer(buffer, len) => &buffer[..*len],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Puts the payload at the beginning of `buffer`, which becomes as long as need be.
    pub(super) fn move_to(self, buffer: &mut Vec<u8>, buffers: &Buffers) {
        match self {
            Self::Staged(bytes) => {
                if buffer.len() < bytes.len() {
                    buffers.keep(mem::replace(buffer, buffers.take(bytes.len())));
                }
                buffer[..bytes.len()].copy_from_slice(bytes);
            }
            Self::Buffer(payload, _) => mem::swap(buffer, payload),
        }
    }
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
        }
    }

    /// Whether bytes that have come are not used up.
    pub(super) const fn has_bytes(&self) -> bool {
        self.start < self.end || self.complete.is_some()
    }

    /// The next request of which all bytes have come, if it can be taken now.
    pub(super) fn next(&mut self, buffers: &Buffers) -> Result<Option<Taken<'_>>, Error> {
        if let Some((event, len)) = self.complete.take() {
            return Ok(Some(taken(event, Payload::Buffer(&mut self.payload, len))));
        }
        while self.start < self.end {
            let bytes = &self.staged[self.start..self.end];
            let fed = self.transmission.feed(bytes)?;
            let used = self.start..self.start + fed.used;
            self.start = used.end;
            match (fed.event, fed.payload) {
                // It has come all at once and need not be copied.
                (Some(event), Some(range)) if range.start == 0 => {
                    return Ok(Some(taken(event, Payload::Staged(&self.staged[used]))));
                }
                (event, Some(range)) => {
                    if event.is_none()
                        && let Fill::Payload { len, .. } = self.transmission.fill()
                    {
                        make_room(&mut self.payload, len, buffers);
                    }
                    let end = range.end;
                    self.payload[range].copy_from_slice(&self.staged[used]);
                    if let Some(event) = event {
                        return Ok(Some(taken(event, Payload::Buffer(&mut self.payload, end))));
                    }
                }
                (Some(event), None) => return Ok(Some(taken(event, Payload::Staged(&[])))),
                // Replies have to be written first.
                (None, None) if fed.used == 0 => break,
                (None, None) => {}
            }
        }
        Ok(None)
    }

    /// Whether there is a place for bytes that might come.
    pub(super) fn wants_bytes(&mut self) -> bool {
        !self.has_bytes() && !matches!(self.transmission.fill(), Fill::Blocked | Fill::Finished)
    }

    /// Takes more bytes from the transport: first those of a payload, then whatever follows. 0
    /// bytes are the end.
    pub(super) fn poll_read<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut T,
        buffers: &Buffers,
    ) -> Poll<io::Result<Result<usize, Error>>> {
        (self.start, self.end) = (0, 0);
        if self.staged.is_empty() {
            self.staged = vec![0; STAGED];
        }
        let range = match self.transmission.fill() {
            Fill::Payload { range, len } => {
                make_room(&mut self.payload, len, buffers);
                range
            }
            _ => 0..0,
        };
        let direct = range.len();
        let mut bufs = [
            IoSliceMut::new(&mut self.payload[range.clone()]),
            IoSliceMut::new(&mut self.staged),
        ];
        let bufs = if direct == 0 {
            &mut bufs[1..]
        } else {
            &mut bufs[..]
        };
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

    /// Throws away what the client still sends. 0 bytes are the end.
    pub(super) fn poll_drain<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut T,
    ) -> Poll<io::Result<usize>> {
        self.staged.resize(STAGED, 0);
        transport.poll_read(cx, &mut [IoSliceMut::new(&mut self.staged)])
    }

    /// Whether there is any memory to be given up.
    pub(super) const fn has_memory(&self) -> bool {
        !self.staged.is_empty() || !self.payload.is_empty()
    }

    /// Gives up memory while nothing is coming.
    pub(super) fn shrink(&mut self, buffers: &Buffers) {
        if !self.has_bytes() && self.transmission.is_idle() {
            self.staged = Vec::new();
            buffers.keep(mem::take(&mut self.payload));
        }
    }
}

/// Makes sure that a payload of `len` bytes that is coming fits into its buffer.
fn make_room(payload: &mut Vec<u8>, len: usize, buffers: &Buffers) {
    if payload.len() < len {
        buffers.keep(mem::replace(payload, buffers.take(len)));
    }
}

fn taken(event: Event, payload: Payload<'_>) -> Taken<'_> {
    match event {
        Event::Request(request) => Taken::Request(request, payload),
        Event::Answered(reply) => Taken::Answered(reply),
        Event::Disconnect => Taken::Disconnect,
    }
}
