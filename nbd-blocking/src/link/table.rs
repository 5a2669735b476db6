//! What is known of a connection: requests in flight, and who waits for what.

use super::{aside::Aside, reading::Inbox};
use crate::{Error, Lost};
use nbd_io::client::Outbox;
use nbd_proto::{
    Command,
    client::{Cookie, Outcome, Transmission},
};
use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Condvar,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// The caller of a request that nobody waits for any more.
pub(super) const NOBODY: usize = usize::MAX;

#[derive(Debug)]
pub(super) struct State {
    pub(super) transmission: Transmission,
    /// What is kept of each request in flight, by the slot of its cookie.
    pub(super) entries: Vec<Entry>,
    pub(super) callers: Vec<Caller>,
    pub(super) free_callers: Vec<usize>,
    /// How many callers wait until one more request may be in flight.
    pub(super) wait_for_room: usize,
    /// How many callers wait for the answer to a request that is not theirs.
    pub(super) wait_for_others: usize,
    /// `None` while somebody reads.
    pub(super) inbox: Option<Inbox>,
    /// The only caller that may read on, because the payload is for its own buffer.
    pub(super) reader: Option<usize>,
    /// Reads in flight whose payload is worth a system call of its own.
    pub(super) large: usize,
    pub(super) outbox: Outbox,
    /// An empty outbox to swap for a full one.
    pub(super) spare: Outbox,
    pub(super) writing: bool,
    /// No request is taken any more, because the session is about to end.
    pub(super) closing: bool,
    /// `NBD_CMD_DISC` is on its way.
    pub(super) goodbye: bool,
    pub(super) lost: Option<Arc<Lost>>,
    /// What [`Link::load`](super::Link::load) tells, for those who do not have the lock.
    pub(super) load: Arc<AtomicUsize>,
}

/// The load of a connection on which no request is taken any more.
pub(super) const CLOSED: usize = usize::MAX;

/// What a caller reads for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Something that it waits for is complete.
    Served,
    /// One more request may be in flight.
    Room,
    /// This request is answered, whoever made it.
    Answered(Cookie),
    /// Nothing is in flight.
    Idle,
    /// The server has ended the stream.
    Ended,
    /// Nothing more is there. This does not wait.
    Dry,
    /// Like [`Dry`](Until::Dry), while nothing is in flight.
    Look,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) cookie: Option<Cookie>,
    pub(super) command: Command,
    pub(super) caller: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) large: bool,
    pub(super) sink: Sink,
}

/// Where the payload of a read goes.
#[derive(Debug)]
pub(super) enum Sink {
    None,
    /// To the caller's own buffer, from this position on.
    Borrowed {
        at: usize,
        aside: Aside,
    },
    /// To a buffer that was handed over.
    Owned(Vec<u8>),
}

/// A thread in a call, or a queue.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) wake: Arc<Condvar>,
    /// What it waits for, if it does.
    pub(super) waits: Option<Until>,
    pub(super) done: VecDeque<Done>,
}

/// A request that is complete.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) cookie: Cookie,
    pub(crate) result: Result<Outcome, Error>,
    /// The buffer that was handed over with it.
    pub(crate) buffer: Option<Vec<u8>>,
    pub(super) aside: Option<(usize, Aside)>,
}

impl State {
    pub(super) fn new(transmission: Transmission) -> Self {
        Self {
            transmission,
            entries: Vec::new(),
            callers: Vec::new(),
            free_callers: Vec::new(),
            wait_for_room: 0,
            wait_for_others: 0,
            inbox: Some(Inbox::new()),
            reader: None,
            large: 0,
            outbox: Outbox::default(),
            spare: Outbox::default(),
            writing: false,
            closing: false,
            goodbye: false,
            lost: None,
            load: Arc::default(),
        }
    }

    /// Whether there can be more requests: not when either side wants an end.
    pub(super) fn takes_requests(&self) -> bool {
        !self.closing && self.lost.is_none() && !self.transmission.server_shuts_down()
    }

    /// Tells others how much there is to do.
    pub(super) fn note_load(&self) {
        let load = if self.takes_requests() {
            self.transmission.in_flight()
        } else {
            CLOSED
        };
        self.load.store(load, Ordering::Relaxed);
    }

    /// Takes a place among the callers.
    pub(super) fn enter(&mut self) -> usize {
        self.free_callers.pop().unwrap_or_else(|| {
            self.callers.push(Caller {
                wake: Arc::default(),
                waits: None,
                done: VecDeque::new(),
            });
            self.callers.len() - 1
        })
    }

    /// Gives a place back. Requests that were made from it and are not complete are abandoned.
    pub(super) fn leave(&mut self, place: usize) {
        for slot in 0..self.entries.len() {
            if self.entries[slot].caller == place
                && let Some(cookie) = self.entries[slot].cookie
            {
                self.abandon(cookie);
            }
        }
        self.callers[place].done.clear();
        self.callers[place].waits = None;
        self.free_callers.push(place);
        self.pass_on();
    }

    /// The entry of a request.
    pub(super) fn entry(&mut self, cookie: Cookie) -> &mut Entry {
        let slot = cookie.slot();
        if self.entries.len() <= slot {
            self.entries.resize_with(slot + 1, || Entry {
                cookie: None,
                command: Command::Disc,
                caller: NOBODY,
                deadline: None,
                large: false,
                sink: Sink::None,
            });
        }
        &mut self.entries[slot]
    }

    /// Reports a request as complete to whoever waits for it.
    pub(super) fn complete(&mut self, cookie: Cookie, result: Result<Outcome, Error>) {
        let entry = &mut self.entries[cookie.slot()];
        entry.cookie = None;
        self.large -= usize::from(entry.large);
        let caller = mem::replace(&mut entry.caller, NOBODY);
        let (buffer, aside) = match mem::replace(&mut entry.sink, Sink::None) {
            Sink::None => (None, None),
            Sink::Owned(buffer) => (Some(buffer), None),
            Sink::Borrowed { aside, .. } if aside.is_empty() => (None, None),
            Sink::Borrowed { at, aside } => (None, Some((at, aside))),
        };
        if let Some(caller) = self.callers.get_mut(caller) {
            caller.done.push_back(Done {
                cookie,
                result,
                buffer,
                aside,
            });
            if caller.waits.is_some() {
                caller.wake.notify_one();
            }
        }
        if self.transmission.server_shuts_down() {
            while self.wait_for_room > 0 {
                self.wake_for_room();
            }
        }
        self.note_load();
        self.wake_for_room();
        if self.wait_for_others > 0 {
            let until = Some(Until::Answered(cookie));
            let waiting = self.callers.iter().filter(|caller| caller.waits == until);
            waiting.for_each(|caller| caller.wake.notify_one());
        }
    }

    /// Whether a request has been answered.
    pub(super) fn is_answered(&self, cookie: Cookie) -> bool {
        let entry = self.entries.get(cookie.slot());
        entry.is_none_or(|entry| entry.cookie != Some(cookie))
    }

    /// Wakes a caller that waits until one more request may be in flight.
    pub(super) fn wake_for_room(&mut self) {
        if self.wait_for_room > 0
            && let Some(caller) = self
                .callers
                .iter_mut()
                .find(|caller| caller.waits == Some(Until::Room))
        {
            // The next one to be woken is another one.
            caller.waits = None;
            self.wait_for_room -= 1;
            caller.wake.notify_one();
        }
    }

    /// Gives up a request: its reply is read and thrown away when it comes.
    pub(super) fn abandon(&mut self, cookie: Cookie) {
        self.transmission.abandon(cookie);
        let entry = &mut self.entries[cookie.slot()];
        if self.reader == Some(entry.caller) {
            self.reader = None;
        }
        entry.caller = NOBODY;
        entry.sink = Sink::None;
    }

    /// Ends the connection for everybody.
    pub(super) fn lose(&mut self, why: Lost) {
        if self.lost.is_none() {
            self.lost = Some(Arc::new(why));
            self.note_load();
        }
        for caller in &self.callers {
            caller.wake.notify_all();
        }
    }

    /// Wakes the caller that is to read on, or any that waits.
    pub(super) fn pass_on(&self) {
        if self.inbox.is_none() {
            return;
        }
        let next = match self.reader {
            Some(reader) => self.callers.get(reader),
            None => self.callers.iter().find(|caller| caller.waits.is_some()),
        };
        if let Some(caller) = next {
            caller.wake.notify_one();
        }
    }
}
