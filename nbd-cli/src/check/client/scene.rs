//! A message of a server that is about to be sent, which a rule may spoil.

use super::disk::SIZE;
use crate::check::wire::{self, Request, Style, chunk, command, option, rep};

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Greeting,
    /// A reply to an option: the option and the type of the reply.
    Option(u32, u32),
    /// The whole reply to a request.
    Reply,
}

/// The action after the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    /// The end of the connection.
    Close,
    /// Any message of the client may come, but only the end may follow it.
    LastWords,
    /// Replies without TLS, although its start was acknowledged.
    StayInClear,
}

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) event: Event,
    /// The request that is replied to.
    pub(super) request: Request,
    pub(super) style: Style,
    /// The right bytes.
    pub(super) bytes: Vec<u8>,
    pub(super) then: Then,
    /// Whether it was spoilt.
    pub(super) is_spoilt: bool,
}

/// Spoils nothing.
pub(super) fn honest(_: &mut Scene) {}

impl Scene {
    pub(super) const fn new(event: Event, style: Style, bytes: Vec<u8>) -> Self {
        Self {
            event,
            request: Request {
                flags: 0,
                command: 0,
                cookie: 0,
                offset: 0,
                len: 0,
                payload: Vec::new(),
            },
            style,
            bytes,
            then: Then::GoOn,
            is_spoilt: false,
        }
    }

    /// The message, if it is this one; it counts as spoilt then.
    pub(super) fn at(&mut self, event: Event) -> Option<&mut Vec<u8>> {
        self.is_spoilt |= self.event == event;
        (self.event == event).then_some(&mut self.bytes)
    }

    /// The reply to NBD_OPT_GO of this type.
    pub(super) fn go(&mut self, kind: u32) -> Option<&mut Vec<u8>> {
        self.at(Event::Option(option::GO, kind))
    }

    /// The reply to any request.
    pub(super) fn any_reply(&mut self) -> Option<&mut Vec<u8>> {
        self.at(Event::Reply)
    }

    /// Whether this is a reply to that command.
    pub(super) fn is_reply_to(&mut self, command: u16) -> bool {
        let is_this = self.event == Event::Reply && self.request.command == command;
        self.is_spoilt |= is_this;
        is_this
    }

    /// The reply to a read.
    pub(super) fn read(&mut self) -> Option<&mut Vec<u8>> {
        self.is_reply_to(command::READ).then_some(&mut self.bytes)
    }

    /// The reply to a read that chunks are made for, if those are used.
    pub(super) fn has_chunks(&mut self) -> bool {
        self.style != Style::Simple && self.is_reply_to(command::READ)
    }

    /// The reply to a block status.
    pub(super) fn has_status(&mut self) -> bool {
        self.is_reply_to(command::BLOCK_STATUS)
    }

    /// Begins the reply anew, with a chunk.
    pub(super) fn chunk(&mut self, flags: u16, kind: u16, payload: &[u8]) {
        self.bytes = self.make(flags, kind, payload);
    }

    /// Adds a chunk.
    pub(super) fn and(&mut self, flags: u16, kind: u16, payload: &[u8]) {
        let more = self.make(flags, kind, payload);
        self.bytes.extend(more);
    }

    fn make(&self, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        make_chunk(self.style, &self.request, (flags, kind), payload)
    }

    /// The offset and data of a part of the read.
    pub(super) fn data(&self, from: u64, len: u64) -> Vec<u8> {
        let mut payload = (self.request.offset + from).to_be_bytes().to_vec();
        payload.extend((0..len).map(|_| 0x5a));
        payload
    }
}

/// A chunk of a reply.
pub(super) fn make_chunk(
    style: Style,
    request: &Request,
    (flags, kind): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let len = payload.len() as u64;
    let mut out = Vec::with_capacity(payload.len() + 32);
    let magic = match style {
        Style::Extended => wire::EXTENDED_REPLY,
        _ => wire::STRUCTURED_REPLY,
    };
    out.extend(magic.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(request.cookie.to_be_bytes());
    if style == Style::Extended {
        out.extend(request.offset.to_be_bytes());
        out.extend(len.to_be_bytes());
    } else {
        let [_, _, _, _, len @ ..] = len.to_be_bytes();
        out.extend(len);
    }
    out.extend(payload);
    out
}

/// A simple reply.
pub(super) fn make_simple(request: &Request, error: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::SIMPLE_REPLY.to_be_bytes().to_vec();
    out.extend(error.to_be_bytes());
    out.extend(request.cookie.to_be_bytes());
    out.extend(data);
    out
}

/// The payload of an error chunk.
pub(super) fn error_payload(error: u32, text: &str) -> Vec<u8> {
    let mut payload = error.to_be_bytes().to_vec();
    payload.extend(u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    payload.extend(text.as_bytes());
    payload
}

/// A reply to a request that fails.
pub(super) fn make_error(style: Style, request: &Request, error: u32) -> Vec<u8> {
    if style == Style::Simple {
        return make_simple(request, error, &[]);
    }
    let payload = error_payload(error, "");
    make_chunk(style, request, (chunk::DONE, chunk::ERROR), &payload)
}

/// A reply to an option.
pub(super) fn make_option_reply(code: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::OPTION_REPLY.to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
    out
}

/// The data of NBD_REP_INFO with NBD_INFO_EXPORT.
pub(super) fn export_info(size: u64, flags: u16) -> Vec<u8> {
    let mut data = wire::kind::EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

/// The data of NBD_REP_INFO with block sizes.
pub(super) fn size_info(sizes: [u32; 3]) -> Vec<u8> {
    let mut data = wire::kind::BLOCK_SIZE.to_be_bytes().to_vec();
    data.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    data
}

/// NBD_REP_INFO to NBD_OPT_GO.
pub(super) fn make_go_info(data: &[u8]) -> Vec<u8> {
    make_option_reply(option::GO, rep::INFO, data)
}

/// The type and the payload of a status chunk.
pub(super) fn status_payload(style: Style, id: u32, extents: &[(u64, u64)]) -> (u16, Vec<u8>) {
    let mut payload = id.to_be_bytes().to_vec();
    if style == Style::Extended {
        payload.extend(u32::try_from(extents.len()).unwrap_or(0).to_be_bytes());
        for (len, status) in extents {
            payload.extend(len.to_be_bytes());
            payload.extend(status.to_be_bytes());
        }
        return (chunk::STATUS_EXT, payload);
    }
    for (len, status) in extents {
        payload.extend(&len.to_be_bytes()[4..]);
        payload.extend(&status.to_be_bytes()[4..]);
    }
    (chunk::STATUS, payload)
}

/// NBD_REP_INFO about the export of this server, with other flags.
pub(super) fn go_export(flags: u16) -> Vec<u8> {
    make_go_info(&export_info(SIZE, flags))
}
