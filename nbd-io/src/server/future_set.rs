//! Futures that one task polls, each when it was woken.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Any number of futures, of which those are polled that were woken. A future has a place with a waker,
/// which the next one takes over, so that it costs its box and no more.
pub(super) struct FutureSet<F> {
    slots: Vec<Slot<F>>,
    /// Places without a future.
    free: Vec<usize>,
    /// Places whose futures are to be polled.
    due: VecDeque<usize>,
    woken: Arc<Woken>,
}

struct Slot<F> {
    future: Option<Pin<Box<F>>>,
    wakeup: Arc<Wakeup>,
    /// Made of `wakeup`.
    waker: Waker,
}

/// The futures that were woken since they were last looked for.
#[derive(Default)]
struct Woken(Mutex<State>);

#[derive(Default)]
struct State {
    slots: VecDeque<usize>,
    /// The task that polls.
    task: Option<Waker>,
}

/// Wakes one of the futures.
struct Wakeup {
    slot: usize,
    /// It was woken and was not polled since.
    is_due: AtomicBool,
    woken: Arc<Woken>,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_due.swap(true, Ordering::SeqCst) {
            return;
        }
        let task = {
            let mut state = self.woken.lock();
            state.slots.push_back(self.slot);
            state.task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> FutureSet<F> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            due: VecDeque::new(),
            woken: Arc::default(),
        }
    }

    /// Takes up a future, which is polled next time.
    pub(super) fn push(&mut self, future: F) {
        let at = self.free.pop().unwrap_or_else(|| {
            let wakeup = Arc::new(Wakeup {
                slot: self.slots.len(),
                is_due: AtomicBool::new(false),
                woken: Arc::clone(&self.woken),
            });
            self.slots.push(Slot {
                future: None,
                waker: Arc::clone(&wakeup).into(),
                wakeup,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        slot.future = Some(Box::pin(future));
        // The last one here may have been woken once more, in which case it is due already.
        if !slot.wakeup.is_due.swap(true, Ordering::SeqCst) {
            self.due.push_back(at);
        }
    }

    /// The result of one that is done, if there is any. One that wakes itself is polled next time.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.woken.lock();
            if !(state.task.as_ref()).is_some_and(|task| task.will_wake(cx.waker())) {
                state.task = Some(cx.waker().clone());
            }
            self.due.append(&mut state.slots);
        }
        while let Some(at) = self.due.pop_front() {
            let slot = &mut self.slots[at];
            // A swap, so that the future sees everything that came before its wake-up.
            slot.wakeup.is_due.swap(false, Ordering::SeqCst);
            let Some(future) = &mut slot.future else {
                continue;
            };
            let cx = &mut Context::from_waker(&slot.waker);
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                slot.future = None;
                self.free.push(at);
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_those_are_polled_that_were_woken() {
        let polls: Vec<_> = (0..64).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let wakers: Arc<Mutex<Vec<Option<Waker>>>> = Arc::new(Mutex::new(vec![None; 64]));
        let task = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut set = FutureSet::new();
        for (n, polled) in polls.iter().enumerate() {
            let (polled, wakers) = (polled.clone(), wakers.clone());
            set.push(poll_fn(move |cx| {
                wakers.lock().unwrap()[n] = Some(cx.waker().clone());
                match polled.fetch_add(1, Ordering::SeqCst) {
                    1 => Poll::Ready(n),
                    _ => Poll::Pending,
                }
            }));
        }
        assert!(set.poll_next(cx).is_pending() && set.poll_next(cx).is_pending());
        assert!(
            polls
                .iter()
                .all(|polled| polled.load(Ordering::SeqCst) == 1)
        );
        let wake = |n: usize| wakers.lock().unwrap()[n].clone().unwrap().wake();
        wake(7);
        wake(7);
        wake(3);
        assert_eq!(task.0.load(Ordering::SeqCst), 2);
        assert_eq!(set.poll_next(cx), Poll::Ready(7));
        assert_eq!(set.poll_next(cx), Poll::Ready(3));
        assert!(set.poll_next(cx).is_pending());
        let polled: usize = polls
            .iter()
            .map(|polled| polled.load(Ordering::SeqCst))
            .sum();
        assert_eq!(polled, 64 + 2);
        // Waking one that is done harms none, and its place is used again.
        wake(7);
        assert!(set.poll_next(cx).is_pending());
        assert_eq!((set.slots.len(), set.free.len()), (64, 2));
    }

    #[test]
    fn one_that_wakes_itself_leaves_the_others_their_turn() {
        let mut set = FutureSet::new();
        let task = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        set.push(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        for round in 1..10 {
            assert!(set.poll_next(cx).is_pending());
            assert_eq!(task.0.load(Ordering::SeqCst), round);
        }
    }

    #[test]
    fn a_late_wake_up_of_one_that_is_done_polls_the_next_one_in_its_place() {
        let mut set = FutureSet::new();
        let cx = &mut Context::from_waker(Waker::noop());
        let late = Arc::new(Mutex::new(None));
        let keep = late.clone();
        let first: Pin<Box<dyn Future<Output = u8>>> = Box::pin(poll_fn(move |cx| {
            *keep.lock().unwrap() = Some(cx.waker().clone());
            Poll::Ready(1)
        }));
        set.push(first);
        assert_eq!(set.poll_next(cx), Poll::Ready(1));
        late.lock().unwrap().take().unwrap().wake();
        set.push(Box::pin(async { 2 }));
        assert_eq!(set.poll_next(cx), Poll::Ready(2));
        assert!(set.poll_next(cx).is_pending());
    }
}
