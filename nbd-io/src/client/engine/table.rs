//! The requests in flight and their owners.

use super::{ABANDONED, Buffer, Engine, LARGE, Outbox, Reply, Sink};
use crate::client::Error;
use nbd_proto::{
    Command, Misuse,
    client::{Cookie, Outcome, Transmission},
};
use std::{collections::VecDeque, mem, time::Duration};

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight<B> {
    /// `None` when it was answered.
    pub(super) cookie: Option<Cookie>,
    pub(super) owner: usize,
    pub(super) command: Command,
    /// When it has taken too long.
    pub(super) due: Duration,
    /// The value of [`Engine::receipts`] when it was sent.
    pub(super) receipts: u64,
    pub(super) weight: u64,
    pub(super) large: bool,
    pub(super) sink: Sink<B>,
}

impl<B> Default for InFlight<B> {
    fn default() -> Self {
        Self {
            cookie: None,
            owner: ABANDONED,
            command: Command::Read,
            due: Duration::MAX,
            receipts: 0,
            weight: 0,
            large: false,
            sink: Sink::None,
        }
    }
}

/// A driver's attachment to a request until it is answered.
pub trait Ticket {
    /// The answer was read. The caller that waits for it gets `result` after this.
    fn answered(&mut self, result: &mut Result<Outcome, Error>);
}

impl<T: Ticket + ?Sized> Ticket for Box<T> {
    fn answered(&mut self, result: &mut Result<Outcome, Error>) {
        (**self).answered(result);
    }
}

/// For drivers that attach nothing.
impl Ticket for () {
    fn answered(&mut self, _: &mut Result<Outcome, Error>) {}
}

/// A request on its way into the table.
#[derive(Debug)]
pub struct Submission<B> {
    /// The command.
    pub command: Command,
    /// Its payload in either direction, in bytes.
    pub weight: u64,
    /// The place for the payload of a read.
    pub sink: Sink<B>,
}

/// A request that is complete.
#[derive(Debug)]
pub struct Done<B> {
    /// The request.
    pub cookie: Cookie,
    /// The outcome of the request.
    pub reply: Reply,
    /// Where its payload is. Its contents are to be trusted only after success.
    pub sink: Sink<B>,
}

/// A caller to whom requests in flight belong.
#[derive(Debug)]
pub(super) struct Owner<B, O> {
    done: VecDeque<Done<B>>,
    outstanding: usize,
    ready: bool,
    /// The driver's state of it.
    kept: O,
}

impl<B: Buffer, T: Ticket, O: Default> Engine<B, T, O> {
    /// A new owner. The driver's state of it is as the last owner with this number has left it.
    #[inline]
    pub fn enter(&mut self) -> usize {
        self.free_owners.pop().unwrap_or_else(|| {
            self.owners.push(Owner {
                done: VecDeque::new(),
                outstanding: 0,
                ready: false,
                kept: O::default(),
            });
            self.owners.len() - 1
        })
    }

    /// The driver's state of an owner.
    #[inline]
    #[must_use]
    pub fn owner(&self, owner: usize) -> &O {
        &self.owners[owner].kept
    }

    /// The driver's state of an owner.
    #[inline]
    pub fn owner_mut(&mut self, owner: usize) -> &mut O {
        &mut self.owners[owner].kept
    }

    /// The driver's state of each owner, by their numbers, owners that have left included.
    pub fn owners(&self) -> impl Iterator<Item = &O> {
        self.owners.iter().map(|owner| &owner.kept)
    }

    /// An owner goes. Its requests in flight are given up: they are sent and their replies thrown
    /// away.
    #[inline]
    pub fn leave(&mut self, owner: usize) {
        if self.owners[owner].outstanding > 0 || !self.owners[owner].done.is_empty() {
            self.give_up(owner);
        }
        self.free_owners.push(owner);
    }

    fn give_up(&mut self, owner: usize) {
        if self.owners[owner].outstanding > 0 {
            for slot in 0..self.in_flight.len() {
                let InFlight {
                    cookie, owner: of, ..
                } = &self.in_flight[slot];
                if let (Some(cookie), true) = (*cookie, *of == owner) {
                    self.abandon(cookie);
                }
            }
            self.owners[owner].outstanding = 0;
        }
        self.owners[owner].done.clear();
    }

    /// Takes a request in. `start` makes it and puts its frame into the outbox, unless the driver
    /// writes that by itself. Its time begins `now`, or when [`begin_time`](Engine::begin_time) is
    /// called for all that have none.
    ///
    /// INVARIANT: the engine [takes requests](Engine::takes_requests) and [has
    /// room](Engine::has_room).
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection.
    #[inline]
    pub fn submit(
        &mut self,
        now: Option<Duration>,
        owner: usize,
        submission: Submission<B>,
        start: impl FnOnce(&mut Transmission, &mut Outbox) -> Result<Cookie, Misuse>,
    ) -> Result<Cookie, Misuse> {
        let cookie = start(&mut self.transmission, &mut self.outbox)?;
        self.started(now, owner, submission, cookie);
        Ok(cookie)
    }

    #[inline(always)]
    fn started(
        &mut self,
        now: Option<Duration>,
        owner: usize,
        submission: Submission<B>,
        cookie: Cookie,
    ) {
        let Submission {
            command,
            weight,
            sink,
        } = submission;
        let mut due = Duration::MAX;
        let large = command == Command::Read && weight >= LARGE as u64;
        let slot = cookie.slot();
        self.latest = slot;
        match now {
            Some(now) => {
                due = self.due(now);
                self.first_due = self.first_due.min(due);
            }
            None => self.untimed.push(slot),
        }
        // Slots are taken one after the other.
        if slot == self.in_flight.len() {
            self.in_flight.push(InFlight::default());
            self.tickets.push(None);
        }
        let request = &mut self.in_flight[slot];
        request.cookie = Some(cookie);
        request.owner = owner;
        request.command = command;
        request.due = due;
        request.receipts = self.receipts;
        request.weight = weight;
        request.large = large;
        request.sink = sink;
        self.owners[owner].outstanding += 1;
        self.weight += weight;
        self.large += usize::from(large);
    }

    /// The attachment of a request in flight; `None` if it was answered or given up.
    pub fn ticket(&mut self, cookie: Cookie) -> Option<&mut Option<T>> {
        if self.is_answered(cookie) {
            return None;
        }
        self.tickets.get_mut(cookie.slot())
    }

    /// The next completed request of an owner.
    #[inline]
    pub fn take(&mut self, owner: usize) -> Option<Done<B>> {
        self.owners[owner].done.pop_front()
    }

    /// All completed requests of an owner, in order, for an empty list.
    pub fn take_all(&mut self, owner: usize, list: &mut VecDeque<Done<B>>) {
        debug_assert!(list.is_empty());
        mem::swap(&mut self.owners[owner].done, list);
    }

    /// Whether a request of this owner is complete.
    #[inline]
    #[must_use]
    pub fn is_done(&self, owner: usize) -> bool {
        !self.owners[owner].done.is_empty()
    }

    /// Whether the server has failed the next completed request of an owner.
    #[must_use]
    pub fn has_refused(&self, owner: usize) -> bool {
        let done = self.owners[owner].done.front();
        done.is_some_and(|done| matches!(done.reply.error(), Some(Error::Failed { .. })))
    }

    /// Whether there is something new for an owner.
    #[inline]
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next owner for whom there is something new.
    #[inline]
    pub fn next_ready(&mut self) -> Option<usize> {
        let owner = self.ready.pop()?;
        self.owners[owner].ready = false;
        Some(owner)
    }

    /// The tickets of requests that were answered, or never will be. They are to be taken, and
    /// dropped when no lock is held.
    pub const fn released(&mut self) -> &mut Vec<T> {
        &mut self.released
    }

    /// Leaves an owner a result.
    #[inline(always)]
    pub(super) fn finish(&mut self, owner: usize, cookie: Cookie, reply: Reply, sink: Sink<B>) {
        let entry = &mut self.owners[owner];
        entry.outstanding -= 1;
        entry.done.push_back(Done {
            cookie,
            reply,
            sink,
        });
        self.set_ready(owner);
    }

    /// There is something new for an owner.
    #[inline]
    pub fn set_ready(&mut self, owner: usize) {
        if !mem::replace(&mut self.owners[owner].ready, true) {
            self.ready.push(owner);
        }
    }

    /// A request was answered, and its cookie is free.
    #[inline(always)]
    pub(super) fn complete(&mut self, cookie: Cookie, mut reply: Reply) {
        let slot = cookie.slot();
        let request = &mut self.in_flight[slot];
        request.cookie = None;
        self.weight -= request.weight;
        self.large -= usize::from(request.large);
        let owner = mem::replace(&mut request.owner, ABANDONED);
        let sink = mem::take(&mut request.sink);
        if let Some(mut ticket) = self.tickets[slot].take() {
            let mut result = reply.into_result();
            ticket.answered(&mut result);
            reply = result.into();
            self.released.push(ticket);
        }
        if owner != ABANDONED {
            self.finish(owner, cookie, reply, sink);
        }
        // C-188
        if self.transmission.server_shuts_down() {
            self.server_shuts_down = true;
            self.closing = true;
        }
        if self.closing {
            self.disconnect_when_idle();
        }
    }
}
