//! Threads as a runtime: a task has a thread of its own, which waits in the system.

use super::wakeup::{block_on, wake_at};
use crate::dial_clock::START;
use nbd_io::runtime::{BlockOn, Runtime, Tasks};
#[cfg(target_os = "linux")]
use rustix::{
    param::page_size,
    process::{Resource, getrlimit},
};
use std::{
    collections::VecDeque,
    fmt,
    pin::{Pin, pin},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Threads that carry out requests at most, for all connections of a server together: as many as
/// each of 256 has by default, so that an export that hangs takes none away from others.
const MOST_WORKERS: usize = 4096;

/// Time for which a thread without work is kept.
const IDLE: Duration = Duration::from_secs(10);

/// The stack of a thread, in bytes. Its address space is taken up whether it is used or not, and a
/// server has hundreds of threads. Code that is not optimized needs some 200 KiB of it for TLS.
const STACK: usize = 512 << 10;

/// Address space that is left when a thread is started, in bytes. The standard library ends the
/// process if a new thread finds none for its first allocations.
const MARGIN: u64 = 2 << 20;

/// The threads that a server runs on. Clones share them; they end with the last clone:
/// with the server, if that is not in use.
///
/// A client for which no thread can be started is turned away, which is an
/// [event](crate::server::Event::AcceptFailed), and the others are served on.
///
/// # Limits on address space
///
/// Each thread takes up address space for its [stack](Self::with_stack_size), and with glibc 64 MiB
/// more for its memory (an *arena*), up to eight times as many of those as there are processors. Only
/// a small part of that is ever used as memory. It counts where address space is limited all the same
/// (`ulimit -v`, `LimitAS=` of systemd): at 1 GiB of it, 16 arenas leave room for hardly anything
/// else. There `MALLOC_ARENA_MAX=2` in the environment helps, or another allocator, or less
/// [memory](crate::Server::memory) for payload; a limit on memory itself (`MemoryMax=`)
/// needs none of this.
#[derive(Clone, Default)]
pub struct Threads(Arc<Pools>);

impl Threads {
    /// Threads with stacks of so many bytes, instead of 512 KiB. Exports are called on them: those that
    /// recurse, or keep large arrays on the stack, need more.
    ///
    /// ```
    /// use nbd_blocking::{Server, Threads, exports::{Memory, NamedExports}};
    /// use std::sync::Arc;
    ///
    /// let exports = NamedExports::single(Arc::new(Memory::new(1 << 20)));
    /// let threads = Threads::with_stack_size(4 << 20);
    /// let server = Server::on_runtime(threads, Arc::new(exports));
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn with_stack_size(bytes: usize) -> Self {
        Self(Arc::new(Pools {
            workers: Arc::new(Workers::new(bytes)),
            tasks: Arc::new(Workers::new(bytes)),
        }))
    }
}

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
        self.workers.release_idle();
        self.tasks.release_idle();
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

    fn release_idle(&self) {
        self.0.workers.release_idle();
        self.0.tasks.release_idle();
    }
}

/// The thread sleeps until it is woken.
impl BlockOn for Threads {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let cx = &mut Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return output;
            }
            thread::park();
        }
    }
}

/// Wakes a thread that sleeps.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
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
struct Workers {
    state: Mutex<Work>,
    arrived: Condvar,
    stack_size: usize,
}

impl Default for Workers {
    fn default() -> Self {
        Self::new(STACK)
    }
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
    /// There will be no more jobs, as far as is known: threads that have none are not kept.
    is_closed: bool,
}

impl Workers {
    fn new(stack_size: usize) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            stack_size,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut work = self.lock();
        work.is_closed = false;
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
        if !self.start("nbd-worker", move || workers.work()) {
            let mut work = self.lock();
            work.threads -= 1;
            // Without any thread, the caller does the work.
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
        work.is_closed = false;
        if work.idle > work.jobs.len() {
            work.jobs.push_back(job);
            self.arrived.notify_one();
            return;
        }
        work.threads += 1;
        drop(work);
        let workers = Arc::clone(self);
        let started = self.start("nbd", move || {
            job();
            workers.work();
        });
        if !started {
            self.lock().threads -= 1;
        }
    }

    /// Starts a thread, if there can be one more.
    fn start(&self, name: &str, code: impl FnOnce() + Send + 'static) -> bool {
        let stack = u64::try_from(self.stack_size).unwrap_or(u64::MAX);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(self.stack_size);
        may_grow(stack.saturating_add(MARGIN)) && thread.spawn(code).is_ok()
    }

    /// Ends idle threads at once, and the others when they are done, unless more work comes until
    /// then.
    fn release_idle(&self) {
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

/// Whether the process may take up so many bytes more of address space.
#[cfg(target_os = "linux")]
fn may_grow(bytes: u64) -> bool {
    let Some(most) = getrlimit(Resource::As).current else {
        return true;
    };
    // In pages; the total size comes first in the file.
    let sizes = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = sizes.split(' ').next().and_then(|pages| pages.parse().ok());
    let size = u64::try_from(page_size()).unwrap_or(u64::MAX);
    let taken = pages.unwrap_or(0_u64).saturating_mul(size);
    taken.saturating_add(bytes) <= most
}

#[cfg(not(target_os = "linux"))]
const fn may_grow(_: u64) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Listener, Server};
    use nbd_io::{Memory, NamedExports};
    use std::{
        io::Read,
        os::unix::net::{UnixListener, UnixStream},
        sync::mpsc,
    };

    #[test]
    fn tasks_after_each_other_share_a_thread_and_tasks_at_once_do_not() {
        let threads = Threads::default();
        let (tx, rx) = mpsc::channel();
        let run = || {
            let (tx, (leave, left)) = (tx.clone(), mpsc::channel::<()>());
            threads.spawn(async move {
                tx.send(thread::current().id()).unwrap();
                // Until the other end is dropped.
                let _ = left.recv();
            });
            (rx.recv().unwrap(), leave)
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

    /// Waits until there is no thread, which takes longer if each ends by itself.
    fn end_early(workers: &Workers) {
        let start = Instant::now();
        while workers.lock().threads > 0 {
            assert!(start.elapsed() < IDLE / 2, "threads are left");
            thread::yield_now();
        }
    }

    #[test]
    fn threads_end_when_they_are_released_and_others_are_started_later() {
        let threads = Threads::default();
        let workers = &threads.0.workers;
        let (tx, rx) = mpsc::channel();
        for _ in 0..2 {
            let (begun, (leave, left)) = (tx.clone(), mpsc::channel::<()>());
            threads.spawn_blocking(move || {
                begun.send(()).unwrap();
                // Until the other end is dropped.
                let _ = left.recv();
            });
            rx.recv().unwrap();
            threads.release_idle();
            assert_eq!(workers.lock().threads, 1, "it is at work");
            drop(leave);
            end_early(workers);
        }
        threads.spawn_blocking(|| {});
        while workers.lock().idle == 0 {
            thread::yield_now();
        }
        threads.release_idle();
        end_early(workers);
    }

    #[test]
    fn a_server_that_has_stopped_keeps_no_threads() {
        let threads = Threads::default();
        let exports = NamedExports::single(Arc::new(Memory::new(512)));
        let server = Server::on_runtime(threads.clone(), Arc::new(exports));
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            let serving = scope.spawn(|| server.serve(Listener::from_std(listener).unwrap()));
            let client = UnixStream::connect(&socket).unwrap();
            (&client).read_exact(&mut [0; 18]).unwrap();
            drop(client);
            server.stopper().stop();
            serving.join().unwrap().unwrap();
        });
        end_early(&threads.0.tasks);
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
