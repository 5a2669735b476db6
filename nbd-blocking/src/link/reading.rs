//! Taking the baton: reading for everybody.

use super::{
    Link, is_past,
    table::{Done, Entry, NOBODY, Sink, State, Until},
    wait_until,
};
use crate::{Error, Lost};
use nbd_proto::{
    Failure,
    client::{Cookie, Event, Fill, Outcome, Payload},
};
use std::{
    io::{self, IoSliceMut},
    mem,
    sync::MutexGuard,
    time::Instant,
};

/// What one read from the stream takes in beside payload that goes straight to its place, in bytes.
const INBOX: usize = 256 << 10;

/// Payload of at least this length that has not come yet is read straight to its place, in bytes.
pub(super) const DIRECT: usize = 16 << 10;

/// Reads of at least this length are kept out of the inbox altogether, in bytes. For shorter ones
/// it costs less to copy them than to ask the system for each.
pub(super) const LARGE: usize = 128 << 10;

/// What is taken in beside the payload of a large read, or before it: the header of what comes
/// next, and not much of a next payload, which would have to be copied.
const BESIDE: usize = 4 << 10;

/// Bytes that came and were not looked at.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; INBOX],
            start: 0,
            end: 0,
        }
    }
}

/// Why a reader stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It has what it reads for, or the connection is over.
    Served,
    /// The rest of a payload is for another caller's buffer.
    HandOver(usize),
    /// Nothing came in time.
    Quiet,
}

impl Link {
    /// Does what brings the connection forward: reads, if the baton is free, or else waits for
    /// whoever reads. Returns when something may have changed for this caller.
    pub(super) fn turn<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        dest: &mut [u8],
        until: Until,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        if !state.outbox.is_empty() && !state.writing {
            let limit = deadline.filter(|_| matches!(until, Until::Idle | Until::Ended));
            self.write(state, place, dest, &[], &[], limit)?;
            return Ok(self.lock());
        }
        let deadline = deadline.or_else(|| self.timeout.and_then(|_| state.due(place)));
        let silent = !state.writing && state.outbox.is_empty();
        let may_read = (silent || !self.stream.is_half_duplex())
            && state.reader.is_none_or(|reader| reader == place);
        if may_read && let Some(inbox) = state.inbox.take() {
            (state, _) = self.read(state, inbox, place, dest, until, deadline);
        } else if until != Until::Dry {
            let wake = state.callers[place].wake.clone();
            let for_room = usize::from(until == Until::Room);
            let for_others = usize::from(matches!(until, Until::Answered(_)));
            state.callers[place].waits = Some(until);
            state.wait_for_room += for_room;
            state.wait_for_others += for_others;
            state = wait_until(&wake, state, deadline);
            if state.callers[place].waits.take() == Some(Until::Room) {
                state.wait_for_room -= 1;
            }
            state.wait_for_others -= for_others;
        }
        if self.timeout.is_some() {
            self.expire(&mut state, place);
        }
        Ok(state)
    }

    /// Reads for everybody; then puts the inbox back and passes the baton.
    pub(super) fn read<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut inbox: Inbox,
        place: usize,
        dest: &mut [u8],
        until: Until,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, State>, Stop) {
        state.reader = None;
        let stop = loop {
            if let Err(lost) = state.consume(&mut inbox, place, dest) {
                state.lose(lost);
                self.stream.close();
                break Stop::Served;
            }
            if state.lost.is_some() || state.serves(until, place) {
                break Stop::Served;
            }
            if until != Until::Dry && is_past(deadline) {
                // Others may be served for ever while this caller is not.
                break Stop::Quiet;
            }
            let target = match state.target(place) {
                Ok(target) => target,
                Err(stop) => break stop,
            };
            let (owned, range) = match target {
                None => (None, 0..0),
                Some((cookie, range)) => match &mut state.entries[cookie.slot()].sink {
                    Sink::Owned(buffer) => (Some((cookie, mem::take(buffer))), range),
                    Sink::Borrowed { .. } | Sink::None => (None, range),
                },
            };
            let staged = if state.large > 0 { BESIDE } else { INBOX };
            drop(state);
            let result = {
                let (n, owned) = match owned {
                    Some((cookie, mut buffer)) => {
                        let n = self.receive(
                            &mut buffer[range.clone()],
                            &mut inbox.bytes[..staged],
                            until,
                            deadline,
                        );
                        (n, Some((cookie, buffer)))
                    }
                    None => (
                        self.receive(
                            &mut dest[range.clone()],
                            &mut inbox.bytes[..staged],
                            until,
                            deadline,
                        ),
                        None,
                    ),
                };
                state = self.lock();
                if let Some((cookie, buffer)) = owned {
                    // Unless the request was abandoned meanwhile.
                    let Entry {
                        cookie: current,
                        sink,
                        ..
                    } = &mut state.entries[cookie.slot()];
                    if *current == Some(cookie) && matches!(sink, Sink::Owned(_)) {
                        *sink = Sink::Owned(buffer);
                    }
                }
                n
            };
            match result {
                Ok(0) => {
                    let lost = if state.goodbye {
                        Lost::Disconnected
                    } else {
                        Lost::Closed
                    };
                    state.lose(lost);
                    self.stream.close();
                    break Stop::Served;
                }
                Ok(n) => {
                    let direct = n.min(range.len());
                    inbox.start = 0;
                    inbox.end = n - direct;
                    if direct > 0 {
                        match state.transmission.filled(direct) {
                            Ok(Some(event)) => state.handle(event, place, dest),
                            Ok(None) => {}
                            Err(error) => {
                                state.lose(error.into());
                                self.stream.close();
                            }
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Stop::Quiet,
                Err(error) => {
                    let lost = if state.goodbye {
                        Lost::Disconnected // some servers end TLS by just closing
                    } else {
                        error.into()
                    };
                    state.lose(lost);
                    self.stream.close();
                    break Stop::Served;
                }
            }
        };
        if let Stop::HandOver(caller) = stop {
            state.reader = Some(caller);
        }
        state.inbox = Some(inbox);
        state.pass_on();
        (state, stop)
    }

    /// One read: first the rest of a payload, then whatever follows.
    fn receive(
        &self,
        direct: &mut [u8],
        staged: &mut [u8],
        until: Until,
        deadline: Option<Instant>,
    ) -> io::Result<usize> {
        // The patience of the stream is that of a request.
        let block = until == Until::Served;
        loop {
            let staged = IoSliceMut::new(staged);
            let result = if direct.is_empty() {
                self.stream.read(&mut [staged], block)
            } else {
                let direct = IoSliceMut::new(direct);
                self.stream.read(&mut [direct, staged], block)
            };
            match result {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && !matches!(until, Until::Served | Until::Dry | Until::Look) =>
                {
                    match self.stream.wait(true, false, deadline) {
                        Err(late) if late.kind() == io::ErrorKind::TimedOut => return Err(error),
                        waited => waited?,
                    }
                }
                done => return done,
            }
        }
    }

    /// Gives up the requests of a caller that took too long.
    fn expire(&self, state: &mut State, place: usize) {
        let Some(after) = self.timeout else { return };
        let now = Instant::now();
        for slot in 0..state.entries.len() {
            let Entry {
                cookie,
                command,
                caller,
                deadline,
                ..
            } = &state.entries[slot];
            let late = deadline.is_some_and(|deadline| deadline <= now);
            if let (true, true, Some(cookie)) = (late, *caller == place, *cookie) {
                let command = *command;
                let buffer = match mem::replace(&mut state.entries[slot].sink, Sink::None) {
                    Sink::Owned(buffer) => Some(buffer),
                    Sink::Borrowed { .. } | Sink::None => None,
                };
                state.abandon(cookie);
                let result = Err(Error::Timeout { command, after });
                let done = Done {
                    cookie,
                    result,
                    buffer,
                    aside: None,
                };
                state.callers[place].done.push_back(done);
            }
        }
    }
}

impl State {
    /// When the first request of a caller has taken too long.
    fn due(&self, place: usize) -> Option<Instant> {
        let own = |entry: &&Entry| entry.caller == place && entry.cookie.is_some();
        let deadlines = self.entries.iter().filter(own);
        deadlines.filter_map(|entry| entry.deadline).min()
    }

    /// Whether a caller has what it reads for, or cannot get it by reading.
    fn serves(&self, until: Until, place: usize) -> bool {
        match until {
            Until::Served => {
                !self.callers[place].done.is_empty() || self.transmission.in_flight() == 0
            }
            Until::Room => !self.takes_requests() || self.transmission.has_room(),
            Until::Answered(cookie) => self.is_answered(cookie),
            Until::Idle | Until::Dry => self.transmission.in_flight() == 0,
            Until::Ended | Until::Look => false,
        }
    }

    /// Where payload that has not come yet can be read to straight away: the request and the part
    /// of its buffer, or for a borrowed buffer the part of the caller's.
    fn target(&mut self, place: usize) -> Result<Option<(Cookie, std::ops::Range<usize>)>, Stop> {
        let Ok(Fill::Payload(Payload { cookie, range })) = self.transmission.fill() else {
            return Ok(None);
        };
        if range.len() < DIRECT {
            return Ok(None);
        }
        let entry = &self.entries[cookie.slot()];
        match entry.sink {
            Sink::Owned(_) => Ok(Some((cookie, range))),
            Sink::Borrowed { at, .. } if entry.caller == place => {
                Ok(Some((cookie, at + range.start..at + range.end)))
            }
            Sink::Borrowed { .. } => Err(Stop::HandOver(entry.caller)),
            Sink::None => Ok(None),
        }
    }

    /// Hands out everything that is in the inbox.
    fn consume(&mut self, inbox: &mut Inbox, place: usize, dest: &mut [u8]) -> Result<(), Lost> {
        while inbox.start < inbox.end {
            let bytes = &inbox.bytes[inbox.start..inbox.end];
            let fed = self.transmission.feed(bytes)?;
            if let Some(Payload { cookie, range }) = fed.payload {
                self.deliver(
                    cookie,
                    range.start,
                    Some(&bytes[..fed.used]),
                    fed.used,
                    place,
                    dest,
                );
            }
            inbox.start += fed.used;
            if let Some(event) = fed.event {
                self.handle(event, place, dest);
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event, place: usize, dest: &mut [u8]) {
        match event {
            Event::Hole {
                payload: Payload { cookie, range },
                done,
            } => {
                self.deliver(cookie, range.start, None, range.len(), place, dest);
                if done {
                    self.complete(cookie, Ok(Outcome::Done));
                }
            }
            Event::Complete {
                cookie,
                outcome: Outcome::Failed(source),
            } => {
                let command = self.entries[cookie.slot()].command;
                let source: Failure = source;
                self.complete(cookie, Err(Error::Failed { command, source }));
            }
            Event::Complete { cookie, outcome } => self.complete(cookie, Ok(outcome)),
        }
    }

    /// Puts payload, or zeroes if there are no bytes, where it belongs.
    fn deliver(
        &mut self,
        cookie: Cookie,
        start: usize,
        bytes: Option<&[u8]>,
        len: usize,
        place: usize,
        dest: &mut [u8],
    ) {
        let entry = &mut self.entries[cookie.slot()];
        let buffer = match &mut entry.sink {
            Sink::None => return,
            Sink::Owned(buffer) => &mut buffer[start..start + len],
            Sink::Borrowed { at, .. } if entry.caller == place => {
                &mut dest[*at + start..*at + start + len]
            }
            Sink::Borrowed { aside, .. } => {
                debug_assert_ne!(entry.caller, NOBODY);
                return match bytes {
                    Some(bytes) => aside.put(start, bytes),
                    None => aside.put_hole(start, len),
                };
            }
        };
        match bytes {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => buffer.fill(0),
        }
    }
}
