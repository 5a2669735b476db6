//! A connection on its way into the pool. Calls move it on, one step at a time.

use super::{another, reconnecting::ReconnectingPool};
use crate::{
    Blocking, Error, Lost,
    client::ends,
    dial_clock::DialClock,
    link::{Call, Link},
};
use nbd_io::client::{Common, DialId, Epoch, Join, Request};
use nbd_proto::client::Cookie;
use std::{
    collections::VecDeque,
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

/// A dial that has begun.
pub(super) struct Dial {
    pub(super) id: DialId,
    /// Another one has to come first.
    pub(super) waits: bool,
    clock: DialClock,
    by: Option<Instant>,
    stage: Stage,
}

enum Stage {
    Connecting(Connecting),
    /// There is a connection that is no member yet.
    Joining(Arc<Link>, Option<Asked>),
}

type Connecting = Pin<Box<dyn Future<Output = Result<Arc<Link>, Error>> + Send>>;

/// A request of the pool's own.
struct Asked {
    link: Arc<Link>,
    place: usize,
    /// The cookie under which it is in flight, or the error for which it is not.
    sent: Result<Cookie, Error>,
    purpose: Purpose,
}

enum Purpose {
    /// Writes again changes that may be lost: those that come after the one in flight, and the
    /// epoch that will have been replayed then.
    Replay(VecDeque<Request>, Epoch),
    /// Shows whether a member still talks to the server.
    Probe,
}

impl Dial {
    pub(super) fn new(id: DialId, common: &Arc<Common<Blocking>>, by: Option<Instant>) -> Self {
        let clock = DialClock::new();
        let (common, driver) = (common.clone(), Blocking::with(clock.clone()));
        let within = by.map(|by| by.saturating_duration_since(Instant::now()));
        let connecting = async move { another(&common, &driver, within).await };
        Self {
            id,
            waits: false,
            clock,
            by,
            stage: Stage::Connecting(Box::pin(connecting)),
        }
    }

    /// Moves it on until the connection is a member or there will be none, but not longer than
    /// `until`.
    pub(super) fn step(
        &mut self,
        pool: &ReconnectingPool,
        until: Instant,
    ) -> Poll<Result<(), Error>> {
        self.waits = false;
        self.clock.step(until);
        loop {
            let (link, asked) = match &mut self.stage {
                Stage::Connecting(connecting) => {
                    let mut context = Context::from_waker(Waker::noop());
                    let link = ready!(connecting.as_mut().poll(&mut context))?;
                    self.stage = Stage::Joining(link, None);
                    continue;
                }
                Stage::Joining(link, asked) => (&*link, asked),
            };
            let mut replayed = None;
            if let Some(waiting) = asked {
                let answer = waiting.poll(until);
                let by = self.clock.extended(self.by);
                if answer.is_pending() && by.is_some_and(|by| by <= Instant::now()) {
                    let late = io::Error::from(io::ErrorKind::TimedOut);
                    return Poll::Ready(Err(Error::lost(late)));
                }
                let answer = ready!(answer);
                match &mut waiting.purpose {
                    Purpose::Replay(rest, epoch) => {
                        answer?;
                        if let Some(next) = rest.pop_front() {
                            // One after the other, because they may overlap.
                            let rest = Purpose::Replay(mem::take(rest), *epoch);
                            *asked = Some(Asked::new(link, &next, rest));
                            continue;
                        }
                        replayed = Some(*epoch);
                    }
                    Purpose::Probe => match answer {
                        Err(error) if ends(&error) => pool.lost(&waiting.link),
                        Err(error @ Error::Timeout { .. }) => return Poll::Ready(Err(error)),
                        // Any answer shows that the server answers.
                        _ => pool.lock().members.probed(self.id, &waiting.link),
                    },
                }
                *asked = None;
            }
            let (join, (epoch, kept)) = pool.join(self.id, link, replayed);
            match join {
                Join::Joined => return Poll::Ready(Ok(())),
                Join::Unwanted => return Poll::Ready(Err(Error::lost(Lost::Disconnected))),
                Join::Wait => {
                    self.waits = true;
                    return Poll::Pending;
                }
                Join::Probe(other) => {
                    *asked = Some(Asked::new(&other, &Request::Flush, Purpose::Probe));
                }
                Join::Replay => {
                    let mut kept = VecDeque::from(kept);
                    // There is something, or nothing could be lost.
                    let first = kept.pop_front().unwrap_or(Request::Flush);
                    *asked = Some(Asked::new(link, &first, Purpose::Replay(kept, epoch)));
                }
            }
        }
    }
}

impl Asked {
    fn new(link: &Arc<Link>, request: &Request, purpose: Purpose) -> Self {
        let place = link.enter();
        let sent = link.submit(place, Call::Owned(request.clone()), &mut [], None);
        Self {
            link: link.clone(),
            place,
            sent,
            purpose,
        }
    }

    fn poll(&self, until: Instant) -> Poll<Result<(), Error>> {
        let answer = match &self.sent {
            Ok(cookie) => self.link.wait_by(self.place, *cookie, until),
            Err(error) => Err(error.clone()),
        };
        match answer {
            Ok(Some(done)) => Poll::Ready(done.reply.into_result().map(drop)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.link.leave(self.place);
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("id", &self.id)
            .field("by", &self.by)
            .finish_non_exhaustive()
    }
}
