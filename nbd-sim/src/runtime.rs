//! One thread, virtual time, and a scheduler for which a seed decides.

mod late;

pub use late::Hold;

use crate::network::Net;
use fastrand::Rng;
use nbd_io::runtime::{Runtime, Tasks};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// So many polls without time passing are tasks that wake each other for ever.
const MOST_POLLS: u64 = 100_000;

/// So many polls of one task in a second, without anything done by it, are too many. A task that is
/// woken by each tick of a timer has 1000; of 8000 seeds, none had more than 402.
const MOST_POLLS_A_SECOND: u64 = 800;

/// So many calls of the disk may wait at once, each below the next one on the stack.
const MOST_WAITING: usize = 8;

/// The tasks of one process, which a crash ends together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(pub u32);

/// A handle to the simulation, in whose group tasks are started.
#[derive(Clone)]
pub struct Sim {
    core: Arc<Mutex<Core>>,
    pub(crate) net: Arc<Mutex<Net>>,
    group: Group,
}

struct Core {
    tasks: BTreeMap<u64, Slot>,
    ready: Vec<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    /// Tasks whose poll has not returned, the innermost last.
    stack: Vec<u64>,
    dead: BTreeSet<Group>,
    holds: Vec<Hold>,
    /// All of them so far, with their begin and end.
    held: Vec<(Hold, Duration, Option<Duration>)>,
    next: u64,
    now: Duration,
    /// Timers end with a tick of this length, if it is any.
    tick: Duration,
    polls: u64,
    /// Of all polls, in order.
    fingerprint: u64,
    rng: Rng,
    log: Option<String>,
}

/// A time at which a task is woken, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<(Duration, u64)>);

struct Slot {
    /// None while it is polled.
    future: Option<Task>,
    group: Group,
    waker: Waker,
    is_woken: bool,
    /// Whether it is a job, which may wait in place.
    may_wait: bool,
    connection: Option<usize>,
    /// A second of the clock, and the number of polls in it since the task has done something.
    polls: (u64, u64),
}

/// The result of a step of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task was polled, or a timer has ended.
    Done,
    /// Nothing is left to be done before the given time.
    Idle,
    /// Tasks wake each other and no time passes, or one is woken again and again and does nothing.
    Livelock,
}

struct TaskWaker {
    core: Weak<Mutex<Core>>,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(core) = self.core.upgrade() {
            lock(&core).wake(self.task);
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    fn wake(&mut self, task: u64) {
        if let Some(slot) = self.tasks.get_mut(&task)
            && !slot.is_woken
        {
            slot.is_woken = true;
            self.make_ready(task);
        }
    }

    /// Has a task polled if it was woken and may be. One that is being polled is ready again when
    /// that has ended.
    fn make_ready(&mut self, task: u64) {
        if let Some(slot) = self.tasks.get(&task)
            && slot.is_woken
            && slot.future.is_some()
            && !self.is_held(task, slot)
        {
            self.ready.push(task);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Sim {
    /// A simulation by a seed, which logs its events if it `logs`. Timers end with a `tick`, if that
    /// is any time.
    #[must_use]
    pub fn new(seed: u64, net: Net, tick: Duration, logs: bool) -> Self {
        Self {
            core: Arc::new(Mutex::new(Core {
                tasks: BTreeMap::new(),
                ready: Vec::new(),
                timers: BTreeMap::new(),
                stack: Vec::new(),
                dead: BTreeSet::new(),
                holds: Vec::new(),
                held: Vec::new(),
                next: 0,
                now: Duration::ZERO,
                tick,
                polls: 0,
                fingerprint: 0,
                rng: Rng::with_seed(seed),
                log: logs.then(String::new),
            })),
            net: Arc::new(Mutex::new(net)),
            group: Group(0),
        }
    }

    /// The same simulation, for the tasks of a group.
    #[must_use]
    pub fn in_group(&self, group: Group) -> Self {
        let Self { core, net, .. } = self.clone();
        Self { core, net, group }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Lets the seed decide.
    pub fn random<T>(&self, decide: impl FnOnce(&mut Rng) -> T) -> T {
        decide(&mut self.lock().rng)
    }

    /// Logs an event.
    pub fn log(&self, what: impl FnOnce() -> String) {
        if self.lock().log.is_none() {
            return;
        }
        let what = what();
        let mut core = self.lock();
        let now = core.now;
        if let Some(log) = &mut core.log {
            // Strings take everything.
            let _ = writeln!(log, "{:>12.3} ms  {what}", now.as_secs_f64() * 1e3);
        }
    }

    /// Everything that was written down, which is left empty.
    #[must_use]
    pub fn take_log(&self) -> String {
        let log = self.lock().log.replace(String::new());
        log.unwrap_or_default()
    }

    /// A number that is the same if the same tasks were polled in the same order at the same times.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.lock().fingerprint
    }

    /// Has a task woken at a time, and no more at the time that was set before.
    pub(crate) fn set_timer(&self, timer: &mut Timer, at: Option<Duration>, waker: &Waker) {
        let mut core = self.lock();
        let old = timer.0.take().and_then(|key| core.timers.remove(&key));
        if let Some(at) = at {
            let key = (at, core.number());
            core.timers.insert(key, waker.clone());
            timer.0 = Some(key);
        }
        drop(core);
        drop(old);
    }

    /// Takes note that the current task serves a connection.
    pub(crate) fn note_connection(&self, connection: usize) {
        let mut core = self.lock();
        if let Some(task) = core.stack.last().copied()
            && let Some(slot) = core.tasks.get_mut(&task)
        {
            slot.connection = Some(connection);
        }
    }

    /// Takes note that the current task has done something: bytes were moved, or an attempt was made
    /// that its policy limits.
    pub(crate) fn note_progress(&self) {
        let mut core = self.lock();
        if let Some(task) = core.stack.last().copied()
            && let Some(slot) = core.tasks.get_mut(&task)
        {
            slot.polls.1 = 0;
        }
    }

    /// The connection for which the current task or job works.
    #[must_use]
    pub fn connection(&self) -> Option<usize> {
        let core = self.lock();
        core.tasks.get(core.stack.last()?)?.connection
    }

    /// The group of this handle.
    #[must_use]
    pub(crate) const fn group(&self) -> Group {
        self.group
    }

    /// The tick with which timers end; none at their very time.
    #[must_use]
    pub(crate) fn tick(&self) -> Duration {
        self.lock().tick
    }

    /// Whether the group of this handle was ended.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead.contains(&self.group)
    }

    /// Ends a group: its tasks are dropped at once, or when their poll returns.
    pub fn kill(&self, group: Group) {
        let mut core = self.lock();
        core.dead.insert(group);
        let mut dropped = Vec::new();
        core.tasks.retain(|_, slot| {
            let stays = slot.group != group || slot.future.is_none();
            if !stays {
                dropped.extend(slot.future.take());
            }
            stays
        });
        drop(core);
        drop(dropped);
    }

    /// Drops all tasks and timers.
    pub fn shut_down(&self) {
        let mut core = self.lock();
        let tasks = std::mem::take(&mut core.tasks);
        let timers = std::mem::take(&mut core.timers);
        drop(core);
        drop((tasks, timers));
    }

    fn start(&self, task: Task, may_wait: bool) {
        let mut core = self.lock();
        if core.dead.contains(&self.group) {
            drop(core);
            return;
        }
        let id = core.number();
        let connection = core.stack.last().and_then(|task| core.tasks.get(task));
        let connection = connection.and_then(|slot| slot.connection);
        let waker = TaskWaker {
            core: Arc::downgrade(&self.core),
            task: id,
        };
        let slot = Slot {
            future: Some(task),
            group: self.group,
            waker: Waker::from(Arc::new(waker)),
            is_woken: true,
            may_wait,
            connection: connection.filter(|_| may_wait),
            polls: (0, 0),
        };
        core.tasks.insert(id, slot);
        core.make_ready(id);
    }

    /// Does one thing that can be done by now, else lets time pass, up to `limit`.
    pub fn step(&self, limit: Duration) -> Step {
        let mut core = self.lock();
        if core.ready.is_empty() {
            let due = core.timers.first_key_value().map(|((at, _), _)| *at);
            if due.is_none_or(|due| due > limit) {
                return Step::Idle;
            }
            if let Some(((at, _), waker)) = core.timers.pop_first() {
                if at > core.now {
                    core.now = at;
                    core.polls = 0;
                }
                drop(core);
                waker.wake();
            }
            return Step::Done;
        }
        core.polls += 1;
        if core.polls > MOST_POLLS {
            return Step::Livelock;
        }
        let count = core.ready.len();
        let at = core.rng.usize(..count);
        let id = core.ready.swap_remove(at);
        let now = u64::from(core.now.subsec_nanos());
        core.fingerprint = (core.fingerprint ^ id ^ now).wrapping_mul(0x100_0000_01b3);
        let second = core.now.as_secs();
        let Some(slot) = core.tasks.get_mut(&id) else {
            return Step::Done;
        };
        slot.is_woken = false;
        slot.polls = match slot.polls {
            (at, count) if at == second => (at, count + 1),
            _ => (second, 1),
        };
        if slot.polls.1 > MOST_POLLS_A_SECOND {
            return Step::Livelock;
        }
        let waker = slot.waker.clone();
        let Some(mut task) = slot.future.take() else {
            return Step::Done;
        };
        core.stack.push(id);
        drop(core);
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        let mut core = self.lock();
        core.stack.pop();
        let is_dead = |core: &Core, slot: &Slot| core.dead.contains(&slot.group);
        let stays =
            polled.is_pending() && (core.tasks.get(&id)).is_some_and(|slot| !is_dead(&core, slot));
        if !stays {
            let slot = core.tasks.remove(&id);
            drop(core);
            drop((slot, task));
            return Step::Done;
        }
        if let Some(slot) = core.tasks.get_mut(&id) {
            slot.future = Some(task);
            core.make_ready(id);
        }
        Step::Done
    }

    /// Has the job that calls this wait, while everything else goes on. Tasks, which must not wait,
    /// go on at once.
    pub fn wait_in_place(&self, time: Duration) {
        let end = {
            let core = self.lock();
            let current = core.stack.last().and_then(|task| core.tasks.get(task));
            let may_wait = current.is_some_and(|slot| slot.may_wait);
            let waiting = |task: &&u64| core.tasks.get(task).is_some_and(|slot| slot.may_wait);
            let waiting = core.stack.iter().filter(waiting).count();
            if !may_wait || waiting > MOST_WAITING {
                return;
            }
            core.now + time
        };
        while self.lock().now < end {
            match self.step(end) {
                Step::Done => {}
                Step::Idle => {
                    let mut core = self.lock();
                    core.now = end;
                    core.polls = 0;
                }
                Step::Livelock => return,
            }
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.group).finish()
    }
}

/// A timer. A coarse one pends at its first poll, even if its time is over.
#[derive(Debug)]
pub struct Sleep {
    sim: Sim,
    at: Duration,
    is_polled: bool,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut core = sim.lock();
        let old = self.key.take().and_then(|key| core.timers.remove(&key));
        if !std::mem::replace(&mut self.is_polled, true) && !core.tick.is_zero() {
            self.at = self.at.max(core.end_of(Duration::ZERO));
        }
        if core.now >= self.at {
            drop(core);
            drop(old);
            return Poll::Ready(());
        }
        let key = (self.at, core.number());
        core.timers.insert(key, cx.waker().clone());
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

    const TIMERS_WAKE: bool = true;

    fn now(&self) -> Duration {
        self.lock().now
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let at = self.lock().end_of(time);
        Sleep {
            sim: self.clone(),
            at,
            is_polled: false,
            key: None,
        }
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.start(Box::pin(async { job() }), true);
    }
}

impl Tasks for Sim {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start(Box::pin(task), false);
    }
}
