//! Keeping writes of parts of a block apart from other writes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

/// A lock for tasks, held by one alone or by several together, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Apart {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    together: usize,
    alone: bool,
    queue: VecDeque<(u64, Waker)>,
    next: u64,
}

impl State {
    /// Wakes the first that waits. It wakes the next one if they can hold the lock together.
    fn wake(&self) -> Option<Waker> {
        self.queue.front().map(|(_, waker)| waker.clone())
    }
}

/// Holds the lock.
#[derive(Debug)]
pub(super) struct Held<'a> {
    apart: &'a Apart,
    alone: bool,
}

/// A place in the queue.
struct Place<'a> {
    apart: &'a Apart,
    number: Option<u64>,
}

impl Apart {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the lock.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves the queue.
    pub(super) async fn hold(&self, alone: bool) -> Held<'_> {
        let mut place = Place {
            apart: self,
            number: None,
        };
        poll_fn(|cx| {
            let mut state = self.lock();
            let first = match state.queue.front() {
                None => true,
                Some((number, _)) => Some(*number) == place.number,
            };
            if first && !state.alone && !(alone && state.together > 0) {
                if alone {
                    state.alone = true;
                } else {
                    state.together += 1;
                }
                if place.number.take().is_some() {
                    state.queue.pop_front();
                }
                let next = state.wake().filter(|_| !alone);
                drop(state);
                next.into_iter().for_each(Waker::wake);
                return Poll::Ready(());
            }
            match place.number {
                None => {
                    let number = state.next;
                    state.next += 1;
                    state.queue.push_back((number, cx.waker().clone()));
                    place.number = Some(number);
                }
                Some(own) => {
                    for (number, waker) in &mut state.queue {
                        if *number == own {
                            waker.clone_from(cx.waker());
                        }
                    }
                }
            }
            Poll::Pending
        })
        .await;
        Held { apart: self, alone }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.number {
            let mut state = self.apart.lock();
            state.queue.retain(|(number, _)| *number != own);
            let next = state.wake();
            drop(state);
            next.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.apart.lock();
        if self.alone {
            state.alone = false;
        } else {
            state.together -= 1;
        }
        let next = state.wake();
        drop(state);
        next.into_iter().for_each(Waker::wake);
    }
}
