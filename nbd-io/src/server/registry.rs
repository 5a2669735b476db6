//! The connections of a server, and how they are told to stop.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// What the connections and listeners of a server share.
#[derive(Default)]
pub(super) struct Registry {
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: HashMap<u64, Arc<Sleeper>>,
    last: u64,
    /// Listeners, and those who wait for the last connection to end.
    waiting: Vec<Waker>,
}

/// Whom to wake when the server stops.
#[derive(Default)]
struct Sleeper(Mutex<Option<Waker>>);

/// Why there is no place for a connection.
#[derive(Debug)]
pub(super) enum Refused {
    Full,
    Stopping,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn len(&self) -> usize {
        lock(&self.state).connections.len()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Takes up a connection.
    pub(super) fn enter(self: &Arc<Self>, max: usize) -> Result<Place, Refused> {
        let mut state = lock(&self.state);
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if state.connections.len() >= max {
            return Err(Refused::Full);
        }
        state.last += 1;
        let id = state.last;
        let sleeper = Arc::<Sleeper>::default();
        state.connections.insert(id, Arc::clone(&sleeper));
        Ok(Place {
            registry: Arc::clone(self),
            id,
            sleeper,
        })
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut state = lock(&self.state);
        let mut wakers = std::mem::take(&mut state.waiting);
        wakers.extend(
            state
                .connections
                .values()
                .filter_map(|sleeper| lock(&sleeper.0).take()),
        );
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ready once the server stops.
    pub(super) fn poll_stopping(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_until(cx, |_| self.is_stopping())
    }

    /// Ready when there are no connections.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_until(cx, |state| state.connections.is_empty())
    }

    fn poll_until(&self, cx: &mut Context<'_>, done: impl Fn(&State) -> bool) -> Poll<()> {
        let mut state = lock(&self.state);
        if done(&state) {
            return Poll::Ready(());
        }
        if !state
            .waiting
            .iter()
            .any(|waker| waker.will_wake(cx.waker()))
        {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// The place of a connection, free again when this is dropped.
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
    sleeper: Arc<Sleeper>,
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

    /// Ready once the server stops.
    pub(super) fn poll_stopping(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_stopping() {
            let mut waker = lock(&self.sleeper.0);
            if !waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *waker = Some(cx.waker().clone());
            }
        }
        // It may have begun to stop before there was anybody to wake.
        if self.is_stopping() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.registry.state);
        state.connections.remove(&self.id);
        // Listeners may be among them, and look again at what they wait for.
        let wakers = if state.connections.is_empty() {
            std::mem::take(&mut state.waiting)
        } else {
            Vec::new()
        };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let registry = Arc::new(Registry::default());
        let first = registry.enter(2).unwrap();
        let second = registry.enter(2).unwrap();
        assert!(first.id() != second.id() && registry.len() == 2);
        assert!(matches!(registry.enter(2), Err(Refused::Full)));
        drop(first);
        let third = registry.enter(2).unwrap();
        assert!(third.id() > second.id());
        registry.stop();
        assert!(matches!(registry.enter(9), Err(Refused::Stopping)));
    }

    #[test]
    fn whoever_waits_is_woken() {
        use std::{sync::atomic::AtomicUsize, task::Wake};
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = &mut Context::from_waker(&waker);
        let registry = Arc::new(Registry::default());
        let place = registry.enter(1).unwrap();
        assert!(registry.poll_stopping(cx).is_pending() && place.poll_stopping(cx).is_pending());
        registry.stop();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(registry.poll_stopping(cx).is_ready() && place.poll_stopping(cx).is_ready());
        assert!(registry.poll_empty(cx).is_pending());
        drop(place);
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
        assert!(registry.poll_empty(cx).is_ready());
    }
}
