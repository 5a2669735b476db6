//! Threads as a runtime: a task has a thread of its own, which waits in the system.

use nbd_io::runtime::{Runtime, Tasks};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt, io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

/// Threads that carry out requests at most, for all connections of a server together: as many as
/// each of 256 has by default, so that an export that hangs takes none away from others.
const MOST_WORKERS: usize = 4096;

/// How long a thread without anything to do is kept.
const IDLE: Duration = Duration::from_secs(10);

/// What a server on plain threads runs on. Clones share the threads that carry out requests.
#[derive(Clone, Default)]
pub struct Threads {
    workers: Arc<Workers>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Runtime for Threads {
    type Sleep = Sleep;

    fn sleep(&self, time: Duration) -> Sleep {
        Sleep(Instant::now().checked_add(time))
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.workers.push(Box::new(job));
    }

    fn own_thread_clock(&self) -> Option<Duration> {
        // Any fixed point will do; the thread's first question is one.
        thread_local!(static START: Instant = Instant::now());
        Some(START.with(Instant::elapsed))
    }
}

impl Tasks for Threads {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Where there is no thread for it, the task is dropped, as the trait has it.
        let _ = thread::Builder::new()
            .name("nbd".to_owned())
            .spawn(move || block_on(task));
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
        INTEREST.with_borrow_mut(|interest| {
            let deadline = interest.deadline.get_or_insert(end);
            *deadline = end.min(*deadline);
        });
        Poll::Pending
    }
}

/// What a task waits for, besides being woken.
#[derive(Default)]
struct Interest {
    fds: Vec<(Arc<dyn AsFd + Send + Sync>, PollFlags)>,
    deadline: Option<Instant>,
}

thread_local! {
    /// Collected while the task of this thread is polled.
    static INTEREST: RefCell<Interest> = RefCell::default();
}

/// Has the task of this thread polled again when `fd` is ready for something.
pub(super) fn wait_for(fd: Arc<dyn AsFd + Send + Sync>, events: PollFlags) {
    INTEREST.with_borrow_mut(|interest| interest.fds.push((fd, events)));
}

/// Carries a task to its end in this thread.
pub(super) fn block_on<F: Future>(task: F) -> io::Result<F::Output> {
    let bell = Arc::new(Bell::new()?);
    let waker = Waker::from(Arc::clone(&bell));
    let cx = &mut Context::from_waker(&waker);
    let mut task = pin!(task);
    loop {
        INTEREST.with_borrow_mut(|interest| {
            interest.fds.clear();
            interest.deadline = None;
        });
        if let Poll::Ready(output) = task.as_mut().poll(cx) {
            // What the thread does next may be another task.
            INTEREST.take();
            return Ok(output);
        }
        INTEREST.with_borrow(|interest| bell.wait(interest))?;
    }
}

/// Wakes a thread that waits in the system.
struct Bell {
    state: AtomicU8,
    ring: Ring,
}

const AWAKE: u8 = 0;
const WAITING: u8 = 1;
const RUNG: u8 = 2;

impl Bell {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU8::new(AWAKE),
            ring: Ring::new()?,
        })
    }

    /// Waits until the bell is rung, or something of interest has happened.
    fn wait(&self, interest: &Interest) -> io::Result<()> {
        let exchanged =
            self.state
                .compare_exchange(AWAKE, WAITING, Ordering::SeqCst, Ordering::SeqCst);
        let rung = exchanged.is_err() || {
            let mut fds: Vec<_> = interest
                .fds
                .iter()
                .map(|(fd, events)| PollFd::from_borrowed_fd(fd.as_fd(), *events))
                .collect();
            fds.push(PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN));
            let timeout = interest.deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec::try_from(left).unwrap_or(Timespec {
                    tv_sec: i64::MAX,
                    tv_nsec: 0,
                })
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            fds.last().is_some_and(|ring| !ring.revents().is_empty())
        };
        self.state.store(AWAKE, Ordering::SeqCst);
        if rung {
            self.ring.silence();
        }
        Ok(())
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::SeqCst) == WAITING {
            self.ring.ring();
        }
    }
}

/// A descriptor that can be read from once somebody rang.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
struct Ring(std::os::fd::OwnedFd);

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl Ring {
    fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    fn ring(&self) {
        // It fails only if it has been rung very often already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that can be read from once somebody rang.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
struct Ring {
    here: std::os::unix::net::UnixStream,
    there: std::os::unix::net::UnixStream,
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl Ring {
    fn new() -> io::Result<Self> {
        let (here, there) = std::os::unix::net::UnixStream::pair()?;
        here.set_nonblocking(true)?;
        there.set_nonblocking(true)?;
        Ok(Self { here, there })
    }

    fn ring(&self) {
        use std::io::Write;
        // It fails only if it has been rung very often already.
        let _ = (&self.there).write(&[1]);
    }

    fn silence(&self) {
        use std::io::Read;
        while matches!((&self.here).read(&mut [0; 64]), Ok(64)) {}
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.here.as_fd()
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that carry out requests, as many as there is work for.
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

    fn work(&self) {
        let mut work = self.lock();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                drop(work);
                job();
                work = self.lock();
                continue;
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
