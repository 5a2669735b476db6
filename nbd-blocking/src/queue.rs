//! Many requests in flight from one thread.
//!
//! The file has more than 500 lines because of the documentation of its methods.

use crate::{
    Client, Error,
    client::ends,
    link::{Call, Done, Link},
};
use bytes::Bytes;
use nbd_io::client::{Admission, LinkLog, Owner, Record, Request, Watched};
use nbd_proto::{
    Command, CommandFlags, Misuse,
    client::{ContextExtents, Cookie, Outcome},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Requests that one thread submits and whose completions it takes, in the order in which they
/// come.
///
/// Submitting does not wait, unless as many requests are in flight as
/// [`Limits::in_flight`](crate::Limits::in_flight) allows. Requests are sent together by the
/// next [`complete`](Queue::complete), or by [`send`](Queue::send).
///
/// ```no_run
/// # fn f(client: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
/// let mut queue = client.queue();
/// for block in 0..16 {
///     queue.read(vec![0; 4096], block * 4096)?;
/// }
/// while let Some(completion) = queue.complete()? {
///     let data = completion.into_buffer()?;
/// }
/// # Ok(()) }
/// ```
///
/// Where the server has a minimum block size, submitting a change also waits for changes of the
/// same bytes by other queues and calls, such as parts of a block.
///
/// A queue stays on its connection. When that is lost, everything fails that has no completion yet,
/// and the queue is over, even if the client makes a new connection: then a new queue uses that.
///
/// Dropping a queue gives its requests up: they are sent and their replies thrown away.
#[derive(Debug)]
pub struct Queue {
    client: Client,
    /// The connection, or why there is none.
    connected: Result<Connected, Error>,
    outstanding: usize,
    /// The queue as an owner of range locks, if changes of the same bytes have to wait for each
    /// other.
    owner: Option<Owner>,
    /// Next steps of these requests, for when they have been carried out.
    afterwards: HashMap<Cookie, Afterwards>,
    /// Changes that count when a flush has covered them.
    unflushed: VecDeque<Done>,
    /// A flush of the queue's own, and how many of these it covers.
    flushing: Option<(Cookie, usize)>,
    /// Requests that are measured, if slow ones are reported.
    watched: HashMap<Cookie, Watched>,
    /// Completions that the connection has handed over.
    received: VecDeque<Done>,
    /// Completions for the user to take.
    ready: VecDeque<Done>,
}

/// The next step after a request has been carried out.
#[derive(Clone, Copy, Debug)]
enum Afterwards {
    /// It was a flush: see whether writes were lost before.
    CheckLosses,
    /// It was a change that is not kept: put it on stable storage.
    Flush,
}

/// A place on a connection.
#[derive(Debug)]
struct Connected {
    link: Arc<Link>,
    place: usize,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.link.flush(self.place);
        self.link.leave(self.place);
    }
}

/// A request of a queue that is complete.
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// The cookie that [`Queue`]'s methods returned for the request.
    pub cookie: Cookie,
    /// Whether it was carried out.
    pub result: Result<(), Error>,
    /// The buffer of a read. After a [timeout](Error::Timeout) it may be empty.
    pub buffer: Option<Vec<u8>>,
    /// The extents of a block status.
    pub extents: Vec<ContextExtents>,
}

impl Completion {
    /// The buffer of a read that succeeded.
    ///
    /// # Errors
    ///
    /// When the read failed.
    pub fn into_buffer(self) -> Result<Vec<u8>, Error> {
        self.result.map(|()| self.buffer.unwrap_or_default())
    }
}

impl Completion {
    #[inline]
    fn new(done: Done) -> Self {
        let Done {
            cookie,
            reply,
            sink,
        } = done;
        let buffer = sink.into_owned();
        let (result, extents) = match reply.into_result() {
            Ok(Outcome::Extents(extents)) => (Ok(()), extents),
            Ok(_) => (Ok(()), Vec::new()),
            Err(error) => (Err(error), Vec::new()),
        };
        Self {
            cookie,
            result,
            buffer,
            extents,
        }
    }
}

impl Queue {
    pub(crate) fn new(client: &Client) -> Self {
        let link = match client.pool.link() {
            Ok(link) => Ok(link.clone()),
            Err(reconnecting) => reconnecting.link(Command::Read, &mut None),
        };
        let connected = link.map(|link| Connected {
            place: link.enter(),
            link,
        });
        Self {
            client: client.clone(),
            connected,
            outstanding: 0,
            owner: client.locks_ranges().then(|| client.overlaps().owner()),
            afterwards: HashMap::new(),
            unflushed: VecDeque::new(),
            flushing: None,
            watched: HashMap::new(),
            received: VecDeque::new(),
            ready: VecDeque::new(),
        }
    }

    /// Number of submitted requests whose completions were not taken.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// while queue.outstanding() < 64 {
    ///     queue.read(vec![0; 4096], 0)?;
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Reads as many bytes at `offset` as the buffer has.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// let cookie = queue.read(vec![0; 4096], 8192)?;
    /// if let Some(completion) = queue.complete()? {
    ///     assert_eq!(completion.cookie, cookie);
    ///     println!("{:?}", completion.into_buffer()?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the request makes no sense here or is longer than one may be, or the connection is
    /// over.
    pub fn read(&mut self, buffer: Vec<u8>, offset: u64) -> Result<Cookie, Error> {
        self.submit(Call::Fill { offset, buffer }, None)
    }

    /// Writes a payload at `offset`. Flags: [`CommandFlags::FUA`].
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// queue.write(&b"hello"[..], 4096, CommandFlags::FUA)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn write(
        &mut self,
        payload: impl Into<Bytes>,
        offset: u64,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let payload = payload.into();
        self.change(Request::Write {
            offset,
            payload,
            flags,
        })
    }

    /// Asks that writes that were answered before are put on stable storage. Writes of this queue
    /// that are in flight are not covered. It fails like [`Client::flush`] after writes were lost,
    /// until there is a queue of a client of a [new epoch](Client::new_epoch).
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// queue.flush()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn flush(&mut self) -> Result<Cookie, Error> {
        let cookie = self.submit_flush()?;
        self.outstanding += 1;
        self.afterwards.insert(cookie, Afterwards::CheckLosses);
        Ok(cookie)
    }

    /// Hints that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// queue.trim(0, 1 << 20, CommandFlags::NONE)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn trim(&mut self, offset: u64, len: u64, flags: CommandFlags) -> Result<Cookie, Error> {
        self.change(Request::Trim { offset, len, flags })
    }

    /// Hints that a range will be read soon.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// queue.cache(0, 1 << 20)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn cache(&mut self, offset: u64, len: u64) -> Result<Cookie, Error> {
        self.submit(Call::Owned(Request::Cache { offset, len }), None)
    }

    /// Writes zeroes. Flags as for [`Client::write_zeroes`](crate::Client::write_zeroes).
    ///
    /// A server that sent no block sizes is not asked for more than a write may have, because some
    /// acknowledge longer zeroes and do not write them all.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// queue.write_zeroes(0, 1 << 20, CommandFlags::NO_HOLE)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let (command, max) = (Command::WriteZeroes, self.client.pool.negotiated.max_zeroes);
        if len > max {
            return Err(Misuse::TooLong { command, len, max }.into());
        }
        self.change(Request::WriteZeroes { offset, len, flags })
    }

    /// Asks for the status of a range in the selected meta contexts. Flags:
    /// [`CommandFlags::REQ_ONE`].
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// queue.block_status(0, 1 << 20, CommandFlags::NONE)?;
    /// if let Some(completion) = queue.complete()? {
    ///     println!("{:?}", completion.extents);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn block_status(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let request = Request::BlockStatus {
            offset,
            len,
            flags,
            ids: None,
        };
        self.submit(Call::Owned(request), None)
    }

    /// Sends submitted requests, without waiting for a completion.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// queue.read(vec![0; 4096], 8192)?;
    /// queue.send()?; // and do something else
    /// let completion = queue.complete()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the connection is over.
    pub fn send(&mut self) -> Result<(), Error> {
        let Connected { link, place } = self.connected()?;
        link.flush(*place).map_err(|error| self.noticed(error))
    }

    /// Waits for the next completion; `None` when nothing is outstanding.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// queue.flush()?;
    /// while let Some(completion) = queue.complete()? {
    ///     completion.result?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the connection is over. A request that failed is no error here.
    #[inline]
    pub fn complete(&mut self) -> Result<Option<Completion>, Error> {
        loop {
            if let Some(completion) = self.next_ready() {
                return Ok(Some(completion));
            }
            if self.outstanding == 0 {
                return Ok(None);
            }
            let Connected { link, place } = self.connected.as_ref().map_err(Clone::clone)?;
            let waited = link.wait_all(*place, &mut self.received);
            waited.map_err(|error| self.noticed(error))?;
        }
    }

    /// The next completion if it is there without waiting.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// while let Some(completion) = queue.try_complete()? {
    ///     completion.result?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`complete`](Queue::complete).
    pub fn try_complete(&mut self) -> Result<Option<Completion>, Error> {
        loop {
            if let Some(completion) = self.next_ready() {
                return Ok(Some(completion));
            }
            if self.outstanding == 0 {
                return Ok(None);
            }
            let Connected { link, place } = self.connected.as_ref().map_err(Clone::clone)?;
            let flushed = link.flush(*place);
            let polled = flushed.and_then(|()| link.poll_all(*place, &mut self.received));
            polled.map_err(|error| self.noticed(error))?;
            if self.received.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The next one of the completions that have come already, mostly together with an earlier one.
    /// Unlike [`try_complete`](Queue::try_complete) it does not ask the system for others.
    ///
    /// ```no_run
    /// # fn f(mut queue: nbd_blocking::Queue) -> Result<(), nbd_blocking::Error> {
    /// while let Some(first) = queue.complete()? {
    ///     let now = std::time::Instant::now(); // once for all that came together
    ///     let others = std::iter::from_fn(|| queue.next_ready());
    ///     for completion in std::iter::once(first).chain(others) {
    ///         completion.result?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn next_ready(&mut self) -> Option<Completion> {
        let done = loop {
            if let Some(done) = self.ready.pop_front() {
                break done;
            }
            let done = self.received.pop_front()?;
            let is_plain = self.afterwards.is_empty() && self.flushing.is_none();
            if done.reply.is_ok() && is_plain && self.watched.is_empty() {
                break done;
            }
            self.take(done);
        };
        self.outstanding -= 1;
        Some(Completion::new(done))
    }

    fn connected(&self) -> Result<&Connected, Error> {
        self.connected.as_ref().map_err(Clone::clone)
    }

    /// The error of a request, of which the client knows then.
    fn noticed(&self, error: Error) -> Error {
        self.notice(&error);
        error
    }

    /// Has the client know of a connection that is over.
    fn notice(&self, error: &Error) {
        if ends(error)
            && let Ok(connected) = &self.connected
        {
            // No queue has to end for that.
            connected.link.leave_if_idle();
            match self.client.pool.reconnecting() {
                Some(reconnecting) => reconnecting.lost(&connected.link),
                None => self.client.pool.report_losses(),
            }
        }
    }

    /// Takes in a reply, and acts on it.
    fn take(&mut self, mut done: Done) {
        if !self.watched.is_empty() {
            self.watched.remove(&done.cookie);
        }
        if let Some(error) = done.reply.error() {
            self.notice(error);
        }
        if let Some((_, count)) = self.flushing.take_if(|(own, _)| *own == done.cookie) {
            self.covered(count, &done.reply.into_result().map(drop));
            self.cover();
            return;
        }
        if self.afterwards.is_empty() {
            self.ready.push_back(done);
            return;
        }
        match self.afterwards.remove(&done.cookie) {
            Some(Afterwards::Flush) if done.reply.is_ok() => {
                self.unflushed.push_back(done);
                self.cover();
                return;
            }
            Some(Afterwards::CheckLosses) if done.reply.is_ok() => {
                done.reply = self.client.check_losses().map(|()| Outcome::Done).into();
            }
            _ => {}
        }
        self.ready.push_back(done);
    }

    /// Has a flush cover the changes that wait for one.
    fn cover(&mut self) {
        let count = self.unflushed.len();
        if count == 0 || self.flushing.is_some() {
            return;
        }
        match self.submit_flush() {
            Ok(cookie) => self.flushing = Some((cookie, count)),
            Err(error) => self.covered(count, &Err(error)),
        }
    }

    /// The first of the changes that wait for a flush are complete, whether it succeeded or not.
    fn covered(&mut self, count: usize, flushed: &Result<(), Error>) {
        for mut done in self.unflushed.drain(..count) {
            if let Err(error) = flushed {
                done.reply = error.clone().into();
            }
            self.ready.push_back(done);
        }
    }

    fn submit_flush(&mut self) -> Result<Cookie, Error> {
        let record = match &self.connected {
            Ok(connected) => connected.link.log().map(LinkLog::flush),
            Err(_) => None,
        };
        self.send_request(Call::Owned(Request::Flush), record)
    }

    /// Submits a change, which holds the lock of its range until it is answered.
    fn change(&mut self, mut request: Request) -> Result<Cookie, Error> {
        let Some(owner) = self.owner else {
            return self.submit(Call::Owned(request), None);
        };
        let client = self.client.clone();
        let guard = match request.change() {
            Some(range) => client.guard_of(request.command(), range, Some(owner))?,
            None => None,
        };
        let mut record = None;
        let mut is_kept = true;
        if let (Some(reconnecting), Ok(connected)) = (client.pool.reconnecting(), &self.connected) {
            let admission = reconnecting.log.admit(request.weight(), 1);
            let kept = admission.keep(|| request.clone().detached());
            if let Some(kept) = &kept {
                request = kept.request.clone(); // the caller's data is not needed any more
            }
            is_kept = !matches!(admission, Admission::WriteThrough);
            let forced = request.has(CommandFlags::FUA);
            record = connected.link.log().map(|log| log.change(forced, kept));
        }
        let cookie = self.submit(Call::Owned(request), record)?;
        if let (Some(guard), Ok(connected)) = (guard, &self.connected) {
            guard.leave_to(&connected.link, cookie);
        }
        if !is_kept {
            self.afterwards.insert(cookie, Afterwards::Flush);
        }
        Ok(cookie)
    }

    #[inline]
    fn submit(&mut self, call: Call<'_>, record: Option<Record>) -> Result<Cookie, Error> {
        if self.client.pool.measures() {
            return self.submit_watched(call, record);
        }
        let cookie = self.send_request(call, record)?;
        self.outstanding += 1;
        Ok(cookie)
    }

    /// Apart, so that requests cost nothing that are not measured.
    #[cold]
    fn submit_watched(&mut self, call: Call<'_>, record: Option<Record>) -> Result<Cookie, Error> {
        let watched = self.client.pool.watch(call.command(), || call.range());
        let cookie = self.send_request(call, record)?;
        self.outstanding += 1;
        if let Some(watched) = watched {
            self.watched.insert(cookie, watched);
        }
        Ok(cookie)
    }

    // Inlined, because the kind of call is known where it is made.
    #[inline(always)]
    fn send_request(&self, call: Call<'_>, record: Option<Record>) -> Result<Cookie, Error> {
        let Connected { link, place } = self.connected()?;
        let sent = link.submit(*place, call, &mut [], record);
        sent.map_err(|error| self.noticed(error))
    }
}
