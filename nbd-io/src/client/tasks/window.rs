//! Pieces of one request, several of which are in flight at once.

use crate::client::WINDOW;
use bytes::BytesMut;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Number of times that woken futures are polled before other tasks run.
const ROUNDS: usize = 8;

/// Carries on up to [`WINDOW`] futures at once, and begins another one as soon as any of them has
/// ended. `take` is given their results, in the order in which they end. After a failure no other
/// one is begun, and the first failure is returned when those in flight have ended.
///
/// Memory is allocated for the places in the window, not for each future.
pub(super) async fn in_flight<T, E, F: Future<Output = Result<T, E>>>(
    mut next: impl FnMut() -> Option<F>,
    mut take: impl FnMut(T),
) -> Result<(), E> {
    let woken = Arc::<Woken>::default();
    let mut window: Vec<Slot<F>> = Vec::new();
    let mut result = Ok(());
    poll_fn(|cx| {
        woken.set_waker(cx.waker());
        for _ in 0..ROUNDS {
            let mut due = woken.begin();
            while result.is_ok()
                && has_room(&window)
                && let Some(future) = next()
            {
                due |= bit(enter(&mut window, future, &woken));
            }
            let mut waits = false;
            let mut ended = false;
            for (at, place) in window.iter_mut().enumerate() {
                let Some(future) = place.future.as_mut().as_pin_mut() else {
                    continue;
                };
                waits = true;
                if due & bit(at) == 0 {
                    continue;
                }
                let Poll::Ready(done) = future.poll(&mut Context::from_waker(&place.waker)) else {
                    continue;
                };
                place.future.set(None);
                ended = true;
                match done {
                    Ok(done) => take(done),
                    Err(error) if result.is_ok() => result = Err(error),
                    Err(_) => {}
                }
            }
            if !waits {
                return Poll::Ready(());
            }
            if !ended && woken.end() {
                return Poll::Pending;
            }
        }
        woken.interrupt();
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    result
}

/// A place for one future at a time.
struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
}

fn has_room<F>(window: &[Slot<F>]) -> bool {
    window.len() < WINDOW || window.iter().any(|place| place.future.is_none())
}

/// Puts a future into a place that is free or new.
fn enter<F>(window: &mut Vec<Slot<F>>, future: F, woken: &Arc<Woken>) -> usize {
    let free = window.iter().position(|place| place.future.is_none());
    let at = free.unwrap_or(window.len());
    if at == window.len() {
        let woken = woken.clone();
        let waker = SlotWaker {
            woken,
            bit: bit(at),
        };
        window.push(Slot {
            future: Box::pin(None),
            waker: Waker::from(Arc::new(waker)),
        });
    }
    window[at].future.set(Some(future));
    at
}

const fn bit(place: usize) -> usize {
    1 << place
}

/// The futures that were woken: each is polled only then, because the poll of a request is a system
/// call on some runtimes.
#[derive(Debug, Default)]
struct Woken {
    /// A bit for each place, and [`POLLING`].
    bits: AtomicUsize,
    task: Mutex<Option<Waker>>,
}

/// The task is looking at the bits and need not be woken.
const POLLING: usize = bit(WINDOW);

impl Woken {
    /// Takes note of the task that is to be woken.
    fn set_waker(&self, waker: &Waker) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_some_and(|old| old.will_wake(waker)) {
            return;
        }
        let old = task.replace(waker.clone());
        drop(task);
        drop(old);
    }

    /// The futures woken since the last call.
    fn begin(&self) -> usize {
        self.bits.swap(POLLING, Ordering::AcqRel)
    }

    /// Has the next wake reach the task, unless there was one since [`begin`](Woken::begin).
    fn end(&self) -> bool {
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        let ended = self.bits.compare_exchange(POLLING, 0, acquire, relaxed);
        ended.is_ok()
    }

    /// Leaves woken futures for later.
    fn interrupt(&self) {
        self.bits.fetch_and(!POLLING, Ordering::AcqRel);
    }
}

/// Wakes one future.
struct SlotWaker {
    woken: Arc<Woken>,
    bit: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.bits.fetch_or(self.bit, Ordering::AcqRel) != 0 {
            return;
        }
        let task = self.woken.task.lock();
        let task = task.unwrap_or_else(PoisonError::into_inner).clone();
        task.into_iter().for_each(Waker::wake);
    }
}

/// Parts of one buffer that come back in any order and are put together again without a copy.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Where each starts. They are in order, and between any two of them something is missing.
    runs: Vec<(u64, BytesMut)>,
}

impl Parts {
    /// Takes the part at `offset`.
    pub(super) fn add(&mut self, offset: u64, mut part: BytesMut) {
        let end = offset + part.len() as u64;
        let at = self.runs.partition_point(|(start, _)| *start < offset);
        if self.runs.get(at).is_some_and(|(start, _)| *start == end) {
            part.unsplit(self.runs.remove(at).1);
        }
        match self.runs[..at].last_mut() {
            Some((start, before)) if *start + before.len() as u64 == offset => before.unsplit(part),
            _ => self.runs.insert(at, (offset, part)),
        }
    }

    /// The buffer, if no part of it is missing.
    pub(super) fn whole(mut self) -> BytesMut {
        debug_assert!(self.runs.len() < 2);
        self.runs.pop().map(|(_, whole)| whole).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_in_any_order_are_the_same_buffer_again(
            lens in prop::collection::vec(1_usize..20, 1..20),
            order in prop::collection::vec(any::<prop::sample::Index>(), 20),
        ) {
            let mut buffer = BytesMut::zeroed(lens.iter().sum());
            for (byte, n) in buffer.iter_mut().zip((0..=u8::MAX).cycle()) {
                *byte = n;
            }
            let (copy, place) = (buffer.clone(), buffer.as_ptr());
            let mut offset = 1000;
            let mut parts = Vec::new();
            for len in lens {
                parts.push((offset, buffer.split_to(len)));
                offset += len as u64;
            }
            let mut together = Parts::default();
            for index in order.iter().cycle() {
                if parts.is_empty() {
                    break;
                }
                let (offset, part) = parts.remove(index.index(parts.len()));
                together.add(offset, part);
            }
            let whole = together.whole();
            prop_assert_eq!(&whole, &copy);
            prop_assert_eq!(whole.as_ptr(), place, "nothing was copied");
        }
    }

    #[derive(Clone, Default)]
    struct Progress {
        polls: usize,
        done: bool,
        waker: Option<Waker>,
    }

    /// Ends when the test says so.
    struct Manual {
        number: usize,
        state: Arc<Mutex<Vec<Progress>>>,
    }

    impl Future for Manual {
        type Output = Result<usize, usize>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            let progress = &mut self.state.lock().unwrap()[self.number];
            progress.polls += 1;
            progress.waker = Some(cx.waker().clone());
            if progress.done {
                return Poll::Ready(Ok(self.number));
            }
            Poll::Pending
        }
    }

    #[test]
    fn only_those_that_were_woken_are_polled_and_others_are_begun_in_their_place() {
        let count = 2 * WINDOW;
        let state = Arc::new(Mutex::new(vec![Progress::default(); count]));
        let mut numbers = 0..count;
        let next = || {
            let number = numbers.next()?;
            let state = state.clone();
            Some(Manual { number, state })
        };
        let ended = Mutex::new(Vec::new());
        let take = |number| ended.lock().unwrap().push(number);
        let mut all = std::pin::pin!(in_flight(next, take));
        let mut cx = Context::from_waker(Waker::noop());
        let end = |number: usize| {
            let waker = {
                let progress = &mut state.lock().unwrap()[number];
                progress.done = true;
                progress.waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
        };
        assert!(all.as_mut().poll(&mut cx).is_pending());
        let polls = || -> Vec<_> { state.lock().unwrap().iter().map(|one| one.polls).collect() };
        let begun = || polls().iter().filter(|polls| **polls > 0).count();
        assert_eq!(begun(), WINDOW);
        for number in 1..count {
            // A place is free, and the next one is begun in it.
            end(number);
            assert!(all.as_mut().poll(&mut cx).is_pending());
            assert_eq!(begun(), count.min(WINDOW + number));
        }
        end(0);
        assert_eq!(all.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(ended.lock().unwrap().len(), count);
        assert_eq!(ended.lock().unwrap().last(), Some(&0));
        assert_eq!(polls(), vec![2; count]);
    }
}
