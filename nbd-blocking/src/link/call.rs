//! A caller's request, with the buffers that it lends.

use super::table::{Caller, Held};
use nbd_io::client::{
    Request,
    engine::{Engine, Outbox, Sink, Submission},
};
use nbd_proto::{Command, CommandFlags, Header, Misuse, client::Cookie};
use std::{ops::Range, time::Duration};

/// A request that is about to be made.
pub(crate) enum Call<'a> {
    /// A read into this part of the caller's buffer.
    Read {
        offset: u64,
        into: Range<usize>,
        flags: CommandFlags,
    },
    /// A read into a buffer that is handed over.
    Fill { offset: u64, buffer: Vec<u8> },
    /// A write of a payload that the caller lends.
    Write {
        offset: u64,
        payload: &'a [u8],
        flags: CommandFlags,
    },
    /// One that borrows nothing.
    Owned(Request),
}

/// A frame that its caller writes by itself: the header and the payload behind it.
type Own<'a> = (Header, &'a [u8]);

impl<'a> Call<'a> {
    #[inline]
    pub(crate) const fn command(&self) -> Command {
        match self {
            Self::Read { .. } | Self::Fill { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Owned(request) => request.command(),
        }
    }

    /// The bytes of the export that it is about.
    pub(crate) fn range(&self) -> Range<u64> {
        let (offset, len) = match self {
            Self::Read { offset, into, .. } => (*offset, into.len()),
            Self::Fill { offset, buffer } => (*offset, buffer.len()),
            Self::Write {
                offset, payload, ..
            } => (*offset, payload.len()),
            Self::Owned(request) => return request.range(),
        };
        offset..offset.saturating_add(len as u64)
    }

    /// Its payload, in either direction, in bytes.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        let len = match self {
            Self::Read { into, .. } => into.len(),
            Self::Fill { buffer, .. } => buffer.len(),
            Self::Write { payload, .. } => payload.len(),
            Self::Owned(request) => return request.weight(),
        };
        len as u64
    }

    /// Whether its frame cannot wait in the outbox, because its payload is the caller's.
    #[inline]
    pub(super) const fn has_own_frame(&self) -> bool {
        matches!(self, Self::Write { .. })
    }

    /// Puts the request into flight, and its frame into the outbox unless the caller is to write it:
    /// one that is the caller's, or that of a read if it is `alone`.
    #[inline(always)]
    pub(super) fn begin(
        self,
        engine: &mut Engine<Vec<u8>, Held, Caller>,
        now: Option<Duration>,
        place: usize,
        alone: bool,
    ) -> (Result<Cookie, Misuse>, Option<Own<'a>>) {
        let command = self.command();
        let submission = |len: usize, sink| Submission {
            command,
            weight: len as u64,
            sink,
        };
        let begun = match self {
            Self::Read {
                offset,
                into,
                flags,
            } => {
                let len = into.len();
                let submission = submission(len, Sink::lent(into.start));
                let mut own = None;
                let begun = engine.submit(now, place, submission, |transmission, outbox| {
                    let read = transmission.read(offset, len as u64, flags);
                    if !alone {
                        return outbox.push_bare(read);
                    }
                    let (cookie, frame) = read?;
                    own = Some(Outbox::pass_by(frame));
                    Ok(cookie)
                });
                return (begun, own);
            }
            Self::Fill { offset, buffer } => {
                let len = buffer.len();
                let submission = submission(len, Sink::Owned(buffer));
                engine.submit(now, place, submission, |transmission, outbox| {
                    outbox.push_bare(transmission.read(offset, len as u64, CommandFlags::NONE))
                })
            }
            Self::Write {
                offset,
                payload,
                flags,
            } => {
                let mut own = None;
                let submission = submission(payload.len(), Sink::None);
                let begun = engine.submit(now, place, submission, |transmission, _| {
                    let (cookie, frame) = transmission.write(offset, payload, flags)?;
                    own = Some(Outbox::pass_by(frame));
                    Ok(cookie)
                });
                return (begun, own);
            }
            Self::Owned(request) => {
                let submission = Submission {
                    command,
                    weight: request.weight(),
                    sink: Sink::None,
                };
                engine.submit(now, place, submission, |transmission, outbox| {
                    request.start(transmission, outbox)
                })
            }
        };
        (begun, None)
    }
}
