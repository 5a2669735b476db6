//! The log of unflushed changes, as the connections of a client share it.
//!
//! Its lock is a leaf: nothing else is locked while it is held, so that it may be taken under the
//! lock of a connection or of a pool.

use super::{Coverage, Epoch, Error, Lost, Reconnect, Request, WriteLog, engine::Ticket};
use crate::watchers::{self, Watchers};
use nbd_proto::{ExportInfo, client::Outcome};
use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

/// The log of a client.
#[derive(Clone, Debug)]
pub struct SharedLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Mutex<WriteLog>,
    /// Callers that wait for a flush of another one. Locked while the log is, or alone.
    waiting: Mutex<Watchers>,
}

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
        Self(Arc::new(Shared {
            log: Mutex::new(WriteLog::new(limit)),
            waiting: Mutex::default(),
        }))
    }

    /// Access to the log. Nothing else may be locked meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, WriteLog> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Watchers> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    /// For a change of [`Admission::WriteThrough`] that was answered and was sent in `epoch`.
    #[must_use]
    pub fn uncovered(&self, epoch: Epoch) -> Uncovered<'_> {
        Uncovered {
            log: self,
            epoch,
            answered: self.lock().answered(),
            place: None,
        }
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

/// A change that was answered, and counts as that when a flush has covered it.
#[derive(Debug)]
pub struct Uncovered<'a> {
    log: &'a SharedLog,
    epoch: Epoch,
    answered: u64,
    place: watchers::WatcherId,
}

/// The next step of the caller of a change that waits for a flush.
#[derive(Debug)]
#[must_use]
pub enum FlushStep {
    /// None: a flush has covered the change.
    Covered,
    /// To send the change again, because a connection was lost.
    SendAgain,
    /// To send a flush for all that wait, and to ask again.
    Flush(FlushTurn),
}

/// The turn to send a flush, until it is dropped.
#[derive(Debug)]
pub struct FlushTurn(SharedLog);

impl Uncovered<'_> {
    /// The next step. Pends while another caller has the turn to send a flush, and has `waker` woken
    /// when that ends.
    ///
    /// # Errors
    ///
    /// When the server failed the flush that would have covered the change.
    pub fn poll(&mut self, waker: &Waker) -> Poll<Result<FlushStep, Error>> {
        let mut log = self.log.lock();
        Poll::Ready(Ok(match log.cover(self.epoch, self.answered) {
            Coverage::Covered => FlushStep::Covered,
            Coverage::Lost => FlushStep::SendAgain,
            Coverage::Failed(error) => return Poll::Ready(Err(error)),
            Coverage::Flush => FlushStep::Flush(FlushTurn(self.log.clone())),
            Coverage::Wait => {
                let old = self.log.waiting().watch(&mut self.place, waker);
                drop(log);
                drop(old);
                return Poll::Pending;
            }
        }))
    }
}

impl Drop for Uncovered<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let old = self.log.waiting().leave(self.place);
            drop(old);
        }
    }
}

impl Drop for FlushTurn {
    fn drop(&mut self) {
        self.0.lock().end_turn();
        let waiting = self.0.waiting().take();
        waiting.for_each(Waker::wake);
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
        if let Err(error) = result {
            if let (Effect::Flush { answered }, Error::Failed { .. }) = (effect, &*error) {
                self.log.lock().flush_failed(self.epoch, answered, error);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_proto::TransmissionFlags;
    use std::{
        sync::atomic::AtomicUsize,
        task::{Poll, Wake},
    };

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_for_a_flush_of_a_caller_that_gives_up_sends_one() {
        let export = ExportInfo::new(1 << 20, TransmissionFlags::SEND_FLUSH);
        let log = SharedLog::new(&Reconnect::new().keep_unflushed(1), &export);
        let link = LinkLog::new(log.clone());
        link.join();
        let mut done = Ok(Outcome::Done);
        link.change(false, None).answered(&mut done);
        let count = Arc::<Count>::default();
        let waker = Waker::from(count.clone());
        let woken = || count.0.load(Ordering::Relaxed);
        let (epoch, noop) = (log.lock().epoch(), Waker::noop());
        let [mut first, mut second, mut third] = [(); 3].map(|()| log.uncovered(epoch));
        let Poll::Ready(Ok(FlushStep::Flush(turn))) = first.poll(noop) else {
            panic!("no other caller sends one");
        };
        assert!(second.poll(&waker).is_pending() && third.poll(noop).is_pending());
        // One that waits no more is not woken.
        drop(third);
        drop(turn);
        assert_eq!((woken(), log.waiting().len()), (1, 0));
        let Poll::Ready(Ok(FlushStep::Flush(turn))) = second.poll(&waker) else {
            panic!("it is its turn");
        };
        link.flush().answered(&mut done);
        drop(turn);
        for change in [&mut first, &mut second] {
            let step = change.poll(&waker);
            assert!(
                matches!(step, Poll::Ready(Ok(FlushStep::Covered))),
                "{step:?}"
            );
        }
    }
}
