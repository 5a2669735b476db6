//! Ending a session.

use super::{Link, State, Until, is_past, wait_until, writing};
use crate::{Error, Lost};
use nbd_proto::Errno;
use std::{
    mem,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a disconnect may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// When a disconnect that begins now has taken too long.
pub(crate) fn farewell() -> Option<Instant> {
    Instant::now().checked_add(FAREWELL)
}

impl Link {
    /// Ends the session: waits for what is in flight, sends `NBD_CMD_DISC`, and waits for the
    /// server to close, all together until the deadline.
    pub(crate) fn disconnect(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let place = self.place();
        let mut state = self.lock();
        if let Some(lost) = &state.lost {
            return Err(Error::Lost(lost.clone()));
        }
        if mem::replace(&mut state.closing, true) {
            return Err(Error::lost(Lost::Disconnected));
        }
        state.note_load();
        while state.wait_for_room > 0 {
            state.wake_for_room();
        }
        while state.lost.is_none() && state.transmission.in_flight() > 0 && !is_past(deadline) {
            state = self.turn(state, place.index, &mut [], Until::Idle, deadline)?;
        }
        if let Some(lost) = &state.lost {
            return Err(Error::Lost(lost.clone()));
        }
        if self.stream.is_half_duplex() && state.transmission.in_flight() > 0 {
            // Whoever waits for a reply cannot be interrupted to say goodbye.
            state.lose(Lost::Disconnected);
            return Ok(());
        }
        let frame = state.transmission.disconnect()?;
        state.goodbye = true;
        state.outbox.push(frame.header());
        state = self.emptied(state, place.index, deadline)?;
        drop(state);
        self.stream.shutdown();
        state = self.lock();
        while state.lost.is_none() && !is_past(deadline) {
            state = self.turn(state, place.index, &mut [], Until::Ended, deadline)?;
        }
        state.lose(Lost::Disconnected);
        self.stream.close();
        Ok(())
    }

    /// Leaves a server that has said it is shutting down, as the protocol asks for. It may have said
    /// so to somebody who waits no more.
    pub(crate) fn notice(&self, error: &Error) {
        if error.errno() == Some(Errno::Shutdown) || self.is_to_be_left() {
            let _ = self.disconnect(farewell());
        }
    }

    /// Whether the server has said that it is shutting down, and nobody has reacted to that yet.
    pub(crate) fn is_to_be_left(&self) -> bool {
        let state = self.lock();
        state.lost.is_none() && !state.closing && state.transmission.server_shuts_down()
    }

    /// The error of a request, which was [noticed](Link::notice).
    pub(crate) fn noticed(&self, error: Error) -> Error {
        self.notice(&error);
        error
    }

    /// Waits until the outbox is written, whoever does it.
    fn emptied<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        if !state.writing {
            self.write(state, place, &mut [], &[], &[], deadline)?;
            return Ok(self.lock());
        }
        while state.lost.is_none() && state.writing && !is_past(deadline) {
            state = wait_until(&self.may_write, state, deadline);
        }
        Ok(state)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.lost.is_none()
            && let Ok(frame) = state.transmission.disconnect()
        {
            // A last word, if it can be said without waiting.
            state.outbox.push(frame.header());
            let _ = writing::write_now(&self.stream, &mut state.outbox);
            self.stream.shutdown();
        }
    }
}
