//! Threads as a runtime: a task has a thread of its own, which waits in the system.

use super::bell::{block_on, wake_at};
use nbd_io::runtime::{Runtime, Tasks};
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

/// Threads that carry out requests at most, for all connections of a server together: as many as
/// each of 256 has by default, so that an export that hangs takes none away from others.
const MOST_WORKERS: usize = 4096;

/// How long a thread without anything to do is kept.
const IDLE: Duration = Duration::from_secs(10);

/// What the clock counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a server on plain threads runs on. Clones share its threads, which end with the last clone:
/// with the server, if that is not in use.
#[derive(Clone, Default)]
pub struct Threads(Arc<Pools>);

/// Threads of both kinds, which do not keep this alive.
#[derive(Default)]
struct Pools {
    /// They carry out requests.
    workers: Arc<Workers>,
    /// Each has a connection, or waits for the next one.
    tasks: Arc<Workers>,
}

impl Drop for Pools {
    fn drop(&mut self) {
        self.workers.close();
        self.tasks.close();
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Runtime for Threads {
    type Sleep = Sleep;

    fn now(&self) -> Duration {
        START.elapsed()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        Sleep(Instant::now().checked_add(time))
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.0.workers.push(Box::new(job));
    }

    fn own_thread_clock(&self) -> Option<Duration> {
        Some(self.now())
    }
}

impl Tasks for Threads {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(Box::new(move || {
            // Without a descriptor to wait for, the task is dropped, as the trait has it.
            let _ = block_on(task);
        }));
    }
}

/// Ends at a certain time; never, if no clock can show it.
#[derive(Debug)]
pub struct Sleep(Option<Instant>);

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let Some(end) = self.0 else {
            return Poll::Pending;
        };
        if Instant::now() >= end {
            return Poll::Ready(());
        }
        wake_at(end);
        Poll::Pending
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that do one job after the other, as many as there is work for.
#[derive(Default)]
struct Workers {
    state: Mutex<Work>,
    arrived: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    /// There will be no more jobs.
    is_closed: bool,
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut work = self.lock();
        work.jobs.push_back(job);
        if work.idle >= work.jobs.len() {
            self.arrived.notify_one();
            return;
        }
        if work.threads == MOST_WORKERS {
            return;
        }
        work.threads += 1;
        drop(work);
        let workers = Arc::clone(self);
        let started = thread::Builder::new()
            .name("nbd-worker".to_owned())
            .spawn(move || workers.work());
        if started.is_err() {
            let mut work = self.lock();
            work.threads -= 1;
            // Without any thread, the work is done by whoever has it.
            if work.threads == 0 {
                while let Some(job) = work.jobs.pop_front() {
                    drop(work);
                    job();
                    work = self.lock();
                }
            }
        }
    }

    /// Has a job begun at once that may take for ever, by an idle thread or a new one. It is
    /// dropped if there can be none.
    fn spawn(self: &Arc<Self>, job: Job) {
        let mut work = self.lock();
        if work.idle > work.jobs.len() {
            work.jobs.push_back(job);
            self.arrived.notify_one();
            return;
        }
        work.threads += 1;
        drop(work);
        let workers = Arc::clone(self);
        let started = thread::Builder::new()
            .name("nbd".to_owned())
            .spawn(move || {
                job();
                workers.work();
            });
        if started.is_err() {
            self.lock().threads -= 1;
        }
    }

    /// Ends the threads that have nothing to do, and the others when they have done what they have.
    fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    fn work(&self) {
        let mut work = self.lock();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                drop(work);
                job();
                work = self.lock();
                continue;
            }
            if work.is_closed {
                work.threads -= 1;
                return;
            }
            work.idle += 1;
            let (woken, waited) = self
                .arrived
                .wait_timeout(work, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            work = woken;
            work.idle -= 1;
            if waited.timed_out() && work.jobs.is_empty() {
                work.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn tasks_after_each_other_share_a_thread_and_tasks_at_once_do_not() {
        let threads = Threads::default();
        let (tell, told) = mpsc::channel();
        let run = || {
            let (tell, (leave, left)) = (tell.clone(), mpsc::channel::<()>());
            threads.spawn(async move {
                tell.send(thread::current().id()).unwrap();
                // Until the other end is dropped.
                let _ = left.recv();
            });
            (told.recv().unwrap(), leave)
        };
        let (first, leave_first) = run();
        let (second, leave_second) = run();
        assert_ne!(first, second);
        drop((leave_first, leave_second));
        while threads.0.tasks.lock().idle < 2 {
            thread::yield_now();
        }
        let (third, _leave) = run();
        assert!([first, second].contains(&third));
    }

    #[test]
    fn threads_without_work_end_with_the_last_use_of_them() {
        let threads = Threads::default();
        let pools = [&threads.0.workers, &threads.0.tasks].map(Arc::downgrade);
        let (leave, left) = mpsc::channel::<()>();
        let busy = threads.clone();
        threads.spawn(async move {
            // Until the other end is dropped.
            let _ = left.recv();
            drop(busy);
        });
        threads.spawn_blocking(|| {});
        let is_idle = || threads.0.workers.lock().idle == 1;
        while !is_idle() {
            thread::yield_now();
        }
        drop(threads);
        let has_ended = || pools.iter().all(|pool| pool.strong_count() == 0);
        assert!(!has_ended(), "a task goes on");
        drop(leave);
        let start = Instant::now();
        while !has_ended() {
            // By itself, none ends before.
            assert!(start.elapsed() < IDLE / 2, "threads are left");
            thread::yield_now();
        }
    }
}
