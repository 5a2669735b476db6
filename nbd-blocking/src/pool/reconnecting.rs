//! Connections that are made anew when they are lost.
//!
//! There is no thread behind them: [`Membership`] decides, and calls carry it out, each for a time
//! that depends on whether it has to.
//!
//! * A call that finds no connection to use moves on the dials until there is one, in slices, so
//!   that it notices the results of other calls. If its time is over first, the next call goes on
//!   with the dial.
//! * A call that has a connection to use also moves a dial on, for at most [`BACKGROUND_SLICE`],
//!   and all such calls together wait no more than a tenth of the time. A server that does not
//!   answer a dial therefore costs next to nothing to callers that another one serves.
//! * Once in [`SWEEP`] a call looks whether connections that have nothing to do are still there.
//!
//! A loss ends an [`Epoch`] of the log of changes: a connection that was given up may lead to a
//! server that has crashed, and a flush of the next one must not be taken to cover writes over it.

use super::{dial::Dial, disconnect};
use crate::{Blocking, Error, Lost, link::Link};
use nbd_io::client::{
    Common, ConnectionState, DialId, Epoch, Join, Loss, Membership, Next, Request, SharedLog,
};
use nbd_proto::Command;
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

/// Time for which a call that has no connection to use moves one dial on before it looks around.
const SLICE: Duration = Duration::from_millis(20);

/// Longest wait for a dial of a call that has a connection to use.
const BACKGROUND_SLICE: Duration = Duration::from_millis(1);

/// Times as long as a dial has just taken from a call that did not need it, for which no such call
/// gives time to a dial.
const BACKGROUND_PAUSE: u32 = 9;

/// Interval at which idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Interval at which they are looked at for a call that waits for a change of state.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Time in which a server that shuts down has to answer the requests that it holds.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections of a client that come back.
#[derive(Debug)]
pub(crate) struct ReconnectingPool {
    common: Arc<Common<Blocking>>,
    /// Changes that may not be on stable storage.
    pub(crate) log: SharedLog,
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) members: Membership<Link>,
    /// Dials that no call is moving on.
    dials: VecDeque<Dial>,
    /// Connections to servers that shut down, and when they are cut at the latest.
    shutting_down: Vec<(Arc<Link>, Duration)>,
    /// Earliest time for the next call to give time to a dial that it does not need.
    next_background: Duration,
    next_sweep: Duration,
}

/// Reports a dial as failed if it is not taken out: its call has ended in a panic.
struct DialGuard<'a>(&'a ReconnectingPool, Option<Dial>);

impl Drop for DialGuard<'_> {
    fn drop(&mut self) {
        if let Some(dial) = self.1.take() {
            let error = Error::lost(Lost::Disconnected);
            self.0.lock().members.failed(dial.id, error, self.0.now());
            self.0.changed.notify_all();
        }
    }
}

impl ReconnectingPool {
    pub(super) fn new(common: Common<Blocking>, log: SharedLog, links: Vec<Arc<Link>>) -> Self {
        let policy = common.policy().cloned();
        let mut members =
            Membership::new(policy, &common.negotiated.export).observed(common.observer.clone());
        for link in links {
            link.log().inspect(|log| log.join());
            members.add(link, Duration::ZERO);
        }
        Self {
            log,
            common: Arc::new(common),
            start: Instant::now(),
            state: Mutex::new(State {
                members,
                dials: VecDeque::new(),
                shutting_down: Vec::new(),
                next_background: Duration::ZERO,
                next_sweep: SWEEP,
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time as it is handed to the machine.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Wakes all who wait for a change.
    fn notify(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.changed.notify_all();
    }

    /// The connection that has the least to do, once there is one. It may have to be made first.
    /// `late` is when that is too late, from when it is first waited for.
    pub(crate) fn link(
        &self,
        command: Command,
        late: &mut Option<Instant>,
    ) -> Result<Arc<Link>, Error> {
        let link = self.usable(command, late);
        self.common.observer.deliver();
        link
    }

    fn usable(&self, command: Command, late: &mut Option<Instant>) -> Result<Arc<Link>, Error> {
        let mut state = self.lock();
        let mut did_background_work = false;
        loop {
            self.sweep(&mut state);
            if let ConnectionState::Over(lost) = state.members.state() {
                return Err(Error::Lost(lost.clone()));
            }
            if state.members.is_closing() {
                return Err(Error::lost(Lost::Disconnected));
            }
            if let Some(best) = state.best() {
                if did_background_work || state.is_quiet() {
                    return Ok(best);
                }
                did_background_work = true;
                state = self.background_work(state);
                continue;
            }
            if let Some(after) = self.common.connector.config.request_timeout
                && let now = Instant::now()
                && *late.get_or_insert(now.checked_add(after).unwrap_or(now)) <= now
            {
                // Another call may have more time for the dial.
                self.notify(state);
                return Err(Error::Timeout { command, after });
            }
            let now = self.now();
            state = match self.next_dial(&mut state, now) {
                Ok(dial) => {
                    let slice = self.start + now + SLICE;
                    self.step(state, dial, late.map_or(slice, |late| late.min(slice)))
                }
                Err(due) => {
                    let due = due.map(|due| self.start + due);
                    self.wait(state, late.iter().copied().chain(due).min())
                }
            };
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            let woken = self.changed.wait(state);
            return woken.unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(state, left);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// A dial to be moved on, or when there is the next one.
    fn next_dial(&self, state: &mut State, now: Duration) -> Result<Dial, Option<Duration>> {
        let State { members, dials, .. } = state;
        // A dial that is due comes first, because those already begun have not got far.
        let due = match members.next(now) {
            Next::Dial { dial, by } => {
                return Ok(Dial::new(dial, &self.common, by.map(|by| self.start + by)));
            }
            Next::Wait(due) => due,
            Next::Over => None,
        };
        dials.retain(|dial| members.is_wanted(dial.id));
        let ready = dials.iter().position(|dial| !dial.waits);
        ready.and_then(|at| dials.remove(at)).ok_or(due)
    }

    /// Moves a dial on.
    fn step<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        dial: Dial,
        until: Instant,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let id = dial.id;
        let mut guard = DialGuard(self, Some(dial));
        let stepped = match &mut guard.1 {
            Some(dial) => dial.step(self, until),
            None => Poll::Pending,
        };
        let mut state = self.lock();
        match stepped {
            Poll::Pending => {
                state.dials.extend(guard.1.take());
                self.changed.notify_one();
            }
            Poll::Ready(done) => {
                guard.1 = None;
                if let Err(error) = done {
                    state.members.failed(id, error, self.now());
                }
                for dial in &mut state.dials {
                    dial.waits = false;
                }
                self.changed.notify_all();
            }
        }
        state
    }

    /// Work for other calls, which takes next to no time: closes connections that had their time to
    /// end, looks at idle ones, and moves a dial on.
    fn background_work<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let now = self.now();
        let overdue = |(link, by): &mut (Arc<Link>, Duration)| *by <= now || link.lost().is_some();
        let overdue: Vec<_> = state.shutting_down.extract_if(.., overdue).collect();
        for (link, _) in overdue {
            let _ = link.disconnect(Some(Instant::now()));
        }
        if state.next_sweep <= now {
            state.next_sweep = now + SWEEP;
            state = self.check_idle(state);
        }
        if state.next_background <= now
            && let Ok(dial) = self.next_dial(&mut state, now)
        {
            // No other call does meanwhile.
            state.next_background = now + BACKGROUND_PAUSE * BACKGROUND_SLICE;
            state = self.step(state, dial, self.start + now + BACKGROUND_SLICE);
            let end = self.now();
            state.next_background = end + BACKGROUND_PAUSE * (end - now);
        }
        state
    }

    /// Looks whether connections that have nothing to do are still there.
    fn check_idle<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let idle = state.members.open().filter(|link| link.load() == Some(0));
        let idle: Vec<_> = idle.cloned().collect();
        drop(state);
        for link in idle {
            link.check_idle();
        }
        let mut state = self.lock();
        self.sweep(&mut state);
        state
    }

    /// Takes note of connections that are over, or take no requests any more.
    fn sweep(&self, state: &mut State) {
        loop {
            let closed = |link: &&Arc<Link>| link.load().is_none();
            let ended = |link: &Arc<Link>| Some((link.clone(), link.ended()?));
            let ended = state.members.open().filter(closed).find_map(ended);
            let Some((link, lost)) = ended else { return };
            self.on_lost(state, &link, &lost);
        }
    }

    /// A connection may be over, or take no requests any more.
    pub(crate) fn lost(&self, link: &Arc<Link>) {
        let Some(lost) = link.ended() else { return };
        self.on_lost(&mut self.lock(), link, &lost);
        self.common.observer.deliver();
    }

    fn on_lost(&self, state: &mut State, link: &Arc<Link>, lost: &Arc<Lost>) {
        let now = self.now();
        let Some(mut loss) = state.members.lost(link, lost, now) else {
            return;
        };
        loss.given_up.push(link.clone());
        self.give_up(state, loss, now);
    }

    fn give_up(&self, state: &mut State, loss: Loss<Link>, now: Duration) {
        for link in loss.given_up {
            if matches!(link.ended().as_deref(), Some(Lost::ShutsDown)) {
                // It still answers the requests that it holds.
                link.leave_if_idle();
                state.shutting_down.push((link, now + SHUTDOWN_TIMEOUT));
            } else {
                link.abort(Lost::GivenUp);
            }
        }
        if loss.ends_epoch {
            self.log.lock().end_epoch();
        }
        self.changed.notify_all();
    }

    /// The next step of a new connection on the way to membership, and the writes to replay if that
    /// is a replay. `replayed` is the epoch whose writes it has replayed.
    pub(super) fn join(
        &self,
        dial: DialId,
        link: &Arc<Link>,
        replayed: Option<Epoch>,
    ) -> (Join<Link>, (Epoch, Vec<Request>)) {
        let mut state = self.lock();
        let members = &mut state.members;
        let mut log = self.log.lock();
        if let Some(epoch) = replayed
            && members.replayed(dial)
        {
            log.replayed(epoch);
        }
        let join = members.join(dial, link, log.needs_replay(), self.now());
        let replay = match join {
            Join::Replay => log.replay(),
            _ => (log.epoch(), Vec::new()),
        };
        drop(log);
        if matches!(join, Join::Joined) {
            link.log().inspect(|log| log.join());
        }
        (join, replay)
    }

    /// Has all connections made anew.
    pub(crate) fn redial(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let now = self.now();
        match state.members.redial(now) {
            Some(loss) => {
                self.give_up(&mut state, loss, now);
                drop(state);
                self.common.observer.deliver();
                Ok(())
            }
            None => Err(match state.members.state() {
                ConnectionState::Over(lost) => Error::Lost(lost.clone()),
                _ => Error::lost(Lost::Disconnected),
            }),
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().members.is_closing()
    }

    pub(super) fn count(&self) -> usize {
        let count = self.check_idle(self.lock()).members.open().count();
        self.common.observer.deliver();
        count
    }

    pub(super) fn status(&self) -> ConnectionState {
        let state = self.check_idle(self.lock()).members.state().clone();
        self.common.observer.deliver();
        state
    }

    /// Waits until the state is another one than `known`, or until a time, and moves dials on
    /// meanwhile.
    pub(super) fn state_changed(
        &self,
        known: &ConnectionState,
        until: Option<Instant>,
    ) -> ConnectionState {
        let current = loop {
            let mut state = self.check_idle(self.lock());
            let current = state.members.state();
            if !current.is_same(known) || until.is_some_and(|until| until <= Instant::now()) {
                break current.clone();
            }
            let now = self.now();
            let next_look = self.start + now + LOOK;
            let by = until.map_or(next_look, |until| until.min(next_look));
            match self.next_dial(&mut state, now) {
                Ok(dial) => drop(self.step(state, dial, by)),
                Err(due) => {
                    let due = due.map_or(by, |due| by.min(self.start + due));
                    drop(self.wait(state, Some(due)));
                }
            }
        };
        self.common.observer.deliver();
        current
    }

    pub(super) fn disconnect(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut state = self.lock();
        self.sweep(&mut state);
        let result = match state.members.state() {
            ConnectionState::Over(lost) | ConnectionState::Reconnecting { cause: lost, .. } => {
                Err(Error::Lost(lost.clone()))
            }
            _ => Ok(()),
        };
        let Some(links) = state.members.close() else {
            return Err(Error::lost(Lost::Disconnected));
        };
        let shutting_down = mem::take(&mut state.shutting_down);
        let dials = mem::take(&mut state.dials);
        self.notify(state);
        drop(dials);
        let ended = disconnect(&links, deadline);
        for (link, _) in shutting_down {
            let _ = link.disconnect(deadline);
        }
        let mut state = self.lock();
        state.members.end();
        self.notify(state);
        result.and(ended)
    }
}

impl State {
    /// The connection that has the least to do, of those that take requests.
    fn best(&self) -> Option<Arc<Link>> {
        let usable = self
            .members
            .open()
            .filter_map(|link| Some((link.load()?, link)));
        let best = usable.min_by_key(|(load, _)| *load);
        best.map(|(_, link)| link.clone())
    }

    /// Whether no work for other calls is due, as far as can be known without a clock.
    fn is_quiet(&self) -> bool {
        self.members.is_complete() && self.shutting_down.is_empty() && self.members.count() == 1
    }
}
