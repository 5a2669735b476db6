//! Many requests in flight from one thread.

use crate::{
    Client, Error, Lost,
    client::ends,
    link::{Done, Framed, Link, Load, header},
    overlaps::Owner,
    pool::{Effect, Restored},
};
use bytes::Bytes;
use nbd_io::client::Request;
use nbd_proto::{
    Command, CommandFlags, Misuse,
    client::{ContextExtents, Cookie, Outcome, Transmission},
};
use std::{mem, sync::Arc};

/// Requests that one thread submits and whose completions it takes, in the order in which they
/// come.
///
/// Submitting does not wait, unless as many requests are in flight as
/// [`Limits::in_flight`](nbd_proto::Limits::in_flight) allows. Requests are sent together by the
/// next [`complete`](Queue::complete), or by [`send`](Queue::send).
///
/// ```no_run
/// # fn f(client: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
/// let mut queue = client.queue();
/// for block in 0..16 {
///     queue.read(block * 4096, vec![0; 4096])?;
/// }
/// while let Some(completion) = queue.complete()? {
///     let data = completion.into_buffer()?;
/// }
/// # Ok(()) }
/// ```
///
/// Where the server has a minimum block size, submitting a change also waits for those of the same
/// bytes that are not this queue's, such as parts of a block.
///
/// A queue stays on its connection. When that is lost, everything fails that has no completion yet,
/// and the queue is over, even if the client makes a new connection: then a new queue uses that.
///
/// Dropping a queue gives its requests up: they are sent and their replies thrown away.
#[derive(Debug)]
pub struct Queue {
    client: Client,
    /// The connection, or why there is none.
    seat: Result<Seat, Error>,
    outstanding: usize,
    /// Where changes of the same bytes have to be kept apart from those of others.
    owner: Option<Owner>,
    /// What becomes of the export, where that is to be known after a connection was lost.
    effects: Vec<(Cookie, Effect)>,
}

/// A place on a connection.
#[derive(Debug)]
struct Seat {
    link: Arc<Link>,
    place: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.link.flush(self.place);
        self.link.leave(self.place);
    }
}

/// A request of a queue that is complete.
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// What [`Queue`]'s methods returned for the request.
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

impl From<Done> for Completion {
    fn from(done: Done) -> Self {
        let Done {
            cookie,
            result,
            sink,
        } = done;
        let buffer = sink.into_owned();
        let (result, extents) = match result {
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
            Err(restored) => restored.link(Command::Read, &mut None),
        };
        let seat = link.map(|link| Seat {
            place: link.enter(),
            link,
        });
        Self {
            client: client.clone(),
            seat,
            outstanding: 0,
            owner: client.has_turns().then(|| client.overlaps().owner()),
            effects: Vec::new(),
        }
    }

    /// How many requests were submitted whose completions were not taken.
    #[must_use]
    pub const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Reads as many bytes at `offset` as the buffer has.
    ///
    /// # Errors
    ///
    /// When the request makes no sense here or is longer than one may be, or the connection is
    /// over.
    pub fn read(&mut self, offset: u64, buffer: Vec<u8>) -> Result<Cookie, Error> {
        let len = buffer.len() as u64;
        self.submit(Command::Read, Load::Fill(buffer), |transmission| {
            header(transmission.read(offset, len, CommandFlags::NONE))
        })
    }

    /// Writes a payload at `offset`. Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn write(
        &mut self,
        offset: u64,
        payload: impl Into<Bytes>,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let payload = payload.into();
        if self.owner.is_none() {
            return self.submit(Command::Write, Load::Nothing, |transmission| {
                let (cookie, frame) = transmission.write(offset, payload, flags)?;
                let (header, payload) = frame.into_parts();
                Ok((cookie, header, payload))
            });
        }
        self.change(Request::Write {
            offset,
            payload,
            flags,
        })
    }

    /// Asks that what was answered before is on stable storage. Writes of this queue that are in
    /// flight are not covered. With [`Reconnect`](crate::Reconnect), its completion tells once of
    /// writes that may have been lost before, like [`Client::flush`].
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn flush(&mut self) -> Result<Cookie, Error> {
        let effect = self.client.pool.restored().map(Restored::flush);
        let cookie = self.submit(Command::Flush, Load::Nothing, |transmission| {
            header(transmission.flush())
        })?;
        self.effects.extend(effect.map(|effect| (cookie, effect)));
        Ok(cookie)
    }

    /// Tells that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn trim(&mut self, offset: u64, len: u64, flags: CommandFlags) -> Result<Cookie, Error> {
        self.change(Request::Trim { offset, len, flags })
    }

    /// Tells that a range will be read soon.
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn cache(&mut self, offset: u64, len: u64) -> Result<Cookie, Error> {
        self.submit(Command::Cache, Load::Nothing, |transmission| {
            header(transmission.cache(offset, len))
        })
    }

    /// Writes zeroes. Flags as for [`Client::write_zeroes`](crate::Client::write_zeroes).
    ///
    /// A server that told no block sizes is not asked for more than a write may have, because some
    /// acknowledge longer zeroes and do not write them all.
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
        let (command, max) = (Command::WriteZeroes, self.client.pool.facts.max_zeroes);
        if len > max {
            return Err(Misuse::TooLong { command, len, max }.into());
        }
        self.change(Request::WriteZeroes { offset, len, flags })
    }

    /// Asks what the selected meta contexts say of a range. Flags: [`CommandFlags::REQ_ONE`].
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
        self.submit(Command::BlockStatus, Load::Nothing, |transmission| {
            header(transmission.block_status(offset, len, flags))
        })
    }

    /// Sends what was submitted, without waiting for a completion.
    ///
    /// # Errors
    ///
    /// When the connection is over.
    pub fn send(&mut self) -> Result<(), Error> {
        let Seat { link, place } = self.seat()?;
        link.flush(*place).map_err(|error| self.noticed(error))
    }

    /// Waits for the next completion; `None` when nothing is outstanding.
    ///
    /// # Errors
    ///
    /// When the connection is over. A request that failed is no error here.
    pub fn complete(&mut self) -> Result<Option<Completion>, Error> {
        if self.outstanding == 0 {
            return Ok(None);
        }
        let Seat { link, place } = self.seat()?;
        match link.wait(*place, &mut []) {
            Ok(mut done) => {
                self.take(&mut done);
                Ok(Some(done.into()))
            }
            Err(error) => Err(self.noticed(error)),
        }
    }

    /// The next completion if it is there without waiting.
    ///
    /// # Errors
    ///
    /// Like [`complete`](Queue::complete).
    pub fn try_complete(&mut self) -> Result<Option<Completion>, Error> {
        if self.outstanding == 0 {
            return Ok(None);
        }
        let Seat { link, place } = self.seat()?;
        match link.flush(*place).and_then(|()| link.poll(*place)) {
            Ok(Some(mut done)) => {
                self.take(&mut done);
                Ok(Some(done.into()))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.noticed(error)),
        }
    }

    fn seat(&self) -> Result<&Seat, Error> {
        self.seat.as_ref().map_err(Clone::clone)
    }

    /// Has the client know of a connection that is over.
    fn noticed(&self, error: Error) -> Error {
        if ends(&error)
            && let Ok(seat) = &self.seat
        {
            // No queue has to end for that.
            seat.link.leave_if_idle();
            if let Some(restored) = self.client.pool.restored() {
                restored.lost(&seat.link);
            }
        }
        error
    }

    fn take(&mut self, done: &mut Done) {
        self.outstanding -= 1;
        done.result =
            mem::replace(&mut done.result, Ok(Outcome::Done)).map_err(|error| self.noticed(error));
        if let Some(owner) = self.owner {
            if !matches!(done.result, Err(Error::Timeout { .. })) {
                self.client.overlaps().ended(owner, done.cookie);
            }
            self.count(done);
        }
    }

    /// Takes note of what becomes of the export, unless the connection was lost meanwhile.
    fn count(&mut self, done: &mut Done) {
        let of = |(cookie, _): &(Cookie, Effect)| *cookie == done.cookie;
        let Some(at) = self.effects.iter().position(of) else {
            return;
        };
        let (_, effect) = self.effects.swap_remove(at);
        let (Some(restored), Ok(seat), Ok(_)) =
            (self.client.pool.restored(), &self.seat, &done.result)
        else {
            return;
        };
        let flushes = matches!(effect, Effect::Flush(_));
        if !restored.counts(&seat.link, effect) {
            let lost = seat.link.lost();
            let lost = lost.unwrap_or_else(|| Arc::new(Lost::GivenUp));
            done.result = Err(Error::Lost(lost));
        } else if flushes && let Err(loss) = self.client.tell_loss() {
            done.result = Err(loss);
        }
    }

    /// Submits a change, which has its turn until it is answered.
    fn change(&mut self, request: Request) -> Result<Cookie, Error> {
        let Some(owner) = self.owner else {
            return self.submit_change(request);
        };
        let client = self.client.clone();
        let forced = request.has(CommandFlags::FUA);
        let effect = match client.pool.restored() {
            None => None,
            Some(restored) => {
                client.make_room(restored, request.weight())?;
                Some(restored.change(forced, || request.clone()))
            }
        };
        let turn = match request.change() {
            Some(range) => client.turn_of(request.command(), range, Some(owner))?,
            None => None,
        };
        let cookie = self.submit_change(request)?;
        if let (Some(turn), Ok(seat)) = (turn, &self.seat) {
            turn.leave_to(&seat.link, cookie);
        }
        self.effects.extend(effect.map(|effect| (cookie, effect)));
        Ok(cookie)
    }

    fn submit_change(&mut self, request: Request) -> Result<Cookie, Error> {
        self.submit(request.command(), Load::Nothing, |transmission| {
            request.start(transmission)
        })
    }

    fn submit(
        &mut self,
        command: Command,
        load: Load<'_>,
        frame: impl FnOnce(&mut Transmission) -> Result<Framed, Misuse>,
    ) -> Result<Cookie, Error> {
        let Seat { link, place } = self.seat()?;
        match link.submit(*place, command, load, &mut [], frame) {
            Ok(cookie) => {
                self.outstanding += 1;
                Ok(cookie)
            }
            Err(error) => Err(self.noticed(error)),
        }
    }
}
