//! Changes of the same bytes, one after the other, for threads.

use crate::link::Link;
use nbd_io::client::{Claim, Owner, RangeLocks};
use nbd_proto::client::Cookie;
use std::{
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

/// Ranges that are being changed, or will be, and who waits for each.
///
/// A change may be in flight when no thread waits for its answer any more, because it was late or
/// belongs to a queue. The next thread then waits for that answer at the connection itself, since
/// there may be no other thread that reads there.
#[derive(Debug, Default)]
pub(crate) struct SharedRangeLocks(Mutex<RangeLocks<Holder>>);

/// The owner of a claim.
#[derive(Debug)]
struct Holder {
    /// A thread has the lock of a range, or waits for it.
    is_thread: bool,
    /// Wakes that thread, if it waits.
    wake: Option<Arc<Condvar>>,
    /// Requests in flight to which the lock was left.
    in_flight: Vec<(Weak<Link>, Cookie)>,
}

/// A range that no other change may touch. A thread has it.
#[derive(Debug)]
pub(crate) struct RangeGuard {
    range_locks: Arc<SharedRangeLocks>,
    claim: Claim,
}

/// A guard that was left to a request in flight, until this is dropped.
#[derive(Debug)]
pub(crate) struct LeftGuard {
    range_locks: Arc<SharedRangeLocks>,
    claim: Claim,
    link: Weak<Link>,
    cookie: Cookie,
}

impl SharedRangeLocks {
    /// An owner of several changes that do not wait for each other.
    pub(crate) fn owner(&self) -> Owner {
        self.lock().owner()
    }

    /// Waits until all changes of the same bytes that came before have ended: they were answered,
    /// or their connection is over. `None` if that is too late.
    pub(crate) fn lock_range(
        self: &Arc<Self>,
        range: Range<u64>,
        owner: Option<Owner>,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Option<RangeGuard> {
        let mut locks = self.lock();
        let holder = Holder {
            is_thread: true,
            wake: None,
            in_flight: Vec::new(),
        };
        let claim = locks.enter(range, owner, holder);
        let guard = RangeGuard {
            range_locks: self.clone(),
            claim,
        };
        if locks.is_held(claim) {
            return Some(guard);
        }
        let deadline = deadline();
        let wake = Arc::<Condvar>::default();
        if let Some(holder) = locks.get_mut(claim) {
            holder.wake = Some(wake.clone());
        }
        while !locks.is_held(claim) {
            let left = locks.before(claim).find_map(|before| {
                let holder = locks.get(before).filter(|holder| !holder.is_thread)?;
                let (link, cookie) = holder.in_flight.last()?;
                Some((before, link.clone(), *cookie))
            });
            locks = match left {
                Some((before, link, cookie)) => {
                    drop(locks);
                    let is_over = |link: Arc<Link>| link.wait_until_answered(cookie, deadline);
                    if !link.upgrade().is_none_or(is_over) {
                        return None;
                    }
                    let mut locks = self.lock();
                    answered(&mut locks, before, &link, cookie);
                    locks
                }
                None => wait(&wake, locks, deadline)?, // the guard needs the mutex to end
            };
        }
        Some(guard)
    }

    fn lock(&self) -> Locks<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Locks<'a> = MutexGuard<'a, RangeLocks<Holder>>;

fn wait<'a>(wake: &Condvar, locks: Locks<'a>, deadline: Option<Instant>) -> Option<Locks<'a>> {
    let Some(deadline) = deadline else {
        let woken = wake.wait(locks);
        return Some(woken.unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.checked_duration_since(Instant::now())?;
    let woken = wake.wait_timeout(locks, left);
    Some(woken.unwrap_or_else(PoisonError::into_inner).0)
}

impl Holder {
    fn notify(&self) {
        if let Some(wake) = &self.wake {
            wake.notify_one();
        }
    }
}

/// A request to which a guard was left was answered, or never will be.
fn answered(locks: &mut RangeLocks<Holder>, claim: Claim, link: &Weak<Link>, cookie: Cookie) {
    if let Some(holder) = locks.get_mut(claim) {
        let is_other = |(of, other): &(Weak<Link>, Cookie)| !of.ptr_eq(link) || *other != cookie;
        holder.in_flight.retain(is_other);
        end(locks, claim);
    }
}

/// Ends a claim that neither a thread nor a request has.
fn end(locks: &mut RangeLocks<Holder>, claim: Claim) {
    let Some(holder) = locks.get(claim).filter(|holder| !holder.is_thread) else {
        return;
    };
    let is_over = holder.in_flight.is_empty();
    // They may have to read by themselves from now on, for this one or for one before it.
    let waiting = locks.after(claim).filter_map(|after| locks.get(after));
    waiting.for_each(Holder::notify);
    if is_over {
        locks.leave(claim, |next| next.notify());
    }
}

impl RangeGuard {
    /// Leaves the lock to a request that is in flight, until it is answered.
    pub(crate) fn leave_to(&self, link: &Arc<Link>, cookie: Cookie) {
        let left = LeftGuard {
            range_locks: self.range_locks.clone(),
            claim: self.claim,
            link: Arc::downgrade(link),
            cookie,
        };
        if let Some(holder) = self.range_locks.lock().get_mut(self.claim) {
            holder.in_flight.push((left.link.clone(), cookie));
        }
        link.leave_guard(left, cookie);
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut locks = self.range_locks.lock();
        if let Some(holder) = locks.get_mut(self.claim) {
            holder.is_thread = false;
            holder.wake = None;
        }
        end(&mut locks, self.claim);
    }
}

impl Drop for LeftGuard {
    fn drop(&mut self) {
        let mut locks = self.range_locks.lock();
        answered(&mut locks, self.claim, &self.link, self.cookie);
    }
}
