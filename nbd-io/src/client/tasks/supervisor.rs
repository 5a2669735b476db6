//! The task that makes lost connections of a client anew, as its pool decides.

use super::{
    link::{Link, Request},
    pool::Pool,
    timed::within,
};
use crate::{
    client::{Common, DialId, Epoch, Error, Join, Lost, Next},
    runtime::Network,
    watchers::WatcherId,
};
use bytes::BytesMut;
use nbd_proto::Errno;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

/// Dials until there is no client any more, or it is over. It is dropped without having ended when
/// its runtime is shut down: then no connection is made any more.
pub(super) struct Supervisor<R: Network> {
    pool: Weak<Pool<R>>,
    common: Arc<Common<R>>,
    place: WatcherId,
    dials: Vec<(DialId, Task)>,
    /// A timer, and when it ends.
    pause: Option<(Duration, R::Sleep)>,
    has_ended: bool,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<R: Network> Supervisor<R> {
    pub(super) fn new(pool: &Arc<Pool<R>>) -> Self {
        Self {
            pool: Arc::downgrade(pool),
            common: pool.common.clone(),
            place: None,
            dials: Vec::new(),
            pause: None,
            has_ended: false,
        }
    }

    /// Whether a time has come.
    fn has_come(&mut self, due: Duration, cx: &mut Context<'_>) -> bool {
        let runtime = &self.common.runtime();
        let pause = match &mut self.pause {
            Some((end, pause)) if *end == due => pause,
            pause => {
                let time = due.saturating_sub(runtime.now());
                &mut pause.insert((due, runtime.sleep(time))).1
            }
        };
        if Pin::new(pause).poll(cx).is_pending() {
            return false;
        }
        self.pause = None;
        true
    }
}

// Nothing is pinned in it: timers can be moved, and dials are in boxes.
impl<R: Network> Unpin for Supervisor<R> {}

impl<R: Network> Future for Supervisor<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let Some(pool) = this.pool.upgrade() else {
                this.has_ended = true;
                this.dials.clear();
                return Poll::Ready(());
            };
            let due = match pool.poll_next(&mut this.place, cx) {
                Next::Dial { dial, by } => {
                    let dialing = Dialing {
                        pool: this.pool.clone(),
                        common: this.common.clone(),
                        dial,
                        place: None,
                    };
                    this.dials.push((dial, Box::pin(dialing.until(by))));
                    continue;
                }
                Next::Wait(due) => due,
                Next::Over => {
                    this.has_ended = true;
                    this.dials.clear();
                    return Poll::Ready(());
                }
            };
            this.dials.retain(|(dial, _)| pool.is_wanted(*dial));
            drop(pool);
            let before = this.dials.len();
            let dials = &mut this.dials;
            dials.retain_mut(|(_, dialing)| dialing.as_mut().poll(cx).is_pending());
            let has_done = dials.len() < before;
            if !has_done && !due.is_some_and(|due| this.has_come(due, cx)) {
                return Poll::Pending;
            }
        }
    }
}

impl<R: Network> Drop for Supervisor<R> {
    fn drop(&mut self) {
        if let (false, Some(pool)) = (self.has_ended, self.pool.upgrade()) {
            pool.end();
        }
    }
}

/// One dial.
struct Dialing<R: Network> {
    pool: Weak<Pool<R>>,
    common: Arc<Common<R>>,
    dial: DialId,
    place: WatcherId,
}

/// A connection that is closed unless it becomes a member.
struct Candidate {
    link: Arc<Link>,
    state: CandidateState,
}

enum CandidateState {
    /// Nothing that changes the export is in flight.
    Idle,
    Replaying,
    Joined,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        match self.state {
            CandidateState::Idle => {
                self.link.close();
            }
            // Requests that are not sent yet must not be sent: another connection replays the same,
            // and later changes follow there.
            CandidateState::Replaying => self.link.abort(Lost::GivenUp),
            CandidateState::Joined => {}
        }
    }
}

impl<R: Network> Dialing<R> {
    async fn until(mut self, by: Option<Duration>) {
        let common = self.common.clone();
        let runtime = common.runtime();
        let time = by.map(|by| by.saturating_sub(runtime.now()));
        let late = || Err(Error::lost(io::Error::from(io::ErrorKind::TimedOut)));
        let dialed = within(runtime, time, self.dial()).await;
        if let (Err(error), Some(pool)) = (dialed.unwrap_or_else(late), self.pool.upgrade()) {
            pool.failed(self.dial, error);
        }
    }

    async fn dial(&mut self) -> Result<(), Error> {
        let opened = self.common.another().await?;
        let link = opened.link.clone();
        self.common.keep(self.pool.clone(), opened);
        let mut candidate = Candidate {
            link,
            state: CandidateState::Idle,
        };
        self.join(&mut candidate).await?;
        candidate.state = CandidateState::Joined;
        Ok(())
    }

    /// Takes the steps that come before requests may use the connection, and then lets them.
    async fn join(&mut self, candidate: &mut Candidate) -> Result<(), Error> {
        let mut replayed = None;
        loop {
            let join = self.ask(&candidate.link, replayed.take()).await?;
            match join {
                Join::Joined => return Ok(()),
                Join::Unwanted => return Err(Error::lost(Lost::Disconnected)),
                Join::Wait => {}
                Join::Probe(other) => {
                    let answer = other.call(Request::Flush, BytesMut::new()).await.result();
                    let Some(pool) = self.pool.upgrade() else {
                        continue;
                    };
                    match answer {
                        Err(error @ Error::Timeout { .. }) => return Err(error),
                        Err(Error::Lost(_)) => pool.notice(&other),
                        // One that ends may do so beside the one that this connection is to.
                        Err(Error::Failed { source, .. }) if source.errno == Errno::Shutdown => {
                            pool.notice(&other);
                        }
                        _ => pool.probed(self.dial, &other),
                    }
                }
                Join::Replay => {
                    let Some(log) = &self.common.log else {
                        continue;
                    };
                    let (epoch, kept) = log.lock().replay();
                    candidate.state = CandidateState::Replaying;
                    // One after the other, because they may overlap.
                    for request in kept {
                        let call = candidate.link.call(request, BytesMut::new());
                        call.await.result()?;
                    }
                    candidate.state = CandidateState::Idle;
                    replayed = Some(epoch);
                }
            }
        }
    }

    async fn ask(
        &mut self,
        link: &Arc<Link>,
        replayed: Option<Epoch>,
    ) -> Result<Join<Link>, Error> {
        let Self {
            pool, dial, place, ..
        } = self;
        poll_fn(|cx| match pool.upgrade() {
            Some(pool) => pool.poll_join(*dial, link, replayed, place, cx),
            None => Poll::Ready(Ok(Join::Unwanted)),
        })
        .await
    }
}
