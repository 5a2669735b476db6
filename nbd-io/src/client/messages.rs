//! Messages on the wire, one event of `tracing` each: kinds, flags, lengths and cookies, and no
//! payload.

use nbd_proto::{
    HeaderStyle,
    client::TlsOutcome,
    wire::{
        ClientFlags, OptionCode, OptionReplyCode, OptionReplyHeader, ReplyHeader, RequestHeader,
    },
};
use std::mem;
use tracing::Level;

/// The messages of a stream, which comes in pieces of any length.
#[derive(Debug, Default)]
struct Messages {
    /// The beginning of a header.
    head: Vec<u8>,
    /// Number of bytes behind the header before the next one.
    left: u64,
}

impl Messages {
    /// Reads on. `len` says how long a header is that begins so, `None` if that is no header;
    /// `header` takes a whole one, and says how long its message goes on.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        len: impl Fn(&[u8]) -> Option<usize>,
        mut header: impl FnMut(&[u8]) -> u64,
    ) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed =
                    usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            let Some(whole) = len(&self.head) else {
                // The session ends by it.
                self.left = u64::MAX;
                continue;
            };
            let (more, rest) = bytes.split_at((whole - self.head.len()).min(bytes.len()));
            self.head.extend_from_slice(more);
            bytes = rest;
            if self.head.len() == whole && len(&self.head) == Some(whole) {
                self.left = header(&mem::take(&mut self.head));
            }
        }
    }

    /// So much of a message has gone another way.
    fn pass(&mut self, len: usize) {
        self.left = self.left.saturating_sub(len as u64);
    }
}

/// The answers to options.
#[derive(Debug, Default)]
pub(super) struct OptionReplies(Messages);

impl OptionReplies {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.read(bytes, |OptionReplyHeader { option, reply, len }| {
            tracing::debug!(%option, %reply, bytes = len, "a reply is received");
        });
    }

    fn read(&mut self, bytes: &[u8], mut each: impl FnMut(OptionReplyHeader)) {
        const LEN: usize = OptionReplyHeader::LEN;
        let header = |bytes: &[u8]| {
            let bytes = <&[u8; LEN]>::try_from(bytes).ok();
            let Some(Ok(header)) = bytes.map(OptionReplyHeader::decode) else {
                return u64::MAX;
            };
            each(header);
            header.len.into()
        };
        self.0.feed(bytes, |_| Some(LEN), header);
    }
}

/// The replies to requests.
#[derive(Debug)]
pub(super) struct Replies {
    messages: Messages,
    mode: HeaderStyle,
}

impl Replies {
    /// `None` if nothing would be traced.
    pub(super) fn new(mode: HeaderStyle) -> Option<Box<Self>> {
        tracing::enabled!(Level::TRACE).then(|| Box::new(Self::of(mode)))
    }

    fn of(mode: HeaderStyle) -> Self {
        Self {
            messages: Messages::default(),
            mode,
        }
    }

    /// Everything but the payload of reads.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.read(bytes, |header| match header {
            ReplyHeader::Simple { error, cookie } => {
                tracing::trace!(cookie = %Hex(cookie), error, "a simple reply is received");
            }
            ReplyHeader::Chunk(chunk) => tracing::trace!(
                kind = %chunk.reply,
                flags = ?chunk.flags,
                cookie = %Hex(chunk.cookie),
                bytes = chunk.len,
                "a chunk is received"
            ),
        });
    }

    /// So much payload of a read.
    pub(super) fn pass(&mut self, len: usize) {
        self.messages.pass(len);
    }

    fn read(&mut self, bytes: &[u8], mut each: impl FnMut(ReplyHeader)) {
        let mode = self.mode;
        let len = |head: &[u8]| match head.first_chunk() {
            Some(magic) => ReplyHeader::len(mode, u32::from_be_bytes(*magic)),
            None => Some(4),
        };
        let header = |bytes: &[u8]| {
            let Some(header) = ReplyHeader::decode(mode, bytes) else {
                return u64::MAX;
            };
            each(header);
            match header {
                ReplyHeader::Simple { .. } => 0,
                ReplyHeader::Chunk(chunk) => chunk.len,
            }
        };
        self.messages.feed(bytes, len, header);
    }
}

/// The client's answer to a greeting, which has the server's flags that the client understands.
pub(super) fn flags_sent(answer: &[u8]) {
    if let Some(flags) = answer.first_chunk() {
        let flags = ClientFlags::from_bits(u32::from_be_bytes(*flags));
        tracing::debug!(?flags, "the client's flags are sent");
    }
}

/// The answer to `NBD_OPT_STARTTLS`.
pub(super) fn tls_answered<T>(outcome: &TlsOutcome<T>) {
    match outcome {
        TlsOutcome::Accepted(_) => {
            tracing::debug!(option = %OptionCode::StartTls, reply = %OptionReplyCode::Ack, "a reply is received")
        }
        TlsOutcome::Refused(_, error) => tracing::debug!(option = %OptionCode::StartTls, "{error}"),
    }
}

/// An option that is about to be sent, with all that belongs to it.
pub(super) fn option_sent(option: OptionCode, bytes: usize) {
    tracing::debug!(%option, bytes, "an option is sent");
}

/// A request that is about to be sent.
#[inline]
pub(super) fn request_sent(header: &[u8]) {
    if !tracing::enabled!(Level::TRACE) {
        return;
    }
    let decoded = RequestHeader::decode(HeaderStyle::Structured, header)
        .or_else(|| RequestHeader::decode(HeaderStyle::Extended, header));
    if let Some(request) = decoded {
        tracing::trace!(
            command = %request.command,
            flags = ?request.flags,
            cookie = %Hex(request.cookie),
            offset = request.offset,
            bytes = request.len,
            "a request is sent"
        );
    }
}

/// A number as it is found in a dump of packets.
struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use nbd_proto::wire::{ChunkHeader, ReplyFlags, ReplyType};

    fn chunk(reply: ReplyType, len: u64) -> ReplyHeader {
        ReplyHeader::Chunk(ChunkHeader {
            flags: ReplyFlags::DONE,
            reply,
            cookie: 7,
            offset: 0,
            len,
        })
    }

    #[test]
    fn headers_are_found_in_pieces_of_any_length() {
        let headers = [
            chunk(ReplyType::OffsetData, 8 + 100),
            ReplyHeader::Simple {
                error: 5,
                cookie: 9,
            },
            chunk(ReplyType::BlockStatus, 20),
            chunk(ReplyType::None, 0),
        ];
        // All but the 100 bytes of payload behind the first one.
        let follow = [8, 0, 20, 0];
        let mut wire = Vec::new();
        for (header, follows) in headers.iter().zip(follow) {
            wire.extend_from_slice(header.encode(HeaderStyle::Structured).as_bytes());
            wire.resize(wire.len() + follows, 0xff);
        }
        let payload_at = 28;
        for len in 1..=wire.len() {
            let mut replies = Replies::of(HeaderStyle::Structured);
            let mut found = Vec::new();
            let (first, rest) = wire.split_at(payload_at);
            for piece in first.chunks(len) {
                replies.read(piece, |header| found.push(header));
            }
            replies.pass(100);
            for piece in rest.chunks(len) {
                replies.read(piece, |header| found.push(header));
            }
            assert_eq!(found, headers, "{len}");
        }
    }

    #[test]
    fn replies_to_options_are_found_and_nothing_behind_what_is_none() {
        let mut wire = BytesMut::new();
        let headers =
            [(OptionReplyCode::Server, 5), (OptionReplyCode::Ack, 0)].map(|(reply, len)| {
                OptionReplyHeader {
                    option: OptionCode::List,
                    reply,
                    len,
                }
            });
        for header in headers {
            header.encode(&mut wire);
            wire.resize(wire.len() + header.len as usize, 0);
        }
        wire.extend_from_slice(&[0; 60]);
        for len in 1..=wire.len() {
            let mut replies = OptionReplies::default();
            let mut found = Vec::new();
            for piece in wire.chunks(len) {
                replies.read(piece, |header| found.push(header));
            }
            assert_eq!(found, headers, "{len}");
        }
    }
}
