//! Writing: one thread writes for all.

use super::{Link, State, is_past, reading::Stop, table::WaitFor};
use crate::{Error, stream::Stream};
use nbd_io::client::engine::Outbox;
use std::{
    io::{self, IoSlice},
    mem,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Time for which a writer that cannot go on leaves the reading to another caller.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

/// Payloads up to this length are left to the system to send as a whole, in bytes.
const WAIT_IN_SYSTEM: u64 = 256 << 10;

/// Borrowed payloads up to this length are copied when another caller is writing, in bytes.
const COPIED: usize = 64 << 10;

/// A frame that a caller writes by itself, behind those of the outbox.
#[derive(Default)]
pub(super) struct Own<'a> {
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [u8],
    /// When all of it has to be written. Without one, a server has the time of a request for every
    /// step forward.
    pub(super) limit: Option<Duration>,
}

impl Link {
    /// Writes all that is in the outbox, then a frame of this caller's own. If another caller is
    /// writing, small frames are left to it.
    pub(super) fn write<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        dest: &mut [u8],
        own: Own<'_>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let Own {
            header,
            mut payload,
            limit,
        } = own;
        while state.writing && state.engine.lost().is_none() {
            if payload.len() <= COPIED {
                state.engine.outbox().push_copied(header, payload);
                return Ok(state);
            }
            state.engine.owner_mut(place).since = None;
            state.wait_to_write += 1;
            state = self
                .may_write
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.wait_to_write -= 1;
        }
        if let Some(lost) = state.engine.lost() {
            return Err(Error::Lost(lost.clone()));
        }
        state.writing = true;
        let mut alone = Some(header).filter(|header| !header.is_empty());
        if state.engine.has_output()
            && let Some(header) = alone.take()
        {
            state.engine.outbox().push(header);
        }
        loop {
            // A server that owes no other reply takes the whole request, and the system waits for
            // it with fewer calls than this could. It waits for each part of a long one anew, though.
            let in_system =
                state.engine.in_flight() <= 1 && state.engine.weight() <= WAIT_IN_SYSTEM;
            let written;
            if let Some(header) = alone.take() {
                drop(state);
                let last = mem::take(&mut payload);
                written = self.write_alone(header, last, place, dest, limit, in_system);
                state = self.lock();
            } else {
                if state.engine.has_untimed() {
                    state.engine.begin_time(self.now());
                }
                let mut outbox = state.spare.take().unwrap_or_default();
                mem::swap(&mut *outbox, state.engine.outbox());
                drop(state);
                written = self.write_out(&mut outbox, &mut payload, place, dest, limit, in_system);
                state = self.lock();
                state.spare = Some(outbox);
            }
            if let Err(error) = written {
                self.lose(&mut state, error.into());
            }
            if state.engine.lost().is_some() || !state.engine.has_output() {
                state.writing = false;
                if state.wait_to_write > 0 {
                    self.may_write.notify_all();
                }
                if self.stream.is_half_duplex() {
                    state.pass_on();
                }
                return match state.engine.lost() {
                    Some(lost) => Err(Error::Lost(lost.clone())),
                    None => Ok(state),
                };
            }
        }
    }

    /// Writes a frame with nothing before it, straight from where it is. If the stream does not take
    /// all of it at once, the rest goes the way of all others.
    #[inline]
    fn write_alone(
        &self,
        header: &[u8],
        mut payload: &[u8],
        place: usize,
        dest: &mut [u8],
        limit: Option<Duration>,
        in_system: bool,
    ) -> io::Result<()> {
        let slices = [IoSlice::new(header), IoSlice::new(payload)];
        let count = 1 + usize::from(!payload.is_empty());
        let n = match self.stream.write(&slices[..count], in_system) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            done => done?,
        };
        if n == header.len() + payload.len() && self.stream.flush().is_ok() {
            return Ok(());
        }
        let of_header = n.min(header.len());
        let mut outbox = Outbox::default();
        outbox.push(&header[of_header..]);
        payload = &payload[n - of_header..];
        self.write_out(&mut outbox, &mut payload, place, dest, limit, false)
    }

    fn write_out(
        &self,
        outbox: &mut Outbox,
        last: &mut &[u8],
        place: usize,
        dest: &mut [u8],
        limit: Option<Duration>,
        mut in_system: bool,
    ) -> io::Result<()> {
        let mut pause = SHORTEST_PAUSE;
        let mut deadline = None;
        loop {
            let done = outbox.is_empty() && last.is_empty();
            let attempt = if done {
                self.stream.flush().map(|()| 0)
            } else {
                outbox.with_slices(last, |slices| self.stream.write(slices, in_system))
            };
            // Once the system had to wait, there may be replies to take.
            in_system = false;
            match attempt {
                Ok(_) if done => return Ok(()),
                Ok(n) => {
                    *last = &last[outbox.advance(n)..];
                    pause = SHORTEST_PAUSE;
                    deadline = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let step = *deadline.get_or_insert_with(|| self.deadline());
                    let limit = limit.and_then(|limit| self.at(limit));
                    let first = step.into_iter().chain(limit).min();
                    self.make_way(place, dest, first, pause)?;
                    pause = LONGEST_PAUSE.min(2 * pause);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The server takes no more requests: takes its replies, unless another caller does, and waits.
    fn make_way(
        &self,
        place: usize,
        dest: &mut [u8],
        deadline: Option<Instant>,
        pause: Duration,
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.engine.owner_mut(place).since = None;
        let mut reads = false;
        if state.engine.lost().is_none()
            && state.reader.is_none_or(|reader| reader == place)
            && let Some(inbox) = state.inbox.take()
        {
            let stop;
            (state, stop) = self.read(state, inbox, place, dest, WaitFor::Nothing, None);
            reads = stop == Stop::Quiet;
        }
        if state.engine.lost().is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        drop(state);
        // Another caller that reads may stop at any time and leave it to this one, which cannot
        // be woken up while it waits for the stream.
        let soon = Instant::now().checked_add(pause).filter(|_| !reads);
        let first = deadline.into_iter().chain(soon).min();
        match self.stream.wait(reads, true, first) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                if is_past(deadline) {
                    let what = "the server has not taken a request in time";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Ok(())
            }
            done => done,
        }
    }
}

/// Writes as much as is possible without waiting.
pub(super) fn write_now(stream: &Stream, outbox: &mut Outbox) -> io::Result<()> {
    while !outbox.is_empty() {
        let n = outbox.with_slices(&[], |slices| stream.write(slices, false))?;
        outbox.advance(n);
    }
    stream.flush()
}
