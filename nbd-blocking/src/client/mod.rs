//! An export that is used from any number of threads.
//!
//! The file has more than 500 lines because of the documentation of its methods.

mod ranges;
mod retry;

pub(crate) use retry::ends;

use crate::{Error, Extents, Queue, link::Call, pool::Pool};
use nbd_io::client::{ConnectionState, Negotiated, Piece, Request, length};
use nbd_proto::{Command, CommandFlags, client::ContextExtents};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

/// An export that was entered.
///
/// All methods take `&self`, and clones are cheap and share the connections: any number of threads
/// can have requests in flight at once, and replies come in any order. There is no thread behind
/// it; callers that wait serve each other.
///
/// Requests may have any length. A request longer than the server allows is split, and its pieces
/// are in flight together. If one of them fails, the others may or may not have been carried out.
///
/// Requests that overlap and are in flight at once are carried out in any order. After the
/// connection is over, every call returns the reason, unless there is a policy by which to make a
/// new one: see [`Reconnect`](crate::Reconnect). Changes of the same bytes then come one after the
/// other, in the order in which the calls were begun.
///
/// Dropping the last clone sends `NBD_CMD_DISC` if that needs no waiting; see
/// [`disconnect`](Client::disconnect).
///
/// Spec: [Request types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types).
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) pool: Arc<Pool>,
    /// Losses of unflushed writes before the epoch of this handle began.
    losses: u64,
}

impl Client {
    pub(crate) fn new(pool: Pool) -> Self {
        Self {
            pool: Arc::new(pool),
            losses: 0,
        }
    }

    pub(crate) fn negotiated(&self) -> &Negotiated {
        &self.pool.negotiated
    }

    /// Number of connections at present.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// println!("{} connections", disk.connections());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.count()
    }

    /// State of the connections. There is no thread that looks at them, so this does.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::ConnectionState;
    ///
    /// if let ConnectionState::Reconnecting { attempt, .. } = disk.state() {
    ///     println!("attempt {attempt}");
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.pool.status()
    }

    /// Waits until the state is another one than `known`, for `timeout` at most if there is one, and
    /// returns the state of then. Lost connections are replaced meanwhile, as by any call. States
    /// between may be left out.
    ///
    /// ```no_run
    /// use nbd_blocking::{ConnectOptions, Reconnect};
    /// use std::time::Duration;
    ///
    /// let disk = ConnectOptions::new()
    ///     .reconnect(Some(Reconnect::new()))
    ///     .connect("nbd://localhost/disk")?;
    /// let state = disk.state_changed(&disk.state(), Some(Duration::from_secs(60)));
    /// println!("{state:?}");
    /// # Ok::<(), nbd_blocking::Error>(())
    /// ```
    #[must_use]
    pub fn state_changed(
        &self,
        known: &ConnectionState,
        timeout: Option<Duration>,
    ) -> ConnectionState {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.pool.state_changed(known, until)
    }

    /// Reads up to the end of the buffer or of the export. Returns the number of bytes read, which
    /// is less than the buffer's length only at the end of the export.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// let mut block = [0; 4096];
    /// let len = disk.read_at(&mut block, disk.size() - 512)?;
    /// assert_eq!(len, 512);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the server fails the command, or the connection is over. The buffer's contents are
    /// undefined then.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let len = self.negotiated().until_end(offset, buf.len());
        self.read_exact_at(&mut buf[..len], offset)?;
        Ok(len)
    }

    /// Reads all of the buffer. Where the server has a minimum block size, the rest of the first
    /// and the last block is read too and thrown away.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// let mut block = [0; 4096];
    /// disk.read_exact_at(&mut block, 8192)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the range is not inside the export, the server fails the command, or the connection is
    /// over. The buffer's contents are undefined then.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let negotiated = self.negotiated();
        let range = negotiated.range(Command::Read, offset, buf.len() as u64)?;
        // Most have but one part.
        if negotiated.is_whole(&range) {
            return self.read_whole(buf, offset);
        }
        let mut rest = buf;
        for part in negotiated.parts(range) {
            let (now, later) = rest.split_at_mut(length(&part.range));
            rest = later;
            if part.is_whole() {
                self.read_whole(now, part.range.start)?;
            } else {
                now.copy_from_slice(&self.read_blocks(&part)?[part.place()]);
            }
        }
        Ok(())
    }

    /// Reads all of the buffer in one request with these flags; nothing is split or aligned. Flags:
    /// [`CommandFlags::DF`].
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// let mut block = [0; 4096];
    /// disk.read_exact_at_with(&mut block, 8192, CommandFlags::DF)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the request makes no sense here, the server fails it, or the connection is over.
    pub fn read_exact_at_with(
        &self,
        buf: &mut [u8],
        offset: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let len = buf.len();
        let call = || Call::Read {
            offset,
            into: 0..len,
            flags,
        };
        self.single(Command::Read, buf, call).map(drop)
    }

    /// Writes up to the end of the buffer or of the export. Returns the number of bytes written,
    /// which is less than the buffer's length only at the end of the export.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// let len = disk.write_at(b"hello", disk.size() - 2)?;
    /// assert_eq!(len, 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the server fails the command, or the connection is over. The number of written bytes is
    /// not known then.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize, Error> {
        let len = self.negotiated().until_end(offset, buf.len());
        self.write_all_at(&buf[..len], offset)?;
        Ok(len)
    }

    /// Writes all of the buffer. It is on stable storage after a [`flush`](Client::flush).
    ///
    /// Where the server has a minimum block size, a part of a block is written by reading,
    /// changing and writing the block, which this client, its clones and queues keep apart from
    /// their other changes, but other clients cannot know of. They wait for each other, and also for
    /// one that took too long and may still be carried out, up to the time that a request may take.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// disk.write_all_at(b"hello", 4096)?;
    /// disk.flush()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`write_at`](Client::write_at), and when the range is not inside the export.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.write_all_at_with(buf, offset, CommandFlags::NONE)
    }

    /// Writes all of the buffer with these flags: [`CommandFlags::FUA`] to have it on stable
    /// storage before this returns.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// disk.write_all_at_with(b"hello", 4096, CommandFlags::FUA)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`write_all_at`](Client::write_all_at), and when the server does not offer the flag.
    pub fn write_all_at_with(
        &self,
        buf: &[u8],
        offset: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let negotiated = self.negotiated();
        let range = negotiated.range(Command::Write, offset, buf.len() as u64)?;
        let mut rest = buf;
        for part in negotiated.parts(range) {
            let (now, later) = rest.split_at(length(&part.range));
            rest = later;
            // Others that change a block come before a part of it is read, or after it is written.
            let guard = self.lock_range(Command::Write, part.blocks.clone())?;
            let start = part.blocks.start;
            if part.is_whole() {
                self.write_whole(now, start, flags, guard.as_ref())?;
            } else {
                let mut block = self.read_blocks(&part)?;
                block[part.place()].copy_from_slice(now);
                self.write_whole(&block, start, flags, guard.as_ref())?;
            }
        }
        Ok(())
    }

    /// Puts everything that was answered before this call on stable storage, over whichever
    /// connection it was written.
    ///
    /// Without [`ExportInfo::can_flush`](crate::ExportInfo::can_flush) the server cannot be asked.
    ///
    /// With [`Reconnect`](crate::Reconnect), writes may be lost before they are flushed. This is
    /// [`Error::Unflushed`] then, and so is every later flush of this handle, its clones and their
    /// queues, as a file whose `fsync` has failed cannot promise anything any more. Handles of a
    /// [new epoch](Client::new_epoch) can.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// disk.write_all_at(b"hello", 4096)?;
    /// disk.flush()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the server does not offer it or fails it, the connection is over, or writes before this
    /// one may have been lost.
    pub fn flush(&self) -> Result<(), Error> {
        // C-191, C-192: the answered writes are covered, and the server keeps connections
        // consistent.
        self.flush_once()?;
        self.check_losses()
    }

    /// A handle to the same client that leaves behind writes that were lost: its
    /// [`flush`](Client::flush) covers writes that are begun from now on. One that is in flight now may
    /// have been carried out in part before the loss. It is for a program that has met
    /// [`Error::Unflushed`] and writes again.
    ///
    /// ```no_run
    /// use nbd_blocking::{ConnectOptions, Error, Reconnect};
    ///
    /// let mut disk = ConnectOptions::new()
    ///     .reconnect(Some(Reconnect::new()))
    ///     .connect("nbd://localhost/disk")?;
    /// loop {
    ///     disk.write_all_at(b"hello", 4096)?;
    ///     match disk.flush() {
    ///         Err(Error::Unflushed) => disk = disk.new_epoch(),
    ///         flushed => break flushed?,
    ///     }
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn new_epoch(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            losses: self.pool.write_losses(),
        }
    }

    /// Whether no writes were lost in the epoch of this handle.
    pub(crate) fn check_losses(&self) -> Result<(), Error> {
        match self.pool.write_losses() {
            losses if losses == self.losses => Ok(()),
            _ => Err(Error::Unflushed),
        }
    }

    /// Hints that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// disk.trim(0, 1 << 20, CommandFlags::NONE)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When the range or the flags make no sense here, the server fails the command, or the
    /// connection is over.
    pub fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        self.range(Command::Trim, Piece { offset, len }, |piece| {
            let Piece { offset, len } = piece;
            Request::Trim { offset, len, flags }
        })
    }

    /// Hints that a range will be read soon. Neither success nor failure means anything for later
    /// reads.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// disk.cache(0, 1 << 20)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim).
    pub fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.range(Command::Cache, Piece { offset, len }, |piece| {
            let Piece { offset, len } = piece;
            Request::Cache { offset, len }
        })
    }

    /// Writes zeroes. Flags: [`CommandFlags::FUA`], [`CommandFlags::NO_HOLE`],
    /// [`CommandFlags::FAST_ZERO`].
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// disk.write_zeroes(0, 1 << 20, CommandFlags::NO_HOLE)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim); with `FAST_ZERO`, [`Errno::NotSup`](crate::Errno::NotSup) says
    /// that writing would be no slower.
    pub fn write_zeroes(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        self.range(Command::WriteZeroes, Piece { offset, len }, |piece| {
            let Piece { offset, len } = piece;
            Request::WriteZeroes { offset, len, flags }
        })
    }

    /// Asks once for the status of a range in the selected meta contexts. The answer may cover less
    /// than the range, differently for each context; [`extents`](Client::extents) goes on until the
    /// end. Flags: [`CommandFlags::REQ_ONE`].
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::{CommandFlags, ConnectOptions, ContextName};
    ///
    /// let disk = ConnectOptions::new()
    ///     .require_context(ContextName::base_allocation())
    ///     .connect("nbd://localhost/disk")?;
    /// let answers = disk.block_status(0, 1 << 20, CommandFlags::REQ_ONE)?;
    /// println!("{:?}", answers[0].extents);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When no context was selected, the range makes no sense, the server fails the command, or
    /// the connection is over.
    pub fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.status(offset, len, flags, None)
    }

    /// Asks once for the status of a range in some of the selected meta contexts.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::CommandFlags;
    ///
    /// let ids: Vec<u32> = disk.contexts().iter().map(|context| context.id).collect();
    /// let answers = disk.block_status_of(&ids, 0, 1 << 20, CommandFlags::NONE)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`block_status`](Client::block_status), and when the server cannot be asked for some
    /// contexts only or `ids` are not selected ones, once each.
    pub fn block_status_of(
        &self,
        ids: &[u32],
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.status(offset, len, flags, Some(ids.into()))
    }

    /// Walks the extents of a range to its end, with equal neighbours merged.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// use nbd_blocking::{ConnectOptions, ContextName};
    ///
    /// let disk = ConnectOptions::new()
    ///     .require_context(ContextName::base_allocation())
    ///     .connect("nbd://localhost/disk")?;
    /// for run in disk.extents(0..disk.size()) {
    ///     println!("{:?}", run?);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn extents(&self, range: Range<u64>) -> Extents {
        Extents::new(self.clone(), range)
    }

    /// A queue of requests, for one thread that has many of them in flight. It stays on one
    /// connection, which has the least to do now.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// let mut queue = disk.queue();
    /// for block in 0..16 {
    ///     queue.read(vec![0; 4096], block * 4096)?;
    /// }
    /// while let Some(completion) = queue.complete()? {
    ///     println!("{} bytes", completion.into_buffer()?.len());
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn queue(&self) -> Queue {
        Queue::new(self)
    }

    /// Gives up all connections and makes new ones, without the pause that the policy has next. For a
    /// program that knows better: the network has changed, or the server is no longer the right one.
    /// Requests in flight are made again on the new connections. Nothing is waited for.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// disk.reconnect_now()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no policy to [`reconnect`](crate::ConnectOptions::reconnect), or the client is
    /// over.
    pub fn reconnect_now(&self) -> Result<(), Error> {
        self.pool.redial()
    }

    /// Ends the session: waits for requests in flight, sends `NBD_CMD_DISC` and waits for the
    /// server to close, all together up to 5 s. Clones and queues cannot be used afterwards.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// disk.disconnect()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// When a connection was over before, or is lost before the requests in flight are done, there
    /// was none at that time, or when this was called before.
    pub fn disconnect(&self) -> Result<(), Error> {
        self.pool.disconnect()
    }

    /// Whether there is no connection any more, and none will be made.
    ///
    /// ```no_run
    /// # fn f(disk: &nbd_blocking::Client) -> Result<(), nbd_blocking::Error> {
    /// if disk.is_lost() {
    ///     println!("{:?}", disk.state());
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.state(), ConnectionState::Over(_))
    }
}
