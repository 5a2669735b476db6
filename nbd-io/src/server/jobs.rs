//! Requests that are carried out beside their connection.

use super::{
    Replies,
    buffers::Buffers,
    execute::{execute, execute_now, execute_zeroes},
    report::{Report, payload_len},
    session::is_quick,
    work::Load,
};
use crate::{Export, runtime::Runtime};
use nbd_proto::server::Request;
use std::{
    collections::VecDeque,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

/// Interval at which the number of threads is reconsidered.
const TICK: Duration = Duration::from_millis(1);

/// A tick of a connection for which no more threads can be had, in ticks.
const LONG: u32 = 16;

/// A thread that does fewer requests in a tick waits for something else than the processor.
const SLOW: usize = 16;

/// A thread that does more requests in a tick does not wait at all.
const QUICK: usize = 64;

/// Payloads up to this length stay with their request's memory, in bytes.
const SMALL: usize = 16 << 10;

/// Requests that are carried out on other threads, and answered in the order in which they are
/// done.
///
/// The number of threads follows from the time that requests take: one is enough where data comes
/// from a cache, and its replies are sent together. While requests wait and few are done in a tick,
/// each tick doubles the number.
pub(super) struct Jobs<R: Runtime> {
    runtime: R,
    shared: Arc<Shared>,
    buffers: Arc<Buffers>,
    /// Limit of threads at present, which adapts.
    width: usize,
    most: usize,
    /// Runs while requests wait.
    tick: Option<R::Sleep>,
    /// Requests done since it began.
    done: usize,
    spare: Vec<Job>,
    /// Number of requests in a row that were quick and could have been slow.
    quick_streak: u32,
    /// A read that was found not to be all zero.
    not_zero: Option<Request>,
}

/// State that the threads share.
struct Shared {
    export: Arc<dyn Export>,
    report: Report,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Request, Job)>,
    done: Vec<Job>,
    runners: usize,
    /// Wakes the connection.
    waker: Option<Waker>,
}

/// The memory of one request, which is used again.
struct Job {
    payload: Vec<u8>,
    len: usize,
    replies: Replies,
    /// Bytes of payload, both ways.
    moves: u64,
    timed: bool,
    /// It is a read that is answered only if it is all zero.
    zeroes_only: bool,
    not_zero: Option<Request>,
    result: JobResult,
}

/// The result of carrying out a request.
enum JobResult {
    Quick,
    Slow,
    Panicked,
}

/// An export has panicked. There is no answer to its request.
#[derive(Debug)]
pub(super) struct Panicked;

/// Carries out a request, and reports it to the program.
#[inline]
pub(super) fn carry_out(
    export: &dyn Export,
    request: Request,
    payload: &[u8],
    replies: &mut Replies,
    report: &Report,
) {
    if report.is_wanted() {
        return carry_out_reported(export, request, payload, replies, report);
    }
    // A failure is the client's to know, and is not an event.
    let _ = execute(export, request, payload, replies);
}

/// Apart, so that requests cost nothing that are not reported.
#[cold]
fn carry_out_reported(
    export: &dyn Export,
    request: Request,
    payload: &[u8],
    replies: &mut Replies,
    report: &Report,
) {
    let begun = report.begin(&request);
    let result = execute(export, request, payload, replies);
    if let Some(begun) = begun {
        report.end(begun, &result);
    }
}

/// Carries out a request if the export need not wait, or else gives it back.
pub(super) fn carry_out_now(
    export: &dyn Export,
    request: Request,
    replies: &mut Replies,
    report: &Report,
) -> Option<Request> {
    let begun = report.begin(&request);
    match execute_now(export, request, replies) {
        Ok(result) => {
            if let Some(begun) = begun {
                report.end(begun, &result);
            }
            None
        }
        Err(request) => Some(request),
    }
}

/// Carries out a read of nothing but zeroes, if the export knows of them, or else gives it back.
pub(super) fn carry_out_zeroes(
    export: &dyn Export,
    request: Request,
    replies: &mut Replies,
    report: &Report,
) -> Result<(), Request> {
    let begun = report.begin(&request);
    execute_zeroes(export, request, replies)?;
    if let Some(begun) = begun {
        report.end(begun, &Ok(()));
    }
    Ok(())
}

/// State that a panic left behind is not looked at any more.
pub(super) fn guard<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|_| Panicked)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out requests until none waits.
    fn run<R: Runtime>(&self, runtime: &R) {
        loop {
            let (request, mut job) = {
                let mut state = self.lock();
                match state.waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        state.runners -= 1;
                        return;
                    }
                }
            };
            let clock = || runtime.own_thread_clock().unwrap_or_default();
            let before = clock();
            let payload = &job.payload[..job.len];
            let (export, replies) = (&*self.export, &mut job.replies);
            let carried_out = guard(|| {
                if job.zeroes_only {
                    let left = carry_out_zeroes(export, request, replies, &self.report);
                    job.not_zero = left.err();
                } else {
                    carry_out(export, request, payload, replies, &self.report);
                }
            });
            job.result = match carried_out {
                Err(Panicked) => JobResult::Panicked,
                Ok(()) if is_quick(clock().saturating_sub(before), job.moves) => JobResult::Quick,
                Ok(()) => JobResult::Slow,
            };
            let waker = {
                let mut state = self.lock();
                state.done.push(job);
                state.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<R: Runtime> Jobs<R> {
    pub(super) fn new(
        runtime: R,
        export: Arc<dyn Export>,
        report: Report,
        buffers: Arc<Buffers>,
        most: usize,
    ) -> Self {
        Self {
            runtime,
            shared: Arc::new(Shared {
                export,
                report,
                state: Mutex::default(),
            }),
            buffers,
            width: 1,
            most: most.max(1),
            tick: None,
            done: 0,
            spare: Vec::new(),
            quick_streak: 0,
            not_zero: None,
        }
    }

    /// A read that is [not all zero](Self::ask_for_zeroes), and that has to be carried out with memory.
    pub(super) const fn take_not_zero(&mut self) -> Option<Request> {
        self.not_zero.take()
    }

    /// Has a read answered, for which there is no memory, if the export knows that all of it is zero.
    pub(super) fn ask_for_zeroes(&mut self, load: &mut Load, request: Request) {
        load.asking_for_zeroes = true;
        let mut job = self.job();
        (job.len, job.moves, job.timed, job.zeroes_only) = (0, 0, false, true);
        self.begin(load, request, job);
    }

    /// Number of requests in a row that were quick, of those that are quick only with a cache.
    pub(super) const fn quick_streak(&self) -> u32 {
        self.quick_streak
    }

    /// A request that was carried out elsewhere was not quick.
    pub(super) const fn reset_quick_streak(&mut self) {
        self.quick_streak = 0;
    }

    /// Gives up memory while nothing is going on.
    pub(super) fn shrink(&mut self) {
        self.spare = Vec::new();
    }

    /// Has a request carried out; `fill` puts its payload into a buffer and says how long it is, or
    /// that there is no memory for it: then this gives the request back. If it is `timed`, it
    /// counts for [`quick_streak`](Self::quick_streak).
    pub(super) fn push(
        &mut self,
        load: &mut Load,
        request: Request,
        timed: bool,
        fill: impl FnOnce(&mut Vec<u8>, &Buffers) -> Option<usize>,
    ) -> Result<(), Request> {
        let mut job = self.job();
        let Some(len) = fill(&mut job.payload, &self.buffers) else {
            self.spare.push(job);
            return Err(request);
        };
        job.len = len;
        (job.moves, job.timed) = (payload_len(&request), timed);
        self.begin(load, request, job);
        Ok(())
    }

    /// The memory for a request.
    fn job(&mut self) -> Job {
        self.spare.pop().unwrap_or_else(|| Job {
            payload: Vec::new(),
            len: 0,
            replies: Replies::elsewhere(Arc::clone(&self.buffers)),
            moves: 0,
            timed: false,
            zeroes_only: false,
            not_zero: None,
            result: JobResult::Quick,
        })
    }

    fn begin(&mut self, load: &mut Load, request: Request, job: Job) {
        let moves = job.moves;
        let mut state = self.shared.lock();
        state.waiting.push_back((request, job));
        let start = state.runners < self.width;
        state.runners += usize::from(start);
        drop(state);
        if start {
            self.start();
        }
        // Counted last: a runtime that panics because there are no more threads would otherwise
        // leave a job that is waited for.
        load.begin(moves);
    }

    fn start(&self) {
        let (shared, runtime) = (Arc::clone(&self.shared), self.runtime.clone());
        self.runtime.spawn_blocking(move || shared.run(&runtime));
    }

    /// Appends the replies of jobs that are done, and has the connection woken when more are.
    /// Returns whether there were any.
    pub(super) fn collect(
        &mut self,
        load: &mut Load,
        cx: &mut Context<'_>,
        replies: &mut Replies,
    ) -> Result<bool, Panicked> {
        let mut state = self.shared.lock();
        let mut done = mem::take(&mut state.done);
        if state
            .waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            state.waker = Some(cx.waker().clone());
        }
        drop(state);
        let any = !done.is_empty();
        let mut panicked = false;
        for mut job in done.drain(..) {
            load.end(job.moves);
            self.done += 1;
            match job.result {
                JobResult::Quick if job.timed => {
                    self.quick_streak = self.quick_streak.saturating_add(1)
                }
                JobResult::Slow if job.timed => self.quick_streak = 0,
                JobResult::Quick | JobResult::Slow => {}
                JobResult::Panicked => {
                    panicked = true;
                    continue;
                }
            }
            replies.absorb(&mut job.replies);
            if mem::take(&mut job.zeroes_only) {
                (load.asking_for_zeroes, self.not_zero) = (false, job.not_zero.take());
            }
            if job.payload.len() > SMALL {
                self.buffers.keep(mem::take(&mut job.payload));
            }
            self.spare.push(job);
        }
        // The list's memory is used again, if it is still needed.
        let mut state = self.shared.lock();
        if state.done.is_empty() {
            state.done = done;
        }
        if panicked { Err(Panicked) } else { Ok(any) }
    }

    /// Puts more threads on it if requests take long.
    #[inline]
    pub(super) fn poll_tick(&mut self, load: &Load, cx: &mut Context<'_>) {
        if load.running() > 0 || self.tick.is_some() {
            self.poll_running_tick(load, cx);
        }
    }

    fn poll_running_tick(&mut self, load: &Load, cx: &mut Context<'_>) {
        loop {
            if load.running() == 0 || self.shared.lock().waiting.is_empty() {
                self.tick = None;
                return;
            }
            if self.tick.is_none() {
                self.done = 0;
            }
            // When there are as many as may be, the tick is a long one.
            let ticks = if self.width == self.most { LONG } else { 1 };
            let tick = self
                .tick
                .get_or_insert_with(|| self.runtime.sleep(TICK * ticks));
            if Pin::new(tick).poll(cx).is_pending() {
                return;
            }
            self.tick = None;
            match self.done / self.width / ticks as usize {
                0..SLOW => self.width = (self.width * 2).min(self.most),
                QUICK.. => self.width = (self.width / 2).max(1),
                _ => {}
            }
            let mut state = self.shared.lock();
            let more = self
                .width
                .saturating_sub(state.runners)
                .min(state.waiting.len());
            state.runners += more;
            drop(state);
            for _ in 0..more {
                self.start();
            }
        }
    }
}

impl<R: Runtime> Drop for Jobs<R> {
    fn drop(&mut self) {
        // No connection waits for the answers any more.
        self.shared.lock().waiting.clear();
    }
}
