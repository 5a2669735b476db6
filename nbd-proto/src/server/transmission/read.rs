//! Answering a read: at once, or piece by piece with its holes left out.

use super::ticket::{Base, Part, Receipt, Reply, text};
use crate::{
    CommandFlags, Errno,
    frame::{Frame, Header},
    wire::ReplyType,
};
use alloc::borrow::Cow;
use bytes::{Buf, Bytes};

/// Answers a read.
///
/// It can be sent to another thread; the connection is not needed. An answer consumes it.
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct ReadTicket(pub(super) Base);

impl ReadTicket {
    /// Answers with all the data, in one message. The data is neither copied nor looked at.
    ///
    /// # Panics
    ///
    /// When `data` has not the length that was asked for.
    pub fn data<P: Buf>(self, data: P) -> Reply<P> {
        assert_eq!(
            u64::try_from(data.remaining()),
            Ok(self.0.len),
            "a read is answered with as much data as was asked for"
        );
        let (header, receipt) = self.header();
        let frame = Frame::new(header, data);
        Reply { frame, receipt }
    }

    /// The header of the answer with all the data, for a driver that has read the data to where the
    /// header then comes right before it. As many bytes as were asked for have to follow.
    #[inline]
    pub fn header(self) -> (Header, Receipt) {
        let Base {
            mode, offset, len, ..
        } = self.0;
        let header = if mode.has_chunks() {
            let len = usize::try_from(len).expect("a read fits into memory");
            data_header(&self.0, offset, len, true)
        } else {
            self.0.simple(0)
        };
        (header, Receipt(()))
    }

    /// Answers that all of it is a hole, which reads as zeroes, in one short message.
    ///
    /// # Errors
    ///
    /// With simple replies there are no holes, and the ticket comes back.
    pub fn hole(self) -> Result<Reply<Bytes>, Self> {
        let base = self.0;
        match u32::try_from(base.len) {
            Ok(len) if base.mode.has_chunks() => Ok(Reply::new(
                hole_header(&base, base.offset, len, true),
                Bytes::new(),
            )),
            _ => Err(self),
        }
    }

    /// Answers piece by piece.
    ///
    /// # Errors
    ///
    /// With simple replies, and where the client wants the answer in one piece, the ticket comes
    /// back: [`data`](Self::data) and [`hole`](Self::hole) are still possible.
    #[inline]
    pub fn into_sparse(self) -> Result<SparseRead, Self> {
        if self.0.mode.has_chunks() && !self.0.flags.contains(CommandFlags::DF) {
            Ok(SparseRead {
                base: self.0,
                done: 0,
            })
        } else {
            Err(self)
        }
    }

    /// The read failed; see [`Ticket::fail`](super::Ticket::fail).
    pub fn fail(self, errno: Errno, message: impl Into<Cow<'static, str>>) -> Reply<Bytes> {
        self.0.error(errno, text(message.into()), None)
    }

    /// The read failed at `offset` in the export; see [`Ticket::fail_at`](super::Ticket::fail_at).
    pub fn fail_at(
        self,
        errno: Errno,
        offset: u64,
        message: impl Into<Cow<'static, str>>,
    ) -> Reply<Bytes> {
        self.0.error(errno, text(message.into()), Some(offset))
    }
}

/// Answers a read piece by piece, from its start to its end.
///
/// Spec: [Structured reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types).
///
/// Every piece follows the one before. The one that reaches the end of the read is the last
/// message of the reply, so that a reply can neither leave a gap nor go on for ever.
///
/// ```compile_fail,E0382
/// use nbd_proto::server::SparseRead;
///
/// fn overlap(sparse: SparseRead) {
///     let first = sparse.data(&b"abcd"[..]);
///     let second = sparse.data(&b"efgh"[..]);
/// }
/// ```
#[derive(Debug)]
#[must_use = "the client waits for the rest of the answer"]
pub struct SparseRead {
    base: Base,
    /// Bytes that were answered.
    done: u64,
}

impl SparseRead {
    /// Where the next piece starts, in bytes from the start of the export.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.base.offset.saturating_add(self.done)
    }

    /// Number of bytes that are not answered. Never 0.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        self.base.len - self.done
    }

    /// The next bytes are these.
    ///
    /// # Panics
    ///
    /// When there are none, or more than are [missing](Self::missing).
    pub fn data<P: Buf>(self, data: P) -> Part<P, Self> {
        let len = u64::try_from(data.remaining()).unwrap_or(u64::MAX);
        let (last, offset) = self.check(len);
        let header = data_header(&self.base, offset, data.remaining(), last);
        self.part(header, data, len, last)
    }

    /// The next `len` bytes are a hole, which reads as zeroes.
    ///
    /// # Panics
    ///
    /// When `len` is 0 or more than is [missing](Self::missing).
    pub fn hole(self, len: u32) -> Part<Bytes, Self> {
        let (last, offset) = self.check(len.into());
        let header = hole_header(&self.base, offset, len, last);
        self.part(header, Bytes::new(), len.into(), last)
    }

    /// The read failed, even if parts were answered before; see
    /// [`Ticket::fail`](super::Ticket::fail).
    pub fn fail(self, errno: Errno, message: impl Into<Cow<'static, str>>) -> Reply<Bytes> {
        self.base.error(errno, text(message.into()), None)
    }

    /// The read failed at `offset` in the export, and answers for other places hold; see
    /// [`Ticket::fail_at`](super::Ticket::fail_at).
    pub fn fail_at(
        self,
        errno: Errno,
        offset: u64,
        message: impl Into<Cow<'static, str>>,
    ) -> Reply<Bytes> {
        self.base.error(errno, text(message.into()), Some(offset))
    }

    fn check(&self, len: u64) -> (bool, u64) {
        let missing = self.missing();
        assert!(len > 0, "a piece of an answer has at least one byte");
        assert!(len <= missing, "a read is answered up to its end");
        (len == missing, self.offset())
    }

    fn part<P>(mut self, header: Header, payload: P, len: u64, last: bool) -> Part<P, Self> {
        if last {
            return Part::Last(Reply::new(header, payload));
        }
        self.done += len;
        Part::More {
            frame: Frame::new(header, payload),
            rest: self,
        }
    }
}

fn data_header(base: &Base, offset: u64, len: usize, last: bool) -> Header {
    base.chunk(ReplyType::OffsetData, last, len, &offset.to_be_bytes())
}

fn hole_header(base: &Base, offset: u64, len: u32, last: bool) -> Header {
    let mut fields = [0; 12];
    fields[..8].copy_from_slice(&offset.to_be_bytes());
    fields[8..].copy_from_slice(&len.to_be_bytes());
    base.chunk(ReplyType::OffsetHole, last, 0, &fields)
}
