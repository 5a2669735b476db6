//! Many requests in flight from one thread.

use crate::{
    Client, Error,
    link::{Done, Link, Load, header},
    overlaps::Owner,
};
use bytes::Bytes;
use nbd_io::client::longest;
use nbd_proto::{
    Command, CommandFlags, Header, Misuse,
    client::{ContextExtents, Cookie, Outcome, Transmission},
};
use std::{ops::Range, sync::Arc};

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
/// Dropping a queue gives its requests up: they are sent and their replies thrown away.
#[derive(Debug)]
pub struct Queue {
    client: Client,
    link: Arc<Link>,
    place: usize,
    outstanding: usize,
    /// Where changes of the same bytes have to be kept apart from those of others.
    owner: Option<Owner>,
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
            buffer,
            ..
        } = done;
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
        let link = client.pool.link().clone();
        Self {
            client: client.clone(),
            place: link.enter(),
            link,
            outstanding: 0,
            owner: client.has_turns().then(|| client.overlaps().owner()),
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
        let load = Load::Owned(payload.clone());
        let range = range(offset, payload.len() as u64);
        self.change(Command::Write, range, load, |transmission| {
            header(transmission.write(offset, payload, flags))
        })
    }

    /// Asks that what was answered before is on stable storage. Writes of this queue that are in
    /// flight are not covered.
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn flush(&mut self) -> Result<Cookie, Error> {
        self.submit(Command::Flush, Load::Nothing, |transmission| {
            header(transmission.flush())
        })
    }

    /// Tells that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// Like [`read`](Queue::read).
    pub fn trim(&mut self, offset: u64, len: u64, flags: CommandFlags) -> Result<Cookie, Error> {
        let range = range(offset, len);
        self.change(Command::Trim, range, Load::Nothing, |transmission| {
            header(transmission.trim(offset, len, flags))
        })
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
        let command = Command::WriteZeroes;
        let range = range(offset, len);
        self.change(command, range, Load::Nothing, |transmission| {
            let max = longest(transmission, command);
            if len > max {
                return Err(Misuse::TooLong { command, len, max });
            }
            header(transmission.write_zeroes(offset, len, flags))
        })
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
        self.link.flush(self.place)
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
        let done = self.link.wait(self.place, &mut [])?;
        self.take(&done);
        if let Err(error) = &done.result {
            self.link.notice(error);
        }
        Ok(Some(done.into()))
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
        self.link.flush(self.place)?;
        let done = self.link.poll(self.place)?;
        if let Some(done) = &done {
            self.take(done);
        }
        Ok(done.map(Completion::from))
    }

    fn take(&mut self, done: &Done) {
        self.outstanding -= 1;
        if let Some(owner) = self.owner
            && !matches!(done.result, Err(Error::Timeout { .. }))
        {
            self.client.overlaps().ended(owner, done.cookie);
        }
    }

    /// Submits a change, which has its turn until it is answered.
    fn change(
        &mut self,
        command: Command,
        range: Range<u64>,
        load: Load<'_>,
        frame: impl FnOnce(&mut Transmission) -> Result<(Cookie, Header), Misuse>,
    ) -> Result<Cookie, Error> {
        let Some(owner) = self.owner else {
            return self.submit(command, load, frame);
        };
        let client = self.client.clone();
        let turn = client.turn_of(command, range, Some(owner))?;
        let cookie = self.submit(command, load, frame)?;
        if let Some(turn) = turn {
            turn.leave_to(&self.link, cookie);
        }
        Ok(cookie)
    }

    fn submit(
        &mut self,
        command: Command,
        load: Load<'_>,
        frame: impl FnOnce(&mut Transmission) -> Result<(Cookie, Header), Misuse>,
    ) -> Result<Cookie, Error> {
        let cookie = self
            .link
            .submit(self.place, command, load, &mut [], frame)?;
        self.outstanding += 1;
        Ok(cookie)
    }
}

fn range(offset: u64, len: u64) -> Range<u64> {
    offset..offset.saturating_add(len)
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.link.flush(self.place);
        self.link.leave(self.place);
    }
}
