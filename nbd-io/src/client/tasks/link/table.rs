//! The calls of a connection, from their beginning to their end, and whom to wake.

use super::{Done, Held, Queued, Request, State, Stop, Unsent};
use crate::client::{
    Error, Lost,
    engine::{Inbox, Sink, Submission},
    index,
};
use bytes::BytesMut;
use std::{mem, task::Waker, time::Duration};

impl State {
    /// Number of calls that were begun and have not ended.
    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Number of calls that wait until their requests may be in flight.
    fn queued(&self) -> usize {
        self.queue.len() - self.stale
    }

    /// Takes a request in, and puts it into the outbox if it may be in flight.
    #[inline]
    pub(super) fn begin(
        &mut self,
        request: Request,
        sink: BytesMut,
        held: &mut Option<Box<Held>>,
    ) -> usize {
        let key = self.engine.enter();
        if key == self.unsent.len() {
            self.unsent.push(Unsent::default());
        }
        self.live += 1;
        if !self.engine.takes_requests() {
            self.engine.released().extend(held.take());
            self.unsent[key] = Unsent::Failed(self.engine.over(), sink);
            return key;
        }
        let mut due = Duration::MAX;
        if self.queued() == 0 && self.may_send(request.weight()) {
            self.send(None, key, request, sink, held);
        } else {
            due = self.due((self.clock)());
            self.begun_calls += 1;
            let number = self.begun_calls;
            self.queue.push_back((key, number));
            self.unsent[key] = Unsent::Queued(Queued {
                number,
                request,
                sink,
                held: held.take(),
                due,
            });
        }
        self.begun += 1;
        self.busy = true;
        let many = self.live > 1;
        if !self.ticking || due < self.armed || many && !self.watching {
            self.ticking = true;
            self.watching |= many;
            self.wake_connection_task();
        }
        key
    }

    /// A call has come to poll, and all requests begun until now are sent. Their time begins here
    /// for all of them at once, so that many requests read the clock once.
    #[inline]
    pub(super) fn begin_time(&mut self) {
        if self.engine.has_untimed() {
            let now = (self.clock)();
            self.engine.begin_time(now);
            if self.engine.next_due().is_some_and(|due| due < self.armed) {
                self.wake_connection_task();
            }
        }
    }

    fn due(&self, now: Duration) -> Duration {
        let timeout = self.engine.timeout();
        timeout.map_or(Duration::MAX, |timeout| now.saturating_add(timeout))
    }

    fn may_send(&self, weight: u64) -> bool {
        let before = self.engine.weight();
        self.engine.has_room() && (before == 0 || before.saturating_add(weight) <= self.max_weight)
    }

    #[inline]
    fn send(
        &mut self,
        now: Option<Duration>,
        key: usize,
        request: Request,
        sink: BytesMut,
        held: &mut Option<Box<Held>>,
    ) {
        let sink = match &request {
            Request::Read { len, .. } if sink.is_empty() => Sink::New(index(*len)),
            _ => Sink::Owned(sink),
        };
        let submission = Submission {
            command: request.command(),
            weight: request.weight(),
            sink,
        };
        let sent = self
            .engine
            .submit(now, key, submission, |transmission, outbox| {
                request.start(transmission, outbox)
            });
        match sent {
            Ok(cookie) => {
                self.engine.owner_mut(key).is_sent = true;
                if held.is_some()
                    && let Some(ticket) = self.engine.ticket(cookie)
                {
                    *ticket = held.take();
                }
            }
            Err(misuse) => {
                self.engine.released().extend(held.take());
                self.engine.set_ready(key);
                self.unsent[key] = Unsent::Failed(misuse.into(), BytesMut::new());
            }
        }
    }

    /// Puts requests into the outbox in the order in which they came, as long as they may be in
    /// flight.
    #[inline]
    pub(super) fn pump(&mut self) {
        if !self.queue.is_empty() {
            self.pump_queue();
        }
    }

    fn pump_queue(&mut self) {
        let now = (self.clock)();
        while let Some(queued) = self.first_queued() {
            let weight = queued.request.weight();
            if !self.may_send(weight) {
                return;
            }
            if let Some((key, queued)) = self.pop_queued() {
                let Queued {
                    request,
                    sink,
                    mut held,
                    ..
                } = queued;
                self.send(Some(now), key, request, sink, &mut held);
            }
        }
    }

    /// The call that has waited longest. Those that were dropped are skipped for good.
    fn first_queued(&mut self) -> Option<&Queued> {
        loop {
            let (key, number) = *self.queue.front()?;
            if matches!(&self.unsent[key], Unsent::Queued(queued) if queued.number == number) {
                break;
            }
            self.queue.pop_front();
            self.stale -= 1;
        }
        match &self.unsent[self.queue.front()?.0] {
            Unsent::Queued(queued) => Some(queued),
            Unsent::Nothing | Unsent::Failed(..) => None,
        }
    }

    fn pop_queued(&mut self) -> Option<(usize, Queued)> {
        self.first_queued()?;
        let (key, _) = self.queue.pop_front()?;
        match mem::take(&mut self.unsent[key]) {
            Unsent::Queued(queued) => Some((key, queued)),
            Unsent::Nothing | Unsent::Failed(..) => None,
        }
    }

    /// Fails a call whose request was not sent.
    fn fail(&mut self, key: usize, queued: Queued, error: Error) {
        self.engine.released().extend(queued.held);
        self.engine.set_ready(key);
        self.unsent[key] = Unsent::Failed(error, queued.sink);
    }

    /// Takes note of the task of a call that waits.
    #[inline]
    #[must_use]
    pub(super) fn set_waker(&mut self, key: usize, waker: &Waker) -> Option<Waker> {
        let entry = self.engine.owner_mut(key);
        entry.absent = false;
        replace(&mut entry.waker, waker)
    }

    /// Puts a call among those that can take the role of the poller.
    fn list(&mut self, key: usize) {
        if !mem::replace(&mut self.engine.owner_mut(key).listed, true) {
            self.waiting.push_back(key);
        }
    }

    /// Whether other requests are likely to follow a new one at once: there are calls that have
    /// been woken for their results, or others wait and none has ended since the last was begun.
    pub(super) fn others_come(&self) -> bool {
        self.live > 0 && self.begun > 0 || self.live > self.engine.in_flight() + self.queued()
    }

    /// Leaves a request in the outbox to the poller, which comes after all that are left so. If none
    /// was woken, it is this call.
    pub(super) fn leave_to_poller(&mut self, key: usize) -> Stop {
        if self.poller.is_some() && self.poller_woken {
            self.list(key);
            return Stop::Quiet;
        }
        self.become_poller(key);
        self.poller_woken = true;
        Stop::Yield
    }

    /// A call that waits is polled again.
    #[inline]
    pub(super) fn resume(&mut self, key: usize, waker: &Waker) -> Stop {
        if self.is_done(key) {
            return Stop::Served;
        }
        if self.may_poll(key, waker) {
            return self.poll_stream_for(key, waker);
        }
        self.list(key);
        Stop::Quiet
    }

    /// Whether a call that waits may poll the stream itself: it is the poller, there is none, or
    /// that is of the same task. Two tasks must not take the role from each other, since there are
    /// streams that wake the one that waited when the other one begins to. When the session ends,
    /// the connection task polls.
    #[inline]
    fn may_poll(&self, key: usize, waker: &Waker) -> bool {
        let may_poll = self.poller.is_none_or(|poller| {
            let kept = &self.engine.owner(poller).waker;
            poller == key || kept.as_ref().is_some_and(|kept| kept.will_wake(waker))
        });
        may_poll && !self.engine.is_closing()
    }

    /// Has this call move the connection on.
    #[inline]
    pub(super) fn poll_stream_for(&mut self, key: usize, waker: &Waker) -> Stop {
        self.become_poller(key);
        self.poll_stream(waker, Some(key))
    }

    /// Makes a call the poller.
    #[inline]
    fn become_poller(&mut self, key: usize) {
        if self.poller != Some(key)
            && let Some(former) = self.poller.replace(key)
        {
            self.list(former);
        }
    }

    /// Gives the role of the poller to another call that waits, which is woken, else to the
    /// connection task.
    #[inline]
    fn pass_on(&mut self) {
        self.poller = None;
        if !self.waiting.is_empty() {
            self.poller = self.next_waiting();
        }
        if self.poller.is_some() {
            self.wake_poller();
        } else if self.has_work() {
            self.wake_connection_task();
        }
    }

    /// Wakes the poller.
    fn wake_poller(&mut self) {
        if let Some(poller) = self.poller {
            self.poller_woken = true;
            let waker = &self.engine.owner(poller).waker;
            self.wakes.extend(waker.clone());
        }
    }

    /// Takes the role of the poller from a call, which goes on waiting.
    pub(super) fn release_poller(&mut self) -> Option<usize> {
        let poller = self.poller.take()?;
        self.list(poller);
        Some(poller)
    }

    /// A call that waits, the one that has been listed longest. Each call is listed once, and stays
    /// listed while others have its place.
    fn next_waiting(&mut self) -> Option<usize> {
        while let Some(key) = self.waiting.pop_front() {
            self.engine.owner_mut(key).listed = false;
            let entry = self.engine.owner(key);
            if entry.waker.is_some() && !entry.absent && !self.is_done(key) {
                return Some(key);
            }
        }
        None
    }

    /// Takes the role of the poller from a call that does not come.
    pub(super) fn clear_poller(&mut self) {
        if let Some(poller) = self.release_poller() {
            self.engine.owner_mut(poller).absent = true;
        }
    }

    /// Whether there is something to do for a connection that no call waits for.
    pub(super) fn has_work(&self) -> bool {
        self.engine.is_closing()
            || self.unflushed
            || self.engine.has_output()
            || self.engine.in_flight() > 0
    }

    pub(super) fn wake_connection_task(&mut self) {
        let waker = &self.connection_task;
        self.wakes.extend(waker.clone());
    }

    #[inline]
    pub(super) fn is_done(&self, key: usize) -> bool {
        match self.engine.owner(key).is_sent {
            true => self.engine.is_done(key),
            false => matches!(self.unsent[key], Unsent::Failed(..)),
        }
    }

    /// The outcome of a call, which is then to be [released](State::release).
    #[inline]
    pub(super) fn take(&mut self, key: usize) -> Option<Done> {
        if self.engine.owner(key).is_sent {
            let done = self.engine.take(key)?;
            let sink = done.sink.into_owned().unwrap_or_default();
            return Some(Done::new(done.reply, sink));
        }
        match mem::take(&mut self.unsent[key]) {
            Unsent::Failed(error, sink) => Some(Done::failed(error, sink)),
            unsent => {
                self.unsent[key] = unsent;
                None
            }
        }
    }

    /// Frees the place of a call, which is the poller no more.
    #[inline]
    #[must_use]
    pub(super) fn release(&mut self, key: usize) -> Option<Waker> {
        let entry = self.engine.owner_mut(key);
        entry.absent = false;
        let waker = entry.waker.take();
        if !mem::take(&mut entry.is_sent) {
            self.unqueue(key);
        }
        self.live -= 1;
        self.engine.leave(key);
        if self.poller == Some(key) {
            self.pass_on();
        }
        waker
    }

    /// Forgets a request that waits, if this is one.
    fn unqueue(&mut self, key: usize) {
        if let Unsent::Queued(queued) = mem::take(&mut self.unsent[key]) {
            self.engine.released().extend(queued.held);
            self.stale += 1;
            if 2 * self.stale > self.queue.len().max(64) {
                let unsent = &self.unsent;
                self.queue.retain(|(key, number)| {
                    matches!(&unsent[*key], Unsent::Queued(queued) if queued.number == *number)
                });
                self.stale = 0;
            }
        }
    }

    /// A call was dropped.
    #[must_use]
    pub(super) fn drop_call(&mut self, key: usize) -> Option<Waker> {
        let was_poller = self.poller == Some(key);
        let waker = self.release(key);
        self.pump();
        // The requests that it left in the outbox may have no other task that sends them.
        match self.poller {
            Some(_) if !was_poller && self.engine.has_output() => self.wake_poller(),
            None if self.has_work() => self.wake_connection_task(),
            _ => {}
        }
        waker
    }

    /// No call is late before this time.
    pub(super) fn next_due(&mut self) -> Option<Duration> {
        let queued = self.first_queued().map(|queued| queued.due);
        let queued = queued.filter(|due| *due != Duration::MAX);
        self.engine.next_due().into_iter().chain(queued).min()
    }

    /// Ends calls that have taken too long.
    pub(super) fn expire(&mut self, now: Duration) {
        let Some(after) = self.engine.timeout() else {
            return;
        };
        self.engine.expire(now);
        while self.first_queued().is_some_and(|first| first.due <= now)
            && let Some((key, queued)) = self.pop_queued()
        {
            let command = queued.request.command();
            self.fail(key, queued, Error::Timeout { command, after });
        }
        self.pump();
        self.settle();
    }

    /// Takes no more requests.
    pub(super) fn close(&mut self) -> bool {
        let first = self.engine.close();
        self.settle();
        first
    }

    /// Ends the connection for all calls.
    pub(super) fn lose(&mut self, why: Lost) {
        self.engine.lose(why);
        self.settle();
    }

    /// Acts on a connection that is about to end, or has ended. Returns whether it takes requests.
    #[inline]
    pub(super) fn settle(&mut self) -> bool {
        let is_open = self.engine.takes_requests();
        if !is_open {
            self.settle_end();
        }
        is_open
    }

    fn settle_end(&mut self) {
        while let Some((key, queued)) = self.pop_queued() {
            let over = self.engine.over();
            self.fail(key, queued, over);
        }
        if !mem::replace(&mut self.closing_noted, true) {
            self.wake_connection_task();
        }
        if self.engine.is_disconnecting() && !self.shut_down {
            self.wake_connection_task();
        }
        if self.engine.lost().is_some() && self.stream.take().is_some() {
            self.unflushed = false;
            self.inbox = Inbox::default();
            let close_waiters = self.close_waiters.take();
            self.wakes.extend(close_waiters);
            self.wake_connection_task();
        }
    }

    /// Collects whom to wake.
    pub(super) fn notify(&mut self) {
        while let Some(key) = self.engine.next_ready() {
            self.begun = 0;
            if self.current != Some(key) {
                let waker = self.engine.owner_mut(key).waker.take();
                if let Some(waker) = waker {
                    self.wakes.push(waker);
                }
            }
        }
    }
}

/// Keeps a waker, and returns the one that was kept before if it was another one.
#[inline]
#[must_use]
pub(super) fn replace(kept: &mut Option<Waker>, waker: &Waker) -> Option<Waker> {
    match kept {
        Some(old) if old.will_wake(waker) => None,
        _ => kept.replace(waker.clone()),
    }
}
