//! Coming back after a connection was lost.

use super::{
    link::{Keeper, Link, Request},
    pool::{Plan, Pool},
    timed::{until, within},
};
use crate::{
    client::{Error, Lost},
    runtime::Network,
};
use bytes::BytesMut;
use nbd_proto::CommandFlags;
use std::{
    collections::VecDeque,
    future::poll_fn,
    hash::{BuildHasher, Hasher, RandomState},
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};

/// Whether and how a client makes a new connection when one is lost.
///
/// Until there is one, requests wait, and those that were in flight are sent again; none of them
/// was answered, so that a server that carries out one twice does no harm. It is tried until one of
/// the limits below is reached; then every request fails with the reason. An export whose size,
/// flags, block sizes or meta contexts are not what they were is refused.
///
/// A connection that is lost again before it has lasted as long as the longest delay counts as an
/// attempt that failed, so that a server that ends at every request is not called for ever.
///
/// When one of several connections is lost, all are made anew, unless the export is read-only: if
/// the server has crashed, what the others still bring is from before.
///
/// What a program can rely on:
///
/// * What was [flushed](super::Client::flush), or written with
///   [`FUA`](nbd_proto::CommandFlags::FUA), is on stable storage.
/// * Writes that were answered and not flushed may be gone if the server crashed, as those of any
///   disk. If there were any when a connection was lost, the next flush of each clone of the client
///   fails with [`Error::Unflushed`], once. With [`keep_unflushed`](Reconnect::keep_unflushed)
///   they are written again instead.
/// * Requests that follow each other, because one was begun after the other was answered, stay in
///   that order.
/// * Requests that overlap and were in flight at once may be carried out in another order when they
///   are sent again, even if all were answered and not flushed.
///
/// What it cannot: the protocol has no way to make sure that a server that was cut off has finished
/// with the requests of the lost connection. If it still works on a write that was sent again, that
/// write may be carried out a second time after later ones. Servers that crash or stop do not.
#[derive(Clone, Debug)]
pub struct Reconnect {
    attempts: Option<u32>,
    first_delay: Duration,
    longest_delay: Duration,
    total: Option<Duration>,
    pub(super) kept: u64,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

impl Reconnect {
    /// Any number of attempts within 5 min, the first at once, the second after 100 ms, then each
    /// after twice the time of the one before but no more than 10 s, all of these times cut by
    /// chance to between a half and the whole. Unflushed writes are not kept.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            attempts: None,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(10),
            total: Some(Duration::from_secs(300)),
            kept: 0,
        }
    }

    /// How often to try, each time a connection is lost. `None` sets no limit.
    #[must_use]
    pub const fn attempts(mut self, attempts: Option<u32>) -> Self {
        self.attempts = attempts;
        self
    }

    /// How long to wait before the second attempt, and the longest time before any later one.
    #[must_use]
    pub const fn delay(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// How long to try, each time a connection is lost. `None` sets no limit.
    #[must_use]
    pub const fn total_time(mut self, total: Option<Duration>) -> Self {
        self.total = total;
        self
    }

    /// How long to wait after so many attempts, of which the first went without.
    fn delay_after(&self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts).unwrap_or(u32::MAX);
        self.first_delay
            .saturating_mul(factor)
            .min(self.longest_delay)
    }

    /// Keeps writes until they are flushed, up to so many bytes beside what is in flight, and
    /// writes them again on a new connection before anything else. A write that would be one too
    /// many flushes first. 0, the default, keeps none.
    ///
    /// Of exports that cannot be flushed nothing is kept.
    #[must_use]
    pub const fn keep_unflushed(mut self, bytes: u64) -> Self {
        self.kept = bytes;
        self
    }
}

/// How the connections of a client are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionState {
    /// There is at least one.
    Connected,
    /// There is none, and a new one is being made. Requests wait.
    #[non_exhaustive]
    Reconnecting {
        /// The number of the attempt, from 1; 0 before the first.
        attempt: u32,
        /// How the last connection was lost.
        cause: Arc<Lost>,
    },
    /// There will be none any more.
    Over(Arc<Lost>),
}

impl ConnectionState {
    pub(super) const fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reconnecting { attempt: ours, .. }, Self::Reconnecting { attempt, .. }) => {
                *ours == *attempt
            }
            (Self::Connected, Self::Connected) | (Self::Over(_), Self::Over(_)) => true,
            _ => false,
        }
    }
}

/// Requests that changed the export, and whether they are on stable storage.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// How many were answered.
    pub(super) count: u64,
    /// The last one that may not be on stable storage.
    unflushed: u64,
    flushed: u64,
    /// How often some of them may have been lost.
    pub(super) tears: u64,
    kept: VecDeque<(u64, Request)>,
    kept_bytes: u64,
    /// What is kept has to be sent again before anything else.
    pub(super) torn: bool,
    /// The connection over which this is being done.
    pub(super) repairer: Option<usize>,
}

/// What a kept request counts for beside its payload, in bytes.
const OVERHEAD: u64 = 128;

fn size(request: &Request) -> u64 {
    match request {
        Request::Write { payload, .. } => payload.len() as u64 + OVERHEAD,
        _ => OVERHEAD,
    }
}

impl Changes {
    /// A request was answered.
    pub(super) fn add(&mut self, request: &Request, keep: bool) {
        self.count += 1;
        if !request.has(CommandFlags::FUA) {
            self.unflushed = self.count;
        }
        // One that is on stable storage is kept if an older one would overwrite it.
        if keep && (self.unflushed == self.count || !self.kept.is_empty()) {
            self.kept_bytes += size(request);
            self.kept.push_back((self.count, request.clone()));
        }
    }

    /// Whether one more request fits into what may be kept.
    pub(super) fn has_room(&self, request: &Request, limit: u64) -> bool {
        self.kept.is_empty() || self.kept_bytes + size(request) <= limit
    }

    /// A flush was answered that was sent when there were `count`.
    pub(super) fn flush(&mut self, count: u64) {
        self.flushed = self.flushed.max(count);
        while let Some((number, request)) = self.kept.front()
            && *number <= count
        {
            self.kept_bytes -= size(request);
            self.kept.pop_front();
        }
    }

    /// A connection was lost.
    pub(super) fn tear(&mut self, keep: bool) {
        if keep {
            self.torn = !self.kept.is_empty();
            self.repairer = None;
        } else if self.unflushed > self.flushed {
            self.flushed = self.count;
            self.tears += 1;
        }
    }
}

/// Keeps one connection of a client up until there is no client any more.
pub(super) async fn keep<R: Network>(
    pool: Weak<Pool<R>>,
    plan: Arc<Plan<R>>,
    index: usize,
    link: Arc<Link>,
) {
    let runtime = &plan.options.runtime;
    let mut keeper = Keeper::new(link, runtime.clone());
    let end = End { pool, index };
    let pool = &end.pool;
    let mut attempt = 0;
    let mut deadline = None;
    loop {
        let lost = match &plan.options.reconnect {
            // What is lost again right away was no success, or a request that a server dies of
            // would be sent to it for ever.
            Some(policy) => match within(runtime, Some(policy.longest_delay), &mut keeper).await {
                Some(lost) => lost,
                None => {
                    attempt = 0;
                    deadline = None;
                    (&mut keeper).await
                }
            },
            None => (&mut keeper).await,
        };
        let again = pool.upgrade().is_some_and(|pool| pool.lost(index, &lost));
        let Some(policy) = plan.options.reconnect.as_ref().filter(|_| again) else {
            return;
        };
        if deadline.is_none() {
            deadline = policy.total.map(|total| runtime.sleep(total));
        }
        let mut last = Error::Lost(lost);
        let trying = attempts(pool, &plan, index, policy, &mut attempt, &mut last);
        match until::<R, _>(&mut deadline, trying).await.flatten() {
            Some(new) => keeper = new,
            None => {
                if let Some(pool) = pool.upgrade() {
                    pool.not_repaired(index);
                    pool.give_up(Lost::NotRestored {
                        attempts: attempt,
                        source: Arc::new(last),
                    });
                }
                return;
            }
        }
    }
}

/// The end of the task behind a connection, also when its runtime is shut down before.
struct End<R: Network> {
    pool: Weak<Pool<R>>,
    index: usize,
}

impl<R: Network> Drop for End<R> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.lost(self.index, &Arc::new(Lost::Disconnected));
            pool.give_up(Lost::Disconnected);
        }
    }
}

/// Makes a new connection and publishes it; `None` if it is of no use to try on.
async fn attempts<R: Network>(
    pool: &Weak<Pool<R>>,
    plan: &Arc<Plan<R>>,
    index: usize,
    policy: &Reconnect,
    attempt: &mut u32,
    last: &mut Error,
) -> Option<Keeper<R>> {
    let runtime = &plan.options.runtime;
    while policy.attempts.is_none_or(|most| *attempt < most) {
        if let Some(before) = attempt.checked_sub(1) {
            runtime.sleep(by_chance(policy.delay_after(before))).await;
        }
        *attempt = attempt.saturating_add(1);
        pool.upgrade().filter(|pool| pool.trying(*attempt))?;
        let link = match plan.another().await {
            Ok(link) => link,
            Err(error) => {
                let changed =
                    matches!(&error, Error::Lost(lost) if matches!(**lost, Lost::Changed { .. }));
                *last = error;
                if changed {
                    return None;
                }
                continue;
            }
        };
        let mut keeper = Keeper::new(link.clone(), runtime.clone());
        let mut joining = pin!(join(pool, index, &link));
        let joined = poll_fn(|cx| match joining.as_mut().poll(cx) {
            Poll::Ready(joined) => Poll::Ready(joined),
            Poll::Pending => Pin::new(&mut keeper)
                .poll(cx)
                .map(|lost| Err(Error::Lost(lost))),
        })
        .await;
        match joined {
            Ok(true) => return Some(keeper),
            Ok(false) => {
                link.close();
                keeper.await;
                return None;
            }
            Err(error) => {
                if let Some(pool) = pool.upgrade() {
                    pool.not_repaired(index);
                }
                let lost = error.is_lost();
                *last = error;
                if !lost {
                    // What was promised to be there cannot be written.
                    link.close();
                    keeper.await;
                    return None;
                }
            }
        }
    }
    None
}

/// Does what has to be done before requests may use the connection, and then lets them. Whether
/// there is anybody to make some.
async fn join<R: Network>(
    pool: &Weak<Pool<R>>,
    index: usize,
    link: &Arc<Link>,
) -> Result<bool, Error> {
    let mut asked = None;
    loop {
        let joined = poll_fn(|cx| match pool.upgrade() {
            Some(pool) => pool.poll_join(index, link, asked.as_ref(), cx),
            None => Poll::Ready(Joined::Closed),
        })
        .await;
        match joined {
            Joined::Closed => return Ok(false),
            Joined::Published => return Ok(true),
            Joined::Ask(other) => {
                asked = match other.call(Request::Flush, BytesMut::new()).await.result {
                    Err(Error::Timeout { .. }) => None,
                    Err(Error::Lost(_)) => Some((other, false)),
                    _ => Some((other, true)),
                };
            }
            Joined::Repair => {
                let Some(kept) = pool.upgrade().map(|pool| pool.kept()) else {
                    return Ok(false);
                };
                // One after the other, because they may overlap.
                for request in kept {
                    link.call(request, BytesMut::new()).await.result?;
                }
                if let Some(pool) = pool.upgrade() {
                    pool.repaired(index, link);
                }
            }
        }
    }
}

/// What became of a connection that was made anew, or what has to be done with it.
#[derive(Debug)]
pub(super) enum Joined {
    Published,
    Closed,
    /// What is kept is to be sent over it.
    Repair,
    /// Another connection is to be asked whether it still talks to the server.
    Ask(Arc<Link>),
}

impl Changes {
    pub(super) fn kept(&self) -> Vec<Request> {
        self.kept
            .iter()
            .map(|(_, request)| request.clone())
            .collect()
    }
}

/// Between a half and the whole of a time.
fn by_chance(time: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish();
    let part = u32::try_from(chance % 1024).unwrap_or(0);
    time / 2 + time / 2 / 1024 * part
}
