//! Serving requests.
//!
//! Reading never waits for answering: a request comes with a ticket that knows how to encode its
//! reply, and goes wherever it is carried out.

mod admit;
mod agreed;
mod read;
mod request;
mod status;
mod ticket;

pub(in crate::server) use agreed::Agreed;
pub use agreed::Context;
pub use read::{ReadTicket, SparseRead};
pub use request::Request;
pub use status::StatusTicket;
pub use ticket::{Part, Receipt, Reply, Ticket};

use crate::{
    Command, Error, HeaderStyle, TransmissionFlags,
    gather::Gather,
    wire::{RequestHeader, magic},
};
use admit::Admission;
use alloc::boxed::Box;
use bytes::Bytes;
use core::ops::Range;
use ticket::Base;

/// The longest header of a request in bytes.
const MAX_REQUEST: usize = 32;

/// A client uses an export.
///
/// Spec: [Transmission phase](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission-phase).
///
/// A driver repeats, writing replies at the same time:
///
/// 1. ask [`fill`](Self::fill) where the next bytes of the client go, and read them there,
/// 2. hand their number to [`filled`](Self::filled), and act on the event if there is one,
///
/// or, for bytes that are already there, [`feed`](Self::feed) them. Both may be used in turn: a
/// driver with a small buffer below does best to feed it, and to [`fill`](Self::fill) when a
/// payload is on its way.
///
/// Every request is answered by exactly one final [`Reply`], whose [`Receipt`] is to be given to
/// [`retire`](Self::retire) once the reply is written. As long as as many as
/// [`Limits::accepted`](crate::server::Limits::accepted) are not, no further request is read.
#[derive(Debug)]
pub struct Transmission {
    agreed: Agreed,
    header: [u8; MAX_REQUEST],
    state: State,
    in_flight: u32,
    shutdown: bool,
    dead: Option<Error>,
}

#[derive(Debug)]
enum State {
    /// So many bytes of a header have come.
    Header(usize),
    /// The payload of a write is coming.
    Payload { base: Base, done: usize, len: usize },
    /// The payload of a block status request is coming.
    Filter { base: Base, gather: Gather },
    /// The payload of a request that is answered already is coming.
    Discard {
        left: usize,
        reply: Box<Reply<Bytes>>,
    },
    /// The client sends nothing more that matters.
    Finished,
}

/// Where the client's next bytes go.
#[derive(Debug, PartialEq, Eq)]
pub enum Fill<'a> {
    /// Here, at most so many. Never empty.
    Control(&'a mut [u8]),
    /// Into the buffer of the write that is being received, which is `len` bytes long: at most to
    /// the end of `range`, and from its start. Never empty; starts at 0 when a new write begins.
    Payload {
        /// The rest of the payload.
        range: Range<usize>,
        /// The length of the whole payload in bytes.
        len: usize,
    },
    /// Nowhere: this many bytes are to be read and thrown away. Never 0.
    Discard(usize),
    /// Nowhere yet: a reply has to be [retired](Transmission::retire) first.
    Blocked,
    /// Nowhere any more: the client has disconnected, or broke the protocol.
    Finished,
}

/// The outcome of the client's bytes.
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub enum Event {
    /// A request that is to be carried out. The payload of a write is complete.
    Request(Request),
    /// A request that was answered at once: refused, or one that does nothing. The reply is to be
    /// sent and retired like any other. It is boxed because it is longer than a request, and rare.
    Answered(Box<Reply<Bytes>>),
    /// The client has disconnected. The requests that it still waits for are to be answered, then
    /// the transport is to be closed, TLS first if it is up.
    Disconnect,
}

/// The use that [`Transmission::feed`] made of bytes.
#[derive(Debug)]
#[must_use = "bytes that were not used are to be fed again"]
pub struct Fed {
    /// Number of bytes that were used. 0 if nothing can be used now, see [`Fill::Blocked`] and
    /// [`Fill::Finished`].
    pub used: usize,
    /// If the used bytes are payload of the write that is being received: where in its buffer
    /// they are to be copied. Starts at 0 when a new write begins.
    pub payload: Option<Range<usize>>,
    /// Their outcome.
    pub event: Option<Event>,
}

impl Transmission {
    pub(in crate::server) const fn new(agreed: Agreed) -> Self {
        Self {
            agreed,
            header: [0; MAX_REQUEST],
            state: State::Header(0),
            in_flight: 0,
            shutdown: false,
            dead: None,
        }
    }

    /// Where the client's next bytes go.
    #[inline]
    pub fn fill(&mut self) -> Fill<'_> {
        match &mut self.state {
            _ if self.dead.is_some() => Fill::Finished,
            State::Header(_) if self.in_flight >= self.agreed.accepted => Fill::Blocked,
            State::Header(have) => {
                Fill::Control(&mut self.header[*have..self.agreed.mode.request_len()])
            }
            State::Payload { done, len, .. } => Fill::Payload {
                range: *done..*len,
                len: *len,
            },
            State::Filter { gather, .. } => Fill::Control(gather.space()),
            State::Discard { left, .. } => Fill::Discard(*left),
            State::Finished => Fill::Finished,
        }
    }

    /// Takes note of the next `n` bytes, which are where [`fill`](Self::fill) wanted them.
    ///
    /// # Errors
    ///
    /// When the client broke the protocol. The transport is to be closed; every later call returns
    /// the same error.
    ///
    /// # Panics
    ///
    /// When `n` is larger than the space that was lent.
    pub fn filled(&mut self, n: usize) -> Result<Option<Event>, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        let advanced = self.advance(n);
        advanced.inspect_err(|error| self.dead = Some(*error))
    }

    /// Takes bytes that are already there, up to the next event and to the next start or end of a
    /// write's payload.
    ///
    /// # Errors
    ///
    /// Like [`filled`](Self::filled).
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Fed, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        let len = self.agreed.mode.request_len();
        match self.state {
            // Most headers come whole, and need not be gathered.
            State::Header(0) if bytes.len() >= len && self.in_flight < self.agreed.accepted => {
                let header = &bytes[..len];
                let event = match self.ordinary(header) {
                    Some(base) if base.command == Command::Read => Some(self.request(base)),
                    Some(base) => {
                        let len = usize::try_from(base.len).expect("a payload fits into memory");
                        self.state = State::Payload { base, done: 0, len };
                        None
                    }
                    None => {
                        let considered = self.consider(header);
                        let event = considered.inspect_err(|error| self.dead = Some(*error))?;
                        return self.gather(bytes, len, event);
                    }
                };
                Ok(Fed {
                    used: len,
                    payload: None,
                    event,
                })
            }
            State::Payload { done, len, .. } if !bytes.is_empty() => {
                let used = bytes.len().min(len - done);
                Ok(Fed {
                    used,
                    payload: Some(done..done + used),
                    event: self.advance(used)?,
                })
            }
            _ => self.gather(bytes, 0, None),
        }
    }

    /// Goes on with bytes behind those that were used, as [`feed`](Self::feed) does.
    fn gather(&mut self, bytes: &[u8], used: usize, event: Option<Event>) -> Result<Fed, Error> {
        let mut fed = Fed {
            used,
            payload: None,
            event,
        };
        while fed.event.is_none() {
            let rest = &bytes[fed.used..];
            let n = match self.fill() {
                _ if rest.is_empty() => break,
                Fill::Control(space) => {
                    let n = space.len().min(rest.len());
                    space[..n].copy_from_slice(&rest[..n]);
                    n
                }
                Fill::Discard(len) => len.min(rest.len()),
                Fill::Payload { .. } | Fill::Blocked | Fill::Finished => break,
            };
            fed.used += n;
            fed.event = self.filled(n)?;
        }
        Ok(fed)
    }

    #[inline]
    fn advance(&mut self, n: usize) -> Result<Option<Event>, Error> {
        const LENT: &str = "more bytes were filled than space was lent";
        match &mut self.state {
            State::Header(have) => {
                let len = self.agreed.mode.request_len();
                assert!(n <= len - *have, "{LENT}");
                let had_magic = *have >= 4;
                *have += n;
                let have = *have;
                if !had_magic && have >= 4 {
                    self.check_magic(&self.header)?;
                }
                if have < len {
                    return Ok(None);
                }
                self.state = State::Header(0);
                let header = self.header;
                self.consider(&header[..len])
            }
            State::Payload { base, done, len } => {
                assert!(n <= *len - *done, "{LENT}");
                *done += n;
                if *done < *len {
                    return Ok(None);
                }
                let base = *base;
                self.state = State::Header(0);
                Ok(Some(self.request(base)))
            }
            State::Filter { base, gather } => {
                if !gather.filled(n) {
                    return Ok(None);
                }
                let request = admit::filter(*base, gather.bytes(), &self.agreed);
                self.state = State::Header(0);
                self.count();
                Ok(Some(match request {
                    Ok(request) => Event::Request(request),
                    Err(reply) => Event::Answered(Box::new(reply)),
                }))
            }
            State::Discard { left, .. } => {
                assert!(n <= *left, "{LENT}");
                *left -= n;
                if *left > 0 {
                    return Ok(None);
                }
                let state = core::mem::replace(&mut self.state, State::Header(0));
                let State::Discard { reply, .. } = state else {
                    return Ok(None);
                };
                self.count();
                Ok(Some(Event::Answered(reply)))
            }
            State::Finished => {
                assert!(n == 0, "{LENT}");
                Ok(None)
            }
        }
    }

    /// A request has been received whole.
    const fn count(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request has been received whole, and is to be carried out.
    fn request(&mut self, base: Base) -> Event {
        self.count();
        Event::Request(Request::new(base, &self.agreed))
    }

    /// Checks the magic number before the rest of a header is waited for.
    fn check_magic(&self, header: &[u8]) -> Result<(), Error> {
        let got = header.first_chunk().map_or(0, |m| u32::from_be_bytes(*m));
        let expected = match self.agreed.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => magic::REQUEST,
            HeaderStyle::Extended => magic::EXTENDED_REQUEST,
        };
        if got == expected {
            Ok(())
        } else {
            Err(Error::RequestMagic { expected, got })
        }
    }

    /// The request of this header, if it is an [ordinary](admit::is_ordinary) one.
    #[inline]
    fn ordinary(&self, header: &[u8]) -> Option<Base> {
        let header = RequestHeader::decode(self.agreed.mode, header)?;
        let is_ordinary = admit::is_ordinary(&header, &self.agreed) && !self.shutdown;
        is_ordinary.then(|| Base::new(&header, &self.agreed))
    }

    /// Decides on a request by its header.
    ///
    /// INVARIANT: no other message is being received.
    fn consider(&mut self, header: &[u8]) -> Result<Option<Event>, Error> {
        self.check_magic(header)?;
        let header = RequestHeader::decode(self.agreed.mode, header)
            .expect("the magic number was checked and the header is complete");
        let base = Base::new(&header, &self.agreed);
        let admission = admit::admit(&header, &base, &self.agreed, self.shutdown)?;
        let (reply, payload) = match admission {
            Admission::Request => return Ok(Some(self.request(base))),
            Admission::Payload(len) => {
                self.state = State::Payload { base, done: 0, len };
                return Ok(None);
            }
            Admission::Filter(len) => {
                let gather = Gather::new(len);
                self.state = State::Filter { base, gather };
                return Ok(None);
            }
            Admission::Disconnect => {
                self.state = State::Finished;
                return Ok(Some(Event::Disconnect));
            }
            Admission::Nothing => (base.success(), 0),
            Admission::Refused((errno, text), payload) => {
                let text = Bytes::from_static(text.as_bytes());
                (base.error(errno, text, None), payload)
            }
        };
        let reply = Box::new(reply);
        if payload > 0 {
            self.state = State::Discard {
                left: payload,
                reply,
            };
            return Ok(None);
        }
        self.count();
        Ok(Some(Event::Answered(reply)))
    }

    /// A reply has been written: the request is no longer in flight.
    pub fn retire(&mut self, receipt: Receipt) {
        let Receipt(()) = receipt;
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// From now on new requests are answered with [`Errno::Shutdown`](crate::Errno::Shutdown).
    pub const fn shut_down(&mut self) {
        self.shutdown = true;
    }

    /// The headers that the connection uses.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.agreed.mode
    }

    /// The size that the client was sent, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.agreed.size
    }

    /// The flags that the client was sent.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.agreed.flags
    }

    /// The meta contexts that the client selected.
    #[must_use]
    pub fn contexts(&self) -> &[Context] {
        &self.agreed.contexts
    }

    /// Requests whose replies are not retired.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether no byte of a request has come, so that the end of the client's bytes is no loss.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Header(0) | State::Finished)
    }

    /// Whether the client has disconnected and every reply is retired: the transport is to be
    /// closed.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished) && self.in_flight == 0
    }
}
