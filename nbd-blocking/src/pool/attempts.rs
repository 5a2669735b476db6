//! Making connections anew.

use super::{restored::Restored, slots::State};
use crate::{
    Error, Lost,
    link::{Link, Load},
};
use nbd_io::client::{Request, is_refusal, shared::ConnectionState};
use nbd_proto::{
    Errno,
    client::{Outcome, Transmission},
};
use std::sync::{Arc, MutexGuard};

/// Why there is no new connection.
struct Vain {
    error: Error,
    /// It is of no use to try on.
    last: bool,
}

impl From<Error> for Vain {
    fn from(error: Error) -> Self {
        Self { error, last: false }
    }
}

/// Lets others try when this one has ended, however it does.
struct Trying<'a>(&'a Restored);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.trying = false;
        self.0.tell(state);
    }
}

impl Restored {
    /// Tries once to make a connection anew.
    pub(super) fn attempt(&self, mut state: MutexGuard<'_, State>, index: usize) {
        let (number, deadline) = state.slots[index].begin();
        if let ConnectionState::Reconnecting { cause, .. } = &state.status {
            state.status = ConnectionState::reconnecting(number, cause.clone());
        }
        state.trying = true;
        drop(state);
        let _trying = Trying(self);
        let made = self.plan.another(deadline).map_err(|error| Vain {
            last: matches!(&error, Error::Lost(lost) if matches!(**lost, Lost::Changed { .. })),
            error,
        });
        let joined = made.and_then(|link| self.join(index, &link));
        if let Err(Vain { error, last }) = joined {
            let mut state = self.lock();
            let slot = &mut state.slots[index];
            if last {
                slot.give_up(error);
            } else {
                slot.try_on(&self.policy, error);
            }
            state.settle(index);
        }
    }

    /// Does what has to be done before requests may use a new connection, and then lets them.
    fn join(&self, index: usize, link: &Arc<Link>) -> Result<(), Vain> {
        let mut asked: Option<Arc<Link>> = None;
        loop {
            let mut state = self.lock();
            if state.closing {
                return Err(Error::lost(Lost::Disconnected).into());
            }
            let other = state.open().next().cloned();
            if state.changes.is_torn() {
                let kept = state.changes.kept();
                drop(state);
                // One after the other, because they may overlap.
                for request in kept {
                    call(link, &request).map_err(|error| Vain {
                        last: is_refusal(&error),
                        error,
                    })?;
                }
                state = self.lock();
                // Nobody else makes connections, so there is none that could have been lost.
                state.changes.mend();
            } else if let Some(other) = other
                && self.plan.may_lose()
                && !asked.is_some_and(|asked| Arc::ptr_eq(&asked, &other))
            {
                drop(state);
                // The others may be dead and not know it yet. If the server has crashed since, this
                // one knows nothing of what they wrote. One that still answers proves the contrary.
                match call(&other, &Request::Flush) {
                    Err(error @ Error::Timeout { .. }) => return Err(error.into()),
                    Err(error) if error.is_lost() || error.errno() == Some(Errno::Shutdown) => {
                        other.notice(&error);
                        self.lost(&other);
                    }
                    _ => {}
                }
                asked = Some(other);
                continue;
            }
            if !state.closing {
                state.slots[index].open(link.clone());
                state.status = ConnectionState::Connected;
            }
            return Ok(());
        }
    }
}

/// Has a request carried out over a connection that others may not use yet.
fn call(link: &Link, request: &Request) -> Result<Outcome, Error> {
    let place = link.place();
    let start = |transmission: &mut Transmission| request.clone().start(transmission);
    let command = request.command();
    link.submit(place.index(), command, Load::Nothing, &mut [], start)?;
    link.wait(place.index(), &mut [])?.result
}
