//! Replies: every byte of the server's is checked before it is believed.

use super::{Cookie, Event, Fed, Fill, Payload, Transmission, slots::Slot};
use crate::{
    BlockSizes, Command, Errno, Error, Failure, HeaderStyle,
    wire::{ChunkHeader, Fields, ReplyFlags, ReplyHeader, ReplyType},
};

/// The part of a reply to which the next bytes belong.
#[derive(Debug)]
pub(super) enum State {
    /// The header of a reply, gathered.
    Header,
    /// The fixed fields of a chunk, gathered; a whole error chunk is one of them.
    Fixed {
        cookie: Cookie,
        chunk: ChunkHeader,
    },
    Payload(Run),
    /// Extents, gathered piece by piece; `left` bytes are behind the piece.
    /// The extents before it reach `covered` bytes into the request.
    Extents {
        cookie: Cookie,
        covered: u64,
        left: u64,
        done: bool,
    },
}

/// Payload of a read that is to come: from `next` to `end` in its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) cookie: Cookie,
    pub(super) next: usize,
    pub(super) end: usize,
    /// Whether the reply is complete with it.
    pub(super) done: bool,
}

impl Transmission {
    /// Where the server's next bytes belong.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol before.
    pub fn fill(&mut self) -> Result<Fill<'_>, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        Ok(match self.state {
            State::Payload(Run {
                cookie, next, end, ..
            }) => {
                if self.slots.is_abandoned(cookie) {
                    Fill::Discard(end - next)
                } else {
                    Fill::Payload(Payload {
                        cookie,
                        range: next..end,
                    })
                }
            }
            State::Header | State::Fixed { .. } | State::Extents { .. } => {
                Fill::Control(self.gather.space())
            }
        })
    }

    /// The payload that comes next, if any does: the one that [`fill`](Transmission::fill) would
    /// name.
    #[inline]
    #[must_use]
    pub fn next_payload(&self) -> Option<Payload> {
        match self.state {
            State::Payload(Run {
                cookie, next, end, ..
            }) if self.dead.is_none() && !self.slots.is_abandoned(cookie) => Some(Payload {
                cookie,
                range: next..end,
            }),
            _ => None,
        }
    }

    /// Number of bytes before the payload if the next reply answers this read in one piece. A
    /// driver can read so many, and then straight into the read's buffer, if it finds out by
    /// [`announced`](Transmission::announced) whether it was right. `None` in the middle of any
    /// reply, or if a part of this read has been answered, which would be overwritten.
    #[inline]
    #[must_use]
    pub fn before_payload(&self, cookie: Cookie) -> Option<usize> {
        let cookie = self.slots.find(cookie.as_u64())?;
        let is_new = self.slots.slot(cookie).contents == 0;
        (is_new && self.at_boundary()).then_some(match self.mode {
            HeaderStyle::Simple => 16,
            HeaderStyle::Structured => 20 + 8,
            HeaderStyle::Extended => 32 + 8,
        })
    }

    /// The payload that comes right behind these bytes, which have not been taken in; `None` if
    /// something else does.
    #[must_use]
    pub fn announced(&self, bytes: &[u8]) -> Option<Payload> {
        if !self.at_boundary() {
            return None;
        }
        let mut fields = Fields(bytes);
        let (cookie, at) = match ReplyHeader::take(self.mode, &mut fields)? {
            ReplyHeader::Simple { error: 0, cookie } => (cookie, None),
            ReplyHeader::Chunk(chunk) if chunk.reply == ReplyType::OffsetData => {
                let data = chunk.len.checked_sub(8)?;
                (chunk.cookie, Some((fields.u64()?, data)))
            }
            _ => return None,
        };
        let cookie = self.slots.find(cookie)?;
        let Slot {
            command,
            offset,
            len,
            ..
        } = self.slots.slot(cookie);
        let (start, len) = match at {
            None => (0, *len),
            Some((at, data)) => (at.checked_sub(*offset)?, data),
        };
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        let is_payload = *command == Command::Read && fields.0.is_empty() && start < end;
        is_payload.then_some(Payload {
            cookie,
            range: start..end,
        })
    }

    /// Takes note that the first `n` bytes of the place that [`fill`](Transmission::fill) named
    /// have come.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol, now or before.
    ///
    /// # Panics
    ///
    /// When `n` is larger than that place.
    pub fn filled(&mut self, n: usize) -> Result<Option<Event>, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        let event = self.advance(n);
        if let Err(error) = &event {
            self.dead = Some(*error);
        }
        event
    }

    /// Takes bytes that are already there. Stops at the first event, so it is to be called again
    /// with the unused bytes.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol, now or before.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Fed, Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        let fed = self.take(bytes);
        if let Err(error) = &fed {
            self.dead = Some(*error);
        }
        fed
    }

    /// Whether the next byte starts a reply.
    #[inline]
    pub(super) fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header) && self.gather.is_empty()
    }

    // The path of a data chunk is inlined here, because most bytes take it.
    #[inline(always)]
    fn take(&mut self, bytes: &[u8]) -> Result<Fed, Error> {
        let mut rest = Fields(bytes);
        while !rest.0.is_empty() {
            if let State::Payload(run) = self.state {
                let Run {
                    cookie, next, end, ..
                } = run;
                let n = rest.0.len().min(end - next);
                let wanted = !self.slots.is_abandoned(cookie);
                return Ok(Fed {
                    used: bytes.len() - rest.0.len() + n,
                    payload: wanted.then(|| Payload {
                        cookie,
                        range: next..next + n,
                    }),
                    event: self.payload(run, n)?,
                });
            }
            let event = match self.whole_header(&mut rest)? {
                Some(header) => self.header(header, &mut rest)?,
                None => self.gathered(&mut rest)?,
            };
            if event.is_some() {
                return Ok(Fed {
                    used: bytes.len() - rest.0.len(),
                    payload: None,
                    event,
                });
            }
        }
        Ok(Fed {
            used: bytes.len(),
            payload: None,
            event: None,
        })
    }

    /// Takes a header off the front of `bytes`, if one starts there and all of it is there.
    #[inline(always)]
    fn whole_header(&self, bytes: &mut Fields<'_>) -> Result<Option<ReplyHeader>, Error> {
        if !self.at_boundary() {
            return Ok(None);
        }
        let mut rest = bytes.clone();
        if let Some(header) = ReplyHeader::take(self.mode, &mut rest) {
            *bytes = rest;
            return Ok(Some(header));
        }
        match bytes.clone().u32() {
            Some(magic) => self.header_len(magic).map(|_| None),
            None => Ok(None),
        }
    }

    fn header_len(&self, magic: u32) -> Result<usize, Error> {
        ReplyHeader::len(self.mode, magic).ok_or(Error::ReplyMagic { got: magic })
    }

    /// Takes bytes that have to be gathered.
    fn gathered(&mut self, bytes: &mut Fields<'_>) -> Result<Option<Event>, Error> {
        let space = self.gather.space();
        let n = space.len().min(bytes.0.len());
        let (now, later) = bytes.0.split_at(n);
        space[..n].copy_from_slice(now);
        *bytes = Fields(later);
        self.advance(n)
    }

    fn advance(&mut self, n: usize) -> Result<Option<Event>, Error> {
        if let State::Payload(run) = self.state {
            assert!(
                n <= run.end - run.next,
                "more bytes were filled than were named"
            );
            return self.payload(run, n);
        }
        if !self.gather.filled(n) {
            return Ok(None);
        }
        match self.state {
            State::Header => {
                let mut gathered = Fields(self.gather.bytes());
                if let Some(header) = ReplyHeader::decode(self.mode, gathered.0) {
                    return self.header(header, &mut Fields(&[]));
                }
                let len = gathered.0.len();
                let magic = gathered.u32().unwrap_or_default();
                self.gather.extend(self.header_len(magic)? - len);
                Ok(None)
            }
            State::Fixed { cookie, chunk } => self.fixed(cookie, chunk),
            State::Extents {
                cookie,
                covered,
                left,
                done,
            } => self.extents(cookie, covered, left, done),
            State::Payload(_) => Ok(None),
        }
    }

    /// The next `n` bytes of a payload have come.
    #[inline(always)]
    fn payload(&mut self, run: Run, n: usize) -> Result<Option<Event>, Error> {
        let next = run.next + n;
        if next < run.end {
            self.state = State::Payload(Run { next, ..run });
            return Ok(None);
        }
        self.end_of_chunk(run.cookie, run.done)
    }

    /// A header has come. The bytes `behind` it may be taken, too, as far as they are there.
    #[inline(always)]
    fn header(
        &mut self,
        header: ReplyHeader,
        behind: &mut Fields<'_>,
    ) -> Result<Option<Event>, Error> {
        match header {
            ReplyHeader::Simple { error, cookie } => self.simple(error, self.in_flight_as(cookie)?),
            ReplyHeader::Chunk(chunk) => {
                self.chunk(chunk, self.in_flight_as(chunk.cookie)?, behind)
            }
        }
    }

    #[inline]
    fn in_flight_as(&self, cookie: u64) -> Result<Cookie, Error> {
        self.slots
            .find(cookie)
            .ok_or(Error::UnknownCookie { cookie })
    }

    fn simple(&mut self, error: u32, cookie: Cookie) -> Result<Option<Event>, Error> {
        let chunks = self.mode.has_chunks();
        let slot = self.slots.get(cookie);
        let command = slot.command;
        match (command, error) {
            (Command::Read | Command::BlockStatus, 0) if chunks => {
                Err(Error::SimpleSuccess { command })
            }
            (Command::Read, 0) => {
                self.state = State::Payload(Run {
                    cookie,
                    next: 0,
                    end: buffer_index(slot.len),
                    done: true,
                });
                slot.coverage.clear();
                // One simple reply answers all of the read.
                let _ = slot.coverage.insert(0, slot.len, u32::MAX);
                Ok(None)
            }
            (_, 0) => self.end_of_chunk(cookie, true),
            (Command::Read, _) if chunks && !self.config.tolerance.simple_error_to_read => {
                Err(Error::SimpleError)
            }
            (command, error) => {
                self.tolerated.simple_error_to_read |= command == Command::Read && chunks;
                self.fail(cookie, Failure::new(Errno::from(error)));
                self.end_of_chunk(cookie, true)
            }
        }
    }

    #[inline(always)]
    fn chunk(
        &mut self,
        chunk: ChunkHeader,
        cookie: Cookie,
        behind: &mut Fields<'_>,
    ) -> Result<Option<Event>, Error> {
        let ChunkHeader { reply, len, .. } = chunk;
        let Slot {
            command,
            offset,
            len: requested,
            ..
        } = *self.slots.get(cookie);
        if self.mode == HeaderStyle::Extended && chunk.offset != offset {
            return Err(Error::WrongOffset {
                expected: offset,
                got: chunk.offset,
            });
        }
        let unexpected = Error::UnexpectedChunk { command, reply };
        let bad_length = Error::ChunkLength { reply, len };
        let status = match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => (ReplyType::BlockStatus, 4, 8),
            HeaderStyle::Extended => (ReplyType::BlockStatusExt, 8, 16),
        };
        let fixed = match reply {
            ReplyType::None => {
                if len != 0 {
                    return Err(bad_length);
                }
                if !chunk.flags.contains(ReplyFlags::DONE) {
                    return Err(Error::NoneNotDone);
                }
                return self.end_of_chunk(cookie, true);
            }
            ReplyType::OffsetData | ReplyType::OffsetHole if command != Command::Read => {
                return Err(unexpected);
            }
            ReplyType::OffsetData => {
                let data = len
                    .checked_sub(8)
                    .filter(|data| *data > 0)
                    .ok_or(bad_length)?;
                if data > requested {
                    return Err(Error::ChunkTooLong {
                        reply,
                        len,
                        limit: requested + 8,
                    });
                }
                self.check_advertised(reply, 8, data)?;
                if let Some(offset) = behind.u64() {
                    return self.data(cookie, chunk, offset);
                }
                8
            }
            ReplyType::OffsetHole if len == 12 => 12,
            ReplyType::OffsetHole => return Err(bad_length),
            ReplyType::BlockStatus | ReplyType::BlockStatusExt => {
                let (legal, fixed, each) = status;
                if command != Command::BlockStatus || reply != legal {
                    return Err(unexpected);
                }
                let list = len
                    .checked_sub(fixed)
                    .filter(|list| *list > 0 && list % each == 0);
                let list = list.ok_or(bad_length)?;
                let extents = list / each;
                let most = u64::from(self.config.limits.extents);
                if extents > most {
                    let limit = fixed + each * most;
                    return Err(Error::ChunkTooLong { reply, len, limit });
                }
                self.check_advertised(reply, fixed, list)?;
                fixed
            }
            error if error.is_error() => {
                let least = if error == ReplyType::ErrorOffset {
                    14
                } else {
                    6
                };
                let limit = u64::from(self.config.limits.unknown_error).max(14 + 4096);
                if len < least {
                    return Err(bad_length);
                }
                if len > limit {
                    return Err(Error::ChunkTooLong { reply, len, limit });
                }
                len
            }
            _ => return Err(unexpected),
        };
        self.gather.restart(buffer_index(fixed));
        self.state = State::Fixed { cookie, chunk };
        Ok(None)
    }

    /// Holds a server to the maximum payload that it sent, if it did.
    fn check_advertised(
        &mut self,
        reply: ReplyType,
        fixed: u64,
        variable: u64,
    ) -> Result<(), Error> {
        let advertised = self.info.block_sizes.map(BlockSizes::maximum);
        let limit = fixed + u64::from(advertised.unwrap_or(u32::MAX));
        let len = fixed + variable;
        if len > limit {
            if !self.config.tolerance.oversized_chunk {
                return Err(Error::ChunkTooLong { reply, len, limit });
            }
            self.tolerated.oversized_chunk = true;
        }
        Ok(())
    }
}

/// A length that is limited by [`Limits`](crate::client::Limits) or by a read that a buffer exists
/// for.
pub(super) fn buffer_index(len: u64) -> usize {
    usize::try_from(len).expect("lengths of buffers fit into memory")
}
