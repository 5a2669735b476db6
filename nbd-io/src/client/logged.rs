//! The log of unflushed changes, as the connections of a client share it.
//!
//! Its lock is a leaf: nothing else is locked while it is held, so that it may be taken under the
//! lock of a connection or of a pool.

use super::{Epoch, Error, Lost, Reconnect, Request, WriteLog, engine::Ticket};
use nbd_proto::{ExportInfo, client::Outcome};
use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The log of a client.
#[derive(Clone, Debug)]
pub struct SharedLog(Arc<Mutex<WriteLog>>);

/// The consequence of an answer to a change for the log.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Nothing: no copies are kept.
    Counted,
    /// Copies are kept in this room until they are flushed.
    Kept(Arc<Room>),
    /// There is no room. It counts as answered when a flush has covered it.
    WriteThrough,
}

/// Room for copies in a log. The unused rest is given back when it is dropped.
#[derive(Debug)]
pub struct Room {
    log: SharedLog,
    left: AtomicU64,
}

impl SharedLog {
    /// An empty log that keeps as much as the policy says, of an export that can be flushed.
    #[must_use]
    pub fn new(policy: &Reconnect, export: &ExportInfo) -> Self {
        let limit = if export.can_flush() {
            policy.keeps()
        } else {
            0
        };
        Self(Arc::new(Mutex::new(WriteLog::new(limit))))
    }

    /// Access to the log. Nothing else may be locked meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, WriteLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds room for a change of so many requests, which have so much payload together.
    #[must_use]
    pub fn admit(&self, payload: u64, requests: u64) -> Admission {
        let cost = WriteLog::cost(0).saturating_mul(requests);
        let cost = cost.saturating_add(payload);
        let mut log = self.lock();
        if !log.keeps() {
            Admission::Counted
        } else if log.reserve(cost) {
            Admission::Kept(Arc::new(Room {
                log: self.clone(),
                left: AtomicU64::new(cost),
            }))
        } else {
            Admission::WriteThrough
        }
    }
}

impl Admission {
    /// A request as it is kept, if it is. Its payload must be [its own](Request::detached), or more
    /// memory is held than there is room for.
    #[must_use]
    pub fn keep(&self, request: impl FnOnce() -> Request) -> Option<Kept> {
        let Self::Kept(room) = self else { return None };
        Some(Kept {
            request: request(),
            room: room.clone(),
        })
    }
}

/// A copy of a change, and the room for it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The change.
    pub request: Request,
    room: Arc<Room>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let left = *self.left.get_mut();
        if left > 0 {
            self.log.lock().release(left);
        }
    }
}

/// The log as one connection sees it.
#[derive(Debug)]
pub struct LinkLog {
    log: SharedLog,
    /// The [`Epoch`] in which it became a member.
    epoch: AtomicU64,
}

impl LinkLog {
    /// For a connection that is no member yet.
    #[must_use]
    pub const fn new(log: SharedLog) -> Self {
        Self {
            log,
            epoch: AtomicU64::new(Epoch::NONE.0),
        }
    }

    /// The connection is a member from now on. That has to be known before it is used.
    pub fn join(&self) {
        let Epoch(now) = self.log.lock().epoch();
        self.epoch.store(now, Ordering::Relaxed);
    }

    fn record(&self, effect: Effect) -> Record {
        Record {
            log: self.log.clone(),
            epoch: Epoch(self.epoch.load(Ordering::Relaxed)),
            effect,
        }
    }

    /// A flush that is about to be sent.
    #[must_use]
    pub fn flush(&self) -> Record {
        let answered = self.log.lock().answered();
        self.record(Effect::Flush { answered })
    }

    /// A change that is about to be sent, and its copy if it is kept.
    #[must_use]
    pub fn change(&self, forced: bool, kept: Option<Kept>) -> Record {
        self.record(Effect::Change { forced, kept })
    }
}

/// The entry that a request in flight makes in the log as soon as its reply is read: before the
/// next reply of the connection, and before its caller or the next change of the same bytes learns
/// of it. One that is dropped before leaves the log as it is.
#[derive(Debug)]
pub struct Record {
    log: SharedLog,
    epoch: Epoch,
    effect: Effect,
}

#[derive(Debug)]
enum Effect {
    None,
    Flush { answered: u64 },
    Change { forced: bool, kept: Option<Kept> },
}

/// An answer that does not count is [`Lost::GivenUp`]: the request has to be sent again.
impl Ticket for Record {
    fn answered(&mut self, result: &mut Result<Outcome, Error>) {
        let effect = mem::replace(&mut self.effect, Effect::None);
        if result.is_err() {
            return;
        }
        let room; // it needs the lock when it is given back
        let mut log = self.log.lock();
        let counts = match effect {
            Effect::None => true,
            Effect::Flush { answered } => log.flush(self.epoch, answered),
            Effect::Change { forced, kept: None } => log.change(self.epoch, forced, None),
            Effect::Change {
                forced,
                kept: Some(kept),
            } => {
                room = kept.room;
                let cost = WriteLog::cost(kept.request.weight());
                let counts = log.change(self.epoch, forced, Some(kept.request));
                if counts {
                    room.left.fetch_sub(cost, Ordering::Relaxed);
                }
                counts
            }
        };
        if !counts {
            *result = Err(Error::lost(Lost::GivenUp));
        }
    }
}
