//! A server that answers by its input, in any order.

use super::{End, Ended, negotiation::Connection};
use crate::{
    answer::{Answer, Messages, only},
    delivery::{Piece, Wire},
    input::Input,
};
use bytes::{Buf, BufMut};
use nbd_proto::{
    Errno, Error, HeaderStyle,
    meta::Extent,
    server::{Event, Fill, ReadTicket, Request, StatusTicket, Transmission},
};
use std::collections::BTreeSet;

/// The longest read that is answered with data, in bytes.
const MAX_DATA: u32 = 64 << 10;

impl Connection<'_> {
    pub(super) fn serve(&mut self, mut transmission: Transmission) -> Ended {
        if self.server.shutting_down {
            transmission.shut_down();
        }
        let cookies = cookies(self.wire.left(), transmission.mode());
        let different = BTreeSet::from_iter(&cookies).len() == cookies.len();
        let mut service = Service {
            transmission,
            kept: Vec::new(),
            payload: Vec::new(),
            answered: 0,
            may_reorder: different,
        };
        let end = service.run(self)?;
        // Complete requests are answered, and nothing else.
        assert_eq!(service.answered, cookies.len(), "requests were forgotten");
        Ok(end)
    }
}

struct Service {
    transmission: Transmission,
    kept: Vec<Answer>,
    /// The part of the payload that has come, of the write that is being received.
    payload: Vec<u8>,
    answered: usize,
    may_reorder: bool,
}

impl Service {
    fn run(&mut self, connection: &mut Connection<'_>) -> Ended {
        while let Some(piece) = connection.wire.piece() {
            let event = match self.take(piece, &mut connection.wire) {
                Ok(event) => event,
                Err(error) => {
                    self.is_dead(error);
                    return Err(error);
                }
            };
            let keep = match event {
                None if self.transmission.fill() == Fill::Blocked => 0,
                None => continue,
                Some(Event::Request(request)) => {
                    connection.asked.push(self.describe(&request));
                    let answer = answer(request, &mut connection.decisions);
                    self.kept.push(answer);
                    connection.decisions.below(4)
                }
                Some(Event::Answered(reply)) => {
                    connection.asked.push("answered".into());
                    self.kept.push(only(*reply));
                    connection.decisions.below(4)
                }
                Some(Event::Disconnect) => {
                    self.send(0, connection);
                    assert!(self.transmission.is_finished());
                    assert_eq!(self.transmission.fill(), Fill::Finished);
                    return Ok(End::Disconnected);
                }
            };
            self.send(keep, connection);
        }
        self.send(0, connection);
        assert_eq!(self.transmission.in_flight(), 0);
        Ok(if self.transmission.is_idle() {
            End::Idle
        } else {
            End::Inside
        })
    }

    fn take(&mut self, piece: Piece<'_>, wire: &mut Wire<'_>) -> Result<Option<Event>, Error> {
        let (used, event) = match piece {
            Piece::Fed(bytes) => {
                let fed = self.transmission.feed(bytes)?;
                assert!(fed.used <= bytes.len());
                if let Some(range) = fed.payload {
                    assert_eq!(range.len(), fed.used);
                    self.receive(range.start, &bytes[..fed.used]);
                }
                let stuck = fed.used == 0;
                assert!(!stuck || self.transmission.fill() == Fill::Blocked);
                (fed.used, fed.event)
            }
            Piece::Lent(bytes) => {
                let (n, start) = match self.transmission.fill() {
                    Fill::Control(space) => {
                        let n = space.len().min(bytes.len());
                        space[..n].copy_from_slice(&bytes[..n]);
                        (n, None)
                    }
                    Fill::Payload { range, len } => {
                        assert_eq!(range.end, len);
                        (range.len().min(bytes.len()), Some(range.start))
                    }
                    Fill::Discard(len) => (len.min(bytes.len()), None),
                    Fill::Blocked => return Ok(None),
                    Fill::Finished => panic!("nothing ended it"),
                };
                assert!(n > 0, "no place for the next byte");
                if let Some(start) = start {
                    self.receive(start, &bytes[..n]);
                }
                (n, self.transmission.filled(n)?)
            }
        };
        wire.consume(used);
        Ok(event)
    }

    fn receive(&mut self, start: usize, bytes: &[u8]) {
        if start == 0 {
            self.payload.clear();
        }
        assert_eq!(start, self.payload.len(), "payload leaves a gap");
        self.payload.extend_from_slice(bytes);
    }

    /// A request in words, without the ticket.
    fn describe(&mut self, request: &Request) -> String {
        let words = format!("{request:?}");
        let words = words.split(" ticket").next().unwrap_or_default();
        match request {
            Request::Write { len, .. } => {
                assert_eq!(u32::try_from(self.payload.len()), Ok(*len));
                format!("{words} {:?}", self.payload)
            }
            _ => words.into(),
        }
    }

    /// Sends answers, some message of some of them at a time, until only `keep` are left.
    fn send(&mut self, keep: usize, connection: &mut Connection<'_>) {
        while self.kept.len() > keep {
            let at = if self.may_reorder {
                connection.decisions.below(self.kept.len())
            } else {
                0
            };
            let answer = &mut self.kept[at];
            if let Some(message) = answer.messages.pop_front() {
                connection.wire.out.put_slice(&message);
            }
            if answer.messages.is_empty() {
                let Answer { receipt, .. } = self.kept.remove(at);
                let before = self.transmission.in_flight();
                self.transmission.retire(receipt);
                assert_eq!(self.transmission.in_flight() + 1, before);
                self.answered += 1;
            }
        }
    }

    fn is_dead(&mut self, error: Error) {
        assert!(!error.to_string().is_empty() && !error.rule().is_empty());
        for _ in 0..2 {
            assert_eq!(self.transmission.fill(), Fill::Finished);
            assert_eq!(self.transmission.filled(0).map(drop), Err(error));
            assert_eq!(self.transmission.feed(&[0; 64]).map(drop), Err(error));
        }
    }
}

/// Answers in one of all possible ways.
fn answer(request: Request, decisions: &mut Input<'_>) -> Answer {
    let byte = decisions.byte();
    if byte >= 0xf0 {
        return only(request.fail(errno(decisions), "failed"));
    }
    match request {
        Request::Read {
            offset,
            len,
            ticket,
        } => read(offset, len, ticket, byte, decisions),
        Request::BlockStatus { ticket, .. } => status(ticket, decisions),
        Request::Write { offset, ticket, .. } | Request::Trim { offset, ticket, .. }
            if byte >= 0xe0 =>
        {
            let at = offset.saturating_add(decisions.u16().into());
            only(ticket.fail_at(errno(decisions), at, "failed there"))
        }
        Request::Write { ticket, .. }
        | Request::Flush { ticket }
        | Request::Trim { ticket, .. }
        | Request::Cache { ticket, .. }
        | Request::WriteZeroes { ticket, .. } => only(ticket.done()),
    }
}

fn read(
    offset: u64,
    len: u32,
    mut ticket: ReadTicket,
    byte: u8,
    decisions: &mut Input<'_>,
) -> Answer {
    if byte >= 0xe0 {
        let at = offset.saturating_add(decisions.u16().into());
        return only(ticket.fail_at(Errno::Io, at, "failed there"));
    }
    if byte & 1 == 1 || len > MAX_DATA {
        ticket = match ticket.hole() {
            Ok(reply) => return only(reply),
            Err(ticket) => ticket,
        };
    }
    if len > MAX_DATA {
        return only(ticket.fail(Errno::NoMem, "too much for a test"));
    }
    let data = vec![byte; usize::try_from(len).expect("it is short")];
    if byte & 2 == 0 {
        return only(ticket.data(&data[..]));
    }
    let mut sparse = match ticket.into_sparse() {
        Ok(sparse) => sparse,
        Err(ticket) => return only(ticket.data(&data[..])),
    };
    let mut messages = Messages::default();
    loop {
        let byte = decisions.byte();
        let missing = sparse.missing();
        if byte >= 0xf0 {
            let at = sparse.offset();
            return messages.last(sparse.fail_at(Errno::Io, at, "broke off"));
        }
        let n = piece_len(byte, missing);
        let piece = &data[..usize::try_from(n).expect("it is short")];
        let more = if byte & 1 == 0 {
            messages.part(sparse.data(piece))
        } else {
            messages.part(sparse.hole(n))
        };
        (messages, sparse) = match more {
            Ok(more) => more,
            Err(answer) => return answer,
        };
        assert_eq!(sparse.missing(), missing - u64::from(n));
    }
}

/// Length of the next piece in bytes: at least an eighth of the missing bytes, so that a read ends.
pub(crate) fn piece_len(byte: u8, missing: u64) -> u32 {
    let len = (u64::from(byte) * 16).clamp(missing.div_ceil(8), missing);
    u32::try_from(len).expect("the read is short")
}

fn status(mut ticket: StatusTicket, decisions: &mut Input<'_>) -> Answer {
    let mut messages = Messages::default();
    loop {
        let count = decisions.below(6);
        let mut extents = Vec::new();
        for _ in 0..count {
            let unit = decisions.pick(&[1, 512, 4096, 1 << 33]);
            extents.push(Extent {
                len: unit * u64::from(decisions.byte()),
                status: decisions.byte().into(),
            });
        }
        (messages, ticket) = match messages.part(ticket.extents(extents)) {
            Ok(more) => more,
            Err(answer) => return answer,
        };
    }
}

fn errno(decisions: &mut Input<'_>) -> Errno {
    decisions.pick(&[
        Errno::Io,
        Errno::Perm,
        Errno::NoMem,
        Errno::Inval,
        Errno::NoSpc,
        Errno::Overflow,
        Errno::NotSup,
        Errno::Shutdown,
        Errno::Other(9999),
    ])
}

/// The cookies of all complete requests, found without the code under test.
fn cookies(mut client: &[u8], mode: HeaderStyle) -> Vec<u64> {
    let mut cookies = Vec::new();
    let (magic, header_len) = match mode {
        HeaderStyle::Simple | HeaderStyle::Structured => (0x2560_9513, 28),
        HeaderStyle::Extended => (0x21e4_1c71, 32),
    };
    while client.len() >= header_len {
        let (mut header, rest) = client.split_at(header_len);
        if header.get_u32() != magic {
            break;
        }
        let (flags, command) = (header.get_u16(), header.get_u16());
        let (cookie, _offset) = (header.get_u64(), header.get_u64());
        let extended = mode == HeaderStyle::Extended;
        let len = if extended {
            header.get_u64()
        } else {
            header.get_u32().into()
        };
        // Some clients forget the flag of a write.
        let follows = command == 1 || extended && flags & 0x20 != 0;
        if command == 2 {
            break;
        }
        let payload = if follows { len } else { 0 };
        let Some(rest) = usize::try_from(payload).ok().and_then(|n| rest.get(n..)) else {
            break;
        };
        cookies.push(cookie);
        client = rest;
    }
    cookies
}
