//! Writing: whoever does it does it for everybody.

use super::{Link, State, Until, is_past, reading::Stop};
use crate::{Error, stream::Stream};
use nbd_io::client::{Outbox, SLICES};
use std::{
    io::{self, IoSlice},
    mem,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a writer that cannot go on leaves the reading to somebody else before it looks again.
const SHORTEST_NAP: Duration = Duration::from_millis(1);
const LONGEST_NAP: Duration = Duration::from_millis(32);

/// Borrowed payloads up to this length are copied when somebody else is writing, in bytes.
const COPIED: usize = 64 << 10;

impl Link {
    /// Writes all that is in the outbox, then a frame of this caller's own. If somebody else is
    /// writing, small frames are left to them.
    pub(super) fn write<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        dest: &mut [u8],
        header: &[u8],
        payload: &[u8],
        limit: Option<Instant>,
    ) -> Result<(), Error> {
        while state.writing && state.lost.is_none() {
            if payload.len() <= COPIED {
                state.outbox.push_copied(header, payload);
                return Ok(());
            }
            state = self
                .may_write
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(lost) = &state.lost {
            return Err(Error::Lost(lost.clone()));
        }
        state.writing = true;
        state.outbox.push(header);
        let mut last = payload;
        loop {
            let spare = mem::take(&mut state.spare);
            let mut outbox = mem::replace(&mut state.outbox, spare);
            // A server that owes no other reply takes the whole request, and the system waits for
            // it with fewer calls than this could.
            let block = state.transmission.in_flight() <= 1 && limit.is_none();
            drop(state);
            let written = self.write_out(&mut outbox, &mut last, place, dest, limit, block);
            state = self.lock();
            state.spare = outbox;
            if let Err(error) = written {
                state.lose(error.into());
                self.stream.close();
            }
            if state.lost.is_some() || state.outbox.is_empty() {
                state.writing = false;
                self.may_write.notify_all();
                state.pass_on(); // where nobody may read while another writes
                return match &state.lost {
                    Some(lost) => Err(Error::Lost(lost.clone())),
                    None => Ok(()),
                };
            }
        }
    }

    fn write_out(
        &self,
        outbox: &mut Outbox,
        last: &mut &[u8],
        place: usize,
        dest: &mut [u8],
        limit: Option<Instant>,
        block: bool,
    ) -> io::Result<()> {
        let mut nap = SHORTEST_NAP;
        let mut deadline = None;
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = outbox.slices(last, &mut slices);
            let attempt = match count {
                0 => self.stream.flush().map(|()| 0),
                count => self.stream.write(&slices[..count], block),
            };
            match attempt {
                Ok(_) if count == 0 => return Ok(()),
                Ok(n) => {
                    *last = &last[outbox.advance(n)..];
                    nap = SHORTEST_NAP;
                    deadline = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The server has the time of a request for every step forward.
                    let own = *deadline.get_or_insert_with(|| self.deadline());
                    let first = own.into_iter().chain(limit).min();
                    self.make_way(place, dest, first, nap)?;
                    nap = LONGEST_NAP.min(2 * nap);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The server takes no more requests: takes its replies, unless somebody does, and waits.
    fn make_way(
        &self,
        place: usize,
        dest: &mut [u8],
        deadline: Option<Instant>,
        nap: Duration,
    ) -> io::Result<()> {
        let mut state = self.lock();
        let mut reads = false;
        if state.lost.is_none()
            && state.reader.is_none_or(|reader| reader == place)
            && let Some(inbox) = state.inbox.take()
        {
            let stop;
            (state, stop) = self.read(state, inbox, place, dest, Until::Dry, None);
            reads = stop == Stop::Quiet;
        }
        if state.lost.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        drop(state);
        if reads {
            return self.stream.wait(true, true, deadline);
        }
        // Somebody else reads, but may stop at any time and leave it to this caller, which cannot
        // be woken up while it waits for the stream.
        let soon = Instant::now().checked_add(nap);
        let first = deadline.into_iter().chain(soon).min();
        match self.stream.wait(false, true, first) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !is_past(deadline) => Ok(()),
            done => done,
        }
    }
}

/// Writes what can be written without waiting.
pub(super) fn write_now(stream: &Stream, outbox: &mut Outbox) -> io::Result<()> {
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = outbox.slices(&[], &mut slices);
        let n = stream.write(&slices[..count], false)?;
        outbox.advance(n);
    }
    stream.flush()
}
