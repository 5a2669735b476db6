//! Looking up the addresses of hosts.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

/// Lookups that have not ended, so that a name which is asked for again and again, while its server
/// is silent, keeps one thread busy and not many.
static IN_FLIGHT: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());

/// The addresses of a host, once they are known.
///
/// The system's resolver cannot be interrupted, and a name server that is silent holds it up for as
/// long as it likes. So it is asked on a thread of its own, which outlives this value if it has to.
/// Lookups of the same name at the same time share that thread.
#[derive(Clone)]
pub struct Lookup(Arc<Shared>);

struct Shared {
    host: String,
    port: u16,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<Vec<SocketAddr>, Arc<io::Error>>>,
    wakers: Vec<Waker>,
}

impl Lookup {
    /// Begins to look up a host.
    ///
    /// # Errors
    ///
    /// When the system has no thread for it.
    pub(crate) fn new(host: &str, port: u16) -> io::Result<Self> {
        let mut in_flight = lock(&IN_FLIGHT);
        let same = |shared: &&Arc<Shared>| shared.host == host && shared.port == port;
        if let Some(shared) = in_flight.iter().find(same) {
            return Ok(Self(shared.clone()));
        }
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            port,
            state: Mutex::default(),
            done: Condvar::new(),
        });
        let own = shared.clone();
        thread::Builder::new()
            .name("nbd-lookup".to_owned())
            .spawn(move || own.run())?;
        in_flight.push(shared.clone());
        Ok(Self(shared))
    }

    /// The addresses in the resolver's order, if the lookup has ended.
    pub(crate) fn result(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        let result = lock(&self.0.state).result.clone()?;
        Some(result.map_err(|error| {
            let text = format!("cannot look up {}: {error}", self.0.host);
            io::Error::new(error.kind(), text)
        }))
    }

    /// Whether it has ended. If not, the task is woken when it does.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0.state);
        if state.result.is_some() {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until it has ended, or until a time. Whether it has.
    pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
        let mut state = lock(&self.0.state);
        while state.result.is_none() {
            let Some(until) = until else {
                let woken = self.0.done.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.0.done.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn run(self: Arc<Self>) {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let result = found.map(Iterator::collect).map_err(Arc::new);
        lock(&IN_FLIGHT).retain(|shared| !Arc::ptr_eq(shared, &self));
        let mut state = lock(&self.state);
        state.result = Some(result);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.done.notify_all();
        for waker in wakers {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup")
            .field("host", &self.0.host)
            .field("port", &self.0.port)
            .finish_non_exhaustive()
    }
}
