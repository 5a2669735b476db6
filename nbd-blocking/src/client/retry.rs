//! Requests over one connection, and once more over the next when that is lost.

use super::Client;
use crate::{
    Error,
    link::{Answer, Call, Link},
    pool::ReconnectingPool,
    range_guard::RangeGuard,
};
use nbd_io::client::{Admission, FlushStep, Piece, Record, Request, Uncovered, WINDOW, Watched};
use nbd_proto::{
    Command, CommandFlags, Errno,
    client::{Cookie, Outcome},
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::Arc,
    task::{Poll, Wake, Waker},
    thread::{self, Thread},
    time::Instant,
};

/// A request to be cut into pieces.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The longest that a piece may be, in bytes.
    pub(super) max: u64,
    pub(super) flags: CommandFlags,
    /// Held on for a piece that is not answered in time, since the server may still carry it out.
    pub(super) guard: Option<&'a RangeGuard>,
    /// A piece of a change in a form that can be kept, with a payload of its own.
    pub(super) kept: Option<&'a dyn Fn(Piece) -> Request>,
}

impl Client {
    /// Cuts a request into pieces and has several of them in flight.
    pub(super) fn pieces<'a>(
        &self,
        job: Job<'_>,
        dest: &mut [u8],
        request: impl Fn(Piece) -> Call<'a>,
    ) -> Result<(), Error> {
        self.observed(self.carry_out(job, dest, request))
    }

    /// Has a loss reported by the call that notices it.
    #[inline]
    fn observed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Lost(_)) = &result {
            self.pool.report_losses();
        }
        result
    }

    fn carry_out<'a>(
        &self,
        job: Job<'_>,
        dest: &mut [u8],
        request: impl Fn(Piece) -> Call<'a>,
    ) -> Result<(), Error> {
        let Job {
            offset, len, max, ..
        } = job;
        let link = match self.pool.link() {
            Ok(link) => link,
            Err(reconnecting) => {
                let pieces = self.negotiated().pieces(offset, len, max);
                return self
                    .retry(reconnecting, job, pieces, dest, request)
                    .map(|_| ());
            }
        };
        if (1..=max).contains(&len) {
            let _watched = self.pool.watch(job.command, || offset..offset + len);
            return match link.call(request(Piece { offset, len }), dest) {
                Ok(_) => Ok(()),
                Err(late) => Err(job.failed(link, late)),
            };
        }
        let mut pieces = self.negotiated().pieces(offset, len, max);
        let next = || pieces.next();
        let record = |_| None;
        let watch = |piece| self.watch(job.command, piece);
        in_flight(link, next, dest, request, record, watch, |_, done| {
            done.map(drop).map_err(|late| job.failed(link, late))
        })
    }

    /// Has a single request carried out that has no pieces.
    pub(super) fn single<'a>(
        &self,
        command: Command,
        dest: &mut [u8],
        request: impl Fn() -> Call<'a>,
    ) -> Result<Outcome, Error> {
        let link = match self.pool.link() {
            Ok(link) => link,
            Err(reconnecting) => {
                let job = Job {
                    command,
                    offset: 0,
                    len: 1,
                    max: 1,
                    flags: CommandFlags::NONE,
                    guard: None,
                    kept: None,
                };
                let only = Piece { offset: 0, len: 1 };
                let only = std::iter::once(only);
                return self.retry(reconnecting, job, only, dest, |_| request());
            }
        };
        let request = request();
        let _watched = self.pool.watch(command, || request.range());
        self.observed(link.call(request, dest).map_err(|(error, _)| error))
    }

    /// Has pieces carried out, again and again until they count as answered, and returns the result
    /// of the last one.
    fn retry<'a>(
        &self,
        reconnecting: &ReconnectingPool,
        job: Job<'_>,
        pieces: impl Iterator<Item = Piece> + Clone,
        dest: &mut [u8],
        request: impl Fn(Piece) -> Call<'a>,
    ) -> Result<Outcome, Error> {
        let log = &reconnecting.log;
        let payload = match job.command {
            Command::Write => job.len,
            _ => 0,
        };
        let admission = match job.kept {
            Some(_) => log.admit(payload, pieces.clone().count() as u64),
            None => Admission::Counted,
        };
        loop {
            let epoch = log.lock().epoch();
            let pieces = pieces.clone();
            let outcome = self.answered(reconnecting, job, &admission, pieces, dest, &request)?;
            if !matches!(admission, Admission::WriteThrough) {
                return Ok(outcome);
            }
            if self.cover(log.uncovered(epoch))? {
                return Ok(outcome);
            }
        }
    }

    /// Waits until a flush has covered a change, and sends it if no other call does. Whether it has:
    /// otherwise the change has to be sent again, because a flush of after a loss covers nothing of
    /// before.
    fn cover(&self, mut change: Uncovered<'_>) -> Result<bool, Error> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let late = self.pool.timeout.map(|after| (Instant::now(), after));
        loop {
            match change.poll(&waker) {
                Poll::Ready(step) => match step? {
                    FlushStep::Covered => return Ok(true),
                    FlushStep::SendAgain => return Ok(false),
                    FlushStep::Flush(_turn) => drop(self.flush_once()?),
                },
                Poll::Pending => match late {
                    None => thread::park(),
                    Some((start, after)) => match after.checked_sub(start.elapsed()) {
                        Some(left) => thread::park_timeout(left),
                        None => {
                            let command = Command::Flush;
                            return Err(Error::Timeout { command, after });
                        }
                    },
                },
            }
        }
    }

    /// Has pieces carried out, again and again until they are answered.
    fn answered<'a>(
        &self,
        reconnecting: &ReconnectingPool,
        job: Job<'_>,
        admission: &Admission,
        mut pieces: impl Iterator<Item = Piece>,
        dest: &mut [u8],
        request: impl Fn(Piece) -> Call<'a>,
    ) -> Result<Outcome, Error> {
        let unanswered = RefCell::new(VecDeque::new());
        let mut outcome = Outcome::Done;
        let mut late = None;
        loop {
            let link = reconnecting.link(job.command, &mut late)?;
            let next = || {
                let again = unanswered.borrow_mut().pop_front();
                again.or_else(|| pieces.next())
            };
            let record = |piece| {
                let log = link.log()?;
                match (job.command, job.kept) {
                    (Command::Flush, _) => Some(log.flush()),
                    (_, Some(kept)) => {
                        let forced = job.flags.contains(CommandFlags::FUA);
                        Some(log.change(forced, admission.keep(|| kept(piece))))
                    }
                    _ => None,
                }
            };
            let mut failed = None;
            let take = |piece: Piece, done: Answer| {
                let error = match done {
                    Ok(answer) => {
                        outcome = answer;
                        return Ok(());
                    }
                    Err((error, _)) if ends(&error) => error,
                    Err(late) => {
                        let error = job.failed(&link, late);
                        failed.get_or_insert_with(|| error.clone());
                        return Err(error);
                    }
                };
                unanswered.borrow_mut().push_back(piece);
                Err(error)
            };
            let watch = |piece| self.watch(job.command, piece);
            let result = in_flight(&link, next, dest, &request, record, watch, take);
            let Err(error) = result else {
                return Ok(outcome);
            };
            reconnecting.lost(&link);
            if let Some(error) = failed {
                return Err(error);
            }
            if reconnecting.is_closing() {
                return Err(error);
            }
        }
    }

    fn watch(&self, command: Command, Piece { offset, len }: Piece) -> Option<Watched> {
        self.pool.watch(command, || offset..offset + len)
    }

    pub(super) fn flush_once(&self) -> Result<Outcome, Error> {
        self.single(Command::Flush, &mut [], || Call::Owned(Request::Flush))
    }
}

impl Job<'_> {
    /// The error of a piece. One that may still be carried out keeps the lock.
    fn failed(&self, link: &Arc<Link>, (error, cookie): (Error, Option<Cookie>)) -> Error {
        if let (Error::Timeout { .. }, Some(guard), Some(cookie)) = (&error, self.guard, cookie) {
            guard.leave_to(link, cookie);
        }
        error
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Whether an error says that the connection cannot be used any more.
pub(crate) fn ends(error: &Error) -> bool {
    error.is_lost() || error.errno() == Some(Errno::Shutdown)
}

/// Has requests carried out over one connection, several at once, and recorded. `take` is given the
/// result of each that was begun, and the first error that it gives ends it when those in flight
/// have ended.
fn in_flight<'a>(
    link: &Link,
    mut next: impl FnMut() -> Option<Piece>,
    dest: &mut [u8],
    request: impl Fn(Piece) -> Call<'a>,
    record: impl Fn(Piece) -> Option<Record>,
    watch: impl Fn(Piece) -> Option<Watched>,
    mut take: impl FnMut(Piece, Answer) -> Result<(), Error>,
) -> Result<(), Error> {
    let place = link.place();
    let mut window = [const { None }; WINDOW];
    let mut result = Ok(());
    loop {
        for free in window.iter_mut().filter(|slot| slot.is_none()) {
            if result.is_err() {
                break;
            }
            let Some(piece) = next() else { break };
            let watched = watch(piece);
            match link.submit(place.index(), request(piece), dest, record(piece)) {
                Ok(cookie) => *free = Some((cookie, piece, watched)),
                Err(error) => result = take(piece, Err((error, None))),
            }
        }
        if window.iter().all(Option::is_none) {
            return result;
        }
        match link.wait(place.index(), dest) {
            Ok(done) => {
                let own = |slot: &&mut Option<(Cookie, Piece, _)>| {
                    slot.as_ref()
                        .is_some_and(|(cookie, ..)| *cookie == done.cookie)
                };
                let slot = window.iter_mut().find(own).and_then(Option::take);
                if let Some((cookie, piece, _watched)) = slot {
                    let taken = take(
                        piece,
                        done.reply
                            .into_result()
                            .map_err(|error| (error, Some(cookie))),
                    );
                    result = result.and(taken);
                }
            }
            Err(error) => {
                for (_, piece, _) in window.into_iter().flatten() {
                    let taken = take(piece, Err((error.clone(), None)));
                    result = result.and(taken);
                }
                return result;
            }
        }
    }
}
