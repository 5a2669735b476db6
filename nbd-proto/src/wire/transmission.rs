//! Messages of the transmission phase.

use super::{Command, CommandFlags, Fields, ReplyFlags, ReplyType, magic};
use crate::{MAX_STRING, frame::Header};
use bytes::BufMut;

/// The longest header that either side sends at once: an extended chunk header and the offset and
/// length of a hole.
pub const MAX_HEADER: usize = 44;

/// The headers that a connection uses, fixed when transmission starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeaderStyle {
    /// Compact requests, simple replies only.
    #[default]
    Simple,
    /// Compact requests, simple replies and chunks.
    Structured,
    /// Extended requests and extended chunks only.
    Extended,
}

impl HeaderStyle {
    /// Length of a request's header in bytes.
    #[must_use]
    pub const fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }

    /// Whether replies can be made of chunks.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// A request without its payload.
///
/// Spec: [Request message](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-message).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Flags of the command.
    pub flags: CommandFlags,
    /// The command.
    pub command: Command,
    /// The client's number for the request, echoed in every reply.
    pub cookie: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes: of the export, or of payload with [`CommandFlags::PAYLOAD_LEN`].
    pub len: u64,
}

impl RequestHeader {
    /// The header in the layout of `mode`. A compact header keeps the lower 32 bits of the length.
    #[must_use]
    #[inline]
    pub fn encode(&self, mode: HeaderStyle) -> Header {
        Header::new(|out| {
            out.put_u32(match mode {
                HeaderStyle::Simple | HeaderStyle::Structured => magic::REQUEST,
                HeaderStyle::Extended => magic::EXTENDED_REQUEST,
            });
            out.put_u16(self.flags.bits());
            out.put_u16(self.command.code());
            out.put_u64(self.cookie);
            out.put_u64(self.offset);
            match mode {
                HeaderStyle::Simple | HeaderStyle::Structured => {
                    out.put_slice(&self.len.to_be_bytes()[4..]);
                }
                HeaderStyle::Extended => out.put_u64(self.len),
            }
        })
    }

    /// Reads a header of [`HeaderStyle::request_len`] bytes; `None` when the magic number is not the
    /// one of `mode` or bytes are missing.
    #[must_use]
    #[inline]
    pub fn decode(mode: HeaderStyle, bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let flags = CommandFlags::from_bits(fields.u16()?);
        let command = fields.u16()?.into();
        let cookie = fields.u64()?;
        let offset = fields.u64()?;
        let len = match (mode, magic) {
            (HeaderStyle::Simple | HeaderStyle::Structured, magic::REQUEST) => fields.u32()?.into(),
            (HeaderStyle::Extended, magic::EXTENDED_REQUEST) => fields.u64()?,
            _ => return None,
        };
        Some(Self {
            flags,
            command,
            cookie,
            offset,
            len,
        })
    }
}

/// The header of a reply or of a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// Spec: [Simple reply message](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#simple-reply-message).
    Simple {
        /// 0 for success.
        error: u32,
        /// The request that is answered.
        cookie: u64,
    },
    /// One chunk of a structured or extended reply.
    Chunk(ChunkHeader),
}

/// The header of a chunk.
///
/// Spec: [Structured reply chunk message](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-chunk-message).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last one.
    pub flags: ReplyFlags,
    /// Its kind.
    pub reply: ReplyType,
    /// The request that is answered.
    pub cookie: u64,
    /// The offset of the request; on the wire only with extended headers.
    pub offset: u64,
    /// Length of the chunk's payload in bytes.
    pub len: u64,
}

impl ReplyHeader {
    /// Length in bytes of a header that starts with this magic number; `None` when replies in
    /// `mode` cannot start with it.
    #[must_use]
    pub const fn len(mode: HeaderStyle, magic: u32) -> Option<usize> {
        match (mode, magic) {
            (HeaderStyle::Simple | HeaderStyle::Structured, magic::SIMPLE_REPLY) => Some(16),
            (HeaderStyle::Structured, magic::STRUCTURED_REPLY) => Some(20),
            (HeaderStyle::Extended, magic::EXTENDED_REPLY) => Some(32),
            _ => None,
        }
    }

    /// The header in the layout of `mode`. A chunk of a structured reply keeps the lower 32 bits
    /// of its length, and cannot be encoded in [`HeaderStyle::Simple`], which has none.
    #[must_use]
    #[inline]
    pub fn encode(&self, mode: HeaderStyle) -> Header {
        Header::new(|out| self.put(mode, out))
    }

    #[inline]
    pub(crate) fn put(&self, mode: HeaderStyle, out: &mut impl BufMut) {
        match *self {
            Self::Simple { error, cookie } => {
                out.put_u32(magic::SIMPLE_REPLY);
                out.put_u32(error);
                out.put_u64(cookie);
            }
            Self::Chunk(chunk) => {
                let extended = matches!(mode, HeaderStyle::Extended);
                out.put_u32(if extended {
                    magic::EXTENDED_REPLY
                } else {
                    magic::STRUCTURED_REPLY
                });
                out.put_u16(chunk.flags.bits());
                out.put_u16(chunk.reply.code());
                out.put_u64(chunk.cookie);
                if extended {
                    out.put_u64(chunk.offset);
                    out.put_u64(chunk.len);
                } else {
                    out.put_slice(&chunk.len.to_be_bytes()[4..]);
                }
            }
        }
    }

    /// Reads a header of [`ReplyHeader::len`] bytes; `None` when it is not one of `mode`.
    #[must_use]
    pub fn decode(mode: HeaderStyle, bytes: &[u8]) -> Option<Self> {
        Self::take(mode, &mut Fields(bytes))
    }

    /// Reads a header off the front of bytes.
    #[inline(always)]
    pub(crate) fn take(mode: HeaderStyle, fields: &mut Fields<'_>) -> Option<Self> {
        match (mode, fields.u32()?) {
            (HeaderStyle::Simple | HeaderStyle::Structured, magic::SIMPLE_REPLY) => {
                Some(Self::Simple {
                    error: fields.u32()?,
                    cookie: fields.u64()?,
                })
            }
            (HeaderStyle::Structured, magic::STRUCTURED_REPLY)
            | (HeaderStyle::Extended, magic::EXTENDED_REPLY) => {
                let extended = matches!(mode, HeaderStyle::Extended);
                Some(Self::Chunk(ChunkHeader {
                    flags: ReplyFlags::from_bits(fields.u16()?),
                    reply: fields.u16()?.into(),
                    cookie: fields.u64()?,
                    offset: if extended { fields.u64()? } else { 0 },
                    len: if extended {
                        fields.u64()?
                    } else {
                        fields.u32()?.into()
                    },
                }))
            }
            _ => None,
        }
    }
}

/// One extent of a `BLOCK_STATUS` or `BLOCK_STATUS_EXT` chunk.
///
/// Spec: [Structured reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Length in bytes; never 0.
    pub len: u64,
    /// Its status in the context.
    pub status: u64,
}

impl Descriptor {
    /// Length on the wire in bytes.
    #[must_use]
    pub const fn wire_len(mode: HeaderStyle) -> usize {
        match mode {
            HeaderStyle::Simple | HeaderStyle::Structured => 8,
            HeaderStyle::Extended => 16,
        }
    }

    /// Appends the descriptor; a compact one keeps the lower 32 bits of its fields.
    pub fn encode(&self, mode: HeaderStyle, out: &mut impl BufMut) {
        match mode {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                out.put_slice(&self.len.to_be_bytes()[4..]);
                out.put_slice(&self.status.to_be_bytes()[4..]);
            }
            HeaderStyle::Extended => {
                out.put_u64(self.len);
                out.put_u64(self.status);
            }
        }
    }

    /// Reads a descriptor of [`Descriptor::wire_len`] bytes; `None` when bytes are missing.
    #[must_use]
    pub fn decode(mode: HeaderStyle, bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(match mode {
            HeaderStyle::Simple | HeaderStyle::Structured => Self {
                len: fields.u32()?.into(),
                status: fields.u32()?.into(),
            },
            HeaderStyle::Extended => Self {
                len: fields.u64()?,
                status: fields.u64()?,
            },
        })
    }
}

/// The payload of an `ERROR` or `ERROR_OFFSET` chunk.
///
/// Spec: [Structured reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types).
///
/// The message comes before the offset, in chunks of either type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorChunk<'a> {
    /// The error's number; never 0.
    pub error: u32,
    /// Text for people, without a terminator.
    pub message: &'a [u8],
    /// Where it happened, in `ERROR_OFFSET`.
    pub offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// Bytes before the message: 4 (error) + 2 (message length).
    pub const FIXED: usize = 6;

    /// Length of the payload in bytes.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        Self::FIXED + self.cut().len() + if self.offset.is_some() { 8 } else { 0 }
    }

    /// Appends the payload. A message longer than [`MAX_STRING`] is cut off there.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.error);
        let message = self.cut();
        out.put_u16(u16::try_from(message.len()).expect("MAX_STRING is 4096"));
        out.put_slice(message);
        if let Some(offset) = self.offset {
            out.put_u64(offset);
        }
    }

    fn cut(&self) -> &'a [u8] {
        &self.message[..self.message.len().min(MAX_STRING)]
    }

    /// Reads a payload whose chunk is of type `reply`; `None` when its message does not fit.
    /// Bytes behind the known fields are left alone.
    #[must_use]
    pub fn decode(reply: ReplyType, payload: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let error = fields.u32()?;
        let len = usize::from(fields.u16()?);
        let message = fields.bytes(len)?;
        let offset = match reply {
            ReplyType::ErrorOffset => Some(fields.u64()?),
            _ => None,
        };
        Some(Self {
            error,
            message,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_message_is_cut_off_at_the_longest_legal_string() {
        // B-001
        for offset in [None, Some(7)] {
            for len in [0, 4096, 4097, 70_000] {
                let message = &[b'x'; 70_000][..len];
                let chunk = ErrorChunk {
                    error: 5,
                    message,
                    offset,
                };
                let mut out = Vec::new();
                chunk.encode(&mut out);
                assert_eq!(out.len(), chunk.wire_len());
                let reply = match offset {
                    None => ReplyType::Error,
                    Some(_) => ReplyType::ErrorOffset,
                };
                let decoded = ErrorChunk::decode(reply, &out).unwrap();
                assert_eq!(decoded.message.len(), len.min(4096));
                assert_eq!(decoded.offset, offset);
            }
        }
    }
}

/// The payload of a block status request that asks for some contexts only.
///
/// Part of the extended headers extension; the length in the request's header is that of this
/// payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatusFilter<'a> {
    /// Length in bytes of the part of the export that is asked for.
    pub len: u64,
    /// The contexts' numbers, four bytes each.
    ids: &'a [u8],
}

impl<'a> BlockStatusFilter<'a> {
    /// Bytes before the contexts' numbers: 8 (length).
    pub const FIXED: usize = 8;

    /// Appends the payload.
    pub fn encode(len: u64, ids: &[u32], out: &mut impl BufMut) {
        out.put_u64(len);
        for id in ids {
            out.put_u32(*id);
        }
    }

    /// Reads a payload; `None` unless it has a length and at least one whole number.
    #[must_use]
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let len = fields.u64()?;
        let whole = !fields.0.is_empty() && fields.0.len() % 4 == 0;
        whole.then_some(Self { len, ids: fields.0 })
    }

    /// The contexts' numbers, as they came.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.ids
            .chunks_exact(4)
            .map(|id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
    }
}
