//! Events that connecting waits for.

use crate::Lookup;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

/// An event that connecting waits for.
#[derive(Debug)]
pub enum Awaited<'a, S> {
    /// A host whose addresses are not known yet.
    Lookup(&'a Lookup),
    /// Sockets of which one has to become writable, or turn out to be broken. If there are none, a
    /// time is waited for.
    Writable(&'a [&'a S]),
}

impl<S: AsFd> Awaited<'_, S> {
    /// Waits in place, until a time. Whether it has happened.
    ///
    /// # Errors
    ///
    /// When the system cannot wait.
    pub fn wait(&self, until: Option<Instant>) -> io::Result<bool> {
        match self {
            Self::Lookup(lookup) => Ok(lookup.wait(until)),
            Self::Writable([]) => {
                let left = |until: Instant| until.saturating_duration_since(Instant::now());
                thread::sleep(until.map_or(Duration::ZERO, left));
                Ok(false)
            }
            Self::Writable(sockets) => any_writable(sockets, until),
        }
    }
}

impl<S> Awaited<'_, S> {
    /// Waits as a task, until a timer ends. `poll_writable` waits for one socket.
    ///
    /// # Errors
    ///
    /// When a socket cannot be waited for.
    pub async fn or_sleep(
        self,
        mut timer: Option<impl Future<Output = ()> + Unpin>,
        poll_writable: impl Fn(&S, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> io::Result<()> {
        poll_fn(|cx| {
            let timer = timer.as_mut().map(|timer| Pin::new(timer).poll(cx));
            if timer.is_some_and(|timer| timer.is_ready()) {
                return Poll::Ready(Ok(()));
            }
            match self {
                Self::Lookup(lookup) => lookup.poll(cx).map(Ok),
                Self::Writable(sockets) => sockets
                    .iter()
                    .map(|socket| poll_writable(socket, cx))
                    .find(Poll::is_ready)
                    .unwrap_or(Poll::Pending),
            }
        })
        .await
    }
}

/// Waits until one of these can be written to or is broken, or until a time. Whether one is.
pub(super) fn any_writable<S: AsFd>(sockets: &[&S], until: Option<Instant>) -> io::Result<bool> {
    let watch = |socket| PollFd::new(socket, PollFlags::OUT);
    let mut watched: Vec<_> = sockets.iter().copied().map(watch).collect();
    loop {
        // A zero timeout still finds an event that has happened already.
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut watched, timeout.as_ref()) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
