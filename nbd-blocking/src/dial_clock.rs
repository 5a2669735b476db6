//! Limits of the time for which a call moves on a connection that is being made.

use nbd_socket::{Awaited, Reactor, Socket};
use std::{
    future::poll_fn,
    io,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

/// Zero of the clocks of clients and servers.
pub(crate) static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A gap between two steps of a dial that is longer does not count, because no call was there to
/// move it on.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// Time for which a dial may be waited for in place. After that its future pends, and is to be
/// polled again when a call has time for it; nothing wakes it. By default it is waited for until
/// the deadline of each step of the way, and never pends.
#[derive(Clone, Debug, Default)]
pub(crate) struct DialClock(Option<Arc<Mutex<Step>>>);

#[derive(Debug)]
struct Step {
    until: Instant,
    /// Time that does not count.
    gaps: Duration,
}

impl DialClock {
    /// Waits only where a [`step`](DialClock::step) says so.
    pub(crate) fn new() -> Self {
        let (until, gaps) = (Instant::now(), Duration::ZERO);
        Self(Some(Arc::new(Mutex::new(Step { until, gaps }))))
    }

    /// Whether futures pend.
    pub(crate) const fn suspends(&self) -> bool {
        self.0.is_some()
    }

    fn lock(&self) -> Option<MutexGuard<'_, Step>> {
        let step = self.0.as_ref()?;
        Some(step.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a step, which may take until then.
    pub(crate) fn step(&self, until: Instant) {
        if let Some(mut step) = self.lock() {
            let gap = Instant::now().saturating_duration_since(step.until);
            step.gaps += gap.saturating_sub(LONGEST_GAP);
            step.until = until;
        }
    }

    /// When a deadline is that was set before some gaps.
    pub(crate) fn extended(&self, deadline: Option<Instant>) -> Option<Instant> {
        let gaps = self.lock().map_or(Duration::ZERO, |step| step.gaps);
        deadline.and_then(|deadline| deadline.checked_add(gaps))
    }

    /// Waits until a socket can be read from or written to. Pends if only this step is over.
    pub(crate) fn poll(
        &self,
        socket: &Socket,
        read: bool,
        write: bool,
        deadline: Option<Instant>,
    ) -> Poll<io::Result<()>> {
        let deadline = self.extended(deadline);
        let until = self.lock().map(|step| step.until);
        let suspends = until.filter(|until| deadline.is_none_or(|deadline| *until < deadline));
        match socket.wait(read, write, suspends.or(deadline)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && suspends.is_some() => {
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }

    /// A clock that stands still in those gaps.
    pub(crate) fn now(&self) -> Instant {
        let gaps = self.lock().map_or(Duration::ZERO, |step| step.gaps);
        let now = Instant::now();
        now.checked_sub(gaps).unwrap_or(now)
    }

    /// Waits for an event of connecting, until [`now`](DialClock::now) is `until`. Pends if only
    /// this step is over.
    pub(crate) fn poll_for(
        &self,
        what: &Awaited<'_, Socket>,
        until: Option<Instant>,
    ) -> Poll<io::Result<()>> {
        let until = self.extended(until);
        let step_ends = self.lock().map(|step| step.until);
        let suspends = step_ends.filter(|end| until.is_none_or(|until| *end < until));
        match what.wait(suspends.or(until)) {
            Ok(false) if suspends.is_some() => Poll::Pending,
            done => Poll::Ready(done.map(drop)),
        }
    }
}

impl Reactor for DialClock {
    type Socket = Socket;

    fn register(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    fn clock(&self) -> Instant {
        self.now()
    }

    async fn wait(&self, what: Awaited<'_, Socket>, until: Option<Instant>) -> io::Result<()> {
        poll_fn(|_| self.poll_for(&what, until)).await
    }
}
