//! Answers to requests, made away from their connection.

use super::agreed::Agreed;
use crate::{
    Command, CommandFlags, Errno, Frame, HeaderStyle,
    frame::Header,
    server::refusal::shorten,
    wire::{ChunkHeader, ErrorChunk, ReplyFlags, ReplyHeader, ReplyType, RequestHeader},
};
use alloc::{borrow::Cow, vec::Vec};
use bytes::{Buf, BufMut, Bytes};
use core::fmt;

/// The longest payload of an error chunk, in bytes: some clients give up the connection when
/// there is more.
const MAX_ERROR: usize = 1000;

/// The longest text in an error chunk, in bytes.
const MAX_TEXT: usize = MAX_ERROR - ErrorChunk::FIXED - 8;

/// A read in one piece up to this length has to work, in bytes.
const DF_MUST_WORK: u64 = 65_536;

/// The last, and mostly the only, message of a reply.
///
/// Send the frame, then give the receipt to [`Transmission::retire`](super::Transmission::retire).
#[must_use = "the client waits for this message"]
pub struct Reply<P> {
    /// The bytes to be sent.
    pub frame: Frame<P>,
    /// The proof that the request is answered.
    pub receipt: Receipt,
}

impl<P> Reply<P> {
    pub(super) const fn new(header: Header, payload: P) -> Self {
        Self {
            frame: Frame::new(header, payload),
            receipt: Receipt(()),
        }
    }
}

impl<P: Buf> fmt::Debug for Reply<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&self.frame).finish()
    }
}

/// The proof that a request is answered, see [`Transmission::retire`](super::Transmission::retire).
#[derive(Debug)]
#[must_use = "the connection accepts no more requests if receipts are lost"]
pub struct Receipt(pub(super) ());

/// One message of a reply that may have several.
#[must_use = "the client waits for this message and those that follow"]
pub enum Part<P, T> {
    /// More are to follow.
    More {
        /// The bytes to be sent. Nothing has to be sent right behind it but whole messages.
        frame: Frame<P>,
        /// Makes the messages that follow.
        rest: T,
    },
    /// It was the last one.
    Last(Reply<P>),
}

impl<P: Buf, T: fmt::Debug> fmt::Debug for Part<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::More { frame, rest } => f
                .debug_struct("More")
                .field("frame", frame)
                .field("rest", rest)
                .finish(),
            Self::Last(reply) => f.debug_tuple("Last").field(reply).finish(),
        }
    }
}

/// The part of a request that its reply needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) mode: HeaderStyle,
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    /// The bytes of the export that it is about.
    pub(super) len: u64,
    /// They are more than the maximum payload.
    pub(super) too_long: bool,
}

impl Base {
    #[inline]
    pub(super) fn new(header: &RequestHeader, agreed: &Agreed) -> Self {
        Self {
            mode: agreed.mode,
            command: header.command,
            flags: header.flags,
            cookie: header.cookie,
            offset: header.offset,
            len: header.len,
            too_long: header.len > u64::from(agreed.max_payload),
        }
    }

    /// The same for other bytes of the export.
    pub(super) fn with_len(self, len: u64, agreed: &Agreed) -> Self {
        Self {
            len,
            too_long: len > u64::from(agreed.max_payload),
            ..self
        }
    }

    /// The header of a chunk with `fixed` bytes of fields behind it and `payload` more bytes.
    ///
    /// The lengths are those of a frame in memory, and small enough for every layout: data is
    /// limited by the maximum payload, status by the number of extents and text by [`MAX_ERROR`].
    pub(super) fn chunk(
        &self,
        reply: ReplyType,
        last: bool,
        payload: usize,
        fields: &[u8],
    ) -> Header {
        let len = u64::try_from(fields.len().saturating_add(payload)).unwrap_or(u64::MAX);
        let chunk = ReplyHeader::Chunk(ChunkHeader {
            flags: if last {
                ReplyFlags::DONE
            } else {
                ReplyFlags::NONE
            },
            reply,
            cookie: self.cookie,
            offset: self.offset,
            len,
        });
        Header::new(|out| {
            chunk.put(self.mode, out);
            out.put_slice(fields);
        })
    }

    #[inline]
    pub(super) fn simple(&self, error: u32) -> Header {
        ReplyHeader::Simple {
            error,
            cookie: self.cookie,
        }
        .encode(self.mode)
    }

    /// Success without data.
    #[inline]
    pub(super) fn success(&self) -> Reply<Bytes> {
        let header = match (self.mode, self.command) {
            // Where chunks were agreed on, a read is never answered otherwise.
            (HeaderStyle::Extended, _) | (HeaderStyle::Structured, Command::Read) => self.none(),
            (HeaderStyle::Simple | HeaderStyle::Structured, _) => self.simple(0),
        };
        Reply::new(header, Bytes::new())
    }

    pub(super) fn none(&self) -> Header {
        self.chunk(ReplyType::None, true, 0, &[])
    }

    /// Failure, in words where there is room for them.
    pub(super) fn error(&self, errno: Errno, text: Bytes, offset: Option<u64>) -> Reply<Bytes> {
        let error = self.allowed(errno).code();
        if self.mode == HeaderStyle::Simple {
            return Reply::new(self.simple(error), Bytes::new());
        }
        let end = self.offset.saturating_add(self.len);
        let offset = offset.filter(|at| (self.offset..end).contains(at));
        let text_len = u16::try_from(text.len()).expect("a text is at most MAX_TEXT bytes long");
        let mut fields = [0; ErrorChunk::FIXED];
        fields[..4].copy_from_slice(&error.to_be_bytes());
        fields[4..].copy_from_slice(&text_len.to_be_bytes());
        let (reply, payload) = match offset {
            None => (ReplyType::Error, text),
            Some(offset) => {
                let mut payload = Vec::with_capacity(text.len() + 8);
                payload.put_slice(&text);
                payload.put_u64(offset);
                (ReplyType::ErrorOffset, payload.into())
            }
        };
        Reply::new(self.chunk(reply, true, payload.len(), &fields), payload)
    }

    /// The error that may be sent in place of this one.
    fn allowed(&self, errno: Errno) -> Errno {
        let too_long = self.too_long;
        let fast = self.flags.contains(CommandFlags::FAST_ZERO);
        let overflow = match self.command {
            Command::Read => {
                too_long || self.flags.contains(CommandFlags::DF) && self.len > DF_MUST_WORK
            }
            Command::Trim | Command::Cache | Command::BlockStatus => too_long,
            Command::WriteZeroes => too_long && !fast,
            Command::Write
            | Command::Disc
            | Command::Flush
            | Command::Resize
            | Command::Other(_) => false,
        };
        let errno = errno.normalized();
        let allowed = match errno {
            Errno::NotSup => self.command == Command::WriteZeroes && fast,
            Errno::Overflow => overflow,
            Errno::Perm | Errno::Io | Errno::NoMem | Errno::Inval => true,
            Errno::NoSpc | Errno::Shutdown | Errno::Other(_) => true,
        };
        if allowed { errno } else { Errno::Inval }
    }
}

/// A text that fits an error chunk.
pub(super) fn text(text: Cow<'static, str>) -> Bytes {
    let len = shorten(&text, MAX_TEXT).len();
    match text {
        Cow::Borrowed(text) => Bytes::from_static(&text.as_bytes()[..len]),
        Cow::Owned(mut text) => {
            text.truncate(len);
            text.into()
        }
    }
}

/// Answers a request whose success has no data.
///
/// It can be sent to another thread; the connection is not needed. An answer consumes it:
///
/// ```compile_fail,E0382
/// use nbd_proto::{Errno, server::Ticket};
///
/// fn twice(ticket: Ticket) {
///     let done = ticket.done();
///     let failed = ticket.fail(Errno::Io, "");
/// }
/// ```
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct Ticket(pub(super) Base);

impl Ticket {
    /// The request was carried out.
    #[inline]
    pub fn done(self) -> Reply<Bytes> {
        self.0.success()
    }

    /// The request failed.
    ///
    /// An [`Errno`] that the specification reserves for other failures goes out as
    /// [`Errno::Inval`]: [`Errno::NotSup`] is for fast zeroes, [`Errno::Overflow`] for requests
    /// that are too long. `message` is for people; it is cut off after some 980 bytes or at a NUL,
    /// and simple replies have no room for it.
    pub fn fail(self, errno: Errno, message: impl Into<Cow<'static, str>>) -> Reply<Bytes> {
        self.0.error(errno, text(message.into()), None)
    }

    /// The request failed at `offset` in the export; the part before that is done. Without chunks,
    /// or when `offset` is not within the request, the client is not sent it.
    pub fn fail_at(
        self,
        errno: Errno,
        offset: u64,
        message: impl Into<Cow<'static, str>>,
    ) -> Reply<Bytes> {
        let offset = (self.0.command != Command::Flush).then_some(offset);
        self.0.error(errno, text(message.into()), offset)
    }
}
