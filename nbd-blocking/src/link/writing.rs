//! Writing: whoever does it does it for everybody.

use super::{Link, Outbox, State, Until, outbox::SLICES, reading::Stop};
use crate::{Error, stream::Stream};
use std::{
    io::{self, IoSlice},
    mem,
    sync::{MutexGuard, PoisonError},
    time::Instant,
};

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
            drop(state);
            let written = self.write_out(&mut outbox, &mut last, place, dest);
            state = self.lock();
            state.spare = outbox;
            if let Err(error) = written {
                state.lose(error.into());
                self.stream.close();
            }
            if state.lost.is_some() || state.outbox.is_empty() {
                state.writing = false;
                self.may_write.notify_all();
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
    ) -> io::Result<()> {
        let deadline = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = outbox.slices(last, &mut slices);
            let attempt = match count {
                0 => self.stream.flush().map(|()| 0),
                count => self.stream.write(&slices[..count]),
            };
            match attempt {
                Ok(_) if count == 0 => return Ok(()),
                Ok(n) => *last = &last[outbox.advance(n)..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.make_way(place, dest, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The server takes no more requests: takes its replies, unless somebody does, and waits.
    fn make_way(&self, place: usize, dest: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
        let mut state = self.lock();
        let mut reads = false;
        if state.lost.is_none()
            && state.reader.is_none_or(|reader| reader == place)
            && let Some(inbox) = state.inbox.take()
        {
            let stop;
            (state, stop) = self.read(state, inbox, place, dest, Until::Dry);
            reads = stop == Stop::Quiet;
        }
        if state.lost.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        drop(state);
        self.stream.wait(reads, true, deadline)
    }
}

/// Writes what can be written without waiting.
pub(super) fn write_now(stream: &Stream, outbox: &mut Outbox) -> io::Result<()> {
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = outbox.slices(&[], &mut slices);
        let n = stream.write(&slices[..count])?;
        outbox.advance(n);
    }
    stream.flush()
}
