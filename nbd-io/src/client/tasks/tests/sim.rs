//! A runtime in one thread, with its own time and with randomness that can be repeated.
//!
//! A task is polled only when it was woken, so that a lost wake-up is a test that hangs and says
//! so.

use super::pipe::{Pipe, pipe};
use crate::{
    client::DialOptions,
    runtime::{Network, Runtime, Tasks},
};
use nbd_proto::uri::Address;
use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Accept = Arc<dyn Fn(Pipe) -> io::Result<()> + Send + Sync>;

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<usize, Option<Task>>,
    next: usize,
    ready: Vec<usize>,
    timers: BTreeMap<(Duration, usize), Waker>,
    now: Duration,
    polls: u64,
    accept: Option<Accept>,
}

#[derive(Clone)]
pub(crate) struct Sim {
    inner: Arc<Mutex<Inner>>,
    chance: Chance,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sim")
    }
}

/// Numbers that look random (xorshift).
#[derive(Clone, Debug)]
pub(crate) struct Chance(Arc<AtomicU64>);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        )))
    }

    /// A number below `end`.
    pub(crate) fn below(&self, end: usize) -> usize {
        let mut x = self.0.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.store(x, Ordering::Relaxed);
        usize::try_from((x >> 16) % end as u64).unwrap()
    }
}

/// The task that [`Sim::run`] waits for.
const MAIN: usize = usize::MAX;

/// More polls than any test needs before time has to pass.
const MOST_POLLS: u64 = 1_000_000;

struct Wakes {
    inner: Arc<Mutex<Inner>>,
    task: usize,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        let mut inner = self.inner.lock().unwrap();
        if !inner.ready.contains(&self.task) {
            inner.ready.push(self.task);
        }
    }
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            inner: Arc::default(),
            chance: Chance::new(seed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn chance(&self) -> &Chance {
        &self.chance
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().now
    }

    /// The number of polls of all tasks.
    pub(crate) fn polls(&self) -> u64 {
        self.lock().polls
    }

    pub(crate) fn on_connect(
        &self,
        accept: impl Fn(Pipe) -> io::Result<()> + Send + Sync + 'static,
    ) {
        self.lock().accept = Some(Arc::new(accept));
    }

    fn waker(&self, task: usize) -> Waker {
        Waker::from(Arc::new(Wakes {
            inner: self.inner.clone(),
            task,
        }))
    }

    /// Runs everything until `main` is done. Time passes only when nothing else can be done.
    pub(crate) fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        // Those of one task are the same, as they are on real runtimes.
        let mut wakers = BTreeMap::new();
        let mut before = self.polls();
        self.lock().ready.push(MAIN);
        loop {
            let (ready, timer) = {
                let mut inner = self.lock();
                let count = inner.ready.len();
                if count > 0 {
                    inner.polls += 1;
                    let polls = inner.polls - before;
                    assert!(polls < MOST_POLLS, "tasks wake each other for ever");
                    let at = self.chance.below(count);
                    (Some(inner.ready.swap_remove(at)), None)
                } else {
                    let timer = inner.timers.pop_first();
                    let ((at, _), waker) = timer.expect("a lost wake-up");
                    inner.now = at;
                    before = inner.polls;
                    (None, Some(waker))
                }
            };
            timer.into_iter().for_each(Waker::wake);
            let Some(id) = ready else { continue };
            let waker = wakers.entry(id).or_insert_with(|| self.waker(id));
            let mut context = Context::from_waker(waker);
            if id == MAIN {
                if let Poll::Ready(done) = main.as_mut().poll(&mut context) {
                    return done;
                }
                continue;
            }
            let Some(mut task) = self.lock().tasks.get_mut(&id).and_then(Option::take) else {
                continue;
            };
            if task.as_mut().poll(&mut context).is_ready() {
                self.lock().tasks.remove(&id);
                drop(task);
            } else if let Some(place) = self.lock().tasks.get_mut(&id) {
                *place = Some(task);
            }
        }
    }

    /// Drops all tasks.
    pub(crate) fn shut_down(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        drop(tasks);
    }

    /// The number of tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.lock().tasks.len()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Tasks hold the runtime, which holds them.
        self.tasks.clear();
    }
}

pub(crate) struct Sleep {
    sim: Sim,
    at: Duration,
    key: Option<(Duration, usize)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut inner = sim.lock();
        if let Some(key) = self.key.take() {
            inner.timers.remove(&key);
        }
        if inner.now >= self.at {
            return Poll::Ready(());
        }
        inner.next += 1;
        let key = (self.at, inner.next);
        inner.timers.insert(key, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.sim.lock().timers.remove(&key);
            drop(waker);
        }
    }
}

impl Runtime for Sim {
    type Sleep = Sleep;

    fn now(&self) -> Duration {
        self.lock().now
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let at = self.now() + time;
        Sleep {
            sim: self.clone(),
            at,
            key: None,
        }
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.spawn(async { job() });
    }
}

impl Tasks for Sim {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        inner.tasks.insert(id, Some(Box::pin(task)));
        inner.ready.push(id);
    }
}

impl Network for Sim {
    type Stream = Pipe;

    async fn connect(&self, _: &Address, _: &DialOptions) -> io::Result<Pipe> {
        let accept = self.lock().accept.clone();
        let accept = accept.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = pipe(&self.chance);
        accept(theirs)?;
        Ok(ours)
    }
}

/// A part of a task that is polled only when it was woken itself.
struct Own<F: Future> {
    future: Pin<Box<F>>,
    flag: Arc<Flag>,
    output: Option<F::Output>,
}

#[derive(Default)]
struct Flag {
    woken: AtomicBool,
    parent: Mutex<Option<Waker>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        let parent = self.parent.lock().unwrap().clone();
        parent.into_iter().for_each(Waker::wake);
    }
}

impl<F: Future> Own<F> {
    fn new(future: F) -> Self {
        let flag = Arc::<Flag>::default();
        flag.woken.store(true, Ordering::Relaxed);
        Self {
            future: Box::pin(future),
            flag,
            output: None,
        }
    }

    /// Whether it is done.
    fn advance(&mut self, cx: &Context<'_>) -> bool {
        *self.flag.parent.lock().unwrap() = Some(cx.waker().clone());
        if self.output.is_none() && self.flag.woken.swap(false, Ordering::Relaxed) {
            let waker = Waker::from(self.flag.clone());
            if let Poll::Ready(output) = self.future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                self.output = Some(output);
            }
        }
        self.output.is_some()
    }
}

/// Both, in one task.
pub(crate) async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (Own::new(a), Own::new(b));
    poll_fn(|cx| match (a.advance(cx), b.advance(cx)) {
        (true, true) => Poll::Ready(()),
        _ => Poll::Pending,
    })
    .await;
    (a.output.unwrap(), b.output.unwrap())
}

/// All of them, in one task.
pub(crate) async fn join_all<F: Future>(all: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.into_iter().map(Own::new).collect();
    poll_fn(|cx| {
        let open = all
            .iter_mut()
            .filter_map(|one| (!one.advance(cx)).then_some(()));
        match open.count() {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    all.into_iter().map(|one| one.output.unwrap()).collect()
}

/// The first of both that is done; the other is dropped.
pub(crate) async fn select<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Pending => b.as_mut().poll(cx),
        done => done,
    })
    .await
}
