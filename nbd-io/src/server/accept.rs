//! Accepting clients, each of which gets a task, until the server stops.

use super::{
    CloseReason, Event, Listener, Peer, Server, Settings,
    accept_error::AcceptErrorKind,
    connection,
    registry::{Refused, Registration},
};
use crate::{runtime::Tasks, transport::Transport};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

/// So many connections in a row that could not be accepted are no coincidence: something lasts, such
/// as a filter of the system's that lets none through, and must not keep the processor busy.
const PASSING_AT_ONCE: u32 = 16;

/// Retry interval while there is no room for a connection: others have to end first.
const RETRY: Duration = Duration::from_millis(100);

/// Limit of the time that connections take to close when the server stops.
const LAST_GRACE: Duration = Duration::from_secs(1);

impl<R: Tasks> Server<R> {
    /// See [`serve`](Self::serve).
    pub(super) async fn accept_from<L: Listener>(&self, mut listener: L) -> io::Result<()> {
        let mut passing = 0;
        let mut watch = self.registry.watch();
        loop {
            let accepted = poll_fn(|cx| {
                if watch.poll_stopping(cx).is_ready() {
                    return Poll::Ready(None);
                }
                listener.poll_accept(cx).map(Some)
            });
            let (stream, peer) = match accepted.await {
                None => break,
                Some(Ok(accepted)) => {
                    passing = 0;
                    accepted
                }
                Some(Err(error)) => {
                    passing += 1;
                    match AcceptErrorKind::of(&error) {
                        AcceptErrorKind::Passing if passing < PASSING_AT_ONCE => continue,
                        AcceptErrorKind::Passing | AcceptErrorKind::Shortage => {
                            self.settings.notify(&Event::AcceptFailed { error: &error });
                            self.pause(RETRY).await;
                            passing = 0;
                            continue;
                        }
                        AcceptErrorKind::Final => return Err(error),
                    }
                }
            };
            if let Ok(place) = self.enter(&peer) {
                self.start(stream, peer, place);
            }
            if listener.is_exhausted() {
                break;
            }
        }
        // No client can connect any more, and none waits to be accepted.
        drop(listener);
        let mut most = None;
        poll_fn(|cx| {
            if watch.poll_empty(cx).is_ready() {
                return Poll::Ready(());
            }
            ready!(watch.poll_stopping(cx));
            // An export that waits in the thread of its connection does not notice.
            let most = most.get_or_insert_with(|| {
                let most = self.settings.grace.saturating_add(LAST_GRACE);
                self.runtime.sleep(most)
            });
            Pin::new(most).poll(cx)
        })
        .await;
        self.runtime.release_idle();
        Ok(())
    }

    /// See [`serve_over`](Self::serve_over).
    pub async fn serve_one<T: Transport>(&self, stream: T, peer: Peer) -> io::Result<CloseReason> {
        let place = self.enter(&peer).map_err(|refused| match refused {
            Refused::Full => io::Error::from(io::ErrorKind::ResourceBusy),
            Refused::Stopping => io::ErrorKind::ConnectionAborted.into(),
        })?;
        let ending = connection::serve(&self.settings, &self.runtime, stream, &peer, &place).await;
        if self.registry.is_stopping() {
            self.runtime.release_idle();
        }
        Ok(ending)
    }

    fn enter(&self, peer: &Peer) -> Result<Registration, Refused> {
        let now = self.runtime.now();
        let entered = self.registry.enter(self.settings.room, peer, now);
        if entered.is_err() {
            self.settings.notify(&Event::Refused { peer });
        }
        entered
    }

    /// Serves a client in a task of its own.
    fn start<T: Transport + Send + 'static>(&self, stream: T, peer: Peer, place: Registration) {
        let (settings, runtime) = (self.settings.clone(), self.runtime.clone());
        let unserved = Unserved(Some(settings.clone()));
        // Boxed, because it is long and a runtime moves it more than once.
        self.runtime.spawn(Box::pin(async move {
            unserved.served();
            connection::serve(&settings, &runtime, stream, &peer, &place).await;
        }));
    }

    async fn pause(&self, time: Duration) {
        let mut sleep = self.runtime.sleep(time);
        let mut watch = self.registry.watch();
        poll_fn(|cx| {
            if watch.poll_stopping(cx).is_ready() {
                return Poll::Ready(());
            }
            Pin::new(&mut sleep).poll(cx)
        })
        .await;
    }
}

/// Reports a connection whose task was dropped before it began.
struct Unserved(Option<Settings>);

impl Unserved {
    fn served(mut self) {
        self.0 = None;
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let error = io::Error::other("no task could be started for the connection");
            settings.notify(&Event::AcceptFailed { error: &error });
        }
    }
}
