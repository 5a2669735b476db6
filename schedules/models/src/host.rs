//! The threads of the blocking server, without their way to wait in the system.

#[path = "../../nbd-blocking/src/host/threads.rs"]
mod threads;

mod wakeup {
    use std::{io, time::Instant};

    pub(super) fn block_on<F: Future>(task: F) -> io::Result<F::Output> {
        Ok(crate::block_on::block_on(task))
    }

    pub(super) fn wake_at(_: Instant) {}
}

use nbd_io::runtime::{Runtime, Tasks};
use schedules_std::{
    sync::{Condvar, Mutex},
    thread,
};
use std::sync::Arc;
use threads::Threads;

/// Counts jobs that were done, and wakes the thread that waits for all.
#[derive(Default)]
struct Jobs {
    done: Mutex<usize>,
    changed: Condvar,
}

impl Jobs {
    fn note(&self) {
        *self.done.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn wait_for(&self, count: usize) {
        let mut done = self.done.lock().unwrap();
        while *done < count {
            done = self.changed.wait(done).unwrap();
        }
        assert_eq!(*done, count, "a job is done once");
    }
}

/// Each job is done once, tasks that wait for each other have a thread each, and no thread stays when all
/// are released: one that did would be a deadlock, since no time passes.
pub(crate) fn jobs_of_threads() {
    let threads = Threads::default();
    let (jobs, both) = (Arc::<Jobs>::default(), Arc::<Jobs>::default());
    // Its thread is idle next, or soon.
    let done = jobs.clone();
    threads.spawn(async move { done.note() });
    jobs.wait_for(1);
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (threads, jobs, both) = (threads.clone(), jobs.clone(), both.clone());
            thread::spawn(move || {
                let (begun, done) = (both, jobs.clone());
                threads.spawn(async move {
                    begun.note();
                    begun.wait_for(2);
                    done.note();
                });
                for _ in 0..2 {
                    let done = jobs.clone();
                    threads.spawn_blocking(move || done.note());
                }
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    jobs.wait_for(7);
    drop(threads);
}
