//! The transmission phase of a client that looks at everything that a server says.

use super::{
    rule::{Checked, must, should},
    talk::Talk,
    wire::{self, Fields, Request, Style, chunk, command, errno, flag},
};
use nbd_tokio::nbd_proto::wire::{Command, Errno, ReplyType};

/// More than any payload that is asked for here, and the overhead of a chunk.
const LONGEST_PAYLOAD: u64 = (64 << 20) + 16;

/// The most of a chunk that is not its variable part.
const OVERHEAD: u64 = 16;

/// A reply as a whole.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// 0 is success.
    pub(super) error: u32,
    /// Of a read.
    pub(super) data: Vec<u8>,
    /// Of a block status: by context, the lengths and status flags.
    pub(super) extents: Vec<(u32, Vec<(u64, u64)>)>,
    /// Number of chunks with content.
    pub(super) contents: usize,
}

impl Reply {
    pub(super) fn error_name(&self) -> String {
        error_name(self.error)
    }
}

pub(super) fn error_name(error: u32) -> String {
    match error {
        0 => "success".to_owned(),
        error => Errno::from(error).to_string(),
    }
}

#[derive(Debug)]
struct Pending {
    request: Request,
    reply: Reply,
    /// Where content was, in the order in which it came.
    covered: Vec<(u64, u64)>,
}

/// A connection in transmission.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) talk: Talk,
    pub(super) style: Style,
    pub(super) size: u64,
    pub(super) flags: u16,
    /// The maximum payload, if it is advertised.
    pub(super) maximum: u64,
    /// The ids of the selected meta contexts.
    pub(super) contexts: Vec<u32>,
    pending: Vec<Pending>,
    cookies: u64,
}

impl Entered {
    pub(super) const fn new(
        talk: Talk,
        style: Style,
        (size, flags): (u64, u16),
        contexts: Vec<u32>,
    ) -> Self {
        Self {
            talk,
            style,
            size,
            flags,
            maximum: LONGEST_PAYLOAD,
            contexts,
            pending: Vec::new(),
            cookies: 0x6e62_6400,
        }
    }

    /// Sends a request, with a cookie of its own unless it has one.
    pub(super) fn send(&mut self, mut request: Request) -> Checked<u64> {
        if request.cookie == 0 {
            self.cookies += 1;
            request.cookie = self.cookies;
        }
        let cookie = request.cookie;
        self.send_bytes(&request, &request.bytes(self.style))?;
        self.expect(request);
        Ok(cookie)
    }

    /// Sends a request as it is.
    pub(super) fn send_bytes(&mut self, request: &Request, bytes: &[u8]) -> Checked {
        self.talk.send(bytes, request.meaning())
    }

    /// Waits for the reply to a request that was sent otherwise.
    pub(super) fn expect(&mut self, request: Request) {
        self.pending.push(Pending {
            reply: Reply {
                cookie: request.cookie,
                ..Reply::default()
            },
            covered: Vec::new(),
            request,
        });
    }

    /// Sends a request and receives the reply to it, where no other is in flight.
    pub(super) fn call(&mut self, request: Request) -> Checked<Reply> {
        self.send(request)?;
        self.reply()
    }

    /// Reads, which has to succeed.
    pub(super) fn read(&mut self, offset: u64, len: u64) -> Checked<Vec<u8>> {
        let reply = self.call(Request::new(command::READ, offset, len))?;
        if reply.error != 0 {
            return must(format!(
                "expected {len} bytes at {offset}, got {}",
                reply.error_name()
            ));
        }
        Ok(reply.data)
    }

    /// Receives messages until one of the requests in flight has its whole reply.
    pub(super) fn reply(&mut self) -> Checked<Reply> {
        loop {
            let magic = self.talk.take(4, "a reply")?;
            let number = Fields(&magic).u32();
            let done = match (number, self.style) {
                (Some(wire::SIMPLE_REPLY), Style::Simple | Style::Structured) => {
                    self.simple(&magic)?
                }
                (Some(wire::STRUCTURED_REPLY), Style::Structured) => self.chunk(&magic, 4)?,
                (Some(wire::EXTENDED_REPLY), Style::Extended) => self.chunk(&magic, 8)?,
                _ => {
                    self.talk
                        .came(&magic, "no reply of this header style".into());
                    return must(format!(
                        "expected the magic number of a reply of the style {:?} (S-109, S-177)",
                        self.style
                    ));
                }
            };
            if let Some(done) = done {
                return Ok(done);
            }
        }
    }

    fn position(&self, cookie: u64) -> Checked<usize> {
        let found = self
            .pending
            .iter()
            .position(|one| one.request.cookie == cookie);
        found.map_or_else(
            || {
                must(format!(
                    "the cookie {cookie:#x} is of no request in flight (S-143)"
                ))
            },
            Ok,
        )
    }

    fn simple(&mut self, magic: &[u8]) -> Checked<Option<Reply>> {
        let rest = self.talk.take(12, "a simple reply")?;
        let mut fields = Fields(&rest);
        let error = fields.u32().unwrap_or(0);
        let cookie = fields.u64().unwrap_or(0);
        let meaning = format!("simple reply, cookie {cookie:#x}, {}", error_name(error));
        self.talk.came(&[magic, &rest].concat(), meaning);
        let at = self.position(cookie)?;
        let Pending {
            request, mut reply, ..
        } = self.pending.swap_remove(at);
        reply.error = error;
        let what = Command::from(request.command);
        if self.style == Style::Structured {
            if request.command == command::READ {
                return must("a simple reply to NBD_CMD_READ with structured replies (S-175)");
            }
            if request.command == command::BLOCK_STATUS && error == 0 {
                return must("a successful simple reply to NBD_CMD_BLOCK_STATUS (S-215)");
            }
        }
        listed(error)?;
        if request.command == command::READ && error == 0 {
            let len = usize::try_from(request.len.min(LONGEST_PAYLOAD)).unwrap_or(0);
            reply.data = self.talk.take(len, &format!("the data of {what}"))?;
            reply.contents = 1;
            self.talk.came(&reply.data, format!("{len} bytes of data"));
        }
        Ok(Some(reply))
    }

    /// Receives a chunk, whose length has so many bytes.
    fn chunk(&mut self, magic: &[u8], len_bytes: usize) -> Checked<Option<Reply>> {
        let is_extended = len_bytes == 8;
        let rest = self
            .talk
            .take(if is_extended { 28 } else { 16 }, "a chunk")?;
        let mut fields = Fields(&rest);
        let flags = fields.u16().unwrap_or(0);
        let kind = fields.u16().unwrap_or(0);
        let cookie = fields.u64().unwrap_or(0);
        let offset = is_extended.then(|| fields.u64().unwrap_or(0));
        let len = if is_extended {
            fields.u64()
        } else {
            fields.u32().map(u64::from)
        };
        let len = len.unwrap_or(0);
        let name = ReplyType::from(kind);
        let header = [magic, &rest].concat();
        let done = if flags & chunk::DONE == 0 {
            ""
        } else {
            ", done"
        };
        let meaning = format!("{name}, cookie {cookie:#x}, {len} bytes{done}");
        if len > LONGEST_PAYLOAD {
            self.talk.came(&header, meaning);
            return must(format!(
                "expected a chunk of a sane length, got {len} bytes"
            ));
        }
        if len > self.maximum.saturating_add(OVERHEAD) {
            self.talk.came(&header, meaning);
            return must(format!(
                "a chunk of {len} bytes, above the maximum payload {} (S-191)",
                self.maximum
            ));
        }
        let at = self.position(cookie).inspect_err(|_| {
            self.talk.came(&header, meaning.clone());
        })?;
        let payload = self
            .talk
            .take(usize::try_from(len).unwrap_or(0), "the payload of a chunk")?;
        self.talk.came(&[header, payload.clone()].concat(), meaning);
        let Some(pending) = self.pending.get_mut(at) else {
            return Ok(None);
        };
        if offset.is_some_and(|offset| offset != pending.request.offset) {
            return must("the offset of a chunk is not that of its request (S-178)");
        }
        if flags & !chunk::DONE != 0 {
            return must(format!(
                "reply flags {flags:#x}, of which only DONE is defined (S-186)"
            ));
        }
        let is_done = flags & chunk::DONE != 0;
        pending.take(kind, is_done, &payload, self.style, &self.contexts)?;
        if !is_done {
            return Ok(None);
        }
        let pending = self.pending.swap_remove(at);
        pending.finish(self.contexts.len()).map(Some)
    }
}

/// Errors have one of the numbers that the specification lists.
fn listed(error: u32) -> Checked {
    if error == 0 || errno::ALL.contains(&error) {
        return Ok(());
    }
    should(format!(
        "the error {error} is none that the specification lists (S-227)"
    ))
}

impl Pending {
    /// Looks at the payload of a chunk.
    fn take(
        &mut self,
        kind: u16,
        is_done: bool,
        payload: &[u8],
        style: Style,
        contexts: &[u32],
    ) -> Checked {
        let name = ReplyType::from(kind);
        let command = self.request.command;
        let mut fields = Fields(payload);
        match kind {
            chunk::NONE if !payload.is_empty() || !is_done => {
                must("NBD_REPLY_TYPE_NONE has no payload and is the last chunk (S-184)")
            }
            chunk::NONE => Ok(()),
            chunk::DATA | chunk::HOLE if command != command::READ => must(format!(
                "{name} in a reply to {} (C-212)",
                Command::from(command)
            )),
            chunk::DATA => {
                let offset = fields.u64().unwrap_or(0);
                if payload.len() < 9 {
                    return must("NBD_REPLY_TYPE_OFFSET_DATA without data (S-188)");
                }
                self.content(offset, fields.0.len() as u64, fields.0)
            }
            chunk::HOLE => match (payload.len(), fields.u64(), fields.u32()) {
                (12, Some(offset), Some(len)) if len != 0 => self.content(offset, len.into(), &[]),
                _ => must("NBD_REPLY_TYPE_OFFSET_HOLE has 12 bytes and a size above 0 (S-197)"),
            },
            chunk::STATUS | chunk::STATUS_EXT if command != command::BLOCK_STATUS => must(format!(
                "{name} in a reply to {} (C-212)",
                Command::from(command)
            )),
            chunk::STATUS if style == Style::Extended => {
                must("NBD_REPLY_TYPE_BLOCK_STATUS with extended headers (S-205)")
            }
            chunk::STATUS_EXT if style != Style::Extended => {
                must("NBD_REPLY_TYPE_BLOCK_STATUS_EXT without extended headers (S-205)")
            }
            chunk::STATUS | chunk::STATUS_EXT => self.status(kind, fields, contexts),
            _ if kind & 0x8000 == 0 => {
                must(format!("a chunk of an unknown type, {kind:#x} (S-187)"))
            }
            _ => self.error(kind, fields),
        }
    }

    fn content(&mut self, offset: u64, len: u64, data: &[u8]) -> Checked {
        let Request {
            offset: begin,
            len: asked,
            ..
        } = self.request;
        let at = offset.checked_sub(begin);
        let end = at
            .and_then(|at| at.checked_add(len))
            .filter(|end| *end <= asked);
        let (Some(at), Some(end)) = (at, end) else {
            return must(format!(
                "content of {len} bytes at {offset}, outside the request (S-188)"
            ));
        };
        if self
            .covered
            .iter()
            .any(|(from, to)| *from < end && at < *to)
        {
            return must(format!(
                "content at {offset} overlaps what came before (S-188)"
            ));
        }
        self.covered.push((at, end));
        self.reply.contents += 1;
        if self.reply.data.is_empty() {
            let asked = usize::try_from(asked.min(LONGEST_PAYLOAD)).unwrap_or(0);
            self.reply.data = vec![0; asked];
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let place = self
            .reply
            .data
            .get_mut(at..)
            .and_then(|rest| rest.get_mut(..data.len()));
        if let Some(place) = place {
            place.copy_from_slice(data);
        }
        Ok(())
    }

    fn status(&mut self, kind: u16, mut fields: Fields<'_>, contexts: &[u32]) -> Checked {
        let is_extended = kind == chunk::STATUS_EXT;
        let (id, count) = (fields.u32().unwrap_or(0), is_extended.then(|| fields.u32()));
        let each = if is_extended { 16 } else { 8 };
        let found = fields.0.len() / each;
        if found == 0 || !fields.0.len().is_multiple_of(each) {
            return must("a status chunk has one extent or more, and nothing else (S-204)");
        }
        if count.is_some_and(|count| count.map(u64::from) != Some(found as u64)) {
            return must("the number of extents is not the one that the chunk says (S-204)");
        }
        if !contexts.contains(&id) {
            return must(format!("the context {id} was not selected (S-203)"));
        }
        if self.reply.extents.iter().any(|(other, _)| *other == id) {
            return must(format!("two status chunks of the context {id} (S-203)"));
        }
        let mut extents = Vec::with_capacity(found);
        let mut sum = 0_u64;
        for at in 0..found {
            let extent = if is_extended {
                fields.u64().zip(fields.u64())
            } else {
                let pair = fields.u32().zip(fields.u32());
                pair.map(|(len, flags)| (len.into(), flags.into()))
            };
            let (len, flags) = extent.unwrap_or_default();
            if len == 0 {
                return must("an extent of length 0 (S-204)");
            }
            sum = sum.saturating_add(len);
            if at + 1 < found && sum >= self.request.len {
                return must("more extents after those that cover the request (S-207)");
            }
            extents.push((len, flags));
        }
        let asked_for_one = self.request.flags & flag::REQ_ONE != 0;
        if asked_for_one && (found > 1 || sum > self.request.len) {
            return must(format!(
                "{found} extents of {sum} bytes with NBD_CMD_FLAG_REQ_ONE for {} bytes (S-153)",
                self.request.len
            ));
        }
        self.reply.extents.push((id, extents));
        Ok(())
    }

    fn error(&mut self, kind: u16, mut fields: Fields<'_>) -> Checked {
        let error = fields.u32();
        let text = fields.u16().and_then(|len| fields.bytes(len.into()));
        let (Some(error), Some(text)) = (error, text) else {
            return must("an error chunk is shorter than its fields (S-198)");
        };
        if error == 0 {
            return must("an error chunk with the error 0 (S-198)");
        }
        if text.len() > 4096 || std::str::from_utf8(text).is_err() || text.contains(&0) {
            return must("the message of an error chunk is no string (S-198)");
        }
        if kind == chunk::ERROR_OFFSET {
            let at = fields
                .u64()
                .and_then(|at| at.checked_sub(self.request.offset));
            if at.is_none_or(|at| at >= self.request.len.max(1)) {
                return must("the offset of an error is outside the request (S-194)");
            }
        }
        if self.reply.error == 0 {
            self.reply.error = error;
        }
        listed(error)
    }

    /// Looks at the reply as a whole.
    fn finish(self, contexts: usize) -> Checked<Reply> {
        let Self {
            request,
            reply,
            covered,
        } = self;
        if reply.error != 0 {
            return Ok(reply);
        }
        let total: u64 = covered.iter().map(|(from, to)| to - from).sum();
        if request.command == command::READ && total != request.len {
            return must(format!(
                "{total} of {} bytes, and no error (S-188)",
                request.len
            ));
        }
        if request.flags & flag::DF != 0 && reply.contents > 1 {
            return must(format!(
                "{} pieces with NBD_CMD_FLAG_DF (S-196)",
                reply.contents
            ));
        }
        let selected = if request.payload.is_empty() {
            contexts
        } else {
            reply.extents.len()
        };
        if request.command == command::BLOCK_STATUS && reply.extents.len() != selected {
            return must(format!(
                "{} status chunks for {selected} contexts (S-203)",
                reply.extents.len()
            ));
        }
        Ok(reply)
    }
}
