//! The connections of a server, and how they are stopped.

use super::{Peer, rate::Client};
use crate::watchers::{self, Watchers};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

/// A client that has never sent a request has no claim to its place for longer than this.
const UNPROVEN: Duration = Duration::from_secs(2);

/// State that the connections and listeners of a server share.
#[derive(Default)]
pub(super) struct Registry {
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: BTreeMap<u64, Arc<Entry>>,
    /// Number of those that have to leave for others that are connected already.
    leaving: usize,
    last: u64,
    /// Listeners, and those who wait for the last connection to end.
    waiting: Watchers,
}

/// A connection, as others see it.
struct Entry {
    /// Wakes the task of the connection when it has to end, or when one of its timers has.
    waker: Mutex<Option<Waker>>,
    /// One of its timers has woken it.
    timer_ended: AtomicBool,
    /// It has to end, since the server stops or its place is needed.
    stopping: AtomicBool,
    displaced: AtomicBool,
    /// A [`Stage`], and since when in milliseconds.
    stage: AtomicU64,
    /// Its client, if other connections may be of the same.
    client: Option<Client>,
}

/// Stages of a connection. Where its place is needed, the first of these goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Negotiating,
    /// It has entered, and nothing was moved since.
    Unproven,
    /// Nothing was moved for a while, and nothing is being carried out.
    Idle,
    Busy,
}

impl Entry {
    fn new(client: Option<Client>, now: Duration) -> Self {
        let entry = Self {
            client,
            waker: Mutex::new(None),
            timer_ended: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            displaced: AtomicBool::new(false),
            stage: AtomicU64::new(0),
        };
        entry.set(Stage::Negotiating, now);
        entry
    }

    fn set(&self, stage: Stage, since: Duration) {
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.stage
            .store(since << 2 | stage as u64, Ordering::Relaxed);
    }

    fn stage(&self) -> (Stage, Duration) {
        let stage = self.stage.load(Ordering::Relaxed);
        let since = Duration::from_millis(stage >> 2);
        let stage = match stage & 3 {
            0 => Stage::Negotiating,
            1 => Stage::Unproven,
            2 => Stage::Idle,
            _ => Stage::Busy,
        };
        (stage, since)
    }

    /// Since when its place could be given away, and how gladly; `None` if it is in use.
    fn spare(&self, now: Duration, idle: Duration) -> Option<(Stage, Duration)> {
        let (stage, since) = self.stage();
        let claim = match stage {
            Stage::Negotiating | Stage::Unproven => idle.min(UNPROVEN),
            Stage::Idle => idle,
            Stage::Busy => return None,
        };
        let is_spare = now.saturating_sub(since) >= claim && !self.stopping.load(Ordering::SeqCst);
        is_spare.then_some((stage, since))
    }

    #[must_use = "the connection has to notice"]
    fn stop(&self) -> Option<Waker> {
        self.stopping.store(true, Ordering::SeqCst);
        lock(&self.waker).clone()
    }
}

/// As the waker of its timers.
impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.timer_ended.store(true, Ordering::SeqCst);
        let waker = lock(&self.waker).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) most: usize,
    pub(super) most_of_client: usize,
    /// Time for which a connection has to be idle for another one to take its place when there is
    /// no other; `None` keeps it for as long as it lasts.
    pub(super) idle: Option<Duration>,
}

/// Reasons for which there is no place for a connection.
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

    /// Takes up a connection, perhaps in place of another one, which is made to end.
    pub(super) fn enter(
        self: &Arc<Self>,
        room: Room,
        peer: &Peer,
        now: Duration,
    ) -> Result<Registration, Refused> {
        let client = Client::of(peer);
        let mut state = lock(&self.state);
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if room.most_of_client < usize::MAX && state.of_client(client) >= room.most_of_client {
            return Err(Refused::Full);
        }
        let mut waker = None;
        if state.connections.len() - state.leaving >= room.most {
            waker = state.displace(room, now).ok_or(Refused::Full)?;
        }
        state.last += 1;
        let id = state.last;
        let entry = Arc::new(Entry::new(client, now));
        state.connections.insert(id, Arc::clone(&entry));
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(Registration {
            registry: Arc::clone(self),
            id,
            entry,
        })
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut state = lock(&self.state);
        let mut wakers: Vec<_> = state.waiting.take().collect();
        wakers.extend(state.connections.values().filter_map(|entry| entry.stop()));
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The place of a waiting task, which is left when that is dropped.
    pub(super) const fn watch(&self) -> Watch<'_> {
        Watch {
            registry: self,
            place: None,
        }
    }
}

/// A task that waits for the server to stop or for the last connection to end.
pub(super) struct Watch<'a> {
    registry: &'a Registry,
    place: watchers::WatcherId,
}

impl Watch<'_> {
    /// Ready once the server stops.
    pub(super) fn poll_stopping(&mut self, cx: &Context<'_>) -> Poll<()> {
        let registry = self.registry;
        self.poll_until(cx, |_| registry.is_stopping())
    }

    /// Ready when there are no connections.
    pub(super) fn poll_empty(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.poll_until(cx, |state| state.connections.is_empty())
    }

    fn poll_until(&mut self, cx: &Context<'_>, done: impl Fn(&State) -> bool) -> Poll<()> {
        let mut state = lock(&self.registry.state);
        if done(&state) {
            return Poll::Ready(());
        }
        let old = state.waiting.watch(&mut self.place, cx.waker());
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let old = lock(&self.registry.state).waiting.leave(self.place);
            drop(old);
        }
    }
}

impl State {
    /// Number of connections of the same client.
    fn of_client(&self, client: Option<Client>) -> usize {
        let Some(client) = client else { return 0 };
        let entries = self.connections.values();
        entries.filter(|entry| entry.client == Some(client)).count()
    }

    /// Ends the connection whose place is used least. `None` if every place is in use, or too many
    /// are on their way out already.
    fn displace(&mut self, room: Room, now: Duration) -> Option<Option<Waker>> {
        let idle = room.idle?;
        if self.leaving > room.most / 8 {
            return None;
        }
        let spare = self.connections.values().filter_map(|entry| {
            let spare = entry.spare(now, idle)?;
            Some((spare, entry))
        });
        let (_, entry) = spare.min_by_key(|(spare, _)| *spare)?;
        self.leaving += 1;
        entry.displaced.store(true, Ordering::SeqCst);
        Some(entry.stop())
    }
}

/// The place of a connection, free again when this is dropped.
pub(super) struct Registration {
    registry: Arc<Registry>,
    id: u64,
    entry: Arc<Entry>,
}

impl Registration {
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Whether the connection has to end, since the server stops or the place is needed.
    pub(super) fn is_stopping(&self) -> bool {
        self.entry.stopping.load(Ordering::SeqCst)
    }

    pub(super) fn stopping(&self) -> &AtomicBool {
        &self.entry.stopping
    }

    /// Whether the connection has to end because its place is needed.
    pub(super) fn is_displaced(&self) -> bool {
        self.entry.displaced.load(Ordering::SeqCst)
    }

    /// The client has entered an export.
    pub(super) fn entered(&self, now: Duration) {
        self.entry.set(Stage::Unproven, now);
    }

    /// Something was moved.
    pub(super) fn busy(&self) {
        self.entry.set(Stage::Busy, Duration::ZERO);
    }

    /// Nothing was moved since then, and nothing is being carried out.
    pub(super) fn idle(&self, since: Duration) {
        self.entry.set(Stage::Idle, since);
    }

    /// Has a task woken when the connection has to end, and by its [timers](Self::timer_waker), from now on
    /// and until it is another one.
    pub(super) fn wake(&self, waker: &Waker) {
        let old = lock(&self.entry.waker).replace(waker.clone());
        drop(old);
    }

    /// The waker by which timers of the connection are polled, so that it
    /// [knows](Self::has_timer_ended) when one of them has ended.
    pub(super) fn timer_waker(&self) -> Waker {
        Arc::clone(&self.entry).into()
    }

    /// Whether a timer has ended since this was last asked.
    pub(super) fn has_timer_ended(&self) -> bool {
        let timer_ended = &self.entry.timer_ended;
        timer_ended.load(Ordering::SeqCst) && timer_ended.swap(false, Ordering::SeqCst)
    }

    /// Ready once the connection has to end.
    pub(super) fn poll_stopping(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_stopping() {
            let mut waker = lock(&self.entry.waker);
            if !waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *waker = Some(cx.waker().clone());
            }
        }
        // It may have begun to stop before there was a task to wake.
        if self.is_stopping() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = lock(&self.registry.state);
        state.connections.remove(&self.id);
        state.leaving -= usize::from(self.is_displaced());
        // Listeners may be among them, and look again at the number of connections.
        let wakers = if state.connections.is_empty() {
            state.waiting.take().collect()
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

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn room(most: usize) -> Room {
        Room {
            most,
            most_of_client: usize::MAX,
            idle: None,
        }
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let registry = Arc::new(Registry::default());
        let first = registry.enter(room(2), &Peer::Unix, seconds(0)).unwrap();
        let second = registry.enter(room(2), &Peer::Unix, seconds(0)).unwrap();
        assert!(first.id() != second.id() && registry.len() == 2);
        let later = seconds(1 << 30);
        assert!(matches!(
            registry.enter(room(2), &Peer::Unix, later),
            Err(Refused::Full)
        ));
        drop(first);
        let third = registry.enter(room(2), &Peer::Unix, seconds(0)).unwrap();
        assert!(third.id() > second.id());
        registry.stop();
        let late = registry.enter(room(9), &Peer::Unix, seconds(0));
        assert!(matches!(late, Err(Refused::Stopping)));
    }

    #[test]
    fn one_client_does_not_take_the_places_of_others() {
        let registry = Arc::new(Registry::default());
        let room = Room {
            most_of_client: 1,
            ..room(9)
        };
        let enter = |peer: &Peer| registry.enter(room, peer, seconds(0));
        let host = |last| Peer::Tcp(([192, 0, 2, last], 1).into());
        let first = enter(&host(1)).unwrap();
        assert!(matches!(enter(&host(1)), Err(Refused::Full)));
        let others = [&host(2), &Peer::Unix, &Peer::Unix].map(|peer| enter(peer).unwrap());
        drop(first);
        assert!(enter(&host(1)).is_ok());
        drop(others);
    }

    #[test]
    fn the_place_that_is_used_least_is_given_to_another() {
        let registry = Arc::new(Registry::default());
        let room = Room {
            most: 5,
            most_of_client: usize::MAX,
            idle: Some(seconds(60)),
        };
        let enter = |now| registry.enter(room, &Peer::Unix, seconds(now));
        let [busy, idle, idler, silent, half_open] = [(); 5].map(|()| enter(0).unwrap());
        busy.busy();
        idle.idle(seconds(2));
        idler.idle(seconds(1));
        silent.entered(seconds(0));
        // All have a claim to their places yet.
        assert!(matches!(enter(1), Err(Refused::Full)));
        let mut others = Vec::new();
        for (now, next) in [(10, half_open), (10, silent), (61, idler)] {
            assert!(!next.is_stopping());
            let other = enter(now).unwrap();
            other.busy();
            others.push(other);
            assert!(next.is_stopping() && next.is_displaced());
            // Too many are on their way out as it is.
            assert!(matches!(enter(1000), Err(Refused::Full)));
        }
        assert!(matches!(enter(61), Err(Refused::Full)));
        assert!(!idle.is_stopping() && !busy.is_stopping());
        others.push(enter(62).unwrap());
        assert!(idle.is_displaced() && !busy.is_stopping());
        assert_eq!(registry.len(), 6);
        drop(idle);
        assert_eq!((registry.len(), lock(&registry.state).leaving), (5, 0));
    }

    #[test]
    fn waiting_tasks_are_woken() {
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
        let place = registry.enter(room(1), &Peer::Unix, seconds(0)).unwrap();
        let mut watch = registry.watch();
        assert!(watch.poll_stopping(cx).is_pending() && place.poll_stopping(cx).is_pending());
        registry.stop();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(watch.poll_stopping(cx).is_ready() && place.poll_stopping(cx).is_ready());
        assert!(watch.poll_empty(cx).is_pending());
        drop(place);
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
        assert!(watch.poll_empty(cx).is_ready());
    }

    #[test]
    fn a_task_that_stops_waiting_leaves_no_waker() {
        let registry = Registry::default();
        let cx = &Context::from_waker(Waker::noop());
        let mut watches: Vec<_> = (0..20_000).map(|_| registry.watch()).collect();
        for watch in &mut watches {
            assert!(watch.poll_stopping(cx).is_pending());
            assert!(watch.poll_stopping(cx).is_pending());
        }
        assert_eq!(lock(&registry.state).waiting.len(), 20_000);
        drop(watches);
        assert_eq!(lock(&registry.state).waiting.len(), 0);
    }
}
