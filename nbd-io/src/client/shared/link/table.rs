//! The calls of a connection, from their beginning to their end, and whom to wake.

use super::{Done, Entry, LARGE, Phase, Request, Slot, State, signal::replace};
use crate::client::{Error, Lost, Outbox, shared::overlaps::Turn};
use bytes::BytesMut;
use nbd_proto::client::{Cookie, Outcome};
use std::{mem, sync::Arc, task::Waker, time::Duration};

impl State {
    pub(super) fn live(&self) -> usize {
        self.calls.len() - self.free.len()
    }

    /// Takes a request in, and puts it into the outbox if it may be in flight.
    pub(super) fn begin(
        &mut self,
        request: Request,
        sink: BytesMut,
        turn: Option<Arc<Turn>>,
    ) -> usize {
        let command = request.command();
        let phase = match &self.lost {
            Some(lost) => Phase::Done(Err(Error::Lost(lost.clone()))),
            None if self.closing => Phase::Done(Err(Error::lost(Lost::Disconnected))),
            None => Phase::Queued(request),
        };
        let queued = matches!(phase, Phase::Queued(_));
        let due = self.due();
        let key = self.free.pop().unwrap_or(self.calls.len());
        if key == self.calls.len() {
            self.calls.push(Entry {
                phase,
                waker: None,
                absent: false,
                command,
                due,
                sink,
                turn,
            });
        } else {
            let entry = &mut self.calls[key];
            entry.phase = phase;
            entry.command = command;
            entry.due = due;
            entry.sink = sink;
            entry.turn = turn;
        }
        if queued {
            self.begun += 1;
            self.queue.push_back(key);
            self.pump();
            self.busy = true;
            let many = self.live() > 1;
            if !self.ticking || many && !self.watching {
                self.ticking = true;
                self.watching |= many;
                self.wake_keeper();
            }
        }
        key
    }

    /// When a request that is sent now has taken too long: not before its time, because the clock
    /// is behind by up to a tick.
    pub(super) fn due(&self) -> Duration {
        self.timeout.map_or(Duration::MAX, |timeout| {
            self.now.saturating_add(self.tick).saturating_add(timeout)
        })
    }

    /// Puts requests into the outbox in the order in which they came, as long as they may be in
    /// flight.
    pub(super) fn pump(&mut self) {
        while let Some(&key) = self.queue.front() {
            let Phase::Queued(request) = &self.calls[key].phase else {
                self.queue.pop_front();
                continue;
            };
            let weight = request.weight();
            let heavy = self.weight > 0 && self.weight.saturating_add(weight) > self.max_weight;
            if heavy || !self.transmission.has_room() {
                return;
            }
            self.queue.pop_front();
            let due = self.due();
            let entry = &mut self.calls[key];
            let Phase::Queued(request) = mem::replace(&mut entry.phase, Phase::Free) else {
                continue;
            };
            match request.start(&mut self.transmission) {
                Ok((cookie, header, payload)) => {
                    entry.phase = Phase::InFlight(cookie);
                    entry.due = due;
                    let turn = entry.turn.take();
                    let large = entry.sink.len() >= LARGE;
                    let slot = cookie.slot();
                    if self.slots.len() <= slot {
                        self.slots.resize_with(slot + 1, Slot::default);
                    }
                    self.slots[slot] = Slot {
                        call: Some(key),
                        weight,
                        large,
                        turn,
                    };
                    self.weight += weight;
                    self.large += usize::from(large);
                    self.outbox.push_owned(header.as_bytes(), payload);
                }
                Err(misuse) => self.finish(key, Err(misuse.into())),
            }
        }
    }

    /// Takes note of the task that waits for a call.
    #[must_use]
    pub(super) fn attend(&mut self, key: usize, waker: &Waker) -> Option<Waker> {
        let entry = &mut self.calls[key];
        entry.absent = false;
        let waits = !matches!(entry.phase, Phase::Done(_));
        replace(&mut entry.waker, waits.then_some(waker))
    }

    /// Whether other requests are likely to follow a new one at once: there are calls that have
    /// been woken for their results, or others wait and none has ended since the last was begun.
    pub(super) fn others_come(&self) -> bool {
        self.live() > 0 && self.begun > 0
            || self.live() > self.transmission.in_flight() + self.queue.len()
    }

    /// Whether the driver was called and has not come yet.
    pub(super) fn driver_comes(&self) -> bool {
        self.driver.is_some() && self.signal.has_fired()
    }

    /// Makes a call the one that the stream wakes.
    #[must_use]
    pub(super) fn lead(&mut self, key: usize) -> Option<Waker> {
        self.driver = Some(key);
        self.signal.set(self.calls[key].waker.as_ref())
    }

    /// Gives the role of the driver to another call that waits, else to the keeper. Unless the
    /// stream is `quiet` and will wake the new driver, it has to be woken.
    #[must_use]
    pub(super) fn pass_on(&mut self, quiet: bool) -> Option<Waker> {
        let waits = |entry: &Entry| entry.waker.is_some() && !entry.absent;
        self.driver = self.calls.iter().position(waits);
        let Some(next) = self.driver else {
            if !quiet && self.has_work() {
                self.wake_keeper();
            }
            return self.signal.set(self.keeper.as_ref());
        };
        let waker = self.calls[next].waker.as_ref();
        if !quiet {
            self.signal.call();
            self.wakes.extend(waker.cloned());
        }
        self.signal.set(waker)
    }

    /// Takes the role of the driver from a call that was woken and did not come.
    pub(super) fn dismiss(&mut self) {
        if let Some(driver) = self.driver.take() {
            self.calls[driver].absent = true;
        }
    }

    /// Whether there is something to do for a connection that nobody waits for.
    pub(super) fn has_work(&self) -> bool {
        self.closing
            || self.unflushed
            || !self.outbox.is_empty()
            || self.transmission.in_flight() > 0
    }

    pub(super) fn wake_keeper(&mut self) {
        self.wakes.extend(self.keeper.clone());
    }

    pub(super) fn is_done(&self, key: usize) -> bool {
        matches!(self.calls[key].phase, Phase::Done(_))
    }

    /// What came of a call, which is then to be [released](State::release).
    pub(super) fn take(&mut self, key: usize) -> Option<Done> {
        let entry = &mut self.calls[key];
        match mem::replace(&mut entry.phase, Phase::Free) {
            Phase::Done(result) => Some(Done {
                result,
                sink: mem::take(&mut entry.sink),
            }),
            phase => {
                entry.phase = phase;
                None
            }
        }
    }

    /// Frees the place of a call.
    #[must_use]
    pub(super) fn release(&mut self, key: usize) -> Option<Waker> {
        let entry = &mut self.calls[key];
        entry.phase = Phase::Free;
        entry.sink = BytesMut::new();
        entry.absent = false;
        self.turns.extend(entry.turn.take());
        self.free.push(key);
        entry.waker.take()
    }

    /// A call was dropped.
    #[must_use]
    pub(super) fn forget(&mut self, key: usize) -> [Option<Waker>; 2] {
        self.give_up(key);
        let waker = self.release(key);
        self.pump();
        if self.driver == Some(key) {
            return [waker, self.pass_on(false)];
        }
        // What was left in the outbox may have nobody else who sends it.
        match self.driver {
            Some(driver) if !self.outbox.is_empty() => {
                let driver = self.calls[driver].waker.clone();
                self.signal.call();
                self.wakes.extend(driver);
            }
            None if self.has_work() => self.wake_keeper(),
            _ => {}
        }
        [waker, None]
    }

    /// Makes sure that what comes of a call's request is thrown away.
    pub(super) fn give_up(&mut self, key: usize) {
        match self.calls[key].phase {
            Phase::Queued(_) => self.queue.retain(|queued| *queued != key),
            Phase::InFlight(cookie) => {
                self.transmission.abandon(cookie);
                self.slots[cookie.slot()].call = None;
            }
            Phase::Done(_) | Phase::Free => {}
        }
    }

    /// A request is complete, and its cookie free.
    pub(super) fn complete(&mut self, cookie: Cookie, result: Result<Outcome, Error>) {
        let Slot {
            call,
            weight,
            large,
            turn,
        } = mem::take(&mut self.slots[cookie.slot()]);
        self.turns.extend(turn);
        self.begun = 0;
        self.weight -= weight;
        self.large -= usize::from(large);
        if let Some(key) = call {
            self.finish(key, result);
        }
        if self.closing {
            self.wake_keeper();
        } else if self.transmission.server_shuts_down() {
            // C-188
            self.close();
        }
    }

    /// Leaves a call its result.
    pub(super) fn finish(&mut self, key: usize, result: Result<Outcome, Error>) {
        self.begun = 0;
        let entry = &mut self.calls[key];
        entry.phase = Phase::Done(result);
        if self.current != Some(key) {
            self.wakes.extend(entry.waker.take());
        }
    }

    /// Ends calls that have taken too long.
    pub(super) fn expire(&mut self) {
        let Some(after) = self.timeout else { return };
        for key in 0..self.calls.len() {
            let Entry {
                phase,
                due,
                command,
                ..
            } = &self.calls[key];
            let waits = matches!(phase, Phase::Queued(_) | Phase::InFlight(_));
            if waits && *due <= self.now {
                let command = *command;
                self.give_up(key);
                self.finish(key, Err(Error::Timeout { command, after }));
            }
        }
        self.pump();
    }

    /// Takes no more requests.
    pub(super) fn close(&mut self) -> bool {
        if mem::replace(&mut self.closing, true) || self.lost.is_some() {
            return false;
        }
        for key in mem::take(&mut self.queue) {
            self.finish(key, Err(Error::lost(Lost::Disconnected)));
        }
        self.wake_keeper();
        true
    }

    /// Ends the connection for everybody.
    pub(super) fn lose(&mut self, why: Lost) {
        if self.lost.is_some() {
            return;
        }
        let lost = Arc::new(why);
        self.lost = Some(lost.clone());
        self.stream = None;
        self.outbox = Outbox::default();
        self.unflushed = false;
        self.inbox = Vec::new();
        self.queue.clear();
        for key in 0..self.calls.len() {
            if let Phase::Queued(_) | Phase::InFlight(_) = self.calls[key].phase {
                self.finish(key, Err(Error::Lost(lost.clone())));
            }
        }
        let turns = self.slots.iter_mut().filter_map(|slot| slot.turn.take());
        self.turns.extend(turns);
        let mourners = mem::take(&mut self.mourners);
        self.wakes.extend(mourners);
        self.wake_keeper();
    }
}
