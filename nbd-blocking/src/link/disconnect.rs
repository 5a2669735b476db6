//! CloseReason a session.

use super::{
    Link, State, is_past,
    table::WaitFor,
    wait_until,
    writing::{self, Own},
};
use crate::{Error, Lost};
use std::{
    mem,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Time limit of a disconnect.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// When a disconnect that begins now has taken too long.
pub(crate) fn disconnect_deadline() -> Option<Instant> {
    Instant::now().checked_add(DISCONNECT_TIMEOUT)
}

impl Link {
    /// Ends the session: waits for requests in flight, sends `NBD_CMD_DISC`, and waits for the
    /// server to close, all together until the deadline.
    pub(crate) fn disconnect(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let place = self.place();
        let mut state = self.lock();
        if let Some(lost) = state.engine.lost() {
            return Err(Error::Lost(lost.clone()));
        }
        if mem::replace(&mut state.ending, true) {
            return Err(Error::lost(Lost::Disconnected));
        }
        state.engine.close();
        self.settle(&mut state);
        while state.engine.lost().is_none() && state.engine.in_flight() > 0 && !is_past(deadline) {
            state = self.step(state, place.index, &mut [], WaitFor::Idle, deadline)?;
        }
        if let Some(lost) = state.engine.lost() {
            return Err(Error::Lost(lost.clone()));
        }
        if self.stream.is_half_duplex() && state.engine.in_flight() > 0 {
            // A caller that waits for a reply cannot be interrupted to send the frame.
            self.lose(&mut state, Lost::Disconnected);
            return Ok(());
        }
        state.engine.disconnect();
        state = self.emptied(state, place.index, deadline)?;
        drop(state);
        self.stream.shutdown();
        state = self.lock();
        while state.engine.lost().is_none() && !is_past(deadline) {
            state = self.step(state, place.index, &mut [], WaitFor::End, deadline)?;
        }
        let why = state.engine.end_of_session();
        self.lose(&mut state, why);
        Ok(())
    }

    /// The end of the connection, or the reason for which it takes no more requests.
    pub(crate) fn ended(&self) -> Option<Arc<Lost>> {
        let state = self.lock();
        let leaving = || state.leaves().then(|| Arc::new(Lost::ShutsDown));
        state.engine.lost().cloned().or_else(leaving)
    }

    /// Leaves a server that has said that it shuts down, if it has answered everything.
    pub(crate) fn leave_if_idle(&self) {
        self.leave_server(&mut self.lock());
    }

    /// Like [`leave_if_idle`](Link::leave_if_idle). Nothing is waited for.
    pub(super) fn leave_server(&self, state: &mut State) {
        if state.engine.is_disconnecting()
            && !state.ending
            && !state.writing
            && state.engine.lost().is_none()
        {
            let _ = writing::write_now(&self.stream, state.engine.outbox());
            self.stream.shutdown();
            self.lose(state, Lost::ShutsDown);
        }
    }

    /// Waits until the outbox is written, by any thread.
    fn emptied<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        limit: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        if !state.writing {
            let own = Own {
                limit: self.time(limit),
                ..Own::default()
            };
            return self.write(state, place, &mut [], own);
        }
        while state.engine.lost().is_none() && state.writing && !is_past(limit) {
            state.wait_to_write += 1;
            state = wait_until(&self.may_write, state, limit);
            state.wait_to_write -= 1;
        }
        Ok(state)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.engine.lost().is_none() {
            // A last word, if it can be said without waiting.
            state.engine.disconnect();
            let _ = writing::write_now(&self.stream, state.engine.outbox());
            self.stream.shutdown();
        }
    }
}
