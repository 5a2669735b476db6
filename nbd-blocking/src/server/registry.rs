//! The connections of a server, and how they are told to stop.

use crate::socket::Socket;
use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long to wait for connections that were closed by force.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// What the threads of a server share.
#[derive(Default)]
pub(super) struct Registry {
    stopping: AtomicBool,
    state: Mutex<State>,
    /// A connection was closed.
    left: Condvar,
}

#[derive(Default)]
struct State {
    connections: HashMap<u64, Connection>,
    last: u64,
    /// Closed to wake the listeners.
    wakers: Vec<UnixStream>,
}

struct Connection {
    /// The same socket as the connection's own.
    socket: Option<Socket>,
    waiting: Arc<AtomicBool>,
}

/// Why there is no place for a connection.
pub(super) enum Refused {
    Full,
    Stopping,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Takes up a connection. `socket` is another handle to its socket.
    pub(super) fn enter(
        self: &Arc<Self>,
        socket: Option<Socket>,
        max: usize,
    ) -> Result<Place, Refused> {
        let mut state = self.lock();
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if state.connections.len() >= max {
            return Err(Refused::Full);
        }
        state.last += 1;
        let id = state.last;
        let waiting = Arc::new(AtomicBool::new(false));
        let connection = Connection {
            socket,
            waiting: Arc::clone(&waiting),
        };
        state.connections.insert(id, connection);
        Ok(Place {
            registry: Arc::clone(self),
            id,
            waiting,
        })
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut state = self.lock();
        state.wakers.clear();
        for connection in state.connections.values() {
            // Whoever is not waiting yet will see that the server is stopping before it does.
            if let (true, Some(socket)) = (
                connection.waiting.load(Ordering::SeqCst),
                &connection.socket,
            ) {
                socket.shutdown_read();
            }
        }
    }

    /// What becomes readable when the server stops.
    pub(super) fn wake(&self) -> io::Result<Wake> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut state = self.lock();
        if !self.is_stopping() {
            state.wakers.push(ours);
        }
        Ok(Wake(theirs))
    }

    /// Waits until all connections are closed, and closes those that are left after `grace`.
    pub(super) fn drain(&self, grace: Duration) {
        let state = self.wait(self.lock(), grace);
        for connection in state.connections.values() {
            if let Some(socket) = &connection.socket {
                socket.close();
            }
        }
        // Only a thread that waits for its export does not notice.
        drop(self.wait(state, LAST_GRACE));
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let done = self
            .left
            .wait_timeout_while(state, time, |state| !state.connections.is_empty());
        done.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Readable once the server stops.
pub(super) struct Wake(UnixStream);

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The place of a connection, free again when this is dropped.
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
    waiting: Arc<AtomicBool>,
}

impl Place {
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.registry.is_stopping()
    }

    pub(super) fn stopping(&self) -> &AtomicBool {
        &self.registry.stopping
    }

    /// Runs `wait`, during which the connection is closed if the server stops. Returns `None` if it
    /// stops already.
    pub(super) fn interruptible<R>(&self, wait: impl FnOnce() -> R) -> Option<R> {
        self.waiting.store(true, Ordering::SeqCst);
        let done = (!self.is_stopping()).then(wait);
        self.waiting.store(false, Ordering::SeqCst);
        done
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.lock().connections.remove(&self.id);
        self.registry.left.notify_all();
    }
}
