//! A thread that waits in the system for the descriptors and the deadline of its task.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    cell::RefCell,
    io,
    os::fd::AsFd,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// Interval at which a thread without a descriptor to wake it looks whether it was woken.
const LOOK: Duration = Duration::from_millis(50);

/// Events, besides a wake-up, for which a task is polled again.
#[derive(Default)]
struct Interest {
    fds: Vec<(Arc<dyn AsFd + Send + Sync>, PollFlags)>,
    deadline: Option<Instant>,
    /// It is hardly ever woken.
    seldom: bool,
}

thread_local! {
    /// Collected while the task of this thread is polled.
    static INTEREST: RefCell<Interest> = RefCell::default();
}

/// Has the task of this thread polled again when `fd` is ready for something. If nothing but the
/// end of the server will wake it otherwise, it is woken `seldom`.
pub(super) fn wait_for(fd: Arc<dyn AsFd + Send + Sync>, events: PollFlags, seldom: bool) {
    INTEREST.with_borrow_mut(|interest| {
        interest.seldom = seldom && interest.fds.is_empty();
        interest.fds.push((fd, events));
    });
}

/// Has the task of this thread polled again at a certain time.
pub(super) fn wake_at(time: Instant) {
    INTEREST.with_borrow_mut(|interest| {
        let deadline = interest.deadline.get_or_insert(time);
        *deadline = time.min(*deadline);
    });
}

/// Carries a task to its end in this thread.
pub(super) fn block_on<F: Future>(task: F) -> io::Result<F::Output> {
    let wakeup = Arc::new(Wakeup::default());
    let waker = Waker::from(Arc::clone(&wakeup));
    let cx = &mut Context::from_waker(&waker);
    let mut task = pin!(task);
    loop {
        INTEREST.with_borrow_mut(|interest| {
            interest.fds.clear();
            interest.deadline = None;
            interest.seldom = false;
        });
        if let Poll::Ready(output) = task.as_mut().poll(cx) {
            // The thread may run another task next.
            INTEREST.take();
            return Ok(output);
        }
        INTEREST.with_borrow(|interest| wakeup.wait(interest))?;
    }
}

/// Wakes a thread that waits in the system.
///
/// A thread that is woken often has a descriptor of its own for that. Those that wait for their
/// clients, and for nothing else but the end of the server, share one, so that a connection takes
/// up one descriptor like any other server's. That one is used up when one of them is woken: the
/// others wake with it, look around, and share the next.
#[derive(Default)]
struct Wakeup {
    state: AtomicU8,
    own: OnceLock<WakeupFd>,
    /// The shared one that the thread waits for.
    shared: Mutex<Option<Arc<WakeupFd>>>,
}

const AWAKE: u8 = 0;
const WAITING: u8 = 1;
const WOKEN: u8 = 2;

/// Descriptor for threads that are seldom woken, while there are any.
static SHARED: Mutex<Weak<WakeupFd>> = Mutex::new(Weak::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one to be shared now; `None` if the system has no descriptor for it.
fn shared_fd() -> Option<Arc<WakeupFd>> {
    let mut shared = lock(&SHARED);
    shared.upgrade().or_else(|| {
        let fd = Arc::new(WakeupFd::new().ok()?);
        *shared = Arc::downgrade(&fd);
        Some(fd)
    })
}

/// Wakes all threads that share it. It stays readable from then on, so the next ones share another.
fn wake_shared(fd: &Arc<WakeupFd>) {
    let mut shared = lock(&SHARED);
    if shared.as_ptr() == Arc::as_ptr(fd) {
        *shared = Weak::new();
    }
    drop(shared);
    fd.wake();
}

impl Wakeup {
    /// Waits for a wake-up or for an event of interest; may return early.
    fn wait(&self, interest: &Interest) -> io::Result<()> {
        let own = if interest.seldom { None } else { self.own_fd() };
        let shared = if own.is_none() { shared_fd() } else { None };
        lock(&self.shared).clone_from(&shared);
        let exchanged =
            self.state
                .compare_exchange(AWAKE, WAITING, Ordering::SeqCst, Ordering::SeqCst);
        // A wake-up may come after the thread has woken by itself. It is not lost: the state is
        // read anew before the next wait.
        let woken = match exchanged {
            Ok(_) => wait_in_system(interest, own.or(shared.as_deref())),
            Err(_) => Ok(true),
        };
        self.state.store(AWAKE, Ordering::SeqCst);
        if let (Some(own), true) = (own, woken?) {
            own.clear();
        }
        Ok(())
    }

    /// The thread's own, which is made when it is needed; `None` if the system has no descriptor
    /// for it.
    fn own_fd(&self) -> Option<&WakeupFd> {
        if self.own.get().is_none() {
            let _ = self.own.set(WakeupFd::new().ok()?);
        }
        self.own.get()
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::SeqCst) != WAITING {
            return;
        }
        let shared = lock(&self.shared).take();
        match (shared, self.own.get()) {
            (Some(shared), _) => wake_shared(&shared),
            (None, Some(own)) => own.wake(),
            // It looks from time to time.
            (None, None) => {}
        }
    }
}

/// Returns whether the descriptor can be read from.
fn wait_in_system(interest: &Interest, fd: Option<&WakeupFd>) -> io::Result<bool> {
    let mut fds: Vec<_> = interest
        .fds
        .iter()
        .map(|(fd, events)| PollFd::from_borrowed_fd(fd.as_fd(), *events))
        .collect();
    fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
    let left = interest.deadline.map(left);
    let timeout = match fd {
        Some(_) => left,
        None => Some(left.unwrap_or(LOOK).min(LOOK)),
    };
    let timeout = timeout.map(|left| {
        Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        })
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let last = fds.last().filter(|_| fd.is_some());
    Ok(last.is_some_and(|fd| !fd.revents().is_empty()))
}

/// A descriptor that can be read from after a wake-up.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
struct WakeupFd(std::os::fd::OwnedFd);

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl WakeupFd {
    fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    fn wake(&self) {
        // It fails only if many wake-ups are pending already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl AsFd for WakeupFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that can be read from after a wake-up.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
struct WakeupFd {
    here: std::os::unix::net::UnixStream,
    there: std::os::unix::net::UnixStream,
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl WakeupFd {
    fn new() -> io::Result<Self> {
        let (here, there) = std::os::unix::net::UnixStream::pair()?;
        here.set_nonblocking(true)?;
        there.set_nonblocking(true)?;
        Ok(Self { here, there })
    }

    fn wake(&self) {
        use std::io::Write;
        // It fails only if many wake-ups are pending already.
        let _ = (&self.there).write(&[1]);
    }

    fn clear(&self) {
        use std::io::Read;
        while matches!((&self.here).read(&mut [0; 64]), Ok(64)) {}
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl AsFd for WakeupFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.here.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        os::unix::net::UnixStream,
        sync::{atomic::AtomicUsize, mpsc},
        thread,
    };

    #[test]
    fn one_of_many_that_share_a_descriptor_is_woken_and_the_others_wait_on() {
        let woken = Arc::new(AtomicUsize::new(0));
        let (tx, rx) = mpsc::channel();
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (here, there) = UnixStream::pair().unwrap();
                let here = Arc::new(here);
                let (tx, woken) = (tx.clone(), Arc::clone(&woken));
                let leave = Arc::new(AtomicU8::new(0));
                let left = Arc::clone(&leave);
                let thread = thread::spawn(move || {
                    block_on(poll_fn(|cx| {
                        if left.load(Ordering::SeqCst) == 1 {
                            woken.fetch_add(1, Ordering::SeqCst);
                            return Poll::Ready(());
                        }
                        tx.send((n, cx.waker().clone())).unwrap();
                        wait_for(here.clone() as _, PollFlags::IN, true);
                        Poll::Pending
                    }))
                });
                (thread, leave, there)
            })
            .collect();
        let mut wakers: Vec<Option<Waker>> = vec![None; 8];
        while wakers.iter().any(Option::is_none) {
            let (n, waker) = rx.recv().unwrap();
            wakers[n] = Some(waker);
        }
        for (n, (thread, leave, _there)) in threads.into_iter().enumerate() {
            assert_eq!(woken.load(Ordering::SeqCst), n);
            leave.store(1, Ordering::SeqCst);
            wakers[n].take().unwrap().wake();
            thread.join().unwrap().unwrap();
        }
    }
}
