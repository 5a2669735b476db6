//! A client with requests in flight.

use super::requests::Ask;
use crate::delivery::{MAX_SPACE, Piece, Wire};
use nbd_proto::{
    Bare, Command, CommandFlags, Error, Misuse,
    client::{Cookie, Event, Fill, Outcome, Payload, Transmission, WholeReply},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hasher},
};

/// A transmission, and a driver's record of its requests.
pub(super) struct Session {
    transmission: Transmission,
    in_flight: BTreeMap<Cookie, Request>,
    to_send: VecDeque<Ask>,
    sent: usize,
    /// Every cookie that was ever in flight.
    cookies: BTreeSet<Cookie>,
    log: Vec<String>,
}

struct Request {
    /// Its number.
    index: usize,
    ask: Ask,
    /// Of a read.
    buffer: Vec<u8>,
    /// Per byte of the buffer, whether it has come.
    come: Vec<bool>,
}

impl Session {
    /// Sends as many requests as the limits allow; the others follow when there is room.
    pub(super) fn new(transmission: Transmission, asks: &[Ask]) -> Self {
        let mut session = Self {
            transmission,
            in_flight: BTreeMap::new(),
            to_send: asks.iter().copied().collect(),
            sent: 0,
            cookies: BTreeSet::new(),
            log: Vec::new(),
        };
        session.send();
        session
    }

    /// The cookies of requests in flight, in the order in which they were sent.
    pub(super) fn cookies(&self) -> Vec<(Cookie, Ask)> {
        let mut all: Vec<_> = self.in_flight.iter().collect();
        all.sort_by_key(|(_, request)| request.index);
        all.into_iter()
            .map(|(c, request)| (*c, request.ask))
            .collect()
    }

    /// The outcomes of all requests, in the order of completion.
    pub(super) fn into_log(self) -> Vec<String> {
        self.log
    }

    /// Takes all of the server's bytes.
    pub(super) fn run(&mut self, wire: &mut Wire<'_>) -> Result<(), Error> {
        while let Some(piece) = wire.piece() {
            match self.take(piece, wire) {
                Ok(None) => {}
                Ok(Some(event)) => self.event(event),
                Err(error) => {
                    self.is_dead(error);
                    return Err(error);
                }
            }
            assert_eq!(self.transmission.in_flight(), self.in_flight.len());
        }
        self.lends()?;
        if self.in_flight.is_empty() {
            let _: Result<Bare, Misuse> = self.transmission.disconnect();
        }
        assert!(self.in_flight.is_empty() || !self.transmission.may_end());
        // After an error it depends on the delivery which of the last bytes are in place.
        for request in self.in_flight.values() {
            let Request { index, buffer, .. } = request;
            self.log
                .push(format!("#{index} in flight {:x}", digest(buffer)));
        }
        Ok(())
    }

    fn send(&mut self) {
        while self.transmission.has_room()
            && let Some(ask) = self.to_send.pop_front()
        {
            let index = self.sent;
            self.sent += 1;
            let cookie = match self.command(ask) {
                Ok(cookie) => cookie,
                Err(misuse) => {
                    self.log.push(format!("#{index} {misuse}"));
                    continue;
                }
            };
            let len = match ask.command {
                Command::Read => usize::try_from(ask.len).expect("reads are short"),
                _ => 0,
            };
            if ask.abandoned {
                self.transmission.abandon(cookie);
            }
            let request = Request {
                index,
                ask,
                buffer: vec![0xaa; len],
                come: vec![false; len],
            };
            // C-168
            self.in_flight.insert(cookie, request);
            assert!(self.cookies.insert(cookie), "{cookie:?} comes twice");
            let slots = self.in_flight.keys().map(|cookie| cookie.slot());
            let different: BTreeSet<_> = slots.collect();
            assert_eq!(different.len(), self.in_flight.len());
        }
    }

    fn command(&mut self, ask: Ask) -> Result<Cookie, Misuse> {
        let Ask {
            flags, offset, len, ..
        } = ask;
        let t = &mut self.transmission;
        Ok(match ask.command {
            Command::Read => t.read(offset, len, flags)?.0,
            Command::Write => {
                let payload = vec![7; usize::try_from(len).expect("writes are short")];
                t.write(offset, &payload[..], flags)?.0
            }
            Command::Flush => t.flush()?.0,
            Command::Trim => t.trim(offset, len, flags)?.0,
            Command::Cache => t.cache(offset, len)?.0,
            Command::WriteZeroes => t.write_zeroes(offset, len, flags)?.0,
            _ if ask.filtered => {
                let ids: Vec<_> = t.contexts().iter().take(1).map(|c| c.id).collect();
                t.block_status_of(&ids, offset, len, flags)?.0
            }
            _ => t.block_status(offset, len, flags)?.0,
        })
    }

    fn take(&mut self, piece: Piece<'_>, wire: &mut Wire<'_>) -> Result<Option<Event>, Error> {
        match piece {
            Piece::Fed(bytes) => {
                // Either way, so that both are seen to do the same.
                if bytes.len() % 2 == 0
                    && let Some(reply) = self.transmission.whole_reply(bytes, bytes.len(), None)
                {
                    return Ok(Some(self.whole_reply(reply, bytes, wire)));
                }
                let fed = self.transmission.feed(bytes)?;
                assert!((1..=bytes.len()).contains(&fed.used), "{fed:?}");
                if let Some(payload) = fed.payload {
                    self.place(&payload, &bytes[fed.used - payload.range.len()..fed.used]);
                }
                wire.consume(fed.used);
                Ok(fed.event)
            }
            Piece::Lent(bytes) => {
                let n = self.lends()?.min(bytes.len());
                match self.transmission.fill()? {
                    Fill::Control(space) => space[..n].copy_from_slice(&bytes[..n]),
                    Fill::Discard(_) => {}
                    Fill::Payload(Payload { cookie, range }) => {
                        let range = range.start..range.start + n;
                        self.place(&Payload { cookie, range }, &bytes[..n]);
                    }
                }
                wire.consume(n);
                self.transmission.filled(n)
            }
        }
    }

    fn whole_reply(&mut self, reply: WholeReply, bytes: &[u8], wire: &mut Wire<'_>) -> Event {
        let WholeReply {
            cookie,
            header,
            payload,
        } = reply;
        if payload > 0 {
            let range = 0..payload;
            let bytes = &bytes[header..header + payload];
            self.place(&Payload { cookie, range }, bytes);
        }
        wire.consume(header + payload);
        let outcome = Outcome::Done;
        Event::Complete { cookie, outcome }
    }

    /// The number of bytes that have a place. Asking changes nothing.
    fn lends(&mut self) -> Result<usize, Error> {
        let n = match self.transmission.fill()? {
            Fill::Control(space) => {
                assert!(space.len() <= MAX_SPACE);
                space.len()
            }
            Fill::Payload(payload) => payload.range.len(),
            Fill::Discard(n) => n,
        };
        assert!(n > 0, "no place for the next byte");
        Ok(n)
    }

    fn place(&mut self, payload: &Payload, bytes: &[u8]) {
        assert!(!payload.range.is_empty());
        let request = self.in_flight.get_mut(&payload.cookie);
        let request = request.expect("only requests in flight have payload");
        assert!(!request.ask.abandoned, "it is abandoned");
        assert_eq!(request.ask.command, Command::Read);
        request.buffer[payload.range.clone()].copy_from_slice(bytes);
        for come in &mut request.come[payload.range.clone()] {
            assert!(!*come, "a byte came twice");
            *come = true;
        }
    }

    fn event(&mut self, event: Event) {
        let (cookie, outcome) = match event {
            Event::Hole { payload, done } => {
                self.place(&payload, &vec![0; payload.range.len()]);
                if !done {
                    return;
                }
                (payload.cookie, Outcome::Done)
            }
            Event::Complete { cookie, outcome } => (cookie, outcome),
        };
        let request = self.in_flight.remove(&cookie);
        // H-040
        let request = request.expect("only requests in flight are completed, and once");
        let Request {
            index, ask, buffer, ..
        } = &request;
        match &outcome {
            Outcome::Done => {
                assert_ne!(ask.command, Command::BlockStatus);
                let all = request.come.iter().all(|come| *come);
                assert!(all || ask.abandoned, "bytes of #{index} are missing");
            }
            Outcome::Extents(contexts) => {
                assert_eq!(ask.command, Command::BlockStatus);
                let end = self.transmission.export().size - ask.offset;
                let one = ask.flags.contains(CommandFlags::REQ_ONE);
                for context in contexts {
                    let sum: u64 = context.extents.iter().map(|extent| extent.len).sum();
                    assert!(sum <= if one { ask.len } else { end });
                    assert!(context.extents.iter().all(|extent| extent.len > 0));
                    assert!(!one || context.extents.len() == 1);
                    assert!(!context.extents.is_empty());
                }
                let ids: BTreeSet<_> = contexts.iter().map(|context| context.id).collect();
                assert_eq!(ids.len(), contexts.len());
            }
            Outcome::Failed(failure) => {
                let inside = |at: u64| at >= ask.offset && at - ask.offset < ask.len;
                assert!(failure.offset.is_none_or(inside), "{failure:?}");
            }
        }
        self.log
            .push(format!("#{index} {outcome:?} {:x}", digest(buffer)));
        self.send();
    }

    /// All calls fail, and repeat the error.
    fn is_dead(&mut self, error: Error) {
        assert!(!error.to_string().is_empty() && !error.rule().is_empty());
        let t = &mut self.transmission;
        assert_eq!(t.error(), Some(error));
        for _ in 0..2 {
            assert_eq!(t.fill(), Err(error));
            assert_eq!(t.filled(0), Err(error));
            assert_eq!(t.feed(&[0; 64]), Err(error));
        }
        let dead = Err(Misuse::Dead(error));
        assert_eq!(t.read(0, 512, CommandFlags::NONE).map(drop), dead);
        assert_eq!(t.flush().map(drop), dead);
        assert_eq!(t.disconnect().map(|_: Bare| ()), dead);
        assert!(!t.may_end());
    }
}

/// Stands for the contents of a buffer, which can be long.
fn digest(buffer: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(buffer);
    hasher.finish()
}
