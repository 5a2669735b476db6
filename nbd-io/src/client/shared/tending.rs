//! The task behind each connection of a client, which makes it anew.

use super::{
    link::{Keeper, Link, Request},
    plan::Plan,
    pool::{Joined, Pool},
    timed::{until, within},
    watchers::Place,
};
use crate::{
    client::{Error, Lost, Reconnect, is_refusal},
    runtime::Network,
};
use bytes::BytesMut;
use nbd_proto::Errno;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::Poll,
};

/// Keeps one connection of a client up until there is no client any more.
pub(super) fn keep<R: Network>(
    pool: Weak<Pool<R>>,
    plan: Arc<Plan<R>>,
    index: usize,
    link: Arc<Link>,
) -> impl Future<Output = ()> + Send + 'static {
    // Both are made here, because a runtime that is shut down drops tasks that it has never begun.
    let keeper = Keeper::new(link, plan.options.runtime.clone());
    let tender = Tender {
        pool,
        plan,
        index,
        place: None,
    };
    tender.keep(keeper)
}

/// Who makes a connection anew. It is dropped without having ended when its runtime is shut down.
struct Tender<R: Network> {
    pool: Weak<Pool<R>>,
    plan: Arc<Plan<R>>,
    index: usize,
    /// Where it waits, always for one thing.
    place: Place,
}

impl<R: Network> Drop for Tender<R> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.ended(self.index);
        }
    }
}

impl<R: Network> Tender<R> {
    async fn keep(mut self, mut keeper: Keeper<R>) {
        let plan = self.plan.clone();
        let runtime = &plan.options.runtime;
        let mut attempt = 0;
        let mut deadline = None;
        loop {
            let lost = match &plan.options.reconnect {
                // What is lost again right away was no success, or a request that a server dies of
                // would be sent to it for ever.
                Some(policy) => match within(runtime, Some(policy.lasting()), &mut keeper).await {
                    Some(lost) => lost,
                    None => {
                        attempt = 0;
                        deadline = None;
                        (&mut keeper).await
                    }
                },
                None => (&mut keeper).await,
            };
            let lasted = attempt == 0;
            let pool = self.pool.upgrade();
            let again = pool.is_some_and(|pool| pool.lost(self.index, &lost, lasted));
            let Some(policy) = plan.options.reconnect.as_ref().filter(|_| again) else {
                return;
            };
            let mut last = Error::Lost(lost);
            keeper = loop {
                if deadline.is_none() {
                    deadline = policy.time_limit().map(|total| runtime.sleep(total));
                }
                let trying = self.attempts(policy, &mut attempt, &mut last);
                if let Some(new) = until::<R, _>(&mut deadline, trying).await.flatten() {
                    break new;
                }
                let why = Lost::NotRestored {
                    attempts: attempt,
                    source: Arc::new(last.clone()),
                };
                if !self.rest(why).await {
                    return;
                }
                attempt = 0;
                deadline = None;
            };
        }
    }

    /// Waits until a connection that could not be made anew is to be tried again. Whether it ever
    /// is.
    async fn rest(&mut self, why: Lost) -> bool {
        let Self {
            pool, index, place, ..
        } = self;
        if let Some(pool) = pool.upgrade() {
            pool.not_repaired(*index);
            pool.rest(*index, why);
        }
        poll_fn(|cx| match pool.upgrade() {
            Some(pool) => pool.poll_rest(*index, place, cx),
            None => Poll::Ready(false),
        })
        .await
    }

    /// What comes of `future`, unless nobody wants it any more.
    async fn if_wanted<O>(&mut self, future: impl Future<Output = O>) -> Option<O> {
        let Self { pool, place, .. } = self;
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            match pool.upgrade() {
                Some(pool) => pool.poll_unwanted(place, cx).map(|()| None),
                None => Poll::Ready(None),
            }
        })
        .await
    }

    /// Makes a new connection and publishes it; `None` if it is of no use to try on.
    async fn attempts(
        &mut self,
        policy: &Reconnect,
        attempt: &mut u32,
        last: &mut Error,
    ) -> Option<Keeper<R>> {
        let plan = self.plan.clone();
        let runtime = &plan.options.runtime;
        while policy.allows(*attempt) {
            if let Some(before) = attempt.checked_sub(1) {
                let pause = runtime.sleep(policy.delay_after(before));
                self.if_wanted(pause).await?;
            }
            *attempt = attempt.saturating_add(1);
            self.pool.upgrade()?.trying(*attempt);
            let link = match self.if_wanted(plan.another()).await? {
                Ok(link) => link,
                Err(error) => {
                    let changed = matches!(
                        &error,
                        Error::Lost(lost) if matches!(**lost, Lost::Changed { .. })
                    );
                    *last = error;
                    if changed {
                        return None;
                    }
                    continue;
                }
            };
            let mut keeper = Keeper::new(link.clone(), runtime.clone());
            let joined = self.join_kept(&link, &mut keeper).await;
            let error = match joined {
                Ok(true) => return Some(keeper),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            if let Some(pool) = self.pool.upgrade() {
                pool.not_repaired(self.index);
            }
            link.close();
            keeper.await;
            *last = error?;
            if is_refusal(last) {
                return None;
            }
        }
        None
    }

    /// Like [`join`](Self::join), of a connection that is kept up meanwhile.
    async fn join_kept(&mut self, link: &Arc<Link>, keeper: &mut Keeper<R>) -> Result<bool, Error> {
        let mut joining = pin!(self.join(link));
        poll_fn(|cx| match joining.as_mut().poll(cx) {
            Poll::Ready(joined) => Poll::Ready(joined),
            Poll::Pending => Pin::new(&mut *keeper)
                .poll(cx)
                .map(|lost| Err(Error::Lost(lost))),
        })
        .await
    }

    /// Does what has to be done before requests may use the connection, and then lets them. Whether
    /// there is anybody to make some.
    async fn join(&mut self, link: &Arc<Link>) -> Result<bool, Error> {
        let index = self.index;
        let mut asked = None;
        loop {
            let place = &mut self.place;
            let joined = poll_fn(|cx| match self.pool.upgrade() {
                Some(pool) => pool.poll_join(index, link, asked.as_ref(), place, cx),
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
                        // One that ends may do so beside the one that this connection is to.
                        Err(Error::Failed { source, .. }) if source.errno == Errno::Shutdown => {
                            Some((other, false))
                        }
                        _ => Some((other, true)),
                    };
                }
                Joined::Repair => {
                    let Some(kept) = self.pool.upgrade().map(|pool| pool.kept()) else {
                        return Ok(false);
                    };
                    // One after the other, because they may overlap.
                    for request in kept {
                        let call = link.call(request, BytesMut::new());
                        match self.if_wanted(call).await {
                            Some(done) => done.result?,
                            None => return Ok(false),
                        };
                    }
                    if let Some(pool) = self.pool.upgrade() {
                        pool.repaired(index, link);
                    }
                }
            }
        }
    }
}
