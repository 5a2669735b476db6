//! Ending a session.

use super::{Link, State, Until, is_past, wait_until, writing};
use crate::{Error, Lost};
use std::{
    mem,
    sync::{Arc, MutexGuard, PoisonError},
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
        let shuts_down = state.transmission.server_shuts_down();
        state.lose(match shuts_down {
            true => Lost::ShutsDown,
            false => Lost::Disconnected,
        });
        self.stream.close();
        Ok(())
    }

    /// Leaves a server that has said it is shutting down, as the protocol asks for, if nothing is in
    /// flight any more. Nothing is waited for.
    pub(crate) fn leave_if_idle(&self) {
        if self.lock().may_leave() {
            // No time is enough where there is nothing to wait for.
            let _ = self.disconnect(Some(Instant::now()));
        }
    }

    /// How the connection ended, or why it takes no more requests.
    pub(crate) fn ended(&self) -> Option<Arc<Lost>> {
        let state = self.lock();
        let shuts_down = || state.is_to_be_left().then(|| Arc::new(Lost::ShutsDown));
        state.lost.clone().or_else(shuts_down)
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

impl State {
    /// Whether the server has said that it is shutting down, and nobody has reacted to that yet.
    fn is_to_be_left(&self) -> bool {
        self.lost.is_none() && !self.closing && self.transmission.server_shuts_down()
    }

    /// Whether the server can be left without taking anything from anybody.
    pub(super) fn may_leave(&self) -> bool {
        self.transmission.in_flight() == 0 && self.is_to_be_left()
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
