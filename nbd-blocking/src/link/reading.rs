//! The leader: it reads on behalf of all callers.

use super::{
    Link, READ_IN_SYSTEM,
    table::{State, WaitFor},
    wait_until, writing,
};
use crate::Error;
use nbd_io::client::engine::{Inbox, ReadPlan};
use std::{
    io::{self, IoSliceMut},
    mem,
    sync::MutexGuard,
    time::{Duration, Instant},
};

/// A caller that has just made its request and whose deadline is so far away reads without another
/// look at the clock. If the process was stopped in between, the deadline may pass while it waits in
/// the system: it is then noticed up to [`READ_IN_SYSTEM`] late, and a reply that has come by then
/// counts. A timer of the system's would be exact, and costs a system call for each request.
const FAR: Duration = Duration::from_secs(10);

/// The reason for which a reader stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The event that it reads for has happened, or the connection is over.
    Served,
    /// The rest of a payload is for another caller's buffer.
    HandOver(usize),
    /// Nothing came in time.
    Quiet,
}

impl Link {
    /// Moves the connection on: writes the outbox, else reads, if there is no leader, or else waits
    /// for it. Returns when something may have changed for this caller.
    pub(super) fn step<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        dest: &mut [u8],
        until: WaitFor,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        if state.engine.has_output() && !state.writing {
            let limit = deadline.filter(|_| matches!(until, WaitFor::Idle | WaitFor::End));
            let own = writing::Own {
                limit: self.time(limit),
                ..Default::default()
            };
            return self.write(state, place, dest, own);
        }
        if state.engine.has_untimed() {
            // Another caller has yet to write them. One that waits for them has a deadline.
            state.engine.begin_time(self.now());
        }
        // The first request to be late may be another caller's; then there is one step more.
        let due = state.engine.next_due();
        let deadline = self.time(deadline);
        let limit = match (deadline, due) {
            (Some(deadline), Some(due)) => Some(deadline.min(due)),
            (only, None) | (None, only) => only,
        };
        let silent = !state.writing && !state.engine.has_output();
        let may_read = (silent || !self.stream.is_half_duplex())
            && state.reader.is_none_or(|reader| reader == place);
        let mut stop = Stop::Quiet;
        if may_read && let Some(inbox) = state.inbox.take() {
            (state, stop) = self.read(state, inbox, place, dest, until, limit);
        } else if !until.is_now() {
            state = self.sleep(state, place, until, limit);
        }
        if stop == Stop::Quiet
            && let Some(due) = due
            && let now = self.now()
            && due <= now
        {
            state.engine.expire(now);
            self.settle(&mut state);
        }
        Ok(state)
    }

    /// Waits to be woken by a caller that reads.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        until: WaitFor,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.engine.owner_mut(place).since = None;
        let wake = state.engine.owner(place).wake.clone();
        let for_others = usize::from(matches!(until, WaitFor::Answer(_)));
        state.engine.owner_mut(place).waits = Some(until);
        state.waiting += 1;
        state.wait_for_room += usize::from(matches!(until, WaitFor::Room { .. }));
        state.wait_for_others += for_others;
        state = wait_until(&wake, state, limit.and_then(|limit| self.at(limit)));
        state.wait_for_others -= for_others;
        // Unless it was woken because there is room.
        if let Some(waited) = state.engine.owner_mut(place).waits.take() {
            state.waiting -= 1;
            state.wait_for_room -= usize::from(matches!(waited, WaitFor::Room { .. }));
        }
        state
    }

    /// Reads on behalf of all callers; then puts the inbox back and wakes the next leader.
    pub(super) fn read<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut inbox: Inbox,
        place: usize,
        dest: &mut [u8],
        until: WaitFor,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, State>, Stop) {
        state.reader = None;
        let mut since = state.engine.owner_mut(place).since.take();
        let mut is_late = false;
        let stop = loop {
            if state.engine.lost().is_some() || state.serves(until, place) {
                break Stop::Served;
            }
            let mut in_system = matches!(until, WaitFor::Done | WaitFor::End);
            if !until.is_now()
                && let Some(limit) = limit
            {
                let far = |since: &Duration| limit.saturating_sub(*since) >= FAR;
                let now = since.take().filter(far).unwrap_or_else(|| self.now());
                let left = limit.saturating_sub(now);
                // Bytes that are there already are read once: perhaps it is this caller that comes
                // late. Only once, because others may be served for ever while it is not.
                if left.is_zero() && mem::replace(&mut is_late, true) {
                    break Stop::Quiet;
                }
                in_system &= left >= READ_IN_SYSTEM;
            }
            let plan = state.engine.plan_read(place);
            // The buffer of an owned read leaves the table for the time of the system call: payload
            // goes straight to it, and other callers use the engine meanwhile.
            let owned = match &plan {
                ReadPlan::HandOver(caller) => break Stop::HandOver(*caller),
                ReadPlan::Owned(cookie, _) => state.engine.owned(*cookie).map(mem::take),
                ReadPlan::Inbox | ReadPlan::Lent(_) | ReadPlan::Ahead { .. } => None,
            };
            let beside = state.engine.beside();
            drop(state);
            let mut owned = owned;
            let direct = match (&plan, &mut owned) {
                (ReadPlan::Owned(_, range), Some(buffer)) => &mut buffer[range.clone()],
                (ReadPlan::Lent(range) | ReadPlan::Ahead { range, .. }, _) => {
                    &mut dest[range.clone()]
                }
                _ => &mut [],
            };
            let (front, staged) = inbox.space(beside).split_at_mut(plan.front());
            let result = self.receive([front, direct, staged], until, in_system, limit);
            state = self.lock();
            // It goes back before its bytes are counted, unless the request was abandoned meanwhile.
            if let (ReadPlan::Owned(cookie, _), Some(buffer)) = (&plan, owned)
                && let Some(place) = state.engine.owned(*cookie)
            {
                *place = buffer;
            }
            match result {
                Ok(0) => state.engine.ended(None),
                Ok(n) => {
                    state.engine.received(&plan, n, &mut inbox, (place, dest));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if in_system {
                        continue;
                    }
                    break Stop::Quiet;
                }
                Err(error) => state.engine.ended(Some(error)),
            }
            self.settle(&mut state);
        };
        if let Stop::HandOver(caller) = stop {
            state.reader = Some(caller);
        }
        state.inbox = Some(inbox);
        state.pass_on();
        self.leave_server(&mut state);
        (state, stop)
    }

    /// One read into these, of which all but the last may be empty.
    fn receive(
        &self,
        [front, direct, staged]: [&mut [u8]; 3],
        until: WaitFor,
        in_system: bool,
        limit: Option<Duration>,
    ) -> io::Result<usize> {
        loop {
            let staged = IoSliceMut::new(staged);
            let direct = IoSliceMut::new(direct);
            let result = if direct.is_empty() {
                self.stream.read(&mut [staged], in_system)
            } else if front.is_empty() {
                self.stream.read(&mut [direct, staged], in_system)
            } else {
                let front = IoSliceMut::new(front);
                self.stream.read(&mut [front, direct, staged], in_system)
            };
            match result {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && !in_system
                        && !until.is_now() =>
                {
                    let deadline = limit.and_then(|limit| self.at(limit));
                    match self.stream.wait(true, false, deadline) {
                        Err(late) if late.kind() == io::ErrorKind::TimedOut => return Err(error),
                        waited => waited?,
                    }
                }
                done => return done,
            }
        }
    }
}

impl State {
    /// Whether the event that a caller reads for has happened, or cannot be brought about by
    /// reading.
    #[inline]
    fn serves(&self, until: WaitFor, place: usize) -> bool {
        match until {
            WaitFor::Done => self.engine.is_done(place) || self.engine.in_flight() == 0,
            WaitFor::Room { weight } => self.serves_room(place, weight),
            WaitFor::Answer(cookie) => self.engine.is_answered(cookie),
            WaitFor::Idle | WaitFor::Nothing => self.engine.in_flight() == 0,
            WaitFor::End | WaitFor::IdleCheck => false,
        }
    }

    #[cold]
    fn serves_room(&self, place: usize, weight: u64) -> bool {
        !self.engine.takes_requests() || self.has_room(place, weight)
    }
}
